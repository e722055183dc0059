"""A checkpoint appears whole or not at all, wherever its writing ends."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from model.network.checkpoint import (
    CheckpointWriteError,
    checkpoint_steps,
    prune,
    read_checkpoint,
    step_path,
    write_checkpoint,
)


class KilledError(BaseException):
    """Ends a write where it stands, as a kill does: nothing catches it."""


def write(path: Path, value: float) -> None:
    write_checkpoint(path, {"step": value}, {"model.w": torch.full((1000,), value)})


def value(path: Path) -> float:
    return float(read_checkpoint(path).tensors["model.w"][0])


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KilledError()])
def test_a_write_that_ends_in_the_middle_leaves_the_old_file_and_no_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: BaseException
) -> None:
    old, new = step_path(tmp_path, 1), step_path(tmp_path, 2)
    write(old, 1.0)
    before = old.read_bytes()

    def ends(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, call, ends)
    refused = CheckpointWriteError if isinstance(error, OSError) else KilledError
    for path in (new, old):  # a new name, and one that is there already
        with pytest.raises(refused):
            write(path, 2.0)
        assert not new.exists()
        assert old.read_bytes() == before
        assert checkpoint_steps(tmp_path) == {1: old}
        assert value(tmp_path) == 1.0
    left = list(old.parent.glob(".*"))
    assert bool(left) == isinstance(error, KilledError)
    prune(tmp_path, keep=2, best=None)
    assert [each.name for each in old.parent.iterdir()] == [old.name]


def test_a_file_gets_its_name_when_all_of_it_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Synced whole, then renamed, then the folder synced."""
    path = step_path(tmp_path, 3)
    done: list[tuple[Any, ...]] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        stat = os.fstat(descriptor)
        done.append(("fsync", stat.st_ino, stat.st_size if path.parent.stat().st_ino != stat.st_ino else None))
        assert path.exists() == (path.parent.stat().st_ino == stat.st_ino)
        fsync(descriptor)

    def renamed(source: Any, target: Any) -> None:
        done.append(("replace", os.stat(source).st_ino, str(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    write(path, 1.0)
    file = path.stat()
    assert done == [
        ("fsync", file.st_ino, file.st_size),
        ("replace", file.st_ino, str(path)),
        ("fsync", path.parent.stat().st_ino, None),
    ]
