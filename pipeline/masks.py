"""Sets of masks that share their pixels: exact areas, overlaps and boxes without full-size arrays.

The masks of one image cut it into **atoms**: the largest regions that no mask's border crosses. With the atoms'
sizes known, a mask is a row of booleans over the atoms, and area, intersection, IoU and containment of all pairs are
one matrix product with exact integers. Watershed leaves are atoms as they are; pixel masks are cut by
`atoms_from_masks`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]


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


def atoms_from_masks(masks: BoolArray) -> tuple[Atoms, BoolArray]:
    """Cuts an image by (N, H, W) bool masks.

    Returns:
        The atoms and members (N, L) bool: `masks[n] == members[n][atoms.labels]` for every n.
    """
    count, height, width = masks.shape
    labels = np.zeros((height, width), dtype=np.int64)
    members = np.zeros((0, 1), dtype=np.bool_)
    for index in range(count):
        joint = labels * 2 + masks[index]
        present, flat = np.unique(joint, return_inverse=True)
        labels = flat.reshape(height, width)
        origin = present // 2
        members = np.concatenate([members[:, origin], (present % 2 == 1)[None]], axis=0)
    return Atoms.of(labels), members


def intersection_px(members: BoolArray, area_px: IntArray) -> IntArray:
    """Pixels shared by each pair: (N, N) int64, areas on the diagonal. Exact below 2^53 pixels."""
    rows = members.astype(np.float64)
    return np.rint((rows * area_px) @ rows.T).astype(np.int64)


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
    not neighbours (its defect 6.1.12).

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
