"""Numbers that papers printed, to stand beside ours; none of them was measured here.

Source: UnSAMv2 (arXiv 2511.13714v1) Tables 1 to 3, and UnSAM (NeurIPS 2024) for PartImageNet and PACO. Rows marked
`oracle of 10` chose, for each object, the best of ten granularities by the ground truth; SAM-2 and SimpleClick had one
try. Rows `ten passes` pool masks of ten granularities, `one pass` do not.
"""

from __future__ import annotations

from typing import Final

from .benchmarks.records import Task
from .results import ScoreOptions
from .score_records import Published, Row

ONE, TEN, ORACLE = "one pass", "ten passes", "oracle of 10"

_WHOLE_IMAGE: Final[dict[str, dict[tuple[str, str], float]]] = {
    "coco": {
        ("SAM", ONE): 49.6, ("UnSAM 0.4M", ONE): 42.0, ("UnSAM+", ONE): 52.2, ("UnSAMv2", TEN): 74.5,
        ("UnSAMv2+", TEN): 79.1,
    },
    "lvis": {
        ("SAM", ONE): 46.1, ("UnSAM 0.4M", ONE): 40.5, ("UnSAM+", ONE): 50.8, ("UnSAMv2", TEN): 63.8,
        ("UnSAMv2+", TEN): 70.3,
    },
    "ade20k": {
        ("SAM", ONE): 45.8, ("UnSAM 0.4M", ONE): 37.5, ("UnSAM+", ONE): 45.3, ("UnSAMv2", TEN): 68.4,
        ("UnSAMv2+", TEN): 72.7,
    },
    "entityseg": {
        ("SAM", ONE): 45.9, ("UnSAM 0.4M", ONE): 41.0, ("UnSAM+", ONE): 49.8, ("UnSAMv2", TEN): 64.3,
        ("UnSAMv2+", TEN): 70.3,
    },
    "sa1b": {
        ("SAM", ONE): 60.8, ("UnSAM 0.4M", ONE): 44.5, ("UnSAM+", ONE): 64.8, ("UnSAMv2", TEN): 70.6,
        ("UnSAMv2+", TEN): 77.9,
    },
    "partimagenet": {("SAM", ONE): 28.3, ("UnSAM 0.4M", ONE): 52.7, ("UnSAM+", ONE): 46.0},
    "paco": {("SAM", ONE): 18.1, ("UnSAM 0.4M", ONE): 29.7, ("UnSAM+", ONE): 32.3},
}  # fmt: skip
"""AR1000, percent."""

_INTERACTIVE: Final[dict[str, dict[tuple[str, str], tuple[float, float, float]]]] = {
    "grabcut": {
        ("SimpleClick", ONE): (1.32, 1.48, 89.6), ("GraCo", ORACLE): (1.24, 1.32, 91.1),
        ("SAM-2", ONE): (1.48, 1.54, 76.8), ("UnSAMv2", ORACLE): (1.16, 1.30, 91.4),
        ("UnSAMv2+", ORACLE): (1.22, 1.26, 92.6),
    },
    "berkeley": {
        ("SimpleClick", ONE): (1.26, 2.44, 84.6), ("GraCo", ORACLE): (1.17, 1.63, 88.7),
        ("SAM-2", ONE): (1.29, 1.72, 80.0), ("UnSAMv2", ORACLE): (1.10, 1.60, 90.8),
        ("UnSAMv2+", ORACLE): (1.12, 1.37, 91.1),
    },
    "sbd": {
        ("SAM-2", ONE): (2.85, 6.73, 64.6), ("UnSAMv2", ORACLE): (2.75, 5.97, 74.8),
        ("UnSAMv2+", ORACLE): (2.55, 5.72, 77.3),
    },
    "davis": {
        ("SimpleClick", ONE): (2.88, 5.38, 75.6), ("GraCo", ORACLE): (2.84, 5.09, 74.0),
        ("SAM-2", ONE): (2.51, 4.50, 71.7), ("UnSAMv2", ORACLE): (2.75, 4.66, 84.7),
        ("UnSAMv2+", ORACLE): (2.36, 4.40, 85.7),
    },
    "sa1b": {
        ("SimpleClick", ONE): (4.80, 7.27, 21.9), ("GraCo", ORACLE): (2.41, 4.01, 66.2),
        ("SAM-2", ONE): (1.82, 3.76, 77.1), ("UnSAMv2", ORACLE): (2.18, 4.16, 72.4),
        ("UnSAMv2+", ORACLE): (1.87, 3.69, 78.4),
    },
    "pascalpart": {
        ("SAM-2", ONE): (9.37, 11.80, 29.0), ("UnSAMv2", ORACLE): (7.84, 9.59, 51.5),
        ("UnSAMv2+", ORACLE): (7.87, 9.67, 52.0),
    },
    "partimagenet": {
        ("SimpleClick", ONE): (6.34, 7.76, 29.2), ("GraCo", ORACLE): (4.11, 5.03, 51.7),
        ("SAM-2", ONE): (5.09, 6.64, 39.5), ("UnSAMv2", ORACLE): (4.21, 5.29, 57.1),
        ("UnSAMv2+", ORACLE): (3.75, 4.77, 60.7),
    },
}  # fmt: skip
"""NoC80, NoC90 (NoC85 for the part sets), 1-IoU in percent."""


def published_for(options: ScoreOptions) -> Published | None:
    """The papers' numbers for a benchmark; None where they have none: no paper has simulated annotators.

    Returns:
        `about` and `rows`, as they are printed and written to `scores.json`.
    """
    key = options.benchmark.published
    if key is None or options.annotators:
        return None
    rows: list[Row] = []
    tasks: tuple[Task, ...] = ("whole",) if options.masks is not None else options.benchmark.tasks
    second = f"NoC{round(100 * options.benchmark.target_iou)}"
    columns = ("AR1000", "NoC80", second, "1-IoU")
    if "whole" in tasks:
        for (method, how), value in _WHOLE_IMAGE.get(key, {}).items():
            rows.append({"method": method, "choice": how, **dict.fromkeys(columns), "AR1000": value / 100})
    if "interactive" in tasks:
        for (method, how), (noc_80, noc, first) in _INTERACTIVE.get(key, {}).items():
            row: Row = {"method": method, "choice": how, **dict.fromkeys(columns)}
            rows.append(row | {"NoC80": noc_80, second: noc, "1-IoU": first / 100})
    if not rows:
        return None
    return {
        "about": "UnSAMv2, arXiv 2511.13714v1, Tables 1 to 3, and UnSAM; `oracle of 10`: the granularity was chosen "
        "for each object by the ground truth; `ten passes`: masks of ten granularities pooled. An earlier README of "
        "the authors gives 64.8 and 68.1 for the means of AR1000 that the paper states as 68.3 and 74.1",
        "rows": rows,
    }
