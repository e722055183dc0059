"""A model on a benchmark: one row for each object, image by image, and the means of their columns with intervals.

Each image's rows are kept in a file of their own (`resume.py`), so that an interrupted run goes on where it was and
gives the same numbers; nothing an image yields depends on another image, on the order or on the number of processes
(torch computes with one thread in each). Rows of different tasks lie in one table, told apart by `task`:

| task | one row for each | columns |
|---|---|---|
| `interactive` | object | `COLUMN.noc_80`, … (interactive.py) |
| `sweep` | clicked object | `dial.spearman`, … (sweep.py) |
| `pairs` | part and whole | `dial.pair_success_50`, … (pairs.py) |
| `whole` | object and `view` | `VARIANT.recall_1000`, … (whole_image.py) |
| `whole_image` | image | `VARIANT.masks` |
| `video` | video | `COLUMN.jf`, … (video.py) |
| `annotators` | object | `POLICY.seconds_80`, … (annotators.py) |
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.format import rle as rle_codec

from ..benchmarks.files import decoded_rgb
from ..benchmarks.records import EvalImage, EvalVideo, GroundTruth, Split
from ..bootstrap import Interval, bootstrap
from ..results import nothing_to_score, summed
from ..resume import each_item
from ..score_records import Cell, Curves, ModelAnswer, Row
from ..subjects.predictors import ClickModel, as_click_model
from .annotator_numbers import annotator_curves, annotator_metrics
from .annotators import AnnotatedObject, annotate_objects
from .controls import SWEEP, seed_of, shuffled_labels
from .interactive import ClickedObject, click_columns, clickers_of, interactive_seed, simulate_objects
from .options import MODEL_TASKS, ModelOptions, ModelTask
from .pairs import best_constant
from .sweep import sweep_image
from .video import as_video_model, video_row
from .whole_image import variants, whole_image_rows

Maker = Callable[[], object]
"""Makes a predictor; can be sent to another process, equal makers make equal predictors, and it can be a dict's key."""

ROW_FORMAT: Final = "grainmill-model-rows/3"
PARTS: Final = "parts"
"""Folder of the image files under the output."""

IDENTITY_COLUMNS: Final = ("task", "image", "object", "view", "area_px", "label", "annotator", "whole")


@dataclass(frozen=True, kw_only=True)
class ModelScores:
    """What `measure_model` found.

    Attributes:
        rows: of `objects.parquet`, see the module's table; a column that an object has no value for is missing or None.
        metrics: `TASK.[SUBSET.]COLUMN.METRIC` -> mean over objects with its interval; paired differences as
            `TASK.COLUMN - COLUMN.METRIC`.
        curves: arrays for plots, name -> {axis or line -> list of numbers}.
        counts: images, objects, objects with and without a label, pairs, videos.
        left_out: annotations that are no objects, reason -> how many.
    """

    rows: list[Row]
    metrics: dict[str, Interval]
    curves: Curves
    counts: dict[str, int]
    left_out: dict[str, int] = field(default_factory=dict)


def measure_model(
    split: Split,
    predictor: object,
    tasks: Sequence[ModelTask],
    options: ModelOptions,
    output: Path,
    *,
    identity: str = "",
    video_predictor: object = None,
) -> ModelScores:
    """Measures a model on a split.

    Args:
        split: of a benchmark's reader.
        predictor: anything with `set_image` and `predict`; or, needed for several workers, a `Maker`.
        tasks: what is measured. `pairs` needs a benchmark that has them.
        options: how.
        output: rows of finished images are kept under it.
        identity: of model and benchmark; rows kept under another identity, other options or tasks are not taken up.
        video_predictor: as `predictor`, for the task `video`; None: the predictor itself.

    Returns:
        Rows and numbers; equal for equal models, options and images.

    Raises:
        InputError: no image, no object, no such task, a model without what the protocol needs.
    """
    unknown = [task for task in tasks if task not in MODEL_TASKS]
    if unknown or not tasks:
        raise InputError(f"tasks: expected some of {', '.join(MODEL_TASKS)}, found {', '.join(unknown) or 'none'}")
    still = tuple(task for task in tasks if task != "video")
    units = [_Unit(source=each, tasks=still) for each in split.images[: options.limit]] if still else []
    if "video" in tasks:
        units += [_Unit(source=each, tasks=("video",)) for each in split.videos[: options.limit]]
    if not units:
        raise InputError(f"the split holds {len(split.images)} images and {len(split.videos)} videos: nothing to score")
    stills = _as_maker(predictor)
    work = partial(
        unit_rows,
        stills=stills,
        videos=stills if video_predictor is None else _as_maker(video_predictor),
        options=options,
    )
    if options.workers > 1 and any(isinstance(work.keywords[name], _Given) for name in ("stills", "videos")):
        raise InputError("--workers: a model that is in memory already can be scored by one worker only")
    text = json.dumps([ROW_FORMAT, identity, list(tasks), options.as_json()], sort_keys=True)
    folder = output / PARTS / hashlib.sha256(text.encode()).hexdigest()[:16]
    answers = each_item(units, work, folder=folder, workers=options.workers, title="score")
    rows: list[Row] = [row for answer in answers for row in answer["rows"]]
    left_out = summed(answer["left_out"] for answer in answers)
    if not any(answer["objects"] for answer in answers):
        raise nothing_to_score(len(units), left_out)
    return ModelScores(
        rows=rows,
        metrics=summarise(rows, options),
        curves=curves_of(rows),
        counts=_counts(rows, units),
        left_out=left_out,
    )


