"""A command's files appear all or not at all; a full disk, met anywhere, is one clear error."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.predict.draw import write_png
from model.predict.output_files import OutputFiles
from pipeline.errors import InputError
from pipeline.storage.base import StorageError


@pytest.fixture
def full_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the disk full: so many files can be written, of the next one half."""
    whole = Path.write_bytes

    def fill(files: int) -> None:
        left = iter(range(files))

        def write_bytes(path: Path, data: Any) -> int:
            if next(left, None) is not None:
                return whole(path, data)
            whole(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

        monkeypatch.setattr(Path, "write_bytes", write_bytes)

    return fill


def content(folder: Path) -> dict[str, bytes]:
    return {str(each.relative_to(folder)): each.read_bytes() for each in folder.rglob("*") if each.is_file()}


def write_new(folder: Path, *names: str, error: type[BaseException] | None = None) -> None:
    with OutputFiles(folder) as files:
        for name in names:
            files.write(name, b"new")
        if error is not None:
            raise error


def test_files_appear_when_all_are_written_and_replace_older_ones(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    (out / "a").write_bytes(b"old")
    (out / "others").write_bytes(b"stays")
    with OutputFiles(out) as files:
        assert sorted(each.name for each in out.iterdir()) == ["a", "others"], "what a kill would leave"
        files.write("a", b"new")
        files.write("frames/0", b"0")
        assert (out / "a").read_bytes() == b"old"
        assert not (out / "frames").exists()
    assert content(out) == {"a": b"new", "frames/0": b"0", "others": b"stays"}
    assert sorted(each.name for each in out.iterdir()) == ["a", "frames", "others"], "no scratch is left"


@pytest.mark.parametrize("written", [0, 1, 2])
def test_a_full_disk_leaves_what_was_there(written: int, tmp_path: Path, full_after: Callable[[int], None]) -> None:
    (tmp_path / "a").write_bytes(b"old")
    full_after(written)
    advice = "the disk is full; free some space and run the same command again"
    with pytest.raises(StorageError, match=rf"out/[abc]: {advice}"):
        write_new(tmp_path / "out", *"abc")
    assert content(tmp_path) == {"a": b"old"}
    assert not (tmp_path / "out").exists(), "a folder that it made itself"


def test_an_error_or_ctrl_c_inside_leaves_nothing(tmp_path: Path) -> None:
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error):
            write_new(tmp_path / "out", "a", error=error)
        assert list(tmp_path.iterdir()) == []


def test_a_file_or_a_folder_in_the_way_is_told_before_anything_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"old")
    before = content(tmp_path)
    for name, message in (
        ("folder", r"folder: a folder has that name; choose another --output"),
        ("file/0", r"file/0: \S*/file is a file; choose another --output"),
    ):
        with pytest.raises(InputError, match=message):
            write_new(tmp_path, "a", name)
        assert content(tmp_path) == before


def test_a_picture_is_written_whole_or_not(tmp_path: Path, full_after: Callable[[int], None]) -> None:
    write_png(tmp_path / "pictures" / "a.png", np.zeros((4, 5, 3), dtype=np.uint8))
    before = content(tmp_path)
    assert list(before) == ["pictures/a.png"]
    full_after(0)
    with pytest.raises(StorageError, match=r"a\.png: the disk is full"):
        write_png(tmp_path / "pictures" / "a.png", np.ones((4, 5, 3), dtype=np.uint8))
    assert content(tmp_path) == before


def test_an_onnx_export_is_written_whole_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_after: Callable[[int], None]
) -> None:
    pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
    from model.network.granular import GranularSam2
    from model.predict import onnx_export

    model = GranularSam2("micro", "full", 64).eval()
    (tmp_path / "out").write_bytes(b"in the way")
    with pytest.raises(InputError, match=r"out: \S*/out is a file; choose another --output"):
        onnx_export.export_onnx(model, tmp_path / "out")
    (tmp_path / "out").unlink()

    def half(module: Any, arguments: Any, path: str, **more: Any) -> None:
        Path(path).touch()
        if "decoder" in path:
            raise OSError(errno.ENOSPC, "No space left on device", path)

    with monkeypatch.context() as patched:
        patched.setattr(onnx_export.torch.onnx, "export", half)
        with pytest.raises(StorageError, match=r"out/decoder\.onnx: the disk is full"):
            onnx_export.export_onnx(model, tmp_path / "out")
        patched.setattr(onnx_export.torch.onnx, "export", lambda *_, **__: None)
        patched.setattr(onnx_export, "_compare", lambda *_: 0.0)
        full_after(0)
        with pytest.raises(StorageError, match=r"out/about\.json: the disk is full"):
            onnx_export.export_onnx(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
