"""Average recall: equal to pycocotools and faster-coco-eval, the awkward cases too."""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from model.evaluation.protocols.metrics import (
    AREA_RANGES_PX,
    MAX_DETECTIONS,
    match_detections,
    rank_by_score,
    recall_best,
    recall_one_to_one,
)

HEIGHT, WIDTH = 160, 170


def random_masks(random: np.random.Generator, count: int) -> NDArray[np.bool_]:
    masks = np.zeros((count, HEIGHT, WIDTH), dtype=bool)
    for mask in masks:
        h, w = random.integers(4, 1 + random.choice([24, 60, 150]), 2)
        y, x = random.integers(0, HEIGHT - h + 1), random.integers(0, WIDTH - w + 1)
        mask[y : y + h, x : x + w] = True
    return masks


def jittered(random: np.random.Generator, masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.stack([np.roll(mask, tuple(random.integers(-4, 5, 2)), axis=(0, 1)) for mask in masks])


Image = tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_], NDArray[np.float64]]
"""Ground truth, which of it is a crowd, detections, their scores."""


def encode(mask: NDArray[np.bool_]) -> dict[str, Any]:
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")}


def coco_files(images: list[Image]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    annotations, results = [], []
    for number, (truth, crowd, detections, scores) in enumerate(images, 1):
        for mask, is_crowd in zip(truth, crowd, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": number, "category_id": 1, "iscrowd": int(is_crowd),
                    "segmentation": encode(mask), "area": int(mask.sum()), "bbox": [0, 0, 1, 1],
                }
            )  # fmt: skip
        for mask, score in zip(detections, scores, strict=True):
            results.append({"image_id": number, "category_id": 1, "segmentation": encode(mask), "score": float(score)})
    records = [{"id": n, "height": HEIGHT, "width": WIDTH} for n in range(1, len(images) + 1)]
    return {"images": records, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}, results


def theirs(images: list[Image], library: str) -> NDArray[np.float64]:
    """Recall (areas, maxDets) as the library gives it, -1 where there is no ground truth."""
    truth, results = coco_files(images)
    with contextlib.redirect_stdout(io.StringIO()):
        if library == "pycocotools":
            made = COCO()
            kind: Any = COCOeval
        else:
            faster = pytest.importorskip("faster_coco_eval", reason="not installed (the extra `eval`)")
            made, kind = faster.COCO(), faster.COCOeval_faster
        made.dataset = copy.deepcopy(truth)
        made.createIndex()
        evaluation = kind(made, made.loadRes(copy.deepcopy(results)), "segm")
        evaluation.params.useCats = 0
        evaluation.params.maxDets = list(MAX_DETECTIONS)
        evaluation.evaluate()
        evaluation.accumulate()
    recall = np.asarray(evaluation.eval["recall"])[:, 0]
    return np.where((recall < 0).any(axis=0), -1.0, recall.mean(axis=0))


def ours(images: list[Image]) -> NDArray[np.float64]:
    pooled: dict[str, list[NDArray[np.float64]]] = {}
    for truth, crowd, detections, scores in images:
        order = rank_by_score(scores)
        boxes = [encode(mask) for mask in detections[order]]
        iou = np.asarray(coco_mask.iou(boxes, [encode(mask) for mask in truth], crowd.astype(np.uint8)))
        area_px = truth.sum(axis=(1, 2)).astype(np.float64)
        for name, column in recall_one_to_one(iou.reshape(len(boxes), len(truth)), area_px, crowd).items():
            pooled.setdefault(name, []).append(column)
    table = []
    for area in AREA_RANGES_PX:
        row = []
        for limit in MAX_DETECTIONS:
            values = np.concatenate(pooled[f"recall_{limit}" + ("" if area == "all" else f"_{area}")])
            counted = values[~np.isnan(values)]
            row.append(counted.mean() if counted.size else -1.0)
        table.append(row)
    return np.array(table)


