"""Counts add up, whatever the order; bins take their borders on the stated side."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipeline.dataset.stats import AREA_EDGES, RunStatistics, area_bins
from pipeline.format import schema
from pipeline.format.granularity import granularity_bins


def samples_table(masks: list[int]) -> pa.Table:
    rows = [
        {
            **dict.fromkeys(schema.SAMPLES_SCHEMA.names),
            "key": f"k{number}", "shard": "s", "json_offset": 0, "json_size": 1, "json_sha256": "0", "width": 1000,
            "height": 500, "exif_orientation": 1, "num_masks": count, "num_instances": 1, "source_uri": "u",
            "source_sha256": "0",
        }
        for number, count in enumerate(masks)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=schema.SAMPLES_SCHEMA)


def masks_table(rows: list[tuple[float, float, int, str]]) -> pa.Table:
    fields = dict.fromkeys(schema.MASKS_SCHEMA.names, 0)
    listed = [
        {**fields, "key": "k", "area_fraction": area, "granularity": g, "depth": depth, "origin": origin}
        for g, area, depth, origin in rows
    ]
    return pa.Table.from_pylist(listed, schema=schema.MASKS_SCHEMA)


def counted(masks: list[int], rows: list[tuple[float, float, int, str]]) -> RunStatistics:
    statistics = RunStatistics()
    statistics.add_samples(samples_table(masks))
    statistics.add_masks(masks_table(rows))
    statistics.add_unit(seconds={"read": 1.0, "conquer": 3.0, "wall": 5.0}, failures={"truncated": 1})
    return statistics


def test_granularity_bins_include_their_lower_border_and_the_last_both() -> None:
    g = np.array([0.1, 0.199999, 0.2, 0.3, 0.6, 0.7, 0.899999, 0.9, 1.0])
    assert granularity_bins(g).tolist() == [0, 0, 1, 2, 5, 6, 7, 8, 8]


def test_area_bins_include_their_upper_border() -> None:
    assert area_bins(np.array([1e-9, 1e-4, 1.1e-4, 0.3, 0.31, 1.0])).tolist() == [0, 0, 1, 7, 8, 8]
    assert len(AREA_EDGES) == 10


def test_numbers_of_a_small_run() -> None:
    rows = [(1.0, 0.5, 0, "divide"), (0.1, 0.01, 1, "conquer"), (0.15, 0.002, 2, "conquer")]
    result = counted([3, 1, 8], rows).to_json()
    assert (result["samples"], result["masks"], result["instances"], result["failures"]) == (3, 3, 3, 1)
    assert result["masks_per_image"] == 1.0
    assert result["masks_per_image_quantiles"] == {"min": 1, "p10": 1, "median": 3, "p90": 8, "max": 8}
    assert result["granularity_histogram"]["counts"] == [2, 0, 0, 0, 0, 0, 0, 0, 1]
    assert sum(result["granularity_histogram"]["percent"]) == pytest.approx(100, abs=0.01)
    assert result["granularity_histogram"]["published_percent"][0] == 59.8
    assert sum(result["area_histogram"]["counts"]) == 3
    assert result["depth"] == {"0": 1, "1": 1, "2": 1}
    assert result["origins"] == {"annotation": 0, "proposal": 0, "divide": 1, "remainder": 0, "conquer": 2}
    assert result["seconds_share"] == {"read": 0.25, "conquer": 0.75}
    assert result["images_per_second"] == 0.6
    assert result["megapixels"] == 1.5


def test_an_empty_run_has_no_ratios() -> None:
    result = RunStatistics().to_json()
    assert result["masks_per_image"] is None
    assert result["images_per_second"] is None
    assert result["masks_per_image_quantiles"]["median"] is None
