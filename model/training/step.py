"""One step's arithmetic: examples -> gradients and sums, in memory bounded by one decoder pass.

Each pass is differentiated on its own, against a detached copy of the image's features, whose gradient goes through
the encoder once at the end if the encoder is trained. The mask that is fed back is detached, so passes do not hang
together. Nothing is read back from the device in between: that would wait for all work before it.
Legend: B images, N prompts, R pixels a side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..data.prompts import correction_clicks
from ..data.stream import Example
from ..network.granular import GranularSam2, ImageFeatures
from ..network.pixels import normalised_batch, sent
from .config import TrainConfig
from .dense_loss import DenseHead, dense_loss, padded
from .feature_cache import FeatureCache
from .losses import mask_losses

FEEDBACK_LIMIT: Final = 32.0
"""Logits that are fed back are clipped to this, as in SAM-2."""

SUMS: Final = ("loss", "mask", "dice", "iou", "iou_error", "prompts", "dense", "anchors")
"""What `accumulate_gradients` returns, summed over prompts; iou and iou_error of the last pass. `dense`, the dense
loss before its weight, is summed over anchors and no part of `loss`."""


_VALUES_OF_BYTES: Final = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).view(np.int64)[:, 0]
"""(256,): each byte's bits, the highest first, as eight bytes."""


def accumulate_gradients(
    model: GranularSam2,
    examples: Sequence[Example],
    config: TrainConfig,
    *,
    prompts_in_step: float,
    cache: FeatureCache | None = None,
    head: DenseHead | None = None,
    anchors_in_step: float = 1.0,
) -> Tensor:
    """Adds the gradients of some examples' losses, divided by the prompts of the whole step over all ranks.

    Args:
        model: on its device.
        examples: a forward pass's worth.
        config: of the run.
        prompts_in_step: over all ranks and all examples of the step, at least 1.
        cache: where the features of a frozen encoder are kept; None: they are computed each time.
        head: of the dense loss, on the model's device; None: without that loss.
        anchors_in_step: over all ranks and all examples of the step, at least 1; of examples that have a prompt.

    Returns:
        (8,) float64 on the model's device, the values named by `SUMS`.
    """
    sums = torch.zeros(len(SUMS), dtype=torch.float64, device=next(model.parameters()).device)
    seen = [each for each in examples if each.count]
    for size in sorted({each.image.shape[0] for each in seen}):
        with model.at_image_size(size):
            alike = [each for each in seen if each.image.shape[0] == size]
            sums += _accumulate(model, alike, config, prompts_in_step, cache, head, anchors_in_step)
    return sums


