"""Kill -9 of anything at any moment, then the same command again: the dataset is that of an undisturbed run."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pipeline.dataset.open import open_dataset
from pipeline.mining.flags import MineFlags
from pipeline.mining.job import mine
from pipeline.mining.options import mine_options
from pipeline.shards.commits import CommitLog
from pipeline.storage.open import open_storage

Run = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., "subprocess.Popen[str]"]
POINTS = (
    "planned", "attempt-started:2", "shard-written:2", "published:2", "before-commit:2", "committed:2",
    "before-manifest", "manifest",
)  # fmt: skip


def mined(source: Path, output: Path) -> dict[str, object]:
    flags = MineFlags(input=[f"in={source}"], output=str(output), executor="inline", samples_per_shard=2)
    return mine(mine_options(flags))


def assert_nothing_unnamed(output: Path) -> None:
    """Every file of the format's folders is named by a commit, once; every sample is in one place."""
    run = open_dataset(output)
    named = [file["name"] for commit in run.commits() for file in commit.files()]
    folders = ("shards", "index", "failures")
    found = [str(path.relative_to(output)) for folder in folders for path in (output / folder).glob("*")]
    assert sorted(named) == sorted(found)
    keys = [row["key"] for unit in run.units() for row in run.samples(unit).to_pylist()]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_each_step_of_the_protocol(
    point: str, small_photographs: Path, tmp_path: Path, run_mine: Run, undisturbed_digest: str
) -> None:
    name, _, unit = point.partition(":")
    fault = f"{name}:kill:{unit}" if unit else f"{name}:kill"
    killed = run_mine(small_photographs, tmp_path / "out", "--executor", "inline", GRAINMILL_FAULT=fault)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = CommitLog(open_storage(tmp_path / "out")).committed(6)
    assert begun_units(tmp_path / "out") == ({2} if name not in ("planned", "committed") and unit else set())
    assert sum(before) == {"planned": 0, "committed": 3}.get(name, 2 if unit else 6)
    result = mined(small_photographs, tmp_path / "out")
    assert result["digest"] == undisturbed_digest
    assert result["units_done_now"] == 6 - sum(before)
    assert_nothing_unnamed(tmp_path / "out")


