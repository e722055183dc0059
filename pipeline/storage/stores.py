"""Where runs and sources lie: local folders and object stores behind one small interface.

Names are POSIX paths relative to a root. What the commit protocol needs of a store is `write_new` (the first
complete write wins) and `put_atomic` (readers see the old or the new bytes, never a mix). Locally these are a hard
link and a rename of a synced file; on object stores a put with `If-None-Match: *` (fsspec's `mode="create"`) and a
plain put. Locations come from the command line, so schemes are an allow-list, and chains (`::`) and pipes are refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import errno
import os
import random
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar, cast
from urllib.parse import urlsplit

from ..errors import GrainmillError, InputError

SCHEMES: Final = ("file", "s3", "gs", "gcs", "az", "abfs", "hf")
"""Schemes that `open_storage` accepts; `memory` joins them in tests."""
TEST_SCHEMES: Final = ("memory",)
SCRATCH: Final = "tmp"
"""Folder under the root for files that are not yet whole; nothing in it is ever read as a result."""
_IN_USE: Final = frozenset({errno.ENOENT, errno.ESTALE, errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY})
"""Answers to a removal that say that somebody else has just removed a file, made one, or (on NFS) has it open."""


class StorageError(GrainmillError):
    """Reading or writing failed: a full disk, missing rights, a lost connection."""


class Storage(Protocol):
    """A root with named files."""

    location: str
    """As given by the user, without credentials; for messages."""

    def read_bytes(self, name: str) -> bytes: ...

    def read_many(self, names: Sequence[str]) -> Iterator[tuple[str, bytes | None]]:
        """(name, bytes) of many small files in order, None for one that is missing; many at once where it pays."""
        ...

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


def open_storage(location: str | os.PathLike[str], *, create: bool = False, conditional_puts: bool = True) -> Storage:
    """Opens a folder or a URL of an allowed scheme.

    Args:
        location: a path, or `SCHEME://…` with a scheme of `SCHEMES`.
        create: make the folder if it is missing (object stores have none to make).
        conditional_puts: False for an object store that does not honour them; see `offers_conditional_puts`.

    Raises:
        InputError: a scheme that is not allowed, a chain or a pipe, credentials in the URL, a missing folder.
        StorageError: the folder cannot be made.
    """
    text = os.fspath(location)
    scheme = scheme_of(text)
    if scheme is None or scheme == "file":
        path = Path(text if scheme is None else urlsplit(text).path)
        return LocalStorage(path, create=create)
    return FsspecStorage(text, conditional_puts=conditional_puts)


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
            remove_tree(folder)


def remove_tree(folder: Path) -> None:
    """Removes a folder in which others may still work; links are removed, not followed. What is gone already is as it
    should be; what comes meanwhile stays, and so does the folder it is in.

    Raises:
        OSError: something may not be removed.
    """

    def go_on(_: object, __: object, found: Any) -> None:
        error = found[1] if isinstance(found, tuple) else found
        if error.errno not in _IN_USE:
            raise error

    handler: dict[str, Any] = {"onexc" if sys.version_info >= (3, 12) else "onerror": go_on}  # as each version calls it
    shutil.rmtree(folder, **handler)


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

ATTEMPTS: Final = 8
"""Of one request. With the waits below some half a minute, longer than a store's ordinary hiccup."""
FIRST_WAIT_S: Final = 0.1
LONGEST_WAIT_S: Final = 10.0
READ_TIMEOUT_S: Final = 60
CONNECT_TIMEOUT_S: Final = 10
PART_BYTES: Final = 64 * 2**20
"""Of a multipart upload; files below twice this size go up in one request."""
MANY: Final = 128
"""Small files read at once."""
_DEFINITIVE: Final = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
_TRANSPORTS: Final = (
    "aiohttp", "aiobotocore", "azure", "botocore", "fsspec", "gcsfs", "google", "httpcore", "httpcore2", "httpx",
    "httpx2", "huggingface_hub", "requests", "urllib3",
)  # fmt: skip
"""Packages whose exceptions mean that a request failed, though they are no OSError."""
DRIVERS: Final = {
    "s3": "grainmill[s3]",
    "hf": "grainmill[hub]",
    "gs": "grainmill[gcs]",
    "gcs": "grainmill[gcs]",
    "az": "grainmill[azure]",
    "abfs": "grainmill[azure]",
}
"""What to install for a scheme."""
_HOPELESS: Final = (
    "NoCredentialsError", "PartialCredentialsError", "NoRegionError", "ParamValidationError",
    "ClientAuthenticationError", "CredentialUnavailableError", "DefaultCredentialsError",
)  # fmt: skip
_PASSING: Final = (408, 409, 425, 429)
"""HTTP statuses below 500 that may be another at the next try."""

