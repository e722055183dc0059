"""Augmentation: which square view of a photograph is seen, and which masks stay true in it.

A view is one map from its pixels to the source's pixels. Image, masks and clicks all go through that map, so a click on
a mask in the source is on that mask in the view, whatever the augmentation. An instance of which a view keeps less than
0.9 is dropped with its parts from that view, because what is left of it would no longer be the whole that g = 1.0
means. Every random choice comes from the generator that is handed in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline import rle as rle_codec
from pipeline.errors import InputError

from .index import LoadedSample

KEPT_FRACTION: Final = 0.9
"""Of an instance, that a view must keep for its masks to stay in it (the containment of the labels)."""
_BORDER_RGB: Final = (124, 116, 104)
"""ImageNet's mean colour, where a turned view leaves the photograph."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How views are drawn. All zeros: the whole photograph as it is."""

    flip_probability: float = 0.5
    """Left to right."""
    crop_probability: float = 0.5
    """Of seeing a part of the photograph instead of the whole."""
    crop_min_scale: float = 0.5
    """Smallest side of a crop over the photograph's."""
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
    """A square view of R x R pixels of one photograph of H x W pixels."""

    size: int
    source: NDArray[np.int64]
    """(R, R): the column-major number x H + y of the source pixel under each view pixel; -1 outside it."""
    inside: NDArray[np.bool_] | None
    """(H, W): which source pixels are in the view; None if all are."""
    box_xyxy: tuple[int, int, int, int]
    """The crop in the source."""
    turn: NDArray[np.float64]
    """(2, 3): view pixel centres -> pixel centres of the unturned, cropped, resized image; includes the flip."""


def draw_view(rng: np.random.Generator, height: int, width: int, size: int, how: Augmentation) -> View:
    """Draws a view of a photograph.

    Args:
        rng: takes the same number of draws whatever they come to.
        height: of the source in pixels.
        width: likewise.
        size: R, pixels a side of the view.
        how: the augmentation.
    """
    draws = rng.random(8)
    x0, y0, x1, y1 = 0, 0, width, height
    if draws[0] < how.crop_probability:
        low = how.crop_min_scale
        crop_w = max(1, round(width * (low + (1 - low) * draws[1])))
        # The crop's own aspect differs from the photograph's by at most 4 : 3.
        stretch = (3 / 4) ** (1 - 2 * draws[2])
        crop_h = min(height, max(1, round(height * crop_w / width * stretch)))
        x0, y0 = int(draws[3] * (width - crop_w + 1)), int(draws[4] * (height - crop_h + 1))
        x1, y1 = x0 + crop_w, y0 + crop_h
    angle = np.deg2rad(how.rotation_deg * (2 * draws[5] - 1))
    shear = np.tan(np.deg2rad(how.shear_deg * (2 * draws[6] - 1)))
    flip = -1.0 if draws[7] < how.flip_probability else 1.0
    cos, sin = np.cos(angle), np.sin(angle)
    linear = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1.0, shear], [0.0, 1.0]]) @ np.diag([flip, 1.0])
    middle = np.full(2, size / 2)
    turn = np.concatenate([linear, (middle - linear @ middle)[:, None]], axis=1)
    return _view(height, width, size, (x0, y0, x1, y1), turn)


def whole_view(height: int, width: int, size: int) -> View:
    """The whole photograph, squeezed to the square as SAM-2 does."""
    return _view(height, width, size, (0, 0, width, height), np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))


def _view(height: int, width: int, size: int, box: tuple[int, int, int, int], turn: NDArray[np.float64]) -> View:
    x0, y0, x1, y1 = box
    centres = np.arange(size) + 0.5
    u, v = centres[None, :], centres[:, None]
    across = (turn[0, 0] * u + turn[0, 1] * v + turn[0, 2]) / size
    down = (turn[1, 0] * u + turn[1, 1] * v + turn[1, 2]) / size
    x = np.floor(x0 + across * (x1 - x0)).astype(np.int64)
    y = np.floor(y0 + down * (y1 - y0)).astype(np.int64)
    seen = (across >= 0) & (across < 1) & (down >= 0) & (down < 1)
    source = np.where(seen, np.minimum(x, x1 - 1) * height + np.minimum(y, y1 - 1), -1)
    straight = turn[0, 1] == 0.0 and turn[1, 0] == 0.0
    inside: NDArray[np.bool_] | None = None
    if not (straight and box == (0, 0, width, height)):
        inside = _seen_by(height, width, size, box, turn, straight)
    return View(size=size, source=source, inside=inside, box_xyxy=box, turn=turn)


