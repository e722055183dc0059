"""One run over everything that can be wrong with an input: each is a row with its reason, and nothing else happens."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import struct
import subprocess
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from pipeline.dataset.open import open_dataset
from pipeline.errors import InputError
from pipeline.mining.flags import MineFlags
from pipeline.mining.job import mine
from pipeline.mining.options import mine_options

Run = Callable[..., subprocess.CompletedProcess[str]]


class Canary:
    """Unpickling one of these leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.path,))


def png(colour: tuple[int, int, int] = (40, 90, 200)) -> bytes:
    image = Image.new("RGB", (64, 48), colour)
    ImageDraw.Draw(image).ellipse((10, 8, 50, 40), fill=(240, 200, 30))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def jpeg(orientation: int | None = None) -> bytes:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    stream = io.BytesIO()
    Image.open(io.BytesIO(png())).save(stream, "JPEG", exif=exif)
    return stream.getvalue()


def huge_png() -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(60_001)))


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, target: str = "") -> None:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, len(data)
    tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def nasty(tmp_path: Path) -> tuple[Path, Path, dict[str, str | None]]:
    """A folder of bad inputs, where a canary would appear, and the expected reason of each sample (None: mined)."""
    folder, canary = tmp_path / "in", tmp_path / "canary"
    folder.mkdir()
    payload = pickle.dumps(Canary(canary))
    files = {
        "a-good.png": (png(), None),
        "b-zero.jpg": (b"", "unreadable"),
        "c-text.jpg": (b"a text file that says it is a photograph", "unsupported_format"),
        "d-eps.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n", "unsupported_format"),
        "e-cut.jpg": (jpeg()[:-400], "truncated"),
        "f-cut.png": (png()[:120], "truncated"),
        "g-huge.png": (huge_png(), "too_large"),
        "h-pickle.jpg": (payload, "unsupported_format"),
        "i-good.jpg": (jpeg(), None),
    }
    expected: dict[str, str | None] = {}
    for name, (data, reason) in files.items():
        (folder / name).write_bytes(data)
        expected[name] = reason
    Path(os.fsdecode(os.fsencode(folder) + b"/j-\xe9.png")).write_bytes(png())
    expected["j-\\xe9.png"] = "bad_member_name"

    with tarfile.open(folder / "k.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for name in ("../x.png", "/abs.png", "ok/../../y.png", "caf\udce9.png"):
            add(tar, name, png())
        add(tar, "link.png", kind=tarfile.SYMTYPE, target="/etc/passwd")
        add(tar, "hard.png", kind=tarfile.LNKTYPE, target="good.png")
        add(tar, "device.png", kind=tarfile.BLKTYPE)
        add(tar, "one.png", png((1, 2, 3)))
        add(tar, "two.png", png((200, 2, 3)))
        add(tar, "one.pkl", payload)
        add(tar, "one.pyd", payload)
        add(tar, "one.png", png((9, 9, 9)))
        add(tar, "two.pth", payload)
        add(tar, "three.json", b"{}")
    for name in ("../x.png", "/abs.png", "ok/../../y.png", "caf\\xe9.png", "link.png", "hard.png", "device.png"):
        expected[f"k.tar!{name}"] = "bad_member_name"
    expected |= {"k.tar!one.png": None, "k.tar!two.png": None, "k.tar!three.json": "incomplete_sample"}
    expected["k.tar!one.png#"] = "duplicate_key"

    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        add(tar, "whole.png", png((5, 200, 5)))
        add(tar, "cut.png", png((200, 5, 200)))
    (folder / "l-cut.tar").write_bytes(stream.getvalue()[: 512 * 3 + 30])
    expected |= {"l-cut.tar!whole.png": None, "l-cut.tar!cut.png": "truncated", "l-cut.tar": "truncated_source"}
    assert len(png()) < 512, "the cut falls into the second member"

    (folder / "m-zero.tar").write_bytes(b"")
    (folder / "n-gzip.tar").write_bytes(b"\x1f\x8b" + bytes(2000))
    (folder / "o-text.parquet").write_text("no parquet")
    expected |= dict.fromkeys(("m-zero.tar", "n-gzip.tar", "o-text.parquet"), "truncated_source")

    metadata = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": payload}
    field = pa.field("image", pa.binary(), metadata=metadata)
    table = pa.table([pa.array([png((7, 7, 90)), payload, None], pa.binary())], schema=pa.schema([field]))
    pq.write_table(table, folder / "p.parquet")
    expected |= {"p.parquet!0": None, "p.parquet!1": "unsupported_format", "p.parquet!2": "incomplete_sample"}
    return folder, canary, expected


def tree_of(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


def outcomes(output: Path) -> dict[str, str | None]:
    """`path!member` -> the reason it failed for, or None if it is in a shard."""
    run = open_dataset(output)
    found: dict[str, str | None] = {}
    for unit in run.units():
        rows = [(row, None) for row in run.samples(unit).to_pylist()]
        rows += [(row, row["reason"]) for row in run.failures(unit).to_pylist()]
        for row, reason in rows:
            name = row["source_uri"].partition("/")[2] + ("" if row["member"] is None else f"!{row['member']}")
            name += "#" if reason == "duplicate_key" else ""
            assert name not in found, name
            found[name] = reason
    return found


def test_every_bad_input_is_a_row_and_nothing_else(
    nasty: tuple[Path, Path, dict[str, str | None]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, canary, expected = nasty
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    before = tree_of(tmp_path)
    flags = MineFlags(input=[f"in={folder}"], output=str(tmp_path / "out"), executor="inline", samples_per_shard=4)
    result = mine(mine_options(flags))
    assert outcomes(tmp_path / "out") == expected
    assert result["samples"] == sum(reason is None for reason in expected.values())
    assert not canary.exists(), "something was unpickled"
    written = tree_of(tmp_path) - before
    assert all(path.startswith(str(tmp_path / "out")) for path in written), written
    names = re.compile(r"[a-z0-9_.-]+")
    run = open_dataset(tmp_path / "out")
    for commit in run.commits():
        if commit.shard is not None:
            with tarfile.open(tmp_path / "out" / commit.shard["name"]) as tar:
                assert all(names.fullmatch(member.name) for member in tar)
    from pipeline.dataset.verify import verify_run

    assert list(verify_run(run, deep=True)) == []
    assert mine(mine_options(flags))["digest"] == result["digest"]


def test_sources_that_cannot_be_used_at_all_exit_2(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no image")
    for source in (tmp_path / "missing", tmp_path / "empty", tmp_path / "*.gif", tmp_path / "notes.txt"):
        flags = MineFlags(input=[f"in={source}"], output=str(tmp_path / "out"), executor="inline")
        with pytest.raises(InputError) as caught:
            mine(mine_options(flags))
        assert caught.value.exit_code == 2
        assert not (tmp_path / "out" / "plan.json").exists()


def test_malformed_annotations_are_rows_of_their_samples(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    import numpy as np

    from pipeline.format import rle

    whole = np.zeros((48, 64), dtype=bool)
    whole[10:30, 12:40] = True
    good = rle.encode(whole)
    cases: dict[str, Any] = {
        "sa_1": {"annotations": [{"segmentation": good}]},
        "sa_2": {"annotations": [{"segmentation": {**good, "counts": good["counts"][:-2]}}]},
        "sa_3": {"annotations": [{"segmentation": {"size": [48, 64], "counts": [1, 2, 3]}}]},
        "sa_4": {"annotations": "none"},
        "sa_5": {"annotations": [{"segmentation": {**good, "size": [64, 48]}}]},
    }
    for name, record in cases.items():
        (folder / f"{name}.jpg").write_bytes(jpeg())
        (folder / f"{name}.json").write_text(json.dumps(record))
    (folder / "sa_6.jpg").write_bytes(jpeg(orientation=3))
    (folder / "sa_6.json").write_text(json.dumps(cases["sa_1"]))
    (folder / "sa_7.jpg").write_bytes(jpeg())
    flags = MineFlags(input=[f"in={folder}"], output=str(tmp_path / "out"), executor="inline", divide="union")
    mine(mine_options(flags))
    expected = {f"sa_{number}.jpg": "bad_annotation" for number in range(2, 7)}
    assert outcomes(tmp_path / "out") == {**expected, "sa_1.jpg": None, "sa_7.jpg": None}


@pytest.mark.slow
def test_a_photograph_of_sixty_megapixels_is_mined_within_its_memory(tmp_path: Path, run_mine: Run) -> None:
    """9,000 x 6,667 pixels within 1.5 GiB of a worker's child, which is killed as soon as it takes more."""
    import cv2
    import skimage

    photograph = cv2.imread(str(Path(skimage.__file__).parent / "data" / "coffee.png"))
    large = cv2.resize(photograph, (9000, 6667), interpolation=cv2.INTER_CUBIC)
    (tmp_path / "in").mkdir()
    assert cv2.imwrite(str(tmp_path / "in" / "large.jpg"), large, [cv2.IMWRITE_JPEG_QUALITY, 90])
    done = run_mine(
        tmp_path / "in", tmp_path / "out", "--executor", "local", "--workers", "1", "--worker-memory-gib", "1.5"
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["samples"], result["failures"]) == (1, 0), result
    run = open_dataset(tmp_path / "out")
    (row,) = run.samples(next(run.units())).to_pylist()
    sample = run.read_sample(row)
    assert (sample.width, sample.height) == (9000, 6667)
    assert len(sample.annotations) > 50
    assert sample.annotations[0].segmentation["size"] == [6667, 9000]


def test_no_code_unpickles_or_extracts(repository: Path) -> None:
    """The canary shows it for what it touches; this for what it does not."""
    forbidden = re.compile(
        r"\bpickle\.loads?\(|\bmarshal\.loads?\(|\.extract(?:all)?\(|\bshell=True|\beval\(|\bexec\(|allow_pickle=True"
        r"|weights_only=False|\byaml\.load\("
    )
    found = [
        f"{path.relative_to(repository)}:{number}: {line.strip()}"
        for package in ("pipeline", "model")
        for path in sorted((repository / package).rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if forbidden.search(line.replace("model.eval(", "").replace(".eval()", ""))
    ]
    assert found == []
