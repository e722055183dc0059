"""Every mask of an image from a grid of clicks, at one g and at ten, and the recall of people's segments.

The search is that of `grainmill segment --everything`, by the same functions (`model/predict/mask_generator.py`). A
pass clicks a 32 x 32 grid at one g. Masks below the thresholds for predicted IoU and stability go (by default none: a
mask too many costs nothing under the cap, one too few does), copies go (mask IoU above 0.9, the higher predicted IoU
stays), and so do masks of fewer than 16 pixels and, unless one is alone, of more than 0.9 of the image; the first 1,000
by predicted IoU remain. **Pooled**: the masks of ten passes, copies removed again, the first 1,000. The paper publishes
only that it pools ten passes and drops masks of low confidence; every choice above is ours.

Variants, each by itself and with `_raw`, where nothing but the thresholds and the cap takes masks away: `single:G` (one
pass), `pooled` (ten), and the controls of `controls.py`: `ten_grids`, `shuffled_pass`, `ignored` (the one pass at the
constant g), `own` (one pass of SAM-2's single masks), `best_of_3` (one pass of SAM-2's three masks).

A model that knows all its masks (the tree without weights) is not clicked: its one variant is `everything`, what
`segment --everything` writes of it, the first 1,000 by predicted IoU.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numba
import numpy as np
from numpy.typing import NDArray

from pipeline.format import rle as rle_codec
from pipeline.format.granularity import GRANULARITIES

from ...predict.coco_json import PredictedMask
from ...predict.mask_generator import AutomaticConfig, ConfidentMasks, distinct, distinct_of_pass, ranked_masks
from ..benchmarks.records import GroundTruth
from ..subjects.predictors import ClickModel, Predictions
from .controls import GRID_PASSES, click_grid, moved_grids, seed_of
from .metrics import rank_by_score, recall_best, recall_one_to_one
from .options import ModelOptions

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Masks, without their pixels.

    Attributes:
        score: (D,) predicted IoU.
        iou: (D, G) with the image's objects; for a crowd, intersection over the mask's area.
    """

    score: FloatArray
    iou: FloatArray

    @staticmethod
    def together(several: Sequence[Candidates]) -> Candidates:
        return Candidates(
            score=np.concatenate([each.score for each in several]),
            iou=np.concatenate([each.iou for each in several]),
        )

    def best(self, count: int) -> Candidates:
        """The first `count` by score (equal scores: in the order of passes and clicks)."""
        chosen = rank_by_score(self.score)[:count]
        return Candidates(score=self.score[chosen], iou=self.iou[chosen])


@dataclass(frozen=True, kw_only=True)
class Objects:
    """The image's objects as sets of atoms, the regions that no object's border crosses: overlaps with any mask follow
    from one count of its pixels by atom.

    Attributes:
        labels: (H W,) int32, each pixel's atom.
        members: (L, G) float64, 1 where an atom lies in an object.
        pixels: (G,) float64, as the masks have it.
        area_px: (G,) as the benchmark states it.
        crowd: (G,) bool.
    """

    labels: NDArray[np.int32]
    members: FloatArray
    pixels: FloatArray
    area_px: FloatArray
    crowd: NDArray[np.bool_]

    @classmethod
    def of(cls, truth: GroundTruth) -> Objects:
        """Pixels in the same objects have the same XOR of the objects' random 64-bit codes; that two atoms share one is
        as unlikely as one in 10^12."""
        codes = np.random.default_rng(0).integers(0, 2**64, len(truth.objects), dtype=np.uint64)
        code = np.zeros(truth.height * truth.width, dtype=np.uint64)
        for index, each in enumerate(truth.objects):
            code[rle_codec.decode(each.mask).ravel()] ^= codes[index]
        _, first, labels = np.unique(code, return_index=True, return_inverse=True)
        members = np.zeros((len(first), len(truth.objects)))
        for index, each in enumerate(truth.objects):
            members[:, index] = rle_codec.decode(each.mask).ravel()[first]
        return cls(
            labels=labels.astype(np.int32),
            members=members,
            pixels=np.bincount(labels, minlength=len(first)).astype(np.float64) @ members,
            area_px=np.array([each.area_px for each in truth.objects], dtype=np.float64),
            crowd=np.array([each.crowd for each in truth.objects], dtype=np.bool_),
        )

    def iou_with(self, masks: NDArray[np.bool_]) -> FloatArray:
        """(D, G) for (D, H, W) masks; for a crowd, intersection over the mask's area."""
        counts = _count_by_atom(masks.reshape(len(masks), -1), self.labels, len(self.members))
        shared = counts @ self.members
        size = counts.sum(axis=1)[:, None]
        union = np.where(self.crowd[None, :], size, size + self.pixels[None, :] - shared)
        return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