# ---------------------------------------------------------------------------------------------------------------------
# One image or video


@dataclass(frozen=True, kw_only=True)
class _Unit:
    source: EvalImage | EvalVideo
    tasks: tuple[ModelTask, ...]

    @property
    def name(self) -> str:
        return f"{'video' if isinstance(self.source, EvalVideo) else 'image'}:{self.source.name}"


def image_rows(
    model: ClickModel, image: EvalImage, truth: GroundTruth, tasks: Sequence[ModelTask], options: ModelOptions
) -> list[Row]:
    """All rows of one image; the encoder runs once.

    Raises:
        InputError: the image is not of the annotations' size.
    """
    rgb = decoded_rgb(image.read_bytes(), where=str(image.path))
    if rgb.shape[:2] != (truth.height, truth.width):
        raise InputError(
            f"{image.path}: {rgb.shape[1]} x {rgb.shape[0]} pixels, its annotations are for {truth.width} x "
            f"{truth.height}; put the image there that was annotated"
        )
    model.set_image(rgb)
    clicked = _clicked(image, truth, options)
    rows: list[Row] = []
    if "interactive" in tasks:
        rows += _interactive_rows(model, image, truth, clicked, options)
    if "sweep" in tasks or ("pairs" in tasks and truth.pairs):
        rows += _sweep_rows(model, image, truth, clicked if "sweep" in tasks else [], options, pairs="pairs" in tasks)
    if "whole" in tasks:
        rows += _whole_rows(model, image, truth, options)
    if "annotators" in tasks:
        rows += _annotator_rows(model, image, truth, clicked, options)
    return rows


def _clicked(image: EvalImage, truth: GroundTruth, options: ModelOptions) -> list[int]:
    """Positions of the objects that get clicks: the subset `parts` if there is one, else all that are scored."""
    indices = truth.subsets.get("parts", truth.scored)
    kept = [index for index in indices if not truth.objects[index].crowd and truth.objects[index].area_px > 0]
    limit = options.objects_per_image
    if not options.disjoint_objects and (limit is None or len(kept) <= limit):
        return kept
    order = np.random.default_rng(seed_of(options.seed, "objects", image.draw)).permutation(np.array(kept, dtype=int))
    taken = np.zeros((truth.height, truth.width), dtype=np.bool_)
    chosen: list[int] = []
    for index in order.tolist():
        if limit is not None and len(chosen) == limit:
            break
        if options.disjoint_objects:
            mask = rle_codec.decode(truth.objects[index].mask)
            if (mask & taken).any():
                continue
            taken |= mask
        chosen.append(index)
    return sorted(chosen)


def _identity(task: str, image: str, truth: GroundTruth, index: int) -> Row:
    each = truth.objects[index]
    row: Row = {"task": task, "image": image, "object": each.id, "area_px": each.area_px}
    if each.granularity is not None:
        row["label"] = each.granularity
    if each.annotator is not None:
        row["annotator"] = each.annotator
    return row


