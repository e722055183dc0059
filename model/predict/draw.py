"""Pictures of masks: one over its image, one click at several granularities side by side, all masks at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from .output_files import write_whole

MASK_RGB: Final = (255, 96, 0)
_EDGE_RGB: Final = (255, 255, 255)
_INSIDE_RGB: Final = (0, 230, 0)
_OUTSIDE_RGB: Final = (230, 0, 0)
_OPACITY: Final = 0.5
_CAPTION_PX: Final = 22
_WIDE: Final = 2
"""An image this many times as wide as high has its pictures below each other, each at least half a cell high."""
_MAX_CELL_PX: Final = 4096
"""Of a panorama's cell, its width."""
MAX_ID: Final = 65535
"""That a PNG's pixel holds."""

Rgb = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Points = NDArray[np.float32 | np.float64]
Labels = NDArray[np.int32 | np.int64]


def overlay(image: Rgb, mask: Mask, *, colour: tuple[int, int, int] = MASK_RGB) -> Rgb:
    """A mask in colour over its image, with a white edge: (H, W, 3) uint8."""
    shown = image.copy()
    tint = np.array(colour, dtype=np.float32)
    shown[mask] = (shown[mask] * (1 - _OPACITY) + tint * _OPACITY).astype(np.uint8)
    edge = mask & ~cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    shown[edge] = _EDGE_RGB
    return shown


def mark_points(image: Rgb, points_xy: Points, labels: Labels) -> Rgb:
    """Clicks as rings: green inside, red outside."""
    shown = image.copy()
    radius = max(3, round(min(image.shape[:2]) / 60))
    for (x, y), label in zip(points_xy.tolist(), labels.tolist(), strict=True):
        centre = (round(x), round(y))
        cv2.circle(shown, centre, radius + 2, (0, 0, 0), -1)
        cv2.circle(shown, centre, radius, _INSIDE_RGB if label == 1 else _OUTSIDE_RGB, -1)
    return shown


def mark_box(image: Rgb, box: Sequence[float]) -> Rgb:
    """A box x0, y0, x1, y1 in pixels as a green frame with a black one around it."""
    shown = image.copy()
    width = max(1, round(min(image.shape[:2]) / 200))
    first, last = (round(box[0]), round(box[1])), (round(box[2]) - 1, round(box[3]) - 1)
    cv2.rectangle(shown, first, last, (0, 0, 0), width + 2)
    cv2.rectangle(shown, first, last, _INSIDE_RGB, width)
    return shown


def captioned(image: Rgb, text: str) -> Rgb:
    """A strip with words above a picture."""
    strip = np.full((_CAPTION_PX, image.shape[1], 3), 255, dtype=np.uint8)
    cv2.putText(strip, text, (4, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([strip, image])


def contact_sheet(
    image: Rgb,
    masks: Sequence[Mask],
    captions: Sequence[str],
    *,
    points_xy: Points,
    labels: Labels,
    box: Sequence[float] | None = None,
    width_px: int = 320,
) -> Rgb:
    """The image and each mask over it, each about `width_px` wide, with a caption; see `in_line`.

    A panorama's are wider: at least half of `width_px` high, unless that would enlarge it. Clicks and the box, if
    there is one, are drawn into all of them.
    """

    def marked(picture: Rgb) -> Rgb:
        return mark_points(picture if box is None else mark_box(picture, box), points_xy, labels)

    scale = width_px / image.shape[1]
    if image.shape[1] > _WIDE * image.shape[0]:
        scale = max(scale, min(1.0, width_px / _WIDE / image.shape[0], _MAX_CELL_PX / image.shape[1]))
    width, height = round(image.shape[1] * scale), max(1, round(image.shape[0] * scale))
    title = "click" if box is None else "box and click" if len(points_xy) else "box"
    cells = [captioned(_resized(marked(image), width, height), title)]
    for mask, caption in zip(masks, captions, strict=True):
        cells.append(captioned(_resized(marked(overlay(image, mask)), width, height), caption))
    return in_line(cells, image)


def in_line(cells: Sequence[Rgb], image: Rgb) -> Rgb:
    """Pictures of an image side by side, those of a panorama below each other."""
    return np.concatenate(cells, axis=0 if image.shape[1] > _WIDE * image.shape[0] else 1)


def id_image(masks: Mapping[int, Mask], height: int, width: int, *, max_id: int) -> NDArray[np.uint8 | np.uint16]:
    """The number of the mask at each pixel, 0 where there is none, the smallest mask where several overlap.

    Args:
        masks: (H, W) by number, from 1 on.
        height: pixels.
        width: pixels.
        max_id: of all images that belong together: uint8 up to 255, else uint16.
    """
    ids = np.zeros((height, width), dtype=np.uint8 if max_id <= 255 else np.uint16)
    for number, mask in sorted(masks.items(), key=lambda each: -int(each[1].sum())):
        ids[mask] = number
    return ids


def segment_map(image: Rgb, masks: Sequence[Mask]) -> Rgb:
    """All masks at once, the largest first, each in a colour of its own."""
    shown = image.copy()
    for number, mask in sorted(enumerate(masks), key=lambda each: -int(each[1].sum())):
        hue = np.array([[[int(number * 0.61803 * 180) % 180, 200, 255]]], dtype=np.uint8)
        red, green, blue = (int(value) for value in cv2.cvtColor(hue, cv2.COLOR_HSV2RGB)[0, 0])
        shown = overlay(shown, mask, colour=(red, green, blue))
    return shown


def png_bytes(image: NDArray[np.uint8 | np.uint16]) -> bytes:
    """A PNG file's content: of (H, W, 3) uint8 RGB, or of (H, W) uint8 or uint16 as it is."""
    done, data = cv2.imencode(".png", np.ascontiguousarray(image[:, :, ::-1]) if image.ndim == 3 else image)
    assert done
    return bytes(data.tobytes())


def write_png(path: Path, image: Rgb) -> None:
    """Writes a PNG that appears whole; raises as `OutputFiles`."""
    write_whole(path, png_bytes(image))


def _resized(image: Rgb, width: int, height: int) -> Rgb:
    shrinks = width < image.shape[1]
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=np.uint8)
