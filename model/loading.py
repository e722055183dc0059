"""From files to models: a fresh model on a base, a trained one from its checkpoint, a merged one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from pipeline import __version__
from pipeline.errors import InputError, SchemaError

from .adapters import ADAPTERS, Adapter, lora_layers
from .base_models import (
    DEFAULT_IMAGE_SIZE,
    PUBLISHED,
    SIZES,
    Size,
    install_state,
    load_base_weights,
    read_state,
    size_of_state,
    state_sha256,
)
from .checkpoint import FOLDER, Checkpoint, find_checkpoint, is_checkpoint, read_checkpoint
from .granular import GranularSam2
from .scratch import start_from_clicks

SCRATCH: Final = "scratch"
MERGED: Final = "merged"
KINDS: Final = ("full", "adapter", MERGED)
"""Of a checkpoint: the whole model, an adapter without its base, or both folded into one."""


def new_model(size: Size, adapter: Adapter, image_size: int, *, init: str, seed: int) -> GranularSam2:
    """A model before training.

    Args:
        size: of the base.
        adapter: what is added.
        image_size: pixels a side.
        init: `scratch`; a base checkpoint's path or name; or a checkpoint of `train` that holds a whole model.
        seed: of the random weights.

    Raises:
        InputError: weights that do not fit.
    """
    torch.manual_seed(seed)
    model = GranularSam2(size, adapter, image_size)
    if init == SCRATCH:
        start_from_clicks(model)
        return model
    if _is_granular(init):
        start = read_checkpoint(init)
        if start.record["kind"] != "full" or (start.record["size"], adapter) != (size, "full"):
            raise InputError(
                f"--init {init}: expected a whole model of size {size} trained from scratch and --adapter full, found "
                f"kind {start.record['kind']}, size {start.record['size']}, and --adapter {adapter}"
            )
        install_state(model, start.group("model"), where=init, size=size)
        return model
    install_base(model, init)
    return model


def install_base(model: GranularSam2, source: str) -> None:
    """Loads base weights, and copies token 0 and hypernetwork 0 anew.

    Raises:
        InputError: weights that do not fit.
    """
    load_base_weights(model.base, source, size=model.size)
    model.adopt_base()


def base_sha256(model: GranularSam2) -> str:
    """Identity of the frozen base."""
    return state_sha256(model.base_state())


def checkpoint_record(model: GranularSam2, *, init: str) -> dict[str, Any]:
    """What every checkpoint says about its model."""
    whole = model.adapter == "full"
    return {
        "kind": "full" if whole else "adapter",
        "size": model.size,
        "adapter": model.adapter,
        "image_size": model.image_size,
        "base": None if whole else {"source": _lasting(init), "sha256": base_sha256(model)},
        "grainmill": __version__,
        "torch": torch.__version__.split("+")[0],
    }


def _lasting(init: str) -> str:
    """A file's absolute path, so that the checkpoint finds it from any folder; names stay names."""
    return os.path.abspath(init) if os.path.exists(init) else init


def trained_state(model: GranularSam2) -> dict[str, Tensor]:
    """The tensors that a checkpoint holds under `model.`: all for `full`, else the adapter's."""
    state = dict(model.state_dict())
    if model.adapter == "full":
        return state
    return {name: state[name] for name in model.adapter_names()}


def install_trained(model: GranularSam2, checkpoint: Checkpoint) -> None:
    """The inverse of `trained_state`.

    Raises:
        InputError: tensors that are missing, foreign or of another shape.
    """
    found, expected = checkpoint.group("model"), trained_state(model)
    wrong = [name for name in {*found, *expected} if name not in found or name not in expected]
    wrong += [name for name in set(found) & set(expected) if found[name].shape != expected[name].shape]
    if wrong:
        raise InputError(
            f"{checkpoint.path}: expected the {len(expected)} tensors of size {model.size}, adapter {model.adapter}; "
            f"{len(wrong)} do not fit, first {sorted(wrong)[0]}"
        )
    model.load_state_dict(found, strict=False)


def load_granular(
    path: str | os.PathLike[str], device: str | torch.device = "cpu", *, base: str | None = None, video: bool = False
) -> GranularSam2:
    """A trained model, in evaluation mode.

    Args:
        path: a checkpoint file, or a training run's directory (its newest checkpoint).
        device: where it goes.
        base: the base's weights, for an adapter's checkpoint; None: where they were when it was trained.
        video: build it for video.

    Raises:
        InputError: no checkpoint, no base, or a base with other weights than it was trained on.
        SchemaError: a file that is no checkpoint of ours.
    """
    where = usable_device(device)
    checkpoint = read_checkpoint(path)
    record = checkpoint.record
    for name, known in (("size", SIZES), ("adapter", ADAPTERS), ("kind", KINDS)):
        if record.get(name) not in known:
            raise SchemaError(
                f"{checkpoint.path}: {name} is {record.get(name)!r}, expected one of {', '.join(known)}; was it "
                "written by another version?"
            )
    expect_base_is_needed(base, record, where=checkpoint.path)
    model = GranularSam2(record["size"], record["adapter"], int(record["image_size"]), video=video)
    if record["kind"] == MERGED:
        _install_merged(model, checkpoint)
    else:
        if record["kind"] == "adapter":
            _install_recorded_base(model, checkpoint, base)
        install_trained(model, checkpoint)
    return _for_use(model, where)


