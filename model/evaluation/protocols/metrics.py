"""What is measured, as pure functions of arrays: recall of mask sets, clicks, video, sweeps over granularity.

Every function says its shapes. Means over objects and images, and their intervals, are taken elsewhere
(`bootstrap.py`), from one value per object: average recall too is a mean of one value per object, the share of IoU
thresholds at which the object was found.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import cv2
import numba
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]

IOU_THRESHOLDS: Final[FloatArray] = np.linspace(0.5, 0.95, 10)
"""COCO's: 0.50, 0.55, …, 0.95."""

MAX_DETECTIONS: Final = (1, 10, 100, 1000)

AREA_RANGES_PX: Final[Mapping[str, tuple[float, float]]] = {
    "all": (0, 1e10),
    "small": (0, 32**2),
    "medium": (32**2, 96**2),
    "large": (96**2, 1e10),
}
"""COCO's ranges of the ground truth's mask area, both ends included: an object of exactly 32^2 px is in two."""

# ---------------------------------------------------------------------------------------------------------------------
# Recall of a set of masks


def rank_by_score(scores: FloatArray) -> IntArray:
    """Indices (D,) from the best score to the worst; equal scores keep their order, as in pycocotools."""
    return np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")


def match_detections(
    iou: FloatArray, gt_area_px: FloatArray, gt_crowd: BoolArray, *, area_range_px: tuple[float, float] = (0, 1e10)
) -> tuple[NDArray[np.int32], BoolArray]:
    """COCO's greedy matching: in rank order, each detection takes the free ground truth that it overlaps best.

    A crowd, or an object outside the area range, is *ignored*: it may take detections away but is not counted. Objects
    that count are preferred to ignored ones. Among equal overlaps the later ground truth wins, as in pycocotools.

    Args:
        iou: (D, G) float64, detections in rank order; for a crowd, intersection over the detection's area.
        gt_area_px: (G,) areas of the ground truth.
        gt_crowd: (G,) bool.
        area_range_px: lowest and highest area that counts, both included.

    Returns:
        rank: (T, G) int32, for each of `IOU_THRESHOLDS` the rank 0..D-1 of the detection that each object got, -1 for
            none. Because the matching goes in rank order, recall at K detections is the share of 0 <= rank < K.
        ignored: (G,) bool.
    """
    low, high = area_range_px
    ignored = gt_crowd | (gt_area_px < low) | (gt_area_px > high)
    order = np.argsort(ignored, kind="stable")
    rank = np.full((IOU_THRESHOLDS.size, gt_area_px.size), -1, dtype=np.int32)
    rank[:, order] = _match(
        np.ascontiguousarray(iou[:, order], dtype=np.float64), ignored[order], gt_crowd[order], IOU_THRESHOLDS
    )
    return rank, ignored


@numba.njit(cache=True)
def _match(iou, ignored, crowd, thresholds):  # type: ignore[no-untyped-def]
    detections, objects = iou.shape
    rank = np.full((thresholds.size, objects), -1, dtype=np.int32)
    for t in range(thresholds.size):
        for d in range(detections):
            best = min(thresholds[t], 1 - 1e-10)
            found = -1
            for g in range(objects):
                if rank[t, g] >= 0 and not crowd[g]:
                    continue
                if found >= 0 and not ignored[found] and ignored[g]:
                    break
                if iou[d, g] < best:
                    continue
                best = iou[d, g]
                found = g
            if found >= 0:
                rank[t, found] = d
    return rank


def recall_one_to_one(iou: FloatArray, gt_area_px: FloatArray, gt_crowd: BoolArray) -> dict[str, FloatArray]:
    """The COCO protocol's value of each object of one image: AR is the mean of a column over the objects of all images.

    Args:
        iou: (D, G), detections in rank order, as in `match_detections`; detections past 1,000 are not looked at.
        gt_area_px: (G,).
        gt_crowd: (G,) bool.

    Returns:
        `recall_1`, `recall_10`, `recall_100`, `recall_1000` and each with `_small`, `_medium`, `_large`: (G,) float64,
        the share of IoU thresholds at which the object was found among the first K; NaN where it does not count.
    """
    columns = {}
    top = iou[: MAX_DETECTIONS[-1]]
    for name, area_range_px in AREA_RANGES_PX.items():
        rank, ignored = match_detections(top, gt_area_px, gt_crowd, area_range_px=area_range_px)
        for limit in MAX_DETECTIONS:
            value = ((rank >= 0) & (rank < limit)).mean(axis=0)
            columns[f"recall_{limit}" + ("" if name == "all" else f"_{name}")] = np.where(ignored, np.nan, value)
    return columns


