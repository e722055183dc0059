"""`grainmill score --masks` and `--peer`: sets of masks against what people drew.

For each image and each subset of its ground truth: recall of the objects (AR@1/10/100/1000, small, medium, large) and
the best IoU of each. Beside them, what recall does not say: masks per image, how many masks are some person's segment
(by granularity bin), instances against the coarsest person's segments, coverage. An image that failed or has no mask
counts with zero recall.

Matching is the benchmark's: COCO's one-to-one, or the best IoU where several people drew the same region.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from pipeline.errors import InputError
from pipeline.format.granularity import (
    GRANULARITIES,
    GRANULARITY_BINS,
    PUBLISHED_GRANULARITY_PERCENT,
    granularity_bins,
)
from pipeline.format.rle import Rle

from ..benchmarks.files import by_stem
from ..benchmarks.mined import MaskSet, MinedRow, load_masks, match_mined
from ..benchmarks.records import EvalImage, EvalObject, GroundTruth, Split, for_coco, iou_with
from ..bootstrap import ratio_interval
from ..results import Metric, Scored, ScoreOptions, claim_output, nothing_to_score, summed
from ..resume import each_item
from ..score_records import Cell, Curves, Details, MaskCounts, MasksAnswer, MasksByGranularity, Row
from ..subjects.baselines import peer_masks, ucm_folder
from .mask_pairs import pair_sums
from .metrics import IOU_THRESHOLDS, MAX_DETECTIONS, match_detections, recall_best, recall_one_to_one

HIT_IOU: Final = 0.5
"""From which a mask counts as a person's segment, and an instance as a whole."""
CURVE: Final = (1, 2, 5, 10, 20, 50, 100, 200, 300, 500, 700, 1000)
"""Masks per image at which the recall curve is read."""
WHOLES: Final = "wholes"
SIZES: Final = ("", "_small", "_medium", "_large")
LABELS: Final = "labels"


@dataclass(frozen=True, kw_only=True)
class LabelItem:
    """One image with one set of masks."""

    subject: str
    """`labels` or a peer's name."""
    image: EvalImage
    row: MinedRow | None = None

    @property
    def name(self) -> str:
        return f"{self.subject}/{self.image.name}"


def score_labels(split: Split, options: ScoreOptions) -> Scored:
    """Scores mined masks and peers.

    Raises:
        InputError: no image of the split is among the masks, sizes differ, or there is no object in them.
        ConfigMismatchError: the output holds other scores.
    """
    if not split.images:
        raise InputError(f"--benchmark {options.benchmark.name}: no images; masks are scored on whole-image benchmarks")
    items: list[LabelItem] = []
    details: Details = {}
    notes = list(split.notes)
    left_out = dict(split.left_out)
    identities = {}
    if options.masks is not None:
        matches = match_mined(options.masks, split.images)
        identities["masks_digest"] = matches.digest
        missing = sum(row is None for row in matches.rows)
        details["masks"] = {
            "digest": matches.digest,
            "images_by_bytes": matches.by_bytes,
            "images_by_name": len(matches.rows) - missing - matches.by_bytes,
            "images_without_masks": missing,
        }
        if matches.unused:
            left_out["samples of --masks that are no image of the split"] = matches.unused
        if by_name := details["masks"]["images_by_name"]:
            notes.append(f"{by_name} images have other bytes than what was mined and were found by their names")
        if missing:
            notes.append(f"{missing} images failed or have no mask: they count with zero recall")
        for image, row in zip(split.images, matches.rows, strict=True):
            items.append(LabelItem(subject=LABELS, image=image, row=row))
    if {"ucm", "ucm-tree"} & set(options.peers):
        by_stem(sorted({image.path for image in split.images}))  # each has one N.mat
    claim_output(options, **identities)
    items += [LabelItem(subject=peer, image=image) for peer in options.peers for image in split.images]
    work = partial(score_image, matching=options.benchmark.matching, ucm=ucm_folder(options.data, options.split))
    answers = each_item(
        items, work, folder=options.output / "parts", workers=options.workers, title=f"score {options.benchmark.name}"
    )
    subjects: dict[str, list[MasksAnswer]] = {}
    for item, answer in zip(items, answers, strict=True):
        subjects.setdefault(item.subject, []).append(answer)
    left_out = summed([left_out, *(answer["left_out"] for answer in next(iter(subjects.values())))])
    if not any(answer["objects"] for several in subjects.values() for answer in several):
        raise nothing_to_score(len(split.images), left_out)
    return replace(_assemble(subjects, options.seed, details, notes), left_out=left_out)


# ---------------------------------------------------------------------------------------------------------------------
# One image


