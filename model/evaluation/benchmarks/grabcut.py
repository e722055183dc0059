"""GrabCut: 50 photographs, one object each.

Source: Rother, Kolmogorov, Blake, "GrabCut", SIGGRAPH 2004 (Microsoft Research); in the form that RITM, SimpleClick and
GraCo share (`GrabCut.zip`). Licence: research. One split of 50 images and 50 objects; NoC@90. Layout: `data_GT/NAME.*`
and `boundary_GT/NAME.bmp`, a map in which 255 is the object, 0 the background and 128 is ignored.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from pipeline.errors import InputError
from pipeline.format import rle as rle_codec

from .files import by_stem, first_folder, matching_files, read_map
from .records import Benchmark, EvalImage, EvalObject, GroundTruth, Split

IGNORED: Final = 128


def read_grabcut(root: Path, split: str) -> Split:
    """The one split.

    Raises:
        InputError: a folder is missing, or an image has no map.
    """
    del split
    folder = first_folder(root, ("", "GrabCut"), holding="boundary_GT")
    return Split(images=tuple(pair_up(folder / "data_GT", folder / "boundary_GT")))


def pair_up(images: Path, maps: Path) -> list[EvalImage]:
    """One sample for each map, with the image of the same stem; `STEM-1`, `STEM#1` are further objects of `STEM`.

    Raises:
        InputError: an image without a map, or a map without its image.
    """
    by_name = by_stem(matching_files(images))
    found: list[EvalImage] = []
    used = set()
    for path in matching_files(maps):
        stem = path.stem if path.stem in by_name else path.stem.rstrip("0123456789")[:-1]
        if stem not in by_name:
            raise InputError(f"{images / path.stem}.jpg: missing; {path} has no image of its name")
        used.add(stem)
        found.append(
            EvalImage(name=path.name, path=by_name[stem], file=by_name[stem].name, load=partial(load_map, path))
        )
    without = sorted(set(by_name) - used)
    if without:
        raise InputError(f"{maps / without[0]}.png: missing; {by_name[without[0]]} has no map of its name")
    return found


def load_map(path: Path) -> GroundTruth:
    """One object, `> 128`, and the pixels that are ignored, `== 128`.

    Raises:
        InputError: not a grey map, or no object in it.
    """
    stored = read_map(path)
    value = stored if stored.ndim == 2 else stored[..., 0]
    if value.dtype == np.bool_:
        value = value.astype(np.uint8) * 255
    mask, ignore = value > IGNORED, value == IGNORED
    if not mask.any():
        raise InputError(f"{path}: expected an object (values above {IGNORED}), found values {np.unique(value)[:8]}")
    height, width = mask.shape
    return GroundTruth(
        height=height,
        width=width,
        objects=(
            EvalObject(
                id="0",
                mask=rle_codec.encode(mask),
                area_px=int(mask.sum()),
                ignore=rle_codec.encode(ignore) if ignore.any() else None,
                granularity=1.0,
            ),
        ),
    )


BENCHMARKS: Final = (
    Benchmark(
        name="grabcut",
        title="GrabCut, one object a photograph",
        source="GrabCut.zip as RITM, SimpleClick and GraCo use it; Rother, Kolmogorov, Blake, SIGGRAPH 2004",
        licence="research",
        splits=("test",),
        objects="50 images, 50 objects",
        layout="data_GT/NAME.*, boundary_GT/NAME.bmp (255 object, 128 ignored)",
        read=read_grabcut,
        tasks=("interactive",),
        published="grabcut",
    ),
)
