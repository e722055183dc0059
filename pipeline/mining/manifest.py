"""What stands at the end of a run: the merged index, and `manifest.json` with the digest of the data.

Everything is streamed from the commits in ascending order, so a run of a million units needs no more memory here than
one of ten.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..dataset.run import RunReader, committed_unit
from ..environment import faults
from ..format.records import IndexRecord, RunShardRecord, RunSummary, TableRecord
from ..format.release_tables import MANIFEST
from ..format.schema import FORMAT, MASKS_SCHEMA, SAMPLES_SCHEMA, SEAL, DatasetDigest, canonical_json
from ..shards.commits import Commit
from ..shards.plan import Plan
from ..shards.writer import HASH_DIGITS, PARQUET_OPTIONS, ROW_GROUP_ROWS
from ..sources.passed_over import PassedOver
from ..storage.base import Writer
from ..storage.local import explained, sha256_of_file, sync_file

MAX_WAITING: Final = 256
"""Tables that a merged table holds before it joins them."""
_FINAL_NAME: Final = re.compile(r"(samples-|masks-)?(\d{8,})-([0-9a-f]{8})\.(?:tar|parquet)")
_FOLDERS: Final = ("shards", "index", "failures")


def write_manifest(storage: Writer, plan: Plan) -> RunSummary:
    """Merges the index, writes `manifest.json`, removes files that no commit names. All units must be committed.

    Returns:
        The manifest without its list of shards, which may be long.
    """
    run = RunReader(storage, plan)
    digest = DatasetDigest()
    failures: list[list[str | None]] = []
    reasons: collections.Counter[str] = collections.Counter()
    named = _NamedFiles(run.units_total)
    samples = masks = 0
    passed = PassedOver(run.passed_over)
    with _scratch_folder(storage) as folder, _ShardList(folder / "shards") as shards:
        merged_samples = MergedTable(folder / "samples.parquet", SAMPLES_SCHEMA)
        merged_masks = MergedTable(folder / "masks.parquet", MASKS_SCHEMA)
        for commit in run.commits():
            named.add(commit)
            reasons.update(commit.reasons)
            passed.include(commit.passed_over)
            unit = committed_unit(commit)
            if commit.shard is not None:
                digest.add_shard([commit.unit, commit.shard["sha256"], commit.samples, commit.masks])
                shards.add({**commit.shard, "unit": commit.unit})
                samples, masks = samples + commit.samples, masks + commit.masks
                merged_samples.add(run.samples(unit))
                merged_masks.add(run.masks(unit))
            for row in run.failures(unit).to_pylist():
                failures.append([row["key"], row["source_uri"], row["member"], row["stage"], row["reason"]])
        index: IndexRecord = {
            "samples": merged_samples.published("index-all/samples", storage.publish),
            "masks": merged_masks.published("index-all/masks", storage.publish),
        }
        manifest: RunSummary = {
            "format": FORMAT,
            "complete": True,
            "digest": digest.finish(failures),
            "samples": samples,
            "masks": masks,
            "failures": len(failures),
            "failure_reasons": dict(sorted(reasons.items())),
            "config_hash": run.plan["config_hash"],
            "config": run.config,
            "units": run.units_total,
            "passed_over": passed.to_json(),
            "index": index,
        }
        faults.reach("before-manifest")
        storage.publish(shards.sealed_into(manifest, folder / MANIFEST), MANIFEST)
    faults.reach("manifest")
    merged = {file["name"].rpartition("/")[2] for file in (index["samples"], index["masks"])}
    _remove_unnamed(storage, named, merged)
    return manifest


@contextlib.contextmanager
def _scratch_folder(storage: Writer) -> Iterator[Path]:
    path = storage.scratch(f"manifest.{os.urandom(6).hex()}")
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)  # removed at the next start if it stays


class _ShardList:
    """The manifest's `shards`, kept in a file until the rest of it is known."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream = path.open("w+b", buffering=1 << 20)
        self._empty = True

    def __enter__(self) -> _ShardList:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # what is still buffered is not wanted any more
            self._stream.close()

    def add(self, shard: RunShardRecord) -> None:
        with explained("write", self._path):
            self._stream.write((b"" if self._empty else b",") + canonical_json(shard))
        self._empty = False

    def sealed_into(self, manifest: RunSummary, path: Path) -> Path:
        """Writes the manifest with its `shards` and its seal: the bytes that `schema.sealed` would give."""
        seal = hashlib.sha256()
        for piece in self._pieces(manifest):
            seal.update(piece)
        with explained("write", path), path.open("xb", buffering=1 << 20) as stream:
            for piece in self._pieces({**manifest, SEAL: seal.hexdigest()}):
                stream.write(piece)
            stream.flush()
            sync_file(stream.fileno())
        return path

    def _pieces(self, manifest: Mapping[str, object]) -> Iterator[bytes]:
        # Inside a JSON string the quotes would have backslashes: these bytes stand in one place only.
        before, marker, after = canonical_json({**manifest, "shards": None}).partition(b'"shards":null')
        assert marker
        yield before + b'"shards":['
        with explained("write", self._path):
            self._stream.seek(0)
            while piece := self._stream.read(1 << 20):
                yield piece
        yield b"]" + after


