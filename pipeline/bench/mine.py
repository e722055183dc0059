"""`grainmill bench mine`: all of `grainmill mine` on photographs of 481 x 321, images per second and seconds per stage.

The real command in a process of its own, each time into a new output: what is counted is what `mine` itself counts,
from the moment the first worker is ready to the last commit. There is no peer that does the same work, so there is no
ratio; the bar is one image per second, and that writing (shards, index, syncing, commits) is under 2 % of the time.
"""

from __future__ import annotations

import collections
import contextlib
import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from ..console import note
from ..mining.flags import MineFlags
from ..mining.job import mine
from ..mining.options import mine_options
from .photographs import write_photographs
from .report import BenchOptions, BenchReport, environment

IMAGES: Final = 48
WORKERS: Final = 2
UNITS_PER_WORKER: Final = 2
LEAST_PER_SECOND: Final = 1.0
MOST_WRITING: Final = 0.02
STAGES: Final = ("read", "decode", "features", "divide", "conquer", "refine", "granularity", "write")


def run(options: BenchOptions) -> BenchReport:
    """Mines the photographs `repeats` times with the local executor, after one run that compiles and is not counted."""
    load = os.getloadavg()
    workers = options.workers or WORKERS
    with bench_images(options, IMAGES) as (sources, folder):
        results = []
        for number in range(options.repeats + 1):
            result = mined(sources, folder / f"out-{number}", executor="local", workers=workers, limit=options.limit)
            note(f"run {number} of {options.repeats}: {result['images_per_second']} images/s")
            results.append(result)
    counted = results[1:]
    speeds = [each["images_per_second"] for each in counted]
    images = counted[0]["samples"] + counted[0]["failures"]
    rows = stage_rows([each["seconds"] for each in counted], images)
    writing = next(row["share"] for row in rows if row["stage"] == "write")
    return BenchReport(
        name="mine",
        command=command_of("mine", options),
        ratio=None,
        rows=rows,
        checks={
            f"at least {LEAST_PER_SECOND:g} image/s with {workers} workers: {statistics.median(speeds):.2f}": (
                statistics.median(speeds) >= LEAST_PER_SECOND
            ),
            f"writing under {MOST_WRITING:.0%} of the time: {writing:.2%}": writing < MOST_WRITING,
            "the same digest every time": len({each["digest"] for each in results}) == 1,
        },
        details={
            "images": images,
            "workers": workers,
            "images_per_second": {"median": statistics.median(speeds), "all": speeds},
            "masks_per_image": counted[0]["masks_per_image"],
            "startup_s": statistics.median(each["startup_s"] for each in counted),
        },
        environment=environment(load),
    )


def stage_rows(seconds: Sequence[dict[str, float]], images: int) -> list[dict[str, Any]]:
    """Median over runs of a worker's seconds per image in each stage, and its share of their sum."""
    found: dict[str, list[float]] = collections.defaultdict(list)
    for each in seconds:
        for stage in each:
            found[stage].append(each[stage] / images)
    medians = {stage: statistics.median(values) for stage, values in found.items() if stage != "wall"}
    total_s = sum(medians.values())
    order = [stage for stage in STAGES if stage in medians] + sorted(set(medians) - set(STAGES))
    rows: list[dict[str, Any]] = [
        {"stage": stage, "s/image": medians[stage], "share": medians[stage] / total_s} for stage in order
    ]
    return [*rows, {"stage": "all", "s/image": total_s, "share": 1.0}]


@contextlib.contextmanager
def bench_images(
    options: BenchOptions, count: int, *, width: int = 481, height: int = 321
) -> Iterator[tuple[list[str], Path]]:
    """The bench's `--input` values and a folder for outputs, which goes at the end."""
    with tempfile.TemporaryDirectory(prefix="grainmill-bench-") as name:
        folder = Path(name)
        if options.input:
            yield options.input, folder
        else:
            number = min(count, options.limit or count)
            write_photographs(folder / "images", number, width=width, height=height)
            yield [f"photographs={folder / 'images'}"], folder


def mined(
    sources: list[str], output: Path, *, executor: str, workers: int, limit: int | None, units: int | None = None
) -> dict[str, Any]:
    """One run of `mine`; units are small enough that all workers end at about the same time."""
    from ..mining.job import dry_run

    flags = MineFlags(input=sources, output=str(output), executor=executor, workers=workers, limit=limit)
    samples = dry_run(mine_options(MineFlags(**{**vars(flags), "samples_per_shard": 1})))["units"]
    per_shard = max(-(-samples // (units or workers * UNITS_PER_WORKER)), 1)
    return mine(mine_options(MineFlags(**{**vars(flags), "samples_per_shard": per_shard})))


def command_of(name: str, options: BenchOptions) -> str:
    """What was typed, with the defaults that a reader should see."""
    words = [f"grainmill bench {name} --repeats {options.repeats}"]
    words += [f"--input {value}" for value in options.input or ()]
    words += [f"--workers {options.workers}"] if options.workers else []
    words += [f"--limit {options.limit}"] if options.limit else []
    return " ".join(words)
