"""Where inputs lie: a local folder or a URL, listed in one fixed order and read by range.

The order is that of the UTF-8 bytes of the relative paths. Hidden files and folders (a leading dot) are skipped.
Symbolic links to files are followed, links to folders are not, so that a walk always ends.
"""

from __future__ import annotations

import datetime
import glob
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

from .errors import InputError
from .source_tars import printable
from .storage import ranged_read, remote_file_system, retrying, scheme_of

READ_AHEAD_BYTES: Final = 2**20
"""Of a remote container that is scanned: one request for many headers or rows."""


@dataclass(frozen=True, kw_only=True)
class ListedFile:
    """A file as it was found.

    Attributes:
        path: relative to the root, POSIX, printable; `raw` opens it.
        raw: the name as the file system knows it.
        size: bytes.
        version: what changes when the content does: nanoseconds of the last change, or the store's ETag.
    """

    path: str
    raw: str
    size: int
    version: str

    @property
    def order(self) -> bytes:
        return self.path.encode("utf-8")


class Root(Protocol):
    """A place with files."""

    def walk(self) -> Iterator[ListedFile]:
        """Every file, in the order of its path's bytes."""
        ...

    def stat(self, raw: str) -> tuple[int, str] | None:
        """Size and version now; None if the file is gone."""
        ...

    def open(self, raw: str) -> BinaryIO: ...

    def read_range(self, raw: str, offset: int, size: int) -> bytes: ...


def open_root(location: str) -> Root:
    """A folder, a file, a glob, or a URL of an allowed scheme.

    Raises:
        InputError: there is nothing, or the scheme is not allowed.
    """
    if scheme_of(location) not in (None, "file"):
        return _RemoteRoot(location)
    path = Path(location.removeprefix("file://"))
    if path.is_dir():
        return _LocalRoot(path, None)
    if path.is_file():
        return _LocalRoot(path.parent, [path.name])
    if glob.has_magic(location):
        base = Path(*_before_magic(path))
        found = glob.glob(str(path), recursive=True)
        names = [os.path.relpath(each, base) for each in found if os.path.isfile(each)]
        if not names:
            raise InputError(f"{location}: no file matches; quote the pattern if the shell should not expand it")
        return _LocalRoot(base, sorted(names, key=_sort_key))
    raise InputError(f"{location}: expected a folder, a file, a glob or a URL, found nothing there")


def _sort_key(raw: str) -> bytes:
    """As `ListedFile.order`: of the printable name, since that is what a plan holds."""
    return printable(os.fsencode(raw)).encode("utf-8")


def _before_magic(path: Path) -> list[str]:
    parts: list[str] = []
    for part in path.parts:
        if glob.has_magic(part):
            break
        parts.append(part)
    return parts


class _LocalRoot:
    def __init__(self, base: Path, names: list[str] | None) -> None:
        self._base, self._names = base, names

    def walk(self) -> Iterator[ListedFile]:
        if self._names is None:
            yield from self._folder("")
            return
        for name in self._names:
            yield from self._file(name)

    def _folder(self, folder: str) -> Iterator[ListedFile]:
        try:
            with os.scandir(self._base / folder) as entries:
                # A folder sorts as its name with a slash: the order of whole paths, without holding them all.
                found = sorted(
                    (_sort_key(each.name) + (b"/" if each.is_dir(follow_symlinks=False) else b""), each.name)
                    for each in entries
                    if not each.name.startswith(".")
                )
        except OSError as error:
            raise InputError(f"{self._base / folder}: cannot be listed ({error.strerror})") from error
        for key, name in found:
            inner = f"{folder}/{name}" if folder else name
            if key.endswith(b"/"):
                yield from self._folder(inner)
            else:
                yield from self._file(inner)

    def _file(self, raw: str) -> Iterator[ListedFile]:
        path = self._base / raw
        if path.is_dir():  # a link to a folder
            return
        found = self.stat(raw)
        size, version = found if found is not None else (-1, "missing")
        yield ListedFile(path=printable(os.fsencode(raw)), raw=raw, size=size, version=version)

    def stat(self, raw: str) -> tuple[int, str] | None:
        try:
            status = os.stat(self._base / raw)
        except OSError:
            return None
        return status.st_size, str(status.st_mtime_ns)

    def open(self, raw: str) -> BinaryIO:
        return (self._base / raw).open("rb")

    def read_range(self, raw: str, offset: int, size: int) -> bytes:
        with self.open(raw) as stream:
            return os.pread(stream.fileno(), size, offset)


