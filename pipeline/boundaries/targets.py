"""What a boundary net learns: where the merge trees of one image have borders, at six depths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import cv2
import numba
import numpy as np
from numpy.typing import NDArray

from ..labeling.regions import MergeTree, RegionAdjacencyGraph
from ..labeling.stages.boundary_net import OUTPUTS, REGIONS_LEFT

POOLED: Final = 2
"""Pixels of the net's image on a side of one of the answer's."""


def border_targets(
    labels: NDArray[np.int32], graph: RegionAdjacencyGraph, trees: Sequence[MergeTree]
) -> NDArray[np.float32]:
    """(6, h, w) float32 in [0, 1]: for each pixel the greatest value of its four sides, 0 inside of a superpixel.

    A pixel side lies between two superpixels that some merge of a tree joins. The first five values are the share of
    trees in which at most 6, 16, 48, 150 and 500 regions were left at that merge; the sixth is 1 - exp(-height) of it
    in the first tree.

    Args:
        labels: (h, w), the superpixels.
        graph: of them.
        trees: of the graph; the first one's heights are learned.
    """
    count = len(graph)
    of_pair = np.zeros((OUTPUTS, len(graph.pairs)), dtype=np.float32)
    for tree in trees:
        joined = joining_nodes(tree.parent, graph.pairs)
        left = 2 * count - joined  # merge number joined - count, with count minus that number of regions before it
        for place, most in enumerate(REGIONS_LEFT):
            of_pair[place] += (left <= most) / np.float32(len(trees))
    of_pair[-1] = 1.0 - np.exp(-trees[0].height[joining_nodes(trees[0].parent, graph.pairs)])
    wide = labels.astype(np.int64)
    names = graph.pairs[:, 0] * count + graph.pairs[:, 1]
    found = np.zeros((OUTPUTS, *labels.shape), dtype=np.float32)
    before, after, all_of = slice(0, -1), slice(1, None), slice(None)
    for one, other in (((all_of, before), (all_of, after)), ((before, all_of), (after, all_of))):
        low, high = np.minimum(wide[one], wide[other]), np.maximum(wide[one], wide[other])
        border = low != high
        sides = np.zeros((OUTPUTS, *border.shape), dtype=np.float32)
        sides[:, border] = of_pair[:, np.searchsorted(names, (low * count + high)[border])]
        for end in (one, other):
            np.maximum(found[(all_of, *end)], sides, out=found[(all_of, *end)])
    return found


def pooled(targets: NDArray[np.float32], height: int, width: int) -> NDArray[np.uint8]:
    """Targets of an image's pixels at the size of the net's answer: (6, height, width) uint8, 255 for 1.

    They are brought to the size of the net's image, twice that, and of four pixels the greatest counts.
    """
    sized = np.stack(
        [cv2.resize(each, (POOLED * width, POOLED * height), interpolation=cv2.INTER_NEAREST) for each in targets]
    )
    greatest = sized.reshape(len(targets), height, POOLED, width, POOLED).max(axis=(2, 4))
    return np.rint(greatest * 255.0).astype(np.uint8)


@numba.njit(cache=True)
def joining_nodes(parent, pairs):  # type: ignore[no-untyped-def]
    """(E,) int64: the lowest node of a tree that holds both leaves of each pair. Parents have higher numbers."""
    found = np.empty(pairs.shape[0], dtype=np.int64)
    for pair in range(pairs.shape[0]):
        a, b = pairs[pair, 0], pairs[pair, 1]
        while a != b:
            if a < b:
                a = parent[a]
            else:
                b = parent[b]
        found[pair] = a
    return found
