"""sam2's mask decoder for many prompts on few images, in an order of products that suits a processor.

The same function as sam2's `TwoWayTransformer` and upscaling with the same weights, rounded otherwise. sam2 projects
every cell of every prompt's image to keys and values and then attends with heads that are four channels wide in a micro
model: most of the time goes to products too narrow to fill a processor, and to copies between layouts. Here

- a head is a row of zeros beside its own channels, so that all heads of a prompt's tokens are one matrix. The
  projections of cells are multiplied into that matrix first, and cells meet it once, as they are;
- cells stay rows of channels through the upscaling; of a cell's four quarters, and their quarters, only the logits, one
  channel, are put where they lie in the mask;
- what is read at clicks is read of each image once, not of a copy for each prompt.

It needs plain layers: no LoRA.
Legend: B images, N prompts of all images in their order, T tokens of a prompt, C channels, D inside attention, S heads,
L = h w cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def for_prompts(values_B: Tensor, counts: Sequence[int]) -> Tensor:
    """Rows of images -> rows of their prompts, of which there are `counts`."""
    return torch.cat([row.expand(count, *row.shape[1:]) for row, count in zip(values_B.split(1), counts, strict=True)])


def as_rows(level_BCHW: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, L, C)."""
    return level_BCHW.flatten(2).transpose(1, 2).contiguous()


def two_way(transformer: Any, cells_NLC: Tensor, position_1LC: Tensor, tokens_NTC: Tensor) -> tuple[Tensor, Tensor]:
    """sam2's two-way transformer.

    Args:
        transformer: sam2's.
        cells_NLC: of each prompt's image.
        position_1LC: of cells.
        tokens_NTC: of prompts.

    Returns:
        Tokens (N, T, C) and cells (N, L, C).
    """
    tokens, cells = tokens_NTC, cells_NLC
    for layer in transformer.layers:
        if layer.skip_first_layer_pe:
            tokens = _among_tokens(layer.self_attn, tokens, tokens)
        else:
            tokens = tokens + _among_tokens(layer.self_attn, tokens + tokens_NTC, tokens)
        tokens = layer.norm1(tokens)
        placed = cells + position_1LC
        tokens = layer.norm2(tokens + _to_cells(layer.cross_attn_token_to_image, tokens + tokens_NTC, placed, cells))
        tokens = layer.norm3(tokens + layer.mlp(tokens))
        asked = tokens + tokens_NTC
        cells = layer.norm4(_from_tokens(layer.cross_attn_image_to_token, cells, placed, asked, tokens))
    found = _to_cells(transformer.final_attn_token_to_image, tokens + tokens_NTC, cells + position_1LC, cells)
    return transformer.norm_final_attn(tokens + found), cells


def _among_tokens(attention: Any, asked_NTC: Tensor, values_NTC: Tensor) -> Tensor:
    """Attention of few tokens: (N, T, C). Products and a softmax; torch's fused kernel is made for long rows."""
    query, key, value = (
        layer(each).unflatten(2, (attention.num_heads, -1)).transpose(1, 2)
        for layer, each in (
            (attention.q_proj, asked_NTC),
            (attention.k_proj, asked_NTC),
            (attention.v_proj, values_NTC),
        )
    )
    share = (query @ key.transpose(2, 3) / math.sqrt(query.shape[3])).softmax(dim=3)
    found: Tensor = attention.out_proj((share @ value).transpose(1, 2).flatten(2))
    return found