@numba.njit(cache=True)
def _count_by_atom(masks, labels, atoms):  # type: ignore[no-untyped-def]
    counts = np.zeros((masks.shape[0], atoms))
    for row in range(masks.shape[0]):
        for pixel in range(masks.shape[1]):
            if masks[row, pixel]:
                counts[row, labels[pixel]] += 1
    return counts


@dataclass(frozen=True)
class Pass:
    """What one pass over a grid found.

    Attributes:
        raw: the first 1,000 with their copies.
        masks: without copies, as the mask generator keeps them, best first.
        iou: (D, G) of `masks`.
    """

    raw: Candidates
    masks: list[PredictedMask]
    iou: FloatArray


class Search:
    """The passes over one image, and what remains of one or several."""

    def __init__(self, model: ClickModel, truth: GroundTruth, options: ModelOptions) -> None:
        self.model, self.options = model, options
        self.size = (truth.height, truth.width)
        self.objects = Objects.of(truth)
        self.config = AutomaticConfig(
            points_per_side=options.points_per_side,
            pred_iou_thresh=options.pred_iou_thresh,
            stability_score_thresh=options.stability_score_thresh,
            max_iou=options.max_iou,
            max_masks=options.max_masks,
        )

    def run(self, points: FloatArray, granularity: FloatArray | None, *, multimask: bool = False) -> Pass:
        """Clicks every point.

        Args:
            points: (N, 2).
            granularity: (N,) or None.
            multimask: the model's own several masks.
        """
        parts: list[ConfidentMasks] = []
        drawn: list[PredictedMask] = []
        for start in range(0, len(points), self.config.points_per_batch):
            rows = slice(start, start + self.config.points_per_batch)
            clicks, dial = points[rows], None if granularity is None else granularity[rows]
            labels = np.ones((len(clicks), 1), dtype=np.int32)
            if multimask:
                found = self.model.answer_multimask(clicks[:, None, :], labels)
            else:
                found = self.model.answer(clicks[:, None, :], labels, dial)
            if found.logits is None:
                drawn += self._drawn(found, dial)
            else:
                clicked = np.repeat(clicks, len(found) // len(clicks), axis=0).astype(np.float32)
                parts.append(ConfidentMasks.of(*found.tensors(), clicked, dial, self.config))
        if parts:
            confident = ConfidentMasks.together(parts)
            best = confident.best(self.options.max_masks)
            raw = self._weighed(best.score.double().numpy(), best.on_image_grid(self.size))
            masks = distinct_of_pass(confident, self.size, self.config)
        else:
            ranked = sorted(drawn, key=lambda each: -each.score)[: self.options.max_masks]
            raw = self._weighed(np.array([each.score for each in ranked]), (each.mask for each in ranked))
            masks = distinct([each for each in drawn if each.area_px >= self.config.min_area_px], self.config.max_iou)
        return Pass(raw, masks, self._weighed(np.empty(0), (each.mask for each in masks)).iou)

    def _drawn(self, found: Predictions, granularity: FloatArray | None) -> list[PredictedMask]:
        """Of a model that gives no logits, the masks that are not empty and sure enough; all count as stable."""
        return [
            PredictedMask.of(mask, None if granularity is None else float(granularity[place]), float(found.iou[place]))
            for place, mask in enumerate(found.masks())
            if found.iou[place] >= self.config.pred_iou_thresh and mask.any()
        ]

    def _weighed(self, score: FloatArray, masks: Iterable[NDArray[np.bool_]]) -> Candidates:
        rows = [self.objects.iou_with(mask[None]) for mask in masks]
        return Candidates(score=score, iou=np.concatenate(rows) if rows else np.zeros((0, len(self.objects.pixels))))

    def all_of(self, masks: Sequence[PredictedMask]) -> Candidates:
        """Masks as they are."""
        return self._weighed(np.array([each.score for each in masks]), (each.mask for each in masks))

    def kept(self, passes: Sequence[Pass]) -> Candidates:
        """What the mask generator keeps of the masks of some passes."""
        overlaps = {id(mask): row for each in passes for mask, row in zip(each.masks, each.iou, strict=True)}
        masks = [mask for each in passes for mask in each.masks]
        chosen = ranked_masks(masks, self.config, self.size[0] * self.size[1])
        rows = [overlaps[id(mask)] for mask in chosen]
        return Candidates(
            score=np.array([mask.score for mask in chosen]),
            iou=np.stack(rows) if rows else np.zeros((0, len(self.objects.pixels))),
        )


def variants(model: ClickModel, truth: GroundTruth, options: ModelOptions, *, image: str) -> dict[str, Candidates]:
    """Every way of taking an image apart, ranked and cut at the cap."""
    search = Search(model, truth, options)
    known = model.everything()
    if known is not None:
        return {"everything": search.all_of(known).best(options.max_masks)}
    grid = click_grid(truth.height, truth.width, options.points_per_side)
    moved = moved_grids(
        truth.height, truth.width, options.points_per_side, GRID_PASSES, seed_of(options.seed, "grids", image)
    )
    passes: dict[str, list[Pass]] = {}
    constant = None
    if model.takes_granularity:
        constant = np.full(len(grid), options.constant)
        for g in GRANULARITIES:
            passes[f"single:{g:.2f}"] = [search.run(grid, np.full(len(grid), g))]
    if options.controls:
        if model.takes_granularity:
            passes["ignored"] = passes[f"single:{options.constant:.2f}"]
            random = np.random.default_rng(seed_of(options.seed, "granularity", image))
            passes["shuffled_pass"] = [search.run(grid, random.choice(np.array(GRANULARITIES), len(grid)))]
        if model.multimask:
            passes["best_of_3"] = [search.run(grid, None, multimask=True)]
    if model.answers_without and (options.controls or not model.takes_granularity):
        passes["own"] = [search.run(grid, None)]
    if model.takes_granularity:
        passes["pooled"] = [passes[f"single:{g:.2f}"][0] for g in GRANULARITIES]
    if options.controls:
        first = passes["ignored"] if model.takes_granularity else passes["own"]
        passes["ten_grids"] = [*first, *(search.run(each, constant) for each in moved[1:])]
    found: dict[str, Candidates] = {}
    for name, several in passes.items():
        found[name] = search.kept(several)
        found[f"{name}_raw"] = Candidates.together([each.raw for each in several]).best(options.max_masks)
    return found


_RAW_COLUMNS: Final = ("recall_100", "recall_1000")
_COLUMNS: Final = (
    "recall_1", "recall_10", "recall_100", "recall_1000", "recall_1000_small", "recall_1000_medium",
    "recall_1000_large", "best_iou",
)  # fmt: skip
"""What is kept of each object: a table of everything would be megabytes an image."""


def whole_image_rows(
    found: dict[str, Candidates], truth: GroundTruth, options: ModelOptions
) -> dict[str, list[dict[str, float | str]]]:
    """One row for each object of each subset.

    Returns:
        subset -> rows with `object`, `VARIANT.recall_K` as in `metrics.py` (the size classes at 1,000 masks only) and
        `VARIANT.best_iou`; with copies kept only recall at 100 and at 1,000. What an object does not count for is left
        out.
    """
    area = np.array([each.area_px for each in truth.objects], dtype=np.float64)
    crowd = np.array([each.crowd for each in truth.objects], dtype=np.bool_)
    recall = recall_one_to_one if options.matching == "one-to-one" else recall_best
    rows: dict[str, list[dict[str, float | str]]] = {}
    for subset, indices in truth.subsets.items():
        if subset == "wholes" or not indices:  # those are for mined instances
            continue
        members = np.array(indices, dtype=np.int64)
        made: list[dict[str, float | str]] = [{"object": truth.objects[index].id} for index in indices]
        for name, each in found.items():
            iou = each.iou[:, members]
            columns = recall(iou, area[members], crowd[members])
            columns["best_iou"] = np.where(crowd[members], np.nan, iou.max(axis=0, initial=0.0))
            for key in _RAW_COLUMNS if name.endswith("_raw") else _COLUMNS:
                for row, value in zip(made, columns[key].tolist(), strict=True):
                    if value == value:  # not NaN
                        row[f"{name}.{key}"] = value
        rows[subset] = made
    return rows
