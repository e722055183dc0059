"""Simulated annotators: how many actions, and so seconds, until an object is segmented, with a dial and without one.

Each policy is a person in front of the object who sees what a person sees: whether a mask is right, where it is most
wrong, roughly whether it is too large or too small. None but `dial_label` and the bounds is told a g by the truth.

| policy | what is done |
|---|---|
| `clicks` | one mask for a click, at the g that the benchmark's constant is; then clicks where the error is largest |
| `fixed:G` | the same at another g |
| `own` | the same with SAM-2's own single mask, no g |
| `three_masks` | SAM-2's three masks for the click, the surest shown; the one that looks best is taken; then clicks |
| `dial` | as `clicks`, but first the dial is turned, up or down by halves, until the area looks right; then clicks |
| `drag` | as `dial`, but turned once, watched and let go where the area looks right |
| `dial_label` | as `dial`, but it begins at the label's g: somebody who knows which kind of thing is wanted |
| `oracle` | bound: begins at the g of ten whose first mask is best, chosen by the truth, for nothing; then clicks |
| `oracle_run` | bound: of the complete series of clicks at ten g the one with the fewest actions |
| `constant:G` | the ten of it; the best of them over all objects is the strongest annotator without a dial |

Areas are judged with an error, clicks fall near where they are meant; both are drawn by the seed for each object, alike
for all policies. Who sees the target reached stops. Clicks at one g are the same for all policies, so that an
object costs one pass of the decoder over the whole dial, and one series of clicks for each g that some policy ends at.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.format.granularity import GRANULARITIES

from ..subjects.predictors import ClickModel, Predictions
from .controls import SWEEP, seed_of
from .interactive import ClickedObject, Clicker, simulate_objects
from .keystrokes import MAX_ACTIONS, Step, Timeline, ended, timeline_cells, timeline_numbers
from .metrics import BoolArray, FloatArray, mask_iou
from .options import AnnotatorOptions, ModelOptions
from .simulated_user import Aim, Click, Trajectory, next_click

_TEN: Final = tuple(SWEEP.index(granularity) for granularity in GRANULARITIES)
"""Places of the protocol's ten g on the dial."""


@dataclass(frozen=True, kw_only=True)
class AnnotatedObject:
    """An object that is to be segmented.

    Attributes:
        truth: (H, W) bool, not empty.
        ignore: (H, W) bool or None.
        label: the protocol's g of it, or None.
        names: image and object, which its random draws hang on.
    """

    truth: BoolArray
    ignore: BoolArray | None
    label: float | None
    names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a person sees of N masks beside the object.

    Attributes:
        area_px: (N,) of each mask.
        wrong_px: (N,) pixels in which it differs from the object.
        iou: (N,) with the object.
        object_px: the object's own area.
    """

    area_px: FloatArray
    wrong_px: FloatArray
    iou: FloatArray
    object_px: float


def see(masks: BoolArray, truth: BoolArray, ignore: BoolArray | None) -> Seen:
    """(N, H, W) masks beside an object; ignored pixels are not looked at."""
    counted = np.ones_like(truth) if ignore is None else ~ignore
    return Seen(
        area_px=np.array([np.count_nonzero(mask & counted) for mask in masks], dtype=np.float64),
        wrong_px=np.array([np.count_nonzero((mask ^ truth) & counted) for mask in masks], dtype=np.float64),
        iou=np.array([mask_iou(mask, truth, ignore) for mask in masks]),
        object_px=float(np.count_nonzero(truth & counted)),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Policies: from what is seen to what is done


def judged_sizes(seen: Seen) -> FloatArray:
    """(N,) log of each mask's area over the object's: below 0 it is too small. An empty mask counts as half a pixel."""
    sizes: FloatArray = np.log(np.maximum(seen.area_px, 0.5) / seen.object_px)
    return sizes


def turned(seen: Seen, start: int, errors: FloatArray, options: AnnotatorOptions) -> list[int]:
    """Where the dial is turned to, one place after the other; nothing if it stays.

    A mask that looks too small sends it to the middle of what is above, one that looks too large below, as long as
    anything is left that was not ruled out. It stays where the area looks right or the mask is right.

    Args:
        seen: the masks of the whole dial, by ascending g.
        start: place at which it stands.
        errors: (M,) added to the log of the judged area, look by look; M is how often it may be turned.
        options: within which error an area looks right, at which IoU a mask is right.
    """
    sizes = judged_sizes(seen)
    low, high, place = 0, len(sizes) - 1, start
    visited: list[int] = []
    for error in errors:
        judged = sizes[place] + error
        if seen.iou[place] >= options.target_iou or abs(judged) <= options.looks_right:
            break
        low, high = (place + 1, high) if judged < 0 else (low, place - 1)
        if low > high:
            break
        place = (low + high) // 2
        visited.append(place)
    return visited


def dragged(seen: Seen, start: int, error: float, options: AnnotatorOptions) -> int:
    """Where the dial is let go that is dragged once: at the area that looks nearest to right, or where it stood, if
    that looks right already. A person has one idea of the object's size, so there is one error."""
    judged = np.abs(judged_sizes(seen) + error)
    if seen.iou[start] >= options.target_iou or judged[start] <= options.looks_right:
        return start
    return int(np.argmin(judged))


