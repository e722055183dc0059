"""Candidate masks from superpixels (recipes `default`, `default-1000`, `leaves`): merge trees of the whole image.

The descriptor gives boundaries and superpixels, these a region adjacency graph; greedy merging gives one tree for each
merge cost, the first of which says what the instances are. A backbone's features join the merge cost. Superpixels have
the image's own edges, so that nothing is refined.
"""

from __future__ import annotations

import numpy as np

from ..environment.stage_seconds import StageSeconds
from ..format.schema import Origin
from .config import MineConfig
from .hierarchy import Candidates
from .regions import PatchGrid, RegionAdjacencyGraph, Rgb
from .stages.backbone_features import pooled_on_superpixels
from .stages.candidates import pool_trees
from .stages.instances import choose_instances
from .stages.merge_regions import merge_regions
from .stages.region_adjacency import build_graph
from .stages.texture_features import Description, describe, region_channels, region_histograms


def superpixel_candidates(
    rgb: Rgb, grid: PatchGrid | None, config: MineConfig, *, find_instances: bool, seconds: StageSeconds
) -> Candidates:
    """Candidates of one image: the instances first, then nodes of the trees and unions of two, best first.

    Args:
        rgb: (h, w, 3) uint8, at the size at which the image is mined.
        grid: (h', w', d) patch features of a backbone; None without one.
        config: of the run.
        find_instances: whether instances are found in the image itself; False where a file names them.
        seconds: the time of each stage is added.
    """
    with seconds.timed("features"):
        described = describe(rgb, config.features, seed=config.seed)
        graph = _graph(described, grid, config.features.region_bins)
    with seconds.timed("conquer"):
        trees = [merge_regions(graph, cost) for cost in config.conquer.costs]
        pool = pool_trees(trees, graph, config.conquer.pool)
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


def _graph(described: Description, grid: PatchGrid | None, bins: int) -> RegionAdjacencyGraph:
    superpixels = described.superpixels
    return build_graph(
        superpixels,
        described.edge,
        described.edge_texture,
        region_histograms(described.lab, described.textons, superpixels, bins),
        region_channels(bins),
        None if grid is None else pooled_on_superpixels(grid, superpixels),
    )
