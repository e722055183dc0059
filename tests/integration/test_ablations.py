"""Pairs made for comparison, and rows of the grid of students, in their smallest form."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from benchmarks import ablations
from benchmarks.ablations import ROWS, base_without_a_dial, coco_images, relative_labels, signatures, table
from benchmarks.grid import filled
from benchmarks.pair_sources import WAYS, write_pairs
from model.data.shards import ShardIndex
from model.network.adapters import SPECS
from model.network.load import load_granular, new_model
from model.training.train import train
from pipeline.errors import InputError

from ..training import small_config, small_options


@pytest.mark.parametrize("way", WAYS)
def test_every_way_keeps_the_images_and_changes_what_it_says(drawn_run: Path, tmp_path: Path, way: str) -> None:
    images, masks = write_pairs(str(drawn_run), way, str(tmp_path / "out"))
    before, after = ShardIndex.open(str(drawn_run)), ShardIndex.open(str(tmp_path / "out"))
    assert images == len(after) <= len(before)
    keys = before.sample_keys()
    for place, key in enumerate(after.sample_keys()):
        was, now = before.load(keys.index(key)), after.load(place)
        np.testing.assert_array_equal(was.image, now.image)
        if way in ("same", "shuffled", "constant", "relative"):
            assert was.counts == now.counts
        if way == "same":
            np.testing.assert_array_equal(was.granularity, now.granularity)
        if way == "shuffled":
            np.testing.assert_array_equal(np.sort(was.granularity), np.sort(now.granularity))
        if way == "constant":
            assert set(now.granularity) == {1.0}
        if way == "relative":
            np.testing.assert_allclose(now.granularity, relative_labels(was).granularity)
            part = now.area_px[1] / now.area_px[0]
            assert now.granularity[1] == pytest.approx(0.1 + 0.9 * np.sqrt(part), abs=1e-5)
        assert now.granularity[now.instance_id == np.arange(len(now.counts))].max() == 1.0 or way == "shuffled"
    if way == "rectangles":
        assert masks > 20 * images
        assert write_pairs(str(drawn_run), way, str(tmp_path / "again"))[1] == masks
    if way == "shuffled":
        loaded = [(before.load(keys.index(key)), after.load(place)) for place, key in enumerate(after.sample_keys())]
        assert any((was.granularity != now.granularity).any() for was, now in loaded)


def test_the_first_images_are_those_of_every_larger_number(drawn_run: Path, tmp_path: Path) -> None:
    few = [write_pairs(str(drawn_run), "same", str(tmp_path / f"{count}"), images=count)[0] for count in (2, 4)]
    assert few == [2, 4]
    keys = [set(ShardIndex.open(str(tmp_path / f"{count}")).sample_keys()) for count in (2, 4)]
    assert keys[0] < keys[1]


def test_a_base_without_a_dial_says_by_itself_what_the_student_said(drawn_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    plain: dict[str, Any] = {"click_features": False, "similarity": "off", "dense_anchors": 0}
    train(small_config(steps=1, min_parts=0, **plain), small_options(drawn_run, run))
    student = load_granular(run)
    base = new_model("micro", "paper", 64, init=str(base_without_a_dial(run, tmp_path / "base.pt")), seed=1).eval()
    torch.testing.assert_close(base.mask_token, student.mask_token)  # an adapter begins as a copy of SAM's first token
    decoder = base.base.sam_mask_decoder
    torch.testing.assert_close(decoder.mask_tokens.weight[:1], student.mask_token)
    for one, other in zip(
        decoder.output_hypernetworks_mlps[0].parameters(), student.hypernetwork.parameters(), strict=True
    ):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(decoder.conv_s0.weight, student.base.sam_mask_decoder.conv_s0.weight)


def test_polygons_of_coco_and_their_faults(tmp_path: Path) -> None:
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (40, 20)).save(tmp_path / "images" / "a.jpg")
    (tmp_path / "labels" / "b.txt").write_text("")
    with pytest.raises(InputError, match=r"b\.txt: labels without image; expected .*b\.jpg"):
        coco_images(tmp_path)
    (tmp_path / "labels" / "b.txt").unlink()
    file = tmp_path / "labels" / "a.txt"
    file.write_text("7 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75\n")
    [image] = coco_images(tmp_path)
    [one] = image.load().objects
    assert (one.granularity, one.area_px) == (1.0, 21 * 11)
    file.write_text("7 0.25 0.25 0.75\n")
    with pytest.raises(InputError, match=r"a\.txt: line 1: expected a class, then pairs"):
        image.load()


def test_signatures_in_words() -> None:
    good = {"distinct_masks": 8, "iou_low_high": 0.1, "area_spearman": 0.95, "nesting": 0.95}
    good |= {"iou_label_g": 0.5, "iou_other_image": 0.4}
    assert signatures({**good, "gain_over_fixed_g": {"low": 0.01}}) == []
    bad = {"distinct_masks": 1, "iou_low_high": 0.9, "area_spearman": 0.1, "nesting": 0.5}
    bad |= {"iou_label_g": 0.5, "iou_other_image": 0.5}
    assert len(signatures({**bad, "gain_over_fixed_g": {"low": -0.01}})) == 5


@pytest.fixture
def drawn_data(tmp_path: Path) -> Path:
    """`bsds500/` and `coco/` with one drawn photograph each, a rectangle; one of two people outlined a part."""
    pixels = np.full((60, 80, 3), 40, dtype=np.uint8)
    pixels[10:40, 10:50] = (200, 120, 60)
    people = np.empty((1, 2), dtype=object)
    for number, edge in enumerate((50, 30)):
        segments = np.ones((60, 80), dtype=np.uint16)
        segments[10:40, 10:edge] = 2
        people[0, number] = {"Segmentation": segments}
    folder = tmp_path / "drawn"
    for name in ("bsds500/images/val", "bsds500/groundTruth/val", "coco/images", "coco/labels"):
        (folder / name).mkdir(parents=True)
    savemat(folder / "bsds500/groundTruth/val/1.mat", {"groundTruth": people})
    for name in ("bsds500/images/val", "coco/images"):
        Image.fromarray(pixels).save(folder / name / "1.jpg")
    (folder / "coco/labels/1.txt").write_text("7 0.125 0.17 0.62 0.17 0.62 0.66 0.125 0.66\n")
    return folder


def asked(drawn_run: Path, drawn_data: Path, output: Path) -> list[str]:
    flags = ["--train", str(drawn_run), "--validation", str(drawn_run), "--bsds500", str(drawn_data / "bsds500")]
    flags += ["--output", str(output), "--images", "1", "--steps", "1", "--image-size", "64", "--device", "cpu"]
    return [*flags, "--coco", str(drawn_data / "coco"), "--jobs", "0"]


def test_rows_are_trained_judged_kept_and_compared(
    drawn_run: Path, drawn_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablations, "CHOOSING_IMAGES", 1)
    out = tmp_path / "out"
    command = [*asked(drawn_run, drawn_data, out), "--rows", "full", "shuffled", "base-lite", "three-masks"]
    assert ablations.main(command) == 0
    rows = json.loads((out / "ablations.json").read_text())["rows"]
    assert [each["asked"]["row"] for each in rows] == ["full", "shuffled", "base-lite", "three-masks"]
    assert rows[2]["trained_parameters"] < rows[0]["trained_parameters"] / 50
    assert rows[2]["own_logits_moved"] < 1e-5  # what stands beside SAM's own answer leaves it
    base = json.loads((out / "rows" / "base-seed0-steps1.json").read_text())
    assert rows[2]["people"]["iou_own"] == pytest.approx(base["people"]["iou_label_g"], abs=0.01)
    assert rows[3]["people"]["iou_own"] <= rows[3]["people"]["iou_best_of_10"]  # of three, by size over all g
    for row in rows:
        assert set(row["clicked"]) == {"mined", "people", "coco"}
    told = (out / "ablations.md").read_text()
    assert told.count("On ") == 3
    assert told.split("Without g")[1].count("(`base-lite`)") == 1
    by_area = told.split("Best of ten minus full, by")[1].split("Without g")[0]
    assert by_area.count("`base-lite` |") == 3
    assert f"| {ROWS['shuffled'].words} (`shuffled`) | 0 |" in told
    assert (out / "ablations.png").stat().st_size > 5_000
    monkeypatch.setattr(ablations, "load_granular", lambda run: pytest.fail("judged again"))
    assert ablations.main(command) == 0


def test_a_row_that_died_is_in_the_table_and_done_again(
    drawn_run: Path, drawn_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[Any] = [InputError("no room"), {"words": "w"}]

    def student(*given: Any) -> Any:
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(ablations, "student", student)
    monkeypatch.setattr(ablations, "draw", lambda rows, path: None)
    command = [*asked(drawn_run, drawn_data, tmp_path / "out"), "--rows", "full"]
    assert ablations.main(command) == 1
    assert ablations.main(command) == 0
    died = {"asked": {"row": "full", "seed": 0}, "state": "died: InputError: no room"}
    done = {"asked": {"row": "plain", "seed": 0}, "state": "done", "words": "w", "mined": _figures(), "clicked": {}}
    assert "| full | 0 | died: InputError: no room |" in "\n".join(table([died, done]))


def test_differences_are_told_apart_by_the_area_that_was_asked_for() -> None:
    rows = []
    for name, best in (("full", [0.5, 0.5, 0.5]), ("slic", [0.4, 0.2, 0.9])):
        clicked = {"people": {"1": {"area": [0.05, 0.05, 0.9], "best": best}}}
        rows.append({"asked": {"row": name, "seed": 0}, "state": "done", "clicked": clicked})
    [line] = [each for each in ablations.area_table(rows, {0: rows[0]}) if each.startswith("| `")]
    assert line.startswith("| `slic` | 0 | people's segments | -0.200 [")
    assert [each.strip() for each in line.split("|")[5:7]] == ["–", "–"]
    assert line.split("|")[7].startswith(" +0.400 [")


def _figures() -> dict[str, Any]:
    names = ("iou_label_g", "iou_best_fixed_g", "best_fixed_g", "iou_shuffled_g", "iou_best_of_10", "iou_other_image")
    more = ("area_spearman", "distinct_masks", "nesting", "iou_low_high")
    return dict.fromkeys((*names, *more), 0.5) | {"gain_over_fixed_g": {"low": 0.0}}


def test_pairs_of_other_shards_are_made_again(drawn_run: Path, tmp_path: Path) -> None:
    few = str(tmp_path / "few")
    write_pairs(str(drawn_run), "same", few, images=2)
    for source in (str(drawn_run), few):
        options = Namespace(output=tmp_path / "out", train=source, bsds500="b", seeds=(), images=1, coco=None)
        [data], _ = ablations.tasks_of(options, ["shuffled"])
        (options.output / "data").mkdir(parents=True, exist_ok=True)
        [row] = filled([data], options.output / "prepared", jobs=0)
        keys = [set(ShardIndex.open(each).sample_keys()) for each in (row["data"], source)]
        assert keys[0] == keys[1]


def test_a_row_with_other_widths_is_made_and_read_with_them() -> None:
    row = ROWS["narrow-fourier"]
    before = SPECS["full"]
    with ablations.adapter_of(row):
        narrow = new_model("micro", "full", 64, init="scratch", seed=1)
    wide = new_model("micro", "full", 64, init="scratch", seed=1)
    assert SPECS["full"] == before
    [few, many] = [sum(each.numel() for each in model.granularity_encoder.parameters()) for model in (narrow, wide)]
    assert few < many
    with ablations.adapter_of(ROWS["base-no-lora"]):
        assert SPECS["paper"].lora_rank == 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--rows", "nothing"], "--rows nothing: expected some of full"),
        (["--rows", "more-images"], "--rows more-images: wants further images; add --more"),
    ],
)
def test_rows_that_cannot_be(
    drawn_run: Path, drawn_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    assert ablations.main([*asked(drawn_run, drawn_data, tmp_path), *flags]) == 2
    assert said in capsys.readouterr().err
