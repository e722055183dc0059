"""PartImageNet: parts of ImageNet's animals, vehicles and bottles.

Source: He et al., "PartImageNet: a large, high-quality dataset of parts", ECCV 2022. Licence: CC BY 4.0 for the
annotations, ImageNet's terms for the images. Splits: val 1,206 images and 4,553 parts (the segmentation release that
GraCo and UnSAMv2 score; the paper's own val has 2,957 images), train, test; clicks until IoU 0.85. Layout:
`images/SPLIT/NAME.JPEG` and `annotations/SPLIT/NAME.png`, a map of part labels, 40 the background.

A part is a label: all pixels of the quadruped's foot label are one part, often several feet. The object around it is
the union of all parts, since an image shows one object.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from pipeline.format import rle as rle_codec

from .files import alone, by_stem, first_folder, matching_files, read_map, with_stem
from .part_objects import Annotated, parts_of_objects
from .records import Benchmark, EvalImage, GroundTruth, Split

BACKGROUND: Final = 40


def read_partimagenet(root: Path, split: str) -> Split:
    """One sample for each map of the split.

    Raises:
        InputError: a folder is missing, or a map has no image.
    """
    folder = first_folder(root, ("", "PartImageNet"), holding=f"annotations/{split}")
    maps = by_stem(matching_files(folder / "annotations" / split, (".png",)))
    suffixes = (".jpeg", ".jpg", ".png")
    images = [
        EvalImage(
            name=image.name,
            path=image,
            load=partial(load_part_map, path),
        )
        for stem, path in maps.items()
        for image in [with_stem(folder / "images" / split, stem, suffixes)]
    ]
    pictures = matching_files(folder / "images" / split, suffixes)
    notes = alone((path for path in pictures if path.stem not in maps), without="a map")
    return Split(images=tuple(images), notes=notes)


def load_part_map(path: Path) -> GroundTruth:
    """One part for each label of the map.

    Raises:
        InputError: not a label image.
    """
    stored = read_map(path)
    labels = stored if stored.ndim == 2 else stored[..., 0]
    parts = [
        (f"{int(value):02d}", rle_codec.encode(labels == value)) for value in np.unique(labels) if value != BACKGROUND
    ]
    height, width = labels.shape
    thing = Annotated(name="object", mask=rle_codec.encode(labels != BACKGROUND), parts=parts)
    return parts_of_objects([thing] if parts else [], height=int(height), width=int(width))


BENCHMARKS: Final = (
    Benchmark(
        name="partimagenet",
        title="PartImageNet, parts by label",
        source="PartImageNet (segmentation release); He et al., ECCV 2022",
        licence="annotations CC BY 4.0; images under ImageNet's terms",
        splits=("val", "train", "test"),
        objects="val 1,206 images, 4,553 parts",
        layout="images/SPLIT/NAME.JPEG, annotations/SPLIT/NAME.png (40 background)",
        read=read_partimagenet,
        target_iou=0.85,
        label_rule="part",
        published="partimagenet",
    ),
)
