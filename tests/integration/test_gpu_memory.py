"""A GPU that is too small for a batch: the unit is done again at half of it, and says so. Faked on the CPU."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.dataset.open import open_dataset

pytestmark = pytest.mark.slow
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.parametrize(("sizes", "left"), [([4], 2), ([4, 2], 1)])
def test_the_unit_is_repeated_at_half_the_batch(
    sizes: list[int], left: int, small_photographs: Path, tmp_path: Path, run_mine: Run
) -> None:
    fault = ";".join(f"batch:gpu-memory:{size}" for size in sizes)
    done = run_mine(
        small_photographs, tmp_path / "out", "--executor", "local", "--workers", "1", "--batch-size", "4",
        "--samples-per-shard", "6", GRAINMILL_FAULT=fault,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["samples"], result["failures"]) == (11, 0)
    notes = [commit.record["notes"] for commit in open_dataset(tmp_path / "out").commits()]
    assert notes == [[f"the GPU ran out of memory at batch size {2 * left}; repeated at {left}"]] * 2


def test_a_sample_that_does_not_fit_alone_is_a_failure(small_photographs: Path, tmp_path: Path, run_mine: Run) -> None:
    done = run_mine(
        small_photographs, tmp_path / "out", "--executor", "local", "--workers", "1", "--limit", "2",
        GRAINMILL_FAULT="batch:gpu-memory:1",
    )  # fmt: skip
    assert done.returncode == 4, done.stderr  # nothing was mined
    assert json.loads(done.stdout)["failure_reasons"] == {"out_of_memory": 2}
