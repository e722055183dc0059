"""`status`, `failures` and `stats` on a real committed directory: finished, at work, or no run at all."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main
from pipeline.dataset.open import open_dataset
from pipeline.shards.commits import Commit, CommitWriter
from pipeline.storage.open import open_storage


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--json"]) == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed


def test_status_of_a_finished_run(drawn_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = output(capsys, "status", str(drawn_run))
    expected = {"committed": 3, "pending": 0, "failed": 1, "shards": 3, "samples": 7, "masks": 35, "complete": True}
    assert {name: status[name] for name in expected} == expected
    assert status["failed_by_reason"] == {"unsupported_format": 1}
    assert main(["status", str(drawn_run)]) == 0
    assert "3 committed, 0 pending of 3" in capsys.readouterr().out


def test_status_and_stats_while_a_run_goes_on(
    write_drawn_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = write_drawn_run(tmp_path / "out", units=1)
    (directory / "shards" / "00000001-0123abcd.tar").write_bytes(b"another attempt, not committed")
    (directory / "lease.json").write_text("half a rec")
    status = output(capsys, "status", str(directory))
    assert (status["committed"], status["pending"], status["complete"], status["lease"]) == (1, 2, False, None)
    assert output(capsys, "stats", str(directory))["samples"] == status["samples"] == 3


@pytest.mark.parametrize("command", ["status", "failures", "stats", "verify"])
def test_a_directory_without_a_run_is_bad_input(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, str(tmp_path)]) == 2
    assert "expected a run (plan.json)" in capsys.readouterr().err
    assert main([command, str(tmp_path / "missing")]) == 2


def test_failures_as_json_csv_and_table(drawn_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = output(capsys, "failures", str(drawn_run))["failures"]
    assert [row["reason"] for row in rows] == ["unsupported_format"]
    assert rows[0]["source_uri"] == "drawn/d-text.jpg"
    assert output(capsys, "failures", str(drawn_run), "--reason", "timeout") == {"failures": []}
    assert main(["failures", str(drawn_run), "--csv"]) == 0
    assert "drawn/d-text.jpg" in capsys.readouterr().out
    assert main(["failures", str(drawn_run)]) == 0
    assert "1 failed samples" in capsys.readouterr().out
    assert main(["failures", str(drawn_run), "--reason", "nonsense"]) == 2


def test_stats_of_a_run(drawn_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stats = output(capsys, "stats", str(drawn_run))
    assert (stats["samples"], stats["masks"], stats["instances"], stats["failures"]) == (7, 35, 21, 1)
    assert stats["masks_per_image"] == 5.0
    assert stats["granularity_histogram"]["counts"] == [7, 0, 0, 0, 7, 0, 0, 0, 21]
    assert stats["depth"] == {"0": 21, "1": 7, "2": 7}
    assert stats["images_per_second"] == pytest.approx(7 / 3, abs=1e-5)
    assert main(["stats", str(drawn_run)]) == 0
    assert "published" in capsys.readouterr().out


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals here")
def test_the_bar_is_live_on_a_terminal(small_photographs: Path, tmp_path: Path) -> None:
    """The real command with its standard error on a terminal; a bad file among the photographs."""
    shutil.copytree(small_photographs, tmp_path / "in")
    (tmp_path / "in" / "a-text.jpg").write_text("no image")
    ours, theirs = os.openpty()
    command = [
        sys.executable, "-m", "pipeline", "mine", "--input", f"in={tmp_path / 'in'}", "--output",
        str(tmp_path / "out"), "--executor", "inline", "--samples-per-shard", "2", "--json",
    ]  # fmt: skip
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "140", "LINES": "40"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment)
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # the end of a pseudo-terminal reads as an error
        while data := os.read(ours, 65536):
            seen += data
    os.close(ours)
    assert process.stdout is not None
    with process.stdout:
        result = json.loads(process.stdout.read())
    assert process.wait(60) == 0
    assert result["samples"] == 11
    shown = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", seen).decode()
    for part in (r"\d+/12", r"\d+\.\d\d images/s", r"\d+ masks/image", r"1 failed", r"\d:\d\d:\d\d"):
        assert re.search(part, shown), part
    assert seen.count(b"\r") > 1, "it is drawn again in its place"


@pytest.mark.slow
def test_status_is_quick_with_ten_thousand_commits(
    drawn_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "out"
    shutil.copytree(drawn_run, directory)
    record = next(open_dataset(directory).commits()).record
    log = CommitWriter(open_storage(directory))
    for unit in range(3, 10_000):
        data = Commit(unit=unit, record={**record, "unit": unit}).to_bytes()
        (directory / "commits" / f"{unit:08d}.json").write_bytes(data)
    for _ in range(2):
        began_s = time.process_time()  # what else the machine does is not ours
        assert output(capsys, "status", str(directory))["committed"] == 10_000
        assert time.process_time() - began_s < 2.0
        log.compact(at=100)  # the second time over one compacted file
