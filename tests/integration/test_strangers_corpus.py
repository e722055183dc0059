"""A stranger's corpus: odd files x damage x place, and the exact row or count that each becomes.

Every input that once went wrong gets a line in one of the tables. What is planned is read and decoded as a worker does
it, without being mined, so a line costs milliseconds. An outcome is `ok`, the reason of a failure row, or, in brackets,
the reason for which it is counted and not used.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import secrets
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from model.evaluation.benchmarks import files as layout
from model.predict import image_files
from model.predict.video import Frames
from pipeline.cli import main
from pipeline.dataset.open import open_dataset
from pipeline.dataset.status import run_status
from pipeline.dataset.viewer import image_record, report_of_run, thumbnail_jpeg
from pipeline.errors import InputError, SampleFailureError
from pipeline.release.charts import example_jpeg
from pipeline.release.duplicates import signature_of_bytes
from pipeline.sources.changes import check_unchanged
from pipeline.sources.images import decode_image
from pipeline.sources.listing import plan_units
from pipeline.sources.passed_over import PassedOver, rows
from pipeline.sources.unit_reader import UnitReader
from pipeline.sources.units import parse_inputs


def outcomes(location: object, **options: Any) -> dict[str, str]:
    """File or `file!member` -> outcome; `[reason kind]` -> how many, for what is counted."""
    specs = parse_inputs([f"in={location}"], **options)
    passed, found = PassedOver(), {}
    for unit in plan_units(specs, samples_per_shard=100, limit=None, passed=passed):
        with UnitReader(unit, specs) as reader:
            for position, entry in enumerate(unit.entries):
                name = entry.path if entry.member is None else f"{entry.path}!{entry.member}"
                try:
                    decode_image(reader.read(position).image, max_pixels=10**6)
                    found[name] = "ok"
                except SampleFailureError as error:
                    found[name] = error.reason
    for reason, each in passed.to_json().items():
        for kind, count in each["kinds"].items():
            found[f"[{reason} {kind}]"] = str(count)
        if left := each["count"] - sum(each["kinds"].values()):
            found[f"[{reason}]"] = str(left)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Images: formats x damage


def encoded(kind: str, *, size: tuple[int, int] = (24, 16), mode: str = "RGB", **options: Any) -> bytes:
    noise = np.random.default_rng(1).integers(0, 256, size=(size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def changed(data: bytes, place: float) -> bytes:
    """With one byte changed, at a share of the length."""
    index = int(len(data) * place)
    return data[:index] + bytes([data[index] ^ 0x55]) + data[index + 1 :]


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of(*chunks: bytes, width: int = 2, height: int = 1) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


ROW: Final = chunk(b"IDAT", zlib.compress(b"\0\x07\xf0"))
JPEG, PNG, WEBP = encoded("JPEG"), encoded("PNG"), encoded("WEBP", lossless=True)
TIFF, BMP = encoded("TIFF"), encoded("BMP")
LZW, DEFLATE = encoded("TIFF", compression="tiff_lzw"), encoded("TIFF", compression="tiff_adobe_deflate")
GIF = encoded("GIF", mode="P")
HTML = b"<!DOCTYPE html>\n<html><body>this link has expired</body></html>" + b" " * 600

IMAGES: Final[dict[str, tuple[bytes, str]]] = {
    "jpeg.jpg": (JPEG, "ok"),
    "jpeg-progressive.jpg": (encoded("JPEG", progressive=True), "ok"),
    "jpeg-cmyk.jpg": (encoded("JPEG", mode="CMYK"), "ok"),
    "jpeg-with-bytes-behind.jpg": (JPEG + b"\0" * 40, "ok"),
    "jpeg-cut.jpg": (JPEG[: len(JPEG) // 2], "truncated"),
    "jpeg-without-its-last-two-bytes.jpg": (JPEG[:-2], "truncated"),
    "jpeg-no-more-than-a-mark.jpg": (b"\xff\xd8\xff\xe0", "truncated"),
    "jpeg-called-png.png": (JPEG, "ok"),
    "png.png": (PNG, "ok"),
    "png-palette.png": (encoded("PNG", mode="P"), "ok"),
    "png-grey-with-alpha.png": (encoded("PNG", mode="LA"), "ok"),
    "png-cut.png": (PNG[: len(PNG) // 2], "truncated"),
    "png-cut-in-its-checksum.png": (PNG[:-14], "truncated"),
    "png-one-byte-changed.png": (changed(PNG, 0.5), "unreadable"),
    "png-wrong-checksum.png": (PNG[:-16] + bytes([PNG[-16] ^ 1]) + PNG[-15:], "unreadable"),
    "png-pixels-that-are-no-zlib.png": (png_of(chunk(b"IDAT", b"no zlib")), "unreadable"),
    "png-too-large.png": (png_of(ROW, width=40_000, height=40_000), "too_large"),
    "png-much-text.png": (png_of(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(3 * 2**20))), ROW), "ok"),
    "webp.webp": (WEBP, "ok"),
    "webp-cut.webp": (WEBP[: len(WEBP) // 2], "truncated"),
    "webp-header-changed.webp": (WEBP[:21] + b"\xff\xff" + WEBP[23:], "unreadable"),
    "tiff.tif": (TIFF, "ok"),
    "tiff-cut.tif": (TIFF[: len(TIFF) // 2], "truncated"),
    "tiff-lzw.tif": (LZW, "ok"),
    "tiff-deflate-changed.tif": (changed(DEFLATE, 0.5), "unreadable"),
    "bmp.bmp": (BMP, "ok"),
    "bmp-cut.bmp": (BMP[: len(BMP) // 2], "truncated"),
    "gif.jpg": (GIF, "unsupported_format"),
    "html.jpg": (HTML, "unsupported_format"),
    "empty.jpg": (b"", "unreadable"),
    "zeros.jpg": (bytes(2000), "unsupported_format"),
}
"""Name -> bytes and what becomes of them, wherever they lie."""


def write_folder(put: Callable[[str, bytes], object], files: dict[str, bytes]) -> None:
    for name, data in files.items():
        put(name, data)


def tar_of(files: dict[str, bytes] | list[tuple[str, bytes]]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in files.items() if isinstance(files, dict) else files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def parquet_of(column: list[Any], *, name: str = "image") -> bytes:
    struct_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    array = pa.array(column, struct_type if any(isinstance(each, dict) for each in column) else pa.binary())
    stream = io.BytesIO()
    pq.write_table(pa.table({name: array}), stream, row_group_size=7)
    return stream.getvalue()


@pytest.fixture(params=["folder", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Callable[[str, bytes], object]]]:
    """A location, and what puts a file there."""
    if request.param == "s3":
        pytest.importorskip("moto", reason="moto is not installed (the extra `dev`)")
        pytest.importorskip("s3fs", reason="s3fs is not installed (the extra `s3`)")
        location = f"{request.getfixturevalue('s3')}/{secrets.token_hex(4)}"
    else:
        location = str(tmp_path / "in") if request.param == "folder" else f"memory://{secrets.token_hex(4)}"
    fs, base = fsspec.core.url_to_fs(location)

    def put(name: str, data: bytes) -> None:
        if request.param == "folder":
            (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "in" / name).write_bytes(data)
        else:
            fs.pipe_file(f"{base}/{name}", data)

    yield location, put
    if request.param == "memory":
        fs.rm(base, recursive=True)


Place = tuple[str, Callable[[str, bytes], object]]


def test_images_are_samples_or_failures_wherever_they_lie(place: Place) -> None:
    location, put = place
    expected = {}
    for name, (data, outcome) in IMAGES.items():
        put(name, data)
        expected[name] = outcome
    members = {name: data for name, (data, _) in IMAGES.items()}
    put("t.tar", tar_of(members))
    expected |= {f"t.tar!{name}": outcome for name, (_, outcome) in IMAGES.items()}
    put("t.parquet", parquet_of([{"bytes": data, "path": name} for name, data in members.items()]))
    numbered = {f"t.parquet!{row}/{name}": outcome for row, (name, (_, outcome)) in enumerate(IMAGES.items())}
    assert outcomes(location) == expected | numbered


def test_what_has_no_ending_is_known_by_its_first_bytes(place: Place) -> None:
    """The same images without endings, and with ones that say nothing: whole or damaged, they are images."""
    location, put = place
    expected: dict[str, str] = {}
    unknown = {"gif.jpg": "[unsupported_image GIF]", "html.jpg": "[other an HTML page]"}
    for name, (data, outcome) in IMAGES.items():
        stem = name.partition(".")[0]
        for called in (stem,) if location.startswith("s3:") else (stem, f"v1.0/{stem}", f"{stem}.download"):
            put(called, data)
            if name in ("gif.jpg", "html.jpg", "empty.jpg", "zeros.jpg"):
                ending = ".download" if called.endswith(".download") else "no ending"
                key = unknown.get(name, f"[other {ending}]")
                expected[key] = str(int(expected.get(key, 0)) + 1)
            else:
                expected[called] = outcome
    assert outcomes(location) == expected
    specs = parse_inputs([f"in={location}"])
    assert check_unchanged(specs, plan_units(specs, samples_per_shard=100, limit=None)) == []


def test_every_reader_of_photographs_refuses_the_same_bytes(tmp_path: Path, drawn_run: Path) -> None:
    """`segment`, `score`, the frames of a video, the report, the release's gallery, examples and duplicates."""
    run = open_dataset(drawn_run)
    row = next(row for unit in run.units() for row in run.samples(unit).to_pylist())
    sample = run.read_sample(row)
    readers: dict[str, Callable[[Path], object]] = {
        "segment": lambda path: image_files.read_rgb(str(path)),
        "score": layout.read_rgb,
        "score's labels": layout.read_map,
        "video": lambda path: Frames(path.parent),
        "view": lambda path: image_record(sample, path.read_bytes()),
        "gallery": lambda path: thumbnail_jpeg(path.read_bytes(), width=9, height=9, key="key"),
        "examples": lambda path: example_jpeg(sample, path.read_bytes()),
        "signatures": lambda path: signature_of_bytes(path.read_bytes()),
    }
    for number, (name, (data, outcome)) in enumerate(IMAGES.items()):
        if outcome == "ok" or name in ("png-too-large.png", "gif.jpg"):  # whose limits are their own
            continue
        path = tmp_path / str(number) / name
        path.parent.mkdir()
        path.write_bytes(data)
        for reader, read in readers.items():
            with pytest.raises((InputError, SampleFailureError)):
                pytest.fail(f"{reader} read {name}: {read(path)!r:.80}")


