"""`grainmill bench memory`: the driver's peak against the number of planned units, a worker's over a thousand images.

The driver runs in a fresh process for each number of units: it lists the files, plans them, comes back to the plan as a
second call does, hands every unit to a pool, and ends with the merged index and the manifest. Only the workers are not
real: they answer at once with commits that name a shard, because what is measured is the memory of what stands around
them. A worker is real, with its child: it mines a thousand photographs.
"""

from __future__ import annotations

import gc
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import psutil

from ..console import note
from ..executors.driver import run_pool
from ..executors.pool import Event
from ..executors.scheduler import Assignment
from ..format.schema import canonical_json, load_json, sha256_of
from ..mining.flags import MineFlags
from ..mining.job import frozen_plan
from ..mining.manifest import write_manifest
from ..mining.options import mine_options
from ..mining.progress import RunProgress
from ..shards.commits import Commit, CommitWriter, make_commit
from ..shards.plan import Plan
from ..shards.writer import OutputFile, Outputs
from ..storage.base import Writer
from ..storage.open import open_storage
from .mine import bench_images, command_of
from .report import BenchOptions, BenchReport, environment

UNITS: Final = (10, 1_000, 12_000, 100_000)
"""The third is past the number at which commits are compacted for the first time."""
IMAGES: Final = 1_000
IMAGE_SIZE: Final = (208, 139)
FILES_PER_FOLDER: Final = 500
MOST_FIXED_MIB: Final = 48.0
"""Buffers of a fixed size fill up between the first and the third: a row group of the plan, the records and libraries
of a compaction."""
MOST_DRIVER_GROWTH: Final = 0.05
"""Between the third and the last, where there are eight times as many units and nothing more to fill."""
MOST_WORKER_GROWTH: Final = 0.05
MIB: Final = 2**20


def run(options: BenchOptions) -> BenchReport:
    """Measures each number of planned units once, and one worker over `--limit` images (1,000)."""
    load = os.getloadavg()
    peaks = {}
    for units in UNITS:
        peaks[units] = driver_peaks_mib(units)
        note(f"driver, {units} planned units: {peaks[units]} MiB")
    worker = worker_mib(options, options.limit or IMAGES)
    few, filled, many = (peaks[units]["end"] for units in (UNITS[0], UNITS[2], UNITS[3]))
    growth = {name: worker[name][1] / worker[name][0] - 1 for name in ("child", "supervisor")}
    rows = [
        {"what": f"driver, {units} units", "MiB at first": peak["start"], "planned": peak["planned"],
         "resumed": peak["resumed"], "run": peak["run"], "end (peak)": peak["end"]}
        for units, peak in peaks.items()
    ]  # fmt: skip
    return BenchReport(
        name="memory",
        command="grainmill bench memory" + command_of("memory", options).partition(f"--repeats {options.repeats}")[2],
        ratio=None,
        rows=rows,
        checks={
            f"buffers of the driver take at most {MOST_FIXED_MIB:g} MiB: {filled - few:+.1f}": (
                filled - few <= MOST_FIXED_MIB
            ),
            f"the driver's peak from {UNITS[2]} to {UNITS[3]} planned units grows by at most "
            f"{MOST_DRIVER_GROWTH:.0%}: {many / filled - 1:+.1%}": many / filled - 1 <= MOST_DRIVER_GROWTH,
            **{
                f"the worker's {name} grows by at most {MOST_WORKER_GROWTH:.0%} over {worker['images']} images: "
                f"{growth[name]:+.1%}": growth[name] <= MOST_WORKER_GROWTH
                for name in growth
            },
        },
        details={"driver_peak_mib": peaks, "worker_mib": worker},
        environment=environment(load),
    )


# ---------------------------------------------------------------------------------------------------------------------
# The driver


def driver_peaks_mib(units: int) -> dict[str, float]:
    """Peak resident memory of a fresh driver process after each of its phases, MiB."""
    with tempfile.TemporaryDirectory(prefix="grainmill-bench-") as folder:
        make_files(Path(folder) / "images", units)
        command = [sys.executable, "-m", "pipeline.bench.memory", folder]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    peaks: dict[str, float] = load_json(done.stdout, where="the driver's answer")
    return peaks


def make_files(folder: Path, count: int) -> None:
    """Empty image files: the driver never looks into them."""
    for number in range(count):
        path = folder / f"{number // FILES_PER_FOLDER:04d}" / f"{number:06d}.jpg"
        if number % FILES_PER_FOLDER == 0:
            path.parent.mkdir(parents=True)
        path.touch()


