"""`grainmill score`: mined masks or a checkpoint, measured on a benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from ..evaluation.flags import ScoreFlags


@dataclass(frozen=True, kw_only=True)
class ScoreCommandFlags(ScoreFlags):
    """What `grainmill score` is asked for: a scoring, or the list of benchmarks."""

    list_benchmarks: Annotated[
        bool, typer.Option("--list", help="Show the benchmarks and their layouts, and stop. Default: off.")
    ] = False
    json: Annotated[
        bool, typer.Option("--json", help="What scores.json holds on standard output. Default: off, tables for people.")
    ] = False


def run(flags: ScoreCommandFlags) -> None:
    """Measures mined masks (--masks), a model (--checkpoint) or peers (--peer) on a benchmark with human ground truth.

    Writes scores.json with 95 % bootstrap intervals over images, objects.parquet with one row for each object, and
    plots (the extra `eval`).
    """
    from pipeline.console import print_json

    if flags.list_benchmarks:
        from ..evaluation.benchmarks.all import list_json, list_text

        if flags.json:
            print_json(list_json())
        else:
            print(list_text())
        return

    from ..evaluation.options import score_options
    from ..evaluation.score import run as score

    record, text = score(score_options(flags))
    if flags.json:
        print_json(record)
    else:
        print(text)
