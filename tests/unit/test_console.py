"""Progress: plain lines where nobody watches, a live bar on a terminal, and a time left that can be believed."""

from __future__ import annotations

import re

import pytest

from pipeline import console
from pipeline.console import ProgressBar


class Clock:
    """Stands in for `time.monotonic`, so that no test waits."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(console, "time", made)
    return made


def test_plain_lines_come_every_few_seconds_and_once_at_the_end(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with ProgressBar("mining", 100) as bar:
        for done in range(0, 101, 10):
            bar.update(done, "fine")
            clock.now_s += 2.0
    lines = capsys.readouterr().err.splitlines()
    assert 3 <= len(lines) <= 6
    assert lines[-1].startswith("mining: 100/100 images, fine")
    assert len(lines) == len(set(lines))


def test_the_time_left_leaves_out_start_up_and_what_was_done_before(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that goes on at 600 of 1,000, half a minute after the command was typed, at two images a second."""
    with ProgressBar("mining", 1000) as bar:
        clock.now_s += 30.0
        bar.update(600, "ready")
        clock.now_s += 10.0
        bar.update(620)
    left = re.search(r"about (\d+) s left", capsys.readouterr().err)
    assert left is not None
    assert int(left[1]) == 190


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_narrow_terminal_shows_every_number(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "COLUMNS": str(columns)}.items():
        monkeypatch.setenv(name, value)
    with ProgressBar("train", 15000, unit="steps") as bar:
        bar.update(900, "loss 0.826, IoU 0.284, 6.3 images/s, waits 2%, 1163 MiB")
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    assert "900/15000" in shown
    assert "-:--:--" in shown
    assert "\u2026" not in shown
    for word in ("0.826,", "0.284,", "images/s,", "waits", "2%,", "1163", "MiB"):
        assert word in shown


def test_of_several_processes_one_speaks(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    for terminal in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            if terminal:
                patch.setenv("TTY_COMPATIBLE", "1")
            with ProgressBar("train", 10, shown=False) as bar:
                for done in range(10):
                    bar.update(done, "loss 1")
                    clock.now_s += 9.0
    assert capsys.readouterr().err == ""


def test_nothing_is_said_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar("verify", 0):
        pass
    assert capsys.readouterr().err == ""


def test_print_json_refuses_what_json_cannot_say(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_json({"b": 1, "a": "ä"})
    assert capsys.readouterr().out == '{"a": "ä", "b": 1}\n'
    with pytest.raises(ValueError, match="JSON"):
        console.print_json({"x": float("nan")})