# ---------------------------------------------------------------------------------------------------------------------
# Folders and stores: what else lies there


def zip_of(name: str, data: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, data)
    return stream.getvalue()


FILES: Final[dict[str, tuple[bytes, str]]] = {
    "a.jfif": (JPEG, "ok"),
    "a.JPE": (JPEG, "ok"),
    "a.JPEG": (JPEG, "ok"),
    "a:b.jpg": (JPEG, "ok"),
    "C:.jpg": (JPEG, "ok"),
    "q?#%[1]*.jpg": (JPEG, "ok"),
    "dib.dib": (BMP, "ok"),
    "really-a-jpeg.gif": (JPEG, "ok"),
    "animation.gif": (GIF, "[unsupported_image GIF]"),
    "still.avif": (encoded("AVIF"), "[unsupported_image AVIF]"),
    "phone.HEIC": (b"\0\0\0\x18ftypheic" + bytes(40), "[unsupported_image HEIC]"),
    "map.jp2": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40), "[unsupported_image JPEG 2000]"),
    "camera.NEF": (TIFF, "[unsupported_image camera raw .nef]"),
    "photos.zip": (zip_of("a.jpg", JPEG), "[archive zip]"),
    "shard.tar.gz": (gzip.compress(tar_of({"a.jpg": JPEG})), "[archive gzip]"),
    "shard.tgz": (gzip.compress(tar_of({"a.jpg": JPEG})), "[archive gzip]"),
    "notes.txt": (b"nothing", "[other .txt]"),
    "no-text.txt": (JPEG, "[other .txt]"),
    "Makefile": (b"all:\n", "[other no ending]"),
    "a.json": (b'{"annotations": []}', "[annotation]"),
    "alone.json": (b"{}", "[other .json]"),
    ".DS_Store": (b"Bud1", "[hidden]"),
    "._a.jpg": (b"resource", "[hidden]"),
    "__MACOSX/._a.jpg": (b"resource", "[hidden]"),
    ".cache/a.jpg": (JPEG, "[hidden]"),
    ".cache/b.jpg": (JPEG, ""),
}
"""Name -> bytes and what becomes of them in a folder; hidden folders count as one."""