def score_image(item: LabelItem, *, matching: str, ucm: Path | None) -> MasksAnswer:
    """What one image contributes: rows for its objects, and sums for everything that is a ratio of sums."""
    truth = item.image.load()
    masks = load_masks(item.row) if item.subject == LABELS else peer_masks(item.subject, item.image, truth, ucm)
    return masks_answer(item.image.name, masks, truth, matching=matching, what=item.name)


def masks_answer(image: str, masks: MaskSet, truth: GroundTruth, *, matching: str, what: str) -> MasksAnswer:
    """What a set of masks is worth on one image.

    Args:
        image: its name in the benchmark.
        masks: best first.
        truth: its objects.
        matching: `one-to-one` or `best`, see `Benchmark.matching`.
        what: for messages.

    Raises:
        InputError: the masks have another size.
    """
    sizes = {tuple(rle["size"]) for rle in masks.rles} - {(truth.height, truth.width)}
    if sizes:
        raise InputError(
            f"{what}: the masks are (height, width) {sorted(sizes)[0]}, the ground truth is "
            f"{(truth.height, truth.width)}; mine the benchmark's own images"
        )
    iou = iou_with(masks.rles, truth.objects)
    if masks.made_by is not None:
        drawn_by = np.array([-1 if each.annotator is None else each.annotator for each in truth.objects])
        iou[np.array(masks.made_by, dtype=np.int64)[:, None] == drawn_by[None, :]] = 0.0
    subsets = [name for name in truth.subsets if name != WHOLES]
    first = subsets[0]
    return {
        "image": image,
        "objects": len(truth.scored),
        "left_out": dict(truth.left_out),
        "rows": {
            name: _columns(truth, np.array(truth.subsets[name], dtype=np.int64), iou, matching) for name in subsets
        },
        "curve": _curve(truth, np.array(truth.subsets[first], dtype=np.int64), iou, matching),
        **_beside(masks, truth, iou),
    }


def _columns(
    truth: GroundTruth, subset: NDArray[np.int64], iou: NDArray[np.float64], matching: str
) -> dict[str, list[Cell]]:
    """Columns of one subset: identity of each object, its best IoU, its recall; crowds have NaN."""
    objects = [truth.objects[index] for index in subset]
    area_px = np.array([each.area_px for each in objects], dtype=np.float64)
    crowd = np.array([each.crowd for each in objects], dtype=np.bool_)
    seen = iou[:, subset]
    recall = (recall_best if matching == "best" else recall_one_to_one)(seen, area_px, crowd)
    best = np.where(crowd, np.nan, seen[: MAX_DETECTIONS[-1]].max(axis=0, initial=0.0))
    return {
        "object": [each.id for each in objects],
        "area_px": [each.area_px for each in objects],
        "granularity": [each.granularity for each in objects],
        "annotator": [each.annotator for each in objects],
        "best_iou": best.tolist(),
        **{name: values.tolist() for name, values in recall.items()},
    }


def _curve(truth: GroundTruth, subset: NDArray[np.int64], iou: NDArray[np.float64], matching: str) -> list[float]:
    """Sum over the subset's objects of the recall with the first K masks, for each K of `CURVE`."""
    objects: Sequence[EvalObject] = [truth.objects[index] for index in subset]
    crowd = np.array([each.crowd for each in objects], dtype=np.bool_)
    seen = iou[: CURVE[-1], subset]
    if matching == "best":
        best = [seen[:limit].max(axis=0, initial=0.0) for limit in CURVE]
        return [float((found[~crowd, None] >= IOU_THRESHOLDS).mean(axis=1).sum()) for found in best]
    rank, ignored = match_detections(seen, np.array([each.area_px for each in objects], dtype=np.float64), crowd)
    return [float(((rank >= 0) & (rank < limit))[:, ~ignored].mean(axis=0).sum()) for limit in CURVE]


def _beside(masks: MaskSet, truth: GroundTruth, iou: NDArray[np.float64]) -> MaskCounts:
    """What recall does not say."""
    scored = np.array([not each.crowd for each in truth.objects], dtype=np.bool_)
    hit = np.asarray((iou[:, scored] >= HIT_IOU).any(axis=1), dtype=np.bool_)
    pixels = truth.height * truth.width
    sums: dict[str, tuple[float, float]] = {
        "masks_per_image": (len(masks.rles), 1),
        "mask_precision": (int(hit.sum()), len(hit)),
        "coverage": (_union_px(masks.rles), pixels),
    }
    if masks.instance is not None:
        instance = np.array(masks.instance, dtype=np.bool_)
        wholes = [index for index in truth.subsets.get(WHOLES, truth.scored) if not truth.objects[index].crowd]
        match = iou[instance][:, wholes] >= HIT_IOU
        sums["instances_per_image"] = (int(instance.sum()), 1)
        sums["instance_recall"] = (int(match.any(axis=0).sum()), len(wholes))
        sums["instance_precision"] = (int(match.any(axis=1).sum()), int(instance.sum()))
    if truth.pairs:
        sums |= pair_sums(masks.rles[: MAX_DETECTIONS[-1]], iou[: MAX_DETECTIONS[-1]], truth)
    found: MaskCounts = {"sums": {name: list(value) for name, value in sums.items()}}
    if masks.granularity is not None:
        which = granularity_bins(np.array(masks.granularity, dtype=np.float64))
        found["masks_by_bin"] = np.bincount(which, minlength=GRANULARITY_BINS).tolist()
        found["hits_by_bin"] = np.bincount(which[hit], minlength=GRANULARITY_BINS).tolist()
    return found


