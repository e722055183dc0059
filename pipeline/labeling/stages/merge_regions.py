"""Stage 3, conquer: a region adjacency graph with a merge cost -> a tree. Greedy, exact, with a lazy heap.

While two regions touch, the cheapest pair is merged, all sums are updated, and the costs around the new region are
computed anew; entries of the heap that name a region that is gone are skipped. That is O(E log E) instead of a scan of
all edges for each merge. Ties go to the pair with the lower superpixel index (then the lower second one).

The cost of merging a and b (our own measurement on BSDS500 train; areas in pixels, A the image's):

    [ edge mean + 1/2 sum_c w_c chi2_c + w_f (1 - cos) ] * (m / A)^s * (l / sqrt A)^p * (l / min(P_a, P_b) + 0.05)^q

with "edge mean" the mean over the common boundary of the descriptor's cues and of a boundary net's probability, each by
its weight, m = |a||b| / (|a| + |b|), l the length of the common boundary, P the perimeters without the image's border,
chi2_c the distance of the regions' histograms in channel c, cos the cosine of their summed backbone features (recipes
`leaves` and `learned`).
"""

from __future__ import annotations

import heapq
from typing import Final

import numba
import numpy as np

from ..config import MergeCost
from ..regions import MergeTree, RegionAdjacencyGraph

PERIMETER_OFFSET: Final = 0.05


def merge_regions(graph: RegionAdjacencyGraph, cost: MergeCost) -> MergeTree:
    """Merges a graph until nothing touches any more.

    Args:
        graph: regions, neighbours and their sums.
        cost: weights and powers of the cost above.
    """
    weights = np.array(cost.histograms, dtype=np.float64)[graph.channels]
    length = graph.length_px
    edge = cost.edge * graph.edge_sum + cost.edge_texture * graph.edge_texture_sum
    if cost.boundary:
        edge = edge + cost.boundary * graph.boundary_sum
    powers = np.array([cost.size_power, cost.length_power, cost.perimeter_power, cost.features], dtype=np.float64)
    children, costs = _merge(
        graph.area_px, graph.histograms, weights, graph.features, graph.pairs, edge, length, powers
    )
    return MergeTree(len(graph), children, costs)


@numba.njit(cache=True, error_model="numpy")
def _pair_cost(u, v, edge_sum, length, total, areas, perimeters, shares, weights, features, norms, powers, terms):  # type: ignore[no-untyped-def]
    """`shares` are the histograms over the areas. Divisions go in a loop of their own, which has no order to keep."""
    for b in range(weights.size):
        p, q = shares[u, b], shares[v, b]
        both = p + q
        terms[b] = weights[b] * (p - q) * (p - q) / (both if both > 0.0 else 1.0)
    chi = 0.0
    for b in range(weights.size):
        chi += terms[b]
    value = edge_sum / length + 0.5 * chi
    if features.shape[1] > 0:
        dot = 0.0
        for d in range(features.shape[1]):
            dot += features[u, d] * features[v, d]
        scale = norms[u] * norms[v]
        value += powers[3] * (1.0 - dot / scale if scale > 0.0 else 1.0)
    size = areas[u] * areas[v] / (areas[u] + areas[v])
    value *= (size / total) ** powers[0]
    value *= (length / np.sqrt(total)) ** powers[1]
    return value * (length / min(perimeters[u], perimeters[v]) + PERIMETER_OFFSET) ** powers[2]


