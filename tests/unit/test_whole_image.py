"""Copies removed, overlaps counted and grids laid as the plain definitions say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model.evaluation.benchmarks.mined import MaskSet
from model.evaluation.benchmarks.records import EvalObject, GroundTruth, PartOf, iou_with
from model.evaluation.protocols.controls import click_grid, moved_grids, shuffled_labels
from model.evaluation.protocols.label_masks import masks_answer, ratios_of
from model.evaluation.protocols.mask_pairs import contain, pair_sums
from model.evaluation.protocols.options import ModelOptions
from model.evaluation.protocols.pairs import mask_between, masks_iou
from model.evaluation.protocols.simulated_user import Click
from model.evaluation.protocols.whole_image import Objects, variants
from model.evaluation.subjects.predictors import as_click_model
from model.network.granular import GranularSam2
from model.predict.image import GranularPredictor
from model.predict.mask_generator import AutomaticConfig, generate_masks
from model.predict.tree import TreePredictor
from pipeline.format import rle
from pipeline.format.granularity import GRANULARITIES

Masks = NDArray[np.bool_]


def rectangles(random: np.random.Generator, count: int, size: tuple[int, int] = (30, 41)) -> Masks:
    masks = np.zeros((count, *size), dtype=bool)
    for mask in masks:
        y, x, h, w = random.integers(1, 20, 4)
        mask[y : y + h, x : x + w] = True
    return masks


def test_it_measures_what_segment_everything_finds() -> None:
    """One g, and ten pooled: the masks of the generator, by the same thresholds, with their overlaps."""
    torch.manual_seed(4)
    predictor = GranularPredictor(GranularSam2("micro", "full", 128).eval())
    image = np.random.default_rng(1).integers(0, 256, (96, 64, 3), dtype=np.uint8)
    people = rectangles(np.random.default_rng(2), 5, (96, 64))
    objects = tuple(
        EvalObject(id=str(i), mask=rle.encode(mask), area_px=int(mask.sum())) for i, mask in enumerate(people)
    )
    truth = GroundTruth(height=96, width=64, objects=objects)
    options = ModelOptions(label_rule="none", points_per_side=4, pred_iou_thresh=0.3, max_masks=20)
    model = as_click_model(predictor)
    model.set_image(image)
    found = variants(model, truth, options, image="one")
    for name, dial in (("single:0.30", (0.3,)), ("pooled", GRANULARITIES), ("best_of_3", (None,))):
        config = AutomaticConfig(
            granularities=dial, points_per_side=4, pred_iou_thresh=0.3, stability_score_thresh=0.0, max_masks=20
        )
        masks = sorted(generate_masks(predictor, image, config), key=lambda each: -each.score)
        assert len(masks) > 1
        assert found[name].score == pytest.approx(np.array([each.score for each in masks]), abs=1e-5)
        if len({round(each.score, 4) for each in masks}) == len(masks):
            overlaps = iou_with([rle.encode(each.mask) for each in masks], objects)
            assert found[name].iou == pytest.approx(overlaps, abs=0.02)
        assert len(found[f"{name}_raw"].score) >= len(found[name].score)


def test_of_the_tree_it_measures_all_its_masks() -> None:
    """Not what clicks on a grid happen to choose among them."""
    image = np.full((60, 80, 3), 40, dtype=np.uint8)
    image[10:30, 10:40], image[35:55, 45:75], image[40:50, 50:60] = (200, 60, 60), (60, 200, 60), (60, 60, 220)
    predictor = TreePredictor()
    predictor.set_image(image)
    masks = sorted(predictor.everything(), key=lambda each: -each.score)
    assert len(masks) > 3
    objects = (EvalObject(id="0", mask=rle.encode((image == (200, 60, 60)).all(axis=2)), area_px=600),)
    truth = GroundTruth(height=60, width=80, objects=objects)
    model = as_click_model(predictor)
    found = variants(model, truth, ModelOptions(label_rule="none", max_masks=1000), image="one")
    assert set(found) == {"everything"}
    assert found["everything"].score == pytest.approx([each.score for each in masks])
    assert found["everything"].iou == pytest.approx(iou_with([rle.encode(each.mask) for each in masks], objects))
    assert found["everything"].iou.max() > 0.9
    few = variants(model, truth, ModelOptions(label_rule="none", max_masks=2), image="one")
    assert few["everything"].score == pytest.approx([each.score for each in masks[:2]])


def test_overlaps_from_atoms_are_cocos() -> None:
    random = np.random.default_rng(8)
    people = rectangles(random, 12)
    people[3] = people[2]  # two people drew the same region
    objects = tuple(
        EvalObject(id=str(i), mask=rle.encode(mask), area_px=int(mask.sum()), crowd=i % 5 == 4)
        for i, mask in enumerate(people)
    )
    truth = GroundTruth(height=30, width=41, objects=objects)
    masks = rectangles(random, 20)
    masks[7] = False
    found = Objects.of(truth).iou_with(masks)
    assert found == pytest.approx(iou_with([rle.encode(mask) for mask in masks], objects), abs=1e-12)


def test_grids() -> None:
    grid = click_grid(40, 60, 4)
    assert grid[:2].tolist() == [[7.5, 5.0], [22.5, 5.0]]
    moved = moved_grids(40, 60, 4, 10, [0])
    assert np.array_equal(moved[0], grid)
    assert len({each.tobytes() for each in moved}) == 10
    for each in moved:
        assert (np.abs(each - grid) <= [7.5, 5.0]).all()
        assert (each >= 0).all()
        assert (each <= [59, 39]).all()
    assert all(np.array_equal(a, b) for a, b in zip(moved, moved_grids(40, 60, 4, 10, [0]), strict=True))


def test_shuffled_labels_stay_with_nobody() -> None:
    labels = [0.1, None, 0.4, 1.0, 0.7]
    dealt = shuffled_labels(labels, [3])
    assert dealt[1] is None
    assert sorted(each for each in dealt if each is not None) == [0.1, 0.4, 0.7, 1.0]
    assert all(a != b for a, b in zip(labels, dealt, strict=True) if a is not None)
    assert shuffled_labels([0.5, None], [3]) == [None, None]


def test_the_best_single_mask_between_part_and_whole_cannot_pass() -> None:
    whole = np.zeros((60, 60), dtype=bool)
    whole[5:55, 5:55] = True
    for side in (12, 20, 24, 34):
        part = np.zeros_like(whole)
        part[8 : 8 + side, 8 : 8 + side] = True
        middle = mask_between(part, whole)
        assert (part <= middle).all()
        assert (middle <= whole).all()
        ratio = part.sum() / whole.sum()
        both = [masks_iou(middle[None], each)[0] for each in (part, whole)]
        assert both == pytest.approx([ratio**0.5, ratio**0.5], abs=0.01)
    assert mask_between(whole, whole) is whole


def test_masks_that_hold_a_click() -> None:
    random = np.random.default_rng(6)
    masks = rectangles(random, 30)
    masks[3], masks[4] = True, False
    clicks = [Click(x=int(x), y=int(y), positive=True) for x, y in random.integers(0, 30, (40, 2))]
    found = contain([rle.encode(mask) for mask in masks], clicks)
    assert np.array_equal(found, [[mask[click.y, click.x] for click in clicks] for mask in masks])


def test_a_set_of_masks_passes_the_pair_test_with_a_smaller_and_a_larger_mask_under_the_click() -> None:
    whole, part, beside = np.zeros((3, 60, 60), dtype=bool)
    whole[5:55, 5:55] = True
    part[8:28, 8:28] = True
    beside[30:50, 30:50] = True
    objects = tuple(
        EvalObject(id=str(i), mask=rle.encode(mask), area_px=int(mask.sum()))
        for i, mask in enumerate((whole, part, beside))
    )
    pairs = tuple(PartOf(part=i, whole=0, area_ratio=0.16, granularity=0.1) for i in (1, 2))
    truth = GroundTruth(height=60, width=60, objects=objects, pairs=pairs)

    def sums(*masks: NDArray[np.bool_]) -> dict[str, tuple[float, float]]:
        rles = [rle.encode(mask) for mask in masks]
        return pair_sums(rles, iou_with(rles, objects), truth)

    assert sums(whole, part, beside) == {"pair_success_50": (2, 2), "pair_success_70": (2, 2)}
    assert sums(part, whole) == {"pair_success_50": (1, 2), "pair_success_70": (1, 2)}
    assert sums(whole) == sums(part, beside) == sums() == {"pair_success_50": (0, 2), "pair_success_70": (0, 2)}
    assert sums(mask_between(part, whole))["pair_success_50"] == (0, 2)  # one mask for both does not pass


@pytest.mark.parametrize("order", [1, -1])
def test_an_image_without_pairs_beside_one_that_has_them(order: int) -> None:
    whole, part = np.zeros((2, 60, 60), dtype=bool)
    whole[5:55, 5:55] = True
    part[8:28, 8:28] = True
    both = tuple(
        EvalObject(id=str(i), mask=rle.encode(mask), area_px=int(mask.sum())) for i, mask in enumerate((whole, part))
    )
    pairs = (PartOf(part=1, whole=0, area_ratio=0.16, granularity=0.1),)
    truths = [GroundTruth(height=60, width=60, objects=both, pairs=pairs)]
    truths.append(GroundTruth(height=60, width=60, objects=both[:1]))
    masks = MaskSet(rles=tuple(each.mask for each in both))
    answers = [masks_answer(str(i), masks, truth, matching="best", what="") for i, truth in enumerate(truths)]
    passed, asked = ratios_of(answers[::order])["pair_success_50"]
    assert passed[::order].tolist() == asked[::order].tolist() == [1.0, 0.0]
