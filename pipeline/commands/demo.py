"""`grainmill demo`: the whole loop on the photographs inside scikit-image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Where everything goes. Default demo. Again: only what is missing.")
    ] = Path("demo"),
    train_steps: Annotated[
        int, typer.Option(min=1, help="Steps of the small model. Default 300: a minute or two on two cores.")
    ] = 300,
    executor: Annotated[
        str, typer.Option(metavar="ray|local|inline", help="Of `mine`. Default ray, as there.")
    ] = "ray",
    workers: Annotated[
        int, typer.Option(min=1, help="Of `mine`. Default 2: any machine has two cores, and 1 GiB each is enough.")
    ] = 2,
) -> None:
    """Mines, verifies, releases, trains briefly, scores, and shows it all on one page, on twelve real photographs.

    Each step is a command of its own, printed before it runs. Nothing is downloaded, no GPU is needed.
    """
    from ..demo import run_demo

    run_demo(output, train_steps=train_steps, executor=executor, workers=workers)
