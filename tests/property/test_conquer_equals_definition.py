"""Compiled merging equals the plain definition: real numbers, small integers with ties, constants, zero vectors."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.bench.conquer import drawn_features
from pipeline.bench.plain_conquer import plain_label_grids
from pipeline.labeling.stages.merge_patches import label_grids, merge_patches

grids_of_integers = st.tuples(st.integers(1, 7), st.integers(1, 7), st.integers(1, 4)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.integers(-1, 2).map(float))
)
falling = st.lists(st.sampled_from([0.99, 0.9, 0.8, 0.7, 0.6, 0.5, 0.25]), min_size=1, unique=True).map(
    lambda values: sorted(values, reverse=True)
)


def ours(features: np.ndarray, thresholds: list[float]) -> np.ndarray:
    tree = merge_patches(features, min_similarity=thresholds[-1])
    return label_grids(tree, thresholds, *features.shape[:2])


@given(grids_of_integers, falling)
@settings(max_examples=150)
def test_small_integers_with_ties(features: np.ndarray, thresholds: list[float]) -> None:
    assert np.array_equal(ours(features, thresholds), plain_label_grids(features, thresholds, remember=False))


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12), st.sampled_from([2, 3, 16]), falling)
@settings(max_examples=60)
def test_real_numbers(seed: int, height: int, width: int, depth: int, thresholds: list[float]) -> None:
    """A positive mean, so that much merges; rough enough that clusters of all sizes meet."""
    random = np.random.default_rng(seed)
    features = (random.standard_normal((height, width, depth)) + random.uniform(0, 1.5)).astype(np.float32)
    assert np.array_equal(ours(features, thresholds), plain_label_grids(features, thresholds, remember=True))


@given(st.sampled_from(["smooth", "ties", "constant", "noise"]), st.integers(0, 1000))
@settings(max_examples=12)
def test_what_the_bench_draws(kind: str, seed: int) -> None:
    features = drawn_features(kind, seed, side=14, depth=24)
    thresholds = [0.9, 0.8, 0.7, 0.6, 0.5]
    assert np.array_equal(ours(features, thresholds), plain_label_grids(features, thresholds, remember=True))


@given(grids_of_integers)
@settings(max_examples=40)
def test_remembering_changes_nothing(features: np.ndarray) -> None:
    thresholds = [0.9, 0.5]
    with_memory = plain_label_grids(features, thresholds, remember=True)
    assert np.array_equal(with_memory, plain_label_grids(features, thresholds, remember=False))
