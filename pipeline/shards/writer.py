"""One attempt at a unit: samples and failures in; a shard, an index and a failure file out, hashed as they are written.

Files are written under plain names in the attempt's scratch folder, synced, and then published under names that end in
the first eight hex digits of their sha256. So an attempt that dies leaves nothing that looks like a result, a second
one with the same bytes meets the same names, and different bytes never share one.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import io
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

import pyarrow as pa
import pyarrow.parquet as pq

from ..format.records import FileRecord
from ..format.schema import (
    FAILURES_SCHEMA,
    MASKS_SCHEMA,
    SAMPLES_SCHEMA,
    FailureRow,
    MemberLocation,
    Sample,
    mask_rows,
    sample_row,
    sample_to_json,
    sha256_of,
)
from ..storage.base import Writer
from ..storage.local import explained, sync_file
from .tar import TarWriter

HASH_DIGITS: Final = 8
"""Hex digits of a file's sha256 at the end of its name."""
ROW_GROUP_ROWS: Final = 65_536


@dataclass(frozen=True, kw_only=True)
class OutputFile:
    """A file that an attempt made."""

    path: Path
    name: str
    """Its final name under the output root."""
    size: int
    sha256: str

    def record(self) -> FileRecord:
        return {"name": self.name, "size": self.size, "sha256": self.sha256}


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What one attempt at a unit made; None where there was nothing to write."""

    shard: OutputFile | None
    samples_index: OutputFile | None
    masks_index: OutputFile | None
    failures: OutputFile | None
    samples: int
    masks: int
    reasons: dict[str, int]

    def files(self) -> list[OutputFile]:
        every = (self.shard, self.samples_index, self.masks_index, self.failures)
        return [each for each in every if each is not None]

    def publish(self, storage: Writer) -> None:
        """Moves every file to its final name."""
        for each in self.files():
            storage.publish(each.path, each.name)


def warm_up() -> None:
    """Pays for pyarrow's late imports before the first unit's clock runs."""
    parquet_bytes(pa.Table.from_pylist([], schema=SAMPLES_SCHEMA))


def parquet_bytes(table: pa.Table) -> bytes:
    """Equal bytes for equal tables (and an equal pyarrow): zstd, fixed row groups, no time or writer's name of ours."""
    sink = io.BytesIO()
    pq.write_table(table, sink, **PARQUET_OPTIONS, row_group_size=ROW_GROUP_ROWS)
    return sink.getvalue()


PARQUET_OPTIONS: Final[dict[str, Any]] = {
    "compression": "zstd",
    "compression_level": 3,
    "use_dictionary": True,
    "write_statistics": True,
    "version": "2.6",
    "data_page_version": "1.0",
}


class ShardWriter:
    """Writes one attempt at one unit.

    Args:
        storage: of the output; only its scratch folder is touched before `Outputs.publish`.
        unit: the unit's number.
        attempt: a name that no other attempt has.

    Use as a context manager: leaving it removes the scratch folder.
    """

    def __init__(self, storage: Writer, *, unit: int, attempt: str) -> None:
        self._unit = unit
        self._folder = storage.scratch(f"{unit:08d}.{attempt}")
        self._stream: BinaryIO | None = None
        self._tar: TarWriter | None = None
        self._rows: list[dict[str, Any]] = []
        self._masks: list[pa.RecordBatch] = []
        self._failures: list[FailureRow] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            with contextlib.suppress(OSError):  # what is still buffered is not wanted any more
                self._stream.close()
        shutil.rmtree(self._folder, ignore_errors=True)  # what is left of it goes at the next start

    @property
    def samples(self) -> int:
        return len(self._rows)

    @property
    def masks(self) -> int:
        return sum(batch.num_rows for batch in self._masks)

    @property
    def failed(self) -> int:
        return len(self._failures)

    def add(self, sample: Sample, image: bytes | None) -> None:
        """Appends a sample: `KEY.EXT` (unless `image` is None), then `KEY.json`.

        Raises:
            StorageError: the disk is full, for example.
        """
        record = sample_to_json(sample)
        with explained("write", self._folder / "shard.tar"):
            if self._tar is None:
                self._stream = (self._folder / "shard.tar").open("xb", buffering=1 << 20)
                self._tar = TarWriter(self._stream)
            image_offset = None
            if image is not None:
                assert sample.file_name is not None
                image_offset = self._tar.add(sample.file_name, image)
            json_offset = self._tar.add(f"{sample.key}.json", record)
        location = MemberLocation(
            shard="",  # its name holds its hash, which is known at the end
            image_offset=image_offset,
            image_size=None if image is None else len(image),
            json_offset=json_offset,
            json_size=len(record),
            json_sha256=sha256_of(record),
        )
        self._rows.append(sample_row(sample, location))
        self._masks.append(pa.RecordBatch.from_pylist(mask_rows(sample), schema=MASKS_SCHEMA))

    def fail(self, row: FailureRow) -> None:
        """Records an input sample that is in no shard."""
        self._failures.append(row)

    def finish(self) -> Outputs:
        """Ends the shard, writes index and failures, syncs everything.

        Raises:
            StorageError: the disk is full, for example.
        """
        shard = self._finish_shard()
        samples_index = masks_index = failures = None
        if shard is not None:
            rows = [{**row, "shard": shard.name} for row in self._rows]
            samples_index = self._parquet("index", "samples-", pa.Table.from_pylist(rows, schema=SAMPLES_SCHEMA))
            masks_index = self._parquet("index", "masks-", pa.Table.from_batches(self._masks, schema=MASKS_SCHEMA))
        if self._failures:
            rows = [vars(row) for row in self._failures]
            failures = self._parquet("failures", "", pa.Table.from_pylist(rows, schema=FAILURES_SCHEMA))
        return Outputs(
            shard=shard,
            samples_index=samples_index,
            masks_index=masks_index,
            failures=failures,
            samples=len(self._rows),
            masks=self.masks,
            reasons=dict(sorted(collections.Counter(row.reason for row in self._failures).items())),
        )

    def _finish_shard(self) -> OutputFile | None:
        if self._tar is None:
            return None
        assert self._stream is not None
        path = self._folder / "shard.tar"
        with explained("write", path):
            sha256 = self._tar.finish()
            sync_file(self._stream.fileno())
            self._stream.close()
        name = f"shards/{self._unit:08d}-{sha256[:HASH_DIGITS]}.tar"
        return OutputFile(path=path, name=name, size=self._tar.size, sha256=sha256)

    def _parquet(self, folder: str, prefix: str, table: pa.Table) -> OutputFile:
        data = parquet_bytes(table)
        sha256 = hashlib.sha256(data).hexdigest()
        path = self._folder / f"{folder}-{prefix}.parquet"
        with explained("write", path), path.open("xb") as stream:
            stream.write(data)
            stream.flush()
            sync_file(stream.fileno())
        name = f"{folder}/{prefix}{self._unit:08d}-{sha256[:HASH_DIGITS]}.parquet"
        return OutputFile(path=path, name=name, size=len(data), sha256=sha256)
