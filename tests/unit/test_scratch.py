"""The scratch folder is cleaned while others may still work in it: a worker that counts as dead, the driver's lease."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.shards import lease
from pipeline.shards.lease import LEASE, Lease, read_lease
from pipeline.storage.base import StorageError
from pipeline.storage.local import LocalStorage
from pipeline.storage.open import open_storage


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    """With the files of two attempts in its scratch folder."""
    made = open_storage(tmp_path / "out", create=True)
    assert isinstance(made, LocalStorage)
    for name in ("00000000.a", "00000001.b"):
        folder = made.scratch(name)
        for file in ("x.tar", "y.parquet"):
            (folder / file).write_bytes(b"half")
    return made


def first(patch: pytest.MonkeyPatch, name: str, act: Callable[..., object]) -> None:
    """Something happens before each call of a function of `os`."""
    really = getattr(os, name)

    def both(*arguments: Any, **named: Any) -> Any:
        act(really, *arguments, **named)
        return really(*arguments, **named)

    patch.setattr(os, name, both)


@pytest.mark.parametrize("name", ["unlink", "rmdir"])
def test_what_another_has_just_removed_is_no_error(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with monkeypatch.context() as patch:
        first(patch, name, lambda really, *arguments, **named: really(*arguments, **named))
        storage.clean_scratch()
    assert not storage.path("tmp").exists()


def test_a_folder_that_goes_as_it_is_about_to_be_entered_is_no_error(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_: object, path: object, *__: object, **___: object) -> None:
        if str(path) == "00000001.b":
            shutil.rmtree(storage.path("tmp/00000001.b"), ignore_errors=True)

    with monkeypatch.context() as patch:
        first(patch, "open", gone)
        storage.clean_scratch()
    assert not storage.path("tmp").exists()


def test_what_another_makes_meanwhile_stays(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    new = storage.path("tmp/00000002.c/z.tar")

    def made(_: object, path: object, **__: object) -> None:
        if not new.exists():
            new.parent.mkdir()
            new.write_bytes(b"new")

    with monkeypatch.context() as patch:
        first(patch, "rmdir", made)
        storage.clean_scratch()
    assert [path for path in storage.path("tmp").rglob("*") if path.is_file()] == [new]
    storage.clean_scratch()
    assert not storage.path("tmp").exists()


def test_what_may_not_be_removed_is_still_a_message(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "refused")

    with monkeypatch.context() as patch:
        first(patch, "unlink", refused)
        with pytest.raises(StorageError, match=r"cannot remove .*/tmp: no permission"):
            storage.clean_scratch()


def test_a_stale_worker_beside_the_cleaning(storage: LocalStorage) -> None:
    """It makes its folder, writes and removes it, over and over, while the folder is cleaned."""
    stop = threading.Event()
    rounds = 0

    def work() -> None:
        nonlocal rounds
        while not stop.is_set():
            try:
                folder = storage.scratch(f"{rounds:08d}.stale")
                for number in range(8):
                    (folder / f"{number}.part").write_bytes(b"half")
                shutil.rmtree(folder)
            except (OSError, StorageError):
                pass  # removed under its hands, as it should be
            rounds += 1

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for _ in range(300):
            storage.clean_scratch()
    finally:
        stop.set()
        worker.join()
    assert rounds
    storage.clean_scratch()
    assert not storage.path("tmp").exists()


def test_a_lease_beats_on_after_its_file_was_removed(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.001)
    beaten = threading.Event()
    refused = []
    really = LocalStorage.put_atomic

    def put(self: LocalStorage, name: str, data: bytes) -> None:
        if not refused:
            refused.append(name)
            raise StorageError(f"cannot write {name}: it is missing")
        really(self, name, data)
        beaten.set()

    monkeypatch.setattr(LocalStorage, "put_atomic", put)
    with Lease(storage):
        assert beaten.wait(60)
        found = read_lease(storage)
    assert refused == [LEASE]
    assert found is not None
    assert found["beat"] >= 2
