"""Scoring of models whose answers are known: one that returns the ground truth of a granularity, one that ignores the
dial, one that answers at random. Every metric and every control has a value that can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from model.evaluation.benchmarks import containment
from model.evaluation.benchmarks.records import EvalImage, EvalObject, GroundTruth, Split
from model.evaluation.protocols import run
from model.evaluation.protocols.options import ModelOptions, ModelTask
from model.evaluation.protocols.run import ModelScores, measure_model
from pipeline.errors import InputError
from pipeline.format import rle

Mask = NDArray[np.bool_]
HEIGHT, WIDTH = 64, 96
TASKS: tuple[ModelTask, ...] = ("interactive", "sweep", "pairs", "whole")
OPTIONS = ModelOptions(label_rule="containment", points_per_side=16, resamples=50)

# (y, x, height, width): a whole, two parts of it, and one thing that is neither. The whole's centre lies in no part.
BOXES = ((4, 4, 56, 56), (8, 8, 20, 20), (40, 40, 14, 14), (10, 70, 40, 20))
LABELS = (1.0, 0.1 + 0.9 * (20 - 14) / (56 - 14), 0.1, None)
AREAS = tuple(h * w for _, _, h, w in BOXES)


def masks_of(number: int) -> list[Mask]:
    """The same shapes for every image, moved by its number."""
    masks = []
    for y, x, h, w in BOXES:
        mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
        mask[y + number : y + number + h, x + number : x + number + w] = True
        masks.append(mask)
    return masks


def load(number: int) -> GroundTruth:
    rles = [rle.encode(mask) for mask in masks_of(number)]
    labels, pairs = containment.labels_of(rles)
    assert [label is None for label in labels] == [label is None for label in LABELS]
    objects = tuple(
        EvalObject(id=str(i), mask=each, area_px=AREAS[i], granularity=labels[i]) for i, each in enumerate(rles)
    )
    return GroundTruth(height=HEIGHT, width=WIDTH, objects=objects, pairs=tuple(pairs))


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    folder = tmp_path_factory.mktemp("images")
    images = []
    for number in range(3):
        path = folder / f"{number}.png"
        Image.new("RGB", (WIDTH, HEIGHT), (number, 0, 0)).save(path)
        images.append(EvalImage(name=str(number), path=path, load=partial(load, number)))
    return Split(images=tuple(images))


class KnowsTheTruth:
    """Of the masks under the first click, the one whose label is nearest to g."""

    def __init__(self) -> None:
        self.masks: list[Mask] = []
        self.images = 0

    def set_image(self, image: NDArray[np.uint8]) -> None:
        self.masks = masks_of(int(image[0, 0, 0]))
        self.images += 1

    def choose(self, under: list[int], granularity: float) -> int:
        return min(under, key=lambda i: abs((LABELS[i] or 1.0) - granularity))

    def predict(self, point_coords: Any, point_labels: Any, *, granularity: float, mask_input: Any = None) -> Any:
        x, y = np.asarray(point_coords)[0].astype(int)
        under = [index for index, mask in enumerate(self.masks) if mask[y, x]]
        mask = self.masks[self.choose(under, granularity)] if under else np.zeros((HEIGHT, WIDTH), dtype=bool)
        return mask, 0.9, None


class IgnoresTheDial(KnowsTheTruth):
    """Always the largest mask under the click; its dial may be left out."""

    def choose(self, under: list[int], granularity: float) -> int:
        return max(under, key=lambda i: AREAS[i])

    def predict(
        self, point_coords: Any, point_labels: Any, *, granularity: float | None = None, mask_input: Any = None
    ) -> Any:
        return super().predict(point_coords, point_labels, granularity=granularity or 0.0)


class AnswersAtRandom:
    """A rectangle around the last click that depends on clicks and g alone."""

    def set_image(self, image: NDArray[np.uint8]) -> None:
        self.size = image.shape[:2]

    def predict(self, point_coords: Any, point_labels: Any, *, granularity: float, mask_input: Any = None) -> Any:
        points = np.asarray(point_coords).astype(int)
        random = np.random.default_rng([*points.ravel().tolist(), int(100 * granularity)])
        top, left, bottom, right = random.integers(1, 30, 4)
        x, y = points[-1]
        mask = np.zeros(self.size, dtype=bool)
        mask[max(y - top, 0) : y + bottom, max(x - left, 0) : x + right] = True
        return mask[None], np.array([random.random()]), None


def scored(split: Split, model: Any, path: Path, tasks: tuple[ModelTask, ...] = TASKS, **changes: Any) -> ModelScores:
    return measure_model(split, model, tasks, replace(OPTIONS, **changes), path)


@pytest.fixture(scope="module")
def knowing(split: Split, tmp_path_factory: pytest.TempPathFactory) -> ModelScores:
    return scored(split, KnowsTheTruth(), tmp_path_factory.mktemp("knowing"))


@pytest.fixture(scope="module")
def ignoring(split: Split, tmp_path_factory: pytest.TempPathFactory) -> ModelScores:
    return scored(split, IgnoresTheDial(), tmp_path_factory.mktemp("ignoring"))


@pytest.fixture(scope="module")
def random_one(split: Split, tmp_path_factory: pytest.TempPathFactory) -> ModelScores:
    return scored(split, AnswersAtRandom(), tmp_path_factory.mktemp("random"))


def value(found: ModelScores, name: str) -> float:
    return found.metrics[name].value


PART_IOU = tuple(area / AREAS[0] for area in AREAS[1:3])


def test_clicks_of_a_model_that_knows_the_truth(knowing: ModelScores) -> None:
    for column in ("oracle", "oracle_plain", "label", "fixed:0.10", "ignored", "best_of_10_clicks"):
        assert value(knowing, f"interactive.{column}.iou_1") == 1.0, column
        assert value(knowing, f"interactive.{column}.noc_90") == 1.0, column
        assert value(knowing, f"interactive.{column}.nof_90") == 0.0, column
    assert value(knowing, "interactive.constant.iou_1") == 1.0  # small g and few things under a click: no dial needed
    assert knowing.metrics["interactive.label.iou_1"].objects == 9  # what has no label is not in the column
    assert knowing.metrics["interactive.oracle.iou_1"].objects == 12
    assert knowing.counts["clicked_objects_without_label"] == 3
    assert "interactive.own.iou_1" not in knowing.metrics  # its dial cannot be left out
    assert "interactive.best_of_3.iou_1" not in knowing.metrics


def test_a_wrong_g_costs_what_it_must(knowing: ModelScores) -> None:
    expected = (1 + 1 + sum(PART_IOU)) / 4
    assert value(knowing, "interactive.fixed:1.00.iou_1") == pytest.approx(expected)
    assert value(knowing, "interactive.fixed:1.00.noc_80") == pytest.approx((1 + 1 + 20 + 20) / 4)
    assert value(knowing, "interactive.fixed:1.00.nof_90") == 6  # two objects in each of three images
    # Of three labels one is 1.0 and goes to another object, of which it then shows the whole.
    possible = [(1 + 1 + each) / 3 for each in PART_IOU]
    lows, highs = min(possible) - 1e-9, max(possible) + 1e-9
    assert lows <= value(knowing, "interactive.shuffled.iou_1") <= highs
    gain = knowing.metrics["interactive.label - shuffled.iou_1"]
    assert gain.value == pytest.approx(1 - value(knowing, "interactive.shuffled.iou_1"))
    assert 0 < gain.low <= gain.value <= gain.high


def test_the_oracle_says_which_g_it_took(knowing: ModelScores) -> None:
    rows = [row for row in knowing.rows if row["task"] == "interactive"]
    assert {row["oracle.granularity"] for row in rows} == {0.1}  # the first of equally good ones
    assert all(row["oracle.ious"] == [1.0] * 20 for row in rows)
    curve = knowing.curves["noc"]
    assert curve["clicks"] == list(range(1, 21))
    assert curve["fixed:1.00"][0] == pytest.approx((2 + sum(PART_IOU)) / 4)


def test_sweep_of_a_model_that_knows_the_truth(knowing: ModelScores) -> None:
    part = next(row for row in knowing.rows if row["task"] == "sweep" and row["object"] == "1")
    assert part["dial.monotone"] == part["dial.nesting"] == 1.0
    assert part["dial.end_iou"] == pytest.approx(PART_IOU[0])
    assert part["dial.distinct_masks"] == 2
    assert part["dial.spearman"] > 0.8 > abs(part["shuffled.spearman"])
    assert part["dial.label_error"] == pytest.approx(LABELS[1] - 0.1)  # type: ignore[operator]
    assert part["ignored.spread"] == 0.0
    assert part["ignored.end_iou"] == 1.0
    assert part["best_of_10_clicks.end_iou"] == 1.0  # near clicks at one g show one mask
    whole = next(row for row in knowing.rows if row["task"] == "sweep" and row["object"] == "0")
    assert whole["dial.end_iou"] == 1.0
    areas = knowing.curves["area_by_granularity"]
    assert areas["granularity"][0] == 0.1
    assert areas["median"][0] < areas["median"][-1]


def test_the_same_click_on_part_and_whole(knowing: ModelScores, ignoring: ModelScores) -> None:
    for target in (50, 70):
        assert value(knowing, f"pairs.dial.pair_success_{target}") == 1.0
        assert value(knowing, f"pairs.constant.pair_success_{target}") == 0.0
        assert value(knowing, f"pairs.between.pair_success_{target}") == 0.0
        assert value(knowing, f"pairs.best_of_10_clicks.pair_success_{target}") == 0.0
        assert value(ignoring, f"pairs.dial.pair_success_{target}") == 0.0
    assert value(knowing, "pairs.dial.pair_order") == 1.0
    assert value(ignoring, "pairs.dial.pair_order") == 0.0
    assert knowing.counts["pairs"] == knowing.counts["pairs_clicked"] == 6
    lines = knowing.curves["iou_by_granularity"]
    assert lines["part"][0] == 1.0 > lines["part"][-1]  # the curves cross
    assert lines["whole"][-1] == 1.0 > lines["whole"][0]


def test_whole_images_of_a_model_that_knows_the_truth(knowing: ModelScores) -> None:
    assert value(knowing, "whole.all.pooled.ar_1000") == 1.0
    assert value(knowing, "whole.pooled.masks_per_image") == 4.0
    assert value(knowing, "whole.all.single:1.00.ar_1000") == 0.5  # the wholes only
    assert value(knowing, "whole.single:1.00.masks_per_image") == 2.0
    assert value(knowing, "whole.all.single:1.00.ar_1000_small") == pytest.approx(1 / 3)
    assert value(knowing, "whole.all.single:1.00.ar_1000_medium") == 1.0
    assert value(knowing, "whole.all.ten_grids.ar_1000") == value(knowing, "whole.all.ignored.ar_1000") == 1.0
    assert value(knowing, "whole.pooled_raw.masks_per_image") > 100  # copies of every click and g
    assert value(knowing, "whole.all.pooled_raw.ar_1000") == 1.0
    assert knowing.metrics["whole.all.pooled - ten_grids.ar_1000"].value == 0.0
    recall = knowing.curves["recall_by_masks"]
    assert recall["single:1.00.masks"] == [1.0, 2.0, 2.0, 2.0]
    assert recall["single:1.00.recall"] == [0.25, 0.5, 0.5, 0.5]


def test_a_model_that_ignores_the_dial(ignoring: ModelScores) -> None:
    expected = (1 + 1 + sum(PART_IOU)) / 4
    for column in ("oracle", "oracle_plain", "fixed:0.10", "fixed:1.00", "ignored", "own", "best_of_10_clicks"):
        assert value(ignoring, f"interactive.{column}.iou_1") == pytest.approx(expected), column
    for other in ("ignored", "shuffled", "own"):
        difference = ignoring.metrics[f"interactive.label - {other}.iou_1"]
        assert (difference.low, difference.value, difference.high) == (0.0, 0.0, 0.0), other
    assert value(ignoring, "sweep.dial.spread") == 0.0
    assert value(ignoring, "sweep.dial.end_iou") == 1.0
    assert value(ignoring, "sweep.dial.distinct_masks") == 1.0
    assert value(ignoring, "sweep.dial.spearman") == value(ignoring, "sweep.shuffled.spearman") == 0.0
    assert value(ignoring, "whole.all.pooled.ar_1000") == value(ignoring, "whole.all.own.ar_1000") == 0.5


def test_luck_of_a_model_that_answers_at_random_shows_in_the_controls(random_one: ModelScores) -> None:
    names = ("fixed:0.10", "fixed:0.50", "fixed:1.00")
    fixed = max(value(random_one, f"interactive.{name}.iou_1") for name in names)
    assert value(random_one, "interactive.oracle_plain.iou_1") > 1.3 * fixed  # without any dial
    assert value(random_one, "interactive.best_of_10_clicks_plain.iou_1") > 1.3 * fixed  # and the control tells so
    assert value(random_one, "interactive.oracle.nof_90") == 12
    assert value(random_one, "interactive.oracle.noc_90") == 20
    assert abs(value(random_one, "sweep.dial.spearman")) < 0.5


def test_a_model_without_a_dial_has_the_controls_alone(split: Split, tmp_path: Path) -> None:
    class Several(IgnoresTheDial):
        def predict(self, point_coords: Any, point_labels: Any, multimask_output: bool = True) -> Any:  # type: ignore[override]
            x, y = np.asarray(point_coords)[0].astype(int)
            under = [mask for mask in self.masks if mask[y, x]] or [np.zeros((HEIGHT, WIDTH), dtype=bool)]
            masks = np.stack((under * 3)[:3] if multimask_output else under[:1])
            return masks, np.linspace(0.9, 0.8, len(masks)), None

    found = scored(split, Several(), tmp_path)
    columns = {name.split(".")[1] for name in found.metrics if name.startswith("interactive") and " - " not in name}
    assert columns == {"own", "best_of_3", "best_of_3_plain", "best_of_10_clicks", "best_of_10_clicks_plain"}
    assert value(found, "interactive.own.iou_1") == pytest.approx((2 + sum(PART_IOU)) / 4)
    assert value(found, "interactive.best_of_3.iou_1") == 1.0
    assert value(found, "pairs.best_of_3.pair_success_50") == 1.0
    assert value(found, "whole.all.best_of_3.ar_1000") == 1.0
    assert value(found, "whole.all.ten_grids.ar_1000") == value(found, "whole.all.own.ar_1000") == 0.5


def test_interrupted_and_resumed_gives_the_same_numbers(split: Split, tmp_path: Path, knowing: ModelScores) -> None:
    class Stops(KnowsTheTruth):
        def set_image(self, image: NDArray[np.uint8]) -> None:
            super().set_image(image)
            if self.images == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scored(split, Stops(), tmp_path)
    rest = KnowsTheTruth()
    found = scored(split, rest, tmp_path)
    assert rest.images == 1  # the first two are there
    assert found.metrics == knowing.metrics
    assert found.rows == knowing.rows
    assert found.curves == knowing.curves
    other = KnowsTheTruth()
    scored(split, other, tmp_path, seed=1)  # another seed takes up nothing
    assert other.images == 3


def test_limit_seed_and_chosen_objects(split: Split, tmp_path: Path) -> None:
    tasks: tuple[ModelTask, ...] = ("interactive",)
    found = scored(split, KnowsTheTruth(), tmp_path, tasks, limit=2, objects_per_image=2)
    assert found.counts["images"] == 2
    assert found.counts["clicked_objects"] == 4
    same = scored(split, KnowsTheTruth(), tmp_path / "again", tasks, limit=2, objects_per_image=2)
    assert same.rows == found.rows

    def chosen(scores: ModelScores) -> set[tuple[str, str]]:
        return {(row["image"], row["object"]) for row in scores.rows}

    drawn = [
        chosen(scored(split, KnowsTheTruth(), tmp_path / f"{seed}", tasks, limit=2, objects_per_image=2, seed=seed))
        for seed in range(1, 4)
    ]
    assert any(each != chosen(found) for each in drawn)


def test_objects_drawn_for_clicks_do_not_overlap_where_the_protocol_says_so(split: Split, tmp_path: Path) -> None:
    tasks: tuple[ModelTask, ...] = ("interactive",)
    for seed in range(4):
        found = scored(split, KnowsTheTruth(), tmp_path / f"{seed}", tasks, disjoint_objects=True, seed=seed)
        for image in ("0", "1", "2"):
            chosen = {row["object"] for row in found.rows if row["image"] == image}
            assert "3" in chosen  # it overlaps with none
            assert chosen in ({"0", "3"}, {"1", "2", "3"})  # the whole, or its two parts


def test_whole_objects_have_no_shuffled_label(split: Split, tmp_path: Path) -> None:
    found = scored(split, KnowsTheTruth(), tmp_path, ("interactive",), label_rule="whole", limit=1)
    assert not any("shuffled" in name for name in found.metrics)
    assert value(found, "interactive.ignored.iou_1") == value(found, "interactive.fixed:1.00.iou_1")


def test_wrong_models_and_tasks_are_told(split: Split, tmp_path: Path) -> None:
    class Odd(KnowsTheTruth):
        def predict(self, point_coords: Any, point_labels: Any, *, granularity: float) -> Any:  # type: ignore[override]
            return np.zeros((3, 5, 5), dtype=bool), [1.0], None

    with pytest.raises(InputError, match="expected masks"):
        scored(split, Odd(), tmp_path)
    with pytest.raises(InputError, match="set_image"):
        scored(split, lambda: object(), tmp_path)
    with pytest.raises(InputError, match="tasks"):
        scored(split, KnowsTheTruth(), tmp_path, ("everything",))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="one worker"):
        scored(split, KnowsTheTruth(), tmp_path, workers=2)
    with pytest.raises(InputError, match="nothing to score"):
        scored(Split(), KnowsTheTruth(), tmp_path)
    with pytest.raises(InputError, match="granularity"):
        ModelOptions(fixed=(0.05,))


def test_an_image_of_another_size_is_told(tmp_path: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT + 1)).save(tmp_path / "0.png")
    image = EvalImage(name="0", path=tmp_path / "0.png", load=partial(load, 0))
    with pytest.raises(InputError, match="96 x 65 pixels, its annotations are for 96 x 64"):
        scored(Split(images=(image,)), KnowsTheTruth(), tmp_path)


def test_objects_that_are_empty_or_ignored_get_no_click(split: Split, tmp_path: Path) -> None:
    def with_nothing(number: int) -> GroundTruth:
        truth = load(number)
        empty = rle.encode(np.zeros((HEIGHT, WIDTH), dtype=bool))
        more = (
            EvalObject(id="empty", mask=empty, area_px=9),
            EvalObject(id="ignored", mask=truth.objects[3].mask, area_px=AREAS[3], ignore=truth.objects[3].mask),
        )
        return GroundTruth(height=HEIGHT, width=WIDTH, objects=truth.objects + more)

    image = EvalImage(name="0", path=split.images[0].path, load=partial(with_nothing, 0))
    found = scored(Split(images=(image,)), KnowsTheTruth(), tmp_path)
    for task in ("interactive", "sweep"):
        assert {row["object"] for row in found.rows if row["task"] == task} == {"0", "1", "2", "3"}


def test_the_encoder_runs_once_an_image(split: Split, tmp_path: Path) -> None:
    model = KnowsTheTruth()
    scored(split, model, tmp_path)
    assert model.images == len(split.images)


def test_rows_of_a_foreign_task_are_not_mixed(knowing: ModelScores) -> None:
    tasks = {row["task"] for row in knowing.rows}
    assert tasks == {"interactive", "sweep", "pairs", "whole", "whole_image"}
    assert run.summarise([], OPTIONS) == {}
