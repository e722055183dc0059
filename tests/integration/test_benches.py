"""The benches of mining as a whole, on a few images: what they print, what they check, and that they can fail."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.bench.mine import stage_rows
from pipeline.bench.photographs import write_photographs
from pipeline.cli import main


def bench(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The JSON of one bench; a bar that a loaded machine misses is no failure here."""
    code = main(["bench", *arguments, "--json"])
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert code == (0 if report["passed"] else 1)
    assert report["command"].startswith(f"grainmill bench {arguments[0]}")
    assert {"packages", "cores", "load_1min_before", "load_1min_after"} <= set(report["environment"])
    return report


def test_photographs_are_different_and_of_one_size(tmp_path: Path) -> None:
    write_photographs(tmp_path, 15)
    pixels = [np.asarray(Image.open(path)) for path in sorted(tmp_path.iterdir())]
    assert {each.shape for each in pixels} == {(321, 481, 3)}
    assert len({each.tobytes() for each in pixels}) == 15
    with pytest.raises(ValueError, match="1 to 72"):
        write_photographs(tmp_path, 73)


def test_shares_of_stages_are_medians_over_runs() -> None:
    runs = [
        {"read": 1.0, "write": 1.0, "wall": 9.0},
        {"read": 3.0, "write": 1.0, "wall": 9.0},
        {"read": 3.0, "write": 9.0},
    ]
    rows = stage_rows(runs, images=2)
    assert [row["stage"] for row in rows] == ["read", "write", "all"]
    assert [row["s/image"] for row in rows] == [1.5, 0.5, 2.0]
    assert [row["share"] for row in rows] == [0.75, 0.25, 1.0]


@pytest.mark.slow
def test_the_mine_bench(capsys: pytest.CaptureFixture[str]) -> None:
    report = bench(capsys, "mine", "--repeats", "1", "--limit", "4")
    assert report["ratio"] is None
    assert report["details"]["images"] == 4
    stages = {row["stage"]: row["share"] for row in report["rows"]}
    assert {"decode", "features", "divide", "conquer", "granularity", "write"} <= set(stages)
    assert stages["all"] == pytest.approx(sum(share for stage, share in stages.items() if stage != "all"))
    assert any(name.startswith("writing under 2%") for name in report["checks"])


@pytest.mark.slow
@pytest.mark.ray
def test_the_executors_bench() -> None:
    # In a process of its own: Ray leaves its daemons to the garbage collector, which is a warning here.
    command = [sys.executable, "-m", "pipeline", "bench", "executors", "--repeats", "1", "--limit", "6", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert done.returncode == (0 if report["passed"] else 1)
    assert [row["executor"] for row in report["rows"]] == ["ray", "local"]
    ray, local = (row["images/s"] for row in report["rows"])
    assert report["ratio"] == pytest.approx(ray / local)
    assert report["bar"] == 0.95
    assert report["checks"]["the same digest from both, every time"]


@pytest.mark.slow
def test_a_drivers_peak_does_not_grow_with_planned_units() -> None:
    from pipeline.bench.memory import MOST_DRIVER_GROWTH, MOST_FIXED_MIB, driver_peaks_mib

    few, filled, many = (driver_peaks_mib(units)["end"] for units in (10, 11_000, 33_000))
    assert filled - few <= MOST_FIXED_MIB
    assert many / filled - 1 <= MOST_DRIVER_GROWTH


@pytest.mark.slow
def test_a_workers_memory_stays_over_many_images() -> None:
    from pipeline.bench.memory import worker_mib
    from pipeline.bench.report import BenchOptions

    found = worker_mib(BenchOptions(), 150)
    for name in ("child", "supervisor"):
        early, late = found[name]
        assert late <= 1.1 * early, found