def _interactive_rows(
    model: ClickModel, image: EvalImage, truth: GroundTruth, clicked: Sequence[int], options: ModelOptions
) -> list[Row]:
    labels = [truth.objects[index].granularity for index in clicked]
    shuffled: list[float | None] = [None] * len(labels)
    if options.label_rule != "whole":  # where every label is 1.0 there is nothing to shuffle
        shuffled = shuffled_labels(labels, seed_of(options.seed, "labels", image.draw))
    subjects, indices = [], []
    for index, label, other in zip(clicked, labels, shuffled, strict=True):
        each = truth.objects[index]
        mask = rle_codec.decode(each.mask)
        ignore = None if each.ignore is None else rle_codec.decode(each.ignore)
        if not (mask if ignore is None else mask & ~ignore).any():
            continue
        seed = interactive_seed(options.seed, image.draw, each.id)
        columns = clickers_of(model, options, mask, label=label, shuffled=other, seed=seed)
        subjects.append(ClickedObject(truth=mask, ignore=ignore, columns=columns))
        indices.append(index)
    found = simulate_objects(model, subjects, options)
    return [
        {**_identity("interactive", image.name, truth, index), **click_columns(subject.columns, trajectories, options)}
        for index, subject, trajectories in zip(indices, subjects, found, strict=True)
    ]


def _annotator_rows(
    model: ClickModel, image: EvalImage, truth: GroundTruth, clicked: Sequence[int], options: ModelOptions
) -> list[Row]:
    subjects, indices = [], []
    for index in clicked:
        each = truth.objects[index]
        mask = rle_codec.decode(each.mask)
        ignore = None if each.ignore is None else rle_codec.decode(each.ignore)
        if (mask if ignore is None else mask & ~ignore).any():
            names = (image.draw, each.id)
            subjects.append(AnnotatedObject(truth=mask, ignore=ignore, label=each.granularity, names=names))
            indices.append(index)
    return [
        {**_identity("annotators", image.name, truth, index), **cells}
        for index, cells in zip(indices, annotate_objects(model, subjects, options), strict=True)
    ]


def _sweep_rows(
    model: ClickModel,
    image: EvalImage,
    truth: GroundTruth,
    clicked: Sequence[int],
    options: ModelOptions,
    *,
    pairs: bool,
) -> list[Row]:
    swept, tested = sweep_image(model, truth, options, image=image.draw, clicked=clicked, pairs=pairs)
    rows = [{**_identity("sweep", image.name, truth, index), **row} for index, row in swept]
    for number, row in tested:
        pair = truth.pairs[number]
        start = _identity("pairs", image.name, truth, pair.part)
        rows.append({**start, "whole": truth.objects[pair.whole].id, "label": pair.granularity, **row})
    return rows


def _whole_rows(model: ClickModel, image: EvalImage, truth: GroundTruth, options: ModelOptions) -> list[Row]:
    found = variants(model, truth, options, image=image.draw)
    rows: list[Row] = []
    for subset, members in whole_image_rows(found, truth, options).items():
        for index, member in zip(truth.subsets[subset], members, strict=True):
            rows.append({**_identity("whole", image.name, truth, index), "view": subset, **member})
    masks = {f"{name}.masks": float(len(each.score)) for name, each in found.items()}
    return [*rows, {"task": "whole_image", "image": image.name, **masks}]


# ---------------------------------------------------------------------------------------------------------------------
# Models in processes


@dataclass(frozen=True)
class _Given:
    """A predictor that is there already, as a maker of itself."""

    predictor: object

    def __call__(self) -> object:
        return self.predictor

    def __hash__(self) -> int:
        return id(self.predictor)


def _as_maker(predictor: object) -> Maker:
    if any(hasattr(predictor, name) for name in ("set_image", "propagate", "propagate_in_video")):
        return _Given(predictor)
    if not callable(predictor):
        raise InputError(f"a model, or a function that makes one, is needed; found {type(predictor).__name__}")
    made: Maker = predictor
    return made


_made: dict[Maker, object] = {}
"""This process's models."""


def _predictor(maker: Maker) -> object:
    if isinstance(maker, _Given):
        return maker()
    if maker not in _made:
        _made.clear()  # one model is in memory at a time, two for a benchmark of images and videos would not help
        _made[maker] = maker()
    return _made[maker]


def unit_rows(unit: _Unit, *, stills: Maker, videos: Maker, options: ModelOptions) -> ModelAnswer:
    """The answer to one image or video, in whichever process.

    Sums of floats depend on how they are split, so torch and OpenCV compute with one thread meanwhile.
    """
    import cv2
    import torch

    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        if isinstance(unit.source, EvalVideo):
            row = video_row(as_video_model(_predictor(videos)), unit.source, options)
            return {
                "rows": [{"task": "video", "image": unit.source.name, "label": 1.0, **row}],
                "objects": 1,
                "left_out": {},
            }
        model = as_click_model(_predictor(stills))
        truth = unit.source.load()
        rows = image_rows(model, unit.source, truth, unit.tasks, options)
        return {"rows": rows, "objects": len(truth.scored), "left_out": dict(truth.left_out)}
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


