"""`grainmill torch-export`: the image path as programs of torch.export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from .shared import BaseOption, CheckpointArgument


@dataclass(frozen=True, kw_only=True)
class TorchExportFlags:
    """What `grainmill torch-export` is asked for."""

    checkpoint: CheckpointArgument
    output: Annotated[Path, typer.Option(metavar="DIR", help="Where the three files go. No default.")]
    base: BaseOption = None


def run(flags: TorchExportFlags) -> None:
    """Writes the image path for torch alone: encoder.pt2, decoder.pt2 with the granularity as an input, about.json."""
    from pipeline.console import print_json

    from ..network.load import load_granular
    from ..predict.torch_export import export_torch

    print_json(export_torch(load_granular(flags.checkpoint, base=flags.base), flags.output))
