"""BSDS500, and BSDS-G: the multi-granularity benchmark that its several annotators allow.

Source: Arbelaez, Maire, Fowlkes, Malik, "Contour detection and hierarchical image segmentation", TPAMI 2011 (BSR.tgz).
Licence: research and education. Splits: train 200, val 100, test 200 photographs, 4 to 9 people each. Layout as
downloaded: `images/SPLIT/N.jpg`, `groundTruth/SPLIT/N.mat` (`groundTruth`, a cell of annotators, each with
`Segmentation`, a label map), under the folder given, or its `data` or `BSDS500/data`.

- `bsds500`: every segment of every person of at least 32 px is an object (protocol `bsds-union32`). Two people who drew
  the same region make two objects, so a mask may serve several of them, and the best IoU decides.
- `bsds-g`: segments of at least 64 px are pooled; a mask is consensus if another person drew one with IoU >= 0.7;
  copies go greedily by descending area at IoU 0.7. The core set C are the consensus masks, the extended set E all.
  Labels g and pairs come from containment within C (`containment.py`); E has no labels and serves recall alone.
  `coarse`, `middle` and `fine` are the segments of a third of the people each, by how many they drew, pooled in the
  same way.

Objects: train 22,537 segments (17,317 of at least 64 px), val 10,698 (8,475), test 23,192 (17,898). Clicks end at IoU
0.90. Nothing is written: the benchmark is built from the annotations each time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.format import rle as rle_codec

from . import containment
from .files import alone, by_stem, existing, first_folder, load_mat, matching_files, told
from .records import Benchmark, EvalImage, EvalObject, GroundTruth, PartOf, Split

UNION_MIN_AREA_PX: Final = 32
POOL_MIN_AREA_PX: Final = 64
SAME_IOU: Final = 0.7

Labels = NDArray[np.integer[Any]]


def read_bsds500(root: Path, split: str) -> Split:
    """`bsds500`: objects are all people's segments, and the subsets `coarse`, `middle`, `fine`, `wholes` (the coarsest
    person's); label g by containment among all of an image.

    Raises:
        InputError: a folder or file of the layout is missing.
    """
    return _split(root, split, load_union)


def read_bsds_g(root: Path, split: str) -> Split:
    """`bsds-g`: the subsets `core` (C), `extended` (E), `coarse`, `middle`, `fine`.

    Raises:
        InputError: a folder or file of the layout is missing.
    """
    return _split(root, split, load_pool)


def _split(root: Path, split: str, load: Callable[[Path], GroundTruth]) -> Split:
    data = first_folder(root, ("", "data", "BSDS500/data", "BSR/BSDS500/data"), holding=f"groundTruth/{split}")
    images = by_stem(matching_files(data / "images" / split, (".jpg",)))
    truth = data / "groundTruth" / split
    return Split(
        images=tuple(
            EvalImage(name=path.name, path=path, load=partial(load, existing(truth / f"{stem}.mat")))
            for stem, path in images.items()
        ),
        notes=alone((path for path in truth.glob("*.mat") if path.stem not in images), without="its image"),
    )


def read_annotators(path: Path) -> list[Labels]:
    """One (H, W) label map for each person, in the file's order.

    Raises:
        InputError: the file does not hold a `groundTruth` cell of equally large `Segmentation` maps.
    """
    try:
        maps: list[Labels] = [entry["Segmentation"][0, 0] for entry in load_mat(path)["groundTruth"].ravel()]
    except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: expected a cell `groundTruth` of structs with `Segmentation`; {told(error)}"
        ) from error
    if not maps or any(each.ndim != 2 or each.shape != maps[0].shape for each in maps):
        raise InputError(f"{path}: expected label maps of one size, found {[each.shape for each in maps]}")
    return maps


def coarseness_rank(maps: list[Labels]) -> NDArray[np.int64]:
    """(P,) rank of each person by the number of segments drawn, 0 the fewest (ties: the file's order)."""
    order = np.argsort([np.unique(labels).size for labels in maps], kind="stable")
    return np.argsort(order)


@dataclass(frozen=True)
class Segments:
    """Segments of all people, annotator after annotator, in each by label.

    Attributes:
        label_maps: one (H, W) map for each person.
        rank: (P,) int64, each person's rank by coarseness.
        annotator: (N,) int64, who drew each.
        value: (N,) int64, its label in that person's map.
        shared_px: (N, N) int64, pixels of each pair, areas on the diagonal.
    """

    label_maps: list[Labels]
    rank: NDArray[np.int64]
    annotator: NDArray[np.int64]
    value: NDArray[np.int64]
    shared_px: NDArray[np.int64]

    @property
    def area_px(self) -> NDArray[np.int64]:
        return np.diagonal(self.shared_px)

    def iou(self) -> NDArray[np.float64]:
        """(N, N) of all pairs."""
        union = self.area_px[:, None] + self.area_px[None, :] - self.shared_px
        return self.shared_px / np.maximum(union, 1)

    def objects(self, granularity: Sequence[float | None]) -> tuple[EvalObject, ...]:
        """All of them as objects, with the labels given."""
        return tuple(
            EvalObject(
                id=f"{person}.{value}",
                mask=rle_codec.encode(self.label_maps[person] == value),
                area_px=int(area_px),
                granularity=label,
                annotator=int(self.rank[person]),
            )
            for person, value, area_px, label in zip(self.annotator, self.value, self.area_px, granularity, strict=True)
        )


def segments_of(maps: list[Labels], min_area_px: int) -> Segments:
    """Every segment of at least `min_area_px`, and what each two share."""
    compact, values, first = [], [], [0]
    for labels in maps:
        found, inverse = np.unique(labels, return_inverse=True)
        compact.append(inverse.reshape(labels.shape).astype(np.int64) + first[-1])
        values.append(found.astype(np.int64))
        first.append(first[-1] + found.size)
    total = first[-1]
    shared = np.zeros((total, total), dtype=np.int64)
    for i, ours in enumerate(compact):
        for theirs in compact[i:]:
            shared += np.bincount((ours * total + theirs).ravel(), minlength=total * total).reshape(total, total)
    shared = np.maximum(shared, shared.T)
    kept = np.flatnonzero(np.diagonal(shared) >= min_area_px)
    annotator = np.repeat(np.arange(len(maps)), np.diff(first))
    return Segments(
        maps, coarseness_rank(maps), annotator[kept], np.concatenate(values)[kept], shared[np.ix_(kept, kept)]
    )


def consensus(segments: Segments) -> NDArray[np.bool_]:
    """(N,) bool: another person drew a segment with IoU of at least 0.7."""
    other = segments.annotator[:, None] != segments.annotator[None, :]
    return np.asarray(((segments.iou() >= SAME_IOU) & other).any(axis=1), dtype=np.bool_)


def pooled(segments: Segments, candidates: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices that remain when copies (IoU of at least 0.7 with a kept one) go, by descending area, stable."""
    iou = segments.iou()
    kept: list[int] = []
    for index in candidates[np.argsort(-segments.area_px[candidates], kind="stable")]:
        if not kept or iou[index, kept].max() < SAME_IOU:
            kept.append(int(index))
    return np.array(kept, dtype=np.int64)


def thirds(segments: Segments) -> dict[str, NDArray[np.int64]]:
    """Indices of the segments of the coarse, middle and fine third of people."""
    third = 3 * segments.rank[segments.annotator] // len(segments.rank)
    return {name: np.flatnonzero(third == number) for number, name in enumerate(("coarse", "middle", "fine"))}


def load_union(path: Path) -> GroundTruth:
    """One image of `bsds500`."""
    maps = read_annotators(path)
    segments = segments_of(maps, UNION_MIN_AREA_PX)
    labels, _ = containment.label_granularities(segments.shared_px)
    subsets = {
        "all": np.arange(len(segments.annotator)),
        **thirds(segments),
        "wholes": np.flatnonzero(segments.rank[segments.annotator] == 0),
    }
    height, width = maps[0].shape
    return GroundTruth(
        height=height,
        width=width,
        objects=segments.objects(labels),
        subsets={name: tuple(indices.tolist()) for name, indices in subsets.items()},
    )


def load_pool(path: Path) -> GroundTruth:
    """One image of `bsds-g`. Pairs are those within the core set."""
    maps = read_annotators(path)
    segments = segments_of(maps, POOL_MIN_AREA_PX)
    agreed = consensus(segments)
    extended = pooled(segments, np.arange(agreed.size))
    core = extended[agreed[extended]]
    core_labels, core_pairs = containment.label_granularities(segments.shared_px[np.ix_(core, core)])
    labels: list[float | None] = [None] * agreed.size
    for index, label in zip(core, core_labels, strict=True):
        labels[index] = label
    pairs = tuple(
        PartOf(
            part=int(core[pair.part]),
            whole=int(core[pair.whole]),
            area_ratio=pair.area_ratio,
            granularity=pair.granularity,
        )
        for pair in core_pairs
    )
    by_third = thirds(segments)
    subsets = {"core": core, "extended": extended, **{name: pooled(segments, part) for name, part in by_third.items()}}
    subsets["wholes"] = np.flatnonzero(segments.rank[segments.annotator] == 0)
    height, width = maps[0].shape
    return GroundTruth(
        height=height,
        width=width,
        objects=segments.objects(labels),
        subsets={name: tuple(indices.tolist()) for name, indices in subsets.items()},
        pairs=pairs,
    )


_SOURCE: Final = (
    "BSR_bsds500.tgz of the Berkeley Computer Vision Group; cite Arbelaez, Maire, Fowlkes, Malik, TPAMI 2011"
)
_LICENCE: Final = "research and education"
_LAYOUT: Final = "images/SPLIT/N.jpg, groundTruth/SPLIT/N.mat; optional ucm2/SPLIT/N.mat"

BENCHMARKS: Final = (
    Benchmark(
        name="bsds500",
        title="BSDS500, every segment of every person (protocol bsds-union32)",
        source=_SOURCE,
        licence=_LICENCE,
        splits=("val", "train", "test"),
        objects="segments of all people: train 200 images 22,537, val 100 images 10,698, test 200 images 23,192; those "
        "of at least 32 px are scored",
        layout=_LAYOUT,
        read=read_bsds500,
        label_rule="containment",
        matching="best",
        several_people=True,
    ),
    Benchmark(
        name="bsds-g",
        title="BSDS-G, pooled segments with part and whole",
        source=_SOURCE,
        licence=_LICENCE,
        splits=("val", "train", "test"),
        objects="core / extended / pairs: train 3,577 / 9,769 / 1,487, val 1,684 / 4,976 / 740, test 3,793 / 10,461 / "
        "1,791",
        layout=_LAYOUT,
        read=read_bsds_g,
        label_rule="containment",
        several_people=True,
    ),
)