def recall_best(iou: FloatArray, gt_area_px: FloatArray, gt_crowd: BoolArray) -> dict[str, FloatArray]:
    """As `recall_one_to_one`, but a mask may serve several objects: the best IoU of each object decides.

    The rule of protocols whose ground truth holds the same region more than once (several annotators of one image).
    """
    columns = {}
    for limit in MAX_DETECTIONS:
        found = iou[:limit].max(axis=0, initial=0.0)
        value = (found[:, None] >= IOU_THRESHOLDS).mean(axis=1)
        for name, (low, high) in AREA_RANGES_PX.items():
            counts = ~gt_crowd & (gt_area_px >= low) & (gt_area_px <= high)
            columns[f"recall_{limit}" + ("" if name == "all" else f"_{name}")] = np.where(counts, value, np.nan)
    return columns


# ---------------------------------------------------------------------------------------------------------------------
# Clicks


def mask_iou(predicted: BoolArray, truth: BoolArray, ignore: BoolArray | None = None) -> float:
    """IoU of two (H, W) masks over the pixels that are not ignored; 1.0 if both are empty there."""
    either, both = predicted | truth, predicted & truth
    if ignore is not None:
        either, both = either & ~ignore, both & ~ignore
    union = int(np.count_nonzero(either))
    return 1.0 if union == 0 else int(np.count_nonzero(both)) / union


def number_of_clicks(ious: FloatArray, target_iou: float, *, max_clicks: int = 20) -> int:
    """NoC: 1-based index of the first click that reached the target, `max_clicks` if none did.

    Args:
        ious: (n,) IoU after each click, n <= max_clicks.
    """
    reached = np.flatnonzero(np.asarray(ious[:max_clicks]) >= target_iou)
    return int(reached[0]) + 1 if reached.size else max_clicks


# ---------------------------------------------------------------------------------------------------------------------
# Video


def region_similarity(predicted: BoolArray, truth: BoolArray) -> float:
    """DAVIS' J: the IoU of two (H, W) masks, 1.0 if both are empty."""
    return mask_iou(predicted, truth)


def boundary_accuracy(predicted: BoolArray, truth: BoolArray, *, tolerance: float = 0.008) -> float:
    """DAVIS' F: harmonic mean of the boundaries' precision and recall within a tolerance.

    Args:
        predicted: (H, W) bool.
        truth: (H, W) bool.
        tolerance: share of the image's diagonal, rounded up to whole pixels (0.008 in DAVIS).
    """
    radius = int(np.ceil(tolerance * np.hypot(*truth.shape)))
    ours, theirs = _boundary(predicted), _boundary(truth)
    if not ours.any() or not theirs.any():
        return float(ours.any() == theirs.any())
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = (x * x + y * y <= radius * radius).astype(np.uint8)
    precision = (ours & (cv2.dilate(theirs.astype(np.uint8), disk) > 0)).sum() / ours.sum()
    recall = (theirs & (cv2.dilate(ours.astype(np.uint8), disk) > 0)).sum() / theirs.sum()
    return 0.0 if precision + recall == 0 else float(2 * precision * recall / (precision + recall))


