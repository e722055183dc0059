"""What is added to SAM-2 so that one number sets how large a part a click selects.

Fourier features of g and an MLP make one prompt token; a mask token with its own hypernetwork reads the answer; LoRA on
the mask decoder's attention lets the frozen decoder listen. Three sizes of the same idea:

- `paper`: the widths of arXiv 2511.13714 and its released code. 345,760 parameters on `small`, 0.751 % of the base (the
  paper's 0.02 % does not follow from its code).
- `lite`: 7,596 parameters, at most 0.02 % of the base on every official size: a 32 -> 12 -> 256 encoder, SAM's frozen
  hypernetwork 0 with a rank-1 delta, rank-1 LoRA on q and v of the three token-to-image attentions.
- `full`: for training from scratch: `paper` without LoRA, which adds nothing where the base itself is trained.

At the start the mask token and the hypernetwork are copies of SAM's token 0 and hypernetwork 0, and LoRA adds zero.
Shapes: N prompts, C channels.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.format.granularity import GRANULARITY_MAX, GRANULARITY_MIN

Adapter = Literal["paper", "lite", "full"]
ADAPTERS: Final[tuple[Adapter, ...]] = get_args(Adapter)

FOURIER_TEMPERATURE: Final = 100.0
"""Frequencies run from 1 to nearly this, geometrically (arXiv 2511.13714's code: T = 100)."""


@dataclass(frozen=True, kw_only=True)
class AdapterSpec:
    """Widths of an adapter."""

    fourier_dim: int
    """Fourier features of g; half sines, half cosines."""
    hidden_dims: int
    """Hidden layers of the MLP behind them."""
    hidden_width: int | None
    """Their width; None: halfway between `fourier_dim` and the model's width."""
    type_vector: bool
    """Add a learned vector to the prompt token."""
    own_hypernetwork: bool
    """A trained copy of hypernetwork 0; otherwise the frozen one with a rank-1 delta."""
    lora_rank: int
    """0: no LoRA."""
    lora_targets: tuple[str, ...]
    """Projections of the decoder's attention that get LoRA."""
    lora_attentions: tuple[str, ...]
    """Attentions that get LoRA, by the end of their name; empty: all seven."""
    dropout: float
    """In the MLP and on LoRA's input, while training."""


SPECS: Final[dict[Adapter, AdapterSpec]] = {
    "paper": AdapterSpec(
        fourier_dim=128, hidden_dims=2, hidden_width=None, type_vector=True, own_hypernetwork=True, lora_rank=8,
        lora_targets=("q_proj", "k_proj", "v_proj", "out_proj"), lora_attentions=(), dropout=0.1,
    ),
    "lite": AdapterSpec(
        fourier_dim=32, hidden_dims=1, hidden_width=12, type_vector=False, own_hypernetwork=False, lora_rank=1,
        lora_targets=("q_proj", "v_proj"), lora_attentions=("cross_attn_token_to_image", "final_attn_token_to_image"),
        dropout=0.0,
    ),
    "full": AdapterSpec(
        fourier_dim=128, hidden_dims=2, hidden_width=None, type_vector=True, own_hypernetwork=True, lora_rank=0,
        lora_targets=(), lora_attentions=(), dropout=0.0,
    ),
}  # fmt: skip


def granularity_values(value: Any) -> NDArray[np.float64]:
    """Checks a granularity, or several: (V,) float64. All that come from outside pass here once.

    Args:
        value: a number, or an array, list or tensor of them, in any precision.

    Raises:
        InputError: values outside [0.1, 1.0], NaN, no numbers, or none at all.
    """
    try:
        values = _in_double(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"granularity: expected numbers, found {value!r:.80}") from error
    if not values.size:
        raise InputError("granularity: expected at least one number, found none")
    # A float32 that became a Python number is still a little off its decimal value; more is out of range.
    low, high = GRANULARITY_MIN - 1e-6, GRANULARITY_MAX + 1e-6
    wrong = values[~((values >= low) & (values <= high))]
    if wrong.size:
        raise InputError(f"granularity {wrong[0]:g}: expected a number in [{GRANULARITY_MIN}, {GRANULARITY_MAX}]")
    return np.clip(values, GRANULARITY_MIN, GRANULARITY_MAX)


def _in_double(value: Any) -> NDArray[np.float64]:
    """(V,) float64; what is 0.1 in a coarser type (0.09998 in half precision) is 0.1 here too.

    Raises:
        TypeError, ValueError, RuntimeError: no numbers.
    """
    if isinstance(value, list | tuple):
        if len({len(each) for each in value if isinstance(each, list | tuple)}) > 1:
            raise ValueError("lists of several lengths")
        return np.concatenate([_in_double(each) for each in value]) if value else np.empty(0)
    if isinstance(value, Tensor):
        if value.is_complex() or value.dtype == torch.bool:
            raise TypeError(f"{value.dtype} is no type of real numbers")
        values = value.detach().cpu().double().reshape(-1).numpy().copy()
        lowest = torch.tensor(GRANULARITY_MIN, dtype=value.dtype).double().item()
    else:
        array = np.asarray(value)
        if array.dtype.kind == "O" and array.ndim:
            return _in_double(array.reshape(-1).tolist())
        if array.dtype.kind not in "fiu":
            raise TypeError(f"{array.dtype.name} is no type of real numbers")
        values = array.astype(np.float64).reshape(-1)
        lowest = float(np.float64(np.asarray(GRANULARITY_MIN).astype(array.dtype)))
    if lowest:  # whole numbers have 0 for it, which stays 0
        values[values == lowest] = GRANULARITY_MIN
    return values


class GranularityEncoder(nn.Module):
    """g -> one prompt token: sin and cos of w_k g with w_k = T^(k / K), k = 0..K-1, through an MLP with ReLU."""

    frequencies: Tensor

    def __init__(self, spec: AdapterSpec, width: int) -> None:
        super().__init__()
        half = spec.fourier_dim // 2
        self.register_buffer("frequencies", FOURIER_TEMPERATURE ** (torch.arange(half) / half), persistent=False)
        hidden = spec.hidden_width or (spec.fourier_dim + width) // 2
        widths = [spec.fourier_dim, *[hidden] * spec.hidden_dims]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(spec.dropout)]
        self.mlp = nn.Sequential(*layers, nn.Linear(widths[-1], width))
        self.type_vector = nn.Parameter(torch.zeros(1, width)) if spec.type_vector else None

    def forward(self, granularity_N: Tensor) -> Tensor:
        """(N,) in [0.1, 1.0] -> (N, 1, C)."""
        angles = granularity_N[:, None] * self.frequencies
        features = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
        token: Tensor = self.mlp(features)
        if self.type_vector is not None:
            token = token + self.type_vector
        return token[:, None]


