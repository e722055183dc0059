"""DINOv2 and DINOv3 as `transformers` names them: the same weights under their authors' names, which timm reads.

Queries, keys and values are three matrices there, one for the authors; DINOv3's keys have no bias, which is one of
zeros. Both families' transformers (Dinov2Model, Dinov2WithRegistersModel, DINOv3ViTModel) and DINOv3's ConvNeXt
(DINOv3ConvNextModel) are known, alone or inside a larger model such as a classifier.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

_FIRST: Final = "embeddings.cls_token"
_PYRAMID: Final = re.compile(r"^(.*?)stages\.\d+\.layers\.\d+\.depthwise_conv\.")
_PART: Final = re.compile(
    r"^(?:encoder\.|model\.)?layer\.(\d+)\.attention\.(?:attention\.)?"
    r"(query|key|value|q_proj|k_proj|v_proj)\.(weight|bias)$"
)
_PARTS: Final = {"query": 0, "q_proj": 0, "key": 1, "k_proj": 1, "value": 2, "v_proj": 2}
_TRANSFORMER_WORDS: Final = (
    (r"^embeddings\.patch_embeddings\.(projection\.)?", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.(cls_token|mask_token|register_tokens)$", r"\1"),
    (r"^(encoder\.|model\.)?layer\.(\d+)\.", r"blocks.\2."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.weights_out\.", ".mlp.w3."),
    (r"^layernorm\.", "norm."),
)
_PYRAMID_WORDS: Final = (
    (r"^stages\.(\d+)\.downsample_layers\.(\d+)\.", r"downsample_layers.\1.\2."),
    (r"^stages\.(\d+)\.layers\.(\d+)\.", r"stages.\1.\2."),
    (r"\.depthwise_conv\.", ".dwconv."),
    (r"\.pointwise_conv(\d)\.", r".pwconv\1."),
    (r"\.layer_norm\.", ".norm."),
    (r"^layer_norm\.", "norm."),
)


def authors_names(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Weights in `transformers`' layout under their authors' names; others as they are.

    Args:
        weights: name -> tensor, as a file holds them.
    """
    first = next((name for name in weights if name.endswith(_FIRST)), None)
    if first is not None:
        return _transformer(_inside(weights, first.removesuffix(_FIRST)))
    match = next(filter(None, map(_PYRAMID.match, weights)), None)
    if match is not None:
        return {_renamed(name, _PYRAMID_WORDS): value for name, value in _inside(weights, match[1]).items()}
    return dict(weights)


def _inside(weights: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _transformer(weights: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {}
    parts: dict[str, list[Any]] = {}
    for name, value in weights.items():
        if match := _PART.match(name):
            place = parts.setdefault(f"blocks.{match[1]}.attn.qkv.{match[3]}", [None, None, None])
            place[_PARTS[match[2]]] = value
        else:
            found[_renamed(name, _TRANSFORMER_WORDS)] = value
    for name, three in parts.items():
        some = next(each for each in three if each is not None)
        found[name] = torch.cat([torch.zeros_like(some) if each is None else each for each in three])
    if "pos_embed" in found:  # DINOv2; its giant's gate and values are one matrix in files, two in memory
        for name in [name for name in found if ".mlp.gate_proj." in name]:
            gate, values = found.pop(name), found.pop(name.replace("gate_proj", "up_proj"))
            found[name.replace("gate_proj", "w12")] = torch.cat([gate, values])
        return {name.replace(".mlp.down_proj.", ".mlp.w3."): value for name, value in found.items()}
    # DINOv3: no table of positions, other words for the registers and the layers of its MLPs.
    gated = any(".mlp.gate_proj." in name for name in found)
    words = (
        (r"\.mlp\.gate_proj\.", ".mlp.w1."),
        (r"\.mlp\.up_proj\.", ".mlp.w2."),
        (r"\.mlp\.down_proj\.", ".mlp.w3."),
    )
    plain = ((r"\.mlp\.up_proj\.", ".mlp.fc1."), (r"\.mlp\.down_proj\.", ".mlp.fc2."))
    register = ((r"^register_tokens$", "storage_tokens"),)
    return {_renamed(name, (words if gated else plain) + register): value for name, value in found.items()}


def _renamed(name: str, words: tuple[tuple[str, str], ...]) -> str:
    for pattern, word in words:
        name = re.sub(pattern, word, name)
    return name
