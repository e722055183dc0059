"""How two versions of mining are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import mine_against
from benchmarks.mine_against import compared


def test_medians_of_rounds_by_stage_without_idle_time() -> None:
    before = [{"samples": 2, "seconds": {"conquer": s, "features": 2.0, "idle": 50.0}} for s in (4.0, 6.0, 90.0)]
    after = [{"samples": 2, "seconds": {"conquer": 2.0, "features": s, "idle": 9.0}} for s in (2.0, 2.0, 1.0)]
    rows = compared(before, after)
    assert set(rows) == {"conquer", "features", "all"}
    assert rows["conquer"] == {"before_s": 3.0, "after_s": 1.0, "times": 3.0}
    assert rows["features"] == {"before_s": 1.0, "after_s": 1.0, "times": 1.0}
    assert rows["all"]["before_s"] == pytest.approx(4.0)
    assert rows["all"]["times"] == pytest.approx(2.0)


def test_a_folder_of_images_is_the_same_for_both_checkouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def mined(tree: Path, source: str, output: Path, limit: int) -> dict[str, Any]:
        asked.append(source)
        return {"samples": 1, "seconds": {"conquer": 1.0}, "seconds_per_image": 1.0, "digest": "same"}

    monkeypatch.setattr(mine_against, "mined", mined)
    monkeypatch.setattr(mine_against.subprocess, "run", lambda *a, **k: None)
    monkeypatch.setattr(mine_against, "environment", lambda load: {})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for given, expected in (("photos", str(tmp_path / "photos")), ("s3://bucket/photos", "s3://bucket/photos")):
        asked.clear()
        assert mine_against.main(["HEAD", "--input", given, "--output", "found.json", "--rounds", "1"]) == 0
        assert asked == [expected] * 4
