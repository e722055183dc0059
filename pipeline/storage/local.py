"""Local folders, and what every writer of local files needs: syncing, cleaning up, hashing, clear errors."""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from ..errors import InputError
from .base import SCRATCH, FileStat, StorageError, checked_name

_IN_USE: Final = frozenset({errno.ENOENT, errno.ESTALE, errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY})
"""Answers to a removal that say that somebody else has just removed a file, made one, or (on NFS) has it open."""


class LocalStorage:
    """A folder. Every write is synced, its directory entry too, before it is reported."""

    def __init__(self, root: Path, *, create: bool = False) -> None:
        self.root = root
        self.location = str(root)
        if create:
            with explained("create", root):
                root.mkdir(parents=True, exist_ok=True)
        if not root.is_dir():
            raise InputError(f"{root}: expected a directory, found {'a file' if root.exists() else 'nothing'}")

    @property
    def conditional_puts(self) -> bool:
        return True

    def path(self, name: str) -> Path:
        """The file's path; names that leave the root are refused."""
        return self.root / checked_name(name, self.location)

    def read_bytes(self, name: str) -> bytes:
        with explained("read", self.path(name)):
            return self.path(name).read_bytes()

    def read_many(self, names: Sequence[str]) -> Iterator[tuple[str, bytes | None]]:
        for name in names:
            try:
                yield name, self.path(name).read_bytes()
            except FileNotFoundError:
                yield name, None
            except OSError:
                yield name, self.read_bytes(name)  # says what is wrong

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        path = self.path(name)
        with explained("read", path):
            data = self.read_at(name, offset, size)
        if len(data) != size:
            raise StorageError(f"{path}: expected {size} bytes at offset {offset}, found {len(data)}; the file is cut")
        return data

    def read_at(self, name: str, offset: int, size: int) -> bytes:
        descriptor = os.open(self.path(name), os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.pread(descriptor, size, offset)
            while len(data) < size and (more := os.pread(descriptor, size - len(data), offset + len(data))):
                data += more
        finally:
            os.close(descriptor)
        return data

    def open(self, name: str) -> BinaryIO:
        return self.path(name).open("rb")

    def stat(self, name: str) -> FileStat | None:
        try:
            found = self.path(name).stat()
        except OSError:
            return None
        return FileStat(found.st_size, str(found.st_mtime_ns))

    def exists(self, name: str) -> bool:
        return self.path(name).is_file()

    def size(self, name: str) -> int | None:
        try:
            return self.path(name).stat().st_size
        except FileNotFoundError:
            return None

    def modified(self, name: str) -> datetime.datetime | None:
        with explained("read", self.path(name)):
            return datetime.datetime.fromtimestamp(self.path(name).stat().st_mtime, datetime.UTC)

    def list(self, folder: str) -> list[str]:
        with explained("list", self.path(folder)):
            try:
                with os.scandir(self.path(folder)) as entries:
                    return sorted(entry.name for entry in entries if entry.is_file(follow_symlinks=False))
            except FileNotFoundError:
                return []

    def write_new(self, name: str, data: bytes) -> bool:
        path = self.path(name)
        with explained("write", path), self._complete_file(data) as temporary:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            sync_directory(path.parent)
            return True

    def put_atomic(self, name: str, data: bytes) -> None:
        with explained("write", self.path(name)), self._complete_file(data) as temporary:
            self._settle(temporary, name)

    def publish(self, path: Path, name: str) -> None:
        with explained("write", self.path(name)):
            self._settle(path, name)

    def upload(self, path: Path, name: str) -> None:
        with explained("write", self.path(name)), self._complete_file(path) as temporary:
            self._settle(temporary, name)

    @contextlib.contextmanager
    def _complete_file(self, content: bytes | Path) -> Iterator[Path]:
        """A synced file in the scratch folder, with these bytes or those of another file; gone afterwards."""
        folder = self.root / SCRATCH
        folder.mkdir(exist_ok=True)
        temporary = folder / f"put.{secrets.token_hex(8)}"
        try:
            with temporary.open("xb") as stream:
                if isinstance(content, bytes):
                    stream.write(content)
                else:
                    shutil.copyfile(content, temporary)
                sync_file(stream.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def _settle(self, path: Path, name: str) -> None:
        final = self.path(name)
        final.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, final)
        sync_directory(final.parent)

    def remove(self, name: str) -> None:
        with explained("remove", self.path(name)):
            self.path(name).unlink(missing_ok=True)

    def scratch(self, name: str) -> Path:
        folder = self.path(f"{SCRATCH}/{name}")
        with explained("create", folder):
            folder.mkdir(parents=True)
        return folder

    def clean_scratch(self) -> None:
        folder = self.root / SCRATCH
        if folder.is_symlink() or not folder.is_dir():
            return
        with explained("remove", folder):
            remove_tree(folder)


def remove_tree(folder: Path) -> None:
    """Removes a folder in which others may still work; links are removed, not followed. What is gone already is as it
    should be; what comes meanwhile stays, and so does the folder it is in.

    Raises:
        OSError: something may not be removed.
    """

    def go_on(_: object, __: object, found: object) -> None:
        error = found[1] if isinstance(found, tuple) else found
        if isinstance(error, OSError) and error.errno not in _IN_USE:
            raise error

    if sys.version_info >= (3, 12):
        shutil.rmtree(folder, onexc=go_on)
    else:
        shutil.rmtree(folder, onerror=go_on)


def sync_file(descriptor: int) -> None:
    """Makes a file's bytes survive a power cut."""
    os.fsync(descriptor)


def sync_directory(path: Path) -> None:
    """Makes a directory's entries survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def explained(action: str, path: Path | str) -> Iterator[None]:
    """Turns an OSError into one message that names the path, the cause and the way out.

    Raises:
        StorageError: instead of any OSError inside.
    """
    try:
        yield
    except OSError as error:
        advice = {
            errno.ENOSPC: "the disk is full; free some space and run the same command again",
            errno.EDQUOT: "the quota is used up; free some space and run the same command again",
            errno.EFBIG: "the file would be larger than this file system or `ulimit -f` allows",
            errno.EROFS: "the file system is read-only; choose another --output",
            errno.EACCES: "no permission; choose another --output or change its rights",
            errno.EPERM: "not permitted here (a file system without hard links?); choose another --output",
            errno.ENOENT: "it is missing",
        }.get(error.errno or 0, os.strerror(error.errno) if error.errno else str(error))
        raise StorageError(f"cannot {action} {path}: {advice}") from error


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """sha256 of a file's bytes in hexadecimal digits, read in pieces.

    Raises:
        OSError: as the file system says.
    """
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
