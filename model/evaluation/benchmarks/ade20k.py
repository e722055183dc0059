"""ADE20K with its instances and parts, the full release of 2021 (not the 150-class challenge).

Source: CSAIL, groups.csail.mit.edu/vision/datasets/ADE20K; cite Zhou et al., IJCV 2019. Licence: non-commercial
research. Splits: `validation` 2,000 images, `training` 25,574. Layout: `images/ADE/SPLIT/SCENE/PLACE/ADE_*.jpg`, each
with `ADE_*.json` and a folder `ADE_*` of instance masks (255 visible, 128 hidden), under the folder given or its
`ADE20K_2021_17_01`. Objects: `annotation.object` of the JSON, an object of part level 0 or a part of the levels below
(the file says of what it is a part). Label g: eq. 3 of arXiv 2511.13714 within the annotated object; an object 1.0.
Clicks end at IoU 0.90.

Subsets: `objects` (level 0, the benchmark's own), `parts`, `all`.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline.errors import InputError
from pipeline.format import rle as rle_codec
from pipeline.format.granularity import equation_3

from .files import alone, existing, first_folder, read_map, told
from .records import EMPTY_MASKS, Benchmark, EvalImage, EvalObject, GroundTruth, PartOf, Split

VISIBLE: Final = 255


def read_ade20k(root: Path, split: str) -> Split:
    """`ade20k`: objects and parts, see the module.

    Raises:
        InputError: no folder of the split, or an image without its JSON or one of its masks.
    """
    base = first_folder(root, ("", "images/ADE", "ADE20K_2021_17_01/images/ADE"), holding=split) / split
    images = sorted(base.rglob("ADE_*.jpg"))
    if not images:
        raise InputError(f"{base}: expected SCENE/PLACE/ADE_*.jpg, found none; see `grainmill score --list`")
    records = {path.with_suffix(".json") for path in images}
    return Split(
        notes=alone((path for path in base.rglob("ADE_*.json") if path not in records), without="its image"),
        images=tuple(
            EvalImage(
                name=path.relative_to(base).as_posix(),
                path=path,
                load=partial(load_ade, existing(path.with_suffix(".json"))),
            )
            for path in sorted(images, key=lambda path: (path.stem, path))
        ),
    )


def load_ade(path: Path) -> GroundTruth:
    """One image. An object whose visible mask is empty is left out and counted.

    Raises:
        InputError: a missing mask, or a JSON that is not ADE20K's.
    """
    try:
        annotation = json.loads(path.read_text(encoding="latin-1"))["annotation"]
        height, width = (int(each) for each in annotation["imsize"][:2])
        entries = [(int(each["id"]), str(each["instance_mask"]), each["parts"]) for each in annotation["object"]]
        levels = {number: int(parts["part_level"]) for number, _, parts in entries}
        parent = {number: _single(parts["ispartof"]) for number, _, parts in entries}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: expected an ADE20K annotation of 2021; {told(error)}") from error
    masks: dict[int, Any] = {}
    empty = 0
    for number, name, _ in entries:
        mask = read_map(path.parent / name) == VISIBLE
        if mask.shape != (height, width):
            raise InputError(f"{path.parent / name}: expected {height} x {width}, found {mask.shape}")
        if mask.any():
            masks[number] = mask
        else:
            empty += 1
    order = list(masks)
    area = {number: int(np.count_nonzero(mask)) for number, mask in masks.items()}
    root = {number: _root(number, parent) for number in order}
    smallest = {whole: min(area[number] for number in order if root[number] == whole) for whole in set(root.values())}
    objects, pairs = [], []
    for position, number in enumerate(order):
        whole = root[number]
        alone = whole not in area
        label = None if alone else 1.0 if whole == number else _part_label(area, number, whole, smallest[whole])
        objects.append(
            EvalObject(id=str(number), mask=rle_codec.encode(masks[number]), area_px=area[number], granularity=label)
        )
        if not alone and whole != number and area[number] < area[whole]:
            assert label is not None
            ratio = area[number] / area[whole]
            pairs.append(PartOf(part=position, whole=order.index(whole), area_ratio=ratio, granularity=label))
    subsets = {
        "objects": tuple(place for place, number in enumerate(order) if levels[number] == 0),
        "parts": tuple(place for place, number in enumerate(order) if levels[number] > 0),
        "all": tuple(range(len(order))),
    }
    return GroundTruth(
        height=height,
        width=width,
        objects=tuple(objects),
        subsets=subsets,
        pairs=tuple(pairs),
        left_out={EMPTY_MASKS: empty} if empty else {},
    )


def _part_label(area: dict[int, int], number: int, whole: int, smallest: int) -> float:
    """Eq. 3; a part that is annotated larger than what is visible of its object counts as the object."""
    return float(equation_3(min(area[number], area[whole]), smallest, area[whole]))


def _single(found: Any) -> int | None:
    """`ispartof` is a number, or an empty list for none."""
    return None if isinstance(found, list) and not found else int(found[0] if isinstance(found, list) else found)


def _root(number: int, parent: dict[int, int | None]) -> int:
    seen = {number}
    while (above := parent.get(number)) is not None and above not in seen:
        number = above
        seen.add(number)
    return number


BENCHMARKS: Final = (
    Benchmark(
        name="ade20k",
        title="ADE20K (2021), objects with two levels of parts",
        source="groups.csail.mit.edu/vision/datasets/ADE20K; cite Zhou et al., IJCV 2019",
        licence="non-commercial research",
        splits=("validation", "training"),
        objects="validation: 2,000 images; training: 25,574; about 19.5 objects an image",
        layout="images/ADE/SPLIT/SCENE/PLACE/ADE_N.jpg, ADE_N.json, ADE_N/instance_*.png",
        read=read_ade20k,
        label_rule="part",
        published="ade20k",
    ),
)
