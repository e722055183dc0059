"""Clicks on objects until they are segmented: NoC, NoF and 1-IoU, each way of choosing g in a column of its own.

The protocol is RITM's (clicker.py): at most 20 clicks, each in the centre of the fattest error, the earlier answer's
logits fed back. GraCo and arXiv 2511.13714 run it for g = 0.1 … 1.0 and keep, with the ground truth, the g with the
fewest clicks (ties: the best first IoU): column `oracle`. `oracle_plain` takes the best g for each number by itself.
Columns `label` and `fixed:G` use no ground truth. The controls are those of `controls.py`.

All clickers of all objects of an image go on in lock-step, so that each round is one batch for the decoder. A clicker
of a best-of column stops when another one of it has reached the target: it could not win any more, nor change a plain
best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.format.granularity import GRANULARITIES

from ..subjects.predictors import ClickModel, LogitArray, Predictions
from .controls import JITTER_CLICKS, JITTER_RADIUS, seed_of
from .metrics import BoolArray, mask_iou, number_of_clicks
from .options import ModelOptions
from .simulated_user import Aim, Click, Trajectory, jittered_first_clicks, next_click

_PIXELS_AT_ONCE: Final = 64 * 1024 * 1024
"""Clickers times pixels of the image that are in hand at once: objects of an image are taken in groups of this size."""


class Clicker(NamedTuple):
    """One simulated user with one object: a g (None: SAM-2's own answer), perhaps another first click, perhaps one of
    the several masks that the model offers for the first click."""

    granularity: float | None
    first: Click | None = None
    slot: int | None = None


@dataclass(frozen=True, kw_only=True)
class ClickedObject:
    """An object and the clickers that it gets.

    Attributes:
        truth: (H, W) bool, not empty.
        ignore: (H, W) bool or None.
        columns: column -> its clickers; the best of them where there are several.
        aim: how exactly its clicks are set; None: exactly.
    """

    truth: BoolArray
    ignore: BoolArray | None
    columns: Mapping[str, tuple[Clicker, ...]]
    aim: Aim | None = None


def clickers_of(
    model: ClickModel,
    options: ModelOptions,
    truth: BoolArray,
    *,
    label: float | None,
    shuffled: float | None,
    seed: Sequence[int],
) -> dict[str, tuple[Clicker, ...]]:
    """The columns of one object.

    Args:
        model: what it can do decides which columns there are.
        options: which of them are wanted.
        truth: (H, W) bool, not empty.
        label: the protocol's g of the object, or None.
        shuffled: another object's label, or None.
        seed: of the jittered clicks.
    """
    columns: dict[str, tuple[Clicker, ...]] = {}
    if model.takes_granularity:
        if options.oracle:
            columns["oracle"] = tuple(Clicker(g) for g in GRANULARITIES)
        if options.label and label is not None:
            columns["label"] = (Clicker(_rounded(label)),)
        columns |= {f"fixed:{g:.2f}": (Clicker(_rounded(g)),) for g in options.fixed}
    if options.controls:
        constant = options.constant if model.takes_granularity else None
        if model.takes_granularity:
            columns["ignored"] = (Clicker(constant),)
            if shuffled is not None:
                columns["shuffled"] = (Clicker(_rounded(shuffled)),)
        if model.multimask:
            columns["best_of_3"] = tuple(Clicker(None, slot=slot) for slot in range(model.multimask))
        clicks = jittered_first_clicks(truth, JITTER_CLICKS, radius=JITTER_RADIUS, seed=seed)
        distinct = dict.fromkeys(Clicker(constant, first=click) for click in clicks[1:])
        columns["best_of_10_clicks"] = (Clicker(constant), *distinct)
    if model.answers_without and (options.controls or not model.takes_granularity):
        columns["own"] = (Clicker(None),)
    return columns


def _rounded(granularity: float) -> float:
    """So that a label of exactly 0.5 and the protocol's 0.5 are one clicker."""
    return round(granularity, 6)


def click_columns(
    columns: Mapping[str, tuple[Clicker, ...]], found: Mapping[Clicker, Trajectory], options: ModelOptions
) -> dict[str, float | list[float]]:
    """The numbers of one object.

    Args:
        columns: of the object.
        found: what came of each clicker; one that was given up is shorter.

    Returns:
        For each column NAME: `NAME.noc_80`, `.noc_85`, `.noc_90` (as far as the target goes), `.failed` (1.0 if the
        target took all clicks or was not reached), `.iou_1`, and the list `.ious`, IoU after each click, the last one
        held to the end. Columns that are a best of several also have `NAME_plain.noc_T` and `NAME_plain.iou_1`, the
        best clicker for each number by itself, and `NAME.granularity` where they differ in it. `constant:G.iou_1` for
        each g of the oracle's ten: the best of them over all objects is the strongest model without a dial.
    """
    row: dict[str, float | list[float]] = {}
    for name, candidates in columns.items():
        trajectories = [found[each] for each in candidates]
        clicks = [_clicks(each, options.target_iou, options.max_clicks) for each in trajectories]
        best = min(range(len(candidates)), key=lambda i: (clicks[i], -_first(trajectories[i])))
        row |= {f"{name}.{key}": value for key, value in _numbers(trajectories[best], options).items()}
        row[f"{name}.ious"] = _held(trajectories[best], options.max_clicks)
        if len(candidates) > 1:
            every = [_numbers(each, options) for each in trajectories]
            for key in every[0]:
                better = max if key == "iou_1" else min
                row[f"{name}_plain.{key}"] = better(each[key] for each in every)
            chosen = candidates[best].granularity
            if chosen is not None and len({each.granularity for each in candidates}) > 1:
                row[f"{name}.granularity"] = chosen
                row |= {f"constant:{each.granularity:.2f}.iou_1": _first(found[each]) for each in candidates}
    return row


def _numbers(trajectory: Trajectory, options: ModelOptions) -> dict[str, float]:
    found = {
        f"noc_{round(100 * threshold)}": float(_clicks(trajectory, threshold, options.max_clicks))
        for threshold in options.click_thresholds
    }
    failed = _clicks(trajectory, options.target_iou, options.max_clicks) >= options.max_clicks
    return {**found, "failed": float(failed), "iou_1": _first(trajectory)}


def _clicks(trajectory: Trajectory, threshold: float, max_clicks: int) -> int:
    return number_of_clicks(np.array(trajectory.ious), threshold, max_clicks=max_clicks)


def _first(trajectory: Trajectory) -> float:
    return trajectory.ious[0] if trajectory.ious else 0.0


def _held(trajectory: Trajectory, max_clicks: int) -> list[float]:
    return [*trajectory.ious, *[trajectory.ious[-1] if trajectory.ious else 0.0] * (max_clicks - len(trajectory.ious))]


# ---------------------------------------------------------------------------------------------------------------------
# The lock-step


@dataclass
class _State:
    """One clicker at work."""

    subject: int
    clicker: Clicker
    clicks: list[Click]
    ious: list[float] = field(default_factory=list)
    previous: NDArray[np.float32] | None = None
    upcoming: Click | None = None


def simulate_objects(
    model: ClickModel, objects: Sequence[ClickedObject], options: ModelOptions
) -> list[dict[Clicker, Trajectory]]:
    """All clickers of all objects of the image that the model holds.

    Returns:
        For each object its clickers' trajectories. Equal to `simulated_user.simulate` one by one, except that the
        clickers of a best-of column stop when one of them has reached the target.
    """
    found: list[dict[Clicker, Trajectory]] = []
    group: list[ClickedObject] = []
    load = 0
    for each in objects:
        cost = each.truth.size * len({clicker for clickers in each.columns.values() for clicker in clickers})
        if group and load + cost > _PIXELS_AT_ONCE:
            found += _simulate_group(model, group, options)
            group, load = [], 0
        group.append(each)
        load += cost
    return found + (_simulate_group(model, group, options) if group else [])


def _simulate_group(
    model: ClickModel, objects: Sequence[ClickedObject], options: ModelOptions
) -> list[dict[Clicker, Trajectory]]:
    every: list[list[_State]] = []
    for number, each in enumerate(objects):
        start = next_click(np.zeros_like(each.truth), each.truth, each.ignore, aim=each.aim)
        clickers = dict.fromkeys(clicker for clickers in each.columns.values() for clicker in clickers)
        every.append([_State(number, clicker, [], upcoming=clicker.first or start) for clicker in clickers])
    active = [state for states in every for state in states if state.upcoming is not None]
    for _ in range(options.max_clicks):
        if not active:
            break
        for state in active:
            assert state.upcoming is not None
            state.clicks.append(state.upcoming)
        for state, answers, fed_back, position in _answered(model, active):
            subject = objects[state.subject]
            predicted = answers.masks(np.array([position]))[0]
            state.ious.append(mask_iou(predicted, subject.truth, subject.ignore))
            state.previous = None if fed_back is None else fed_back[position]
            reached = state.ious[-1] >= options.target_iou
            state.upcoming = (
                None if reached else next_click(predicted, subject.truth, subject.ignore, state.clicks, subject.aim)
            )
        given_up = {
            id(state) for each, states in zip(objects, every, strict=True) for state in _given_up(each, states, options)
        }
        active = [state for state in active if state.upcoming is not None and id(state) not in given_up]
    return [
        {state.clicker: Trajectory(ious=tuple(state.ious), clicks=tuple(state.clicks)) for state in states}
        for states in every
    ]


def _given_up(subject: ClickedObject, states: Sequence[_State], options: ModelOptions) -> list[_State]:
    """Clickers that no column waits for: in all of theirs another one has reached the target, and the best is kept."""
    won = {state.clicker for state in states if state.ious and state.ious[-1] >= options.target_iou}
    waiting = {
        clicker for clickers in subject.columns.values() if not won.intersection(clickers) for clicker in clickers
    }
    return [state for state in states if state.clicker not in waiting]


def _answered(model: ClickModel, active: Sequence[_State]) -> list[tuple[_State, Predictions, LogitArray | None, int]]:
    """One decoder call for each kind of prompt: every state with its answers, what is fed back, and its place there."""
    dial = [state for state in active if state.clicker.granularity is not None]
    own = [state for state in active if state.clicker.granularity is None and not _offers(state)]
    offered = [state for state in active if _offers(state)]
    answered: list[tuple[_State, Predictions, LogitArray | None, int]] = []
    for states in (dial, own):
        if states:
            granularity = (
                np.array([state.clicker.granularity for state in states], dtype=np.float64) if states is dial else None
            )
            answers = model.answer(*_prompts(states), granularity, _previous(states))
            fed_back = answers.mask_inputs()
            answered += [(state, answers, fed_back, position) for position, state in enumerate(states)]
    subjects = {state.subject: state for state in offered}
    if subjects:
        answers = model.answer_multimask(*_prompts(list(subjects.values())))
        fed_back = answers.mask_inputs()
        row = {subject: position for position, subject in enumerate(subjects)}
        for state in offered:
            assert state.clicker.slot is not None
            answered.append((state, answers, fed_back, row[state.subject] * model.multimask + state.clicker.slot))
    return answered


def _offers(state: _State) -> bool:
    """The model's several masks are asked for at the first click only."""
    return state.clicker.slot is not None and len(state.clicks) == 1


def _prompts(states: Sequence[_State]) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    points = np.array([[(click.x, click.y) for click in state.clicks] for state in states], dtype=np.float64)
    labels = np.array([[int(click.positive) for click in state.clicks] for state in states], dtype=np.int32)
    return points, labels


def _previous(states: Sequence[_State]) -> LogitArray | None:
    """All or none of them have an earlier answer, since they are in the same round."""
    earlier = [state.previous for state in states if state.previous is not None]
    return np.stack(earlier) if len(earlier) == len(states) else None


def interactive_seed(seed: int, image: str, identity: str) -> list[int]:
    """Of the jittered clicks of one object."""
    return seed_of(seed, "jitter", image, identity)
