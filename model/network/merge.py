"""One self-contained checkpoint out of an adapter's and its base.

    grainmill merge RUN --output merged.safetensors        (or python -m model.merge ...)

The decoder's projections with LoRA folded in (W + scale B A, added in double precision) take the place of three
products at every call. The base's own projections stay beside them, so that `granularity=None` is still SAM-2's answer;
they are 1 to 2 MB.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .adapters import lora_layers
from .checkpoint import write_checkpoint
from .granular import MEMORY_NAMES
from .load import MERGED, load_granular, read_granular
from .trunks import halved, in_checkpoint


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
        if ".lora_" not in name and not (images_only and name.startswith(MEMORY_NAMES))
    }
    layers = lora_layers(model)
    for name, layer in layers:
        tensors[f"folded.{name}"] = layer.folded_weight().detach()
    about = {name: record[name] for name in ("size", "adapter", "image_size", "base", "grainmill", "torch")}
    about["sight"] = record.get("sight", {})
    if about["base"] is not None:  # its weights are in this file now, which may be shared; folders do not belong there
        about["base"] = {**about["base"], "source": Path(about["base"]["source"]).name}
    if half:
        tensors = {name: value.half() if halved(value) else value for name, value in tensors.items()}
    about |= {"kind": MERGED, "trunk": record.get("trunk"), "images_only": images_only}
    write_checkpoint(output, about, tensors)
    return {"output": str(output), "bytes": output.stat().st_size, "folded_layers": len(layers), "kind": MERGED}
