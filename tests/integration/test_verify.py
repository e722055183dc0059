"""`verify` passes what was written, and names what was changed, removed or swapped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.cli import main
from pipeline.dataset.open import open_dataset
from pipeline.dataset.verify import VerifyTotals, stray_files, verify_run
from pipeline.dataset.verify_unit import Problem
from pipeline.format import schema
from pipeline.storage.open import open_storage


@pytest.fixture
def run_copy(drawn_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(drawn_run, tmp_path / "out")
    return tmp_path / "out"


def problems(directory: Path, *, deep: bool = False) -> list[Problem]:
    return list(verify_run(open_dataset(directory), deep=deep))


def shards(directory: Path) -> list[Path]:
    return sorted((directory / "shards").iterdir())


def change(path: Path, offset: int, to: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[offset : offset + len(to)] = to
    path.write_bytes(data)


@pytest.mark.parametrize("deep", [False, True])
def test_what_was_written_passes(drawn_run: Path, deep: bool) -> None:
    totals = VerifyTotals()
    assert list(verify_run(open_dataset(drawn_run), deep=deep, totals=totals)) == []
    assert (totals.units, totals.samples, totals.masks) == (3, 7, 35)


@pytest.mark.parametrize("units", [0, 2])
def test_a_run_at_work_passes_and_strays_are_no_problem(
    units: int, write_drawn_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = write_drawn_run(tmp_path / "out", units=units, images=False)
    (directory / "shards").mkdir(exist_ok=True)
    (directory / "shards" / "00000002-0123abcd.tar").write_bytes(b"an attempt's")
    assert problems(directory, deep=True) == []
    assert stray_files(open_dataset(directory)) == ["shards/00000002-0123abcd.tar"]
    assert main(["verify", str(directory), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["pending"], printed["stray_files"]) == (3 - units, ["shards/00000002-0123abcd.tar"])


def test_damaged_data_is_named_by_key_and_range(run_copy: Path) -> None:
    row = open_dataset(run_copy).samples(next(open_dataset(run_copy).units())).to_pylist()[1]
    change(run_copy / row["shard"], row["image_offset"] + 7, b"\xaa")
    found = problems(run_copy)
    assert [(each.kind, each.key, each.start, each.end) for each in found if each.kind == "bytes"] == [
        ("bytes", row["key"], row["image_offset"], row["image_offset"] + row["image_size"])
    ]
    assert found[0].kind == "sha256"


def test_damaged_headers_padding_and_end_are_named_to_the_byte(run_copy: Path) -> None:
    row = open_dataset(run_copy).samples(next(open_dataset(run_copy).units())).to_pylist()[0]
    path = run_copy / row["shard"]
    offsets = [row["json_offset"] - 512 + 136, row["json_offset"] + row["json_size"] + 1, path.stat().st_size - 3]
    for offset in offsets:
        change(path, offset, b"\x01")
    ranges = [(each.start, each.end) for each in problems(run_copy) if each.kind == "bytes"]
    assert ranges == [(offset, offset + 1) for offset in offsets]


@pytest.mark.parametrize("kept", [0, 100, 5000])
def test_a_cut_shard_is_named(run_copy: Path, kept: int) -> None:
    path = shards(run_copy)[1]
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:kept])
    sizes = [each for each in problems(run_copy) if each.kind == "size"]
    assert [(each.file, each.start, each.end) for each in sizes] == [(f"shards/{path.name}", kept, size)]
    assert any(each.kind == "bytes" and each.start == kept for each in problems(run_copy))


def test_every_missing_file_is_named(run_copy: Path) -> None:
    files = [path for path in run_copy.rglob("*") if path.is_file() and path.name != "plan.json"]
    for path in files:
        data = path.read_bytes()
        path.unlink()
        name = path.relative_to(run_copy).as_posix()
        said = [str(each) for each in problems(run_copy)]
        if name.startswith("commits/"):  # its unit is pending then; the manifest still knows it
            assert any("manifest.json" in each and "units" in each for each in said), name
        elif name != "manifest.json":  # written again by the next run
            assert any(each.startswith(name) and "missing" in each for each in said), name
        path.write_bytes(data)
    assert problems(run_copy) == []


def test_swapped_shards_are_both_named(run_copy: Path) -> None:
    one, two, _ = shards(run_copy)
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)
    assert {each.file for each in problems(run_copy) if each.kind == "sha256"} == {
        f"shards/{path.name}" for path in (one, two)
    }


def test_exit_codes_and_messages(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(run_copy), "--deep"]) == 0
    assert "everything is as committed" in capsys.readouterr().out
    change(shards(run_copy)[0], 600, b"\x01\x02")
    assert main(["verify", str(run_copy)]) == 1
    printed = capsys.readouterr()
    assert "problems, named above" in printed.out
    assert "bytes 512 to" in printed.err
    assert main(["verify", str(run_copy), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["problems"][0]["file"].startswith("shards/")
    change(run_copy / "plan.json", 0, b"[")
    assert main(["verify", str(run_copy)]) == 1
    assert "plan.json" in capsys.readouterr().err


def rewrite(directory: Path, unit: int, kind: str, edit: Callable[[list[dict[str, Any]]], None]) -> None:
    """Changes an index so that sizes and hashes still agree: only `--deep` can see that it is wrong."""
    path = directory / "commits" / f"{unit:08d}.json"
    record = json.loads(path.read_bytes())
    file = record["index"][kind]
    table = schema.SAMPLES_SCHEMA if kind == "samples" else schema.MASKS_SCHEMA
    rows = pq.read_table(directory / file["name"]).to_pylist()
    edit(rows)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=table), sink)
    data = sink.getvalue().to_pybytes()
    sha256 = schema.sha256_of(data)
    name = f"index/{kind}-{unit:08d}-{sha256[:8]}.parquet"
    (directory / name).write_bytes(data)
    file.update(name=name, size=len(data), sha256=sha256)
    path.write_bytes(schema.canonical_json(schema.sealed(record)))
    (directory / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("samples", {"width": 17}, "differs from the sample in width"),
        ("samples", {"license": "MIT"}, "differs from the sample in license"),
        ("samples", {"source_sha256": "0" * 64}, "sha256"),
        ("samples", {"json_offset": 1024}, "the index puts"),
        ("masks", {"granularity": 0.2}, "rows in the masks' index differ"),
        ("masks", {"parent_id": 0}, "rows in the masks' index differ"),
    ],
)
def test_deep_finds_an_index_that_differs_from_the_shard(
    run_copy: Path, kind: str, changes: dict[str, Any], message: str
) -> None:
    rewrite(run_copy, 1, kind, lambda rows: rows[0].update(changes))
    assert problems(run_copy) == []
    assert any(message in str(each) for each in problems(run_copy, deep=True))


def test_a_key_in_two_units_is_named(run_copy: Path) -> None:
    stolen = open_dataset(run_copy).samples(next(open_dataset(run_copy).units())).to_pylist()[0]["key"]
    rewrite(run_copy, 1, "samples", lambda rows: rows[0].update(key=stolen))
    named = [each for each in problems(run_copy) if each.key == stolen and "more than once" in each.message]
    assert [each.file for each in named] == ["commits/00000000.json", "commits/00000001.json"]


def test_wrong_counts_in_a_commit_are_named(run_copy: Path) -> None:
    path = run_copy / "commits" / "00000001.json"
    record = json.loads(path.read_bytes())
    record["shard"]["masks"] += 1
    path.write_bytes(schema.canonical_json(schema.sealed(record)))
    said = "\n".join(str(each) for each in problems(run_copy))
    assert "commits/00000001.json" in said
    assert "manifest.json" in said


@pytest.mark.slow
def test_several_processes_find_the_same(run_copy: Path) -> None:
    change(shards(run_copy)[2], 700, b"\x01\x02\x03")
    run = open_dataset(run_copy)
    assert [str(each) for each in verify_run(run, deep=True, workers=2)] == [
        str(each) for each in verify_run(run, deep=True)
    ]


def test_an_object_store_verifies_as_well(drawn_run: Path) -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    for path in drawn_run.rglob("*"):
        if path.is_file():
            store.pipe_file(f"/verify-test/{path.relative_to(drawn_run).as_posix()}", path.read_bytes())
    open_storage("memory://verify-test")
    assert list(verify_run(open_dataset("memory://verify-test"), deep=True)) == []
