"""Simulated prompts: the click comes first, then one of the masks under it.

Masks drawn by themselves are mostly tiny, and a model from scratch collapses to empty ones (measured). Drawing a pixel
first gives every mask a chance in proportion to its area, as a person's click does; among the masks under it the
balance over granularity is a setting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .index import LoadedSample
from .views import View, view_mask

GRANULARITY_BINS: Final = 9
"""Of width 0.1 over [0.1, 1.0], for the balance."""


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """M clicks with the mask that each stands for, in one view of R x R pixels."""

    points: NDArray[np.float32]
    """(M, 2): (x, y) in pixels of the view."""
    masks: NDArray[np.bool_]
    """(M, R, R): the targets; each holds its click."""
    granularity: NDArray[np.float32]
    """(M,)."""
    mask_id: NDArray[np.int64]
    """(M,): which annotation of the sample."""


def no_prompts(size: int) -> Prompts:
    """Nothing to learn from in this view."""
    return Prompts(
        points=np.zeros((0, 2), np.float32),
        masks=np.zeros((0, size, size), bool),
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
    covered = np.zeros(view.source.shape, dtype=bool)
    for instance in np.unique(sample.instance_id[eligible]):
        covered |= view_mask(sample.rles[instance], view)
    where = np.flatnonzero(covered)
    if where.size == 0:
        return no_prompts(view.size)
    clicks = -(-count // masks_per_click)
    pixels = where[rng.integers(0, where.size, clicks)]
    order = rng.random((clicks, masks_per_click, 3))
    under = _masks_under(sample, eligible, view.source.reshape(-1)[pixels])
    points, chosen = [], []
    for click in range(clicks):
        candidates = np.flatnonzero(under[:, click])
        for draw in range(min(masks_per_click, candidates.size)):
            pick = _choose(sample.granularity[candidates], order[click, draw], balance)
            chosen.append(int(candidates[pick]))
            points.append((pixels[click] % view.size, pixels[click] // view.size))
            candidates = np.delete(candidates, pick)
    chosen, points = chosen[:count], points[:count]
    decoded = {mask: view_mask(sample.rles[mask], view) for mask in set(chosen)}
    return Prompts(
        points=np.array(points, dtype=np.float32).reshape(-1, 2),
        masks=np.stack([decoded[mask] for mask in chosen]),
        granularity=sample.granularity[chosen],
        mask_id=np.array(chosen, dtype=np.int64),
    )


def _masks_under(sample: LoadedSample, eligible: NDArray[np.bool_], pixels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(n, clicks): which masks hold each column-major pixel, from their runs, without decoding them."""
    under = np.zeros((len(sample.rles), pixels.size), dtype=bool)
    for mask in np.flatnonzero(eligible):
        # Run number i ends before ends[i]; odd runs are foreground.
        under[mask] = np.searchsorted(sample.ends[mask], pixels, side="right") % 2 == 1
    return under


def _choose(granularity: NDArray[np.float32], draws: NDArray[np.float64], balance: float) -> int:
    """Which of the candidates, given three numbers in [0, 1)."""
    if draws[0] >= balance:
        return int(draws[2] * granularity.size)
    bins = np.clip(((granularity - 0.1) * 10).astype(np.int64), 0, GRANULARITY_BINS - 1)
    filled = np.unique(bins)
    members = np.flatnonzero(bins == filled[int(draws[1] * filled.size)])
    return int(members[int(draws[2] * members.size)])


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
