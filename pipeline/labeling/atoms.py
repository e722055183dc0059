"""Sets of masks that share their pixels: exact areas, overlaps and boxes without full-size arrays.

The masks of one image cut it into **atoms**: the largest regions that no mask's border crosses. With the atoms'
sizes known, a mask is a row of booleans over the atoms, and area, intersection, IoU and containment of all pairs are
counts of exact integers. Superpixels are atoms as they are; other masks cut them further (`cut_atoms`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]
Cell = TypeVar("Cell", bound=np.generic)


@dataclass(frozen=True)
class Atoms:
    """A partition of an image.

    Attributes:
        labels: (h, w) int32, each pixel's atom, 0..L-1, every atom present.
        area_px: (L,) int64, pixels of each atom *at the size of the masks to be written* (larger than the count of
            labels when the image was mined at a reduced size).
    """

    labels: NDArray[np.int32]
    area_px: IntArray

    def __len__(self) -> int:
        return int(self.area_px.size)

    @staticmethod
    def of(labels: NDArray[np.integer]) -> Atoms:
        """From any label map of 0..L-1; areas are counts of its pixels."""
        compact = np.ascontiguousarray(labels, dtype=np.int32)
        return Atoms(compact, np.bincount(compact.ravel()).astype(np.int64))

    def at_size(self, height: int, width: int) -> Atoms:
        """The same labels with the areas that they have when enlarged (nearest) to (height, width)."""
        rows = np.bincount(enlargement(self.labels.shape[0], height), minlength=self.labels.shape[0])
        columns = np.bincount(enlargement(self.labels.shape[1], width), minlength=self.labels.shape[1])
        pixels = (rows[:, None] * columns[None, :]).astype(np.float64)
        area = np.bincount(self.labels.ravel(), weights=pixels.ravel(), minlength=len(self))
        return Atoms(self.labels, np.rint(area).astype(np.int64))


def enlargement(small: int, full: int) -> IntArray:
    """Which of `small` rows each of `full` rows shows, nearest neighbour by centres: (full,) int64, ascending."""
    return ((2 * np.arange(full, dtype=np.int64) + 1) * small) // (2 * full)


def enlarged(grid: NDArray[Cell], height: int, width: int) -> NDArray[Cell]:
    """A (h, w) grid at an image's size, nearest cell by centres: (height, width)."""
    return grid[np.ix_(enlargement(grid.shape[0], height), enlargement(grid.shape[1], width))]


class RunLengthWriter:
    """Run lengths of sets of atoms at full size, straight from the label map: no array of the full size is made."""

    def __init__(self, atoms: Atoms, height: int, width: int) -> None:
        self._columns_first = np.ascontiguousarray(atoms.labels.T)
        self.height, self.width = height, width
        self._row_start = np.searchsorted(enlargement(atoms.labels.shape[0], height), np.arange(len(atoms.labels) + 1))
        self._columns = enlargement(atoms.labels.shape[1], width)
        self._boxes = _atom_boxes(atoms.labels, len(atoms))

    def run_lengths(self, members: BoolArray) -> IntArray:
        """Of a set of atoms (L,) bool: (R,) int64, background first, column by column, summing to height x width."""
        borders = _borders(
            self._columns_first, members, self._boxes, self._row_start, self._columns, self.height, self.width
        )
        lengths = np.diff(borders)
        return lengths[:-1] if lengths.size > 1 and lengths[-1] == 0 else lengths


@dataclass(frozen=True)
class BoxMask:
    """A mask in a box of its own: most masks are much smaller than their image.

    Attributes:
        top: row of the box's first pixel.
        left: its column.
        inside: (h, w) bool.
    """

    top: int
    left: int
    inside: BoolArray

    @staticmethod
    def of(mask: BoolArray, *, top: int = 0, left: int = 0) -> BoxMask:
        """The tight box of a mask, which itself begins at (top, left); an empty mask has an empty box."""
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if rows.size == 0:
            return BoxMask(top, left, np.zeros((0, 0), dtype=np.bool_))
        # Both ends belong to the mask. (The reference cuts the last row and column off.)
        tight = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        return BoxMask(top + int(rows[0]), left + int(columns[0]), tight)

    @property
    def bottom(self) -> int:
        """The row after the last one."""
        return self.top + self.inside.shape[0]

    @property
    def right(self) -> int:
        """The column after the last one."""
        return self.left + self.inside.shape[1]

    @property
    def area_px(self) -> int:
        return int(self.inside.sum())

    def full(self, height: int, width: int) -> BoolArray:
        """At an image's size: (H, W) bool."""
        mask = np.zeros((height, width), dtype=np.bool_)
        mask[self.top : self.bottom, self.left : self.right] = self.inside
        return mask


