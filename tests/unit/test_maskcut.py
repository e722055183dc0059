"""Normalised cuts: the solver against SciPy's dense one, and the masks on drawn grids."""

from __future__ import annotations

import doctest
from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from pipeline.bench.divide import KINDS, dense_cut
from pipeline.bench.divide import drawn_links as drawn_links_of_bench
from pipeline.labeling.config import DivideConfig
from pipeline.labeling.stages import maskcut
from pipeline.labeling.stages.maskcut import (
    links_between,
    mask_cut,
    normalised_cut,
    object_of,
    remainder_regions,
)
from pipeline.labeling.stages.merge_patches import merge_patches

EPS = 1e-5
CONFIG = DivideConfig(cuts=3)


def dense(links: NDArray[np.uint8], eps: float = EPS) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Second and third eigenvalue of (D - A) x = lambda D x, and the second's vector."""
    weights = eps + (1 - eps) * links
    degree = weights.sum(axis=1)
    values, vectors = scipy.linalg.eigh(np.diag(degree) - weights, np.diag(degree), subset_by_index=[1, 2])
    return values, vectors[:, 0]


def drawn_links(kind: str, seed: int, side: int = 14) -> NDArray[np.uint8]:
    random = np.random.default_rng(seed)
    noise = random.standard_normal((side, side, 12))
    if kind == "smooth":
        features = gaussian_filter(noise, (1.5, 1.5, 0))
    elif kind == "parts":  # some flat regions, linked within and by eps alone between
        features = np.eye(12)[random.integers(0, 5, (side, side))]
    elif kind == "one":
        features = np.ones((side, side, 12))
    else:
        features = noise
    return links_between(features.reshape(-1, 12), 0.15)


@given(st.sampled_from(["smooth", "noise", "parts", "one"]), st.integers(0, 10_000))
@settings(max_examples=60)
def test_a_cut_equals_the_dense_solution(kind: str, seed: int) -> None:
    links = drawn_links(kind, seed)
    found = normalised_cut(links, eps=EPS, seed=0)
    values, vector = dense(links)
    assert found.value == pytest.approx(values[0], abs=1e-6)
    if (values[1] - values[0]) / values[0] > 1e-3:
        assert abs(np.corrcoef(found.vector, vector)[0, 1]) > 0.999


def test_a_cut_with_a_closed_gap_is_seeded_and_stable() -> None:
    """Four equal flat regions: every split of them is as good. The same seed gives the same one, always."""
    quadrants = (np.arange(20)[:, None] >= 10) * 2 + (np.arange(20)[None] >= 10)
    links = links_between(np.eye(4)[quadrants.ravel()], 0.15)
    values, _ = dense(links)
    assert values[1] - values[0] < 1e-9
    first = normalised_cut(links, eps=EPS, seed=0)
    assert first.value == pytest.approx(values[0], abs=1e-9)
    for _ in range(3):
        assert np.array_equal(normalised_cut(links, eps=EPS, seed=0).vector, first.vector)
    within = [first.vector[quadrants.ravel() == index] for index in range(4)]
    assert max(np.ptp(each) for each in within) < 1e-6 * np.ptp(first.vector)  # no region is split


def test_links_are_symmetric_and_zero_vectors_have_none() -> None:
    features = np.random.default_rng(0).standard_normal((60, 7)).astype(np.float32)
    features[3] = 0
    links = links_between(features, 0.15)
    assert np.array_equal(links, links.T)
    assert not links[3].any()
    assert links[0, 0] == 1


def objects(*boxes: tuple[int, int, int, int], side: int = 20) -> NDArray[np.float32]:
    """A ground of one feature and objects of others, with a little noise."""
    features = np.random.default_rng(5).standard_normal((side, side, 8)).astype(np.float32) * 0.05
    features[..., 0] += 1
    for index, (y, x, height, width) in enumerate(boxes):
        features[y : y + height, x : x + width, 0] -= 1
        features[y : y + height, x : x + width, 1 + index] += 1
    return features


def test_objects_are_found_one_after_another() -> None:
    boxes = ((3, 4, 7, 6), (12, 11, 5, 5))
    found = mask_cut(objects(*boxes), CONFIG, seed=0)
    assert len(found) >= 2
    for y, x, height, width in boxes:
        expected = np.zeros((20, 20), dtype=np.bool_)
        expected[y : y + height, x : x + width] = True
        assert any(np.array_equal(mask, expected) for mask in found)
    assert (found.sum(axis=0) <= 1).all()  # disjoint: no object is found twice


def test_an_image_that_is_all_alike_gives_no_mask() -> None:
    assert len(mask_cut(np.ones((12, 9, 4), dtype=np.float32), CONFIG, seed=0)) == 0
    assert len(mask_cut(np.ones((1, 1, 4), dtype=np.float32), CONFIG, seed=0)) == 0


def test_specks_are_no_masks_and_do_not_end_the_search() -> None:
    features = objects((3, 4, 7, 6))
    features[15, 15] = np.eye(8)[7] * 3
    found = mask_cut(features, replace(CONFIG, cuts=4), seed=0)
    assert all(mask.sum() > 4 for mask in found)
    assert any(mask.sum() == 42 for mask in found)


def test_the_object_does_not_depend_on_the_sign_of_the_vector() -> None:
    free = np.ones((10, 10), dtype=np.bool_)
    random = np.random.default_rng(0)
    for _ in range(20):
        vector = gaussian_filter(random.standard_normal((10, 10)), 2).ravel()
        assert np.array_equal(object_of(vector, free), object_of(-vector, free))


def test_the_object_is_the_side_with_fewer_corners() -> None:
    free = np.ones((6, 6), dtype=np.bool_)
    vector = np.zeros((6, 6))
    vector[2:4, 2:4] = 1
    assert object_of(vector.ravel(), free).sum() == 4
    vector[0, 0] = 1  # a second piece of the same side, away from the most extreme patch
    vector[3, 3] = 2
    assert object_of(vector.ravel(), free).sum() == 4
    assert not object_of(vector.ravel(), free)[0, 0]


def test_what_no_cut_claimed_is_split_into_coherent_regions() -> None:
    features = objects((3, 4, 7, 6), (12, 0, 8, 20))
    claimed = np.zeros((20, 20), dtype=np.bool_)
    claimed[3:10, 4:10] = True
    features[claimed] = 0
    regions = remainder_regions(merge_patches(features, min_similarity=0.5), claimed, min_patches=10)
    assert [int(each.sum()) for each in regions] == [240 - 42, 160]
    assert not (regions & claimed).any()


def test_the_example_in_the_docstring_holds() -> None:
    found = doctest.testmod(maskcut, extraglobs={"DivideConfig": DivideConfig})
    assert (found.attempted, found.failed) == (4, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_bench_draws_is_cut_as_the_dense_solver_does(kind: str) -> None:
    links = drawn_links_of_bench(kind, seed=3, side=18, depth=24)
    found = normalised_cut(links, eps=EPS, seed=0)
    values, vectors = dense_cut(links)
    assert found.value == pytest.approx(values[0], abs=1e-6)
    if (values[1] - values[0]) / values[0] > 1e-3:
        assert abs(np.corrcoef(found.vector, vectors[:, 0])[0, 1]) > 0.999
