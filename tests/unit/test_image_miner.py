"""Images mined by the default recipe, real photographs mostly: what is found, and again, and which sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu

from pipeline.errors import SampleFailureError
from pipeline.format import rle
from pipeline.format.schema import Annotation
from pipeline.labeling.config import FeaturesConfig, MineConfig
from pipeline.labeling.miner import ImageInput, ImageMiner, MinedImage, reduced
from pipeline.labeling.stages.texture_features import describe
from tests.annotations import check_annotations


def read(path: Path) -> NDArray[np.uint8]:
    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
    assert bgr is not None
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB).astype(np.uint8)


@pytest.fixture(scope="module")
def miner() -> ImageMiner:
    return ImageMiner(MineConfig())


def mine(miner: ImageMiner, rgb: NDArray[np.uint8]) -> tuple[Annotation, ...]:
    answer = miner.mine([ImageInput(rgb=rgb, source_uri="a/b.png", member=None)])[0]
    assert isinstance(answer, MinedImage), answer
    check_annotations(answer.annotations, *rgb.shape[:2])
    assert {"features", "divide", "conquer", "granularity"} <= set(answer.seconds)
    return answer.annotations


def test_coins_are_found(miner: ImageMiner, photographs: Path) -> None:
    """At least 20 of the 24 coins with IoU of at least 0.7; Otsu's threshold, filled, is the truth."""
    rgb = read(photographs / "coins.png")
    truth = ndimage.binary_fill_holes(rgb[:, :, 0] > threshold_otsu(rgb[:, :, 0]))
    labels, count = ndimage.label(truth)
    coins = [labels == index for index in range(1, count + 1) if (labels == index).sum() > 300]
    assert len(coins) == 24
    found = mine(miner, rgb)
    assert len(found) <= 330
    masks = [(rle.decode(each.segmentation), each.is_instance) for each in found]
    best = [max((coin & mask).sum() / (coin | mask).sum() for mask, _ in masks) for coin in coins]
    assert sum(value >= 0.7 for value in best) >= 20, best
    whole = [
        max((coin & mask).sum() / (coin | mask).sum() for mask, is_instance in masks if is_instance) for coin in coins
    ]
    assert sum(value >= 0.7 for value in whole) >= 20, whole


def test_the_same_photograph_gives_the_same_masks(miner: ImageMiner, photographs: Path) -> None:
    rgb = read(photographs / "chelsea.png")
    first = mine(miner, rgb)
    mine(miner, read(photographs / "coins.png"))
    assert mine(miner, rgb) == first


def test_channels_are_rgb(photographs: Path) -> None:
    """The reference feeds BGR where RGB is meant. Red must have a high a*, blue a low b*."""
    swatch = np.zeros((40, 40, 3), dtype=np.uint8)
    swatch[:, :20, 0] = 255
    swatch[:, 20:, 2] = 255
    view = describe(swatch, FeaturesConfig(), seed=0)
    assert view.lab[20, 5, 1] > 60
    assert view.lab[20, 5, 2] > 40
    assert view.lab[20, 35, 2] < -80


def test_a_large_photograph_has_full_size_masks(miner: ImageMiner, photographs: Path) -> None:
    small = read(photographs / "coffee.png")
    large = cv2.resize(small, (1999, 1301), interpolation=cv2.INTER_LINEAR).astype(np.uint8)
    found = mine(miner, large)
    assert all(each.segmentation["size"] == [1301, 1999] for each in found)
    assert reduced(large, 1024).shape == (666, 1024, 3)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 3), (17, 5)])
def test_tiny_images_are_mined_or_say_that_there_is_nothing(miner: ImageMiner, shape: tuple[int, int]) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, size=(*shape, 3), dtype=np.uint8)
    answer = miner.mine([ImageInput(rgb=rgb, source_uri="a/b.png", member=None)])[0]
    if isinstance(answer, SampleFailureError):
        assert answer.reason == "no_masks"


def test_a_flat_image_has_no_masks(miner: ImageMiner) -> None:
    rgb = np.full((60, 80, 3), 127, dtype=np.uint8)
    answer = miner.mine([ImageInput(rgb=rgb, source_uri="a/b.png", member=None)])[0]
    assert isinstance(answer, SampleFailureError)
    assert answer.reason == "no_masks"


def test_max_masks_bounds_the_candidates(photographs: Path) -> None:
    config = MineConfig()
    few = ImageMiner(replace(config, tree=replace(config.tree, max_masks=40)))
    found = mine(few, read(photographs / "chelsea.png"))
    wholes = sum(each.origin == "divide" for each in found)
    assert len(found) <= 40 + wholes
