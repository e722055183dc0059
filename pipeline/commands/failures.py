"""`grainmill failures DIR`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from .flags import RunArgument


@dataclass(frozen=True, kw_only=True)
class FailuresFlags:
    """What `grainmill failures` is asked for."""

    directory: RunArgument
    reason: Annotated[
        str | None, typer.Option(help="Only rows with this reason [default: all reasons].", show_default=False)
    ] = None
    json: Annotated[
        bool, typer.Option("--json", help='One object {"failures": [row, ...]} [default: off, a table for people].')
    ] = False
    csv: Annotated[
        bool,
        typer.Option(
            "--csv", help="CSV; cells that a spreadsheet would run get an apostrophe [default: off, a table]."
        ),
    ] = False


def run(flags: FailuresFlags) -> None:
    """One row for each input sample that is in no shard, and why."""
    from ..console import print_json
    from ..dataset.failures import failure_rows, to_csv
    from ..dataset.open import open_dataset
    from ..errors import InputError

    if flags.json and flags.csv:
        raise InputError("--json and --csv: give one of them")
    rows = failure_rows(open_dataset(flags.directory), reason=flags.reason)
    if flags.json:
        print_json({"failures": list(rows)})
    elif flags.csv:
        sys.stdout.writelines(to_csv(rows))
    else:
        _print_table(list(rows))


def _print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ..dataset.failures import printable

    if not rows:
        print("no failed samples")
        return
    table = Table(title=None)
    for column in ("reason", "stage", "source", "message", "key"):
        table.add_column(column, overflow="fold")
    for row in rows:
        source = row["source_uri"] if row["member"] is None else f"{row['source_uri']} · {row['member']}"
        cells = (row["reason"], row["stage"], source, row["message"], row["key"])
        table.add_row(*(Text(printable(cell)) for cell in cells))
    console = Console()
    console.print(table)
    console.print(f"{len(rows):,} failed samples")
