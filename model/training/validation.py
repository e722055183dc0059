"""How a model does on images it does not train on, while it trains: does the dial work, is the label's g right.

Every number that could flatter stands beside its control: the label's g beside the best single g (chosen on images
of the training data), beside the labels' g shuffled between objects, beside the best of ten (an oracle). One click
each, drawn first, then one of the masks under it, all alike; everything at the resolution of the model's input.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.console import note
from pipeline.errors import InputError
from pipeline.format.granularity import GRANULARITIES
from pipeline.format.schema import sha256_of

from ..data.augmentation import NO_AUGMENTATION
from ..data.shards import BadSampleError, LoadedSample, Locations, ShardIndex, filter_rows, told_locations
from ..data.stream import Example, ExampleSettings, make_example
from ..evaluation.bootstrap import ratio_interval
from ..evaluation.protocols.metrics import spearman, sweep_columns
from ..network.granular import GranularSam2
from ..network.pixels import normalised_batch
from ..predict.draw import Rgb, contact_sheet
from .config import TrainConfig

PICTURED: Final = (0.1, 0.3, 0.5, 0.7, 1.0)
PICTURES: Final = 4
CLICKS_PER_IMAGE: Final = 12
_CLICK_SEED: Final = 7
_SHUFFLE_SEED: Final = 11
_SWEEP_MEANS: Final = ("end_iou", "violation_rate", "nesting", "distinct_masks", "components")

Columns = dict[str, NDArray[np.float64]]
"""Of one image: one value for each of its M clicks; `sweep_iou` is (M, 10)."""


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Images with fixed clicks, always the same for a data set."""

    images: tuple[Example, ...]
    chosen_on: tuple[Example, ...] = ()
    """Images of the training data, on which the best single g is chosen."""

    @classmethod
    def open(
        cls, data: Locations, config: TrainConfig, *, images: int, apart: str | None = None, skip_bad: bool = False
    ) -> Validation:
        """The first `images` of what is not trained on, in the order of their keys' hashes; none if all is.

        Args:
            data: the training data.
            config: of the run.
            images: at most.
            apart: other shards to validate on, instead of a held-out share.
            skip_bad: take the next image for one that cannot be read, and say so.

        Raises:
            BadSampleError: an image cannot be read, and none may be skipped.
            InputError: a share is held out, but no sample falls into it; or `apart` holds the training data.
        """
        if not images or not (config.holdout or apart):
            return cls(images=())
        trained, where = ShardIndex.open_all(data), told_locations(data)
        trained_rows = filter_rows(trained, min_masks=config.min_masks, holdout=config.holdout, held_out=False)
        index = ShardIndex.open(apart) if apart else trained
        share = config.holdout if not apart else 0.0
        rows = filter_rows(index, min_masks=config.min_masks, holdout=share, held_out=not apart)
        if not len(rows):
            raise InputError(
                f"--holdout {config.holdout}: no sample of {where} falls into it; hold out more"
                if not apart
                else f"--validation-data {apart}: none of {len(index)} samples has {config.min_masks} masks"
            )
        if apart and set(np.array(index.sample_keys())[rows]) & set(np.array(trained.sample_keys())[trained_rows]):
            raise InputError(f"--validation-data {apart}: it holds samples of --data {where}; validate on others")
        return cls(
            images=_fixed_examples(index, rows, images, config.image_size, skip_bad=skip_bad),
            chosen_on=_fixed_examples(trained, trained_rows, images, config.image_size, skip_bad=skip_bad),
        )


def _fixed_examples(
    index: ShardIndex, rows: NDArray[np.int64], images: int, image_size: int, *, skip_bad: bool
) -> tuple[Example, ...]:
    keys = index.sample_keys()
    found: list[Example] = []
    for row in sorted(rows.tolist(), key=lambda row: sha256_of(keys[row].encode())):
        if len(found) == images:
            break
        try:
            found.append(fixed_example(index.load(row), image_size))
        except BadSampleError as error:
            if not skip_bad:
                raise BadSampleError(f"{error}; `--on-bad-sample skip` validates on others") from error
            note(f"skipped in validation: {error}")
    return tuple(found)


def fixed_example(sample: LoadedSample, image_size: int, *, clicks: int = CLICKS_PER_IMAGE) -> Example:
    """The whole image with clicks that depend on its key alone."""
    settings = ExampleSettings(
        image_size=image_size,
        masks_per_image=clicks,
        masks_per_click=1,
        balance=0.0,
        clicks=1,
        augmentation=NO_AUGMENTATION,
    )
    return make_example(sample, int(sha256_of(sample.key.encode())[:8], 16), seed=_CLICK_SEED, settings=settings)


