"""Part and whole among the masks of one image, and the granularity that follows from it (benchmarks with no label g).

A mask is a part of another if at least 0.9 of it lies inside and its area is below 0.6 of the other's. The **root** of
a mask is the largest mask that contains it. A mask's label is `equation_3` under its root, A_min being the smallest
mask under that root; a root that has parts is 1.0; a mask with neither whole nor part has no label.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.format import rle as rle_codec
from pipeline.format.granularity import equation_3
from pipeline.format.rle import Rle
from pipeline.format.schema import CONTAINED_FRACTION

from .records import PartOf

MAX_AREA_RATIO: Final = 0.6
"""A mask of more than this share of another is a version of it rather than its part."""


def part_matrix(intersections: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[part, whole]: (N, N) bool, from pairwise intersections in pixels with the areas on the diagonal."""
    area = np.diagonal(intersections).astype(np.float64)
    inside = intersections >= CONTAINED_FRACTION * area[:, None]
    return inside & (area[:, None] < MAX_AREA_RATIO * area[None, :]) & (area[:, None] > 0)


def label_granularities(intersections: NDArray[np.int64]) -> tuple[list[float | None], list[PartOf]]:
    """Labels of all masks of an image, and all its pairs of part and whole.

    Args:
        intersections: (N, N) int64 pixels, areas on the diagonal.

    Returns:
        One label or None for each mask, and the pairs by ascending whole, then part. A pair's granularity is that of
        the part under the pair's own whole; the whole of a pair is taken as 1.0.
    """
    area = np.diagonal(intersections).astype(np.float64)
    parts = part_matrix(intersections)
    smallest_under = np.array([area[column].min() if column.any() else np.nan for column in parts.T], dtype=np.float64)
    labels: list[float | None] = []
    for mask in range(len(area)):
        wholes = np.flatnonzero(parts[mask])
        if wholes.size:
            root = int(wholes[np.argmax(area[wholes])])  # argmax: the lower index among equals
            labels.append(float(equation_3(area[mask], smallest_under[root], area[root])))
        else:
            labels.append(1.0 if parts[:, mask].any() else None)
    pairs = [
        PartOf(
            part=int(part),
            whole=int(whole),
            area_ratio=float(area[part] / area[whole]),
            granularity=float(equation_3(area[part], smallest_under[whole], area[whole])),
        )
        for whole, part in zip(*np.nonzero(parts.T), strict=True)
    ]
    return labels, pairs


def labels_of(masks: Sequence[Rle]) -> tuple[list[float | None], list[PartOf]]:
    """`label_granularities` of RLE masks of one image."""
    return label_granularities(rle_codec.pairwise_intersection_px(masks))
