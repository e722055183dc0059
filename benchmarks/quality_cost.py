"""What each part of the recipes costs and gives: average recall, instances and seconds, with the peers beside them.

    OMP_NUM_THREADS=1 python -m benchmarks.quality_cost --bsds500 DIR --boundaries FILE --output OUT [--images 100]

Photographs of BSDS500 val in the order of their names, and on each of them every row of the table in turn, so that a
neighbour's load falls on all: `default` with each choice of wholes and either ranking; features without and with a
boundary net, each ranked by trees and by consistency; SLIC merging and Felzenszwalb; gPb-UCM's files and people, which
have no seconds.
Seconds are processor time of one call on decoded pixels, after a first call that is not counted. Quality is `grainmill
score`'s on `bsds500`, with 95 % intervals over images; differences to the first row are paired.

OUT keeps a row for each photograph and method, so that the same command goes on after a stop. `quality_cost.json`,
`.md` and `.png` are of all.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import torch

from model.evaluation.benchmarks.bsds import read_bsds500
from model.evaluation.benchmarks.records import EvalImage
from model.evaluation.protocols.label_masks import interval, masks_answer
from model.evaluation.results import write_json
from pipeline.bench.report import environment, table
from pipeline.errors import GrainmillError

from .grid import DONE, Task, filled
from .side_by_side import METHODS, Method, Setting, net_sha256, pixels, ready, recipe

NET: Final = "boundaries"
ROWS: Final[Mapping[str, Method]] = {
    "default": Method(words="`default`", make=recipe("default")),
    "default-stable": Method(words="`default --wholes stable`", make=recipe("default", wholes="stable")),
    "default-flat": Method(words="`default --wholes flat`", make=recipe("default", wholes="flat")),
    "default-consistency": Method(
        words="`default --ranking consistency`", make=recipe("default", ranking="consistency")
    ),
    "leaves": Method(words="`leaves --backbone lite0`", make=recipe("leaves", backbone="lite0")),
    "learned-trees": Method(words="`learned --ranking trees`", make=recipe("learned", ranking="trees")),
    "learned": Method(words="`learned`", make=recipe("learned")),
    "learned-net-trees": Method(
        words="`learned --boundaries --ranking trees`",
        make=recipe("learned", boundaries=True, ranking="trees"),
        needs=NET,
    ),
    "learned-net": Method(words="`learned --boundaries`", make=recipe("learned", boundaries=True), needs=NET),
    "learned-net-1000": Method(
        words="`learned --boundaries --max-masks 1000`",
        make=recipe("learned", boundaries=True, max_masks=1000),
        needs=NET,
    ),
    **{name: METHODS[name] for name in ("people", "ucm", "slic", "felzenszwalb")},
}
MEASURES: Final = {
    "recall_1000": "AR", "recall_100": "AR100", "recall_1000_small": "small", "recall_1000_medium": "medium",
    "recall_1000_large": "large", "instance_recall": "instance recall", "instance_precision": "instance precision",
    "instances_per_image": "instances", "masks_per_image": "masks an image",
}  # fmt: skip
"""Columns of an image's answer, and their names in the table. AR is of all masks of a row, at most 1,000."""

Pairs = dict[str, list[float]]
"""Of each measure an image's sum and count."""


def measured(name: str, setting: Setting, image: EvalImage, first: EvalImage) -> dict[str, Any]:
    """One photograph by one method."""
    masks, rgb, truth = ready(ROWS[name], setting, first), pixels(image), image.load()
    begun_s = time.process_time()
    found = masks(image, rgb)
    cpu_s = time.process_time() - begun_s
    answer = masks_answer(image.name, found, truth, matching="best", what=f"{name}/{image.name}")
    columns = next(iter(answer["rows"].values()))
    pairs: Pairs = {}
    for measure in MEASURES:
        if measure in columns:
            values = np.array(columns[measure], dtype=np.float64)  # None becomes NaN
            pairs[measure] = [float(np.nansum(values)), float(np.isfinite(values).sum())]
        elif measure in answer["sums"]:
            pairs[measure] = [float(each) for each in answer["sums"][measure]]
    return {"pairs": pairs, **({"cpu_s": cpu_s} if ROWS[name].timed else {})}


