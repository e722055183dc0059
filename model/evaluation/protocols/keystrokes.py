"""How long a person takes: the keystroke-level model, and what is read off a timeline of actions.

Card, Moran and Newell, "The keystroke-level model for user performance time with interactive systems", CACM 23 (1980):
a task's time is the sum of its operators, pointing P, pressing a key K, moving the hand between keyboard and mouse H,
thinking M. The mouse button by itself, B for a press or a release, is Kieras' addition ("Using the keystroke-level
model to estimate execution times", 1993). Nobody was watched for these times at this work; so `COST_VARIANTS` says
what the conclusions become with others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final, Literal, NamedTuple

Action = Literal["click", "turn", "drag", "take"]
"""A click on the image; the dial turned by one click on its track; the dial dragged and watched; another of the masks
that are offered taken."""
ACTIONS: Final[tuple[Action, ...]] = ("click", "turn", "drag", "take")
IOU_TARGETS: Final = (0.80, 0.85, 0.90)
TIMES_S: Final = (5, 10, 20)
MAX_ACTIONS: Final = 20


class Step(NamedTuple):
    """One action and what is there after it.

    `iou`: with the object; `notches`: by how many places the dial was moved.
    """

    action: Action
    iou: float
    notches: int = 0


Timeline = tuple[Step, ...]


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds of each operator, and how what is not on the image is worked."""

    think_s: float = 1.35
    """M before each action: looking and deciding. 1980; 0.6 to 1.35 in Kieras, less with practice."""
    point_s: float = 1.1
    """P with the mouse, on average; 0.8 to 1.5 by distance and size of the target. 1980."""
    button_s: float = 0.1
    """B, a press or a release. Kieras."""
    key_s: float = 0.2
    """K of an average skilled typist; 0.28 of somebody who is none. 1980."""
    home_s: float = 0.4
    """H, the hand from the mouse to the keyboard or back. 1980."""
    turned: Literal["track", "drag", "keys", "keys, one hand"] = "track"
    """How the dial is turned: a click on its track; its knob dragged; one arrow key a notch by the other hand; or by
    the hand that leaves the mouse and comes back."""
    taken: Literal["click", "key"] = "click"
    """How another mask is taken: a click on it, or one key by the other hand."""
    judge_s: float = 0.0
    """Added where masks are judged before the dial is turned or a mask is taken."""

    def seconds(self, step: Step) -> float:
        """What one action takes."""
        click_s = self.point_s + 2 * self.button_s
        if step.action == "click":
            return self.think_s + click_s
        if step.action == "take":
            return self.think_s + self.judge_s + (click_s if self.taken == "click" else self.key_s)
        drag_s = 2 * (self.point_s + self.button_s)
        keys_s = step.notches * self.key_s
        turn_s = {"track": click_s, "drag": drag_s, "keys": keys_s, "keys, one hand": keys_s + 2 * self.home_s}
        dragged = step.action == "drag" and self.turned == "track"  # a drag is one however the dial is turned else
        return self.think_s + self.judge_s + turn_s["drag" if dragged else self.turned]

    @property
    def limit_s(self) -> float:
        """Of `MAX_ACTIONS` clicks: what is not reached by then counts as reached then, whatever the policy."""
        return MAX_ACTIONS * self.seconds(Step("click", 0.0))

    def as_json(self) -> dict[str, object]:
        return asdict(self)


STANDARD: Final = Costs()
COST_VARIANTS: Final[dict[str, Costs]] = {
    "standard": STANDARD,
    "quick_thought": Costs(think_s=0.6),
    "no_thought": Costs(think_s=0.0),
    "hard_judgement": Costs(judge_s=1.35),
    "quick_hand": Costs(point_s=0.8),
    "slow_hand": Costs(point_s=1.5),
    "dial_dragged": Costs(turned="drag"),
    "dial_by_keys": Costs(turned="keys", taken="key"),
    "dial_by_keys_one_hand": Costs(turned="keys, one hand"),
}
"""For the sensitivity table: name -> costs."""


def ended(steps: Sequence[Step], target_iou: float) -> Timeline:
    """What is done of it: up to the first step that reaches the target, and no more than `MAX_ACTIONS`."""
    last = next((number for number, step in enumerate(steps, start=1) if step.iou >= target_iou), len(steps))
    return tuple(steps[: min(last, MAX_ACTIONS)])


def timeline_numbers(timeline: Timeline, costs: Costs = STANDARD) -> dict[str, float]:
    """The numbers of one object.

    Returns:
        For each target T of `IOU_TARGETS` in percent: `reached_T` (1.0 or 0.0), `actions_T` (`MAX_ACTIONS` if it is not
        reached), `seconds_T` (at most `Costs.limit_s`, which stands for not reached). For S of `TIMES_S`, `iou_Ss`: the
        IoU of what is there after so many seconds, 0 before the first answer. `iou_first`, `turns` (how often the dial
        was moved).
    """
    found: dict[str, float] = {}
    ends_s: list[float] = []
    for step in timeline:
        ends_s.append((ends_s[-1] if ends_s else 0.0) + costs.seconds(step))
    for target in IOU_TARGETS:
        place = next((number for number, step in enumerate(timeline) if step.iou >= target), None)
        name = f"{round(100 * target)}"
        found[f"reached_{name}"] = float(place is not None)
        found[f"actions_{name}"] = float(MAX_ACTIONS if place is None else place + 1)
        found[f"seconds_{name}"] = costs.limit_s if place is None else min(ends_s[place], costs.limit_s)
    found |= {f"iou_{time}s": iou_after(timeline, time, costs) for time in TIMES_S}
    found["iou_first"] = timeline[0].iou if timeline else 0.0
    found["turns"] = float(sum(step.action in ("turn", "drag") for step in timeline))
    return found


def iou_after(timeline: Timeline, seconds: float, costs: Costs = STANDARD) -> float:
    """IoU of what is there after so many seconds; what is reached at the end is held."""
    elapsed_s = iou = 0.0
    for step in timeline:
        elapsed_s += costs.seconds(step)
        if elapsed_s > seconds + 1e-9:
            break
        iou = step.iou
    return iou


def timeline_cells(timeline: Timeline) -> dict[str, str | list[float]]:
    """A timeline as cells of a row: `steps`, a letter for each action (`_LETTERS`), `ious` and `notches`."""
    return {
        "steps": "".join(_LETTERS[step.action] for step in timeline),
        "ious": [step.iou for step in timeline],
        "notches": [float(step.notches) for step in timeline],
    }


def timeline_of(steps: str, ious: Sequence[float], notches: Sequence[float]) -> Timeline:
    """The timeline that `timeline_cells` wrote."""
    return tuple(
        Step(_ACTION_OF[letter], iou, int(count)) for letter, iou, count in zip(steps, ious, notches, strict=True)
    )


_LETTERS: Final[dict[Action, str]] = {"click": "c", "turn": "t", "drag": "d", "take": "m"}
_ACTION_OF: Final[dict[str, Action]] = {letter: action for action, letter in _LETTERS.items()}
