"""Stage 3 on a patch grid, after the paper: merge touching patches by cosine similarity, through thresholds 0.9 … 0.5.

The definition (arXiv 2511.13714, section 3.3): every patch is a cluster; a cluster's feature is the sum of its
patches'; while the best pair of touching clusters has a cosine of at least theta, merge it; then go on with the next
theta. Between equal pairs the one with the lower patch index goes first (then the lower second one), a cluster's index
being its lowest patch.

Because the best pair always goes first, the thresholds cut *one* sequence of merges: it stands at theta when the first
merge below theta would come. So this is a merge tree like that of `merge_regions.py`, with 1 - cosine for the cost, and
the same record holds it. It has a kernel of its own because here nearly all time goes into dot products of hundreds of
dimensions: single-precision sums in place (one row a cluster, 3 kB instead of 6), bounds instead of products where they
decide, no histograms, boundaries and powers. That is some six times faster than the general kernel.

Sums are single precision, as backbones give them; products and their sums double, so that for features of small
integers every cosine is exact and ties are real ties.

Clusters stay labels of a grid: a mask of full size is made for what is kept, at the end, by the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numba
import numpy as np
from numpy.typing import NDArray

from ..regions import MergeTree

SLACK: Final = 1e-12
"""Above the rounding of a cosine in double precision."""
UNKNOWN: Final = 2.0
"""A bound that says nothing."""
DEAD: Final = -3.0
"""In place of the similarity of an edge that is gone."""


@dataclass(frozen=True)
class PatchClusters:
    """N clusters of a grid of (h, w) patches that were alive at some threshold.

    Attributes:
        members: (N, h * w) bool, patches row by row.
        level: (N,) int64, index of the threshold at which the cluster first appeared (0 = the highest).
        similarity: (N,) float64, cosine at which the cluster was made; 1.0 for a single patch.
    """

    members: NDArray[np.bool_]
    level: NDArray[np.int64]
    similarity: NDArray[np.float64]


def merge_patches(features: NDArray[np.floating], *, min_similarity: float) -> MergeTree:
    """Merges touching patches (four neighbours), the most similar first, while the cosine is at least `min_similarity`.

    Args:
        features: (h, w, d), raw patch features; a zero vector is similar to nothing (cosine 0).
        min_similarity: the lowest threshold, in [-1, 1].

    Returns:
        The forest of merges; leaves are patches row by row, `cost` is 1 - cosine.
    """
    height, width, depth = features.shape
    rows = np.array(features, dtype=np.float32, order="C").reshape(height * width, depth)
    children, similarity = _merge(rows, height, width, min_similarity)
    return MergeTree(height * width, children, 1.0 - similarity)


def merges_at(tree: MergeTree, thresholds: Sequence[float]) -> NDArray[np.int64]:
    """How many merges are made when each threshold (descending) is done: (T,) int64."""
    highest = np.maximum.accumulate(tree.cost)
    return np.array([int((highest <= 1.0 - each).sum()) for each in thresholds], dtype=np.int64)


def label_grids(tree: MergeTree, thresholds: Sequence[float], height: int, width: int) -> NDArray[np.int32]:
    """The partition at each threshold: (T, h, w) int32, a cluster's label being its lowest patch."""
    counts = merges_at(tree, thresholds)
    return _label_grids(tree.children, tree.leaves, counts).reshape(len(counts), height, width)


def clusters_of(tree: MergeTree, thresholds: Sequence[float], *, min_patches: int) -> PatchClusters:
    """The clusters alive at any threshold, each once, with at least `min_patches` patches; in order of appearance.

    A level at which one cluster holds the whole grid gives none: that is the crop itself, not a part of it.

    Args:
        tree: from `merge_patches` with at most the last threshold.
        thresholds: descending.
        min_patches: smallest cluster.
    """
    size = tree.sums(np.ones(tree.leaves)).astype(np.int64)
    level = np.full(len(tree), -1, dtype=np.int64)
    for index, merges in enumerate(merges_at(tree, thresholds)):
        made = tree.leaves + int(merges)
        alive = np.flatnonzero((tree.parent[:made] < 0) | (tree.parent[:made] >= made))
        if alive.size > 1:
            level[alive[level[alive] < 0]] = index
    nodes = np.flatnonzero((level >= 0) & (size >= min_patches))
    nodes = nodes[np.lexsort((nodes, level[nodes]))]
    similarity = np.concatenate([np.ones(tree.leaves), 1.0 - tree.cost])
    return PatchClusters(tree.members(nodes), level[nodes], similarity[nodes])