# ---------------------------------------------------------------------------------------------------------------------
# Means, intervals, curves

DIFFERENCES: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "interactive": (
        ("oracle", "label"),
        ("oracle", "best_of_3"),
        ("oracle", "best_of_10_clicks"),
        ("label", "ignored"),
        ("label", "constant"),
        ("label", "shuffled"),
        ("label", "own"),
    ),
    "sweep": (("dial", "shuffled"), ("dial", "best_of_10_clicks"), ("dial", "best_of_3")),
    "pairs": (("dial", "shuffled"), ("dial", "best_of_3"), ("dial", "best_of_10_clicks"), ("dial", "between")),
    "whole": (("pooled", "ten_grids"), ("pooled", "pooled_raw"), ("pooled", "own"), ("pooled", "best_of_3")),
    "video": (("oracle", "label"), ("label", "own"), ("label", "held"), ("oracle", "best_of_10_clicks")),
}
"""Paired differences that are reported, first minus second."""

_DIFFERENCED: Final[tuple[str, ...]] = (
    "iou_1", "noc_90", "noc_85", "noc_80", "jf", "recall_1000", "best_iou", "spearman", "pair_success_50",
    "pair_success_70", "pair_order",
)  # fmt: skip


def summarise(rows: Sequence[Row], options: ModelOptions) -> dict[str, Interval]:
    """The numbers of `scores.json` from the rows of `objects.parquet`.

    Names: `interactive.COLUMN.{noc_T,nof_T,iou_1}`; `sweep.`, `pairs.`, `video.` likewise; for whole images
    `whole.SUBSET.VARIANT.ar_K` (with `_small`, `_medium`, `_large`) and `whole.VARIANT.masks_per_image`. NoF is a
    count. `interactive.constant.*` and `pairs.constant.*` are the best of the ten constant g, chosen on these objects.
    """
    metrics: dict[str, Interval] = {}
    groups: dict[tuple[str, Cell], list[Row]] = {}
    for row in rows:
        groups.setdefault((str(row["task"]), row.get("view")), []).append(row)
    for (task, subset), members in groups.items():
        if task == "annotators":
            metrics |= annotator_metrics(members, resamples=options.resamples, seed=options.seed)
            continue
        columns = {name: values for name, values in _columns(members).items() if np.isfinite(values).any()}
        for metric in ("iou_1", "pair_success_50", "pair_success_70"):
            best = best_constant(columns, metric)
            if best is not None:
                columns[f"constant.{metric}"] = columns[best]
        pairs = _difference_pairs(task, columns)
        found = bootstrap(
            [str(row["image"]) for row in members], columns, resamples=options.resamples, seed=options.seed, pairs=pairs
        )
        prefix = task if subset is None else f"{task}.{subset}"
        for name, interval in found.items():
            _add(metrics, prefix, name, interval, options)
    return metrics


def _columns(rows: Sequence[Row]) -> dict[str, NDArray[np.float64]]:
    names = dict.fromkeys(
        name
        for row in rows
        for name, value in row.items()
        if name not in IDENTITY_COLUMNS and isinstance(value, float | int)
    )
    return {name: np.array([row.get(name, np.nan) for row in rows], dtype=np.float64) for name in names}


def _difference_pairs(task: str, columns: Mapping[str, object]) -> list[tuple[str, str]]:
    return [
        (f"{a}.{metric}", f"{b}.{metric}")
        for a, b in DIFFERENCES.get(task, ())
        for metric in _DIFFERENCED
        if f"{a}.{metric}" in columns and f"{b}.{metric}" in columns
    ]


def _add(metrics: dict[str, Interval], prefix: str, name: str, interval: Interval, options: ModelOptions) -> None:
    if " - " in name:  # A.METRIC - B.METRIC is told as A - B.METRIC
        a, b = name.split(" - ")
        metrics[f"{prefix}.{a.rsplit('.', 1)[0]} - {_metric_name(b)}"] = interval
    elif prefix == "whole_image":
        metrics[f"whole.{name.replace('.masks', '.masks_per_image')}"] = interval
    elif name.endswith(".failed"):
        nof = f"{prefix}.{name.removesuffix('.failed')}.nof_{round(100 * options.target_iou)}"
        metrics[nof] = interval.scaled(interval.objects)
    else:
        metrics[f"{prefix}.{_metric_name(name)}"] = interval


