"""Commit records: what decides that a unit is done, and by which files.

`commits/NNNNNNNN.json` is created so that the first wins. Past `COMPACT_AT` single records a driver merges them into
`commits/compact-KKKKKKKK.parquet`, created so that the first wins as well; a unit named by a compacted file of a lower
number keeps that record, whatever else may appear later. So a reader that takes compacted files in order, then single
records of the units that are left, always sees one record for each unit.
"""

from __future__ import annotations

import heapq
import io
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..errors import SchemaError
from ..format.records import (
    CommitRecord,
    FailureTableRecord,
    FileRecord,
    IndexRecord,
    PassedRecord,
    ShardRecord,
    TableRecord,
    read_record,
)
from ..format.schema import FORMAT, canonical_json, sealed
from ..storage.base import Reader, Writer
from ..storage.parquet import parquet_table
from .writer import PARQUET_OPTIONS, OutputFile, Outputs, parquet_bytes

FOLDER: Final = "commits"
COMPACT_AT: Final = 10_000
"""Single records at which a driver compacts; reading that many takes about half a second."""
COMPACT_ROWS: Final = 512
_SINGLE: Final = re.compile(r"(\d{8,})\.json")
_COMPACT: Final = re.compile(r"compact-(\d{8})\.parquet")

COMPACT_SCHEMA: Final = pa.schema(
    [
        pa.field("unit", pa.int64(), nullable=False),
        pa.field("samples", pa.int64(), nullable=False),
        pa.field("masks", pa.int64(), nullable=False),
        pa.field("failures", pa.int64(), nullable=False),
        pa.field("record", pa.binary(), nullable=False),
    ],
    metadata={"format": FORMAT, "table": "commits"},
)


@dataclass(frozen=True, kw_only=True)
class Commit:
    """One unit, done."""

    unit: int
    record: CommitRecord
    """As it stands in the file."""

    @property
    def shard(self) -> ShardRecord | None:
        return self.record["shard"]

    @property
    def samples(self) -> int:
        return 0 if self.shard is None else self.shard["samples"]

    @property
    def masks(self) -> int:
        return 0 if self.shard is None else self.shard["masks"]

    @property
    def reasons(self) -> dict[str, int]:
        """Failed samples by reason."""
        return {} if self.record["failures"] is None else self.record["failures"]["reasons"]

    @property
    def failures(self) -> int:
        return 0 if self.record["failures"] is None else self.record["failures"]["rows"]

    @property
    def passed_over(self) -> dict[str, PassedRecord]:
        """What mining saw and did not use (see `sources/passed_over.py`)."""
        return self.record.get("passed_over", {})

    @property
    def seconds(self) -> dict[str, float]:
        return self.record["seconds"]

    @property
    def device(self) -> str:
        """`cpu`, or the name of the GPU."""
        return str(self.record["environment"].get("device", "cpu"))

    def files(self) -> list[FileRecord]:
        """Every file that the commit names."""
        index = self.record["index"]
        tables = [] if index is None else [index["samples"], index["masks"]]
        return [each for each in (self.shard, *tables, self.record["failures"]) if each is not None]

    def to_bytes(self) -> bytes:
        return canonical_json(self.record)


def make_commit(
    outputs: Outputs,
    *,
    unit: int,
    config_hash: str,
    seconds: dict[str, float],
    environment: dict[str, object],
    attempt: str,
    notes: list[str],
    passed_over: dict[str, PassedRecord] | None = None,
) -> Commit:
    """The record of a finished attempt."""
    index: IndexRecord | None = None
    if outputs.samples_index is not None and outputs.masks_index is not None:
        index = {
            "samples": _table(outputs.samples_index, outputs.samples),
            "masks": _table(outputs.masks_index, outputs.masks),
        }
    shard: ShardRecord | None = None
    if outputs.shard is not None:
        shard = {**outputs.shard.record(), "samples": outputs.samples, "masks": outputs.masks}
    failures: FailureTableRecord | None = None
    if outputs.failures is not None:
        failures = {**_table(outputs.failures, sum(outputs.reasons.values())), "reasons": outputs.reasons}
    record: CommitRecord = {
        "format": FORMAT,
        "unit": unit,
        "config_hash": config_hash,
        "shard": shard,
        "index": index,
        "failures": failures,
        "seconds": {name: round(value, 6) for name, value in sorted(seconds.items())},
        "environment": environment,
        "attempt": attempt,
        "notes": notes,
    }
    if passed_over:
        record["passed_over"] = passed_over
    return Commit(unit=unit, record=sealed(record))


