"""The rules of an image's tree, each by itself and against the reference's defects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.format import rle
from pipeline.format.granularity import GranularityMethod
from pipeline.format.schema import Annotation, Origin
from pipeline.labeling.atoms import Atoms, BoxMask, RunLengthWriter, cut_atoms, enlargement
from pipeline.labeling.config import TreeConfig
from pipeline.labeling.hierarchy import Candidates, build_hierarchy
from tests.annotations import check_annotations

SIDE = 60
TREE = TreeConfig(min_area_px=4)


def box(y: int, x: int, height: int, width: int) -> NDArray[np.bool_]:
    mask = np.zeros((SIDE, SIDE), dtype=np.bool_)
    mask[y : y + height, x : x + width] = True
    return mask


def tree_of(
    masks: Sequence[NDArray[np.bool_]],
    detections: int,
    *,
    scores: Sequence[float] | None = None,
    tree: TreeConfig = TREE,
    granularity: GranularityMethod = "instance-minmax",
) -> tuple[Annotation, ...]:
    """The first `detections` masks may be instances."""
    atoms, members, _ = cut_atoms(np.zeros((SIDE, SIDE), dtype=np.int32), [BoxMask.of(mask) for mask in masks])
    origin: list[Origin] = ["divide" if index < detections else "conquer" for index in range(len(masks))]
    annotations = build_hierarchy(
        Candidates(
            atoms=atoms,
            members=members,
            origin=origin,
            score=np.array(scores if scores is not None else [np.nan] * len(masks)),
            level=[None] * len(masks),
            may_be_instance=np.arange(len(masks)) < detections,
        ),
        height=SIDE,
        width=SIDE,
        tree=tree,
        granularity=granularity,
    )
    check_annotations(annotations, SIDE, SIDE)
    return annotations


def test_mutual_containment_keeps_one_of_two_near_copies() -> None:
    """Two detections, each mostly inside the other, eliminated each other and the object was lost."""
    found = tree_of([box(10, 10, 30, 30), box(10, 11, 30, 30)], 2, scores=[0.4, 0.9])
    assert len(found) == 1
    assert found[0].bbox == (11, 10, 30, 30)  # the better one


def test_minmax_has_no_constant_fallback() -> None:
    """A lone instance was written twice, with 0.5 and with 1.0."""
    found = tree_of([box(10, 10, 30, 30)], 1)
    assert [each.granularity for each in found] == [1.0]
    parts = tree_of([box(0, 0, 40, 40), box(0, 0, 20, 20), box(20, 20, 10, 10)], 1)
    expected = [1.0, 0.1 + 0.9 * (20 - 10) / (40 - 10), 0.1]
    assert [each.granularity for each in parts] == pytest.approx(expected, abs=1e-6)


def test_parts_do_not_outgrow_their_instance() -> None:
    """A part larger than its instance took g = 1.0 and left the instance less."""
    found = tree_of([box(10, 10, 20, 20), box(10, 11, 20, 20)], 1)
    assert [each.granularity for each in found] == [1.0]  # 0.95 of it inside: clipped to 19 columns, then a duplicate
    found = tree_of([box(10, 10, 20, 20), box(9, 10, 15, 10)], 1)
    assert [each.bbox for each in found] == [(10, 10, 20, 20), (10, 10, 10, 14)]
    assert found[0].granularity == 1.0 > found[1].granularity


def test_whole_subobject_part_is_a_chain_and_not_flat() -> None:
    """Of a chain whole > sub-object > part only the whole was an instance, and the rest lay flat below it."""
    whole, sub, part = box(0, 0, 50, 50), box(5, 5, 30, 30), box(10, 10, 10, 10)
    found = tree_of([whole, sub, part], 2)
    assert [each.parent_id for each in found] == [None, 0, 1]
    assert found[0].granularity > found[1].granularity > found[2].granularity


def test_background_does_not_swallow_the_objects() -> None:
    """A detection of nearly the whole image made every object its part."""
    everything, one, two = np.ones((SIDE, SIDE), dtype=np.bool_), box(5, 5, 20, 20), box(30, 30, 20, 20)
    assert [each.is_instance for each in tree_of([everything, one, two], 3)] == [True, True]
    assert len(tree_of([everything], 1)) == 1  # alone, it stays


def test_a_part_of_two_instances_belongs_to_the_smaller() -> None:
    found = tree_of([box(0, 0, 40, 40), box(20, 20, 30, 30), box(25, 25, 10, 10)], 2)
    small = next(each for each in found if each.area == 100)
    assert found[small.instance_id].area == 900


def test_what_joins_wholes_is_kept_beside_them() -> None:
    left, right = box(0, 0, 30, 20), box(0, 20, 30, 20)
    found = tree_of([left, right, left | right], 2)
    assert sorted((each.area, each.is_instance, each.origin) for each in found) == [
        (600, True, "divide"),
        (600, True, "divide"),
        (1200, True, "conquer"),
    ]
    assert len(tree_of([left, right, left | right], 2, tree=replace(TREE, loose=False))) == 2


def test_what_no_whole_claims_is_a_remainder_with_its_parts() -> None:
    found = tree_of([box(0, 0, 20, 20), box(30, 30, 20, 20), box(30, 30, 10, 10)], 1)
    assert [(each.origin, each.parent_id) for each in found] == [
        ("divide", None),
        ("remainder", None),
        ("conquer", found[1].id),
    ]


def test_masks_are_enlarged_exactly() -> None:
    """A label map of 7 x 5 stands for an image of 23 x 41: areas, boxes and runs are those of the full size."""
    labels = np.arange(35, dtype=np.int32).reshape(7, 5)
    atoms = Atoms.of(labels).at_size(23, 41)
    full = labels[np.ix_(enlargement(7, 23), enlargement(5, 41))]
    assert atoms.area_px.tolist() == np.bincount(full.ravel()).tolist()
    random = np.random.default_rng(0)
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        members = random.random(35) < share
        runs = RunLengthWriter(atoms, 23, 41).run_lengths(members)
        assert np.array_equal(rle.decode(rle.from_run_lengths(runs, 23, 41)), members[full])
        assert rle.from_run_lengths(runs, 23, 41) == rle.encode(members[full])


@st.composite
def scenes(draw: st.DrawFn) -> tuple[list[NDArray[np.bool_]], int, list[float]]:
    count = draw(st.integers(1, 9))
    side = st.integers(1, 40)
    masks = [box(draw(st.integers(0, 30)), draw(st.integers(0, 30)), draw(side), draw(side)) for _ in range(count)]
    scores = [draw(st.sampled_from([0.1, 0.5, 0.5, 0.9, float("nan")])) for _ in range(count)]
    return masks, draw(st.integers(0, count)), scores


@given(scenes(), st.sampled_from(get_args(GranularityMethod)))
@settings(max_examples=150)
def test_any_candidates_give_a_valid_tree(
    scene: tuple[list[NDArray[np.bool_]], int, list[float]], method: GranularityMethod
) -> None:
    masks, detections, scores = scene
    found = tree_of(masks, detections, scores=scores, granularity=method)
    for instance in {each.instance_id for each in found}:
        family = [rle.decode(each.segmentation) for each in found if each.instance_id == instance]
        for i, first in enumerate(family):
            for second in family[i + 1 :]:
                assert (first & second).sum() <= TREE.duplicate_iou * (first | second).sum()
