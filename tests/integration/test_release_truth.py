"""`verify` of a release names what was flipped, dropped, swapped, added or forged."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main
from pipeline.format.schema import canonical_json, sealed
from pipeline.release.commit import sums_text
from pipeline.release.records import file_record
from pipeline.release.verify import verify_release
from pipeline.storage.open import open_storage


@pytest.fixture
def copy(drawn_release: Path, tmp_path: Path) -> Path:
    shutil.copytree(drawn_release, tmp_path / "rel")
    return tmp_path / "rel"


def problems(folder: Path, *, deep: bool = False) -> list[str]:
    return [str(problem) for problem in verify_release(open_storage(folder), deep=deep)]


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_one_flipped_byte_anywhere_is_named(copy: Path) -> None:
    """In every file: the first byte, the last, and three others."""
    choose = random.Random(5)
    for name in names(copy):
        path = copy / name
        data = path.read_bytes()
        places = {0, len(data) - 1, *(choose.randrange(len(data)) for _ in range(3))}
        for place in places if not name.startswith(("gallery/", "figures/")) else [choose.choice(sorted(places))]:
            path.write_bytes(data[:place] + bytes([data[place] ^ 1 << choose.randrange(8)]) + data[place + 1 :])
            found = problems(copy)
            assert any(name in problem for problem in found), (name, place, found[:3])
        path.write_bytes(data)
    assert problems(copy) == []


def test_one_dropped_file_is_named(copy: Path) -> None:
    for name in names(copy):
        data = (copy / name).read_bytes()
        (copy / name).unlink()
        found = problems(copy)
        assert any(name in problem for problem in found), (name, found[:3])
        (copy / name).write_bytes(data)
    assert problems(copy) == []


def test_a_flipped_byte_of_a_shard_is_placed(copy: Path) -> None:
    """The member and its byte range, not only the file."""
    shard = min((copy / "shards").glob("*.tar"))
    data = bytearray(shard.read_bytes())
    data[600] ^= 1
    shard.write_bytes(data)
    assert any("bytes 512 to" in problem and "script-" in problem for problem in problems(copy))


def test_two_swapped_shards_are_named(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = sorted((copy / "shards").glob("*.tar"))[:2]
    ours, theirs = first.read_bytes(), second.read_bytes()
    first.write_bytes(theirs)
    second.write_bytes(ours)
    assert main(["verify", str(copy), "--json"]) == 1
    found = {problem["file"] for problem in json.loads(capsys.readouterr().out)["problems"]}
    assert {f"shards/{first.name}", f"shards/{second.name}"} <= found


def test_a_file_that_nothing_names_is_named_where_loaders_look(copy: Path) -> None:
    (copy / "shards" / "00000009-00000000.tar").write_bytes(b"")
    (copy / "notes.txt").write_text("a reader's own", encoding="utf-8")
    assert [problem.split(":")[0] for problem in problems(copy)] == ["shards/00000009-00000000.tar"]


def forge(folder: Path, name: str, old: str, new: str) -> None:
    """Changes a text and everything that vouches for it: its record, the seals, the sums."""
    text = (folder / name).read_text(encoding="utf-8")
    assert old in text
    data = text.replace(old, new, 1).encode()
    (folder / name).write_bytes(data)
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
    manifest["files"] = [file_record(name, data) if each["name"] == name else each for each in manifest["files"]]
    reseal(folder, manifest)


def reseal(folder: Path, manifest: dict[str, Any]) -> None:
    data = canonical_json(sealed(manifest))
    (folder / "manifest.json").write_bytes(data)
    (folder / "versions" / manifest["version"] / "manifest.json").write_bytes(data)
    (folder / "SHA256SUMS").write_bytes(sums_text(manifest, data))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("README.md", "| masks | 35,", "| masks | 36,"),
        ("README.md", "7 photographs with 35", "7 photographs with 350"),
        ("README.md", "| 0.5 to 0.6 | 7 | 20.0 % |", "| 0.5 to 0.6 | 8 | 20.0 % |"),
        ("statistics.json", '"instances":21', '"instances":22'),
        ("figures/granularity.svg", ">21<", ">22<"),
        ("CHANGELOG.md", "7 images, 35 masks", "8 images, 35 masks"),
        ("croissant.json", "35 segmentation masks", "36 segmentation masks"),
    ],
)
def test_a_number_that_does_not_follow_from_the_data_is_named(copy: Path, name: str, old: str, new: str) -> None:
    """Whoever changes a number and mends all checksums is still found: every number is computed again."""
    forge(copy, name, old, new)
    assert [problem.split(":")[0].split(" ")[0] for problem in problems(copy)] == [name]


def test_a_card_of_another_template_is_checked_by_its_numbers(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_bytes())
    manifest["card"]["template_sha256"] = "0" * 64
    reseal(copy, manifest)
    forge(copy, "README.md", "No person drew or named a mask", "Nobody named a mask")
    assert problems(copy) == []
    forge(copy, "README.md", "35 segmentation masks", "350 segmentation masks")
    assert [problem.split(":")[0] for problem in problems(copy)] == ["README.md"]


@pytest.mark.parametrize("field", ["samples", "masks", "failures", "digest"])
def test_a_manifest_with_wrong_totals_is_named(copy: Path, field: str) -> None:
    manifest = json.loads((copy / "manifest.json").read_bytes())
    manifest[field] = "0" * 64 if field == "digest" else manifest[field] + 1
    reseal(copy, manifest)
    assert any(problem.startswith("manifest.json") and field in problem for problem in problems(copy))


def test_deep_compares_the_index_with_every_sample(copy: Path) -> None:
    """An index with another granularity, checksums mended: only the shards themselves tell."""
    import hashlib
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    manifest = json.loads((copy / "manifest.json").read_bytes())
    record = manifest["index"]["masks"]
    table = pq.read_table(copy / record["name"])
    values = table.column("level").to_pylist()
    changed = table.set_column(
        table.schema.get_field_index("level"), table.schema.field("level"), pa.array([*values[:-1], 7], pa.int32())
    )
    sink = io.BytesIO()
    pq.write_table(changed, sink)
    data = sink.getvalue()
    (copy / record["name"]).write_bytes(data)
    record |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    reseal(copy, manifest)
    assert not any("masks' index differ" in problem for problem in problems(copy))
    assert any("z-late" in problem and "masks' index differ" in problem for problem in problems(copy, deep=True))
