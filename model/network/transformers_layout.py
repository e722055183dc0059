"""SAM-2 as `transformers` names it (Sam2Model, Sam2VideoModel): the same tensors under Meta's names.

Most names differ in words alone. The four prompt types of a point lie in one table there, an MLP's first and last layer
have names of their own, and the matrix of positions stands there twice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from pipeline.errors import InputError

PREFIX: Final = "vision_encoder.backbone."
"""Of the encoder's names; nothing of Meta's begins so."""
_POSITIONS: Final = "shared_image_embedding.positional_embedding"
_POSITIONS_AGAIN: Final = "prompt_encoder.shared_embedding.positional_embedding"
_POINTS: Final = "prompt_encoder.point_embed.weight"
_WORDS: Final[tuple[tuple[str, str], ...]] = (
    (r"^no_memory_embedding$", "no_mem_embed"),
    (r"^no_memory_positional_encoding$", "no_mem_pos_enc"),
    (r"^memory_temporal_positional_encoding$", "maskmem_tpos_enc"),
    (r"^no_object_pointer$", "no_obj_ptr"),
    (r"^occlusion_spatial_embedding_parameter$", "no_obj_embed_spatial"),
    (rf"^{re.escape(_POSITIONS)}$", "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
    (r"^object_pointer_proj\.", "obj_ptr_proj."),
    (r"^temporal_positional_encoding_projection_layer\.", "obj_ptr_tpos_proj."),
    (r"^vision_encoder\.backbone\.", "image_encoder.trunk."),
    (r"^vision_encoder\.neck\.convs\.(\d+)\.", r"image_encoder.neck.convs.\1.conv."),
    (r"^prompt_encoder\.", "sam_prompt_encoder."),
    (r"^mask_decoder\.", "sam_mask_decoder."),
    (r"\.patch_embed\.projection\.", ".patch_embed.proj."),
    (r"\.mask_embed\.conv1\.", ".mask_downscaling.0."),
    (r"\.mask_embed\.layer_norm1\.", ".mask_downscaling.1."),
    (r"\.mask_embed\.conv2\.", ".mask_downscaling.3."),
    (r"\.mask_embed\.layer_norm2\.", ".mask_downscaling.4."),
    (r"\.mask_embed\.conv3\.", ".mask_downscaling.6."),
    (r"\.upscale_conv1\.", ".output_upscaling.0."),
    (r"\.upscale_layer_norm\.", ".output_upscaling.1."),
    (r"\.upscale_conv2\.", ".output_upscaling.3."),
    (r"\.layer_norm_final_attn\.", ".norm_final_attn."),
    (r"^memory_encoder\.feature_projection\.", "memory_encoder.pix_feat_proj."),
    (r"^memory_encoder\.projection\.", "memory_encoder.out_proj."),
    (r"\.memory_fuser\.", ".fuser."),
    (r"(\.fuser\.layers\.\d+)\.scale$", r"\1.gamma"),
    (r"\.depthwise_conv\.", ".dwconv."),
    (r"\.pointwise_conv(\d)\.", r".pwconv\1."),
    (r"\.o_proj\.", ".out_proj."),
    (r"\.layer_norm(\d?)\.", r".norm\1."),
)
_DOWNSAMPLER: Final = re.compile(
    r"^(memory_encoder\.mask_downsampler)\.(?:layers\.(\d+)\.(conv|layer_norm)|final_conv)\."
)
_MLP: Final = re.compile(r"^(.*)\.(proj_in|proj_out|layers\.(\d+))\.(weight|bias)$")


def is_transformers_layout(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is SAM-2 under the names of `transformers`."""
    return any(name.startswith(PREFIX) for name in state)


def meta_names(state: Mapping[str, Tensor], *, where: str) -> tuple[dict[str, Tensor], list[str]]:
    """A state dict of Sam2Model or Sam2VideoModel under Meta's names, and the names that are left out as duplicates.

    Names that are not known stay as they are.

    Raises:
        InputError: the two copies of the matrix of positions differ; sam2 has one for image and prompts.
    """
    found: dict[str, Tensor] = {}
    left_out = []
    stages = sum(name.startswith("memory_encoder.mask_downsampler.layers.") for name in state) // 4
    inner = _inner_layers(state)
    for name, value in state.items():
        if name == _POINTS:
            found |= {
                f"sam_prompt_encoder.point_embeddings.{row}.weight": value[row : row + 1] for row in range(len(value))
            }
        elif name == _POSITIONS_AGAIN and _POSITIONS in state:
            if not torch.equal(value, state[_POSITIONS]):
                raise InputError(
                    f"{where}: {_POSITIONS} and {_POSITIONS_AGAIN} differ; SAM-2 has one matrix for both, so this file "
                    "is taken for a changed or unfinished copy; fetch it again"
                )
            left_out.append(name)
        else:
            found[_renamed(name, stages, inner)] = value
    return found, left_out


def _inner_layers(state: Mapping[str, Tensor]) -> dict[str, int]:
    """How many layers lie between first and last, by the name of each MLP."""
    matches = [match for match in map(_MLP.match, state) if match and match[4] == "weight"]
    mlps = {match[1] for match in matches if match[2] == "proj_in"}
    return {mlp: sum(match[1] == mlp and match[3] is not None for match in matches) for mlp in mlps}


def _renamed(name: str, stages: int, inner: Mapping[str, int]) -> str:
    if name == _POSITIONS_AGAIN:
        name = _POSITIONS
    if match := _DOWNSAMPLER.match(name):  # a convolution, its norm and an activation each; the last one is alone
        place = 3 * stages if match[2] is None else 3 * int(match[2]) + (match[3] == "layer_norm")
        return f"{match[1]}.encoder.{place}.{name[match.end() :]}"
    if (match := _MLP.match(name)) and match[1] in inner:
        place = 0 if match[2] == "proj_in" else 1 + (int(match[3]) if match[3] else inner[match[1]])
        name = f"{match[1]}.layers.{place}.{match[4]}"
    for pattern, word in _WORDS:
        name = re.sub(pattern, word, name)
    return name
