"""A model's scores for people: tables of numbers with intervals, what their columns mean, and what to know of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from .benchmarks.records import Benchmark
from .bootstrap import Interval
from .protocols.controls import JITTER_RADIUS
from .protocols.options import ModelOptions
from .protocols.run import ModelScores
from .results import Metric
from .score_records import Cell, Row

_CLICK_CELLS: Final = {
    "iou_1": "1-IoU", "noc_80": "NoC80", "noc_85": "NoC85", "noc_90": "NoC90", "nof_85": "NoF85", "nof_90": "NoF90",
}  # fmt: skip
_WHOLE_CELLS: Final = {
    "ar_1000": "AR1000", "ar_100": "AR100", "ar_10": "AR10", "ar_1": "AR1", "ar_1000_small": "S",
    "ar_1000_medium": "M", "ar_1000_large": "L",
}  # fmt: skip
_SWEEP_CELLS: Final = {
    "spearman": "Spearman(g, area)", "monotone": "monotone", "violation_rate": "falling steps", "nesting": "nested",
    "adjacent_iou": "adjacent IoU", "spread": "spread", "end_iou": "IoU(M(.1), M(1))", "distinct_masks": "masks",
    "best_iou": "best IoU", "label_error": "|best g - label|",
}  # fmt: skip
_PAIR_CELLS: Final = {"pair_success_50": "success@0.5", "pair_success_70": "success@0.7", "pair_order": "order right"}
_VIDEO_CELLS: Final = {"jf": "J&F", "j": "J", "f": "F", "drift": "area drift"}
_WITH_INTERVAL: Final = ("iou_1", "ar_1000", "spearman", "pair_success_50", "jf")

_MEANING: Final = {
    "oracle": "g of ten by ground truth", "oracle_plain": "best of ten g, for each number",
    "label": "g of the protocol", "dial": "the dial", "everything": "all masks, no clicks",
    "pooled": "ten g pooled", "own": "SAM-2's own mask, no g",
    "ignored": "control: one g for all", "shuffled": "control: g shuffled",
    "best_of_3": "control: best of its 3 masks", "best_of_10_clicks": "control: best of 10 near clicks",
    "ten_grids": "control: ten grids, one g", "shuffled_pass": "control: g at random",
    "constant": "control: best single g", "between": "control: mask between both",
    "held": "control: first mask held still",
}  # fmt: skip
"""In the order in which tables show them; `fixed:G` and `single:G` come after `label`."""


def as_metric(interval: Interval) -> Metric:
    return Metric(value=interval.value, low=interval.low, high=interval.high)


def meaning(column: str) -> str:
    """A column in words."""
    if column in _MEANING:
        return _MEANING[column]
    if column.endswith("_plain"):
        return f"{meaning(column.removesuffix('_plain'))}, for each number"
    kind, _, granularity = column.partition(":")
    return f"one pass, g = {granularity}" if kind == "single" else f"g = {granularity} for all"


def _place(column: str) -> tuple[float, str]:
    plain = column.removesuffix("_plain")
    names = list(_MEANING)
    place = names.index(column) if column in names else names.index(plain) + 0.5 if plain in names else 2.5
    return place, column


def tables_of(found: ModelScores, settings: ModelOptions) -> dict[str, list[Row]]:
    """Title -> rows: clicks, sweep, pairs, recall by subset, video, and the paired differences."""
    subsets = list(dict.fromkeys(str(row["view"]) for row in found.rows if row["task"] == "whole"))
    clicked = "everything" not in _columns(found, f"whole.{subsets[0]}") if subsets else True
    grid = f"{settings.points_per_side} x {settings.points_per_side} clicks a pass" if clicked else "as mined"
    tables: dict[str, list[Row]] = {
        f"clicks until IoU {settings.target_iou:.2f}, at most {settings.max_clicks}": _table(
            found, "interactive", _CLICK_CELLS
        ),
        "one click, g from 0.10 to 1.00": _table(found, "sweep", _SWEEP_CELLS),
        f"the same click on part and whole ({found.counts['pairs_clicked']} of {found.counts['pairs']} pairs)": _table(
            found, "pairs", _PAIR_CELLS
        ),
        f"whole images, {grid}": _whole_table(found, subsets[0]) if subsets else [],
        "AR1000 by view of the ground truth": _subset_table(found, subsets) if len(subsets) > 1 else [],
        "video, one click on the first frame": _table(found, "video", _VIDEO_CELLS),
        "differences, paired over images": [
            {"difference": name, "value": str(as_metric(interval))}
            for name, interval in found.metrics.items()
            if " - " in name and name.rsplit(".", 1)[1] in _WITH_INTERVAL
            and not any(name.startswith(f"whole.{subset}.") for subset in subsets[1:])
        ],
    }  # fmt: skip
    return {
        title: [{name: "n/a" if value is None else value for name, value in row.items()} for row in rows]
        for title, rows in tables.items()
        if rows
    }


def _columns(found: ModelScores, prefix: str) -> dict[str, dict[str, Interval]]:
    """Column -> metric -> number, of the names `PREFIX.COLUMN.METRIC`, in the tables' order."""
    columns: dict[str, dict[str, Interval]] = {}
    for name, interval in found.metrics.items():
        if name.startswith(f"{prefix}.") and " - " not in name:
            column, _, metric = name.removeprefix(f"{prefix}.").rpartition(".")
            if column and not column.startswith("constant:"):
                columns.setdefault(column, {})[metric] = interval
    return dict(sorted(columns.items(), key=lambda each: _place(each[0])))


