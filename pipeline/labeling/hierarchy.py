"""Candidate masks of one image -> its instances and their parts: the rules of the tree, and what applies them.

An **instance** is an annotation with granularity 1.0 and no parent; its parts name it. A part's parent is the last
earlier mask of its instance that contains at least 0.9 of it, else the instance. Parts are clipped to their parents,
so that containment is exact. Annotations are in the order of their instances; within an instance it comes first, then
its parts by area, then score, both descending, then RLE bytes.

1. Detections (candidates that may be instances) above 0.9 of the image go, unless alone. Of two near-copies (IoU above
   `TreeConfig.duplicate_iou`, over all pairs) the better one stays, by origin (annotation, proposal, divide, remainder,
   conquer), then score, then area, so that no object is lost to its own copy. A detection inside a larger one becomes a
   part of it, with its own sub-tree; the others are the instances.
2. Every other candidate inside an instance (at least 0.9 of it) is a part of the smallest such instance only.
3. What is left lies in no instance. If it hardly touches one, no cut claimed it: origin `remainder`. Otherwise it joins
   several instances and is none of them; it is kept for recall, beside them, and they stay instances. Within either
   group the largest are instances and what lies inside them their parts.
4. Within an instance duplicates go and parts are clipped to their parents, largest first, until nothing changes.

Everything happens on sets of atoms (`atoms.py`): containment, clipping and duplicates are integer arithmetic, and
pixels come back only as run lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..format import rle as rle_codec
from ..format.granularity import GranularityMethod, granularity_of
from ..format.rle import Rle
from ..format.schema import CONTAINED_FRACTION, MAX_IMAGE_FRACTION, ORIGINS, Annotation, Origin
from .atoms import Atoms, RunLengthWriter, contained_fraction, intersection_px, iou, suppress_duplicates
from .config import TreeConfig

FREE_FRACTION: Final = 0.1
"""A loose candidate that overlaps instances by less than this share of itself is a remainder."""

Groups = dict[int, list[int]]
"""An instance's place -> the places of its parts."""


@dataclass(frozen=True)
class Candidates:
    """N masks of one image.

    Attributes:
        atoms: what the masks are made of; areas at full size.
        members: (N, L) bool.
        origin: N of `schema.ORIGINS`.
        score: (N,) float64, larger is better, NaN for none.
        level: N of int or None.
        may_be_instance: (N,) bool, True for detections.
    """

    atoms: Atoms
    members: NDArray[np.bool_]
    origin: Sequence[Origin]
    score: NDArray[np.float64]
    level: Sequence[int | None]
    may_be_instance: NDArray[np.bool_]


def build_hierarchy(
    candidates: Candidates, *, height: int, width: int, tree: TreeConfig, granularity: GranularityMethod
) -> tuple[Annotation, ...]:
    """Builds an image's annotations.

    Args:
        candidates: any number; empty masks are ignored.
        height: full size in pixels; the atoms' label map may be smaller and is enlarged to it (nearest).
        width: likewise.
        tree: thresholds and limits.
        granularity: formula.

    Returns:
        Annotations that pass `schema.validate_sample`; empty if there is no mask.
    """
    masks = _Masks.of(candidates)
    groups = _instances(masks, height * width, tree)
    write = RunLengthWriter(candidates.atoms, height, width)
    built = [_build_instance(masks, instance, parts, tree, write) for instance, parts in groups.items()]
    built.sort(key=lambda family: family[0].order)
    annotations: list[Annotation] = []
    for family in built:
        annotations += _annotations(family, len(annotations), granularity)
    return tuple(annotations)


