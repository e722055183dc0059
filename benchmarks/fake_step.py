"""A training step on fake tensors: shapes and types without values, so a step of any size runs anywhere in seconds."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from model.data.prompts import Prompts
from model.data.stream import Example
from model.training.config import TrainConfig


def use_fake_weights(model: nn.Module) -> None:
    """Replaces all weights and buffers by fresh ones: inside a `FakeTensorMode`, by fake ones."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                module._parameters[name] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        buffers = module._buffers
        buffers.update(
            {name: torch.empty(each.shape, dtype=each.dtype) for name, each in buffers.items() if each is not None}
        )


def blank_example(config: TrainConfig) -> Example:
    """One with all prompts that the configuration asks for, in a photograph of its size."""
    size, count = config.image_size, config.masks_per_image
    cells = size // 4
    anchors = Prompts(
        points=np.zeros((config.dense_anchors, 2), dtype=np.float32),
        masks_packed=np.zeros((config.dense_anchors, cells, cells // 8), dtype=np.uint8),
        granularity=np.ones(config.dense_anchors, dtype=np.float32),
        mask_id=np.zeros(config.dense_anchors, dtype=np.int64),
    )
    return Example(
        position=0,
        key="",
        image=np.zeros((size, size, 3), dtype=np.uint8),
        points=np.zeros((count, 2), dtype=np.float32),
        granularity=np.ones(count, dtype=np.float32),
        masks_packed=np.zeros((count, size, size // 8), dtype=np.uint8),
        correction_draws=np.zeros((count, config.clicks - 1), dtype=np.float32),
        problem=None,
        anchors=anchors,
    )