def _table(found: ModelScores, prefix: str, cells: Mapping[str, str]) -> list[Row]:
    """One row for each column, the numbers named by `cells`."""
    columns = _columns(found, prefix)
    present = {metric: head for metric, head in cells.items() if any(metric in each for each in columns.values())}
    return [
        {
            "column": column,
            "meaning": meaning(column),
            **{head: _cell(numbers.get(metric), metric) for metric, head in present.items()},
            "n": max(numbers[metric].objects for metric in present if metric in numbers),
        }
        for column, numbers in columns.items()
        if any(metric in numbers for metric in present)
    ]


def _whole_table(found: ModelScores, subset: str) -> list[Row]:
    columns = _columns(found, f"whole.{subset}")
    rows: list[Row] = []
    for column, numbers in columns.items():
        if column.endswith("_raw"):
            continue
        masks = found.metrics.get(f"whole.{column}.masks_per_image")
        with_copies = columns.get(f"{column}_raw", {})
        rows.append(
            {
                "column": column,
                "meaning": meaning(column),
                **{head: _cell(numbers.get(metric), metric) for metric, head in _WHOLE_CELLS.items()},
                "masks/image": None if masks is None else masks.value,
                "AR1000, copies kept": _cell(with_copies.get("ar_1000"), ""),
                "AR100, copies kept": _cell(with_copies.get("ar_100"), ""),
            }
        )
    return rows


def _subset_table(found: ModelScores, subsets: Sequence[str]) -> list[Row]:
    return [
        {
            "column": column,
            "meaning": meaning(column),
            **{subset: _cell(found.metrics.get(f"whole.{subset}.{column}.ar_1000"), "") for subset in subsets},
        }
        for column in _columns(found, f"whole.{subsets[0]}")
        if not column.endswith("_raw")
    ]


def _cell(interval: Interval | None, metric: str) -> Cell:
    if interval is None:
        return None
    return str(as_metric(interval)) if metric in _WITH_INTERVAL else interval.value


def notes_of(benchmark: Benchmark, settings: ModelOptions, found: ModelScores) -> list[str]:
    """What a reader must know of the numbers."""
    notes = [
        "oracle chose g with the ground truth; best of 3 and best of 10 near clicks have the same luck without a dial",
        f"controls without a dial use g = {settings.constant}; near clicks lie within {JITTER_RADIUS} of the inscribed "
        f"radius of the first, seed {settings.seed}",
    ]
    without = found.counts["clicked_objects_without_label"]
    if settings.label and without == found.counts["clicked_objects"] > 0:
        notes.append("label: n/a, no clicked object of this benchmark has a g of its own")
    elif without and benchmark.label_rule == "containment":
        notes.append(f"{without} clicked objects are neither part nor whole: no label, left out of the label columns")
    return notes
