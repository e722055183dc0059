"""Plots of what was scored, as PNG files beside `scores.json`; needs matplotlib, which the extra `eval` brings.

| curve | axes | drawn |
|---|---|---|
| `recall_by_masks` | `NAME.masks`, `NAME.recall` | AR against masks per image (logarithmic), one line for each name |
| `granularity` | `edges`, one list of percent for each name | share of masks by granularity bin |
| `iou_by_granularity` | `granularity`, `part`, `whole`, `object` | IoU with each at the same click |
| `area_by_granularity` | `granularity`, `median`, `low`, `high` | the mask's share of the image, with quartiles |
| `noc` | `clicks`, one list for each name | mean IoU after so many clicks |
| `annotators_iou`, `annotators_reached` | `seconds`, one list for each policy | mean IoU; share at IoU 0.80 |
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = Mapping[str, list[float]]

MISSING: Final = (
    "plots were not drawn: matplotlib is not installed; `pip install 'grainmill[eval]'`, then run the same command "
    "again"
)


def draw(curves: Mapping[str, Curve], folder: Path, *, title: str) -> list[Path]:
    """Draws every curve that it knows.

    Args:
        curves: as in the module's table; others are passed over.
        folder: where the files go, made if need be.
        title: above each plot.

    Returns:
        The files; none without matplotlib.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return []
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    files = []
    for name, curve in curves.items():
        if name not in _DRAWERS:
            continue
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.subplots()
        _DRAWERS[name](axes, curve)
        axes.set_title(title, fontsize=9)
        axes.grid(alpha=0.3)
        folder.mkdir(parents=True, exist_ok=True)
        files.append(folder / f"{name}.png")
        # Without the date and the version, equal numbers give equal bytes.
        figure.savefig(files[-1], dpi=120, metadata={"Software": None})
    return files


def _recall_by_masks(axes: Axes, curve: Curve) -> None:
    for name in [key.removesuffix(".recall") for key in curve if key.endswith(".recall")]:
        axes.plot(curve[f"{name}.masks"], curve[f"{name}.recall"], marker=".", label=name)
    axes.set(xscale="log", xlabel="masks per image", ylabel="average recall, IoU 0.50 to 0.95", ylim=(0, 1))
    axes.legend(fontsize=8)


def _granularity(axes: Axes, curve: Curve) -> None:
    edges = curve["edges"]
    names = [name for name in curve if name != "edges"]
    width = 0.8 * (edges[1] - edges[0]) / len(names)
    for number, name in enumerate(names):
        places = [edge + 0.1 * (edges[1] - edges[0]) + number * width for edge in edges[:-1]]
        axes.bar(places, curve[name], width=width, align="edge", label=name)
    axes.set(xlabel="granularity g", ylabel="masks, percent", xticks=edges)
    axes.legend(fontsize=8)


def _iou_by_granularity(axes: Axes, curve: Curve) -> None:
    for name in curve:
        if name != "granularity":
            axes.plot(curve["granularity"], curve[name], marker=".", label=name)
    axes.set(xlabel="granularity g", ylabel="mean IoU at the same click", ylim=(0, 1))
    axes.legend(fontsize=8)


def _area_by_granularity(axes: Axes, curve: Curve) -> None:
    axes.plot(curve["granularity"], curve["median"], marker=".", label="median")
    axes.fill_between(curve["granularity"], curve["low"], curve["high"], alpha=0.25, label="quartiles")
    axes.set(xlabel="granularity g", ylabel="mask area, share of the image", ylim=(0, None))
    axes.legend(fontsize=8)


def _noc(axes: Axes, curve: Curve) -> None:
    for name in curve:
        if name != "clicks":
            axes.plot(curve["clicks"], curve[name], marker=".", label=name)
    axes.set(xlabel="clicks", ylabel="mean IoU", ylim=(0, 1))
    axes.legend(fontsize=8)


def _annotators_iou(axes: Axes, curve: Curve) -> None:
    _by_seconds(axes, curve, "mean IoU")


def _annotators_reached(axes: Axes, curve: Curve) -> None:
    _by_seconds(axes, curve, "share of objects at IoU 0.80")


def _by_seconds(axes: Axes, curve: Curve, what: str) -> None:
    for name in curve:
        if name != "seconds":
            bound = name.startswith("oracle")
            axes.step(curve["seconds"], curve[name], where="post", label=name, linestyle="--" if bound else "-")
    axes.set(xlabel="seconds of a simulated annotator", ylabel=what, ylim=(0, 1))
    axes.legend(fontsize=8)


_DRAWERS: Final[dict[str, Callable[[Axes, Curve], None]]] = {
    "recall_by_masks": _recall_by_masks,
    "granularity": _granularity,
    "iou_by_granularity": _iou_by_granularity,
    "area_by_granularity": _area_by_granularity,
    "noc": _noc,
    "annotators_iou": _annotators_iou,
    "annotators_reached": _annotators_reached,
}