_Value = TypeVar("_Value")


def retrying(what: str, request: Callable[[], _Value], *, attempts: int = ATTEMPTS) -> _Value:
    """Repeats a request to a store until it is answered; waits twice as long each time, give or take a half.

    The random part keeps a thousand workers that failed together from coming back together.

    Args:
        what: action and place, for the message.
        request: may be done twice without harm.

    Raises:
        FileNotFoundError, FileExistsError: as the store says; these are answers.
        StorageError: no rights, or no answer after all attempts.
    """
    for attempt in range(attempts):
        try:
            return request()
        except (FileNotFoundError, FileExistsError):
            raise
        except _DEFINITIVE as error:
            raise StorageError(f"cannot {what}: {error}") from error
        except Exception as error:
            status = _status(error)
            if status == 404:
                raise FileNotFoundError(_first_line(error)) from error
            if status in (401, 403):
                raise StorageError(f"cannot {what}: {_first_line(error)}") from PermissionError(_first_line(error))
            if not _is_transient(error):
                raise StorageError(f"cannot {what}: {type(error).__name__}: {_first_line(error)}") from error
            if attempt == attempts - 1:
                raise StorageError(
                    f"cannot {what}: {attempts} attempts failed, "
                    f"the last with {type(error).__name__}: {_first_line(error)}; "
                    "run the same command again when the store answers"
                ) from error
            wait_s = min(FIRST_WAIT_S * 2**attempt, LONGEST_WAIT_S)
            time.sleep(wait_s * random.uniform(0.5, 1.5))
    raise AssertionError("unreachable")


def _status(error: Exception) -> int | None:
    """The HTTP status that a store answered with, as its client tells it; None if it tells none."""
    if str(error).startswith("Forbidden: "):  # gcsfs makes a bare OSError of a 403
        return 403
    answer = getattr(error, "response", None)  # the Hub's client
    found = getattr(error, "status_code", None) or getattr(error, "code", None) or getattr(answer, "status_code", None)
    return int(found) if isinstance(found, int | str) and str(found).isdecimal() else None


def _first_line(error: Exception) -> str:
    """Azure's messages go on with the whole answer."""
    return (str(error).splitlines() or [""])[0]


def _is_transient(error: Exception) -> bool:
    if type(error).__name__ in _HOPELESS:
        return False
    status = _status(error)
    if status is not None and 400 <= status < 500 and status not in _PASSING:
        return False
    package = type(error).__module__.split(".")[0]
    return isinstance(error, OSError | EOFError | TimeoutError | asyncio.TimeoutError) or package in _TRANSPORTS


