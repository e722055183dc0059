"""From the flags of `grainmill train` to a configuration and the options of a run."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, cast

from pipeline.errors import InputError

from ..data.sampler import Order
from ..network.load import record_of, recorded_sight, recorded_unsamv2_tokens, usable_device
from ..network.sam2_base import SCRATCH_WIDTH
from ..network.trunks import trunk_of_flags
from .config import (
    AUGMENTATIONS,
    LOSSES,
    SCRATCH,
    RunOptions,
    TrainConfig,
    loader_processes,
    make_config,
    value_named,
)
from .flags import TrainFlags


def train_options(flags: TrainFlags) -> tuple[TrainConfig, RunOptions]:
    """Resolves the flags for this machine: what is learned, and how the run is carried out.

    Fields of the same name are taken over as they are.

    Raises:
        InputError: a value that does not exist, or flags that do not go together.
    """
    if flags.on_bad_sample not in ("stop", "skip"):
        raise InputError(f"--on-bad-sample {flags.on_bad_sample}: expected stop or skip")
    given: dict[str, Any] = {field.name: getattr(flags, field.name) for field in fields(TrainFlags)}
    on_gpu = usable_device(flags.device).type == "cuda"
    trunk, trunk_file = trunk_of_flags(flags.trunk, flags.trunk_rate)
    sight = {"click_features": flags.click_features, "similarity": flags.similarity}
    start = None if flags.init is None else record_of(flags.init)
    if start is not None and set(sight.values()) == {None}:
        theirs = recorded_sight(start)
        sight = {"click_features": theirs.click_features, "similarity": theirs.similarity}
    if start is not None and flags.unsamv2_tokens is None:
        given["unsamv2_tokens"] = recorded_unsamv2_tokens(start)
    learned = {field.name for field in fields(TrainConfig)} - {"size", "init", "adapter"}
    config = make_config(
        cast(Any, flags.size),  # checked there
        flags.init or (SCRATCH if flags.size in SCRATCH_WIDTH or trunk else f"sam2.1_hiera_{flags.size}"),
        cast(Any, flags.adapter),
        **{name: value for name, value in given.items() if name in learned}
        | sight
        | {
            "augmentation": value_named("--augmentation", flags.augmentation, AUGMENTATIONS),
            "loss": value_named("--loss", flags.loss, LOSSES),
            "order": Order(kind=flags.order),
            "trunk": trunk,
            "precision": flags.precision or ("bf16" if on_gpu else "fp32"),
        },
    )
    carried_out = {field.name for field in fields(RunOptions)}
    options = RunOptions(
        **{name: value for name, value in given.items() if name in carried_out}
        | {
            "data": tuple(flags.data or ()),  # only --dry-run goes without
            "output": flags.output or "",
            "workers": loader_processes(flags.workers, on_gpu=on_gpu),
            "trunk_file": trunk_file,
        }
    )
    return config, options