def test_files_beside_photographs_are_counted_with_their_reasons(place: Place) -> None:
    location, put = place
    expected: dict[str, str] = {}
    for name, (data, outcome) in FILES.items():
        put(name, data)
        if outcome.startswith("["):
            expected[outcome] = str(int(expected.get(outcome, 0)) + 1)
        elif outcome:
            expected[name] = outcome
    assert outcomes(location) == expected


def test_links_and_what_is_no_file_are_counted(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "far.jpg").write_bytes(JPEG)
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(JPEG)
    (folder / "folder").symlink_to(tmp_path / "elsewhere")
    (folder / "up").symlink_to(folder)
    (folder / "file.jpg").symlink_to(tmp_path / "elsewhere" / "far.jpg")
    (folder / "gone.jpg").symlink_to(tmp_path / "nothing.jpg")
    (folder / "gone").symlink_to(tmp_path / "nothing")
    os.mkfifo(folder / "pipe.jpg")
    os.mkfifo(folder / "pipe")
    (folder / "b.d").mkdir()
    (folder / "b.d" / "b.jpg").write_bytes(JPEG)
    links = {"a.jpg": "ok", "b.d/b.jpg": "ok", "file.jpg": "ok", "gone.jpg": "source_missing"}
    rest = {"[other unreadable, or a link to nothing]": "1", "[not_a_file]": "2", "[link_to_folder]": "2"}
    assert outcomes(folder) == links | rest
    starred = {name: outcome for name, outcome in links.items() if name != "b.d/b.jpg"}
    assert outcomes(f"{folder}/*") == starred | rest | {"[not_a_file]": "3"}
    assert outcomes(folder / "folder") == {"far.jpg": "ok"}, "a link that is named is followed"


