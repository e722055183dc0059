"""Merging patches: drawn grids with known clusters, levels, ties."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.labeling.stages.merge_patches import clusters_of, label_grids, merge_patches, merges_at

THRESHOLDS = (0.9, 0.8, 0.7, 0.6, 0.5)


def at_angle(degrees: float) -> list[float]:
    return [float(np.cos(np.radians(degrees))), float(np.sin(np.radians(degrees)))]


def halves(left: float, right: float) -> np.ndarray:
    """(4, 6, 2): columns 0..2 at one angle, 3..5 at another."""
    features = np.empty((4, 6, 2), dtype=np.float32)
    features[:, :3], features[:, 3:] = at_angle(left), at_angle(right)
    return features


def test_two_flat_halves_join_at_the_threshold_of_their_angle() -> None:
    tree = merge_patches(halves(0, 40), min_similarity=0.5)  # cos 40 degrees = 0.766
    grids = label_grids(tree, THRESHOLDS, 4, 6)
    assert [np.unique(grid).tolist() for grid in grids] == [[0, 3], [0, 3], [0], [0], [0]]
    assert (grids[0][:, :3] == 0).all()
    assert (grids[0][:, 3:] == 3).all()


def test_a_cluster_is_listed_once_at_the_level_where_it_appeared() -> None:
    clusters = clusters_of(merge_patches(halves(0, 40), min_similarity=0.5), THRESHOLDS, min_patches=4)
    assert clusters.level.tolist() == [0, 0]
    assert sorted(clusters.members.sum(axis=1).tolist()) == [12, 12]


def test_a_grid_that_is_one_cluster_has_no_part() -> None:
    clusters = clusters_of(merge_patches(halves(0, 0), min_similarity=0.5), THRESHOLDS, min_patches=1)
    assert clusters.members.shape == (0, 24)


def test_small_clusters_are_left_out() -> None:
    features = halves(0, 90)
    features[0, 0] = [-1, 0]
    clusters = clusters_of(merge_patches(features, min_similarity=0.5), THRESHOLDS, min_patches=4)
    assert sorted(clusters.members.sum(axis=1).tolist()) == [11, 12]
    assert not clusters.members[:, 0].any()


def test_long_features_weigh_more() -> None:
    """A cluster's feature is the sum of raw features, not of unit ones: the long patch pulls its cluster along."""
    row = np.array([[[10.0, 0.0], at_angle(20), at_angle(55)]], dtype=np.float32)
    tree = merge_patches(row, min_similarity=0.5)
    assert tree.cost[0] == pytest.approx(1 - np.cos(np.radians(20)), abs=1e-6)
    joined = np.array([10.0, 0.0]) + at_angle(20)
    assert tree.cost[1] == pytest.approx(1 - joined @ at_angle(55) / np.linalg.norm(joined), abs=1e-6)


def test_equal_pairs_go_by_the_lower_patch_index() -> None:
    tree = merge_patches(np.ones((2, 3, 4), dtype=np.float32), min_similarity=0.5)
    #  0 1 2 / 3 4 5: (0, 1) first, then always the pair with patch 0 and the lowest neighbour
    assert tree.children.tolist() == [[0, 1], [6, 2], [7, 3], [8, 4], [9, 5]]
    assert (tree.cost == 0).all()


def test_zero_features_touch_nothing_and_one_patch_is_a_tree() -> None:
    assert len(merge_patches(np.zeros((3, 3, 4), dtype=np.float32), min_similarity=0.1).children) == 0
    assert len(merge_patches(np.ones((1, 1, 4), dtype=np.float32), min_similarity=0.5)) == 1


def test_features_must_be_finite() -> None:
    features = np.ones((3, 3, 4), dtype=np.float32)
    features[1, 1, 0] = np.nan
    with pytest.raises(ValueError, match="finite"):
        merge_patches(features, min_similarity=0.5)


def test_thresholds_cut_one_sequence_of_merges() -> None:
    features = np.random.default_rng(0).standard_normal((8, 8, 3)).astype(np.float32)
    tree = merge_patches(features, min_similarity=0.5)
    counts = merges_at(tree, THRESHOLDS)
    assert (np.diff(counts) >= 0).all()
    assert counts[-1] == len(tree.children)
    assert merges_at(merge_patches(features, min_similarity=0.8), (0.8,))[0] == counts[1]
