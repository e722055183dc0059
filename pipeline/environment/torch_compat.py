"""The one place that makes torch usable: torchvision's missing operators, devices, threads.

A CPU build of torch beside the torchvision wheel of the package index does not import: torchvision registers shapes for
its compiled operators `nms` and `qnms`, which that wheel could not load, and raises "operator torchvision::nms does not
exist". Declaring the two schemas is enough for sam2 and timm, which never call them.
"""

from __future__ import annotations

import functools
import importlib


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


_LIBRARIES: list[object] = []
"""Kept alive: torch forgets operators when their library object dies."""
