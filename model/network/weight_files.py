"""Files of weights as others write them: read without unpickling, without what wrappers put around names, and named.

A file is one of torch.save (a state dict, or one under `model` or `state_dict`), safetensors, or safetensors in shards
(their index, `model.safetensors.index.json`); a folder of the hub is the file in it. What was changed on the way or
left out is told in one line. Of what does not fit, messages say what it is taken for and what to do.
"""

from __future__ import annotations

import functools
import multiprocessing
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from pipeline.console import note
from pipeline.errors import InputError, SchemaError
from pipeline.format.schema import load_json, sha256_of
from pipeline.storage.local import sha256_of_file

WEIGHTS_NAMES: Final = ("model.safetensors", "model.safetensors.index.json")
"""What a folder of the hub calls its weights: whole, or in shards."""
FIRST_WEIGHTS: Final = (
    "image_encoder.trunk.patch_embed.proj.weight",
    "vision_encoder.backbone.patch_embed.projection.weight",
)
"""The first weight of SAM-2's encoder, as Meta and as `transformers` names it."""
_INNER: Final = ("model", "state_dict")
"""Where a checkpoint keeps its state dict."""
_AVERAGES: Final = ("ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema", "shadow_params")
_OPTIMIZER: Final = ("optimizer", "optimizer_state_dict", "optimizer_states", "param_groups")
_ADDED_BY_QUANTISING: Final = re.compile(
    r"\.(weight_scale(_inv)?|scales|zero_point|qzeros|qweight|SCB|absmax|quant_map|quant_state\..*|_packed_params.*)$"
)


@dataclass(frozen=True, kw_only=True)
class StateFile:
    """A state dict out of a file, its floating-point tensors as float32 on the CPU."""

    path: Path
    tensors: dict[str, Tensor]
    remarks: tuple[str, ...]
    """What was changed in reading, and what was left out."""

    def tell(self, what: str) -> None:
        """Says once in one line what was loaded, unless the file was taken exactly as it is."""
        if self.remarks:
            _tell_once(f"{self.path}: {what}; {'; '.join(self.remarks)}")


@functools.cache
def _tell_once(text: str) -> None:
    if multiprocessing.parent_process() is None:  # not again in each worker
        note(text)


def weights_path(path: Path) -> Path:
    """The file itself, or of a folder of the hub the file of weights in it."""
    return next((path / name for name in WEIGHTS_NAMES if (path / name).is_file()), path) if path.is_dir() else path


def weights_files(path: Path) -> list[Path]:
    """All files that hold a file's weights: itself, and the shards that it lists.

    Raises:
        InputError: an index that lists nothing, or files elsewhere.
    """
    if path.suffix != ".json":
        return [path]
    try:
        index = load_json(path.read_bytes(), where=str(path))
    except (OSError, SchemaError) as error:
        raise InputError(f"{path}: not an index of shards ({error})") from error
    table = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(table, dict) or not table:
        raise InputError(f"{path}: expected an index of shards with a `weight_map`, as {WEIGHTS_NAMES[1]} holds")
    names = sorted({str(name) for name in table.values()})
    for name in names:
        if Path(name).name != name:
            raise InputError(f"{path}: its shard {name!r} lies elsewhere; expected names of files beside the index")
        if not (path.parent / name).is_file():
            raise InputError(f"{path}: its shard {name} is missing; put all {len(names)} of them beside the index")
    return [path, *(path.parent / name for name in names)]


def weights_sha256(path: Path) -> str:
    """Identity of a file's bytes; of shards one of all of theirs."""
    files = weights_files(path)
    if len(files) == 1:
        return sha256_of_file(path)
    return sha256_of("".join(map(sha256_of_file, files)).encode())


def read_state(path: Path) -> dict[str, Tensor]:
    """As `read_state_file`, and what was changed is told."""
    found = read_state_file(path)
    found.tell(f"{len(found.tensors)} weights read")
    return found.tensors


