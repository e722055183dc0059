"""What scoring hands back and how it is written: `scores.json`, `objects.parquet`, the printed tables.

The numbers of `scores.json` come from the rows of `objects.parquet` and the values per image beside them, so that any
number and any interval can be taken again from the files.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import Final, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import __version__
from pipeline.bench.report import environment, table
from pipeline.errors import ConfigMismatchError, InputError
from pipeline.format.records import MetricRecord
from pipeline.format.schema import load_json

from .benchmarks.records import Benchmark, Split
from .score_records import Details, Published, Row, Scores, Settings

SCORES: Final = "scores.json"
OBJECTS: Final = "objects.parquet"
SETTINGS: Final = "settings.json"
"""What an interrupted run was asked for; the same command goes on, another is refused."""


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """Flags of `grainmill score`, checked; `options.score_options` makes it."""

    benchmark: Benchmark
    data: Path | str
    """As downloaded; a URL where the benchmark can be read from one."""
    split: str
    output: Path
    masks: str | None
    """Directory or URL of mined shards."""
    checkpoint: str | None
    base: str | None
    """Weights of the base, for an adapter's checkpoint."""
    device: str | None
    granularity: tuple[str, ...]
    annotators: bool = False
    """Simulated annotators, in the place of the benchmark's own protocol."""
    objects_per_image: int | None
    """At most so many objects of an image get clicks."""
    points_per_side: int
    """Of a model's whole-image grid of clicks."""
    pred_iou_threshold: float
    stability_threshold: float
    """Below which a model's whole-image masks go."""
    peers: tuple[str, ...]
    limit: int | None
    """The first N images (or videos) of the split."""
    seed: int
    workers: int
    command: str
    """As typed, for the record."""

    def settings(self) -> Settings:
        """What changes a number."""
        names = [field.name for field in fields(self) if field.name not in ("output", "device", "workers", "command")]
        settings = {
            **{name: getattr(self, name) for name in names},
            "benchmark": self.benchmark.name,
            "data": str(self.data),
            "granularity": list(self.granularity),
            "peers": list(self.peers),
            "grainmill": __version__,
        }
        if not self.annotators:
            del settings["annotators"]
        return cast(Settings, settings)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number with its 95 % bootstrap interval over images; None where it is not defined (nothing to count)."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def to_json(self) -> MetricRecord:
        return {"value": self.value, "low": self.low, "high": self.high}

    def __str__(self) -> str:
        if self.value is None:
            return "n/a"
        if self.low is None or self.high is None:
            return f"{self.value:.4g}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What a protocol measured.

    Attributes:
        metrics: name -> number.
        rows: one for each object (and subject): the columns of `objects.parquet`.
        tables: title -> rows for people, one mapping of column -> cell each.
        counts: of the data: images, objects, crowds.
        left_out: what was seen of the data and is in no number, reason -> how many.
        details: anything else for `scores.json`: histograms, the protocol, identities of masks or weights.
        curves: what is drawn, see `plots.py`; also in `scores.json`.
        notes: lines for people.
    """

    metrics: Mapping[str, Metric]
    rows: Sequence[Row]
    tables: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    details: Details = field(default_factory=Details)
    curves: Mapping[str, Mapping[str, list[float]]] = field(default_factory=dict)
    notes: Sequence[str] = ()


def limited(split: Split, limit: int | None) -> Split:
    """The first images and videos of a split."""
    images, videos = split.images[:limit], split.videos[:limit]
    beyond = len(split.images) - len(images) + len(split.videos) - len(videos)
    left_out = {**split.left_out, "images beyond --limit": beyond} if beyond else split.left_out
    return Split(images=images, videos=videos, notes=split.notes, left_out=left_out)


def summed(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Counts by reason, added up."""
    found: Counter[str] = Counter()
    for each in counts:
        found.update(each)
    return dict(found)


def told_left_out(left_out: Mapping[str, int]) -> str:
    """One line for people."""
    return "left out: " + "; ".join(f"{count:,} {reason}" for reason, count in left_out.items())


