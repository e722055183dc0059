"""`grainmill onnx-export`: the image path for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .shared import BaseOption, CheckpointArgument


def command(
    checkpoint: CheckpointArgument,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Where the three files go. No default.")],
    base: BaseOption = None,
) -> None:
    """Writes the image path as ONNX: encoder.onnx, decoder.onnx with the granularity as an input, about.json."""
    from pipeline.console import print_json

    from ..network.load import load_granular
    from ..predict.onnx_export import export_onnx

    print_json(export_onnx(load_granular(checkpoint, base=base), output))
