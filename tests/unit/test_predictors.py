"""The face over predictors: the same answers as the predictors give one prompt at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from model.evaluation.checkpoint import sam2_predictor
from model.evaluation.protocols.interactive import ClickedObject, Clicker, click_columns, clickers_of, simulate_objects
from model.evaluation.protocols.options import ModelOptions
from model.evaluation.protocols.simulated_user import Click, simulate
from model.evaluation.subjects.predictors import GranularClicks, PlainClicks, Sam2Clicks, as_click_model
from model.network.load import new_model
from model.network.sam2_base import build_base
from model.predict.image import GranularPredictor
from pipeline.errors import InputError
from tests.numeric import assert_same_masks, assert_same_sums

SIZE = (60, 90)


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (*SIZE, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def granular() -> GranularPredictor:
    return GranularPredictor(new_model("micro", "full", 64, init="scratch", seed=0).eval())


@pytest.fixture(scope="module")
def sam2() -> Any:
    torch.manual_seed(0)
    base = build_base("micro", 64)
    return sam2_predictor(base)


POINTS = np.array([[[10.0, 20.0], [50.0, 40.0]], [[80.0, 5.0], [33.0, 44.0]], [[0.0, 0.0], [89.0, 59.0]]])
LABELS = np.array([[1, 0], [1, 1], [1, 0]], dtype=np.int32)
G = np.array([0.1, 0.55, 1.0])


def test_the_granular_predictor_in_batches(granular: GranularPredictor, image: NDArray[np.uint8]) -> None:
    model = as_click_model(granular)
    assert isinstance(model, GranularClicks)
    model.set_image(image)
    answers = model.answer(POINTS, LABELS, G)
    refined = model.answer(POINTS, LABELS, G, answers.mask_inputs())
    for index in range(3):
        prompt: Any = {
            "point_coords": POINTS[index], "point_labels": LABELS[index], "granularity": float(G[index]),
            "return_logits": True,
        }  # fmt: skip
        masks, iou, logits = granular.predict(**prompt)
        assert_same_masks(answers.masks()[index], masks[0])
        assert_same_sums(answers.iou[index], iou[0])
        again, _, _ = granular.predict(**prompt, mask_input=logits)
        assert_same_masks(refined.masks()[index], again[0])
    own = model.answer(POINTS, LABELS, None)
    assert not np.allclose(own.logits, answers.logits)
    assert model.answer_multimask(POINTS, LABELS).masks().shape == (9, *SIZE)
    assert np.array_equal(answers.masks(np.array([2, 0])), answers.masks()[[2, 0]])


def test_sam2s_own_predictor(sam2: Any, image: NDArray[np.uint8]) -> None:
    model = as_click_model(sam2)
    assert isinstance(model, Sam2Clicks)
    assert not model.takes_granularity
    model.set_image(image)
    answers = model.answer(POINTS, LABELS, None)
    refined = model.answer(POINTS, LABELS, None, answers.mask_inputs())
    several = model.answer_multimask(POINTS, LABELS)
    for index in range(3):
        masks, iou, logits = sam2.predict(POINTS[index], LABELS[index], multimask_output=False, return_logits=True)
        assert_same_masks(answers.masks()[index], masks[0])
        assert_same_sums(answers.iou[index], iou[0])
        assert answers.logits is not None
        assert_same_sums(answers.logits[index], logits[0])
        again, _, _ = sam2.predict(
            POINTS[index], LABELS[index], mask_input=logits, multimask_output=False, return_logits=True
        )
        assert_same_masks(refined.masks()[index], again[0])
        three, iou3, _ = sam2.predict(POINTS[index], LABELS[index], multimask_output=True, return_logits=True)
        assert_same_masks(several.masks()[3 * index : 3 * index + 3], three)
        assert_same_sums(several.iou[3 * index : 3 * index + 3], iou3)


def test_the_plain_face_over_sam2_agrees_with_its_own(sam2: Any, image: NDArray[np.uint8]) -> None:
    own, plain = as_click_model(sam2), PlainClicks(sam2)
    assert (plain.takes_granularity, plain.answers_without, plain.multimask) == (False, True, 3)
    for model in (own, plain):
        model.set_image(image)
    first, second = own.answer(POINTS, LABELS, None), plain.answer(POINTS, LABELS, None)
    one = own.answer(POINTS, LABELS, None, first.mask_inputs())
    other = plain.answer(POINTS, LABELS, None, second.mask_inputs())
    three = own.answer_multimask(POINTS, LABELS), plain.answer_multimask(POINTS, LABELS)
    for ours, theirs in ((first, second), (one, other), three):
        assert ours.logits is not None
        enlarged = F.interpolate(torch.from_numpy(ours.logits)[:, None], size=SIZE, mode="bilinear")[:, 0]
        assert_same_masks(theirs.masks(), enlarged)


def test_what_a_plain_predictor_can_do_is_read_from_its_signature() -> None:
    class Dial:
        def set_image(self, image: Any) -> None: ...

        def predict(
            self, point_coords: Any, point_labels: Any, granularity: float = 0.5, mask_input: Any = None
        ) -> Any:
            return np.zeros(SIZE, dtype=bool), 0.5, None

    class MustHave(Dial):
        def predict(self, point_coords: Any, point_labels: Any, *, granularity: float, **more: Any) -> Any:  # type: ignore[override]
            assert "mask_input" not in more or more["mask_input"] is not None
            return np.ones((1, *SIZE), dtype=bool), [0.5], np.zeros((1, 8, 8), dtype=np.float32)

    dial, must = PlainClicks(Dial()), PlainClicks(MustHave())
    assert (dial.takes_granularity, dial.answers_without, dial.multimask) == (True, True, 0)
    assert (must.takes_granularity, must.answers_without) == (True, False)
    must.set_image(np.zeros((*SIZE, 3), dtype=np.uint8))
    answers = must.answer(POINTS, LABELS, G)
    assert must.answer(POINTS, LABELS, G, answers.mask_inputs()).masks().all()
    with pytest.raises(InputError, match="set_image"):
        as_click_model(object())


# ---------------------------------------------------------------------------------------------------------------------
# The lock-step


class Disks:
    """Disks around the positive clicks less those around the negative ones, larger with g; where it was told an earlier
    answer it grows a little, so that feeding back shows."""

    def set_image(self, image: Any) -> None: ...

    def predict(self, point_coords: Any, point_labels: Any, *, granularity: float, mask_input: Any = None) -> Any:
        y, x = np.mgrid[: SIZE[0], : SIZE[1]]
        mask = np.zeros(SIZE, dtype=bool)
        bonus = 0.0 if mask_input is None else float(mask_input.max())
        for (px, py), label in zip(point_coords, point_labels, strict=True):
            disk = (x - px) ** 2 + (y - py) ** 2 <= (4 + 12 * granularity + bonus) ** 2
            mask = mask | disk if label else mask & ~disk
        return mask, 0.7, np.full((4, 4), bonus + 0.5, dtype=np.float32)


def subjects() -> list[tuple[NDArray[np.bool_], NDArray[np.bool_] | None]]:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    ring = ((x - 45) ** 2 + (y - 30) ** 2 <= 25**2) & ((x - 45) ** 2 + (y - 30) ** 2 > 9**2)
    bar = (y > 20) & (y < 30) & (x < 70)
    return [(ring, None), (bar, x < 12), ((x - 20) ** 2 + (y - 20) ** 2 <= 81, None)]


def alone(truth: NDArray[np.bool_], ignore: NDArray[np.bool_] | None, clicker: Clicker, options: ModelOptions) -> Any:
    """The same clicks by `simulated_user.simulate`, one prompt after the other."""
    model = Disks()
    previous: list[Any] = [None]

    def predict(clicks: Any) -> NDArray[np.bool_]:
        points = np.array([[click.x, click.y] for click in clicks])
        labels = np.array([int(click.positive) for click in clicks])
        mask, _, logits = model.predict(points, labels, granularity=clicker.granularity or 0.0, mask_input=previous[0])
        previous[0] = logits[None]
        found: NDArray[np.bool_] = mask
        return found

    return simulate(
        predict, truth, ignore=ignore, target_iou=options.target_iou, max_clicks=options.max_clicks, first=clicker.first
    )


def test_in_lock_step_as_one_by_one() -> None:
    options = ModelOptions(label_rule="containment", target_iou=0.85)
    model = as_click_model(Disks())
    model.set_image(np.zeros((*SIZE, 3), dtype=np.uint8))
    objects = []
    for number, (truth, ignore) in enumerate(subjects()):
        columns = clickers_of(model, options, truth, label=0.3, shuffled=0.7, seed=[number])
        objects.append(ClickedObject(truth=truth, ignore=ignore, columns=columns))
    together = simulate_objects(model, objects, options)
    shortened = 0
    for subject, trajectories in zip(objects, together, strict=True):
        apart = {each: alone(subject.truth, subject.ignore, each, options) for each in trajectories}
        for clicker, found in trajectories.items():
            count = len(found.ious)
            assert apart[clicker].ious[:count] == pytest.approx(found.ious)
            assert apart[clicker].clicks[:count] == found.clicks
            shortened += count < len(apart[clicker].ious)
        for names in subject.columns.values():
            if len(names) == 1:
                assert apart[names[0]] == trajectories[names[0]]  # a column of its own is never given up
        # Giving clickers up changes no number of any column, the best for each number included.
        expected = click_columns(subject.columns, apart, options)
        assert click_columns(subject.columns, trajectories, options) == expected
    assert shortened > 5


def test_the_oracle_takes_the_fewest_clicks_then_the_best_first_mask() -> None:
    from model.evaluation.protocols.simulated_user import Trajectory

    options = ModelOptions()
    click = Click(x=0, y=0, positive=True)

    def trajectory(*ious: float) -> Trajectory:
        return Trajectory(ious=ious, clicks=(click,) * len(ious))

    trajectories = {
        Clicker(0.1): trajectory(0.6, 0.86, 0.95),
        Clicker(0.2): trajectory(0.5, 0.92),
        Clicker(0.3): trajectory(0.7, 0.91),
        Clicker(0.4): trajectory(0.84, 0.6),
    }
    row = click_columns({"oracle": tuple(trajectories)}, trajectories, options)
    assert row["oracle.granularity"] == 0.3
    assert (row["oracle.noc_80"], row["oracle.noc_90"], row["oracle.iou_1"]) == (2.0, 2.0, 0.7)
    assert (row["oracle_plain.noc_80"], row["oracle_plain.noc_90"], row["oracle_plain.iou_1"]) == (1.0, 2.0, 0.84)
    assert row["oracle.ious"] == [0.7, *[0.91] * 19]
    parts = click_columns({"label": (Clicker(0.1),)}, trajectories, ModelOptions(target_iou=0.85))
    assert {name for name in parts if "noc" in name} == {"label.noc_80", "label.noc_85"}
