"""RLE: COCO's own decoder agrees, and what is not an RLE is refused before anything is allocated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from pipeline.errors import SchemaError
from pipeline.format import rle
from pipeline.labeling.atoms import suppress_duplicates


def drawn() -> np.ndarray:
    mask = np.zeros((7, 5), dtype=bool)
    mask[2:5, 1:4] = True
    return mask


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools under numpy 2
def test_encodes_as_pycocotools_reads() -> None:
    encoded = rle.encode(drawn())
    decoded = coco_mask.decode({"size": encoded["size"], "counts": encoded["counts"].encode()})
    assert np.array_equal(decoded.astype(bool), drawn())


def test_runs_area_and_box() -> None:
    runs = rle.run_lengths_of(rle.encode(drawn()))
    assert runs.tolist() == [9, 3, 4, 3, 4, 3, 9]
    assert rle.area_px(runs) == 9
    assert rle.bbox_xywh(runs, height=7) == (1, 2, 3, 3)


def test_box_of_a_run_across_columns_covers_the_last_row_and_column() -> None:
    mask = np.ones((3, 4), dtype=bool)
    assert rle.bbox_xywh(rle.run_lengths_of(rle.encode(mask)), height=3) == (0, 0, 4, 3)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1)])
@pytest.mark.parametrize("fill", [False, True])
def test_constant_masks(shape: tuple[int, int], fill: bool) -> None:
    mask = np.full(shape, fill)
    assert np.array_equal(rle.decode(rle.encode(mask)), mask)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ("", "sum to 0"),
        ("93434", "sum to"),
        ("9" * 40, "sum to"),
        ("\x10", "alphabet"),
        ("ÿ", "ASCII"),
        ("o", "ends inside"),
        ("oooooooooooooooo0", "too large"),
        ("@", "negative"),
    ],
)
def test_malformed_counts_are_refused(counts: str, expected: str) -> None:
    with pytest.raises(SchemaError, match=expected):
        rle.decode({"size": [7, 5], "counts": counts})


def test_counts_that_sum_short_name_both_numbers() -> None:
    short = rle.encode(np.zeros((7, 4), dtype=bool))["counts"]
    with pytest.raises(SchemaError, match=r"sum to 28, expected height x width = 7 x 5 = 35"):
        rle.decode({"size": [7, 5], "counts": short})


def test_pairwise_intersections_are_exact() -> None:
    random = np.random.default_rng(3)
    masks = random.random((12, 40, 30)) < 0.4
    expected = (masks[:, None] & masks[None, :]).sum(axis=(2, 3))
    assert np.array_equal(rle.pairwise_intersection_px([rle.encode(mask) for mask in masks]), expected)


def test_intersections_of_more_than_255_masks() -> None:
    rows = np.arange(300)
    masks = [np.arange(301)[:, None] <= row for row in rows]
    found = rle.pairwise_intersection_px([rle.encode(np.repeat(mask, 2, axis=1)) for mask in masks])
    assert np.array_equal(found, 2 * (np.minimum(rows[:, None], rows[None, :]) + 1))


def test_without_copies_keeps_what_comparing_all_pairs_keeps() -> None:
    random = np.random.default_rng(4)
    y, x = np.mgrid[:60, :80]
    masks = [(x - a) ** 2 + (y - b) ** 2 < r**2 for a, b, r in random.uniform(0, [80, 60, 40], (150, 3))]
    masks += [np.zeros((60, 80), bool), np.zeros((60, 80), bool), np.ones((60, 80), bool)]
    rles = [rle.encode(mask) for mask in masks]
    for max_iou in (0.0, 0.3, 0.5, 0.9, 1.0):
        expected = suppress_duplicates(rle.pairwise_intersection_px(rles), max_iou=max_iou)
        assert np.array_equal(rle.without_copies(rles, max_iou=max_iou), expected)
    assert rle.without_copies([], max_iou=0.9).tolist() == []


def test_an_iou_at_the_limit_is_no_copy() -> None:
    masks = [np.arange(10)[None, :] < 10, np.arange(10)[None, :] < 9]
    rles = [rle.encode(mask) for mask in masks]
    assert rle.without_copies(rles, max_iou=0.9).tolist() == [0, 1]
    assert rle.without_copies(rles, max_iou=0.89).tolist() == [0]


def test_masks_of_several_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="one size"):
        rle.pairwise_intersection_px([rle.encode(np.ones((2, 3), bool)), rle.encode(np.ones((3, 2), bool))])


@pytest.mark.parametrize(
    "bad",
    [
        [[1.0, 2.0]],
        {"size": [40, 60], "counts": [1, 2]},
        {"size": [3, 3], "counts": [9]},
        {"size": [40, 60], "counts": "00"},
        {"counts": [1]},
        [],
        None,
        7,
    ],
)
def test_a_segmentation_that_is_none_is_refused(bad: Any) -> None:
    with pytest.raises(SchemaError, match="img 3"):
        rle.from_coco(bad, 40, 60, where="img 3")


def test_cocos_three_forms_are_one_mask() -> None:
    mask = np.zeros((40, 60), dtype=bool)
    mask[5:20, 10:30] = True
    expected = rle.encode(mask)
    polygon = [10, 5, 30, 5, 30, 20, 10, 20]
    forms = (expected, {"size": [40, 60], "counts": rle.run_lengths_of(expected).tolist()}, [polygon])
    for form in forms:
        assert rle.from_coco(form, 40, 60, where="here") == expected
    outside = [[-500.0, -500.0, 2.0**21, -500.0, 2.0**21, 1000.0, -500.0, 1000.0]]
    assert rle.decode(rle.from_coco(outside, 40, 60, where="here", clip=True)).all()
    with pytest.raises(SchemaError, match="here: expected polygons or run lengths of 40 x 60; a polygon's coordinates"):
        rle.from_coco(outside, 40, 60, where="here")
