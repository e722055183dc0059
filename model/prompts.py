"""Simulated prompts: the click comes first, then one of the masks under it.

Masks drawn by themselves are mostly tiny, and a model from scratch collapses to empty ones (measured). Drawing a pixel
first gives every mask a chance in proportion to its area, as a person's click does; among the masks under it the
balance over granularity is a setting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .index import LoadedSample
from .views import View, unpacked, view_masks

GRANULARITY_BINS: Final = 9
"""Of width 0.1 over [0.1, 1.0], for the balance."""
_TRIES: Final = 8
"""Pixels drawn for one click at first: instances cover most of a photograph."""


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """M clicks with the mask that each stands for, in one view of R x R pixels."""

    points: NDArray[np.float32]
    """(M, 2): (x, y) in pixels of the view."""
    masks_packed: NDArray[np.uint8]
    """(M, R, R / 8): the targets, eight pixels to a byte as `np.packbits` does; each holds its click."""
    granularity: NDArray[np.float32]
    """(M,)."""
    mask_id: NDArray[np.int64]
    """(M,): which annotation of the sample."""

    def masks(self) -> NDArray[np.bool_]:
        """(M, R, R)."""
        return unpacked(self.masks_packed)


def no_prompts(size: int) -> Prompts:
    """Nothing to learn from in this view."""
    return Prompts(
        points=np.zeros((0, 2), np.float32),
        masks_packed=np.zeros((0, size, size // 8), np.uint8),
        granularity=np.zeros(0, np.float32),
        mask_id=np.zeros(0, np.int64),
    )


def draw_prompts(
    rng: np.random.Generator,
    sample: LoadedSample,
    view: View,
    eligible: NDArray[np.bool_],
    *,
    count: int,
    masks_per_click: int,
    balance: float,
) -> Prompts:
    """Draws up to `count` prompts.

    Args:
        rng: the only source of chance.
        sample: n masks.
        view: where the clicks fall.
        eligible: (n,) bool, masks that stay true in the view.
        count: M, prompts to draw.
        masks_per_click: different masks drawn for one click, so that the same click is seen with several granularities.
        balance: in [0, 1]; the share of draws that choose among the granularity bins under the click first, and a mask
            of that bin then; the rest choose among the masks alike.
    """
    clicks = -(-count // masks_per_click)
    pixels = _covered_pixels(rng, sample, view, eligible, clicks)
    if pixels.size == 0:
        return no_prompts(view.size)
    order = rng.random((clicks, masks_per_click, 3))
    rows = np.flatnonzero(eligible)
    under = sample.runs.holds(rows, view.source_of(pixels))
    picked, of_click = _choose_masks(under, sample.granularity[rows], order, balance)
    picked, of_click = rows[picked[:count]], of_click[:count]
    clicked = pixels[of_click]
    points = np.empty((len(clicked), 2), dtype=np.float32)
    points[:, 0], points[:, 1] = clicked % view.size, clicked // view.size
    different = {mask: place for place, mask in enumerate(dict.fromkeys(picked.tolist()))}
    packed = view_masks(sample.runs, np.array(list(different), dtype=np.int64), view)
    return Prompts(
        points=points,
        masks_packed=packed[[different[mask] for mask in picked.tolist()]],
        granularity=sample.granularity[picked],
        mask_id=picked,
    )


def _covered_pixels(
    rng: np.random.Generator, sample: LoadedSample, view: View, eligible: NDArray[np.bool_], count: int
) -> NDArray[np.int64]:
    """(count,) view pixels v R + u, each drawn alike from those that an instance with an eligible mask covers.

    Pixels are drawn from the whole view and those not covered drawn again, which needs no image of what is covered. If
    little is, that image is made after all; then nothing may be covered, and the answer is empty.
    """
    of_instance = np.zeros(len(eligible), dtype=np.bool_)
    of_instance[sample.instance_id[eligible]] = True
    instances = np.flatnonzero(of_instance)
    candidates = rng.integers(0, view.size**2, _TRIES * count)
    found = candidates[sample.runs.first_held(instances, view.source_of(candidates), count)]
    if found.size == count:
        return found
    union = np.bitwise_or.reduce(view_masks(sample.runs, instances, view), axis=0)[None]
    where = np.flatnonzero(unpacked(union))
    if where.size == 0:
        return where
    return np.concatenate([found, where[rng.integers(0, where.size, count - found.size)]])


@numba.njit(cache=True)
def _choose_masks(under, granularity, draws, balance):  # type: ignore[no-untyped-def]
    """For each click some different masks under it: their rows and their clicks.

    `under` is (n, clicks) bool, `granularity` (n,), `draws` (clicks, masks for each at most, 3) in [0, 1).
    """
    clicks, most = draws.shape[:2]
    rows, of_click = np.empty(clicks * most, np.int64), np.empty(clicks * most, np.int64)
    total = 0
    for click in range(clicks):
        candidates = np.flatnonzero(under[:, click])
        left = candidates.size
        for draw in range(min(most, left)):
            pick = _choose(granularity[candidates[:left]], draws[click, draw], balance)
            rows[total], of_click[total] = candidates[pick], click
            total += 1
            left -= 1
            candidates[pick:left] = candidates[pick + 1 : left + 1]
    return rows[:total], of_click[:total]


@numba.njit(cache=True)
def _choose(granularity, draws, balance):  # type: ignore[no-untyped-def]
    """Which of the candidates, given three numbers in [0, 1)."""
    if draws[0] >= balance:
        return int(draws[2] * granularity.size)
    bins = np.empty(granularity.size, np.int64)
    members = np.zeros(GRANULARITY_BINS, np.int64)
    for i in range(granularity.size):
        bins[i] = min(max(int((granularity[i] - np.float32(0.1)) * np.float32(10)), 0), GRANULARITY_BINS - 1)
        members[bins[i]] += 1
    chosen = np.flatnonzero(members)[int(draws[1] * np.count_nonzero(members))]
    return np.flatnonzero(bins == chosen)[int(draws[2] * members[chosen])]


def correction_clicks(predicted_NHW: Tensor, target_NHW: Tensor, draws_N: Tensor) -> tuple[Tensor, Tensor]:
    """The next click of each prompt: a pixel drawn uniformly from where the prediction is wrong.

    Args:
        predicted_NHW: bool.
        target_NHW: bool.
        draws_N: numbers in [0, 1), one for each prompt; which of the wrong pixels.

    Returns:
        points (N, 1, 2) float32 in pixels (x, y), labels (N, 1) int32: 1 where something is missing, 0 where too much
        is marked, -1 (padding) where nothing is wrong.
    """
    count, _, width = predicted_NHW.shape
    points = torch.zeros(count, 1, 2, dtype=torch.float32, device=predicted_NHW.device)
    labels = torch.full((count, 1), -1, dtype=torch.int32, device=predicted_NHW.device)
    wrong = (predicted_NHW != target_NHW).flatten(1)
    for prompt, draw in enumerate(draws_N.tolist()):
        pixels = torch.nonzero(wrong[prompt]).squeeze(1)
        if len(pixels):
            pixel = int(pixels[int(draw * len(pixels))])
            points[prompt, 0, 0], points[prompt, 0, 1] = pixel % width, pixel // width
            labels[prompt, 0] = int(target_NHW[prompt, pixel // width, pixel % width])
    return points, labels
