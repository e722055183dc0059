"""From files to models: a fresh model on a base, a trained one from its checkpoint, a merged one."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from pipeline import __version__
from pipeline.errors import InputError, SchemaError

from .adapters import ADAPTERS, Adapter, lora_layers
from .checkpoint import FOLDER, Checkpoint, find_checkpoint, is_checkpoint, read_checkpoint
from .click_features import Sight
from .granular import MEMORY_NAMES, GranularSam2
from .init import start_from_clicks
from .sam2_base import (
    DEFAULT_IMAGE_SIZE,
    PUBLISHED,
    SIZES,
    Size,
    base_config,
    install_state,
    load_base_weights,
    sam2_size,
    sam2_state,
    size_of_state,
    state_sha256,
)
from .trunks import OWN, Trunk, in_checkpoint
from .unsamv2 import UNSAMV2, as_checkpoint, expect_whole, is_unsamv2
from .weight_files import StateFile, read_state_file, weights_path

SCRATCH: Final = "scratch"
MERGED: Final = "merged"
KINDS: Final = ("full", "adapter", MERGED, UNSAMV2)
"""Of a checkpoint: the whole model, an adapter without its base, both folded into one, or UnSAMv2's own file."""


def new_model(
    size: Size,
    adapter: Adapter,
    image_size: int,
    *,
    init: str,
    seed: int,
    sight: Sight | None = None,
    trunk: Trunk | None = None,
    trunk_file: Path | None = None,
    unsamv2_tokens: bool = False,
) -> GranularSam2:
    """A model before training.

    Args:
        size: of the base.
        adapter: what is added.
        image_size: pixels a side.
        init: `scratch`; a base checkpoint's path or name; or a checkpoint of `train` of the same size and adapter, or
            UnSAMv2's own, to train on from its weights (an adapter's base is looked for where it was).
        seed: of the random weights.
        sight: what the decoder hears where it is clicked.
        trunk: the network in Hiera's place; None: Hiera.
        trunk_file: its weights, read with `init` scratch alone. The levels are not standardised yet.
        unsamv2_tokens: of `GranularSam2`.

    Raises:
        InputError: weights that do not fit.
    """
    torch.manual_seed(seed)
    model = GranularSam2(size, adapter, image_size, sight=sight, trunk=trunk, unsamv2_tokens=unsamv2_tokens)
    if init == SCRATCH:
        if trunk is not None and trunk_file is not None:
            model.base.image_encoder.trunk.load(trunk_file, trunk)
            _round_frozen(model)
        start_from_clicks(model)
        return model
    if not _is_granular(init):
        if trunk is not None:
            raise InputError(
                f"--init {init}: SAM-2's weights are for its own trunk; --trunk goes with --init scratch, or with a "
                "checkpoint of `train` that has the same trunk"
            )
        install_base(model, init)
        return model
    start = read_granular(init)
    kind = start.record["kind"]
    kinds = ("full",) if adapter == "full" else ("adapter", UNSAMV2)
    if kind not in kinds or (start.record["size"], start.record["adapter"]) != (size, adapter):
        raise InputError(
            f"--init {init}: expected SAM 2.1's weights, or a checkpoint of size {size} and adapter {adapter} (--size, "
            f"--adapter) to train on from, found kind {kind}, size {start.record['size']}, adapter "
            f"{start.record['adapter']}"
        )
    if recorded_unsamv2_tokens(start.record) != unsamv2_tokens:
        raise InputError(
            f"--init {init}: its granularity's mask token stands {_place(not unsamv2_tokens)}, and this run's "
            f"{_place(unsamv2_tokens)}; give {'--no-' if unsamv2_tokens else '--'}unsamv2-tokens, or neither, which "
            "takes the checkpoint's"
        )
    if recorded_sight(start.record) != model.sight:
        raise InputError(
            f"--init {init}: a model with {_words(recorded_sight(start.record))}, and this run has "
            f"{_words(model.sight)}; give the same --click-features and --similarity"
        )
    theirs = Trunk.of_record(start.record.get("trunk"))
    if (theirs and (theirs.name, theirs.sha256)) != (trunk and (trunk.name, trunk.sha256)):
        raise InputError(
            f"--init {init}: its trunk is {theirs.told if theirs else OWN}, expected --trunk to name the same one, "
            f"found {trunk.told if trunk else OWN}"
        )
    if kind == UNSAMV2:
        _install_unsamv2(model, start)
        if not model.has_base:
            raise InputError(
                f"--init {init}: UnSAMv2's model without LoRA beside its decoder, nothing to train on from"
            )
        return model
    if kind == "adapter":
        _install_recorded_base(model, start, None)
    install_trained(model, start)
    _round_frozen(model)
    return model


