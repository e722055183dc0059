"""What every bench shares: options, interleaved timing, the environment, and one report as table, JSON and exit code.

Sides are run in turn (a, b, a, b, …), so that a neighbour's load falls on all of them, and medians are compared. A
time in seconds means nothing on another machine; the ratio of two sides of one run does.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Annotated, Any, Final

import typer

from ..environment.numeric import THREAD_VARIABLES

VERSIONED: Final = (
    "numpy",
    "scipy",
    "numba",
    "torch",
    "timm",
    "opencv-python-headless",
    "ray",
    "pyarrow",
    "pycocotools",
)


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What every bench is asked for, flags of `grainmill bench`; a bench takes those that mean something to it."""

    repeats: Annotated[
        int, typer.Option(min=1, help="Runs of each side. Default 5: a median that one disturbance cannot move.")
    ] = 5
    seed: Annotated[int, typer.Option(help="Of drawn inputs. Default 0: any fixed number does.")] = 0
    input: Annotated[
        list[str] | None,
        typer.Option(metavar="[LABEL=]SRC", help="Images, for the benches that read some. Default: the bench's own."),
    ] = None
    workers: Annotated[
        int | None, typer.Option(min=1, help="For the benches that start workers. Default: the bench's own.")
    ] = None
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many samples. Default: the bench's own.")] = None


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """One finished bench.

    Attributes:
        name: of the bench.
        command: what to type to measure it again.
        ratio: ours over the peer's, larger is better; None where there is no peer.
        bar: the least ratio promised, None if none is.
        rows: the table, one mapping of column -> value for each line, all with the same columns.
        checks: what must hold besides the ratio -> whether it does.
        details: anything else, JSON values.
        environment: versions, cores, load before and after.
    """

    name: str
    command: str
    ratio: float | None
    bar: float | None = None
    rows: Sequence[Mapping[str, Any]] = ()
    checks: Mapping[str, bool] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether the bar is reached and every check holds."""
        reached = self.bar is None or (self.ratio is not None and self.ratio >= self.bar)
        return reached and all(self.checks.values())

    def to_json(self) -> dict[str, Any]:
        """The one object of `--json`."""
        return {
            "bench": self.name,
            "command": self.command,
            "ratio": self.ratio,
            "bar": self.bar,
            "passed": self.passed,
            "rows": [dict(row) for row in self.rows],
            "checks": dict(self.checks),
            "details": dict(self.details),
            "environment": dict(self.environment),
        }

    def to_text(self) -> str:
        """The table and what was found, for people."""
        lines = [f"$ {self.command}", *table(self.rows), ""]
        if self.ratio is not None:
            bar = "" if self.bar is None else f" (bar: at least {self.bar:g})"
            lines.append(f"ratio {self.ratio:.4g}{bar}")
        lines += [f"{'holds' if holds else 'FAILS'}  {name}" for name, holds in self.checks.items()]
        lines += [f"{name}: {value}" for name, value in self.environment.items()]
        return "\n".join(lines)


def interleaved(sides: Mapping[str, Callable[[], Any]], *, repeats: int) -> dict[str, list[float]]:
    """Seconds of each side, run in turn `repeats` times; warm up before, if that is meant to be left out."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            began_s = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began_s)
    return seconds


def median_ratio(seconds: Mapping[str, Sequence[float]], *, ours: str, peer: str) -> float:
    """How many times faster ours is: the median of the peer's seconds over the median of ours."""
    return statistics.median(seconds[peer]) / statistics.median(seconds[ours])


def environment(load_before: tuple[float, float, float] | None = None) -> dict[str, Any]:
    """Versions, cores, threads and load; recorded beside each number."""
    found = {}
    for package in VERSIONED:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return {
        "python": platform.python_version(),
        "packages": found,
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ},
        "load_1min_before": None if load_before is None else round(load_before[0], 2),
        "load_1min_after": round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of a Markdown table."""
    if not rows:
        return []
    columns = list(rows[0])
    cells = [[_cell(row[column]) for column in columns] for row in rows]
    widths = [max(len(column), *(len(line[i]) for line in cells)) for i, column in enumerate(columns)]
    lines = ["| " + " | ".join(text.ljust(width) for text, width in zip(columns, widths, strict=True)) + " |"]
    lines.append("|" + "|".join("-" * (width + 2) for width in widths) + "|")
    lines += ["| " + " | ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)) + " |" for line in cells]
    return lines


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