@dataclass(frozen=True)
class _Masks:
    """The candidates without empty ones, the preferred first (origin, score, area, place), and all their overlaps."""

    atoms: Atoms
    members: NDArray[np.bool_]
    origin: list[Origin]
    score: NDArray[np.float64]
    level: list[int | None]
    may_be_instance: NDArray[np.bool_]
    area: NDArray[np.int64]
    shared: NDArray[np.int64]
    inside: NDArray[np.float64]
    overlap: NDArray[np.float64]

    @staticmethod
    def of(candidates: Candidates) -> _Masks:
        area = candidates.members.astype(np.float64) @ candidates.atoms.area_px
        score = np.where(np.isnan(candidates.score), -np.inf, np.round(candidates.score, 6))
        rank = np.array([ORIGINS.index(each) for each in candidates.origin], dtype=np.int64)
        order = np.lexsort((np.arange(area.size), -area, -score, rank))
        order = order[area[order] > 0]
        members = candidates.members[order]
        shared = intersection_px(members, candidates.atoms.area_px)
        return _Masks(
            atoms=candidates.atoms,
            members=members,
            origin=[candidates.origin[index] for index in order],
            score=score[order],
            level=[candidates.level[index] for index in order],
            may_be_instance=candidates.may_be_instance[order],
            area=np.diagonal(shared).copy(),
            shared=shared,
            inside=contained_fraction(shared),
            overlap=iou(shared),
        )

    def without_copies(self, places: NDArray[np.int64], max_iou: float) -> NDArray[np.int64]:
        return places[suppress_duplicates(self.shared[np.ix_(places, places)], max_iou=max_iou)]

    def smallest_holder(self, place: int, holders: Iterable[int]) -> int | None:
        """The smallest of some masks that contains this one; ties: the preferred one."""
        containing = [h for h in holders if h != place and self.inside[place, h] >= CONTAINED_FRACTION]
        return min(containing, key=lambda h: (self.area[h], h)) if containing else None


def _instances(masks: _Masks, pixels: int, tree: TreeConfig) -> Groups:
    """Which masks are instances, and which are their parts (not yet clipped)."""
    detections = masks.without_copies(np.flatnonzero(masks.may_be_instance), tree.duplicate_iou)
    moderate = detections[masks.area[detections] <= MAX_IMAGE_FRACTION * pixels]
    groups = _nested(masks, moderate if moderate.size else detections[:1])
    instances = np.array(sorted(groups), dtype=np.int64)
    loose = []
    for place in np.flatnonzero(~masks.may_be_instance & (masks.area <= MAX_IMAGE_FRACTION * pixels)):
        holder = masks.smallest_holder(int(place), groups)
        if holder is None:
            loose.append(int(place))
        else:
            groups[holder].append(int(place))
    if tree.loose and loose:
        for group, unclaimed in _loose_groups(masks, np.array(loose, dtype=np.int64), instances, tree):
            outside = _nested(masks, group)
            for instance in outside if unclaimed else ():
                masks.origin[instance] = "remainder"
            groups |= outside
    return groups


def _nested(masks: _Masks, places: NDArray[np.int64]) -> Groups:
    """The largest first; what lies in none that stands already is an instance, the rest parts of the smallest."""
    groups: Groups = {}
    for place in places[np.lexsort((places, -masks.area[places]))]:
        holder = masks.smallest_holder(int(place), groups)
        if holder is None:
            groups[int(place)] = []
        else:
            groups[holder].append(int(place))
    return groups


def _loose_groups(
    masks: _Masks, loose: NDArray[np.int64], instances: NDArray[np.int64], tree: TreeConfig
) -> list[tuple[NDArray[np.int64], bool]]:
    """Masks in no instance: (those that hardly touch one, True) and (those that join several, False)."""
    if instances.size:
        loose = loose[~(masks.overlap[np.ix_(loose, instances)] > tree.duplicate_iou).any(axis=1)]
    covered = masks.members[instances].any(axis=0)
    touching = masks.members[loose].astype(np.float64) @ (covered * masks.atoms.area_px)
    free = touching < FREE_FRACTION * masks.area[loose]
    return [
        (masks.without_copies(loose[keep], tree.duplicate_iou), origin)
        for keep, origin in ((free, True), (~free, False))
    ]


@dataclass(frozen=True)
class _Member:
    """One mask of an instance's finished tree; `parent` is a place in the family."""

    area: int
    rle: Rle
    origin: Origin
    score: float
    level: int | None
    parent: int

    @property
    def order(self) -> tuple[int, float, bytes]:
        """As `schema.order_key`."""
        return -self.area, -self.score, self.rle["counts"].encode("ascii")


