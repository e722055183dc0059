"""`grainmill merge`: an adapter and its base in one file, ours or one for UnSAMv2's code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from .shared import BaseOption, CheckpointArgument


@dataclass(frozen=True, kw_only=True)
class MergeFlags:
    """What `grainmill merge` is asked for."""

    checkpoint: CheckpointArgument
    output: Annotated[
        Path, typer.Option(metavar="FILE", help="The new file: safetensors, or .pt with --to unsamv2. No default.")
    ]
    to: Annotated[
        str,
        typer.Option(
            metavar="grainmill|unsamv2",
            help="For what the file is: for Grainmill; or for UnSAMv2's code, its notebooks and its Space, as a .pt "
            "under its names (models trained with --unsamv2-tokens, or from its checkpoints). Default: grainmill.",
        ),
    ] = "grainmill"
    base: BaseOption = None
    half: Annotated[
        bool, typer.Option("--half", help="Matrices in half precision: half the size. Default: as they are.")
    ] = False
    images_only: Annotated[
        bool, typer.Option("--images-only", help="Without the memory for video. Default: all of the model.")
    ] = False


def run(flags: MergeFlags) -> None:
    """Folds an adapter into its base: one self-contained checkpoint for `grainmill segment` and `score`."""
    from pipeline.console import print_json
    from pipeline.errors import InputError

    from ..network.merge import merge_checkpoint, write_for_unsamv2

    if flags.to not in ("grainmill", "unsamv2"):
        raise InputError(f"--to {flags.to}: expected grainmill or unsamv2")
    if flags.to == "unsamv2":
        if flags.half or flags.images_only:
            raise InputError("--to unsamv2: its code wants all weights as they are; leave --half and --images-only out")
        print_json(write_for_unsamv2(flags.checkpoint, flags.output, base=flags.base))
        return
    print_json(
        merge_checkpoint(
            flags.checkpoint, flags.output, base=flags.base, half=flags.half, images_only=flags.images_only
        )
    )