def _table(file: OutputFile, rows: int) -> TableRecord:
    return {**file.record(), "rows": rows}


def read_commit(data: bytes, *, where: str) -> Commit:
    """Parses a record.

    Raises:
        SchemaError: not a commit of a format this version knows.
    """
    record = read_record(data, CommitRecord, where=where)
    return Commit(unit=record["unit"], record=record)


@dataclass(frozen=True, kw_only=True)
class RecordBytes:
    """The bytes of a commit record, not parsed yet."""

    unit: int
    """By the name of its file, or its row."""
    file: str
    """That holds it, a compacted one perhaps."""
    data: bytes


class CommitLog:
    """The folder `commits/` of one run, for reading."""

    def __init__(self, storage: Reader) -> None:
        self._storage = storage

    def read(self, unit: int) -> Commit | None:
        """The record that decides a unit; None if it is not committed."""
        for name in self._compacted():
            table = parquet_table(self._storage.read_bytes(name), columns=["unit", "record"])
            found = table["unit"].index(unit).as_py()
            if found >= 0:
                return read_commit(table["record"][found].as_py(), where=self._where(name))
        return self.read_single(unit)

    def read_single(self, unit: int) -> Commit | None:
        """As `read`, but looks at single records only: enough for a unit that was pending a moment ago."""
        name = _single_name(unit)
        if not self._storage.exists(name):
            return None
        return read_commit(self._storage.read_bytes(name), where=self._where(name))

    def committed(self, total: int) -> bytearray:
        """One byte for each planned unit, 1 if it is committed."""
        done = bytearray(total)
        for name in self._compacted():
            for unit in self._units_of(name):
                if unit < total:
                    done[unit] = 1
        for unit in self._single_units():
            if unit < total:
                done[unit] = 1
        return done

    def __iter__(self) -> Iterator[Commit]:
        """Every committed unit once, ascending; holds some rows of each compacted file at a time.

        Raises:
            SchemaError: a file that cannot be read as commits.
        """
        for record in self.records():
            yield read_commit(record.data, where=self._where(record.file))

    def records(self, on_damaged: Callable[[str, str], object] | None = None) -> Iterator[RecordBytes]:
        """The bytes that decide each unit, ascending.

        Args:
            on_damaged: called with name and error of a compacted file that cannot be read, which is passed over then.

        Raises:
            SchemaError: such a file, without `on_damaged`.
        """

        def rows(rank: int, name: str) -> Iterator[tuple[int, int, RecordBytes]]:
            try:
                yield from self._compacted_rows(rank, name)
            except (OSError, ValueError, KeyError) as error:  # pyarrow's errors derive from these
                if on_damaged is None:
                    raise SchemaError(
                        f"{self._where(name)}: damaged ({error}); `grainmill verify` tells more"
                    ) from error
                on_damaged(name, f"not readable parquet: {error}")

        names = self._compacted()
        streams = [rows(rank, name) for rank, name in enumerate(names)]
        streams.append((each.unit, len(names), each) for each in self._single_records())
        last = -1
        for unit, _, record in heapq.merge(*streams, key=lambda row: row[:2]):
            if unit != last:  # a later record of a unit that is decided counts for nothing
                last = unit
                yield record

    def _single_records(self, units: list[int] | None = None) -> Iterator[RecordBytes]:
        """Single records, ascending; those that a driver has compacted since come from there."""
        units = self._single_units() if units is None else units
        for unit, (name, data) in zip(
            units, self._storage.read_many([_single_name(unit) for unit in units]), strict=True
        ):
            if data is None:
                commit = self.read(unit)
                data = self._storage.read_bytes(name) if commit is None else commit.to_bytes()
            yield RecordBytes(unit=unit, file=name, data=data)

    def totals(self) -> dict[str, int]:
        """units, samples, masks, failures over all commits, without parsing compacted records."""
        totals = dict.fromkeys(("units", "samples", "masks", "failures"), 0)
        compacted: set[int] = set()
        for name in self._compacted():
            columns = ["unit", "samples", "masks", "failures"]
            table = parquet_table(self._storage.read_bytes(name), columns=columns)
            for unit, samples, masks, failures in zip(*(table[each].to_pylist() for each in columns), strict=True):
                if unit not in compacted:
                    compacted.add(unit)
                    _add(totals, samples, masks, failures)
        for record in self._single_records():
            if record.unit not in compacted:
                commit = read_commit(record.data, where=self._where(record.file))
                _add(totals, commit.samples, commit.masks, commit.failures)
        return totals

    def _where(self, name: str) -> str:
        return f"{self._storage.location}/{name}"

    def _compacted(self) -> list[str]:
        return [f"{FOLDER}/{name}" for name in self._storage.list(FOLDER) if _COMPACT.fullmatch(name)]

    def _units_of(self, name: str) -> NDArray[np.int64]:
        table = parquet_table(self._storage.read_bytes(name), columns=["unit"])
        return np.asarray(table["unit"].to_numpy(), dtype=np.int64)

    def _compacted_rows(self, rank: int, name: str) -> Iterator[tuple[int, int, RecordBytes]]:
        file = pq.ParquetFile(io.BytesIO(self._storage.read_bytes(name)), pre_buffer=False)
        for batch in file.iter_batches(batch_size=64, columns=["unit", "record"], use_threads=False):
            for unit, record in zip(batch["unit"].to_pylist(), batch["record"].to_pylist(), strict=True):
                yield unit, rank, RecordBytes(unit=unit, file=name, data=record)

    def _single_units(self) -> list[int]:
        matches = (_SINGLE.fullmatch(name) for name in self._storage.list(FOLDER))
        return sorted(int(match[1]) for match in matches if match)


