"""Runs without a single sample: every command gives one clear message or the right thing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from pipeline.cli import main

FLAT, BROKEN = "no_masks 2", "truncated 2"


def mine(source: Path, output: Path, *flags: str) -> int:
    return main(["mine", "--input", f"in={source}", "--output", str(output), "--executor", "inline", *flags])


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of flat images, one of files that are no images, one of which nothing is committed yet, one half done."""
    base = tmp_path_factory.mktemp("empty")
    for name in ("flat", "broken"):
        (base / f"{name}-images").mkdir()
        for number in range(2):
            path = base / f"{name}-images" / f"{number}.png"
            if name == "flat":
                Image.new("RGB", (40, 40 + number), (9, 90, 9)).save(path)
            else:
                path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(number))
        assert mine(base / f"{name}-images", base / name, "--samples-per-shard", "1") == 4
    shutil.copytree(base / "broken", base / "planned")
    for name in ("commits", "manifest.json"):
        path = base / "planned" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(base / "broken", base / "half")
    for path in (base / "half" / "manifest.json", base / "half" / "commits" / "00000001.json"):
        path.unlink()
    return {name: base / name for name in ("flat", "broken", "planned", "half")}


def test_a_run_in_which_all_failed_is_no_success_however_often(
    empty: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, reasons in (("flat", FLAT), ("broken", BROKEN)):
        copy, images = shutil.copytree(empty[name], tmp_path / name), empty[name].parent / f"{name}-images"
        for flags in ((), ("--max-failed-fraction", "1"), ("--json",)):
            assert mine(images, copy, "--samples-per-shard", "1", *flags) == 4
            said = capsys.readouterr()
            assert f"nothing was mined: 2 of 2 samples failed ({reasons})" in said.err
            found = json.loads(said.out) if flags == ("--json",) else {"samples": 0, "failures": 2}
            assert (found["samples"], found["failures"]) == (0, 2)
    images = empty["broken"].parent / "broken-images"
    mixed = Path(shutil.copytree(images, tmp_path / "mixed-images"))
    picture = Image.new("RGB", (40, 40), (9, 90, 9))
    picture.paste((250, 200, 0), (8, 8, 30, 30))
    picture.save(mixed / "good.png")
    assert mine(mixed, tmp_path / "mixed") == 0  # one is enough


def test_what_needs_a_sample_says_that_there_is_none(
    empty: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {
        "flat": f"flat: holds no sample: 2 of 2 samples failed ({FLAT}), `grainmill failures` lists them\n",
        "broken": f"broken: holds no sample: 2 of 2 samples failed ({BROKEN}), `grainmill failures` lists them\n",
        "planned": "planned: holds no sample: 2 of 2 units are not committed yet\n",
        "half": "half: holds no sample: 1 of 2 units are not committed yet; 1 of 1 samples failed (truncated 1), "
        "`grainmill failures` lists them\n",
    }
    release = ("--output", str(tmp_path / "rel"), "--name", "n", "--version", "1", "--license", "MIT")
    for name, run in empty.items():
        for layout in ("coco", "sa1b"):
            assert main(["export", str(run), "--to", layout, "--output", str(tmp_path / "export")]) == 2
            assert capsys.readouterr().err.endswith(said[name])
        assert main(["release", str(run), *release]) == 2
        assert capsys.readouterr().err.endswith(
            said[name]
            if name in ("flat", "broken")
            else "are not committed; run the same `grainmill mine` again until it is done\n"
        )
        train = ("--output", str(tmp_path / "train"), "--size", "micro", "--init", "scratch", "--steps", "1")
        assert main(["train", "--data", str(run), *train]) == 2
        expected = "found neither manifest.json nor a commit" if name == "planned" else "holds no sample, so there is"
        assert expected in capsys.readouterr().err
        score = ("--benchmark", "shards", "--data", str(run), "--output", str(tmp_path / "scores"))
        assert main(["score", "--masks", str(run), *score]) == 2
        assert "Traceback" not in capsys.readouterr().err
    assert not {path.name for path in tmp_path.iterdir()} & {"export", "train"}


def test_what_shows_a_run_shows_an_empty_one(
    empty: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = {"flat": 2, "broken": 2, "planned": 0, "half": 1}
    for name, run in empty.items():
        assert main(["view", str(run), "--output", str(tmp_path / "page.html")]) == 0
        assert f"no sample is mined, {failed[name]} failed" in capsys.readouterr().out
        assert main(["stats", str(run)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split() == ["samples", "0"]
        assert lines[3].split() == ["failures", str(failed[name])]
        assert len(lines) == 4 + (failed[name] > 0)  # no tables of zeros
        assert main(["stats", str(run), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["masks_per_image"] is None
        assert main(["failures", str(run), "--json"]) == 0
        assert len(json.loads(capsys.readouterr().out)["failures"]) == failed[name]
        for command in (["status", str(run)], ["verify", str(run), "--deep"], ["diff", str(run), str(run)]):
            assert main(command) == 0
        capsys.readouterr()
