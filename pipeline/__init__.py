"""Images in, released mask shards out.

From Python the front door is this module: `import pipeline` loads nothing else, and each name below loads what it needs
when it is first used.

Examples:
    >>> import pipeline
    >>> dataset = pipeline.mine("photos/", "out/")  # doctest: +SKIP
    >>> for sample in dataset:  # doctest: +SKIP
    ...     print(sample.key, sample.masks().shape, sample.granularity)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .dataset.labeled_image import LabeledImage
    from .dataset.open import open_dataset
    from .dataset.reader import Dataset
    from .dataset.verify_unit import Problem
    from .errors import GrainmillError
    from .format.schema import Annotation, Sample
    from .library import build_release, label_image, mine, verify

__version__ = "0.1.0"

__all__ = [
    "Annotation",
    "Dataset",
    "GrainmillError",
    "LabeledImage",
    "Problem",
    "Sample",
    "__version__",
    "build_release",
    "label_image",
    "mine",
    "open_dataset",
    "verify",
]

_MODULES: Final = {
    "Annotation": "format.schema",
    "Dataset": "dataset.reader",
    "GrainmillError": "errors",
    "LabeledImage": "dataset.labeled_image",
    "Problem": "dataset.verify_unit",
    "Sample": "format.schema",
    "build_release": "library",
    "label_image": "library",
    "mine": "library",
    "open_dataset": "dataset.open",
    "verify": "library",
}
"""Where each name of the front door lies. None is named as a folder or module of this package: importing that would
put the module in the name's place."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
