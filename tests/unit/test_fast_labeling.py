"""Compiled stages against their plain definitions, to the last bit: labels' digests rest on them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.labeling.atoms import Atoms, RunLengthWriter, enlargement, intersection_px
from pipeline.labeling.stages.candidates import _coherent
from pipeline.labeling.stages.region_adjacency import _cracks
from pipeline.labeling.stages.texture_features import POINTS_AT_ONCE, _nearest, _two_sided, _watershed


@pytest.mark.parametrize("share", [0.05, 0.9])
@pytest.mark.parametrize("largest", [50, 2**26])
def test_overlaps_are_sums_over_shared_atoms(share: float, largest: int) -> None:
    """Few holders of an atom are counted, many multiplied; areas that single precision cannot hold stay exact."""
    random = np.random.default_rng(1)
    members = random.random((40, 300)) < share
    area = random.integers(1, largest, 300)
    expected = (members[:, None] & members[None]) @ area
    assert np.array_equal(intersection_px(members, area), expected)


@pytest.mark.parametrize("seed", range(4))
def test_candidates_are_kept_one_by_one_against_the_kept_ones(seed: int) -> None:
    random = np.random.default_rng(seed)
    starts = random.integers(0, 60, 300)
    places = np.arange(80)
    members = (places >= starts[:, None]) & (places < (starts + random.integers(0, 20, 300))[:, None])
    area = random.integers(1, 9, 80)
    shared = (members[:, None] & members[None]) @ area
    kept: list[int] = []
    for one in range(300):
        for other in kept:
            both, smaller = shared[one, other], min(shared[one, one], shared[other, other])
            union = shared[one, one] + shared[other, other] - both
            if both > 0.8 * union or 0.9 * smaller <= both < 0.98 * smaller:
                break
        else:
            kept.append(one)
    assert _coherent(members, area, 0.8, 0.9, 0.98).tolist() == kept
    assert 3 < len(kept) < 300


@pytest.mark.parametrize("count", [1, POINTS_AT_ONCE, 2 * POINTS_AT_ONCE + 7])
def test_the_nearest_centre(count: int) -> None:
    random = np.random.default_rng(count)
    points = random.normal(size=(count, 16)).astype(np.float32)
    centres = random.normal(size=(11, 16)).astype(np.float32)
    centres[7] = centres[2]  # of equal ones the first
    distance = ((points[:, None].astype(np.float64) - centres[None]) ** 2).sum(axis=2)
    found = _nearest(points, centres)
    assert np.take_along_axis(distance, found[:, None].astype(int), axis=1)[:, 0] == pytest.approx(
        distance.min(axis=1), rel=1e-4
    )
    assert 7 not in found


def test_both_sides_of_a_cell_beyond_the_border_too() -> None:
    random = np.random.default_rng(5)
    cells = random.random((6, 9, 4)).astype(np.float32)
    offsets = np.array([[0, 3], [2, -2], [-3, 0], [3, 1]])
    expected = np.empty((4, 6, 9), dtype=np.float32)
    for o, (dy, dx) in enumerate(offsets):
        for r in range(6):
            for c in range(9):
                one = cells[np.clip(r + dy, 0, 5), np.clip(c + dx, 0, 8)]
                other = cells[np.clip(r - dy, 0, 5), np.clip(c - dx, 0, 8)]
                total = np.float32(0)
                for p, q in zip(one, other, strict=True):
                    total += (p - q) * (p - q) / (p + q + np.float32(1e-4))
                expected[o, r, c] = np.sqrt(np.float32(0.5) * total)
    assert np.array_equal(_two_sided(cells, offsets), expected)


def labels_of(seed: int, height: int, width: int, count: int) -> NDArray[np.int32]:
    found = np.random.default_rng(seed).integers(0, count, (height, width)).astype(np.int32)
    found.ravel()[:count] = np.arange(count)
    return found


def test_pixel_sides_come_by_pair_then_direction_row_and_column() -> None:
    labels = labels_of(3, 12, 15, 7)
    first, second, y, x, vertical = _cracks(labels)
    order = np.argsort(first * 7 + second, kind="stable")
    assert np.array_equal(order, np.lexsort((x, y, vertical, second, first)))


def test_basins_are_numbered_without_gaps() -> None:
    strength = np.random.default_rng(2).random((40, 50)).astype(np.float32)
    atoms = _watershed(strength)
    assert np.array_equal(np.unique(atoms.labels), np.arange(len(atoms)))
    assert len(atoms) > 3


@pytest.mark.parametrize(("height", "width"), [(7, 5), (14, 11), (3, 2)])
def test_run_lengths_of_sets_of_atoms_at_any_size(height: int, width: int) -> None:
    labels = labels_of(4, 7, 5, 9)
    writer = RunLengthWriter(Atoms.of(labels), height, width)
    full = labels[np.ix_(enlargement(7, height), enlargement(5, width))]
    random = np.random.default_rng(height)
    for members in (np.zeros(9, dtype=bool), np.ones(9, dtype=bool), *(random.random((30, 9)) < 0.4)):
        lengths = writer.run_lengths(members)
        values = np.arange(lengths.size) % 2 == 1
        assert np.array_equal(np.repeat(values, lengths).reshape(width, height).T, members[full])
        assert (lengths[1:] > 0).all()
