"""Guided refinement on drawn edges and on the coins, and when it is not accepted."""

from __future__ import annotations

import doctest
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu

from pipeline.labeling.atoms import BoxMask
from pipeline.labeling.config import RefineConfig
from pipeline.labeling.stages import refine
from pipeline.labeling.stages.refine import EdgeGuide

CONFIG = RefineConfig()


def disc(radius: float, side: int = 96) -> NDArray[np.bool_]:
    y, x = np.mgrid[:side, :side]
    return np.hypot(y - side / 2, x - side / 2) < radius


def painted(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The mask red on blue, with noise: brightness alone would not tell them apart well."""
    image = np.where(mask[..., None], (180, 60, 60), (60, 80, 180)).astype(np.float32)
    return (image + np.random.default_rng(0).normal(0, 8, image.shape)).clip(0, 255).astype(np.uint8)


def on_patches(mask: NDArray[np.bool_], patch: int) -> NDArray[np.bool_]:
    """What a patch grid keeps of a mask."""
    height, width = mask.shape
    grid = cv2.resize(mask.astype(np.float32), (width // patch, height // patch), interpolation=cv2.INTER_AREA) > 0.5
    return cv2.resize(grid.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0


def iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_a_disc_of_patches_becomes_round() -> None:
    truth = disc(30)
    rough = on_patches(truth, 8)
    refined = EdgeGuide(painted(truth), radius_px=4).refine(BoxMask.of(rough), CONFIG)
    assert refined.accepted
    assert iou(rough, truth) < 0.93
    assert iou(refined.mask.full(96, 96), truth) > 0.99


@pytest.mark.parametrize("patch", [8, 16])
def test_coins_of_patches_come_near_the_coins(photographs: Path, patch: int) -> None:
    grey = cv2.imread(str(photographs / "coins.png"), cv2.IMREAD_GRAYSCALE)
    assert grey is not None
    labels, count = ndimage.label(ndimage.binary_fill_holes(grey > threshold_otsu(grey)))
    guide = EdgeGuide(np.repeat(grey[:, :, None], 3, axis=2).astype(np.uint8), radius_px=patch // 2)
    before, after = [], []
    for index in range(1, count + 1):
        coin = labels == index
        rough = on_patches(coin, patch)
        if coin.sum() > 300 and rough.any():
            refined = guide.refine(BoxMask.of(rough), CONFIG)
            before.append(iou(rough, coin))
            after.append(iou(refined.mask.full(*grey.shape), coin))
    assert np.mean(after) > np.mean(before) + 0.08
    if patch == 8:
        assert np.mean(after) > 0.95


def test_a_mask_that_would_dissolve_keeps_what_it_was() -> None:
    """A speck in a flat image has no edge to go to: the filter blurs it away."""
    flat = np.full((64, 64, 3), 120, dtype=np.uint8)
    speck = BoxMask(30, 30, np.ones((2, 2), dtype=np.bool_))
    refined = EdgeGuide(flat, radius_px=4).refine(speck, CONFIG)
    assert not refined.accepted
    assert refined.mask is speck


def test_a_mask_that_strays_is_not_accepted() -> None:
    truth = disc(30)
    rough = BoxMask.of(on_patches(truth, 8))
    guide = EdgeGuide(painted(truth), radius_px=4)
    assert not guide.refine(rough, RefineConfig(min_iou=0.999)).accepted


def test_masks_at_the_images_border_stay_there() -> None:
    truth = np.zeros((64, 64), dtype=np.bool_)
    truth[40:, 30:] = True
    refined = EdgeGuide(painted(truth), radius_px=4).refine(BoxMask.of(on_patches(truth, 8)), CONFIG)
    assert refined.accepted
    assert (refined.mask.bottom, refined.mask.right) == (64, 64)  # the last row and column are covered
    assert iou(refined.mask.full(64, 64), truth) > 0.97


def test_the_example_in_the_docstring_holds() -> None:
    found = doctest.testmod(refine)
    assert found.attempted > 0
    assert found.failed == 0
