"""Object stores, by fsspec. S3 is tested, and reading from the Hugging Face Hub. GCS and Azure are tested with their
real clients against emulators, where these are installed.

`write_new` is a put with `If-None-Match: *` (`ifGenerationMatch=0` on Google's): fsspec's `mode="create"`.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import mimetypes
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar, cast

from ..errors import InputError
from .base import SCRATCH, FileStat, StorageError, Writer, checked_name, scheme_of
from .local import explained
from .retry import retrying

READ_TIMEOUT_S: Final = 60
CONNECT_TIMEOUT_S: Final = 10
PART_BYTES: Final = 64 * 2**20
"""Of a multipart upload; files below twice this size go up in one request."""
PARTS_AT_ONCE: Final = 10
MOST_PARTS: Final = 10_000
"""S3's own limit."""
READ_AHEAD_BYTES: Final = 2**20
"""Of a file that is read as a stream: one request for many headers or rows."""
MANY: Final = 128
"""Small files read at once."""
DRIVERS: Final = {
    "s3": "grainmill[s3]", "hf": "grainmill[hub]", "gs": "grainmill[gcs]", "gcs": "grainmill[gcs]",
    "az": "grainmill[azure]", "abfs": "grainmill[azure]",
}  # fmt: skip
"""What to install for a scheme."""
_VERSIONS: Final = ("ETag", "etag", "md5Hash", "blob_id", "created")
"""Where the drivers say what changes with a file's content."""

_Value = TypeVar("_Value")


