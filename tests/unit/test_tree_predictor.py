"""The predictor without weights: which mask answers, and that corrections do what was clicked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import model.predict.tree as tree_module
from model.predict.tree import GRID, SCORE_FEATURES, SCORE_WEIGHTS, TreePredictor, predicted_iou
from pipeline import cli
from pipeline.errors import InputError
from pipeline.format import rle
from pipeline.format.schema import Annotation, Origin
from pipeline.labeling.config import MineConfig

HEIGHT, WIDTH = 60, 80


def rectangle(x0: int, y0: int, x1: int, y1: int) -> NDArray[np.bool_]:
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


def annotation(
    number: int, mask: NDArray[np.bool_], g: float, instance: int, origin: Origin, parent: int | None = None
) -> Annotation:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = (int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1)
    return Annotation(
        id=number, segmentation=rle.encode(mask), bbox=box, area=int(mask.sum()), granularity=g, instance_id=instance,
        parent_id=parent, level=None, origin=origin, score=None,
    )  # fmt: skip


MASKS = [
    rectangle(5, 5, 55, 55),  # 0: what joins two wholes
    rectangle(10, 10, 50, 50),  # 1: a whole
    rectangle(10, 10, 30, 50),  # 2: its left half
    rectangle(10, 10, 20, 20),  # 3: a corner of it
    rectangle(12, 30, 28, 46),  # 4: a loose thing, smaller than the whole around it
    rectangle(60, 10, 75, 50),  # 5: another whole
    rectangle(60, 10, 75, 20),  # 6: its head
]
TREE = [
    annotation(0, MASKS[0], 1.0, 0, "conquer"),
    annotation(1, MASKS[1], 1.0, 1, "divide"),
    annotation(2, MASKS[2], 0.6, 1, "conquer", 1),
    annotation(3, MASKS[3], 0.1, 1, "conquer", 2),
    annotation(4, MASKS[4], 1.0, 4, "conquer"),
    annotation(5, MASKS[5], 1.0, 5, "divide"),
    annotation(6, MASKS[6], 0.1, 5, "conquer", 5),
]


@pytest.fixture
def predictor() -> TreePredictor:
    return TreePredictor.of_annotations(TREE, HEIGHT, WIDTH)


def places(masks: NDArray[np.bool_]) -> list[int]:
    """Which masks of the tree they are; -1 for another."""
    return [next((place for place, each in enumerate(MASKS) if (each == mask).all()), -1) for mask in masks]


def test_the_whole_under_the_click_is_meant_and_g_chooses_in_its_tree(predictor: TreePredictor) -> None:
    masks, scores, logits = predictor.predict([[15, 15]], [1], granularity=[0.1, 0.34, 0.36, 0.7, 0.81, 1.0])
    assert places(masks) == [3, 3, 2, 2, 1, 1]
    assert (masks.dtype, masks.shape) == (np.bool_, (6, HEIGHT, WIDTH))
    assert (scores.dtype, scores.shape, logits.dtype, logits.shape) == (np.float32, (6,), np.float32, (6, GRID, GRID))
    assert ((scores > 0) & (scores < 1)).all()
    # Not the smaller loose mask there, and not the corner, which does not hold the click.
    assert places(predictor.predict([[20, 40]], [1], granularity=[0.1, 1.0])[0]) == [2, 1]
    # Where only what joins wholes lies: that.
    assert places(predictor.predict([[6, 6]], [1], granularity=[0.1, 1.0])[0]) == [0, 0]


def test_a_negative_click_turns_to_masks_without_it(predictor: TreePredictor) -> None:
    clicks = [[15, 15], [40, 15]]
    assert places(predictor.predict(clicks, [1, 0], granularity=[0.1, 1.0])[0]) == [3, 2]
    assert places(predictor.predict([[20, 40], [28, 20]], [1, 0], granularity=[1.0])[0]) == [4]


def test_a_box_is_the_whole_and_g_is_measured_in_it(predictor: TreePredictor) -> None:
    left = [10, 10, 30, 50]
    assert places(predictor.predict(box=left, granularity=[1.0])[0]) == [2]
    assert places(predictor.predict([[15, 15]], [1], left, granularity=[0.1, 0.5, 0.6, 1.0])[0]) == [3, 3, 2, 2]
    assert places(predictor.predict(box=left, multimask_output=False)[0]) == [2]
    corners = predictor.predict([[10, 10], [30, 50]], [2, 3], granularity=1.0)
    assert places(corners[0]) == [2]


def test_an_answer_fed_back_says_which_thing_is_meant(predictor: TreePredictor) -> None:
    loose, _, logits = predictor.predict([[20, 40], [28, 20]], [1, 0], granularity=1.0)
    assert places(loose) == [4]
    assert places(predictor.predict([[20, 40]], [1], mask_input=logits, granularity=1.0)[0]) == [4]
    assert places(predictor.predict(mask_input=logits[0], granularity=1.0)[0]) == [4]
    for g in (0.1, 0.6, 1.0):
        masks, _, logits = predictor.predict([[15, 15]], [1], granularity=g)
        again = predictor.predict([[15, 15]], [1], mask_input=logits, granularity=g)
        assert (again[0] == masks).all()
        small = (np.arange(GRID) + 0.5) / GRID
        y, x = (small * HEIGHT).astype(int), (small * WIDTH).astype(int)
        sure = np.abs(logits[0]) == 32
        assert sure.mean() > 0.9
        assert ((logits[0] > 0) == masks[0][np.ix_(y, x)])[sure].all()


def test_without_a_granularity_the_surest_and_three_sizes(predictor: TreePredictor) -> None:
    candidates = np.array([each[15, 15] for each in MASKS])
    found = {each: predictor._features(each, candidates) for each in (0, 1, 2, 3)}

    def surest(*some: int) -> int:
        return some[int(np.argmax([predicted_iou(found[each]) for each in some]))]

    assert places(predictor.predict([[15, 15]], [1], multimask_output=False)[0]) == [surest(1, 2, 3)]
    three, predicted, _ = predictor.predict([[15, 15]], [1], multimask_output=True)
    assert np.array_equal(predictor.predict([[15, 15]], [1], None, None, True)[0], three), "SAM-2's order of arguments"
    assert places(three) == [surest(3, 2), 1, 0]
    assert three.sum(axis=(1, 2)).tolist() == sorted(three.sum(axis=(1, 2)))
    assert predicted.shape == (3,)
    assert len(predictor.predict([[70, 40]], [1], multimask_output=True)[0]) == 3
    logits = predictor.predict([[15, 15]], [1], None, None, False, True)[0]
    assert logits.dtype == np.float32
    assert places(logits > 0)[0] >= 0


def test_several_prompts_and_coordinates_without_pixels_as_a_model_takes_them(predictor: TreePredictor) -> None:
    points = np.array([[[15, 15]], [[40, 15]]])
    together = predictor.predict(points, granularity=[0.6, 1.0])
    assert [each.shape for each in together] == [(2, 1, HEIGHT, WIDTH), (2, 1), (2, 1, GRID, GRID)]
    for place, g in enumerate((0.6, 1.0)):
        for one, other in zip(together, predictor.predict(points[place], granularity=g), strict=True):
            assert np.array_equal(one[place], other)
    assert predictor.predict(points)[0].shape == (2, 3, HEIGHT, WIDTH)
    parts = predictor.predict(points[0] / [WIDTH, HEIGHT], granularity=0.6, normalize_coords=False)[0]
    assert np.array_equal(parts, together[0][0])
    predictor = TreePredictor.of_annotations(TREE, HEIGHT, WIDTH)
    predictor.reset_predictor()
    with pytest.raises(InputError, match="set_image first"):
        predictor.predict(points)


def test_corrections_always_do_what_was_clicked() -> None:
    """Any clicks, on trees of any masks: positive ones end inside, negative ones outside, and it is repeatable."""
    rng = np.random.default_rng(5)
    mended = 0
    for _ in range(150):
        masks = []
        for _ in range(rng.integers(1, 9)):
            x, y = np.sort(rng.integers(0, WIDTH + 1, 2)), np.sort(rng.integers(0, HEIGHT + 1, 2))
            masks.append(rectangle(x[0], y[0], max(x[1], x[0] + 1), max(y[1], y[0] + 1)))
        masks = [each for each in masks if each.any()] or [rectangle(0, 0, 9, 9)]
        tree = [annotation(place, each, 1.0, place, "divide") for place, each in enumerate(masks)]
        predictor = TreePredictor.of_annotations(tree, HEIGHT, WIDTH)
        pixels = rng.choice(HEIGHT * WIDTH, rng.integers(1, 9), replace=False)
        points = np.stack([pixels % WIDTH, pixels // WIDTH], axis=1)
        if rng.random() < 0.3:  # beside each other: nothing of the tree lies between
            points = points[:1] + np.array([[0, 0], [1, 0], [0, 1], [-1, 0]])
            points = points[((points >= 0) & (points < [WIDTH, HEIGHT])).all(axis=1)]
        labels = rng.integers(0, 2, len(points))
        g = float(rng.uniform(0.1, 1.0))
        [mask], [score], _ = predictor.predict(points, labels, granularity=g)
        assert (mask[points[:, 1], points[:, 0]] == labels).all()
        assert 0 < score < 1
        again = predictor.predict(points, labels, granularity=g)
        assert (again[0][0] == mask).all()
        assert again[1][0] == score
        mended += not any((mask == each).all() for each in masks)
    assert mended > 50


def test_corrections_are_joined_and_cut_from_masks_of_the_tree(predictor: TreePredictor) -> None:
    joined = predictor.predict([[40, 15], [65, 40]], [1, 1], granularity=1.0)[0][0]
    assert (joined == MASKS[1] | MASKS[5]).all()
    cut = predictor.predict([[40, 15], [15, 15]], [1, 0], granularity=1.0)[0][0]
    assert (cut == MASKS[1] & ~MASKS[2]).all()
    # Nothing of the tree tells these two apart: a disc.
    disc = predictor.predict([[65, 30], [68, 30]], [1, 0], granularity=1.0)[0][0]
    assert (disc == MASKS[5]).mean() > 0.99
    assert disc[30, 65]
    assert not disc[30, 68]
    # No mask holds the click: what no border divides around it.
    outside = predictor.predict([[78, 58]], [1], granularity=1.0)[0][0]
    assert (outside == ~np.any(MASKS, axis=0)).all()
    # Of two contrary clicks on a pixel the later counts.
    assert predictor.predict([[40, 15], [40, 15]], [0, 1], granularity=1.0)[0][0][15, 40]


def test_the_predicted_iou_is_the_fitted_formula(predictor: TreePredictor) -> None:
    """Candidates over the click: 0, 1, 2, 3; the answer 2 has one smaller among them."""
    [found] = predictor.answers([[15, 15]], [1], granularity=0.6)
    size = np.log(20 * 40 / (HEIGHT * WIDTH))
    expected = [1, size, size**2, 0.6, 1, np.log(4), 1 / 4, 0]
    assert found.place == 2
    assert found.features == pytest.approx(np.array(expected))
    assert len(SCORE_FEATURES) == len(SCORE_WEIGHTS) == len(expected)
    score = predictor.predict([[15, 15]], [1], granularity=0.6)[1][0]
    assert score == pytest.approx(1 / (1 + np.exp(-np.dot(SCORE_WEIGHTS, expected))))
    [mended] = predictor.answers([[40, 15], [65, 40]], [1, 1], granularity=1.0)
    size = np.log((1600 + 600) / (HEIGHT * WIDTH))
    assert mended.features == pytest.approx(np.array([1, size, size**2, 1, 1, np.log(3), 0, 1]))


def test_wrong_prompts_are_told_as_a_model_tells_them(predictor: TreePredictor) -> None:
    from model.network.load import new_model
    from model.predict.image import GranularPredictor

    side = 128 // 4
    model = GranularPredictor(new_model("micro", "full", 128, init="scratch", seed=6).eval())
    wrong: list[dict[str, Any]] = [
        {},
        {"point_coords": [5, 5]},
        {"point_coords": [[1, 2, 3]]},
        {"point_coords": [[1, 2]], "point_labels": [1, 0]},
        {"point_coords": [[1, 2]], "point_labels": [7]},
        {"point_coords": [[1, float("nan")]]},
        {"point_coords": "here"},
        {"box": [1, 2, 3]},
        {"box": [1, 2, 3, float("inf")]},
        {"point_coords": [[1, 2]], "granularity": 1.5},
        {"point_coords": [[[1, 2]], [[3, 4]]], "granularity": [0.1, 0.5, 1.0]},
        {"mask_input": np.zeros((3, 3))},
        {"mask_input": np.zeros((2, 3, 3)), "granularity": [0.1, 0.5, 1.0]},
        {"point_coords": [[1, 2]], "mask_input": np.full((side, side), np.nan)},
    ]
    with pytest.raises(InputError, match=r"^predict: set_image first$"):
        TreePredictor().predict([[1, 1]], [1])
    model.set_image(np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8))
    for prompt in wrong:
        with pytest.raises(InputError) as told:
            model.predict(**prompt)
        if "mask_input" in prompt and prompt["mask_input"].shape == (side, side):
            prompt = {**prompt, "mask_input": np.full((GRID, GRID), np.nan)}
        with pytest.raises(InputError) as own:
            predictor.predict(**prompt)
        assert str(own.value) == str(told.value).replace(f"{side}, {side}", f"{GRID}, {GRID}"), prompt
    for wrong_image in (np.zeros((4, 4), dtype=np.uint8), "photo.jpg", Image.new("L", (4, 4))):
        with pytest.raises(InputError) as told:
            model.set_image(wrong_image)
        with pytest.raises(InputError) as own:
            predictor.set_image(wrong_image)  # type: ignore[arg-type]
        assert str(own.value) == str(told.value)


def squares() -> NDArray[np.uint8]:
    pixels = np.full((120, 160, 3), 200, dtype=np.uint8)
    pixels[40:80, 60:120] = (180, 20, 20)
    pixels[50:70, 70:90] = (20, 20, 180)
    return pixels


def test_an_image_is_mined_once_and_flat_ones_answer_too() -> None:
    predictor = TreePredictor()
    predictor.set_image(squares())
    tree = predictor.tree
    one = predictor.predict([[110, 75]], [1], granularity=[0.1, 1.0])
    assert predictor.tree is tree
    truth = np.zeros((120, 160), dtype=np.bool_)
    truth[40:80, 60:120] = True
    ious = [(each & truth).sum() / (each | truth).sum() for each in one[0]]
    assert max(ious) > 0.6
    other = TreePredictor()
    other.set_image(Image.fromarray(squares()))
    for mine, again in zip(one, other.predict([[110, 75]], [1], granularity=[0.1, 1.0]), strict=True):
        assert (mine == again).all()
    found = predictor.everything()
    assert [each.parent_id for each in found] == [each.parent_id for each in tree.annotations]
    predictor.set_image(np.full((1, 1, 3), 99, dtype=np.uint8))
    assert predictor.predict([[0, 0]], [1], granularity=0.5)[0].all()


def test_segment_without_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "squares.png"
    Image.fromarray(squares()).save(picture)
    flags = ["segment", str(picture), "--output", str(tmp_path / "out"), "--json"]
    assert cli.main([*flags, "--point", "110,75", "--granularity", "0.1,1,none", "--refine", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["granularity"] for each in found["annotations"]] == [0.1, 1.0, None]
    assert rle.decode(found["annotations"][1]["segmentation"])[75, 110]
    assert found["checkpoint"] is None
    assert (tmp_path / "out" / "squares.masks.png").is_file()
    assert cli.main([*flags, "--everything"]) == 0
    everything = json.loads(capsys.readouterr().out)["annotations"]
    assert len(everything) > 3
    assert {each["parent_id"] is None for each in everything} == {True, False}
    for wrong, message in (
        (["--as", "video", str(tmp_path), "--point", "1,1"], "a video needs --checkpoint"),
        ([str(picture), "--everything", "--max-masks", "3"], "--max-masks is for a model; without --checkpoint"),
        ([str(picture), "--everything", "--granularity", "0.5"], "--granularity with --everything is for a model"),
        ([str(picture), "--point", "1,1", "--base", "x"], "--base is for a model; without --checkpoint there is none"),
    ):
        assert cli.main(["segment", *wrong]) == 2
        assert message in capsys.readouterr().err


def test_scored_as_a_model_the_tree_follows_the_simulated_user(monkeypatch: pytest.MonkeyPatch) -> None:
    from model.evaluation.checkpoint import TreeModel
    from model.evaluation.protocols.simulated_user import Click, simulate
    from model.evaluation.subjects.predictors import as_click_model

    clicks = as_click_model(TreeModel()())
    clicks.set_image(squares())
    assert (clicks.takes_granularity, clicks.answers_without, clicks.multimask) == (True, True, 3)
    truth = np.zeros((120, 160), dtype=np.bool_)
    truth[40:80, 60:120] = True
    truth[50:70, 70:90] = False

    def predict(made: Sequence[Click]) -> NDArray[np.bool_]:
        points, labels = np.array([[(each.x, each.y) for each in made]]), np.array([[int(e.positive) for e in made]])
        return clicks.answer(points, labels, np.array([1.0])).masks()[0]

    run = simulate(predict, truth, target_iou=0.999)
    assert len(run.clicks) > 1
    assert run.ious[-1] > 0.95
    before = TreeModel().sha256()
    assert len(before) == 64
    monkeypatch.setattr(tree_module, "CLICKED", MineConfig(recipe="default-1000"))
    assert TreeModel().sha256() != before  # kept answers of other masks are not gone on with
    assert TreePredictor().config.recipe == "default-1000"
    assert not TreeModel().own_masks()  # simulated annotators are not offered its three
    with pytest.raises(InputError, match="a benchmark of videos needs a model"):
        TreeModel(video=True)()
