"""`grainmill status --watch` beside a run, from another process that knows nothing but the output directory."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.dataset.open import open_dataset
from pipeline.dataset.status import watch
from pipeline.shards.commits import CommitLog


def test_rates_and_the_end(write_drawn_run: Callable[..., Path], tmp_path: Path) -> None:
    """Two of three units stand at first; the third comes between two looks, then the manifest."""
    whole = write_drawn_run(tmp_path / "whole")
    partly = write_drawn_run(tmp_path / "run", units=2)
    now_s = iter(range(0, 1000, 10))
    steps: Iterator[Callable[[], object]] = iter(
        [
            lambda: (partly / "commits/00000002.json").write_bytes((whole / "commits/00000002.json").read_bytes()),
            lambda: (partly / "lease.json").write_text('{"beat": 1}'),
            lambda: (partly / "lease.json").write_text('{"beat": 2}'),
            lambda: (partly / "manifest.json").write_bytes((whole / "manifest.json").read_bytes()),
        ]
    )
    seen = list(watch(str(partly), interval_s=1.0, clock=lambda: float(next(now_s)), sleep=lambda _: next(steps)()))
    assert [each["committed"] for each in seen] == [2, 3, 3, 3, 3]
    assert seen[0]["images_per_second"] is None
    brought = seen[1]["samples"] + seen[1]["failed"] - seen[0]["samples"] - seen[0]["failed"]
    assert seen[1]["images_per_second"] == pytest.approx(brought / 10)
    assert seen[1]["seconds_left"] == 0
    assert [each["driver"] for each in seen] == [None, False, True, True, False]
    assert seen[-1]["complete"]


@pytest.mark.slow
def test_watching_a_run_from_another_process(
    small_photographs: Path, tmp_path: Path, start_mine: Callable[..., subprocess.Popen[str]]
) -> None:
    gate = tmp_path / "gate"
    driver = start_mine(
        small_photographs, tmp_path / "out", "--executor", "local", "--workers", "1",
        GRAINMILL_FAULT="before-commit:pause:3", GRAINMILL_FAULT_GATE=str(gate),
    )  # fmt: skip
    while not list(tmp_path.glob("gate.*")):
        assert driver.poll() is None
        time.sleep(0.05)
    command = [
        sys.executable,
        "-m",
        "pipeline",
        "status",
        str(tmp_path / "out"),
        "--watch",
        "--interval-s",
        "0.5",
        "--json",
    ]
    watcher = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with pytest.raises(subprocess.TimeoutExpired):
        watcher.wait(3)
    assert sum(CommitLog(open_dataset(tmp_path / "out").storage).committed(6)) == 3
    gate.touch()
    out, err = watcher.communicate(timeout=120)
    assert watcher.returncode == 0, err
    status = json.loads(out)
    assert (status["committed"], status["pending"], status["complete"]) == (6, 0, True)
    assert "6/6 units" in err
    driver.communicate(timeout=120)
    assert driver.returncode == 0
