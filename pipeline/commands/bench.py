"""`grainmill bench`: side-by-side benchmarks, one module each, loaded when asked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final

import typer

BENCHES: Final[dict[str, tuple[str, str]]] = {
    "conquer": ("pipeline.bench.conquer", "merging 48 x 48 patches against the plain definition"),
    "divide": ("pipeline.bench.divide", "one normalised cut of 3,600 patches against SciPy's dense eigensolver"),
    "mine": ("pipeline.bench.mine", "the whole mill: images/s and seconds per stage"),
    "executors": ("pipeline.bench.executors", "Ray against local at equal workers"),
    "memory": ("pipeline.bench.memory", "the driver's memory against planned units, a worker's over many images"),
    "load": ("model.bench.load", "the training loader against webdataset's on the same shards"),
    "release": ("pipeline.bench.release", "a release of 10,000 shards: seconds and memory"),
}
"""Name -> (module with `run(options: BenchOptions) -> BenchReport`, one line of help)."""


def command(
    name: Annotated[str, typer.Argument(help="Which one: " + ", ".join(BENCHES) + ".")],
    repeats: Annotated[
        int, typer.Option(min=1, help="Runs of each side. Default 5: a median that one disturbance cannot move.")
    ] = 5,
    seed: Annotated[int, typer.Option(help="Of drawn inputs. Default 0: any fixed number does.")] = 0,
    input: Annotated[
        list[str] | None,
        typer.Option(metavar="[LABEL=]SRC", help="Images, for the benches that read some. Default: the bench's own."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="For the benches that start workers. Default: the bench's own.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many samples. Default: the bench's own.")] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the JSON there. Default: nowhere.")
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="One JSON object on standard output. Default: off, a table for people.")
    ] = False,
) -> int:
    """Measures one claim beside what it is claimed against. Exit code 1 if its bar is missed or a check fails."""
    from ..environment.numeric import single_threaded

    os.environ.update(single_threaded())  # before numpy and numba are imported: a worker of the mill has one thread
    import importlib
    import json as json_module

    from ..bench.report import BenchOptions
    from ..console import print_json
    from ..errors import InputError

    if name not in BENCHES:
        raise InputError(f"bench {name!r}: there are {', '.join(BENCHES)}")
    run = importlib.import_module(BENCHES[name][0]).run
    report = run(BenchOptions(repeats=repeats, seed=seed, input=tuple(input or ()), workers=workers, limit=limit))
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json_module.dumps(report.to_json(), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if json:
        print_json(report.to_json())
    else:
        print(report.to_text())
    return 0 if report.passed else 1
