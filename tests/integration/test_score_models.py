"""`grainmill score --checkpoint`: from files to scores.json, on real images where they are there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from model.evaluation.protocols.options import ModelOptions
from model.evaluation.protocols.run import summarise
from model.network.checkpoint import write_checkpoint
from model.network.load import checkpoint_record, load_sam2, new_model, trained_state
from model.network.sam2_base import build_base, sam2_size
from pipeline.cli import main
from pipeline.dataset.viewer import HEADLINES
from pipeline.errors import InputError

SMALL = ("--points-per-side", "3", "--objects-per-image", "2", "--split", "val", "--limit", "2")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole micro model that has learned nothing."""
    model = new_model("micro", "full", 64, init="scratch", seed=1)
    path = tmp_path_factory.mktemp("model") / "fresh.safetensors"
    tensors = {f"model.{name}": value for name, value in trained_state(model).items()}
    write_checkpoint(path, checkpoint_record(model, init="scratch"), tensors)
    return path


@pytest.fixture(scope="module")
def sam2_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SAM-2 checkpoint as Meta publishes it, of the micro size."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("sam2") / "sam2.pt"
    torch.save({"model": build_base("micro", 256).state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def grabcut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("grabcut")
    for folder in ("data_GT", "boundary_GT"):
        (root / folder).mkdir()
    random = np.random.default_rng(0)
    for name in ("21077", "24077"):
        Image.fromarray(random.integers(0, 255, (48, 64, 3)).astype(np.uint8)).save(root / f"data_GT/{name}.jpg")
        labels = np.zeros((48, 64), dtype=np.uint8)
        labels[10:40, 12:50] = 255
        labels[9, 12:50] = 128
        Image.fromarray(labels).save(root / f"boundary_GT/{name}.bmp")
    return root


def score(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    assert main(["score", *map(str, arguments), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def columns(record: dict[str, Any], prefix: str) -> set[str]:
    names = [name.removeprefix(prefix) for name in record["metrics"] if name.startswith(prefix) and " - " not in name]
    return {name.rsplit(".", 1)[0] for name in names}


def test_a_checkpoint_with_clicks(
    fresh: Path, grabcut: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    arguments = ("--checkpoint", fresh, "--benchmark", "grabcut", "--data", grabcut, "--workers", "1")
    record = score(capsys, *arguments, "--output", output)
    found = columns(record, "interactive.")
    assert {
        "oracle", "oracle_plain", "label", "fixed:0.50", "ignored", "constant", "own", "best_of_3", "best_of_10_clicks",
    } <= found  # fmt: skip
    assert not any("shuffled" in name for name in found)  # all labels are 1.0
    assert record["dataset"]["clicked_objects"] == 2
    assert record["configuration"]["seed"] == record["seeds"]["bootstrap"] == 0
    assert record["details"]["protocol"]["jitter_radius"] == 0.5
    assert record["command"].startswith("grainmill score --benchmark grabcut")
    assert "oracle of 10" in json.dumps(record["published"])
    assert any("own and best_of_3 say nothing here" in note for note in record["notes"])  # trained from scratch
    rows = pq.read_table(output / "objects.parquet").to_pylist()
    options = ModelOptions(label_rule="whole", fixed=(0.5,))
    again = summarise([{k: v for k, v in row.items() if v is not None} for row in rows], options)
    assert {name: each.value for name, each in again.items()} == {
        name: pytest.approx(metric["value"]) for name, metric in record["metrics"].items()
    }
    assert main(["score", *map(str, arguments), "--output", str(output)]) == 0  # for people, from the kept rows
    text = capsys.readouterr().out
    for words in ("NoC90", "1-IoU", "g of ten by ground truth", "control: best of 10 near clicks", "published"):
        assert words in text, words
    assert main(["score", *map(str, arguments), "--seed", "1", "--output", str(output)]) == 3
    assert "choose another --output" in capsys.readouterr().err


def test_a_sam2_checkpoint_has_the_controls_alone(
    sam2_file: Path, grabcut: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = score(
        capsys, "--checkpoint", sam2_file, "--benchmark", "grabcut", "--data", grabcut, "--limit", "1",
        "--workers", "1", "--output", tmp_path / "out",
    )  # fmt: skip
    assert columns(record, "interactive.") == {
        "own", "best_of_3", "best_of_3_plain", "best_of_10_clicks", "best_of_10_clicks_plain",
    }  # fmt: skip
    assert not any("say nothing" in note for note in record["notes"])


ANNOTATORS = ("--annotators", "--benchmark", "grabcut", "--workers", "1")


def test_simulated_annotators_from_files_to_scores(
    fresh: Path, grabcut: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    arguments = (*ANNOTATORS, "--checkpoint", fresh, "--data", grabcut, "--output", output, "--granularity", "label")
    record = score(capsys, *arguments)
    assert columns(record, "annotators.") >= {"clicks", "dial", "drag", "dial_label"}
    assert not any(name.startswith(("interactive.", "whole.")) for name in record["metrics"])
    assert {"annotators_iou", "annotators_reached"} == set(record["curves"])
    assert (output / "plots" / "annotators_iou.png").is_file()
    assert record["details"]["protocol"]["annotators"]["area_error"] == 0.2
    assert record["details"]["costs"]["standard"]["point_s"] == 1.1
    assert record["published"] is None  # no paper has such numbers
    told = {name for name in HEADLINES if name.startswith("annotators.")}
    assert {name for name in told if "best_single" not in name} <= set(record["metrics"])
    assert record["configuration"]["annotators"] is True
    assert "--annotators" in record["command"].split()
    assert "True" not in record["command"]
    rows = pq.read_table(output / "objects.parquet").to_pylist()
    options = ModelOptions(label_rule="whole", fixed=())
    again = summarise([{k: v for k, v in row.items() if v is not None} for row in rows], options)
    assert {name: each.value for name, each in again.items()} == {
        name: pytest.approx(metric["value"]) for name, metric in record["metrics"].items()
    }
    assert main(["score", *map(str, arguments)]) == 0  # from the kept rows
    text = capsys.readouterr().out
    for words in ("the dial by size", "not available: nothing trained SAM-2's own masks", "keystroke-level", "n/a"):
        assert words in text, words
    assert main(["score", *map(str, arguments[1:])]) == 3  # the benchmark's own protocol is another score
    assert "choose another --output" in capsys.readouterr().err


def test_simulated_annotators_without_a_dial(
    sam2_file: Path, grabcut: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (*ANNOTATORS, "--checkpoint", sam2_file, "--data", grabcut, "--limit", "1", "--output", tmp_path / "o")
    assert columns(score(capsys, *arguments), "annotators.") >= {"clicks", "three_masks"}
    assert main(["score", *map(str, arguments)]) == 0
    assert "not available: the model has no dial" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--benchmark", "grabcut", "--masks", "out"), "expected --checkpoint CKPT"),
        (("--benchmark", "davis2016", "--checkpoint", "tree"), "davis2016 has no images to be clicked"),
    ],
)
def test_simulated_annotators_where_they_cannot_be(
    arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", "--annotators", "--data", ".", *arguments]) == 2
    assert told in capsys.readouterr().err


def test_a_benchmark_without_labels_says_so(
    fresh: Path, grabcut: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, source in (("images", "data_GT/21077.jpg"), ("masks", "boundary_GT/21077.bmp")):
        (tmp_path / folder).mkdir()
        with Image.open(grabcut / source) as image:
            image.point(lambda value: value if value != 128 else 0).save(tmp_path / folder / "21077.png")
    record = score(
        capsys, "--checkpoint", fresh, "--benchmark", "folder", "--data", tmp_path, "--objects-per-image", "1",
        "--points-per-side", "2", "--granularity", "label", "--granularity", "fixed:0.3", "--workers", "1", "--output",
        tmp_path / "out",
    )  # fmt: skip
    assert "label: n/a" in " ".join(record["notes"])
    found = columns(record, "interactive.")
    assert "fixed:0.30" in found
    assert not {"label", "oracle"} & found


def test_images_of_one_name_are_scored_apart(fresh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names that differ in their ending or their folder only; one object has no mask, one annotation no image."""
    random = np.random.default_rng(2)
    images, annotations = [], []
    for number, (name, objects) in enumerate({"a.jpg": 2, "a.png": 1, "x/a.jpg": 3, "y/a.jpg": 1}.items(), start=1):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 255, (48, 64, 3)).astype(np.uint8)).save(tmp_path / name)
        images.append({"id": number, "file_name": name, "width": 64, "height": 48})
        for x in range(objects):
            polygon = [[16 * x, 4, 16 * x + 12, 4, 16 * x + 12, 30, 16 * x, 30]]
            annotations.append({"id": len(annotations) + 1, "image_id": number, "segmentation": polygon})
    stray = {**annotations[0], "id": 99, "image_id": 99}
    annotations += [{**annotations[0], "id": 98, "segmentation": []}, stray]
    (tmp_path / "val.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    arguments = ("--checkpoint", fresh, "--benchmark", "coco-json", "--data", tmp_path, "--workers", "1")
    arguments = (*arguments, "--points-per-side", "1", "--granularity", "fixed:0.5")
    record = score(capsys, *arguments, "--output", tmp_path / "out")
    rows = pq.read_table(tmp_path / "out/objects.parquet").to_pylist()
    for task in ("interactive", "whole"):
        names = [row["image"] for row in rows if row["task"] == task]
        counts = {name: names.count(name) for name in names}
        assert counts == {"a.jpg": 2, "a.png": 1, "x/a.jpg": 3, "y/a.jpg": 1}
    assert record["left_out"] == {
        "annotations whose image_id is no image": 1,
        "annotations without a segmentation": 1,
    }
    (tmp_path / "val.json").write_text(json.dumps({"images": images, "annotations": []}))
    assert main(["score", *map(str, arguments), "--output", str(tmp_path / "none")]) == 2
    assert "no annotated object in the 4 images, nothing to score" in capsys.readouterr().err
    assert not (tmp_path / "none/scores.json").exists()


def test_sizes_of_sam2_are_read_from_its_weights(sam2_file: Path, tmp_path: Path) -> None:
    for size in ("tiny", "micro", "mini"):
        assert sam2_size(build_base(size, 64).state_dict(), where="x") == size  # type: ignore[arg-type]
    model, again = load_sam2(sam2_file), load_sam2(sam2_file)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    with pytest.raises(InputError, match=r"expected a checkpoint of `grainmill train` or of SAM 2\.1"):
        sam2_size({"weight": torch.zeros(3)}, where="x")


@pytest.fixture(scope="module")
def bsds(shared_data: Path) -> Path:
    return shared_data / "bsds500"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_bsds_g_with_one_worker_with_two_and_resumed(
    fresh: Path, bsds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--checkpoint", fresh, "--benchmark", "bsds-g", "--data", bsds, *SMALL)
    record = score(capsys, *arguments, "--workers", "1", "--output", tmp_path / "one")
    assert {"dial", "shuffled", "between", "constant", "best_of_3", "best_of_10_clicks"} <= columns(record, "pairs.")
    assert {"pooled", "pooled_raw", "ten_grids", "shuffled_pass", "own", "best_of_3", "single:0.10", "single:1.00"} <= (
        columns(record, "whole.core.")
    )
    for view in ("core", "extended", "coarse", "middle", "fine"):
        assert f"whole.{view}.pooled.ar_1000" in record["metrics"]
    assert record["dataset"]["clicked_objects"] == 4
    assert record["dataset"]["pairs"] > 0
    for name in ("noc", "iou_by_granularity", "area_by_granularity", "recall_by_masks"):
        assert (tmp_path / "one/plots" / f"{name}.png").stat().st_size > 1000
    parts = sorted((tmp_path / "one/parts").glob("*/*.json"))
    assert len(parts) == 2
    parts[0].unlink()  # as a run that was stopped after one image
    (tmp_path / "one/scores.json").unlink()
    resumed = score(capsys, *arguments, "--workers", "1", "--output", tmp_path / "one")
    assert resumed["metrics"] == record["metrics"]
    two = score(capsys, *arguments, "--workers", "2", "--output", tmp_path / "two")
    assert two["metrics"] == record["metrics"]
    assert two["curves"] == record["curves"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_davis2016(fresh: Path, shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = score(
        capsys, "--checkpoint", fresh, "--benchmark", "davis2016", "--data", shared_data / "davis2016-4seq",
        "--limit", "1", "--workers", "1", "--output", tmp_path / "out",
    )  # fmt: skip
    assert {"oracle", "label", "fixed:0.50", "ignored", "own", "best_of_10_clicks", "held"} <= columns(record, "video.")
    assert record["dataset"]["videos"] == 1
    assert record["metrics"]["video.label - held.jf"]["value"] == pytest.approx(
        record["metrics"]["video.label.jf"]["value"] - record["metrics"]["video.held.jf"]["value"]
    )
    assert any("4 of the 20" in note for note in record["notes"])
