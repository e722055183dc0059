"""SAM-2 with a granularity dial.

`decode(..., granularity=None)` is SAM-2's own decoder, untouched: both new tokens are left out and LoRA is off. With a
granularity the new prompt token comes last among the prompts, and the granularity mask token takes the place of SAM's
mask token 0, of which it starts as a copy. So the decoder sees as many output tokens as it was trained with, only one
hypernetwork is run, and slot 0 of the IoU head speaks of the returned mask. The reference (arXiv 2511.13714's code,
`gra_mask_decoder.py`) keeps all four SAM tokens and throws their masks away; a model with `unsamv2_tokens` does as it
does, so that its weights can be used here and ours there, see `unsamv2.py`.

Legend: B images, N prompts, P points of a prompt, M masks of a prompt, C channels, H W pixels or cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import sam2_base
from .adapters import (
    SPECS,
    Adapter,
    GranularityEncoder,
    LoraLinear,
    LowRankHypernetwork,
    insert_lora,
    layer_sizes,
    lora_active,
    lora_layers,
    own_hypernetwork,
)
from .click_features import ClickFeatures, Clicks, Sight, SimilarityTerm
from .many_prompts import as_rows, for_prompts, two_way, upscaled_logits
from .sam2_base import Size, build_base, parameter_count
from .trunks import STATE_PREFIX, Trunk


@dataclass(frozen=True, kw_only=True)
class ImageFeatures:
    """What the encoder gives once for an image, for any number of prompts and granularities."""

    embedding_BCHW: Tensor
    """Stride 16."""
    high_res: tuple[Tensor, ...]
    """Strides 4 and 8, already projected for the decoder."""
    counts: tuple[int, ...] | None = None
    """Prompts that each row answers, in their order, see `shared`; None: one."""

    def shared(self, counts: Sequence[int]) -> ImageFeatures:
        """Features of B images for `counts` prompts each, decoded as `many_prompts` does."""
        return replace(self, counts=tuple(counts))

    def repeat(self, index: int, count: int) -> ImageFeatures:
        """Features of one image for `count` prompts: expanded, not copied (16 MB a prompt at 1024 pixels)."""
        return ImageFeatures(
            embedding_BCHW=self.embedding_BCHW[index].expand(count, -1, -1, -1),
            high_res=tuple(level[index].expand(count, -1, -1, -1) for level in self.high_res),
        )

    def select(self, index_N: Tensor) -> ImageFeatures:
        """Features of the image of each prompt."""
        return ImageFeatures(
            embedding_BCHW=self.embedding_BCHW[index_N], high_res=tuple(level[index_N] for level in self.high_res)
        )


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """The decoder's answer for N prompts."""

    logits_NMHW: Tensor
    """Mask logits at stride 4; foreground above 0."""
    iou_NM: Tensor
    """Predicted IoU of each mask, in [0, 1]."""
    own_iou_NM: Tensor | None = None
    """Where `iou_NM` is as UnSAMv2's code returns it, predicted for another mask: that of the mask itself."""
    token_NMC: Tensor
    """Output token(s), from which video makes object pointers."""
    object_N1: Tensor
    """Logit of "there is an object"."""


