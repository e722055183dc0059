"""Polygons of masks, filled by pycocotools: the same pixels, whatever the mask."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from scipy import ndimage

from pipeline.format.polygons import polygons_of

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@settings(deadline=None, max_examples=300)
@given(st.integers(1, 24), st.integers(1, 24), st.sampled_from([0.05, 0.3, 0.6, 0.8, 0.97]), st.integers(0, 2**31))
def test_polygons_fill_to_the_mask(height: int, width: int, share: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    mask = random.random((height, width)) < share
    if seed % 2:  # smooth shapes besides noise
        mask = ndimage.gaussian_filter(random.standard_normal((height, width)), 1.5) > 0
    polygons = polygons_of(mask)
    assert len(polygons) == ndimage.label(mask)[1]
    if polygons:
        filled = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))
        np.testing.assert_array_equal(filled.astype(bool), mask)
    corners = [np.array(each).reshape(-1, 2) for each in polygons]
    area = sum(float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2 for x, y in (each.T for each in corners))
    assert area == mask.sum()  # slits enclose nothing, holes are left out


def test_known_polygons() -> None:
    assert polygons_of(np.zeros((3, 4), dtype=bool)) == []
    assert polygons_of(np.ones((2, 3), dtype=bool)) == [[0, 0, 3, 0, 3, 2, 0, 2]]
    assert polygons_of(np.eye(2, dtype=bool)) == [[0, 0, 1, 0, 1, 1, 0, 1], [1, 1, 2, 1, 2, 2, 1, 2]]
    ring = np.ones((3, 3), dtype=bool)
    ring[1, 1] = False
    (walk,) = polygons_of(ring)
    corners = list(zip(walk[::2], walk[1::2], strict=True))
    assert set(corners) == {(0, 0), (3, 0), (3, 3), (0, 3), (1, 1), (2, 1), (2, 2), (1, 2)}
    assert len(corners) == 4 + 5 + 1  # the border, the hole and back to its first corner, back to the border
