"""UnSAMv2's own checkpoints (arXiv 2511.13714, Yu, Darrell and Wang): their names, and where they differ from ours.

Their model is SAM 2.1 with what adapter `paper` adds, under other names; they publish size small. Two things differ:

- The granularity's mask token stands beside SAM's four, as the last of seven output tokens, instead of in the place of
  token 0. `GranularSam2(unsamv2_tokens=True)` has that order, and so has whatever is trained on from such a file.
- Where several masks are asked for, their code returns the granularity's one mask with the highest IoU that was
  predicted for SAM's masks 1 to 3: a number about another mask. Their image predictor and their mask generator ask so.
  It is returned as theirs there, and the IoU of the mask itself (slot 0 of the same head) beside it. What is trained
  on from their file returns the mask's own.

LoRA is a layer around the projection in their code, so names of projections have `original_layer` in them. A file
without LoRA may have it folded into its projections: its dial answers, but SAM-2's own answer is not in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from pipeline.errors import InputError

from .checkpoint import Checkpoint

UNSAMV2: Final = "unsamv2"
ADAPTER: Final = "paper"

_NAMES: Final = (
    ("sam_prompt_encoder.granularity_embedding.weight", "granularity_encoder.type_vector"),
    ("sam_prompt_encoder.fourier_embedder.mlp.mlp.", "granularity_encoder.mlp."),
    ("sam_mask_decoder.gra_token.weight", "mask_token"),
    ("sam_mask_decoder.gra_output_token_mlp.", "hypernetwork."),
)
"""How the names of what is added begin, in their files and in ours."""
_LORA: Final = ((".lora_A", ".lora_a"), (".lora_B", ".lora_b"))
_WRAPPED: Final = ".original_layer."


def is_unsamv2(state: Mapping[str, Tensor]) -> bool:
    """Whether some of a state dict's names are those of UnSAMv2's additions."""
    added = tuple(theirs for theirs, _ in _NAMES)
    return any(name.startswith(added) or _WRAPPED in name or name.endswith((".lora_A", ".lora_B")) for name in state)


def base_of(state: Mapping[str, Tensor], *, where: str) -> dict[str, Tensor]:
    """Of their state dict SAM 2.1's part, under Meta's names.

    Raises:
        InputError: it has no LoRA, which may be folded into that part.
    """
    if not any(name.endswith(".lora_A") for name in state):
        raise InputError(
            f"{where}: taken for UnSAMv2's model without LoRA beside its decoder, which may have it folded in, so SAM "
            "2.1's own weights are not in it; give sam2.1_hiera_*.pt"
        )
    return {
        name.removeprefix("base."): value
        for name, value in in_our_names(state).items()
        if name.startswith("base.") and ".lora_" not in name
    }


def in_our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their state dict under the names of a `GranularSam2`; what is unknown is taken for the base's."""
    return {_ours(name): value for name, value in state.items()}


def in_their_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a `GranularSam2` with adapter `paper` under their names: the inverse of `in_our_names`."""
    wrapped = {name.removesuffix(".lora_a") for name in state if name.endswith(".lora_a")}
    return {_theirs(name, wrapped): value for name, value in state.items()}


def _ours(name: str) -> str:
    for theirs, ours in _NAMES:
        if name.startswith(theirs):
            return name.replace(theirs, ours, 1)
    for theirs, ours in _LORA:
        name = name.replace(theirs, ours)
    return f"base.{name.replace(_WRAPPED, '.')}"


def _theirs(name: str, wrapped: set[str]) -> str:
    for theirs, ours in _NAMES:
        if name.startswith(ours):
            return name.replace(ours, theirs, 1)
    layer, _, last = name.rpartition(".")
    if layer in wrapped and last in ("weight", "bias"):
        name = f"{layer}{_WRAPPED}{last}"
    for theirs, ours in _LORA:
        name = name.replace(ours, theirs)
    return name.removeprefix("base.")


def as_checkpoint(path: Path, state: Mapping[str, Tensor], *, size: str, image_size: int) -> Checkpoint:
    """Their file as a checkpoint of ours of kind `unsamv2`: base, adapter and LoRA under `model.`, in our names.

    Args:
        path: of the file, for messages.
        state: its state dict.
        size: of its base.
        image_size: pixels a side that this size takes.
    """
    record: dict[str, Any] = {
        "kind": UNSAMV2,
        "size": size,
        "adapter": ADAPTER,
        "image_size": image_size,
        "beside": True,
        "has_base": any(".lora_" in name for name in state),
        "base": {"source": str(path.absolute())},
    }
    tensors = {f"model.{name}": value for name, value in in_our_names(state).items()}
    return Checkpoint(path=path, record=record, tensors=tensors)


def expect_whole(checkpoint: Checkpoint, expected: Mapping[str, Tensor]) -> None:
    """Has a checkpoint of kind `unsamv2` all tensors of the model, and no others? LoRA may be missing, if all of it is.

    Args:
        checkpoint: of `as_checkpoint`.
        expected: the state dict of a `GranularSam2` of its size.

    Raises:
        InputError: it has not; what is wrong, in their names, and what to do.
    """
    found = checkpoint.group("model")
    names = set(expected)
    if not checkpoint.record["has_base"]:
        names = {name for name in names if ".lora_" not in name}
    shown = dict(zip(expected, in_their_names(expected), strict=True))
    missing = [shown[name] for name in expected if name in names - set(found)]
    unknown = sorted(name.removeprefix("base.") for name in set(found) - names)
    shaped = [
        f"{shown[name]} {tuple(found[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    wrong = (("missing", missing), ("unknown", unknown), ("of another shape", shaped))
    told = [f"{len(some)} {what} (first {some[0]})" for what, some in wrong if some]
    if told:
        raise InputError(
            f"{checkpoint.path}: taken for UnSAMv2's model on SAM 2.1 {checkpoint.record['size']}; of its "
            f"{len(expected)} tensors {', '.join(told)}. {_advice(missing, unknown, shaped, len(expected))}"
        )


def _advice(missing: list[str], unknown: list[str], shaped: list[str], count: int) -> str:
    if any(".lora_A " in each for each in shaped) or any("fourier_embedder" in each for each in shaped):
        return "Read are LoRA of rank 8 and 128 Fourier features, as in their configs/unsamv2_small.yaml"
    if any("granularity_round_embedding" in each for each in unknown):
        return "Their older code wrote such tensors, which their released code refuses too; have them taken out"
    if len(missing) > count // 2:
        return "It holds a part of the model; save all of model.state_dict() under 'model', as their trainer does"
    return "If it is their download, fetch it again; else save all of model.state_dict() under 'model'"
