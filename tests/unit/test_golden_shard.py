"""The golden shard: today's writer gives these bytes, and today's reader reads them. See tests/golden/regenerate.py."""

from __future__ import annotations

import importlib.util
import tarfile
from pathlib import Path
from types import ModuleType

import pyarrow.parquet as pq
import pytest

from pipeline.format import rle, schema


@pytest.fixture(scope="module")
def golden(repository: Path) -> Path:
    return repository / "tests" / "golden"


@pytest.fixture(scope="module")
def regenerate(golden: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_regenerate", golden / "regenerate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def only(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


def test_todays_writer_gives_the_golden_bytes(golden: Path, regenerate: ModuleType, tmp_path: Path) -> None:
    regenerate.write_golden(tmp_path / "out")
    theirs, ours = only(golden / "out" / "shards", "*"), only(tmp_path / "out" / "shards", "*")
    assert ours.name == theirs.name
    assert ours.read_bytes() == theirs.read_bytes()
    for kind in ("index/samples-*", "index/masks-*", "failures/*"):
        # Parquet's bytes are another pyarrow's business; what they say is ours.
        expected, found = pq.read_table(only(golden / "out", kind)), pq.read_table(only(tmp_path / "out", kind))
        assert found.schema.equals(expected.schema, check_metadata=True), kind
        assert found.to_pylist() == expected.to_pylist(), kind


def test_todays_reader_reads_the_golden_shard(golden: Path) -> None:
    rows = pq.read_table(only(golden / "out", "index/samples-*")).to_pylist()
    masks = pq.read_table(only(golden / "out", "index/masks-*")).to_pylist()
    shard = only(golden / "out", "shards/*")
    data = shard.read_bytes()
    assert [row["key"].rstrip("0123456789abcdef")[:-1] for row in rows] == ["green-apples", "a", "turned"]
    with tarfile.open(shard) as tar:
        names = tar.getnames()
    assert names == [name for row in rows for name in (f"{row['key']}.{row['ext']}", f"{row['key']}.json")]
    for row in rows:
        assert row["shard"] == f"shards/{shard.name}"
        record = data[row["json_offset"] : row["json_offset"] + row["json_size"]]
        sample = schema.sample_from_json(record, where=row["key"])
        assert schema.sample_to_json(sample) == record
        image = data[row["image_offset"] : row["image_offset"] + row["image_size"]]
        assert image == (golden / "images" / row["source_uri"].removeprefix("golden/")).read_bytes()
        assert schema.sha256_of(image) == sample.source_sha256
        assert [mask["mask_id"] for mask in masks if mask["key"] == row["key"]] == [0, 1, 2, 3]
        for mask in sample.annotations:
            assert rle.decode(mask.segmentation).sum() == mask.area
    failures = pq.read_table(only(golden / "out", "failures/*")).to_pylist()
    assert {row["source_uri"]: row["reason"] for row in failures} == {
        "golden/text.png": "unsupported_format",
        "golden/zero.jpg": "unreadable",
    }


def test_the_golden_shard_spells_the_format_out(golden: Path) -> None:
    """Byte for byte, what `shards/tar.py` promises: constant header fields, two zero blocks, whole records."""
    data = only(golden / "out", "shards/*").read_bytes()
    assert len(data) % 10_240 == 0
    header = data[:512]
    assert header[100:108] == b"0000644\0"
    assert header[108:124] == b"0000000\0" * 2
    assert header[136:148] == b"00000000000\0"
    assert header[257:265] == b"ustar\x0000"
    assert header[265:329] == bytes(64)
    assert b'{"annotations":[{"area":' in data
    assert b'"format":"grainmill/1"' in data