def _build_instance(
    masks: _Masks, instance: int, parts: Sequence[int], tree: TreeConfig, write: RunLengthWriter
) -> list[_Member]:
    """Clips, removes duplicates and nests until nothing changes: the instance first, then its parts in order."""
    places = np.array([instance, *sorted(parts)], dtype=np.int64)
    inside = masks.members[instance]
    rows = masks.members[places][:, inside]  # parts are clipped to the instance here
    area_px = masks.atoms.area_px[inside]

    def rle(row: NDArray[np.bool_]) -> Rle:
        members = np.zeros(len(masks.atoms), dtype=np.bool_)
        members[inside] = row
        return rle_codec.from_run_lengths(write.run_lengths(members), write.height, write.width)

    while True:
        shared = intersection_px(rows, area_px)
        kept = suppress_duplicates(shared, max_iou=tree.duplicate_iou)
        kept = kept[(kept == 0) | (np.diagonal(shared)[kept] >= max(tree.min_area_px, 1))]
        rows, places, shared = rows[kept], places[kept], shared[np.ix_(kept, kept)]
        order = _ordered(np.diagonal(shared), masks.score[places], rows, rle)
        rows, places, shared = rows[order], places[order], shared[np.ix_(order, order)]
        parent = _parents(shared)
        clipped = rows.copy()
        for place in range(1, len(rows)):
            clipped[place] &= clipped[parent[place]]
        if np.array_equal(clipped, rows):
            break
        back = np.concatenate([[0], 1 + np.argsort(places[1:], kind="stable")])
        rows, places = clipped[back], places[back]
    return [
        _Member(
            area=int(shared[index, index]),
            rle=rle(rows[index]),
            origin=masks.origin[place],
            score=float(masks.score[place]),
            level=masks.level[place],
            parent=int(parent[index]),
        )
        for index, place in enumerate(places)
    ]


def _ordered(
    area: NDArray[np.int64],
    score: NDArray[np.float64],
    rows: NDArray[np.bool_],
    rle: Callable[[NDArray[np.bool_]], Rle],
) -> NDArray[np.int64]:
    """The instance, then area descending, score descending, RLE bytes; RLEs are made for ties only."""
    order = 1 + np.lexsort((-score[1:], -area[1:]))
    start = 0
    while start < order.size:
        end = start + 1
        while end < order.size and area[order[end]] == area[order[start]] and score[order[end]] == score[order[start]]:
            end += 1
        if end - start > 1:
            order[start:end] = sorted(order[start:end], key=lambda each: rle(rows[each])["counts"].encode("ascii"))
        start = end
    return np.concatenate([[0], order]).astype(np.int64)


def _parents(shared: NDArray[np.int64]) -> NDArray[np.int64]:
    """The last earlier mask that contains at least 0.9 of each, else the instance: (N,) int64, -1 for the instance."""
    contained = np.tril(contained_fraction(shared) >= CONTAINED_FRACTION, k=-1)
    contained[1:, 0] = True
    last = shared.shape[0] - 1 - np.argmax(contained[:, ::-1], axis=1)
    last[0] = -1
    return last


def _annotations(family: Sequence[_Member], first_id: int, granularity: GranularityMethod) -> list[Annotation]:
    """Records of one instance, first the instance."""
    values = granularity_of(np.array([each.area for each in family], dtype=np.int64), granularity)
    return [
        Annotation(
            id=first_id + index,
            segmentation=each.rle,
            bbox=rle_codec.bbox_xywh(rle_codec.run_lengths_of(each.rle), each.rle["size"][0]),
            area=each.area,
            granularity=float(value),
            instance_id=first_id,
            parent_id=None if index == 0 else first_id + each.parent,
            level=each.level,
            origin=each.origin,
            score=None if np.isinf(each.score) else each.score,
        )
        for index, (each, value) in enumerate(zip(family, values, strict=True))
    ]
