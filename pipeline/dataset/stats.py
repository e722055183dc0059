"""What a run holds, in numbers: masks per image, granularity, area and depth, failures, seconds per stage.

One `RunStatistics` counts, one index table at a time and in any order. Memory does not grow with the number of
samples: everything is a histogram.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import EMPTY_REASONS
from ..format.granularity import (
    GRANULARITIES,
    GRANULARITY_BINS,
    PUBLISHED_GRANULARITY_PERCENT,
    granularity_bins,
)
from ..format.records import ProfileRecord, RunStatisticsRecord
from ..format.schema import ORIGINS
from .reader import Dataset

IDLE: Final = "idle"
"""Not a stage: what of a worker's time no stage accounts for."""
GPU_STAGES: Final = frozenset({"features"})

AREA_EDGES: Final = (0.0, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
"""Borders of the area histogram, as shares of the image; each bin includes its upper border."""


@dataclass
class RunStatistics:
    """Counts over samples, masks and failures."""

    samples: int = 0
    masks: int = 0
    instances: int = 0
    units: int = 0
    failures_by_reason: Counter[str] = field(default_factory=Counter)
    masks_per_image: Counter[int] = field(default_factory=Counter)
    """Number of masks -> images with so many."""
    granularity: Counter[int] = field(default_factory=Counter)
    """Bin 0..8 -> masks."""
    area: Counter[int] = field(default_factory=Counter)
    """Bin of `AREA_EDGES` -> masks."""
    depth: Counter[int] = field(default_factory=Counter)
    """Steps below the instance -> masks; 0 for instances."""
    origins: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Stage -> seconds over all workers together."""
    wall_s: float = 0.0
    """Whole seconds of all units, reading and waiting among them."""
    megapixels: float = 0.0
    image_bytes: int = 0
    label_bytes: int = 0
    busiest_s: float = 0.0
    """Seconds of the side of each unit that could not have been shorter: see `busiest_side`."""

    def add_samples(self, table: pa.Table) -> None:
        """Counts rows of `schema.SAMPLES_SCHEMA`."""
        self.samples += table.num_rows
        self.masks_per_image.update(_column(table, "num_masks").tolist())
        self.instances += int(_column(table, "num_instances").sum())
        pixels = _column(table, "width").astype(np.int64) * _column(table, "height")
        self.megapixels += float(pixels.sum()) / 1e6
        self.image_bytes += int(pc.sum(table.column("image_size")).as_py() or 0)
        self.label_bytes += int(_column(table, "json_size").sum())

    def add_masks(self, table: pa.Table) -> None:
        """Counts rows of `schema.MASKS_SCHEMA`."""
        self.masks += table.num_rows
        self.granularity.update(granularity_bins(_column(table, "granularity")).tolist())
        self.area.update(area_bins(_column(table, "area_fraction")).tolist())
        self.depth.update(_column(table, "depth").tolist())
        self.origins.update(table.column("origin").to_pylist())

    def add_unit(self, *, seconds: Mapping[str, float], failures: Mapping[str, int], device: str = "cpu") -> None:
        """Counts one commit: its seconds per stage (`wall` is the whole unit's, no stage), its failures by reason."""
        self.units += 1
        self.busiest_s += busiest_side(seconds, device=device)
        self.failures_by_reason.update(failures)
        for stage, spent_s in seconds.items():
            if stage == "wall":
                self.wall_s += spent_s
            else:
                self.seconds[stage] += spent_s

    def profile(self) -> ProfileRecord | None:
        """What `grainmill plan --profile` reads: means of one image; None while nothing is mined."""
        if not self.samples or not self.total_seconds:
            return None
        stages = {stage: spent_s for stage, spent_s in sorted(self.seconds.items()) if stage != IDLE}
        return {
            "seconds_per_image": {stage: _ratio(spent_s, self.samples) for stage, spent_s in stages.items()},
            "image_bytes": _ratio(self.image_bytes, self.samples),
            "label_bytes": _ratio(self.label_bytes, self.samples),
            "masks_per_image": _ratio(self.masks, self.samples),
        }

    @property
    def failures(self) -> int:
        """Failed samples, the empty ones (`no_masks`) among them."""
        return self.failures_by_reason.total()

    @property
    def total_seconds(self) -> float:
        """Seconds of all stages and workers together."""
        return sum(self.seconds.values())

    def to_json(self) -> RunStatisticsRecord:
        """One object for `--json`, the report and the dataset card. `images_per_second` is that of one worker."""
        quantile = {name: _quantile(self.masks_per_image, share) for name, share in _QUANTILES.items()}
        total_s = self.total_seconds
        worker_s = self.wall_s or total_s
        return {
            "samples": self.samples,
            "masks": self.masks,
            "instances": self.instances,
            "units": self.units,
            "failures": self.failures,
            "failures_by_reason": dict(sorted(self.failures_by_reason.items())),
            "empty": sum(self.failures_by_reason[reason] for reason in EMPTY_REASONS),
            "masks_per_image": _ratio(self.masks, self.samples),
            "masks_per_image_quantiles": quantile,
            "instances_per_image": _ratio(self.instances, self.samples),
            "granularity_histogram": {
                "edges": list(GRANULARITIES),
                "counts": [self.granularity[index] for index in range(GRANULARITY_BINS)],
                "percent": _percent([self.granularity[index] for index in range(GRANULARITY_BINS)]),
                "published_percent": list(PUBLISHED_GRANULARITY_PERCENT),
            },
            "area_histogram": {
                "edges": list(AREA_EDGES),
                "counts": [self.area[index] for index in range(len(AREA_EDGES) - 1)],
                "percent": _percent([self.area[index] for index in range(len(AREA_EDGES) - 1)]),
            },
            "depth": {str(depth): count for depth, count in sorted(self.depth.items())},
            "origins": {origin: self.origins[origin] for origin in ORIGINS},
            "seconds": {stage: round(spent_s, 6) for stage, spent_s in sorted(self.seconds.items())},
            "seconds_share": {stage: _ratio(spent_s, total_s) for stage, spent_s in sorted(self.seconds.items())},
            "wall_seconds": round(self.wall_s, 6),
            "seconds_per_image": _ratio(total_s, self.samples),
            "images_per_second": _ratio(self.samples, worker_s),
            "ceiling_images_per_second": _ratio(self.samples, self.busiest_s),
            "ceiling_share": _ratio(min(self.busiest_s, worker_s), worker_s),
            "profile": self.profile(),
            "megapixels": round(self.megapixels, 6),
        }


_QUANTILES: Final = {"min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "max": 1.0}


def busiest_side(seconds: Mapping[str, float], *, device: str) -> float:
    """Seconds that a unit would take if a worker never waited: the measured ceiling.

    On a processor one thread does all stages one after the other, so it is their sum. On a GPU the rest runs beside
    its stages, so it is theirs alone: the ceiling is the backbone's own rate.
    """
    stages = {stage: spent_s for stage, spent_s in seconds.items() if stage not in (IDLE, "wall")}
    on_gpu = sum(spent_s for stage, spent_s in stages.items() if stage in GPU_STAGES)
    return on_gpu if device != "cpu" and on_gpu else sum(stages.values())


def area_bins(area_fraction: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Bin of `AREA_EDGES` of each share of the image."""
    inner = np.asarray(AREA_EDGES[1:-1])
    return np.searchsorted(inner, np.asarray(area_fraction, dtype=np.float64), side="left").astype(np.int64)


def collect(dataset: Dataset, *, on_unit: Callable[[int], None] | None = None) -> RunStatistics:
    """Counts a run or a release, one unit's index at a time.

    Args:
        dataset: complete or at work.
        on_unit: called with the number of units counted so far.
    """
    statistics = RunStatistics()
    for number, unit in enumerate(dataset.units(), start=1):
        device = "cpu" if unit.commit is None else unit.commit.device
        statistics.add_unit(seconds=unit.seconds, failures=unit.reasons, device=device)
        statistics.add_samples(dataset.samples(unit))
        statistics.add_masks(dataset.masks(unit))
        if on_unit is not None:
            on_unit(number)
    return statistics


def _column(table: pa.Table, name: str) -> np.ndarray[Any, np.dtype[Any]]:
    values: np.ndarray[Any, np.dtype[Any]] = table.column(name).to_numpy()
    return values


def _ratio(value: float, by: float) -> float | None:
    return round(value / by, 6) if by else None


def _percent(counts: Sequence[int]) -> list[float]:
    total = sum(counts)
    return [round(100.0 * count / total, 4) if total else 0.0 for count in counts]


def _quantile(counts: Counter[int], share: float) -> int | None:
    """The smallest value that at least this share of the images does not exceed."""
    total = counts.total()
    if not total:
        return None
    reached = 0
    for value, count in sorted(counts.items()):
        reached += count
        if reached >= share * total and reached > 0:
            return value
    return max(counts)
