"""Photographs of one size for the benches: those inside the scikit-image package, cropped and reduced; no download."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from ..sources.images import decode_rgb

NAMES: Final = (
    "astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "hubble_deep_field.jpg",
    "retina.jpg", "ihc.png", "camera.png", "coins.png", "moon.png", "grass.png",
)  # fmt: skip
CROPS: Final = (
    (1.0, 0.5, 0.5),
    (0.75, 0.0, 0.0),
    (0.75, 1.0, 1.0),
    (0.6, 0.5, 0.5),
    (0.75, 1.0, 0.0),
    (0.75, 0.0, 1.0),
)
"""(share of the largest crop, place from left to right, place from top to bottom)."""
JPEG_QUALITY: Final = 95


def write_photographs(folder: Path, count: int, *, width: int = 481, height: int = 321) -> Path:
    """Writes `count` different JPEG files of this size into the folder, and returns it.

    Args:
        folder: made if it is missing.
        count: of files, at most 72.
        width: pixels.
        height: pixels.
    """
    import skimage

    data = Path(skimage.__file__).parent / "data"
    if not 1 <= count <= len(NAMES) * len(CROPS):
        raise ValueError(f"{count} photographs: there are 1 to {len(NAMES) * len(CROPS)}")
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        name = NAMES[number % len(NAMES)]
        rgb = decode_rgb((data / name).read_bytes(), max_pixels=10**8)
        crop = cropped(rgb, *CROPS[number // len(NAMES)], aspect=width / height)
        small = cv2.resize(crop, (width, height), interpolation=cv2.INTER_AREA)
        _, encoded = cv2.imencode(".jpg", small[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        (folder / f"{number:02d}-{Path(name).stem}.jpg").write_bytes(encoded.tobytes())
    return folder


def cropped(
    rgb: NDArray[np.uint8], share: float, place_x: float, place_y: float, *, aspect: float
) -> NDArray[np.uint8]:
    """A part of the image with this aspect: `share` of the largest one that fits, placed in [0, 1] of what is left."""
    full_height, full_width = rgb.shape[:2]
    width = min(full_width, full_height * aspect) * share
    height = width / aspect
    left, top = round((full_width - width) * place_x), round((full_height - height) * place_y)
    return rgb[top : top + round(height), left : left + round(width)]
