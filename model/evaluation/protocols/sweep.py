"""One click, the whole dial: is the control heard, monotone, nested, smooth; and the same click on part and whole.

The click is the clicker's first for the object; g runs over 0.10, 0.15, …, 1.00. All objects of an image are swept in
batches after one encoder pass, and the pair test reads the same masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.format import rle as rle_codec

from ..benchmarks.records import GroundTruth
from ..subjects.predictors import ClickModel, Predictions
from .controls import JITTER_CLICKS, JITTER_RADIUS, SWEEP, seed_of
from .metrics import BoolArray, sweep_columns
from .options import ModelOptions
from .pairs import masks_iou, pair_row
from .simulated_user import Click, jittered_first_clicks, next_click

Row = dict[str, float | list[float]]

_UNORDERED: Final = ("spread", "end_iou", "distinct_masks")
"""What can be said of masks that no dial has put in order."""
_GRANULARITIES: Final[NDArray[np.float64]] = np.array(SWEEP)


@dataclass(frozen=True, kw_only=True)
class ClickMasks:
    """The masks of one click.

    Attributes:
        click: where.
        dial: (S, H, W) bool over the sweep; None: the model has no dial.
        others: controls, (C, H, W) each: `best_of_3`, `best_of_10_clicks`, `ignored`.
    """

    click: Click
    dial: BoolArray | None
    others: Mapping[str, BoolArray]


def click_masks(
    model: ClickModel, truth: BoolArray, options: ModelOptions, *, seed: Sequence[int], ignore: BoolArray | None = None
) -> ClickMasks:
    """Everything that the model and its controls say to the first click on an object.

    Args:
        model: with the image set.
        truth: (H, W) bool, not empty.
        options: whether controls are wanted, and the constant g.
        seed: of the jittered clicks.
        ignore: (H, W) bool or None.
    """
    click = next_click(np.zeros_like(truth), truth, ignore)
    assert click is not None, "an empty object has no click"
    constant = options.constant if model.takes_granularity else None
    dial = _answer(model, [click], _GRANULARITIES).masks() if model.takes_granularity else None
    others: dict[str, BoolArray] = {}
    if options.controls:
        if dial is not None:
            others["ignored"] = dial[SWEEP.index(options.constant)][None]
        if model.multimask:
            others["best_of_3"] = model.answer_multimask(*_prompts([click])).masks()
        clicks = jittered_first_clicks(truth, JITTER_CLICKS, radius=JITTER_RADIUS, seed=seed)
        fixed = None if constant is None else np.full(1, constant)
        others["best_of_10_clicks"] = _answer(model, [click, *clicks[1:]], fixed).masks()
    return ClickMasks(click=click, dial=dial, others=others)


def _answer(model: ClickModel, clicks: Sequence[Click], granularities: NDArray[np.float64] | None) -> Predictions:
    """One click at each of several g, or several clicks at one."""
    count = len(clicks) if granularities is None else max(len(clicks), len(granularities))
    points, labels = _prompts(list(clicks) * (count // len(clicks)))
    return model.answer(points, labels, None if granularities is None else np.broadcast_to(granularities, count).copy())


def _prompts(clicks: Sequence[Click]) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    points = np.array([[(click.x, click.y)] for click in clicks], dtype=np.float64)
    return points, np.ones((len(clicks), 1), dtype=np.int32)


def sweep_row(found: ClickMasks, truth: BoolArray, label: float | None, *, seed: Sequence[int]) -> Row:
    """The numbers of one click.

    Returns:
        `dial.NAME` for the names of `metrics.sweep_columns`, `shuffled.NAME` for the same masks in random order;
        `spread`, `end_iou`, `distinct_masks` also for the controls `ignored` (one mask for all g), `best_of_3` and
        `best_of_10_clicks` (their masks by area: the variety without a dial). `dial.best_iou` and one for each control;
        `dial.best_granularity`, `dial.label_error` (its distance from the label); the lists `dial.iou` and
        `dial.area_fraction` over the sweep.
    """
    row: Row = {}
    if found.dial is not None:
        iou = masks_iou(found.dial, truth)
        best = float(_GRANULARITIES[int(iou.argmax())])
        row |= {f"dial.{name}": value for name, value in sweep_columns(found.dial, _GRANULARITIES).items()}
        row |= {"dial.best_iou": float(iou.max()), "dial.best_granularity": best}
        if label is not None:
            row["dial.label_error"] = abs(best - label)
        row["dial.iou"] = iou.tolist()
        row["dial.area_fraction"] = (found.dial.sum(axis=(1, 2)) / truth.size).tolist()
        order = np.random.default_rng([*seed]).permutation(len(SWEEP))
        dealt = sweep_columns(found.dial[order], _GRANULARITIES, pieces=False)
        row |= {f"shuffled.{name}": value for name, value in dealt.items()}
    for name, masks in found.others.items():
        several = (
            np.repeat(masks, 2, axis=0) if len(masks) == 1 else masks[np.argsort(masks.sum(axis=(1, 2)), kind="stable")]
        )
        columns = sweep_columns(several, np.linspace(0.1, 1.0, len(several)), pieces=False)
        kept = columns if name == "ignored" else {key: columns[key] for key in _UNORDERED}
        row |= {f"{name}.{key}": value for key, value in kept.items()}
        row[f"{name}.best_iou"] = float(masks_iou(masks, truth).max())
    return row


def sweep_image(
    model: ClickModel,
    truth: GroundTruth,
    options: ModelOptions,
    *,
    image: str,
    clicked: Sequence[int],
    pairs: bool,
) -> tuple[list[tuple[int, Row]], list[tuple[int, Row]]]:
    """Sweeps of the objects `clicked`, and the pair test where `pairs`.

    Returns:
        (object, row) for each swept object, (pair, row) for each pair of the image. A pair whose click misses the whole
        has only `click_in_whole` = 0.0.
    """
    swept: list[tuple[int, Row]] = []
    tested: list[tuple[int, Row]] = []
    parts = {pair.part for pair in truth.pairs} if pairs else set()
    wholes: dict[int, BoolArray] = {}
    for index in sorted({*clicked, *parts}):
        each = truth.objects[index]
        mask = rle_codec.decode(each.mask)
        ignore = None if each.ignore is None else rle_codec.decode(each.ignore)
        if not (mask if ignore is None else mask & ~ignore).any():
            continue
        found = click_masks(model, mask, options, seed=seed_of(options.seed, "jitter", image, each.id), ignore=ignore)
        if index in clicked:
            shuffle = seed_of(options.seed, "sweep", image, each.id)
            swept.append((index, sweep_row(found, mask, each.granularity, seed=shuffle)))
        for number, pair in enumerate(truth.pairs if pairs else ()):
            if pair.part != index:
                continue
            if pair.whole not in wholes:
                wholes[pair.whole] = rle_codec.decode(truth.objects[pair.whole].mask)
            whole = wholes[pair.whole]
            inside = bool(whole[found.click.y, found.click.x])
            row: Row = {"click_in_whole": float(inside), "area_ratio": pair.area_ratio}
            if inside:
                shuffle = seed_of(options.seed, "pair", image, each.id, truth.objects[pair.whole].id)
                others = {name: masks for name, masks in found.others.items() if name != "ignored"}
                row |= pair_row(found.dial, SWEEP, others, mask, whole, pair.area_ratio, seed=shuffle)
            tested.append((number, row))
    return swept, tested
