"""The same click on a part and on its whole: does the dial show both?

The click is the clicker's first for the part and must lie in the whole too. The dial is swept; success at t if a g
shows the part with IoU of at least t and a larger g the whole. One mask between both would reach IoU sqrt(r) with each,
r the area ratio, so pairs count at 0.7 only with r < 0.49 and at 0.5 only with r < 0.25 (`metrics.PAIR_RULES`).

What remains for a model that sees nothing of g is measured: one constant g (all ten, the best is reported), and a mask
made from the ground truth with an area between both, the best that one mask can be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from pipeline.format.granularity import GRANULARITIES

from .metrics import BoolArray, FloatArray, pair_columns


def masks_iou(masks: BoolArray, truth: BoolArray) -> FloatArray:
    """(S,) IoU of (S, H, W) masks with one (H, W) mask; 1 where both are empty."""
    rows = masks.reshape(len(masks), -1)
    flat = truth.ravel()
    shared = rows[:, flat].sum(axis=1, dtype=np.int64)
    union = rows.sum(axis=1, dtype=np.int64) + int(flat.sum()) - shared
    return np.divide(shared, union, out=np.ones(len(masks)), where=union > 0)


def mask_between(part: BoolArray, whole: BoolArray) -> BoolArray:
    """(H, W) bool: the part, grown evenly inside the whole to the area sqrt(A_part A_whole)."""
    target_px = int(np.sqrt(float(part.sum()) * float(whole.sum())))
    missing = target_px - int(part.sum())
    rest = whole & ~part
    if missing <= 0 or not rest.any():
        return part
    distance = cv2.distanceTransform((~part).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    places = np.flatnonzero(rest)
    nearest = places[np.argsort(distance.ravel()[places], kind="stable")[:missing]]
    grown = part.copy()
    grown.ravel()[nearest] = True
    return grown


def pair_row(
    masks: BoolArray | None,
    granularities: Sequence[float],
    others: Mapping[str, BoolArray],
    part: BoolArray,
    whole: BoolArray,
    area_ratio: float,
    *,
    seed: Sequence[int],
) -> dict[str, float | list[float]]:
    """The numbers of one pair under one click.

    Args:
        masks: (S, H, W) at ascending granularities; None: the model has no dial.
        granularities: (S,).
        others: controls' masks (C, H, W) of the same click, taken as a dial that runs from the smallest to the largest.
        part, whole: (H, W) bool.
        area_ratio: of part to whole.
        seed: of the shuffled dial.

    Returns:
        `dial.`, `shuffled.` (the dial's order dealt at random) and one name for each control, each with
        `pair_success_50`, `pair_success_70`, `pair_order`; `constant:G.` for each of the ten g; `between.`; and the
        lists `dial.part_iou`, `dial.whole_iou` over the sweep.
    """
    row: dict[str, float | list[float]] = {}
    if masks is not None:
        with_part, with_whole = masks_iou(masks, part), masks_iou(masks, whole)
        row |= _named("dial", pair_columns(with_part, with_whole, area_ratio))
        row |= {"dial.part_iou": with_part.tolist(), "dial.whole_iou": with_whole.tolist()}
        order = np.random.default_rng([*seed]).permutation(len(masks))
        row |= _named("shuffled", pair_columns(with_part[order], with_whole[order], area_ratio))
        for index, granularity in enumerate(granularities):
            if granularity in GRANULARITIES:
                one = slice(index, index + 1)
                row |= _named(
                    f"constant:{granularity:.2f}", _without_order(with_part[one], with_whole[one], area_ratio)
                )
    for name, several in others.items():
        order = np.argsort(several.reshape(len(several), -1).sum(axis=1), kind="stable")
        with_part, with_whole = masks_iou(several[order], part), masks_iou(several[order], whole)
        row |= _named(name, pair_columns(with_part, with_whole, area_ratio))
    middle = mask_between(part, whole)[None]
    row |= _named("between", _without_order(masks_iou(middle, part), masks_iou(middle, whole), area_ratio))
    return row


def _without_order(with_part: FloatArray, with_whole: FloatArray, area_ratio: float) -> dict[str, float]:
    """One mask for both: success at t asks it to reach t with the part and with the whole."""
    twice = pair_columns(np.repeat(with_part, 2), np.repeat(with_whole, 2), area_ratio)
    return {name: value for name, value in twice.items() if name != "pair_order"}


def _named(name: str, columns: Mapping[str, float]) -> dict[str, float | list[float]]:
    return {f"{name}.{key}": value for key, value in columns.items()}


def best_constant(columns: Mapping[str, FloatArray], metric: str) -> str | None:
    """The constant g (its column's name) with the highest mean of a metric; None without a dial."""
    means: dict[str, float] = {}
    for granularity in GRANULARITIES:
        name = f"constant:{granularity:.2f}.{metric}"
        if name in columns and np.isfinite(columns[name]).any():
            means[name] = float(np.nanmean(columns[name]))
    return max(means, key=lambda name: means[name]) if means else None
