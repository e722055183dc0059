"""A folder of images and masks: what one has at hand.

Layout: `images/NAME.jpg` (or another image format) and, for each, either `masks/NAME.png`, a label map in which every
value but 0 is one object, or a folder `masks/NAME/` with one black and white image for each object; objects may overlap
in the second form. `--split` names folders between: `images/SPLIT/NAME.jpg`, `masks/SPLIT/NAME.png`. Licence and counts
are the data's own. Label g by containment. Clicks end at IoU 0.90.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline import rle as rle_codec
from pipeline.errors import InputError

from ..layout import existing, image_size, matching_files, read_map
from ..records import Benchmark, EvalImage, EvalObject, GroundTruth, Split, label_map_masks
from .coco_style import labelled


def read_folder(root: Path, split: str) -> Split:
    """`folder`: see the module.

    Raises:
        InputError: no image, or an image without masks; it is named.
    """
    existing(root / "images", what="a folder")
    existing(root / "masks", what="a folder")
    inner = split if (root / "images" / split).is_dir() else ""
    images = matching_files(root / "images" / inner)
    return Split(
        images=tuple(
            EvalImage(name=path.stem, path=path, load=partial(_load, path, _masks(root / "masks" / inner, path.stem)))
            for path in images
        )
    )


def _masks(folder: Path, stem: str) -> Path:
    return (
        folder / stem if (folder / stem).is_dir() else existing(folder / f"{stem}.png", what="a label map or a folder")
    )


def _load(image: Path, masks: Path) -> GroundTruth:
    height, width = image_size(image)
    if masks.is_dir():
        files = matching_files(masks)
        found = {path.stem: _flat(read_map(path)) > 0 for path in files}
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
    return GroundTruth(height=height, width=width, objects=tuple(labelled(objects)))


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
