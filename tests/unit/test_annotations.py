"""SA-1B annotations from outside: good ones are read exactly, everything else is one `bad_annotation`."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from pipeline.errors import SampleFailureError
from pipeline.format import rle
from pipeline.sources.annotations import MAX_ANNOTATIONS, parse_sa1b
from pipeline.sources.passed_over import PassedOver

HEIGHT, WIDTH = 6, 9


def mask(x: int, y: int, w: int, h: int) -> np.ndarray:
    made = np.zeros((HEIGHT, WIDTH), dtype=bool)
    made[y : y + h, x : x + w] = True
    return made


def parsed(record: Any) -> tuple[rle.Rle, ...]:
    data = record if isinstance(record, bytes) else json.dumps(record).encode()
    return parse_sa1b(data, height=HEIGHT, width=WIDTH, where="sa_1.json")


def with_segmentation(segmentation: Any) -> dict[str, Any]:
    return {"image": {"width": WIDTH, "height": HEIGHT}, "annotations": [{"id": 1, "segmentation": segmentation}]}


def test_compressed_and_uncompressed_masks_are_read() -> None:
    first, second = mask(1, 2, 4, 3), mask(0, 0, 2, 2)
    runs = rle.run_lengths_of(rle.encode(second)).tolist()
    record = {
        "annotations": [
            {"segmentation": rle.encode(first), "area": 12, "predicted_iou": 0.9},
            {"segmentation": {"size": [HEIGHT, WIDTH], "counts": runs}},
            {"segmentation": rle.encode(mask(0, 0, 0, 0))},
        ]
    }
    found = parsed(record)
    assert len(found) == 2, "an empty mask is left out"
    assert np.array_equal(rle.decode(found[0]), first)
    assert np.array_equal(rle.decode(found[1]), second)
    assert parsed({"annotations": []}) == ()


def test_annotations_without_a_mask_are_counted_and_the_others_are_read() -> None:
    whole, empty = rle.encode(mask(1, 1, 3, 2)), rle.encode(mask(0, 0, 0, 0))
    entries = [{"segmentation": each} for each in (None, whole, [], empty)]
    passed = PassedOver()
    data = json.dumps({"annotations": entries}).encode()
    assert len(parse_sa1b(data, height=HEIGHT, width=WIDTH, where="sa_1.json", passed=passed)) == 1
    assert passed.to_json()["annotation_without_mask"]["count"] == 3


SIZE = [HEIGHT, WIDTH]
TOTAL = HEIGHT * WIDTH


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe\x00{", "not valid JSON"),
        (b'{"annotations": NaN}', "NaN"),
        (b'{"annotations": [], "annotations": []}', "repeats a key"),
        (b"[" * 200_000, "not valid JSON"),
        (b'{"annotations":' * 100_000, "not valid JSON"),
        ([], "expected a list `annotations`"),
        ({}, "no field 'annotations'"),
        ({"annotations": {}}, "expected a list `annotations`"),
        ({"annotations": [7]}, "expected an RLE of size"),
        ({"annotations": [{}]}, "expected an RLE of size"),
        ({"annotations": [None]}, "expected an RLE of size"),
        ({"annotations": [{}] * (MAX_ANNOTATIONS + 1)}, "at most"),
        (with_segmentation([[1, 1, 4, 1, 4, 4]]), "expected an RLE of size"),
        (with_segmentation({"size": [WIDTH, HEIGHT], "counts": "0"}), "expected an RLE of size"),
        (with_segmentation({"size": [10**9, 10**9], "counts": "0"}), "expected an RLE of size"),
        (with_segmentation({"size": SIZE}), "counts must be"),
        (with_segmentation({"size": SIZE, "counts": 5}), "counts must be"),
        (with_segmentation({"size": SIZE, "counts": [TOTAL - 1]}), f"sum to {TOTAL - 1}"),
        (with_segmentation({"size": SIZE, "counts": [0, TOTAL + 1]}), f"sum to {TOTAL + 1}"),
        (with_segmentation({"size": SIZE, "counts": [-1, TOTAL + 1]}), "whole numbers"),
        (with_segmentation({"size": SIZE, "counts": [0.5, TOTAL - 0.5]}), "whole numbers"),
        (with_segmentation({"size": SIZE, "counts": [True, TOTAL - 1]}), "whole numbers"),
        (with_segmentation({"size": SIZE, "counts": [10**30]}), "whole numbers"),
        (with_segmentation({"size": SIZE, "counts": ""}), "sum"),
        (with_segmentation({"size": SIZE, "counts": "5"}), "sum"),
        (with_segmentation({"size": SIZE, "counts": "é"}), "counts"),
        (with_segmentation({"size": SIZE, "counts": "\x07"}), "counts"),
        (with_segmentation({"size": SIZE, "counts": "P"}), "counts"),
        (with_segmentation({"size": SIZE, "counts": "o" * 40}), "counts"),
        (with_segmentation({"size": SIZE, "counts": "0" * 10_000_000}), "counts"),
    ],
)
def test_everything_else_is_one_bad_annotation(record: Any, message: str) -> None:
    with pytest.raises(SampleFailureError) as caught:
        parsed(record)
    assert caught.value.reason == "bad_annotation"
    assert message in caught.value.message
    assert len(caught.value.message) < 500


def test_counts_that_sum_short_are_told_though_pycocotools_takes_them() -> None:
    whole = rle.encode(mask(1, 1, 3, 3))
    short = {"size": SIZE, "counts": whole["counts"][:-1]}
    with pytest.raises(SampleFailureError, match="bad_annotation"):
        parsed(with_segmentation(short))


def test_random_text_never_raises_anything_else() -> None:
    random = np.random.default_rng(4)
    for _ in range(300):
        text = "".join(chr(code) for code in random.integers(40, 120, size=random.integers(0, 30)))
        try:
            (found,) = parsed(with_segmentation({"size": SIZE, "counts": text})) or (None,)
        except SampleFailureError:
            continue
        assert found is None or rle.run_lengths_of(found).sum() == TOTAL
