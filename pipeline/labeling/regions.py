"""Records between the stages: the region adjacency graph, whose sums add up, and the tree that merging it makes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numba
import numpy as np
from numpy.typing import NDArray

Rgb = NDArray[np.uint8]
"""(H, W, 3), upright."""
PatchGrid = NDArray[np.float32]
"""(h, w, d), features of patches, rows from the top."""


@dataclass(frozen=True)
class FeatureMaps:
    """What a backbone says of one image: maps of the whole of it, finest first.

    Attributes:
        grids: each (h, w, d) float32; sizes and depths differ.
        strides: of each, in pixels of the network's input, which may be larger than the image.
    """

    grids: tuple[PatchGrid, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class RegionAdjacencyGraph:
    """L superpixels and E pairs of neighbours. Everything is a sum, so that a merged region has the sums of its parts.

    Attributes:
        area_px: (L,) float64, pixels at the size of the features.
        histograms: (L, B) float64, sums; a region's histogram is divided by its area when it is compared.
        channels: (B,) int64, which of the cost's histogram weights applies to each bin.
        pairs: (E, 2) int64, superpixel indices, the lower one first, ascending.
        edge_sum: (E,) float64, boundary strength summed over the common boundary, all cues but textons.
        edge_texture_sum: (E,) float64, the texton cue.
        boundary_sum: (E,) float64, the boundary net's probability; zeros without one.
        length_px: (E,) float64, length of the common boundary in pixel sides.
        features: (L, D) float64, backbone features summed over each superpixel; (L, 0) with the descriptor alone.
    """

    area_px: NDArray[np.float64]
    histograms: NDArray[np.float64]
    channels: NDArray[np.int64]
    pairs: NDArray[np.int64]
    edge_sum: NDArray[np.float64]
    edge_texture_sum: NDArray[np.float64]
    boundary_sum: NDArray[np.float64]
    length_px: NDArray[np.float64]
    features: NDArray[np.float64]

    def __len__(self) -> int:
        return int(self.area_px.size)


@dataclass(frozen=True)
class MergeTree:
    """What greedy merging made of L leaves: nodes 0..L-1 are the leaves, L+i is what merge i made.

    Attributes:
        leaves: L.
        children: (M, 2) int64, the two nodes of each merge.
        cost: (M,) float64, at which it was made; not always ascending.
    """

    leaves: int
    children: NDArray[np.int64]
    cost: NDArray[np.float64]

    def __len__(self) -> int:
        return self.leaves + len(self.children)

    @cached_property
    def parent(self) -> NDArray[np.int64]:
        """(nodes,) int64; -1 for a root."""
        parent = np.full(len(self), -1, dtype=np.int64)
        merged = np.arange(len(self.children)) + self.leaves
        parent[self.children[:, 0]] = merged
        parent[self.children[:, 1]] = merged
        return parent

    @cached_property
    def _span(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Leaves in an order in which each node's leaves stand together, and each node's first place and count."""
        first, count = _places(self.children, self.parent, self.leaves)
        order = np.empty(self.leaves, dtype=np.int64)
        order[first[: self.leaves]] = np.arange(self.leaves)
        return order, first, count

    def members(self, nodes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Leaves of some nodes: (N, L) bool."""
        order, first, count = self._span
        place = np.empty(self.leaves, dtype=np.int64)
        place[order] = np.arange(self.leaves)
        start = first[nodes][:, None]
        return (place[None, :] >= start) & (place[None, :] < start + count[nodes][:, None])

    def sums(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums of a leaf quantity (L,) over every node: (nodes,)."""
        totals = np.zeros(len(self), dtype=np.float64)
        totals[: self.leaves] = values
        _add_up(self.children, totals, self.leaves)
        return totals

    @cached_property
    def rank(self) -> NDArray[np.int64]:
        """(nodes,) int64: when a node is absorbed, the last absorbed first; roots come before all others.

        A region that survives longest comes first (our own measurement: 0.03 of AR1000 better than by birth).
        """
        absorbed = np.where(self.parent < 0, len(self), self.parent)
        order = np.lexsort((np.arange(len(self)), -absorbed))
        rank = np.empty(len(self), dtype=np.int64)
        rank[order] = np.arange(len(self))
        return rank

    @cached_property
    def height(self) -> NDArray[np.float64]:
        """(nodes,) float64, made monotone: the highest cost at or below a node; 0 for leaves."""
        height = np.zeros(len(self), dtype=np.float64)
        _raise_up(self.children, self.cost, height, self.leaves)
        return height

    @cached_property
    def level(self) -> NDArray[np.int64]:
        """(nodes,) int64: how often the number of regions had halved when the node appeared; 0 for leaves."""
        made = np.maximum(np.arange(len(self)) - self.leaves + 1, 0)
        return np.floor(np.log2(self.leaves / (self.leaves - made).clip(1))).astype(np.int64)


@numba.njit(cache=True)
def _places(children, parent, leaves):  # type: ignore[no-untyped-def]
    """Each node's first place and count, see `MergeTree._span`."""
    count = np.ones(parent.size, dtype=np.int64)
    for merge in range(children.shape[0]):
        count[leaves + merge] = count[children[merge, 0]] + count[children[merge, 1]]
    first = np.zeros(parent.size, dtype=np.int64)
    place = 0
    for node in range(parent.size - 1, -1, -1):
        if parent[node] < 0:
            first[node] = place
            place += count[node]
    for merge in range(children.shape[0] - 1, -1, -1):
        left, right = children[merge, 0], children[merge, 1]
        first[left] = first[leaves + merge]
        first[right] = first[left] + count[left]
    return first, count


@numba.njit(cache=True)
def _add_up(children, totals, leaves):  # type: ignore[no-untyped-def]
    """Fills in the merged nodes' sums."""
    for merge in range(children.shape[0]):
        totals[leaves + merge] = totals[children[merge, 0]] + totals[children[merge, 1]]


@numba.njit(cache=True)
def _raise_up(children, cost, height, leaves):  # type: ignore[no-untyped-def]
    """Fills in the merged nodes' heights."""
    for merge in range(children.shape[0]):
        height[leaves + merge] = max(cost[merge], height[children[merge, 0]], height[children[merge, 1]])
