"""Many files at once, made to last by one sync of the file system instead of two for each file.

A release writes tens of thousands of files before the one that commits them. Syncing each would cost a disk's round
trip every time; nothing is lost without it, because a file that a power cut spoils has another sha256 than the one
that the manifest names, and the manifest is written after `make_durable`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..storage.local import LocalStorage, explained


@contextmanager
def scratch_file(output: LocalStorage) -> Iterator[Path]:
    """A path for a file on its way to `place`; gone afterwards, whatever happened."""
    path = output.path(f"tmp/bulk.{os.urandom(8).hex()}")
    with explained("create", path.parent):
        path.parent.mkdir(exist_ok=True)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def place(output: LocalStorage, path: Path, name: str) -> None:
    """Moves a complete file to its name; durable after `make_durable`."""
    final = output.path(name)
    with explained("write", final):
        final.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, final)


def put(output: LocalStorage, name: str, data: bytes) -> None:
    """Writes a file that appears complete; durable after `make_durable`."""
    with scratch_file(output) as path:
        with explained("write", path):
            path.write_bytes(data)
        place(output, path, name)


def make_durable() -> None:
    """Everything written before this survives a power cut after it."""
    os.sync()
