"""The tar writer: what `tarfile` and GNU tar read, byte for byte the same each time."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from pipeline.errors import SchemaError
from pipeline.shards.tar import TarWriter

MEMBERS = {"a-1.jpg": b"x" * 700, "a-1.json": b"{}", "b-2.png": b"", "b-2.json": b"y" * 512}


def written() -> tuple[bytes, str, dict[str, int]]:
    stream = io.BytesIO()
    writer = TarWriter(stream)
    offsets = {name: writer.add(name, data) for name, data in MEMBERS.items()}
    return stream.getvalue(), writer.finish(), offsets


def test_tarfile_reads_it_with_constant_headers() -> None:
    stream = io.BytesIO()
    writer = TarWriter(stream)
    for name, data in MEMBERS.items():
        writer.add(name, data)
    digest = writer.finish()
    assert digest == hashlib.sha256(stream.getvalue()).hexdigest()
    assert len(stream.getvalue()) % 10_240 == 0
    assert stream.getvalue()[-1024:] == bytes(1024)
    with tarfile.open(fileobj=io.BytesIO(stream.getvalue())) as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
            assert (member.mode, member.type) == (0o644, tarfile.REGTYPE)
            extracted = tar.extractfile(member)
            assert extracted is not None
            assert extracted.read() == MEMBERS[member.name]


def test_equals_tarfile_byte_for_byte() -> None:
    ours = io.BytesIO()
    writer = TarWriter(ours)
    theirs = io.BytesIO()
    with tarfile.open(fileobj=theirs, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in MEMBERS.items():
            writer.add(name, data)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    writer.finish()
    assert ours.getvalue() == theirs.getvalue()


def test_offsets_point_at_the_data() -> None:
    data, _, offsets = written()
    for name, content in MEMBERS.items():
        assert data[offsets[name] : offsets[name] + len(content)] == content


@pytest.mark.skipif(shutil.which("tar") is None, reason="no GNU tar on this system")
def test_gnu_tar_lists_it(tmp_path: Path) -> None:
    stream = io.BytesIO()
    writer = TarWriter(stream)
    for name, data in MEMBERS.items():
        writer.add(name, data)
    writer.finish()
    (tmp_path / "s.tar").write_bytes(stream.getvalue())
    listed = subprocess.run(["tar", "-tf", tmp_path / "s.tar"], check=True, capture_output=True, text=True)
    assert listed.stdout.split() == list(MEMBERS)


@pytest.mark.parametrize("name", ["", "x" * 101, "ä.jpg"])
def test_names_that_ustar_cannot_say_are_refused(name: str) -> None:
    with pytest.raises(SchemaError, match="1 to 100 ASCII"):
        TarWriter(io.BytesIO()).add(name, b"")
