"""One self-contained checkpoint out of an adapter's and its base; or one for UnSAMv2's code.

    grainmill merge RUN --output merged.safetensors        (or python -m model.merge ...)
    grainmill merge RUN --to unsamv2 --output run.pt

The decoder's projections with LoRA folded in (W + scale B A, added in double precision) take the place of three
products at every call. The base's own projections stay beside them, so that `granularity=None` is still SAM-2's answer;
they are 1 to 2 MB.

A model whose mask token stands beside SAM's four, as in UnSAMv2's code, keeps LoRA's own matrices too, so that its
merged file can still be written for that code.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, Final

import torch

from pipeline.errors import InputError

from .adapters import lora_layers
from .checkpoint import write_checkpoint, write_whole
from .click_features import Sight
from .granular import MEMORY_NAMES, GranularSam2
from .load import MERGED, load_granular, read_granular
from .trunks import halved, in_checkpoint
from .unsamv2 import UNSAMV2, in_their_names

THEIR_SUFFIXES: Final = (".pt", ".pth")


def merge_checkpoint(
    path: str | os.PathLike[str],
    output: Path,
    *,
    base: str | None = None,
    half: bool = False,
    images_only: bool = False,
) -> dict[str, Any]:
    """Writes the merged checkpoint.

    Args:
        path: a checkpoint file, or a run's directory (its newest checkpoint).
        output: the new file; an older one is replaced.
        base: the base's weights; None: where they were when the adapter was trained.
        half: keep matrices in half precision: half the size, for models that are shared. They are computed with in
            single precision all the same.
        images_only: leave out what video alone uses; a model trained from scratch never learned it.

    Returns:
        output, bytes, folded_layers, kind.

    Raises:
        InputError: no checkpoint, no base, or a base with other weights than it was trained on.
        SchemaError: a file that is no checkpoint of ours.
        CheckpointWriteError: a full disk or missing rights.
    """
    record = read_granular(path).record
    model = load_granular(path, base=base)
    images_only = images_only or bool(record.get("images_only"))
    state = in_checkpoint(dict(model.state_dict()), model.trunk)
    tensors = {
        f"model.{name}": value
        for name, value in state.items()
        if (model.keeps_lora() or ".lora_" not in name) and not (images_only and name.startswith(MEMORY_NAMES))
    }
    layers = lora_layers(model)
    for name, layer in layers:
        tensors[f"folded.{name}"] = layer.folded_weight().detach()
    about = {name: record.get(name) for name in ("size", "adapter", "image_size", "base", "grainmill", "torch")}
    about |= {"beside": model.unsamv2_tokens, "their_iou": model.their_iou, "has_base": model.has_base}
    about["sight"] = record.get("sight", {})
    if about["base"] is not None:  # its weights are in this file now, which may be shared; folders do not belong there
        about["base"] = {**about["base"], "source": Path(about["base"]["source"]).name}
    if half:
        tensors = {name: value.half() if halved(value) else value for name, value in tensors.items()}
    about |= {"kind": MERGED, "trunk": record.get("trunk"), "images_only": images_only}
    write_checkpoint(output, about, tensors)
    return {"output": str(output), "bytes": output.stat().st_size, "folded_layers": len(layers), "kind": MERGED}


def write_for_unsamv2(path: str | os.PathLike[str], output: Path, *, base: str | None = None) -> dict[str, Any]:
    """Writes a model's weights as UnSAMv2's code loads them: a state dict under its names, by torch.save.

    Args:
        path: a checkpoint file (a merged one too), a run's directory, or UnSAMv2's own file.
        output: the new file, .pt; an older one is replaced.
        base: as `merge_checkpoint`.

    Returns:
        output, bytes, kind, size, image_size.

    Raises:
        InputError: as `merge_checkpoint`, and a model that their code has no place for.
        SchemaError, CheckpointWriteError: as `merge_checkpoint`.
    """
    if output.suffix not in THEIR_SUFFIXES:
        raise InputError(f"--output {output}: UnSAMv2's code reads what torch.save wrote; let the name end in .pt")
    record = read_granular(path).record
    model = load_granular(path, base=base)
    if problem := _no_place_for(model) or ("it was merged with --images-only" if record.get("images_only") else ""):
        raise InputError(f"{path}: UnSAMv2's code has no place for this model: {problem}")
    state = {name: value for name, value in model.state_dict().items() if model.has_base or ".lora_" not in name}
    data = io.BytesIO()
    torch.save({"model": in_their_names(state)}, data)
    write_whole(output, data.getvalue())
    return {
        "output": str(output),
        "bytes": output.stat().st_size,
        "kind": UNSAMV2,
        "size": model.size,
        "image_size": model.image_size,
    }


def _no_place_for(model: GranularSam2) -> str:
    """Why UnSAMv2's code cannot hold a model; empty: it can."""
    if model.adapter == "lite":
        return "adapter lite; train with --adapter paper"
    if not model.unsamv2_tokens:
        return (
            "its mask token was trained in the place of SAM's first, which theirs stands beside; train with "
            "--unsamv2-tokens, or --init with such a checkpoint"
        )
    if model.sight != Sight():
        return "its decoder hears what was clicked; train with --no-click-features --similarity off"
    if model.trunk is not None:
        return f"its image encoder is {model.trunk.name}, not SAM-2's Hiera"
    return ""
