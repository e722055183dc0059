"""`grainmill bench release`: what it costs to release a dataset of 10,000 shards.

The run is synthetic: small drawn images, real writer, commits and manifest. `grainmill release` then runs in a process
of its own, with and without the gallery, and its wall time and peak memory are what the operating system says. There is
no peer: nothing else makes such a release. What is promised is a bar on seconds and on memory.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from ..console import ProgressBar
from ..format import rle, schema
from ..labeling.config import MineConfig
from ..mining.manifest import write_manifest
from ..shards import plan as plans
from ..shards.commits import CommitWriter, make_commit
from ..shards.writer import ShardWriter
from ..sources.units import Entry, SourceSpec, UnitSpec
from ..storage.local import LocalStorage
from ..storage.open import open_storage
from .report import BenchOptions, BenchReport, environment

SHARDS: Final = 10_000
SAMPLES_PER_SHARD: Final = 4
MASKS: Final = 6
MAX_SECONDS: Final = 120.0
MAX_BYTES: Final = 2 * 2**30
WIDTH: Final = 64
HEIGHT: Final = 48


def run(options: BenchOptions) -> BenchReport:
    """Makes the run, releases it, and compares seconds and memory with the bars."""
    load = os.getloadavg()
    shards, workers = options.limit or SHARDS, options.workers or 2
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="grainmill-bench.") as folder:
        source = Path(folder) / "run"
        with unsynced():
            made_s = _make_run(source, shards, options.seed)
        for what, flags in (("metadata and shards", ["--gallery-images", "0"]), ("with the gallery", [])):
            output = Path(folder) / what.replace(" ", "-")
            command = ["release", str(source), "--output", str(output), "--name", "bench", "--version", "1.0.0"]
            command += ["--license", "CC0-1.0", "--workers", str(workers), "--json", *flags]
            rows.append({"release": what, **measured(command)})
        rows.append({"release": "verify of it", **measured(["verify", str(output), "--json"])})
    first = rows[0]
    checks = {
        f"the release in under {MAX_SECONDS:g} s": first["seconds"] < MAX_SECONDS,
        f"the release in under {MAX_BYTES // 2**30} GiB": first["peak_MiB"] * 2**20 < MAX_BYTES,
    }
    return BenchReport(
        name="release",
        command=f"grainmill bench release --limit {shards} --workers {workers} --seed {options.seed}",
        ratio=None,
        rows=rows,
        checks=checks,
        details={
            "shards": shards,
            "samples": shards * SAMPLES_PER_SHARD,
            "masks": shards * SAMPLES_PER_SHARD * MASKS,
            "image_px": [WIDTH, HEIGHT],
            "seconds_to_make_the_run": made_s,
        },
        environment=environment(load),
    )


def measured(arguments: Sequence[str]) -> dict[str, float]:
    """Seconds by the clock and of processors, and the largest process, of one command of ours."""
    started_s = time.perf_counter()
    process = os.posix_spawn(
        sys.executable,
        [sys.executable, "-m", "pipeline", *arguments],
        dict(os.environ),
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
    )
    _, status, usage = os.wait4(process, 0)
    seconds = time.perf_counter() - started_s
    assert os.waitstatus_to_exitcode(status) == 0, f"grainmill {' '.join(arguments)} failed"
    return {"seconds": seconds, "cpu_seconds": usage.ru_utime + usage.ru_stime, "peak_MiB": usage.ru_maxrss / 1024}


@contextmanager
def unsynced() -> Iterator[None]:
    """Files need not survive a power cut while the input of the bench is drawn."""
    real = os.fsync
    os.fsync = lambda fd: None
    try:
        yield
    finally:
        os.fsync = real


def _make_run(folder: Path, shards: int, seed: int) -> float:
    """A committed run of small drawn images; returns the seconds that took."""
    started_s = time.perf_counter()
    storage = open_storage(folder, create=True)
    assert isinstance(storage, LocalStorage)
    specs = (SourceSpec(label="drawn", location="/drawn", license="CC0-1.0"),)
    config = MineConfig(samples_per_shard=SAMPLES_PER_SHARD)
    units = (_unit(number) for number in range(shards))
    plan = plans.create_plan(storage, config, specs, environment={"python": sys.version.split()[0]}, units=units)
    log = CommitWriter(storage)
    masks = _masks()
    with ProgressBar("draw", shards, unit="shards") as progress:
        for unit in range(shards):
            with ShardWriter(storage, unit=unit, attempt="bench") as writer:
                for position in range(SAMPLES_PER_SHARD):
                    writer.add(*_sample(unit * SAMPLES_PER_SHARD + position, masks, seed))
                outputs = writer.finish()
                outputs.publish(storage)
            seconds = {"wall": 1.0}
            log.create(
                make_commit(
                    outputs, unit=unit, config_hash=plan.config_hash, seconds=seconds, environment={}, attempt="bench",
                    notes=[],
                )
            )  # fmt: skip
            progress.update(unit + 1)
    write_manifest(storage, plan)
    return time.perf_counter() - started_s


def _unit(number: int) -> UnitSpec:
    entries = tuple(
        Entry(path=f"{number}-{position}.png", raw=f"{number}-{position}.png", file_size=1, version="1")
        for position in range(SAMPLES_PER_SHARD)
    )
    return UnitSpec(unit=number, source=0, entries=entries)


def _masks() -> tuple[schema.Annotation, ...]:
    """One whole and its parts, each half as wide as the one before."""
    made = []
    for number in range(MASKS):
        mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
        width, height = WIDTH - 8 * number, HEIGHT - 6 * number
        mask[:height, :width] = True
        made.append(
            schema.Annotation(
                id=number, segmentation=rle.encode(mask), bbox=(0, 0, width, height), area=width * height,
                granularity=round(1.0 - 0.15 * number, 6), instance_id=0, parent_id=None if number == 0 else number - 1,
                level=None if number == 0 else number, origin="divide" if number == 0 else "conquer", score=None,
            )
        )  # fmt: skip
    return tuple(made)


def _sample(number: int, masks: tuple[schema.Annotation, ...], seed: int) -> tuple[schema.Sample, bytes]:
    """A drawn image unlike the others, and its record."""
    random = np.random.default_rng([seed, number])
    small = random.integers(0, 256, size=(6, 8, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(small).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR).save(sink, "JPEG", quality=60)
    image = sink.getvalue()
    sha256 = schema.sha256_of(image)
    path = f"{number}.jpg"
    key = schema.make_key(label="drawn", relative_path=path, member=None, occurrence=0, sha256=sha256)
    sample = schema.Sample(
        key=key, source_uri=f"drawn/{path}", member=None, source_sha256=sha256, license="CC0-1.0", width=WIDTH,
        height=HEIGHT, exif_orientation=1, file_name=f"{key}.jpg", annotations=masks,
    )  # fmt: skip
    return sample, image
