"""Names from outside never become formulas, table cells of another row, or terminal commands."""

from __future__ import annotations

import csv
import io

import pytest

from pipeline.dataset.failures import COLUMNS, csv_cell, printable, to_csv


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1"])
def test_formulas_get_an_apostrophe(text: str) -> None:
    assert csv_cell(text) == "'" + text


def test_other_cells_stay_as_they_are() -> None:
    assert csv_cell("photos/a=b.jpg") == "photos/a=b.jpg"
    assert csv_cell(None) == ""


def test_csv_reads_back_as_one_row_each() -> None:
    row = dict.fromkeys(COLUMNS, 'x"y,z\nw') | {"message": "=cmd|' /C calc'!A0"}
    head, read = csv.reader(io.StringIO("".join(to_csv([row])), newline=""))
    assert head == list(COLUMNS)
    assert read[0] == 'x"y,z\nw'
    assert read[-1].startswith("'=")


def test_control_characters_are_shown_and_not_sent_to_the_terminal() -> None:
    assert printable("a\x1b[31m\nb\u202e") == "a\\x1b[31m\\nb\\u202e"
    assert printable("Größe 1") == "Größe 1"
