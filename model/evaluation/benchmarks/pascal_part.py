"""PascalPart: parts of Pascal VOC's objects.

Source: Chen, Mottaghi, Liu, Fidler, Urtasun, Yuille, "Detect what you can", CVPR 2014 (`trainval.tar.gz`), on the
photographs of VOC 2010. Licence: annotations for research, photographs under Flickr's terms. Splits: the 10,103 images
of VOC 2010's trainval, by the lists of VOC (`Main`) or GraCo's `part_val.txt`; clicks until IoU 0.85. GraCo scores a
random tenth of the (object, part) pairs, UnSAMv2 and this reader all of them. Layout: `Annotations_Part/NAME.mat`
(`anno.objects` with `class`, `mask`, `parts` of `part_name`, `mask`), and VOC's `JPEGImages/NAME.jpg` and
`ImageSets/Main/SPLIT.txt`, in the same folder or its `VOCdevkit/VOC2010`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline.errors import InputError
from pipeline.format import rle as rle_codec

from .files import existing, first_folder, load_mat, read_lines, told
from .part_objects import Annotated, parts_of_objects
from .records import EMPTY_MASKS, Benchmark, EvalImage, GroundTruth, Split


def read_pascal_part(root: Path, split: str) -> Split:
    """One sample for each image of the list that has part annotations.

    Raises:
        InputError: the list, the annotations or an image is missing.
    """
    annotations = first_folder(root, ("", "trainval"), holding="Annotations_Part") / "Annotations_Part"
    voc = first_folder(root, ("", "VOCdevkit/VOC2010", "VOC2010"), holding="JPEGImages")
    listed = voc / "ImageSets" / "Main"
    named = listed / f"part_{split}.txt" if (listed / f"part_{split}.txt").is_file() else listed / f"{split}.txt"
    names = read_lines(named)
    there = [name for name in names if (annotations / f"{name}.mat").is_file()]
    if not there:
        raise InputError(f"{annotations / (names[0] if names else 'NAME')}.mat: missing; none of {named} is annotated")
    images = [
        EvalImage(
            name=name,
            path=existing(voc / "JPEGImages" / f"{name}.jpg"),
            load=partial(load_parts, annotations / f"{name}.mat"),
        )
        for name in there
    ]
    bare = sorted(set(names) - set(there))
    notes = []
    if bare:
        found = f"{len(bare)} of the {len(names)} images of {named.name} have no part annotations"
        notes.append(f"{found}; {annotations / bare[0]}.mat is missing")
    return Split(images=tuple(images), notes=tuple(notes))


def load_parts(path: Path) -> GroundTruth:
    """Every part of every object of one image, left and right ones apart, as annotated.

    Raises:
        InputError: not the official structure.
    """
    try:
        entries = load_mat(path)["anno"]["objects"][0, 0]
        objects, size, empty = [], (0, 0), 0
        for number, entry in enumerate(entries.ravel()):
            mask = np.asarray(entry["mask"], dtype=bool)
            size = mask.shape
            parts, without = _parts(entry["parts"])
            empty += without + (0 if mask.any() else 1 + len(parts))
            if mask.any():
                name = f"{_text(entry['class'])}.{number}"
                objects.append(Annotated(name=name, mask=rle_codec.encode(mask), parts=parts))
    except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: expected `anno.objects` of structs with class, mask and parts; {told(error)}"
        ) from error
    truth = parts_of_objects(objects, height=size[0], width=size[1])
    return replace(truth, left_out={EMPTY_MASKS: empty} if empty else {})


def _parts(entries: Any) -> tuple[list[tuple[str, Any]], int]:
    """Name and mask of each part that has one, and how many have none."""
    found, empty = [], 0
    for entry in np.asarray(entries).ravel():
        mask = np.asarray(entry["mask"], dtype=bool)
        if mask.any():
            found.append((_text(entry["part_name"]), rle_codec.encode(mask)))
        else:
            empty += 1
    return found, empty


def _text(value: Any) -> str:
    return str(np.asarray(value).ravel()[0])


BENCHMARKS: Final = (
    Benchmark(
        name="pascalpart",
        title="PascalPart, parts of Pascal VOC's objects",
        source="trainval.tar.gz of Pascal-Part and VOC 2010's trainval; Chen et al., CVPR 2014",
        licence="annotations for research; photographs under Flickr's terms",
        splits=("val", "train"),
        objects="trainval 10,103 images; every (object, part) of the split",
        layout="Annotations_Part/NAME.mat; VOC 2010's JPEGImages/NAME.jpg, ImageSets/Main/SPLIT.txt",
        read=read_pascal_part,
        tasks=("interactive",),
        target_iou=0.85,
        label_rule="part",
        published="pascalpart",
    ),
)