def _metric_name(column: str) -> str:
    return column.replace(".recall_", ".ar_")


def curves_of(rows: Sequence[Row]) -> Curves:
    """Arrays for plots.

    Returns:
        noc: `clicks` and one line for each column, mean IoU after so many clicks (held once the target is reached);
        iou_by_granularity: `granularity`, `part`, `whole` over the pairs that were clicked, and `object` of the sweep;
        area_by_granularity: `granularity`, `median`, `low`, `high` (quartiles of the area's share of the image);
        recall_by_masks: for some variants (`_DRAWN`) of the benchmark's own subset `VARIANT.masks`, `VARIANT.recall`,
        at 1, 10, 100 and 1,000 masks;
        annotators_iou, annotators_reached: see `annotator_numbers.py`.
    """
    curves: Curves = {}
    by_task: dict[str, list[Row]] = {}
    for row in rows:
        by_task.setdefault(str(row["task"]), []).append(row)
    clicked = by_task.get("interactive", [])
    names = dict.fromkeys(name for row in clicked for name in row if name.endswith(".ious"))
    if names:
        lines = {name.removesuffix(".ious"): _mean_list(clicked, name) for name in names}
        count = len(next(iter(lines.values())))
        curves["noc"] = {"clicks": [float(click) for click in range(1, count + 1)], **lines}
    parts = {"part": _mean_list(by_task.get("pairs", []), "dial.part_iou"),
             "whole": _mean_list(by_task.get("pairs", []), "dial.whole_iou"),
             "object": _mean_list(by_task.get("sweep", []), "dial.iou")}  # fmt: skip
    present = {name: values for name, values in parts.items() if values}
    if present:
        curves["iou_by_granularity"] = {"granularity": list(SWEEP), **present}
    areas = [row["dial.area_fraction"] for row in by_task.get("sweep", []) if "dial.area_fraction" in row]
    if areas:
        low, median, high = np.percentile(np.array(areas), [25, 50, 75], axis=0).tolist()
        curves["area_by_granularity"] = {"granularity": list(SWEEP), "median": median, "low": low, "high": high}
    curves |= annotator_curves(by_task.get("annotators", []))
    recall = _recall_by_masks(by_task)
    if recall:
        curves["recall_by_masks"] = recall
    return curves


def _mean_list(rows: Sequence[Row], name: str) -> list[float]:
    values = [row[name] for row in rows if name in row]
    found: list[float] = np.mean(np.array(values), axis=0).tolist() if values else []
    return found


_DRAWN: Final = ("everything", "pooled", "single:0.10", "single:0.50", "single:1.00", "own", "best_of_3", "ten_grids")
"""Variants in the plot of recall against masks."""


def _recall_by_masks(by_task: Mapping[str, list[Row]]) -> dict[str, list[float]]:
    objects = by_task.get("whole", [])
    if not objects:
        return {}
    subset = objects[0]["view"]
    own = [row for row in objects if row["view"] == subset]
    lines: dict[str, list[float]] = {}
    masks = _columns(by_task.get("whole_image", []))
    for variant in _DRAWN:
        if f"{variant}.masks" not in masks:
            continue
        counts = masks[f"{variant}.masks"]
        limits = (1, 10, 100, 1000)
        lines[f"{variant}.masks"] = [float(np.minimum(counts, limit).mean()) for limit in limits]
        lines[f"{variant}.recall"] = [
            float(np.nanmean(np.array([row.get(f"{variant}.recall_{limit}", np.nan) for row in own])))
            for limit in limits
        ]
    return lines


def _counts(rows: Sequence[Row], units: Sequence[_Unit]) -> dict[str, int]:
    by_task = ([row for row in rows if row["task"] == task] for task in ("interactive", "sweep", "annotators"))
    clicked = next((members for members in by_task if members), [])
    subsets: dict[str, int] = {}
    for row in rows:
        if row["task"] == "whole":
            subsets[f"objects_{row['view']}"] = subsets.get(f"objects_{row['view']}", 0) + 1
    return {
        "images": sum(isinstance(unit.source, EvalImage) for unit in units),
        "videos": sum(isinstance(unit.source, EvalVideo) for unit in units),
        "clicked_objects": len(clicked),
        "clicked_objects_without_label": sum("label" not in row for row in clicked),
        "pairs": sum(row["task"] == "pairs" for row in rows),
        "pairs_clicked": sum(row["task"] == "pairs" and row["click_in_whole"] == 1.0 for row in rows),
        **subsets,
    }
