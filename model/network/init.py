"""A start for models that train from scratch: clicks find their place before anything is learned.

With the layers' own random weights the decoder's answer does not hang on the click at all: the first attention among
the tokens has no shortcut past it and mixes them into one vector, so every pixel hears the same whatever it attends to,
and the random projections of the cross-attentions say little about distance. A short training never leaves the answer
"all of it" or "nothing of it" (measured). The fresh weights are therefore set so that the model answers a click with a
soft blob around it, from which training goes on:

- Position gets channels of its own. SAM's tokens and pixels carry the same positional code, sines and cosines of random
  waves; half of the waves are replaced by pairs at right angles, one pair length for each attention head, and the heads
  of the cross-attentions look at these alone, the same for queries and keys: q . k is then cos + cos of the distance
  in x and y, a bump at the click, at eight widths from a tenth of the image to all of it. Learned tokens, the encoder's
  features and the layers' outputs start at zero in those channels, so that nothing drowns the bump.
- The first attention among the tokens starts as the identity.
- What turns tokens and pixels into masks starts with the variance that ReLU needs, without offsets.

Nothing is held afterwards.
"""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import Tensor, nn

from .granular import GranularSam2

SHARPNESS: Final = 2.0
"""Length of the projections' rows; the attention's logit at the clicked place is its square."""
SCALES: Final = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8)
"""Of the heads' waves: cycles over half the image. 0.25: half a wave over the whole image."""
IMAGE_SCALE: Final = 0.3
"""Of the neck's weights against torch's default: at first the pixels hear more of the click than of the image."""


@torch.no_grad()
def start_from_clicks(model: GranularSam2) -> None:
    """Changes a fresh model's random weights so that it answers a click with a blob around it."""
    base = model.base
    decoder, prompts = base.sam_mask_decoder, base.sam_prompt_encoder
    position = look_at_clicks(prompts, decoder.transformer)
    tokens = [decoder.obj_score_token, decoder.iou_token, decoder.mask_tokens, prompts.not_a_point_embed]
    for embedding in (*tokens, *prompts.point_embeddings):
        embedding.weight[:, position] = 0.0
    prompts.no_mask_embed.weight.zero_()
    base.no_mem_embed.zero_()
    for level in base.image_encoder.neck.convs:
        level.conv.weight.mul_(IMAGE_SCALE)
        level.conv.bias.zero_()
        level.conv.weight[position] = 0.0
    for layer in decoder.transformer.layers:
        attention = layer.cross_attn_image_to_token
        for projection in (attention.v_proj, attention.out_proj):
            _draw(projection, projection.in_features, gain=1.0)
        for written in (
            layer.self_attn.out_proj,
            layer.cross_attn_token_to_image.out_proj,
            attention.out_proj,
            layer.mlp.layers[-1],
        ):
            _silence(written, position)
    _silence(decoder.transformer.final_attn_token_to_image.out_proj, position)
    _silence(model.granularity_encoder.mlp[-1], position)
    if model.click_features is not None:
        _silence(model.click_features.to_prompt, position)
    _keep_tokens_apart(decoder.transformer.layers[0].self_attn, position)
    for hypernetwork_layer in decoder.output_hypernetworks_mlps[0].layers:
        _draw(hypernetwork_layer, hypernetwork_layer.in_features, gain=math.sqrt(2))
    for upscaling in decoder.output_upscaling:
        if isinstance(upscaling, nn.ConvTranspose2d):
            _draw(upscaling, upscaling.in_channels, gain=math.sqrt(2))
            upscaling.weight.copy_(upscaling.weight[:, :, :1, :1].expand_as(upscaling.weight))  # no checkerboard
    model.adopt_base()


def _draw(layer: Any, inputs: int, *, gain: float) -> None:
    nn.init.normal_(layer.weight, 0.0, gain / math.sqrt(inputs))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _silence(layer: Any, channels: Tensor) -> None:
    layer.weight[channels] = 0.0
    layer.bias[channels] = 0.0


@torch.no_grad()
def look_at_clicks(prompt_encoder: Any, transformer: Any) -> Tensor:
    """Gives each head of every attention between tokens and image a look at the click, each at a scale of its own.

    Args:
        prompt_encoder: sam2's, fresh; half of its positional code's waves are replaced.
        transformer: sam2's two-way transformer, fresh; its q and k projections between tokens and image are replaced.

    Returns:
        The channels that carry position for these heads, (n,) bool.
    """
    frequencies = prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    waves = frequencies.shape[1]
    position = torch.zeros(2 * waves, dtype=torch.bool)
    for name, module in transformer.named_modules():
        if not name.endswith(("token_to_image", "image_to_token")):
            continue
        per_head = module.internal_dim // module.num_heads // 2
        weight = torch.zeros(module.internal_dim, module.embedding_dim)
        for wave in range(module.num_heads * per_head):
            head, number = divmod(wave, per_head)
            # Two waves at right angles make a bump; further pairs are turned, so that it is rounder.
            angle = math.pi / 2 * (number % 2 + (number // 2) / max(1, per_head // 2))
            frequencies[:, wave] = SCALES[head % len(SCALES)] * torch.tensor([math.cos(angle), math.sin(angle)])
            weight[2 * wave, wave] = weight[2 * wave + 1, waves + wave] = SHARPNESS
            position[wave] = position[waves + wave] = True
        for projection in (module.q_proj, module.k_proj):
            projection.weight.copy_(weight)
            projection.bias.zero_()
    return position


def _keep_tokens_apart(attention: Any, position: Tensor) -> None:
    """Makes a self-attention the identity on the channels that do not carry position, nearly."""
    others = torch.nonzero(~position)[:, 0]
    rows = torch.arange(attention.internal_dim)
    chosen = others[rows % len(others)]
    pick = torch.zeros(attention.internal_dim, attention.embedding_dim)
    pick[rows, chosen] = 1.0
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight.copy_(math.sqrt(2) * pick)
        projection.bias.zero_()
    attention.v_proj.weight.copy_(pick)
    attention.v_proj.bias.zero_()
    attention.out_proj.weight.copy_(pick.T / pick.sum(dim=0).clamp(min=1)[:, None])
    attention.out_proj.bias.zero_()