def validate(
    model: GranularSam2, validation: Validation, *, show: Callable[[int, Rgb], None] | None = None
) -> dict[str, Any]:
    """Measures a model in evaluation mode.

    Args:
        model: on its device.
        validation: with at least one image.
        show: gets a number and a contact sheet of each of the first images, one click at five granularities.

    Returns:
        What `dial_figures` returns.
    """
    fixed = best_fixed_g(measure_clicks(model, validation.chosen_on)) if validation.chosen_on else None
    columns = measure_clicks(model, validation.images)
    if show is not None:
        for number, example in enumerate(validation.images[:PICTURES]):
            if example.count:
                show(number, five_granularities(model, example))
    return dial_figures(columns, fixed_g=fixed)


def best_fixed_g(images: Sequence[Columns]) -> float:
    """The one granularity of ten that does best over all clicks."""
    return GRANULARITIES[int(np.concatenate([each["sweep_iou"] for each in images]).mean(axis=0).argmax())]


def dial_figures(images: Sequence[Columns], *, fixed_g: float | None = None, seed: int = 0) -> dict[str, Any]:
    """The figures of a set of images, from `measure_clicks`.

    Args:
        images: one entry for each image.
        fixed_g: the best single granularity, chosen elsewhere; None: chosen here, which flatters it.
        seed: of the intervals' resampling.

    Returns:
        1-IoU `iou_label_g`, `iou_best_fixed_g` (`best_fixed_g`, `fixed_g_chosen_elsewhere`), `iou_shuffled_g`,
        `iou_best_of_10`; `gain_over_fixed_g` and `gain_over_shuffled_g`, paired, each `{value, low, high}` with a 95 %
        interval over images; `area_spearman` of mask area against g, median over clicks, and
        `area_spearman_shuffled` with g permuted; `iou_low_high` of the masks at g 0.1 and 1.0, `area_violations`,
        `nesting`, `distinct_masks`, `components`, see `metrics.sweep_columns` (0 where no answer at all has a pixel, as
        in a model's first steps); `iou_error`, predicted against true
        IoU at the label's g; `clicks`, `images`.
    """
    chosen = best_fixed_g(images) if fixed_g is None else fixed_g
    column = GRANULARITIES.index(chosen)
    joined = {name: np.concatenate([each[name] for each in images]) for name in images[0]}
    fixed = joined["sweep_iou"][:, column]
    means = {name: _mean_of_numbers(joined[name]) for name in _SWEEP_MEANS}
    return {
        "iou_label_g": float(joined["label_iou"].mean()),
        "iou_best_fixed_g": float(fixed.mean()),
        "best_fixed_g": chosen,
        "fixed_g_chosen_elsewhere": fixed_g is not None,
        "iou_shuffled_g": float(joined["shuffled_iou"].mean()),
        "iou_best_of_10": float(joined["sweep_iou"].max(axis=1).mean()),
        "gain_over_fixed_g": paired_gain([each["label_iou"] - each["sweep_iou"][:, column] for each in images], seed),
        "gain_over_shuffled_g": paired_gain([each["label_iou"] - each["shuffled_iou"] for each in images], seed),
        "area_spearman": float(np.median(joined["spearman"])),
        "area_spearman_shuffled": float(np.median(joined["spearman_shuffled"])),
        "iou_low_high": means["end_iou"],
        "area_violations": means["violation_rate"],
        "nesting": means["nesting"],
        "distinct_masks": means["distinct_masks"],
        "components": means["components"],
        "iou_error": float(joined["iou_error"].mean()),
        "clicks": len(fixed),
        "images": len(images),
    }


def _mean_of_numbers(values: NDArray[np.float64]) -> float:
    """Without what is not a number; 0 if nothing is."""
    numbers = values[~np.isnan(values)]
    return float(numbers.mean()) if numbers.size else 0.0


def paired_gain(differences: Sequence[NDArray[np.float64]], seed: int = 0) -> dict[str, float]:
    """Mean over all clicks of a paired difference, (C,) for each image, with the interval over images."""
    sums = np.array([each.sum() for each in differences])
    counts = np.array([each.size for each in differences], dtype=np.float64)
    found = ratio_interval(sums, counts, seed=seed)
    assert found is not None, "every image has a click"
    return {"value": found.value, "low": found.low, "high": found.high}


