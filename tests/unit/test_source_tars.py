"""Other people's tars: every member is accounted for, nothing is believed, every cut is noticed."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable

import pytest

from pipeline.sources.tars import TarEnd, TarMember, name_problem, printable, scan_tar

CONTENT = {"a.jpg": b"x" * 700, "a.json": b"{}", "sa_0001/b.jpg": b"y" * 512}


def archive(members: Iterable[tuple[str, bytes]] = tuple(CONTENT.items()), *, kind: int = tarfile.PAX_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=kind) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def special(name: str, kind: bytes, target: str = "") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        tar.addfile(info)
    return stream.getvalue()


def scanned(data: bytes) -> tuple[list[TarMember], str | None]:
    found = list(scan_tar(io.BytesIO(data), len(data)))
    assert isinstance(found[-1], TarEnd)
    members = [each for each in found if isinstance(each, TarMember)]
    assert len(members) == len(found) - 1
    return members, found[-1].problem


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
def test_members_and_their_data(kind: int) -> None:
    data = archive(kind=kind)
    members, problem = scanned(data)
    assert problem is None
    assert {each.name: data[each.offset : each.offset + each.size] for each in members} == CONTENT
    assert all(each.problem is None and each.whole for each in members)


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_foreign_names(kind: int) -> None:
    names = ["folder/" * 30 + "photo.jpg", "straße/übung.jpg", "x" * 99 + ".jpg"]
    members, problem = scanned(archive([(name, b"1") for name in names], kind=kind))
    assert problem is None
    assert [each.name for each in members] == names
    assert all(each.problem is None for each in members)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../x.jpg", "leads out"),
        ("a/../../x.jpg", "leads out"),
        ("a\\..\\x.jpg", "leads out"),
        ("/abs.jpg", "absolute"),
        ("C:/x.jpg", "absolute"),
        ("a\nb.jpg", "control characters"),
        ("./.", "empty"),
    ],
)
def test_bad_names_are_members_with_a_problem(name: str, message: str) -> None:
    members, problem = scanned(archive([(name, b"1"), ("good.jpg", b"2")], kind=tarfile.USTAR_FORMAT))
    assert problem is None
    assert message in str(members[0].problem)
    assert members[1].problem is None


def test_a_name_that_is_not_utf8() -> None:
    data = archive([("caf\udce9.jpg", b"1")], kind=tarfile.GNU_FORMAT)
    members, _ = scanned(data)
    assert members[0].problem == "the name is not UTF-8"
    assert members[0].name == "caf\\xe9.jpg"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (tarfile.SYMTYPE, "symbolic link"),
        (tarfile.LNKTYPE, "hard link"),
        (tarfile.CHRTYPE, "device"),
        (tarfile.BLKTYPE, "device"),
        (tarfile.FIFOTYPE, "pipe"),
        (tarfile.GNUTYPE_SPARSE, "sparse"),
        (b"?", "type"),
    ],
)
def test_what_is_no_regular_file(kind: bytes, message: str) -> None:
    members, problem = scanned(special("x.jpg", kind, target="/etc/passwd"))
    assert message in str(members[0].problem)
    assert problem is None


def test_directories_and_volume_labels_are_no_members() -> None:
    assert scanned(special("folder", tarfile.DIRTYPE)) == ([], None)
    assert scanned(special("label", b"V")) == ([], None)


def test_several_archives_in_one_file() -> None:
    members, problem = scanned(archive([("a.jpg", b"1")]) + archive([("b.jpg", b"2")]))
    assert [each.name for each in members] == ["a.jpg", "b.jpg"]
    assert problem is None


def test_a_leading_dot_slash_goes() -> None:
    assert scanned(archive([("./a.jpg", b"1")]))[0][0].name == "a.jpg"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "zero bytes"),
        (b"\x1f\x8b" + bytes(1000), "gzip"),
        (b"no tar at all" * 100, "damaged header"),
        (b"short", "cut inside a header"),
    ],
)
def test_what_is_no_tar(data: bytes, message: str) -> None:
    members, problem = scanned(data)
    assert members == []
    assert message in str(problem)


def test_zeroed_or_foreign_blocks_in_the_middle_end_the_archive_aloud() -> None:
    data = bytearray(archive(kind=tarfile.USTAR_FORMAT))
    second = 512 + 1024
    assert data[second : second + 6] == b"a.json"
    for hole in (512, 1024):
        damaged = bytearray(data)
        damaged[second : second + hole] = bytes(hole)
        members, problem = scanned(bytes(damaged))
        assert problem is not None or len(members) == 2, "one header is lost: its neighbours may still be read"
    members, problem = scanned(bytes(data) + b"rubbish" * 100)
    assert len(members) == 3
    assert "damaged header" in str(problem)


@pytest.mark.parametrize("field", [b"77777777777\0", b"\x80" + b"\x7f" * 11, b"\xff" * 12, b"9999\0       "])
def test_absurd_sizes_allocate_nothing(field: bytes) -> None:
    header = bytearray(archive([("a.jpg", b"")], kind=tarfile.USTAR_FORMAT)[:512])
    header[124:136] = field
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:]))
    _, problem = scanned(bytes(header) + bytes(1024))
    assert problem is not None


def test_pax_records_that_lie_are_survived() -> None:
    data = bytearray(archive([("ü.jpg", b"1234")], kind=tarfile.PAX_FORMAT))
    start = data.index(b" path=")
    for junk in (b"99", b"00", b"xx", b"\0\0"):
        damaged = bytearray(data)
        damaged[start - 2 : start] = junk
        scanned(bytes(damaged))


def test_name_rules_and_printing() -> None:
    assert name_problem(b"sa_000020/sa_223750.jpg") is None
    assert "5000 bytes" in str(name_problem(b"x" * 5000))
    assert printable(b"a\x07\xffb") == "a\\x07\\xffb"
