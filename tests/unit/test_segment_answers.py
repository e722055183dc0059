"""`grainmill segment` answers as the predictors do: the masks in its JSON, and the pixels of its pictures."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from model.network.checkpoint import write_checkpoint
from model.network.granular import GranularSam2
from model.network.load import checkpoint_record, trained_state
from model.predict.draw import MASK_RGB
from model.predict.image import GranularPredictor
from model.predict.mask_generator import AutomaticConfig, generate_masks
from model.predict.video import Frames, GranularVideoPredictor
from pipeline import cli
from pipeline.format import rle
from tests.loud import make_loud

WIDTH, HEIGHT = 320, 240
"""A cell of a sheet is 320 wide: pixels stay what they are."""
CAPTION_PX = 22
POINTS = ((180.0, 120.0), (200.0, 140.0))
OUTSIDE = (24.0, 200.0)
BOX = (120.0, 60.0, 260.0, 180.0)
GREEN, RED, WHITE = (0, 230, 0), (230, 0, 0), (255, 255, 255)

Rgb = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Segment = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A micro model with random weights whose mask depends on every prompt: loud attention, a loud dial."""
    torch.manual_seed(3)
    model = GranularSam2("micro", "full", 128)
    make_loud(model, dial=12)
    with torch.no_grad():
        model.base.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(20.0)  # every object is there
        model.base.sam_mask_decoder.iou_prediction_head.layers[-1].bias.fill_(0.5)  # and every mask good enough
        model.adopt_base()
    path = tmp_path_factory.mktemp("model") / "micro.safetensors"
    state = {f"model.{name}": value for name, value in trained_state(model).items()}
    write_checkpoint(path, checkpoint_record(model, init="scratch"), state)
    return str(path)


def grey_noise(seed: int) -> Rgb:
    """Without any colour, which pictures of masks and prompts have; neither black nor white."""
    grey = np.random.default_rng(seed).integers(80, 200, (HEIGHT, WIDTH, 1), dtype=np.uint8)
    grey[60:180, 120 + 10 * seed : 260 + 10 * seed] //= 2
    return np.repeat(grey, 3, axis=2)


@pytest.fixture(scope="module")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("photograph") / "noise.png"
    Image.fromarray(grey_noise(0)).save(path)
    return str(path)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("video") / "clip"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(grey_noise(number)).save(folder / f"{number}.png")
    return str(folder)


@pytest.fixture(scope="module")
def predictor(checkpoint: str) -> GranularPredictor:
    made = GranularPredictor.load(checkpoint)
    made.set_image(grey_noise(0))
    return made


