"""What is asked for: the flags of `grainmill boundaries`, each with its help and its default. Light to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer


@dataclass(frozen=True, kw_only=True)
class BoundariesFlags:
    """On which images a net is trained, with which features, for how long."""

    data: Annotated[
        list[str],
        typer.Option(
            metavar="RUN|RELEASE",
            help="Images that are mined: a run of `mine` or a release, with their images, a path or a URL. Given "
            "several times, images are taken from each in turn. Their masks are not read: the trees hold more than "
            "the shards keep of them, and are grown again. No default.",
        ),
    ]
    output: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="The net, for `mine --boundaries`, ending in .safetensors; beside it, ending in .png, ten images with "
            "what it says of them. What is computed on the way lies in FILE.work until it is done. No default.",
        ),
    ]
    backbone: Annotated[
        str,
        typer.Option(
            metavar="lite0|timm:NAME[@CHECKPOINT]|descriptor",
            help="The frozen network on whose maps the net stands, the one that `mine` is to use. Default lite0, "
            "EfficientNet-lite0 of the extra [lite]. descriptor: none, the net sees the image alone, for "
            "`mine --recipe default`, where it gives little.",
        ),
    ] = "lite0"
    images: Annotated[
        int,
        typer.Option(
            min=2,
            help="How many at most, chosen by --seed; every tenth is held out. Default 345: with them AR1000 of "
            "candidates rose from 0.479 to 0.495 (a study, 20 images of BSDS500 train). Each takes 4 MB of disk "
            "meanwhile.",
        ),
    ] = 345
    steps: Annotated[
        int,
        typer.Option(
            min=1,
            help="Of four crops each. Default 2240: 97 seconds on an H200; a study's program took 227 CPU seconds for "
            "as many.",
        ),
    ] = 2240
    seed: Annotated[int, typer.Option(help="Of every random choice. Default 0: any fixed number does.")] = 0
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Processes that grow trees and compute features. Default: one for each processor core."
        ),
    ] = None
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N. Default: a GPU if there is one.")] = None