def _round_frozen(model: GranularSam2) -> None:
    """Nothing is lost then when checkpoints hold a frozen trunk in half precision."""
    if model.trunk is not None and not model.trunk.rate:
        model.base.image_encoder.trunk.round_matrices()


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
    source = _lasting(init)
    if not whole and _is_granular(init):  # its base is the base of what it began with
        start = read_granular(init)
        source = _lasting(_find_base(start.path, str(start.record["base"]["source"])))
    return {
        "kind": "full" if whole else "adapter",
        "size": model.size,
        "adapter": model.adapter,
        "image_size": model.image_size,
        "sight": dataclasses.asdict(model.sight),
        "trunk": None if model.trunk is None else dataclasses.asdict(model.trunk),
        "beside": model.unsamv2_tokens,
        "base": None if whole else {"source": source, "sha256": base_sha256(model)},
        "grainmill": __version__,
        "torch": torch.__version__.split("+")[0],
    }


def record_of(init: str) -> dict[str, Any] | None:
    """What a checkpoint with a dial says of its model; None: `init` is no such checkpoint."""
    return read_granular(init).record if _is_granular(init) else None


def recorded_unsamv2_tokens(record: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's mask token stands beside SAM's four; in those that do not say it takes token 0's place."""
    return bool(record.get("beside", False))


def _place(unsamv2_tokens: bool) -> str:
    return "beside SAM's four, as in UnSAMv2's code" if unsamv2_tokens else "in the place of SAM's first"


def recorded_sight(record: dict[str, Any]) -> Sight:
    """What a checkpoint's model hears where it is clicked; those that do not say hear nothing.

    Raises:
        SchemaError: something that this version does not know.
    """
    try:
        return Sight(**record.get("sight", {}))
    except (TypeError, InputError) as error:
        raise SchemaError(
            f"the checkpoint's sight is {record['sight']!r}, expected {dataclasses.asdict(Sight())}; was it written by "
            "another version?"
        ) from error


def _words(sight: Sight) -> str:
    return f"{'' if sight.click_features else 'no '}click features and similarity {sight.similarity}"


def _lasting(init: str) -> str:
    """A file's absolute path, so that the checkpoint finds it from any folder; names stay names."""
    return os.path.abspath(init) if os.path.exists(init) else init


def trained_state(model: GranularSam2) -> dict[str, Tensor]:
    """The tensors that a checkpoint holds under `model.`: all for `full`, else the adapter's."""
    state = dict(model.state_dict())
    if model.adapter == "full":
        return in_checkpoint(state, model.trunk)
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
        path: a checkpoint file, UnSAMv2's own, or a training run's directory (its newest checkpoint).
        device: where it goes.
        base: the base's weights, for an adapter's checkpoint; None: where they were when it was trained.
        video: build it for video.

    Raises:
        InputError: no checkpoint, no base, a base with other weights than it was trained on, or a file of UnSAMv2's
            that is not whole.
        SchemaError: a file that is no checkpoint.
    """
    where = usable_device(device)
    checkpoint = read_granular(path)
    record = checkpoint.record
    for name, known in (("size", SIZES), ("adapter", ADAPTERS), ("kind", KINDS)):
        if record.get(name) not in known:
            raise SchemaError(
                f"{checkpoint.path}: {name} is {record.get(name)!r}, expected one of {', '.join(known)}; was it "
                "written by another version?"
            )
    expect_base_is_needed(base, record, where=checkpoint.path)
    try:
        trunk = Trunk.of_record(record.get("trunk"))
    except SchemaError as error:
        raise SchemaError(f"{checkpoint.path}: {error}") from error
    if video and record.get("images_only"):
        raise InputError(f"{checkpoint.path}: it was merged with --images-only, without the memory that video needs")
    model = GranularSam2(
        record["size"],
        record["adapter"],
        int(record["image_size"]),
        sight=recorded_sight(record),
        video=video,
        trunk=trunk,
        unsamv2_tokens=recorded_unsamv2_tokens(record),
    )
    if record["kind"] == MERGED:
        model.their_iou, model.has_base = record.get("their_iou", False), record.get("has_base", True)
        _install_merged(model, checkpoint)
    elif record["kind"] == UNSAMV2:
        _install_unsamv2(model, checkpoint)
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
        path: as `load_granular`; also SAM-2's own weights in any form that `sam2_state` reads.
        device: where it goes.
        base: the base's weights, for an adapter's checkpoint; None: where they were when it was trained.
        video: build it for video.

    Raises:
        InputError: as `load_granular`, and a file that is neither.
        SchemaError: as `load_granular`.
    """
    where, weights = usable_device(device), recognised(path)
    if weights.ours:
        return load_granular(weights.path, where, base=base, video=video)
    expect_base_is_needed(base, None, where=weights.path)
    model = GranularSam2(weights.size, "lite", DEFAULT_IMAGE_SIZE[weights.size], video=video)
    state = sam2_state(weights.path)
    install_state(model.base, state, where=str(weights.path), size=weights.size, images_only=not video)
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


def _install_unsamv2(model: GranularSam2, checkpoint: Checkpoint) -> None:
    expect_whole(checkpoint, model.state_dict())
    model.load_state_dict(checkpoint.group("model"), strict=False)
    model.their_iou, model.has_base = True, checkpoint.record["has_base"]


def _install_merged(model: GranularSam2, checkpoint: Checkpoint) -> None:
    found, folded = checkpoint.group("model"), checkpoint.group("folded")
    left_out = MEMORY_NAMES if checkpoint.record.get("images_only") else ()
    expected = {
        name: value.shape
        for name, value in model.state_dict().items()
        if (model.keeps_lora() or ".lora_" not in name) and not name.startswith(left_out)
    }
    layers = dict(lora_layers(model))
    shapes = [{name: value.shape for name, value in group.items()} for group in (found, folded)]
    if shapes != [expected, {name: layer.weight.shape for name, layer in layers.items()}]:
        raise InputError(f"{checkpoint.path}: its tensors are not those of size {model.size}, adapter {model.adapter}")
    model.load_state_dict(found, strict=False)
    for name, layer in layers.items():
        layer.folded = folded[name]


# ---------------------------------------------------------------------------------------------------------------------
# What a file is, and SAM-2's own models


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A file of weights that this program can use."""

    path: Path
    """The file; of a run's directory its newest checkpoint."""
    ours: bool
    """A model with a dial, of `train`, `merge` or UnSAMv2's authors (read it with `load_granular`), or SAM-2's own
    (`load_sam2`)."""
    size: Size


def recognised(path: str | os.PathLike[str]) -> Weights:
    """What lies at a path: a checkpoint of `train` or UnSAMv2's own, a run's directory, or SAM-2's own weights (a file,
    a hub's folder).

    Raises:
        InputError: nothing there, or something else; it says what: SAM 1's weights, a pickle, a cut file, a web page.
        SchemaError: a checkpoint of ours in a format that this version does not know.
    """
    file = find_checkpoint(weights_path(Path(path)))
    if not is_checkpoint(file):
        theirs = _unsamv2_file(file)
        if theirs is not None:
            return Weights(path=file, ours=True, size=_unsamv2_size(theirs))
        return Weights(path=file, ours=False, size=sam2_size(sam2_state(file), where=str(file)))
    record = read_checkpoint(file).record
    if record.get("size") not in SIZES:
        raise SchemaError(f"{file}: size is {record.get('size')!r}, expected one of {', '.join(SIZES)}")
    return Weights(path=file, ours=True, size=record["size"])


def read_granular(path: str | os.PathLike[str]) -> Checkpoint:
    """A checkpoint of a model with a dial: as `read_checkpoint`, or UnSAMv2's own file as one of kind `unsamv2`.

    Raises:
        InputError: nothing there, or a part of UnSAMv2's model.
        SchemaError: as `read_checkpoint`.
    """
    file = find_checkpoint(weights_path(Path(path)))
    theirs = _unsamv2_file(file)
    if theirs is None:
        return read_checkpoint(file)
    size = _unsamv2_size(theirs)
    theirs.tell(f"UnSAMv2's model on SAM 2.1 size {size}, {len(theirs.tensors)} weights read")
    return as_checkpoint(file, theirs.tensors, size=size, image_size=DEFAULT_IMAGE_SIZE[size])


def _unsamv2_file(file: Path) -> StateFile | None:
    """None: a file of something else, or one that cannot be read."""
    if is_checkpoint(file):
        return None
    try:
        found = read_state_file(file)
    except InputError:
        return None
    return found if is_unsamv2(found.tensors) else None


def _unsamv2_size(file: StateFile) -> Size:
    size = size_of_state(file.tensors)
    if size is None:
        raise InputError(
            f"{file.path}: taken for UnSAMv2's checkpoint, but no size of SAM-2's image encoder is in it, so it is a "
            "part of the model; save all of model.state_dict() under 'model', as their trainer does"
        )
    return size


def build_sam2(size: Size, image_size: int, *, video: bool = False) -> Any:
    """A model of sam2's own classes with random weights, in evaluation mode; with `video` its `SAM2VideoPredictor`."""
    from hydra.utils import instantiate

    config = base_config(size, image_size, video=video)
    if video:
        config["_target_"] = "sam2.sam2_video_predictor.SAM2VideoPredictor"
    return instantiate(config, _recursive_=True).eval()


def load_sam2(path: str | os.PathLike[str], *, video: bool = False) -> Any:
    """The same with the weights of a file (of UnSAMv2's those of SAM-2 in it), of their size, on the CPU and frozen.

    Raises:
        InputError: other weights than SAM-2's, or for `video` weights without the memory.
    """
    state = sam2_state(Path(path))
    size = sam2_size(state, where=str(path))
    model = build_sam2(size, DEFAULT_IMAGE_SIZE[size], video=video)
    install_state(model, state, where=str(path), size=size, images_only=not video)
    return model.requires_grad_(False)


def _is_granular(init: str) -> bool:
    """Whether a file (or a run's directory) is a model with a dial, of `train` or of UnSAMv2's authors."""
    file = weights_path(Path(init))
    return file.is_dir() or (file.is_file() and (is_checkpoint(file) or _unsamv2_file(file) is not None))
