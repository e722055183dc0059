"""What an estimate of a cluster run is asked for: the flags of `grainmill plan`. Light to import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer


@dataclass(frozen=True, kw_only=True)
class PlanFlags:
    """The images, the cluster, its prices, and what goes wrong on it when it is simulated."""

    images: Annotated[int, typer.Option(help="Images to mine, for instance 11000000 for SA-1B.")]
    profile: Annotated[
        Path,
        typer.Option(
            help="Measured seconds per stage: `grainmill stats DIR --json` of a small run on the same hardware."
        ),
    ]
    nodes: Annotated[int, typer.Option(help="Machines. Default 1.")] = 1
    gpus_per_node: Annotated[int, typer.Option(help="GPUs of each. Default 0: the descriptor needs none.")] = 0
    cores_per_node: Annotated[
        int, typer.Option(help="CPU cores of each. Default 16, a common size beside one GPU.")
    ] = 16
    samples_per_shard: Annotated[
        int, typer.Option(help="As `mine`. Default 256: what a crash can cost one worker.")
    ] = 256
    node_price_per_hour: Annotated[
        float | None, typer.Option(help="Money for one machine's hour. Default: no cost is told.")
    ] = None
    storage_price_per_gb_month: Annotated[
        float, typer.Option(help="Default 0.023, a large store's list price; say your own.")
    ] = 0.023
    efficiency: Annotated[
        float, typer.Option(help="Share of the measured rate that is reached. Default 0.9: stragglers, starts, losses.")
    ] = 0.9
    no_images: Annotated[bool, typer.Option("--no-images", help="Shards without images. Default: with.")] = False
    simulate: Annotated[
        bool,
        typer.Option(
            "--simulate", help="Also run the scheduler itself on a simulated clock. Default: arithmetic only."
        ),
    ] = False
    seed: Annotated[int, typer.Option(help="Of the simulation. Default 0: any fixed number does.")] = 0
    node_losses_per_hour: Annotated[
        float,
        typer.Option(min=0.0, help="Of each simulated node. Default 0.01: a spot machine lost every hundred hours."),
    ] = 0.01
    straggler_share: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Of simulated units that take ten times as long. Default 0.001."),
    ] = 0.001
    hung_share: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=0.01,
            help="Of simulated units that never end where they are. One whose second attempt hangs too ends the "
            "simulation with an error. Default 0.",
        ),
    ] = 0.0
    put_limit_per_s: Annotated[
        float, typer.Option(min=1.0, help="Of the simulated store. Default 3500, a large store's figure for a prefix.")
    ] = 3500.0
    get_limit_per_s: Annotated[
        float, typer.Option(min=1.0, help="Of the simulated store. Default 5500, a large store's figure for a prefix.")
    ] = 5500.0
