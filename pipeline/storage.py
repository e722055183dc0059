"""Where runs and sources lie: local folders and object stores behind one small interface.

Names are POSIX paths relative to a root. What the commit protocol needs of a store is `write_new` (the first
complete write wins) and `put_atomic` (readers see the old or the new bytes, never a mix). Locally these are a hard
link and a rename of a synced file; on object stores a put with `If-None-Match: *` (fsspec's `mode="create"`) and a
plain put. Locations come from the command line, so schemes are an allow-list, and chains (`::`) and pipes are refused.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from .errors import GrainmillError, InputError

SCHEMES: Final = ("file", "s3", "gs", "gcs", "az", "abfs", "hf")
"""Schemes that `open_storage` accepts; `memory` joins them in tests."""
TEST_SCHEMES: Final = ("memory",)
SCRATCH: Final = "tmp"
"""Folder under the root for files that are not yet whole; nothing in it is ever read as a result."""


class StorageError(GrainmillError):
    """Reading or writing failed: a full disk, missing rights, a lost connection."""


class Storage(Protocol):
    """A root with named files."""

    location: str
    """As given by the user, without credentials; for messages."""

    def read_bytes(self, name: str) -> bytes: ...

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`; StorageError if the file is shorter."""
        ...

    def exists(self, name: str) -> bool: ...

    def size(self, name: str) -> int | None:
        """In bytes; None if there is no such file."""
        ...

    def modified(self, name: str) -> datetime.datetime | None:
        """When a file was written, with a time zone; None if the store does not say."""
        ...

    def list(self, folder: str) -> list[str]:
        """Names (without the folder) of the files directly in it, ascending; empty if there is no such folder."""
        ...

    def write_new(self, name: str, data: bytes) -> bool:
        """Creates a file that appears complete or not at all; False if the name was taken (the first wins)."""
        ...

    def put_atomic(self, name: str, data: bytes) -> None:
        """Creates or replaces a file; readers see the old or the new bytes."""
        ...

    def publish(self, path: Path, name: str) -> None:
        """Moves a complete, synced file from `scratch` to its final name; a file of that name is replaced."""
        ...

    def upload(self, path: Path, name: str) -> None:
        """Copies a local file to a name; readers see it whole, and until then what was there."""
        ...

    def remove(self, name: str) -> None:
        """Removes a file; no error if it is gone already."""
        ...

    def scratch(self, name: str) -> Path:
        """A new local folder for files on their way to `publish`."""
        ...

    def clean_scratch(self) -> None:
        """Removes what earlier attempts left in their scratch folders."""
        ...


def open_storage(location: str | os.PathLike[str], *, create: bool = False) -> Storage:
    """Opens a folder or a URL of an allowed scheme.

    Args:
        location: a path, or `SCHEME://…` with a scheme of `SCHEMES`.
        create: make the folder if it is missing (object stores have none to make).

    Raises:
        InputError: a scheme that is not allowed, a chain or a pipe, credentials in the URL, a missing folder.
        StorageError: the folder cannot be made.
    """
    text = os.fspath(location)
    scheme = scheme_of(text)
    if scheme is None or scheme == "file":
        path = Path(text if scheme is None else urlsplit(text).path)
        return LocalStorage(path, create=create)
    return FsspecStorage(text)


def scheme_of(location: str) -> str | None:
    """The scheme of a URL, None for a path.

    Raises:
        InputError: a scheme that is not allowed, a chain, a pipe, or credentials in the URL.
    """
    if location.startswith("pipe:") or "::" in location:
        raise InputError(f"{location!r}: pipes and chained URLs are refused; give one path or one URL")
    if "://" not in location:
        return None
    parts = urlsplit(location)
    if parts.scheme not in SCHEMES + TEST_SCHEMES:
        raise InputError(f"{parts.scheme}://: scheme not allowed; use a path or one of {', '.join(SCHEMES)}")
    if parts.username or parts.password or parts.query:
        raise InputError(
            f"{parts.scheme}://{parts.hostname or ''}: user, password or query in a URL would end in plans and logs; "
            "give credentials by the store's own environment variables or configuration files"
        )
    return parts.scheme


