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


def test_nothing_is_said_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar("verify", 0):
        pass
    assert capsys.readouterr().err == ""


def test_print_json_refuses_what_json_cannot_say(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_json({"b": 1, "a": "ä"})
    assert capsys.readouterr().out == '{"a": "ä", "b": 1}\n'
    with pytest.raises(ValueError, match="JSON"):
        console.print_json({"x": float("nan")})
