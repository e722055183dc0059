"""A unit's samples, read by position as the plan says, ahead of need from remote sources."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, Self

import pyarrow as pa

from ..errors import FAILURE_REASONS, SampleFailureError
from ..format.schema import make_key, sha256_of
from .changes import gone, require_same
from .listing import READERS
from .parquet_rows import ParquetRows
from .shards import open_source
from .units import Entry, InputSample, SampleIdentity, SourceSpec, UnitSpec

MAX_SAMPLE_BYTES: Final = 2 * 2**30
"""A member or file larger than this is refused before it is read (`too_large`)."""


class UnitReader:
    """Reads a unit's samples by position, in any order; writes nothing.

    Args:
        unit: which samples.
        sources: of the run.
    """

    def __init__(self, unit: UnitSpec, sources: Sequence[SourceSpec]) -> None:
        self._unit, self._source = unit, sources[unit.source]
        self._root = open_source(self._source.location)
        self._parquet: dict[str, ParquetRows] = {}
        self._checked: set[str] = set()
        self._ahead: dict[int, Future[InputSample]] = {}
        self._readers: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._readers is not None:
            self._readers.shutdown(wait=True, cancel_futures=True)
            self._readers = None
        self._ahead.clear()
        for rows in self._parquet.values():
            rows.close()
        self._parquet.clear()

    def __len__(self) -> int:
        return len(self._unit.entries)

    def identity(self, position: int) -> SampleIdentity:
        """Of a sample that may not be readable: its key is made without the bytes' sha256."""
        return self._identity(self._unit.entries[position], sha256="")

    def prefetch(self, positions: Iterable[int], *, max_bytes: int) -> None:
        """Begins to read samples that `read` will be asked for, from a remote source; does nothing for a local one.

        Args:
            positions: in the order in which they will be read.
            max_bytes: of samples read ahead; one at least, whatever its size.
        """
        if "://" not in self._source.location:
            return
        planned = 0
        for position in positions:
            entry = self._unit.entries[position]
            planned += entry.size + entry.json_size
            if planned > max_bytes and self._ahead:
                return
            if position in self._ahead or entry.path.lower().endswith(".parquet"):
                continue  # rows of a table come one after the other, from one reader
            if self._readers is None:
                self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="grainmill-read")
            self._ahead[position] = self._readers.submit(self._read, position)

    def read(self, position: int) -> InputSample:
        """Reads one sample, or takes it from what was read ahead.

        Raises:
            SampleFailureError: it cannot be read, or is planned as a failure.
            InputError: the file is not the one that was planned.
        """
        ahead = self._ahead.pop(position, None)
        return self._read(position) if ahead is None else ahead.result()

    def _read(self, position: int) -> InputSample:
        entry = self._unit.entries[position]
        if entry.reason is not None:
            assert entry.reason in FAILURE_REASONS
            raise SampleFailureError(entry.reason, "read", entry.message or entry.reason)
        if max(entry.size, entry.json_size) > MAX_SAMPLE_BYTES:
            raise SampleFailureError(
                "too_large", "read", f"{max(entry.size, entry.json_size)} bytes of {MAX_SAMPLE_BYTES}"
            )
        self._require_planned(entry)
        try:
            image = self._image(entry)
            annotation = self._annotation(entry)
        except (OSError, pa.ArrowException) as error:
            raise SampleFailureError("unreadable", "read", f"{entry.path}: {error}") from error
        sha256 = sha256_of(image)
        identity = self._identity(entry, sha256=sha256)
        return InputSample(
            key=identity.key,
            source_uri=identity.source_uri,
            member=identity.member,
            sha256=sha256,
            license=self._source.license,
            image=image,
            annotation_json=annotation,
        )

    def _identity(self, entry: Entry, *, sha256: str) -> SampleIdentity:
        label = self._source.label
        key = make_key(
            label=label, relative_path=entry.path, member=entry.member, occurrence=entry.occurrence, sha256=sha256
        )
        return SampleIdentity(key=key, source_uri=f"{label}/{entry.path}", member=entry.member)

    def _require_planned(self, entry: Entry) -> None:
        if entry.path not in self._checked:
            found = self._root.reader.stat(entry.raw)
            if found is None:
                raise gone(self._source, entry.path)
            require_same(self._root, self._source, entry, found)
            self._checked.add(entry.path)

    def _image(self, entry: Entry) -> bytes:
        if entry.path.lower().endswith(".parquet"):
            if entry.path not in self._parquet:
                self._parquet[entry.path] = ParquetRows(self._root.reader.open(entry.raw), self._source.image_column)
            assert entry.offset is not None
            return self._parquet[entry.path].image(entry.offset)
        return self._range(entry.raw, entry.offset or 0, entry.size)

    def _annotation(self, entry: Entry) -> bytes | None:
        if entry.json_offset is not None:
            return self._range(entry.raw, entry.json_offset, entry.json_size)
        if entry.json_raw is not None:
            return self._range(entry.json_raw, 0, entry.json_size)
        return None

    def _range(self, raw: str, offset: int, size: int) -> bytes:
        data = self._root.reader.read_at(raw, offset, size) if size else b""
        if len(data) != size:
            raise SampleFailureError("truncated", "read", f"{len(data)} of {size} bytes at offset {offset}")
        return data
