"""The numbers of a release: what `stats` counts, from the index alone, without anything about machines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ..dataset.release import ReleaseReader
from ..dataset.stats import RunStatistics
from .charts import masks_per_image_histogram

MACHINE_FIELDS: Final = (
    "seconds", "seconds_share", "wall_seconds", "seconds_per_image", "images_per_second", "units",
)  # fmt: skip
"""Of `RunStatistics.to_json`; they stand in machines.json."""


def count_index(released: ReleaseReader) -> RunStatistics:
    """Counts every row of the index and of the failures."""
    counted = RunStatistics()
    for commit in released.commits():
        counted.add_samples(released.samples(commit))
        counted.add_masks(released.masks(commit))
        counted.failures_by_reason.update(commit.reasons)
    return counted


def statistics_json(counted: RunStatistics, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """`statistics.json`."""
    found = {name: value for name, value in counted.to_json().items() if name not in MACHINE_FIELDS}
    histogram = masks_per_image_histogram(counted.masks_per_image)
    return {**found, "masks_per_image_histogram": histogram, "digest": manifest["digest"]}
