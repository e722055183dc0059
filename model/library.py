"""What a Python program calls that is no class of its own: training, and a score."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .evaluation.flags import ScoreFlags
from .evaluation.options import score_options
from .evaluation.score import run
from .evaluation.score_records import Scores
from .training import train as training
from .training.flags import TrainFlags
from .training.options import train_options


def train(
    data: str | os.PathLike[str] | Sequence[str],
    output: str | os.PathLike[str],
    *,
    size: str = "micro",
    init: str | None = None,
    workers: int | None = None,
    **flags: Any,
) -> dict[str, Any]:
    """Trains SAM-2 with a granularity dial from shards, as `grainmill train` does; `resume=True` goes on.

    Examples:
        >>> train("rel/", "run/", size="small", init="sam2.1_hiera_small.pt")  # doctest: +SKIP

    Args:
        data: a run or a release, a directory or a URL; several count as one.
        output: a local folder for checkpoints and metrics.
        size: tiny, small, base_plus, large; micro and mini train from scratch.
        init: SAM 2.1's weights by path or name, or a checkpoint to train on from; None: scratch for micro and mini,
            else the official name.
        workers: loader processes; None: none beside a processor, 4 beside a GPU. They begin by importing the script
            that calls this: with any, it does so under `if __name__ == "__main__":`.
        flags: any other flag of `grainmill train`, with underscores: `adapter="paper"`, `steps=1000`, `resume=True`,
            `holdout=0.05`, `device="cuda"`.

    Returns:
        What the command prints with `--json`: step, metrics, validation, checkpoint and more.

    Raises:
        InputError: data, weights or output that do not fit.
        ConfigMismatchError: `resume` with another configuration.
        TypeError: a flag that does not exist.
    """
    named = [os.fspath(data)] if isinstance(data, str | os.PathLike) else list(data)
    given = TrainFlags(data=named, output=os.fspath(output), size=size, init=init, workers=workers, **flags)
    return training.train(*train_options(given))


def score(
    benchmark: str,
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    masks: str | os.PathLike[str] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    workers: int = 1,
    **flags: Any,
) -> Scores:
    """Measures mined masks, a model or peers on a benchmark, as `grainmill score` does; the same call again resumes.

    Examples:
        >>> scores = score("shards", "rel/", "scores/", checkpoint="run/", limit=100)  # doctest: +SKIP

    Args:
        benchmark: a name of `grainmill score --list`; `shards` takes a run or a release as ground truth.
        data: the benchmark as it was downloaded.
        output: where scores.json, objects.parquet and plots go.
        masks: a run or a release whose masks are scored.
        checkpoint: a checkpoint or training run, SAM-2's weights, or `tree` for the masks of the image itself.
        workers: processes. They are spawned: with more than one, a script calls this under
            `if __name__ == "__main__":`.
        flags: any other flag of `grainmill score`, with underscores: `split="val"`, `limit=100`,
            `granularity=["oracle", "fixed:0.5"]`, `peer=["all"]`.

    Returns:
        What scores.json holds.

    Raises:
        InputError: data or what is to be scored is not as expected.
        ConfigMismatchError: the output holds scores of other settings.
        TypeError: a flag that does not exist.
    """
    given = ScoreFlags(
        benchmark=benchmark,
        data=os.fspath(data),
        output=Path(output),
        masks=None if masks is None else os.fspath(masks),
        checkpoint=None if checkpoint is None else os.fspath(checkpoint),
        workers=workers,
        **flags,
    )
    return run(score_options(given))[0]
