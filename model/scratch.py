"""A start for models that train from scratch: clicks find their place before anything is learned.

Left as the layers' own defaults, the decoder's answer at the start hangs on the photograph alone and is tiny, and the
first thousand steps of a short training go by in finding out that the click matters. Three changes to the random
weights make the fresh model answer with a soft blob at the click, from which training goes on:

- SAM's tokens and pixels carry the same positional code (random Fourier features, whose dot product falls with
  distance). Tying the key's projection to the query's keeps that in the cross-attentions: q . k = |P pe(click)| |P
  pe(pixel)| cos, a kernel of about 0.08 of the image's side. Independent projections lose it.
- The learned tokens start small, so that this kernel is not drowned by their random dot products, and so does what the
  encoder hands to the decoder, so that the click is most of what the pixels hear at first.
- The layers that turn tokens and pixels into masks start with the variance that ReLU needs, without offsets.

Nothing is tied or held afterwards. Measured at 128 px on labels of BSDS500 train: after 150 steps of 4 photographs the
IoU on the batches is 0.20, against 0.01 without the last two.
"""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import nn

from .granular import GranularSam2

SHARPNESS: Final = 2.0
"""Length of the projections' rows; the attention's logit at the clicked place is about its square."""
TOKEN_SCALE: Final = 0.2
"""Of the learned tokens against sam2's standard normal ones."""
IMAGE_SCALE: Final = 0.1
"""Of the neck's weights against torch's default."""


@torch.no_grad()
def start_from_clicks(model: GranularSam2) -> None:
    """Changes a fresh model's random weights so that it answers a click with a blob around it."""
    base = model.base
    decoder, prompts = base.sam_mask_decoder, base.sam_prompt_encoder
    tie_cross_attention(decoder.transformer)
    tokens = [decoder.obj_score_token, decoder.iou_token, decoder.mask_tokens, prompts.not_a_point_embed]
    for embedding in (*tokens, *prompts.point_embeddings):
        embedding.weight.mul_(TOKEN_SCALE)
    prompts.no_mask_embed.weight.zero_()
    base.no_mem_embed.zero_()
    for level in base.image_encoder.neck.convs:
        level.conv.weight.mul_(IMAGE_SCALE)
        level.conv.bias.zero_()
    for layer in decoder.transformer.layers:
        attention = layer.cross_attn_image_to_token
        for projection in (attention.v_proj, attention.out_proj):
            _draw(projection, projection.in_features, gain=1.0)
    for hypernetwork_layer in decoder.output_hypernetworks_mlps[0].layers:
        _draw(hypernetwork_layer, hypernetwork_layer.in_features, gain=math.sqrt(2))
    for upscaling in decoder.output_upscaling:
        if isinstance(upscaling, nn.ConvTranspose2d):
            _draw(upscaling, upscaling.in_channels, gain=math.sqrt(2))
    model.adopt_base()


def _draw(layer: nn.Linear | nn.ConvTranspose2d, inputs: int, *, gain: float) -> None:
    nn.init.normal_(layer.weight, 0.0, gain / math.sqrt(inputs))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


@torch.no_grad()
def tie_cross_attention(transformer: Any, *, sharpness: float = SHARPNESS) -> int:
    """Sets q and k projections of every attention between tokens and image to one random orthonormal map per head.

    Args:
        transformer: sam2's two-way transformer, fresh.
        sharpness: length of the map's rows.

    Returns:
        How many attentions were set.
    """
    found = 0
    for name, module in transformer.named_modules():
        if not (name.endswith(("token_to_image", "image_to_token"))):
            continue
        rows = []
        for _ in range(module.num_heads):
            per_head = module.internal_dim // module.num_heads
            basis, _ = torch.linalg.qr(torch.randn(module.embedding_dim, per_head))
            rows.append(basis.T * sharpness)
        weight = torch.cat(rows)
        for projection in (module.q_proj, module.k_proj):
            projection.weight.copy_(weight)
            projection.bias.zero_()
        found += 1
    return found
