"""The plain definition of merging patches, for comparison: a scan of all edges for each merge, one product at a time.

Nothing is clever here on purpose: this is what `stages/merge_patches.py` must equal, and what it is measured against.
With `remember`, similarities are kept between scans, as the reference does; that is the same merging, with less waste.
Sums are single precision and products double, as in the stage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Pair = tuple[int, int]


def plain_label_grids(
    features: NDArray[np.floating], thresholds: Sequence[float], *, remember: bool
) -> NDArray[np.int32]:
    """The partition at each threshold: (T, h, w) int32, a cluster's label being its lowest patch.

    Args:
        features: (h, w, d).
        thresholds: descending.
        remember: keep an edge's similarity until one of its ends changes, instead of computing it for every scan.
    """
    height, width, depth = features.shape
    sums = dict(enumerate(np.asarray(features, dtype=np.float32).reshape(-1, depth)))
    rows = {patch: row.astype(np.float64) for patch, row in sums.items()}
    square = {patch: float(row @ row) for patch, row in rows.items()}
    labels = np.arange(height * width, dtype=np.int32)
    neighbours: dict[int, set[int]] = {patch: set() for patch in sums}
    known: dict[Pair, float | None] = {}

    def connect(a: int, b: int) -> None:
        known[min(a, b), max(a, b)] = None
        neighbours[a].add(b)
        neighbours[b].add(a)

    def most_similar() -> tuple[Pair, float]:
        """The best pair, the lower one among equals."""
        best, highest = (-1, -1), -math.inf
        for pair, value in known.items():
            if value is None:
                a, b = pair
                scale = math.sqrt(square[a] * square[b])
                value = float(rows[a] @ rows[b]) / scale if scale > 0 else 0.0
                if remember:
                    known[pair] = value
            if value > highest or (value == highest and pair < best):
                best, highest = pair, value
        return best, highest

    for patch in range(height * width):
        if patch % width < width - 1:
            connect(patch, patch + 1)
        if patch + width < height * width:
            connect(patch, patch + width)
    grids = []
    for threshold in thresholds:
        while True:
            (kept, gone), similarity = most_similar()
            if similarity < threshold:
                break
            sums[kept] = sums[kept] + sums.pop(gone)
            rows[kept] = sums[kept].astype(np.float64)
            square[kept] = float(rows[kept] @ rows[kept])
            for other in neighbours.pop(gone):
                del known[min(gone, other), max(gone, other)]
                neighbours[other].remove(gone)
                if other != kept:
                    neighbours[kept].add(other)
            for other in list(neighbours[kept]):
                connect(kept, other)
            labels[labels == gone] = kept
        grids.append(labels.reshape(height, width).copy())
    return np.stack(grids)