class CommitWriter(CommitLog):
    """The folder `commits/` of one run, for who mines it."""

    def __init__(self, storage: Writer) -> None:
        super().__init__(storage)
        self._writer = storage

    def create(self, commit: Commit) -> bool:
        """Commits a unit. False if another attempt was first: then that one's record holds, see `read`."""
        return self._writer.write_new(_single_name(commit.unit), commit.to_bytes())

    def compact(self, *, at: int = COMPACT_AT) -> bool:
        """Merges single records into one compacted file if there are at least `at` of them.

        Safe beside other drivers: the compacted file is created first-wins under the next number, and single records
        are removed only after it stands. True if this call compacted.
        """
        units = self._single_units()
        if len(units) < at:
            return False
        names = self._compacted()
        known = np.concatenate([np.empty(0, dtype=np.int64), *map(self._units_of, names)])
        number = 1 + max((int(_COMPACT.fullmatch(name.split("/")[1])[1]) for name in names), default=-1)  # type: ignore[index]
        data = self._compacted_bytes(iter(np.setdiff1d(np.array(units, dtype=np.int64), known).tolist()))
        if not self._writer.write_new(f"{FOLDER}/compact-{number:08d}.parquet", data):
            return False
        for unit in units:
            self._writer.remove(_single_name(unit))
        return True

    def _compacted_bytes(self, units: Iterator[int]) -> bytes:
        """A compacted file of single records; `COMPACT_ROWS` of them are held at a time."""
        sink = io.BytesIO()
        with pq.ParquetWriter(sink, COMPACT_SCHEMA, **PARQUET_OPTIONS) as writer:
            while chosen := list(itertools.islice(units, COMPACT_ROWS)):
                rows = []
                for record in self._single_records(chosen):
                    commit = read_commit(record.data, where=self._where(record.file))
                    counts = {"samples": commit.samples, "masks": commit.masks, "failures": commit.failures}
                    rows.append({"unit": record.unit, **counts, "record": commit.to_bytes()})
                writer.write_table(pa.Table.from_pylist(rows, schema=COMPACT_SCHEMA))
        return sink.getvalue()

    def revoke(self, units: set[int]) -> None:
        """Makes units pending again (`--retry-failed`). Only for a driver that is alone."""
        for name in self._compacted():
            table = parquet_table(self._storage.read_bytes(name), schema=COMPACT_SCHEMA)
            kept = [row for row in table.to_pylist() if row["unit"] not in units]
            if len(kept) < table.num_rows:
                self._writer.put_atomic(name, parquet_bytes(pa.Table.from_pylist(kept, schema=COMPACT_SCHEMA)))
        for unit in sorted(units):
            self._writer.remove(_single_name(unit))


def _single_name(unit: int) -> str:
    return f"{FOLDER}/{unit:08d}.json"


def _add(totals: dict[str, int], samples: int, masks: int, failures: int) -> None:
    for name, count in (("units", 1), ("samples", samples), ("masks", masks), ("failures", failures)):
        totals[name] += count