def read_state_file(path: Path) -> StateFile:
    """A state dict, without unpickling code.

    Raises:
        InputError: no such file, a file that holds none, or one whose numbers are quantised; it says what it is.
    """
    path = weights_path(path)
    if not path.is_file():
        raise InputError(f"{path}: expected a file of weights, found {'a directory' if path.is_dir() else 'nothing'}")
    remarks: list[str] = []
    if path.suffix == ".json":
        _, *shards = weights_files(path)
        state: dict[str, Tensor] = {}
        for shard in shards:
            state.update(_read_safetensors(shard))
        absent = sorted(set(load_json(path.read_bytes(), where=str(path))["weight_map"]) - set(state))
        if absent:
            raise InputError(
                f"{path}: {len(absent)} of its weights are in none of its {len(shards)} shards, first {absent[0]}; "
                "fetch them again"
            )
        remarks.append(f"{len(shards)} shards")
    else:
        with path.open("rb") as stream:
            start = stream.read(9)
        if start[8:9] == b"{":
            state = _read_safetensors(path)
        else:
            state, left_out = _inner_state(_read_torch(path, start), path)
            if left_out:
                remarks.append(f"left out: {', '.join(left_out)}")
    _expect_numbers(state, path)
    state, longer = _unwrapped(state)
    if longer:
        remarks.append(f"names without what a wrapper put before them ({longer})")
    kinds = sorted({str(value.dtype).removeprefix("torch.") for value in state.values() if value.is_floating_point()})
    if kinds not in ([], ["float32"]):
        remarks.append(f"from {' and '.join(kinds)}")
        state = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    return StateFile(path=path, tensors=state, remarks=tuple(remarks))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path}: not a whole safetensors file ({error})") from error


def _read_torch(path: Path, start: bytes) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch's, of the pickle's protocol
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises whatever its reader stumbles over; all of it is told
        raise InputError(
            f"{path}: expected a checkpoint with weights only (as Meta publishes SAM 2.1) or safetensors; found "
            f"{_unreadable(error, start)}"
        ) from error


