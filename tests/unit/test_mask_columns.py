"""`KEY.json` as training reads it: the same values as the whole record's, the same words for what is wrong."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from model.data.mask_columns import mask_columns_from_json
from pipeline.errors import SchemaError
from pipeline.format import rle, schema
from pipeline.format.schema import Annotation, Sample


def sample(masks: int = 40) -> Sample:
    """Small parts of one whole, all of the right form."""
    rng = np.random.default_rng(0)
    annotations = []
    for number in range(masks):
        mask = rng.random((30, 50)) < 0.2 if number else np.ones((30, 50), bool)
        encoded = rle.encode(mask)
        runs = rle.run_lengths_of(encoded)
        annotations.append(
            Annotation(
                id=number, segmentation=encoded, bbox=rle.bbox_xywh(runs, 30), area=rle.area_px(runs),
                granularity=round(float(rng.uniform(0.1, 1.0)), 6) if number else 1.0, instance_id=0,
                parent_id=0 if number else None, level=None, origin="conquer", score=0.5,
            )
        )  # fmt: skip
    return Sample(
        key='photo "a" \\ ä', source_uri="photo.jpg", member=None, source_sha256="7" * 64, license=None, width=50,
        height=30, exif_orientation=1, file_name="photo.jpg", annotations=tuple(annotations),
    )  # fmt: skip


@pytest.mark.parametrize("masks", [0, 1, 40])
def test_columns_are_those_of_the_record(masks: int) -> None:
    whole = sample(masks)
    found = mask_columns_from_json(schema.sample_to_json(whole), where="test")
    assert (found.key, found.source_sha256, found.height, found.width) == (whole.key, "7" * 64, 30, 50)
    assert found.counts == tuple(each.segmentation["counts"] for each in whole.annotations)
    for column, values in (
        (found.granularity, np.array([each.granularity for each in whole.annotations], np.float32)),
        (found.instance_id, np.array([each.instance_id for each in whole.annotations], np.int64)),
        (found.area_px, np.array([each.area for each in whole.annotations], np.int64)),
    ):
        assert column.dtype == values.dtype
        assert np.array_equal(column, values)


def mask(number: int, **changes: object) -> Callable[[dict[str, Any]], None]:
    return lambda record: record["annotations"][number].update(changes)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda record: record.update(format="grainmill/2"), "shard 3, key x: format is 'grainmill/2'"),
        (lambda record: record.pop("image"), r"missing fields \['image'\]"),
        (lambda record: record["image"].update(width=0), "image.width"),
        (lambda record: record["image"].update(height=2**31), "image.height"),
        (lambda record: record.update(annotations=None), "must be a list"),
        (lambda record: record["annotations"][5].pop("area"), "missing fields"),
        (mask(5, granularity=1.5), r"annotations\[5\].granularity is 1.5"),
        (mask(5, granularity=0.0999), "granularity is 0.0999"),
        (mask(5, granularity="0.5"), "granularity"),
        (mask(5, area=True), "expected an integer"),
        (mask(5, area=0), "area"),
        (mask(5, area=30 * 50 + 1), "area"),
        (mask(5, area=10**30), "area"),
        (mask(5, instance_id=40), "instance_id"),
        (mask(5, instance_id=-1), "instance_id"),
        (mask(5, id=4), "expected its position 5"),
        (mask(5, segmentation={"size": [50, 30], "counts": "x"}), "the image is"),
        (mask(5, segmentation={"size": [30, 50], "counts": 7}), "counts"),
    ],
)
def test_what_is_wrong_with_them_is_said_in_the_records_words(edit: Callable[[Any], None], message: str) -> None:
    record = json.loads(schema.sample_to_json(sample()))
    edit(record)
    data = json.dumps(record).encode()
    with pytest.raises(SchemaError, match=message):
        mask_columns_from_json(data, where="shard 3, key x")
    with pytest.raises(SchemaError, match=message):
        schema.sample_from_json(data, where="shard 3, key x")


@pytest.mark.parametrize("data", [b"{", b"", b"[" * 100_000, b'{"more":' * 100_000, b"\xff\xfe{}", b"NaN"])
def test_what_is_no_json_is_refused(data: bytes) -> None:
    with pytest.raises(SchemaError, match="test: "):
        mask_columns_from_json(data, where="test")


def test_json_that_is_too_long_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    data = schema.sample_to_json(dataclasses.replace(sample(1), license="x" * 1000))
    monkeypatch.setattr("model.data.mask_columns.MAX_JSON_BYTES", 900)
    with pytest.raises(SchemaError, match="larger than the limit of 900"):
        mask_columns_from_json(data, where="test")
