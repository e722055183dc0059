"""What people decided about single masks, as a list, and a sample's record after it (format `grainmill-verdicts/1`).

A list is JSON lines: a header, then one `ImageVerdicts` an image. It names masks by their id, which is their place in
one record, so each line names that record by its sha256; of any other record it says nothing.

A mask that goes takes nothing with it. Its parts get the next larger mask around them; where the instance went, each of
its outermost parts is an instance. What was made of masks (joined, cut, edited by a person) stands in their place, as a
part of the smallest mask that contains it, else as an instance. Granularity is computed again by the run's own method
in the instances that lost or got a mask, and in no other: g is a mask's size among those of its instance, and a reader
who computes it from the areas has to find what the record says. Everything else stays as it was mined.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import msgspec
import numpy as np

from ..errors import SchemaError
from . import rle as rle_codec
from .granularity import GRANULARITY_MAX, GranularityMethod, granularity_of
from .rle import Rle
from .schema import Annotation, Sample, order_key, validate_sample

VERDICTS_FORMAT: Final = "grainmill-verdicts/1"
How = Literal["merged", "split", "edited"]
"""Several joined; one cut; one whose outline a person changed."""


@dataclass(frozen=True, kw_only=True)
class MadeMask:
    """A mask that stands in the place of others."""

    of: tuple[int, ...]
    """Ids of the masks that it replaces."""
    how: How
    segmentation: Rle
    """On the image's upright grid."""


@dataclass(frozen=True, kw_only=True)
class ImageVerdicts:
    """What was decided about the masks of one image. An id that stands nowhere was not judged."""

    key: str
    record_sha256: str
    """Of the bytes of `KEY.json`; `json_sha256` of the index."""
    kept: tuple[int, ...] = ()
    dropped: tuple[int, ...] = ()
    made: tuple[MadeMask, ...] = ()


def verdicts_bytes(images: Iterable[ImageVerdicts]) -> bytes:
    """The list as a file."""
    lines = [msgspec.json.encode({"format": VERDICTS_FORMAT}), *map(msgspec.json.encode, images)]
    return b"\n".join(lines) + b"\n"


def read_verdicts(data: bytes, *, where: str) -> dict[str, ImageVerdicts]:
    """Key -> what was decided.

    Raises:
        SchemaError: it is no such list, or names an image twice.
    """
    head, *lines = data.splitlines() or [b""]
    if head.strip() != msgspec.json.encode({"format": VERDICTS_FORMAT}):
        raise SchemaError(f'{where}: expected a first line {{"format":"{VERDICTS_FORMAT}"}}, found {head[:60]!r}')
    found: dict[str, ImageVerdicts] = {}
    for number, line in enumerate(lines, start=2):
        try:
            one = msgspec.json.decode(line, type=ImageVerdicts)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise SchemaError(f"{where}, line {number}: {error}") from error
        if one.key in found:
            raise SchemaError(f"{where}, line {number}: {one.key} stands there twice")
        found[one.key] = one
    return found


def apply_verdicts(
    sample: Sample, verdicts: ImageVerdicts, method: GranularityMethod, *, kept_only: bool = False
) -> tuple[Sample, Counter[str]]:
    """A sample as people left it.

    Args:
        sample: whose record the verdicts are about.
        verdicts: of its masks.
        method: by which its granularities were computed.
        kept_only: masks that were not judged go too.

    Returns:
        The sample, with no masks if none is left; and how many masks were `dropped`, `unjudged` (with `kept_only`),
        `merged`, `split` and `edited` away, and how many were `made`.

    Raises:
        SchemaError: the verdicts name masks that are not there, or contradict each other.
    """
    where = f"verdicts on {sample.key}"
    why = _why_gone(sample, verdicts, kept_only, where)
    counts = Counter(why.values())
    staying = {mask.segmentation["counts"] for mask in sample.annotations if mask.id not in why}
    made: list[tuple[Annotation, tuple[int, ...]]] = []
    for each in verdicts.made:
        mask = _drawn(each, sample, where)
        if mask.segmentation["counts"] not in staying:
            staying.add(mask.segmentation["counts"])
            made.append((mask, each.of))
    counts["made"] = len(made)
    trees: list[tuple[int, list[Annotation]]] = []
    for instances in _touching(sample, verdicts.made):
        members = [mask for mask in sample.annotations if mask.instance_id in instances]
        if not any(mask.id in why for mask in members):
            trees.append((members[0].id, members))
            continue
        theirs = [pair for pair in made if sample.annotations[pair[1][0]].instance_id in instances]
        trees += _grown(sample, [mask for mask in members if mask.id not in why], theirs, method)
    annotations: list[Annotation] = []
    for _, tree in sorted(trees, key=lambda each: each[0]):
        place = {mask.id: len(annotations) + index for index, mask in enumerate(tree)}
        annotations += [
            dataclasses.replace(
                mask,
                id=place[mask.id],
                instance_id=place[mask.instance_id],
                parent_id=None if mask.parent_id is None else place[mask.parent_id],
            )
            for mask in tree
        ]
    done = dataclasses.replace(sample, annotations=tuple(annotations))
    validate_sample(done, where=where)
    return done, +counts


