"""`grainmill bench`: side-by-side benchmarks, one module each, loaded when asked for."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer

from ..bench.report import BenchOptions

BENCHES: Final[dict[str, tuple[str, str]]] = {
    "conquer": ("pipeline.bench.conquer", "merging 48 x 48 patches against the plain definition"),
    "divide": ("pipeline.bench.divide", "one normalised cut of 3,600 patches against SciPy's dense eigensolver"),
    "mine": ("pipeline.bench.mine", "all of mining: images/s and seconds per stage"),
    "executors": ("pipeline.bench.executors", "Ray against local at equal workers"),
    "memory": ("pipeline.bench.memory", "the driver's memory against planned units, a worker's over many images"),
    "load": ("model.bench.load", "the training loader against webdataset's on the same shards"),
    "release": ("pipeline.bench.release", "a release of 10,000 shards: seconds and memory"),
}
"""Name -> (module with `run(options: BenchOptions) -> BenchReport`, one line of help)."""


@dataclass(frozen=True, kw_only=True)
class BenchFlags(BenchOptions):
    """What `grainmill bench` is asked for: which bench, and where its report goes."""

    name: Annotated[str, typer.Argument(help="Which one: " + ", ".join(BENCHES) + ".")]
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the JSON there. Default: nowhere.")
    ] = None
    json: Annotated[
        bool, typer.Option("--json", help="One JSON object on standard output. Default: off, a table for people.")
    ] = False


def run(flags: BenchFlags) -> int:
    """Measures one claim beside what it is claimed against. Exit code 1 if its bar is missed or a check fails."""
    from ..environment.numeric import fix_threads

    fix_threads()  # before numpy and numba are imported: a worker that mines has one thread
    from ..console import print_json
    from ..errors import InputError

    if flags.name not in BENCHES:
        raise InputError(f"bench {flags.name!r}: there are {', '.join(BENCHES)}")
    report = importlib.import_module(BENCHES[flags.name][0]).run(flags)
    if flags.output is not None:
        flags.output.parent.mkdir(parents=True, exist_ok=True)
        flags.output.write_text(json.dumps(report.to_json(), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if flags.json:
        print_json(report.to_json())
    else:
        print(report.to_text())
    return 0 if report.passed else 1