class ObjectStorage:
    """A prefix of an object store.

    Every request is repeated with back-off until it is answered (`retry`). What is on its way up lies in a local
    temporary folder: the files of one unit for each worker, and at the end the merged index for the driver.

    Args:
        url: of the prefix.
        conditional_puts: whether the store honours puts that must not replace anything. Without them `write_new`
            looks first and then puts, which is safe for one writer only.

    Raises:
        InputError: a scheme that is not allowed, or its driver is not installed.
    """

    def __init__(self, url: str, *, conditional_puts: bool = True) -> None:
        self.location = url if url.endswith("://") else url.rstrip("/")
        self.conditional_puts = conditional_puts
        self.part_bytes = PART_BYTES
        self._fs, path = _file_system(self.location)
        self.prefix = path.rstrip("/")
        """Bucket or container, and the path in it."""

    def _path(self, name: str) -> str:
        return "/".join(filter(None, (self.prefix, checked_name(name, self.location))))

    def _where(self, name: str) -> str:
        return f"{self.location}/{name}".rstrip("/")

    def _missing(self, name: str) -> StorageError:
        return StorageError(f"cannot read {self._where(name)}: it is missing")

    def read_bytes(self, name: str) -> bytes:
        found = self._bytes_or_none(name)
        if found is None:
            raise self._missing(name)
        return found

    def read_many(self, names: Sequence[str]) -> Iterator[tuple[str, bytes | None]]:
        with ThreadPoolExecutor(MANY, thread_name_prefix="grainmill-read") as readers:
            for first in range(0, len(names), MANY):
                some = names[first : first + MANY]
                yield from zip(some, readers.map(self._bytes_or_none, some), strict=True)

    def _bytes_or_none(self, name: str) -> bytes | None:
        path = self._path(name)
        try:
            return retrying(f"read {self._where(name)}", lambda: bytes(self._fs.cat_file(path)))
        except FileNotFoundError:
            return None

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        try:
            if size == 0 and not self.exists(name):
                raise FileNotFoundError(name)
            data = self.read_at(name, offset, size)
        except FileNotFoundError as error:
            raise self._missing(name) from error
        if len(data) != size:
            raise StorageError(f"{self._where(name)}: expected {size} bytes at offset {offset}, found {len(data)}")
        return data

    def read_at(self, name: str, offset: int, size: int) -> bytes:
        path = self._path(name)
        if size == 0:  # adlfs fails there
            return b""
        # Generic fsspec drivers read on beyond what was asked for; the Hub's is one of them.
        options = {"cache_type": "none"} if self._fs.protocol == "hf" else {}
        return retrying(
            f"read {self._where(name)}",
            lambda: bytes(self._fs.cat_file(path, start=offset, end=offset + size, **options)),
        )

    def open(self, name: str) -> BinaryIO:
        size = self.size(name)
        if size is None:
            raise FileNotFoundError(f"{self._where(name)} is missing")
        return io.BufferedReader(_RangedFile(self, name, size), buffer_size=READ_AHEAD_BYTES)

    def stat(self, name: str) -> FileStat | None:
        path = self._path(name)
        try:
            info: dict[str, Any] = retrying(f"look at {self._where(name)}", lambda: self._fs.info(path))
        except FileNotFoundError:
            return None
        return _file_stat(info) if info["type"] == "file" else None

    def exists(self, name: str) -> bool:
        return self.stat(name) is not None

    def size(self, name: str) -> int | None:
        found = self.stat(name)
        return None if found is None else found.size

    def holds_anything(self) -> bool:
        """Whether the prefix is a file's name, or that of something with files."""
        return bool(retrying(f"look at {self.location}", lambda: self._fs.exists(self.prefix)))

    def files(self, pattern: str | None = None, *, depth: int | None = None) -> dict[str, FileStat]:
        """Every file by its name; of a prefix that is a file itself, that one by the empty name.

        Args:
            pattern: of names, with `*`, `**`, `?` and `[`; None for all.
            depth: folders that a name may lie in, and one more; None for any number.

        Raises:
            FileNotFoundError: of some stores, where there is nothing.
        """

        def listed() -> dict[str, dict[str, Any]]:
            if pattern is not None:
                return dict(self._fs.glob(self._path(pattern), detail=True))
            found = self._fs.find(self.prefix, detail=True, **({} if depth is None else {"maxdepth": depth}))
            return found if isinstance(found, dict) else {self.prefix: self._fs.info(self.prefix)}  # adlfs, of a file

        found = retrying(f"list {self.location}", listed)
        return {
            path[len(self.prefix) :].lstrip("/"): _file_stat(info)
            for path, info in found.items()
            if info["type"] == "file"
        }

    def modified(self, name: str) -> datetime.datetime | None:
        path = self._path(name)
        try:
            found: datetime.datetime = retrying(f"read {self._where(name)}", lambda: self._fs.modified(path))
        except FileNotFoundError as error:
            raise self._missing(name) from error
        except StorageError as error:
            if isinstance(error.__cause__, NotImplementedError):
                return None
            raise
        return found if found.tzinfo is not None else found.replace(tzinfo=datetime.UTC)

    def list(self, folder: str) -> list[str]:
        path = self._path(folder)
        try:
            entries: list[dict[str, Any]] = retrying(
                f"list {self._where(folder)}", lambda: self._fs.ls(path, detail=True)
            )
        except FileNotFoundError:
            return []
        return sorted(entry["name"].rsplit("/", 1)[-1] for entry in entries if entry["type"] == "file")

    def write_new(self, name: str, data: bytes) -> bool:
        path = self._path(name)
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
        path = self._path(name)
        self._write(name, lambda: self._fs.pipe_file(path, data))

    def publish(self, path: Path, name: str) -> None:
        self.upload(path, name)
        with explained("remove", path):
            path.unlink(missing_ok=True)

    def upload(self, path: Path, name: str) -> None:
        remote, size = self._path(name), path.stat().st_size
        if self._is_s3 and size >= 2 * self.part_bytes:
            self._upload_in_parts(path, name, size)
        else:
            options = {"chunksize": self.part_bytes} if self._is_s3 else {}
            self._write(name, lambda: self._fs.put_file(str(path), remote, **options))

    def _upload_in_parts(self, path: Path, name: str, size: int) -> None:
        """S3's multipart upload, so that a part that is lost is sent again alone."""
        bucket, _, key = self._path(name).partition("/")
        part_bytes = max(self.part_bytes, -(-size // MOST_PARTS))
        kind = mimetypes.guess_type(path)[0]

        def call(method: str, **options: object) -> dict[str, Any]:
            return self._write(name, lambda: self._fs.call_s3(method, Bucket=bucket, Key=key, **options))

        def send(number: int) -> dict[str, object]:
            with explained("read", path), path.open("rb") as stream:
                stream.seek(number * part_bytes)
                data = stream.read(part_bytes)
            answer = call("upload_part", UploadId=upload, PartNumber=number + 1, Body=data)
            return {"PartNumber": number + 1, "ETag": answer["ETag"]}

        upload = call("create_multipart_upload", **({} if kind is None else {"ContentType": kind}))["UploadId"]
        try:
            with ThreadPoolExecutor(PARTS_AT_ONCE, thread_name_prefix="grainmill-part") as senders:
                parts = list(senders.map(send, range(-(-size // part_bytes))))
            try:
                call("complete_multipart_upload", UploadId=upload, MultipartUpload={"Parts": parts})
            except StorageError as error:
                # No such upload: an earlier try completed it, and its answer was lost.
                if not isinstance(error.__cause__, FileNotFoundError) or self.size(name) != size:
                    raise
        except BaseException:
            with contextlib.suppress(Exception):  # the first error says more; `clean_scratch` ends what is left
                self._fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload)
            raise

    def _write(self, name: str, request: Callable[[], _Value]) -> _Value:
        """A missing file is no answer to a write: the bucket or container is missing."""
        try:
            return retrying(f"write {self._where(name)}", request)
        except FileNotFoundError as error:
            raise StorageError(f"cannot write {self._where(name)}: there is no such bucket or container") from error

    def remove(self, name: str) -> None:
        path = self._path(name)
        with contextlib.suppress(FileNotFoundError):
            retrying(f"remove {self._where(name)}", lambda: self._fs.rm_file(path))

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
        prefix = self.prefix.split("/", 1)[1] + "/" if "/" in self.prefix else ""
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
        return self.prefix.split("/", 1)[0]


class _RangedFile(io.RawIOBase):
    """A remote file by ranged reads."""

    def __init__(self, storage: ObjectStorage, name: str, size: int) -> None:
        self._storage, self._name, self._size, self._position = storage, name, size, 0

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
        data = self._storage.read_at(self._name, self._position, max(min(len(buffer), self._size - self._position), 0))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _file_stat(info: dict[str, Any]) -> FileStat:
    version = next((info[name] for name in _VERSIONS if info.get(name)), "")
    if isinstance(version, datetime.datetime):  # some stores give it as a number when they list
        version = version.timestamp()
    return FileStat(int(info["size"]), str(version).strip('"'))


def _file_system(url: str) -> tuple[Any, str]:
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
        options["config_kwargs"] = {
            "read_timeout": READ_TIMEOUT_S, "connect_timeout": CONNECT_TIMEOUT_S,
            "retries": {"total_max_attempts": 1, "mode": "standard"},  # `retrying` is the one that repeats
        }  # fmt: skip
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
        fs, path = cast("tuple[Any, str]", fsspec.core.url_to_fs(url, **options))
    except (ImportError, ValueError) as error:
        needed = DRIVERS.get(url.split("://")[0], "its fsspec driver")
        if scheme in ("az", "abfs"):
            needed += " and AZURE_STORAGE_ACCOUNT_NAME or AZURE_STORAGE_CONNECTION_STRING in the environment"
        raise InputError(f"{url}: cannot be opened ({error}); it needs {needed}") from error
    if scheme == "s3":
        fs.retries = 1  # s3fs repeats as well
    return fs, path


def offers_conditional_puts(storage: Writer) -> bool:
    """Whether two writers of one name cannot both succeed there; asks the store by trying it.

    A store may refuse such puts, or take them and ignore the condition: both mean no.

    Raises:
        StorageError: there is no such bucket, or no right to write there.
    """
    if not isinstance(storage, ObjectStorage):
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
