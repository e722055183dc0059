"""`grainmill bench executors`: Ray's actors against local processes, equal workers, equal units, equal images.

Both run the same worker code; what is compared is what they cost around it. The images are small, so that a sample
takes just over 50 milliseconds and overhead would show. Throughput is counted from the first ready worker to the last
commit; what it takes to start each is in a column of its own.
"""

from __future__ import annotations

import os
import statistics
from typing import Any, Final

from ..console import note
from .mine import bench_images, command_of, mined
from .report import BenchOptions, BenchReport, environment

IMAGES: Final = 72
SIZE: Final = (208, 139)
"""Pixels: a sample of them takes a little over 50 ms on one core."""
UNITS: Final = 12
LEAST_RATIO: Final = 0.95
LEAST_SAMPLE_S: Final = 0.05
SIDES: Final = ("ray", "local")


def run(options: BenchOptions) -> BenchReport:
    """Mines the same images with each executor in turn, `repeats` times, after one turn that is not counted."""
    load = os.getloadavg()
    workers = options.workers or min(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)
    results: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with bench_images(options, IMAGES, width=SIZE[0], height=SIZE[1]) as (sources, folder):
        for number in range(options.repeats + 1):
            for side in SIDES if number % 2 else reversed(SIDES):
                output = folder / f"{side}-{number}"
                result = mined(
                    sources, output, executor=side, workers=workers, limit=options.limit, units=max(UNITS, workers)
                )
                note(f"run {number} of {options.repeats}, {side}: {result['images_per_second']} images/s")
                results[side].append(result)
    counted = {side: results[side][1:] for side in SIDES}
    medians = {side: statistics.median(each["images_per_second"] for each in counted[side]) for side in SIDES}
    images = counted["local"][0]["samples"] + counted["local"][0]["failures"]
    sample_s = {side: statistics.median(busy_s(each) / images for each in counted[side]) for side in SIDES}
    pairs = [
        ray["images_per_second"] / local["images_per_second"]
        for ray, local in zip(counted["ray"], counted["local"], strict=True)
    ]
    rows = [
        {
            "executor": side,
            "images/s": medians[side],
            "lowest": min(each["images_per_second"] for each in counted[side]),
            "highest": max(each["images_per_second"] for each in counted[side]),
            "s/sample": sample_s[side],
            "start-up s": statistics.median(each["startup_s"] for each in counted[side]),
        }
        for side in SIDES
    ]
    digests = {each["digest"] for side in SIDES for each in results[side]}
    return BenchReport(
        name="executors",
        command=command_of("executors", options),
        ratio=medians["ray"] / medians["local"],
        bar=LEAST_RATIO,
        rows=rows,
        checks={
            f"a sample takes at least {LEAST_SAMPLE_S * 1e3:g} ms": sample_s["local"] >= LEAST_SAMPLE_S,
            "the same digest from both, every time": len(digests) == 1,
        },
        details={"images": images, "workers": workers, "size": list(SIZE), "ratio_of_each_pair": pairs},
        environment=environment(load),
    )


def busy_s(result: dict[str, Any]) -> float:
    """Seconds that workers spent on samples and shards in one run."""
    return float(sum(spent_s for stage, spent_s in result["seconds"].items() if stage != "wall"))