def _heads(attention: Any, like: Tensor) -> Tensor:
    """(S, 1, D): 1 on a head's own channels, 0 elsewhere."""
    heads = attention.num_heads
    own = torch.eye(heads, dtype=like.dtype, device=like.device)
    return own.repeat_interleave(attention.internal_dim // heads, dim=1)[:, None]


def _to_cells(attention: Any, asked_NTC: Tensor, placed_NLC: Tensor, cells_NLC: Tensor) -> Tensor:
    """Tokens attend to cells: (N, T, C).

    The keys' bias adds the same to all of a token's scores, so the softmax does not know of it: its gradient is 0.
    """
    heads = _heads(attention, asked_NTC)
    scale = math.sqrt(attention.num_heads / attention.internal_dim)
    query = attention.q_proj(asked_NTC) + 0 * attention.k_proj.bias
    rows = ((query[:, None] * (heads * scale)) @ attention.k_proj.weight).flatten(1, 2)
    share = torch.bmm(rows, placed_NLC.transpose(1, 2)).softmax(dim=2)
    found = torch.bmm(share, cells_NLC).unflatten(1, (attention.num_heads, -1))
    answer: Tensor = attention.out_proj((attention.v_proj(found) * heads).sum(dim=1))
    return answer


def _from_tokens(
    attention: Any, cells_NLC: Tensor, placed_NLC: Tensor, asked_NTC: Tensor, tokens_NTC: Tensor
) -> Tensor:
    """Cells, and what they hear of the tokens: (N, L, C)."""
    heads = _heads(attention, asked_NTC)
    scale = math.sqrt(attention.num_heads / attention.internal_dim)
    key = (attention.k_proj(asked_NTC)[:, None] * (heads * scale)).flatten(1, 2)
    rows, bias = key @ attention.q_proj.weight, (key @ attention.q_proj.bias)[..., None]
    scores = torch.baddbmm(bias, rows, placed_NLC.transpose(1, 2)).unflatten(1, (attention.num_heads, -1))
    share = scores.softmax(dim=2).flatten(1, 2)
    # A head's shares add up to 1, so each brings its part of the bias.
    value = F.linear(attention.v_proj(tokens_NTC)[:, None] * heads, attention.out_proj.weight)
    value = value + attention.out_proj.bias / attention.num_heads
    return torch.baddbmm(cells_NLC, share.transpose(1, 2), value.flatten(1, 2))


def quartered(level_BCHW: Tensor, times: int) -> Tensor:
    """A finer level by cells, a cell's quarters side by side and theirs within: (B, C, h 2^k, w 2^k) -> (B, L, 4^k, C).

    Args:
        level_BCHW: at the cells' stride divided by 2^k.
        times: k.
    """
    images, channels, height, width = level_BCHW.shape
    parts = level_BCHW.reshape(images, channels, height >> times, *[2] * times, width >> times, *[2] * times)
    down = [3 + each for each in range(times)]
    quarters = [axis for pair in zip(down, [each + times + 1 for each in down], strict=True) for axis in pair]
    return parts.permute(0, 2, 3 + times, *quarters, 1).reshape(images, -1, 4**times, channels)


def upscaled_logits(
    decoder: Any, cells_NLC: Tensor, levels: Sequence[Tensor], counts: Sequence[int], weights_NC: Tensor
) -> Tensor:
    """sam2's upscaling by 4 and the product with a mask's weights: (N, 4 h, 4 w); h = w.

    Args:
        decoder: sam2's.
        cells_NLC: behind the transformer.
        levels: of images, at strides 4 and 8.
        counts: prompts of each image.
        weights_NC: from the hypernetwork, C / 8 channels.
    """
    first, norm, act_first, second, act_second = decoder.output_upscaling
    fine, middle = levels
    found = _quarters(first, cells_NLC, quartered(middle + first.bias[:, None, None], 1), counts)
    found = act_first(F.layer_norm(found, norm.weight.shape, norm.weight, norm.bias, norm.eps))
    found = act_second(_quarters(second, found, quartered(fine + second.bias[:, None, None], 2), counts))
    # One channel's product alone is too narrow: a cell's sixteen quarters at once, each a block of one matrix.
    blocks = torch.eye(16, dtype=weights_NC.dtype, device=weights_NC.device)[:, None] * weights_NC[:, None, :, None]
    logits = torch.bmm(found.flatten(2), blocks.flatten(1, 2))
    side = math.isqrt(cells_NLC.shape[1])
    logits = logits.view(-1, side, side, 2, 2, 2, 2).permute(0, 1, 3, 5, 2, 4, 6)
    return logits.reshape(-1, 4 * side, 4 * side)


def _quarters(layer: Any, cells: Tensor, level_BLQC: Tensor, counts: Sequence[int]) -> Tensor:
    """A transposed convolution of 2 x 2 at stride 2 without its bias, as a product that is added to an image's level.

    Args:
        layer: the convolution.
        cells: (N, L, C), or (N, L, Q / 4, C).
        level_BLQC: of each image.
        counts: prompts of each image.

    Returns:
        (N, L, Q, C / 4 or C / 2).
    """
    weight = layer.weight.permute(0, 2, 3, 1).flatten(1)
    level = for_prompts(level_BLQC, counts)
    return torch.addmm(level.view(-1, weight.shape[1]), cells.flatten(0, -2), weight).view(level.shape)
