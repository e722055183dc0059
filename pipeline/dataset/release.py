"""A release, or one version of it, for reading: the same calls as for a run (`run.RunReader`).

Each shard stands for one unit, numbered in the manifest's order; one more without a shard holds the failures. The
merged index is read in row groups, so that a slice costs what it holds.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import SchemaError
from ..format.release_tables import KIND, MANIFEST, RELEASED_SAMPLES_SCHEMA
from ..format.schema import FAILURES_SCHEMA, FORMAT, MASKS_SCHEMA, SAMPLES_SCHEMA, load_json
from ..shards.commits import Commit
from ..storage.base import Reader
from ..storage.local import LocalStorage
from .run import RunReader


def read_manifest(storage: Reader) -> dict[str, Any] | None:
    """The manifest of the release that lies there; None if there is none, or that of a run.

    Raises:
        SchemaError: a release of another format.
    """
    if not storage.exists(MANIFEST):
        return None
    where = f"{storage.location}/{MANIFEST}"
    manifest = load_json(storage.read_bytes(MANIFEST), where=where)
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        return None
    if manifest.get("format") != FORMAT:
        raise SchemaError(f"{where}: format is {manifest.get('format')!r}, this version reads {FORMAT!r}")
    return manifest


class ReleaseReader(RunReader):
    """One version of a release.

    Args:
        storage: its root (for an older version a `versions.VersionStorage`).
        manifest: of that version.
    """

    def __init__(self, storage: Reader, manifest: dict[str, Any]) -> None:
        self.storage = storage
        self._manifest = manifest
        self._starts = {"samples": _starts(manifest, "samples"), "masks": _starts(manifest, "masks")}

    @property
    def plan(self) -> dict[str, Any]:
        """What stands for plan.json: configuration, hash and sources of the newest run in the release."""
        run = self._manifest["runs"][-1]
        return {**run, "sources": self._manifest["sources"]}

    @property
    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = self._manifest["runs"][-1]["config"]
        return config

    @property
    def passed_over(self) -> dict[str, Any]:
        return {}  # of a run's sources, not of a release

    @property
    def units_total(self) -> int:
        return len(self._manifest["shards"]) + (self._manifest["failures_table"] is not None)

    @property
    def manifest(self) -> dict[str, Any]:
        return self._manifest

    def commits(self) -> Iterator[Commit]:
        for number, shard in enumerate(self._manifest["shards"]):
            yield _stand_in(number, shard=shard)
        failures = self._manifest["failures_table"]
        if failures is not None:
            yield _stand_in(
                len(self._manifest["shards"]), failures={**failures, "reasons": self._manifest["failure_reasons"]}
            )

    def committed_units(self) -> bytearray:
        return bytearray(b"\1" * self.units_total)

    def totals(self) -> dict[str, int]:
        counts = {name: int(self._manifest[name]) for name in ("samples", "masks", "failures")}
        return {"units": self.units_total, **counts}

    def released_samples(self, commit: Commit) -> pa.Table:
        """The rows of `RELEASED_SAMPLES_SCHEMA` of one shard."""
        return self._slice("samples", commit, RELEASED_SAMPLES_SCHEMA)

    def samples(self, commit: Commit) -> pa.Table:
        return self.released_samples(commit).select(SAMPLES_SCHEMA.names).cast(SAMPLES_SCHEMA)

    def masks(self, commit: Commit) -> pa.Table:
        return self._slice("masks", commit, MASKS_SCHEMA)

    def failures(self, commit: Commit) -> pa.Table:
        return self._table(commit.record["failures"], FAILURES_SCHEMA)

    def _slice(self, table: str, commit: Commit, schema: pa.Schema) -> pa.Table:
        if commit.shard is None:
            return schema.empty_table()
        return self._tables(table).rows(self._starts[table][commit.unit], int(commit.shard[table]))

    @functools.cache  # noqa: B019  (lives as long as the reader)
    def _tables(self, table: str) -> SlicedTable:
        return SlicedTable(self.storage, self._manifest["index"][table]["name"])


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


def _starts(manifest: dict[str, Any], table: str) -> list[int]:
    """Number of the first row of each shard in the merged index."""
    starts = [0]
    for shard in manifest["shards"]:
        starts.append(starts[-1] + int(shard[table]))
    return starts


def _stand_in(unit: int, *, shard: dict[str, Any] | None = None, failures: dict[str, Any] | None = None) -> Commit:
    """A commit record made up from the manifest."""
    record = {
        "format": FORMAT,
        "unit": unit,
        "config_hash": None,
        "shard": shard,
        "index": None,
        "failures": failures,
        "seconds": {},
        "environment": {},
        "attempt": KIND,
        "notes": [],
    }
    return Commit(unit=unit, record=record)
