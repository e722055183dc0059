"""A sample that aborts its process, hangs or eats memory ends as a failure row; everything else is mined."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.dataset.open import open_dataset
from pipeline.dataset.run import RunReader
from pipeline.mining.flags import MineFlags
from pipeline.mining.job import mine
from pipeline.mining.options import mine_options

Run = Callable[..., subprocess.CompletedProcess[str]]


def failures_of(run: RunReader) -> dict[str, dict[str, str]]:
    """Failure rows by their source."""
    rows = [row for unit in run.units() for row in run.failures(unit).to_pylist()]
    return {row["source_uri"]: row for row in rows}


def keys_of(run: RunReader) -> set[str]:
    return {row["key"] for unit in run.units() for row in run.samples(unit).to_pylist()}


def mined_inline(source: Path, output: Path) -> RunReader:
    flags = MineFlags(input=[f"in={source}"], output=str(output), executor="inline", samples_per_shard=2)
    mine(mine_options(flags))
    return open_dataset(output)


def test_killers_are_found_and_the_rest_is_mined(small_photographs: Path, tmp_path: Path, run_mine: Run) -> None:
    done = run_mine(
        small_photographs, tmp_path / "out", "--executor", "local", "--workers", "2",
        GRAINMILL_FAULT="sample:abort:p01;sample:raise:p09",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = open_dataset(tmp_path / "out")
    failures = failures_of(run)
    assert {uri: row["reason"] for uri, row in failures.items()} == dict.fromkeys(
        ("in/p01.png", "in/p09.png"), "worker_died"
    )
    assert "SIGABRT" in failures["in/p01.png"]["message"]
    assert "RuntimeError" in failures["in/p09.png"]["message"]
    healthy = keys_of(mined_inline(small_photographs, tmp_path / "good"))
    assert keys_of(run) | {row["key"] for row in failures.values()} == healthy
    assert json.loads(done.stdout)["samples"] == len(healthy) - 2


@pytest.mark.slow
def test_a_sample_that_hangs_is_found(small_photographs: Path, tmp_path: Path, run_mine: Run) -> None:
    done = run_mine(
        small_photographs, tmp_path / "out", "--executor", "local", "--workers", "1", "--limit", "3",
        "--sample-timeout-s", "20", GRAINMILL_FAULT="sample:hang:p01",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    failures = failures_of(open_dataset(tmp_path / "out"))
    assert {uri: row["reason"] for uri, row in failures.items()} == {"in/p01.png": "timeout"}
    assert json.loads(done.stdout)["samples"] == 2


@pytest.mark.slow
def test_a_sample_that_eats_memory_is_found(small_photographs: Path, tmp_path: Path, run_mine: Run) -> None:
    done = run_mine(
        small_photographs, tmp_path / "out", "--executor", "local", "--workers", "1", "--limit", "3",
        "--worker-memory-gib", "1", GRAINMILL_FAULT="sample:eat:p01",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    failures = failures_of(open_dataset(tmp_path / "out"))
    assert {uri: row["reason"] for uri, row in failures.items()} == {"in/p01.png": "out_of_memory"}
    assert json.loads(done.stdout)["samples"] == 2


def test_a_child_killed_from_outside_is_no_samples_fault(
    small_photographs: Path, tmp_path: Path, run_mine: Run, undisturbed_digest: str
) -> None:
    """SIGKILL while a sample is in hand, many times: the sample is mined in the end."""
    (tmp_path / "once").mkdir()
    faults = ";".join(f"sample:kill:{part}" for part in ("p03", "p03.", "p03.p", "p03.pn", "p03.png", "in/p03"))
    done = run_mine(
        small_photographs, tmp_path / "out", "--executor", "local", "--workers", "1",
        GRAINMILL_FAULT=faults, GRAINMILL_FAULT_ONCE=str(tmp_path / "once"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "once").iterdir())) == 6
    result = json.loads(done.stdout)
    assert result["failures"] == 0
    assert result["digest"] == undisturbed_digest


@pytest.mark.slow
def test_a_stuck_unit_goes_to_another_worker(
    small_photographs: Path, tmp_path: Path, run_mine: Run, undisturbed_digest: str
) -> None:
    (tmp_path / "once").mkdir()
    done = run_mine(
        small_photographs, tmp_path / "out", "--executor", "local", "--workers", "2", "--unit-timeout-s", "20",
        "--straggler-after-s", "1000",  # a second attempt near the end would come before the time-out
        GRAINMILL_FAULT="sample:hang:p02", GRAINMILL_FAULT_ONCE=str(tmp_path / "once"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "longer than 20 s" in done.stderr
    assert json.loads(done.stdout)["digest"] == undisturbed_digest


def test_inline_charges_an_exception_to_its_sample(
    small_photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GRAINMILL_FAULT", "sample:raise:p05")
    flags = MineFlags(
        input=[f"in={small_photographs}"], output=str(tmp_path / "out"), executor="inline", samples_per_shard=2
    )
    result = mine(mine_options(flags))
    assert result["failure_reasons"] == {"worker_died": 1}
    assert "RuntimeError: raised by GRAINMILL_FAULT" in capsys.readouterr().err
