"""The image predictor: SAM-2's arguments and shapes, batches of images and of prompts, refinement, clear errors."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from model.evaluation.checkpoint import sam2_predictor
from model.network.load import new_model
from model.predict.image import HOLE_SHARE, SPRINKLE_SHARE, GranularPredictor
from pipeline.environment.torch_compat import ensure_torchvision
from pipeline.errors import InputError
from tests.loud import make_loud
from tests.numeric import assert_same_sums

SIDE = 128
LOW = SIDE // 4


def photograph(height: int, width: int, seed: int = 5) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def predictor() -> GranularPredictor:
    """Random weights with loud attention and a loud dial."""
    model = new_model("micro", "full", SIDE, init="scratch", seed=6).eval()
    make_loud(model, dial=2)
    return GranularPredictor(model)


def test_arguments_are_sam2s_in_its_order_and_granularity_by_name(predictor: GranularPredictor) -> None:
    ensure_torchvision()
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    def arguments(function: Any, *, positional: bool) -> list[str]:
        return [
            each.name
            for each in inspect.signature(function).parameters.values()
            if (each.kind is not inspect.Parameter.KEYWORD_ONLY) == positional
        ]

    for name, more in (("predict", ["granularity", "image"]), ("predict_batch", ["granularity_batch"])):
        ours, own = getattr(GranularPredictor, name), getattr(SAM2ImagePredictor, name)
        assert arguments(ours, positional=True) == arguments(own, positional=True)
        assert arguments(ours, positional=False) == more
    image = photograph(50, 90)
    own = sam2_predictor(predictor.model.base)
    own.set_image(image)
    predictor.set_image(image)
    point, label, box = np.array([[10, 20]]), np.array([1]), np.array([5, 5, 40, 40])
    calls: list[tuple[Any, ...]] = [
        (point, label, box, None, False, True),
        (point, label, None, None, True, True),
        (point / (90, 50), label, None, None, True, True, False),
        (None, None, box / (90, 50, 90, 50), None, False, True, False),
    ]
    answers = []
    for call in calls:
        answers.append(predictor.predict(*call))
        for one, other in zip(answers[-1], own.predict(*call), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)
    np.testing.assert_allclose(answers[2][0], answers[1][0], atol=1e-4)
    images, labels = [image, image], [label, label]
    predictor.set_image_batch(images)
    own.set_image_batch(images)
    found, expected = (
        each.predict_batch([point, point + 3], labels, [box, box], None, False, True) for each in (predictor, own)
    )
    for one, other in zip(found[2], expected[2], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_shapes(predictor: GranularPredictor) -> None:
    predictor.set_image(photograph(50, 90))
    one = predictor.predict([[10, 20]], [1], granularity=0.5)
    assert [each.shape for each in one] == [(1, 50, 90), (1,), (1, LOW, LOW)]
    assert [each.dtype for each in one] == [np.bool_, np.float32, np.float32]
    several = predictor.predict([[10, 20], [5, 5]], [1, 0], granularity=[0.1, 0.5, 1.0])
    assert [each.shape for each in several] == [(3, 50, 90), (3,), (3, LOW, LOW)]
    own = predictor.predict(box=[5, 5, 40, 40], multimask_output=True)
    assert [each.shape for each in own] == [(3, 50, 90), (3,), (3, LOW, LOW)]
    logits = predictor.predict([[10, 20]], [1], granularity=0.5, return_logits=True)[0]
    assert logits.dtype == np.float32
    assert ((logits > 0) == one[0]).all()


def test_one_pass_at_several_granularities_is_several_passes(predictor: GranularPredictor) -> None:
    predictor.set_image(photograph(50, 90))
    together = predictor.predict([[10, 20]], [1], granularity=torch.tensor([0.2, 0.9]), return_logits=True)
    for place, granularity in enumerate((0.2, 0.9)):
        alone = predictor.predict([[10, 20]], [1], granularity=granularity, return_logits=True)
        for one, other in zip(together, alone, strict=True):
            assert_same_sums(one[place], other[0])
    assert np.abs(together[0][0] - together[0][1]).max() > 1e-2


def test_one_granularity_for_each_of_many_prompts(predictor: GranularPredictor) -> None:
    predictor.set_image(photograph(50, 90))
    points = np.array([[[10, 20], [60, 5]], [[80, 40], [3, 3]], [[44, 25], [90, 50]]], dtype=np.float32)
    labels = np.array([[1, 0], [1, 1], [1, 0]])
    boxes = np.array([[0, 0, 30, 30], [60, 20, 90, 50], [20, 10, 70, 45]], dtype=np.float32)
    masks, ious, logits = predictor.predict(points, labels, boxes, granularity=[0.1, 0.6, 1.0])
    assert (masks.shape, ious.shape, logits.shape) == ((3, 1, 50, 90), (3, 1), (3, 1, LOW, LOW))
    for place, granularity in enumerate((0.1, 0.6, 1.0)):
        _, iou, low = predictor.predict(points[place], labels[place], boxes[place], granularity=granularity)
        assert_same_sums(logits[place], low)
        assert_same_sums(ious[place], iou)
    one_for_all = predictor.predict(points, labels, boxes, granularity=0.6)
    assert_same_sums(one_for_all[2][1], logits[1])


def test_batches_of_images_of_different_sizes(predictor: GranularPredictor) -> None:
    images = [photograph(50, 90), photograph(70, 40, seed=6)]
    predictor.set_image_batch(images)
    assert predictor.sizes == [(50, 90), (70, 40)]
    points = [[[10, 20]], [[30, 60], [2, 2]]]
    labels = [[1], [1, 0]]
    masks, ious, logits = predictor.predict_batch(points, labels, granularity_batch=[0.3, [0.2, 1.0]])
    assert [each.shape for each in masks] == [(1, 50, 90), (2, 70, 40)]
    single = GranularPredictor(predictor.model)
    for place, (image, granularity) in enumerate(zip(images, (0.3, [0.2, 1.0]), strict=True)):
        single.set_image(image)
        _, iou, low = single.predict(points[place], labels[place], granularity=granularity)
        assert_same_sums(logits[place], low)
        assert_same_sums(ious[place], iou)
    with pytest.raises(InputError, match="expected 2 values of box, one an image, found 1"):
        predictor.predict_batch(box_batch=[[0, 0, 5, 5]])


def test_coordinates_are_pixels_of_the_image(predictor: GranularPredictor) -> None:
    """The same place in an empty picture of another size and shape is the same prompt; another place is not."""
    answers = []
    for (height, width), point in (((64, 96), (24, 16)), ((32, 192), (48, 8)), ((64, 96), (80, 50))):
        predictor.set_image(np.full((height, width, 3), 120, dtype=np.uint8))
        answers.append(predictor.predict([point], [1], granularity=0.5)[2])
    assert_same_sums(answers[0], answers[1])
    assert np.abs(answers[0] - answers[2]).max() > 0.1 * np.abs(answers[0]).max()


def test_logits_refine_an_answer(predictor: GranularPredictor) -> None:
    predictor.set_image(photograph(50, 90))
    _, _, first = predictor.predict([[10, 20]], [1], granularity=0.5)
    assert np.abs(first).max() <= 32
    again = predictor.predict([[10, 20]], [1], mask_input=first, granularity=0.5, return_logits=True)
    assert again[0].shape == (1, 50, 90)
    assert np.abs(again[2] - first).max() > 1e-3
    flat = predictor.predict([[10, 20]], [1], mask_input=first[0], granularity=0.5, return_logits=True)
    np.testing.assert_array_equal(flat[0], again[0])
    from_mask_alone = predictor.predict(mask_input=first, granularity=0.5)
    assert from_mask_alone[0].shape == (1, 50, 90)


def test_wrong_calls_are_one_clear_message(predictor: GranularPredictor) -> None:
    with pytest.raises(InputError, match="set_image first"):
        GranularPredictor(predictor.model).predict([[1, 1]], [1])
    predictor.set_image(photograph(50, 90))
    wrong: list[tuple[dict[str, Any], str]] = [
        ({}, "expected points, a box or a mask"),
        ({"point_coords": [[1, 1]], "point_labels": [1, 0]}, "expected points .* and labels"),
        ({"point_coords": [[1, 1]], "point_labels": [7]}, "expected labels 1"),
        ({"point_coords": [[1, 1]], "point_labels": [0.5]}, "expected labels 1"),
        ({"point_coords": [[1, 1]], "point_labels": ["in"]}, "expected an array of numbers as labels"),
        ({"point_coords": [[1], [1, 2]]}, "expected an array of numbers as points"),
        ({"box": ["a", 2, 3, 4]}, "expected an array of numbers as box"),
        ({"point_coords": [[1, float("nan")]]}, "not a finite number"),
        ({"box": [1, 2, 3]}, r"expected one box x0, y0, x1, y1, or \(N, 4\), found \(3,\)"),
        (
            {"point_coords": [[1, 1]], "mask_input": np.zeros((1, 9, 9))},
            r"expected mask_input \(32, 32\), .*found \(1, 9, 9\)",
        ),
        ({"point_coords": [[1, 1]], "mask_input": np.zeros((3, LOW, LOW))}, r"\(1, 32, 32\), found \(3, 32, 32\)"),
        (
            {"point_coords": [[1, 1]], "mask_input": np.zeros((2, LOW, LOW)), "granularity": [0.1, 0.5, 1.0]},
            r"or \(3, 32, 32\), one for each prompt or granularity, found \(2, 32, 32\)",
        ),
        ({"point_coords": [[1, 1]], "mask_input": 0.5}, r"found \(\)"),
        ({"mask_input": np.full((1, LOW, LOW), np.nan), "granularity": 0.5}, "a logit of the mask inputs is not a fin"),
        ({"mask_input": np.full((LOW, LOW), np.inf)}, "a logit of the mask inputs is not a finite number"),
        ({"mask_input": [[1.0], [1.0, 2.0]]}, "expected an array of numbers as mask_input"),
        ({"point_coords": [[1, 1]], "image": 1}, "image 1 of 1"),
    ]
    for arguments, message in wrong:
        with pytest.raises(InputError, match=message):
            predictor.predict(**arguments)
    points = np.ones((2, 1, 2))
    with pytest.raises(InputError, match="1 boxes and points for 2 prompts"):
        predictor.predict(points, np.ones((2, 1)), np.array([[0, 0, 5, 5]]), granularity=0.5)
    for granularity in (None, 0.5):
        with pytest.raises(InputError, match="at least one prompt, found none"):
            predictor.predict(np.ones((0, 1, 2)), granularity=granularity)
    with pytest.raises(InputError, match=r"or \(2, 32, 32\), one for each prompt or granularity, found \(3, 32, 32\)"):
        predictor.predict(points, mask_input=np.zeros((3, LOW, LOW)))
    with pytest.raises(InputError, match="one value or one for each of 2 prompts, found 3"):
        predictor.predict(points, granularity=[0.1, 0.2, 0.3])


def test_with_a_granularity_there_is_one_mask_a_prompt(predictor: GranularPredictor) -> None:
    """`multimask_output` is True in sam2 unless somebody says otherwise."""
    predictor.set_image(photograph(50, 90))
    assert [len(predictor.predict([[10, 20]], [1], granularity=g)[0]) for g in (None, 0.5, [0.2, 0.9])] == [3, 1, 2]
    answers = [predictor.predict([[10, 20]], [1], granularity=0.5, multimask_output=each)[2] for each in (True, False)]
    np.testing.assert_array_equal(*answers)


def test_what_is_forgotten_must_be_set_anew(predictor: GranularPredictor) -> None:
    fresh = GranularPredictor(predictor.model)
    with pytest.raises(InputError, match="set_image first"):
        fresh.get_image_embedding()
    fresh.set_image_batch([photograph(50, 90), photograph(20, 20)])
    assert fresh.get_image_embedding().shape == (2, 64, SIDE // 16, SIDE // 16)
    assert fresh.device.type == "cpu"
    fresh.reset_predictor()
    with pytest.raises(InputError, match="set_image first"):
        fresh.predict([[1, 1]], [1])


def test_what_is_no_image_is_one_clear_message(predictor: GranularPredictor) -> None:
    predictor.set_image(photograph(50, 90))
    for image in (np.zeros((5, 5), dtype=np.uint8), np.zeros((5, 5, 3)), np.zeros((0, 5, 3), dtype=np.uint8)):
        with pytest.raises(InputError, match=r"expected \(H, W, 3\) uint8 RGB"):
            predictor.set_image(image)
    for other in (torch.zeros(5, 5, 3, dtype=torch.uint8), [[[1, 2, 3]]], "photo.jpg", None):
        with pytest.raises(InputError, match=r"expected an array \(H, W, 3\) uint8 RGB, found (Tensor|list|str|None)"):
            predictor.set_image(other)  # type: ignore[arg-type]
    for mode in ("L", "RGBA", "P", "CMYK"):
        with pytest.raises(InputError, match=rf"mode RGB, found {mode}, 9 x 7; give image.convert\(.RGB.\)"):
            predictor.set_image(Image.new(mode, (9, 7)))
    with pytest.raises(InputError, match="mode RGB, found RGB, 0 x 7"):
        predictor.set_image(Image.new("RGB", (0, 7)))
    with pytest.raises(InputError, match="at least one image, found none"):
        predictor.set_image_batch([])
    assert predictor.sizes == [(50, 90)], "the image before is still there"
    assert predictor.predict([[10, 20]], [1], granularity=0.5)[0].shape == (1, 50, 90)
    for call in (GranularPredictor(predictor.model).predict_batch, GranularPredictor(predictor.model).predict):
        with pytest.raises(InputError, match=r"set_image(_batch)? first"):
            call()


def test_pillows_images_are_taken_as_sam2_takes_them(predictor: GranularPredictor) -> None:
    pixels = photograph(50, 90)
    answers = []
    for image in (
        pixels,
        Image.fromarray(pixels),
        np.asarray(Image.fromarray(pixels)),
    ):  # the last cannot be written to
        predictor.set_image(image)
        assert predictor.sizes == [(50, 90)]
        answers.append(predictor.predict([[10, 20]], [1], granularity=0.5)[2])
    np.testing.assert_array_equal(answers[0], answers[1])
    np.testing.assert_array_equal(answers[0], answers[2])
    predictor.set_image_batch([Image.fromarray(pixels), pixels])
    assert predictor.sizes == [(50, 90)] * 2


def test_each_granularity_may_refine_its_own_mask(predictor: GranularPredictor) -> None:
    predictor.set_image(photograph(50, 90))
    _, _, first = predictor.predict([[10, 20]], [1], granularity=[0.2, 0.9])
    _, _, together = predictor.predict([[10, 20]], [1], mask_input=first, granularity=[0.2, 0.9])
    for place, granularity in enumerate((0.2, 0.9)):
        _, _, alone = predictor.predict([[10, 20]], [1], mask_input=first[place], granularity=granularity)
        assert_same_sums(together[place], alone[0])


@pytest.mark.parametrize(("hole", "sprinkle"), [(5, 0), (0, 5), (9, 4), (0, 0)])
def test_small_holes_are_filled_and_small_islands_left_out(
    predictor: GranularPredictor, hole: int, sprinkle: int
) -> None:
    eight = np.ones((3, 3), dtype=np.int64)

    def mended(mask: Any) -> Any:
        filled = mask.copy()
        holes, count = ndimage.label(~mask, eight)
        for each in range(1, count + 1):
            if (holes == each).sum() <= hole:
                filled |= holes == each
        islands, count = ndimage.label(filled, eight)
        areas = [(islands == each).sum() for each in range(1, count + 1)]
        for each, area in enumerate(areas, 1):
            if area <= sprinkle and each != 1 + int(np.argmax(areas)):
                filled &= islands != each
        return filled

    rng = np.random.default_rng(3)
    logits = torch.from_numpy(np.stack([rng.normal(0.3 * shift, 1, (2, LOW, LOW)) for shift in (-5, -2, 0, 2, 5)]))
    tidy = GranularPredictor(predictor.model, max_hole_area=hole, max_sprinkle_area=sprinkle)
    tidy.set_image(photograph(LOW, LOW))
    before = logits.clone()
    masks = (tidy.enlarge(logits) > 0).numpy()
    assert torch.equal(logits, before)
    for found, given in zip(masks.reshape(-1, LOW, LOW), (logits > 0).numpy().reshape(-1, LOW, LOW), strict=True):
        np.testing.assert_array_equal(found, mended(given))


def test_a_mask_that_is_all_small_islands_keeps_its_largest(predictor: GranularPredictor) -> None:
    logits = torch.full((1, LOW, LOW), -1.0)
    logits[0, 3, 3] = logits[0, 8:10, 8] = 1
    tidy = GranularPredictor(predictor.model, max_sprinkle_area=10)
    tidy.set_image(photograph(LOW, LOW))
    assert np.argwhere((tidy.enlarge(logits) > 0)[0].numpy()).tolist() == [[8, 8], [9, 8]]


def test_what_corrections_asked_for_is_not_mended(
    predictor: GranularPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = torch.full((1, 1, LOW, LOW), -1.0)
    logits[..., 5:25, 5:25] = 1
    logits[..., 10:12, 10:12] = -1  # a hole of four cells
    logits[..., 28:30, 28] = 1  # an island of two
    tidy = GranularPredictor(predictor.model, max_hole_area=9, max_sprinkle_area=9)
    tidy.set_image(photograph(LOW, LOW))
    monkeypatch.setattr(tidy, "_decoded", lambda *_, **__: (logits, torch.ones(1, 1)))
    for points, labels, hole, island in (
        ([[6, 6]], [1], True, False),
        ([[6, 6], [10, 10]], [1, 0], False, False),
        ([[6, 6], [28, 28]], [1, 1], True, True),
        ([[6, 6], [28, 28], [10, 10]], [1, 1, 0], False, True),
    ):
        mask = tidy.predict(points, labels, granularity=0.5)[0][0]
        assert (mask[10, 10], mask[28, 28]) == (hole, island), labels


def test_a_student_from_scratch_is_mended_and_sam2s_sizes_are_not(predictor: GranularPredictor) -> None:
    assert (predictor.max_hole_area, predictor.max_sprinkle_area) == (HOLE_SHARE * LOW**2, SPRINKLE_SHARE * LOW**2)
    predictor.set_image(photograph(60, 90))
    logits, _, low = predictor.predict([(40, 30)], granularity=0.4, return_logits=True)
    speckled = GranularPredictor(predictor.model, mask_threshold=float(np.median(low)))
    speckled.set_image(photograph(60, 90))
    masks, _, same = speckled.predict([(40, 30)], granularity=0.4)
    np.testing.assert_array_equal(low, same)
    assert (masks != (logits > speckled.mask_threshold)).any(), "drawn weights answer with specks"
    tiny = GranularPredictor(new_model("tiny", "full", SIDE, init="scratch", seed=6).eval())
    assert (tiny.max_hole_area, tiny.max_sprinkle_area) == (0, 0)
