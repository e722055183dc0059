"""Rows of a table, each computed once: kept as a file, marked where it died, done again by the next call."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from model.evaluation.results import finite, write_json
from pipeline.console import note
from pipeline.errors import InputError

DONE: Final = "done"


@dataclass(frozen=True, kw_only=True)
class Task:
    """One row.

    Attributes:
        name: unique; its file is NAME.json.
        asked: settings, as JSON; a row of other settings is computed again.
        work: returns the row's figures as JSON; with `jobs` it is pickled.
    """

    name: str
    asked: dict[str, Any]
    work: Callable[[], dict[str, Any]]


def filled(tasks: Sequence[Task], folder: Path, *, jobs: int) -> list[dict[str, Any]]:
    """The rows of all tasks: their figures with `name`, `asked` and `state`, `done` or `died: why`.

    Args:
        tasks: in the order of the table.
        folder: where rows are kept.
        jobs: rows side by side, each in a process of its own, whose death is that row's; 0: in this process.

    Raises:
        InputError: two tasks of one name, whose rows would take each other's place.
    """
    twice, count = Counter(task.name for task in tasks).most_common(1)[0] if tasks else ("", 1)
    if count > 1:
        raise InputError(f"two rows of the grid are called {twice}; give what they differ in another name")
    folder.mkdir(parents=True, exist_ok=True)
    missing = [task for task in tasks if not _is_done(folder, task)]
    note(f"{len(tasks) - len(missing)} of {len(tasks)} rows are there")
    if jobs == 0:
        for task in missing:
            _fill(folder, task)
    else:
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(lambda task: _fill_apart(folder, task), missing))
    return [json.loads(_file(folder, task).read_text(encoding="utf-8")) for task in tasks]


def _file(folder: Path, task: Task) -> Path:
    return folder / f"{task.name}.json"


def _is_done(folder: Path, task: Task) -> bool:
    try:
        row = json.loads(_file(folder, task).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(row["state"] == DONE and row["asked"] == json.loads(json.dumps(task.asked)))


def _fill_apart(folder: Path, task: Task) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_fill, args=(folder, task))
    _keep(folder, task, "died: it was cut off", {})
    process.start()
    process.join()
    if process.exitcode:
        _keep(folder, task, f"died: exit code {process.exitcode}", {})


def _fill(folder: Path, task: Task) -> None:
    began_s, began_cpu_s = time.monotonic(), time.process_time()
    try:
        found, state = task.work(), DONE
    except Exception as error:  # a row that fails is a row; the others go on
        found, state = {}, f"died: {type(error).__name__}: {error}"
        note(f"{task.name}: {state}")
    found["seconds"] = round(time.monotonic() - began_s, 1)
    found["cpu_seconds"] = round(time.process_time() - began_cpu_s, 1)
    _keep(folder, task, state, found)


def _keep(folder: Path, task: Task, state: str, found: dict[str, Any]) -> None:
    write_json(_file(folder, task), finite({"name": task.name, "asked": task.asked, "state": state, **found}))
