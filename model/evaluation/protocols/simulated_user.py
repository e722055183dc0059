"""The simulated user of the interactive benchmarks: RITM's clicker, as SimpleClick, GraCo and UnSAMv2 use it.

Each click goes to the centre of the fattest error: where the distance to the error's border (the image's border counts)
is largest, of the larger of the two errors, missing and surplus pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from .metrics import BoolArray, mask_iou

MAX_CLICKS: Final = 20


@dataclass(frozen=True)
class Click:
    """One click. `x`, `y` in pixels from the upper left; `positive`: belongs to the object."""

    x: int
    y: int
    positive: bool


@dataclass(frozen=True)
class Aim:
    """How exactly somebody clicks: anywhere in a disk around the place that is meant, alike for every pixel of it.

    Attributes:
        radius: of the disk, as a share of the distance to the error's border (below 1: always inside the error).
        seed: of the draw; click after click another, and the same for the same number of clicks so far.
    """

    radius: float
    seed: tuple[int, ...]


@dataclass(frozen=True)
class Trajectory:
    """What happened to one object.

    Attributes:
        ious: IoU after each click, at most `max_clicks`; it ends at the first that reaches the target.
        clicks: as many.
    """

    ious: tuple[float, ...]
    clicks: tuple[Click, ...]


def next_click(
    predicted: BoolArray,
    truth: BoolArray,
    ignore: BoolArray | None = None,
    clicked: Sequence[Click] = (),
    aim: Aim | None = None,
) -> Click | None:
    """Where the simulated user clicks next.

    The errors are padded by one pixel of background, their exact Euclidean distance transforms taken, pixels already
    clicked set to zero. The larger maximum decides, negative in a tie; among equal maxima the first in row-major order.

    Args:
        predicted: (H, W) bool, all False before the first click.
        truth: (H, W) bool.
        ignore: (H, W) bool, pixels that count for nothing.
        clicked: clicks so far.
        aim: None: exactly where it is meant.

    Returns:
        The click, or None when no wrong pixel is left that was not clicked yet. (RITM then clicks at the upper left.)
    """
    counted = np.ones(truth.shape, dtype=np.bool_) if ignore is None else ~ignore
    missing = _squared_distance_px(truth & ~predicted & counted)
    surplus = _squared_distance_px(~truth & predicted & counted)
    for click in clicked:
        missing[click.y, click.x] = surplus[click.y, click.x] = 0
    positive = bool(missing.max() > surplus.max())
    distance = missing if positive else surplus
    if distance.max() <= 0:
        return None
    y, x = map(int, np.unravel_index(int(np.argmax(distance)), distance.shape))
    if aim is not None:
        y, x = _hit(distance, y, x, aim, len(clicked))
    return Click(x=x, y=y, positive=positive)


def _hit(squared_px: NDArray[np.float64], y: int, x: int, aim: Aim, clicks: int) -> tuple[int, int]:
    """The pixel (y, x) that is met; one that was clicked before (distance 0) is not."""
    reach = aim.radius * float(np.sqrt(squared_px[y, x]))
    side = int(reach)
    top, left = max(y - side, 0), max(x - side, 0)
    window = squared_px[top : y + side + 1, left : x + side + 1]
    ys, xs = np.nonzero(window)
    near = (ys + top - y) ** 2 + (xs + left - x) ** 2 <= reach * reach
    ys, xs = ys[near] + top, xs[near] + left
    pick = np.random.default_rng([*aim.seed, clicks]).integers(len(ys))
    return int(ys[pick]), int(xs[pick])


def _squared_distance_px(mask: BoolArray) -> NDArray[np.float64]:
    """Squared distances to the nearest pixel outside, 0 outside; computed in the mask's bounding box, which changes
    nothing. They are whole numbers, and OpenCV's last bit is not the same in every call: rounded, ties are ties."""
    squared = np.zeros(mask.shape)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size:
        box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        padded = np.pad(mask[box], 1).astype(np.uint8)
        distance = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
        squared[box] = np.rint(distance.astype(np.float64) ** 2)
    return squared


def simulate(
    predict: Callable[[Sequence[Click]], BoolArray],
    truth: BoolArray,
    *,
    ignore: BoolArray | None = None,
    target_iou: float = 0.9,
    max_clicks: int = MAX_CLICKS,
    first: Click | None = None,
) -> Trajectory:
    """Clicks until the target is reached or `max_clicks` were made.

    Args:
        predict: all clicks so far -> (H, W) bool; it keeps its previous logits itself.
        truth: (H, W) bool.
        ignore: (H, W) bool or None.
        target_iou: 0.9, or 0.85 for the part sets.
        max_clicks: 20 in all protocols.
        first: takes the place of the first click (controls with a jittered click).
    """
    predicted = np.zeros(truth.shape, dtype=np.bool_)
    clicks: list[Click] = []
    ious: list[float] = []
    while len(clicks) < max_clicks:
        click = first if first is not None and not clicks else next_click(predicted, truth, ignore, clicks)
        if click is None:
            break
        clicks.append(click)
        predicted = predict(clicks)
        ious.append(mask_iou(predicted, truth, ignore))
        if ious[-1] >= target_iou:
            break
    return Trajectory(ious=tuple(ious), clicks=tuple(clicks))


def jittered_first_clicks(truth: BoolArray, count: int, *, radius: float, seed: Sequence[int]) -> list[Click]:
    """`count` positive clicks inside the object near the clicker's own first one; the first is that one itself.

    Args:
        truth: (H, W) bool, not empty.
        count: how many.
        radius: share of the distance from the first click to the object's border within which clicks fall (1 = the
            largest inscribed disk).
        seed: of the draw.

    Returns:
        Clicks drawn uniformly, with replacement, from the object's pixels in the disk.
    """
    first = next_click(np.zeros(truth.shape, dtype=np.bool_), truth)
    assert first is not None, "an empty object has no click"
    reach = radius * float(np.sqrt(_squared_distance_px(truth)[first.y, first.x]))
    ys, xs = np.nonzero(truth)
    near = (ys - first.y) ** 2 + (xs - first.x) ** 2 <= reach * reach
    ys, xs = ys[near], xs[near]
    picks = np.random.default_rng([*seed]).integers(0, len(ys), count - 1)
    return [first, *(Click(x=int(xs[i]), y=int(ys[i]), positive=True) for i in picks)]
