"""Random weights that answer: clicks and granularities give masks that differ."""

from __future__ import annotations

import torch

from model.network.granular import GranularSam2


def make_loud(model: GranularSam2, *, dial: float) -> None:
    """Enlarges what the decoder's attention says, and (by `dial`) what a granularity says, in place."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "sam_mask_decoder.transformer" in name and name.endswith("out_proj.weight"):
                parameter *= 6
            if name.startswith("granularity_encoder.mlp") and name.endswith("weight"):
                parameter *= dial