@numba.njit(cache=True)
def _merge(region_area, region_histograms, weights, region_features, pairs, edge, length, powers):  # type: ignore[no-untyped-def]
    count, bins, depth = region_area.size, region_histograms.shape[1], region_features.shape[1]
    nodes = max(2 * count - 1, 1)
    areas, perimeters, norms = np.zeros(nodes), np.zeros(nodes), np.zeros(nodes)
    shares, terms = np.zeros((nodes, bins)), np.empty(bins)
    histograms, features = np.zeros((nodes, bins)), np.zeros((nodes, depth))
    lowest = np.zeros(nodes, dtype=np.int64)
    alive = np.zeros(nodes, dtype=np.bool_)
    total = region_area.sum()
    for region in range(count):
        areas[region], lowest[region], alive[region] = region_area[region], region, True
        histograms[region] = region_histograms[region]
        shares[region] = histograms[region] / areas[region]
        features[region] = region_features[region]
        norms[region] = np.sqrt((features[region] * features[region]).sum())
    # Half-edges in linked lists: `head` of a node, `follow` to the next, `other` end, `of` which edge.
    capacity = 8 * pairs.shape[0] + 64
    head = np.full(nodes, -1, dtype=np.int64)
    follow = np.empty(2 * capacity, dtype=np.int64)
    other = np.empty(2 * capacity, dtype=np.int64)
    of = np.empty(2 * capacity, dtype=np.int64)
    end_u, end_v = np.empty(capacity, dtype=np.int64), np.empty(capacity, dtype=np.int64)
    sums, lengths = np.empty(capacity), np.empty(capacity)
    edges = 0
    for pair in range(pairs.shape[0]):
        perimeters[pairs[pair, 0]] += length[pair]
        perimeters[pairs[pair, 1]] += length[pair]
    heap = [(0.0, np.int64(0), np.int64(0), np.int64(0)) for _ in range(0)]
    for pair in range(pairs.shape[0]):
        u, v = pairs[pair, 0], pairs[pair, 1]
        end_u[edges], end_v[edges], sums[edges], lengths[edges] = u, v, edge[pair], length[pair]
        for side, (near, far) in enumerate(((u, v), (v, u))):
            half = 2 * edges + side
            other[half], of[half], follow[half] = far, edges, head[near]
            head[near] = half
        value = _pair_cost(
            u, v, edge[pair], length[pair], total,
            areas, perimeters, shares, weights, features, norms, powers, terms,
        )  # fmt: skip
        heapq.heappush(heap, (value, u, v, np.int64(edges)))
        edges += 1
    children = np.empty((max(count - 1, 0), 2), dtype=np.int64)
    costs = np.empty(max(count - 1, 0))
    merges = 0
    slot = np.full(nodes, -1, dtype=np.int64)
    while len(heap) > 0:
        value, _, _, best = heapq.heappop(heap)
        a, b = end_u[best], end_v[best]
        if not (alive[a] and alive[b]):
            continue
        new = count + merges
        children[merges, 0], children[merges, 1], costs[merges] = a, b, value
        merges += 1
        alive[a], alive[b], alive[new] = False, False, True
        areas[new] = areas[a] + areas[b]
        perimeters[new] = perimeters[a] + perimeters[b] - 2.0 * lengths[best]
        lowest[new] = min(lowest[a], lowest[b])
        histograms[new] = histograms[a] + histograms[b]
        shares[new] = histograms[new] / areas[new]
        features[new] = features[a] + features[b]
        norms[new] = np.sqrt((features[new] * features[new]).sum())
        start = edges
        for old in (a, b):
            half = head[old]
            while half >= 0:
                neighbour = other[half]
                if alive[neighbour]:
                    if slot[neighbour] >= start:
                        sums[slot[neighbour]] += sums[of[half]]
                        lengths[slot[neighbour]] += lengths[of[half]]
                    else:
                        if edges == capacity:
                            capacity *= 2
                            end_u, end_v = _grown(end_u, capacity), _grown(end_v, capacity)
                            sums, lengths = _grown(sums, capacity), _grown(lengths, capacity)
                            follow, other = _grown(follow, 2 * capacity), _grown(other, 2 * capacity)
                            of = _grown(of, 2 * capacity)
                        slot[neighbour] = edges
                        end_u[edges], end_v[edges] = new, neighbour
                        sums[edges], lengths[edges] = sums[of[half]], lengths[of[half]]
                        edges += 1
                half = follow[half]
        for each in range(start, edges):
            neighbour = end_v[each]
            for side, (near, far) in enumerate(((new, neighbour), (neighbour, new))):
                half = 2 * each + side
                other[half], of[half], follow[half] = far, each, head[near]
                head[near] = half
            cost = _pair_cost(
                new, neighbour, sums[each], lengths[each], total,
                areas, perimeters, shares, weights, features, norms, powers, terms,
            )  # fmt: skip
            low, high = min(lowest[new], lowest[neighbour]), max(lowest[new], lowest[neighbour])
            heapq.heappush(heap, (cost, low, high, np.int64(each)))
    return children[:merges], costs[:merges]


@numba.njit(cache=True)
def _grown(values, size):  # type: ignore[no-untyped-def]
    larger = np.empty(size, dtype=values.dtype)
    larger[: values.size] = values
    return larger
