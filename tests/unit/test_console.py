"""Progress: plain lines where nobody watches, a live bar on a terminal, and a time left that can be believed."""

from __future__ import annotations

import re
import threading

import pytest

from pipeline import console
from pipeline.console import ProgressBar, Waiting


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


def test_a_line_that_stands_still_says_what_is_waited_for(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    def lines_of(seconds: int, bar: ProgressBar) -> list[str]:
        """What the thread that looks every second says."""
        for _ in range(seconds):
            clock.now_s += 1.0
            bar.beat()
        return capsys.readouterr().err.splitlines()

    with ProgressBar("mining", 3) as bar:
        assert lines_of(25, bar) == [f"mining: 0/3 images, starting (no news for {s} s), {s} s" for s in (8, 16, 24)]
        bar.waits_for("a node with room for a worker")
        assert lines_of(8, bar) == ["mining: 0/3 images, a node with room for a worker (no news for 32 s), 32 s"]
        bar.update(0, "ready")
        assert lines_of(7, bar) == []
        bar.update(1, "fine")
        capsys.readouterr()
        assert lines_of(7, bar) == []
        for _ in range(4):  # the same again is no news
            clock.now_s += 3.0
            bar.update(1, "fine")
        said = capsys.readouterr().err.splitlines()
        assert len(said) >= 2
        assert "fine, at work on the next images (no news for " in said[-1]
        bar.update(3, "fine")
        assert all("finishing (no news for" in line for line in lines_of(17, bar))
    assert "no news" not in capsys.readouterr().err
    with Waiting("listing photos/") as waiting:
        for _ in range(17):
            clock.now_s += 1.0
            waiting.beat()
    assert capsys.readouterr().err.splitlines() == ["listing photos/, 8 s so far", "listing photos/, 16 s so far"]


def test_the_line_speaks_by_itself_while_the_caller_is_at_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the real thread and the real clock; the wait ends when something is said."""
    monkeypatch.setattr(console, "SILENCE_S", 0.0)
    monkeypatch.setattr(console, "_BEAT_S", 0.01)
    said = threading.Event()
    monkeypatch.setattr(console, "note", lambda text: said.set())
    for at_work in (ProgressBar("mining", 3), Waiting("listing photos/")):
        said.clear()
        with at_work:
            assert said.wait(60)