# ---------------------------------------------------------------------------------------------------------------------
# Local folders


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

    def path(self, name: str) -> Path:
        """The file's path; names that leave the root are refused."""
        if name.startswith("/") or ".." in name.split("/"):
            raise InputError(f"{name!r}: expected a name inside {self.root}")
        return self.root / name

    def read_bytes(self, name: str) -> bytes:
        with explained("read", self.path(name)):
            return self.path(name).read_bytes()

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        path = self.path(name)
        with explained("read", path):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                data = os.pread(descriptor, size, offset)
                while len(data) < size:
                    more = os.pread(descriptor, size - len(data), offset + len(data))
                    if not more:
                        break
                    data += more
            finally:
                os.close(descriptor)
        if len(data) != size:
            raise StorageError(f"{path}: expected {size} bytes at offset {offset}, found {len(data)}; the file is cut")
        return data

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
        path = self.path(name)
        with explained("write", path), self._complete_file(data) as temporary:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(temporary, path)
            sync_directory(path.parent)

    @contextlib.contextmanager
    def _complete_file(self, data: bytes) -> Iterator[Path]:
        folder = self.root / SCRATCH
        folder.mkdir(exist_ok=True)
        temporary = folder / f"put.{secrets.token_hex(8)}"
        try:
            with temporary.open("xb") as stream:
                stream.write(data)
                sync_file(stream.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def publish(self, path: Path, name: str) -> None:
        final = self.path(name)
        with explained("write", final):
            final.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, final)
            sync_directory(final.parent)

    def upload(self, path: Path, name: str) -> None:
        final, folder = self.path(name), self.root / SCRATCH
        with explained("write", final):
            folder.mkdir(exist_ok=True)
            temporary = folder / f"put.{secrets.token_hex(8)}"
            try:
                shutil.copyfile(path, temporary)
                with temporary.open("rb") as stream:
                    sync_file(stream.fileno())
                final.parent.mkdir(parents=True, exist_ok=True)
                os.replace(temporary, final)
            finally:
                temporary.unlink(missing_ok=True)
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
            shutil.rmtree(folder)


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


# ---------------------------------------------------------------------------------------------------------------------
# Object stores


class FsspecStorage:
    """A prefix of an object store, by fsspec. Stores without conditional puts are refused at the first commit."""

    def __init__(self, url: str) -> None:
        import fsspec

        self.location = url.rstrip("/")
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.location, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise InputError(f"{url}: no driver for this scheme ({error}); install the extra that brings it") from error

    def _name(self, name: str) -> str:
        if name.startswith("/") or ".." in name.split("/"):
            raise InputError(f"{name!r}: expected a name inside {self.location}")
        return f"{self._root}/{name}"

    def read_bytes(self, name: str) -> bytes:
        with explained("read", f"{self.location}/{name}"):
            return bytes(self._fs.cat_file(self._name(name)))

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        with explained("read", f"{self.location}/{name}"):
            data = bytes(self._fs.cat_file(self._name(name), start=offset, end=offset + size))
        if len(data) != size:
            raise StorageError(f"{self.location}/{name}: expected {size} bytes at offset {offset}, found {len(data)}")
        return data

    def exists(self, name: str) -> bool:
        return bool(self._fs.isfile(self._name(name)))

    def size(self, name: str) -> int | None:
        try:
            return int(self._fs.info(self._name(name))["size"])
        except FileNotFoundError:
            return None

    def modified(self, name: str) -> datetime.datetime | None:
        try:
            with explained("read", f"{self.location}/{name}"):
                found = self._fs.modified(self._name(name))
        except NotImplementedError:
            return None
        return found if found.tzinfo is not None else found.replace(tzinfo=datetime.UTC)

    def list(self, folder: str) -> list[str]:
        with explained("list", f"{self.location}/{folder}"):
            try:
                entries: list[dict[str, Any]] = self._fs.ls(self._name(folder), detail=True)
            except FileNotFoundError:
                return []
        return sorted(entry["name"].rsplit("/", 1)[-1] for entry in entries if entry["type"] == "file")

    def write_new(self, name: str, data: bytes) -> bool:
        try:
            with explained("write", f"{self.location}/{name}"):
                self._fs.pipe_file(self._name(name), data, mode="create")
        except StorageError as error:
            if isinstance(error.__cause__, FileExistsError):
                return False
            if self.exists(name) and self.read_bytes(name) == data:  # the answer was lost, not the write
                return True
            raise
        return True

    def put_atomic(self, name: str, data: bytes) -> None:
        with explained("write", f"{self.location}/{name}"):
            self._fs.pipe_file(self._name(name), data)

    def publish(self, path: Path, name: str) -> None:
        with explained("write", f"{self.location}/{name}"):
            self._fs.put_file(str(path), self._name(name))
        path.unlink()

    def upload(self, path: Path, name: str) -> None:
        with explained("write", f"{self.location}/{name}"):
            self._fs.put_file(str(path), self._name(name))

    def remove(self, name: str) -> None:
        with explained("remove", f"{self.location}/{name}"), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._name(name))

    def scratch(self, name: str) -> Path:
        with explained("create", tempfile.gettempdir()):
            return Path(tempfile.mkdtemp(prefix=f"grainmill-{name}."))

    def clean_scratch(self) -> None:
        """Nothing to do: scratch folders lie on the machines that made them and are removed with each attempt."""
