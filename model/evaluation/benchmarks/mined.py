"""Mined or released masks, found for the images of a benchmark: by the sha256 of the bytes, else by the whole name."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from pipeline.dataset.open import open_dataset
from pipeline.dataset.reader import Dataset
from pipeline.errors import InputError
from pipeline.format.rle import Rle
from pipeline.format.schema import Annotation, Sample, sample_from_json, sha256_of

from ...data.shards import COLUMNS, ShardIndex
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
        data = dataset_at(self.location).storage.read_range(self.shard, self.offset, self.size)
        where = f"{self.location}/{self.shard}: {self.key}"
        if sha256_of(data) != self.sha256:
            raise InputError(f"{where}: its masks do not match the index's sha256; `grainmill verify` tells more")
        return sample_from_json(data, where=where)


MINED_COLUMNS: Final = ("source_uri", "member", "source_sha256", "height", "width")
"""What the index tells of a sample beyond where it lies (`shards.COLUMNS`)."""


@functools.lru_cache(maxsize=4)
def dataset_at(location: str) -> Dataset:
    """A run or a release, opened once in each process."""
    return open_dataset(location)


@dataclass(frozen=True)
class Matches:
    """Which mined sample belongs to which image.

    Attributes:
        rows: one for each image; None where nothing was mined (it failed, or holds no mask).
        by_bytes: how many were found by their bytes; the others by name.
        unused: mined samples that are none of the images.
        digest: of the mined data.
    """

    rows: tuple[MinedRow | None, ...]
    by_bytes: int
    unused: int
    digest: str


def match_mined(directory: str, images: Sequence[EvalImage]) -> Matches:
    """Finds each image's mined sample.

    An image whose bytes were not mined is found by its path, as far as both paths are known: `x/a.jpg` is
    `photos/x/a.jpg` and `a.jpg`, but neither `y/a.jpg` nor `x/a.png`.

    Raises:
        InputError: nothing committed lies there, no image of the benchmark is among it, or it is not clear which sample
            belongs to an image.
    """
    index = ShardIndex.open(directory, columns=(*COLUMNS, *MINED_COLUMNS))
    columns = {name: index.table.column(name).to_pylist() for name in ("source_uri", "member", "source_sha256")}
    by_bytes = {sha256: row for row, sha256 in reversed(list(enumerate(columns["source_sha256"])))}
    digests = [image.sha256 or sha256_of(image.read_bytes()) for image in images]
    taken = set(digests)
    paths = [sample_path(uri, member) for uri, member in zip(columns["source_uri"], columns["member"], strict=True)]
    by_name: defaultdict[str, list[int]] = defaultdict(list)
    for row, path in enumerate(paths):
        if columns["source_sha256"][row] not in taken:
            by_name[path.rpartition("/")[2]].append(row)
    rows: list[int | None] = []
    claims: dict[int, EvalImage] = {}
    for image, sha256 in zip(images, digests, strict=True):
        if sha256 in by_bytes:
            rows.append(by_bytes[sha256])
            continue
        file = image.file or image.name
        fitting = [row for row in by_name.get(file.rpartition("/")[2], []) if _one_path(paths[row], file)]
        fitting = [row for row in fitting if paths[row] == file] or fitting
        if len(fitting) > 1:
            raise InputError(
                f"{index.location}: {len(fitting)} samples could be {file} by their paths ({paths[fitting[0]]}, "
                f"{paths[fitting[1]]}) and none has the bytes of {image.path}; mine the benchmark's own images"
            )
        rows.append(fitting[0] if fitting else None)
        for row in fitting:
            other = claims.setdefault(row, image)
            if other.path != image.path:
                raise InputError(
                    f"{index.location}: the sample {paths[row]} could be {other.path} or {image.path} by their paths, "
                    "and has the bytes of neither; mine the benchmark's own images"
                )
    used = {row for row in rows if row is not None}
    if not used:
        example = f" ({images[0].file or images[0].name}, for example, is not {paths[0]})" if paths else ""
        raise InputError(
            f"{index.location}: none of the {len(images)} images of the benchmark is among its {len(index)} samples, "
            f"neither by bytes nor by name with its ending{example}; mine the images of this split"
        )
    return Matches(
        rows=tuple(None if row is None else _row(index, row) for row in rows),
        by_bytes=sum(sha256 in by_bytes for sha256 in digests),
        unused=sum(row not in used and sha256 not in taken for row, sha256 in enumerate(columns["source_sha256"])),
        digest=index.digest,
    )


def sample_path(source_uri: str, member: str | None) -> str:
    """Where a sample's image lay in its source, without the source's label."""
    return member or source_uri.partition("/")[2] or source_uri


def _one_path(one: str, other: str) -> bool:
    """Whether two paths can be the same file's, one of them below a folder that the other does not name."""
    return one == other or one.endswith(f"/{other}") or other.endswith(f"/{one}")


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

    Scores are comparable within one origin, and mined wholes carry none: they come before what they hold, as the
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
