"""A folder of images and masks: what one has at hand.

Layout: `images/NAME.jpg` (or another image format) and, for each, either `masks/NAME.png`, a label map in which every
value but 0 is one object, or a folder `masks/NAME/` with one black and white image for each object; objects may overlap
in the second form. Where images differ in their ending only, masks have the whole name: `masks/NAME.jpg.png`,
`masks/NAME.jpg/`. `--split` names folders between: `images/SPLIT/NAME.jpg`, `masks/SPLIT/NAME.png`. Licence and counts
are the data's own. Label g by containment. Clicks end at IoU 0.90.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.format import rle as rle_codec

from .coco_style import labelled
from .files import alone, existing, image_size, matching_files, others_in, read_map
from .records import EMPTY_MASKS, Benchmark, EvalImage, EvalObject, GroundTruth, Split, label_map_masks


def read_folder(root: Path, split: str) -> Split:
    """`folder`: see the module.

    Raises:
        InputError: no image, an image without masks, or two images that would share theirs; they are named.
    """
    existing(root / "images", what="a folder")
    existing(root / "masks", what="a folder")
    inner = split if (root / "images" / split).is_dir() else ""
    images = matching_files(root / "images" / inner)
    folder = existing(root / "masks" / inner, what="a folder")
    masks: dict[Path, Path] = {}
    for path in images:
        found = _masks(folder, path)
        if found in masks:
            raise InputError(
                f"{masks[found]} and {path.name}: both would have the masks {found}; name masks after whole files, "
                f"{folder / path.name}.png or {folder / path.name}/"
            )
        masks[found] = path
    left_out = others_in(root / "images" / inner, images)
    unused = others_in(folder, masks)
    if unused:
        left_out["masks of no image"] = sum(unused.values())
    strays = [path for path in folder.iterdir() if path.suffix == ".png" and path not in masks]
    return Split(
        images=tuple(
            EvalImage(name=path.name, path=path, load=partial(_load, path, found)) for found, path in masks.items()
        ),
        notes=alone(strays, without="an image"),
        left_out=left_out,
    )


def _masks(folder: Path, image: Path) -> Path:
    """By the image's whole name, else by its name without ending."""
    for name in (image.name, image.stem):
        if (folder / name).is_dir():
            return folder / name
        if (folder / f"{name}.png").is_file():
            return folder / f"{name}.png"
    return existing(folder / f"{image.stem}.png", what="a label map or a folder")


def _load(image: Path, masks: Path) -> GroundTruth:
    height, width = image_size(image)
    empty = 0
    if masks.is_dir():
        found = {path.name: _flat(read_map(path)) > 0 for path in matching_files(masks)}
        empty = sum(not mask.any() for mask in found.values())
    else:
        labels = _flat(read_map(masks))
        values = [int(value) for value in np.unique(labels) if value != 0]
        found = {str(v): mask for v, mask in zip(values, label_map_masks(labels, background=0), strict=True)}
    wrong = [name for name, mask in found.items() if mask.shape != (height, width)]
    if wrong:
        raise InputError(f"{masks}: expected masks of {height} x {width} as {image}, found {found[wrong[0]].shape}")
    objects = [
        EvalObject(id=name, mask=rle_codec.encode(mask), area_px=int(mask.sum()))
        for name, mask in found.items()
        if mask.any()
    ]
    return GroundTruth(
        height=height,
        width=width,
        objects=tuple(labelled(objects)),
        left_out={EMPTY_MASKS: empty} if empty else {},
    )


def _flat(labels: NDArray[Any]) -> NDArray[Any]:
    """(H, W): of a colour image, one value for each colour, 0 for black; an alpha channel is not looked at."""
    if labels.ndim == 2:
        return labels
    channels = labels[..., : 3 if labels.shape[-1] >= 3 else 1].astype(np.int64)
    return channels @ (256 ** np.arange(channels.shape[-1]))


BENCHMARKS: Final = (
    Benchmark(
        name="folder",
        title="a folder of images and masks",
        source="your own",
        licence="of the data",
        splits=("val", "train", "test"),
        objects="those of the files",
        layout="images/[SPLIT/]NAME.jpg with masks/[SPLIT/]NAME.png (label map) or masks/[SPLIT/]NAME/*.png (one each)",
        read=read_folder,
        label_rule="containment",
    ),
)
