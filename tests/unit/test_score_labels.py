"""`grainmill score --masks` and `--peer`: numbers that can be worked out by hand, resumption, refusals."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.io import savemat

from model.evaluation import plots, resume
from model.evaluation.benchmarks.mined import load_masks, match_mined
from model.evaluation.benchmarks.records import EvalImage, EvalObject, GroundTruth, iou_with
from model.evaluation.flags import ScoreFlags
from model.evaluation.options import score_options
from model.evaluation.protocols.label_masks import interval
from model.evaluation.published import published_for
from model.evaluation.results import ScoreOptions
from model.evaluation.subjects import baselines
from pipeline import cli
from pipeline.errors import InputError
from pipeline.format import rle


def rectangle(height: int, width: int, x: int, y: int, w: int, h: int) -> NDArray[np.bool_]:
    mask = np.zeros((height, width), dtype=bool)
    mask[y : y + h, x : x + w] = True
    return mask


@pytest.fixture(scope="module")
def benchmark(drawn_run: Path, drawn_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three images of the drawn run: `b` with its own bytes, `c` with others, `d-text`, which failed.

    Of `b` all five masks are objects; of `c` the first and the fourth, and one that was not mined; of `d-text` one.
    """
    root = tmp_path_factory.mktemp("benchmark")
    (root / "images").mkdir()
    shutil.copy(drawn_folder / "b.jpg", root / "images/b.jpg")
    with Image.open(drawn_folder / "c.png") as image:
        image.save(root / "images/c.png", compress_level=1, optimize=False)
        assert (root / "images/c.png").read_bytes() != (drawn_folder / "c.png").read_bytes()
    Image.new("RGB", (50, 40)).save(root / "images/d-text.jpg")
    found = match_mined(str(drawn_run), [eval_image(root / "images" / name) for name in ("b.jpg", "c.png")])
    assert found.by_bytes == 1
    for stem, row, kept in zip("bc", found.rows, ([0, 1, 2, 3, 4], [0, 3]), strict=True):
        assert row is not None
        (root / "masks" / stem).mkdir(parents=True)
        sample = row.load()
        masks = [rle.decode(sample.annotations[index].segmentation) for index in kept]
        if stem == "c":
            masks.append(rectangle(sample.height, sample.width, 20, sample.height - 12, 60, 12))
        for number, mask in enumerate(masks):
            Image.fromarray(mask).save(root / "masks" / stem / f"{number}.png")
    (root / "masks/d-text").mkdir()
    Image.fromarray(rectangle(40, 50, 5, 5, 9, 9)).save(root / "masks/d-text/0.png")
    return root


def eval_image(path: Path) -> EvalImage:
    return EvalImage(name=path.name, path=path, load=lambda: GroundTruth(height=1, width=1, objects=()))


