"""Parquet files of a release: the merged index, one pair of tables for each split, and small tables of rows."""

from __future__ import annotations

import os
import shutil
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ..dataset.run import RunReader
from ..format.release_tables import RELEASED_SAMPLES_SCHEMA
from ..format.schema import MASKS_SCHEMA
from ..mining.manifest import MergedTable
from ..shards.commits import Commit
from ..shards.writer import HASH_DIGITS, parquet_bytes
from ..storage.base import Reader
from ..storage.local import LocalStorage, sha256_of_file
from ..storage.parquet import parquet_table
from .durable_files import place, put
from .records import file_record


class MergedTables:
    """The merged index, and one pair of tables for each split besides."""

    def __init__(self, output: LocalStorage) -> None:
        self._output = output
        self._folder = output.scratch(f"index.{os.urandom(6).hex()}")
        self._schemas = {"samples": RELEASED_SAMPLES_SCHEMA, "masks": MASKS_SCHEMA}
        self._parts: dict[tuple[str | None, str], MergedTable] = {}

    def close(self) -> None:
        """Removes what is not published."""
        shutil.rmtree(self._folder, ignore_errors=True)  # swept with tmp/ if it stays

    def add(self, samples: pa.Table, masks: pa.Table) -> None:
        """The rows of one shard, in the order of the release."""
        self._part(None, "samples").add(samples)
        self._part(None, "masks").add(masks)
        for split in sorted(set(samples.column("split").to_pylist()) - {None}):
            theirs = samples.filter(pc.equal(samples.column("split"), split))
            keys = theirs.column("key").combine_chunks()
            self._part(split, "samples").add(theirs)
            self._part(split, "masks").add(masks.filter(pc.is_in(masks.column("key"), value_set=keys)))

    def _part(self, split: str | None, table: str) -> MergedTable:
        if (split, table) not in self._parts:
            path = self._folder / f"{table}-{split or ''}.parquet"
            self._parts[split, table] = MergedTable(path, self._schemas[table])
        return self._parts[split, table]

    def finish(self, splits: dict[str, float]) -> dict[str, Any]:
        """Publishes everything: {"samples", "masks", "splits": {name: {"samples", "masks"}}}."""
        records: dict[str, Any] = {"splits": {}}
        for split in [None, *splits]:
            tables = {table: self._publish(split, table) for table in ("samples", "masks")}
            if split is None:
                records |= tables
            else:
                records["splits"][split] = tables
        return records

    def _publish(self, split: str | None, table: str) -> dict[str, Any]:
        part = self._part(split, table)
        rows = part.finish()
        sha256 = sha256_of_file(part.path)
        middle = "" if split is None else f"{split}-"
        name = f"index/{table}-{middle}{sha256[:HASH_DIGITS]}.parquet"
        size = part.path.stat().st_size
        place(self._output, part.path, name)
        return {"name": name, "size": size, "sha256": sha256, "rows": rows}


def put_table(output: LocalStorage, name: str, rows: list[dict[str, Any]], schema: pa.Schema) -> dict[str, Any] | None:
    """Writes rows as `NAME-HASH.parquet`; None (and nothing written) if there are none."""
    if not rows:
        return None
    data = parquet_bytes(pa.Table.from_pylist(rows, schema=schema))
    record = file_record("", data)
    record["name"] = f"{name}-{record['sha256'][:HASH_DIGITS]}.parquet"
    put(output, record["name"], data)
    return {**record, "rows": len(rows)}


def table_rows(storage: Reader, file: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Rows of one of a manifest's tables; none where it has none."""
    if file is None:
        return []
    rows: list[dict[str, Any]] = parquet_table(storage.read_bytes(file["name"])).to_pylist()
    return rows


def failure_rows(
    run: RunReader | None, commits: list[Commit], output: LocalStorage, previous: dict[str, Any] | None
) -> list[dict[str, Any]]:
    """Rows of every sample that is in no shard, those of earlier versions first, each key once."""
    rows = [] if previous is None else table_rows(output, previous["failures_table"])
    seen = {row["key"] for row in rows}
    for commit in commits:
        assert run is not None
        rows += [row for row in run.failures(commit).to_pylist() if row["key"] not in seen]
    return rows