class GranularSam2(nn.Module):
    """A `sam2` model plus an adapter.

    Args:
        size: of the base.
        adapter: `paper`, `lite` or `full`, see `adapters.py`.
        image_size: pixels a side of the square input.
        sight: what the decoder hears where it is clicked. Beside a frozen base it says nothing at the start.
        video: build the base as sam2's video predictor, see `video.py`.
        trunk: the network in Hiera's place, see `trunks.py`; None: Hiera.
        unsamv2_tokens: the granularity's mask token stands beside SAM's four, as in UnSAMv2's code, instead of in the
            place of the first.
    """

    has_dial: bool = True
    """False: SAM-2's own weights alone, which know no granularity."""
    has_base: bool = True
    """False: SAM-2's own weights are not all there, so that nothing is answered without a granularity."""
    their_iou: bool = False
    """UnSAMv2's own weights: where several masks are asked for, the predicted IoU is as their code returns it."""

    def __init__(
        self,
        size: Size,
        adapter: Adapter,
        image_size: int,
        *,
        sight: Sight | None = None,
        video: bool = False,
        trunk: Trunk | None = None,
        unsamv2_tokens: bool = False,
    ) -> None:
        super().__init__()
        self.unsamv2_tokens = unsamv2_tokens
        self.size, self.adapter, self.image_size, self.trunk = size, adapter, image_size, trunk
        self.sight = sight or Sight()
        self.spec = SPECS[adapter]
        self.base = build_base(size, image_size, video=video, trunk=trunk.name if trunk else None)
        if not video:  # memory alone asks for the levels' positions, and they are as large as the levels
            self.base.image_encoder.neck.position_encoding = nn.Identity()
        decoder = self.base.sam_mask_decoder
        width = int(decoder.transformer_dim)
        self.granularity_encoder = GranularityEncoder(self.spec, width)
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        self.hypernetwork: nn.Module = (
            own_hypernetwork(decoder)
            if self.spec.own_hypernetwork
            else LowRankHypernetwork(layer_sizes(decoder.output_hypernetworks_mlps[0]))
        )
        self.adopt_base()
        self.base_parameters = parameter_count(self.base)
        if video:
            self.base.granular_decoder = self.granular_decoder
        insert_lora(decoder.transformer, self.spec)
        self._lora: list[LoraLinear] = [layer for _, layer in lora_layers(decoder.transformer)]
        fine, middle = decoder.conv_s0.out_channels, decoder.conv_s1.out_channels
        silent = adapter != "full"
        self.click_features = (
            ClickFeatures(width + fine + middle, width, silent=silent) if self.sight.click_features else None
        )
        self.similarity = (
            SimilarityTerm(width, fine, place=self.sight.similarity == "place", silent=silent)
            if self.sight.similarity != "off"
            else None
        )

    def adopt_base(self) -> None:
        """Copies SAM's token 0 and hypernetwork 0 into the new ones; call again after loading base weights."""
        decoder = self.base.sam_mask_decoder
        with torch.no_grad():
            self.mask_token.copy_(decoder.mask_tokens.weight[:1])
        if self.spec.own_hypernetwork:
            self.hypernetwork.load_state_dict(decoder.output_hypernetworks_mlps[0].state_dict())

    # -- which parameters are trained --------------------------------------------------------------------------------

    def base_state(self) -> dict[str, Tensor]:
        """The base's state dict under Meta's names, LoRA left out."""
        return {name: value for name, value in self.base.state_dict().items() if ".lora_" not in name}

    def adapter_names(self) -> list[str]:
        """Names of the added parameters."""
        return [
            name
            for name, _ in self.named_parameters()
            if not name.startswith("base.") or name.rsplit(".", 1)[-1].startswith("lora_")
        ]

    def set_trainable(self) -> list[str]:
        """Freezes all but what the adapter trains, and returns those names in order.

        `full` trains the base too, except what a still image never uses: memory, object pointers, mask tokens 0 and
        hypernetworks of SAM's own answer, and a frozen trunk.
        """
        names = set(self.adapter_names())
        if self.adapter == "full":
            frozen = self.trunk is not None and not self.trunk.rate
            names |= {
                name
                for name, _ in self.named_parameters()
                if _trained_from_scratch(name) and not (frozen and name.startswith(STATE_PREFIX))
            }
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in names)
        return [name for name, _ in self.named_parameters() if name in names]

    def keeps_lora(self) -> bool:
        """Whether a merged checkpoint holds LoRA's own matrices too, so that UnSAMv2's code can have them back."""
        return self.unsamv2_tokens and self.has_base

    def lora_modules(self) -> list[LoraLinear]:
        """The decoder's LoRA layers."""
        return list(self._lora)

    @contextmanager
    def at_image_size(self, image_size: int) -> Iterator[None]:
        """Inside, images of another size are taken: positions are relative, so the same weights serve."""
        prompts = self.base.sam_prompt_encoder
        before = prompts.input_image_size, prompts.image_embedding_size
        prompts.input_image_size = (image_size, image_size)
        prompts.image_embedding_size = (image_size // 16, image_size // 16)
        try:
            yield
        finally:
            prompts.input_image_size, prompts.image_embedding_size = before

    # -- forward ---------------------------------------------------------------------------------------------------

    def encode(self, images_B3HW: Tensor) -> ImageFeatures:
        """Encodes normalised square images once.

        Args:
            images_B3HW: float, `image_size` a side, as `pixels.normalised` makes them.
        """
        levels = self.base.forward_image(images_B3HW)["backbone_fpn"][-self.base.num_feature_levels :]
        embedding = levels[-1]
        if self.base.directly_add_no_mem_embed:
            embedding = embedding + self.base.no_mem_embed.reshape(1, -1, 1, 1)
        return ImageFeatures(embedding_BCHW=embedding, high_res=tuple(levels[:-1]))

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
        """Decodes N prompts, each on its own row of `features` (see `ImageFeatures.select`).

        Args:
            features: N rows; or those of B images from `ImageFeatures.shared`, for a granularity and a model without
                LoRA: the same answer in fewer and larger products.
            points_NP2: (x, y) in pixels of the model's input; boxes are two points with labels 2 and 3.
            labels_NP: 1 inside, 0 outside, 2 and 3 a box's corners, -1 padding.
            granularity_N: in [0.1, 1.0]; None: SAM-2's own answer.
            mask_input_N1HW: logits of an earlier pass, at stride 4.
            multimask: three masks for each prompt; with a granularity there is one, whatever this says, and of
                UnSAMv2's own weights another IoU, see `decode_prompts`.
        """
        points = None if points_NP2 is None or labels_NP is None else (points_NP2, labels_NP)
        sparse, dense = self.base.sam_prompt_encoder(points=points, boxes=None, masks=mask_input_N1HW)
        if granularity_N is None:
            masks, iou, tokens, objects = self.base.sam_mask_decoder(
                image_embeddings=features.embedding_BCHW,
                image_pe=self.base.sam_prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=multimask,
                repeat_image=False,
                high_res_features=list(features.high_res),
            )
            return Decoded(logits_NMHW=masks, iou_NM=iou, token_NMC=tokens, object_N1=objects)
        clicks = self.clicks(points, features.counts)
        if mask_input_N1HW is None:
            dense = dense[:1]
        return self.decode_prompts(features, sparse, dense, granularity_N, clicks, multimask=multimask)

    def clicks(self, points: tuple[Tensor, Tensor] | None, counts: tuple[int, ...] | None = None) -> Clicks | None:
        """Points and labels as sam2's prompt encoder takes them, in an input of the size that it is set to."""
        if points is None:
            return None
        side = int(self.base.sam_prompt_encoder.input_image_size[0])
        return Clicks(points_NP2=points[0], labels_NP=points[1], side=side, counts=counts)

    @contextmanager
    def granular_decoder(self, granularity: float | None) -> Iterator[None]:
        """sam2's own code around the mask decoder meets one that answers at this granularity; None: its own.

        Object pointers, the choice among masks and "no object" stay sam2's: it asks for several masks and gets one.
        """
        if granularity is None:
            yield
            return
        decoder, encoder = self.base.sam_mask_decoder, self.base.sam_prompt_encoder
        noted: list[Clicks | None] = [None]

        def encode(points: tuple[Tensor, Tensor] | None, boxes: Tensor | None, masks: Tensor | None) -> Any:
            noted[0] = self.clicks(points)
            return type(encoder).forward(encoder, points, boxes, masks)

        def forward(
            image_embeddings: Tensor,
            image_pe: Tensor,
            sparse_prompt_embeddings: Tensor,
            dense_prompt_embeddings: Tensor,
            multimask_output: bool,
            repeat_image: bool,
            high_res_features: list[Tensor],
        ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            features = ImageFeatures(embedding_BCHW=image_embeddings, high_res=tuple(high_res_features))
            values = torch.full((len(sparse_prompt_embeddings),), granularity, device=image_embeddings.device)
            found = self.decode_prompts(features, sparse_prompt_embeddings, dense_prompt_embeddings, values, noted[0])
            return found.logits_NMHW, found.iou_NM, found.token_NMC, found.object_N1

        # Attributes of these instances, in front of their classes' methods.
        decoder.forward, encoder.forward = forward, encode
        try:
            yield
        finally:
            del decoder.forward, encoder.forward

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
        """The granular answer to N prompts that sam2's prompt encoder has encoded.

        Args:
            features: N rows, or as in `decode`.
            sparse: (N, T, C) prompt tokens.
            dense: (N, C, H, W), or one row for all.
            granularity_N: in [0.1, 1.0].
            clicks: what the first of the prompt tokens stand for, for a model that looks there; None: no points.
            multimask: with `their_iou`, return the IoU that UnSAMv2's code returns where several masks are asked for:
                the highest of those predicted for SAM's masks 1 to 3, and `own_iou_NM` beside it.
        """
        decoder = self.base.sam_mask_decoder
        heard: tuple[Tensor, Tensor] | None = None
        if self.click_features is not None and clicks is not None:
            heard = self.click_features((features.embedding_BCHW, *features.high_res), clicks)
            sparse = sparse + F.pad(heard[0], (0, 0, 0, sparse.shape[1] - heard[0].shape[1]))
        prompt = torch.cat([sparse, self.granularity_encoder(granularity_N).to(sparse.dtype)], dim=1)
        own = decoder.mask_tokens.weight
        masks = [own, self.mask_token] if self.unsamv2_tokens else [self.mask_token, own[1:]]
        output = torch.cat([decoder.obj_score_token.weight, decoder.iou_token.weight, *masks])
        tokens = torch.cat([output[None].expand(prompt.shape[0], -1, -1), prompt], dim=1)
        answer, cells = self._transformed(features, dense, tokens)
        place = 2 + len(own) if self.unsamv2_tokens else 2
        token = answer[:, place] if heard is None else answer[:, place] + heard[1]
        logits = self._logits(features, cells, self._mask_weights(token))[:, None]
        if self.similarity is not None and clicks is not None:
            logits = logits + self.similarity(token, features.high_res[0], clicks)[:, None]
        slots = decoder.iou_prediction_head(answer[:, 1])
        iou = slots[:, :1]
        return Decoded(
            logits_NMHW=logits,
            iou_NM=slots[:, 1:].amax(dim=1, keepdim=True) if self.their_iou and multimask else iou,
            own_iou_NM=iou if self.their_iou and multimask else None,
            token_NMC=token[:, None],
            object_N1=decoder.pred_obj_score_head(answer[:, 0]),
        )

    def _transformed(self, features: ImageFeatures, dense: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (N, T, C) and cells (N, L, C) behind the transformer."""
        transformer, position = self.base.sam_mask_decoder.transformer, self.base.sam_prompt_encoder.get_dense_pe()
        if features.counts is None:
            with lora_active(self._lora):
                found: tuple[Tensor, Tensor] = transformer(
                    features.embedding_BCHW + dense, position.expand(tokens.shape[0], -1, -1, -1), tokens
                )
            return found
        if len(dense) == 1:
            cells = for_prompts(as_rows(features.embedding_BCHW + dense), features.counts)
        else:
            cells = for_prompts(as_rows(features.embedding_BCHW), features.counts) + as_rows(dense)
        return two_way(transformer, cells, as_rows(position), tokens)

    def _logits(self, features: ImageFeatures, cells: Tensor, weights: Tensor) -> Tensor:
        """(N, 4 H, 4 W) of cells behind the transformer and the hypernetwork's weights."""
        decoder, side = self.base.sam_mask_decoder, features.embedding_BCHW.shape[2:]
        if features.counts is None:
            source = cells.transpose(1, 2).unflatten(2, tuple(side))
            return torch.einsum("nc,nchw->nhw", weights, _upscale(decoder, source, features.high_res))
        return upscaled_logits(decoder, cells, features.high_res, features.counts, weights)

    def _mask_weights(self, token_NC: Tensor) -> Tensor:
        if isinstance(self.hypernetwork, LowRankHypernetwork):
            return self.hypernetwork(token_NC, self.base.sam_mask_decoder.output_hypernetworks_mlps[0])
        return self.hypernetwork(token_NC)

    def counts(self) -> dict[str, Any]:
        """Parameters: trained, added, of the base, and the added ones' share of the base in per cent."""
        trained = set(self.set_trainable())
        sizes = {name: parameter.numel() for name, parameter in self.named_parameters()}
        added = sum(sizes[name] for name in self.adapter_names())
        return {
            "trainable_parameters": sum(sizes[name] for name in trained),
            "added_parameters": added,
            "base_parameters": self.base_parameters,
            "added_percent": round(100 * added / self.base_parameters, 4),
        }


def _upscale(decoder: Any, source_NCHW: Tensor, high_res: tuple[Tensor, ...]) -> Tensor:
    """sam2's upscaling by 4 with the encoder's finer levels: (N, C, H, W) -> (N, C / 8, 4 H, 4 W)."""
    first, norm, act_first, second, act_second = decoder.output_upscaling
    fine, middle = high_res
    upscaled = act_first(norm(first(source_NCHW) + middle))
    return act_second(second(upscaled) + fine)


MEMORY_NAMES = tuple(f"base.{name}" for name in sam2_base.MEMORY_NAMES)
"""How the names of what video alone uses begin."""
_UNUSED_BY_IMAGES = (*MEMORY_NAMES, "base.sam_mask_decoder.output_hypernetworks_mlps.")


def _trained_from_scratch(name: str) -> bool:
    return name.startswith("base.") and not name.startswith(_UNUSED_BY_IMAGES)
