"""The calls that sam2's three example notebooks make, once to sam2's own classes and once to ours: what is written for
the one runs with the other after another import and constructor, and without a granularity answers the same.

Weights are random, of the micro size, in a file in Meta's layout. Declared difference: masks of our image predictor are
bool, sam2's are float32 zeros and ones.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from model.evaluation.checkpoint import sam2_predictor
from model.network.granular import GranularSam2
from model.network.load import load_sam2
from model.network.sam2_base import scripted_transforms
from model.predict.image import GranularPredictor
from model.predict.mask_generator import GranularMaskGenerator
from model.predict.video import GranularVideoPredictor
from pipeline.errors import InputError
from tests.numeric import assert_same_sums

SIDE = 256
LOW = SIDE // 4
HEIGHT, WIDTH = 60, 90
RECORD_KEYS = {
    "segmentation", "area", "bbox", "predicted_iou", "point_coords", "stability_score", "crop_box",
}  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights whose masks are decided and whose objects are there."""
    torch.manual_seed(5)
    model = GranularSam2("micro", "full", SIDE)
    decoder = model.base.sam_mask_decoder
    with torch.no_grad():
        for hypernetwork in decoder.output_hypernetworks_mlps:
            hypernetwork.layers[-1].weight.mul_(300)
        decoder.pred_obj_score_head.layers[-1].bias.fill_(20.0)
    path = tmp_path_factory.mktemp("weights") / "micro.pt"
    torch.save({"model": model.base_state()}, path)
    return path


@pytest.fixture(scope="module")
def model(weights: Path) -> GranularSam2:
    """With the same base, and a dial."""
    torch.manual_seed(6)
    made = GranularSam2("micro", "full", SIDE).eval()
    made.base.load_state_dict(load_sam2(str(weights)).state_dict(), strict=False)
    made.adopt_base()
    return made


@pytest.fixture(scope="module")
def video_model(weights: Path) -> GranularSam2:
    torch.manual_seed(6)
    made = GranularSam2("micro", "full", SIDE, video=True).eval()
    made.base.load_state_dict(load_sam2(str(weights)).state_dict(), strict=False)
    made.adopt_base()
    return made