@pytest.mark.parametrize("name", ["name[1]", "a*b", "what?"])
def test_a_place_that_is_called_like_a_pattern_can_be_named(place: Place, name: str) -> None:
    location, put = place
    if "?" in name and "://" in location:
        name = name.replace("?", "!")  # it would begin a query
    put(f"{name}/a[1].png", PNG)
    put(f"{name}/a1.png", PNG)
    assert outcomes(f"{location}/{name}") == {"a[1].png": "ok", "a1.png": "ok"}
    assert outcomes(f"{location}/{name}/a[1].png") == {"a[1].png": "ok"}


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"a.gif": GIF, "b.gif": GIF}, "images of a format that is not mined 2 (GIF 2)"),
        ({"a.zip": zip_of("a.jpg", JPEG)}, "archives to be unpacked first 1 (zip 1)"),
        ({"run/plan.json": b'{"format":"grainmill/1"}'}, "outputs of Grainmill"),
        ({"notes.txt": b"a", "more.txt": b"b"}, "other files 2 (.txt 2)"),
    ],
)
def test_a_folder_without_images_says_what_is_there_and_what_is_taken(
    files: dict[str, bytes], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, data in files.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    command = ["mine", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "o"), "--executor", "inline"]
    for flags in (["--dry-run"], []):
        assert main([*command, *flags]) == 2
        said = capsys.readouterr().err
        assert told in said
        assert all(taken in said for taken in ("JPEG, PNG, WebP, TIFF or BMP", ".tar", "parquet"))


# ---------------------------------------------------------------------------------------------------------------------
# Tars

