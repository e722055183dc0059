"""What people decided about masks, on records: trees stay trees, and what nobody spoke of stays as it was mined."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pipeline.errors import SchemaError
from pipeline.format import rle
from pipeline.format.granularity import granularity_of
from pipeline.format.mask_verdicts import ImageVerdicts, MadeMask, apply_verdicts, read_verdicts, verdicts_bytes
from pipeline.format.schema import Annotation, Sample, sample_to_json

HEIGHT, WIDTH = 40, 60
BOXES = ((0, 0, 40, 30), (2, 2, 30, 20), (4, 4, 10, 10), (4, 16, 8, 4), (34, 2, 4, 4), (44, 0, 16, 40), (46, 2, 8, 8))
"""x, y, w, h: a whole, a part with two parts of its own, another part; a second whole and its part."""
PARENTS = (None, 0, 1, 1, 0, None, 5)


def box(x: int, y: int, w: int, h: int) -> np.ndarray:
    drawn = np.zeros((HEIGHT, WIDTH), dtype=bool)
    drawn[y : y + h, x : x + w] = True
    return drawn


def record(mask: np.ndarray, place: int, parent: int | None, instance: int, g: float) -> Annotation:
    encoded = rle.encode(mask)
    return Annotation(
        id=place, segmentation=encoded, bbox=rle.bbox_xywh(rle.run_lengths_of(encoded), HEIGHT), area=int(mask.sum()),
        granularity=g, instance_id=instance, parent_id=parent, level=place, origin="conquer", score=0.5,
    )  # fmt: skip


def drawn_sample() -> Sample:
    g = [
        float(each)
        for start, stop in ((0, 5), (5, 7))
        for each in granularity_of(np.array([w * h for _, _, w, h in BOXES[start:stop]]), "instance-minmax")
    ]
    return Sample(
        key="a", source_uri="l/a.png", member=None, source_sha256="0" * 64, license=None, width=WIDTH, height=HEIGHT,
        exif_orientation=1, file_name="a.png",
        annotations=tuple(
            record(box(*each), place, PARENTS[place], 0 if place < 5 else 5, g[place])
            for place, each in enumerate(BOXES)
        ),
    )  # fmt: skip


def verdicts(*made: MadeMask, kept: tuple[int, ...] = (), dropped: tuple[int, ...] = ()) -> ImageVerdicts:
    return ImageVerdicts(key="a", record_sha256="0" * 64, kept=kept, dropped=dropped, made=made)


def made(mask: np.ndarray, *of: int, how: str = "merged") -> MadeMask:
    return MadeMask(of=of, how=how, segmentation=rle.encode(mask))  # type: ignore[arg-type]


def tree(sample: Sample) -> list[tuple[tuple[int, int, int, int], int | None, int]]:
    """Box, parent and instance of each mask."""
    return [(mask.bbox, mask.parent_id, mask.instance_id) for mask in sample.annotations]


def by_areas(sample: Sample, *ids: int) -> list[float]:
    areas = np.array([sample.annotations[each].area for each in ids])
    return [float(each) for each in granularity_of(areas, "instance-minmax")]


def test_a_part_that_goes_leaves_its_parts_to_the_mask_around_it() -> None:
    before = drawn_sample()
    after, counts = apply_verdicts(before, verdicts(dropped=(1,), kept=(0, 2)), "instance-minmax")
    assert tree(after) == [
        (BOXES[0], None, 0), (BOXES[2], 0, 0), (BOXES[3], 0, 0), (BOXES[4], 0, 0), (BOXES[5], None, 4),
        (BOXES[6], 4, 4),
    ]  # fmt: skip
    assert counts == {"dropped": 1}
    assert [each.granularity for each in after.annotations[:4]] == by_areas(after, 0, 1, 2, 3)
    # The other instance is what it was, but for its place.
    for new, old in zip(after.annotations[4:], before.annotations[5:], strict=True):
        assert (new.segmentation, new.granularity, new.score, new.level) == (
            old.segmentation, old.granularity, old.score, old.level,
        )  # fmt: skip


def test_a_smallest_part_that_goes_stretches_the_dial_anew() -> None:
    before = drawn_sample()
    after, _ = apply_verdicts(before, verdicts(dropped=(4,)), "instance-minmax")
    assert after.annotations[3].bbox == BOXES[3]
    assert (before.annotations[3].granularity > 0.1, after.annotations[3].granularity) == (True, 0.1)
    same, _ = apply_verdicts(before, verdicts(dropped=(4,)), "instance-relative")
    assert same.annotations[1].granularity == granularity_of(np.array([1200, 600]), "instance-relative")[1]


def test_parts_of_a_whole_that_goes_are_wholes() -> None:
    after, counts = apply_verdicts(drawn_sample(), verdicts(dropped=(0,)), "instance-minmax")
    assert tree(after) == [
        (BOXES[1], None, 0), (BOXES[2], 0, 0), (BOXES[3], 0, 0), (BOXES[4], None, 3), (BOXES[5], None, 4),
        (BOXES[6], 4, 4),
    ]  # fmt: skip
    assert [after.annotations[each].granularity for each in (0, 3, 4)] == [1.0, 1.0, 1.0]
    assert counts == {"dropped": 1}


def test_merged_and_cut_masks_stand_where_they_were() -> None:
    union = box(*BOXES[2]) | box(*BOXES[3])
    after, counts = apply_verdicts(drawn_sample(), verdicts(made(union, 2, 3)), "instance-minmax")
    new = after.annotations[2]
    assert np.array_equal(rle.decode(new.segmentation), union)
    assert (new.parent_id, new.instance_id, new.origin, new.score, new.level) == (1, 0, "annotation", None, None)
    assert counts == {"merged": 2, "made": 1}
    one, two = box(2, 2, 30, 13), box(2, 15, 30, 7)
    cut = verdicts(made(one, 1, how="split"), made(two, 1, how="split"))
    after, counts = apply_verdicts(drawn_sample(), cut, "instance-minmax")
    assert [each.parent_id for each in after.annotations[:6]] == [None, 0, 0, 1, 2, 0]  # each piece has its part
    assert counts == {"split": 1, "made": 2}


def test_masks_of_two_wholes_that_were_merged_are_one() -> None:
    union = box(*BOXES[0]) | box(*BOXES[5])
    after, _ = apply_verdicts(drawn_sample(), verdicts(made(union, 0, 5)), "instance-minmax")
    assert {mask.instance_id for mask in after.annotations} == {0}
    assert [mask.parent_id for mask in after.annotations if mask.area in (600, 64)] == [0, 0]
    assert [mask.granularity for mask in after.annotations] == by_areas(after, *range(6))


def test_what_equals_a_mask_that_stays_is_not_there_twice() -> None:
    after, counts = apply_verdicts(drawn_sample(), verdicts(made(box(*BOXES[0]), 1, 4)), "instance-minmax")
    assert len(after.annotations) == 5
    assert counts == {"merged": 2}


def test_what_nobody_judged_goes_only_if_asked() -> None:
    before = drawn_sample()
    same, counts = apply_verdicts(before, verdicts(kept=(1, 6)), "instance-minmax")
    assert (sample_to_json(same), counts) == (sample_to_json(before), {})
    after, counts = apply_verdicts(before, verdicts(kept=(1, 6)), "instance-minmax", kept_only=True)
    assert tree(after) == [(BOXES[1], None, 0), (BOXES[6], None, 1)]
    assert counts == {"unjudged": 5}
    none, _ = apply_verdicts(before, verdicts(dropped=(3,)), "instance-minmax", kept_only=True)
    assert none.annotations == ()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (verdicts(dropped=(7,)), "dropped 7, and its masks are 0 to 6"),
        (verdicts(made(box(0, 0, 9, 9), 9)), "made of 9"),
        (verdicts(kept=(1,), dropped=(1,)), "mask 1 is in two of"),
        (verdicts(made(box(0, 0, 9, 9), 1), kept=(1,)), "mask 1 is in two of"),
        (verdicts(made(box(0, 0, 9, 9)[:, :9], 1)), r"on a grid of \[40, 9\], expected"),
        (verdicts(made(box(0, 0, 0, 0), 1)), "is empty"),
    ],
)
def test_verdicts_that_cannot_be_are_told(wrong: ImageVerdicts, words: str) -> None:
    with pytest.raises(SchemaError, match=words):
        apply_verdicts(drawn_sample(), wrong, "instance-minmax")


def test_lists_are_read_as_they_were_written() -> None:
    first = verdicts(made(box(0, 0, 9, 9), 1, 2), kept=(3,), dropped=(4,))
    other = dataclasses.replace(verdicts(dropped=(0,)), key="b")
    data = verdicts_bytes([first, other])
    assert read_verdicts(data, where="x") == {"a": first, "b": other}
    for wrong, words in (
        (b"a\nb\n", "expected a first line"), (b"", "expected a first line"), (data[:-9], "line 3"),
        (verdicts_bytes([first, first]), "line 3: a stands there twice"),
        (data.replace(b"merged", b"welded"), "line 2"),
    ):  # fmt: skip
        with pytest.raises(SchemaError, match=words):
            read_verdicts(wrong, where="x")
