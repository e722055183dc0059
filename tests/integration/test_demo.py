"""The demo from end to end, with a model that learns for two steps; a second time it only fills in what is missing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipeline.commands import demo
from pipeline.commands.demo import CLICKS, LICENSES, PHOTOGRAPHS, coin_masks, lay_out_coins, lay_out_photographs
from pipeline.environment.kept_student import VARIABLE
from pipeline.errors import InputError
from pipeline.sources.images import decode_rgb


def test_the_photographs_are_there_with_terms(photographs: Path) -> None:
    names = [name for group in PHOTOGRAPHS.values() for name in group]
    assert len(set(names)) == len(names) >= 10
    assert {"retina.jpg", "ihc.png", *CLICKS} <= set(names)
    assert set(PHOTOGRAPHS) == set(LICENSES)
    for name in names:
        rgb = decode_rgb((photographs / name).read_bytes(), max_pixels=10**8)
        if name in CLICKS:
            x, y = map(int, CLICKS[name].split(","))
            assert x < rgb.shape[1]
            assert y < rgb.shape[0]


def test_twenty_four_coins_are_laid_out(photographs: Path, tmp_path: Path) -> None:
    lay_out_coins(tmp_path)
    coins = decode_rgb((photographs / "coins.png").read_bytes(), max_pixels=10**8)[:, :, 0]
    masks = coin_masks(coins)
    assert len(masks) == len(list((tmp_path / "masks" / "coins").glob("*.png"))) == 24
    assert not np.any(np.sum(masks, axis=0) > 1)


def test_the_student_stands_on_lite0_where_its_weights_are_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out_photographs(tmp_path / "photographs")
    flags = {}
    for weights in (tmp_path / "weights.pth", None):
        monkeypatch.setattr(demo, "packaged_weights", lambda short, weights=weights: weights)
        steps = demo.steps(tmp_path, train_steps=2, executor="local", workers=1)
        flags[weights] = next(step for step in steps if step.arguments[0] == "train")
    with_weights, without = flags.values()
    at = with_weights.arguments.index("--trunk")
    assert with_weights.arguments[at : at + 4] == ("--trunk", "lite0", "--trunk-rate", "0.1")
    assert "EfficientNet-lite0" in with_weights.title
    assert without.arguments == with_weights.arguments[:at] + with_weights.arguments[at + 4 :]
    assert "[lite]" in without.title
    # A student that was begun goes on as it began, whatever is installed since.
    (tmp_path / "student" / "checkpoints").mkdir(parents=True)
    begun = tmp_path / "student" / "checkpoints" / "step-00000001.safetensors"
    for trunk in (None, {"name": "tf_efficientnet_lite0"}):
        save_file({"w": np.zeros(1)}, begun, {"grainmill": json.dumps({"trunk": trunk})})
        for weights in (tmp_path / "weights.pth", None):
            monkeypatch.setattr(demo, "packaged_weights", lambda short, weights=weights: weights)
            steps = demo.steps(tmp_path, train_steps=2, executor="local", workers=1)
            again = next(step for step in steps if step.arguments[0] == "train")
            assert ("--trunk" in again.arguments) == (trunk is not None)
            assert again.arguments[-1] == "--resume"
    begun.write_bytes(b"cut off")
    with pytest.raises(InputError, match=r"step-00000001\.safetensors: not a checkpoint .*remove .*student to begin"):
        list(demo.steps(tmp_path, train_steps=2, executor="local", workers=1))


def grainmill_demo(output: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline", "demo", "--output", str(output), "--train-steps", "2"]
    alone = {**os.environ, VARIABLE: str(output / "missing.safetensors")}  # whatever student this machine keeps
    return subprocess.run([*command, "--executor", "local"], capture_output=True, text=True, check=False, env=alone)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_runs_and_runs_again(tmp_path: Path) -> None:
    output = tmp_path / "demo"
    first = grainmill_demo(output)
    assert first.returncode == 0, first.stderr[-3000:]
    ran = re.findall(r"^\$ grainmill (\w+)", first.stderr, re.MULTILINE)
    assert list(dict.fromkeys(ran)) == [
        "mine",
        "verify",
        "stats",
        "release",
        "train",
        "score",
        "segment",
        "view",
        "annotate",
    ]  # fmt: skip  (the last one is told, not run)
    assert "--trunk lite0" in first.stderr, "what `make` installs has its weights"
    report = (output / "report.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="report-data">(.*?)</script>', report, re.DOTALL)[1])  # type: ignore[index]
    assert data["statistics"]["samples"] == sum(map(len, PHOTOGRAPHS.values()))
    assert data["statistics"]["failures"] == 0
    assert {image["license"] for image in data["images"]} == set(LICENSES.values())
    assert len(data["pictures"]) == 2 * len(CLICKS)
    assert len(data["scores"]) == 3
    for name in ("README.md", "manifest.json", "gallery.html"):
        assert (output / "release" / name).is_file(), name
    again = grainmill_demo(output)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "done before, kept" in again.stderr
    assert (output / "report.html").read_text(encoding="utf-8") == report
