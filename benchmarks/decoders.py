"""Students whose decoder hears granularity otherwise, or not at all: what no flag of `train` says.

The dense loss, where it is on, hears each mask's g all the same; its head is no part of the answer.

- `one-mask`: told no g; one mask for each click, SAM's first.
- `three-masks`: told no g; SAM's three masks with their predicted IoU, trained as SAM is: on the one of the three that
  fits best. Asked for a g, it answers with the smallest, middle or largest of the three, as g lies in the lower, middle
  or upper third of [0.1, 1.0], so that the best over all g is the best of three; by itself it takes the one of the
  highest predicted IoU.
- `token`: g is added to the mask token and is no prompt.
- `prompt`: beside a frozen base; g is a prompt, and all that is trained: mask token and hypernetwork stay SAM's.

From scratch the mask token is SAM's first under another name, so there the plain student is one of a prompt alone.
Legend: N prompts, M masks of a prompt, C channels, H W cells at stride 4.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.data.augmentation import unpacked
from model.data.stream import Example
from model.network import load
from model.network.click_features import Clicks
from model.network.granular import Decoded, GranularSam2, ImageFeatures
from model.network.pixels import normalised_batch
from model.training import train
from model.training.config import TrainConfig
from model.training.dense_loss import DenseHead, dense_loss, padded
from model.training.feature_cache import FeatureCache
from model.training.losses import shape_losses
from model.training.step import SUMS

Decoder = Literal["one-mask", "three-masks", "token", "prompt"]
MASKS: Final = 3


class OtherTokens(GranularSam2):
    """The granular decoder without a prompt for g; subclasses say which mask tokens there are, and which answer."""

    answering: tuple[int, ...] = (0,)
    """Of the four mask tokens."""

    def mask_tokens(self, granularity_N: Tensor) -> Tensor:
        """(N, 4, C)."""
        own = torch.cat([self.mask_token, self.base.sam_mask_decoder.mask_tokens.weight[1:]])
        return own[None].expand(len(granularity_N), -1, -1)

    def weights(self, place: int, token_NC: Tensor) -> Tensor:
        """(N, C / 8) of the mask of one of the four tokens."""
        if place == 0:
            return self._mask_weights(token_NC)
        found: Tensor = self.base.sam_mask_decoder.output_hypernetworks_mlps[place](token_NC)
        return found

    def decode_prompts(
        self,
        features: ImageFeatures,
        sparse: Tensor,
        dense: Tensor,
        granularity_N: Tensor,
        clicks: Clicks | None = None,
        *,
        multimask: bool = False,
    ) -> Decoded:
        """As the dial's own, with a mask for each of `answering`."""
        decoder = self.base.sam_mask_decoder
        to_mask: Tensor | float = 0.0
        if self.click_features is not None and clicks is not None:
            to_prompt, to_mask = self.click_features((features.embedding_BCHW, *features.high_res), clicks)
            sparse = sparse + F.pad(to_prompt, (0, 0, 0, sparse.shape[1] - to_prompt.shape[1]))
        first = torch.cat([decoder.obj_score_token.weight, decoder.iou_token.weight])
        tokens = torch.cat([first[None].expand(len(sparse), -1, -1), self.mask_tokens(granularity_N), sparse], dim=1)
        answer, cells = self._transformed(features, dense, tokens)
        found, logits = [], []
        for place in self.answering:
            token = answer[:, 2 + place] + to_mask
            found.append(token)
            logits.append(self._logits(features, cells, self.weights(place, token)))
            if self.similarity is not None and clicks is not None:
                logits[-1] = logits[-1] + self.similarity(token, features.high_res[0], clicks)
        return Decoded(
            logits_NMHW=torch.stack(logits, dim=1),
            iou_NM=decoder.iou_prediction_head(answer[:, 1])[:, list(self.answering)],
            token_NMC=torch.stack(found, dim=1),
            object_N1=decoder.pred_obj_score_head(answer[:, 0]),
        )

    def _without(self, *unused: str) -> list[str]:
        """Freezes what the answer does not hang on, and returns the names of what is trained."""
        names = [each for each in super().set_trainable() if not each.startswith(unused)]
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in names)
        return names


class OneMask(OtherTokens):
    def set_trainable(self) -> list[str]:
        return self._without("granularity_encoder.")


class ThreeMasks(OtherTokens):
    answering = (1, 2, 3)

    def adopt_base(self) -> None:
        """The other hypernetworks begin as the first does, so that each token's answer is a blob around the click."""
        super().adopt_base()
        networks = self.base.sam_mask_decoder.output_hypernetworks_mlps
        for place in self.answering:
            networks[place].load_state_dict(networks[0].state_dict())

    def set_trainable(self) -> list[str]:
        names = self._without("granularity_encoder.", "mask_token", "hypernetwork.")
        for place in self.answering:
            for name, parameter in self.named_parameters():
                if name.startswith(f"base.sam_mask_decoder.output_hypernetworks_mlps.{place}."):
                    parameter.requires_grad_(True)
                    names.append(name)
        return names

    def all_masks(self, features: ImageFeatures, points_NP2: Tensor, labels_NP: Tensor) -> Decoded:
        """All three."""
        return super().decode(features, points_NP2, labels_NP, torch.ones(len(points_NP2), device=points_NP2.device))

    def decode(
        self,
        features: ImageFeatures,
        points_NP2: Tensor | None,
        labels_NP: Tensor | None,
        granularity_N: Tensor | None,
        *,
        mask_input_N1HW: Tensor | None = None,
        multimask: bool = False,
    ) -> Decoded:
        """One of the three: by size as g says; without g its own choice."""
        assert points_NP2 is not None, "this student answers clicks"
        assert labels_NP is not None
        found = self.all_masks(features, points_NP2, labels_NP)
        if granularity_N is None:
            chosen = found.iou_NM.argmax(dim=1)
        else:
            order = (found.logits_NMHW > 0).sum(dim=(2, 3)).argsort(dim=1, stable=True)
            third = ((granularity_N - 0.1) / 0.9 * MASKS).long().clamp(0, MASKS - 1)
            chosen = order.gather(1, third[:, None])[:, 0]
        rows = torch.arange(len(chosen), device=chosen.device)
        return replace(
            found,
            logits_NMHW=found.logits_NMHW[rows, chosen][:, None],
            iou_NM=found.iou_NM[rows, chosen][:, None],
            token_NMC=found.token_NMC[rows, chosen][:, None],
        )


