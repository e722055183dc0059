"""What a benchmark is and what it hands to the protocols: images, and on request each image's annotated objects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from pipeline.errors import InputError
from pipeline.format import rle as rle_codec
from pipeline.format.rle import Rle
from pipeline.sources.kinds import IMAGE_SUFFIXES

from .files import existing

EMPTY_MASKS: Final = "annotations whose mask is empty"
"""A reason why something is left out."""

Task = Literal["whole", "interactive", "video"]
LabelRule = Literal["whole", "part", "containment", "mined", "none"]
"""How the protocol's own granularity of an object is found: all 1.0; eq. 3 within the annotated object; by the wholes
and parts among the image's masks (`containment.py`); the one that the mask was mined with; not at all."""


@dataclass(frozen=True, kw_only=True)
class EvalObject:
    """One annotated object of an image."""

    id: str
    """As the benchmark names it; positions tell objects apart, not names."""
    mask: Rle
    area_px: float
    """As the benchmark states it (COCO has fractions); it decides the size class."""
    crowd: bool = False
    """COCO's `iscrowd`: a region to be ignored, never counted."""
    ignore: Rle | None = None
    """Pixels that count for nothing in the IoU with this object."""
    granularity: float | None = None
    """The protocol's label g in [0.1, 1.0]; None where it has none."""
    annotator: int | None = None
    """Which person drew it, where several did; 0 drew the fewest segments."""


@dataclass(frozen=True, kw_only=True)
class PartOf:
    """A part and the whole around it, by their positions among the image's objects."""

    part: int
    whole: int
    area_ratio: float
    granularity: float
    """Of the part by eq. 3 under that whole."""


