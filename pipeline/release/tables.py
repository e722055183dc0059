"""Parquet files of a release: the merged index, one pair of tables for each split, and small tables of rows."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ..format.records import FailedRow, IndexRecord, ReleaseManifest, RemovedRow, TableRecord
from ..format.release_tables import RELEASED_SAMPLES_SCHEMA
from ..format.schema import MASKS_SCHEMA
from ..mining.manifest import MergedTable
from ..shards.writer import HASH_DIGITS, parquet_bytes
from ..storage.base import Reader
from ..storage.local import LocalStorage
from ..storage.parquet import parquet_table
from .commit import place, put
from .records import file_record


@dataclass(frozen=True, kw_only=True)
class ReleasedIndex:
    """The index files of a release: of everything, and of each split besides."""

    whole: IndexRecord
    splits: dict[str, IndexRecord]


class MergedTables:
    """The merged index, and one pair of tables for each split besides."""

    def __init__(self, output: LocalStorage) -> None:
        self._output = output
        self._folder = output.scratch(f"index.{os.urandom(6).hex()}")
        self._schemas = {"samples": RELEASED_SAMPLES_SCHEMA, "masks": MASKS_SCHEMA}
        self._tables: dict[tuple[str | None, str], MergedTable] = {}

    def close(self) -> None:
        """Removes what is not published."""
        shutil.rmtree(self._folder, ignore_errors=True)  # removed with tmp/ if it stays

    def add(self, samples: pa.Table, masks: pa.Table) -> None:
        """The rows of one shard, in the order of the release."""
        self._table(None, "samples").add(samples)
        self._table(None, "masks").add(masks)
        for split in sorted(set(samples.column("split").to_pylist()) - {None}):
            theirs = samples.filter(pc.equal(samples.column("split"), split))
            keys = theirs.column("key").combine_chunks()
            self._table(split, "samples").add(theirs)
            self._table(split, "masks").add(masks.filter(pc.is_in(masks.column("key"), value_set=keys)))

    def _table(self, split: str | None, table: str) -> MergedTable:
        if (split, table) not in self._tables:
            path = self._folder / f"{table}-{split or ''}.parquet"
            self._tables[split, table] = MergedTable(path, self._schemas[table])
        return self._tables[split, table]

    def finish(self, splits: Mapping[str, float]) -> ReleasedIndex:
        """Publishes everything."""
        return ReleasedIndex(whole=self._index(None), splits={split: self._index(split) for split in splits})

    def _index(self, split: str | None) -> IndexRecord:
        return {"samples": self._published(split, "samples"), "masks": self._published(split, "masks")}

    def _published(self, split: str | None, table: str) -> TableRecord:
        stem = f"index/{table}" if split is None else f"index/{table}-{split}"
        return self._table(split, table).published(stem, partial(place, self._output))


def put_table(
    output: LocalStorage, name: str, rows: Sequence[Mapping[str, object]], schema: pa.Schema
) -> TableRecord | None:
    """Writes rows as `NAME-HASH.parquet`; None (and nothing written) if there are none."""
    if not rows:
        return None
    data = parquet_bytes(pa.Table.from_pylist([*rows], schema=schema))
    record = file_record("", data)
    record["name"] = f"{name}-{record['sha256'][:HASH_DIGITS]}.parquet"
    put(output, record["name"], data)
    return {**record, "rows": len(rows)}


def failure_rows(storage: Reader, manifest: ReleaseManifest) -> list[FailedRow]:
    """The samples of a release that are in no shard."""
    return _rows(storage, manifest["failures_table"])


def removed_rows(storage: Reader, manifest: ReleaseManifest) -> list[RemovedRow]:
    """What left a release, in its earlier versions too."""
    return _rows(storage, manifest["removed_table"])


def _rows(storage: Reader, file: TableRecord | None) -> list[Any]:
    return [] if file is None else parquet_table(storage.read_bytes(file["name"])).to_pylist()
