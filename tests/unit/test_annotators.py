"""Simulated annotators against their definition worked out step by step, on drawn predictors and by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from model.evaluation.annotator_tables import annotator_tables, verdict
from model.evaluation.bootstrap import Interval, bootstrap
from model.evaluation.protocols.annotator_numbers import annotator_curves, annotator_metrics, groups_of, timelines
from model.evaluation.protocols.annotators import (
    AnnotatedObject,
    Seen,
    annotate_objects,
    best_looking,
    dragged,
    masks_plan,
    see,
    turned,
)
from model.evaluation.protocols.controls import SWEEP, seed_of
from model.evaluation.protocols.keystrokes import (
    COST_VARIANTS,
    STANDARD,
    Costs,
    Step,
    ended,
    iou_after,
    timeline_cells,
    timeline_numbers,
    timeline_of,
)
from model.evaluation.protocols.metrics import mask_iou
from model.evaluation.protocols.options import AnnotatorOptions, ModelOptions
from model.evaluation.protocols.run import ModelScores
from model.evaluation.protocols.simulated_user import Aim, Click, next_click
from model.evaluation.score_records import Row
from model.evaluation.subjects.predictors import as_click_model

Mask = NDArray[np.bool_]
SIZE = (48, 60)
CLICK_S = 1.35 + 1.1 + 0.2
OPTIONS = ModelOptions(label_rule="containment", fixed=(0.3,), annotators=AnnotatorOptions())


def disk(y: float, x: float, radius: float) -> Mask:
    ys, xs = np.mgrid[: SIZE[0], : SIZE[1]]
    inside: Mask = (ys - y) ** 2 + (xs - x) ** 2 <= radius**2
    return inside


class Disks:
    """A disk about the first click whose radius follows g; a click inside adds a disk, one outside takes one away."""

    def set_image(self, image: Any) -> None: ...

    def radius(self, granularity: float) -> float:
        return 20 * granularity

    def drawn(self, points: Any, labels: Any, mask: Mask) -> Mask:
        for (x, y), label in zip(points[1:], labels[1:], strict=True):
            mask = mask | disk(y, x, 4) if label else mask & ~disk(y, x, 4)
        return mask

    def predict(self, point_coords: Any, point_labels: Any, granularity: float) -> Any:
        x, y = point_coords[0]
        mask = self.drawn(point_coords, point_labels, disk(y, x, self.radius(granularity)))
        return mask, 0.5, None


class DisksAndThree(Disks):
    """The same with three masks of its own, the middle one its surest; its single mask is the middle one too."""

    def predict(  # type: ignore[override]
        self, point_coords: Any, point_labels: Any, granularity: float | None = None, multimask_output: bool = False
    ) -> Any:
        x, y = point_coords[0]
        if multimask_output:
            return np.stack([disk(y, x, radius) for radius in (4, 8, 13)]), np.array([0.2, 0.9, 0.3]), None
        radius = 8.0 if granularity is None else self.radius(granularity)
        return self.drawn(point_coords, point_labels, disk(y, x, radius)), 0.5, None


def prepared(model: Any) -> Any:
    clicks = as_click_model(model)
    clicks.set_image(np.zeros((*SIZE, 3), dtype=np.uint8))
    return clicks


def cells_of(model: Any, truth: Mask, options: ModelOptions = OPTIONS, **more: Any) -> dict[str, Any]:
    each = AnnotatedObject(**{"truth": truth, "ignore": None, "label": 0.8, "names": ("image", "1"), **more})
    [found] = annotate_objects(prepared(model), [each], options)
    return dict(found)


# ---------------------------------------------------------------------------------------------------------------------
# Seconds and actions by hand


def test_a_timeline_in_numbers() -> None:
    steps = (Step("click", 0.5), Step("turn", 0.82, 5), Step("click", 0.91))
    found = timeline_numbers(steps)
    assert found["actions_80"] == 2.0
    assert found["actions_85"] == found["actions_90"] == 3.0
    assert found["seconds_80"] == pytest.approx(2 * CLICK_S)
    assert found["seconds_90"] == pytest.approx(3 * CLICK_S)
    assert found["reached_90"] == 1.0
    assert (found["iou_5s"], found["iou_10s"], found["iou_20s"]) == (0.5, 0.91, 0.91)  # 2.65, 5.3 and 7.95 s
    assert (found["iou_first"], found["turns"]) == (0.5, 1.0)
    assert iou_after(steps, 2.64) == 0.0
    assert iou_after(steps, 2.65) == 0.5
    assert timeline_of(**timeline_cells(steps)) == steps  # type: ignore[arg-type]


def test_what_is_not_reached_costs_all_actions_whatever_they_cost() -> None:
    never = tuple(Step("click", 0.3) for _ in range(20))
    for costs in COST_VARIANTS.values():
        found = timeline_numbers(never, costs)
        assert found["actions_80"] == 20.0
        assert found["reached_80"] == 0.0
        assert found["seconds_80"] == pytest.approx(20 * costs.seconds(Step("click", 0)))
    assert ended(never * 2, 0.9) == never
    assert ended([Step("click", 0.95), Step("click", 0.1)], 0.9) == (Step("click", 0.95),)
    late = (*(Step("drag", 0.1, 1) for _ in range(19)), Step("click", 0.9))
    assert timeline_numbers(late)["seconds_80"] == STANDARD.limit_s == pytest.approx(53.0)


@pytest.mark.parametrize(
    ("costs", "action", "seconds"),
    [
        (STANDARD, "click", 2.65),
        (STANDARD, "turn", 2.65),
        (STANDARD, "drag", 1.35 + 2 * 1.2),
        (STANDARD, "take", 2.65),
        (Costs(turned="drag"), "turn", 1.35 + 2 * 1.2),
        (COST_VARIANTS["dial_by_keys"], "turn", 1.35 + 4 * 0.2),
        (COST_VARIANTS["dial_by_keys"], "drag", 1.35 + 4 * 0.2),
        (COST_VARIANTS["dial_by_keys"], "take", 1.35 + 0.2),
        (COST_VARIANTS["dial_by_keys_one_hand"], "turn", 1.35 + 4 * 0.2 + 0.8),
        (COST_VARIANTS["hard_judgement"], "turn", 2.65 + 1.35),
        (COST_VARIANTS["hard_judgement"], "take", 2.65 + 1.35),
        (COST_VARIANTS["hard_judgement"], "click", 2.65),
        (COST_VARIANTS["no_thought"], "click", 1.3),
        (COST_VARIANTS["slow_hand"], "click", 3.05),
    ],
)
def test_what_an_action_costs(costs: Costs, action: Any, seconds: float) -> None:
    assert costs.seconds(Step(action, 0.5, 4)) == pytest.approx(seconds)


# ---------------------------------------------------------------------------------------------------------------------
# Policies by hand


def seen(areas: list[float], object_px: float, ious: list[float] | None = None) -> Seen:
    area_px = np.array(areas, dtype=float)
    iou = np.zeros(len(areas)) if ious is None else np.array(ious)
    return Seen(area_px=area_px, wrong_px=np.abs(area_px - object_px), iou=iou, object_px=object_px)


def test_the_dial_is_turned_by_halves() -> None:
    asked = AnnotatorOptions()
    areas = [100 * 1.5**place for place in range(19)]
    exact = np.zeros(5)
    assert turned(seen(areas, areas[15]), 8, exact, asked) == [13, 16, 14, 15]
    assert turned(seen(areas, areas[15]), 8, exact[:3], asked) == [13, 16, 14]  # no more than it may
    assert turned(seen(areas, areas[8] * 1.1), 8, exact, asked) == []  # 10 % is not seen
    assert turned(seen(areas, areas[8] * 1.3), 8, exact, asked) == [
        13,
        10,
        9,
    ]  # between two notches, with the last tried
    assert turned(seen(areas, 1.0), 0, exact, asked) == []  # nothing is below
    assert turned(seen(areas, 1e9), 18, exact, asked) == []  # nothing above
    assert turned(seen(areas, areas[0]), 18, exact, asked) == [8, 3, 1, 0]
    right = [0.0] * 8 + [0.9] + [0.0] * 10
    assert turned(seen(areas, areas[15], right), 8, exact, asked) == []  # the mask is right, whatever its area
    assert turned(seen([0.0] * 19, 50.0), 8, exact, asked) == [13, 16, 17, 18]  # an empty mask is too small


def test_an_error_of_judgement_sends_the_dial_the_other_way() -> None:
    areas = [100 * 1.5**place for place in range(19)]
    found = seen(areas, areas[8])
    assert turned(found, 8, np.array([math.log(1.19), 0.0]), AnnotatorOptions()) == []
    assert turned(found, 8, np.array([math.log(1.21), 0.0]), AnnotatorOptions()) == [3, 5]
    assert turned(found, 8, np.array([-math.log(1.21), 0.0]), AnnotatorOptions()) == [13, 10]
    assert turned(found, 8, np.array([math.log(1.21)]), AnnotatorOptions(area_error=0.3)) == []


def test_the_dial_is_let_go_where_the_area_looks_right() -> None:
    areas = [100.0, 200.0, 400.0, 800.0]
    asked = AnnotatorOptions()
    assert dragged(seen(areas, 390.0), 0, 0.0, asked) == 2
    assert dragged(seen(areas, 390.0), 0, math.log(1.9), asked) == 1  # all look larger than they are
    assert dragged(seen(areas, 220.0), 1, 0.0, asked) == 1
    assert dragged(seen(areas, 390.0, [0.9, 0, 0, 0]), 0, 0.0, asked) == 0


def test_the_best_looking_of_three() -> None:
    truth = disk(20, 20, 8)
    masks = np.stack([disk(20, 20, 4), disk(20, 20, 9), disk(20, 20, 15)])
    found = see(masks, truth, None)
    assert found.area_px.tolist() == [mask.sum() for mask in masks]
    assert found.wrong_px.tolist() == [(mask ^ truth).sum() for mask in masks]
    assert found.iou.tolist() == [mask_iou(mask, truth) for mask in masks]
    assert best_looking(found, np.zeros(3)) == 1
    wrong = found.wrong_px
    assert best_looking(found, np.array([0.0, math.log(wrong[0] / wrong[1]) + 0.01, 0.0])) == 0
    first = Click(x=20, y=20, positive=True)
    plan = masks_plan(found, np.array([0.9, 0.1, 0.2]), np.zeros(3), first)
    assert plan.opening == (Step("click", found.iou[0]), Step("take", found.iou[1]))
    assert plan.clicker.slot == 1
    assert masks_plan(found, np.array([0.1, 0.9, 0.2]), np.zeros(3), first).opening == (Step("click", found.iou[1]),)
    ignored = see(masks, truth, masks[2] & ~truth)  # what lies around the object is not looked at
    assert ignored.wrong_px.tolist() == [wrong[0], 0.0, 0.0]
    assert ignored.area_px.tolist() == [masks[0].sum(), truth.sum(), truth.sum()]


# ---------------------------------------------------------------------------------------------------------------------
# Whole objects against the slow definition: one person, one call of the predictor for each action


def by_definition(
    truth: Mask,
    predict: Callable[[list[Click], float], Mask],
    begin: int,
    errors: list[float],
    aim: Aim,
    *,
    max_turns: int,
) -> list[tuple[str, float]]:
    """(action, IoU) of the policy `dial`; without turns it is `clicks`."""
    clicks = [next_click(np.zeros_like(truth), truth, aim=aim)]
    low, high, place = 0, len(SWEEP) - 1, begin
    mask = predict(clicks, SWEEP[place])  # type: ignore[arg-type]
    done = [("click", mask_iou(mask, truth))]
    for look in range(max_turns):
        ratio = math.exp(math.log(mask.sum() / truth.sum()) + errors[look])
        if done[-1][1] >= 0.9 or 1 / 1.2 <= ratio <= 1.2:
            break
        if ratio < 1:
            low = place + 1
        else:
            high = place - 1
        if low > high:
            break
        place = (low + high) // 2
        mask = predict(clicks, SWEEP[place])  # type: ignore[arg-type]
        done.append(("turn", mask_iou(mask, truth)))
    while done[-1][1] < 0.9 and len(done) < 20:
        click = next_click(mask, truth, None, clicks, aim)  # type: ignore[arg-type]
        if click is None:
            break
        clicks.append(click)
        mask = predict(clicks, SWEEP[place])  # type: ignore[arg-type]
        done.append(("click", mask_iou(mask, truth)))
    return done


OBJECTS = {
    "at 0.5": disk(20, 30, 10),
    "small": disk(20, 30, 5),
    "large": disk(24, 30, 21),
    "two pieces": disk(14, 14, 9) | disk(30, 44, 7),
    "a bar": np.pad(np.ones((8, 40), dtype=bool), ((10, 30), (10, 10))),
}


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize("seed", [0, 1])
def test_policies_as_defined(name: str, seed: int) -> None:
    truth = OBJECTS[name]
    row = cells_of(Disks(), truth, replace(OPTIONS, seed=seed))
    found = timelines(row)
    aim = Aim(radius=0.5, seed=tuple(seed_of(seed, "aim", "image", "1")))
    random = np.random.default_rng(seed_of(seed, "judgement", "dial", "image", "1"))
    errors = random.normal(0, 0.2, 3).tolist()

    def predict(clicks: list[Click], granularity: float) -> Mask:
        points, labels = [(each.x, each.y) for each in clicks], [each.positive for each in clicks]
        mask: Mask = Disks().predict(points, labels, granularity)[0]
        return mask

    middle, told = SWEEP.index(0.5), SWEEP.index(0.8)
    for policy, begin, turns in (("clicks", middle, 0), ("dial", middle, 3), ("dial_label", told, 3)):
        expected = by_definition(truth, predict, begin, errors, aim, max_turns=turns)
        assert [(step.action, step.iou) for step in found[policy]] == expected, policy
        seconds = 0.0
        for number, (_, iou) in enumerate(expected, start=1):
            seconds += CLICK_S
            if iou >= 0.8:
                assert row[f"{policy}.actions_80"] == number
                assert row[f"{policy}.seconds_80"] == pytest.approx(seconds)
                break
        else:
            assert row[f"{policy}.seconds_80"] == pytest.approx(53.0)
    ten = {g: by_definition(truth, predict, SWEEP.index(g), errors, aim, max_turns=0) for g in SWEEP[::2]}
    by_first = max(ten, key=lambda g: (ten[g][0][1], -g))
    assert [step.iou for step in found["oracle"]] == [iou for _, iou in ten[by_first]]
    assert len(found["oracle_run"]) == min(len(steps) if steps[-1][1] >= 0.9 else 20 for steps in ten.values())
    for g, steps in ten.items():
        assert row[f"constant:{g:.2f}.iou_first"] == steps[0][1]
    fixed = by_definition(truth, predict, SWEEP.index(0.3), errors, aim, max_turns=0)
    assert [step.iou for step in found["fixed:0.30"]] == [iou for _, iou in fixed]


def test_each_policy_on_an_object_by_hand() -> None:
    """A disk of radius 15: g = 0.75 is right, 0.50 has 44 % of its area."""
    exact = replace(OPTIONS, annotators=AnnotatorOptions(area_error=0.0, click_radius=0.0))
    truth = disk(24, 30, 15)
    row = cells_of(DisksAndThree(), truth, exact, label=0.74)
    assert row["clicks.iou_first"] == mask_iou(disk(24, 30, 10), truth)
    assert row["dial.steps"] == "ct"  # g = 0.50, then the middle of what is above, 0.75
    assert row["dial.notches"] == [0.0, 5.0]
    assert row["dial.actions_90"] == 2.0
    assert row["dial.seconds_90"] == pytest.approx(2 * CLICK_S)
    assert row["drag.steps"] == "cd"
    assert row["drag.seconds_90"] == pytest.approx(CLICK_S + 1.35 + 2 * 1.2)
    assert row["dial_label.steps"] == "c"  # the notch next to 0.74 is right at once
    firsts = {g: mask_iou(disk(24, 30, 20 * g), truth) for g in (0.7, 0.8)}
    assert row["oracle.iou_first"] == row["oracle_run.iou_first"] == max(firsts.values())
    assert row["three_masks.steps"].startswith("cm")  # shown is the middle one, taken the largest
    assert row["three_masks.ious"][:2] == [mask_iou(disk(24, 30, radius), truth) for radius in (8, 13)]
    assert row["own.ious"][0] == mask_iou(disk(24, 30, 8), truth)


# ---------------------------------------------------------------------------------------------------------------------
# Chance


def test_clicks_fall_near_where_they_are_meant() -> None:
    truth = disk(24, 30, 16)
    empty = np.zeros_like(truth)
    meant = next_click(empty, truth)
    assert meant is not None
    assert next_click(empty, truth, aim=Aim(radius=0.0, seed=(1,))) == meant
    met = [next_click(empty, truth, aim=Aim(radius=0.5, seed=(seed,))) for seed in range(200)]
    far = [math.hypot(each.x - meant.x, each.y - meant.y) for each in met if each is not None]
    assert len({(each.x, each.y) for each in met if each is not None}) > 50
    assert 6 < max(far) <= 0.5 * 17
    assert abs(np.mean([each.x - meant.x for each in met if each is not None])) < 1
    assert met == [next_click(empty, truth, aim=Aim(radius=0.5, seed=(seed,))) for seed in range(200)]


def test_a_click_never_falls_on_one_that_was_made() -> None:
    truth = np.zeros(SIZE, dtype=bool)
    truth[10:13, 10:13] = True  # reach 1 of the middle's distance 2: five pixels
    empty, clicked = np.zeros_like(truth), []
    for _ in range(9):
        click = next_click(empty, truth, None, clicked, Aim(radius=0.5, seed=(7,)))
        assert click is not None
        assert click not in clicked
        assert truth[click.y, click.x]
        clicked.append(click)
    assert next_click(empty, truth, None, clicked, Aim(radius=0.5, seed=(7,))) is None


def test_chance_is_the_seeds_alone() -> None:
    truth = OBJECTS["two pieces"]
    row = cells_of(Disks(), truth)
    assert row == cells_of(Disks(), truth)
    assert row["clicks.ious"] != cells_of(Disks(), truth, replace(OPTIONS, seed=1))["clicks.ious"]
    assert row["clicks.ious"] != cells_of(Disks(), truth, names=("image", "2"))["clicks.ious"]
    without = replace(OPTIONS, oracle=False, label=False, fixed=())
    alone = cells_of(Disks(), truth, without)
    assert {name.partition(".")[0] for name in alone} == {"clicks", "dial", "drag"}
    assert alone == {name: row[name] for name in alone}  # what else is asked changes no policy


# ---------------------------------------------------------------------------------------------------------------------
# Numbers over objects


def rows_of(model: Any, options: ModelOptions = OPTIONS) -> list[Row]:
    rows: list[Row] = []
    clicks = prepared(model)
    for image in range(2):
        for number, (name, truth) in enumerate(OBJECTS.items()):
            label = None if name == "a bar" else 0.2 + 0.2 * number
            moved = np.roll(truth, image, axis=1)
            each = AnnotatedObject(truth=moved, ignore=None, label=label, names=(str(image), name))
            [cells] = annotate_objects(clicks, [each], options)
            row: Row = {"task": "annotators", "image": str(image), "object": name, "area_px": float(truth.sum())}
            rows.append({**row, **({} if label is None else {"label": label}), **cells})
    return rows


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return rows_of(Disks(), replace(OPTIONS, fixed=()))


def scores(rows: list[Row], options: ModelOptions = OPTIONS) -> ModelScores:
    return ModelScores(
        rows=rows, metrics=annotator_metrics(rows, resamples=100, seed=0), curves=annotator_curves(rows), counts={}
    )


def column(rows: list[Row], name: str) -> NDArray[np.float64]:
    return np.array([row.get(name, np.nan) for row in rows], dtype=float)


def test_means_and_paired_intervals(rows: list[Row]) -> None:
    found = scores(rows).metrics
    clicks, dial = column(rows, "clicks.seconds_80"), column(rows, "dial.seconds_80")
    assert found["annotators.dial.seconds_80"].value == pytest.approx(dial.mean())
    less = found["annotators.dial - clicks.seconds_80"]
    [expected] = bootstrap([str(row["image"]) for row in rows], {"less": dial - clicks}, resamples=100).values()
    assert less == expected
    assert found["annotators.dial_label.seconds_80"].objects == 8  # two have no label
    labelled = np.isfinite(column(rows, "dial_label.seconds_80"))
    told = found["annotators.dial_label - clicks.seconds_80"].value
    assert told == pytest.approx(np.nanmean(column(rows, "dial_label.seconds_80") - clicks))
    assert labelled.sum() == 8
    singles = {g: column(rows, f"constant:{g:.2f}.seconds_80").mean() for g in SWEEP[::2]}
    assert found["annotators.best_single.seconds_80"].value == pytest.approx(min(singles.values()))
    assert found["annotators.oracle_run.actions_90"].value <= found["annotators.best_single.actions_90"].value


def test_groups_and_other_costs(rows: list[Row]) -> None:
    found = scores(rows).metrics
    groups = [groups_of(row) for row in rows[:5]]
    assert [size for size, _ in groups] == ["small", "small", "medium", "small", "small"]
    assert [kind for _, kind in groups] == ["fine", "middle", "middle", "coarse", "without_g"]
    medium = column(rows, "dial.seconds_80")[2::5]
    assert found["annotators.medium.dial.seconds_80"].value == pytest.approx(medium.mean())
    assert found["annotators.medium.dial.seconds_80"].objects == 2
    assert "annotators.large.dial.seconds_80" not in found
    priced = [timeline_numbers(timelines(row)["dial"], COST_VARIANTS["no_thought"])["seconds_80"] for row in rows]
    assert found["annotators.cost_no_thought.dial.seconds_80"].value == pytest.approx(np.mean(priced))


def test_curves_end_where_the_numbers_do(rows: list[Row]) -> None:
    curves = annotator_curves(rows)
    iou, reached = curves["annotators_iou"], curves["annotators_reached"]
    assert set(iou) == set(reached) == {"seconds", "clicks", "dial", "drag", "oracle", "oracle_run"}
    assert iou["dial"][0] == 0.0
    assert iou["dial"][-1] == pytest.approx(np.mean([timelines(row)["dial"][-1].iou for row in rows]))
    assert reached["dial"][-1] == pytest.approx(column(rows, "dial.reached_80").mean())
    assert annotator_curves([]) == {}


def test_tables_say_what_is_not_there_and_why(rows: list[Row]) -> None:
    settings = replace(OPTIONS, annotators=AnnotatorOptions(own_masks=False))
    [policies, less, groups, costs] = annotator_tables(scores(rows), settings).values()
    assert [row["policy"] for row in policies] == [
        "clicks", "best_single", "dial", "drag", "dial_label", "oracle", "oracle_run", "three_masks",
    ]  # fmt: skip
    assert "nothing trained SAM-2's own masks" in str(policies[-1]["meaning"])
    assert policies[-1]["s to 0.80"] == "n/a"
    assert [row["group"] for row in groups] == ["small", "medium", "fine", "middle", "coarse", "without_g"]
    assert len(costs) == len(COST_VARIANTS)
    assert "dial - best_single" in [row["policy"] for row in less]
    three = rows_of(DisksAndThree(), replace(OPTIONS, oracle=False, label=False, fixed=()))
    [policies, less, *_] = annotator_tables(scores(three), replace(OPTIONS, label=False)).values()
    assert [row["policy"] for row in policies] == ["clicks", "own", "three_masks", "dial", "drag", "dial_label"]
    assert "`--granularity label` was not asked for" in str(policies[-1]["meaning"])
    assert "dial - three_masks" in [row["policy"] for row in less]


def test_an_interval_is_told_and_no_more() -> None:
    def interval(low: float, high: float) -> Interval:
        return Interval(value=(low + high) / 2, low=low, high=high, objects=1, images=1)

    assert verdict(interval(-2, -1)) == "faster"
    assert verdict(interval(1, 2)) == "slower"
    assert verdict(interval(-1, 2)) == verdict(interval(0, 2)) == "not shown to differ"
    assert verdict(interval(1, 2), above="better", below="worse") == "better"
