"""Released shards in, checkpoints and scores out.

From Python the front door is this module: `import model` loads nothing else, and each name below loads what it needs
when it is first used.

Examples:
    >>> import model
    >>> predictor = model.GranularPredictor.load("run/")  # doctest: +SKIP
    >>> predictor.set_image(rgb)  # doctest: +SKIP
    >>> masks, iou, logits = predictor.predict([[120, 80]], [1], granularity=[0.1, 0.5, 1.0])  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .data.shards import LoadedSample
    from .data.torch_datasets import ShardDataset, ShardStream, decode_sample
    from .library import score, train
    from .network.load import load_for_prediction as load_model
    from .predict.image import GranularPredictor
    from .predict.mask_generator import GranularMaskGenerator
    from .predict.tree import TreePredictor
    from .predict.video import GranularVideoPredictor

__all__ = [
    "GranularMaskGenerator",
    "GranularPredictor",
    "GranularVideoPredictor",
    "LoadedSample",
    "ShardDataset",
    "ShardStream",
    "TreePredictor",
    "decode_sample",
    "load_model",
    "score",
    "train",
]

_MODULES: Final = {
    "GranularMaskGenerator": "predict.mask_generator",
    "GranularPredictor": "predict.image",
    "GranularVideoPredictor": "predict.video",
    "LoadedSample": "data.shards",
    "ShardDataset": "data.torch_datasets",
    "ShardStream": "data.torch_datasets",
    "TreePredictor": "predict.tree",
    "decode_sample": "data.torch_datasets",
    "load_model": "network.load:load_for_prediction",
    "score": "library",
    "train": "library",
}
"""Where each name of the front door lies. None is named as a folder or module of this package: importing that would
put the module in the name's place."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, there = _MODULES[name].partition(":")
    return getattr(importlib.import_module(f".{module}", __name__), there or name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