@dataclass(frozen=True, kw_only=True)
class GroundTruth:
    """All that people said about one image.

    Attributes:
        height, width: pixels, upright.
        objects: in the benchmark's order.
        subsets: sets of objects (positions) that are scored, each by itself (column `view` of the score files). The
            first is the benchmark's own; by default that is all objects. `wholes` holds those that mined instances are
            compared with.
        pairs: for the same-click test, positions in `objects`; empty where the benchmark has none.
        left_out: what was annotated and is not among the objects, reason -> how many.
    """

    height: int
    width: int
    objects: tuple[EvalObject, ...]
    subsets: dict[str, tuple[int, ...]] = field(default_factory=dict)
    pairs: tuple[PartOf, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.subsets:
            self.subsets["all"] = tuple(range(len(self.objects)))

    @property
    def scored(self) -> tuple[int, ...]:
        """Positions of the benchmark's own objects, without crowds."""
        first = next(iter(self.subsets.values()))
        return tuple(index for index in first if not self.objects[index].crowd)


@dataclass(frozen=True, kw_only=True)
class EvalImage:
    """One image of a benchmark. `load` reads its ground truth; it can be sent to other processes."""

    name: str
    """Unique in the split: a file's whole path below the benchmark's folder, with its ending, or the benchmark's id."""
    path: Path
    """The file, or shard and member if `read` is given: then only a name."""
    load: Callable[[], GroundTruth]
    read: Callable[[], bytes] | None = None
    """Its bytes, where it is no file of its own."""
    sha256: str | None = None
    """Of its bytes, if that is known without reading them."""
    file: str | None = None
    """The image's path below its folder, by which mined masks are found when the bytes differ; None: the name."""

    @property
    def draw(self) -> str:
        """What random draws hang on: the file's name without folders and ending, so that they are the same wherever
        the benchmark lies. Two images may share it; what is drawn is then of different objects."""
        name = PurePosixPath(self.name)
        return name.stem if name.suffix.lower() in IMAGE_SUFFIXES else name.name

    def read_bytes(self) -> bytes:
        """As stored.

        Raises:
            InputError: the file is missing, or the shard damaged.
        """
        return existing(self.path).read_bytes() if self.read is None else self.read()


@dataclass(frozen=True, kw_only=True)
class EvalVideo:
    """One sequence: frames in order and the mask of its object in each."""

    name: str
    frames: tuple[Path, ...]
    masks: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class Split:
    """What a reader found."""

    images: tuple[EvalImage, ...] = ()
    videos: tuple[EvalVideo, ...] = ()
    notes: tuple[str, ...] = ()
    """What is worth knowing about this copy, such as images that the annotations name and the disk does not hold."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """What lies there and is not scored, reason -> how many. What turns up in one image stands in its `GroundTruth`."""

    def __post_init__(self) -> None:
        """Answers are kept by name: two of one name would share one.

        Raises:
            InputError: two images, or two videos, have one name.
        """
        for each in (self.images, self.videos):
            twice = [name for name, count in Counter(item.name for item in each).items() if count > 1]
            if twice:
                raise InputError(f"{twice[0]}: stands {_times(each, twice[0])} times in the split; once is expected")


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One entry of `grainmill score --list`."""

    name: str
    """What `--benchmark` takes."""
    title: str
    source: str
    """Where it is downloaded from, and what to cite."""
    licence: str
    splits: tuple[str, ...]
    """The first is the default of `--split`."""
    objects: str
    """Images and objects of each split, as published or counted."""
    layout: str
    """The files under `--data`, as downloaded."""
    read: Callable[[Path, str], Split]
    """(folder, split) -> what is there.

    Raises:
        InputError: the layout is not as expected; it names the missing file.
    """
    by_url: Callable[[str, str], Split] | None = None
    """The same from a URL; None for data that is read from a local folder only."""
    tasks: tuple[Task, ...] = ("whole", "interactive")
    target_iou: float = 0.90
    """At which the interactive protocol stops clicking; 0.85 for the part sets."""
    label_rule: LabelRule = "whole"
    matching: Literal["one-to-one", "best"] = "one-to-one"
    """COCO's matching, or (several people drew the same region) the best IoU of each object."""
    several_people: bool = False
    """Several people drew each image, so that they can be scored against each other."""
    clicked_per_image: int | None = None
    """Only so many objects of an image get clicks, drawn at random and without overlaps (SA-1B: 5); None: all."""
    published: str | None = None
    """Key in `published.py`; None where the paper has no number."""

    def split_of(self, data: str, split: str) -> Split:
        """What lies at a path or URL.

        Raises:
            InputError: as `read`; or a URL of a benchmark that is not read from one.
        """
        if "://" not in data:
            return self.read(Path(data), split)
        if self.by_url is None:
            raise InputError(f"--data {data}: {self.name} is read from a local folder, expected its path")
        return self.by_url(data, split)


def _times(items: Sequence[EvalImage | EvalVideo], name: str) -> int:
    return sum(item.name == name for item in items)


def label_map_masks(labels: NDArray[np.integer[Any]], *, background: int | None = None) -> list[NDArray[np.bool_]]:
    """(H, W) integer map -> one (H, W) bool mask for each value but `background`, ascending."""
    return [labels == value for value in np.unique(labels) if value != background]


def for_coco(rles: Sequence[Rle]) -> list[dict[str, Any]]:
    """The same masks as pycocotools wants them, after the check that it leaves out (runs sum to height x width)."""
    for rle in rles:
        rle_codec.run_lengths_of(rle)
    return [{"size": rle["size"], "counts": rle["counts"].encode("ascii")} for rle in rles]


def iou_with(masks: Sequence[Rle], objects: Sequence[EvalObject]) -> NDArray[np.float64]:
    """(D, G) float64; for a crowd, intersection over the mask's own area, as COCO has it."""
    if not masks or not objects:
        return np.zeros((len(masks), len(objects)))
    crowd = [int(each.crowd) for each in objects]
    found = coco_mask.iou(for_coco(masks), for_coco([each.mask for each in objects]), crowd)
    return np.asarray(found, dtype=np.float64).reshape(len(masks), len(objects))
