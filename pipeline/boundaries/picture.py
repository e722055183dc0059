"""Ten images beside what a boundary net says of them and what its teachers said."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from ..labeling.stages.boundary_net import REGIONS_LEFT, BoundaryNet, PlainNet
from .training import read_prepared

SHOWN: Final = 10
_CELL: Final = (160, 240)
_GAP: Final = 4


@torch.inference_mode()
def picture(net: BoundaryNet | PlainNet, images: Sequence[Path], device: torch.device) -> NDArray[np.uint8]:
    """A row of four cells for each image, at most ten: the image, the mean of the net's first five maps, its map of
    six regions, and the mean of its teachers' first five. White is certain.

    Args:
        net: in evaluation.
        images: prepared files.
        device: of the net.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    rows = []
    for path in images[:SHOWN]:
        maps, image, targets = read_prepared(path, device)
        said = net(maps, image).sigmoid()[0].cpu().numpy()
        taught = targets[0].cpu().numpy()
        photograph = np.rint(image[0].permute(1, 2, 0).cpu().numpy() * 255.0).astype(np.uint8)
        five = len(REGIONS_LEFT)
        greys = [said[:five].mean(axis=0), said[0], taught[:five].mean(axis=0)]
        cells = [
            photograph,
            *(cv2.cvtColor(np.rint(255.0 * each).astype(np.uint8), cv2.COLOR_GRAY2RGB) for each in greys),
        ]
        rows.append(np.concatenate([_cell(each) for each in cells], axis=1))
    return np.concatenate(rows)


def _cell(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Fitted into a cell, in its own proportions."""
    height, width = _CELL
    scale = min(height / image.shape[0], width / image.shape[1])
    size = (max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1))
    cell = np.full((height + _GAP, width + _GAP, 3), 40, dtype=np.uint8)
    cell[: size[1], : size[0]] = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return cell
