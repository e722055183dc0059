"""Ray: the default executor, quiet, gone at the end; actors pinned to GPUs that are only declared."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.errors import InputError
from pipeline.executors.pool import PoolOptions
from pipeline.executors.scheduler import Assignment
from pipeline.mining.flags import MineFlags
from pipeline.mining.job import frozen_plan
from pipeline.mining.options import mine_options
from pipeline.shards.commits import CommitLog
from pipeline.storage.open import open_storage
from pipeline.units.batches import RunSpec

pytestmark = pytest.mark.ray

Run = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A temporary folder with a short name: Ray's sockets lie in it, and a socket's path has 107 bytes at most."""
    folder = Path(tempfile.mkdtemp(prefix="gm"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def processes_of(folder: Path) -> list[psutil.Process]:
    """Processes that have the folder in their command line: Ray's own, which all name their session's folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(str(folder) in part for part in process.info["cmdline"] or ()):
            found.append(process)
    return found


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"{what}: not within {timeout_s:g} s"
        time.sleep(0.1)


def foreign_lines(text: str) -> list[str]:
    """Lines of standard error that are not the progress of `mine`."""
    return [line for line in text.splitlines() if not line.startswith("mining: ")]


@pytest.mark.parametrize("workers", ["2", pytest.param("1", marks=pytest.mark.slow)])
def test_ray_is_the_default_quiet_and_gone_at_the_end(
    workers: str, small_photographs: Path, tmp_path: Path, short_tmp: Path, run_mine: Run, undisturbed_digest: str
) -> None:
    done = run_mine(small_photographs, tmp_path / "out", "--workers", workers, TMPDIR=str(short_tmp))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["digest"] == undisturbed_digest
    assert foreign_lines(done.stderr) == []
    assert processes_of(short_tmp) == []
    assert list(short_tmp.iterdir()) == []


@pytest.mark.slow
def test_actors_that_die_cost_their_units_only(
    small_photographs: Path, tmp_path: Path, short_tmp: Path, run_mine: Run, undisturbed_digest: str
) -> None:
    (tmp_path / "once").mkdir()
    done = run_mine(
        small_photographs, tmp_path / "out", "--workers", "2", TMPDIR=str(short_tmp),
        GRAINMILL_FAULT="before-commit:kill:1;published:kill:4", GRAINMILL_FAULT_ONCE=str(tmp_path / "once"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "once").iterdir())) == 2
    assert "a worker died" in done.stderr
    result = json.loads(done.stdout)
    assert (result["digest"], result["failures"]) == (undisturbed_digest, 0)
    assert processes_of(short_tmp) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_driver_that_is_stopped_leaves_no_process(
    number: signal.Signals, small_photographs: Path, tmp_path: Path, short_tmp: Path, start_mine: Start,
    undisturbed_digest: str,
) -> None:  # fmt: skip
    gate = tmp_path / "gate"
    process = start_mine(
        small_photographs, tmp_path / "out", "--workers", "2", TMPDIR=str(short_tmp),
        GRAINMILL_FAULT="before-commit:pause:2", GRAINMILL_FAULT_GATE=str(gate),
    )  # fmt: skip
    wait_until(lambda: bool(list(tmp_path.glob("gate.*"))), 120, "unit 2 before its commit")
    assert processes_of(short_tmp)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == (130 if number == signal.SIGTERM else -signal.SIGKILL), err
    wait_until(lambda: not processes_of(short_tmp), 120, "the end of Ray's processes")
    flags = MineFlags(
        input=[f"in={small_photographs}"], output=str(tmp_path / "out"), executor="inline", samples_per_shard=2
    )
    from pipeline.mining.job import mine

    assert mine(mine_options(flags))["digest"] == undisturbed_digest


def test_without_ray_local_and_inline_still_mine(small_photographs: Path, tmp_path: Path, run_mine: Run) -> None:
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "ray.py").write_text("raise ImportError('there is no Ray here')")
    paths = os.pathsep.join([str(tmp_path / "blocked"), *filter(None, [os.environ.get("PYTHONPATH")])])
    flags = ("--executor", "local", "--workers", "1", "--limit", "2")
    done = run_mine(small_photographs, tmp_path / "local", *flags, PYTHONPATH=paths)
    assert done.returncode == 0, done.stderr
    done = run_mine(small_photographs, tmp_path / "inline", "--executor", "inline", "--limit", "2", PYTHONPATH=paths)
    assert done.returncode == 0, done.stderr
    refused = run_mine(small_photographs, tmp_path / "ray", "--executor", "ray", PYTHONPATH=paths)
    assert refused.returncode != 0, "the block does not work, so this test shows nothing"


# ---------------------------------------------------------------------------------------------------------------------
# Actors and GPUs


@pytest.fixture(scope="module")
def declared_gpus() -> Iterator[None]:
    """A Ray of this process with four processors and two GPUs, which nobody has to own."""
    from pipeline.executors.ray_pool import PRIVATE, QUIET

    ray = pytest.importorskip("ray", reason="ray is not installed")
    folder = Path(tempfile.mkdtemp(prefix="gm"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (QUIET | PRIVATE).items():
            patch.setenv(name, value)
        yield from ray_with_gpus(ray, folder)


def ray_with_gpus(ray: Any, folder: Path) -> Iterator[None]:
    ray.init(
        address="local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False,
        object_store_memory=128 * 2**20, _temp_dir=str(folder),
    )  # fmt: skip
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def run_spec(source: Path, output: Path) -> tuple[RunSpec, list[Assignment]]:
    """What actors are told, and the units of `source` as assignments to worker 0."""
    options = mine_options(MineFlags(input=[f"in={source}"], output=str(output), samples_per_shard=2))
    storage = open_storage(output, create=True)
    plan = frozen_plan(storage, options)
    run = RunSpec(
        output=str(output), config=options.config, sources=options.sources,
        config_hash=plan.config_hash, environment=plan.environment, sample_timeout_s=60.0,
        memory_limit_bytes=4 * 2**30,
    )  # fmt: skip
    return run, [Assignment(0, unit) for unit in plan.units(storage)]


def pool_options(*, workers: int, gpus_per_worker: float) -> PoolOptions:
    """As `mine` has them for these flags."""
    flags = MineFlags(input=["."], output="out", workers=workers, gpus_per_worker=gpus_per_worker)
    return mine_options(flags).pool


def child_environment(description: dict[str, object]) -> dict[str, str]:
    """Of the process in which an actor's native work is done."""
    return psutil.Process(int(str(description["child_pid"]))).environ()


@pytest.mark.slow
def test_each_whole_gpu_actor_sees_its_own_gpu(declared_gpus: None, small_photographs: Path, tmp_path: Path) -> None:
    from pipeline.executors.ray_pool import RayPool

    run, assignments = run_spec(small_photographs, tmp_path / "out")
    pool = RayPool(run, pool_options(workers=2, gpus_per_worker=1.0))
    try:
        for _ in range(2):
            pool.start_worker()
        deadline_s = time.monotonic() + 180
        while len(pool.descriptions) < 2:
            pool.wait(1.0)
            assert time.monotonic() < deadline_s
        seen = {each["cuda_visible_devices"] for each in pool.descriptions.values()}
        assert seen == {"0", "1"}
        children = {child_environment(each)["CUDA_VISIBLE_DEVICES"] for each in pool.descriptions.values()}
        assert children == {"0", "1"}
        child = pool.descriptions[0]["child_pid"]
        for assignment in assignments[:3]:
            pool.submit(assignment)
        records = []
        while len(records) < 3:
            for event in pool.wait(1.0):
                assert event.kind in ("done", "progress", "ready"), event
                records += [event.value] if event.kind == "done" else []
            assert time.monotonic() < deadline_s, records
        log = CommitLog(open_storage(tmp_path / "out"))
        for record in records:
            commit = log.read(record["unit"])
            assert commit is not None
            assert commit.record == record
            assert len(pickle.dumps(record)) < 20_000
        assert psutil.pid_exists(child), "the process that holds the weights did not outlive three units"
    finally:
        pool.close()


@pytest.mark.slow
def test_actors_share_a_gpu_by_fractions(declared_gpus: None, small_photographs: Path, tmp_path: Path) -> None:
    from pipeline.executors.ray_pool import RayPool

    run, _ = run_spec(small_photographs, tmp_path / "out")
    pool = RayPool(run, pool_options(workers=4, gpus_per_worker=0.5))
    try:
        for _ in range(4):
            pool.start_worker()
        deadline_s = time.monotonic() + 180
        while len(pool.descriptions) < 4:
            pool.wait(1.0)
            assert time.monotonic() < deadline_s
        seen = sorted(each["cuda_visible_devices"] for each in pool.descriptions.values())
        assert seen == ["0", "0", "1", "1"]
        assert {each["memory_fraction"] for each in pool.descriptions.values()} == {0.5}
    finally:
        pool.close()


@pytest.mark.slow
def test_more_gpus_than_there_are_is_bad_input(declared_gpus: None, small_photographs: Path, tmp_path: Path) -> None:
    from pipeline.executors.ray_pool import RayPool

    run, _ = run_spec(small_photographs, tmp_path / "out")
    with pytest.raises(InputError, match=r"--gpus-per-worker 3: .* has 2 GPUs"):
        RayPool(run, pool_options(workers=1, gpus_per_worker=3.0))