def cut_atoms(labels: NDArray[np.int32], boxes: Sequence[BoxMask]) -> tuple[Atoms, BoolArray, IntArray]:
    """Cuts a partition further by some masks.

    Args:
        labels: (h, w), 0..L-1, the partition so far; all zeros for none.
        boxes: N masks on the same grid.

    Returns:
        The atoms, which of them each mask holds (N, A) bool, and in which old label each lies (A,) int64.
    """
    found = np.ascontiguousarray(labels, dtype=np.int32).copy()
    count = int(found.max()) + 1
    for box in boxes:
        count = int(_cut(found, count, box.top, box.left, np.ascontiguousarray(box.inside)))
    present, first = np.unique(found, return_index=True)
    compact = np.zeros(count, dtype=np.int32)
    compact[present] = np.arange(present.size, dtype=np.int32)
    y, x = np.unravel_index(first, found.shape)
    members = np.zeros((len(boxes), present.size), dtype=np.bool_)
    for index, box in enumerate(boxes):
        near = (y >= box.top) & (y < box.bottom) & (x >= box.left) & (x < box.right)
        members[index, near] = box.inside[y[near] - box.top, x[near] - box.left]
    return Atoms.of(compact[found]), members, labels[y, x].astype(np.int64)


def sampled(lengths: IntArray, size: tuple[int, int], grid: tuple[int, int]) -> BoxMask:
    """A mask given by its run lengths, on a grid of at most its size: each cell shows the pixel at its centre.

    Args:
        lengths: (R,) int64, background first, column by column, summing to height x width.
        size: (height, width) of the mask.
        grid: (h, w).
    """
    rows, columns = enlargement(size[0], grid[0]), enlargement(size[1], grid[1])
    ends = np.cumsum(lengths)
    if lengths.size < 2:
        return BoxMask(0, 0, np.zeros((0, 0), dtype=np.bool_))
    first, after = ends[0] // size[0], -(-ends[lengths.size // 2 * 2 - 1] // size[0])  # columns of the first, last run
    left, right = np.searchsorted(columns, [first, after])
    return BoxMask.of(_sample(ends, size[0], rows, columns[left:right]), left=int(left))


@numba.njit(cache=True)
def _sample(ends, height, rows, columns):  # type: ignore[no-untyped-def]
    """Which pixels at the crossings of some rows and columns, both ascending, are inside: (rows, columns) bool."""
    inside = np.zeros((rows.size, columns.size), dtype=np.bool_)
    run = 0
    for x in range(columns.size):
        for y in range(rows.size):
            place = columns[x] * height + rows[y]
            while ends[run] <= place:
                run += 1
            inside[y, x] = run % 2 == 1
    return inside


@numba.njit(cache=True)
def _cut(labels, count, top, left, inside):  # type: ignore[no-untyped-def]
    """Gives the pixels of a mask labels of their own, one for each label they had."""
    fresh = np.full(count, -1, dtype=np.int64)
    for y in range(inside.shape[0]):
        for x in range(inside.shape[1]):
            if inside[y, x]:
                label = labels[top + y, left + x]
                if fresh[label] < 0:
                    fresh[label] = count
                    count += 1
                labels[top + y, left + x] = fresh[label]
    return count


DENSE: Final = 16
"""Pairs of a dense product that take as long as one count: which of the two ways `intersection_px` goes."""


def intersection_px(members: BoolArray, area_px: IntArray) -> IntArray:
    """Pixels shared by each pair: (N, N) int64, areas on the diagonal. Exact below 2^53 pixels.

    Few masks hold an atom, so the pairs of those that do are counted, atom by atom. Where many do, it is a matrix
    product; below 2^24 pixels single precision is exact and twice as fast.
    """
    count = len(members)
    if members.size == 0:
        return np.zeros((count, count), dtype=np.int64)
    by_atom = np.ascontiguousarray(members.T)
    holders = by_atom.sum(axis=1)
    if DENSE * (holders * holders).sum() <= members.size * count:
        return np.asarray(_shared(by_atom, np.asarray(area_px, dtype=np.int64)), dtype=np.int64)
    number = np.float32 if area_px.sum() < 2**24 else np.float64
    rows = members.astype(number)
    return np.rint((rows * area_px.astype(number)) @ rows.T).astype(np.int64)


