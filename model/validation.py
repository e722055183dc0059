"""How a model does on held-out photographs while it trains: does the dial work, and is the label's g the right one.

Every number that could flatter stands beside its control: the label's g beside the best single g, beside the labels'
g shuffled between objects, beside the best of ten (an oracle). All at the resolution of the model's input, one click.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import InputError
from pipeline.schema import sha256_of

from .granular import GranularSam2
from .index import ShardIndex, filter_rows
from .loader import Example, ExampleSettings, make_example
from .pictures import contact_sheet, write_png
from .step import normalised
from .train_config import TrainConfig
from .views import NO_AUGMENTATION

GRANULARITIES: Final = tuple(round(0.1 * k, 1) for k in range(1, 11))
PICTURED: Final = (0.1, 0.3, 0.5, 0.7, 1.0)
PICTURES: Final = 4
_PROMPTS_PER_IMAGE: Final = 12


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Held-out photographs with fixed clicks, always the same for a data set."""

    images: tuple[Example, ...]

    @classmethod
    def open(cls, directory: str, config: TrainConfig, *, images: int) -> Validation:
        """The first `images` of the held-out share, in the order of their keys' hashes; none if there is no share.

        Raises:
            InputError: a share is held out, but no sample falls into it.
        """
        if not images or not config.holdout:
            return cls(images=())
        index = ShardIndex.open(directory)
        rows = filter_rows(index, min_masks=config.min_masks, holdout=config.holdout, held_out=True)
        if not len(rows):
            raise InputError(f"--holdout {config.holdout}: no sample of {directory} falls into it; hold out more")
        settings = ExampleSettings(
            image_size=config.image_size,
            masks_per_image=_PROMPTS_PER_IMAGE,
            masks_per_click=1,
            balance=0.5,
            clicks=1,
            augmentation=NO_AUGMENTATION,
        )
        keys = index.sample_keys()
        chosen = sorted(rows.tolist(), key=lambda row: sha256_of(keys[row].encode()))[:images]
        return cls(images=tuple(make_example(index.load(row), row, seed=7, settings=settings) for row in chosen))


@torch.no_grad()
def validate(model: GranularSam2, validation: Validation, *, pictures: Path | None, step: int) -> dict[str, Any]:
    """Measures a model in evaluation mode.

    Args:
        model: on its device.
        validation: with at least one image.
        pictures: folder for contact sheets of the first images, one click at five granularities; None: none.
        step: in the pictures' names.

    Returns:
        1-IoU `iou_label_g`, `iou_best_fixed_g` (with `best_fixed_g`, chosen here), `iou_shuffled_g`, `iou_best_of_10`;
        `area_spearman` of mask area against g, median over clicks; `iou_low_high` of the masks at g 0.1 and 1.0;
        `iou_error`, predicted against true IoU at the label's g; `clicks`, `images`.
    """
    rng = np.random.default_rng(11)
    at_label, at_shuffled, sweeps, areas, low_high, errors = [], [], [], [], [], []
    for number, example in enumerate(validation.images):
        if not example.count:
            continue
        target = example.masks()
        masks, _ = sweep(model, example, np.array(GRANULARITIES))
        sweeps.append(_iou(masks, target[:, None]))
        areas.append(masks.sum(axis=(2, 3)))
        low_high.append(_iou(masks[:, 0], masks[:, -1]))
        label = example.granularity.astype(np.float64)
        both, predicted = _at(model, example, np.stack([label, rng.permutation(label)], axis=1))
        iou = _iou(both, target[:, None])
        at_label.append(iou[:, 0])
        at_shuffled.append(iou[:, 1])
        errors.append(np.abs(predicted[:, 0] - iou[:, 0]))
        if pictures is not None and number < PICTURES:
            _picture(masks[0], example, pictures / f"step-{step:08d}-{number}.png")
    if not at_label:
        raise InputError("validation: no mask lies in the held-out images")
    every = np.concatenate(sweeps)
    fixed = every.mean(axis=0)
    ranks = [_spearman(np.array(GRANULARITIES), area) for area in np.concatenate(areas)]
    return {
        "iou_label_g": float(np.concatenate(at_label).mean()),
        "iou_best_fixed_g": float(fixed.max()),
        "best_fixed_g": GRANULARITIES[int(fixed.argmax())],
        "iou_shuffled_g": float(np.concatenate(at_shuffled).mean()),
        "iou_best_of_10": float(every.max(axis=1).mean()),
        "area_spearman": float(np.median(ranks)),
        "iou_low_high": float(np.concatenate(low_high).mean()),
        "iou_error": float(np.concatenate(errors).mean()),
        "clicks": len(every),
        "images": len(at_label),
    }


def sweep(
    model: GranularSam2, example: Example, granularities: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Each click at each granularity: masks (M, G, R, R) bool, predicted IoU (M, G)."""
    return _at(model, example, np.broadcast_to(granularities, (example.count, len(granularities))))


def _at(
    model: GranularSam2, example: Example, granularity_MG: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    device = next(model.parameters()).device
    features = model.encode(normalised([example.image], device))
    count, columns = granularity_MG.shape
    masks = np.zeros((count, columns, *example.image.shape[:2]), dtype=bool)
    iou = np.zeros((count, columns))
    points = torch.from_numpy(example.points).to(device)[:, None]
    labels = torch.ones(count, 1, dtype=torch.int32, device=device)
    first = torch.zeros(count, dtype=torch.long, device=device)
    for column in range(columns):
        g: Tensor = torch.from_numpy(granularity_MG[:, column].astype(np.float32)).to(device)
        decoded = model.decode(features.select(first), points, labels, g)
        logits = F.interpolate(decoded.logits_NMHW.float(), size=masks.shape[-2:], mode="bilinear", align_corners=False)
        masks[:, column] = (logits[:, 0] > 0).cpu().numpy()
        iou[:, column] = decoded.iou_NM[:, 0].float().cpu().numpy()
    return masks, iou


def _picture(masks_GHW: NDArray[np.bool_], example: Example, path: Path) -> None:
    chosen = [GRANULARITIES.index(g) for g in PICTURED]
    sheet = contact_sheet(
        example.image,
        [masks_GHW[each] for each in chosen],
        [f"g = {GRANULARITIES[each]}" for each in chosen],
        points_xy=example.points[:1],
        labels=np.ones(1, dtype=np.int64),
        width_px=min(320, example.image.shape[1]),
    )
    write_png(path, sheet)


def _iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Over the last two axes, broadcast over the others; 1 where both are empty."""
    union = (one | other).sum(axis=(-2, -1))
    return np.where(union > 0, (one & other).sum(axis=(-2, -1)) / np.maximum(union, 1), 1.0)


def _spearman(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Rank correlation, ties by mean ranks; 0 where one side is constant."""
    rank_x, rank_y = _ranks(x), _ranks(y)
    spread = float(rank_x.std() * rank_y.std())
    return float(((rank_x - rank_x.mean()) * (rank_y - rank_y.mean())).mean() / spread) if spread > 0 else 0.0


def _ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[inverse], dtype=np.float64)