JSON: Final = b'{"annotations": []}'
TARS: Final[dict[str, tuple[dict[str, bytes], dict[str, str]]]] = {
    "several numbered images of a sample are several samples": (
        {"i0.1.jpg": JPEG, "i0.2.jpg": JPEG, "i0.json": JSON, "i1.1.jpg": JPEG, "i1.2.jpg": JPEG[:90]},
        {"i0.1.jpg": "ok", "i0.2.jpg": "ok", "i1.1.jpg": "ok", "i1.2.jpg": "truncated", "[member .json]": "1"},
    ),
    "left and right": (
        {"a.left.png": PNG, "a.right.png": PNG, "a.left.json": JSON},
        {"a.left.png": "ok", "a.right.png": "ok"},
    ),
    "two formats of one sample": ({"u.jpg": JPEG, "u.png": PNG}, {"u.jpg": "ok", "u.png": "ok"}),
    "label images are none": (
        {"a.rgb.png": PNG, "a.mask.png": PNG, "a.depth_16.png": PNG},
        {"a.rgb.png": "ok", "[companion .mask]": "1", "[companion .depth_16]": "1"},
    ),
    "the image is called as the sample": (
        {"a.mask.png": PNG, "a.jpg": JPEG, "a.txt": b"a dog", "a.cls": b"7"},
        {"a.jpg": "ok", "[companion .mask]": "1", "[member .txt]": "1", "[member .cls]": "1"},
    ),
    "a mask alone is an image": ({"a.seg.png": PNG}, {"a.seg.png": "ok"}),
    "endings in capitals and unusual ones": (
        {"a.JPG": JPEG, "b.jfif": JPEG, "c.Jpe": JPEG},
        {"a.JPG": "ok", "b.jfif": "ok", "c.Jpe": "ok"},
    ),
    "content decides where no ending does": (
        {"a": JPEG, "b.img": PNG, "c.gif": GIF, "d.bin": b"\0" * 99, "e.txt": JPEG},
        {"a": "ok", "b.img": "ok", "c.gif": "unsupported_format", "d.bin": "incomplete_sample",
         "e.txt": "incomplete_sample"},
    ),
    "made on a Mac": (
        {"._a.jpg": b"x", "a.jpg": JPEG, "__MACOSX/._a.jpg": b"x", "x/.hidden/b.jpg": JPEG, "./c.jpg": JPEG},
        {"a.jpg": "ok", "c.jpg": "ok", "[member hidden]": "3"},
    ),
    "names": (
        {"a:b.jpg": JPEG, "C:/x.jpg": JPEG, "C:\\x.jpg": JPEG, "/abs.jpg": JPEG, "../up.jpg": JPEG},
        {"a:b.jpg": "ok", "C:/x.jpg": "bad_member_name", "C:\\x.jpg": "bad_member_name",
         "/abs.jpg": "bad_member_name", "../up.jpg": "bad_member_name"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TARS)
def test_members_of_tars_are_samples_failures_or_counted(name: str, place: Place) -> None:
    location, put = place
    members, expected = TARS[name]
    put("t.tar", tar_of(members))
    assert outcomes(location) == {key if key[0] == "[" else f"t.tar!{key}": each for key, each in expected.items()}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (HTML, "an HTML page, expected a plain tar"),
        (HTML[:100], "an HTML page, expected a plain tar"),
        (gzip.compress(b"x" * 2000), "a gzip file, expected a plain tar: decompress it first"),
        (zip_of("a.jpg", JPEG), "a zip file, expected a plain tar: decompress it first"),
        (GIF, "a GIF file, expected a plain tar"),
        (b"", "zero bytes, expected a tar"),
        (b"\1" * 2000, "damaged header at byte 0"),
    ],
    ids=["page", "cut page", "gzip", "zip", "gif", "empty", "damaged"],  # the bytes hold the time: no two runs agree
)
def test_a_tar_that_is_something_else_is_called_so(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.tar").write_bytes(data)
    (unit,) = plan_units(parse_inputs([f"in={tmp_path}"]), samples_per_shard=9, limit=None)
    assert [(entry.reason, message in (entry.message or "")) for entry in unit.entries] == [("truncated_source", True)]


# ---------------------------------------------------------------------------------------------------------------------
# Parquet


def test_rows_of_tables_are_samples_or_failures(place: Place) -> None:
    location, put = place
    column: list[Any] = [
        {"bytes": JPEG, "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}, None, {"bytes": b"", "path": None},
        {"bytes": GIF, "path": "c.gif"}, {"bytes": PNG, "path": "/home/somebody/d.png"},
        {"bytes": PNG, "path": "a.jpg"},
    ]  # fmt: skip
    put("hub.parquet", parquet_of(column))
    put("plain.parquet", parquet_of([JPEG, None, PNG[:99]], name="jpg"))
    put("page.parquet", HTML)
    assert outcomes(location) == {
        "hub.parquet!0/a.jpg": "ok", "hub.parquet!1/b.jpg": "source_missing", "hub.parquet!2": "incomplete_sample",
        "hub.parquet!3": "unreadable", "hub.parquet!4/c.gif": "unsupported_format", "hub.parquet!5/d.png": "ok",
        "hub.parquet!6/a.jpg": "ok", "plain.parquet!0": "ok", "plain.parquet!1": "incomplete_sample",
        "plain.parquet!2": "truncated", "page.parquet": "truncated_source",
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Where it is said


def test_what_is_passed_over_stands_in_the_plan_the_status_and_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    (folder / "a.png").write_bytes(PNG)
    (folder / "a.json").write_bytes(JSON)
    (folder / "b.gif").write_bytes(GIF)
    (folder / "t.tar").write_bytes(tar_of({"x.png": PNG, "x.json": JSON, "x.txt": b"a"}))
    command = ["mine", "--input", f"in={folder}", "--output", str(output), "--executor", "inline"]
    told = ("images of a format that is not mined 1 (GIF 1)", "other members of samples in tars 2 (.json 1, .txt 1)")
    shown = "       1  images of a format that is not mined (GIF 1), in/b.gif for instance"
    assert main([*command, "--dry-run"]) == 0
    assert shown in capsys.readouterr().out
    assert main(command) == 0
    captured = capsys.readouterr()
    for text in (captured.err, captured.out):
        (line,) = [line for line in text.splitlines() if line.startswith("passed over: ")]
        assert all(each in line for each in told)
        assert "annotations beside images, not read without --divide union 1" in line
    counts = {"annotation": 1, "member": 2, "unsupported_image": 1}
    plan = json.loads((output / "plan.json").read_bytes())
    assert {reason: each["count"] for reason, each in plan["passed_over"].items()} == counts
    assert plan["passed_over"]["unsupported_image"] == {"count": 1, "example": "in/b.gif", "kinds": {"GIF": 1}}
    assert main(["status", str(output), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passed_over"] == plan["passed_over"]
    assert main(["status", str(output)]) == 0
    assert shown in capsys.readouterr().out
    report = report_of_run(open_dataset(output), limit=1, seed=0, max_failures=1)
    assert report["passed_over"] == rows(plan["passed_over"])

    # The same again, and with new files: what was counted once is counted once.
    (folder / "c.png").write_bytes(PNG)
    (folder / "c.gif").write_bytes(GIF)
    (folder / "u.tar").write_bytes(tar_of({"y.png": PNG, "y.txt": b"a"}))
    assert main([*command, "--extend"]) == 0
    extended = run_status(open_dataset(output))["passed_over"]
    assert {reason: each["count"] for reason, each in extended.items()} == {
        "annotation": 1, "member": 3, "unsupported_image": 2,
    }  # fmt: skip


def test_plans_and_commits_of_earlier_versions_have_no_such_counts(drawn_run: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(drawn_run, copy)
    plan = json.loads((copy / "plan.json").read_bytes())
    del plan["passed_over"]
    (copy / "plan.json").write_text(json.dumps(plan))
    assert run_status(open_dataset(copy))["passed_over"] == {}


def union_of(folder: Path, output: Path, proposals: Path | None, *flags: str) -> list[str]:
    given = [] if proposals is None else ["--proposals", str(proposals)]
    return ["mine", "--input", f"in={folder}", "--output", str(output), "--executor", "inline", "--divide", "union",
            "--refine", "none", *given, *flags]  # fmt: skip


def test_annotations_and_proposals_that_are_not_used_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").write_bytes(PNG)
    whole = {"size": [16, 24], "counts": [0, 16 * 24]}
    empty = {"size": [16, 24], "counts": [16 * 24]}
    entries = [{"segmentation": each} for each in ([], None, empty, whole)]
    (folder / "a.json").write_text(json.dumps({"annotations": entries}))
    record = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "elsewhere.png"}],
        "annotations": [{"image_id": 1, **each} for each in entries]
        + [{"image_id": 2, "segmentation": whole}, {"image_id": 1, "segmentation": whole, "score": 0.1}],
    }
    (tmp_path / "p.json").write_text(json.dumps(record))
    assert main(union_of(folder, tmp_path / "out", tmp_path / "p.json", "--json")) == 0
    captured = capsys.readouterr()
    assert "proposals for images that are not in the sources 1" in captured.err
    result = json.loads(captured.out)
    counts = {reason: each["count"] for reason, each in result["passed_over"].items()}
    assert counts == {
        "annotation_without_mask": 3, "proposal_without_mask": 3, "proposal_unmatched": 1, "proposal_low_score": 1,
    }  # fmt: skip
    assert run_status(open_dataset(tmp_path / "out"))["passed_over"] == result["passed_over"]

    record["images"][0]["file_name"] = "b.png"
    (tmp_path / "p.json").write_text(json.dumps(record))
    for flags in (("--dry-run",), ()):
        assert main(union_of(folder, tmp_path / "none", tmp_path / "p.json", *flags)) == 2
        said = capsys.readouterr().err
        assert "none of its 4 masks is for an image of the sources" in said
        assert "'b.png'" in said
        assert "'a.png'" in said
    assert not (tmp_path / "none" / "plan.json").exists()


def test_a_pattern_that_the_shell_expanded_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = []
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(PNG)
        names.append(str(tmp_path / name))
    assert main(["mine", "--input", *names, "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "a pattern needs quotes" in said
    assert "b.png" in said
    with pytest.raises(InputError):
        outcomes(tmp_path / "nothing-*.png")