@numba.njit(cache=True)
def _label_grids(children, leaves, counts):  # type: ignore[no-untyped-def]
    """Replays the merges: `lowest` of a node is its label; patches point at their node through `top`."""
    nodes = leaves + children.shape[0]
    up = np.full(nodes, -1, dtype=np.int64)
    lowest = np.arange(nodes)
    grids = np.empty((counts.size, leaves), dtype=np.int32)
    done = 0
    for which in range(counts.size):
        while done < counts[which]:
            a, b = children[done, 0], children[done, 1]
            up[a] = up[b] = leaves + done
            lowest[leaves + done] = min(lowest[a], lowest[b])
            done += 1
        for patch in range(leaves):
            root = patch
            while up[root] >= 0:
                root = up[root]
            grids[which, patch] = lowest[root]
            while up[patch] >= 0 and up[patch] != root:  # shorten the way for the next levels
                above = up[patch]
                up[patch] = root
                patch = above
    return grids


@numba.njit(cache=True, fastmath={"reassoc", "contract"})
def _dot(rows, first, second):  # type: ignore[no-untyped-def]
    total = 0.0
    for d in range(rows.shape[1]):
        total += np.float64(rows[first, d]) * np.float64(rows[second, d])
    return total


@numba.njit(cache=True, fastmath={"reassoc", "contract"})
def _absorb(rows, into, other):  # type: ignore[no-untyped-def]
    """Adds one row to another: the sum's squared length and its products with what both rows were before."""
    square, with_into, with_other = 0.0, 0.0, 0.0
    for d in range(rows.shape[1]):
        mine, theirs = rows[into, d], rows[other, d]
        both = mine + theirs
        rows[into, d] = both
        square += np.float64(both) * np.float64(both)
        with_into += np.float64(both) * np.float64(mine)
        with_other += np.float64(both) * np.float64(theirs)
    return square, with_into, with_other


@numba.njit(cache=True)
def _over(product, square_a, square_b):  # type: ignore[no-untyped-def]
    """A cosine from a product and two squared lengths; 0 for a zero vector."""
    scale = np.sqrt(square_a * square_b)
    return product / scale if scale > 0.0 else 0.0


@numba.njit(cache=True)
def _turned(bound, turn):  # type: ignore[no-untyped-def]
    """The most that a cosine can be after one of its vectors turned by an angle of cosine `turn`; never too low.

    Angles obey the triangle inequality: the new angle is at least the old one less the turn.
    """
    bound, turn = bound + SLACK, turn - SLACK
    if bound >= turn or turn <= 0.0:
        return UNKNOWN
    return bound * turn + np.sqrt(max((1.0 - bound * bound) * (1.0 - turn * turn), 0.0)) + SLACK


@numba.njit(cache=True)
def _better(first, second, value, pair):  # type: ignore[no-untyped-def]
    """Of two edges the more similar one, or the lower pair."""
    if value[first] != value[second]:
        return first if value[first] > value[second] else second
    return first if pair[first] <= pair[second] else second