class TokenAlone(OtherTokens):
    def mask_tokens(self, granularity_N: Tensor) -> Tensor:
        own = super().mask_tokens(granularity_N)
        return torch.cat([own[:, :1] + self.granularity_encoder(granularity_N), own[:, 1:]], dim=1)


class PromptAlone(GranularSam2):
    def set_trainable(self) -> list[str]:
        names = [each for each in super().set_trainable() if each.startswith("granularity_encoder.")]
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in names)
        return names


CLASSES: Final[dict[Decoder, type[GranularSam2]]] = {
    "one-mask": OneMask, "three-masks": ThreeMasks, "token": TokenAlone, "prompt": PromptAlone,
}  # fmt: skip


def best_of_three(
    model: ThreeMasks,
    examples: Sequence[Example],
    config: TrainConfig,
    *,
    prompts_in_step: float,
    cache: FeatureCache | None = None,
    head: DenseHead | None = None,
    anchors_in_step: float = 1.0,
) -> Tensor:
    """`step.accumulate_gradients` for one click and three masks, as SAM-2 is trained.

    The mask that fits best has the shape's loss; predicted IoU is taught for all three. The dense loss is the same.
    """
    device = next(model.parameters()).device
    seen = [each for each in examples if each.count]
    if not seen:
        return torch.zeros(len(SUMS), dtype=torch.float64, device=device)
    features = model.encode(normalised_batch([each.image for each in seen], device))
    points = torch.from_numpy(np.concatenate([each.points for each in seen])).to(device)[:, None]
    labels = torch.ones(points.shape[:2], dtype=torch.int32, device=device)
    found = model.all_masks(features.shared([each.count for each in seen]), points, labels)
    masks = torch.from_numpy(np.concatenate([each.masks() for each in seen])).to(device)
    target = F.avg_pool2d(masks[:, None].float(), config.loss_stride)
    logits = F.interpolate(found.logits_NMHW, size=target.shape[-2:], mode="bilinear", align_corners=False)
    asked = target.expand_as(logits).flatten(2)
    flat, weights = logits.flatten(2), config.loss
    losses = shape_losses(flat.flatten(0, 1), asked.flatten(0, 1), weights)
    mask_NM, dice_NM = (each.view(len(flat), MASKS) for each in (losses.mask_N, losses.dice_N))
    shape, best = (mask_NM + weights.dice * dice_NM).min(dim=1)
    answered, inside = flat.detach() > 0, asked > 0.5
    iou = (answered & inside).sum(dim=2) / (answered | inside).sum(dim=2).clamp(min=1)
    error = (found.iou_NM - iou).abs()
    present = F.binary_cross_entropy_with_logits(
        found.object_N1[:, 0], torch.ones(len(flat), device=device), reduction="none"
    )
    total = (shape + weights.iou * error.mean(dim=1) + weights.object_score * present).sum()
    dense, anchors = torch.zeros_like(total), 0
    if head is not None and any(len(each.anchors.points) for each in seen):
        arrays = padded([each.anchors for each in seen])
        cells, g, _ = (torch.from_numpy(each).to(device) for each in arrays)
        targets = torch.from_numpy(unpacked(arrays[2])).to(device).view(*cells.shape, -1)
        dense = dense_loss(head, features.high_res[0], cells, g, targets, config.loss)
        anchors = sum(len(each.anchors.points) for each in seen)
    (total / prompts_in_step + config.dense_weight * dense / anchors_in_step).backward()
    of_best = (each.gather(1, best[:, None]).sum() for each in (mask_NM, dice_NM, iou, error))
    numbers = (total, *of_best, torch.tensor(len(flat)), dense, torch.tensor(anchors))
    return torch.stack([each.detach().double().to(device) for each in numbers])


@contextmanager
def decoder_of(name: Decoder | None) -> Iterator[None]:
    """Inside, models are made, trained and read with this decoder; a checkpoint does not say it."""
    if name is None:
        yield
        return
    places: list[tuple[Any, str, Any]] = [(load, "GranularSam2", CLASSES[name])]
    if name == "three-masks":
        places.append((train, "accumulate_gradients", best_of_three))
    before = [getattr(where, what) for where, what, _ in places]
    for where, what, new in places:
        setattr(where, what, new)
    try:
        yield
    finally:
        for (where, what, _), old in zip(places, before, strict=True):
            setattr(where, what, old)
