"""From the flags of `grainmill score` to options that are checked."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import fields
from pathlib import Path

from pipeline.errors import InputError

from .benchmarks.all import find_benchmark
from .flags import PEERS, ScoreFlags
from .results import ScoreOptions
from .subjects.baselines import ucm_folder


def score_options(flags: ScoreFlags) -> ScoreOptions:
    """Checks the flags and resolves them.

    Raises:
        InputError: a flag that is missing or wrong, or flags that do not go together.
    """
    if flags.benchmark is None or flags.data is None:
        raise InputError("expected --benchmark and --data (`grainmill score --list` shows what there is)")
    if flags.masks is not None and flags.checkpoint is not None:
        raise InputError("expected --masks or --checkpoint, found both; score them into two outputs")
    if flags.masks is None and flags.checkpoint is None and not flags.peer:
        raise InputError("expected something to score: --masks DIR, --checkpoint CKPT or --peer NAME")
    benchmark = find_benchmark(flags.benchmark)
    if flags.annotators and flags.checkpoint is None:
        raise InputError("--annotators: a model answers the clicks of simulated people; expected --checkpoint CKPT")
    if flags.annotators and "interactive" not in benchmark.tasks:
        raise InputError(f"--annotators: {benchmark.name} has no images to be clicked; `grainmill score --list`: tasks")
    split = flags.split or benchmark.splits[0]
    return ScoreOptions(
        benchmark=benchmark,
        data=flags.data,
        split=split,
        output=flags.output
        or default_output(
            flags.benchmark, split, flags.masks, flags.checkpoint, flags.peer, annotators=flags.annotators
        ),
        masks=flags.masks,
        checkpoint=flags.checkpoint,
        base=flags.base,
        device=flags.device,
        granularity=checked_granularities(flags.granularity or ["oracle", "label", "fixed:0.5"]),
        annotators=flags.annotators,
        objects_per_image=flags.objects_per_image,
        points_per_side=flags.points_per_side,
        pred_iou_threshold=flags.pred_iou_threshold,
        stability_threshold=flags.stability_threshold,
        peers=checked_peers(flags.peer or [], flags.data, split, benchmark.several_people),
        limit=flags.limit,
        seed=flags.seed,
        workers=flags.workers or default_workers(flags.checkpoint, flags.device),
        command=command_line(flags),
    )


def default_output(
    benchmark: str,
    split: str,
    masks: str | None,
    checkpoint: str | None,
    peers: list[str] | None,
    *,
    annotators: bool = False,
) -> Path:
    """`scores/BENCHMARK-SPLIT-WHAT`, of simulated annotators with `-annotators` behind it."""
    what = masks or checkpoint or "-".join(peers or [])
    slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", what).strip("-.")[-60:]
    return Path("scores") / f"{benchmark}-{split}-{slug}{'-annotators' if annotators else ''}"


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


def command_line(flags: ScoreFlags) -> str:
    """The command as it can be typed again."""
    words = ["grainmill", "score"]
    for field in fields(ScoreFlags):
        value = getattr(flags, field.name)
        flag = f"--{field.name.replace('_', '-')}"
        for each in value if isinstance(value, list) else [value]:
            if each is not None and each is not False:
                words += [flag] if each is True else [flag, str(each)]
    return shlex.join(words)
