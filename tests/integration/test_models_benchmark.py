"""The scoreboard of models in its smallest form: drawn benchmarks, a student of one step, the tree and mined masks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import models
from benchmarks.domain_images import half_of
from model.training.train import train

from ..training import small_config, small_options


def draw(folder: Path, image: str, mask: str, *, shift: int, instances: bool) -> None:
    """An image of 80 x 60 with two plain rectangles, and its mask."""
    rgb, labels = np.full((60, 80, 3), 100, dtype=np.uint8), np.zeros((60, 80), dtype=np.uint8)
    for value, (y, x) in enumerate([(5, 5 + shift), (25, 45)], start=1):
        rgb[y : y + 30, x : x + 25] = (60 * value, 250 - 70 * value, 80 * value)
        labels[y : y + 30, x : x + 25] = value if instances else 255
    for name, values in ((image, rgb), (mask, labels)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(folder / name)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    stem = next(each for each in map(str, range(20)) if half_of(each) == "reported")
    draw(root / "own", "images/a.png", "masks/a.png", shift=0, instances=True)
    draw(root / "domains" / "cells", f"images/{stem}.png", f"masks/{stem}.png", shift=4, instances=True)
    for frame in ("0", "1", "2"):
        jpegs, masks = (f"{name}/480p/camel/{frame}" for name in ("JPEGImages", "Annotations"))
        draw(root / "davis", f"{jpegs}.jpg", f"{masks}.png", shift=2, instances=False)
    return root


def asked(data: Path, output: Path) -> list[str]:
    words = ["--output", str(output), "--benchmark", f"folder={data / 'own'}", "--domains", str(data / "domains")]
    words += ["--davis2016", str(data / "davis"), "--frames-every", "2", "--images", "1", "--domain-images", "1"]
    return [*words, "--objects-per-image", "1", "--points-per-side", "1", "--device", "cpu", "--jobs", "0"]


def test_every_kind_of_row_is_scored_and_told(
    drawn_run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "GRANULARITY", ("label", "fixed:1.0"))  # ten series of clicks less
    train(small_config(steps=1, min_parts=0), small_options(drawn_run, tmp_path / "run"))
    out = tmp_path / "out"
    command = [
        *asked(data, out),
        "--model",
        f"student={tmp_path / 'run'}",
        "--model",
        "tree=tree",
        "--mined",
        "--peers",
    ]
    assert models.main(command) == 0
    rows = {each["name"]: each for each in json.loads((out / "models.json").read_text())["rows"]}
    assert list(rows) == [
        "folder-student", "folder-tree", "folder-mined_masks", "davis__frames-student", "davis__frames-tree",
        "cells-student", "cells-tree", "cells-mined_masks",
    ]  # fmt: skip
    assert rows["cells-tree"]["metrics"]["sweep.dial.best_iou"]["value"] > 0.9  # flat rectangles
    assert rows["folder-mined_masks"]["metrics"]["AR1000"]["value"] > 0.9
    assert rows["davis__frames-student"]["dataset"]["images"] == 1  # the first of frames 0 and 2
    told = (out / "models.md").read_text()
    assert "| folder | student | 1, 1 |" in told
    assert "| cells | slic | 1, 2 |" in told
    assert "| davis, frames | student - tree | 1 |" in told
    assert "| davis | UnSAMv2 | oracle of 10 | – | 2.75 | 4.66 | 0.847 |" in told
    assert (out / "models.png").stat().st_size > 5_000
    kept = {name: (out / "rows" / f"{name}.json").stat().st_mtime_ns for name in rows}
    assert models.main(command) == 0
    assert {name: (out / "rows" / f"{name}.json").stat().st_mtime_ns for name in rows} == kept


def test_a_row_that_died_is_in_the_table_and_done_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*asked(data, tmp_path / "out")[:4], "--model", "tree=tree", "--images", "1", "--jobs", "0"]
    command += ["--objects-per-image", "1", "--points-per-side", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(models, "score", lambda *a, **k: 1 / 0)
        assert models.main(command) == 1
    assert "| folder | tree | died: ZeroDivisionError" in (tmp_path / "out" / "models.md").read_text()
    assert models.main(command) == 0
    assert "died" not in (tmp_path / "out" / "models.md").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "expected --model NAME=CKPT or --mined: nothing to score"),
        (["--model", "student"], "--model student: expected NAME=VALUE"),
        (["--mined"], "expected --benchmark NAME=DATA, --domains or --davis2016"),
        (["--mined", "--benchmark", "kitti=x"], "--benchmark kitti: no such benchmark"),
        (["--mined", "--benchmark", "folder=nowhere"], "nowhere/images: expected a folder"),
        (["--mined", "--davis2016", "nowhere"], "nowhere"),
        (["--mined", "--domains", "nowhere"], "nowhere: expected a folder of domains"),
        (["--model", "mined masks=x"], "--model mined masks: the name of what --mined makes"),
    ],
)
def test_what_cannot_be_scored_is_told_before_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert models.main(["--output", str(tmp_path), *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_weights_that_are_none(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert models.main([*asked(data, tmp_path / "out"), "--model", f"student={tmp_path / 'nothing.pt'}"]) == 2
    assert str(tmp_path / "nothing.pt") in capsys.readouterr().err
