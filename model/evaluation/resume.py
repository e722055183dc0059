"""Work on many images that survives interruption: each finished answer is a small file, read again by the next run."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pipeline.console import ProgressBar
from pipeline.environment.process_map import process_map
from pipeline.errors import InputError, SchemaError
from pipeline.format.schema import load_json, sha256_of


class Named(Protocol):
    """An image, a video, or either with what is to be done to it."""

    @property
    def name(self) -> str:
        """Unique among the items."""
        ...


Item = TypeVar("Item", bound=Named)
Answer = TypeVar("Answer")

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def each_item(
    items: Sequence[Item], work: Callable[[Item], Answer], *, folder: Path, workers: int, title: str
) -> list[Answer]:
    """Does `work` for each item, keeping each finished answer so that a later run goes on from it.

    Args:
        items: with unique names.
        work: item -> JSON value. With several workers it is pickled: a function of a module, or a `partial` of one.
        folder: where answers are kept; it belongs to one set of settings (`results.claim_output`).
        workers: processes; 1 does the work in this one.
        title: of the progress bar.

    Returns:
        One answer each, in the order of the items; NaN became None.

    Raises:
        InputError: two items have one name.
    """
    twice = [name for name, count in Counter(item.name for item in items).items() if count > 1]
    if twice:
        raise InputError(f"{twice[0]}: expected one item of a name, found several; their answers would be one")
    folder.mkdir(parents=True, exist_ok=True)
    answers: dict[str, Answer] = {item.name: answer for item in items if (answer := _kept(folder, item)) is not None}
    missing = [item for item in items if item.name not in answers]
    workers = min(workers, len(missing))
    if workers > 1:
        for name in THREAD_VARIABLES:
            os.environ.setdefault(name, "1")  # inherited: several workers with a pool of threads each are slower
    with ProgressBar(title, len(items)) as progress:
        progress.update(len(answers))
        for item, answer in process_map(work, missing, workers=workers, ahead=2, as_completed=True):
            _keep(folder, item, answer)
            # As read from the file, so that a resumed run sees the same values as one that never stopped.
            answers[item.name] = _kept(folder, item) or answer
            progress.update(len(answers))
    return [answers[item.name] for item in items]


def _path(folder: Path, item: Named) -> Path:
    return folder / f"{sha256_of(item.name.encode())[:24]}.json"


def _kept(folder: Path, item: Named) -> Any:
    """An answer of `work`, as its file has it; None if there is no such file."""
    path = _path(folder, item)
    if not path.is_file():
        return None
    try:
        record = load_json(path.read_bytes(), where=str(path))
        return record["answer"] if record["name"] == item.name else None
    except (SchemaError, KeyError, TypeError):
        return None  # cut by a crash of the machine: done again


def _keep(folder: Path, item: Named, answer: object) -> None:
    from .results import finite, write_json

    write_json(_path(folder, item), finite({"name": item.name, "answer": answer}), sort=False, indent=None)