def load_for_prediction(
    path: str | os.PathLike[str], device: str | torch.device = "cpu", *, base: str | None = None, video: bool = False
) -> GranularSam2:
    """A trained model as `load_granular`, or SAM-2's own weights: a model that answers without a granularity alone.

    Args:
        path: also a `.pt` file as Meta publishes it, or such a state dict as safetensors.
        device, base, video: as `load_granular`.

    Raises:
        InputError: as `load_granular`, and a file that is neither.
        SchemaError: as `load_granular`.
    """
    where = usable_device(device)
    file = find_checkpoint(Path(path))
    if is_checkpoint(file):
        return load_granular(file, where, base=base, video=video)
    expect_base_is_needed(base, None, where=file)
    state = read_state(file)
    size = size_of_state(state)
    if size is None:
        raise InputError(
            f"{file}: expected a checkpoint of `grainmill train` or of SAM 2.1 (tiny, small, base_plus, large), found "
            f"{len(state)} weights of something else{''.join(f', such as {name}' for name in sorted(state)[:1])}"
        )
    model = GranularSam2(size, "lite", DEFAULT_IMAGE_SIZE[size], video=video)
    install_state(model.base, state, where=str(file), size=size)
    model.has_dial = False
    return _for_use(model, where)


def expect_base_is_needed(base: str | None, record: Mapping[str, Any] | None, *, where: Path) -> None:
    """Is a base that was given looked at? `record` is the checkpoint's, None: SAM-2's own weights.

    Raises:
        InputError: it is not.
    """
    if base is not None and (record is None or record["kind"] != "adapter"):
        raise InputError(f"--base {base}: {where} is a whole model and needs none; leave it out")


def _for_use(model: GranularSam2, where: torch.device) -> GranularSam2:
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.to(where).eval()


def usable_device(device: str | torch.device | None) -> torch.device:
    """Checks a device's name; None: a GPU if there is one.

    Raises:
        InputError: neither a processor nor a CUDA GPU, or a GPU that this machine (or this build of torch) lacks.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        found = torch.device(device if device is not None else "cuda" if gpus else "cpu")
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise InputError(f"device {device!s}: expected cpu, cuda or cuda:N, all that models here run on")
    if found.type == "cuda" and (found.index or 0) >= gpus:
        raise InputError(f"device {device}: torch sees {gpus} GPUs here; use cpu")
    return found


def _install_recorded_base(model: GranularSam2, checkpoint: Checkpoint, base: str | None) -> None:
    stated = checkpoint.record["base"]
    source = base or _find_base(checkpoint.path, str(stated["source"]))
    try:
        install_base(model, source)
    except InputError as error:
        if base:
            raise InputError(f"--base for {checkpoint.path}: {error}") from error
        raise InputError(
            f"{checkpoint.path}: an adapter without its base; pass --base with the weights it was trained on ({error})"
        ) from error
    found = base_sha256(model)
    if found != stated["sha256"]:
        raise InputError(
            f"{source}: not the base that {checkpoint.path} was trained on: sha256 of its weights is {found[:16]}…, "
            f"expected {str(stated['sha256'])[:16]}…; pass --base with {stated['source']} as it was then"
        )


def _find_base(checkpoint: Path, source: str) -> str:
    """The base's file where training had it, or beside the checkpoint, its run, or the run's folder, if both moved."""
    if source in PUBLISHED or os.path.exists(source):
        return source
    folder = Path(os.path.abspath(checkpoint)).parent
    run = folder.parent if folder.name == FOLDER else folder
    for place in (folder, run, run.parent):
        for name in (source, os.path.basename(source)):
            if (place / name).is_file():
                return str(place / name)
    return source


def _install_merged(model: GranularSam2, checkpoint: Checkpoint) -> None:
    found, folded = checkpoint.group("model"), checkpoint.group("folded")
    expected = {name: value.shape for name, value in model.state_dict().items() if ".lora_" not in name}
    layers = dict(lora_layers(model))
    shapes = [{name: value.shape for name, value in group.items()} for group in (found, folded)]
    if shapes != [expected, {name: layer.weight.shape for name, layer in layers.items()}]:
        raise InputError(f"{checkpoint.path}: its tensors are not those of size {model.size}, adapter {model.adapter}")
    model.load_state_dict(found, strict=False)
    for name, layer in layers.items():
        layer.folded = folded[name]


def _is_granular(init: str) -> bool:
    """Whether a file (or a run's directory) was written by `train`."""
    path = Path(init)
    if path.is_dir():
        return True
    if not path.is_file():
        return False
    try:
        read_checkpoint(path)
    except SchemaError:
        return False
    return True
