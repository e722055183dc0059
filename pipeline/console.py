"""What a person or a program sees: progress on standard error, one JSON object on standard output."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Mapping
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
SILENCE_S = 8.0
"""Seconds without a word after which one is said about what is waited for."""
_BEAT_S = 1.0
_BAR_CHARACTERS = 16


def print_json(value: Mapping[str, Any]) -> None:
    """The one object that `--json` puts on standard output."""
    json.dump(value, sys.stdout, ensure_ascii=False, sort_keys=True, allow_nan=False)
    sys.stdout.write("\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """A line for people, on standard error."""
    print(text, file=sys.stderr, flush=True)


class _Beat:
    """Calls a function every second from a thread, until it is stopped; a process that ends does not wait for it."""

    def __init__(self, beat: Callable[[], None]) -> None:
        self._beat, self._over = beat, threading.Event()
        self._thread = threading.Thread(target=self._run, name="console", daemon=True)

    def _run(self) -> None:
        while not self._over.wait(_BEAT_S):
            self._beat()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()


class Waiting:
    """Says what is waited for, every few seconds, while something runs that has no steps to count.

    Args:
        what: as in `connecting to Ray at HOST:PORT`.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._started_s = self._said_s = time.monotonic()
        self._thread = _Beat(self.beat)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.stop()

    def beat(self) -> None:
        """Called every second."""
        now_s = time.monotonic()
        if now_s - self._said_s >= SILENCE_S:
            self._said_s = now_s
            note(f"{self._what}, {now_s - self._started_s:.0f} s so far")


class _Detail(ProgressColumn):
    """The words behind the bar: on a narrow terminal several lines, so that the numbers beside them stay whole."""

    def __init__(self, silence: Callable[[], str]) -> None:
        super().__init__(table_column=Column(no_wrap=False))
        self._silence = silence

    def render(self, task: Task) -> Text:
        return Text(", ".join(filter(None, (task.fields["detail"], self._silence()))))


class ProgressBar:
    """A live bar on a terminal, one plain line every few seconds elsewhere; always on standard error.

    Without news for some seconds it says for how long, and what is waited for.

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
        self._news_s = self._started_s
        self._waits_for = "starting"
        self._lock = threading.Lock()
        """Over the plain lines: those with news come from the caller's thread, the others from `_beat`'s."""
        self._thread: _Beat | None = None
        self._rich: Progress | None = None
        console = Console(stderr=True)
        if console.is_terminal and shown:
            self._rich = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(_BAR_CHARACTERS),
                MofNCompleteColumn(),
                _Detail(self._silence),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._rich.add_task(title, total=total, detail="")

    def __enter__(self) -> Self:
        if self._rich:
            self._rich.start()
        elif self._shown:
            self._thread = _Beat(self.beat)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._thread is not None:
            self._thread.stop()
        if self._rich:
            self._rich.stop()
        elif self._done != max(self._printed, 0) and kind is None:
            self._news_s = time.monotonic()
            self._print_line()

    def update(self, done: int, detail: str = "") -> None:
        """Sets the steps done so far and a few words such as rates."""
        if self._first is None or done != self._done:
            self._news_s = time.monotonic()
            self._waits_for = "finishing" if done == self._total else f"at work on the next {self._unit}"
        self._done, self._detail = done, detail
        if self._first is None:
            self._first = (done, time.monotonic())
            if self._rich:
                self._rich.reset(self._task, completed=done, detail=detail)
        if self._rich:
            self._rich.update(self._task, completed=done, detail=detail)
        elif time.monotonic() - self._last_line_s >= PLAIN_INTERVAL_S:
            self._print_line()

    def waits_for(self, what: str) -> None:
        """Sets what is said when no step is done for some seconds; holds until one is."""
        self._waits_for = what

    def beat(self) -> None:
        """Called every second, on a thread of its own."""
        with self._lock:
            if self._silence() and time.monotonic() - self._last_line_s >= SILENCE_S:
                self._print()

    def _silence(self) -> str:
        """What is waited for; nothing while there is news."""
        silent_s = time.monotonic() - self._news_s
        return "" if silent_s < SILENCE_S else f"{self._waits_for} (no news for {silent_s:.0f} s)"

    def _print_line(self) -> None:
        if not self._shown:
            return
        with self._lock:
            self._print()

    def _print(self) -> None:
        self._last_line_s = time.monotonic()
        self._printed = self._done
        total = "?" if self._total is None else str(self._total)
        elapsed_s = self._last_line_s - self._started_s
        left = ""
        if self._total and self._first and self._first[0] < self._done < self._total:
            step_s = (self._last_line_s - self._first[1]) / (self._done - self._first[0])
            left = f", about {step_s * (self._total - self._done):.0f} s left"
        detail = "".join(f", {words}" for words in (self._detail, self._silence()) if words)
        note(f"{self._title}: {self._done}/{total} {self._unit}{detail}, {elapsed_s:.0f} s{left}")