class _RemoteRoot:
    """Any fsspec file system: listed once, read by ranges."""

    def __init__(self, location: str) -> None:
        self._fs, path = remote_file_system(location)
        self._pattern: str | None
        self._location = location
        if glob.has_magic(path):
            parts: list[str] = []
            for part in path.split("/"):
                if glob.has_magic(part):
                    break
                parts.append(part)
            self._base, self._pattern = "/".join(parts), path
        else:
            self._base, self._pattern = path.rstrip("/"), None

    def walk(self) -> Iterator[ListedFile]:
        try:
            details = retrying(f"list {self._location}", self._details)
        except OSError as error:
            raise InputError(f"{self._location}: cannot be listed ({error})") from error
        if not details:
            raise InputError(f"{self._location}: expected files, found nothing there")
        listed = []
        for path, info in details.items():
            relative = path[len(self._base) :].lstrip("/") or path.rsplit("/", 1)[-1]
            if info["type"] == "file" and not any(part.startswith(".") for part in relative.split("/")):
                size, version = self._fingerprint(info)
                raw = path[len(self._base) :].lstrip("/")
                listed.append(ListedFile(path=printable(os.fsencode(relative)), raw=raw, size=size, version=version))
        yield from sorted(listed, key=lambda each: each.order)

    def _details(self) -> dict[str, Any]:
        if self._pattern is not None:
            return dict(self._fs.glob(self._pattern, detail=True))
        found = self._fs.find(self._base, detail=True)
        if isinstance(found, dict):
            return found
        return {self._base: self._fs.info(self._base)}  # adlfs, of a single file

    @staticmethod
    def _fingerprint(info: dict[str, Any]) -> tuple[int, str]:
        names = ("ETag", "etag", "md5Hash", "blob_id", "created")
        version = next((info[name] for name in names if info.get(name)), "")
        if isinstance(version, datetime.datetime):  # some stores give it as a number when they list
            version = version.timestamp()
        return int(info["size"]), str(version).strip('"')

    def _path(self, raw: str) -> str:
        return f"{self._base}/{raw}" if raw else self._base

    def stat(self, raw: str) -> tuple[int, str] | None:
        try:
            return self._fingerprint(retrying(f"look at {self._where(raw)}", lambda: self._fs.info(self._path(raw))))
        except FileNotFoundError:
            return None

    def _where(self, raw: str) -> str:
        return f"{self._location} {raw}".rstrip()

    def open(self, raw: str) -> BinaryIO:
        found = self.stat(raw)
        if found is None:
            raise FileNotFoundError(f"{self._where(raw)} is missing")
        return io.BufferedReader(_RangedFile(self, raw, found[0]), buffer_size=READ_AHEAD_BYTES)

    def read_range(self, raw: str, offset: int, size: int) -> bytes:
        path = self._path(raw)
        return retrying(f"read {self._where(raw)}", lambda: ranged_read(self._fs, path, offset, size))


class _RangedFile(io.RawIOBase):
    """A remote file by ranged reads, each of them repeated until it is answered."""

    def __init__(self, root: _RemoteRoot, raw: str, size: int) -> None:
        self._root, self._raw, self._size, self._position = root, raw, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(base + offset, 0)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), self._size - self._position)
        if size <= 0:
            return 0
        data = self._root.read_range(self._raw, self._position, size)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
