"""`benchmarks.scale_run`, on a few drawn images: three kills, one digest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import scale_run
from benchmarks.chaos import draw_images


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_run_that_is_killed_three_times_has_the_digest_of_one_that_is_not(tmp_path: Path) -> None:
    source, output, work = draw_images(tmp_path / "images", 48, scale=4), tmp_path / "found.json", tmp_path / "work"
    asked = [str(source), "--output", str(output), "--work", str(work), "--samples-per-shard", "2"]
    assert scale_run.main(asked) == 0
    found = json.loads(output.read_text())
    killed = found["killed"]
    assert found["same_digest"]
    assert len(killed["injected"]) == 3
    assert killed["images"] == found["undisturbed"]["images"] == 48
    assert killed["units_again"] >= 0
    assert 0 < killed["net_s"] < killed["wall_s"]
    for run in (found["undisturbed"], killed):
        assert 0 <= run["idle_share"] < 1
        assert run["cpu_s_mining"] > 0
        assert run["images_per_second_net"] > run["images_per_second"] > 0


def test_units_are_counted_by_their_commits(tmp_path: Path) -> None:
    assert scale_run.committed(tmp_path) == 0
    (tmp_path / "commits").mkdir()
    for name in ("00000000.json", "00000007.json", "compact-00000000.parquet"):
        (tmp_path / "commits" / name).touch()
    assert scale_run.committed(tmp_path) == 2
