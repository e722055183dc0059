"""One changed bit anywhere in any file of a run is found, and the message names the file."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.dataset.run import RunReader
from pipeline.dataset.verify import open_damaged, verify_run
from pipeline.dataset.verify_unit import Problem


@pytest.fixture(scope="module")
def run_copy(drawn_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("flips") / "out"
    shutil.copytree(drawn_run, directory)
    return directory


def found(directory: Path) -> list[Problem]:
    run = open_damaged(str(directory))
    return list(verify_run(run)) if isinstance(run, RunReader) else [run]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_a_flipped_bit_is_named(data: st.DataObject, run_copy: Path) -> None:
    files = sorted(path for path in run_copy.rglob("*") if path.is_file() and path.name != "lease.json")
    path = data.draw(st.sampled_from(files), label="file")
    whole = path.read_bytes()
    position = data.draw(st.integers(0, len(whole) - 1), label="byte")
    bit = data.draw(st.integers(0, 7), label="bit")
    changed = bytearray(whole)
    changed[position] ^= 1 << bit
    path.write_bytes(changed)
    try:
        name = path.relative_to(run_copy).as_posix()
        assert name in {each.file for each in found(run_copy)}
    finally:
        path.write_bytes(whole)