def _boundary(mask: BoolArray) -> BoolArray:
    """Pixels that differ from their right, lower or lower right neighbour."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    right, below, diagonal = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    return (mask != right) | (mask != below) | (mask != diagonal)


# ---------------------------------------------------------------------------------------------------------------------
# One click, many granularities

SAME_IOU: Final = 0.9
"""Masks of a sweep above this IoU count as one and the same."""
FALL_TOLERANCE: Final = 0.02
"""A step of a sweep violates monotonicity when the area falls by more than this share."""


def sweep_columns(masks: BoolArray, granularities: FloatArray, *, pieces: bool = True) -> dict[str, float]:
    """How one click's masks answer to the dial.

    Args:
        masks: (S, H, W) bool, for ascending granularities.
        granularities: (S,) ascending, S >= 2.
        pieces: count components and holes, the slow part.

    Returns:
        spread: mean of |A(g) - A(lowest g)|, A the share of the image's area.
        end_iou: IoU of the first and the last mask; above 0.9 the control is ignored.
        distinct_masks: size of a greedy cover in which masks above IoU 0.9 are one.
        spearman: rank correlation of g and area (0 if the area is constant).
        violation_rate: share of steps at which the area falls by more than 2 %.
        monotone: 1.0 if no step does.
        nesting_adjacent, nesting: mean share of the smaller g's mask inside the larger g's, over neighbouring and over
            all pairs (NaN if no mask of a smaller g holds a pixel).
        adjacent_iou: mean IoU of neighbours; largest_jump: 1 - the smallest.
        variation_ratio: total variation of log A over |log A(last) - log A(first)|; 1 = monotone, NaN where undefined.
        components, holes: means per mask, with `pieces`.
    """
    rows = masks.reshape(len(masks), -1).astype(np.float32)
    shared = (rows @ rows.T).astype(np.float64)
    area_px = np.diagonal(shared)
    union = area_px[:, None] + area_px[None, :] - shared
    iou = np.divide(shared, union, out=np.ones_like(union), where=union > 0)
    share = area_px / rows.shape[1]
    adjacent = np.diagonal(iou, 1)
    falls = area_px[1:] < (1 - FALL_TOLERANCE) * area_px[:-1]
    inside = np.divide(shared, area_px[:, None], out=np.full_like(shared, np.nan), where=area_px[:, None] > 0)
    pairs = inside[np.triu_indices(len(masks), 1)]
    log_area = np.log(np.maximum(area_px, 1.0))
    gained = abs(log_area[-1] - log_area[0])
    counted = [_components_and_holes(mask) for mask in masks] if pieces else []
    columns = {
        "spread": float(np.abs(share - share[0]).mean()),
        "end_iou": float(iou[0, -1]),
        "distinct_masks": float(_distinct(iou)),
        "spearman": spearman(np.asarray(granularities, dtype=np.float64), area_px),
        "violation_rate": float(falls.mean()),
        "monotone": float(not falls.any()),
        "nesting_adjacent": _finite_mean(np.diagonal(inside, 1)),
        "nesting": _finite_mean(pairs),
        "adjacent_iou": float(adjacent.mean()),
        "largest_jump": float(1 - adjacent.min()),
        "variation_ratio": float(np.abs(np.diff(log_area)).sum() / gained) if gained > 0 else float("nan"),
    }
    if pieces:
        columns["components"] = float(np.mean([count for count, _ in counted]))
        columns["holes"] = float(np.mean([count for _, count in counted]))
    return columns


def spearman(x: FloatArray, y: FloatArray) -> float:
    """Spearman's rank correlation of two (n,) arrays, ties averaged; 0.0 if one of them is constant."""
    from scipy.stats import rankdata

    a, b = rankdata(x), rankdata(y)
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return 0.0 if scale == 0 else float((a * b).sum() / scale)


def _finite_mean(values: FloatArray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


def _distinct(iou: FloatArray) -> int:
    kept: list[int] = []
    for index in range(len(iou)):
        if all(iou[index, other] < SAME_IOU for other in kept):
            kept.append(index)
    return len(kept)


def _components_and_holes(mask: BoolArray) -> tuple[int, int]:
    """8-connected pieces, and 4-connected pieces of the background that touch no border."""
    pieces = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1
    background = np.pad(~mask, 1, constant_values=True).astype(np.uint8)
    return pieces, cv2.connectedComponents(background, connectivity=4)[0] - 2


# ---------------------------------------------------------------------------------------------------------------------
# One click, a part and its whole

PAIR_RULES: Final = ((0.5, 0.25), (0.7, 0.49))
"""(IoU threshold t, largest area ratio r of part to whole). One mask between both reaches IoU sqrt(r) with each, so a
model that ignores granularity can only pass where r >= t^2; such pairs are left out."""


def pair_success(iou_child: FloatArray, iou_parent: FloatArray, target_iou: float) -> bool:
    """The same click shows the part at one granularity and the whole at a larger one.

    Args:
        iou_child: (S,) IoU of the masks at ascending granularities with the part.
        iou_parent: (S,) with the whole.
    """
    child = np.flatnonzero(np.asarray(iou_child) >= target_iou)
    parent = np.flatnonzero(np.asarray(iou_parent) >= target_iou)
    return bool(child.size and parent.size and child[0] < parent[-1])


def pair_order(iou_child: FloatArray, iou_parent: FloatArray) -> bool:
    """The best granularity for the whole is above the best one for the part (each the first of equals)."""
    return bool(np.argmax(iou_parent) > np.argmax(iou_child))


def pair_columns(iou_child: FloatArray, iou_parent: FloatArray, area_ratio: float) -> dict[str, float]:
    """`pair_success_50`, `pair_success_70` (NaN where the ratio is too large for the threshold) and `pair_order`."""
    columns = {"pair_order": float(pair_order(iou_child, iou_parent))}
    for target_iou, max_ratio in PAIR_RULES:
        name = f"pair_success_{round(100 * target_iou)}"
        counts = area_ratio < max_ratio
        columns[name] = float(pair_success(iou_child, iou_parent, target_iou)) if counts else float("nan")
    return columns
