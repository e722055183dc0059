"""`grainmill status DIR`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from .flags import JsonFlag, RunArgument


@dataclass(frozen=True, kw_only=True)
class StatusFlags:
    """What `grainmill status` is asked for."""

    directory: RunArgument
    json: JsonFlag = False
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Look again until the run is complete, from any machine. Default: look once."),
    ] = False
    interval_s: Annotated[
        float,
        typer.Option(
            min=0.1,
            help="Between two looks of --watch. Default 10: units take minutes, and each look reads all commits.",
        ),
    ] = 10.0


def run(flags: StatusFlags) -> None:
    """What is committed, pending and failed. Reads commit records only, so it is quick and works beside a run."""
    from ..console import print_json
    from ..dataset.open import open_dataset
    from ..dataset.status import run_status

    status = _watched(flags.directory, flags.interval_s) if flags.watch else run_status(open_dataset(flags.directory))
    if flags.json:
        print_json(status)
    else:
        print(_text(status))


def _watched(directory: str, interval_s: float) -> Mapping[str, Any]:
    """Shows a run's progress on standard error until it is complete; returns its last status."""
    from ..console import ProgressBar
    from ..dataset.open import open_dataset
    from ..dataset.status import watch

    status: Mapping[str, Any] = {}
    with ProgressBar(directory, open_dataset(directory).units_total, unit="units") as progress:
        for status in watch(directory, interval_s=interval_s):
            progress.update(status["committed"], _detail(status))
    return status


def _detail(status: Mapping[str, Any]) -> str:
    rate = status["images_per_second"]
    return ", ".join(
        [
            f"{status['samples']:,} samples",
            f"{status['masks']:,} masks",
            f"{status['failed']:,} failed",
            *([] if rate is None else [f"{rate:.2f} images/s", f"{status['seconds_left']:.0f} s left at that rate"]),
            *(["nobody is mining just now"] if status["driver"] is False and status["pending"] else []),
        ]
    )


def _text(status: Mapping[str, Any]) -> str:
    from ..sources.passed_over import lines as lines_of

    done, total = status["committed"], status["units"]
    state = "complete" if status["complete"] else "not complete; the same `mine` command goes on from here"
    per_image = "" if status["masks_per_image"] is None else f" ({status['masks_per_image']:.1f} per image)"
    lines = [
        f"{status['directory']}: {state}",
        f"  units    {done:,} committed, {status['pending']:,} pending of {total:,}",
        f"  shards   {status['shards']:,}",
        f"  samples  {status['samples']:,}",
        f"  masks    {status['masks']:,}{per_image}",
        f"  failed   {status['failed']:,}",
    ]
    lines += [f"    {count:>8,}  {reason}" for reason, count in status["failed_by_reason"].items()]
    if status["passed_over"]:
        lines.append("  passed over, not mined")
        lines += [f"    {line}" for line in lines_of(status["passed_over"])]
    return "\n".join(lines)
