"""Inputs: every kind of source gives its samples once, in one order, with their bytes unchanged."""

from __future__ import annotations

import io
import json
import os
import random
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError, SampleFailureError
from pipeline.format.schema import make_key, sha256_of
from pipeline.sources.changes import check_unchanged
from pipeline.sources.listing import plan_units
from pipeline.sources.unit_reader import UnitReader
from pipeline.sources.units import Entry, InputSample, SourceSpec, UnitSpec, parse_inputs


def specs_of(*values: object) -> tuple[SourceSpec, ...]:
    return parse_inputs([str(value) for value in values])


def units_of(specs: Sequence[SourceSpec], *, size: int = 2, limit: int | None = None) -> list[UnitSpec]:
    return list(plan_units(specs, samples_per_shard=size, limit=limit))


def entries_of(specs: Sequence[SourceSpec]) -> list[Entry]:
    return [entry for unit in units_of(specs) for entry in unit.entries]


def read_all(specs: Sequence[SourceSpec]) -> dict[str, InputSample | str]:
    """`path` or `path!member` -> the sample, or the reason why it cannot be read."""
    found: dict[str, InputSample | str] = {}
    for unit in units_of(specs):
        with UnitReader(unit, specs) as reader:
            for position, entry in enumerate(unit.entries):
                name = entry.path if entry.member is None else f"{entry.path}!{entry.member}"
                assert name not in found or entry.occurrence
                name += f"#{entry.occurrence}" if entry.occurrence else ""
                try:
                    found[name] = reader.read(position)
                except SampleFailureError as error:
                    found[name] = error.reason
    return found


def images_of(found: Mapping[str, InputSample | str]) -> dict[str, bytes]:
    return {name: each.image for name, each in found.items() if isinstance(each, InputSample)}


def reasons_of(found: Mapping[str, InputSample | str]) -> dict[str, str]:
    return {name: each for name, each in found.items() if isinstance(each, str)}


def write_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


# ---------------------------------------------------------------------------------------------------------------------
# The command line


