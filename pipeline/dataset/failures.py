"""The failed samples of a run, row by row, and the same as a table or as CSV that is safe to open in a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from typing import Final

from ..errors import FAILURE_REASONS, InputError
from ..format.records import FailedRow
from ..format.schema import FAILURES_SCHEMA
from .reader import Dataset

COLUMNS: Final[tuple[str, ...]] = tuple(FAILURES_SCHEMA.names)


def failure_rows(dataset: Dataset, *, reason: str | None = None) -> Iterator[FailedRow]:
    """Rows in the order of the plan, one unit's table in memory at a time; with `reason`, only those.

    Raises:
        InputError: an unknown reason.
    """
    if reason is not None and reason not in FAILURE_REASONS:
        raise InputError(f"--reason {reason!r}: expected one of {', '.join(FAILURE_REASONS)}")
    for unit in dataset.units():
        if reason is None or reason in unit.reasons:
            for row in dataset.failures(unit).to_pylist():
                if reason is None or row["reason"] == reason:
                    yield row


def csv_cell(value: object) -> str:
    """One cell. What a spreadsheet would run as a formula gets an apostrophe before it.

    The characters that start a formula (or hide one) are those of OWASP's page on CSV injection.
    """
    text = "" if value is None else str(value)
    return (
        "'" + text
        if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20"))
        else text
    )


def to_csv(rows: Iterable[FailedRow]) -> Iterator[str]:
    """Lines of CSV with a head, quoted by RFC 4180."""
    for record in _records(rows):
        line = io.StringIO()
        csv.writer(line, quoting=csv.QUOTE_ALL).writerow(record)
        yield line.getvalue().replace("\0", "\ufffd")


def _records(rows: Iterable[FailedRow]) -> Iterator[list[str]]:
    yield list(COLUMNS)
    for row in rows:
        cells: dict[str, object] = {**row}
        yield [csv_cell(cells[column]) for column in COLUMNS]


def printable(value: object) -> str:
    """A name as one line for a terminal: control characters (which could steer it) become visible escapes."""
    text = "" if value is None else str(value)
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
