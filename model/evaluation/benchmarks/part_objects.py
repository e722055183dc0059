"""Parts of annotated objects as a benchmark's objects, with the protocol's label: `equation_3` within the object.

Each part is scored by itself; A_min of its label is the smallest part of that object. The objects around them are there
for the pair test: pairs of a part and its object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.format import rle as rle_codec
from pipeline.format.granularity import equation_3
from pipeline.format.rle import Rle

from .containment import MAX_AREA_RATIO
from .records import EvalObject, GroundTruth, PartOf


@dataclass(frozen=True, kw_only=True)
class Annotated:
    """One object and its parts: (name, mask) each, none of them empty."""

    name: str
    mask: Rle
    parts: Sequence[tuple[str, Rle]]


def parts_of_objects(
    objects: Sequence[Annotated], *, height: int, width: int, first: Literal["parts", "all"] = "parts"
) -> GroundTruth:
    """Parts get the clicks, whole images are scored on the subset `first`, the others stand beside it. Pairs are those
    below the area ratio at which a part would be a version of its object."""
    found: list[EvalObject] = []
    parts: list[int] = []
    wholes: list[int] = []
    pairs: list[PartOf] = []
    for each in objects:
        area_px = _area_px(each.mask)
        areas = [_area_px(mask) for _, mask in each.parts]
        whole = len(found) + len(each.parts)
        for (name, mask), part_px in zip(each.parts, areas, strict=True):
            label = float(equation_3(part_px, min(areas), area_px))
            if part_px < MAX_AREA_RATIO * area_px:
                ratio = part_px / area_px
                pairs.append(PartOf(part=len(found), whole=whole, area_ratio=ratio, granularity=label))
            parts.append(len(found))
            found.append(EvalObject(id=f"{each.name}/{name}", mask=mask, area_px=part_px, granularity=label))
        wholes.append(whole)
        found.append(EvalObject(id=each.name, mask=each.mask, area_px=area_px, granularity=1.0))
    subsets = {"parts": tuple(parts), "objects": tuple(wholes), "all": tuple(range(len(found)))}
    return GroundTruth(
        height=height,
        width=width,
        objects=tuple(found),
        subsets={name: subsets[name] for name in (first, *(name for name in subsets if name != first))},
        pairs=tuple(pairs),
    )


def _area_px(mask: Rle) -> int:
    return rle_codec.area_px(rle_codec.run_lengths_of(mask))