def _accumulate(
    model: GranularSam2,
    examples: Sequence[Example],
    config: TrainConfig,
    prompts_in_step: float,
    cache: FeatureCache | None,
    head: DenseHead | None,
    anchors_in_step: float,
) -> Tensor:
    """`accumulate_gradients` of examples of one size, each with a prompt."""
    device = next(model.parameters()).device
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16")
    with torch.set_grad_enabled(config.adapter == "full"), autocast:
        images = [each.image for each in examples]
        if config.adapter == "full":
            features = model.encode(normalised_batch(images, device))
        else:
            features = _frozen_features(model, images, device, cache)
    leaves = _leaves(features, trained=config.adapter == "full")
    # Measured on processors alone; LoRA and autocast have their own ways through sam2's layers.
    shared = device.type == "cpu" and config.precision == "fp32" and not model.lora_modules()
    counts = [each.count for each in examples]
    image_of = sent(np.repeat(np.arange(len(examples)), counts), device)
    packed = sent(np.concatenate([each.masks_packed for each in examples]), device)
    small = _shares(packed, config.loss_stride)
    target = _unpacked(packed) if config.clicks > 1 else None
    granularity = sent(np.concatenate([each.granularity for each in examples]), device)
    points = sent(np.concatenate([each.points for each in examples]), device)[:, None]
    labels = torch.ones(points.shape[:2], dtype=torch.int32, device=device)
    draws = sent(np.concatenate([each.correction_draws for each in examples]), device)
    mask_input: Tensor | None = None
    total = torch.zeros((), dtype=torch.float64, device=device)
    for click in range(config.clicks):
        with autocast:
            rows = leaves.shared(counts) if shared else leaves.select(image_of)
            decoded = model.decode(rows, points, labels, granularity, mask_input_N1HW=mask_input)
        logits = decoded.logits_NMHW.float()
        seen = logits
        if logits.shape[-2:] != small.shape[-2:]:
            seen = F.interpolate(logits, size=small.shape[-2:], mode="bilinear", align_corners=False)
        losses = mask_losses(
            seen[:, 0],
            small,
            decoded.iou_NM[:, 0],
            decoded.object_N1[:, 0],
            config.loss,
        )
        (losses.total / prompts_in_step).backward()
        total += losses.total.detach()
        if target is not None and click + 1 < config.clicks:
            mask_input = logits.detach().clamp(-FEEDBACK_LIMIT, FEEDBACK_LIMIT)
            full = F.interpolate(mask_input, size=target.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
            more, kind = correction_clicks(full > 0, target, draws[:, click])
            points, labels = torch.cat([points, more], dim=1), torch.cat([labels, kind], dim=1)
    dense, anchors = torch.zeros_like(total), 0
    if head is not None and any(len(each.anchors.points) for each in examples):
        cells, g, masks = (sent(array, device) for array in padded([each.anchors for each in examples]))
        targets = _unpacked(masks).view(*cells.shape, -1)
        summed = dense_loss(head, leaves.high_res[0], cells, g, targets, config.loss)
        (config.dense_weight * summed / anchors_in_step).backward()
        dense, anchors = summed.detach().double(), sum(len(each.anchors.points) for each in examples)
    if config.adapter == "full":
        _backward_through_encoder(features, leaves)
    means = (losses.mask, losses.dice, losses.iou, losses.iou_error)
    numbers = (torch.full_like(total, sum(counts)), dense, torch.full_like(total, anchors))
    return torch.stack([total, *(each.detach().double() for each in means), *numbers])


def _unpacked(packed: Tensor) -> Tensor:
    """(N, R, R / 8) uint8 as `np.packbits` gives -> (N, R, R) bool, where the bytes lie: a GPU is sent an eighth."""
    values = sent(_VALUES_OF_BYTES, packed.device).index_select(0, packed.int().flatten())
    return values.view(torch.bool).view(*packed.shape[:2], -1)


def _shares(packed: Tensor, stride: int) -> Tensor:
    """(N, R, R / 8) uint8 as `np.packbits` gives -> (N, R / s, R / s) float32: the share of each square that is inside.

    By bytes, not by pixels: most steps need the targets on this grid alone.
    """
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
    shares = sent(bits.reshape(256, 8 // stride, stride).mean(axis=2, dtype=np.float32), packed.device)
    rows = shares.index_select(0, packed.int().flatten())
    return rows.view(len(packed), packed.shape[1] // stride, stride, -1).mean(dim=2)


def _frozen_features(
    model: GranularSam2, images: Sequence[NDArray[np.uint8]], device: torch.device, cache: FeatureCache | None
) -> ImageFeatures:
    """What a frozen encoder says of images, read or computed: the same values in the same layout either way.

    On processors each image is encoded alone, because the rounding may hang on how many go together, and how many do
    hangs on what lies in the cache.
    """

    def encode(some: Sequence[NDArray[np.uint8]]) -> ImageFeatures:
        groups = [some] if device.type == "cuda" else [[image] for image in some]
        parts = [model.encode(normalised_batch(group, device)) for group in groups]
        levels = zip(*((each.embedding_BCHW, *each.high_res) for each in parts), strict=True)
        joined = [torch.cat(level).contiguous() for level in levels]
        return ImageFeatures(embedding_BCHW=joined[0], high_res=tuple(joined[1:]))

    return encode(images) if cache is None else cache.features(images, encode, device)


def _leaves(features: ImageFeatures, *, trained: bool) -> ImageFeatures:
    """The features cut off from the encoder; they collect gradients if the encoder is trained."""
    return ImageFeatures(
        embedding_BCHW=features.embedding_BCHW.detach().requires_grad_(trained),
        high_res=tuple(level.detach().requires_grad_(trained) for level in features.high_res),
    )


def _backward_through_encoder(features: ImageFeatures, leaves: ImageFeatures) -> None:
    outputs = [features.embedding_BCHW, *features.high_res]
    gradients = [each.grad for each in (leaves.embedding_BCHW, *leaves.high_res)]
    torch.autograd.backward(
        outputs, [None if each is None else each.to(out.dtype) for each, out in zip(gradients, outputs, strict=True)]
    )
