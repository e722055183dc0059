"""Tables of the simulated annotators for people, and what to know of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .bootstrap import Interval
from .protocols.annotator_numbers import BASE, BEST_SINGLE, COARSE, FINE, GRANULARITY_GROUPS, SIZES
from .protocols.keystrokes import COST_VARIANTS, IOU_TARGETS, MAX_ACTIONS, STANDARD, TIMES_S
from .protocols.options import ModelOptions
from .protocols.run import ModelScores
from .results import Metric
from .score_records import Row

_MEANING: Final = {
    "clicks": "clicks alone, one g for all",
    BEST_SINGLE: "the same at the best single g, chosen afterwards",
    "own": "clicks, SAM-2's own mask",
    "three_masks": "SAM-2's three masks, then clicks",
    "dial": "a click, the dial by size, then clicks",
    "drag": "a click, the dial dragged and watched, then clicks",
    "dial_label": "as dial, from the label's g",
    "oracle": "bound of the first mask: the best of ten g, for nothing",
    "oracle_run": "bound to IoU 0.90: the best run of ten g",
}
"""In the order of the tables; `fixed:G` stands after `clicks`."""
_GROUPS: Final = {
    "small": "below 32 x 32 px", "medium": "32 x 32 to 96 x 96 px", "large": "from 96 x 96 px",
    "fine": f"label g below {FINE}", "middle": "between", "coarse": f"label g from {COARSE}",
    "without_g": "no label g",
}  # fmt: skip
_COSTS: Final = {
    "standard": "as stated", "quick_thought": "M 0.6 s", "no_thought": "M 0",
    "hard_judgement": "M twice where masks are judged",
    "quick_hand": "P 0.8 s", "slow_hand": "P 1.5 s", "dial_dragged": "the dial's knob dragged",
    "dial_by_keys": "dial and masks by keys, other hand", "dial_by_keys_one_hand": "dial by keys, same hand",
}  # fmt: skip


def annotator_tables(found: ModelScores, settings: ModelOptions) -> dict[str, list[Row]]:
    """Title -> rows: every policy, each against `clicks`, by group of objects, and at other costs."""
    metrics = found.metrics
    away = unavailable(found, settings)
    shown = _policies(metrics)
    return {
        f"annotators, at most {MAX_ACTIONS} actions; seconds count {STANDARD.limit_s:.0f} where not reached": [
            *(_policy_row(name, metrics) for name in shown),
            *(_absent_row(name, reason, metrics) for name, reason in away.items()),
        ],
        "less than clicks, paired over images (seconds below 0: time is saved)": [
            _difference_row(f"annotators.{name} - {base}", metrics)
            for name in shown
            for base in (BASE, BEST_SINGLE, "three_masks")
            if f"annotators.{name} - {base}.seconds_80" in metrics
        ],
        "the dial less clicks, by size and by granularity": [
            {
                "group": name,
                "objects": metrics[f"annotators.{name}.{BASE}.seconds_80"].objects,
                "meaning": _GROUPS[name],
                "clicks: s to 0.80": _number(metrics, f"annotators.{name}.{BASE}.seconds_80"),
                **_differences(f"annotators.{name}.", metrics),
            }
            for name in (*SIZES, *GRANULARITY_GROUPS)
            if f"annotators.{name}.dial.seconds_80" in metrics
        ],
        "less than clicks at other costs, seconds to IoU 0.80": [
            {
                "cost": name,
                "meaning": _COSTS[name],
                **{
                    policy: _told(metrics, f"annotators.{_cost_prefix(name)}{policy} - {BASE}.seconds_80")
                    for policy in ("dial", "drag", "dial_label", "three_masks", "oracle")
                    if f"annotators.{policy} - {BASE}.seconds_80" in metrics
                },
            }
            for name in COST_VARIANTS
            if len(shown) > 1
        ],
    }


def unavailable(found: ModelScores, settings: ModelOptions) -> dict[str, str]:
    """Policies of which there is no number, and why."""
    assert settings.annotators is not None
    reasons = {}
    if "annotators.dial.seconds_80" not in found.metrics:
        reasons["dial"] = "the model has no dial"
    elif "annotators.dial_label.seconds_80" not in found.metrics:
        asked = "no clicked object has a label g" if settings.label else "`--granularity label` was not asked for"
        reasons["dial_label"] = asked
    if "annotators.three_masks.seconds_80" not in found.metrics:
        reasons["three_masks"] = (
            "the model gives one mask for a click"
            if settings.annotators.own_masks
            else "nothing trained SAM-2's own masks in this model"
        )
    return reasons


def annotator_notes(settings: ModelOptions) -> list[str]:
    """What a reader must know of the numbers."""
    asked = settings.annotators
    assert asked is not None
    return [
        f"nobody was watched: seconds are those of the keystroke-level model (M {STANDARD.think_s}, "
        f"P {STANDARD.point_s}, B {STANDARD.button_s} s; a click is M P B B = {STANDARD.limit_s / MAX_ACTIONS:.2f} s)",
        f"areas are judged with an error of {100 * asked.area_error:.0f} %, the dial is turned at most "
        f"{asked.max_turns} times, clicks fall within {asked.click_radius} of the way from an error's middle to its "
        f"border; seed {settings.seed}",
        f"clicks and dial begin at g = {settings.constant}; whoever reaches IoU {asked.target_iou:.2f} stops; nobody "
        "takes a click back; oracles know the truth: bounds, nobody works like them",
        "each interval is of one comparison: of twenty, one leaves 0 by chance",
    ]


def _policies(metrics: Mapping[str, Interval]) -> list[str]:
    """Of the table, in its order."""
    names = {
        name.split(".", 1)[1].rpartition(".")[0]
        for name in metrics
        if name.startswith("annotators.") and name.endswith(".seconds_80") and " - " not in name
    }
    first = [name for name in names if name in _MEANING or name.startswith("fixed:")]
    order = list(_MEANING)
    return sorted(first, key=lambda name: (order.index(name) if name in _MEANING else 0.5, name))


def _meaning(policy: str) -> str:
    return _MEANING.get(policy) or f"clicks alone, g = {policy.partition(':')[2]}"


def _policy_row(policy: str, metrics: Mapping[str, Interval]) -> Row:
    at = f"annotators.{policy}."
    percents = [round(100 * target) for target in IOU_TARGETS]
    return {
        "policy": policy,
        "meaning": _meaning(policy),
        **{f"s to {each / 100:.2f}": _told(metrics, f"{at}seconds_{each}") for each in percents},
        **{f"actions to {each / 100:.2f}": _number(metrics, f"{at}actions_{each}") for each in percents},
        **{f"reach {each / 100:.2f}": _number(metrics, f"{at}reached_{each}") for each in percents},
        **{f"IoU at {time} s": _number(metrics, f"{at}iou_{time}s") for time in TIMES_S},
        "turns": _number(metrics, f"{at}turns"),
        "n": metrics[f"{at}seconds_80"].objects,
    }


def _absent_row(policy: str, reason: str, metrics: Mapping[str, Interval]) -> Row:
    like = _policy_row(BASE, metrics)
    return {**dict.fromkeys(like, "n/a"), "policy": policy, "meaning": f"not available: {reason}"}


def _difference_row(prefix: str, metrics: Mapping[str, Interval]) -> Row:
    return {
        "policy": prefix.removeprefix("annotators."),
        **{f"s to {t:.2f}": _told(metrics, f"{prefix}.seconds_{round(100 * t)}") for t in IOU_TARGETS},
        "actions to 0.90": _told(metrics, f"{prefix}.actions_90"),
        **{f"IoU at {time} s": _told(metrics, f"{prefix}.iou_{time}s") for time in TIMES_S},
        "to 0.80 it is": verdict(metrics[f"{prefix}.seconds_80"]),
        "at 10 s it is": verdict(metrics[f"{prefix}.iou_10s"], above="better", below="worse"),
    }


def _differences(prefix: str, metrics: Mapping[str, Interval]) -> Row:
    at = f"{prefix}dial - {BASE}."
    return {
        **{f"dial: s to {t:.2f}": _told(metrics, f"{at}seconds_{round(100 * t)}") for t in IOU_TARGETS},
        "dial: IoU at 10 s": _told(metrics, f"{at}iou_10s"),
        "to 0.80 it is": verdict(metrics[f"{at}seconds_80"]),
        "at 10 s it is": verdict(metrics[f"{at}iou_10s"], above="better", below="worse"),
    }


def verdict(less: Interval, *, above: str = "slower", below: str = "faster") -> str:
    """What the interval of a difference says, and no more: the words are for above 0 and below 0."""
    return below if less.high < 0 else above if less.low > 0 else "not shown to differ"


def _cost_prefix(name: str) -> str:
    return "" if COST_VARIANTS[name] is STANDARD else f"cost_{name}."


def _number(metrics: Mapping[str, Interval], name: str) -> float:
    return round(metrics[name].value, 3)


def _told(metrics: Mapping[str, Interval], name: str) -> str:
    found = metrics[name]
    if "seconds" in name or "actions" in name:
        return f"{found.value:.1f} [{found.low:.1f}, {found.high:.1f}]"
    return str(Metric(value=found.value, low=found.low, high=found.high))
