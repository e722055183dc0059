"""Domains: their layout and its faults, the halves, and every kind of row in its smallest form."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import domains
from benchmarks.domain_images import MIN_AREA_PX, half_of, read_domain
from benchmarks.grid import Task, filled
from model.network.checkpoint import find_checkpoint
from pipeline.errors import InputError
from pipeline.format import rle

from ..training import small_config, small_options


def draw_domain(folder: Path, stems: list[str], *, classes: dict[str, str] | None) -> None:
    """Images of 80 x 60 with three rectangles in colours of their own, one of them below 32 px."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks", "unlabelled"):
        (folder / name).mkdir(parents=True)
    for number, stem in enumerate([*stems, "more"]):
        rgb = rng.integers(90, 110, (60, 80, 3)).astype(np.uint8)
        mask = np.zeros((60, 80), dtype=np.uint8 if classes else np.uint16)
        for value, (y, x, h, w) in enumerate([(5, 5 + number, 30, 30), (20, 50, 30, 20), (50, 5, 4, 4)], start=1):
            rgb[y : y + h, x : x + w] = (60 * value, 250 - 70 * value, 80 * value)
            mask[y : y + h, x : x + w] = value
        if stem == "more":
            Image.fromarray(rgb).save(folder / "unlabelled" / "more.png")
            continue
        Image.fromarray(rgb).save(folder / "images" / f"{stem}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{stem}.png")
    if classes:
        (folder / "classes.json").write_text(json.dumps(classes))


