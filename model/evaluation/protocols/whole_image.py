"""Every mask of an image from a grid of clicks, at one g and at ten, and the recall of people's segments.

A pass clicks a 32 x 32 grid at one g. Masks below the thresholds for predicted IoU and stability go (by default none:
a mask too many costs nothing under the cap, one too few does), copies go (mask IoU of at least 0.9, the higher
predicted IoU stays), and the first 1,000 by predicted IoU remain. **Pooled**: the union of the ten passes' remaining
masks, copies removed again, the first 1,000. Copies are compared on the model's own mask grid. The paper publishes only
that it pools ten passes and drops masks of low confidence; every choice above is ours.

Variants, each by itself and with `_raw` for no removal of copies: `single:G` (one pass), `pooled` (ten), and the
controls of `controls.py`: `ten_grids`, `shuffled_pass`, `ignored` (the one pass at the constant g), `own` (one pass of
SAM-2's single masks), `best_of_3` (one pass of SAM-2's three masks).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numba
import numpy as np
from numpy.typing import NDArray

from pipeline.format import rle as rle_codec
from pipeline.format.granularity import GRANULARITIES

from ..benchmarks.records import GroundTruth
from ..subjects.predictors import Answers, ClickModel
from .controls import GRID_PASSES, click_grid, moved_grids, seed_of
from .metrics import rank_by_score, recall_best, recall_one_to_one
from .options import ModelOptions

FloatArray = NDArray[np.float64]

_PROMPTS_AT_ONCE: Final = 64


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Masks of one or several passes, without their pixels.

    Attributes:
        score: (D,) predicted IoU.
        iou: (D, G) with the image's objects; for a crowd, intersection over the mask's area.
        bits: (D, W) uint64, each mask on the model's own grid.
        cells: (D,) its size there.
    """

    score: FloatArray
    iou: FloatArray
    bits: NDArray[np.uint64]
    cells: NDArray[np.int64]

    def rows(self, chosen: NDArray[np.int64]) -> Candidates:
        return Candidates(
            score=self.score[chosen], iou=self.iou[chosen], bits=self.bits[chosen], cells=self.cells[chosen]
        )

    @staticmethod
    def together(several: Sequence[Candidates]) -> Candidates:
        return Candidates(
            score=np.concatenate([each.score for each in several]),
            iou=np.concatenate([each.iou for each in several]),
            bits=np.concatenate([each.bits for each in several]),
            cells=np.concatenate([each.cells for each in several]),
        )

    def without_copies(self, nms_iou: float) -> Candidates:
        """By falling score, each mask that no kept one overlaps with an IoU of at least `nms_iou`."""
        order = rank_by_score(self.score)
        kept = _keep(self.bits[order], self.cells[order], nms_iou)
        return self.rows(order[kept])

    def best(self, count: int) -> Candidates:
        """The first `count` by score (equal scores: in the order of passes and clicks)."""
        return self.rows(rank_by_score(self.score)[:count])


@numba.njit(cache=True)
def _keep(bits, cells, limit):  # type: ignore[no-untyped-def]
    count, words = bits.shape
    kept = np.empty(count, dtype=np.int64)
    size = 0
    for index in range(count):
        copy = False
        for position in range(size):
            other = kept[position]
            small, large = min(cells[index], cells[other]), max(cells[index], cells[other])
            if small < limit * large:  # the IoU cannot exceed the ratio of the sizes
                continue
            shared = 0
            for word in range(words):
                x = bits[index, word] & bits[other, word]
                x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
                x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
                x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
                shared += np.int64((x * np.uint64(0x0101010101010101)) >> np.uint64(56))
            if shared >= limit * (cells[index] + cells[other] - shared):
                copy = True
                break
        if not copy:
            kept[size] = index
            size += 1
    return kept[:size]