@pytest.mark.parametrize(
    "point",
    [
        pytest.param("attempt-started", marks=pytest.mark.slow),
        pytest.param("published", marks=pytest.mark.slow),
        "before-commit",
    ],
)
def test_a_worker_that_dies_costs_its_unit_only(
    point: str, small_photographs: Path, tmp_path: Path, run_mine: Run, undisturbed_digest: str
) -> None:
    (tmp_path / "once").mkdir()
    done = run_mine(
        small_photographs, tmp_path / "out", "--executor", "local", "--workers", "2",
        GRAINMILL_FAULT=f"{point}:kill:1;{point}:kill:4", GRAINMILL_FAULT_ONCE=str(tmp_path / "once"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "once").iterdir())) == 2
    assert "a worker died" in done.stderr
    result = json.loads(done.stdout)
    assert result["digest"] == undisturbed_digest
    assert result["failures"] == 0
    assert_nothing_unnamed(tmp_path / "out")


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], timeout_s: float = 120.0) -> None:
    """Returns once the condition holds; fails with what the process said if it ends first, or takes too long."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline_s, f"nothing happened for {timeout_s:g} s"
        time.sleep(0.05)


def test_two_attempts_at_once_leave_one_commit(
    small_photographs: Path, tmp_path: Path, start_mine: Start, undisturbed_digest: str
) -> None:
    """Two drivers, the first asleep while the second takes its lease: both stop before a commit, then race."""
    output, gate = tmp_path / "out", tmp_path / "gate"
    fault = {"GRAINMILL_FAULT": "before-commit:pause:0", "GRAINMILL_FAULT_GATE": str(gate)}
    drivers = []
    for _ in range(2):
        drivers.append(start_mine(small_photographs, output, "--executor", "inline", **fault))
        wait_for(lambda: gate.with_name(f"gate.{drivers[-1].pid}").exists(), drivers[-1])
        if len(drivers) == 1:
            drivers[0].send_signal(signal.SIGSTOP)
            (output / "lease.json").unlink()
    drivers[0].send_signal(signal.SIGCONT)
    gate.touch()
    ends = [driver.communicate(timeout=120) for driver in drivers]
    finished = [json.loads(out) for out, _ in ends if out]
    assert finished, ends
    assert all(result["digest"] == undisturbed_digest for result in finished)
    assert mined(small_photographs, output)["digest"] == undisturbed_digest
    assert_nothing_unnamed(output)


def test_many_threads_race_for_one_commit(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    won: list[int] = []
    barrier = threading.Barrier(8)

    def race(number: int) -> None:
        barrier.wait()
        if storage.write_new("commits/00000000.json", b"%d" % number * 1000):
            won.append(number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert storage.read_bytes("commits/00000000.json") == b"%d" % won[0] * 1000


def begun_units(output: Path) -> set[int]:
    """Units of which an attempt has left something behind and that are not committed: what will be done again."""
    found = {path.name for folder in ("tmp", "shards", "index", "failures") for path in (output / folder).glob("*")}
    numbers = {int(match[1]) for name in found if (match := re.match(r"(?:samples-|masks-)?(\d{8})[-.]", name))}
    return {unit for unit in numbers if not (output / "commits" / f"{unit:08d}.json").exists()}


def kill_at_random(
    seed: int, kills: int, source: Path, output: Path, start_mine: Start, *flags: str, longest_s: float
) -> list[str]:
    """Kills a child, a worker, the driver or its whole group, again and again; returns what was killed."""
    generator = random.Random(seed)
    log: list[str] = []
    workers_killed = 0
    process = start_mine(source, output, *flags)
    while len(log) < kills:
        time.sleep(generator.uniform(0.02, longest_s))
        if process.poll() is not None:
            if process.returncode == 0:
                break
            process = start_mine(source, output, *flags)
            continue
        family = psutil.Process(process.pid).children(recursive=True)
        target = generator.choice(["child", "driver", "group", "worker"])
        ours = [each for each in family if module_of(each) == {"child": "child", "worker": "local_worker"}.get(target)]
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if target == "group":
                os.killpg(process.pid, signal.SIGKILL)
            elif target == "driver":
                process.kill()
            elif ours:
                generator.choice(ours).kill()
            else:
                continue
            log.append(target)
            workers_killed += target == "worker"
        if target in ("driver", "group"):
            process.communicate(timeout=120)
            _, alive = psutil.wait_procs(family, timeout=120)
            assert not alive, f"{target} was killed and {alive} stayed"
            # One unit in each worker's hands, and one that each worker killed since the driver's start had begun.
            assert len(begun_units(output)) <= 2 + workers_killed, log
            workers_killed = 0
            process = start_mine(source, output, *flags)
    out, err = process.communicate(timeout=120)
    if process.returncode == 0:
        assert json.loads(out)["failures"] == 0
    else:
        assert process.returncode in (-signal.SIGKILL,), err
    return log


def module_of(process: psutil.Process) -> str | None:
    """`child` or `local_worker` of a process of ours."""
    try:
        line = process.cmdline()
    except psutil.Error:
        return None
    return next((part.removeprefix("pipeline.") for part in line if part.startswith("pipeline.")), None)


def test_random_kills(small_photographs: Path, tmp_path: Path, start_mine: Start, undisturbed_digest: str) -> None:
    kill_at_random(
        3, 4, small_photographs, tmp_path / "out", start_mine, "--executor", "local", "--workers", "2", longest_s=1.5
    )
    result = mined(small_photographs, tmp_path / "out")
    assert result["digest"] == undisturbed_digest
    assert result["failures"] == 0
    assert_nothing_unnamed(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(3))
def test_many_random_kills(
    seed: int, small_photographs: Path, tmp_path: Path, start_mine: Start, undisturbed_digest: str
) -> None:
    log = kill_at_random(
        seed, 9, small_photographs, tmp_path / "out", start_mine, "--executor", "local", "--workers", "2",
        longest_s=2.5,
    )  # fmt: skip
    print(f"seed {seed}: killed {log}", file=sys.stderr)
    result = mined(small_photographs, tmp_path / "out")
    assert result["digest"] == undisturbed_digest
    assert result["failures"] == 0
    assert_nothing_unnamed(tmp_path / "out")
