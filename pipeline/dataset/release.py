"""A release, or one version of it, for reading.

Each shard is one unit, numbered in the manifest's order; one more without a shard has the failures. The merged index
is read in row groups, so that a slice costs what it holds.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Sequence
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import InputError, SchemaError
from ..format.records import (
    ConfigRecord,
    PassedRecord,
    ReleasedShardRecord,
    ReleasedSource,
    ReleaseManifest,
    read_release_manifest,
)
from ..format.release_tables import MANIFEST, RELEASED_SAMPLES_SCHEMA
from ..format.schema import FAILURES_SCHEMA, MASKS_SCHEMA, SAMPLES_SCHEMA
from ..storage.base import Reader
from ..storage.local import LocalStorage
from .reader import Dataset, SamplesIndex, Unit


def read_manifest(storage: Reader) -> ReleaseManifest | None:
    """The manifest of the release that lies there; None if there is none, or that of a run.

    Raises:
        SchemaError: a release of another format, or a damaged one.
    """
    if not storage.exists(MANIFEST):
        return None
    return read_release_manifest(storage.read_bytes(MANIFEST), where=f"{storage.location}/{MANIFEST}")


class ReleaseReader(Dataset):
    """One version of a release.

    Args:
        storage: its root (for an older version a `versions.VersionStorage`).
        manifest: of that version.
    """

    def __init__(self, storage: Reader, manifest: ReleaseManifest) -> None:
        super().__init__(storage)
        self._manifest = manifest
        self._starts = {
            "samples": list(itertools.accumulate((each["samples"] for each in manifest["shards"]), initial=0)),
            "masks": list(itertools.accumulate((each["masks"] for each in manifest["shards"]), initial=0)),
        }
        """Number of the first row of each shard in the merged index."""
        self._opened: dict[str, SlicedTable] = {}

    @property
    def manifest(self) -> ReleaseManifest:
        return self._manifest

    @property
    def config(self) -> ConfigRecord:
        return self._manifest["runs"][-1]["config"]

    @property
    def sources(self) -> Sequence[ReleasedSource]:
        return self._manifest["sources"]

    @property
    def passed_over(self) -> dict[str, PassedRecord]:
        return {}

    @property
    def units_total(self) -> int:
        return len(self._manifest["shards"]) + (self._manifest["failures_table"] is not None)

    def units(self) -> Iterator[Unit]:
        shards, failures = self._manifest["shards"], self._manifest["failures_table"]
        for number, shard in enumerate(shards):
            yield Unit(number=number, shard=shard, failures=None, reasons={})
        if failures is not None:
            yield Unit(number=len(shards), shard=None, failures=failures, reasons=self._manifest["failure_reasons"])

    def totals(self) -> dict[str, int]:
        counts = {name: self._manifest[name] for name in ("samples", "masks", "failures")}
        return {"units": self.units_total, **counts}

    def shard(self, unit: Unit) -> ReleasedShardRecord | None:
        """The shard of a unit, with the unit of the run that made it."""
        return None if unit.shard is None else self._manifest["shards"][unit.number]

    def released_samples(self, unit: Unit) -> pa.Table:
        """The rows of `RELEASED_SAMPLES_SCHEMA` of one shard."""
        return self._slice("samples", unit, RELEASED_SAMPLES_SCHEMA)

    def samples(self, unit: Unit) -> pa.Table:
        return self.released_samples(unit).select(SAMPLES_SCHEMA.names).cast(SAMPLES_SCHEMA)

    def masks(self, unit: Unit) -> pa.Table:
        return self._slice("masks", unit, MASKS_SCHEMA)

    def failures(self, unit: Unit) -> pa.Table:
        return self._table(unit.failures, FAILURES_SCHEMA)

    def samples_index(self, columns: Sequence[str], *, split: str | None = None) -> SamplesIndex:
        index, splits = self._manifest["index"], self._manifest["splits"]["files"]
        if split is not None and split not in splits:
            raise InputError(f"{self.location}: no split {split!r}; there is {', '.join(['all', *splits])}")
        table = self._checked_samples((index if split is None else splits[split])["samples"], columns)
        return SamplesIndex(table=table, digest=self._manifest["digest"], complete=True)

    def _slice(self, table: Literal["samples", "masks"], unit: Unit, schema: pa.Schema) -> pa.Table:
        if unit.shard is None:
            return schema.empty_table()
        return self._tables(table).rows(self._starts[table][unit.number], unit.shard[table])

    def _tables(self, table: Literal["samples", "masks"]) -> SlicedTable:
        if table not in self._opened:
            self._opened[table] = SlicedTable(self.storage, self._manifest["index"][table]["name"])
        return self._opened[table]


class SlicedTable:
    """Rows of a parquet file by their position; keeps the row groups read last."""

    def __init__(self, storage: Reader, name: str) -> None:
        self._threads = isinstance(storage, LocalStorage)
        """Never over Python's bytes, see `parquet.parquet_table`."""
        if isinstance(storage, LocalStorage):
            self._file = pq.ParquetFile(storage.path(name), memory_map=True, pre_buffer=False)
        else:
            self._file = pq.ParquetFile(io.BytesIO(storage.read_bytes(name)), pre_buffer=False)
        sizes = (self._file.metadata.row_group(group).num_rows for group in range(self._file.num_row_groups))
        self._starts = [0]
        for size in sizes:
            self._starts.append(self._starts[-1] + size)
        self._kept: dict[int, pa.Table] = {}

    @property
    def num_rows(self) -> int:
        return self._starts[-1]

    @property
    def schema(self) -> pa.Schema:
        return self._file.schema_arrow

    def rows(self, start: int, count: int) -> pa.Table:
        """Rows `start` to `start + count`.

        Raises:
            SchemaError: the file has fewer.
        """
        if start + count > self.num_rows:
            raise SchemaError(f"the index has {self.num_rows} rows, expected rows {start} to {start + count}")
        last = len(self._starts) - 1
        groups = [g for g in range(last) if self._starts[g] < start + count and self._starts[g + 1] > start]
        self._kept = {
            g: self._kept[g] if g in self._kept else self._file.read_row_group(g, use_threads=self._threads)
            for g in groups
        }
        if not groups:
            return self.schema.empty_table()
        return pa.concat_tables(self._kept.values()).slice(start - self._starts[groups[0]], count)
