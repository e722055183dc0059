"""Atoms: overlaps of all pairs without full-size arrays, and suppression that looks at all pairs."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.format import rle
from pipeline.labeling import atoms as masks


def atoms_of(drawn: np.ndarray) -> tuple[masks.Atoms, np.ndarray]:
    """The atoms that (N, H, W) bool masks cut an image into, and which of them each mask holds."""
    atoms, members, _ = masks.cut_atoms(
        np.zeros(drawn.shape[1:], dtype=np.int32), [masks.BoxMask.of(each) for each in drawn]
    )
    return atoms, members


@given(st.integers(0, 7).flatmap(lambda n: arrays(np.bool_, (n, 9, 11))))
@settings(max_examples=50)
def test_atoms_rebuild_every_mask_and_every_overlap(drawn: np.ndarray) -> None:
    atoms, members = atoms_of(drawn)
    assert np.array_equal(members[:, atoms.labels], drawn)
    expected = (drawn[:, None] & drawn[None, :]).sum(axis=(2, 3))
    assert np.array_equal(masks.intersection_px(members, atoms.area_px), expected)


def test_iou_and_containment_of_nested_masks() -> None:
    drawn = np.zeros((2, 10, 10), dtype=bool)
    drawn[0] = True
    drawn[1, :5] = True
    atoms, members = atoms_of(drawn)
    shared = masks.intersection_px(members, atoms.area_px)
    assert masks.iou(shared)[0, 1] == 0.5
    assert masks.contained_fraction(shared)[1, 0] == 1.0
    assert masks.contained_fraction(shared)[0, 1] == 0.5


def test_empty_masks_give_zero_and_no_warning() -> None:
    drawn = np.zeros((2, 4, 4), dtype=bool)
    atoms, members = atoms_of(drawn)
    shared = masks.intersection_px(members, atoms.area_px)
    assert masks.iou(shared).sum() == 0
    assert masks.contained_fraction(shared).sum() == 0


def test_windowed_duplicate_removal_is_not_repeated_here() -> None:
    """Six other masks of similar area stand between two near-copies; all pairs are compared."""
    drawn = np.zeros((8, 40, 40), dtype=bool)
    drawn[0, 0:10, 0:10] = True
    for index in range(6):
        row, column = divmod(index, 3)
        drawn[1 + index, 15 + 12 * row : 25 + 12 * row, 12 * column : 12 * column + 10] = True
    drawn[7, 0:10, 0:10] = True
    drawn[7, 0, 0] = False
    atoms, members = atoms_of(drawn)
    kept = masks.suppress_duplicates(masks.intersection_px(members, atoms.area_px), max_iou=0.9)
    assert kept.tolist() == [0, 1, 2, 3, 4, 5, 6]


@given(arrays(np.bool_, (6, 8, 8)), st.floats(0.05, 0.95))
@settings(max_examples=50)
def test_suppression_is_idempotent_and_leaves_no_pair_above_the_limit(drawn: np.ndarray, limit: float) -> None:
    atoms, members = atoms_of(drawn)
    shared = masks.intersection_px(members, atoms.area_px)
    kept = masks.suppress_duplicates(shared, max_iou=limit)
    remaining = shared[np.ix_(kept, kept)]
    assert np.array_equal(masks.suppress_duplicates(remaining, max_iou=limit), np.arange(kept.size))
    overlap = masks.iou(remaining)
    np.fill_diagonal(overlap, 0)
    assert (overlap <= limit).all()


partitions = arrays(np.int32, (9, 11), elements=st.integers(0, 3)).map(lambda a: np.unique(a, return_inverse=True)[1])


@given(partitions, st.integers(0, 6).flatmap(lambda n: arrays(np.bool_, (n, 9, 11))))
@settings(max_examples=60)
def test_a_partition_is_cut_further_by_masks(labels: np.ndarray, drawn: np.ndarray) -> None:
    labels = labels.reshape(9, 11).astype(np.int32)
    atoms, members, base = masks.cut_atoms(labels, [masks.BoxMask.of(mask) for mask in drawn])
    assert np.array_equal(members[:, atoms.labels], drawn)
    assert np.array_equal(base[atoms.labels], labels)
    assert (atoms.area_px > 0).all()
    key = labels + 4 * (drawn * 2 ** np.arange(len(drawn))[:, None, None]).sum(axis=0)
    assert len(atoms) == np.unique(key).size  # the largest regions that no border crosses, and no smaller ones


def test_a_box_holds_its_mask_to_the_last_row_and_column() -> None:
    """The reference takes the last row and column of a box for the first ones outside."""
    mask = np.zeros((8, 9), dtype=np.bool_)
    mask[2:8, 3:9] = True
    box = masks.BoxMask.of(mask, top=10, left=20)
    assert (box.top, box.left, box.bottom, box.right, box.area_px) == (12, 23, 18, 29, 36)
    assert np.array_equal(masks.BoxMask.of(mask).full(8, 9), mask)
    assert masks.BoxMask.of(np.zeros((4, 4), dtype=np.bool_)).area_px == 0


@given(arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))), st.floats(0.2, 1.0))
@settings(max_examples=100)
def test_masks_are_sampled_at_the_centres_of_a_grid(mask: np.ndarray, scale: float) -> None:
    grid = tuple(max(round(side * scale), 1) for side in mask.shape)
    found = masks.sampled(rle.run_lengths_of(rle.encode(mask)), mask.shape, (grid[0], grid[1]))
    rows, columns = (((2 * np.arange(g) + 1) * s) // (2 * g) for g, s in zip(grid, mask.shape, strict=True))
    assert np.array_equal(found.full(*grid), mask[np.ix_(rows, columns)])


def test_a_grid_becomes_a_mask_of_any_size() -> None:
    large = masks.enlarged(np.array([[True, False], [False, False]]), 8, 6)
    assert large[:4, :3].all()
    assert large.sum() == 12
