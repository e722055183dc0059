"""Candidates of an image: nodes of several merge trees and unions of neighbours, pooled in one order.

Different merge costs over the same superpixels make different mistakes; pooling four trees and the unions of the
longest-lived neighbours recovers regions that no single tree holds (our own measurement on BSDS500 train: AR1000 0.445
-> 0.492).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from ...format.schema import CONTAINED_FRACTION
from ..config import PoolConfig
from ..regions import MergeTree, RegionAdjacencyGraph


@dataclass(frozen=True)
class CandidatePool:
    """N candidates, best first.

    Attributes:
        members: (N, L) bool.
        level: (N,) int64, -1 for a union of two nodes.
    """

    members: NDArray[np.bool_]
    level: NDArray[np.int64]


def pool_trees(trees: Sequence[MergeTree], graph: RegionAdjacencyGraph, config: PoolConfig) -> CandidatePool:
    """Pools the nodes of several trees over the same graph; the first tree leads.

    Args:
        trees: at least one.
        graph: what they were merged from.
        config: how many of each, and the least size.
    """
    lists = [_best_nodes(tree, graph, config) for tree in trees]
    base = lists[0]
    members = [tree.members(nodes) for tree, nodes in zip(trees, lists, strict=True)]
    levels = [tree.level[nodes] for tree, nodes in zip(trees, lists, strict=True)]
    if config.pairs:
        unions = _unions(trees[0], base[: config.pair_nodes], graph, config)
        members.append(unions)
        levels.append(np.full(len(unions), -1, dtype=np.int64))
    lead = min(config.lead, len(base))
    order = [(0, index) for index in range(lead)]
    queues = [list(range(lead, len(base)))] + [list(range(len(each))) for each in members[1:]]
    for turn in range(max((len(queue) for queue in queues), default=0)):
        order += [(which, queue[turn]) for which, queue in enumerate(queues) if turn < len(queue)]
    order = order[: config.candidates]
    pooled = np.array([members[which][index] for which, index in order], dtype=np.bool_).reshape(len(order), len(graph))
    level = np.array([levels[which][index] for which, index in order], dtype=np.int64)
    area_px = graph.area_px.astype(np.int64)
    kept = _coherent(pooled, area_px, config.max_iou, CONTAINED_FRACTION, config.nested_fraction)
    return CandidatePool(members=pooled[kept], level=level[kept])


def _best_nodes(tree: MergeTree, graph: RegionAdjacencyGraph, config: PoolConfig) -> NDArray[np.int64]:
    area = tree.sums(graph.area_px)
    order = np.argsort(tree.rank, kind="stable")
    large = (area[order] >= config.min_area_px) & (area[order] <= config.max_area_fraction * graph.area_px.sum())
    return order[large][: config.nodes_per_tree]


def _unions(
    tree: MergeTree, nodes: NDArray[np.int64], graph: RegionAdjacencyGraph, config: PoolConfig
) -> NDArray[np.bool_]:
    """Unions of two disjoint nodes that touch and are not nearly the whole image, by the sum of their ranks."""
    inside = tree.members(nodes)
    shared = inside.astype(np.float32) @ inside.T.astype(np.float32)
    reach = np.zeros((len(nodes), len(graph)), dtype=np.bool_)
    for near, far in ((0, 1), (1, 0)):
        rows, edges = np.nonzero(inside[:, graph.pairs[:, near]])
        reach[rows, graph.pairs[edges, far]] = True
    touching = (reach.astype(np.float32) @ inside.T.astype(np.float32)) > 0
    area = inside @ graph.area_px
    moderate = area[:, None] + area[None, :] <= config.max_area_fraction * graph.area_px.sum()
    first, second = np.nonzero(np.triu(touching & (shared == 0) & moderate, k=1))
    order = np.lexsort((second, first, first + second))[: config.pairs]
    return inside[first[order]] | inside[second[order]]


def _coherent(
    members: NDArray[np.bool_], area_px: NDArray[np.int64], max_iou: float, contained: float, nested: float
) -> NDArray[np.int64]:
    """Greedy, the best first: no duplicate of a kept one, and nothing that a tree would have to clip noticeably.

    A mask that lies in another by 0.9 to `nested` of itself would be cut to it when the tree is made (`hierarchy.py`),
    and masks cut to the same parent become copies of each other: that costs 0.08 of AR1000. Leaving the worse of the
    two out wins 0.07 of it back (our own measurement, BSDS500).
    """
    return np.flatnonzero(_greedy_coherent(members, area_px, max_iou, contained, nested))


@numba.njit(cache=True)
def _greedy_coherent(members, area_px, max_iou, contained, nested):  # type: ignore[no-untyped-def]
    """Each candidate's overlaps with the kept ones alone are counted, through the kept ones over each superpixel."""
    count, leaves = members.shape
    kept = np.zeros(count, dtype=np.bool_)
    over = np.empty((leaves, count), dtype=np.int32)
    held = np.zeros(leaves, dtype=np.int64)
    areas, shared = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
    found = 0
    for candidate in range(count):
        area = 0
        shared[:found] = 0
        for leaf in range(leaves):
            if members[candidate, leaf]:
                area += area_px[leaf]
                for place in range(held[leaf]):
                    shared[over[leaf, place]] += area_px[leaf]
        fits = True
        for other in range(found):
            both, smaller = shared[other], min(areas[other], area)
            copy = both > max_iou * (areas[other] + area - both)
            if copy or contained * smaller <= both < nested * smaller:
                fits = False
                break
        if fits:
            kept[candidate] = True
            areas[found] = area
            for leaf in range(leaves):
                if members[candidate, leaf]:
                    over[leaf, held[leaf]] = found
                    held[leaf] += 1
            found += 1
    return kept