@pytest.fixture
def segment(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Segment:
    """Runs the command with its output in `tmp_path`; gives its JSON."""

    def run(path: str, *flags: str) -> dict[str, Any]:
        code = cli.main(["segment", path, "--checkpoint", checkpoint, "--output", str(tmp_path), "--json", *flags])
        out, err = capsys.readouterr()
        assert code == 0, err
        found: dict[str, Any] = json.loads(out)
        return found

    return run


def picture_at(path: Path) -> Rgb:
    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGB"))


def spelled(flag: str, *places: Sequence[float], number: int | None = None) -> list[str]:
    before = "" if number is None else f"{number}:"
    return [text for each in places for text in (flag, before + ",".join(f"{value:g}" for value in each))]


def masks_of(found: dict[str, Any]) -> list[Mask]:
    return [rle.decode(each["segmentation"]) for each in found["annotations"]]


def distance_px(mask: Mask, other: Mask) -> int:
    return int((mask != other).sum())


def assert_far_apart(masks: Sequence[Mask]) -> None:
    """Masks that were equal could not show that one stands in for another."""
    assert min(distance_px(mask, other) for mask, other in itertools.combinations(masks, 2)) > 20


def assert_same(mask: Mask, expected: Mask) -> None:
    """Passes of several prompts add in another order than passes of one: a pixel at the threshold may turn."""
    assert distance_px(mask, expected) <= 5


# ---------------------------------------------------------------------------------------------------------------------
# Masks

PROMPTS: dict[str, dict[str, Any]] = {
    "points": {"point_coords": POINTS, "point_labels": (1, 1)},
    "not-point": {"point_coords": (*POINTS, OUTSIDE), "point_labels": (1, 1, 0)},
    "box": {"box": BOX},
    "points and box": {"point_coords": POINTS, "point_labels": (1, 1), "box": BOX},
}


def flags_of(prompt: dict[str, Any], number: int | None = None) -> list[str]:
    flags = spelled("--box", prompt["box"], number=number) if "box" in prompt else []
    for place, label in zip(prompt.get("point_coords", ()), prompt.get("point_labels", ()), strict=True):
        flags += spelled("--point" if label else "--not-point", place, number=number)
    return flags


def test_each_kind_of_prompt_has_a_mask_of_its_own(predictor: GranularPredictor) -> None:
    """The tests below could not see a prompt that is dropped otherwise."""
    assert_far_apart([predictor.predict(**each, granularity=0.5)[0][0] for each in PROMPTS.values()])


@pytest.mark.parametrize("refine", [0, 2])
@pytest.mark.parametrize("prompt", list(PROMPTS))
def test_masks_are_the_predictors_each_at_its_own_granularity(
    prompt: str, refine: int, predictor: GranularPredictor, photograph: str, segment: Segment
) -> None:
    given = PROMPTS[prompt]
    dial = (0.8, None, 0.1)
    found = segment(photograph, *flags_of(given), "--granularity", "0.8,none,0.1", "--refine", str(refine))
    assert [each["granularity"] for each in found["annotations"]] == list(dial)
    expected = []
    for mask, told, g in zip(masks_of(found), found["annotations"], dial, strict=True):
        passes = [predictor.predict(**given, multimask_output=False, granularity=g)]
        for _ in range(refine):
            given_again = {**given, "mask_input": passes[-1][2]}
            passes.append(predictor.predict(**given_again, multimask_output=False, granularity=g))
        assert_same(mask, passes[-1][0][0])
        assert told["score"] == pytest.approx(float(passes[-1][1][0]), abs=1e-4)
        if refine:
            assert_far_apart([each[0][0] for each in passes])
        expected.append(passes[-1][0][0])
    assert_far_apart(expected)


def test_without_granularity_it_is_the_whole(predictor: GranularPredictor, photograph: str, segment: Segment) -> None:
    found = segment(photograph, *flags_of(PROMPTS["points"]))
    assert [each["granularity"] for each in found["annotations"]] == [1.0]
    assert_same(masks_of(found)[0], predictor.predict(**PROMPTS["points"], granularity=1.0)[0][0])


EVERYTHING = ("--everything", "--granularity", "0.2,0.9", "--points-per-side", "3", "--min-predicted-iou", "0",
              "--min-stability", "0", "--max-masks", "12")  # fmt: skip


def test_everything_is_what_the_grid_of_clicks_finds(checkpoint: str, photograph: str, segment: Segment) -> None:
    config = AutomaticConfig(
        granularities=(0.2, 0.9), points_per_side=3, pred_iou_thresh=0.0, stability_score_thresh=0.0, max_masks=12
    )
    expected = generate_masks(GranularPredictor.load(checkpoint), grey_noise(0), config)
    assert {each.granularity for each in expected} == {0.2, 0.9}
    found = segment(photograph, *EVERYTHING)["annotations"]
    assert found == [each.to_json(place) for place, each in enumerate(expected)]
    by_id = {each["id"]: each for each in found}
    assert list(by_id) == list(range(1, len(expected) + 1))
    assert any(each["parent_id"] for each in found)
    for told, mask in zip(found, expected, strict=True):
        for name, place in (("parent_id", mask.parent_id), ("instance_id", mask.instance_id)):
            assert (told[name] is None) == (place is None)
            if place is not None:
                assert by_id[told[name]]["segmentation"] == expected[place].segmentation


OBJECTS: dict[int, tuple[dict[str, Any], float | None]] = {
    1: (PROMPTS["points and box"], 0.2),
    2: (PROMPTS["not-point"], 0.9),
    5: (PROMPTS["box"], None),
}
VIDEO_FLAGS = [
    *(flag for number, (prompt, _) in OBJECTS.items() for flag in flags_of(prompt, number)),
    *("--granularity", "1:0.2", "--granularity", "2:0.9", "--granularity", "5:none", "--frame", "1"),
]


def tracked(
    checkpoint: str, clip: str, objects: dict[int, tuple[dict[str, Any], float | None]]
) -> dict[tuple[int, int], Mask]:
    """By frame and object, prompted on frame 1."""
    predictor = GranularVideoPredictor.load(checkpoint)
    state = predictor.init_state(Frames(clip))
    for number, (prompt, g) in objects.items():
        given = {name.removeprefix("point_"): value for name, value in prompt.items() if name != "point_coords"}
        points = prompt.get("point_coords")
        predictor.add_new_points_or_box(state, 1, number, points, **given, granularity=g)
    return {
        (place, number): mask
        for reverse in (False, True)
        for place, ids, logits in predictor.propagate_in_video(state, 1, reverse=reverse)
        for number, mask in zip(ids, (logits[:, 0] > 0).numpy(), strict=True)
    }


def test_objects_of_a_video_are_tracked_by_their_own_prompts_and_granularities(
    checkpoint: str, clip: str, segment: Segment
) -> None:
    expected = tracked(checkpoint, clip, OBJECTS)
    for number, (prompt, g) in OBJECTS.items():
        another = tracked(checkpoint, clip, {number: (prompt, 0.5 if g else 1.0)})
        for frame in range(3):
            assert_far_apart([expected[frame, number], another[frame, number]])
    boxless = tracked(checkpoint, clip, {1: (PROMPTS["points"], 0.2)})
    assert_far_apart([expected[1, 1], boxless[1, 1]])
    found = segment(clip, *VIDEO_FLAGS)
    masks = {
        (each["image_id"] - 1, each["object_id"]): mask
        for each, mask in zip(found["annotations"], masks_of(found), strict=True)
    }
    assert masks.keys() == expected.keys() == set(itertools.product(range(3), OBJECTS))
    for place, mask in masks.items():
        assert_same(mask, expected[place])


def evaluators() -> list[tuple[Any, Any]]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    found: list[tuple[Any, Any]] = [(COCO, COCOeval)]
    with contextlib.suppress(ImportError):  # the extra `eval`
        from faster_coco_eval import COCO as Faster
        from faster_coco_eval import COCOeval_faster

        found.append((Faster, COCOeval_faster))
    return found


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("kind", ["click", "everything", "video"])
def test_scored_against_itself_it_is_perfect(kind: str, photograph: str, clip: str, segment: Segment) -> None:
    """COCOeval counts a ground truth with id 0 as never found."""
    if kind == "video":
        found = segment(clip, *VIDEO_FLAGS)
    else:
        flags = EVERYTHING if kind == "everything" else (*flags_of(PROMPTS["points"]), "--granularity", "0.1,0.8,none")
        found = segment(photograph, *flags)
    results = [{**each, "score": each["score"] or 0.5} for each in found["annotations"]]
    assert len(results) >= 2
    for reader, evaluator in evaluators():
        with contextlib.redirect_stdout(io.StringIO()):
            truth = reader()
            truth.dataset = copy.deepcopy(found)
            truth.createIndex()
            evaluation = evaluator(truth, truth.loadRes(copy.deepcopy(results)), "segm")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        average_precision, recall = evaluation.stats[0], evaluation.stats[8]
        assert (average_precision, recall) == pytest.approx((1.0, 1.0)), evaluator


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def near_marks(prompt: dict[str, Any], *, ring_px: int = 7) -> Mask:
    """Pixels at which clicks and a box's frame may be drawn."""
    near = np.zeros((HEIGHT, WIDTH), dtype=bool)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    for px, py in prompt.get("point_coords", ()):
        near |= np.hypot(x - px, y - py) <= ring_px
    if "box" in prompt:
        x0, y0, x1, y1 = prompt["box"]
        outer = (x >= x0 - 3) & (x <= x1 + 2) & (y >= y0 - 3) & (y <= y1 + 2)
        near |= outer & ~((x >= x0 + 3) & (x < x1 - 3) & (y >= y0 + 3) & (y < y1 - 3))
    return near


def assert_marked(picture: Rgb, prompt: dict[str, Any]) -> None:
    for (x, y), label in zip(prompt.get("point_coords", ()), prompt.get("point_labels", ()), strict=True):
        assert tuple(picture[int(y), int(x)]) == (GREEN if label else RED)
    if "box" in prompt:
        x0, y0, x1, y1 = map(int, prompt["box"])
        for x, y in ((x0, y0), (x1 - 1, y1 - 1), ((x0 + x1) // 2, y0), (x0, (y0 + y1) // 2), (x1 - 1, y0 + 9)):
            assert tuple(picture[y, x]) == GREEN, (x, y)


def edge_of(mask: Mask) -> Mask:
    return mask & (cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) == 0)


def assert_mask_over_photograph(picture: Rgb, mask: Mask, prompt: dict[str, Any]) -> None:
    plain = ~near_marks(prompt)
    photograph = grey_noise(0)
    assert (picture[plain & ~mask] == photograph[plain & ~mask]).all()
    assert (picture[plain & edge_of(mask)] == WHITE).all()
    inside = plain & mask & ~edge_of(mask)
    assert inside.sum() > 1000
    tinted = (photograph[inside] + np.array(MASK_RGB, dtype=float)) / 2
    assert np.abs(picture[inside] - tinted).max() <= 1
    assert_marked(picture, prompt)


@pytest.mark.parametrize("prompt", list(PROMPTS))
def test_one_granularity_is_one_picture(prompt: str, photograph: str, segment: Segment, tmp_path: Path) -> None:
    found = segment(photograph, *flags_of(PROMPTS[prompt]), "--granularity", "0.4")
    picture = picture_at(tmp_path / "noise.masks.png")
    assert picture.shape == (HEIGHT, WIDTH, 3)
    assert_mask_over_photograph(picture, masks_of(found)[0], PROMPTS[prompt])


@pytest.mark.parametrize("prompt", ["not-point", "points and box"])
def test_several_granularities_are_a_sheet(prompt: str, photograph: str, segment: Segment, tmp_path: Path) -> None:
    given = PROMPTS[prompt]
    found = segment(photograph, *flags_of(given), "--granularity", "0.1,1.0,none")
    sheet = picture_at(tmp_path / "noise.masks.png")
    assert sheet.shape == (HEIGHT + CAPTION_PX, 4 * WIDTH, 3)
    first, *others = np.split(sheet[CAPTION_PX:], 4, axis=1)
    plain = ~near_marks(given)
    assert (first[plain] == grey_noise(0)[plain]).all()
    assert_marked(first, given)
    for cell, mask in zip(others, masks_of(found), strict=True):
        assert_mask_over_photograph(cell, mask, given)


def assert_coloured_where(picture: Rgb, photograph: Rgb, covered: Mask, plain: Mask) -> None:
    """The photograph outside, a colour or a white edge inside."""
    coloured = (np.ptp(picture.astype(int), axis=2) > 20) | (picture == 255).all(axis=2)
    assert (picture[plain & ~covered] == photograph[plain & ~covered]).all()
    assert coloured[plain & covered].all()
    assert covered.any()


def test_everything_is_drawn_as_a_whole_and_by_levels(photograph: str, segment: Segment, tmp_path: Path) -> None:
    found = segment(photograph, *EVERYTHING)
    sheet = picture_at(tmp_path / "noise.masks.png")[CAPTION_PX:]
    cells = np.split(sheet, sheet.shape[1] // WIDTH, axis=1)
    depth: list[int] = []
    for each in found["annotations"]:
        depth.append(0 if each["parent_id"] is None else depth[each["parent_id"] - 1] + 1)
    assert len(cells) == 1 + min(3, max(depth) + 1)
    assert len(cells) > 2, "a tree with one level shows nothing"
    everywhere = np.ones((HEIGHT, WIDTH), dtype=bool)
    masks = masks_of(found)
    assert_coloured_where(cells[0], grey_noise(0), np.any(masks, axis=0), everywhere)
    for level, cell in enumerate(cells[1:]):
        covered = np.any([mask for mask, its in zip(masks, depth, strict=True) if its == level], axis=0)
        assert_coloured_where(cell, grey_noise(0), covered, everywhere)


def test_frames_of_a_video_show_their_masks_and_one_of_them_the_prompts(
    clip: str, segment: Segment, tmp_path: Path
) -> None:
    found = segment(clip, *VIDEO_FLAGS)
    for frame in range(3):
        picture = picture_at(tmp_path / "clip.masks" / f"{frame:05d}.png")
        plain = np.ones((HEIGHT, WIDTH), dtype=bool)
        for prompt, _ in OBJECTS.values() if frame == 1 else ():
            plain &= ~near_marks(prompt)
            assert_marked(picture, prompt)
        on_it = [
            mask
            for each, mask in zip(found["annotations"], masks_of(found), strict=True)
            if each["image_id"] == frame + 1
        ]
        assert_coloured_where(picture, grey_noise(frame), np.any(on_it, axis=0), plain)
