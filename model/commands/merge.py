"""`grainmill merge`: an adapter and its base in one file."""

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
    output: Annotated[Path, typer.Option(metavar="FILE", help="The merged checkpoint, safetensors. No default.")]
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

    from ..network.merge import merge_checkpoint

    print_json(
        merge_checkpoint(
            flags.checkpoint, flags.output, base=flags.base, half=flags.half, images_only=flags.images_only
        )
    )
