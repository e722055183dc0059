"""The image path as two programs of `torch.export`: the same two steps as ONNX, for who serves with torch alone.

    grainmill torch-export RUN --output pt2/

A program (`.pt2`) holds its operations and weights and none of our code: `torch.export.load("decoder.pt2").module()` in
any process, or torch's own compilers for C++ and devices. Inputs, outputs and `about.json` are those of
`onnx_export.py`, positional here; N and K are free. LoRA is folded into the weights first. Each program is loaded again
and compared with the model before the command is done.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from ..network.granular import GranularSam2
from .coco_json import json_bytes
from .onnx_export import Decoder, Encoder, about_model, largest_difference, random_prompts
from .output_files import OutputFiles

TORCH_FORMAT: Final = "grainmill-torch-export/1"


@torch.no_grad()
def export_torch(model: GranularSam2, folder: Path) -> dict[str, Any]:
    """Writes `encoder.pt2`, `decoder.pt2` and `about.json`, once they are compared with the model.

    Args:
        model: on the CPU, in evaluation mode. Its LoRA is folded.
        folder: made if it is missing; older files are replaced.

    Returns:
        What `about.json` holds.

    Raises:
        InputError: no such folder can be.
        StorageError: a full disk, missing rights.
        GrainmillError: a program and the model differ.
    """
    for layer in model.lora_modules():
        layer.folded = layer.folded_weight()
    side = model.image_size
    encoder, decoder = Encoder(model).eval(), Decoder(model).eval()
    with OutputFiles(folder) as files:
        image = torch.zeros(1, 3, side, side)
        features = encoder(image)
        with files.writing("encoder.pt2") as path:
            _export(encoder, (image,), path, None)
        with files.writing("decoder.pt2") as path:
            prompts, points = torch.export.Dim("N", min=1, max=2**16), torch.export.Dim("K", min=1, max=2**10)
            free: list[Any] = [None, None, None, {0: prompts, 1: points}, {0: prompts, 1: points}, *[{0: prompts}] * 3]
            _export(decoder, (*features, *random_prompts(side, count=2, points=3)), path, tuple(free))
        found = [_loaded(files.scratch / name) for name in ("encoder.pt2", "decoder.pt2")]
        about = {
            "format": TORCH_FORMAT,
            **about_model(model),
            "largest_difference": largest_difference(encoder, decoder, *found, by="the loaded program"),
        }
        files.write("about.json", json_bytes(about))
    return about


def _export(module: nn.Module, arguments: tuple[Tensor, ...], path: Path, free: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own work on it
        torch.export.save(torch.export.export(module, arguments, dynamic_shapes=free, strict=False), str(path))


def _loaded(path: Path) -> Callable[..., tuple[Tensor, ...]]:
    return torch.export.load(str(path)).module()