STEMS = {half: [stem for stem in map(str, range(20)) if half_of(stem) == half][:2] for half in ("choosing", "reported")}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two domains, one of ids and one of classes."""
    stems = [*STEMS["choosing"], *STEMS["reported"]]
    draw_domain(tmp_path / "in" / "cells", stems, classes=None)
    draw_domain(tmp_path / "in" / "parts", stems, classes={"0": "null", "1": "shirt", "2": "shoe", "3": "hat"})
    return tmp_path / "in"


def test_objects_of_ids_and_of_classes(root: Path) -> None:
    cells, parts = read_domain(root / "cells"), read_domain(root / "parts")
    assert [half_of(each.path.stem) for each in cells.half("reported")] == ["reported"] * 2
    assert len(cells.half("choosing")) == 2
    truth = cells.images[0].load()
    assert [each.area_px for each in truth.objects] == [900, 600]
    assert [each.granularity for each in truth.objects] == [1.0, 1.0]
    assert truth.left_out == {f"regions below {MIN_AREA_PX} px": 1}
    mask = np.array(Image.open(root / "cells" / "masks" / f"{cells.images[0].path.stem}.png"))
    assert np.array_equal(rle.decode(truth.objects[0].mask), mask == 1)
    names = [each.id for each in parts.images[0].load().objects]
    assert names == ["shirt 1", "shoe 1", "whole 1", "whole 2"]  # what is together all classes: two regions and a speck


def test_stuff_void_and_touching_classes_are_no_objects_of_their_own(root: Path) -> None:
    path = root / "cells" / "masks" / f"{STEMS['reported'][0]}.png"
    mask = np.array(Image.open(path))
    mask[mask == 2] = 1005
    Image.fromarray(mask).save(path)
    stem = path.stem
    [image] = [each for each in read_domain(root / "cells").images if each.path.stem == stem]
    assert [each.id for each in image.load().objects] == ["1"]
    assert image.load().left_out["regions that have no instances"] == 1
    (root / "parts" / "classes.json").write_text(json.dumps({"0": "sky", "1": "void", "2": "shoe", "3": "hat"}))
    ids = [each.id for each in read_domain(root / "parts").images[0].load().objects]
    assert ids == ["sky 1", "shoe 1"]  # void is none, a class like the others is one, and there is no ground


@pytest.mark.parametrize("fault", ["no mask", "no image", "size", "no folder", "class", "json", "no domain"])
def test_bad_input_names_the_file(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str) -> None:
    stem, folder = STEMS["reported"][0], root / "parts"
    image, mask = folder / "images" / f"{stem}.png", folder / "masks" / f"{stem}.png"
    named = mask
    if fault == "no mask":
        mask.unlink()
        named = image
    elif fault == "no image":
        image.unlink()
    elif fault == "size":
        Image.new("L", (40, 60)).save(mask)
    elif fault == "no folder":
        shutil.rmtree(folder / "masks")
        named = folder / "masks"
    elif fault == "class":
        Image.new("L", (80, 60), 77).save(mask)
    elif fault == "json":
        named = folder / "classes.json"
        named.write_text("[1, 2]")
    else:
        named = root / "nowhere"
    data = named if fault == "no domain" else root
    assert domains.main(["--data", str(data), "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.count("benchmarks.domains:") == 1
    assert str(named) in said


def test_every_kind_of_row(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn_run: Path) -> None:
    from model.training.train import train

    train(small_config(steps=1, min_parts=0), small_options(drawn_run, tmp_path / "run"))
    small = {"masks_per_image": 4, "min_parts": 0, "smallest_parts": True, "global_batch_size": 1, "dense_anchors": 4}
    monkeypatch.setattr(domains, "RECIPE", {**domains.RECIPE, **small})
    out = tmp_path / "out"
    asked = ["--data", str(root), "--output", str(out), "--domains", "cells", "--recipes", "default", "--steps", "1"]
    asked += ["--checkpoint", str(tmp_path / "run"), "--photographs", str(drawn_run), "--jobs", "0"]
    asked += ["--images", "1", "--recall-images", "1", "--device", "cpu"]
    assert domains.main(asked) == 0
    rows = {each["name"]: each for each in json.loads((out / "domains.json").read_text())["rows"]}
    assert [name.removeprefix("cells, ") for name in rows] == [
        "labels default", "slic", "felzenszwalb", "student", "student, 1 more steps here",
        "student from here alone", "student, 1 more steps on photographs",
    ]  # fmt: skip
    labels = rows["cells, labels default"]
    assert (labels["images"], labels["objects"]) == (2, 4)
    assert labels["ar1000"]["value"] > 0.8  # flat rectangles on a grey ground
    student = rows["cells, student, 1 more steps here"]
    assert student["masks"]["clicks"] == student["mined"]["clicks"] == 12
    assert student["clicked"]["mined"] != rows["cells, student"]["clicked"]["mined"]
    assert student["recall_images"] == 1
    assert "| cells | student from here alone | given masks |" in (out / "domains.md").read_text()
    assert (out / "cells.png").stat().st_size > 10_000
    kept = (out / "rows" / "cells, student.json").stat().st_mtime_ns
    find_checkpoint(tmp_path / "run").unlink()  # nobody needs it any more: every row is there
    monkeypatch.setattr(domains, "student_row", lambda *a, **k: pytest.fail("done again"))
    monkeypatch.setattr(domains, "picture", lambda *a: None)
    recorded = SimpleNamespace(record={"size": "micro", "adapter": "full", "image_size": 64})
    monkeypatch.setattr(domains, "read_checkpoint", lambda path: recorded)
    assert domains.main(asked) == 0
    assert (out / "rows" / "cells, student.json").stat().st_mtime_ns == kept
    assert domains.main([*asked, "--no-alone"]) == 0
    assert "student from here alone" not in (out / "domains.md").read_text()


def test_a_trunk_is_named_to_training(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = SimpleNamespace(record={"size": "micro", "adapter": "full", "image_size": 64})
    monkeypatch.setattr(domains, "read_checkpoint", lambda path: recorded)
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(domains, "filled", lambda tasks, *a, **k: asked.extend(each.asked for each in tasks) or [])
    flags = ["--data", str(root), "--output", str(tmp_path), "--checkpoint", "c", "--trunk", "lite0"]
    assert domains.main([*flags, "--trunk-rate", "0.1"]) == 0
    trained = [each for each in asked if "init" in each]
    assert trained
    assert all((each["trunk"], each["trunk_rate"]) == ("lite0", 0.1) for each in trained)


def _one() -> dict[str, int]:
    return {"value": 1}


def _dies() -> dict[str, int]:
    import os

    os._exit(9)


def _fails() -> dict[str, int]:
    raise InputError("a.png: no such row")


def test_a_row_that_dies_is_marked_and_done_again(tmp_path: Path) -> None:
    tasks = [Task(name="good", asked={"steps": 1}, work=_one), Task(name="bad", asked={}, work=_fails)]
    good, bad = filled(tasks, tmp_path, jobs=0)
    [dead] = filled([Task(name="dead", asked={}, work=_dies)], tmp_path, jobs=1)
    assert (good["state"], good["value"]) == ("done", 1)
    assert bad["state"] == "died: InputError: a.png: no such row"
    assert dead["state"] == "died: exit code 9"
    again = [Task(name="good", asked={"steps": 1}, work=_fails), Task(name="bad", asked={}, work=_one)]
    assert [each["state"] for each in filled(again, tmp_path, jobs=0)] == ["done", "done"]
    other = [Task(name="good", asked={"steps": 2}, work=_fails)]
    assert filled(other, tmp_path, jobs=0)[0]["state"].startswith("died")  # other settings are another row


def test_a_student_of_fewer_steps_is_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domains, "train", lambda *a, **k: {"stopped": "interrupted"})
    with pytest.raises(KeyboardInterrupt):
        domains.trained(tmp_path, ["out"], {"steps": 9})
    monkeypatch.setattr(domains, "train", lambda *a, **k: {"stopped": None})
    assert domains.trained(tmp_path, ["out"], {"steps": 9}) == tmp_path
