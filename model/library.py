"""What a Python program calls that is no class of its own: a score."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .evaluation.flags import ScoreFlags
from .evaluation.options import score_options
from .evaluation.score import run


def score(
    benchmark: str,
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    masks: str | os.PathLike[str] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    split: str | None = None,
    workers: int = 1,
    **flags: Any,
) -> dict[str, Any]:
    """Measures mined masks, a model or peers on a benchmark, as `grainmill score` does; the same call again resumes.

    Args:
        benchmark: a name of `grainmill score --list`; `shards` takes a run or a release as ground truth.
        data: the benchmark as it was downloaded.
        output: where scores.json, objects.parquet and plots go.
        masks: a run or a release whose masks are scored.
        checkpoint: a checkpoint or training run, SAM-2's weights, or `tree` for the masks of the image itself.
        split: None: the benchmark's first, which is the one that is quoted.
        workers: processes.
        flags: any other flag of `grainmill score`, with underscores: `granularity=["label"]`, `peer=["slic"]`,
            `limit=10`, `device="cuda"`.

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
        split=split,
        workers=workers,
        **flags,
    )
    return run(score_options(given))[0]
