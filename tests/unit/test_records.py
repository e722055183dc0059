"""Records beside the shards: what is read is checked, and the message names file and field."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.dataset.open import open_dataset
from pipeline.errors import SchemaError
from pipeline.format.records import CommitRecord, ReleaseManifest, RunManifest, read_record


def changed(data: bytes, *, without: str = "", **fields: Any) -> bytes:
    """The record with other fields, and without one."""
    record = {**json.loads(data), **fields}
    return json.dumps({name: value for name, value in record.items() if name != without}).encode()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "grainmill/2"}, "here: format is 'grainmill/2', this version reads 'grainmill/1'"),
        ({"unit": "0"}, r"here: Expected `int`, got `str` - at `\$\.unit`"),
        ({"without": "seconds"}, "here: Object missing required field `seconds`"),
        ({"shard": {"name": "a"}}, r"here: Object missing required field `size` - at `\$\.shard`"),
        ({"notes": [1]}, r"here: Expected `str`, got `int` - at `\$\.notes\[0\]`"),
    ],
)
def test_a_wrong_field_is_named(drawn_run: Path, fields: dict[str, Any], message: str) -> None:
    data = (drawn_run / "commits" / "00000000.json").read_bytes()
    with pytest.raises(SchemaError, match=message):
        read_record(changed(data, **fields), CommitRecord, where="here")


def test_what_is_read_is_what_was_written(drawn_run: Path, drawn_release: Path) -> None:
    data = (drawn_run / "manifest.json").read_bytes()
    assert read_record(data, RunManifest, where="here") == json.loads(data)
    data = changed((drawn_release / "manifest.json").read_bytes(), further="kept")
    assert read_record(data, ReleaseManifest, where="here") == json.loads(data)


@pytest.mark.parametrize("name", ["plan.json", "commits/00000000.json"])
def test_a_damaged_record_ends_a_command_with_its_name(drawn_run: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(drawn_run, tmp_path / "out")
    path = tmp_path / "out" / name
    path.write_bytes(changed(path.read_bytes(), without="config_hash"))
    with pytest.raises(SchemaError, match=rf"{path}: Object missing required field `config_hash`"):
        list(open_dataset(tmp_path / "out").units())
