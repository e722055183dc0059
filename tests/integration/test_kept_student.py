"""The student that is kept: made by one command with its card, found by its name."""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import keep_student
from benchmarks.keep_student import FIGURES, card, data_rows
from model.network.checkpoint import read_checkpoint
from pipeline import cli
from pipeline.commands.demo import steps
from pipeline.environment.kept_student import VARIABLE, kept_student
from pipeline.environment.timm_weights import timm_package
from pipeline.errors import GrainmillError

QUICK = ["--image-size", "64", "--global-batch-size", "1", "--min-parts", "0"]


@pytest.fixture(scope="module")
def kept(drawn_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    torch.manual_seed(0)
    torch.save(timm_package().create_model("test_efficientnet").state_dict(), folder / "trunk.pth")
    asked = ["--data", str(drawn_run), "--output", str(folder / "small.safetensors"), "--work", str(folder / "work")]
    asked += [
        "--steps",
        "1",
        "--correction-steps",
        "1",
        "--",
        *QUICK,
        "--trunk",
        f"timm:test_efficientnet@{folder / 'trunk.pth'}",
    ]
    assert keep_student.main(asked) == 0
    return folder / "small.safetensors"


def test_its_card_says_what_it_was_made_of(kept: Path, drawn_run: Path) -> None:
    text = kept.with_suffix(".md").read_text()
    rows = data_rows([str(drawn_run)])
    manifest = json.loads((drawn_run / "manifest.json").read_text())
    assert sum(images for _, images, _, _ in rows) == manifest["samples"]
    assert sum(masks for _, _, masks, _ in rows) == manifest["masks"]
    for source, images, masks, terms in rows:
        assert f"| {source} | {images} | {masks} | {terms} |" in text
    assert manifest["digest"] in text
    assert "Not measured" in text
    assert "--trunk-rate 0.1" in text
    assert text.count("grainmill train ") == 2
    assert "--clicks 3" in text
    assert read_checkpoint(kept.parent / "work" / "run" / "corrected").record["config"]["clicks"] == 3
    assert kept.stat().st_size < keep_student.LIMIT_BYTES


def test_half_a_run_is_not_corrected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[list[str]] = []

    def stopped(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(keep_student.subprocess, "run", stopped)
    half = SimpleNamespace(record={"step": 7, "config": {"steps": 50}})
    monkeypatch.setattr(keep_student, "read_checkpoint", lambda place: half)
    asked = ["--data", "x", "--output", str(tmp_path / "small.safetensors"), "--work", str(tmp_path / "work")]
    assert keep_student.main([*asked, "--", "--time-limit-s", "1"]) == 1
    assert "stopped after 7 of 50 steps; call again to go on" in capsys.readouterr().err
    [only] = commands
    assert "--clicks" not in only


def test_it_is_found_by_its_name(
    kept: Path,
    tmp_path: Path,
    small_photographs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    image = next(small_photographs.glob("*.png"))
    asked = ["segment", str(image), "--checkpoint", "kept", "--point", "5,5", "--output", str(tmp_path)]
    monkeypatch.setenv(VARIABLE, str(tmp_path / "missing.safetensors"))
    assert cli.main(asked) == 2
    assert f"expected a student at {tmp_path / 'missing.safetensors'}, found none" in capsys.readouterr().err
    monkeypatch.setenv(VARIABLE, str(kept))
    assert cli.main(asked) == 0
    made = json.loads((tmp_path / f"{image.stem}.masks.json").read_text())
    assert made["info"]["checkpoint"] == kept.name if "info" in made else made["checkpoint"] == kept.name


def test_where_it_lies_without_a_word(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert kept_student() == tmp_path / "grainmill" / "student.safetensors"


def test_the_demo_shows_it_where_there_is_one(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("photographs/free/astronaut.png", "photographs/cc0/coffee.png", "photographs/cc0/retina.jpg"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()

    def asked() -> list[tuple[str, ...]]:
        found = steps(tmp_path, train_steps=1, executor="inline", workers=1)
        return [step.arguments for step in found if "kept" in step.arguments]

    monkeypatch.setenv(VARIABLE, str(tmp_path / "missing.safetensors"))
    assert asked() == []
    monkeypatch.setenv(VARIABLE, str(kept))
    assert [each[0] for each in asked()] == ["score", "segment", "segment", "segment"]


def test_figures_stand_in_the_card(kept: Path) -> None:
    ground = {name: place / 10 for place, name in enumerate(FIGURES)}
    figures = {"mined_labels": ground, "people": {name: value + 0.05 for name, value in ground.items()}}
    record = {"step": 7, "image_size": 256, "trunk": {"name": "tf_efficientnet_lite0"}}
    text = card(file=kept, commands=["grainmill train"], record=record, rows=[], digest="d", figures=figures)
    for place, words in enumerate(FIGURES.values()):
        assert f"| {words} | {place / 10:.3f} | {place / 10 + 0.05:.3f} |" in text
    assert "Base: random weights, trunk tf_efficientnet_lite0" in text


def test_an_earlier_students_figures_are_not_this_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "figures.json").write_text('{"runs": [{}]}')
    monkeypatch.setattr(keep_student.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 1))
    asked = argparse.Namespace(work=tmp_path, train="t", validation="v", bsds500="b")
    with pytest.raises(GrainmillError, match="ended with exit code 1"):
        keep_student.measured(asked, tmp_path / "small.safetensors")


def test_validation_needs_all_three(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        keep_student.main(["--data", "x", "--validation", "y"])
    assert "go together" in capsys.readouterr().err
