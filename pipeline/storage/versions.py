"""Where the files of one version of a release lie.

A release's folder is its newest version. What a newer version replaced or left out has moved, under the same relative
name, into `versions/OLD/`, where the older version's `manifest.json` stands too. So a location that ends in
`/versions/V` is read through that folder, then through those of the versions after it, then through the root.
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from ..errors import InputError, SchemaError
from ..format.schema import load_json
from .stores import Storage, StorageError, open_storage

VERSIONS: Final = "versions"
_VERSIONED: Final = re.compile(r"(?P<root>.+)/versions/(?P<version>[^/]+)/*")
_NUMBERED: Final = re.compile(
    r"v?(?P<numbers>[0-9]+(?:\.[0-9]+)*)(?:-(?P<before>[0-9A-Za-z.-]+))?(?:\+[0-9A-Za-z.-]+)?", re.IGNORECASE
)
VERSION_NAME: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+_-]{0,63}")


def open_versioned(location: str | os.PathLike[str]) -> Storage:
    """Opens a run, a release, or one version of a release (`REL/versions/V`), for reading.

    Raises:
        InputError: as `open_storage`, or no such version.
    """
    match = _VERSIONED.fullmatch(os.fspath(location))
    if match is None:
        return open_storage(location)
    root = open_storage(match["root"])
    folder = f"{VERSIONS}/{match['version']}"
    if not root.exists(f"{folder}/manifest.json"):
        return open_storage(location)  # some other folder of that name
    return VersionStorage(root, [folder, *_newer(root, match["version"])])


def _newer(root: Storage, version: str) -> list[str]:
    """Folders of the versions after this one, oldest first, as the root's manifest lists them."""
    manifest = load_json(root.read_bytes("manifest.json"), where=f"{root.location}/manifest.json")
    try:
        order = [str(each["version"]) for each in manifest["versions"]]
    except (KeyError, TypeError) as error:
        raise SchemaError(f"{root.location}/manifest.json: not the manifest of a release ({error})") from error
    after = order[order.index(version) + 1 :] if version in order else []
    return [f"{VERSIONS}/{each}" for each in after if VERSION_NAME.fullmatch(each)]


class VersionStorage:
    """Read-only: the files of one version, wherever later versions moved them."""

    def __init__(self, root: Storage, folders: Sequence[str]) -> None:
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

    def exists(self, name: str) -> bool:
        return self._root.exists(self.place(name))

    def size(self, name: str) -> int | None:
        return self._root.size(self.place(name))

    def modified(self, name: str) -> datetime.datetime | None:
        return self._root.modified(self.place(name))

    def list(self, folder: str) -> list[str]:
        return self._root.list(f"{self._folders[0]}{folder}")

    def write_new(self, name: str, data: bytes) -> bool:
        raise self._read_only()

    def put_atomic(self, name: str, data: bytes) -> None:
        raise self._read_only()

    def publish(self, path: Path, name: str) -> None:
        raise self._read_only()

    def upload(self, path: Path, name: str) -> None:
        raise self._read_only()

    def remove(self, name: str) -> None:
        raise self._read_only()

    def scratch(self, name: str) -> Path:
        raise self._read_only()

    def clean_scratch(self) -> None:
        raise self._read_only()

    def _read_only(self) -> StorageError:
        return StorageError(f"{self.location}: a version of a release is never changed; write to another directory")


def check_version_name(version: str) -> str:
    """The version, if it can be a folder's name and a tag.

    Raises:
        InputError: otherwise.
    """
    if not VERSION_NAME.fullmatch(version):
        raise InputError(f"--version {version!r}: expected up to 64 of letters, digits, . + _ -, as in 1.0.0")
    return version


def version_order(version: str) -> tuple[Any, ...] | None:
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
