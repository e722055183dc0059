"""SAM 2.1 from the `sam2` package: its own configurations, its checkpoints, and a micro size of the same classes.

Nothing of sam2 is copied: the package's YAML files are read, a few values are overridden, and its classes are built
from them. Checkpoints come as Meta publishes them (a zip with {"model": state dict}, read with `weights_only`) or as
safetensors; nothing is ever unpickled.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import logging
import multiprocessing
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor, nn

from pipeline.console import note
from pipeline.environment.torch_compat import ensure_torchvision
from pipeline.errors import InputError
from pipeline.storage.local import sha256_of_file

from .checkpoint import is_checkpoint
from .trunks import build_encoder

Size = Literal["tiny", "small", "base_plus", "large", "micro", "mini"]
SIZES: Final[tuple[Size, ...]] = get_args(Size)

DEFAULT_IMAGE_SIZE: Final[dict[Size, int]] = {
    "tiny": 1024,
    "small": 1024,
    "base_plus": 1024,
    "large": 1024,
    "micro": 256,
    "mini": 256,
}
"""Pixels a side: what SAM 2.1 was trained at; for micro and mini, what two processor cores can train."""

IMAGE_SIZE_STEP: Final = 32
"""Image sizes are multiples of it: windows of 8 at stride 4 tile the map, and stride 32 is the coarsest level."""

_CONFIGS: Final[dict[str, str]] = {
    "tiny": "sam2.1_hiera_t.yaml",
    "small": "sam2.1_hiera_s.yaml",
    "base_plus": "sam2.1_hiera_b+.yaml",
    "large": "sam2.1_hiera_l.yaml",
    "micro": "sam2.1_hiera_t.yaml",
    "mini": "sam2.1_hiera_t.yaml",
}


@dataclass(frozen=True, kw_only=True)
class Published:
    """An official checkpoint on the hub."""

    repository: str
    filename: str
    sha256: str
    """Of the file, as Meta publishes it (29 September 2024, the same on the hub and on Meta's own server)."""


PUBLISHED: Final[dict[str, Published]] = {
    "sam2.1_hiera_tiny": Published(
        repository="facebook/sam2.1-hiera-tiny",
        filename="sam2.1_hiera_tiny.pt",
        sha256="7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69",
    ),
    "sam2.1_hiera_small": Published(
        repository="facebook/sam2.1-hiera-small",
        filename="sam2.1_hiera_small.pt",
        sha256="6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38",
    ),
    "sam2.1_hiera_base_plus": Published(
        repository="facebook/sam2.1-hiera-base-plus",
        filename="sam2.1_hiera_base_plus.pt",
        sha256="a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5",
    ),
    "sam2.1_hiera_large": Published(
        repository="facebook/sam2.1-hiera-large",
        filename="sam2.1_hiera_large.pt",
        sha256="2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318",
    ),
}
SCRATCH_WIDTH: Final[dict[str, int]] = {"micro": 64, "mini": 128}
"""The sizes that nobody publishes, which train from scratch: one small trunk, and the decoder's width."""


def expect_image_size(image_size: int) -> None:
    """Raises InputError for a size that the encoder's strides do not divide, or out of range."""
    if image_size % IMAGE_SIZE_STEP or not 64 <= image_size <= 4096:
        raise InputError(f"--image-size {image_size}: expected a multiple of {IMAGE_SIZE_STEP} between 64 and 4096")


def build_base(size: Size, image_size: int, *, video: bool = False, trunk: str | None = None) -> Any:
    """Builds a `sam2` model with random weights, in evaluation mode, on the CPU.

    Args:
        size: one of `SIZES`.
        image_size: pixels a side of the square input, a multiple of 32.
        video: build `video.GranularSam2Video`, sam2's video predictor with the same weights, instead of `SAM2Base`.
        trunk: timm's name of the network that takes Hiera's place in the image encoder; None: Hiera.

    Raises:
        InputError: an unknown size, an image size that is no multiple of 32, or a trunk without the levels.
    """
    from hydra.utils import instantiate

    config = base_config(size, image_size, video=video)
    given = {} if trunk is None else {"image_encoder": build_encoder(config.pop("image_encoder"), trunk, image_size)}
    model = instantiate(config, **given, _recursive_=True)
    model.eval()
    return model


def base_config(size: Size, image_size: int, *, video: bool = False) -> Any:
    """The package's own configuration with our few overrides, for `hydra.utils.instantiate`; see `build_base`."""
    if size not in SIZES:
        raise InputError(f"--size {size}: expected one of {', '.join(SIZES)}")
    expect_image_size(image_size)
    ensure_torchvision()
    import sam2  # noqa: F401  (its import registers the configurations that its classes look for)
    from omegaconf import OmegaConf

    spec = importlib.util.find_spec("sam2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    path = Path(spec.submodule_search_locations[0]) / "configs" / "sam2.1" / _CONFIGS[size]
    return OmegaConf.merge(OmegaConf.load(path).model, _overrides(size, image_size, video))


def _overrides(size: Size, image_size: int, video: bool) -> dict[str, Any]:
    """What differs from the package's file: input size, sam2's own post-processing defaults, and small widths."""
    grid = [image_size // 16, image_size // 16]
    values: dict[str, Any] = {
        "image_size": image_size,
        "compile_image_encoder": False,
        # The three values that sam2.build_sam sets by default: fall back to a multimask where the mask is unstable.
        "sam_mask_decoder_extra_args": {
            "dynamic_multimask_via_stability": True,
            "dynamic_multimask_stability_delta": 0.05,
            "dynamic_multimask_stability_thresh": 0.98,
        },
        "memory_attention": {
            "layer": {"self_attention": {"feat_sizes": grid}, "cross_attention": {"feat_sizes": grid}}
        },
    }
    if video:
        values["_target_"] = "model.predict.video.GranularSam2Video"
        values["binarize_mask_from_pts_for_mem_enc"] = True
    if size in SCRATCH_WIDTH:
        width = SCRATCH_WIDTH[size]
        values["image_encoder"] = {
            "trunk": {
                "embed_dim": 32,
                "num_heads": 1,
                "stages": [1, 2, 3, 1],
                "global_att_blocks": [4, 5],
                "window_spec": [8, 4, 8, 8],
                "window_pos_embed_bkg_spatial_size": [7, 7],
            },
            "neck": {
                "d_model": width,
                "backbone_channel_list": [256, 128, 64, 32],
                "position_encoding": {"num_pos_feats": width},
            },
        }
        attention = {"embedding_dim": width}
        values["memory_attention"] = {
            "d_model": width,
            "num_layers": 1,
            "layer": {
                "d_model": width,
                "dim_feedforward": 2 * width,
                "self_attention": {**attention, "feat_sizes": grid},
                "cross_attention": {**attention, "feat_sizes": grid, "kv_in_dim": 16},
            },
        }
        values["memory_encoder"] = {
            "in_dim": width,
            "out_dim": 16,
            "position_encoding": {"num_pos_feats": 16},
            "mask_downsampler": {"embed_dim": width},
            "fuser": {"layer": {"dim": width}, "num_layers": 1},
        }
    return values


@contextmanager
def scripted_transforms() -> Iterator[None]:
    """For making sam2's image predictor, whose transform scripts itself, which torch has come to dislike."""
    ensure_torchvision()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
        yield


def sam2_feature_sizes(image_size: int) -> list[tuple[int, int]]:
    """Cells a side of the encoder's levels, for `_bb_feat_sizes` of sam2's image predictor, which has 1024's."""
    return [(image_size // stride, image_size // stride) for stride in (4, 8, 16)]


def parameter_count(module: nn.Module) -> int:
    """Number of parameters (buffers not counted)."""
    return sum(parameter.numel() for parameter in module.parameters())


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Identity of weights, independent of the file they came in: sha256 over names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints of the base


def load_base_weights(model: nn.Module, source: str, *, size: Size) -> str:
    """Loads official SAM 2.1 weights into a base model.

    Args:
        model: from `build_base`, of the size that the checkpoint has.
        source: a path (`.pt` as published, or safetensors), or a name such as `sam2.1_hiera_small`, which is fetched
            from the hub and compared with the sha256 of `PUBLISHED`.
        size: of `model`, for the message.

    Returns:
        The weights' identity, see `state_sha256`.

    Raises:
        InputError: no such file, pickled code, another model, another version or size, missing or foreign weights.
    """
    path = Path(_fetch(source)) if source in PUBLISHED and not Path(source).exists() else Path(source)
    if path.is_file() and is_checkpoint(path):
        raise InputError(f"{path}: expected SAM 2.1's own weights, found a checkpoint that `grainmill train` wrote")
    state = read_state(path)
    sam2_size(state, where=str(path))
    install_state(model, state, where=str(path), size=size)
    return state_sha256(state)


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict of a `.pt` or safetensors file, on the CPU, without unpickling code.

    Names of weights that a wrapper has lengthened (`module.`, `_orig_mod.`) are taken without it, which is said.

    Raises:
        InputError: no such file, or a file that is neither.
    """
    if not path.is_file():
        raise InputError(
            f"{path}: expected a checkpoint file, found {'a directory' if path.is_dir() else 'nothing'}; give a path, "
            f"or one of {', '.join(PUBLISHED)}"
        )
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    with path.open("rb") as stream:
        start = stream.read(9)
        if start[8:9] == b"{":
            try:
                return _unwrapped(load_file(path), path)
            except SafetensorError as error:
                raise InputError(f"{path}: not a whole safetensors file ({error})") from error
        stream.seek(0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # torch's, of the pickle's protocol
                loaded = torch.load(stream, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged pickle raises whatever its reader stumbles over; all of it is told
            raise InputError(
                f"{path}: expected a checkpoint with weights only (as Meta publishes SAM 2.1) or safetensors; found "
                f"{_unreadable(error, start)}"
            ) from error
    inner = [loaded[name] for name in ("model", "state_dict") if name in loaded] if isinstance(loaded, dict) else []
    state = inner[0] if inner else loaded
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path}: expected a state dict, or one under 'model', as Meta's checkpoints hold")
    return _unwrapped(state, path)


_FIRST_WEIGHT: Final = "image_encoder.trunk.patch_embed.proj.weight"


def _unwrapped(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Without what DistributedDataParallel (`module.`), torch.compile (`_orig_mod.`, anywhere) and the like put before
    the names of SAM-2's weights."""
    short = {name: name.replace("_orig_mod.", "") for name in state}
    first = next((name for name in short.values() if name.endswith(f".{_FIRST_WEIGHT}")), _FIRST_WEIGHT)
    prefix = first.removesuffix(_FIRST_WEIGHT)
    if all(name.startswith(prefix) for name in short.values()):
        short = {name: each.removeprefix(prefix) for name, each in short.items()}
    if list(short) == list(short.values()) or len(set(short.values())) < len(short):
        return dict(state)
    _tell_once(f"{path}: its weights have longer names than SAM-2's ({next(iter(state))}); read without the wrapper's")
    return {short[name]: value for name, value in state.items()}


@functools.cache
def _tell_once(text: str) -> None:
    if multiprocessing.parent_process() is None:  # not again in each worker
        note(text)


def _unreadable(error: Exception, start: bytes) -> str:
    """What a file is that torch would not read, and what to do. Torch's own words tell to read it unsafely."""
    zipped = start.startswith(b"PK")
    if code := _PICKLED_CODE.search(str(error)):
        what = f"pickled code ({code[1]:.80})"
    elif "TorchScript" in str(error):
        what = "a TorchScript program"
    elif start.startswith(b"\x80") or (zipped and isinstance(error, pickle.UnpicklingError)):
        what = "a pickle that is cut or holds more than tensors"
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


def install_state(model: nn.Module, state: Mapping[str, Tensor], *, where: str, size: str) -> None:
    """Copies weights into a model, all of them and no others (LoRA, which a base does not have, stays).

    Raises:
        InputError: what does not fit, and which size the weights seem to have.
    """
    own = {name: value for name, value in model.state_dict().items() if ".lora_" not in name}
    missing = sorted(set(own) - set(state))
    foreign = sorted(set(state) - set(own))
    shaped = sorted(name for name in set(own) & set(state) if own[name].shape != state[name].shape)
    if missing or foreign or shaped:
        found = size_of_state(state)
        guess = f"; its weights look like size {found}" if found and found != size else ""
        raise InputError(
            f"{where}: expected the weights of SAM 2.1 size {size}, found {len(missing)} missing {missing[:2]}, "
            f"{len(foreign)} unknown {foreign[:2]}, {len(shaped)} of another shape {shaped[:2]}{guess}"
        )
    model.load_state_dict(dict(state), strict=False)


def size_of_state(state: Mapping[str, Tensor]) -> Size | None:
    """Which size weights of SAM-2 have, by the trunk's width and depth and the neck's width; None: none of ours."""
    patch = state.get(_FIRST_WEIGHT)
    if patch is None:
        return None
    prefix = "image_encoder.trunk.blocks."
    blocks = len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})
    found = _TRUNKS.get((int(patch.shape[0]), blocks))
    neck = state.get("image_encoder.neck.convs.0.conv.weight")
    return "mini" if found == "micro" and neck is not None and len(neck) == SCRATCH_WIDTH["mini"] else found


_TRUNKS: Final[dict[tuple[int, int], Size]] = {
    (96, 12): "tiny",
    (96, 16): "small",
    (112, 24): "base_plus",
    (144, 48): "large",
    (32, 7): "micro",
}
"""(channels of the first stage, blocks) of the encoder's trunk."""

_NEW_IN_2_1: Final = ("no_obj_embed_spatial", "obj_ptr_tpos_proj.weight", "obj_ptr_tpos_proj.bias")


def sam2_size(state: Mapping[str, Tensor], *, where: str) -> Size:
    """Which size of SAM 2.1 a state dict is.

    Raises:
        InputError: SAM 2.0's weights, SAM 1's, or none of these; it says which.
    """
    size = size_of_state(state)
    if size is not None and any(name in state for name in _NEW_IN_2_1):
        return size
    if size is not None:
        found = f"SAM 2.0's weights of size {size} (sam2_hiera_*.pt), which lack {_NEW_IN_2_1[0]} and two more of 2.1"
    elif any(name.startswith("image_encoder.blocks.") for name in state):
        found = "SAM 1's weights"
    else:
        found = f"{len(state)} weights of something else{''.join(f', such as {name}' for name in sorted(state)[:1])}"
    name = f"sam2.1_hiera_{size or 'small'}"
    fetch = f"; fetch {_address(PUBLISHED[name])}" if name in PUBLISHED else ""
    raise InputError(
        f"{where}: expected a checkpoint of `grainmill train` or of SAM 2.1 (tiny, small, base_plus, large), found "
        f"{found}{fetch}"
    )


@contextmanager
def _first_line_only(log: logging.Logger) -> Iterator[None]:
    """The hub's library tells of each of its attempts in two lines, half a minute long; the first is enough."""
    once = iter([True])

    def first(record: logging.LogRecord) -> bool:
        return next(once, False)

    handlers = list(log.handlers)
    for handler in handlers:
        handler.addFilter(first)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(first)


def is_at_hand(source: str) -> bool:
    """Whether a base can be opened without fetching it: a path, or a name whose file lies in the hub's cache."""
    if source not in PUBLISHED or Path(source).exists():
        return True
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return False
    return isinstance(try_to_load_from_cache(PUBLISHED[source].repository, PUBLISHED[source].filename), str)


def _address(published: Published) -> str:
    return f"https://huggingface.co/{published.repository}/resolve/main/{published.filename}"


def _fetch(name: str) -> str:
    """Downloads an official checkpoint (or finds it in the hub's cache) and compares it with the table above."""
    published = PUBLISHED[name]
    by_hand = (
        f"fetch {_address(published)} by hand and give its path (--init PATH, or --base PATH for a trained adapter)"
    )
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise InputError(f"{name}: fetching by name needs the extra [hub]; or {by_hand}") from error
    try:
        with _first_line_only(logging.getLogger("huggingface_hub")):
            path = hf_hub_download(published.repository, published.filename)
    except Exception as error:  # its HTTP client's exceptions have no common parent with its own, and changed already
        cause = error.__cause__ or error  # without the hub's general advice
        reason = (str(cause).split("\n")[0] or type(cause).__name__).rstrip(". ")
        raise InputError(
            f"{name}: could not be fetched from {published.repository} ({reason:.200}); {by_hand}"
        ) from error
    found = sha256_of_file(path)
    if found != published.sha256:
        raise InputError(
            f"{path}: not the {published.filename} that Meta published: sha256 is {found}, expected "
            f"{published.sha256}; delete it and fetch it again"
        )
    return path
