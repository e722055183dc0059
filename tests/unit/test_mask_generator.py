"""Automatic masks: one encoding for any number of granularities, copies told apart by pixels, a tree as output."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch

from model.network.granular import GranularSam2
from model.predict.coco_json import PredictedMask
from model.predict.image import GranularPredictor
from model.predict.mask_generator import (
    AutomaticConfig,
    as_tree,
    depths,
    distinct,
    generate_masks,
    point_grid,
    stability_score,
)
from pipeline.errors import InputError
from pipeline.format import rle
from tests.loud import make_loud
from tests.numeric import assert_same_sums, rounding

LENIENT = AutomaticConfig(
    granularities=(0.1, 0.5, 1.0),
    points_per_side=5,
    points_per_batch=8,
    pred_iou_thresh=0.0,
    stability_score_thresh=0.0,
)


@pytest.fixture(scope="module")
def predictor() -> GranularPredictor:
    """Random weights with loud attention and a loud dial, so that clicks and granularities give different masks."""
    torch.manual_seed(6)
    model = GranularSam2("micro", "full", 128).eval()
    make_loud(model, dial=2)
    return GranularPredictor(model, max_hole_area=0, max_sprinkle_area=0)


@pytest.fixture(scope="module")
def image() -> Any:
    pixels = np.full((96, 64, 3), 220, dtype=np.uint8)
    pixels[20:70, 10:50] = (40, 90, 180)
    pixels[30:50, 20:40] = (200, 60, 40)
    return pixels


@pytest.fixture(scope="module")
def found(predictor: GranularPredictor, image: Any) -> list[PredictedMask]:
    return generate_masks(predictor, image, LENIENT)


def rectangle(x: int, y: int, w: int, h: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    mask = np.zeros((40, 60), dtype=bool)
    mask[y : y + h, x : x + w] = True
    return mask


def test_the_encoder_runs_once(predictor: GranularPredictor, image: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, calls = predictor.model.encode, []
    monkeypatch.setattr(predictor.model, "encode", lambda images: calls.append(len(images)) or encode(images))
    progress: list[int] = []
    generate_masks(predictor, image, LENIENT, on_prompts=progress.append)
    assert calls == [1]
    assert progress[-1] == 3 * 25
    assert max(np.diff([0, *progress])) == LENIENT.points_per_batch


def test_each_mask_is_what_its_point_and_granularity_give(
    predictor: GranularPredictor, image: Any, found: list[PredictedMask]
) -> None:
    predictor.set_image(image)
    assert len({each.granularity for each in found}) == 3
    for each in found[::5]:
        mask, iou, _ = predictor.predict([each.point], [1], granularity=each.granularity)
        assert abs(int(mask[0].sum()) - each.area_px) <= 2  # half precision between decoder and image
        assert_same_sums(iou[0], each.score)


def test_batches_do_not_change_the_result(predictor: GranularPredictor, image: Any, found: list[PredictedMask]) -> None:
    other = generate_masks(predictor, image, dataclasses.replace(LENIENT, points_per_batch=64))
    areas = [[each.area_px for each in masks] for masks in (found, other)]
    assert abs(len(areas[0]) - len(areas[1])) <= 1
    assert sum(areas[0]) == pytest.approx(sum(areas[1]), rel=0.02)


def test_no_two_masks_are_copies(found: list[PredictedMask]) -> None:
    assert len(found) > 5
    shared = rle.pairwise_intersection_px([each.segmentation for each in found])
    areas = np.diagonal(shared)
    iou = shared / (areas[:, None] + areas[None] - shared)
    assert iou[np.triu_indices(len(found), k=1)].max() <= LENIENT.max_iou
    assert min(areas) >= LENIENT.min_area_px
    assert max(areas) <= 0.9 * 96 * 64


def rank(each: PredictedMask) -> tuple[int, float, str]:
    """Larger masks first; among equals the better."""
    return -each.area_px, -each.score, each.segmentation["counts"]


def test_the_tree_holds(found: list[PredictedMask]) -> None:
    masks = [each.mask for each in found]
    depth = depths(found)
    for place, each in enumerate(found):
        if each.parent_id is None:
            assert each.instance_id == place
        else:
            assert each.parent_id < place
            assert each.instance_id == found[each.parent_id].instance_id
            assert (masks[place] & masks[each.parent_id]).sum() >= 0.9 * masks[place].sum()
            assert depth[place] == depth[each.parent_id] + 1
        before = [other for other in range(len(found)) if rank(found[other]) < rank(each)]
        holders = [other for other in before if (masks[place] & masks[other]).sum() >= 0.9 * masks[place].sum()]
        assert bool(holders) == (each.parent_id is not None)
        if holders:
            assert found[each.parent_id or 0].area_px == min(found[other].area_px for other in holders)
    roots = [each.instance_id for each in found]
    assert [key for key, _ in itertools.groupby(roots)] == sorted(set(roots)), "a tree stands in one piece"


def test_a_part_and_a_whole_with_the_same_box_both_stay() -> None:
    """An L whose box is the whole's: box overlap 1.0, pixel overlap 0.36. SAM-2's generator keeps one of them."""
    whole = rectangle(10, 5, 40, 30)
    part = rectangle(10, 5, 40, 6) | rectangle(10, 5, 8, 30)
    near_copy = rectangle(10, 5, 40, 29)
    made = [
        PredictedMask.of(whole, 1.0, 0.8),
        PredictedMask.of(part, 0.2, 0.9),
        PredictedMask.of(near_copy, 0.9, 0.7),
        PredictedMask.of(rectangle(10, 5, 8, 6), 0.1, 0.6),
    ]
    boxes = {tuple(each.to_json(0)["bbox"]) for each in made[:2]}
    assert boxes == {(10, 5, 40, 30)}
    kept = distinct(made, 0.9)
    assert [each.granularity for each in kept] == [0.2, 1.0, 0.1]
    tree = as_tree(kept)
    assert [(each.granularity, each.parent_id, each.instance_id) for each in tree] == [
        (1.0, None, 0), (0.2, 0, 0), (0.1, 1, 0)
    ]  # fmt: skip


def test_a_part_and_a_whole_with_the_same_box_both_stay_within_a_granularity() -> None:
    """All the way through the search, where masks are compared twice: on the logits' grid and on the image's.

    Each click gets the mask that is drawn for its place: a square, a cross with the square's box, the square once more
    with two pixels less, and nothing.
    """
    square = torch.full((32, 32), -5.0)
    square[8:24, 8:24] = 5.0
    cross = torch.full((32, 32), -5.0)
    cross[14:18, 8:24] = cross[8:24, 14:18] = 5.0
    copy = square.clone()
    copy[8, 8:10] = -5.0
    drawn = torch.stack([square, cross, copy, torch.full((32, 32), -5.0)])

    class Drawn:
        """As much of a predictor as the search asks for."""

        own_iou = None

        def set_image(self, image: Any) -> None:
            pass

        def predict_logits(self, points: Any, labels: Any, granularity: Any, *, multimask: bool) -> Any:
            places = (points[:, 0, 0] > 64) + 2 * (points[:, 0, 1] > 64)
            return drawn[places][:, None], torch.tensor([0.8, 0.9, 0.7, 1.0])[places][:, None]

    config = dataclasses.replace(LENIENT, granularities=(0.5,), points_per_side=2)
    found = generate_masks(Drawn(), np.zeros((128, 128, 3), dtype=np.uint8), config)  # type: ignore[arg-type]
    assert [(each.score, each.parent_id) for each in found] == [(pytest.approx(0.8), None), (pytest.approx(0.9), 0)]
    boxes = [each.to_json(0)["bbox"] for each in found]
    assert boxes[0] == boxes[1]
    assert found[0].area_px > 2 * found[1].area_px


def test_copies_are_kept_by_predicted_iou_then_area() -> None:
    masks = [rectangle(0, 0, 20, 20), rectangle(0, 0, 20, 21), rectangle(0, 0, 21, 20)]
    kept = distinct(
        [PredictedMask.of(mask, 0.5, score) for mask, score in zip(masks, (0.7, 0.9, 0.8), strict=True)], 0.9
    )
    assert [each.area_px for each in kept] == [420]
    kept = distinct([PredictedMask.of(mask, 0.5, 0.7) for mask in (masks[0], masks[1])], 0.9)
    assert [each.area_px for each in kept] == [420]


def test_thresholds_and_limits_hold(predictor: GranularPredictor, image: Any, found: list[PredictedMask]) -> None:
    scores = sorted(each.score for each in found)
    middle = scores[len(scores) // 2]
    sure = generate_masks(predictor, image, dataclasses.replace(LENIENT, pred_iou_thresh=middle))
    assert sure
    assert all(each.score >= middle for each in sure)
    best = generate_masks(predictor, image, dataclasses.replace(LENIENT, max_masks=4))
    assert sorted(each.score for each in best) == pytest.approx(scores[-4:])
    none = generate_masks(predictor, image, dataclasses.replace(LENIENT, pred_iou_thresh=1.0))
    assert none == []


def test_a_mask_of_nearly_the_whole_image_is_no_object(image: Any) -> None:
    """Unless it is alone: a decoder that answers everything everywhere leaves one mask."""
    torch.manual_seed(6)
    model = GranularSam2("micro", "full", 128).eval()
    with torch.no_grad():
        model.hypernetwork.layers[-1].weight.zero_()
        model.hypernetwork.layers[-1].bias.fill_(1.0)
        model.base.sam_mask_decoder.output_upscaling[-2].bias.fill_(50.0)
    everywhere = generate_masks(GranularPredictor(model), image, LENIENT)
    assert [each.area_px for each in everywhere] == [96 * 64]


def test_stability_is_the_iou_of_two_thresholds() -> None:
    logits = torch.tensor([[[5.0, 5.0], [0.5, -5.0]], [[-9.0, -9.0], [-9.0, -9.0]]])
    assert stability_score(logits, 1.0).tolist() == pytest.approx([2 / 3, 0.0])
    from sam2.utils.amg import calculate_stability_score

    logits = torch.randn(5, 8, 8)
    assert torch.equal(stability_score(logits, 1.0), calculate_stability_score(logits, 0.0, 1.0))


def test_sam2s_own_masks_are_three_a_point(predictor: GranularPredictor, image: Any) -> None:
    config = dataclasses.replace(LENIENT, granularities=(None,), points_per_side=2, max_iou=1.0, min_area_px=1)
    own = generate_masks(predictor, image, config)
    assert {each.granularity for each in own} == {None}
    predictor.set_image(image)
    masks, ious, _ = predictor.predict([own[0].point], [1], multimask_output=True)
    assert any(score == pytest.approx(own[0].score, abs=rounding(own[0].score)) for score in ious.tolist())
    assert masks.shape[0] == 3


def test_the_grid_is_the_centres_of_cells() -> None:
    assert point_grid(2, 40, 60).tolist() == [[15, 10], [45, 10], [15, 30], [45, 30]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"granularities": (0.5, 1.5)}, r"granularity 1.5: expected a number in \[0.1, 1.0\]"),
        ({"granularities": ()}, "at least one"),
        ({"points_per_side": 0}, "points_per_side 0"),
        ({"max_iou": 1.2}, "max_iou 1.2"),
    ],
)
def test_wrong_settings_are_told(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AutomaticConfig(**wrong)
