"""From rows of simulated annotators to means with intervals, by policy, by group of objects and by what actions cost.

Names, each beside its paired difference from `clicks`, `POLICY - clicks.METRIC`:
`annotators.POLICY.METRIC`; `annotators.GROUP.POLICY.METRIC` for the groups of `groups_of`; and
`annotators.cost_VARIANT.POLICY.seconds_T` for `keystrokes.COST_VARIANTS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, cast

import numpy as np

from ..bootstrap import Interval, bootstrap
from ..score_records import Curves, Row
from .keystrokes import COST_VARIANTS, IOU_TARGETS, STANDARD, Timeline, iou_after, timeline_numbers, timeline_of
from .metrics import AREA_RANGES_PX, FloatArray

BASE: Final = "clicks"
"""What all others are compared with."""
BEST_SINGLE: Final = "best_single"
"""`constant:G` with the least mean time to IoU 0.80 over these very objects."""
DIFFERENCES: Final = (("dial", BEST_SINGLE), ("dial_label", BEST_SINGLE), ("dial", "three_masks"))
"""Further paired differences."""
FINE: Final = 0.4
COARSE: Final = 0.7
"""Labels g below the one are fine, from the other on coarse."""
SIZES: Final = ("small", "medium", "large")
GRANULARITY_GROUPS: Final = ("fine", "middle", "coarse", "without_g")

_BY_GROUP: Final = ("actions_80", "seconds_80", "seconds_85", "seconds_90", "reached_80", "reached_90", "iou_10s")
_SECONDS: Final = tuple(f"seconds_{round(100 * target)}" for target in IOU_TARGETS)


def groups_of(row: Row) -> tuple[str, str]:
    """Size of an object by COCO's areas, and granularity by its label."""
    area_px, label = cast(float, row["area_px"]), cast("float | None", row.get("label"))
    size = next((name for name in SIZES[:2] if area_px < AREA_RANGES_PX[name][1]), SIZES[2])
    if label is None:
        return size, "without_g"
    return size, "fine" if label < FINE else "coarse" if label >= COARSE else "middle"


def annotator_metrics(rows: Sequence[Row], *, resamples: int, seed: int) -> dict[str, Interval]:
    """The numbers of `scores.json`, named as the module says. A group that holds all objects is not told."""
    columns = _columns(rows)
    best = _best_single(columns)
    if best is not None:
        columns |= {f"{BEST_SINGLE}.{key}": columns[f"{best}.{key}"] for key in _keys(columns, best)}
    images = np.array([str(row["image"]) for row in rows])
    found = _intervals("annotators", images, columns, resamples, seed)
    groups = [groups_of(row) for row in rows]
    for name in (*SIZES, *GRANULARITY_GROUPS):
        inside = np.array([name in group for group in groups])
        if inside.any() and not inside.all():
            kept = {
                key: values[inside]
                for key, values in columns.items()
                if key.rpartition(".")[2] in _BY_GROUP and not key.startswith("constant:")
            }
            found |= _intervals(f"annotators.{name}", images[inside], kept, resamples, seed)
    for name, costs in COST_VARIANTS.items():
        if costs is STANDARD:
            continue
        priced = [_priced(row, name) for row in rows]
        found |= _intervals(f"annotators.cost_{name}", images, _columns(priced), resamples, seed)
    return found


def _priced(row: Row, variant: str) -> Row:
    """A row's times at other costs."""
    cells: Row = {}
    for policy, timeline in timelines(row).items():
        numbers = timeline_numbers(timeline, COST_VARIANTS[variant])
        cells |= {f"{policy}.{name}": numbers[name] for name in _SECONDS}
    return cells


def timelines(row: Row) -> dict[str, Timeline]:
    """Policy -> what was done with the object."""
    found = {}
    for name, steps in row.items():
        if name.endswith(".steps") and isinstance(steps, str):
            policy = name.removesuffix(".steps")
            ious, notches = (cast("list[float]", row[f"{policy}.{key}"]) for key in ("ious", "notches"))
            found[policy] = timeline_of(steps, ious, notches)
    return found


def _columns(rows: Sequence[Row]) -> dict[str, FloatArray]:
    """`POLICY.METRIC` -> one number a row, NaN where it has none."""
    names = dict.fromkeys(
        name for row in rows for name, value in row.items() if "." in name and isinstance(value, float | int)
    )
    return {name: np.array([row.get(name, np.nan) for row in rows], dtype=np.float64) for name in names}


def _keys(columns: Mapping[str, FloatArray], policy: str) -> list[str]:
    return [name.removeprefix(f"{policy}.") for name in columns if name.rpartition(".")[0] == policy]


def _best_single(columns: Mapping[str, FloatArray]) -> str | None:
    means = {
        name.rpartition(".")[0]: float(np.nanmean(values))
        for name, values in columns.items()
        if name.startswith("constant:") and name.endswith(".seconds_80")
    }
    return min(means, key=lambda name: means[name]) if means else None


def _intervals(
    prefix: str, images: np.ndarray, columns: Mapping[str, FloatArray], resamples: int, seed: int
) -> dict[str, Interval]:
    policies = dict.fromkeys(name.rpartition(".")[0] for name in columns)
    compared = [(policy, BASE) for policy in policies if policy != BASE and not policy.startswith("constant:")]
    pairs = [
        (f"{a}.{key}", f"{b}.{key}")
        for a, b in (*compared, *DIFFERENCES)
        for key in _keys(columns, a)
        if f"{b}.{key}" in columns
    ]
    intervals = bootstrap(images, columns, resamples=resamples, seed=seed, pairs=pairs)
    return {f"{prefix}.{_told(name)}": interval for name, interval in intervals.items()}


def _told(name: str) -> str:
    """A.METRIC - B.METRIC as A - B.METRIC."""
    a, minus, b = name.partition(" - ")
    return f"{a.rpartition('.')[0]} - {b}" if minus else name


def annotator_curves(rows: Sequence[Row]) -> Curves:
    """`annotators_iou` and `annotators_reached`: `seconds`, and for each policy the mean IoU of what is there after so
    many seconds, and the share of objects that have reached IoU 0.80 by then."""
    if not rows:
        return {}
    times = np.linspace(0.0, STANDARD.limit_s, 41).tolist()
    of_policy: dict[str, list[Timeline]] = {}
    for row in rows:
        for policy, timeline in timelines(row).items():
            of_policy.setdefault(policy, []).append(timeline)
    every = {policy: found for policy, found in of_policy.items() if len(found) == len(rows)}
    iou = {p: [float(np.mean([iou_after(each, t) for each in found])) for t in times] for p, found in every.items()}
    ends = {p: [timeline_numbers(each) for each in found] for p, found in every.items()}
    reached = {
        policy: [float(np.mean([each["reached_80"] and each["seconds_80"] <= t for each in found])) for t in times]
        for policy, found in ends.items()
    }
    return {"annotators_iou": {"seconds": times, **iou}, "annotators_reached": {"seconds": times, **reached}}