def score(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert cli.main(["score", *map(str, arguments), "--json"]) == 0
    record: dict[str, Any] = json.loads(capsys.readouterr().out)
    return record


def test_numbers_worked_out_by_hand(
    benchmark: Path, drawn_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "scores"
    record = score(
        capsys, "--benchmark", "folder", "--data", benchmark, "--masks", drawn_run, "--output", output, "--workers", 1
    )
    value = {name: metric["value"] for name, metric in record["metrics"].items()}
    # Rank: instances 0, 4, 3 by area, then parts 1, 2. Of nine objects, rank 1 finds b's first and c's first.
    assert value["AR1"] == pytest.approx(2 / 9)
    assert value["AR10"] == value["AR100"] == value["AR1000"] == pytest.approx(7 / 9)
    assert value["AR1000_large"] is None
    assert value["masks_per_image"] == pytest.approx(10 / 3)
    assert value["mask_precision"] == pytest.approx(7 / 10)
    assert value["instances_per_image"] == pytest.approx(6 / 3)
    assert value["instance_recall"] == pytest.approx(5 / 9)
    assert value["instance_precision"] == pytest.approx(5 / 6)
    assert record["details"]["masks"]["images_by_bytes"] == 1
    assert record["details"]["masks"]["images_by_name"] == 1
    assert record["details"]["masks"]["images_without_masks"] == 1
    assert record["dataset"]["images"] == 3
    assert record["dataset"]["objects"] == 9
    assert record["details"]["granularity"]["labels"]["masks_by_granularity"] == [2, 0, 0, 0, 2, 0, 0, 0, 6]
    shares = record["details"]["granularity"]["labels"]["mask_precision_by_granularity"]
    assert shares[0] == shares[4] == 0.5  # g 0.1 and 0.55: b's are objects, c's are not
    assert shares[8] == pytest.approx(5 / 6)
    covered, pixels = 0, 0
    for row in match_mined(str(drawn_run), [eval_image(benchmark / "images/b.jpg")] * 1).rows:
        assert row is not None
        covered += np.any([rle.decode(each.segmentation) for each in row.load().annotations], axis=0).sum()
        pixels += row.height * row.width
    assert 0 < value["coverage"] < covered / pixels  # the failed image covers nothing
    assert record["benchmark"] == "folder"
    assert record["seeds"]["bootstrap"] == 0
    assert record["versions"]["packages"]["pycocotools"]
    assert record == json.loads((output / "scores.json").read_text())
    assert {path.name for path in (output / "plots").iterdir()} == {"recall_by_masks.png", "granularity.png"}
    low, high = (record["metrics"]["AR1000"][name] for name in ("low", "high"))
    assert 0 <= low < 7 / 9 < high <= 1


def test_the_rows_give_the_numbers_again(
    benchmark: Path, drawn_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = score(
        capsys,
        "--benchmark",
        "folder",
        "--data",
        benchmark,
        "--masks",
        drawn_run,
        "--output",
        tmp_path / "s",
        "--workers",
        1,
    )
    rows = pq.read_table(tmp_path / "s/objects.parquet").to_pandas()
    assert len(rows) == 9
    assert rows["recall_10"].mean() == pytest.approx(record["metrics"]["AR10"]["value"])
    assert rows["best_iou"].mean() == pytest.approx(record["metrics"]["mean_best_iou"]["value"])
    assert set(rows["image"]) == {"b.jpg", "c.png", "d-text.jpg"}


def unloaded(record: dict[str, Any]) -> dict[str, Any]:
    """Without what may differ between two runs of the same command."""
    left = {name: value for name, value in record.items() if name not in ("versions", "command")}
    left["configuration"] = {k: v for k, v in record["configuration"].items() if k != "workers"}
    return left


def test_resumed_in_any_number_of_workers_gives_the_same(
    benchmark: Path, drawn_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--benchmark", "folder", "--data", benchmark, "--masks", drawn_run, "--peer", "felzenszwalb"]
    first = score(capsys, *flags, "--output", tmp_path / "a", "--workers", 1)
    second = score(capsys, *flags, "--output", tmp_path / "b", "--workers", 2)
    assert unloaded(first) == unloaded(second)
    kept = sorted((tmp_path / "b/parts").iterdir())
    assert len(kept) == 6
    kept[0].unlink()
    kept[1].write_bytes(kept[1].read_bytes()[:40])  # cut by a crash
    for name in ("scores.json", "objects.parquet"):
        (tmp_path / "b" / name).unlink()
    assert unloaded(score(capsys, *flags, "--output", tmp_path / "b", "--workers", 1)) == unloaded(first)
    rows = [pq.read_table(tmp_path / name / "objects.parquet") for name in "ab"]
    assert rows[0].equals(rows[1])
    limited = score(capsys, *flags, "--output", tmp_path / "c", "--limit", 1, "--workers", 1)
    assert limited["dataset"]["images"] == 1
    assert limited["metrics"]["AR1000"]["value"] == 1.0


@dataclass(frozen=True)
class Item:
    name: str


def test_an_interruption_loses_nothing_that_was_done(tmp_path: Path) -> None:
    items = [Item(str(number)) for number in range(5)]
    done: list[str] = []

    def work(item: Item) -> dict[str, Any]:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(item.name)
        return {"value": float(item.name), "undefined": float("nan")}

    with pytest.raises(KeyboardInterrupt):
        resume.each_item(items, work, folder=tmp_path, workers=1, title="test")
    assert done == ["0", "1", "2"]
    done.clear()
    answers = resume.each_item(items, work, folder=tmp_path, workers=1, title="test")
    assert done == ["3", "4"]
    assert answers == [{"value": float(number), "undefined": None} for number in range(5)]


def test_bad_usage_is_one_message(
    benchmark: Path, drawn_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = ["--benchmark", "folder", "--data", str(benchmark)]
    masks = ["--masks", str(drawn_run)]
    other = tmp_path / "other/images"
    other.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(other / "unknown.png")
    (tmp_path / "other/masks").mkdir()
    Image.new("L", (8, 8), 3).save(tmp_path / "other/masks/unknown.png")
    for arguments, message in (
        ([], "--benchmark and --data"),
        (known, "--masks DIR, --checkpoint CKPT or --peer"),
        ([*known, *masks, "--checkpoint", "x"], "both"),
        (["--benchmark", "koko", "--data", str(benchmark), *masks], "no such benchmark"),
        (["--benchmark", "bsds500", "--data", str(benchmark), *masks], "groundTruth/val"),
        ([*known, "--masks", str(tmp_path / "none")], "none"),
        (["--benchmark", "folder", "--data", str(tmp_path / "other"), *masks], "none of the 1 images"),
        ([*known, "--peer", "people"], "one annotation"),
        ([*known, "--peer", "ucm"], "ucm2/val: missing"),
        ([*known, "--peer", "magic"], "felzenszwalb or all"),
        ([*known, *masks, "--granularity", "fixed:2"], "0.1 to 1.0"),
    ):
        assert cli.main(["score", *arguments]) == 2, arguments
        error = capsys.readouterr().err
        assert message in error, error
        assert "Traceback" not in error


def test_other_settings_are_refused(
    benchmark: Path, drawn_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["score", "--benchmark", "folder", "--data", str(benchmark), "--masks", str(drawn_run)]
    flags += ["--workers", "1"]
    assert cli.main([*flags, "--output", str(tmp_path / "s")]) == 0
    assert cli.main([*flags, "--output", str(tmp_path / "s"), "--seed", "1"]) == 3
    assert "seed: 0 there, 1 asked" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full/letter.txt").write_text("keep me")
    assert cli.main([*flags, "--output", str(tmp_path / "full")]) == 2


def test_masks_of_another_size_are_refused(
    drawn_run: Path, drawn_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    Image.new("RGB", (30, 20)).save(tmp_path / "images/c.png")
    Image.new("L", (30, 20), 1).save(tmp_path / "masks/c.png")
    flags = ["score", "--benchmark", "folder", "--data", str(tmp_path), "--masks", str(drawn_run)]
    assert cli.main([*flags, "--output", str(tmp_path / "s"), "--workers", "1"]) == 2
    assert "(20, 30)" in capsys.readouterr().err


def test_the_command_agrees_with_pycocotools(
    drawn_run: Path, drawn_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shifted copies of mined masks, crowds, an image that was not mined: every AR equals class-agnostic COCOeval."""
    (tmp_path / "images").mkdir()
    names = ["b.jpg", "c.png", "z-late.png"]
    for name in names:
        shutil.copy(drawn_folder / name, tmp_path / "images" / name)
    Image.new("RGB", (50, 40)).save(tmp_path / "images/new.png")
    truth: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "x"}]}
    results = []
    matches = match_mined(str(drawn_run), [eval_image(tmp_path / "images" / name) for name in [*names, "new.png"]])
    for number, (name, row) in enumerate(zip([*names, "new.png"], matches.rows, strict=True)):
        masks = [] if row is None else [rle.decode(each) for each in load_masks(row).rles]
        height, width = (40, 50) if row is None else (row.height, row.width)
        truth["images"].append({"id": number, "file_name": name, "height": height, "width": width})
        objects = [np.roll(mask, (number, k), axis=(0, 1)) for k, mask in enumerate(masks)] or [np.ones((40, 50), bool)]
        for k, mask in enumerate(objects):
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1, "image_id": number, "category_id": 1, "iscrowd": int(k == 3),
                    "segmentation": dict(rle.encode(mask)), "area": float(mask.sum()), "bbox": [0, 0, 1, 1],
                }
            )  # fmt: skip
        for rank, mask in enumerate(masks):
            results.append(
                {"image_id": number, "category_id": 1, "segmentation": dict(rle.encode(mask)), "score": 1 - rank / 100}
            )
    (tmp_path / "annotations.json").write_text(json.dumps(truth))
    record = score(
        capsys, "--benchmark", "coco-json", "--data", tmp_path, "--masks", drawn_run, "--output", tmp_path / "s",
        "--workers", 1,
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = COCO()
        theirs.dataset = copy.deepcopy(truth)
        theirs.createIndex()
        evaluation = COCOeval(theirs, theirs.loadRes(results), "segm")
        evaluation.params.useCats, evaluation.params.maxDets = 0, [1, 10, 100, 1000]
        evaluation.evaluate()
        evaluation.accumulate()
    recall = evaluation.eval["recall"][:, 0]
    for area, size in enumerate(("", "_small", "_medium", "_large")):
        for limit, shown in enumerate((1, 10, 100, 1000)):
            value = record["metrics"][f"AR{shown}{size}"]["value"]
            expected = recall[:, area, limit]
            assert (value is None) == bool((expected < 0).any())
            assert value is None or abs(value - expected.mean()) < 1e-9
    assert record["dataset"] == record["dataset"] | {"images": 4, "objects": 13, "crowds": 3}
    assert 0.3 < record["metrics"]["AR10"]["value"] < 0.95


# ---------------------------------------------------------------------------------------------------------------------
# Intervals


def test_an_interval_over_images() -> None:
    found, counted = np.array([3.0, 0.0, 1.0]), np.array([4.0, 2.0, 2.0])
    metric = interval((found, counted), seed=0)
    assert metric.value == 0.5
    assert metric.low is not None
    assert metric.high is not None
    assert 0 <= metric.low < 0.5 < metric.high <= 0.75
    assert interval((found, counted), seed=0) == metric
    assert interval((np.full(9, 2.0), np.full(9, 4.0)), seed=0) == interval((np.full(9, 1.0), np.full(9, 2.0)), seed=0)
    assert interval((np.zeros(3), np.zeros(3)), seed=0).value is None


def test_a_paired_difference_is_narrower_than_two_intervals() -> None:
    random = np.random.default_rng(3)
    hard, counted = random.random(60) * 10, np.full(60, 10.0)
    ours, theirs = (hard + 0.5, counted), (hard, counted)
    difference = interval(ours, seed=0, less=theirs)
    assert difference.value == pytest.approx(0.05)
    assert difference.low == pytest.approx(0.05)
    assert difference.high == pytest.approx(0.05)
    alone = interval(ours, seed=0)
    assert alone.high is not None
    assert alone.low is not None
    assert alone.high - alone.low > 0.05


# ---------------------------------------------------------------------------------------------------------------------
# Peers


def test_people_are_scored_against_the_others() -> None:
    left, right = rectangle(40, 60, 0, 0, 30, 40), rectangle(40, 60, 30, 0, 30, 40)
    top = rectangle(40, 60, 0, 0, 30, 20)
    drawn = [(0, left), (0, right), (1, left), (1, right), (2, top), (2, right)]
    truth = GroundTruth(
        height=40,
        width=60,
        objects=tuple(
            EvalObject(id=str(number), mask=rle.encode(mask), area_px=int(mask.sum()), annotator=person)
            for number, (person, mask) in enumerate(drawn)
        ),
    )
    found = baselines.people(truth)
    assert found.made_by is not None
    iou = iou_with(found.rles, truth.objects)
    iou[np.array(found.made_by)[:, None] == np.array([person for person, _ in drawn])[None, :]] = 0
    assert iou.max(axis=0).tolist() == [1, 1, 1, 1, 0.5, 1]  # nobody else drew `top`; the left half has IoU 0.5 with it


def test_people_on_a_drawn_bsds_g(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first subset is the core set, whatever the alphabet says; the others have rows and columns of their own."""
    coarse = np.ones((40, 60), dtype=np.uint16)
    coarse[:, 30:] = 2
    fine = coarse.copy()
    fine[:12, :30] = 3
    cells = np.empty((1, 3), dtype=object)
    for person, segments in enumerate((fine, coarse, fine)):
        cells[0, person] = {"Segmentation": segments}
    (tmp_path / "images/val").mkdir(parents=True)
    (tmp_path / "groundTruth/val").mkdir(parents=True)
    Image.new("RGB", (60, 40)).save(tmp_path / "images/val/12.jpg")
    savemat(tmp_path / "groundTruth/val/12.mat", {"groundTruth": cells})
    record = score(capsys, "--benchmark", "bsds-g", "--data", tmp_path, "--peer", "people", "--output", tmp_path / "s")
    # Core: both halves and the upper left piece of 360 px, which two people drew. The left half was drawn whole by one;
    # the others have 840 px of it, IoU 0.7: found at 0.50 to 0.70, that is at 5 of 10 thresholds.
    assert record["dataset"]["objects"] == 3
    assert record["metrics"]["AR1000"]["value"] == pytest.approx((0.5 + 1 + 1) / 3)
    assert record["metrics"]["coarse.AR1000"]["value"] == pytest.approx((0.5 + 1) / 2)
    rows = pq.read_table(tmp_path / "s/objects.parquet").to_pandas()
    assert list(dict.fromkeys(rows["view"])) == ["core", "extended", "coarse", "middle", "fine"]


def test_ucm_is_read_at_odd_rows_and_columns(tmp_path: Path) -> None:
    height, width = 20, 30
    ucm = np.zeros((2 * height + 1, 2 * width + 1))
    ucm[2 * 8, : 2 * 10] = 0.07  # within the left part, between rows 7 and 8
    ucm[:, 2 * 10] = 0.25  # between columns 9 and 10
    savemat(tmp_path / "7.mat", {"ucm2": ucm})
    masks = [rle.decode(each) for each in baselines.ucm_masks(tmp_path / "7.mat")]
    assert [int(mask.sum()) for mask in masks] == [600, 400, 200, 120, 80]
    assert np.array_equal(masks[3], rectangle(height, width, 0, 8, 10, 12))
    tree = [rle.decode(each) for each in baselines.ucm_tree_masks(tmp_path / "7.mat")]
    assert [int(mask.sum()) for mask in tree] == [400, 200, 120, 80]  # what is absorbed at 0.25, then at 0.07
    assert np.array_equal(tree[1], rectangle(height, width, 0, 0, 10, 20))
    savemat(tmp_path / "8.mat", {"ucm2": ucm[:-1]})
    with pytest.raises(InputError, match="twice"):
        baselines.ucm_masks(tmp_path / "8.mat")
    savemat(tmp_path / "9.mat", {"ucm": ucm})
    with pytest.raises(InputError, match="ucm2"):
        baselines.ucm_masks(tmp_path / "9.mat")


def test_equal_levels_of_a_ucm_are_one_merge(tmp_path: Path) -> None:
    """Three strips with equal borders: no two of them are ever a region without the third."""
    ucm = np.zeros((2 * 10 + 1, 2 * 30 + 1))
    ucm[:, 20] = ucm[:, 40] = 0.5
    savemat(tmp_path / "1.mat", {"ucm2": ucm})
    assert [rle.area_px(rle.run_lengths_of(each)) for each in baselines.ucm_tree_masks(tmp_path / "1.mat")] == [
        100,
        100,
        100,
    ]


def test_superpixels_are_cut_by_mean_colour() -> None:
    labels = np.repeat(np.arange(4), 10)[None].repeat(20, axis=0)
    lab = np.zeros((20, 40, 3))
    lab[..., 0] = np.array([10.0, 15.0, 40.0, 41.0])[labels]
    maps = baselines.cut_mean_colour(labels, lab, [0.5, 3, 10, 100])
    assert [np.unique(each).size for each in maps] == [4, 3, 2, 1]
    assert np.array_equal(maps[2] == maps[2][0, 0], labels < 2)


def test_peers_find_what_stands_out() -> None:
    rgb = np.full((120, 160, 3), 200, dtype=np.uint8)
    square = rectangle(120, 160, 40, 30, 60, 50)
    rgb[square] = (20, 90, 160)
    for found in (baselines.slic_masks(rgb), baselines.felzenszwalb_masks(rgb)):
        masks = [rle.decode(each) for each in found]
        assert all(mask.sum() >= 32 for mask in masks)
        assert max((mask & square).sum() / (mask | square).sum() for mask in masks) > 0.8


# ---------------------------------------------------------------------------------------------------------------------
# Beside the numbers


def test_published_numbers_stand_beside_and_name_their_oracle() -> None:
    def options(name: str, **more: Any) -> ScoreOptions:
        return score_options(ScoreFlags(benchmark=name, data=".", **more))

    masks = published_for(options("coco", masks="out"))
    assert masks is not None
    assert {row["method"]: row["AR1000"] for row in masks["rows"]}["UnSAMv2"] == pytest.approx(0.745)
    assert all(row["NoC80"] is None for row in masks["rows"])
    model = published_for(options("sa1b", checkpoint="x"))
    assert model is not None
    assert {row["choice"] for row in model["rows"]} == {"one pass", "ten passes", "oracle of 10"}
    assert published_for(options("bsds500", masks="out")) is None


def test_without_matplotlib_the_plots_are_missing_and_it_is_said(
    benchmark: Path,
    drawn_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plots.importlib.util, "find_spec", lambda name: None)
    flags = ["score", "--benchmark", "folder", "--data", str(benchmark), "--masks", str(drawn_run)]
    assert cli.main([*flags, "--output", str(tmp_path / "s"), "--workers", "1"]) == 0
    assert "grainmill[eval]" in capsys.readouterr().out
    assert not (tmp_path / "s/plots").exists()


def test_every_plot_is_drawn(tmp_path: Path) -> None:
    steps = [0.1, 0.5, 1.0]
    curves = {
        "recall_by_masks": {"a.masks": [1.0, 10.0], "a.recall": [0.1, 0.4]},
        "granularity": {"edges": [0.1, 0.2, 0.3], "ours": [60.0, 40.0]},
        "iou_by_granularity": {"granularity": steps, "part": [0.8, 0.5, 0.1], "whole": [0.1, 0.4, 0.9]},
        "area_by_granularity": {"granularity": steps, "median": [0.1, 0.2, 0.3], "low": [0, 0, 0], "high": [1, 1, 1]},
        "noc": {"clicks": [1.0, 2.0], "dial": [0.6, 0.8]},
        "unknown": {"x": [1.0]},
    }
    files = plots.draw(curves, tmp_path / "plots", title="t")
    assert [path.stem for path in files] == [name for name in curves if name != "unknown"]
    first = [path.read_bytes() for path in files]
    assert all(data.startswith(b"\x89PNG") for data in first)
    assert [path.read_bytes() for path in plots.draw(curves, tmp_path / "plots", title="t")] == first


def test_list_is_machine_readable(capsys: pytest.CaptureFixture[str]) -> None:
    record = score(capsys, "--list")
    assert {"coco", "lvis", "ade20k", "entityseg", "sa1b", "bsds500", "bsds-g", "coco-json", "folder"} <= {
        each["name"] for each in record["benchmarks"]
    }


# ---------------------------------------------------------------------------------------------------------------------
# Real photographs


@pytest.mark.slow
def test_ucm_agrees_with_the_known_figures(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """../shared/data/README.md: first 40 val images, AR1000 0.320, mean best IoU 0.579, 1,025 masks per image."""
    record = score(
        capsys, "--benchmark", "bsds500", "--data", shared_data / "bsds500", "--split", "val", "--limit", 40,
        "--peer", "ucm", "--output", tmp_path / "s",
    )  # fmt: skip
    assert record["dataset"]["objects"] == 3311
    assert record["metrics"]["AR1000"]["value"] == pytest.approx(0.320, abs=0.01)
    assert record["metrics"]["mean_best_iou"]["value"] == pytest.approx(0.579, abs=0.01)
    assert record["metrics"]["masks_per_image"]["value"] == pytest.approx(1025, rel=0.01)
