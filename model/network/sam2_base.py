"""SAM 2.1 from the `sam2` package: its own configurations, its checkpoints, and a micro size of the same classes.

Nothing of sam2 is copied: the package's YAML files are read, a few values are overridden, and its classes are built
from them. Checkpoints come as Meta publishes them (a zip with {"model": state dict}, read with `weights_only`) or as
safetensors; nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor, nn

from pipeline.environment.torch_compat import ensure_torchvision
from pipeline.errors import InputError
from pipeline.storage.local import sha256_of_file

from .checkpoint import is_checkpoint
from .transformers_layout import is_transformers_layout, meta_names
from .trunks import build_encoder
from .unsamv2 import base_of, is_unsamv2
from .weight_files import FIRST_WEIGHTS, StateFile, misfit, read_state_file, taken_for, weights_path

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
    """Loads SAM-2's weights into a base model.

    Args:
        model: from `build_base`, of the size that the checkpoint has.
        source: a path (see `sam2_state`), or a name such as `sam2.1_hiera_small`, which is fetched
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
    if not weights_path(path).is_file():
        found = "a directory without weights" if path.is_dir() else "nothing"
        raise InputError(
            f"{path}: expected a checkpoint file, found {found}; give a path, or one of {', '.join(PUBLISHED)}"
        )
    state = sam2_state(path)
    install_state(model, state, where=str(path), size=size)
    return state_sha256(state)


def sam2_state(path: Path) -> dict[str, Tensor]:
    """SAM-2's state dict out of a file of any form that holds it, under Meta's names of SAM 2.1, float32 on the CPU.

    Forms are those of `weight_files`, under Meta's names or those of `transformers`. SAM 2.0's weights get the three
    tensors that they lack as zeros: SAM 2.1's configuration then computes what 2.0's does, for images and videos. What
    was changed or left out is told in one line.

    Raises:
        InputError: no such file, pickled code, quantised or other weights; it says what they are taken for.
    """
    file = read_state_file(path)
    state, remarks = file.tensors, list(file.remarks)
    if is_unsamv2(state):
        state = base_of(state, where=str(file.path))
        remarks.append("SAM-2's part of UnSAMv2's file")
    if is_transformers_layout(state):
        state, left_out = meta_names(state, where=str(file.path))
        remarks.append(f"from transformers' layout, left out: {', '.join(left_out) or 'nothing'}")
    size = sam2_size(state, where=str(file.path))
    version, count = "2.1", len(state)
    if not any(name.startswith(MEMORY_NAMES) for name in state):
        version = "2"
        remarks.append("it holds no memory: for images alone")
    elif not any(name in state for name in _NEW_IN_2_1) and {"maskmem_tpos_enc", "no_obj_ptr"} <= set(state):
        version = "2.0"
        memory, width = state["maskmem_tpos_enc"].shape[-1], state["no_obj_ptr"].shape[-1]
        state |= {
            name: torch.zeros(shape)
            for name, shape in zip(_NEW_IN_2_1, ((1, memory), (memory, width), (memory,)), strict=True)
        }
        remarks.append("what 2.1 added to the memory is zero, so it answers as 2.0")
    StateFile(path=file.path, tensors=state, remarks=tuple(remarks)).tell(
        f"SAM {version} size {size}, {count} weights read"
    )
    return state


def install_state(
    model: nn.Module, state: Mapping[str, Tensor], *, where: str, size: str, images_only: bool = False
) -> None:
    """Copies weights into a model, all of them and no others (LoRA, which a base does not have, stays).

    Args:
        model: of sam2's classes.
        state: from `sam2_state`.
        where: for messages.
        size: of the model.
        images_only: the weights may lack the memory for videos (as Sam2Model's do), which is set to zero then.

    Raises:
        InputError: what does not fit, and what the weights are taken for.
    """
    own = {name: value for name, value in model.state_dict().items() if ".lora_" not in name}
    if not any(name.startswith(MEMORY_NAMES) for name in state):
        if not images_only:
            raise InputError(
                f"{where}: taken for SAM-2 for images alone (transformers' Sam2Model); the memory is missing, "
                "which training and videos need. Give the whole model (Sam2VideoModel, or Meta's .pt file)"
            )
        state = {**{name: torch.zeros_like(own[name]) for name in own if name.startswith(MEMORY_NAMES)}, **state}
    if differs := misfit(state, own):
        found = size_of_state(state)
        if found and found != size:
            told = f"; its weights look like size {found}: give --size {found}, or the weights of size {size}"
        else:
            told = "; taken for a changed or incomplete copy: fetch it again, or save the model's whole state dict"
        raise InputError(f"{where}: expected the weights of SAM 2.1 size {size}, found {differs}{told}")
    model.load_state_dict(dict(state), strict=False)


def size_of_state(state: Mapping[str, Tensor]) -> Size | None:
    """Which size weights of SAM-2 have, by the trunk's width and depth and the neck's width; None: none of ours."""
    patch = state.get(FIRST_WEIGHTS[0])
    if patch is None:
        return None
    prefix = "image_encoder.trunk.blocks."
    blocks = len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})
    found = _TRUNKS.get((int(patch.shape[0]), blocks))
    neck = state.get("image_encoder.neck.convs.0.conv.weight")
    return "mini" if found == "micro" and neck is not None and len(neck) == SCRATCH_WIDTH["mini"] else found


MEMORY_NAMES: Final = (
    "memory_attention.", "memory_encoder.", "maskmem_tpos_enc", "no_mem_pos_enc", "no_obj_ptr", "no_obj_embed_spatial",
    "mask_downsample.", "obj_ptr_proj.", "obj_ptr_tpos_proj.",
)  # fmt: skip
"""How the names of what video alone uses begin."""

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
    """Which size of SAM-2 a state dict is.

    Raises:
        InputError: SAM 1's weights, or others; it says which.
    """
    size = size_of_state(state)
    if size is not None:
        return size
    found, advice = taken_for(state)
    fetch = f"fetch {_address(PUBLISHED['sam2.1_hiera_small'])}"
    raise InputError(
        f"{where}: expected a checkpoint of `grainmill train` or of SAM 2.1 or 2.0 (tiny, small, base_plus, large), "
        f"found {found}; {advice or fetch}"
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