def remote_file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL and the path in it. Listings are never cached: others write there as well.

    `hf://OWNER/NAME` is the dataset of that name, as for `release --push`; `hf://datasets/OWNER/NAME` says the same.
    The Hub's client keeps listings for as long as it lives, so each call makes a new one.

    Raises:
        InputError: the driver of this scheme is not installed.
    """
    import fsspec

    scheme = scheme_of(url)
    options: dict[str, Any] = {"use_listings_cache": False}
    if scheme == "s3":
        options["config_kwargs"] = {"read_timeout": READ_TIMEOUT_S, "connect_timeout": CONNECT_TIMEOUT_S}
    if scheme in ("az", "abfs"):
        options |= {"read_timeout": READ_TIMEOUT_S, "connection_timeout": CONNECT_TIMEOUT_S}
    if scheme in ("gs", "gcs"):
        # Otherwise gcsfs asks by gRPC, before each request, what kind of bucket it is until somebody answers.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    if url.startswith("hf://"):
        options["skip_instance_cache"] = True
        if not url.startswith("hf://datasets/"):
            url = f"hf://datasets/{url.removeprefix('hf://')}"
    try:
        return cast("tuple[Any, str]", fsspec.core.url_to_fs(url, **options))
    except (ImportError, ValueError) as error:
        needed = DRIVERS.get(url.split("://")[0], "its fsspec driver")
        if scheme in ("az", "abfs"):
            needed += " and AZURE_STORAGE_ACCOUNT_NAME or AZURE_STORAGE_CONNECTION_STRING in the environment"
        raise InputError(f"{url}: cannot be opened ({error}); it needs {needed}") from error


def ranged_read(fs: Any, path: str, offset: int, size: int) -> bytes:
    """`size` bytes of a remote file from `offset`, fewer at its end, by one request for just these."""
    # Generic fsspec drivers read on beyond what was asked for; the Hub's is one of them.
    options = {"cache_type": "none"} if fs.protocol == "hf" else {}
    return bytes(fs.cat_file(path, start=offset, end=offset + size, **options))


class FsspecStorage:
    """A prefix of an object store, by fsspec. S3 is tested, and reading from the Hugging Face Hub. GCS and Azure
    are tested with their real clients against emulators, where these are installed.

    Every request is repeated with back-off until it is answered. What is on its way up lies in a local temporary
    folder: the files of one unit for each worker, and at the end the merged index for the driver.

    Args:
        url: of the prefix.
        conditional_puts: whether the store honours puts that must not replace anything. Without them `write_new`
            looks first and then puts, which is safe for one writer only.
    """

    def __init__(self, url: str, *, conditional_puts: bool = True) -> None:
        self.location = url.rstrip("/")
        self.conditional_puts = conditional_puts
        self.part_bytes = PART_BYTES
        self._fs, self._root = remote_file_system(self.location)

    def _name(self, name: str) -> str:
        if name.startswith("/") or ".." in name.split("/"):
            raise InputError(f"{name!r}: expected a name inside {self.location}")
        return f"{self._root}/{name}"

    def _missing(self, name: str, error: FileNotFoundError) -> StorageError:
        found = StorageError(f"cannot read {self.location}/{name}: it is missing")
        found.__cause__ = error
        return found

    def read_bytes(self, name: str) -> bytes:
        path = self._name(name)
        try:
            return retrying(f"read {self.location}/{name}", lambda: bytes(self._fs.cat_file(path)))
        except FileNotFoundError as error:
            raise self._missing(name, error) from error

    def read_many(self, names: Sequence[str]) -> Iterator[tuple[str, bytes | None]]:
        for first in range(0, len(names), MANY):
            some = names[first : first + MANY]
            paths = [self._name(each) for each in some]
            found = retrying(
                f"read {len(some)} files of {self.location}",
                # `cat` would do, but adlfs reads one after another there.
                lambda paths=paths: self._fs.cat_ranges(paths, None, None, on_error="return"),  # type: ignore[misc]
            )
            for name, value in zip(some, found, strict=True):
                if isinstance(value, FileNotFoundError):
                    yield name, None
                else:
                    yield name, value if isinstance(value, bytes) else self.read_bytes(name)

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        path = self._name(name)
        if size == 0:  # adlfs fails there
            if not self.exists(name):
                raise self._missing(name, FileNotFoundError(name))
            return b""
        try:
            data = retrying(
                f"read {self.location}/{name}",
                lambda: ranged_read(self._fs, path, offset, size),
            )
        except FileNotFoundError as error:
            raise self._missing(name, error) from error
        if len(data) != size:
            raise StorageError(f"{self.location}/{name}: expected {size} bytes at offset {offset}, found {len(data)}")
        return data

    def exists(self, name: str) -> bool:
        return self.size(name) is not None

    def size(self, name: str) -> int | None:
        path = self._name(name)
        try:
            info = retrying(f"look at {self.location}/{name}", lambda: self._fs.info(path))
        except FileNotFoundError:
            return None
        return int(info["size"]) if info["type"] == "file" else None

    def modified(self, name: str) -> datetime.datetime | None:
        try:
            found = retrying(f"read {self.location}/{name}", lambda: self._fs.modified(self._name(name)))
        except FileNotFoundError as error:
            raise self._missing(name, error) from error
        except StorageError as error:
            if isinstance(error.__cause__, NotImplementedError):
                return None
            raise
        return found if found.tzinfo is not None else found.replace(tzinfo=datetime.UTC)

    def list(self, folder: str) -> list[str]:
        path = self._name(folder)
        try:
            entries: list[dict[str, Any]] = retrying(
                f"list {self.location}/{folder}", lambda: self._fs.ls(path, detail=True)
            )
        except FileNotFoundError:
            return []
        return sorted(entry["name"].rsplit("/", 1)[-1] for entry in entries if entry["type"] == "file")

    def write_new(self, name: str, data: bytes) -> bool:
        path = self._name(name)
        if not self.conditional_puts:
            if self.exists(name):
                return self.read_bytes(name) == data
            self.put_atomic(name, data)
            return True
        try:
            self._write(name, lambda: self._fs.pipe_file(path, data, mode="create"))
        except FileExistsError:
            # Taken by another, or by an earlier try of this very call whose answer was lost: the bytes tell.
            return self.read_bytes(name) == data
        return True

    def put_atomic(self, name: str, data: bytes) -> None:
        path = self._name(name)
        self._write(name, lambda: self._fs.pipe_file(path, data))

    def publish(self, path: Path, name: str) -> None:
        remote = self._name(name)
        options = {"chunksize": self.part_bytes} if self._is_s3 else {}
        self._write(name, lambda: self._fs.put_file(str(path), remote, **options))
        with explained("remove", path):
            path.unlink(missing_ok=True)

    def upload(self, path: Path, name: str) -> None:
        remote = self._name(name)
        self._write(name, lambda: self._fs.put_file(str(path), remote))

    def _write(self, name: str, request: Callable[[], object]) -> None:
        """A missing file is no answer to a write: the bucket or container is missing."""
        try:
            retrying(f"write {self.location}/{name}", request)
        except FileNotFoundError as error:
            raise StorageError(f"cannot write {self.location}/{name}: there is no such bucket or container") from error

    def remove(self, name: str) -> None:
        path = self._name(name)
        with contextlib.suppress(FileNotFoundError):
            retrying(f"remove {self.location}/{name}", lambda: self._fs.rm_file(path))

    def scratch(self, name: str) -> Path:
        with explained("create", tempfile.gettempdir()):
            return Path(tempfile.mkdtemp(prefix=f"grainmill-{name}."))

    def clean_scratch(self) -> None:
        """Ends multipart uploads that were never finished: they are invisible, and paid for.

        Scratch folders lie on the machines that made them and are removed with each attempt.
        """
        for key, upload in self.unfinished_uploads():
            with contextlib.suppress(FileNotFoundError):
                retrying(
                    f"end an upload to {self.location}",
                    lambda key=key, upload=upload: self._fs.call_s3(  # type: ignore[misc]
                        "abort_multipart_upload", Bucket=self._bucket, Key=key, UploadId=upload
                    ),
                )

    def unfinished_uploads(self) -> Sequence[tuple[str, str]]:
        """(key, upload) of multipart uploads under this prefix that are neither complete nor ended; S3 only."""
        if not self._is_s3:
            return []
        prefix = self._root.split("/", 1)[1] + "/" if "/" in self._root else ""
        found = retrying(
            f"list the uploads to {self.location}",
            lambda: self._fs.call_s3("list_multipart_uploads", Bucket=self._bucket, Prefix=prefix),
        )
        return [(each["Key"], each["UploadId"]) for each in found.get("Uploads", [])]

    @property
    def _is_s3(self) -> bool:
        return self.location.startswith("s3://")

    @property
    def _bucket(self) -> str:
        return str(self._root.split("/", 1)[0])


def offers_conditional_puts(storage: Storage) -> bool:
    """Whether two writers of one name cannot both succeed there; asks the store by trying it.

    A store may refuse such puts, or take them and ignore the condition: both mean no.

    Raises:
        StorageError: there is no such bucket, or no right to write there.
    """
    if not isinstance(storage, FsspecStorage):
        return True
    name = f"{SCRATCH}/probe-{secrets.token_hex(8)}"
    try:
        first, second = storage.write_new(name, b"first"), storage.write_new(name, b"second")
    except (StorageError, NotImplementedError, ValueError) as error:
        if isinstance(error.__cause__, FileNotFoundError | PermissionError):
            raise  # no bucket, no rights: nothing was learnt about its puts
        return False
    finally:
        storage.remove(name)
    return first and not second