def photograph(seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 60, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    pixels[15:45, 20:60] = (200, 60, 40)
    pixels[25:35, 30:45] = (30, 90, 220)
    return pixels


def positional(function: Any) -> list[tuple[str, Any]]:
    """Names and defaults of what may be given by place, self left out."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
    return [
        (each.name, each.default)
        for each in list(inspect.signature(function).parameters.values())[1:]
        if each.kind in kinds
    ]


def test_methods_take_sam2s_arguments_in_its_order_with_its_defaults() -> None:
    with scripted_transforms():
        from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator
        from sam2.sam2_image_predictor import SAM2ImagePredictor
        from sam2.sam2_video_predictor import SAM2VideoPredictor
    for ours, own, names in (
        (
            GranularPredictor,
            SAM2ImagePredictor,
            ("set_image", "set_image_batch", "predict", "predict_batch", "get_image_embedding", "reset_predictor"),
        ),
        (GranularMaskGenerator, SAM2AutomaticMaskGenerator, ("generate",)),
        (
            GranularVideoPredictor,
            SAM2VideoPredictor,
            (
                "init_state", "add_new_points_or_box", "add_new_points", "add_new_mask", "propagate_in_video",
                "clear_all_prompts_in_frame", "remove_object", "reset_state",
            ),
        ),
    ):  # fmt: skip
        for name in names:
            assert positional(getattr(ours, name)) == positional(getattr(own, name)), (ours, name)
    theirs = dict(positional(SAM2AutomaticMaskGenerator.__init__))
    assert theirs.pop("box_nms_thresh") == 0.7
    mine = dict(positional(GranularMaskGenerator.__init__))
    assert mine.pop("box_nms_thresh") is None, "0.7 without a granularity"
    assert list(mine) == list(theirs)
    assert mine == theirs


# -- images ------------------------------------------------------------------------------------------------------------


def image_calls(predictor: Any) -> Iterator[tuple[str, Any]]:
    """A click, two clicks fed back, a background click, a box, box and click, several boxes, a batch of images."""
    image = photograph()
    predictor.set_image(image)
    yield "embedding", [predictor.get_image_embedding().numpy()]
    point, label = np.array([[40, 30]]), np.array([1])
    masks, scores, logits = predictor.predict(point_coords=point, point_labels=label, multimask_output=True)
    order = np.argsort(scores)[::-1]
    yield "three", [masks[order], scores[order], logits[order]]
    points, labels = np.array([[40, 30], [55, 40]]), np.array([1, 1])
    best = logits[np.argmax(scores), :, :]
    yield (
        "again",
        predictor.predict(
            point_coords=points, point_labels=labels, mask_input=best[None, :, :], multimask_output=False
        ),
    )
    labels = np.array([1, 0])
    yield (
        "outside",
        predictor.predict(
            point_coords=points, point_labels=labels, mask_input=best[None, :, :], multimask_output=False
        ),
    )
    box = np.array([15, 10, 62, 47])
    yield "box", predictor.predict(point_coords=None, point_labels=None, box=box[None, :], multimask_output=False)
    yield (
        "box and click",
        predictor.predict(
            point_coords=np.array([[25, 20]]), point_labels=np.array([0]), box=box, multimask_output=False
        ),
    )
    boxes = np.array([[15, 10, 62, 47], [28, 22, 47, 38], [0, 0, 20, 20], [50, 5, 88, 55]])
    yield "boxes", predictor.predict(point_coords=None, point_labels=None, box=boxes, multimask_output=False)
    yield "clicks", predictor.predict(np.array([[[40, 30]], [[70, 10]]]), np.array([[1], [1]]), return_logits=True)
    yield (
        "refined clicks",
        predictor.predict(
            np.array([[[40, 30]], [[70, 10]]]), np.array([[1], [1]]), None, np.stack([logits[:1], logits[1:2]]), False
        ),
    )
    yield "fractions", predictor.predict(point / (WIDTH, HEIGHT), label, None, None, False, False, False)
    yield "defaults", predictor.predict(point, label)
    predictor.set_image(Image.fromarray(image))
    yield "Pillow's", predictor.predict(point, label, multimask_output=False)
    images = [image, photograph(1)[:40]]
    predictor.set_image_batch(images)
    box_batch = [boxes, boxes[:2]]
    for name, several in (
        ("batch of boxes", predictor.predict_batch(None, None, box_batch=box_batch, multimask_output=False)),
        (
            "batch of clicks",
            predictor.predict_batch([points[:, None], points[:1, None]], [label[[0, 0], None], label[:1, None]]),
        ),
    ):
        for place in range(len(images)):
            yield f"{name} {place}", [each[place] for each in several]
    predictor.reset_predictor()
    assert str(predictor.device) == "cpu"


def test_the_image_notebooks_calls(model: GranularSam2, weights: Path) -> None:
    own = dict(image_calls(sam2_predictor(load_sam2(str(weights)))))
    ours = dict(image_calls(GranularPredictor(model, 0.0, 0.0, 0.0)))  # as sam2 has them
    assert ours.keys() == own.keys()
    for name, expected in own.items():
        assert [each.shape for each in ours[name]] == [each.shape for each in expected], name
        for one, other in zip(ours[name], expected, strict=True):
            if one.dtype == np.bool_:  # a pixel at the threshold may fall to either side
                assert (one == other.astype(bool)).mean() > 0.999, name
            else:
                assert one.dtype == other.dtype == np.float32
                assert_same_sums(one, other)
    assert any(0.05 < ours[name][0].mean() < 0.95 for name in ("three", "boxes")), "the masks show something"


def test_the_same_calls_with_a_granularity_give_one_mask_a_prompt(model: GranularSam2) -> None:
    predictor = GranularPredictor(model)
    predictor.set_image(photograph())
    boxes = np.array([[15, 10, 62, 47], [28, 22, 47, 38]])
    for dial in (0.4, [0.2, 0.9]):
        masks, scores, logits = predictor.predict(box=boxes, granularity=dial)
        assert (masks.shape, scores.shape, logits.shape) == ((2, 1, HEIGHT, WIDTH), (2, 1), (2, 1, LOW, LOW))


# -- everything --------------------------------------------------------------------------------------------------------


def generators(model: GranularSam2, weights: Path, **options: Any) -> tuple[Any, Any]:
    """Ours and sam2's own."""
    with scripted_transforms():
        from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator

        own = SAM2AutomaticMaskGenerator(load_sam2(str(weights)), **options)
    own.predictor._bb_feat_sizes = [(SIDE // stride, SIDE // stride) for stride in (4, 8, 16)]
    return GranularMaskGenerator(model, **options), own


@pytest.mark.parametrize("output_mode", ["binary_mask", "uncompressed_rle", "coco_rle"])
def test_the_mask_generators_notebooks_calls(model: GranularSam2, weights: Path, output_mode: str) -> None:
    few = {
        "points_per_side": 4,
        "box_nms_thresh": 0.97,
        "pred_iou_thresh": 0.0,
        "stability_score_thresh": 0.3,
        "output_mode": output_mode,
    }
    second = {
        "points_per_side": 4, "points_per_batch": 8, "pred_iou_thresh": 0.1, "stability_score_thresh": 0.3,
        "stability_score_offset": 0.7, "crop_n_layers": 1, "box_nms_thresh": 0.9, "crop_n_points_downscale_factor": 2,
        "min_mask_region_area": 25.0, "use_m2m": True,
    }  # fmt: skip
    for options in (few, second) if output_mode == "binary_mask" else (few,):
        ours, own = generators(model, weights, **options)
        with warnings.catch_warnings():  # sam2 tells on every call that its CUDA extension is not there
            warnings.filterwarnings("ignore", message="(?s).*Skipping the post-processing step", category=UserWarning)
            found, expected = ours.generate(photograph()), own.generate(photograph())
        assert len(found) == len(expected) >= 1
        for one, other in zip(found, expected, strict=True):
            assert one.keys() == RECORD_KEYS | {"granularity"}
            assert other.keys() == RECORD_KEYS
            assert one["granularity"] is None
            for key in RECORD_KEYS - {"segmentation"}:
                assert type(one[key]) is type(other[key]), key
                np.testing.assert_allclose(one[key], other[key], rtol=0.05, atol=2, err_msg=key)
            if output_mode == "binary_mask":
                assert one["segmentation"].dtype == other["segmentation"].dtype == np.bool_
                assert (one["segmentation"] == other["segmentation"]).mean() > 0.99
            else:
                assert one["segmentation"]["size"] == other["segmentation"]["size"]
                assert type(one["segmentation"]["counts"]) is type(other["segmentation"]["counts"])


def test_everything_with_a_granularity(model: GranularSam2) -> None:
    image = photograph()
    for dial, output_mode in ((0.3, "binary_mask"), ([0.2, 0.9], "coco_rle")):
        generator = GranularMaskGenerator(
            model, 4, pred_iou_thresh=0.0, stability_score_thresh=0.0, output_mode=output_mode, granularity=dial
        )
        found = generator.generate(image)
        assert found
        for each in found:
            assert each.keys() == RECORD_KEYS | {"granularity", "parent_id", "instance_id"}
            assert each["granularity"] in np.atleast_1d(dial)
            assert [type(value) for value in each["bbox"]] == [float] * 4
            assert each["crop_box"] == [0.0, 0.0, WIDTH, HEIGHT]
            if output_mode == "binary_mask":
                assert each["segmentation"].sum() == each["area"]
            else:
                assert isinstance(each["segmentation"]["counts"], str)
    on_points = GranularMaskGenerator(
        model, None, 64, 0.0, 0.0, point_grids=[np.array([[0.5, 0.5]])], granularity=0.3
    ).generate(image)
    assert [each["point_coords"] for each in on_points] == [[[WIDTH / 2, HEIGHT / 2]]]


def test_what_does_not_go_with_a_granularity_is_named(model: GranularSam2, weights: Path) -> None:
    for name, value in (
        ("crop_n_layers", 1), ("use_m2m", True), ("min_mask_region_area", 25), ("box_nms_thresh", 0.7),
        ("mask_threshold", 0.5),
    ):  # fmt: skip
        with pytest.raises(InputError, match=f"^{name}: only without a granularity"):
            GranularMaskGenerator(model, **{name: value}, granularity=0.5)
    with pytest.raises(InputError, match="output_mode png: expected one of binary_mask"):
        GranularMaskGenerator(model, output_mode="png")
    with pytest.raises(InputError, match="expected points_per_side or point_grids"):
        GranularMaskGenerator(model, point_grids=[np.zeros((1, 2))])
    with pytest.raises(InputError, match=r"granularity 2: expected a number in \[0.1, 1.0\]"):
        GranularMaskGenerator(model, granularity=2)
    with pytest.raises(InputError, match="know no granularity"):
        GranularMaskGenerator(GranularPredictor.load(weights).model, granularity=0.5)


# -- video -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    for number in range(4):
        Image.fromarray(np.roll(photograph(), 3 * number, axis=1)).save(folder / f"{number:05d}.jpg", quality=95)
    return folder


def video_calls(predictor: Any, clip: Path) -> Iterator[tuple[int, list[int], Any]]:
    """A click and its correction, a box, a mask, two objects, tracking there and back, and taking things back."""
    state = predictor.init_state(video_path=str(clip))

    def told(answer: Any) -> tuple[int, list[int], Any]:
        return answer[0], list(answer[1]), answer[2].numpy()

    points, labels = np.array([[40, 30]], dtype=np.float32), np.array([1], np.int32)
    yield told(
        predictor.add_new_points_or_box(inference_state=state, frame_idx=0, obj_id=1, points=points, labels=labels)
    )
    points, labels = np.array([[40, 30], [80, 50]], dtype=np.float32), np.array([1, 0], np.int32)
    yield told(
        predictor.add_new_points_or_box(inference_state=state, frame_idx=0, obj_id=1, points=points, labels=labels)
    )
    for answer in predictor.propagate_in_video(state):
        yield told(answer)
    yield told(predictor.add_new_points_or_box(state, 2, 1, points[1:], labels[1:], clear_old_points=False))
    for answer in predictor.propagate_in_video(state, start_frame_idx=2, reverse=True):
        yield told(answer)
    predictor.reset_state(state)
    box = np.array([15, 10, 62, 47], dtype=np.float32)
    yield told(predictor.add_new_points_or_box(inference_state=state, frame_idx=0, obj_id=4, box=box))
    yield told(
        predictor.add_new_points_or_box(
            inference_state=state, frame_idx=0, obj_id=4, points=points[:1], labels=labels[:1], box=box
        )
    )
    yield told(predictor.add_new_points(state, 0, 2, points / (WIDTH, HEIGHT), labels, normalize_coords=False))
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[25:35, 30:45] = True
    yield told(predictor.add_new_mask(state, 0, 3, mask))
    for answer in predictor.propagate_in_video(state, max_frame_num_to_track=2):
        yield told(answer)
    yield told(predictor.clear_all_prompts_in_frame(state, 0, 2))
    assert predictor.clear_all_prompts_in_frame(state, 0, 3, need_output=False) is None
    left, frames = predictor.remove_object(state, 3)
    yield 0, list(left), np.stack([logits.numpy() for _, logits in frames] or [np.zeros(1)])
    left, frames = predictor.remove_object(state, 4, strict=True)
    yield frames[0][0], list(left), frames[0][1].numpy()
    assert predictor.remove_object(state, 9)[0] == [2]


def test_the_video_notebooks_calls(video_model: GranularSam2, weights: Path, clip: Path) -> None:
    own_model = load_sam2(str(weights), video=True)
    own = list(video_calls(own_model, clip))
    ours = list(video_calls(GranularVideoPredictor(video_model), clip))
    assert len(ours) == len(own)
    for place, ((frame, ids, logits), (own_frame, own_ids, own_logits)) in enumerate(zip(ours, own, strict=True)):
        assert (frame, ids) == (own_frame, own_ids), place
        assert (logits.shape, logits.dtype) == (own_logits.shape, own_logits.dtype), place
        assert_same_sums(logits, own_logits)


def test_a_video_with_a_granularity_for_each_object(video_model: GranularSam2, clip: Path) -> None:
    predictor = GranularVideoPredictor(video_model)
    state = predictor.init_state(str(clip), True, True, False)
    for number, g in ((1, 0.2), (2, 1.0), (3, None)):
        predictor.add_new_points_or_box(state, 0, number, [[40, 30]], [1], granularity=g)
    answers = [logits.numpy() for _, _, logits in predictor.propagate_in_video(state)]
    assert [each.shape for each in answers] == [(3, 1, HEIGHT, WIDTH)] * 4
    assert np.abs(answers[0][0] - answers[0][1]).max() > 1e-3
    predictor.clear_all_prompts_in_frame(state, 0, 1)
    assert state["granularity"][1] == 0.2
    predictor.remove_object(state, 1)
    assert state["granularity"] == {2: 1.0, 3: None}
    with pytest.raises(InputError, match=r"object 1: expected one of \[2, 3\]"):
        predictor.remove_object(state, 1, strict=True)
    with pytest.raises(InputError, match="a box comes before any point"):
        predictor.add_new_points_or_box(state, 0, 2, box=[1, 2, 3, 4], clear_old_points=False)
