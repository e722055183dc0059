"""What all stores have in common: the calls that reading and writing need, names, locations, and one error.

Names are POSIX paths relative to a root; the empty name is the root itself, where that is a file. What the commit
protocol needs of a store is `write_new` (the first complete write wins) and `put_atomic` (readers see the old or the
new bytes, never a mix). Locations come from the command line, so schemes are an allow-list, and chains (`::`) and pipes
are refused.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, Protocol
from urllib.parse import urlsplit

from ..errors import GrainmillError, InputError

SCHEMES: Final = ("file", "s3", "gs", "gcs", "az", "abfs", "hf")
"""Schemes that `open_storage` accepts; `memory` joins them in tests."""
TEST_SCHEMES: Final = ("memory",)
SCRATCH: Final = "tmp"
"""Folder under the root for files that are not yet whole; nothing in it is ever read as a result."""


class StorageError(GrainmillError):
    """Reading or writing failed: a full disk, missing rights, a lost connection."""


class FileStat(NamedTuple):
    """What a store says of a file without reading it."""

    size: int
    """Bytes."""
    version: str
    """What changes when the content does: nanoseconds of the last change, or the store's ETag."""


class Reader(Protocol):
    """A root with named files, for reading.

    Unless a call says otherwise, it raises StorageError if the file is missing or cannot be read, and InputError for a
    name that leaves the root.
    """

    location: str
    """As given by the user, without credentials; for messages."""

    def read_bytes(self, name: str) -> bytes: ...

    def read_many(self, names: Sequence[str]) -> Iterator[tuple[str, bytes | None]]:
        """(name, bytes) of many small files in order, None for one that is missing; many at once where it pays."""
        ...

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`; StorageError also if the file is shorter."""
        ...

    def read_at(self, name: str, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`, fewer at the file's end.

        Raises:
            OSError: as the file system says; of an object store FileNotFoundError alone.
            StorageError: an object store did not answer, or gave no right.
        """
        ...

    def open(self, name: str) -> BinaryIO:
        """The file as a seekable stream; from an object store by ranged reads. Raises as `read_at`."""
        ...

    def stat(self, name: str) -> FileStat | None:
        """Size and version now; None if there is no such file."""
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


class Writer(Reader, Protocol):
    """A root with named files, for reading and writing. Every call raises StorageError where it fails."""

    @property
    def conditional_puts(self) -> bool:
        """Whether `write_new` holds for any number of writers; without, for a single one."""
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


def checked_name(name: str, location: str) -> str:
    """The name, if it stays inside the root.

    Raises:
        InputError: otherwise.
    """
    if name.startswith("/") or ".." in name.split("/"):
        raise InputError(f"{name!r}: expected a name inside {location}")
    return name