def best_looking(seen: Seen, errors: FloatArray) -> int:
    """Which of several masks looks least wrong, (N,) errors as of `turned`, here of the area that is wrong."""
    return int(np.argmin(seen.wrong_px * np.exp(errors)))


class Plan(NamedTuple):
    """What a person does with one object: `opening` up to the mask that is then corrected, which is the first answer of
    `clicker`, whose further clicks follow."""

    opening: Timeline
    clicker: Clicker


def dial_plans(
    seen: Seen, label: float | None, errors: FloatArray, first: Click, constant: float, options: ModelOptions
) -> dict[str, Plan]:
    """The policies of a model with a dial.

    Args:
        seen: the masks of `SWEEP` for the first click.
        label: the object's g, if it is told.
        errors: (M,) of the judgement.
        first: the click.
        constant: the g that is on the dial at first.
        options: which columns are wanted.
    """
    asked = options.annotators
    assert asked is not None

    def plan(places: Sequence[int], action: str = "turn") -> Plan:
        opening = [Step("click", float(seen.iou[places[0]]))]
        for before, after in itertools.pairwise(places):
            opening.append(Step("drag" if action == "drag" else "turn", float(seen.iou[after]), abs(after - before)))
        return Plan(tuple(opening), Clicker(SWEEP[places[-1]], first=first))

    start = SWEEP.index(constant)
    let_go = dragged(seen, start, float(errors[0]), asked)
    plans = {
        "clicks": plan([start]),
        "dial": plan([start, *turned(seen, start, errors, asked)]),
        "drag": plan([start] if let_go == start else [start, let_go], "drag"),
    }
    if options.label and label is not None:
        told = int(np.argmin(np.abs(np.array(SWEEP) - label)))
        plans["dial_label"] = plan([told, *turned(seen, told, errors, asked)])
    if options.oracle:
        plans["oracle"] = plan([max(_TEN, key=lambda place: (seen.iou[place], -place))])
        plans |= {f"constant:{SWEEP[place]:.2f}": plan([place]) for place in _TEN}
    for granularity in options.fixed:
        if granularity != constant:
            plans[f"fixed:{granularity:.2f}"] = Plan((), Clicker(round(granularity, 6), first=first))
    return plans


def masks_plan(seen: Seen, predicted_iou: FloatArray, errors: FloatArray, first: Click) -> Plan:
    """Several masks for the click: the surest is shown, the best-looking one taken; an action only if it is another.

    Args:
        seen: the masks.
        predicted_iou: (N,) what the model thinks of them.
        errors: (N,) of the judgement.
        first: the click.
    """
    shown = int(np.argmax(predicted_iou))
    taken = best_looking(seen, errors)
    opening = [Step("click", float(seen.iou[shown]))]
    if taken != shown:
        opening.append(Step("take", float(seen.iou[taken])))
    return Plan(tuple(opening), Clicker(None, first=first, slot=taken))


def timeline_of_plan(plan: Plan, trajectory: Trajectory, target_iou: float) -> Timeline:
    """Opening and corrections, as far as they are done."""
    opening = plan.opening or tuple(Step("click", iou) for iou in trajectory.ious[:1])
    return ended([*opening, *(Step("click", iou) for iou in trajectory.ious[1:])], target_iou)


