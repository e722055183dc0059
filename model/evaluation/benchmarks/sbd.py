"""SBD: every object instance of Pascal VOC's photographs.

Source: Hariharan, Arbelaez, Bourdev, Maji, Malik, "Semantic contours from inverse detectors", ICCV 2011
(`benchmark.tgz`). Licence: that of Pascal VOC 2011 (Flickr terms), research. Splits: val 2,857 images and 6,671
objects, train 8,498 images and 20,172 objects; NoC@90. Layout: `img/NAME.jpg`, `inst/NAME.mat` (`GTinst.Segmentation`,
a map of instances, 0 the background), `SPLIT.txt`, under the folder given or its `dataset` or
`benchmark_RELEASE/dataset`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.format import rle as rle_codec

from .files import existing, first_folder, load_mat, read_lines, told
from .records import Benchmark, EvalImage, EvalObject, GroundTruth, Split


def read_sbd(root: Path, split: str) -> Split:
    """One sample for each image of the split's list.

    Raises:
        InputError: the list, an image or a map is missing.
    """
    folder = first_folder(root, ("", "dataset", "benchmark_RELEASE/dataset"), holding=f"{split}.txt")
    images = [
        EvalImage(
            name=name,
            path=existing(folder / "img" / f"{name}.jpg"),
            load=partial(load_instances, existing(folder / "inst" / f"{name}.mat")),
        )
        for name in read_lines(folder / f"{split}.txt")
    ]
    return Split(images=tuple(images))


def load_instances(path: Path) -> GroundTruth:
    """Every instance of one image.

    Raises:
        InputError: no `GTinst.Segmentation` in the file.
    """
    try:
        labels: NDArray[Any] = load_mat(path)["GTinst"]["Segmentation"][0, 0]
        height, width = labels.shape
    except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: expected a struct `GTinst` with a map `Segmentation`; {told(error)}") from error
    objects = [
        EvalObject(
            id=str(int(value)),
            mask=rle_codec.encode(labels == value),
            area_px=int((labels == value).sum()),
            granularity=1.0,
        )
        for value in np.unique(labels)
        if value != 0
    ]
    return GroundTruth(height=int(height), width=int(width), objects=tuple(objects))


BENCHMARKS: Final = (
    Benchmark(
        name="sbd",
        title="SBD, object instances of Pascal VOC",
        source="benchmark.tgz of Berkeley's Semantic Boundaries Dataset; Hariharan et al., ICCV 2011",
        licence="Pascal VOC's (Flickr terms), research",
        splits=("val", "train"),
        objects="val 2,857 images, 6,671 objects; train 8,498 images, 20,172 objects",
        layout="img/NAME.jpg, inst/NAME.mat, SPLIT.txt (under dataset/ as unpacked)",
        read=read_sbd,
        tasks=("interactive",),
        published="sbd",
    ),
)
