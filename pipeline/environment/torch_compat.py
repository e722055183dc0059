"""The one place that makes torch usable: torchvision's missing operators, devices, threads.

A CPU build of torch beside the torchvision wheel of the package index does not import: torchvision registers shapes for
its compiled operators `nms` and `qnms`, which that wheel could not load, and raises "operator torchvision::nms does not
exist". Declaring the two schemas is enough for importing sam2 and timm; sam2's generator of masks calls `nms`, which is
written here in torch.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any


@functools.cache
def ensure_torchvision() -> None:
    """Makes `import torchvision` work; call before importing timm or sam2. Safe to call often."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    else:
        return
    import sys

    import torch

    for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define(
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    )
    _LIBRARIES.append(library)
    importlib.import_module("torchvision")
    boxes: Any = importlib.import_module("torchvision.ops.boxes")
    boxes.nms = _nms


_LIBRARIES: list[object] = []
"""Kept alive: torch forgets operators when their library object dies."""


def _nms(boxes: Any, scores: Any, iou_threshold: float) -> Any:
    """torchvision's `nms`: places of the boxes (N, 4) x0, y0, x1, y1 that overlap no better one by more, best first."""
    order = scores.argsort(descending=True, stable=True)
    overlaps = importlib.import_module("torchvision.ops.boxes").box_iou(boxes[order], boxes[order]) > iou_threshold
    left = overlaps.new_ones(len(order))
    kept = []
    for place in range(len(order)):
        if left[place]:
            kept.append(place)
            left &= ~overlaps[place]
    return order[kept]
