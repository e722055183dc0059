"""`grainmill onnx-export`: the image path for other runtimes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from .shared import BaseOption, CheckpointArgument


@dataclass(frozen=True, kw_only=True)
class OnnxExportFlags:
    """What `grainmill onnx-export` is asked for."""

    checkpoint: CheckpointArgument
    output: Annotated[Path, typer.Option(metavar="DIR", help="Where the three files go. No default.")]
    base: BaseOption = None


def run(flags: OnnxExportFlags) -> None:
    """Writes the image path as ONNX: encoder.onnx, decoder.onnx with the granularity as an input, about.json."""
    from pipeline.console import print_json

    from ..network.load import load_granular
    from ..predict.onnx_export import export_onnx

    print_json(export_onnx(load_granular(flags.checkpoint, base=flags.base), flags.output))
