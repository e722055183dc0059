"""What training minimises, summed over prompts, so that the sum does not depend on how prompts are spread over ranks.

Weights and forms are SAM-2's (focal 20, dice 1, IoU 1, object score 1; arXiv 2408.00714, and 2511.13714's code);
from scratch, plain cross-entropy learns faster than the focal form and is the default there.
Legend: N prompts, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import InputError


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weight of each term."""

    focal: float = 20.0
    """Sigmoid focal loss (alpha 0.25, gamma 2), mean over pixels."""
    cross_entropy: float = 0.0
    """Binary cross-entropy, mean over pixels."""
    dice: float = 1.0
    iou: float = 1.0
    """Absolute error of the predicted IoU."""
    object_score: float = 1.0
    """Cross-entropy of "there is an object": every prompt has one."""

    def __post_init__(self) -> None:
        if min(self.focal, self.cross_entropy, self.dice, self.iou, self.object_score) < 0:
            raise InputError("loss weights must not be negative")


@dataclass(frozen=True, kw_only=True)
class LossSums:
    """Sums over N prompts of one decoder pass; `total` carries the gradient."""

    total: Tensor
    mask: Tensor
    dice: Tensor
    iou_error: Tensor
    """Of the predicted against the true IoU."""
    iou: Tensor
    """True IoU of the masks, at the logits' resolution."""


@dataclass(frozen=True, kw_only=True)
class ShapeLosses:
    """Losses of N masks' shapes, one of each."""

    mask_N: Tensor
    """Focal loss and cross-entropy, weighted."""
    dice_N: Tensor


def shape_losses(logits_NP: Tensor, target_NP: Tensor, weights: LossWeights) -> ShapeLosses:
    """How far masks are from their targets.

    Args:
        logits_NP: float32, P pixels.
        target_NP: float32 in [0, 1].
        weights: of the terms.
    """
    probability = logits_NP.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits_NP, target_NP, reduction="none")
    mask = logits_NP.new_zeros(len(logits_NP))
    if weights.focal:
        right = probability * target_NP + (1 - probability) * (1 - target_NP)
        alpha = 0.25 * target_NP + 0.75 * (1 - target_NP)
        mask = mask + weights.focal * (alpha * (1 - right) ** 2 * entropy).mean(dim=1)
    if weights.cross_entropy:
        mask = mask + weights.cross_entropy * entropy.mean(dim=1)
    overlap = (probability * target_NP).sum(dim=1)
    dice = 1 - (2 * overlap + 1) / (probability.sum(dim=1) + target_NP.sum(dim=1) + 1)
    return ShapeLosses(mask_N=mask, dice_N=dice)


def mask_losses(
    logits_NHW: Tensor, target_NHW: Tensor, predicted_iou_N: Tensor, object_logit_N: Tensor, weights: LossWeights
) -> LossSums:
    """Losses of one decoder pass.

    Args:
        logits_NHW: float.
        target_NHW: float in [0, 1]; above 0.5 is inside.
        predicted_iou_N: in [0, 1].
        object_logit_N: logit of "there is an object".
        weights: of the terms.
    """
    logits = logits_NHW.float().flatten(1)
    target = target_NHW.float().flatten(1)
    shape = shape_losses(logits, target, weights)
    mask, dice = shape.mask_N, shape.dice_N
    true_iou = _iou(logits.detach() > 0, target > 0.5)
    iou_error = (predicted_iou_N.float() - true_iou).abs()
    present = F.binary_cross_entropy_with_logits(
        object_logit_N.float(), torch.ones_like(object_logit_N, dtype=torch.float32), reduction="none"
    )
    total = mask + weights.dice * dice + weights.iou * iou_error + weights.object_score * present
    return LossSums(total=total.sum(), mask=mask.sum(), dice=dice.sum(), iou_error=iou_error.sum(), iou=true_iou.sum())


def _iou(predicted_NP: Tensor, target_NP: Tensor) -> Tensor:
    union = (predicted_NP | target_NP).sum(dim=1)
    return torch.where(union > 0, (predicted_NP & target_NP).sum(dim=1) / union.clamp(min=1), 1.0)
