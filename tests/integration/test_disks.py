"""A disk that is full, read-only or not ours: one clear error, and a correct run once there is room."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.dataset.open import open_dataset
from pipeline.mining.flags import MineFlags
from pipeline.mining.job import mine
from pipeline.mining.options import mine_options
from pipeline.storage.base import StorageError


def mined(source: Path, output: Path) -> str:
    flags = MineFlags(input=[f"in={source}"], output=str(output), executor="inline", samples_per_shard=2)
    return str(mine(mine_options(flags))["digest"])


def mine_on_tmpfs(
    source: Path, output: Path, kept: Path, *, size: str, remount: str, executor: str = "inline"
) -> subprocess.CompletedProcess[str]:
    """Mines onto a file system of this size that exists for this command only; copies what it holds then to `kept`."""
    output.mkdir()
    command = [
        sys.executable, "-m", "pipeline", "mine", "--input", f"in={source}", "--output", str(output),
        "--samples-per-shard", "2", "--executor", executor, "--workers", "1", "--json",
    ]  # fmt: skip
    script = f"""
        mount -t tmpfs -o size={size} tmpfs {shlex.quote(str(output))} || exit 99
        {remount}
        {shlex.join(command)}
        status=$?
        cp -a {shlex.quote(str(output))} {shlex.quote(str(kept))}
        exit $status
    """
    return subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize("size", ["100k", pytest.param("40k", marks=pytest.mark.slow)])
def test_a_full_disk_is_one_clear_error_and_the_same_command_goes_on(
    size: str, own_mounts: None, small_photographs: Path, tmp_path: Path, undisturbed_digest: str
) -> None:
    kept = tmp_path / "kept"
    done = mine_on_tmpfs(small_photographs, tmp_path / "out", kept, size=size, remount="")
    assert done.returncode == 1, done.stderr
    assert "the disk is full; free some space and run the same command again" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    if (kept / "plan.json").exists():
        run = open_dataset(kept)
        assert all(run.samples(unit).num_rows for unit in run.units()), "a commit names a file that is not whole"
    assert mined(small_photographs, kept) == undisturbed_digest


def test_a_read_only_file_system_is_one_clear_error(own_mounts: None, small_photographs: Path, tmp_path: Path) -> None:
    remount = f"mount -o remount,ro {shlex.quote(str(tmp_path / 'out'))} || exit 99"
    done = mine_on_tmpfs(small_photographs, tmp_path / "out", tmp_path / "kept", size="1m", remount=remount)
    assert done.returncode == 1, done.stderr
    assert "the file system is read-only; choose another --output" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "kept").iterdir()) == []


@pytest.fixture
def as_nobody(small_photographs: Path, tmp_path: Path) -> Iterator[Path]:
    """A folder that anybody may enter; this process has no rights of root in the test, whoever runs it."""
    mined(small_photographs, tmp_path / "warm-up")  # whatever is imported lazily is imported now
    folder = Path(tempfile.mkdtemp(prefix="gm"))
    folder.chmod(0o755)
    shutil.copytree(small_photographs, folder / "in")
    (folder / "out").mkdir(mode=0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield folder
    if root:
        os.seteuid(0)
    shutil.rmtree(folder)


def test_a_directory_without_write_permission_is_one_clear_error(as_nobody: Path) -> None:
    for output in (as_nobody / "out", as_nobody / "out" / "deeper"):
        with pytest.raises(StorageError, match="no permission; choose another --output"):
            mined(as_nobody / "in", output)
    assert list((as_nobody / "out").iterdir()) == []


def test_a_file_where_a_folder_should_be_is_one_clear_error(small_photographs: Path, tmp_path: Path) -> None:
    mined(small_photographs, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "shards")
    (tmp_path / "out" / "shards").write_text("in the way")
    (tmp_path / "out" / "manifest.json").unlink()
    (tmp_path / "out" / "commits" / "00000003.json").unlink()
    with pytest.raises(StorageError, match="shards"):
        mined(small_photographs, tmp_path / "out")