def drive(folder: Path) -> dict[str, float]:
    """All phases of a driver, each followed by a look at this process's peak."""
    peaks: dict[str, float] = {}

    def look(phase: str) -> None:
        peaks[phase] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB, 1)

    flags = MineFlags(input=[f"in={folder / 'images'}"], output=str(folder / "out"), samples_per_shard=1)
    options = mine_options(flags)
    storage = open_storage(options.flags.output, create=True)
    look("start")
    frozen_plan(storage, options)
    look("planned")
    plan = frozen_plan(storage, options)
    look("resumed")
    log = CommitWriter(storage)
    done = log.committed(plan.units_total)
    report = RunProgress(plan=plan, totals=log.totals(), compact=log.compact)
    with report:
        run_pool(plan.units(storage, skip=done), InstantPool(storage, plan), report, replace(options.pool, workers=16))
    look("run")
    write_manifest(storage, plan)
    look("end")
    return peaks


class InstantPool:
    """Workers that commit a unit the moment they get it, without mining anything."""

    def __init__(self, storage: Writer, plan: Plan) -> None:
        self._root = Path(storage.location)
        (self._root / "commits").mkdir()
        self._plan = plan
        self._events: list[Event] = []
        self._next = 0

    def start_worker(self) -> int:
        self._events.append(Event("ready", self._next))
        self._next += 1
        return self._next - 1

    def submit(self, assignment: Assignment) -> None:
        unit = assignment.unit.unit
        sha256 = sha256_of(b"%d" % unit)
        name = f"shards/{unit:08d}-{sha256[:8]}.tar"
        shard = OutputFile(path=Path(), name=name, size=10_240, sha256=sha256)
        outputs = Outputs(
            shard=shard, samples_index=None, masks_index=None, failures=None, samples=1, masks=300, reasons={}
        )
        commit = make_commit(
            outputs, unit=unit, config_hash=self._plan.config_hash, seconds={"wall": 1.0},
            environment=self._plan.environment, attempt="instant", notes=[],
        )  # fmt: skip
        (self._root / "commits" / f"{unit:08d}.json").write_bytes(commit.to_bytes())  # not synced, for speed
        self._events.append(Event("done", assignment.worker, Commit(unit=unit, record=commit.record).record))

    def wait(self, timeout_s: float) -> list[Event]:
        events, self._events = self._events, []
        return events

    def capacity(self) -> int | None:
        return None

    def report(self, states: dict[str, int]) -> None:
        return

    def waits_for(self) -> str:
        return ""

    def exclude_node(self, node: str) -> bool:
        return False

    def stop_worker(self, worker: int) -> None:
        return

    def close(self) -> None:
        return


# ---------------------------------------------------------------------------------------------------------------------
# A worker


def worker_mib(options: BenchOptions, images: int) -> dict[str, Any]:
    """Resident memory of a supervisor and its child over many images, MiB: (early, late) medians, and the child's peak.

    Early is the second tenth of the images (the first one fills caches), late is the last tenth.
    """
    from ..units.attempt import UnitProgress, mine_unit
    from ..units.batches import RunSpec
    from ..units.supervisor import SupervisedMiner

    seen: dict[str, list[float]] = {"child": [], "supervisor": []}
    with bench_images(options, min(images, 72), width=IMAGE_SIZE[0], height=IMAGE_SIZE[1]) as (sources, folder):
        flags = MineFlags(input=sources, output=str(folder / "out"), samples_per_shard=64)
        opened = mine_options(flags)
        storage = open_storage(opened.flags.output, create=True)
        plan = frozen_plan(storage, opened)
        run = RunSpec(
            output=opened.flags.output,
            config=opened.config,
            sources=opened.sources,
            config_hash=plan.config_hash,
            environment=plan.environment,
            sample_timeout_s=600.0,
            memory_limit_bytes=16 * 2**30,
        )
        miner = SupervisedMiner(run)
        miner.start()

        def look(progress: UnitProgress) -> None:
            seen["supervisor"].append(psutil.Process().memory_info().rss / MIB)
            seen["child"].append(psutil.Process(miner.child_pid).memory_info().rss / MIB)

        try:
            turn = 0
            while len(seen["child"]) < images:
                for unit in plan.units(storage):
                    CommitWriter(storage).revoke({unit.unit})  # the same units again, as new ones
                    mine_unit(unit, run, storage, miner, on_progress=look)
                turn += 1
                gc.collect()
                note(f"worker: {len(seen['child'])} of {images} images, child {seen['child'][-1]:.0f} MiB")
        finally:
            miner.close()
    tenth = max(images // 10, 1)
    found: dict[str, Any] = {"images": images, "turns": turn, "child_peak": max(seen["child"])}
    for name, values in seen.items():
        early = statistics.median(values[tenth : 2 * tenth])
        found[name] = [round(early, 1), round(statistics.median(values[images - tenth : images]), 1)]
    return found


if __name__ == "__main__":
    sys.stdout.buffer.write(canonical_json(drive(Path(sys.argv[1]))))
