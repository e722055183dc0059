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

from pipeline.format.granularity import GRANULARITY_BINS

from .augmentation import View, unpacked, view_masks
from .shards import LoadedSample

_TRIES: Final = 8
"""Pixels drawn for one click at first: instances cover most of an image."""


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


def prompt_draws(count: int, masks_per_click: int) -> int:
    """Numbers that `draw_prompts` takes, whatever they come to."""
    return -(-count // masks_per_click) * (_TRIES + 1 + 3 * masks_per_click)


def draw_prompts(
    draws: NDArray[np.float64],
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
        draws: as many as `prompt_draws` says, in [0, 1): the only source of chance.
        sample: n masks.
        view: where the clicks fall.
        eligible: (n,) bool, masks that stay true in the view.
        count: M, prompts to draw.
        masks_per_click: different masks drawn for one click, so that the same click is seen with several granularities.
        balance: in [0, 1]; the share of draws that choose among the granularity bins under the click first, and a mask
            of that bin then; the rest choose among the masks alike.
    """
    clicks = -(-count // masks_per_click)
    pixels = (draws[: _TRIES * clicks] * view.size**2).astype(np.int64)
    choices = draws[(_TRIES + 1) * clicks :].reshape(clicks, masks_per_click, 3)

    # Where the clicks fall is drawn first; only if too few fall on anything is there an image of what is covered.
    def drawn(pixels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
        found: tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]] = _draw(
            sample.run_lengths.ends,
            sample.run_lengths.first,
            sample.instance_id,
            sample.granularity,
            eligible,
            pixels,
            view.source_of(pixels),
            view.size,
            choices,
            balance,
            count,
        )
        return found

    covered, points, mask_id = drawn(pixels)
    if covered.size < clicks:
        more = draws[_TRIES * clicks : (_TRIES + 1) * clicks - covered.size]
        pixels = np.concatenate([pixels[covered], _covered_pixels(more, sample, view, eligible)])
        covered, points, mask_id = drawn(pixels)
    return Prompts(
        points=points,
        masks_packed=view_masks(sample.run_lengths, mask_id, view),
        granularity=sample.granularity[mask_id],
        mask_id=mask_id,
    )


def _covered_pixels(
    draws: NDArray[np.float64], sample: LoadedSample, view: View, eligible: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """A view pixel v R + u for each of some draws, from an image of what instances with eligible masks cover.

    Drawing from the whole view again and again needs no such image, but does not end where little is covered. Nothing
    may be: then the answer is empty.
    """
    instances = np.unique(sample.instance_id[eligible])
    union = np.bitwise_or.reduce(view_masks(sample.run_lengths, instances, view), axis=0)[None]
    where = np.flatnonzero(unpacked(union))
    return where[(draws * where.size).astype(np.int64)] if where.size else where


@numba.njit(cache=True)
def _draw(  # type: ignore[no-untyped-def]
    ends, first, instance_id, granularity, eligible, pixels, source, size, choices, balance, count
):
    """Takes the first clicks that fall on an instance with an eligible mask, and chooses among the masks under them.

    All in one call, for calling small functions from Python costs more than what they do.

    Args:
        ends: of the masks' run lengths.
        first: likewise.
        instance_id: (n,).
        granularity: (n,).
        eligible: (n,) bool.
        pixels: (p,) of the view, v R + u.
        source: (p,) numbers of the pixels under them; -1 is outside.
        size: R.
        choices: (clicks, masks for each at most, 3) in [0, 1).
        balance: as `draw_prompts`.
        count: M at most.

    Returns:
        Places in `pixels` of the clicks (fewer if not so many are covered); and for each of M prompts its point
        (x, y), (M, 2), and its mask, (M,).
    """
    clicks, most = choices.shape[:2]
    covering = np.zeros(instance_id.size, dtype=np.bool_)
    for mask in range(instance_id.size):
        if eligible[mask]:
            covering[instance_id[mask]] = True
    covered = _first_held(ends, first, np.flatnonzero(covering), source, clicks)
    under, number = _held(ends, first, eligible, source[covered])
    points, mask_id = np.empty((count, 2), dtype=np.float32), np.empty(count, dtype=np.int64)
    total = 0
    for click in range(covered.size):
        left = under[click, : number[click]]
        for draw in range(min(most, left.size, count - total)):
            pick = _choose(granularity[left], choices[click, draw], balance)
            points[total, 0], points[total, 1] = pixels[covered[click]] % size, pixels[covered[click]] // size
            mask_id[total] = left[pick]
            left[pick:-1] = left[pick + 1 :].copy()
            left = left[:-1]
            total += 1
    return covered, points[:total], mask_id[:total]


@numba.njit(cache=True)
def _first_held(ends, first, masks, pixels, count):  # type: ignore[no-untyped-def]
    """Places in `pixels`, source numbers or -1, of the first `count` that any of some masks holds."""
    places = np.empty(count, dtype=np.int64)
    found = 0
    for place in range(pixels.size):
        if found == count:
            break
        for mask in masks:
            if _holds(ends, first[mask], first[mask + 1], pixels[place]):
                places[found] = place
                found += 1
                break
    return places[:found]


@numba.njit(cache=True)
def _held(ends, first, eligible, pixels):  # type: ignore[no-untyped-def]
    """Of each of p source pixels the eligible masks that hold it, ascending: (p, n), and how many there are, (p,)."""
    masks, number = np.empty((pixels.size, eligible.size), np.int64), np.zeros(pixels.size, np.int64)
    for mask in np.flatnonzero(eligible):
        for j in range(pixels.size):
            if _holds(ends, first[mask], first[mask + 1], pixels[j]):
                masks[j, number[j]] = mask
                number[j] += 1
    return masks, number


@numba.njit(cache=True)
def _holds(ends, begin, stop, pixel):  # type: ignore[no-untyped-def]
    """Whether a mask, whose run lengths end at ends[begin:stop], holds a pixel."""
    if pixel < ends[begin] or pixel >= ends[stop - 1 - (stop - begin) % 2]:  # before or behind its foreground
        return False
    # The first run that ends behind the pixel. Unsigned, else each index would be asked whether it counts from the end.
    low, high = np.uint64(begin), np.uint64(stop)
    while low < high:
        middle = (low + high) >> np.uint64(1)
        if ends[middle] <= pixel:
            low = middle + np.uint64(1)
        else:
            high = middle
    return (low - np.uint64(begin)) % np.uint64(2) == 1


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

    All prompts at once and nothing read back, so a GPU is not waited for: the wrong pixels are counted row by row, and
    the drawn one is looked for in its row.

    Args:
        predicted_NHW: bool; W a multiple of 8.
        target_NHW: bool.
        draws_N: numbers in [0, 1), one for each prompt; which of the wrong pixels, in reading order.

    Returns:
        points (N, 1, 2) float32 in pixels (x, y), labels (N, 1) int32: 1 where something is missing, 0 where too much
        is marked, -1 (padding) where nothing is wrong.
    """
    wrong = predicted_NHW ^ target_NHW
    through_NH = _true_in_rows(wrong).cumsum(dim=1)
    total_N1 = through_NH[:, -1:]
    # In double precision, where the product is exact: below the total, as the draw is below 1.
    nth_N1 = (draws_N.to(wrong.device).double()[:, None] * total_N1).long()
    y_N1 = _first_above(through_NH, nth_N1)
    nth_in_row_N1 = nth_N1 - torch.where(y_N1 > 0, through_NH.gather(1, (y_N1 - 1).clamp(min=0)), 0)
    row_NW = _rows(wrong, y_N1)
    x_N1 = _first_above(row_NW.cumsum(dim=1), nth_in_row_N1)
    missing_N1 = _rows(target_NHW, y_N1).gather(1, x_N1)
    any_wrong_N1 = total_N1 > 0
    points = torch.where(any_wrong_N1, torch.cat([x_N1, y_N1], dim=1), 0).float()
    return points[:, None], torch.where(any_wrong_N1, missing_N1.int(), -1)


def _true_in_rows(values_NHW: Tensor) -> Tensor:
    """(N, H) int64 from bool: eight bytes are added as one number, 255 times at most, so that none overflows."""
    words = values_NHW.contiguous().view(torch.int64).split(255, dim=2)
    return torch.stack([each.sum(dim=2, keepdim=True).view(torch.uint8).sum(dim=2) for each in words]).sum(dim=0)


def _first_above(ascending_NL: Tensor, value_N1: Tensor) -> Tensor:
    """(N, 1) the first place whose number is above the value; the last one if none is."""
    found = torch.searchsorted(ascending_NL, value_N1, right=True)
    return found.clamp(max=ascending_NL.shape[1] - 1)


def _rows(values_NHW: Tensor, y_N1: Tensor) -> Tensor:
    """(N, W), one row of each."""
    return values_NHW.gather(1, y_N1[:, :, None].expand(-1, -1, values_NHW.shape[2]))[:, 0]
