"""Which regions of a merge tree are instances: a flat choice, in one of three ways.

`flat` undoes the last merges until so many regions stand. A fixed number is the plainest rule, and at equal numbers of
instances better than `stable` in recall and in precision against the coarsest person (BSDS500 train; our own
measurement). Where there are more things than that, it has none of them: 6 of 24 coins.

`stable` keeps what survives merging longest. A region that is born early and absorbed late stands out from what
surrounds it. Stability of a node = (height of its parent - its own height) * (its share of the image)^alpha, and from
the leaves up a node is kept if its stability is at least the sum kept below it: the excess-of-mass rule by which
HDBSCAN picks clusters. It adapts to the image, and gives few and sure ones at a high alpha.

`adaptive` is the flat cut, unless the stable regions stand out, and then these. They do if they are clear, by the mean
of 1 - height / height of the parent (coins on a table, drawn shapes), if they are many, or if the cut has but a small
part of their stability (equal things too small for it, as nuclei of cells).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..config import DivideConfig
from ..regions import MergeTree


def choose_instances(tree: MergeTree, area_px: NDArray[np.float64], config: DivideConfig) -> NDArray[np.int64]:
    """Nodes that are instances, disjoint, ascending: (K,) int64.

    Args:
        tree: of the whole image.
        area_px: (L,) of the superpixels.
        config: `wholes` and what each way reads, `min_area_fraction`, `max_area_fraction`.
    """
    area = tree.sums(area_px)
    share = area / area_px.sum()
    allowed = (share >= config.min_area_fraction) & (share <= config.max_area_fraction)
    flat = np.flatnonzero(allowed & _standing(tree, config.flat_regions))
    if config.wholes == "flat":
        return flat
    height = tree.height
    above = np.where(tree.parent >= 0, height[np.maximum(tree.parent, 0)], height)
    stability = np.where(allowed, (above - height) * share**config.alpha, 0.0)
    stable = _most_stable(tree, stability)
    stands_out = (
        _clearance(height[stable], above[stable]) >= config.min_clearance
        or len(stable) >= config.many_regions
        or stability[stable].sum() > config.min_stability_ratio * stability[flat].sum()
    )
    return stable if config.wholes == "stable" or stands_out else flat


def _clearance(own: NDArray[np.float64], above: NDArray[np.float64]) -> float:
    """Mean of 1 - height / height of the parent, in [0, 1]; 0 of no region."""
    risen = np.divide(own, above, out=np.ones_like(own), where=above > 0)
    return float(np.mean(1.0 - risen)) if len(own) else 0.0


def _most_stable(tree: MergeTree, stability: NDArray[np.float64]) -> NDArray[np.int64]:
    """Disjoint nodes of the greatest sum of stability, ascending: (K,) int64. Of equal sums the larger region's."""
    kept_sum = stability.copy()
    chosen = stability > 0
    for node in range(tree.leaves, len(tree)):
        left, right = tree.children[node - tree.leaves]
        below = kept_sum[left] + kept_sum[right]
        if stability[node] < below:
            chosen[node] = False
            kept_sum[node] = below
    # From the root down: the highest chosen node of each branch counts.
    covered = np.zeros(len(tree), dtype=np.bool_)
    for node in range(len(tree) - 1, -1, -1):
        parent = tree.parent[node]
        if parent >= 0:
            covered[node] = covered[parent] or chosen[parent]
    return np.flatnonzero(chosen & ~covered)


def _standing(tree: MergeTree, regions: int) -> NDArray[np.bool_]:
    """Which nodes stand when so many regions are left: (nodes,) bool; all leaves where there are no more."""
    made = max(2 * tree.leaves - regions, tree.leaves)
    standing: NDArray[np.bool_] = (np.arange(len(tree)) < made) & ((tree.parent >= made) | (tree.parent < 0))
    return standing