@numba.njit(cache=True)
def _replay(winner, edge, value, pair):  # type: ignore[no-untyped-def]
    """Plays the matches of an edge again whose value or pair has changed."""
    place = (winner.size // 2 + edge) >> 1
    while place > 0:
        best = _better(winner[2 * place], winner[2 * place + 1], value, pair)
        if best == winner[place] and best != edge:
            break
        winner[place] = best
        place >>= 1


@numba.njit(cache=True)
def _merge(rows, height, width, min_similarity):  # type: ignore[no-untyped-def]
    """Edges play a tournament; the winner is measured if only a bound is known of it, and merged if it is the truth.

    A cluster lives in the slot of its lowest patch. When it grows, the cosines to its neighbours become bounds
    (`_turned`), above the truth; only those that would win at once are computed anew, and of the others many never are,
    since the neighbour or the cluster merges again before. A bound is strictly above the truth, so that among equals
    every edge is measured before one is merged. (Large clusters that swallow single patches gain most: with many ties
    this saves nineteen of twenty products.)
    """
    count = height * width
    edges = 0
    size = 1
    while size < 2 * count:
        size *= 2
    value, pair = np.full(size, DEAD), np.zeros(size, dtype=np.int64)
    measured = np.ones(size, dtype=np.bool_)
    # Half-edges 2e and 2e + 1 of edge e, in a linked list for each slot: `head`, `follow` to the next, `other` end.
    head, follow, other = np.full(count, -1, np.int32), np.empty(2 * size, np.int32), np.empty(2 * size, np.int32)
    squares = np.empty(count)
    for patch in range(count):
        squares[patch] = _dot(rows, patch, patch)
        if not np.isfinite(squares[patch]):
            raise ValueError("features must be finite")
    for patch in range(count):
        for side in range(2):
            if (side == 0 and patch % width == width - 1) or (side == 1 and patch + width >= count):
                continue
            far = patch + 1 if side == 0 else patch + width
            value[edges] = _over(_dot(rows, patch, far), squares[patch], squares[far])
            pair[edges] = patch * count + far
            other[2 * edges], follow[2 * edges], head[patch] = far, head[patch], 2 * edges
            other[2 * edges + 1], follow[2 * edges + 1], head[far] = patch, head[far], 2 * edges + 1
            edges += 1
    winner = np.empty(2 * size, dtype=np.int32)
    winner[size:] = np.arange(size)
    for place in range(size - 1, 0, -1):
        winner[place] = _better(winner[2 * place], winner[2 * place + 1], value, pair)
    node, met = np.arange(count), np.full(count, -1, dtype=np.int64)
    children, similarities = np.empty((count, 2), dtype=np.int64), np.empty(count)
    merges = 0
    while value[winner[1]] >= min_similarity:
        edge = winner[1]
        a, b = pair[edge] // count, pair[edge] % count
        if not measured[edge]:
            value[edge], measured[edge] = _over(_dot(rows, a, b), squares[a], squares[b]), True
            _replay(winner, edge, value, pair)
            continue
        reached = value[edge]
        children[merges, 0], children[merges, 1], similarities[merges] = node[a], node[b], reached
        node[a] = count + merges
        merges += 1
        before_a, before_b = squares[a], squares[b]
        squares[a], with_a, with_b = _absorb(rows, a, b)
        turn_a, turn_b = _over(with_a, squares[a], before_a), _over(with_b, squares[a], before_b)
        value[edge] = DEAD
        _replay(winner, edge, value, pair)
        kept = -1
        for old, turn in ((a, turn_a), (b, turn_b)):
            half = head[old]
            while half >= 0:
                after, each, far = follow[half], half >> 1, other[half]
                if value[each] != DEAD:
                    bound = _turned(value[each], turn)
                    if old == b and met[far] >= 0:  # the neighbour of both: one edge is enough, with the lower bound
                        value[each] = DEAD
                        _replay(winner, each, value, pair)
                        each = met[far]
                        if measured[each]:
                            half = after
                            continue
                        bound = min(bound, value[each])
                    else:
                        met[far] = each
                        other[half ^ 1] = a
                        pair[each] = min(a, far) * count + max(a, far)
                        follow[half] = kept
                        kept = half
                    if bound < reached:
                        value[each], measured[each] = bound, False
                    else:  # it would win at once: nothing else is above the pair that has just merged
                        value[each], measured[each] = _over(_dot(rows, a, far), squares[a], squares[far]), True
                    _replay(winner, each, value, pair)
                half = after
        head[a] = kept
        while kept >= 0:
            met[other[kept]] = -1
            kept = follow[kept]
    return children[:merges], similarities[:merges]
