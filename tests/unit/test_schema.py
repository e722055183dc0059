"""The contract: what is written is read back equal, and each promise that is broken is named."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from pipeline.errors import FAILURE_REASONS, SchemaError
from pipeline.format import rle, schema
from pipeline.format.schema import Annotation, Sample


def annotation(mask: np.ndarray, **changes: object) -> Annotation:
    encoded = rle.encode(mask)
    runs = rle.run_lengths_of(encoded)
    fields: dict[str, object] = {
        "id": 0,
        "segmentation": encoded,
        "bbox": rle.bbox_xywh(runs, mask.shape[0]),
        "area": rle.area_px(runs),
        "granularity": 1.0,
        "instance_id": 0,
        "parent_id": None,
        "level": None,
        "origin": "divide",
        "score": 0.5,
    }
    return Annotation(**{**fields, **changes})  # type: ignore[arg-type]


def nested_sample() -> Sample:
    whole, middle, small = (np.zeros((12, 20), dtype=bool) for _ in range(3))
    whole[1:11, 2:18] = True
    middle[2:8, 3:12] = True
    small[3:5, 4:7] = True
    return Sample(
        key="photo-0123456789abcdef0123",
        source_uri="photos/a/photo.jpg",
        member=None,
        source_sha256="0" * 64,
        license="CC-BY-4.0",
        width=20,
        height=12,
        exif_orientation=6,
        file_name="photo-0123456789abcdef0123.jpg",
        annotations=(
            annotation(whole),
            annotation(middle, id=1, granularity=0.5, parent_id=0, origin="conquer", level=2, score=None),
            annotation(small, id=2, granularity=0.1, parent_id=1, origin="conquer", level=0),
        ),
    )


def test_round_trip_is_equal_and_canonical() -> None:
    data = schema.sample_to_json(nested_sample())
    assert schema.sample_from_json(data, where="test") == nested_sample()
    assert data == json.dumps(json.loads(data), sort_keys=True, separators=(",", ":")).encode()


def test_valid_sample_passes() -> None:
    schema.validate_sample(nested_sample(), where="test")


def changed(index: int, **changes: object) -> Sample:
    sample = nested_sample()
    masks = list(sample.annotations)
    masks[index] = dataclasses.replace(masks[index], **changes)  # type: ignore[arg-type]
    return dataclasses.replace(sample, annotations=tuple(masks))


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (changed(0, area=7), "area is 7"),
        (changed(1, bbox=(0, 0, 3, 3)), "bbox"),
        (changed(0, granularity=0.9), "granularity 1.0"),
        (changed(2, granularity=0.6), "above its parent's"),
        (changed(1, parent_id=None), "earlier parent"),
        (changed(1, parent_id=2), "earlier parent"),
        (changed(2, granularity=0.1234567), "six decimals"),
        (changed(2, instance_id=1), "does not stand just before"),
    ],
)
def test_broken_promises_are_named(sample: Sample, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        schema.validate_sample(sample, where="test")


def test_a_part_outside_its_parent_is_named() -> None:
    outside = np.zeros((12, 20), dtype=bool)
    outside[0:2, 0:3] = True
    replaced = annotation(outside)
    sample = changed(2, segmentation=replaced.segmentation, bbox=replaced.bbox, area=replaced.area)
    with pytest.raises(SchemaError, match="not inside its parent"):
        schema.validate_sample(sample, where="test")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda record: record.update(format="grainmill/2"), "format is 'grainmill/2'"),
        (lambda record: record.pop("image"), r"missing fields \['image'\]"),
        (lambda record: record.update(annotations=None), "must be a list"),
        (lambda record: record["annotations"][0].update(granularity=1.5), "granularity is 1.5"),
        (lambda record: record["annotations"][0].update(origin="guess"), "origin is 'guess'"),
        (lambda record: record["annotations"][0].update(id=4), "expected its position 0"),
        (lambda record: record["annotations"][0].update(area=True), "expected an integer"),
        (lambda record: record["annotations"][0]["segmentation"].update(size=[20, 12]), "the image is"),
        (lambda record: record["image"].update(exif_orientation=9), "exif_orientation"),
    ],
)
def test_what_is_not_the_format_is_refused(edit: object, message: str) -> None:
    record = json.loads(schema.sample_to_json(nested_sample()))
    edit(record)  # type: ignore[operator]
    with pytest.raises(SchemaError, match=message):
        schema.sample_from_json(json.dumps(record).encode(), where="shard 3, key x")


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"a":NaN}', "NaN"), ('{"a":1,"a":2}', "repeats"), ("[" * 100_000, "not valid"), ("{", "not valid")],
)
def test_json_from_outside_is_bounded(text: str, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        schema.load_json(text.encode(), where="test")


def test_index_rows_have_the_schemas_columns() -> None:
    location = schema.MemberLocation(
        shard="shards/00000000-00000000.tar", image_offset=512, image_size=9, json_offset=2048, json_size=9,
        json_sha256="0" * 64,
    )  # fmt: skip
    assert list(schema.sample_row(nested_sample(), location)) == schema.SAMPLES_SCHEMA.names
    rows = schema.mask_rows(nested_sample())
    assert list(rows[0]) == schema.MASKS_SCHEMA.names
    assert [row["depth"] for row in rows] == [0, 1, 2]


def test_key_is_slug_and_twenty_hex_of_where_it_came_from() -> None:
    key = schema.make_key(label="photos", relative_path="a/Großer Hund.JPG", member=None, occurrence=0, sha256="ab")
    assert key == "gro-er-hund-" + schema.sha256_of(b"photos\0a/Gro\xc3\x9fer Hund.JPG\0\x000\0ab")[:20]
    other = schema.make_key(label="photos", relative_path="a/Großer Hund.JPG", member=None, occurrence=0, sha256="ac")
    assert other != key
    assert schema.slug_of("...") == "image"
    assert len(schema.slug_of("x" * 99)) == 40


def test_digest_does_not_depend_on_order() -> None:
    shards = [[1, "b", 2, 3], [0, "a", 1, 1]]
    failures = [["k", "u", None, "read", "unreadable"], ["j", "u", "m", "read", "unreadable"]]
    assert schema.dataset_digest(shards, failures) == schema.dataset_digest(shards[::-1], failures[::-1])
    assert schema.dataset_digest(shards, []) != schema.dataset_digest(shards, failures)


def test_reasons_are_the_fourteen_of_the_format() -> None:
    assert len(FAILURE_REASONS) == 14
