"""Mined or released masks, found for the images of a benchmark: by the sha256 of the bytes, else by name."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

import numpy as np

from pipeline.errors import InputError
from pipeline.rle import Rle
from pipeline.schema import Annotation, Sample, sample_from_json, sha256_of
from pipeline.versions import open_dataset

from ..index import COLUMNS, ShardIndex
from .records import EvalImage


@dataclass(frozen=True)
class MaskSet:
    """Masks of one image, best first.

    Attributes:
        rles: D masks.
        granularity: D of g, or None where the source has none.
        instance: D of bool, which are wholes (g = 1.0 of their own tree), or None.
        made_by: D of the person's coarseness rank where people drew them, or None. A mask never counts for an object
            of the person who drew it.
    """

    rles: tuple[Rle, ...]
    granularity: tuple[float, ...] | None = None
    instance: tuple[bool, ...] | None = None
    made_by: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class MinedRow:
    """Where one mined sample lies; small, so that it can be sent to another process."""

    location: str
    key: str
    shard: str
    offset: int
    size: int
    sha256: str
    height: int
    width: int

    def load(self) -> Sample:
        """Reads the sample's record.

        Raises:
            InputError: the bytes are not those that the index names.
        """
        data = dataset_at(self.location).read_range(self.shard, self.offset, self.size)
        where = f"{self.location}/{self.shard}: {self.key}"
        if sha256_of(data) != self.sha256:
            raise InputError(f"{where}: its masks do not match the index's sha256; `grainmill verify` tells more")
        return sample_from_json(data, where=where)


MINED_COLUMNS: Final = ("source_uri", "member", "source_sha256", "height", "width")
"""What the index tells of a sample beyond where it lies (`index.COLUMNS`)."""


@functools.lru_cache(maxsize=4)
def dataset_at(location: str) -> Any:
    """The storage of a run or release, opened once in each process."""
    return open_dataset(location)


@dataclass(frozen=True)
class Matches:
    """Which mined sample belongs to which image.

    Attributes:
        rows: one for each image; None where nothing was mined (it failed, or holds no mask).
        by_bytes: how many were found by their bytes; the others by name.
        digest: of the mined data.
    """

    rows: tuple[MinedRow | None, ...]
    by_bytes: int
    digest: str


def match_mined(directory: str, images: Sequence[EvalImage]) -> Matches:
    """Finds each image's mined sample.

    Raises:
        InputError: nothing committed lies there, no image of the benchmark is among it, or two samples of equal right
            claim one image.
    """
    index = ShardIndex.open(directory, columns=(*COLUMNS, *MINED_COLUMNS))
    columns = {name: index.table.column(name).to_pylist() for name in ("source_uri", "member", "source_sha256")}
    by_bytes = {sha256: row for row, sha256 in reversed(list(enumerate(columns["source_sha256"])))}
    by_name: defaultdict[str, list[int]] = defaultdict(list)
    for row, (uri, member) in enumerate(zip(columns["source_uri"], columns["member"], strict=True)):
        by_name[PurePosixPath(member or uri).stem].append(row)
    found: list[MinedRow | None] = []
    exact = 0
    for image in images:
        sha256 = image.sha256 or sha256_of(image.read_bytes())
        if sha256 in by_bytes:
            exact += 1
            found.append(_row(index, by_bytes[sha256]))
            continue
        named = by_name.get(image.path.stem, [])
        if len(named) > 1:
            raise InputError(
                f"{index.location}: {len(named)} samples are called {image.path.stem} and none has the bytes of "
                f"{image.path}; mine the benchmark's own images"
            )
        found.append(_row(index, named[0]) if named else None)
    if not any(row is not None for row in found):
        raise InputError(
            f"{index.location}: none of the {len(images)} images of the benchmark is among its {len(index)} samples, "
            "neither by bytes nor by name; mine the images of this split"
        )
    return Matches(rows=tuple(found), by_bytes=exact, digest=index.digest)


def _row(index: ShardIndex, number: int) -> MinedRow:
    return mined_row(index.location, index.table.slice(number, 1).to_pylist()[0])


def mined_row(location: str, row: Mapping[str, Any]) -> MinedRow:
    """Where a sample lies, from its row of the index (`COLUMNS` and `MINED_COLUMNS`)."""
    return MinedRow(
        location=location,
        key=row["key"],
        shard=row["shard"],
        offset=row["json_offset"],
        size=row["json_size"],
        sha256=row["json_sha256"],
        height=row["height"],
        width=row["width"],
    )


def ranked_masks(annotations: Sequence[Annotation]) -> MaskSet:
    """The masks of a sample, best first: those without a score (detections that are wholes) by area, then by score.

    Scores are comparable within one origin, and the mill's wholes carry none: they come before what they hold, as the
    regions that survived merging longest.
    """
    score = np.array([np.inf if each.score is None else each.score for each in annotations], dtype=np.float64)
    area = np.array([each.area for each in annotations], dtype=np.int64)
    order = np.lexsort((np.arange(len(annotations)), -area, -score))
    ranked = [annotations[index] for index in order]
    return MaskSet(
        rles=tuple(each.segmentation for each in ranked),
        granularity=tuple(each.granularity for each in ranked),
        instance=tuple(each.is_instance for each in ranked),
    )


def load_masks(row: MinedRow | None) -> MaskSet:
    """The ranked masks of a matched image; none where nothing was mined."""
    return MaskSet(rles=(), granularity=(), instance=()) if row is None else ranked_masks(row.load().annotations)