class LowRankHypernetwork(nn.Module):
    """SAM's hypernetwork, frozen, with a rank-1 delta on each layer; equal to it at the start."""

    def __init__(self, layers: list[tuple[int, int]]) -> None:
        super().__init__()
        self.a = nn.ParameterList([torch.randn(1, inputs) * 0.01 for inputs, _ in layers])
        self.b = nn.ParameterList([torch.zeros(outputs, 1) for _, outputs in layers])

    def forward(self, token_NC: Tensor, hypernetwork: Any) -> Tensor:
        """(N, C) -> (N, C / 8), through the layers of `hypernetwork` (sam2's MLP) plus the deltas."""
        value = token_NC
        last = len(self.a) - 1
        for index, layer in enumerate(hypernetwork.layers):
            value = layer(value) + F.linear(F.linear(value, self.a[index]), self.b[index])
            if index < last:
                value = hypernetwork.act(value)
        return value


class LoraLinear(nn.Linear):
    """A frozen linear layer plus `scale * B A dropout(x)` while `active`; the base's own layer otherwise.

    It keeps the names `weight` and `bias`, so that the base's state dict stays as Meta publishes it. `folded`, the
    weight with LoRA added in, takes its place in merged checkpoints: one product instead of three. LoRA's own two
    matrices are not in such files.
    """

    def __init__(self, base: nn.Linear, rank: int, dropout: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.scale = 2.0
        self.dropout = dropout
        self.active = False
        self.folded: Tensor | None
        self.register_buffer("folded", None, persistent=False)
        self.lora_a = nn.Parameter(torch.randn(rank, base.in_features) * 0.01)
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, input: Tensor) -> Tensor:
        if self.active and self.folded is not None:
            return F.linear(input, self.folded, self.bias)
        if not self.active:
            return F.linear(input, self.weight, self.bias)
        if torch.is_autocast_enabled(input.device.type):  # once, for both paths; dropout then writes half as much
            input = input.to(torch.get_autocast_dtype(input.device.type))
        dropped = F.dropout(input, self.dropout, self.training)
        # Scaled where it is narrow: the tokens of an image are many, the rank is small.
        added = F.linear(self.scale * F.linear(dropped, self.lora_a), self.lora_b)
        return F.linear(input, self.weight, self.bias) + added

    def folded_weight(self) -> Tensor:
        """The weight with LoRA in it: as it was folded before, or W + scale B A, added in double precision."""
        if self.folded is not None:
            return self.folded
        delta = self.scale * (self.lora_b.double() @ self.lora_a.double())
        return (self.weight.double() + delta).to(self.weight.dtype)


def insert_lora(transformer: nn.Module, spec: AdapterSpec) -> None:
    """Replaces the targeted projections of sam2's two-way transformer by `LoraLinear`, sharing their weights."""
    if not spec.lora_rank:
        return
    for name, module in list(transformer.named_modules()):
        if not hasattr(module, "q_proj"):
            continue
        if spec.lora_attentions and not name.endswith(spec.lora_attentions):
            continue
        for target in spec.lora_targets:
            setattr(module, target, LoraLinear(getattr(module, target), spec.lora_rank, spec.dropout))


def lora_layers(module: nn.Module) -> list[tuple[str, LoraLinear]]:
    """Every LoRA layer with its name."""
    return [(name, each) for name, each in module.named_modules() if isinstance(each, LoraLinear)]


@contextmanager
def lora_active(layers: list[LoraLinear]) -> Iterator[None]:
    """Switches LoRA on for one forward pass of the decoder."""
    for layer in layers:
        layer.active = True
    try:
        yield
    finally:
        for layer in layers:
            layer.active = False


def own_hypernetwork(decoder: Any) -> nn.Module:
    """A trainable copy of SAM's hypernetwork 0."""
    return copy.deepcopy(decoder.output_hypernetworks_mlps[0])


def layer_sizes(hypernetwork: Any) -> list[tuple[int, int]]:
    """(inputs, outputs) of each layer of sam2's MLP."""
    return [(layer.in_features, layer.out_features) for layer in hypernetwork.layers]
