"""`grainmill merge`: an adapter and its base in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .shared import BaseOption, CheckpointArgument


def command(
    checkpoint: CheckpointArgument,
    output: Annotated[Path, typer.Option(metavar="FILE", help="The merged checkpoint, safetensors. No default.")],
    base: BaseOption = None,
    half: Annotated[
        bool, typer.Option("--half", help="Matrices in half precision: half the size. Default: as they are.")
    ] = False,
    images_only: Annotated[
        bool, typer.Option("--images-only", help="Without the memory for video. Default: all of the model.")
    ] = False,
) -> None:
    """Folds an adapter into its base: one self-contained checkpoint for `grainmill segment` and `score`."""
    from pipeline.console import print_json

    from ..network.merge import merge_checkpoint

    print_json(merge_checkpoint(checkpoint, output, base=base, half=half, images_only=images_only))
