"""Files of proposals: forms, how an image is found, and what is said of malformed ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from pipeline.errors import InputError, SampleFailureError
from pipeline.format import rle
from pipeline.format.schema import sha256_of
from pipeline.sources.passed_over import PassedOver
from pipeline.sources.proposals import ACCEPTED_FORMAT, Proposals

HEIGHT, WIDTH = 20, 30


def box(top: int, left: int, height: int, width: int) -> NDArray[np.bool_]:
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.bool_)
    mask[top : top + height, left : left + width] = True
    return mask


MASK = box(3, 4, 10, 12)
POLYGON = [4.0, 3.0, 16.0, 3.0, 16.0, 13.0, 4.0, 13.0]
FORMS: dict[str, Any] = {
    "compressed": rle.encode(MASK),
    "uncompressed": {
        "size": [HEIGHT, WIDTH],
        "counts": rle.run_lengths_of(rle.encode(MASK)).tolist(),
    },
    "polygon": [POLYGON],
    "polygons that overlap": [POLYGON, [4.0, 3.0, 10.0, 3.0, 10.0, 9.0, 4.0, 9.0]],
}


def file_of(*entries: dict[str, Any], **image: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH, **image}],
        "annotations": [{"id": index, "image_id": 1, **each} for index, each in enumerate(entries)],
    }


def masks_of(
    record: Any, uri: str = "in/a.png", member: str | None = None, *, min_score: float = 0.3
) -> list[NDArray[np.bool_]]:
    found = Proposals(record, where="file.json").of(uri, member, height=HEIGHT, width=WIDTH, min_score=min_score)
    return [rle.decode(each.rle) for each in found]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_mask_is_read(form: str) -> None:
    found = masks_of(file_of({"segmentation": FORMS[form]}))
    assert len(found) == 1
    assert np.array_equal(found[0], MASK)


def test_lists_of_results_are_found_by_number_or_name() -> None:
    result = [{"image_id": 139, "segmentation": FORMS["compressed"], "score": 0.9}]
    for uri in ("in/000000000139.jpg", "in/sub/sa_139.jpg", "in/139.png"):
        assert len(masks_of(result, uri)) == 1
    assert masks_of(result, "in/140.jpg") == []
    assert len(masks_of([{"image_id": "b.png", "segmentation": FORMS["compressed"]}], "in/x/b.png")) == 1


def test_names_are_found_by_their_whole_path_or_their_last_part() -> None:
    entry = {"segmentation": FORMS["compressed"]}
    assert len(masks_of(file_of(entry, file_name="train/a.png"), "in/a.png")) == 1
    assert len(masks_of(file_of(entry, file_name="a.png"), "in/one/two/a.png")) == 1
    assert len(masks_of(file_of(entry, file_name="a.png"), "in/shard.tar", "x/a.png")) == 1
    assert masks_of(file_of(entry, file_name="b.png"), "in/a.png") == []
    assert masks_of(file_of(entry, file_name="139.png"), "in/1.png") == []  # an id is no name where there are names


def test_of_two_images_of_one_name_the_path_decides_or_it_is_an_error() -> None:
    record = file_of({"segmentation": FORMS["compressed"]}, file_name="x/a.png")
    record["images"].append({"id": 2, "file_name": "y/a.png"})
    assert len(masks_of(record, "in/x/a.png")) == 1
    assert masks_of(record, "in/y/a.png") == []
    with pytest.raises(SampleFailureError, match=r"2 images end in a\.png") as caught:
        masks_of(record, "in/a.png")
    assert caught.value.reason == "bad_annotation"


def test_low_scores_crowds_and_empty_masks_are_left_out() -> None:
    entries = [
        {"segmentation": FORMS["compressed"], "score": 0.3},  # strictly above
        {"segmentation": FORMS["polygon"], "score": 0.31},
        {"segmentation": FORMS["compressed"], "iscrowd": 1},
        {"segmentation": rle.encode(np.zeros((HEIGHT, WIDTH), dtype=np.bool_))},
    ]
    assert len(masks_of(file_of(*entries))) == 1
    assert len(masks_of(file_of(*entries), min_score=0.0)) == 2


def test_polygons_beyond_the_image_are_cut_at_its_border() -> None:
    found = masks_of(file_of({"segmentation": [[-1e9, -1e9, 1e9, -1e9, 1e9, 1e9, -1e9, 1e9]]}))
    assert found[0].all()


def test_an_image_of_another_size_is_a_bad_annotation() -> None:
    for record in (
        file_of({"segmentation": [POLYGON]}, height=HEIGHT + 1),
        [{"image_id": "a.png", "segmentation": {"size": [HEIGHT, WIDTH + 2], "counts": [HEIGHT * (WIDTH + 2)]}}],
    ):
        with pytest.raises(SampleFailureError, match="for an image of") as caught:
            masks_of(record)
        assert caught.value.reason == "bad_annotation"


COUNTS = coco_mask.encode(np.asfortranarray(MASK.astype(np.uint8)))["counts"].decode()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (3, "COCO's object or a list"),
        ({"images": []}, "a list `annotations`, found nothing"),
        ({"images": {}, "annotations": []}, "a list `images`, found dict"),
        ({"images": [3], "annotations": []}, r"images\[0\]"),
        ({"images": [{"id": None}], "annotations": []}, r"images\[0\]\.id"),
        ({"images": [{"id": 1}, {"id": 1}], "annotations": []}, "twice"),
        ({"images": [{"id": 1, "height": 3, "width": -1}], "annotations": []}, "height and width"),
        (file_of({"image_id": 7, "segmentation": [POLYGON]}), "no image with id 7"),
        (file_of({}), "found nothing"),
        (file_of({"segmentation": {}}), "size: expected"),
        (file_of({"segmentation": [[1, 2, 3, 4]]}), "three points"),
        (file_of({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}), "three points"),
        (file_of({"segmentation": [[1, 2, 3, 4, 5, "6"]]}), "numbers"),
        (file_of({"segmentation": [[1, 2, 3, 4, 5, 1e999]]}), "finite"),
        (file_of({"segmentation": [POLYGON], "score": "high"}), "a finite number"),
        (file_of({"segmentation": {"size": [HEIGHT, WIDTH], "counts": COUNTS[:-1]}}), "RLE"),
        (file_of({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [5, 5]}}), "sum to 10"),
        (file_of({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [-5, 605]}}), "whole numbers"),
        (file_of({"segmentation": {"size": [HEIGHT, WIDTH], "counts": None}}), "a string or a list"),
        (file_of({"segmentation": {"size": [HEIGHT, 7], "counts": COUNTS}}), "20 x 30; found size"),
        (file_of({"segmentation": {"size": [2**40, 2**40], "counts": COUNTS}}), "size"),
        ([[]], r"\[0\]: expected an object"),
    ],
)
def test_malformed_files_say_where_and_what(record: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Proposals(record, where="file.json")
    assert "--proposals file.json" in str(caught.value)


def test_reading_checks_the_file_itself(tmp_path: Path) -> None:
    path = tmp_path / "proposals.json"
    with pytest.raises(InputError, match="cannot be read"):
        Proposals.read(path)
    path.write_text("not json")
    with pytest.raises(InputError, match="not valid JSON"):
        Proposals.read(path)
    data = json.dumps(file_of({"segmentation": FORMS["polygon"]})).encode()
    path.write_bytes(data)
    assert len(Proposals.read(path, sha256=sha256_of(data))) == 1
    with pytest.raises(InputError, match="changed since the run was planned"):
        Proposals.read(path, sha256="0" * 64)


def test_masks_that_no_sample_uses_are_counted_by_their_reasons() -> None:
    record = file_of(
        {"segmentation": [POLYGON]}, {"segmentation": [POLYGON], "score": 0.3}, {"segmentation": []},
        {"segmentation": None}, {"segmentation": FORMS["compressed"], "iscrowd": 1},
    )  # fmt: skip
    record["images"] += [{"id": 2, "file_name": "train/z.png"}, {"id": 3, "file_name": "without-masks.png"}]
    record["annotations"] += [{"image_id": 2, "segmentation": [POLYGON]}] * 3
    proposals = Proposals(record, where="file.json")
    with pytest.raises(InputError, match=r"none of its 5 masks .* has 'a.png' .* sources have 'other.png'"):
        proposals.require_met("other.png")
    proposals.meet("in/other.png", None)
    proposals.meet("in/x/a.png", None)
    proposals.meet("in/x/a.png", None)
    proposals.require_met("other.png")
    counts = {reason: each["count"] for reason, each in proposals.unused(min_score=0.3).to_json().items()}
    assert counts == {
        "proposal_unmatched": 3, "proposal_low_score": 1, "proposal_without_mask": 2, "proposal_crowd": 1,
    }  # fmt: skip
    assert len(proposals.of("in/x/a.png", None, height=HEIGHT, width=WIDTH, min_score=0.3)) == 1
    with pytest.raises(InputError, match=r"'a.png' fits two samples, in/x/a.png and in/y/a.png"):
        proposals.meet("in/y/a.png", None)


def test_masks_without_a_pixel_are_told_when_they_are_met() -> None:
    proposals = Proposals(file_of({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}}), where="f")
    passed = PassedOver()
    assert proposals.of("in/a.png", None, height=HEIGHT, width=WIDTH, min_score=0.3, passed=passed) == ()
    assert passed.to_json()["proposal_without_mask"]["count"] == 1


def test_rows_of_tables_are_found_by_the_path_that_they_keep_and_never_by_their_number() -> None:
    entry = {"segmentation": FORMS["compressed"]}
    for record in (file_of(entry), [{"image_id": "a.png", **entry}], [{"image_id": "a", **entry}]):
        assert len(masks_of(record, "in/t.parquet", "7/a.png")) == 1
        assert masks_of(record, "in/t.parquet", "7") == []
    numbered = [{"image_id": 139, **entry}]
    assert len(masks_of(numbered, "in/t.PARQUET", "7/000000000139.jpg")) == 1
    assert masks_of(numbered, "in/t.parquet", "139") == masks_of(numbered, "in/t.parquet", "139/000000000007.jpg") == []


def test_what_people_accepted_counts_whatever_its_score() -> None:
    record = file_of({"segmentation": FORMS["compressed"], "score": 0.1})
    assert masks_of(record) == []
    assert len(masks_of({**record, "info": {"format": ACCEPTED_FORMAT}})) == 1
    assert masks_of({**record, "info": "words"}) == []
