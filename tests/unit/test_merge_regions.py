"""The compiled merging of region adjacency graphs against its definition, and what is read off the trees."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.labeling.atoms import Atoms, intersection_px, iou
from pipeline.labeling.config import BASE_COST, DivideConfig, MergeCost, PoolConfig
from pipeline.labeling.regions import MergeTree, RegionAdjacencyGraph
from pipeline.labeling.stages.candidates import pool_trees
from pipeline.labeling.stages.instances import choose_instances
from pipeline.labeling.stages.merge_regions import PERIMETER_OFFSET, merge_regions
from pipeline.labeling.stages.region_adjacency import build_graph


def graph_of(labels: np.ndarray, *, seed: int, quantised: bool = False, depth: int = 0) -> RegionAdjacencyGraph:
    """Superpixels with random histograms and edges; `quantised` makes small integers, hence ties."""
    random = np.random.default_rng(seed)
    superpixels = Atoms.of(labels)
    shape = (8, *labels.shape)
    maps = random.integers(0, 2, size=shape) if quantised else random.random(shape)
    histograms = (
        random.integers(0, 3, size=(len(superpixels), 8)) if quantised else random.random((len(superpixels), 8))
    )
    return build_graph(
        superpixels,
        maps.astype(np.float32),
        (maps[::-1] / 2).astype(np.float32),
        histograms.astype(np.float64),
        np.repeat(np.arange(4), 2),
        random.random((len(superpixels), depth)),
    )


def by_definition(graph: RegionAdjacencyGraph, cost: MergeCost) -> list[frozenset[int]]:
    """Merges the cheapest touching pair, recomputing every cost from the superpixels; returns what was made."""
    regions = [frozenset([region]) for region in range(len(graph))]
    total = graph.area_px.sum()
    weights = np.array(cost.histograms)[graph.channels]
    made = []

    def boundary(a: frozenset[int], b: frozenset[int]) -> tuple[float, float]:
        edges = [index for index, (u, v) in enumerate(graph.pairs) if (u in a and v in b) or (u in b and v in a)]
        strength = cost.edge * graph.edge_sum[edges] + cost.edge_texture * graph.edge_texture_sum[edges]
        return float(strength.sum()), float(graph.length_px[edges].sum())

    def perimeter(a: frozenset[int]) -> float:
        outside = [(u in a) != (v in a) for u, v in graph.pairs]
        return float(graph.length_px[outside].sum())

    def price(a: frozenset[int], b: frozenset[int]) -> float:
        strength, length = boundary(a, b)
        size_a, size_b = graph.area_px[list(a)].sum(), graph.area_px[list(b)].sum()
        p = graph.histograms[list(a)].sum(axis=0) / size_a
        q = graph.histograms[list(b)].sum(axis=0) / size_b
        both = p + q
        chi = (weights * np.divide((p - q) ** 2, both, out=np.zeros_like(both), where=both > 0)).sum()
        value = strength / length + chi / 2
        if graph.features.shape[1]:
            f, g = graph.features[list(a)].sum(axis=0), graph.features[list(b)].sum(axis=0)
            value += cost.features * (1 - f @ g / (np.linalg.norm(f) * np.linalg.norm(g)))
        value *= (size_a * size_b / (size_a + size_b) / total) ** cost.size_power
        value *= (length / np.sqrt(total)) ** cost.length_power
        return value * (length / min(perimeter(a), perimeter(b)) + PERIMETER_OFFSET) ** cost.perimeter_power

    while True:
        touching = [(a, b) for a, b in itertools.combinations(regions, 2) if boundary(a, b)[1] > 0]
        if not touching:
            return made

        def order(pair: tuple[frozenset[int], frozenset[int]]) -> tuple[float, int, int]:
            low, high = sorted((min(pair[0]), min(pair[1])))
            return round(price(*pair), 9), low, high

        a, b = min(touching, key=order)
        regions = [each for each in regions if each not in (a, b)] + [a | b]
        made.append(a | b)


@given(st.integers(0, 2**31), st.integers(2, 5), st.integers(2, 5), st.sampled_from([0, 3]))
@settings(max_examples=25)
def test_merging_equals_its_definition(seed: int, rows: int, columns: int, depth: int) -> None:
    labels = np.kron(np.arange(rows * columns).reshape(rows, columns), np.ones((3, 4), dtype=np.int64))
    graph = graph_of(labels, seed=seed, depth=depth)
    cost = replace(BASE_COST, features=0.7)
    tree = merge_regions(graph, cost)
    merged = tree.members(np.arange(len(graph), len(tree)))
    assert [frozenset(np.flatnonzero(row).tolist()) for row in merged] == by_definition(graph, cost)


def test_ties_go_to_the_lower_superpixels() -> None:
    labels = np.kron(np.arange(9).reshape(3, 3), np.ones((4, 4), dtype=np.int64))
    superpixels = Atoms.of(labels)
    flat = np.zeros((8, 12, 12), dtype=np.float32)
    graph = build_graph(superpixels, flat, flat, np.ones((9, 4)), np.arange(4))
    tree = merge_regions(graph, BASE_COST)
    assert tree.children[0].tolist() == [0, 1]
    again = merge_regions(graph, BASE_COST)
    assert np.array_equal(tree.children, again.children)


def test_two_islands_stay_two_trees() -> None:
    graph = graph_of(np.array([[0, 0, 1, 1]] * 4), seed=0)
    apart = replace(
        graph,
        pairs=graph.pairs[:0],
        edge_sum=graph.edge_sum[:0],
        edge_texture_sum=graph.edge_sum[:0],
        length_px=graph.length_px[:0],
    )
    assert len(merge_regions(apart, BASE_COST).children) == 0


def test_a_tree_knows_members_sums_and_ranks() -> None:
    tree = MergeTree(4, np.array([[0, 1], [2, 3], [4, 5]]), np.array([0.5, 0.2, 0.9]))
    assert tree.members(np.array([4, 5, 6])).tolist() == [[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]]
    assert tree.sums(np.array([1.0, 2.0, 4.0, 8.0])).tolist() == [1, 2, 4, 8, 3, 12, 15]
    assert np.argsort(tree.rank).tolist() == [6, 4, 5, 2, 3, 0, 1]
    assert tree.height.tolist() == [0, 0, 0, 0, 0.5, 0.2, 0.9]


def test_instances_survive_longest() -> None:
    """Two dark squares on a light ground: they merge late, and what they are made of early."""
    tree = MergeTree(5, np.array([[0, 1], [2, 3], [5, 6], [7, 4]]), np.array([0.05, 0.05, 0.9, 1.0]))
    instances = choose_instances(tree, np.array([10.0, 10, 10, 10, 60]), DivideConfig(wholes="stable"))
    assert instances.tolist() == [4, 5, 6]  # the ground and both squares; not their union


@pytest.mark.parametrize(
    ("regions", "standing"), [(1, []), (2, [4, 7]), (3, [4, 5, 6]), (4, [2, 3, 4, 5]), (9, [0, 1, 2, 3, 4])]
)
def test_a_flat_cut_is_what_stands_when_so_many_regions_are_left(regions: int, standing: list[int]) -> None:
    """The same squares and ground; the whole image is above the largest instance."""
    tree = MergeTree(5, np.array([[0, 1], [2, 3], [5, 6], [7, 4]]), np.array([0.05, 0.05, 0.9, 1.0]))
    config = DivideConfig(wholes="flat", flat_regions=regions)
    area_px = np.array([10.0, 10, 10, 10, 60])
    assert choose_instances(tree, area_px, config).tolist() == standing
    area_px[0] = 0.1  # too small to be one, alone
    assert 0 not in choose_instances(tree, area_px, config)


@pytest.mark.parametrize(
    ("heights", "changed", "expected"),
    [
        ([0.05, 0.05, 0.9, 1.0], {}, [4, 5, 6]),  # clear: 1 - 0.05 / 0.9 of the squares and 1 of the ground
        ([0.35, 0.35, 0.9, 1.0], {}, [4, 7]),  # neither clear nor many: two regions of the cut
        ([0.35, 0.35, 0.9, 1.0], {"many_regions": 3}, [4, 5, 6]),
        ([0.35, 0.35, 0.9, 1.0], {"many_regions": 4}, [4, 7]),
        ([0.35, 0.35, 0.9, 1.0], {"min_stability_ratio": 1.5}, [4, 5, 6]),  # (0.492 + 0.775) / (0.063 + 0.775) = 1.51
        ([0.35, 0.35, 0.9, 1.0], {"min_stability_ratio": 1.6}, [4, 7]),
    ],
)
def test_an_adaptive_choice_is_the_flat_cut_unless_others_stand_out(
    heights: list[float], changed: dict[str, Any], expected: list[int]
) -> None:
    """The same squares and ground, cut at two: the ground, and both squares as one."""
    tree = MergeTree(5, np.array([[0, 1], [2, 3], [5, 6], [7, 4]]), np.array(heights))
    config = replace(DivideConfig(wholes="adaptive", flat_regions=2, alpha=0.5, min_clearance=0.8), **changed)
    assert choose_instances(tree, np.array([10.0, 10, 10, 10, 60]), config).tolist() == expected


def test_a_whole_image_that_is_one_region_has_no_clear_one() -> None:
    tree = MergeTree(1, np.zeros((0, 2), dtype=np.int64), np.zeros(0))
    assert choose_instances(tree, np.array([9.0]), DivideConfig(wholes="adaptive")).tolist() == []


def test_a_flat_cut_of_islands_counts_their_roots() -> None:
    tree = MergeTree(4, np.array([[0, 1]]), np.array([0.5]))
    found = choose_instances(tree, np.full(4, 5.0), DivideConfig(wholes="flat", flat_regions=2))
    assert found.tolist() == [2, 3, 4]


def test_a_pool_has_no_copies_and_nothing_to_clip() -> None:
    labels = np.kron(np.arange(64).reshape(8, 8), np.ones((6, 6), dtype=np.int64))
    graph = graph_of(labels, seed=3)
    config = PoolConfig()
    pool = pool_trees(
        [merge_regions(graph, cost) for cost in (BASE_COST, replace(BASE_COST, size_power=0.5))], graph, config
    )
    shared = intersection_px(pool.members, graph.area_px.astype(np.int64))
    area = np.diagonal(shared)
    off = ~np.eye(len(area), dtype=np.bool_)
    assert (iou(shared)[off] <= config.max_iou).all()
    share = shared / np.minimum(area[:, None], area[None, :])
    assert not ((share >= 0.9) & (share < config.nested_fraction))[off].any()
    assert area.max() <= config.max_area_fraction * labels.size
    assert pool.level.min() == -1  # unions of neighbours have no level
    assert len(pool.level) == pytest.approx(len(set(map(bytes, pool.members))))
