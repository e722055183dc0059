"""Augmentation: which square view of an image is seen, and which masks stay true in it.

A view is one map from its pixels to the source's pixels. Image, masks and clicks all go through that map, so a click on
a mask in the source is on that mask in the view, whatever the augmentation. An instance of which a view keeps less than
0.9 is dropped with its parts from that view, because what is left of it would no longer be the whole that g = 1.0
means. Every random choice comes from the numbers that are handed in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import cv2
import numba
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError

from .run_lengths import RunLengths
from .shards import LoadedSample

KEPT_FRACTION: Final = 0.9
"""Of an instance, that a view must keep for its masks to stay in it (the containment of the labels)."""
VIEW_DRAWS: Final = 8
"""Numbers that `draw_view` takes, whatever they come to; `COLOUR_DRAWS` likewise."""
COLOUR_DRAWS: Final = 4
_BORDER_RGB: Final = (124, 116, 104)
"""ImageNet's mean colour, where a turned view leaves the image."""
_GREY: Final = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601)."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How views are drawn. All zeros: the whole image as it is."""

    flip_probability: float = 0.5
    """Left to right."""
    crop_probability: float = 0.5
    """Of seeing a part of the image instead of the whole."""
    crop_min_scale: float = 0.5
    """Smallest side of a crop over the image's."""
    rotation_deg: float = 0.0
    """Largest turn to either side; 25 in arXiv 2511.13714's configuration."""
    shear_deg: float = 0.0
    """Largest shear; 20 there."""
    brightness: float = 0.1
    """Largest relative change; 0.1, 0.03, 0.03 there for the three."""
    contrast: float = 0.1
    saturation: float = 0.1
    grey_probability: float = 0.05

    def __post_init__(self) -> None:
        for name in ("flip_probability", "crop_probability", "grey_probability", "crop_min_scale"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InputError(f"augmentation: {name} must be in [0, 1], found {getattr(self, name)}")


NO_AUGMENTATION: Final = Augmentation(
    flip_probability=0.0, crop_probability=0.0, brightness=0.0, contrast=0.0, saturation=0.0, grey_probability=0.0
)


@dataclass(frozen=True, kw_only=True)
class View:
    """A square view of R x R pixels of one image of H x W pixels. R is a multiple of 8."""

    size: int
    height: int
    width: int
    box_xyxy: tuple[int, int, int, int]
    """The crop in the source."""
    turn: NDArray[np.float64]
    """(2, 3): view pixel centres -> pixel centres of the unturned, cropped, resized image; includes the flip."""

    @property
    def is_straight(self) -> bool:
        """No turn and no shear: each column of the view lies in one column of the source."""
        return bool(self.turn[0, 1] == 0.0 and self.turn[1, 0] == 0.0)

    @property
    def shows_all(self) -> bool:
        return self.is_straight and self.box_xyxy == (0, 0, self.width, self.height)

    def at_size(self, size: int) -> View:
        """The same view in another number of pixels a side, a multiple of 8."""
        turn = self.turn.copy()
        turn[:, 2] *= size / self.size
        return replace(self, size=size, turn=turn)

    @cached_property
    def columns_rows(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of a straight view: the source's x under each view column and y under each view row, (R,) each."""
        found: tuple[NDArray[np.int64], NDArray[np.int64]] = _columns_rows(self.size, *self.box_xyxy, self.turn)
        return found

    @cached_property
    def source(self) -> NDArray[np.int32]:
        """(R, R): the column-major number x H + y of the source pixel under each view pixel; -1 outside it."""
        found: NDArray[np.int32] = _source(self.height, self.size, *self.box_xyxy, self.turn)
        return found

    def source_of(self, pixels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of the source pixels under some view pixels v R + u; -1 outside it."""
        found: NDArray[np.int64] = _source_of(pixels, self.height, self.size, *self.box_xyxy, self.turn)
        return found

    @property
    def back(self) -> NDArray[np.float64]:
        """(2, 3): a point (x, y) of the source -> the point of the view that shows it, both from the corners."""
        x0, y0, x1, y1 = self.box_xyxy
        across, down = self.size / (x1 - x0), self.size / (y1 - y0)
        shrink = np.array([[across, 0.0, -x0 * across], [0.0, down, -y0 * down], [0.0, 0.0, 1.0]])
        found: NDArray[np.float64] = (np.linalg.inv(np.concatenate([self.turn, [[0.0, 0.0, 1.0]]])) @ shrink)[:2]
        return found

    def seen_rows(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(W,) first and (W,) last + 1 of the source's rows that are in the view, for each of its columns.

        A source pixel is in the view if its centre lies in the crop and, through the inverse turn, in the view's
        square. Both are convex, so each column has one stretch.
        """
        x0, y0, x1, y1 = self.box_xyxy
        low, high = np.zeros(self.width, dtype=np.int64), np.zeros(self.width, dtype=np.int64)
        low[x0:x1], high[x0:x1] = y0, y1
        if self.is_straight:
            return low, high
        back = np.linalg.inv(np.concatenate([self.turn, [[0.0, 0.0, 1.0]]]))
        across = (np.arange(x1 - x0) + 0.5) / (x1 - x0) * self.size
        step = self.size / (y1 - y0)
        for axis in (0, 1):  # 0 <= start + slope k < R for the k-th row of the crop
            slope = float(back[axis, 1] * step)
            start = back[axis, 0] * across + back[axis, 2] + slope / 2
            if slope == 0.0:
                high[x0:x1][(start < 0) | (start >= self.size)] = y0
                continue
            if slope > 0:
                first, after = np.ceil(-start / slope), np.ceil((self.size - start) / slope)
            else:
                first, after = np.floor((self.size - start) / slope) + 1, np.floor(-start / slope) + 1
            low[x0:x1] = np.maximum(low[x0:x1], y0 + np.clip(first, 0, y1 - y0).astype(np.int64))
            high[x0:x1] = np.minimum(high[x0:x1], y0 + np.clip(after, 0, y1 - y0).astype(np.int64))
        return low, high


def draw_view(draws: NDArray[np.float64], height: int, width: int, size: int, how: Augmentation) -> View:
    """Draws a view of an image.

    Args:
        draws: (`VIEW_DRAWS`,) in [0, 1), the only source of chance.
        height: of the source in pixels.
        width: likewise.
        size: R, pixels a side of the view.
        how: the augmentation.
    """
    crops, scale, aspect, left, top, turns, shears, flips = draws.tolist()
    x0, y0, x1, y1 = 0, 0, width, height
    if crops < how.crop_probability:
        low = how.crop_min_scale
        crop_w = max(1, round(width * (low + (1 - low) * scale)))
        # The crop's own aspect differs from the image's by at most 4 : 3.
        stretch = (3 / 4) ** (1 - 2 * aspect)
        crop_h = min(height, max(1, round(height * crop_w / width * stretch)))
        x0, y0 = int(left * (width - crop_w + 1)), int(top * (height - crop_h + 1))
        x1, y1 = x0 + crop_w, y0 + crop_h
    angle = math.radians(how.rotation_deg * (2 * turns - 1))
    shear = math.tan(math.radians(how.shear_deg * (2 * shears - 1)))
    flip = -1.0 if flips < how.flip_probability else 1.0
    cos, sin, middle = math.cos(angle), math.sin(angle), size / 2
    # Turn x shear x flip, about the middle.
    (a, b), (c, d) = (cos * flip, cos * shear - sin), (sin * flip, sin * shear + cos)
    turn = np.array([[a, b, middle - (a + b) * middle], [c, d, middle - (c + d) * middle]])
    return View(size=size, height=height, width=width, box_xyxy=(x0, y0, x1, y1), turn=turn)


def whole_view(height: int, width: int, size: int) -> View:
    """The whole image, squeezed to the square as SAM-2 does."""
    turn = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    return View(size=size, height=height, width=width, box_xyxy=(0, 0, width, height), turn=turn)


@numba.njit(cache=True)
def _columns_rows(size, x0, y0, x1, y1, turn):  # type: ignore[no-untyped-def]
    return _line(size, turn[0, 0], turn[0, 2], x0, x1), _line(size, turn[1, 1], turn[1, 2], y0, y1)


@numba.njit(cache=True)
def _line(size, scale, offset, low, high):  # type: ignore[no-untyped-def]
    line = np.empty(size, dtype=np.int64)
    for i in range(size):
        share = (scale * (i + 0.5) + offset) / size
        line[i] = min(max(int(np.floor(low + share * (high - low))), low), high - 1)
    return line


@numba.njit(cache=True)
def _source(height, size, x0, y0, x1, y1, turn):  # type: ignore[no-untyped-def]
    source = np.empty((size, size), dtype=np.int32)
    for v in range(size):
        for u in range(size):
            source[v, u] = _source_at(u, v, height, size, x0, y0, x1, y1, turn)
    return source


@numba.njit(cache=True)
def _source_of(pixels, height, size, x0, y0, x1, y1, turn):  # type: ignore[no-untyped-def]
    source = np.empty(pixels.size, dtype=np.int64)
    for i in range(pixels.size):
        source[i] = _source_at(pixels[i] % size, pixels[i] // size, height, size, x0, y0, x1, y1, turn)
    return source


@numba.njit(cache=True)
def _source_at(u, v, height, size, x0, y0, x1, y1, turn):  # type: ignore[no-untyped-def]
    across = (turn[0, 0] * (u + 0.5) + turn[0, 1] * (v + 0.5) + turn[0, 2]) / size
    down = (turn[1, 0] * (u + 0.5) + turn[1, 1] * (v + 0.5) + turn[1, 2]) / size
    if not (0.0 <= across < 1.0 and 0.0 <= down < 1.0):
        return -1
    x = min(int(np.floor(x0 + across * (x1 - x0))), x1 - 1)
    y = min(int(np.floor(y0 + down * (y1 - y0))), y1 - 1)
    return x * height + y


def view_image(image: NDArray[np.uint8], view: View) -> NDArray[np.uint8]:
    """The image through a view: (H, W, 3) -> (R, R, 3) uint8, averaged where it shrinks to half or less.

    Averaging goes over whole pixels of an enlargement to a multiple of R, which costs an eighth of averaging over
    shares of pixels; of two pixels it is what linear interpolation gives between them, at a third of the cost.
    """
    x0, y0, x1, y1 = view.box_xyxy
    size = view.size
    across, down = max(1, (x1 - x0) // size), max(1, (y1 - y0) // size)
    seen: Any = cv2.resize(image[y0:y1, x0:x1], (across * size, down * size), interpolation=cv2.INTER_LINEAR)
    if across > 1 or down > 1:
        how = cv2.INTER_LINEAR if max(across, down) == 2 else cv2.INTER_AREA
        seen = cv2.resize(seen, (size, size), interpolation=how)
    turn = view.turn
    if view.is_straight:
        return np.asarray(cv2.flip(seen, 1, dst=seen) if turn[0, 0] < 0 else seen, dtype=np.uint8)
    # cv2 counts from pixel centres at whole numbers.
    shifted = turn.copy()
    shifted[:, 2] += 0.5 * (turn[:, 0] + turn[:, 1]) - 0.5
    turned: Any = cv2.warpAffine(
        seen, shifted, (size, size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderValue=_BORDER_RGB
    )
    return np.ascontiguousarray(turned)


def view_masks(run_lengths: RunLengths, masks: NDArray[np.int64], view: View) -> NDArray[np.uint8]:
    """Masks through a view: (m, R, R / 8) uint8, eight pixels to a byte as `np.packbits` does."""
    if view.is_straight:
        return run_lengths.sampled(masks, *view.columns_rows)
    return run_lengths.gathered(masks, view.source, view.back)


def unpacked(packed: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(m, R, R / 8) uint8 -> (m, R, R) bool."""
    return np.unpackbits(packed, axis=2).view(np.bool_)


def true_masks(sample: LoadedSample, view: View) -> NDArray[np.bool_]:
    """Which masks stay in a view: (n,) bool; a mask stays if the view keeps 0.9 of its instance."""
    if view.shows_all:
        return np.ones(len(sample.instance_id), dtype=np.bool_)
    return sample.run_lengths.mostly_between(sample.instance_id, sample.area_px, *view.seen_rows(), KEPT_FRACTION)


def jitter_colours(draws: NDArray[np.float64], image: NDArray[np.uint8], how: Augmentation) -> NDArray[np.uint8]:
    """Changes brightness, contrast and saturation, or takes the colour away: (R, R, 3) uint8, in place.

    Args:
        draws: (`COLOUR_DRAWS`,) in [0, 1), the only source of chance.
        image: (R, R, 3).
        how: the augmentation.
    """
    brighter, starker, stronger, greys = draws.tolist()
    brightness = 1 + how.brightness * (2 * brighter - 1)
    contrast = 1 + how.contrast * (2 * starker - 1)
    saturation = 0.0 if greys < how.grey_probability else 1 + how.saturation * (2 * stronger - 1)
    if brightness == contrast == saturation == 1:
        return image
    # All three are affine in the colour, so they are one matrix: v -> b (m + c (grey + s (v - grey) - m)). The mean m
    # over every eighth row is that of all within a fraction of a level.
    red, green, blue = _GREY
    means = cv2.mean(image[::8])
    offset = brightness * (1 - contrast) * (red * means[0] + green * means[1] + blue * means[2])
    own, shared = brightness * contrast * saturation, brightness * contrast * (1 - saturation)
    r, g, b = shared * red, shared * green, shared * blue
    matrix = np.array([[own + r, g, b, offset], [r, own + g, b, offset], [r, g, own + b, offset]], dtype=np.float32)
    changed: Any = cv2.transform(image, matrix, dst=image)
    return np.asarray(changed, dtype=np.uint8)
