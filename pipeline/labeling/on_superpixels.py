"""Candidate masks from superpixels (all recipes but `unsamv2`): merge trees of the whole image.

The descriptor gives boundaries and superpixels, these a region adjacency graph; greedy merging gives one tree for each
merge cost, the first of which says what the instances are. A backbone's features and a boundary net join the merge
cost. Superpixels have the image's own edges, so that nothing is refined.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..environment.stage_seconds import StageSeconds
from ..format.schema import Origin
from .config import MineConfig
from .hierarchy import Candidates
from .regions import FeatureMaps, RegionAdjacencyGraph, Rgb
from .stages.backbone_features import superpixel_features
from .stages.candidates import CandidatePool, pool_trees
from .stages.consistency import SecondMining, changed_image, consistent_first
from .stages.instances import choose_instances
from .stages.merge_regions import merge_regions
from .stages.region_adjacency import build_graph
from .stages.texture_features import Description, describe, region_channels, region_histograms


def superpixel_candidates(
    rgb: Rgb,
    maps: FeatureMaps | None,
    config: MineConfig,
    *,
    find_instances: bool,
    seconds: StageSeconds,
    boundary: NDArray[np.float32] | None = None,
) -> Candidates:
    """Candidates of one image: the instances first, then nodes of the trees and unions of two, best first.

    Args:
        rgb: (h, w, 3) uint8, at the size at which the image is mined.
        maps: of a backbone; None without one.
        config: of the run.
        find_instances: whether instances are found in the image itself; False where a file names them.
        seconds: the time of each stage is added.
        boundary: (h, w) probability of a boundary net; None without one.
    """
    with seconds.timed("features"):
        described, graph = describe_graph(rgb, maps, boundary, config)
    with seconds.timed("conquer"):
        trees = [merge_regions(graph, cost) for cost in config.conquer.costs]
        pool = pool_trees(trees, graph, config.conquer.pool)
        if config.conquer.ranking.method == "consistency":
            second = _mined_again(rgb, config)
            order = consistent_first(pool.members, described.superpixels, second, config.conquer.ranking)
            pool = CandidatePool(members=pool.members[order], level=pool.level[order])
    with seconds.timed("divide"):
        instances = np.zeros(0, dtype=np.int64)
        if find_instances:
            instances = choose_instances(trees[0], graph.area_px, config.divide)
    count = min(config.tree.max_masks, len(pool.level))
    found: list[Origin] = ["divide"] * len(instances)
    merged: list[Origin] = ["conquer"] * count
    rank_score = 1.0 - np.arange(count) / max(len(pool.level), 1)
    return Candidates(
        atoms=described.superpixels,
        members=np.concatenate([trees[0].members(instances), pool.members[:count]]),
        origin=[*found, *merged],
        score=np.concatenate([np.full(len(instances), np.nan), rank_score]),
        level=[None] * len(instances) + [None if each < 0 else int(each) for each in pool.level[:count]],
        may_be_instance=np.arange(len(instances) + count) < len(instances),
    )


def describe_graph(
    rgb: Rgb, maps: FeatureMaps | None, boundary: NDArray[np.float32] | None, config: MineConfig
) -> tuple[Description, RegionAdjacencyGraph]:
    """The superpixels of an image and what is known of them and of their borders.

    Args:
        rgb: (h, w, 3) uint8, at the size at which the image is mined.
        maps: of a backbone; None without one.
        boundary: (h, w) probability of a boundary net; None without one.
        config: of the run.
    """
    described = describe(rgb, config.features, seed=config.seed)
    superpixels, bins = described.superpixels, config.features.region_bins
    graph = build_graph(
        superpixels,
        described.edge,
        described.edge_texture,
        region_histograms(described.lab, described.textons, superpixels, bins),
        region_channels(bins),
        None if maps is None else superpixel_features(maps, superpixels, config.features),
        boundary,
    )
    return described, graph


def _mined_again(rgb: Rgb, config: MineConfig) -> SecondMining:
    """Two trees of the changed image, by the descriptor alone."""
    described, graph = describe_graph(changed_image(rgb, config.conquer.ranking), None, None, config)
    costs = (replace(cost, features=0.0, boundary=0.0) for cost in config.conquer.costs[:2])
    return SecondMining(described.superpixels, [merge_regions(graph, cost) for cost in costs])