def packed(masks: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """(D, h, w) bool -> (D, W) uint64, 64 cells a word."""
    flat = masks.reshape(len(masks), -1)
    padded = np.zeros((len(flat), -(-flat.shape[1] // 64) * 64), dtype=np.bool_)
    padded[:, : flat.shape[1]] = flat
    return np.ascontiguousarray(np.packbits(padded, axis=1)).view(np.uint64)


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


def collect(
    model: ClickModel, points: FloatArray, granularity: FloatArray | None, objects: Objects, options: ModelOptions,
    *, multimask: bool = False,
) -> Candidates:  # fmt: skip
    """One pass: every click's mask (or masks) that is not empty and meets the thresholds.

    Args:
        model: with the image set.
        points: (N, 2) clicks.
        granularity: (N,) or None.
        objects: of the image.
        options: the thresholds.
        multimask: the model's own several masks.
    """
    several: list[Candidates] = []
    for start in range(0, len(points), _PROMPTS_AT_ONCE):
        chunk = points[start : start + _PROMPTS_AT_ONCE, None, :]
        labels = np.ones(chunk.shape[:2], dtype=np.int32)
        if multimask:
            answers = model.answer_multimask(chunk, labels)
        else:
            g = None if granularity is None else granularity[start : start + _PROMPTS_AT_ONCE]
            answers = model.answer(chunk, labels, g)
        several.append(_weighed(answers, objects, options))
    return Candidates.together(several)


def _weighed(answers: Answers, objects: Objects, options: ModelOptions) -> Candidates:
    grid = answers.grid()
    cells = grid.sum(axis=(1, 2), dtype=np.int64)
    fit = (cells > 0) & (answers.iou >= options.pred_iou_threshold)
    if options.stability_threshold > 0:
        fit &= answers.stability() >= options.stability_threshold
    chosen = np.flatnonzero(fit)
    return Candidates(
        score=answers.iou[chosen],
        iou=objects.iou_with(answers.masks(chosen)),
        bits=packed(grid[chosen]),
        cells=cells[chosen],
    )


def variants(model: ClickModel, truth: GroundTruth, options: ModelOptions, *, image: str) -> dict[str, Candidates]:
    """Every way of taking an image apart, ranked and cut at the cap."""
    objects = Objects.of(truth)
    grid = click_grid(truth.height, truth.width, options.points_per_side)
    moved = moved_grids(
        truth.height, truth.width, options.points_per_side, GRID_PASSES, seed_of(options.seed, "grids", image)
    )
    passes: dict[str, Candidates] = {}
    constant = None
    if model.takes_granularity:
        constant = np.full(len(grid), options.constant)
        for g in GRANULARITIES:
            passes[f"single:{g:.2f}"] = collect(model, grid, np.full(len(grid), g), objects, options)
    if options.controls:
        if model.takes_granularity:
            passes["ignored"] = passes[f"single:{options.constant:.2f}"]
            random = np.random.default_rng(seed_of(options.seed, "granularity", image))
            passes["shuffled_pass"] = collect(
                model, grid, random.choice(np.array(GRANULARITIES), len(grid)), objects, options
            )
        if model.multimask:
            passes["best_of_3"] = collect(model, grid, None, objects, options, multimask=True)
    if model.answers_without and (options.controls or not model.takes_granularity):
        passes["own"] = collect(model, grid, None, objects, options)
    found: dict[str, Candidates] = {}
    unique = {name: each.without_copies(options.nms_iou) for name, each in passes.items()}
    for name, each in passes.items():
        found[name] = unique[name].best(options.max_masks)
        found[f"{name}_raw"] = each.best(options.max_masks)
    pools: dict[str, list[Candidates]] = {}
    if model.takes_granularity:
        pools["pooled"] = [passes[f"single:{g:.2f}"] for g in GRANULARITIES]
    if options.controls:
        first = passes["ignored"] if model.takes_granularity else passes["own"]
        pools["ten_grids"] = [first, *(collect(model, each, constant, objects, options) for each in moved[1:])]
    for name, several in pools.items():
        copies_gone = [each.without_copies(options.nms_iou) for each in several]
        found[name] = Candidates.together(copies_gone).without_copies(options.nms_iou).best(options.max_masks)
        found[f"{name}_raw"] = Candidates.together(several).best(options.max_masks)
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
    """One row for each object of each view.

    Returns:
        view -> rows with `object` and `VARIANT.recall_K` as in `metrics.py` (the size classes at 1,000 masks only), and
        `VARIANT.best_iou`; with copies kept only recall at 100 and at 1,000. What an object does not count for is left
        out.
    """
    area = np.array([each.area_px for each in truth.objects], dtype=np.float64)
    crowd = np.array([each.crowd for each in truth.objects], dtype=np.bool_)
    recall = recall_one_to_one if options.matching == "one-to-one" else recall_best
    rows: dict[str, list[dict[str, float | str]]] = {}
    for view, indices in truth.views.items():
        if view == "wholes" or not indices:  # those are for mined instances
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
        rows[view] = made
    return rows
