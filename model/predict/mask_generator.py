"""Everything in an image, at one or more granularities: a grid of clicks in, a tree of masks out.

The image is encoded once for any number of granularities. For each granularity the grid's points go through the decoder
in batches; masks that the model itself thinks little of are dropped (predicted IoU, and stability under a shifted
threshold, as in SAM-2's generator). Of two masks whose *pixels* nearly agree the one with the better predicted IoU
stays: first among the masks of a granularity on the logits' grid, then among all of them on the image's. SAM-2's
generator compares boxes instead, and so loses a part to a whole with the same box, or the whole to the part.

What is left becomes a tree: a mask's parent is the smallest mask that holds at least 0.9 of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import InputError
from pipeline.format import rle as rle_codec
from pipeline.format.granularity import GRANULARITIES, GRANULARITY_MAX, GRANULARITY_MIN
from pipeline.format.schema import CONTAINED_FRACTION, MAX_IMAGE_FRACTION
from pipeline.labeling.atoms import contained_fraction, suppress_duplicates

from ..network.sam2_base import SCRATCH_WIDTH, Size
from .coco_json import FoundMask
from .image import GranularPredictor

_ENLARGED_PIXELS: Final = 2**25
"""Float32 pixels enlarged at once: 128 MB."""


@dataclass(frozen=True, kw_only=True)
class AutomaticConfig:
    """How an image is searched."""

    granularities: tuple[float | None, ...] = GRANULARITIES
    """None: SAM-2's own three masks a point."""
    points_per_side: int = 32
    """Of the grid; SAM-2's generator's value."""
    points_per_batch: int = 64
    """Prompts in one pass of the decoder; SAM-2's value. Less needs less memory."""
    min_predicted_iou: float = 0.8
    """SAM-2's value."""
    min_stability: float = 0.95
    """SAM-2's value."""
    stability_offset: float = 1.0
    """Stability is the IoU of the masks at logits above plus and minus this."""
    max_iou: float = 0.9
    """Two masks are one if their pixels' IoU is above this (the labels' own value)."""
    min_area_px: int = 16
    """On the image's grid; smaller masks are noise."""
    max_masks: int = 1000
    """The best by predicted IoU; benchmarks take 1000."""

    def __post_init__(self) -> None:
        for g in self.granularities:
            if g is not None and not GRANULARITY_MIN <= g <= GRANULARITY_MAX:
                raise InputError(f"granularity {g:g}: expected a number in [{GRANULARITY_MIN}, {GRANULARITY_MAX}]")
        if not self.granularities:
            raise InputError("granularities: expected at least one")
        for name in ("points_per_side", "points_per_batch", "max_masks"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)}: expected at least 1")
        for name in ("min_predicted_iou", "min_stability", "max_iou"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InputError(f"{name} {getattr(self, name)}: expected a number in [0, 1]")


MICRO_CONFIG: Final = AutomaticConfig(points_per_side=16, min_predicted_iou=0.25, min_stability=0.6)
"""A model of minutes of training expects IoUs of 0.2 to 0.5 of itself, and its 64 x 64 logits need no finer grid."""


def default_config(size: Size) -> AutomaticConfig:
    """SAM-2's thresholds for its sizes, lower ones for those that train from scratch."""
    return MICRO_CONFIG if size in SCRATCH_WIDTH else AutomaticConfig()


def point_grid(points_per_side: int, height: int, width: int) -> NDArray[np.float32]:
    """(n * n, 2) x, y in pixels: the centres of n x n equal cells, row by row."""
    steps = (np.arange(points_per_side) + 0.5) / points_per_side
    x, y = np.meshgrid(steps * width, steps * height)
    return np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)


@torch.no_grad()
def find_everything(
    predictor: GranularPredictor,
    image: NDArray[np.uint8],
    config: AutomaticConfig,
    *,
    on_prompts: Callable[[int], None] = lambda done: None,
) -> list[FoundMask]:
    """The masks of an image, as a tree.

    Args:
        predictor: `image` is set in it, once.
        image: (H, W, 3) uint8 RGB.
        config: what is searched and kept.
        on_prompts: called with the prompts done so far, of `len(granularities) * points_per_side ** 2`.

    Returns:
        Trees by the area of their root, within a tree larger masks first; `parent_id` and `instance_id` are places in
        the list. Roots are the masks that no other holds.
    """
    predictor.set_image(image)
    points = point_grid(config.points_per_side, *image.shape[:2])
    candidates: list[FoundMask] = []
    done = 0
    for granularity in config.granularities:
        passed = []
        for start in range(0, len(points), config.points_per_batch):
            batch = points[start : start + config.points_per_batch]
            passed.append(_sure_ones(predictor, batch, granularity, config))
            done += len(batch)
            on_prompts(done)
        candidates += _distinct_at(predictor, passed, granularity, config)
    kept = distinct(candidates, config.max_iou)
    moderate = [each for each in kept if each.area_px <= MAX_IMAGE_FRACTION * image.shape[0] * image.shape[1]]
    return as_tree((moderate or kept[:1])[: config.max_masks])


