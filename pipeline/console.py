"""What a person or a program sees: progress on standard error, one JSON object on standard output."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

PLAIN_INTERVAL_S = 5.0
"""Seconds between two plain progress lines where standard error is no terminal."""
_BAR_CHARACTERS = 16


def print_json(value: Mapping[str, Any]) -> None:
    """The one object that `--json` puts on standard output."""
    json.dump(value, sys.stdout, ensure_ascii=False, sort_keys=True, allow_nan=False)
    sys.stdout.write("\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """A line for people, on standard error."""
    print(text, file=sys.stderr, flush=True)


class _Detail(ProgressColumn):
    """The words behind the bar: on a narrow terminal several lines, so that the numbers beside them stay whole."""

    def __init__(self) -> None:
        super().__init__(table_column=Column(no_wrap=False))

    def render(self, task: Task) -> Text:
        return Text(task.fields["detail"])


class ProgressBar:
    """A live bar on a terminal, one plain line every few seconds elsewhere; always on standard error.

    Args:
        title: what is being done.
        total: steps in all, or None if not known.
        unit: what a step is, for the plain lines.
        shown: False shows nothing: of several processes that do the same, one speaks.
    """

    def __init__(self, title: str, total: int | None, *, unit: str = "images", shown: bool = True) -> None:
        self._title, self._total, self._unit, self._shown = title, total, unit, shown
        self._done = 0
        self._detail = ""
        self._started_s = self._last_line_s = time.monotonic()
        self._first: tuple[int, float] | None = None
        """Steps done and time of the first update: what was done before, and the start-up, tell nothing of the rest."""
        self._printed = -1
        self._rich: Progress | None = None
        console = Console(stderr=True)
        if console.is_terminal and shown:
            self._rich = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(_BAR_CHARACTERS),
                MofNCompleteColumn(),
                _Detail(),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._rich.add_task(title, total=total, detail="")

    def __enter__(self) -> Self:
        if self._rich:
            self._rich.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rich:
            self._rich.stop()
        elif self._done != max(self._printed, 0) and kind is None:
            self._print_line()

    def update(self, done: int, detail: str = "") -> None:
        """Sets the steps done so far and a few words such as rates."""
        self._done, self._detail = done, detail
        if self._first is None:
            self._first = (done, time.monotonic())
            if self._rich:
                self._rich.reset(self._task, completed=done, detail=detail)
        if self._rich:
            self._rich.update(self._task, completed=done, detail=detail)
        elif time.monotonic() - self._last_line_s >= PLAIN_INTERVAL_S:
            self._print_line()

    def _print_line(self) -> None:
        if not self._shown:
            return
        self._last_line_s = time.monotonic()
        self._printed = self._done
        total = "?" if self._total is None else str(self._total)
        elapsed_s = self._last_line_s - self._started_s
        left = ""
        if self._total and self._first and self._first[0] < self._done < self._total:
            step_s = (self._last_line_s - self._first[1]) / (self._done - self._first[0])
            left = f", about {step_s * (self._total - self._done):.0f} s left"
        detail = f", {self._detail}" if self._detail else ""
        note(f"{self._title}: {self._done}/{total} {self._unit}{detail}, {elapsed_s:.0f} s{left}")
