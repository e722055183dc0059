"""`benchmarks.image_sizes`, at one small size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import image_sizes


def test_one_size_is_measured(photographs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [str(photographs / "chelsea.png"), "--output", "unused.json", "--size", "60", "40"]
    assert image_sizes.main(asked) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["width"], found["height"]) == (60, 40)
    assert found["masks"] > 0
    assert found["cpu_s"] > 0
    assert found["peak_mib"] > 10


def test_what_is_no_image_is_told(tmp_path: Path) -> None:
    (tmp_path / "no.jpg").write_bytes(b"no")
    with pytest.raises(SystemExit, match=r"no\.jpg: no image"):
        image_sizes.main([str(tmp_path / "no.jpg"), "--output", "unused.json", "--size", "60", "40"])
