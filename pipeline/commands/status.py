"""`grainmill status DIR`."""

from __future__ import annotations

from typing import Annotated, Any

import typer


def command(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Output directory (or URL) of a run.")],
    json: Annotated[
        bool, typer.Option("--json", help="One JSON object on standard output [default: off, a text for people].")
    ] = False,
) -> None:
    """What is committed, pending and failed. Reads commit records only, so it is quick and works beside a run."""
    from ..committed import CommittedRun
    from ..console import print_json
    from ..status import run_status

    status = run_status(CommittedRun.open(directory))
    if json:
        print_json(status)
    else:
        print(_text(status))


def _text(status: dict[str, Any]) -> str:
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
    return "\n".join(lines)
