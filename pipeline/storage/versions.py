"""Where the files of one version of a release lie.

A release's folder is its newest version. What a newer version replaced or left out has moved, under the same relative
name, into `versions/OLD/`, where the older version's `manifest.json` stands too. So a location that ends in
`/versions/V` is read through that folder, then through those of the versions after it, then through the root.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Final

from ..errors import InputError
from .base import FileStat, Reader

VERSIONS: Final = "versions"
_NUMBERED: Final = re.compile(
    r"v?(?P<numbers>[0-9]+(?:\.[0-9]+)*)(?:-(?P<before>[0-9A-Za-z.-]+))?(?:\+[0-9A-Za-z.-]+)?", re.IGNORECASE
)
VERSION_NAME: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+_-]{0,63}")


class VersionStorage:
    """The files of one version, wherever later versions moved them: a `Reader`, a version is never changed."""

    def __init__(self, root: Reader, folders: Sequence[str]) -> None:
        self._root = root
        self._folders = [f"{folder}/" for folder in folders] + [""]
        self.location = f"{root.location}/{folders[0]}"

    @property
    def release(self) -> str:
        """Location of the release that this is a version of."""
        return self._root.location

    def place(self, name: str) -> str:
        """The name under the release's root of a file of this version."""
        places = (f"{folder}{name}" for folder in self._folders)
        return next((each for each in places if self._root.exists(each)), name)

    def read_bytes(self, name: str) -> bytes:
        return self._root.read_bytes(self.place(name))

    def read_many(self, names: Sequence[str]) -> Iterator[tuple[str, bytes | None]]:
        found = self._root.read_many([self.place(name) for name in names])
        for name, (_, data) in zip(names, found, strict=True):
            yield name, data

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        return self._root.read_range(self.place(name), offset, size)

    def read_at(self, name: str, offset: int, size: int) -> bytes:
        return self._root.read_at(self.place(name), offset, size)

    def open(self, name: str) -> BinaryIO:
        return self._root.open(self.place(name))

    def stat(self, name: str) -> FileStat | None:
        return self._root.stat(self.place(name))

    def exists(self, name: str) -> bool:
        return self._root.exists(self.place(name))

    def size(self, name: str) -> int | None:
        return self._root.size(self.place(name))

    def modified(self, name: str) -> datetime.datetime | None:
        return self._root.modified(self.place(name))

    def list(self, folder: str) -> list[str]:
        return self._root.list(f"{self._folders[0]}{folder}")


def check_version_name(version: str) -> str:
    """The version, if it can be a folder's name and a tag.

    Raises:
        InputError: otherwise.
    """
    if not VERSION_NAME.fullmatch(version):
        raise InputError(f"--version {version!r}: expected up to 64 of letters, digits, . + _ -, as in 1.0.0")
    return version


def version_order(version: str) -> tuple[object, ...] | None:
    """What orders versions as semantic versioning does: 0.9 < 1.0.0-rc.1 < 1.0.0 = 1.0 = v1.0.0+build < 1.10.0.

    None for a name that says no order, such as `november` or the date 2026-11-24.
    """
    match = _NUMBERED.fullmatch(version)
    if match is None or (match["before"] and "." not in match["numbers"]):
        return None
    numbers = [int(part) for part in match["numbers"].split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    if not match["before"]:
        return tuple(numbers), 1
    parts = match["before"].split(".")
    return tuple(numbers), 0, tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts)