def _inner_state(loaded: Any, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict of what torch.save wrote, and the names of what lies beside it.

    Raises:
        InputError: there is none; averages and optimizers' states are named.
    """
    if not isinstance(loaded, dict):
        raise InputError(f"{path}: expected a state dict, or one under 'model', as Meta's checkpoints hold")
    inner = next((name for name in _INNER if isinstance(loaded.get(name), dict)), None)
    state = loaded if inner is None else loaded[inner]
    averages = next((name for name in _AVERAGES if name in state), None) if inner is None else None
    if averages is not None or "n_averaged" in state:
        under = f"under `{averages}`" if averages else "with `n_averaged`, of torch's AveragedModel"
        raise InputError(
            f"{path}: taken for the averages (EMA) of a training run alone, {under}; the weights themselves are "
            "missing (expected under 'model'). Give the checkpoint that has them; or, if the averages are meant, save "
            "their table of tensors alone as {'model': table} with torch.save"
        )
    if inner is None and any(name in state for name in _OPTIMIZER):
        raise InputError(
            f"{path}: taken for an optimizer's checkpoint ({', '.join(sorted(map(str, state))[:4])}); the weights are "
            "missing (expected under 'model'). Give the checkpoint of the model that was saved beside it"
        )
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()):
        raise InputError(f"{path}: expected a state dict, or one under 'model', as Meta's checkpoints hold")
    return dict(state), sorted(str(name) for name in loaded if name != inner) if inner else []


def _expect_numbers(state: Mapping[str, Tensor], path: Path) -> None:
    """Raises InputError for weights in fewer bits than half precision."""
    signs = [name for name in state if _ADDED_BY_QUANTISING.search(name)]
    for name, value in state.items():
        small = value.is_quantized or (value.is_floating_point() and value.itemsize < 2)
        packed = name.endswith((".qweight", ".qzeros"))
        if small or packed or (value.dtype in (torch.int8, torch.uint8) and value.ndim > 1):
            kind = str(value.dtype).removeprefix("torch.")
            raise InputError(
                f"{path}: taken for quantised weights ({name} is {kind}{f', {signs[0]} beside it' if signs else ''}); "
                "the numbers before quantising are missing. Give the weights in float32, float16 or bfloat16, from "
                "which these were made"
            )


def _unwrapped(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Without what DistributedDataParallel (`module.`), torch.compile (`_orig_mod.`, anywhere) and the like put before
    the names of SAM-2's weights, and one that was longer."""
    short = {name: name.replace("_orig_mod.", "") for name in state}
    prefix = ""
    for weight in FIRST_WEIGHTS:
        first = next((name for name in short.values() if name.endswith(f".{weight}")), weight)
        prefix = prefix or first.removesuffix(weight)
    if all(name.startswith(prefix) for name in short.values()):
        short = {name: each.removeprefix(prefix) for name, each in short.items()}
    if list(short) == list(short.values()) or len(set(short.values())) < len(short):
        return dict(state), ""
    return {short[name]: value for name, value in state.items()}, next(iter(state))


def _unreadable(error: Exception, start: bytes) -> str:
    """What a file is that torch would not read, and what to do. Torch's own words tell to read it unsafely."""
    zipped = start.startswith(b"PK")
    if code := _PICKLED_CODE.search(str(error)):
        what = f"pickled code ({code[1]:.80})"
        if _QUANTISERS.search(code[1]):
            return (
                f"quantised weights in the classes of their library ({code[1]:.80}), which are not read; give the "
                "weights in float32, float16 or bfloat16, from which these were made"
            )
    elif "TorchScript" in str(error):
        what = "a TorchScript program"
    elif start.startswith(b"\x80") or (zipped and isinstance(error, pickle.UnpicklingError)):
        what = "a pickle that is cut or holds more than tensors"
    elif start.startswith(b"GGUF"):
        return "GGUF, quantised weights for llama.cpp's like; give the weights as .pt or safetensors in floating point"
    elif start.startswith(b"version h"):
        return "a pointer of Git LFS in place of the file; `git lfs pull` fetches it"
    elif start.lower().startswith((b"<!doctype", b"<html")):
        return "a web page (HTML) in place of the file; fetch it again, or have it sent by who may read it"
    else:
        return f"{'a cut or damaged file of torch.save' if zipped else 'something else or a cut file'}; fetch it again"
    return (
        f"{what}. Pickles can run code, so only tensors are read: have the state dict alone saved, by torch.save or as "
        "safetensors"
    )


_PICKLED_CODE: Final = re.compile(r"GLOBAL (\S+) (?:was not an allowed|whose module)")
_QUANTISERS: Final = re.compile(r"torchao|bitsandbytes|torch\.ao\.|quanto|hqq")

# ---------------------------------------------------------------------------------------------------------------------
# What weights are that are not those expected


_MARKS: Final[tuple[tuple[str, str, str], ...]] = (
    (r"^image_encoder\.blocks\.", "SAM 1's weights", "SAM-2's are needed"),
    (r"^vision_encoder\.layers\.", "SAM 1's weights in transformers' layout", "SAM-2's are needed"),
    (r"^(detector|tracker)\.(backbone|geometry|transformer|maskmem)", "SAM 3's weights", "SAM-2's are needed"),
    (r"^image_encoder\.trunk\.body\.", "EdgeTAM's weights", "SAM-2's are needed"),
    (
        r"^(backbone\.bottom_up|proposal_generator|roi_heads)\.",
        "the weights of a detectron2 detector, as CutLER's are",
        "run it there, and give its results to `grainmill mine --divide proposals --proposals FILE`",
    ),
    (
        r"^(backbone\.|module\.)*(blocks\.\d+\.(\d+\.)?attn|embeddings\.(cls_token|patch_embeddings))",
        "the weights of a vision transformer (DINO and its like)",
        "it goes to `grainmill mine --backbone timm:NAME@FILE`",
    ),
    (
        r"^(downsample_layers|stages)\.\d+\.",
        "the weights of a convolutional pyramid (ConvNeXt and its like)",
        "it goes to `grainmill train --trunk timm:NAME@FILE`",
    ),
    (r"\.lora_[AB]\.", "an adapter of the library PEFT, without its base", "adapters here are those of `train`"),
    (r"^model\.\d+\.(conv|cv1|m)\.", "the weights of an ultralytics model", "SAM-2's are needed, as Meta has them"),
)
"""(a name of a weight, what such weights are, what to do), the first that meets."""


def taken_for(state: Mapping[str, Tensor]) -> tuple[str, str]:
    """What a state dict of others' looks like by its names, and what to do with it ('' if nobody knows)."""
    for pattern, what, advice in _MARKS:
        if any(re.search(pattern, name) for name in state):
            return what, advice
    return f"{len(state)} weights of something else{''.join(f', such as {name}' for name in sorted(state)[:1])}", ""


def misfit(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """How the names and shapes of weights differ from those that a model has; '' if they do not."""
    missing = sorted(set(own) - set(state))
    foreign = sorted(set(state) - set(own))
    shaped = sorted(name for name in set(own) & set(state) if own[name].shape != state[name].shape)
    if not (missing or foreign or shaped):
        return ""
    return (
        f"{len(missing)} missing {missing[:2]}, {len(foreign)} unknown {foreign[:2]}, {len(shaped)} of another shape "
        f"{shaped[:2]}"
    )
