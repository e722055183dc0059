"""Temporary folders of killed processes are cleared away; those of living ones are not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.storage.session_folder import LOCK, SessionFolder

HOLD = """
import sys, time
from pipeline.storage.session_folder import SessionFolder
folder = SessionFolder("gm-test-")
(folder.path / "socket").write_text("x")
print(folder.path, flush=True)
time.sleep(60)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_a_killed_process_leaves_nothing_for_long(temporary: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        theirs = Path(process.stdout.readline().strip())
        assert (theirs / "socket").exists()
        ours = SessionFolder("gm-test-")
        assert theirs.exists(), "its process lives"
        process.kill()
    ours.remove()
    assert not ours.path.exists()
    assert theirs.exists(), "nobody has cleared it away yet"
    after = SessionFolder("gm-test-")
    assert not theirs.exists()
    assert [each.name for each in temporary.iterdir()] == [after.path.name]
    after.remove()
    assert list(temporary.iterdir()) == []


def test_what_is_not_ours_stays(temporary: Path) -> None:
    (temporary / "gm-test-of-another").mkdir()
    (temporary / "gm-test-file").write_text("x")
    (temporary / "gm-test-link").mkdir()
    elsewhere = temporary / "elsewhere"
    elsewhere.write_text("")
    (temporary / "gm-test-link" / LOCK).symlink_to(elsewhere)
    SessionFolder("gm-test-").remove()
    assert {each.name for each in temporary.iterdir()} == {
        "elsewhere",
        "gm-test-of-another",
        "gm-test-file",
        "gm-test-link",
    }
