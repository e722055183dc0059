"""Pixels as SAM-2's encoder expects them: square, float32, normalised with ImageNet's mean and standard deviation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

IMAGE_MEAN: Final = (0.485, 0.456, 0.406)
IMAGE_STD: Final = (0.229, 0.224, 0.225)
"""For RGB in [0, 1]."""


def normalised(pixels_B3HW: Tensor) -> Tensor:
    """(B, 3, H, W) float32 RGB in [0, 1] -> the same, as the encoder expects it."""
    device = pixels_B3HW.device
    mean, std = (sent(np.array(each, dtype=np.float32), device).view(1, 3, 1, 1) for each in (IMAGE_MEAN, IMAGE_STD))
    return (pixels_B3HW - mean) / std


def normalised_batch(images: Sequence[NDArray[np.uint8]], device: torch.device) -> Tensor:
    """(R, R, 3) uint8 RGB each -> (B, 3, R, R) float32."""
    batch = sent(np.stack(images), device).permute(0, 3, 1, 2).float() / 255.0
    return normalised(batch).contiguous()


def resized_as_image(image: NDArray[np.uint8], side: int, device: torch.device) -> Tensor:
    """(H, W, 3) uint8 RGB -> (1, 3, S, S), by torch's antialiased bilinear resize, as `SAM2ImagePredictor` does."""
    # torch warns of arrays that cannot be written to, such as those over a Pillow image's memory; they are copied.
    pixels = (
        torch.from_numpy(np.require(image, requirements=("C", "W"))).to(device).permute(2, 0, 1)[None].float() / 255.0
    )
    return normalised(F.interpolate(pixels, size=(side, side), mode="bilinear", align_corners=False, antialias=True))


def resized_as_frame(image: NDArray[np.uint8], side: int) -> Tensor:
    """(H, W, 3) uint8 RGB -> (3, S, S), by Pillow's bicubic resize, as sam2's reader of videos does."""
    small = np.asarray(Image.fromarray(image).resize((side, side)))
    return normalised(torch.from_numpy(small / 255.0).permute(2, 0, 1).float()[None])[0]


def sent(array: NDArray[Any], device: torch.device) -> Tensor:
    """An array on a device; on a GPU without waiting for what it is doing, as a copy from ordinary memory would."""
    here = torch.from_numpy(array)
    return here.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else here.to(device)
