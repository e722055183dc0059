"""`grainmill score`: mined masks or a checkpoint, measured on a benchmark."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

PEERS = ("people", "ucm", "ucm-tree", "slic", "felzenszwalb")
WHAT = "What is measured"
HOW = "How (limit and seed change numbers, workers do not)"


def command(
    benchmark: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="One of --list. No default: there is nothing to guess.", rich_help_panel=WHAT
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="The benchmark as it was downloaded; --list tells the layout. For `shards` a run or a release, a "
            "path or a URL. No default.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Default: the benchmark's first of --list, the one that is quoted.", rich_help_panel=WHAT),
    ] = None,
    masks: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Score mined or released masks of the same images. Default: none.", rich_help_panel=WHAT
        ),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="CKPT",
            help="Score a model: a checkpoint or run of `train`, or a SAM-2 checkpoint; `tree` is the masks that "
            "`mine` finds in each image, without weights. Default: none.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="CKPT",
            help="The base's weights, for a checkpoint of an adapter. Default: where they were when it was trained.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    granularity: Annotated[
        list[str] | None,
        typer.Option(
            metavar="oracle|label|fixed:G",
            help="For a model: g chosen by the ground truth, given by the protocol, or fixed; repeat it for several. "
            "Default: oracle, label and fixed:0.5, each a column, because an oracle's luck shows only beside the "
            "others.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    objects_per_image: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="For a model: at most so many objects of an image get clicks, drawn by the seed (the pair test takes "
            "all pairs). Default: all; for sa1b five that do not overlap, as its protocol has it.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    points_per_side: Annotated[
        int,
        typer.Option(
            min=1,
            help="For a model: clicks a side of the whole-image grid. Default 32, SAM-2's own; 22 passes of its square "
            "take most of the time.",
            rich_help_panel=WHAT,
        ),
    ] = 32,
    pred_iou_threshold: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="For a model: whole-image masks with a lower predicted IoU go. Default 0: recall under a cap needs no "
            "threshold; SAM-2's generator has 0.8.",
            rich_help_panel=WHAT,
        ),
    ] = 0.0,
    stability_threshold: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="For a model: whole-image masks with a lower stability score go. Default 0, as above; SAM-2's "
            "generator has 0.95.",
            rich_help_panel=WHAT,
        ),
    ] = 0.0,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="|".join(PEERS),
            help="Also measure what needs no training: people against each other, gPb-UCM files beside the images (ten "
            "thresholds, or the whole tree), SLIC merging, Felzenszwalb; repeat it for several, or `all` for those "
            "that the data allows. Default: none, they take their time.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Only the first N images, by name. Default: all.", rich_help_panel=HOW),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(help="Of bootstrap and random controls. Default 0: any fixed number does.", rich_help_panel=HOW),
    ] = 0,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes. Default: the processor cores for masks and peers; for a model the "
            "cores on a CPU, 1 on a GPU, which is one process's.",
            rich_help_panel=HOW,
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Of a model: cpu, cuda or cuda:N. Default: a GPU if there is one.", rich_help_panel=HOW),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where scores.json, objects.parquet and plots go; the same command again goes on there. Default: "
            "scores/BENCHMARK-SPLIT-WHAT, so that two scores never share a folder by accident.",
            rich_help_panel=HOW,
        ),
    ] = None,
    list_benchmarks: Annotated[
        bool, typer.Option("--list", help="Show the benchmarks and their layouts, and stop. Default: off.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="What scores.json holds on standard output. Default: off, tables for people.")
    ] = False,
) -> None:
    """Measures mined masks (--masks), a model (--checkpoint) or peers (--peer) on a benchmark with human ground truth.

    Writes scores.json with 95 % bootstrap intervals over images, objects.parquet with one row for each object, and
    plots (the extra `eval`).
    """
    from model.evaluation.benchmarks import find_benchmark, list_json, list_text
    from pipeline.console import print_json
    from pipeline.errors import InputError

    if list_benchmarks:
        if json:
            print_json(list_json())
        else:
            print(list_text())
        return
    if benchmark is None or data is None:
        raise InputError("expected --benchmark and --data (`grainmill score --list` shows what there is)")
    if masks is not None and checkpoint is not None:
        raise InputError("expected --masks or --checkpoint, found both; score them into two outputs")
    if masks is None and checkpoint is None and not peer:
        raise InputError("expected something to score: --masks DIR, --checkpoint CKPT or --peer NAME")
    entry = find_benchmark(benchmark)
    chosen = split or entry.splits[0]

    from model.evaluation import results
    from model.evaluation.score import run

    options = results.ScoreOptions(
        benchmark=entry,
        data=data,
        split=chosen,
        output=output or default_output(benchmark, chosen, masks, checkpoint, peer),
        masks=masks,
        checkpoint=checkpoint,
        base=base,
        device=device,
        granularity=checked_granularities(granularity or ["oracle", "label", "fixed:0.5"]),
        objects_per_image=objects_per_image,
        points_per_side=points_per_side,
        pred_iou_threshold=pred_iou_threshold,
        stability_threshold=stability_threshold,
        peers=checked_peers(peer or [], data, chosen, entry.several_people),
        limit=limit,
        seed=seed,
        workers=workers or default_workers(checkpoint, device),
        command=command_line(locals()),
    )
    record, text = run(options)
    if json:
        print_json(record)
    else:
        print(text)


def default_output(
    benchmark: str, split: str, masks: str | None, checkpoint: str | None, peers: list[str] | None
) -> Path:
    """`scores/BENCHMARK-SPLIT-WHAT`."""
    what = masks or checkpoint or "-".join(peers or [])
    slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", what).strip("-.")[-60:]
    return Path("scores") / f"{benchmark}-{split}-{slug}"


def default_workers(checkpoint: str | None, device: str | None) -> int:
    """The processor cores; 1 for a model on a GPU."""
    if checkpoint is not None and device is None:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    return 1 if checkpoint is not None and device != "cpu" else len(os.sched_getaffinity(0))


def checked_granularities(given: list[str]) -> tuple[str, ...]:
    """As typed, without repetitions.

    Raises:
        InputError: not oracle, label or fixed:G with G in [0.1, 1.0].
    """
    from pipeline.errors import InputError

    for each in given:
        fixed = re.fullmatch(r"fixed:([0-9]*\.?[0-9]+)", each)
        if each not in ("oracle", "label") and not (fixed and 0.1 <= float(fixed[1]) <= 1.0):
            raise InputError(f"--granularity {each}: expected oracle, label or fixed:G with G from 0.1 to 1.0")
    return tuple(dict.fromkeys(given))


def checked_peers(given: list[str], data: str, split: str, several_people: bool) -> tuple[str, ...]:
    """Names of peers; `all` becomes those that the data allows.

    Raises:
        InputError: no such peer, or its data is missing.
    """
    from model.evaluation.subjects.baselines import ucm_folder
    from pipeline.errors import InputError

    if given == ["all"]:
        ucm = ucm_folder(data, split) is not None
        allowed = {"people": several_people, "ucm": ucm, "ucm-tree": ucm}
        return tuple(name for name in PEERS if allowed.get(name, True))
    for each in given:
        if each not in PEERS:
            raise InputError(f"--peer {each}: expected {', '.join(PEERS)} or all")
        if each == "people" and not several_people:
            raise InputError(
                "--peer people: this benchmark has one annotation of each image; bsds500 and bsds-g have more"
            )
        if each in ("ucm", "ucm-tree") and ucm_folder(data, split) is None:
            raise InputError(
                f"--peer {each}: {Path(data) / 'ucm2' / split}: missing; put the gPb-UCM files (N.mat) there"
            )
    return tuple(dict.fromkeys(given))


def command_line(flags: dict[str, Any]) -> str:
    """The command as it can be typed again."""
    words = ["grainmill", "score"]
    for name in (
        "benchmark", "data", "split", "masks", "checkpoint", "base", "granularity",
        "objects_per_image", "points_per_side", "pred_iou_threshold", "stability_threshold", "peer",
        "limit", "seed", "workers", "device", "output",
    ):  # fmt: skip
        value = flags[name]
        for each in value if isinstance(value, list) else [value]:
            if each is not None:
                words += [f"--{name.replace('_', '-')}", str(each)]
    return shlex.join(words)