class _NamedFiles:
    """Which final names the commits give, as the hash digits at their ends: sixteen bytes a unit."""

    KINDS: Final = ("shards/", "index/samples-", "index/masks-", "failures/")

    def __init__(self, units: int) -> None:
        self._digits = np.full((units, len(self.KINDS)), -1, dtype=np.int64)

    def add(self, commit: Commit) -> None:
        for file in commit.files():
            found = self._place(file["name"])
            assert found is not None, file["name"]
            self._digits[found[0], found[1]] = found[2]

    def __contains__(self, name: str) -> bool:
        """Whether a commit names it; True also for a name that is not the format's own."""
        found = self._place(name)
        return found is None or (found[0] < len(self._digits) and self._digits[found[0], found[1]] == found[2])

    def _place(self, name: str) -> tuple[int, int, int] | None:
        folder, _, last = name.partition("/")
        match = _FINAL_NAME.fullmatch(last)
        if match is None:
            return None
        kind = f"{folder}/{match[1] or ''}"
        return (int(match[2]), self.KINDS.index(kind), int(match[3], 16)) if kind in self.KINDS else None


def _remove_unnamed(storage: Writer, named: _NamedFiles, index: set[str]) -> None:
    """Removes files of the format's own names that no commit names; every unit is committed by now."""
    for folder in _FOLDERS:
        for name in storage.list(folder):
            if f"{folder}/{name}" not in named:
                storage.remove(f"{folder}/{name}")
    for name in storage.list("index-all"):
        if re.fullmatch(r"(?:samples|masks)-[0-9a-f]{8}\.parquet", name) and name not in index:
            storage.remove(f"index-all/{name}")


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
        if not table.num_rows:
            return
        self._waiting.append(table)
        self._waiting_rows += table.num_rows
        if len(self._waiting) > MAX_WAITING:  # many tables of some rows take more memory than their rows
            self._waiting = [pa.concat_tables(self._waiting).combine_chunks()]
        while self._waiting_rows >= ROW_GROUP_ROWS:
            self._write(ROW_GROUP_ROWS)

    def _write(self, rows: int) -> None:
        joined = pa.concat_tables(self._waiting) if self._waiting else self._schema.empty_table()
        with explained("write", self.path):
            self._writer.write_table(joined.slice(0, rows), row_group_size=ROW_GROUP_ROWS)
        rest = joined.slice(rows)
        self._waiting, self._waiting_rows = ([rest] if rest.num_rows else []), rest.num_rows
        self._rows += min(rows, joined.num_rows)

    def published(self, stem: str, publish: Callable[[Path, str], None]) -> TableRecord:
        """Ends the file and publishes it as `STEM-HASH.parquet`."""
        if self._waiting_rows:
            self._write(self._waiting_rows)
        with explained("write", self.path):
            self._writer.close()
            with self.path.open("rb") as stream:
                sync_file(stream.fileno())
        sha256 = sha256_of_file(self.path)
        size, name = self.path.stat().st_size, f"{stem}-{sha256[:HASH_DIGITS]}.parquet"
        publish(self.path, name)
        return {"name": name, "size": size, "sha256": sha256, "rows": self._rows}
