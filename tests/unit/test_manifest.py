"""The manifest is streamed; its bytes are those of the plain definition, and only what no commit names is removed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.open import open_dataset
from pipeline.format import schema
from pipeline.mining.manifest import MANIFEST, MAX_WAITING, MergedTable, write_manifest
from pipeline.shards.plan import open_plan
from pipeline.storage.open import open_storage


def test_the_streamed_digest_is_the_plain_one() -> None:
    shards = [[7, "c" * 64, 1, 2], [0, "a" * 64, 3, 40], [12, "b" * 64, 0, 0]]
    failures = [["k2", "in/b", None, "read", "unreadable"], ["k1", "in/a", "m", "decode", "truncated"]]
    for some_shards, some_failures in ((shards, failures), (shards[:1], []), ([], failures), ([], [])):
        rows = sorted(some_failures, key=lambda row: [item or "" for item in row])
        plain = schema.sha256_of(schema.canonical_json([schema.FORMAT, sorted(some_shards), rows]))
        assert schema.dataset_digest(some_shards, some_failures) == plain


def test_the_file_is_the_canonical_json_of_what_it_says(drawn_run: Path) -> None:
    data = (drawn_run / MANIFEST).read_bytes()
    manifest = schema.load_json(data, where=MANIFEST)
    assert data == schema.canonical_json(schema.sealed(manifest))
    run = open_dataset(drawn_run)
    units = list(run.units())
    assert [each["unit"] for each in manifest["shards"]] == [unit.number for unit in units]
    shards = [[each["unit"], each["sha256"], each["samples"], each["masks"]] for each in manifest["shards"]]
    rows = [row for unit in units for row in run.failures(unit).to_pylist()]
    names = ("key", "source_uri", "member", "stage", "reason")
    assert manifest["digest"] == schema.dataset_digest(shards, [[row[name] for name in names] for row in rows])


def test_only_what_no_commit_names_is_removed(drawn_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(drawn_run, output)
    before = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    strays = (
        "shards/00000000-0123abcd.tar", "shards/00000099-0123abcd.tar", "index/samples-00000001-0123abcd.parquet",
        "index/masks-00000001-0123abcd.parquet", "failures/00000000-0123abcd.parquet",
        "index-all/samples-0123abcd.parquet",
    )  # fmt: skip
    kept = ("shards/notes.txt", "shards/00000000-xyz.tar", "index-all/readme.md")
    for name in (*strays, *kept):
        (output / name).write_bytes(b"x")
    storage = open_storage(output)
    plan = open_plan(storage)
    assert plan is not None
    written = write_manifest(storage, plan)
    assert "shards" not in written
    after = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    assert after == before | set(kept)


def test_many_small_tables_become_row_groups_of_one_size(tmp_path: Path) -> None:
    fields = pa.schema([pa.field("n", pa.int64())])
    merged = MergedTable(tmp_path / "t.parquet", fields)
    merged.add(fields.empty_table())
    for number in range(3 * MAX_WAITING):
        merged.add(pa.table({"n": [2 * number, 2 * number + 1]}, schema=fields))
    record = merged.published("t", lambda path, name: path.rename(tmp_path / name))
    assert record["rows"] == 6 * MAX_WAITING
    assert pq.read_table(tmp_path / record["name"])["n"].to_pylist() == list(range(6 * MAX_WAITING))