# ---------------------------------------------------------------------------------------------------------------------
# With a model


def annotate_objects(
    model: ClickModel, objects: Sequence[AnnotatedObject], options: ModelOptions
) -> list[dict[str, str | float | list[float]]]:
    """All policies on objects of the image that the model holds.

    Returns:
        The cells of each object's row: for each policy the numbers of `timeline_numbers`, and, but for `constant:G`,
        the timeline itself (`timeline_cells`).
    """
    asked = options.annotators
    assert asked is not None
    plans, subjects = [], []
    for each in objects:
        aim = Aim(radius=asked.click_radius, seed=tuple(seed_of(options.seed, "aim", *each.names)))
        plans.append(_plans(model, each, aim, options))
        columns = {name: (plan.clicker,) for name, plan in plans[-1].items()}
        subjects.append(ClickedObject(truth=each.truth, ignore=each.ignore, columns=columns, aim=aim))
    found = simulate_objects(model, subjects, replace(options, target_iou=asked.target_iou, max_clicks=MAX_ACTIONS))
    return [_cells(plan, trajectories, asked) for plan, trajectories in zip(plans, found, strict=True)]


def _plans(model: ClickModel, each: AnnotatedObject, aim: Aim, options: ModelOptions) -> dict[str, Plan]:
    asked = options.annotators
    assert asked is not None
    first = next_click(np.zeros_like(each.truth), each.truth, each.ignore, aim=aim)
    assert first is not None, "an empty object has no click"
    points, labels = np.array([[[first.x, first.y]]], dtype=np.float64), np.ones((1, 1), dtype=np.int32)
    plans: dict[str, Plan] = {}
    if model.takes_granularity:
        count = len(SWEEP)
        answers = model.answer(np.repeat(points, count, axis=0), np.repeat(labels, count, axis=0), np.array(SWEEP))
        seen = see(answers.masks(), each.truth, each.ignore)
        errors = _errors(asked.max_turns, "dial", each, options)
        plans |= dial_plans(seen, each.label, errors, first, options.constant, options)
    else:
        plans["clicks"] = Plan((), Clicker(None, first=first))
    if model.multimask and asked.own_masks:
        offered: Predictions = model.answer_multimask(points, labels)
        seen = see(offered.masks(), each.truth, each.ignore)
        plans["three_masks"] = masks_plan(seen, offered.iou, _errors(len(offered), "masks", each, options), first)
    if model.takes_granularity and model.answers_without and asked.own_masks:
        plans["own"] = Plan((), Clicker(None, first=first))
    return plans


def _errors(count: int, what: str, each: AnnotatedObject, options: ModelOptions) -> NDArray[np.float64]:
    """(count,) errors of judgement, of the log of an area."""
    assert options.annotators is not None
    random = np.random.default_rng(seed_of(options.seed, "judgement", what, *each.names))
    return random.normal(0.0, options.annotators.area_error, count)


def _cells(
    plans: Mapping[str, Plan], found: Mapping[Clicker, Trajectory], options: AnnotatorOptions
) -> dict[str, str | float | list[float]]:
    timelines = {name: timeline_of_plan(plan, found[plan.clicker], options.target_iou) for name, plan in plans.items()}
    complete = {name: timeline for name, timeline in timelines.items() if name.startswith("constant:")}
    if complete:
        timelines["oracle_run"] = min(complete.values(), key=lambda steps: _rank(steps, options.target_iou))
    cells: dict[str, str | float | list[float]] = {}
    for name, timeline in timelines.items():
        cells |= {f"{name}.{key}": value for key, value in timeline_numbers(timeline).items()}
        if name not in complete:
            cells |= {f"{name}.{key}": value for key, value in timeline_cells(timeline).items()}
    return cells


def _rank(timeline: Timeline, target_iou: float) -> tuple[int, float]:
    """Fewest actions to the target, then the best first IoU."""
    reached = bool(timeline) and timeline[-1].iou >= target_iou
    return len(timeline) if reached else MAX_ACTIONS, -timeline[0].iou if timeline else 0.0
