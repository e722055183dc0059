"""The pair test for sets of masks (mined labels, trees, people): those under the click are the dial, by area.

A set passes at t if, among its masks under the click on a part, one shows the part and a larger one the whole
(`pairs.py` has the rule and the thresholds). It is what a perfect dial over these masks could do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.format import rle as rle_codec
from pipeline.format.rle import Rle

from ..benchmarks.records import GroundTruth
from .metrics import PAIR_RULES, pair_columns
from .simulated_user import Click, next_click


def contain(masks: Sequence[Rle], clicks: Sequence[Click]) -> NDArray[np.bool_]:
    """(D, C) bool: mask d holds click c. Read from the run lengths, column by column."""
    found = np.zeros((len(masks), len(clicks)), dtype=np.bool_)
    for row, mask in enumerate(masks):
        ends = np.cumsum(rle_codec.run_lengths_of(mask))
        places = np.array([click.x * mask["size"][0] + click.y for click in clicks], dtype=np.int64)
        found[row] = np.searchsorted(ends, places, side="right") % 2 == 1
    return found


def pair_sums(masks: Sequence[Rle], iou: NDArray[np.float64], truth: GroundTruth) -> dict[str, tuple[float, float]]:
    """Passed and counted pairs of one image.

    Args:
        masks: D of them.
        iou: (D, G) with the image's objects.
        truth: with its pairs.

    Returns:
        `pair_success_50`, `pair_success_70`: (passed, counted); pairs whose click misses the whole are not counted.
    """
    names = [f"pair_success_{round(100 * target)}" for target, _ in PAIR_RULES]
    sums = {name: [0.0, 0.0] for name in names}
    parts = sorted({pair.part for pair in truth.pairs})
    clicks: dict[int, Click] = {}
    for part in parts:
        mask = rle_codec.decode(truth.objects[part].mask)
        click = next_click(np.zeros_like(mask), mask)
        if click is not None:
            clicks[part] = click
    held = contain(masks, list(clicks.values()))
    column = {part: number for number, part in enumerate(clicks)}
    area = np.array([rle_codec.area_px(rle_codec.run_lengths_of(mask)) for mask in masks], dtype=np.int64)
    for pair in truth.pairs:
        if pair.part not in clicks or not contain([truth.objects[pair.whole].mask], [clicks[pair.part]])[0, 0]:
            continue
        under = np.flatnonzero(held[:, column[pair.part]])
        under = under[np.argsort(area[under], kind="stable")]
        if under.size:
            found = pair_columns(iou[under, pair.part], iou[under, pair.whole], pair.area_ratio)
        else:
            found = {
                name: 0.0 if pair.area_ratio < ratio else np.nan
                for name, (_, ratio) in zip(names, PAIR_RULES, strict=True)
            }
        for name in names:
            if np.isfinite(found[name]):
                sums[name][0] += found[name]
                sums[name][1] += 1
    return {name: (passed, counted) for name, (passed, counted) in sums.items()}