def summary(name: str, rows: Sequence[dict[str, Any]], reference: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Figures of one method over the photographs, and how far it is from the reference on the same ones."""
    found: dict[str, Any] = {"method": name, "words": ROWS[name].words, "images": len(rows)}
    of, beside = (
        {
            measure: tuple(np.array([row["pairs"][measure] for row in side], dtype=np.float64).T)
            for measure in side[0]["pairs"]
        }
        for side in (rows, reference)
    )
    for measure, (sums, counts) in of.items():
        told = interval((sums, counts), seed=0)
        if told.value is None:  # none of these photographs has such a segment
            continue
        found[measure] = {"value": told.value, "low": told.low, "high": told.high}
        if measure in beside and rows is not reference:
            told = interval((sums, counts), seed=0, less=(beside[measure][0], beside[measure][1]))
            found[measure] |= {"minus_first": [told.value, told.low, told.high]}
    if ROWS[name].timed:
        spent = [row["cpu_s"] for row in rows]
        found["cpu_s"] = {"median": statistics.median(spent), "min": min(spent), "max": max(spent)}
    return found


def lines_of(found: Sequence[dict[str, Any]]) -> list[str]:
    """The table, and one of differences to the first row."""
    rows, differences = [], []
    for each in found:
        row = {"masks": each["words"]}
        for measure, word in MEASURES.items():
            told = each.get(measure)
            digits = 1 if measure.endswith("per_image") else 3
            row[word] = "" if told is None else f"{told['value']:.{digits}f}"
            if told is not None and measure in ("recall_1000", "instance_recall", "instance_precision"):
                row[word] += f" [{told['low']:.3f}, {told['high']:.3f}]"
        spent = each.get("cpu_s")
        row["CPU s an image"] = "" if spent is None else "{median:.2f} ({min:.2f} to {max:.2f})".format(**spent)
        rows.append(row)
        differences.append({"masks": each["words"]} | {
            word: "{:+.3f} [{:+.3f}, {:+.3f}]".format(*each[measure]["minus_first"])
            for measure, word in list(MEASURES.items())[:-2]
            if "minus_first" in each.get(measure, {})
        })  # fmt: skip
    whole = [each for each in differences if len(each) == len(MEASURES) - 1]
    return [*table(rows), "", f"Minus {found[0]['words']}, paired:", "", *(table(whole) if whole else ())]


def draw(found: Sequence[dict[str, Any]], path: Path) -> None:
    """Average recall and instances against seconds; what has no seconds is a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(14, 5), layout="constrained")
    markers, colours = "osD^vP*XhpdH8", pyplot.get_cmap("tab20").colors
    for axis, measure, word in zip(axes, ("recall_1000", "instance_recall"), ("AR of all masks", "instance recall"),
                                   strict=True):  # fmt: skip
        for number, each in enumerate(found):
            told = each.get(measure)
            if told is None:
                continue
            name = f"{each['words']} ({each['masks_per_image']['value']:,.0f})"
            if "cpu_s" not in each:
                axis.axhline(told["value"], color="0.6", linestyle="--", linewidth=1)
                axis.text(0.01, told["value"], name, color="0.4", va="bottom", fontsize=8,
                          transform=axis.get_yaxis_transform())  # fmt: skip
                continue
            axis.plot(each["cpu_s"]["median"], told["value"], markers[number % len(markers)],
                      color=colours[number % len(colours)], label=name, markersize=8)  # fmt: skip
        axis.set(xlabel="processor seconds an image of 481 x 321, one thread", ylabel=word)
        axis.set_xlim(left=0)
        axis.margins(x=0.1, y=0.1)
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8,
                  title="masks (how many an image)")  # fmt: skip
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bsds500", type=Path, required=True, help="The benchmark's folder.")
    parser.add_argument("--boundaries", required=True, help="A file of `grainmill boundaries` on lite0.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--images", type=int, default=100, help="Default: %(default)s, all.")
    parser.add_argument("--method", action="append", choices=ROWS, help="Default: all. The first is compared with.")
    options = parser.parse_args(argv)
    try:
        return measured_rows(options)
    except GrainmillError as error:
        print(f"benchmarks.quality_cost: {error}", file=sys.stderr)
        return error.exit_code


def measured_rows(options: argparse.Namespace) -> int:
    """Fills the rows and writes the report.

    Raises:
        InputError: no such benchmark or file.
    """
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    setting = Setting(
        bsds500=options.bsds500, output=options.output, boundaries=options.boundaries, unsamv2=None, python="",
        flags="", limit_s=0.0,
    )  # fmt: skip
    images, load = read_bsds500(options.bsds500, "val").images[: options.images], os.getloadavg()
    names = options.method or list(ROWS)
    nets = {name: net_sha256(options.boundaries) if ROWS[name].needs == NET else None for name in names}
    tasks = [
        Task(
            name=f"{image.path.stem}.{name}",
            asked={"method": name, "boundaries": nets[name]},
            work=functools.partial(measured, name, setting, image, images[0]),
        )
        for image in images
        for name in names
    ]
    rows = filled(tasks, options.output / "rows", jobs=0)
    if any(row["state"] != DONE for row in rows):
        return 1
    of = {name: [row for row in rows if row["asked"]["method"] == name] for name in names}
    found = [summary(name, of[name], of[names[0]]) for name in names]
    write_json(options.output / "quality_cost.json", {"methods": found, "environment": environment(load)})
    text = "\n".join(lines_of(found)) + "\n"
    (options.output / "quality_cost.md").write_text(text, encoding="utf-8")
    draw(found, options.output / "quality_cost.png")
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
