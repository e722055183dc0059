"""Images of one domain with their masks: the objects to score, and the half that settings may be chosen on.

    NAME/images/STEM.jpg|png   with   NAME/masks/STEM.png   of the same size
    NAME/unlabelled/           further images of the same source, without masks
    NAME/classes.json          where masks hold classes: {"0": "sky", ...}

Without `classes.json` a mask holds ids: 0 is ground, 1 to 999 are objects, from 1000 on what has no instances
(COCO-Stuff's sky and grass), which is left out. With it a mask holds classes: the objects are the 8-connected regions
of each class but one named void. A class named null is the ground of all others: these together are wholes, too, beside
their parts, so that parts have a granularity. Regions of less than 32 px are left out and counted. Objects without a
whole or a part among the others have g = 1.0, since each is a whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from model.evaluation.benchmarks.coco_style import labelled
from model.evaluation.benchmarks.files import by_stem, image_size, matching_files, read_map
from model.evaluation.benchmarks.records import EvalImage, EvalObject, GroundTruth
from pipeline.errors import InputError
from pipeline.format import rle
from pipeline.format.schema import sha256_of

MIN_AREA_PX: Final = 32
FIRST_STUFF_ID: Final = 1000
VOID: Final = "void"
GROUND: Final = "null"
Half = Literal["choosing", "reported"]


@dataclass(frozen=True, kw_only=True)
class Domain:
    """One folder."""

    name: str
    images: tuple[EvalImage, ...]
    unlabelled: Path | None
    """A folder with images; None where the domain has none."""

    def half(self, which: Half) -> list[EvalImage]:
        return [image for image in self.images if half_of(image.path.stem) == which]


def half_of(stem: str) -> Half:
    """By the sha256 of the image's name without its ending, so that no run and no machine can draw it otherwise."""
    return "choosing" if int(sha256_of(stem.encode())[:8], 16) % 2 else "reported"


def read_domains(root: Path) -> list[Domain]:
    """All domains of a directory, by name.

    Raises:
        InputError: as `read_domain`; or no folder in it has `images/`.
    """
    if not root.is_dir():
        raise InputError(f"{root}: expected a folder of domains, found nothing")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise InputError(f"{root}: expected NAME/images and NAME/masks in it, found no folder")
    return [read_domain(folder) for folder in folders]


def read_domain(folder: Path) -> Domain:
    """Finds the files; sizes and masks are read with each image.

    Raises:
        InputError: another layout, an image without mask or a mask without image; it names the file.
    """
    for needed in ("images", "masks"):
        if not (folder / needed).is_dir():
            raise InputError(f"{folder / needed}: expected this folder beside the other of images/ and masks/; missing")
    images = by_stem(matching_files(folder / "images"))
    masks = by_stem(matching_files(folder / "masks"))
    for stem, path in images.items():
        if stem not in masks:
            raise InputError(f"{path}: has no mask; expected {folder / 'masks' / stem}.png")
    for stem, path in masks.items():
        if stem not in images:
            raise InputError(f"{path}: a mask without image; expected {folder / 'images' / stem}.jpg or .png")
    classes = _classes(folder / "classes.json")
    unlabelled = folder / "unlabelled"
    return Domain(
        name=folder.name,
        images=tuple(
            EvalImage(name=path.name, path=path, load=partial(_load, path, masks[stem], classes))
            for stem, path in images.items()
        ),
        unlabelled=unlabelled if unlabelled.is_dir() and any(unlabelled.iterdir()) else None,
    )


def _classes(path: Path) -> dict[int, str] | None:
    if not path.is_file():
        return None
    try:
        return {int(value): str(name) for value, name in json.loads(path.read_text(encoding="utf-8")).items()}
    except (ValueError, AttributeError) as error:
        raise InputError(f'{path}: expected {{"0": "name", ...}}; {error}') from error


def _load(image: Path, mask: Path, classes: dict[int, str] | None) -> GroundTruth:
    values = read_map(mask)
    height, width = image_size(image)
    if values.shape != (height, width):
        raise InputError(
            f"{mask}: expected one number for each pixel of {image}, {height} x {width}; found {values.shape}"
        )
    if classes is None:
        regions = list(_instances(values))
        left_out = {"regions that have no instances": int((np.unique(values) >= FIRST_STUFF_ID).sum())}
    else:
        unknown = sorted(set(np.unique(values).tolist()) - set(classes))
        if unknown:
            raise InputError(f"{mask}: class {unknown[0]} does not stand in {mask.parent.parent / 'classes.json'}")
        regions = list(_class_regions(values, classes))
        left_out = {}
    objects = [
        EvalObject(id=name, mask=rle.encode(region), area_px=int(region.sum()))
        for name, region in regions
        if np.count_nonzero(region) >= MIN_AREA_PX
    ]
    left_out[f"regions below {MIN_AREA_PX} px"] = len(regions) - len(objects)
    objects = [replace(each, granularity=each.granularity or 1.0) for each in labelled(objects)]
    return GroundTruth(
        height=height,
        width=width,
        objects=tuple(objects),
        left_out={reason: count for reason, count in left_out.items() if count},
    )


def _instances(values: NDArray[np.integer]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    for value in np.unique(values).tolist():
        if 0 < value < FIRST_STUFF_ID:
            yield str(value), values == value


def _class_regions(values: NDArray[np.integer], classes: dict[int, str]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    shown = [value for value, name in classes.items() if name not in (VOID, GROUND)]
    for value in shown:
        yield from _connected(values == value, classes[value])
    if GROUND in classes.values():
        yield from _connected(np.isin(values, shown), "whole")


def _connected(mask: NDArray[np.bool_], name: str) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    for number in range(1, count):
        yield f"{name} {number}", labels == number
