"""`grainmill mine`: images -> committed shards of mask-granularity pairs."""

from __future__ import annotations

import os
from typing import Annotated

import typer

PANEL_INPUT = "What is mined"
PANEL_RUN = "How it runs"
PANEL_FAIL = "Failures and repeats"


def command(
    input: Annotated[
        list[str],
        typer.Option(
            metavar="[LABEL=]SRC",
            help="Folder, glob, image, WebDataset or SA-1B tar, parquet; path or URL. Repeat for several sources.",
        ),
    ],
    output: Annotated[str, typer.Option(metavar="DIR", help="Where shards and commits go: a folder or a URL.")],
    recipe: Annotated[
        str, typer.Option(help="default, leaves or unsamv2. Default: the one that measures best on people's segments.")
    ] = "default",
    executor: Annotated[
        str,
        typer.Option(
            help="ray, local or inline. Default ray: the same command runs on a laptop and a cluster; local needs no "
            "Ray; inline is for debugging, without protection."
        ),
    ] = "ray",
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Workers. Default: one per processor core, or per share of a GPU, of this machine."),
    ] = None,
    samples_per_shard: Annotated[
        int,
        typer.Option(
            min=1,
            help="Input samples of one unit. Default 256: shards of some tens of MB, and a crash costs minutes.",
        ),
    ] = 256,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first N samples of the plan. Default: all of them.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of every random choice. Default 0: any fixed number does.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")] = False,
) -> int | None:
    """Mines images into committed shards; the same command again resumes."""
    from ..environment import single_threaded

    os.environ.update(single_threaded())  # before numpy and numba are imported
    from ..config import MineConfig
    from ..console import print_json
    from ..executors import PoolOptions
    from ..mine import MineOptions, mine
    from ..sources import parse_inputs

    result = mine(
        MineOptions(
            config=MineConfig(recipe=recipe, samples_per_shard=samples_per_shard, limit=limit, seed=seed),  # type: ignore[arg-type]
            sources=parse_inputs(input),
            output=output,
            executor=executor,  # type: ignore[arg-type]
            pool=PoolOptions(workers=workers or os.cpu_count() or 1),
        )
    )
    if json:
        print_json(result)
    else:
        print(f"{result['samples']} samples, {result['masks']} masks, {result['failures']} failures in {output}")
    return None
