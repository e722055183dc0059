"""What a scoring is asked for: the flags of `grainmill score`, each with its help and its default.

Light to import; `options.py` checks and resolves.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer

PEERS: Final = ("people", "ucm", "ucm-tree", "slic", "felzenszwalb")
WHAT: Final = "What is measured"
HOW: Final = "How (limit and seed change numbers, workers do not)"


@dataclass(frozen=True, kw_only=True)
class ScoreFlags:
    """What is measured on which benchmark, how, and where the scores go."""

    benchmark: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="One of --list. No default: there is nothing to guess.", rich_help_panel=WHAT
        ),
    ] = None
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="The benchmark as it was downloaded; --list tells the layout. For `shards` a run or a release, a "
            "path or a URL. No default.",
            rich_help_panel=WHAT,
        ),
    ] = None
    split: Annotated[
        str | None,
        typer.Option(help="Default: the benchmark's first of --list, the one that is quoted.", rich_help_panel=WHAT),
    ] = None
    masks: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Score mined or released masks of the same images. Default: none.", rich_help_panel=WHAT
        ),
    ] = None
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="CKPT",
            help="Score a model: a checkpoint or run of `train`, or a SAM-2 checkpoint; `tree` is the masks that "
            "`mine --wholes stable` finds, without weights, and `kept` the student that `benchmarks.keep_student` "
            "made. Default: none.",
            rich_help_panel=WHAT,
        ),
    ] = None
    base: Annotated[
        str | None,
        typer.Option(
            metavar="CKPT",
            help="The base's weights, for a checkpoint of an adapter. Default: where they were when it was trained.",
            rich_help_panel=WHAT,
        ),
    ] = None
    granularity: Annotated[
        list[str] | None,
        typer.Option(
            metavar="oracle|label|fixed:G",
            help="For a model: g chosen by the ground truth, given by the protocol, or fixed; repeat it for several. "
            "Default: oracle, label and fixed:0.5, each a column, because an oracle's luck shows only beside the "
            "others.",
            rich_help_panel=WHAT,
        ),
    ] = None
    annotators: Annotated[
        bool,
        typer.Option(
            "--annotators",
            help="With --checkpoint: simulate people at work, in the place of the benchmark's own protocol. They click "
            "alone, or turn the dial by the size that they see, or take one of SAM-2's three masks, and correct by "
            "clicks; told are actions and seconds (keystroke-level model) to IoU 0.80, 0.85 and 0.90, each policy "
            "against clicks. `--granularity label` without oracle leaves out the bounds of ten g, two thirds of the "
            "time; --objects-per-image and --limit cut it further. Default: off.",
            rich_help_panel=WHAT,
        ),
    ] = False
    objects_per_image: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="For a model: at most so many objects of an image get clicks, drawn by the seed (the pair test takes "
            "all pairs). Default: all; for sa1b five that do not overlap, as its protocol has it.",
            rich_help_panel=WHAT,
        ),
    ] = None
    points_per_side: Annotated[
        int,
        typer.Option(
            min=1,
            help="For a model: clicks a side of the whole-image grid. Default 32, SAM-2's own; 22 passes of its square "
            "take most of the time.",
            rich_help_panel=WHAT,
        ),
    ] = 32
    pred_iou_threshold: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="For a model: whole-image masks with a lower predicted IoU go. Default 0: recall under a cap needs no "
            "threshold; SAM-2's generator has 0.8.",
            rich_help_panel=WHAT,
        ),
    ] = 0.0
    stability_threshold: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="For a model: whole-image masks with a lower stability score go. Default 0, as above; SAM-2's "
            "generator has 0.95.",
            rich_help_panel=WHAT,
        ),
    ] = 0.0
    peer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="|".join(PEERS),
            help="Also measure what needs no training: people against each other, gPb-UCM files beside the images (ten "
            "thresholds, or the whole tree), SLIC merging, Felzenszwalb; repeat it for several, or `all` for those "
            "that the data allows. Default: none, they take their time.",
            rich_help_panel=WHAT,
        ),
    ] = None
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Only the first N images, by name. Default: all.", rich_help_panel=HOW),
    ] = None
    seed: Annotated[
        int,
        typer.Option(help="Of bootstrap and random controls. Default 0: any fixed number does.", rich_help_panel=HOW),
    ] = 0
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes. Default: the processor cores for masks and peers; for a model the "
            "cores on a CPU, 1 on a GPU, which is one process's.",
            rich_help_panel=HOW,
        ),
    ] = None
    device: Annotated[
        str | None,
        typer.Option(help="Of a model: cpu, cuda or cuda:N. Default: a GPU if there is one.", rich_help_panel=HOW),
    ] = None
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where scores.json, objects.parquet and plots go; the same command again goes on there. Default: "
            "scores/BENCHMARK-SPLIT-WHAT, so that two scores never share a folder by accident.",
            rich_help_panel=HOW,
        ),
    ] = None
