"""A tar that is cut anywhere: what lies before the cut is read, and the cut is always told."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.sources.listing import plan_units
from pipeline.sources.tars import TarEnd, TarMember, scan_tar
from pipeline.sources.unit_reader import UnitReader
from pipeline.sources.units import UnitSpec, parse_inputs

KINDS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
LONG = "folder-" * 20 + "c"


def archive(kind: int) -> bytes:
    members = {"a.jpg": b"a" * 600, "a.json": b"{}", "b.png": b"", "c/d.jpg": b"d" * 1500, "z.jpg": b"z" * 512}
    if kind != tarfile.USTAR_FORMAT:
        members[f"{LONG}.jpg"] = b"long"
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=kind) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


WHOLE = {kind: archive(kind) for kind in KINDS}


def end_of_archive(data: bytes) -> int:
    """The byte behind the two zero blocks; what follows is padding."""
    used = len(data.rstrip(b"\0"))
    return (used + 511) // 512 * 512 + 1024


def scanned(data: bytes) -> list[TarMember | TarEnd]:
    return list(scan_tar(io.BytesIO(data), len(data)))


@settings(max_examples=300)
@given(kind=st.sampled_from(KINDS), share=st.floats(0, 1))
@example(kind=tarfile.PAX_FORMAT, share=0.0)
def test_every_cut_is_told_and_costs_nothing_before_it(kind: int, share: float) -> None:
    data = WHOLE[kind]
    cut = int(share * len(data))
    whole, found = scanned(data), scanned(data[:cut])
    end = found[-1]
    assert isinstance(end, TarEnd)
    assert (end.problem is None) == (cut >= end_of_archive(data))
    members = [each for each in whole if isinstance(each, TarMember)]
    read = [each for each in found if isinstance(each, TarMember)]
    complete = [each for each in read if each.whole]
    assert complete == members[: len(complete)]
    assert all(each.offset + each.size <= cut for each in complete)
    missed = members[len(complete) :]
    assert all(each.offset + each.size > cut or each.offset > cut for each in missed)
    assert len(read) - len(complete) <= 1, "one member at most is in the cut's way"


@settings(max_examples=60)
@given(kind=st.sampled_from(KINDS), share=st.floats(0, 1))
def test_every_sample_of_a_cut_tar_is_a_sample_or_a_failure(
    kind: int, share: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = WHOLE[kind]
    cut = int(share * len(data))
    path = tmp_path_factory.mktemp("cut") / "cut.tar"
    path.write_bytes(data[:cut])
    specs = parse_inputs([f"in={path}"])
    entries = [entry for unit in plan_units(specs, samples_per_shard=2, limit=None) for entry in unit.entries]
    told = [entry for entry in entries if entry.reason == "truncated_source"]
    assert len(told) == (0 if cut >= end_of_archive(data) else 1)
    good = [entry.member for entry in entries if entry.reason is None]
    assert good == ["a.jpg", "b.png", "c/d.jpg", "z.jpg", f"{LONG}.jpg"][: len(good)]
    with UnitReader(UnitSpec(unit=0, source=0, entries=tuple(entries)), specs) as reader:
        for position, entry in enumerate(entries):
            if entry.reason is None:
                assert len(reader.read(position).image) == entry.size
