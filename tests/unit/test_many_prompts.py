"""The decoder for many prompts on few images answers as sam2's own, and has its gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from model.network.click_features import Sight
from model.network.granular import GranularSam2, ImageFeatures
from model.network.many_prompts import quartered
from model.training.step import _shares
from tests.numeric import assert_same_sums

COUNTS = (3, 1, 4)


@pytest.fixture(scope="module")
def model() -> GranularSam2:
    torch.manual_seed(0)
    model = GranularSam2("micro", "full", 64, sight=Sight(click_features=True, similarity="place"))
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms start at 0 and 1, where a mistake would not show
            parameter += 0.1 * torch.randn(parameter.shape)
    model.set_trainable()
    return model.eval()


def answers(model: GranularSam2, *, shared: bool, mask: bool, clicks: int) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Logits, IoU, object and token of eight prompts on three images, and the gradients of a function of all."""
    drawn = torch.Generator().manual_seed(1)
    levels = [
        torch.randn(3, channels, side, side, generator=drawn).requires_grad_()
        for channels, side in ((64, 4), (8, 16), (16, 8))
    ]
    features = ImageFeatures(embedding_BCHW=levels[0], high_res=(levels[1], levels[2]))
    image_of = torch.tensor([image for image, count in enumerate(COUNTS) for _ in range(count)])
    points = 64 * torch.rand(8, clicks, 2, generator=drawn)
    labels = torch.randint(0, 2, (8, clicks), generator=drawn, dtype=torch.int32)
    labels[:, 0] = 1
    granularity = torch.rand(8, generator=drawn) * 0.9 + 0.1
    before = 5 * torch.randn(8, 1, 16, 16, generator=drawn) if mask else None
    model.zero_grad()
    rows = features.shared(COUNTS) if shared else features.select(image_of)
    found = model.decode(rows, points, labels, granularity, mask_input_N1HW=before)
    outputs = [found.logits_NMHW, found.iou_NM, found.object_N1, found.token_NMC]
    sum((each * torch.randn(each.shape, generator=drawn)).sum() for each in outputs).backward()  # type: ignore[union-attr]
    gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    gradients |= {f"level {number}": each.grad for number, each in enumerate(levels) if each.grad is not None}
    return outputs, {name: each.clone() for name, each in gradients.items()}


@pytest.mark.parametrize(("mask", "clicks"), [(False, 1), (True, 3)])
def test_prompts_together_are_answered_as_each_on_its_own_copy(model: GranularSam2, mask: bool, clicks: int) -> None:
    own, own_gradients = answers(model, shared=False, mask=mask, clicks=clicks)
    found, gradients = answers(model, shared=True, mask=mask, clicks=clicks)
    for each, expected in zip(found, own, strict=True):
        assert_same_sums(each, expected)
    assert gradients.keys() == own_gradients.keys()
    size = math.hypot(*(float(each.norm()) for each in own_gradients.values()))
    for name, expected in own_gradients.items():
        assert float((gradients[name] - expected).norm()) < 1e-5 * max(float(expected.norm()), 1e-3 * size), name


@pytest.mark.parametrize("times", [1, 2])
def test_a_level_by_cells(times: int) -> None:
    level = torch.arange(2 * 3 * 8 * 8).view(2, 3, 8, 8)
    found = quartered(level, times)
    side = 8 >> times
    assert found.shape == (2, side**2, 4**times, 3)
    for y in range(8):
        for x in range(8):
            quarter, cell = 0, (y >> times) * side + (x >> times)
            for bit in reversed(range(times)):
                quarter = 4 * quarter + 2 * (y >> bit & 1) + (x >> bit & 1)
            assert torch.equal(found[:, cell, quarter], level[:, :, y, x])


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_targets_on_a_coarser_grid_are_shares_of_pixels(stride: int) -> None:
    masks = np.random.default_rng(0).random((3, 16, 16)) < 0.5
    found = _shares(torch.from_numpy(np.packbits(masks, axis=2)), stride)
    assert found.dtype == torch.float32
    side = 16 // stride
    assert np.array_equal(found.numpy(), masks.reshape(3, side, stride, side, stride).mean(axis=(2, 4)))