def _seen_by(
    height: int, width: int, size: int, box: tuple[int, int, int, int], turn: NDArray[np.float64], straight: bool
) -> NDArray[np.bool_]:
    """(H, W): source pixels whose centre lies in the crop and, through the inverse turn, in the view's square."""
    x0, y0, x1, y1 = box
    inside = np.zeros((height, width), dtype=bool)
    if straight:
        inside[y0:y1, x0:x1] = True
        return inside
    back = np.linalg.inv(np.concatenate([turn, [[0.0, 0.0, 1.0]]]))
    across = ((np.arange(x0, x1) + 0.5 - x0) / (x1 - x0) * size)[None, :]
    down = ((np.arange(y0, y1) + 0.5 - y0) / (y1 - y0) * size)[:, None]
    u = back[0, 0] * across + back[0, 1] * down + back[0, 2]
    v = back[1, 0] * across + back[1, 1] * down + back[1, 2]
    inside[y0:y1, x0:x1] = (u >= 0) & (u < size) & (v >= 0) & (v < size)
    return inside


def view_image(image: NDArray[np.uint8], view: View) -> NDArray[np.uint8]:
    """The photograph through a view: (H, W, 3) -> (R, R, 3) uint8, averaged where it shrinks."""
    x0, y0, x1, y1 = view.box_xyxy
    shrinks = x1 - x0 > view.size or y1 - y0 > view.size
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    seen: Any = cv2.resize(image[y0:y1, x0:x1], (view.size, view.size), interpolation=how)
    turn = view.turn
    if turn[0, 1] == 0.0 and turn[1, 0] == 0.0:
        return np.ascontiguousarray(seen[:, ::-1] if turn[0, 0] < 0 else seen)
    # cv2 counts from pixel centres at whole numbers.
    shifted = turn.copy()
    shifted[:, 2] += 0.5 * (turn[:, 0] + turn[:, 1]) - 0.5
    turned: Any = cv2.warpAffine(
        seen, shifted, (view.size, view.size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderValue=_BORDER_RGB
    )
    return np.ascontiguousarray(turned)


def view_mask(rle: rle_codec.Rle, view: View) -> NDArray[np.bool_]:
    """A mask through a view: (R, R) bool."""
    flat = rle_codec.decode(rle).T.reshape(-1)
    return flat[view.source] & (view.source >= 0)


def true_masks(sample: LoadedSample, view: View) -> NDArray[np.bool_]:
    """Which masks stay in a view: (n,) bool; a mask stays if the view keeps 0.9 of its instance."""
    if view.inside is None:
        return np.ones(len(sample.rles), dtype=bool)
    stays: dict[int, bool] = {}
    for instance in np.unique(sample.instance_id):
        kept = int((rle_codec.decode(sample.rles[instance]) & view.inside).sum())
        stays[int(instance)] = kept >= KEPT_FRACTION * sample.area_px[instance]
    return np.array([stays[int(each)] for each in sample.instance_id], dtype=bool)


def jitter_colours(rng: np.random.Generator, image: NDArray[np.uint8], how: Augmentation) -> NDArray[np.uint8]:
    """Changes brightness, contrast and saturation, or takes the colour away: (R, R, 3) uint8."""
    draws = rng.random(4)
    brightness = 1 + how.brightness * (2 * draws[0] - 1)
    contrast = 1 + how.contrast * (2 * draws[1] - 1)
    saturation = 0.0 if draws[3] < how.grey_probability else 1 + how.saturation * (2 * draws[2] - 1)
    if brightness == contrast == saturation == 1:
        return image
    values = image.astype(np.float32)
    grey = values @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    mean = np.float32(grey.mean())
    values = grey[:, :, None] + np.float32(saturation) * (values - grey[:, :, None])
    values = np.float32(brightness) * (mean + np.float32(contrast) * (values - mean))
    return np.clip(values + np.float32(0.5), 0, 255).astype(np.uint8)