@dataclass(frozen=True)
class _Passed:
    """Masks that the model is sure of; logits (M, h, w) half precision, the rest (M,), point (M, 2)."""

    logits: Tensor
    score: Tensor
    stability: Tensor
    point: NDArray[np.float32]


def _sure_ones(
    predictor: GranularPredictor, points: NDArray[np.float32], granularity: float | None, config: AutomaticConfig
) -> _Passed:
    own = granularity is None
    logits, score = predictor.predict_logits(points[:, None], None, granularity, multimask=own)
    per_point = logits.shape[1] if own else 1
    logits, score = logits.flatten(0, 1) if own else logits, score.flatten()
    stability = stability_score(logits, config.stability_offset)
    sure = (score >= config.min_predicted_iou) & (stability >= config.min_stability)
    kept = torch.nonzero(sure & (logits > 0).flatten(1).any(dim=1))[:, 0]
    where = points[(kept // per_point).cpu().numpy()]
    return _Passed(logits[kept].half(), score[kept], stability[kept], where)


def stability_score(logits_NHW: Tensor, offset: float) -> Tensor:
    """IoU of the masks above `+offset` and above `-offset`: (N,); 0 for an empty one."""
    high = (logits_NHW > offset).flatten(1).sum(dim=1)
    low = (logits_NHW > -offset).flatten(1).sum(dim=1)
    return high / low.clamp(min=1)


def _distinct_at(
    predictor: GranularPredictor, passed: Sequence[_Passed], granularity: float | None, config: AutomaticConfig
) -> list[FoundMask]:
    """The masks of one granularity without copies of each other, on the image's grid."""
    logits = torch.cat([each.logits for each in passed])
    score = torch.cat([each.score for each in passed])
    stability = torch.cat([each.stability for each in passed])
    point = np.concatenate([each.point for each in passed])
    order = torch.argsort(score, descending=True, stable=True)
    rows = (logits[order] > 0).flatten(1).float()
    kept = order[torch.from_numpy(suppress_duplicates(_intersections(rows), max_iou=config.max_iou)).to(order.device)]
    found = []
    height, width = predictor.sizes[0]
    step = max(1, _ENLARGED_PIXELS // (height * width))
    for start in range(0, len(kept), step):
        chosen = kept[start : start + step]
        masks = (predictor.enlarge(logits[chosen].float()) > 0).cpu().numpy()
        for mask, index in zip(masks, chosen.tolist(), strict=True):
            if mask.sum() >= config.min_area_px:
                x, y = point[index].tolist()
                found.append(
                    dataclasses.replace(
                        FoundMask.of(mask, granularity, float(score[index])),
                        stability=float(stability[index]),
                        point=(x, y),
                    )
                )
    return found


def _intersections(rows_NP: Tensor) -> NDArray[np.int64]:
    """Shared pixels of each pair of 0/1 rows: exact, since a row has fewer than 2^24."""
    return (rows_NP @ rows_NP.T).round().long().cpu().numpy()


def distinct(found: Sequence[FoundMask], max_iou: float) -> list[FoundMask]:
    """Without near-copies by pixels, best first: by predicted IoU, then area, then RLE."""
    ranked = sorted(found, key=lambda each: (-each.score, -each.area_px, each.segmentation["counts"]))
    return [
        ranked[index] for index in rle_codec.without_copies([each.segmentation for each in ranked], max_iou=max_iou)
    ]


def as_tree(found: Sequence[FoundMask]) -> list[FoundMask]:
    """Orders masks by tree and fills in `parent_id` and `instance_id`; see `find_everything`."""
    by_area = sorted(found, key=lambda each: (-each.area_px, -each.score, each.segmentation["counts"]))
    inside = contained_fraction(rle_codec.pairwise_intersection_px([each.segmentation for each in by_area]))
    parent: list[int | None] = []
    root: list[int] = []
    for place in range(len(by_area)):
        holders = np.flatnonzero(inside[place, :place] >= CONTAINED_FRACTION)
        parent.append(int(holders[-1]) if holders.size else None)
        root.append(root[int(holders[-1])] if holders.size else place)
    order = sorted(range(len(by_area)), key=lambda place: (root[place], place))
    new = {place: number for number, place in enumerate(order)}
    return [
        dataclasses.replace(by_area[place], parent_id=_renamed(new, parent[place]), instance_id=new[root[place]])
        for place in order
    ]


def _renamed(new: dict[int, int], place: int | None) -> int | None:
    return None if place is None else new[place]


def depths(found: Sequence[FoundMask]) -> list[int]:
    """Of each mask in its tree, 0 for a root."""
    depth: list[int] = []
    for each in found:
        depth.append(0 if each.parent_id is None else depth[each.parent_id] + 1)
    return depth


def settings(config: AutomaticConfig) -> dict[str, Any]:
    """For the JSON file."""
    return dataclasses.asdict(config)
