"""The dense loss: its plain definition, its gradient, what the loader draws for it, and what is left behind."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model.data.prompts import Prompts, no_prompts
from model.data.sampler import Order
from model.data.stream import Example, TrainingDataset
from model.network.granular import GranularSam2
from model.training.config import TrainConfig, make_config
from model.training.dense_loss import DenseHead, dense_loss, padded
from model.training.losses import LossWeights
from model.training.step import SUMS, accumulate_gradients

Array = NDArray[np.float64]
WEIGHTS = LossWeights(focal=0.0, cross_entropy=0.1, dice=1.0)


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


def plain_loss(features: Array, layers: list[Array], anchors: list[Prompts]) -> float:
    """Anchor by anchor and cell by cell, as the docstrings say."""
    total = 0.0
    height, width = features.shape[-2:]
    for view, each in enumerate(anchors):
        for (cell_x, cell_y), g, mask in zip(each.points, each.granularity, each.masks(), strict=True):
            x, y = int(cell_x), int(cell_y)
            clicked = features[view, :, y, x]
            value = np.concatenate([[g], clicked])
            for place in (0, 2, 4):
                value = layers[place] @ value + layers[place + 1]
                value = np.maximum(value, 0) if place < 4 else value
            entropy = overlap = area = wanted = 0.0
            for row in range(height):
                for column in range(width):
                    far = ((features[view, :, row, column] - clicked) ** 2).sum()
                    away = ((row - y) / height) ** 2 + ((column - x) / width) ** 2
                    logit = value[0] - softplus(value[1]) * far - 10 * softplus(value[2]) * away
                    p = 1 / (1 + math.exp(-logit))
                    entropy -= math.log(p if mask[row, column] else 1 - p)
                    overlap, area, wanted = overlap + p * mask[row, column], area + p, wanted + mask[row, column]
            total += 1 - (2 * overlap + 1) / (area + wanted + 1) + 0.1 * entropy / (height * width)
    return total


def drawn_anchors(count: int, seed: int) -> Prompts:
    random = np.random.default_rng(seed)
    return Prompts(
        points=random.integers(0, 8, (count, 2)).astype(np.float32),
        masks_packed=random.integers(0, 256, (count, 8, 1), dtype=np.uint8),
        granularity=random.uniform(0.1, 1, count).astype(np.float32),
        mask_id=np.zeros(count, dtype=np.int64),
    )


def test_the_loss_and_its_gradient_are_those_of_the_plain_definition() -> None:
    """Three views with three, one and no anchors: what fills them up counts nowhere."""
    torch.manual_seed(0)
    head = DenseHead(3)
    last = head.mlp[-1]
    assert isinstance(last, torch.nn.Linear)
    assert (last.weight.any(), last.bias.tolist()) == (False, [1.0, 0.0, 2.0])
    with torch.no_grad():
        last.weight.normal_(0, 0.2)
    features = torch.randn(3, 3, 8, 8, requires_grad=True)
    anchors = [drawn_anchors(count, seed) for seed, count in enumerate((3, 1, 0))]
    cells, granularity, masks = padded(anchors)
    assert (cells.shape, masks.shape) == ((3, 3), (9, 8, 1))
    target = torch.from_numpy(np.unpackbits(masks, axis=2).astype(bool)).view(3, 3, -1)
    inputs = [features, *head.parameters()]
    found = dense_loss(head, features, torch.from_numpy(cells), torch.from_numpy(granularity), target, WEIGHTS)
    total = found.item()
    values = [each.detach().double().numpy() for each in inputs]
    assert total == pytest.approx(plain_loss(values[0], values[1:], anchors), rel=1e-5)
    random, step = np.random.default_rng(1), 1e-5
    direction = [random.normal(size=each.shape) for each in values]
    ends = []
    for sign in (1, -1):
        moved = [value + sign * step * along for value, along in zip(values, direction, strict=True)]
        ends.append(plain_loss(moved[0], moved[1:], anchors))
    gradients = torch.autograd.grad(found, inputs)
    ours = sum(float((each.double().numpy() * d).sum()) for each, d in zip(gradients, direction, strict=True))
    assert ours == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-3)
    assert not gradients[0][2].any(), "a view without anchors"


# -- in a run ----------------------------------------------------------------------------------------------------------


def config_of(**changes: object) -> TrainConfig:
    values = {
        "image_size": 64, "masks_per_image": 4, "steps": 1, "coarse_images": 0, "min_parts": 0, "dense_anchors": 6,
        "order": Order(), "seed": 0, "min_masks": 1, "holdout": 0.0, "precision": "fp32", **changes,
    }  # fmt: skip
    return make_config("micro", "scratch", None, **values)


def examples_of(drawn_run: Path, config: TrainConfig, count: int = 4) -> list[Example]:
    found = TrainingDataset(str(drawn_run), config.example_settings(), seed=0, order=Order(), min_masks=1, holdout=0.0)
    return [found[position] for position in range(count)]


def test_anchors_are_cells_with_one_of_the_masks_over_them_in_the_view_that_is_seen(drawn_run: Path) -> None:
    config = config_of(dense_anchors=6)
    examples = TrainingDataset(
        str(drawn_run), config.example_settings(), seed=0, order=Order(), min_masks=1, holdout=0.0
    )
    without = TrainingDataset(
        str(drawn_run), config_of(dense_anchors=0).example_settings(), seed=0, order=Order(), min_masks=1, holdout=0.0
    )
    shared = 0
    for position in range(24):
        example, plain = examples[position], without[position]
        assert np.array_equal(example.image, plain.image)
        assert np.array_equal(example.masks_packed, plain.masks_packed), "anchors change no other draw"
        anchors, masks = example.anchors, example.anchors.masks()
        assert (len(anchors.points), masks.shape, len(plain.anchors.points)) == (6, (6, 16, 16), 0)
        for (x, y), mask in zip(anchors.points.astype(int), masks, strict=True):
            assert mask[y, x]
        # A mask that was drawn in both ways is the same in both: the coarse one samples the cells' centres.
        large = example.masks()
        for g, mask in zip(anchors.granularity, masks, strict=True):
            for same in np.flatnonzero(example.granularity == g):
                near = [large[same, 1 + dy :: 4, 1 + dx :: 4] for dy in (0, 1) for dx in (0, 1)]
                shared += any(np.array_equal(mask, each) for each in near)
    assert shared > 10


def test_the_step_adds_the_mean_over_anchors_to_the_gradient_of_encoder_and_head(drawn_run: Path) -> None:
    config = config_of(dense_weight=3.0, similarity="off", click_features=False)
    examples = examples_of(drawn_run, config)
    model, head = GranularSam2("micro", "full", 64), DenseHead(8)
    model.set_trainable()
    gradients = []
    for used, anchors in ((None, 1.0), (head, 24.0), (head, 48.0)):
        model.zero_grad()
        head.zero_grad()
        sums = accumulate_gradients(model, examples, config, prompts_in_step=16.0, head=used, anchors_in_step=anchors)
        told = dict(zip(SUMS, sums.tolist(), strict=True))
        assert told["anchors"] == (0 if used is None else 24)
        assert (told["dense"] > 0) == (used is not None)
        trunk = model.base.image_encoder.trunk.patch_embed.proj.weight.grad
        assert trunk is not None
        gradients.append(trunk.clone())
    added = [each - gradients[0] for each in gradients[1:]]
    assert added[0].abs().max() > 0
    torch.testing.assert_close(added[0], 2 * added[1], rtol=1e-3, atol=1e-6)
    assert all(each.grad is not None and each.grad.isfinite().all() for each in head.parameters())


def test_blank_and_unread_examples_have_no_anchors(drawn_run: Path) -> None:
    config = config_of()
    examples = examples_of(drawn_run, config, 2)
    none = dataclasses.replace(examples[0], anchors=no_prompts(0))
    model, head = GranularSam2("micro", "full", 64, sight=config.sight), DenseHead(8)
    model.set_trainable()
    for batch, expected in (([none], 0), ([none, examples[1]], 6)):
        sums = accumulate_gradients(model, batch, config, prompts_in_step=4.0, head=head, anchors_in_step=6.0)
        assert dict(zip(SUMS, sums.tolist(), strict=True))["anchors"] == expected
