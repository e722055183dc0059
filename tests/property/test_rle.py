"""RLE round trips on any mask, and no string crashes the parser."""

from __future__ import annotations

import contextlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from pipeline.errors import SchemaError
from pipeline.format import rle

masks = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=40))


@given(masks)
def test_round_trip(mask: np.ndarray) -> None:
    encoded = rle.encode(mask)
    runs = rle.run_lengths_of(encoded)
    assert np.array_equal(rle.decode(encoded), mask)
    assert rle.from_run_lengths(runs, *mask.shape) == encoded
    assert rle.area_px(runs) == mask.sum()
    rows, columns = np.nonzero(mask)
    box = (0, 0, 0, 0)
    if rows.size:
        box = (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)
    assert rle.bbox_xywh(runs, mask.shape[0]) == box


@given(st.text(max_size=30), st.integers(1, 50), st.integers(1, 50))
def test_any_string_is_refused_or_decodes_to_its_size(counts: str, height: int, width: int) -> None:
    with contextlib.suppress(SchemaError):
        assert rle.decode({"size": [height, width], "counts": counts}).shape == (height, width)