Answering = Callable[[Example, NDArray[np.float64]], tuple[NDArray[np.bool_], NDArray[np.float64]]]
"""What `answers` does for a model: an example and granularities (M, G) -> masks (M, G, R, R), predicted IoU (M, G)."""


def measure_clicks(
    model: GranularSam2 | None, examples: Sequence[Example], *, answering: Answering | None = None
) -> list[Columns]:
    """Each click at ten granularities, at its label's and at another object's.

    Args:
        model: in evaluation mode; None where `answering` is given.
        examples: images with their clicks.
        answering: what answers in a model's place.

    Raises:
        InputError: no example has a click.
    """
    if answering is None:
        assert model is not None
        answering = functools.partial(answers, model)
    examples = [each for each in examples if each.count]
    if not examples:
        raise InputError("validation: no mask lies in its images")
    rng = np.random.default_rng(_SHUFFLE_SEED)
    labels = np.concatenate([each.granularity for each in examples]).astype(np.float64)
    others = np.split(rng.permutation(labels), np.cumsum([each.count for each in examples])[:-1])
    g = np.array(GRANULARITIES)
    measured = []
    for example, other in zip(examples, others, strict=True):
        grid = np.broadcast_to(g, (example.count, len(g)))
        asked = np.concatenate([example.granularity[:, None].astype(np.float64), other[:, None], grid], axis=1)
        masks, predicted = answering(example, asked)
        overlap = iou(masks, example.masks()[:, None])
        swept = [sweep_columns(each[2:], g) for each in masks]
        areas = masks[:, 2:].sum(axis=(2, 3)).astype(np.float64)
        measured.append(
            {
                "label_iou": overlap[:, 0],
                "shuffled_iou": overlap[:, 1],
                "sweep_iou": overlap[:, 2:],
                "iou_error": np.abs(predicted[:, 0] - overlap[:, 0]),
                "spearman": np.array([each["spearman"] for each in swept]),
                "spearman_shuffled": np.array([spearman(rng.permutation(g), area) for area in areas]),
                **{name: np.array([each[name] for each in swept]) for name in _SWEEP_MEANS},
            }
        )
    return measured


def sweep(
    model: GranularSam2, example: Example, granularities: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Each click at each granularity: masks (M, G, R, R) bool, predicted IoU (M, G)."""
    return answers(model, example, np.broadcast_to(granularities, (example.count, len(granularities))))


@torch.no_grad()
def answers(
    model: GranularSam2, example: Example, granularity_MG: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Each click at granularities of its own, (M, G): masks (M, G, R, R) bool, predicted IoU (M, G)."""
    device = next(model.parameters()).device
    features = model.encode(normalised_batch([example.image], device))
    count, columns = granularity_MG.shape
    masks = np.zeros((count, columns, *example.image.shape[:2]), dtype=bool)
    predicted = np.zeros((count, columns))
    points = torch.from_numpy(example.points).to(device)[:, None]
    labels = torch.ones(count, 1, dtype=torch.int32, device=device)
    first = torch.zeros(count, dtype=torch.long, device=device)
    for column in range(columns):
        g: Tensor = torch.from_numpy(granularity_MG[:, column].astype(np.float32)).to(device)
        decoded = model.decode(features.select(first), points, labels, g)
        logits = F.interpolate(decoded.logits_NMHW.float(), size=masks.shape[-2:], mode="bilinear", align_corners=False)
        masks[:, column] = (logits[:, 0] > 0).cpu().numpy()
        predicted[:, column] = decoded.iou_NM[:, 0].float().cpu().numpy()
    return masks, predicted


def five_granularities(model: GranularSam2, example: Example, click: int = 0) -> Rgb:
    """One click of an example at `PICTURED` granularities, side by side."""
    masks, _ = sweep(model, example, np.array(PICTURED))
    return contact_sheet(
        example.image,
        list(masks[click]),
        [f"g = {g}" for g in PICTURED],
        points_xy=example.points[click : click + 1],
        labels=np.ones(1, dtype=np.int64),
        width_px=min(320, example.image.shape[1]),
    )


def iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Over the last two axes, broadcast over the others; 1 where both are empty."""
    union = (one | other).sum(axis=(-2, -1))
    return np.where(union > 0, (one & other).sum(axis=(-2, -1)) / np.maximum(union, 1), 1.0)
