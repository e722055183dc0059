"""The region adjacency graph whose merging makes the trees: superpixels, common boundaries, sums that add up.

For each pair of neighbouring pixels that belong to two superpixels, the local direction of their common boundary is
taken from the boundary points of the *same pair of superpixels* within five pixels; the boundary maps are read at that
orientation. What is kept of a pair are sums and a length, so that every merge updates them exactly.
"""

from __future__ import annotations

from typing import Final

import numba
import numpy as np
from numpy.typing import NDArray

from ..atoms import Atoms
from ..regions import RegionAdjacencyGraph

NORMAL_RADIUS_PX: Final = 5.0


def build_graph(
    superpixels: Atoms,
    edge: NDArray[np.float32],
    edge_texture: NDArray[np.float32],
    histograms: NDArray[np.float64],
    channels: NDArray[np.int64],
    features: NDArray[np.float64] | None = None,
    boundary: NDArray[np.float32] | None = None,
) -> RegionAdjacencyGraph:
    """Builds the graph of an over-segmentation.

    Args:
        superpixels: the over-segmentation, (h, w).
        edge: (8, h, w) boundary strength by orientation, all cues but textons.
        edge_texture: (8, h, w), the texton cue.
        histograms: (L, B) sums.
        channels: (B,) weight index of each bin.
        features: (L, D) sums or None.
        boundary: (h, w) probability of a boundary net, which knows no orientation, or None.
    """
    first, second, y, x, vertical = _cracks(superpixels.labels)
    order = np.argsort(first * len(superpixels) + second, kind="stable")
    first, second, y, x, vertical = first[order], second[order], y[order], x[order], vertical[order]
    new = np.ones(first.size, dtype=np.bool_)
    if first.size:
        new[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    starts = np.append(np.flatnonzero(new), first.size).astype(np.int64)
    sums, texture_sums = _boundary_sums(starts, y, x, vertical, edge, edge_texture, NORMAL_RADIUS_PX)
    boundary_sums = np.zeros(starts.size - 1)
    if boundary is not None and first.size:
        sides = 0.5 * (boundary[y, x].astype(np.float64) + boundary[y + vertical, x + 1 - vertical])
        boundary_sums = np.add.reduceat(sides, starts[:-1])
    heads = starts[:-1]
    return RegionAdjacencyGraph(
        area_px=np.bincount(superpixels.labels.ravel(), minlength=len(superpixels)).astype(np.float64),
        histograms=histograms,
        channels=channels,
        pairs=np.stack([first[heads], second[heads]], axis=1).astype(np.int64),
        edge_sum=sums,
        edge_texture_sum=texture_sums,
        boundary_sum=boundary_sums,
        length_px=np.diff(starts).astype(np.float64),
        features=np.zeros((len(superpixels), 0)) if features is None else features,
    )


def _cracks(labels: NDArray[np.int32]) -> tuple[NDArray[np.int64], ...]:
    """Pixel sides between two superpixels: lower and higher, row and column of the upper or left pixel, direction.

    In the order of direction, row and column.
    """
    parts = []
    for vertical, a, b in ((0, labels[:, :-1], labels[:, 1:]), (1, labels[:-1], labels[1:])):
        y, x = np.nonzero(a != b)
        left, right = a[y, x].astype(np.int64), b[y, x].astype(np.int64)
        parts.append((np.minimum(left, right), np.maximum(left, right), y, x, np.full(y.size, vertical)))
    return tuple(np.concatenate(columns).astype(np.int64) for columns in zip(*parts, strict=True))


@numba.njit(cache=True)
def _boundary_sums(starts, rows, columns, vertical, edge, edge_texture, radius):  # type: ignore[no-untyped-def]
    pairs = starts.size - 1
    orientations = edge.shape[0]
    sums, texture_sums = np.zeros(pairs), np.zeros(pairs)
    for pair in range(pairs):
        begin, end = starts[pair], starts[pair + 1]
        for i in range(begin, end):
            y = rows[i] + 0.5 * vertical[i]
            x = columns[i] + 0.5 * (1 - vertical[i])
            count, sy, sx, syy, sxx, sxy = 0, 0.0, 0.0, 0.0, 0.0, 0.0
            for j in range(begin, end):
                dy = rows[j] + 0.5 * vertical[j] - y
                dx = columns[j] + 0.5 * (1 - vertical[j]) - x
                if dy * dy + dx * dx <= radius * radius:
                    count += 1
                    sy += dy
                    sx += dx
                    syy += dy * dy
                    sxx += dx * dx
                    sxy += dy * dx
            if count < 3:
                angle = 0.5 * np.pi * vertical[i]
            else:
                cxx, cyy = sxx - sx * sx / count, syy - sy * sy / count
                cxy = sxy - sx * sy / count
                angle = 0.5 * np.arctan2(2.0 * cxy, cxx - cyy) + 0.5 * np.pi
            o = int(np.rint(angle / np.pi * orientations)) % orientations
            y1, x1 = rows[i], columns[i]
            y2, x2 = y1 + vertical[i], x1 + 1 - vertical[i]
            sums[pair] += 0.5 * (edge[o, y1, x1] + edge[o, y2, x2])
            texture_sums[pair] += 0.5 * (edge_texture[o, y1, x1] + edge_texture[o, y2, x2])
    return sums, texture_sums