@numba.njit(cache=True)
def _shared(by_atom, area_px):  # type: ignore[no-untyped-def]
    """(N, N) int64 from (A, N) bool: the areas of the atoms that both of a pair hold."""
    count = by_atom.shape[1]
    shared = np.zeros((count, count), dtype=np.int64)
    holders = np.empty(count, dtype=np.int64)
    for atom in range(by_atom.shape[0]):
        held = 0
        for mask in range(count):
            holders[held] = mask
            held += by_atom[atom, mask]
        for i in range(held):
            for j in range(i, held):
                shared[holders[i], holders[j]] += area_px[atom]
    for i in range(count):
        for j in range(i):
            shared[i, j] = shared[j, i]
    return shared


def iou(intersections: IntArray) -> NDArray[np.float64]:
    """Intersection over union of each pair, from `intersection_px`; 0 where both are empty."""
    areas = np.diagonal(intersections)
    union = areas[:, None] + areas[None, :] - intersections
    return np.divide(intersections, union, out=np.zeros(union.shape), where=union > 0)


def contained_fraction(intersections: IntArray) -> NDArray[np.float64]:
    """Share of mask i inside mask j, [i, j]: (N, N) float64; 0 for an empty mask."""
    areas = np.diagonal(intersections).astype(np.float64)[:, None]
    return np.divide(intersections, areas, out=np.zeros(intersections.shape), where=areas > 0)


def suppress_duplicates(intersections: IntArray, *, max_iou: float) -> IntArray:
    """Greedy suppression over *all* pairs, first come first kept.

    The reference compares each mask with four neighbours in the order of area only, and so keeps duplicates that are
    not neighbours.

    Args:
        intersections: (N, N) in the order of preference, best first.
        max_iou: a mask goes when its IoU with a kept one is above this.

    Returns:
        Indices kept, ascending.
    """
    return np.flatnonzero(_greedy(iou(intersections), max_iou))


@numba.njit(cache=True)
def _greedy(overlap, max_iou):  # type: ignore[no-untyped-def]
    count = overlap.shape[0]
    kept = np.ones(count, dtype=np.bool_)
    for i in range(count):
        if kept[i]:
            for j in range(i + 1, count):
                if overlap[i, j] > max_iou:
                    kept[j] = False
    return kept


@numba.njit(cache=True)
def _atom_boxes(labels, count):  # type: ignore[no-untyped-def]
    """First row, first column, last row, last column of each atom."""
    boxes = np.empty((count, 4), dtype=np.int64)
    boxes[:, :2] = 1 << 60
    boxes[:, 2:] = -1
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            box = boxes[labels[y, x]]
            box[0], box[1] = min(box[0], y), min(box[1], x)
            box[2], box[3] = max(box[2], y), max(box[3], x)
    return boxes


@numba.njit(cache=True)
def _borders(columns_first, members, boxes, row_start, columns, height, width):  # type: ignore[no-untyped-def]
    """Positions in column-major order where the mask begins or ends, between 0 and the number of pixels."""
    top, left, bottom, right = 1 << 60, 1 << 60, -1, -1
    for atom in range(members.size):
        if members[atom]:
            top, left = min(top, boxes[atom, 0]), min(left, boxes[atom, 1])
            bottom, right = max(bottom, boxes[atom, 2]), max(right, boxes[atom, 3])
    borders = np.empty(1024, dtype=np.int64)
    borders[0] = 0
    count = 1
    first, after = np.searchsorted(columns, left), np.searchsorted(columns, right + 1)
    inside = False
    for column in range(first, after):
        labels = columns_first[columns[column]]
        if count + 2 * (bottom - top) + 8 > borders.size:
            grown = np.empty(2 * borders.size + 2 * (bottom - top) + 8, dtype=np.int64)
            grown[:count] = borders[:count]
            borders = grown
        if inside and row_start[top] > 0:
            borders[count] = column * height
            count += 1
            inside = False
        for y in range(top, bottom + 1):
            if row_start[y] == row_start[y + 1]:
                continue
            if members[labels[y]] != inside:
                borders[count] = column * height + row_start[y]
                count += 1
                inside = not inside
        if inside and row_start[bottom + 1] < height:
            borders[count] = column * height + row_start[bottom + 1]
            count += 1
            inside = False
    if inside:
        borders[count] = after * height
        count += 1
    borders[count] = height * width
    return borders[: count + 1]