def test_labels_come_from_the_path_or_are_given(tmp_path: Path) -> None:
    specs = parse_inputs([f"mine={tmp_path}", str(tmp_path / "My Photos.tar"), "s3://bucket/some/Folder/"])
    assert [each.label for each in specs] == ["mine", "my-photos", "folder"]
    assert specs[0].location == str(tmp_path)
    assert parse_inputs(["x"], licenses={"x": "CC0-1.0"})[0].license == "CC0-1.0"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "at least one source"),
        (["a=x", "a=y"], "two sources are called 'a'"),
        (["photos/x", "other/x"], "two sources"),
        (["A B=x"], "a label has at most 40"),
        (["a="], "nothing behind the label"),
    ],
)
def test_bad_inputs_are_told(values: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_inputs(values)


def test_a_licence_for_a_source_that_is_not_there() -> None:
    with pytest.raises(InputError, match="'b'"):
        parse_inputs(["a=x"], licenses={"b": "MIT"})


@pytest.mark.parametrize(
    "location", ["ftp://host/x", "pipe:cat x", "zip://a::s3://b", "s3://user:secret@bucket/x", "http://host/x?token=1"]
)
def test_urls_that_are_not_allowed(location: str) -> None:
    with pytest.raises(InputError) as caught:
        units_of(specs_of(f"a={location}"))
    assert "secret" not in str(caught.value)
    assert "token" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------
# Folders, globs, files

FILES = {
    "b/z.PNG": b"1", "b/a.jpeg": b"22", "a.jpg": b"333", "b.webp": b"4444", "B.tif": b"5", "b-c.bmp": b"6",
    "c/d/e/deep.TIFF": b"77", "straße.jpg": b"8",
}  # fmt: skip


def test_folders_are_walked_in_the_order_of_their_paths_bytes(tmp_path: Path) -> None:
    write_files(tmp_path, FILES)
    write_files(tmp_path, {".hidden/x.jpg": b"no", ".x.jpg": b"no", "notes.txt": b"no", "b/list.csv": b"no"})
    specs = specs_of(f"in={tmp_path}")
    assert [entry.path for entry in entries_of(specs)] == sorted(FILES, key=lambda name: name.encode())
    assert images_of(read_all(specs)) == FILES


def test_samples_know_where_they_come_from(tmp_path: Path) -> None:
    write_files(tmp_path, {"b/a.jpg": b"bytes"})
    sample = read_all(parse_inputs([f"in={tmp_path}"], licenses={"in": "CC-BY-4.0"}))["b/a.jpg"]
    assert isinstance(sample, InputSample)
    assert (sample.source_uri, sample.member, sample.license) == ("in/b/a.jpg", None, "CC-BY-4.0")
    assert sample.sha256 == sha256_of(b"bytes")
    assert sample.key == make_key(
        label="in", relative_path="b/a.jpg", member=None, occurrence=0, sha256=sha256_of(b"bytes")
    )


def test_globs_and_single_files(tmp_path: Path) -> None:
    write_files(tmp_path, FILES)
    assert [entry.path for entry in entries_of(specs_of(f"in={tmp_path}/b/*"))] == ["a.jpeg", "z.PNG"]
    every = [entry.path for entry in entries_of(specs_of(f"in={tmp_path}/**/*.*"))]
    assert every == sorted(FILES, key=lambda name: name.encode())
    assert [entry.path for entry in entries_of(specs_of(f"in={tmp_path}/b/z.PNG"))] == ["z.PNG"]
    with pytest.raises(InputError, match="no file matches"):
        units_of(specs_of(f"in={tmp_path}/*.gif"))
    with pytest.raises(InputError, match="found nothing there"):
        units_of(specs_of(f"in={tmp_path}/missing"))


def test_links_to_files_are_followed_and_to_folders_not(tmp_path: Path) -> None:
    write_files(tmp_path / "in", {"a.jpg": b"1"})
    write_files(tmp_path / "other", {"b.jpg": b"2"})
    (tmp_path / "in" / "l.jpg").symlink_to(tmp_path / "other" / "b.jpg")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    found = read_all(specs_of(f"in={tmp_path / 'in'}"))
    assert images_of(found) == {"a.jpg": b"1", "l.jpg": b"2"}
    assert reasons_of(found) == {"gone.jpg": "source_missing"}


def test_names_that_are_not_utf8_are_rows_and_resume_well(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jpg": b"1", "z.jpg": b"2"})
    for name in (b"\xff.jpg", b"\x01b.jpg", b"caf\xe9.png"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(b"3")
    specs = specs_of(f"in={tmp_path}")
    found = read_all(specs)
    assert images_of(found) == {"a.jpg": b"1", "z.jpg": b"2"}
    bad = ("\\xff.jpg", "\\x01b.jpg", "caf\\xe9.png")
    assert reasons_of(found) == dict.fromkeys(bad, "bad_member_name")
    paths = [entry.path for entry in entries_of(specs)]
    assert paths == sorted(paths, key=lambda path: path.encode())
    assert check_unchanged(specs, units_of(specs)) == []


def test_units_are_cut_within_a_source_and_limited_over_all(tmp_path: Path) -> None:
    write_files(tmp_path / "a", {f"{n}.jpg": b"x" for n in range(5)})
    write_files(tmp_path / "b", {f"{n}.jpg": b"x" for n in range(3)})
    specs = specs_of(tmp_path / "a", tmp_path / "b")
    shape = [(unit.unit, unit.source, len(unit.entries)) for unit in units_of(specs)]
    assert shape == [(0, 0, 2), (1, 0, 2), (2, 0, 1), (3, 1, 2), (4, 1, 1)]
    shape = [(unit.unit, unit.source, len(unit.entries)) for unit in units_of(specs, limit=6)]
    assert shape == [(0, 0, 2), (1, 0, 2), (2, 0, 1), (3, 1, 1)]


def test_a_unit_survives_its_row(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jpg": b"1", "a.json": b"{}"})
    (unit,) = units_of(specs_of(tmp_path))
    assert UnitSpec.from_row(unit.to_row()) == unit


# ---------------------------------------------------------------------------------------------------------------------
# SA-1B and WebDataset


def test_sa1b_folders_pair_images_with_their_annotations(tmp_path: Path) -> None:
    write_files(
        tmp_path, {"sa_000020/sa_1.jpg": b"one", "sa_000020/sa_1.json": b'{"annotations": []}', "sa_2.jpg": b"two"}
    )
    found = read_all(specs_of(f"in={tmp_path}"))
    one, two = found["sa_000020/sa_1.jpg"], found["sa_2.jpg"]
    assert isinstance(one, InputSample)
    assert isinstance(two, InputSample)
    assert (one.image, one.annotation_json) == (b"one", b'{"annotations": []}')
    assert two.annotation_json is None


def test_sa1b_tars_with_folders_in_the_member_names(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "sa_000020.tar",
        [
            ("./sa_000020/sa_1.jpg", b"one"), ("./sa_000020/sa_1.json", b"{1}"), ("sa.000021/sa_1.json", b"{2}"),
            ("sa.000021/sa_1.jpg", b"two"),
        ],
    )  # fmt: skip
    found = read_all(specs_of(f"in={path}"))
    assert list(found) == ["sa_000020.tar!sa_000020/sa_1.jpg", "sa_000020.tar!sa.000021/sa_1.jpg"]
    samples = [each for each in found.values() if isinstance(each, InputSample)]
    assert [(each.image, each.annotation_json) for each in samples] == [(b"one", b"{1}"), (b"two", b"{2}")]
    assert len({each.key for each in samples}) == 2
    assert samples[0].source_uri == "in/sa_000020.tar"
    assert samples[0].member == "sa_000020/sa_1.jpg"


def test_webdataset_members_of_a_sample_in_any_order(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "w.tar",
        [
            ("x/1.cls", b"7"), ("x/1.mask.png", b"mask"), ("x/2.jpg", b"two"), ("x/1.JPG", b"one"),
            ("x/2.caption.txt", b"a dog"), ("x/1.json", b"{}"), ("x/3.seg.png", b"three"), ("y/1.png", b"other"),
        ],
    )  # fmt: skip
    assert images_of(read_all(specs_of(f"in={path}"))) == {
        "w.tar!x/1.JPG": b"one", "w.tar!x/2.jpg": b"two", "w.tar!x/3.seg.png": b"three", "w.tar!y/1.png": b"other",
    }  # fmt: skip


def test_duplicate_and_incomplete_samples_are_rows(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "w.tar",
        [
            ("a.jpg", b"first"), ("b.jpg", b"between"), ("a.jpg", b"second"), ("a.jpg", b"third"), ("c.json", b"{}"),
            ("a.json", b"{}"),
        ],
    )  # fmt: skip
    found = read_all(specs_of(f"in={path}"))
    assert images_of(found) == {"w.tar!a.jpg": b"first", "w.tar!b.jpg": b"between"}
    assert reasons_of(found) == {
        "w.tar!a.jpg#1": "duplicate_key", "w.tar!a.jpg#2": "duplicate_key", "w.tar!c.json": "incomplete_sample",
    }  # fmt: skip
    first = found["w.tar!a.jpg"]
    assert isinstance(first, InputSample)
    assert first.annotation_json == b"{}"


def test_harmful_members_are_rows_and_nothing_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "w.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("../x.jpg", "/abs.jpg", "good.jpg"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"1"))
        for name, kind in (("link.jpg", tarfile.SYMTYPE), ("hard.jpg", tarfile.LNKTYPE), ("dev.jpg", tarfile.CHRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    found = read_all(specs_of(f"in={path}"))
    assert images_of(found) == {"w.tar!good.jpg": b"1"}
    names = ("../x.jpg", "/abs.jpg", "link.jpg", "hard.jpg", "dev.jpg")
    assert reasons_of(found) == {f"w.tar!{name}": "bad_member_name" for name in names}


# ---------------------------------------------------------------------------------------------------------------------
# Parquet

BYTES = [b"zero", b"one", b"two", b"three", b"four"]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_parquet_with_a_column_of_bytes(kind: pa.DataType, tmp_path: Path) -> None:
    table = pa.table({"label": list(range(5)), "jpg": pa.array(BYTES, kind)})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    specs = specs_of(f"in={tmp_path}")
    assert images_of(read_all(specs)) == {f"t.parquet!{row}": data for row, data in enumerate(BYTES)}


def test_parquet_with_the_hubs_struct(tmp_path: Path) -> None:
    column = [{"bytes": data, "path": f"{row}.jpg"} for row, data in enumerate(BYTES)]
    column[1] = {"bytes": None, "path": "elsewhere.jpg"}
    column[3] = None  # type: ignore[call-overload]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(column, struct), "mask": BYTES}), tmp_path / "t.parquet")
    found = read_all(specs_of(f"in={tmp_path}"))
    assert images_of(found) == {
        "t.parquet!0/0.jpg": b"zero", "t.parquet!2/2.jpg": b"two", "t.parquet!4/4.jpg": b"four",
    }  # fmt: skip
    assert reasons_of(found) == {"t.parquet!1/elsewhere.jpg": "source_missing", "t.parquet!3": "incomplete_sample"}
    sample = found["t.parquet!2/2.jpg"]
    assert isinstance(sample, InputSample)
    assert sample.key.startswith("2-")


def test_paths_of_rows_are_names_and_tell_of_nobodys_home(tmp_path: Path) -> None:
    paths = ["train/a.jpg", "/home/somebody/b.jpg", "C:\\photos\\c.jpg", "../d.jpg", "", None, "train/a.jpg", "e\n.jpg"]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    column = pa.array([{"bytes": b"%d" % row, "path": path} for row, path in enumerate(paths)], struct)
    pq.write_table(pa.table({"image": column}), tmp_path / "t.parquet", row_group_size=3)
    names = [entry.member for entry in entries_of(specs_of(f"in={tmp_path}"))]
    assert names == ["0/train/a.jpg", "1/b.jpg", "2/c.jpg", "3/d.jpg", "4", "5", "6/train/a.jpg", "7"]
    assert list(images_of(read_all(specs_of(f"in={tmp_path}"))).values()) == [b"%d" % row for row in range(8)]


def test_the_image_column_is_named_where_a_table_has_several(tmp_path: Path) -> None:
    pq.write_table(pa.table({"left": [b"l"], "right": [b"r"]}), tmp_path / "two.parquet")
    for column, expected in {"left": b"l", "right": b"r"}.items():
        specs = parse_inputs([f"in={tmp_path}"], image_column=column)
        assert images_of(read_all(specs)) == {"two.parquet!0": expected}
    for column, message in {None: "--image-column", "middle": "image column 'middle'"}.items():
        (entry,) = entries_of(parse_inputs([f"in={tmp_path}"], image_column=column))
        assert (entry.reason, message in (entry.message or "")) == ("unsupported_format", True)


def test_parquet_rows_can_be_read_in_any_order(tmp_path: Path) -> None:
    many = [f"image {row}".encode() for row in range(60)]
    pq.write_table(pa.table({"image": many}), tmp_path / "t.parquet", row_group_size=25)
    specs = specs_of(f"in={tmp_path}")
    (unit,) = plan_units(specs, samples_per_shard=100, limit=None)
    order = list(range(60))
    random.Random(5).shuffle(order)
    with UnitReader(unit, specs) as reader:
        assert [reader.read(row).image for row in order] == [many[row] for row in order]


def test_parquet_that_cannot_be_used_is_one_row(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": [1, 2]}), tmp_path / "numbers.parquet")
    pq.write_table(pa.table({"left": BYTES, "right": BYTES}), tmp_path / "two.parquet")
    pq.write_table(pa.table({"image": BYTES}), tmp_path / "cut.parquet")
    data = (tmp_path / "cut.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(data[:-20])
    (tmp_path / "text.parquet").write_text("hello")
    assert reasons_of(read_all(specs_of(f"in={tmp_path}"))) == {
        "cut.parquet": "truncated_source", "numbers.parquet": "unsupported_format", "text.parquet": "truncated_source",
        "two.parquet": "unsupported_format",
    }  # fmt: skip


def test_damaged_parquet_pages_are_rows_of_their_samples(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": [bytes([row]) * 400 for row in range(20)]}), path, compression="zstd")
    data = bytearray(path.read_bytes())
    data[40:200] = bytes(160)
    path.write_bytes(bytes(data))
    found = read_all(specs_of(f"in={tmp_path}"))
    assert len(found) == 20
    assert set(reasons_of(found).values()) <= {"unreadable", "truncated"}


# ---------------------------------------------------------------------------------------------------------------------
# Changed sources, other roots


def changed(specs: Sequence[SourceSpec], units: Sequence[UnitSpec], **options: Any) -> list[str]:
    return check_unchanged(specs, units, **options)


def test_changed_and_missing_files_are_named(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jpg": b"1", "b.jpg": b"2", "b.json": b"{}", "c.jpg": b"3"})
    specs = specs_of(f"in={tmp_path}")
    units = units_of(specs)
    assert changed(specs, units) == []
    for name, data in (("b.jpg", b"22"), ("b.json", b"{ }"), ("c.jpg", b"33")):
        before = (tmp_path / name).read_bytes()
        status = (tmp_path / name).stat()
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=rf"in/{name}.*{len(before)} bytes then, {len(data)} now"):
            changed(specs, units)
        (tmp_path / name).unlink()
        with pytest.raises(InputError, match=rf"in/{name} was planned and is not"):
            changed(specs, units)
        (tmp_path / name).write_bytes(before)
        os.utime(tmp_path / name, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert changed(specs, units) == []
    os.utime(tmp_path / "a.jpg", ns=(1, 1))
    with pytest.raises(InputError, match=r"in/a\.jpg.*same size, changed since"):
        changed(specs, units)
    with UnitReader(units[0], specs) as reader, pytest.raises(InputError, match="not what was planned"):
        reader.read(0)


def test_new_files_are_told_and_can_be_planned_behind(tmp_path: Path) -> None:
    write_files(tmp_path, {"b.jpg": b"1", "d.jpg": b"2"})
    specs = specs_of(f"in={tmp_path}")
    units = units_of(specs)
    write_files(tmp_path, {"a.jpg": b"3", "c.jpg": b"4", "e.jpg": b"5"})
    new = changed(specs, units)
    assert new == ["in/a.jpg", "in/c.jpg", "in/e.jpg"]
    assert changed(specs, units, limited=True) == ["in/a.jpg", "in/c.jpg"]
    further = list(plan_units(specs, samples_per_shard=2, limit=None, first_unit=1, only=frozenset(new)))
    assert [[entry.path for entry in unit.entries] for unit in further] == [["a.jpg", "c.jpg"], ["e.jpg"]]
    assert changed(specs, [*units, *further]) == []
    (tmp_path / "c.jpg").write_bytes(b"44")
    with pytest.raises(InputError, match=r"in/c\.jpg"):
        changed(specs, [*units, *further])


def test_a_url_is_read_as_a_folder_is(tmp_path: Path) -> None:
    write_files(tmp_path, {"b/a.jpg": b"1", "b/a.json": b"{}", "c.png": b"22"})
    write_tar(tmp_path / "t.tar", [("x.jpg", b"333"), ("x.json", b"[]")])
    store = fsspec.filesystem("memory")
    for path in tmp_path.rglob("*.*"):
        store.pipe_file(f"/sources-test/{path.relative_to(tmp_path).as_posix()}", path.read_bytes())
    here, there = specs_of(f"in={tmp_path}"), specs_of("in=memory://sources-test")
    local, remote = read_all(here), read_all(there)
    assert list(local) == list(remote)
    for name, sample in local.items():
        assert sample == remote[name]
    assert check_unchanged(there, units_of(there)) == []
    assert [entry.path for entry in entries_of(specs_of("in=memory://sources-test/b/*.jpg"))] == ["a.jpg"]
    slash = entries_of(specs_of("in=memory://sources-test/*/"))
    assert [entry.path for entry in slash] == [
        entry.path for entry in entries_of(specs_of("in=memory://sources-test/*"))
    ]


def test_a_huge_member_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.jpg"
    with path.open("wb") as stream:
        stream.truncate(3 * 2**30)  # a sparse file: nothing is written
    assert reasons_of(read_all(specs_of(f"in={tmp_path}"))) == {"huge.jpg": "too_large"}


def test_json_is_never_needed_to_read_an_image(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jpg": b"1", "a.json": json.dumps({"annotations": "no"}).encode()})
    assert images_of(read_all(specs_of(f"in={tmp_path}"))) == {"a.jpg": b"1"}