def case(name: str) -> list[Image]:
    random = np.random.default_rng(sum(map(ord, name)))
    images: list[Image] = []
    for _ in range(3):
        truth = random_masks(random, 12)
        detections = np.concatenate(
            [jittered(random, truth[:9]), random_masks(random, 10), jittered(random, truth[4:])]
        )
        images.append((truth, np.zeros(12, bool), detections, random.random(len(detections))))
    empty = np.zeros((0, HEIGHT, WIDTH), bool)
    truth, crowd, detections, scores = images[0]
    if name == "no detections on one image":
        images[0] = (truth, crowd, empty, np.zeros(0))
    elif name == "no ground truth on one image":
        images[0] = (empty, np.zeros(0, bool), detections, scores)
    elif name == "crowds":
        images = [(t, np.arange(12) % 3 == 0, d, s) for t, _, d, s in images]
    elif name == "all crowds":
        images = [(t, np.ones(12, bool), d, s) for t, _, d, s in images]
    elif name == "ties":
        images = [(t, c, d, np.round(s * 2) / 2) for t, c, d, s in images]
    elif name == "duplicate ground truth":
        images = [(np.concatenate([t, t[:5]]), np.zeros(17, bool), d, s) for t, _, d, s in images]
    elif name == "exact copies":
        images = [(t, c, np.concatenate([t, t]), np.ones(24)) for t, c, _, _ in images]
    elif name == "more than 1,000 masks":
        extra = random_masks(random, 1100)
        many = np.concatenate([extra, truth])
        images = [(truth, crowd, many, random.random(len(many)))]
    elif name == "areas on the borders of size classes":
        exact = np.zeros((4, HEIGHT, WIDTH), bool)
        exact[0, :32, :32] = exact[1, :96, :96] = exact[2, :31, :32] = exact[3, :97, :96] = True
        images = [(exact, np.zeros(4, bool), jittered(random, exact), np.arange(4.0))]
    return images


CASES = [
    "plain", "other draw", "no detections on one image", "no ground truth on one image", "crowds", "all crowds", "ties",
    "duplicate ground truth", "exact copies", "more than 1,000 masks", "areas on the borders of size classes",
]  # fmt: skip


@pytest.mark.parametrize("library", ["pycocotools", "faster-coco-eval"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_average_recall_agrees(name: str, library: str) -> None:
    images = case(name)
    assert np.abs(ours(images) - theirs(images, library)).max() < 1e-9


def test_nothing_at_all() -> None:
    columns = recall_one_to_one(np.zeros((0, 0)), np.zeros(0), np.zeros(0, bool))
    assert all(column.shape == (0,) for column in columns.values())
    columns = recall_one_to_one(np.zeros((0, 2)), np.array([50.0, 5000.0]), np.array([False, True]))
    assert columns["recall_1000"].tolist()[0] == 0
    assert np.isnan(columns["recall_1000"][1])
    assert np.isnan(columns["recall_10_large"]).all()


def test_a_free_object_is_preferred_to_an_ignored_one() -> None:
    iou = np.array([[0.6, 0.9]])
    rank, ignored = match_detections(iou, np.array([100.0, 1e6]), np.zeros(2, bool), area_range_px=(0, 1024))
    assert ignored.tolist() == [False, True]
    assert rank[0].tolist() == [0, -1]


def test_best_iou_lets_one_mask_serve_several_objects() -> None:
    iou = np.array([[0.72, 0.9], [0.2, 0.93]])
    columns = recall_best(iou, np.array([500.0, 50.0]), np.zeros(2, bool))
    assert columns["recall_1"].tolist() == [0.5, 0.9]
    assert columns["recall_10"].tolist() == [0.5, 0.9]
    strict = recall_one_to_one(iou, np.array([500.0, 50.0]), np.zeros(2, bool))
    assert strict["recall_10"].tolist() == [0.0, 0.9]
    assert recall_best(np.zeros((0, 2)), np.array([5.0, 5.0]), np.zeros(2, bool))["recall_1000"].tolist() == [0, 0]
