"""What a Python program calls that is no class of its own: a score."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pipeline.errors import InputError

from .evaluation.benchmarks import find_benchmark
from .evaluation.results import ScoreOptions
from .evaluation.score import run


def score(
    benchmark: str,
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    masks: str | os.PathLike[str] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    split: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Measures mined masks, a model or peers on a benchmark, as `grainmill score` does; the same call again resumes.

    Args:
        benchmark: a name of `grainmill score --list`; `shards` takes a run or a release as ground truth.
        data: the benchmark as it was downloaded.
        output: where scores.json, objects.parquet and plots go.
        masks: a run or a release whose masks are scored.
        checkpoint: a checkpoint or training run, SAM-2's weights, or `tree` for the masks of the image itself.
        split: None: the benchmark's first, which is the one that is quoted.
        options: further fields of `ScoreOptions`: `granularity`, `peers`, `limit`, `workers`, `device`.

    Returns:
        What scores.json holds.

    Raises:
        InputError: data or what is to be scored is not as expected.
        ConfigMismatchError: the output holds scores of other settings.
        TypeError: an option that does not exist.
    """
    if masks is not None and checkpoint is not None:
        raise InputError("score: expected masks or a checkpoint, found both; score them into two outputs")
    if masks is None and checkpoint is None and not options.get("peers"):
        raise InputError("score: expected something to score: masks, a checkpoint or peers")
    entry = find_benchmark(benchmark)
    where = os.fspath(data)
    checked = ScoreOptions(
        benchmark=entry,
        data=where if "://" in where else Path(where),
        split=entry.splits[0] if split is None else split,
        output=Path(output),
        masks=None if masks is None else os.fspath(masks),
        checkpoint=None if checkpoint is None else os.fspath(checkpoint),
        **options,
    )
    return run(checked)[0]