def nothing_to_score(images: int, left_out: Mapping[str, int]) -> InputError:
    """The error of a score without a single object: every number would be 0 or missing."""
    told = f" ({told_left_out(left_out)})" if left_out else ""
    return InputError(
        f"there is no annotated object in the {images} images, nothing to score{told}; look at --data and --split"
    )


def claim_output(options: ScoreOptions, **identities: str) -> None:
    """Makes the output folder and notes there what is asked for, or checks that an earlier run asked for the same.

    Args:
        options: the flags.
        identities: digests of what is scored (masks, weights), so that it cannot change between two runs.

    Raises:
        ConfigMismatchError: other settings lie there.
        InputError: the folder holds something else.
    """
    wanted = {**options.settings(), **identities}
    path = options.output / SETTINGS
    if path.is_file():
        found = load_json(path.read_bytes(), where=str(path))
        different = [
            f"{name}: {found.get(name)!r} there, {wanted.get(name)!r} asked"
            for name in sorted({*found, *wanted})
            if found.get(name) != wanted.get(name)
        ]
        if different:
            raise ConfigMismatchError(
                f"{options.output}: holds scores of other settings ({'; '.join(different)}); choose another --output"
            )
        return
    if options.output.exists() and (not options.output.is_dir() or any(options.output.iterdir())):
        raise InputError(f"{options.output}: expected an empty folder or scores of ours; choose another --output")
    options.output.mkdir(parents=True, exist_ok=True)
    write_json(path, wanted)


def write_scores(options: ScoreOptions, scored: Scored, published: Published | None) -> Scores:
    """Writes `scores.json` and `objects.parquet`, and returns what `scores.json` holds."""
    record: Scores = {
        "benchmark": options.benchmark.name,
        "split": options.split,
        "metrics": {name: metric.to_json() for name, metric in scored.metrics.items()},
        "dataset": {"title": options.benchmark.title, "licence": options.benchmark.licence, **scored.counts},
        "left_out": dict(scored.left_out),
        "command": options.command,
        "configuration": {**options.settings(), "workers": options.workers},
        "seeds": {"bootstrap": options.seed, "sampling": options.seed},
        "versions": versions(),
        "published": published,
        "details": scored.details,
        "curves": {name: dict(curve) for name, curve in scored.curves.items()},
        "notes": list(scored.notes),
    }
    write_objects(options.output / OBJECTS, scored.rows)
    record = cast(Scores, finite(record))
    write_json(options.output / SCORES, record)
    return record


def write_objects(path: Path, rows: Sequence[Row]) -> None:
    """The per-object rows as parquet, atomically; columns are those of all rows, absent cells null."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    data = pa.table({name: [row.get(name) for row in rows] for name in columns})
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(data, temporary)
    os.replace(temporary, path)


def write_json(path: Path, value: object, *, sort: bool = True, indent: int | None = 2) -> None:
    """Two spaces (None: one line, much faster), no NaN; keys sorted unless their order means something. Atomic."""
    import json

    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(
        json.dumps(value, indent=indent, sort_keys=sort, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    os.replace(temporary, path)


def finite(value: object) -> object:
    """The same JSON value with None for NaN and infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return value


def versions() -> dict[str, object]:
    """Of this program, of Python and of the packages that a number can depend on; cores and load."""
    found = environment()
    for package in ("faster-coco-eval", "scikit-image", "sam2"):
        try:
            found["packages"][package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found["packages"][package] = "absent"
    return {"grainmill": __version__, **found}


def scores_text(record: Scores, scored: Scored) -> str:
    """What is printed: the tables, the published numbers beside them, the notes."""
    lines = [f"{record['benchmark']} {record['split']}: " + ", ".join(f"{v} {k}" for k, v in scored.counts.items())]
    lines += [told_left_out(scored.left_out)] if scored.left_out else []
    for title, rows in scored.tables.items():
        lines += ["", title, *table(rows)]
    if published := record["published"]:
        lines += ["", f"published, not measured here: {published['about']}", *table(published["rows"])]
    lines += ["", *scored.notes] if scored.notes else []
    return "\n".join(lines)
