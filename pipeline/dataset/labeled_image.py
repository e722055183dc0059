"""An image and its masks, in memory: what `label_image` makes, and what a run or a release gives sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..format import rle as rle_codec
from ..format.rle import Rle
from ..format.schema import Annotation, Sample
from ..sources.images import decode_rgb

Which = Sequence[int] | NDArray[np.integer[Any]] | NDArray[np.bool_]
"""Some of an image's masks, by their numbers or by a (n,) bool array."""


def decode_masks(rles: Sequence[Rle], which: Which | None, height: int, width: int) -> NDArray[np.bool_]:
    """(m, H, W) bool: the masks that `which` names of n; None: all of them.

    Raises:
        IndexError: there are fewer.
    """
    numbers = np.arange(len(rles))
    if which is not None:
        numbers = numbers[np.asarray(which) if len(which) else []]
    found = np.zeros((len(numbers), height, width), dtype=np.bool_)
    for place, number in enumerate(numbers):
        found[place] = rle_codec.decode(rles[int(number)])
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class LabeledImage:
    """One image with its masks, n of them, in the order of the format: each instance before its parts.

    Pixels are decoded when they are first asked for.
    """

    annotations: tuple[Annotation, ...]
    """The masks as records: run lengths, box, area, granularity, instance, parent, origin."""
    height: int
    """Pixels, upright."""
    width: int
    pixels: bytes | NDArray[np.uint8] | None
    """(H, W, 3) uint8 RGB; or the image file's bytes, not decoded yet; None: mined with `--no-images`."""
    record: Sample | None = None
    """What a shard says of it: key, source, licence; None for an image that was labelled in memory."""

    def __len__(self) -> int:
        return len(self.annotations)

    @property
    def key(self) -> str:
        """Its name in the shards; empty for an image that was labelled in memory."""
        return "" if self.record is None else self.record.key

    @cached_property
    def image(self) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB, upright.

        Raises:
            InputError: it was mined with `--no-images`.
            SampleFailureError: the image's bytes are damaged.
        """
        if self.pixels is None:
            raise InputError(f"{self.key}: mined with --no-images, the shard holds no image")
        if isinstance(self.pixels, bytes):
            return decode_rgb(self.pixels, max_pixels=self.height * self.width)
        return self.pixels

    def masks(self, which: Which | None = None) -> NDArray[np.bool_]:
        """(m, H, W) bool: the masks of some numbers (or where a (n,) bool array is true), or all n; a byte a pixel."""
        return decode_masks([mask.segmentation for mask in self.annotations], which, self.height, self.width)

    @property
    def granularity(self) -> NDArray[np.float64]:
        """(n,) in [0.1, 1.0]; 1.0 is an instance."""
        return np.array([mask.granularity for mask in self.annotations], dtype=np.float64)

    @property
    def area_px(self) -> NDArray[np.int64]:
        """(n,) pixels."""
        return np.array([mask.area for mask in self.annotations], dtype=np.int64)

    @property
    def instance_id(self) -> NDArray[np.int64]:
        """(n,) number of the instance that a mask belongs to; its own number if it is one."""
        return np.array([mask.instance_id for mask in self.annotations], dtype=np.int64)

    @property
    def parent_id(self) -> NDArray[np.int64]:
        """(n,) number of the smallest mask of the instance around a mask; -1 for an instance."""
        parents = [-1 if mask.parent_id is None else mask.parent_id for mask in self.annotations]
        return np.array(parents, dtype=np.int64)
