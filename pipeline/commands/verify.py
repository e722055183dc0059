"""`grainmill verify DIR`."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Annotated

import typer

from .flags import JsonFlag


@dataclass(frozen=True, kw_only=True)
class VerifyFlags:
    """What `grainmill verify` is asked for."""

    directory: Annotated[
        str, typer.Argument(metavar="DIR", help="Directory or URL of a run, a release, or REL/versions/V of one.")
    ]
    deep: Annotated[
        bool,
        typer.Option(
            "--deep",
            help="Also decode every sample, mask and image and compare them with the index "
            "[default: off: sizes, sha256 and counts find every changed byte; this also finds wrong content].",
        ),
    ] = False
    workers: Annotated[
        int, typer.Option(min=0, help="Processes; 0 for one per core, at most 8 [default: 1, fast enough for sha256].")
    ] = 1
    json: JsonFlag = False


def run(flags: VerifyFlags) -> int:
    """Check bytes and counts (and with --deep every sample) of a run or a release. Exit 1 names what is wrong.

    A run is checked against its commits; a release from cold: manifest, checksums, index, shards, every number again.
    """
    from ..console import ProgressBar, note, print_json
    from ..dataset.failures import printable
    from ..dataset.verify import VerifyTotals, open_damaged, stray_files, verify_run
    from ..dataset.verify_unit import Problem
    from ..release.verify import release_at, verify_release

    totals, problems, strays, pending = VerifyTotals(), [], [], 0

    def found(problem: Problem) -> None:
        problems.append(dataclasses.asdict(problem))
        note(f"problem: {printable(problem)}")

    release = release_at(flags.directory)
    dataset = None if release is not None else open_damaged(flags.directory)
    if release is not None:
        with ProgressBar("verify", None, unit="shards") as progress:
            on_shard = lambda done: progress.update(done.units, f"{done.checked_bytes / 2**20:,.0f} MiB")  # noqa: E731
            for problem in verify_release(release, deep=flags.deep, totals=totals, on_unit=on_shard):
                found(problem)
    elif isinstance(dataset, Problem):
        found(dataset)
    elif dataset is not None:
        count = flags.workers or min(8, os.cpu_count() or 1)
        with ProgressBar("verify", dataset.units_total, unit="units") as progress:
            on_unit = lambda done: progress.update(done.units, f"{done.checked_bytes / 2**20:,.0f} MiB")  # noqa: E731
            for problem in verify_run(dataset, deep=flags.deep, workers=count, totals=totals, on_unit=on_unit):
                found(problem)
        strays = stray_files(dataset)
        pending = max(0, dataset.units_total - totals.units)
    counted = {"units": totals.units, "samples": totals.samples, "masks": totals.masks, "bytes": totals.checked_bytes}
    if flags.json:
        strayed = {"stray_files": strays, "pending": pending}
        print_json({"ok": not problems, "deep": flags.deep, **counted, **strayed, "problems": problems})
    else:
        for name in strays[:10]:
            note(f"not named by any commit, no error: {printable(name)}")
        if len(strays) > 10:
            note(f"not named by any commit, no error: {len(strays) - 10} files more")
        depth = "to the pixels" if flags.deep else "by size, sha256 and counts"
        said = (
            f"everything is as {'released' if release is not None else 'committed'}"
            if not problems
            else f"{len(problems)} problems, named above"
        )
        left = f"; {pending:,} units are not committed yet" if pending else ""
        print(
            f"{printable(flags.directory)}: {totals.units:,} units, {totals.samples:,} samples, "
            f"{totals.masks:,} masks, {totals.checked_bytes:,} bytes checked {depth}: {said}{left}"
        )
    return 1 if problems else 0