def _why_gone(sample: Sample, verdicts: ImageVerdicts, kept_only: bool, where: str) -> dict[int, str]:
    """Mask id -> why it goes."""
    replaced = {mask: each.how for each in verdicts.made for mask in each.of}
    for name, ids in (("kept", verdicts.kept), ("dropped", verdicts.dropped), ("made of", tuple(replaced))):
        wrong = [each for each in ids if not 0 <= each < len(sample.annotations)]
        if wrong:
            raise SchemaError(f"{where}: {name} {wrong[0]}, and its masks are 0 to {len(sample.annotations) - 1}")
    twice = set(verdicts.kept) & set(verdicts.dropped) or (set(verdicts.kept) | set(verdicts.dropped)) & set(replaced)
    if twice:
        raise SchemaError(f"{where}: mask {min(twice)} is in two of kept, dropped and made; expected it in one")
    why: dict[int, str] = {**dict.fromkeys(verdicts.dropped, "dropped"), **replaced}
    if kept_only:
        why |= {m.id: "unjudged" for m in sample.annotations if m.id not in why and m.id not in verdicts.kept}
    return why


def _drawn(made: MadeMask, sample: Sample, where: str) -> Annotation:
    """The record of a mask that a person made; its place in the tree follows."""
    if not made.of or made.segmentation["size"] != [sample.height, sample.width]:
        size = made.segmentation["size"]
        raise SchemaError(
            f"{where}: a mask made of {list(made.of)} on a grid of {size}, expected one made of masks of this image "
            f"[{sample.height}, {sample.width}]"
        )
    lengths = rle_codec.run_lengths_of(made.segmentation)
    area = rle_codec.area_px(lengths)
    if not area:
        raise SchemaError(f"{where}: the mask made of {list(made.of)} is empty")
    return Annotation(
        id=0, segmentation=made.segmentation, bbox=rle_codec.bbox_xywh(lengths, sample.height), area=area,
        granularity=GRANULARITY_MAX, instance_id=0, parent_id=None, level=None, origin="annotation", score=None,
    )  # fmt: skip


def _touching(sample: Sample, made: Sequence[MadeMask]) -> list[frozenset[int]]:
    """Instances, those together of which one mask was made."""
    group = {mask.id: frozenset({mask.id}) for mask in sample.annotations if mask.is_instance}
    for each in made:
        joined = frozenset().union(*(group[sample.annotations[mask].instance_id] for mask in each.of))
        group.update(dict.fromkeys(joined, joined))
    return list(dict.fromkeys(group.values()))


def _grown(
    sample: Sample,
    staying: Sequence[Annotation],
    made: Sequence[tuple[Annotation, tuple[int, ...]]],
    method: GranularityMethod,
) -> list[tuple[int, list[Annotation]]]:
    """Trees of what is left of instances and of what was made of their masks.

    Returns:
        Each with its place among all of the image, the instance first; ids are those of this call.
    """
    members: list[tuple[Annotation, int, frozenset[int] | None]] = [
        (mask, mask.id, _around(mask, sample)) for mask in staying
    ]
    members += [(mask, min(of), None) for mask, of in made]
    members.sort(key=lambda each: order_key(each[0]))
    shared = rle_codec.pairwise_intersection_px([mask.segmentation for mask, _, _ in members]) if made else None
    parents: list[int | None] = []
    roots: list[int] = []
    for index, (mask, _, around) in enumerate(members):
        parent = None
        for earlier in range(index - 1, -1, -1):  # from the smallest one up
            _, old, of_old = members[earlier]
            if around is None or of_old is None:  # one of the two is new
                inside = shared is not None and shared[index, earlier] == mask.area
            else:
                inside = old in around
            if inside:
                parent = earlier
                break
        parents.append(parent)
        roots.append(index if parent is None else roots[parent])
    trees = []
    for root in dict.fromkeys(roots):
        tree = [index for index in range(len(members)) if roots[index] == root]
        values = granularity_of(np.array([members[index][0].area for index in tree], dtype=np.int64), method)
        trees.append((
            min(members[index][1] for index in tree),
            [
                dataclasses.replace(
                    members[index][0], id=index, instance_id=root, parent_id=parents[index], granularity=float(value)
                )
                for index, value in zip(tree, values, strict=True)
            ],
        ))  # fmt: skip
    return trees


def _around(mask: Annotation, sample: Sample) -> frozenset[int]:
    """Ids of the masks around a mask, its parent and theirs."""
    found = set()
    while mask.parent_id is not None:
        found.add(mask.parent_id)
        mask = sample.annotations[mask.parent_id]
    return frozenset(found)