def _union_px(rles: Sequence[Rle]) -> int:
    return int(coco_mask.area(coco_mask.merge(for_coco(rles)))) if rles else 0


# ---------------------------------------------------------------------------------------------------------------------
# All images

Ratio = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Numerator and denominator of each image, (I,) each; the metric is sum over sum."""


def _assemble(subjects: Mapping[str, list[MasksAnswer]], seed: int, details: Details, notes: list[str]) -> Scored:
    ratios = {subject: ratios_of(answers) for subject, answers in subjects.items()}
    main = next(iter(subjects))
    metrics: dict[str, Metric] = {}
    for subject, found in ratios.items():
        prefix = "" if subject == main else f"{subject}."
        metrics |= {prefix + name: interval(ratio, seed) for name, ratio in found.items()}
        if subject != main:
            metrics[f"{main}_minus_{subject}.AR1000"] = interval(ratios[main]["AR1000"], seed, less=found["AR1000"])
    histograms = {subject: _histogram(answers) for subject, answers in subjects.items() if "masks_by_bin" in answers[0]}
    details["granularity"] = histograms
    first = subjects[main]
    counts = {"images": len(first), "objects": int(ratios[main]["AR1000"][1].sum()), **_crowds(first)}
    tables: dict[str, list[Row]] = {"recall": _recall_table(ratios, metrics, main)}
    tables |= _subset_table(ratios)
    tables |= _pair_table(ratios, metrics, main)
    if LABELS in histograms:
        tables |= _label_tables(metrics, histograms[LABELS])
    return Scored(
        metrics=metrics,
        rows=[row for subject, answers in subjects.items() for answer in answers for row in _rows(subject, answer)],
        tables=tables,
        counts=counts,
        details=details,
        curves=_curves(subjects, histograms),
        notes=notes,
    )


def ratios_of(answers: list[MasksAnswer]) -> dict[str, Ratio]:
    """Every metric of one subject. The first subset's recall is `AR…`, another's `SUBSET.AR…`."""
    found: dict[str, Ratio] = {}
    for number, subset in enumerate(answers[0]["rows"]):
        prefix = "" if number == 0 else f"{subset}."
        for limit in MAX_DETECTIONS:
            for size in SIZES if number == 0 else ("",):
                found[f"{prefix}AR{limit}{size}"] = _column_ratio(answers, subset, f"recall_{limit}{size}")
        found[f"{prefix}mean_best_iou"] = _column_ratio(answers, subset, "best_iou")
    for name in dict.fromkeys(name for answer in answers for name in answer["sums"]):
        # An image without a part in a whole says nothing of pairs.
        pairs = np.array([answer["sums"].get(name, (0.0, 0.0)) for answer in answers], dtype=np.float64)
        found[name] = (pairs[:, 0], pairs[:, 1])
    return found


def _crowds(answers: list[MasksAnswer]) -> dict[str, int]:
    """Regions of the first subset that are ignored, if there are any."""
    subset = next(iter(answers[0]["rows"]))
    count = sum(each is None for answer in answers for each in answer["rows"][subset]["best_iou"])
    return {"crowds": count} if count else {}


def _column_ratio(answers: list[MasksAnswer], subset: str, column: str) -> Ratio:
    values = [np.array(answer["rows"][subset][column], dtype=np.float64) for answer in answers]  # None becomes NaN
    return (
        np.array([np.nansum(each) for each in values]),
        np.array([np.count_nonzero(~np.isnan(each)) for each in values], dtype=np.float64),
    )


def interval(ratio: Ratio, seed: int, *, less: Ratio | None = None) -> Metric:
    """Sum over sum, or its difference to another of the same images, with the interval over images."""
    found = ratio_interval(*ratio, less=less, seed=seed)
    return Metric(value=None) if found is None else Metric(value=found.value, low=found.low, high=found.high)


def _rows(subject: str, answer: MasksAnswer) -> list[Row]:
    rows: list[Row] = []
    for subset, columns in answer["rows"].items():
        names = list(columns)
        for values in zip(*columns.values(), strict=True):
            rows.append(
                {"subject": subject, "image": answer["image"], "view": subset, **dict(zip(names, values, strict=True))}
            )
    return rows


def _curves(subjects: Mapping[str, list[MasksAnswer]], histograms: Mapping[str, MasksByGranularity]) -> Curves:
    recall: dict[str, list[float]] = {}
    for subject, answers in subjects.items():
        masks = np.array([answer["sums"]["masks_per_image"][0] for answer in answers])
        _, objects = _column_ratio(answers, next(iter(answers[0]["rows"])), "recall_1000")
        total = np.array([answer["curve"] for answer in answers]).sum(axis=0)
        recall[f"{subject}.masks"] = [float(np.minimum(masks, limit).mean()) for limit in CURVE]
        recall[f"{subject}.recall"] = (total / max(float(objects.sum()), 1.0)).tolist()
    curves = {"recall_by_masks": recall}
    found = histograms.get(LABELS)
    if found:
        curves["granularity"] = {
            "edges": found["granularity_edges"],
            "these labels": found["masks_by_granularity_percent"],
            "published (UnSAMv2)": found["published_percent"],
        }
    return curves


def _histogram(answers: list[MasksAnswer]) -> MasksByGranularity:
    masks = np.array([answer["masks_by_bin"] for answer in answers]).sum(axis=0)
    hits = np.array([answer["hits_by_bin"] for answer in answers]).sum(axis=0)
    return {
        "granularity_edges": list(GRANULARITIES),
        "masks_by_granularity": masks.tolist(),
        "masks_by_granularity_percent": (100 * masks / max(masks.sum(), 1)).tolist(),
        "published_percent": list(PUBLISHED_GRANULARITY_PERCENT),
        "mask_precision_by_granularity": [
            float(hit / count) if count else None for hit, count in zip(hits, masks, strict=True)
        ],
    }


# ---------------------------------------------------------------------------------------------------------------------
# Tables for people

_RECALL_COLUMNS: Final = {
    "AR1000": "AR1000", "AR100": "AR100", "AR10": "AR10", "AR1": "AR1", "AR1000_small": "S", "AR1000_medium": "M",
    "AR1000_large": "L", "mean_best_iou": "mean best IoU", "masks_per_image": "masks/image",
    "mask_precision": "masks IoU>=0.5", "coverage": "coverage",
}  # fmt: skip


def _recall_table(ratios: Mapping[str, Mapping[str, Ratio]], metrics: Mapping[str, Metric], main: str) -> list[Row]:
    rows = []
    for subject in ratios:
        prefix = "" if subject == main else f"{subject}."
        cells: Row = {"masks": subject}
        for name, title in _RECALL_COLUMNS.items():
            metric = metrics[prefix + name]
            cells[title] = str(metric) if name == "AR1000" else metric.value
        rows.append(cells)
    return rows


def _subset_table(ratios: Mapping[str, Mapping[str, Ratio]]) -> dict[str, list[Row]]:
    subsets = [name for name in next(iter(ratios.values())) if name.endswith(".AR1000")]
    if not subsets:
        return {}
    rows: list[Row] = []
    for subject, found in ratios.items():
        cells = {name.removesuffix(".AR1000"): interval(found[name], 0).value for name in subsets}
        rows.append({"masks": subject, **cells})
    return {"AR1000 by view of the ground truth": rows}


def _pair_table(
    ratios: Mapping[str, Mapping[str, Ratio]], metrics: Mapping[str, Metric], main: str
) -> dict[str, list[Row]]:
    titles = {"pair_success_50": "success@0.5", "pair_success_70": "success@0.7"}
    rows: list[Row] = []
    for subject, found in ratios.items():
        prefix = "" if subject == main else f"{subject}."
        cells = {title: str(metrics[prefix + name]) for name, title in titles.items() if name in found}
        if cells:
            rows.append({"masks": subject, **cells, "pairs": int(found["pair_success_50"][1].sum())})
    return {"part and whole under one click, the masks there as a dial": rows} if rows else {}


def _label_tables(metrics: Mapping[str, Metric], found: MasksByGranularity) -> dict[str, list[Row]]:
    edges = found["granularity_edges"]
    histogram: list[Row] = [
        {
            "granularity": f"{edges[index]:.1f} to {edges[index + 1]:.1f}",
            "masks": found["masks_by_granularity"][index],
            "percent": found["masks_by_granularity_percent"][index],
            "published percent": found["published_percent"][index],
            "share with IoU>=0.5 to a segment": found["mask_precision_by_granularity"][index],
        }
        for index in range(GRANULARITY_BINS)
    ]
    instances: list[Row] = [
        {"instances (g = 1.0) against the coarsest person's segments": name, "value": str(metrics[name])}
        for name in ("instances_per_image", "instance_recall", "instance_precision")
    ]
    return {
        "granularity (published: UnSAMv2's labels of its own images, arXiv 2511.13714 Fig. 4)": histogram,
        "wholes": instances,
    }
