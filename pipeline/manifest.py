"""What stands at the end of a run: the merged index, and `manifest.json` with the digest of the data.

Everything is streamed from the commits in ascending order, so a run of a million units needs no more memory here than
one of ten.
"""

from __future__ import annotations

import collections
import hashlib
import os
import re
import shutil
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from . import faults
from .committed import CommittedRun
from .plan import Plan
from .schema import FORMAT, MASKS_SCHEMA, SAMPLES_SCHEMA, canonical_json, dataset_digest, sealed
from .storage import Storage, explained, sync_file
from .writer import HASH_DIGITS, PARQUET_OPTIONS, ROW_GROUP_ROWS

MANIFEST: Final = "manifest.json"
_FINAL_NAME: Final = re.compile(r"(?:samples-|masks-)?(\d{8,})-([0-9a-f]{8})\.(?:tar|parquet)")
_FOLDERS: Final = ("shards", "index", "failures")


def write_manifest(storage: Storage, plan: Plan) -> dict[str, Any]:
    """Merges the index, writes `manifest.json`, removes files that no commit names. All units must be committed."""
    run = CommittedRun(storage, plan)
    shards = []
    failures: list[list[Any]] = []
    reasons: collections.Counter[str] = collections.Counter()
    named: set[str] = set()
    with _IndexMerger(storage) as merger:
        for commit in run.commits():
            named.update(file["name"] for file in commit.files())
            reasons.update(commit.reasons)
            if commit.shard is not None:
                shards.append({**commit.shard, "unit": commit.unit})
                merger.add(run.samples(commit), run.masks(commit))
            for row in run.failures(commit).to_pylist():
                failures.append([row["key"], row["source_uri"], row["member"], row["stage"], row["reason"]])
        index = merger.finish()
    manifest = {
        "format": FORMAT,
        "complete": True,
        "digest": dataset_digest(
            ([each["unit"], each["sha256"], each["samples"], each["masks"]] for each in shards), failures
        ),
        "samples": sum(each["samples"] for each in shards),
        "masks": sum(each["masks"] for each in shards),
        "failures": len(failures),
        "failure_reasons": dict(sorted(reasons.items())),
        "config_hash": run.plan["config_hash"],
        "config": run.config,
        "units": run.units_total,
        "shards": shards,
        "index": index,
    }
    faults.reach("before-manifest")
    manifest = sealed(manifest)
    storage.put_atomic(MANIFEST, canonical_json(manifest))
    faults.reach("manifest")
    _remove_unnamed(storage, named, {file["name"].rsplit("/", 1)[-1] for file in index.values()})
    return manifest


def _remove_unnamed(storage: Storage, named: set[str], index: set[str]) -> None:
    """Removes files of the format's own names that no commit names; every unit is committed by now."""
    for folder in _FOLDERS:
        for name in storage.list(folder):
            if _FINAL_NAME.fullmatch(name) and f"{folder}/{name}" not in named:
                storage.remove(f"{folder}/{name}")
    for name in storage.list("index-all"):
        if re.fullmatch(r"(?:samples|masks)-[0-9a-f]{8}\.parquet", name) and name not in index:
            storage.remove(f"index-all/{name}")


class _IndexMerger:
    """Streams the index of all units into `index-all/`, in units' order, in row groups of a fixed size."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._folder = storage.scratch(f"index-all.{os.urandom(6).hex()}")
        self._parts = {
            "samples": MergedTable(self._folder / "samples.parquet", SAMPLES_SCHEMA),
            "masks": MergedTable(self._folder / "masks.parquet", MASKS_SCHEMA),
        }

    def __enter__(self) -> _IndexMerger:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)  # swept at the next start if it stays

    def add(self, samples: pa.Table, masks: pa.Table) -> None:
        self._parts["samples"].add(samples)
        self._parts["masks"].add(masks)

    def finish(self) -> dict[str, dict[str, Any]]:
        """Publishes both tables and returns their records."""
        records = {}
        for name, part in self._parts.items():
            rows = part.finish()
            with part.path.open("rb") as stream:
                sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
                sync_file(stream.fileno())
            final = f"index-all/{name}-{sha256[:HASH_DIGITS]}.parquet"
            size = part.path.stat().st_size
            self._storage.publish(part.path, final)
            records[name] = {"name": final, "size": size, "sha256": sha256, "rows": rows}
        return records


class MergedTable:
    """A parquet file made of many small tables, in row groups of a fixed size whatever the tables' sizes."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self._schema = schema
        self._writer = pq.ParquetWriter(path, schema, **PARQUET_OPTIONS)
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0
        self._rows = 0

    def add(self, table: pa.Table) -> None:
        self._waiting.append(table)
        self._waiting_rows += table.num_rows
        while self._waiting_rows >= ROW_GROUP_ROWS:
            self._write(ROW_GROUP_ROWS)

    def _write(self, rows: int) -> None:
        joined = pa.concat_tables(self._waiting) if self._waiting else self._schema.empty_table()
        with explained("write", self.path):
            self._writer.write_table(joined.slice(0, rows), row_group_size=ROW_GROUP_ROWS)
        rest = joined.slice(rows)
        self._waiting, self._waiting_rows = ([rest] if rest.num_rows else []), rest.num_rows
        self._rows += min(rows, joined.num_rows)

    def finish(self) -> int:
        if self._waiting_rows:
            self._write(self._waiting_rows)
        with explained("write", self.path):
            self._writer.close()
        return self._rows
