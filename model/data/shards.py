"""Committed or released shards, for training: which samples there are, and one sample by ranged reads.

Which there are is what `pipeline.dataset` says: all of a complete directory, or what the commits of a run still going
on name, so that training can start on the first shards.
"""

from __future__ import annotations

import collections
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.dataset.labeled_image import Which, decode_masks
from pipeline.dataset.open import open_dataset
from pipeline.dataset.reader import Dataset
from pipeline.errors import GrainmillError, InputError, SampleFailureError, SchemaError
from pipeline.format.granularity import GRANULARITY_MIN
from pipeline.format.rle import Rle
from pipeline.format.schema import canonical_json, sha256_of
from pipeline.sources.images import decode_rgb
from pipeline.storage.base import Reader, StorageError
from pipeline.storage.local import LocalStorage

from .mask_columns import mask_columns_from_json
from .run_lengths import RunLengths

COLUMNS: Final = (
    "key", "shard", "image_offset", "image_size", "json_offset", "json_size", "json_sha256", "num_masks",
)  # fmt: skip
ALONE_GRID: Final = 128
ALONE_SHARE: Final = 0.1
"""Of an instance, that preferred ones may cover; see `LoadedSample.alone`."""
MAPPED_SHARDS: Final = 64
"""Local files that one reader keeps mapped."""
MAX_IMAGE_PIXELS: Final = 400_000_000
"""Above the limit of mining, so that nothing mined is refused; headers are still checked before decoding."""


DATASET: Final = "dataset"
Locations = str | Sequence[str]
"""One directory or URL, or several."""


def told_locations(directories: Locations) -> str:
    """For messages."""
    return directories if isinstance(directories, str) else ", ".join(directories)


class BadSampleError(GrainmillError):
    """A sample of a shard cannot be read; the message names shard and key."""


@dataclass(frozen=True, kw_only=True)
class LoadedSample:
    """One image with its masks, n of them, in the order of the shard."""

    key: str
    where: str
    """Shard and key, for messages."""
    image: NDArray[np.uint8]
    """(H, W, 3) RGB, upright."""
    counts: tuple[str, ...]
    """COCO's compressed run lengths of each mask."""
    run_lengths: RunLengths
    """The same, parsed."""
    granularity: NDArray[np.float32]
    """(n,) in [0.1, 1.0]."""
    instance_id: NDArray[np.int64]
    """(n,)."""
    area_px: NDArray[np.int64]
    """(n,)."""
    origin_rank: NDArray[np.int64] | None = None
    """(n,) place of their origin in `schema.ORIGINS`; None: not said, all alike."""

    @property
    def rles(self) -> tuple[Rle, ...]:
        """COCO's records of the masks."""
        size = [*self.image.shape[:2]]
        return tuple({"size": size, "counts": each} for each in self.counts)

    def masks(self, which: Which | None = None) -> NDArray[np.bool_]:
        """(m, H, W) bool: the masks of some numbers (or where a (n,) bool array is true), or all n; a byte a pixel."""
        return decode_masks(self.rles, which, *self.image.shape[:2])

    def drawable(self, *, min_parts: int, smallest_parts: bool, wholes_only: bool) -> NDArray[np.bool_]:
        """(n,) bool: masks that training may draw.

        Args:
            min_parts: see `with_scale`.
            smallest_parts: also those with g exactly 0.1: by equation 3 each instance's smallest part, however large.
            wholes_only: only those of instances that lie beside each other, see `alone`.
        """
        found = self.with_scale(min_parts)
        if not smallest_parts:
            found = found & (self.granularity > np.float32(GRANULARITY_MIN))
        return found & self.alone if wholes_only else found

    def with_scale(self, min_parts: int) -> NDArray[np.bool_]:
        """(n,) bool: wholes, and parts of instances that have at least `min_parts`.

        By equation 3 the smallest part of an instance is 0.1, however large it is: with one part or two, their g says
        nothing about size.
        """
        if min_parts <= 0:
            return np.ones(len(self.counts), dtype=np.bool_)
        is_whole = self.instance_id == np.arange(len(self.counts))
        parts = np.bincount(self.instance_id, minlength=len(self.counts)) - 1
        return np.asarray(is_whole | (parts[self.instance_id] >= min_parts), dtype=np.bool_)

    @cached_property
    def alone(self) -> NDArray[np.bool_]:
        """(n,) bool: masks of instances that lie beside each other, so that one instance lies over a pixel.

        Miners also keep, for recall, regions that join several wholes; these are instances too. Preferred are wholes
        that were given or divided and what no whole claims (in the order of `schema.ORIGINS`), then the larger; an
        instance that lies in preferred ones by more than a tenth (on a grid of 128 x 128 places) is left out with its
        parts.
        """
        count = len(self.counts)
        instances = np.flatnonzero(self.instance_id == np.arange(count))
        rank = np.zeros(count, dtype=np.int64) if self.origin_rank is None else self.origin_rank
        height, width = self.image.shape[:2]
        rows, columns = ((2 * np.arange(ALONE_GRID) + 1) * side // (2 * ALONE_GRID) for side in (height, width))
        held = dict(zip(instances.tolist(), self.run_lengths.sampled(instances, columns, rows), strict=True))
        taken = np.zeros((ALONE_GRID, ALONE_GRID // 8), dtype=np.uint8)
        kept = np.zeros(count, dtype=np.bool_)
        for instance in instances[np.lexsort((instances, -self.area_px[instances], rank[instances]))].tolist():
            mask = held[instance]
            if np.bitwise_count(mask & taken).sum() <= ALONE_SHARE * np.bitwise_count(mask).sum():
                taken |= mask
                kept[instance] = True
        return kept[self.instance_id]

    @property
    def nbytes(self) -> int:
        return self.image.nbytes + self.run_lengths.nbytes + sum(map(len, self.counts))


class ShardIndex:
    """The samples of a directory, or of several as one, see `open_all`."""

    def __init__(self, datasets: Sequence[Dataset], table: pa.Table, digest: str, *, complete: bool) -> None:
        self.datasets = tuple(datasets)
        self.table = table
        """Of several directories with a column `DATASET`: which of `datasets` holds a sample."""
        self.digest = digest
        """Of the data: the manifest's, or of what was committed when this was opened."""
        self.complete = complete
        self._places: _Places | None = None

    @classmethod
    def open(
        cls, directory: str | os.PathLike[str], *, columns: tuple[str, ...] = COLUMNS, split: str | None = None
    ) -> ShardIndex:
        """Opens a local directory or a URL of an allowed scheme.

        Args:
            directory: committed or released shards.
            columns: of `SAMPLES_SCHEMA`, at least `COLUMNS`.
            split: one of a release's own splits; None for everything.

        Raises:
            InputError: nothing committed lies there, its index does not match the manifest, or it has no such split.
            SchemaError: another format.
        """
        dataset = open_dataset(directory)
        found = dataset.samples_index(columns, split=split)
        return cls([dataset], found.table, found.digest, complete=found.complete)

    @classmethod
    def open_all(cls, directories: Locations) -> ShardIndex:
        """Opens one directory, or several as if their samples lay in one, in this order.

        Raises:
            InputError, SchemaError: as `open`; InputError also for a directory that is named twice.
        """
        names = (directories,) if isinstance(directories, str) else directories
        indexes = [cls.open(each) for each in names]
        if len(indexes) == 1:
            return indexes[0]
        twice = [
            name for place, name in enumerate(names) if indexes[place].digest in {e.digest for e in indexes[:place]}
        ]
        if twice:
            raise InputError(f"{told_locations(names)}: {twice[0]} holds data that was named before it; name it once")
        tables = [
            index.table.append_column(DATASET, pa.array(np.full(len(index), place, dtype=np.int32)))
            for place, index in enumerate(indexes)
        ]
        digest = sha256_of(canonical_json([index.digest for index in indexes]))
        datasets = [dataset for index in indexes for dataset in index.datasets]
        return cls(datasets, pa.concat_tables(tables), digest, complete=all(index.complete for index in indexes))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def location(self) -> str:
        return told_locations([each.location for each in self.datasets])

    def select(self, rows: NDArray[np.int64]) -> ShardIndex:
        """The same data with only these rows, in this order."""
        return ShardIndex(self.datasets, self.table.take(pa.array(rows)), self.digest, complete=self.complete)

    def sample_keys(self) -> list[str]:
        return self.table.column("key").to_pylist()

    def read_raw(self, number: int) -> tuple[memoryview, memoryview]:
        """One sample's bytes as they lie in the shard, in one ranged read: the image's, and its masks' JSON.

        Both are the shard's own memory where it is a local file.

        Raises:
            StorageError: the shard is shorter than the index says.
        """
        if self._places is None:
            self._places, self._ranges = _Places(self.table), [_RangeReader(each.storage) for each in self.datasets]
        dataset, shard, image_offset, image_size, json_offset, json_size = self._places.of(number)
        start = min(image_offset, json_offset)
        end = max(image_offset + image_size, json_offset + json_size)
        data = self._ranges[dataset].read(shard, start, end - start)
        image = data[image_offset - start : image_offset - start + image_size]
        return image, data[json_offset - start : json_offset - start + json_size]

    def row(self, number: int) -> dict[str, Any]:
        return {name: self.table.column(name)[number].as_py() for name in COLUMNS}

    def load(self, number: int) -> LoadedSample:
        """Reads, checks and decodes one sample.

        Raises:
            BadSampleError: bytes that do not match the index, or that are not what their format says.
            InputError: the shards hold no images.
        """
        key, json_sha256 = (self.table.column(name)[number].as_py() for name in ("key", "json_sha256"))
        dataset = self.table.column(DATASET)[number].as_py() if len(self.datasets) > 1 else 0
        where = f"{self.datasets[dataset].location}/{self.table.column('shard')[number]}: {key}"
        if not self.table.column("image_offset")[number].is_valid:
            raise InputError(f"{where}: mined with --no-images, so there is nothing to train on; mine with images")
        try:
            picture, record = self.read_raw(number)
            data = bytes(record)
            if sha256_of(data) != json_sha256:
                raise SchemaError(f"{where}: its masks do not match the index's sha256; `grainmill verify` tells more")
            return decoded(bytes(picture), data, where=where)
        except (SchemaError, StorageError) as error:
            raise BadSampleError(str(error) if key in str(error) else f"{where}: {error}") from error


def decoded(image_bytes: bytes, record: bytes, *, where: str) -> LoadedSample:
    """The sample of an image's bytes and its masks' JSON, checked against each other.

    Args:
        image_bytes: the image file.
        record: KEY.json.
        where: shard and key, for messages.

    Raises:
        BadSampleError: an image that cannot be decoded, or has another size than its masks.
        SchemaError: JSON that is not of this format, or another image than the one that was mined.
    """
    sample = mask_columns_from_json(record, where=where)
    if sha256_of(image_bytes) != sample.source_sha256:  # a JPEG with a few wrong bytes decodes without complaint
        raise SchemaError(f"{where}: its image is not the one that was mined; `grainmill verify` tells more")
    try:
        image = decode_rgb(image_bytes, max_pixels=MAX_IMAGE_PIXELS)
    except SampleFailureError as error:
        raise BadSampleError(f"{where}: {error}") from error
    run_lengths = RunLengths.of(sample.counts, sample.height, sample.width)
    if image.shape[:2] != (sample.height, sample.width):
        raise BadSampleError(f"{where}: the image is {image.shape[:2]}, its masks {(sample.height, sample.width)}")
    return LoadedSample(
        key=sample.key,
        where=where,
        image=image,
        counts=sample.counts,
        run_lengths=run_lengths,
        granularity=sample.granularity,
        instance_id=sample.instance_id,
        area_px=sample.area_px,
        origin_rank=sample.origin_rank,
    )


class _RangeReader:
    """Ranged reads that copy nothing where the shards are local files: these are mapped into memory, some at a time.

    Committed shards are never changed in place (their name holds their sha256), so a mapping stays true.
    """

    def __init__(self, storage: Reader) -> None:
        self._storage = storage
        self._maps: collections.OrderedDict[str, memoryview] = collections.OrderedDict()

    def read(self, name: str, offset: int, size: int) -> memoryview:
        """Exactly `size` bytes."""
        if not isinstance(self._storage, LocalStorage):
            return memoryview(self._storage.read_range(name, offset, size))
        mapped = self._maps.get(name)
        if mapped is None:
            mapped = self._maps[name] = self._map(self._storage.path(name))
            if len(self._maps) > MAPPED_SHARDS:
                self._maps.popitem(last=False)
        if offset + size > len(mapped):
            return memoryview(self._storage.read_range(name, offset, size))  # which says what is missing
        return mapped[offset : offset + size]

    @staticmethod
    def _map(path: Path) -> memoryview:
        try:
            with path.open("rb") as file:
                return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError) as error:  # ValueError: an empty file
            raise StorageError(f"{path}: could not be read ({error})") from error


class _Places:
    """Where each sample lies, as plain arrays: looking a row up in an Arrow table costs more than reading it."""

    def __init__(self, table: pa.Table) -> None:
        shards = table.column("shard").combine_chunks().dictionary_encode()
        self._names: list[str] = shards.dictionary.to_pylist()
        self._shard = shards.indices.to_numpy()
        several = DATASET in table.column_names
        self._dataset = table.column(DATASET).to_numpy() if several else np.zeros(table.num_rows, dtype=np.int32)
        self._numbers = [
            table.column(name).combine_chunks().to_numpy(zero_copy_only=False)
            for name in ("image_offset", "image_size", "json_offset", "json_size")
        ]

    def of(self, number: int) -> tuple[int, str, int, int, int, int]:
        image_offset, image_size, json_offset, json_size = (int(column[number]) for column in self._numbers)
        return (
            int(self._dataset[number]),
            self._names[self._shard[number]],
            image_offset,
            image_size,
            json_offset,
            json_size,
        )


def filter_rows(index: ShardIndex, *, min_masks: int, holdout: float, held_out: bool) -> NDArray[np.int64]:
    """Rows with enough masks, split by a hash of their key.

    Args:
        index: all rows.
        min_masks: rows with fewer masks are left out.
        holdout: share of keys, in [0, 1), that is never trained on.
        held_out: return those instead of the rest.
    """
    enough = index.table.column("num_masks").to_numpy() >= min_masks
    if holdout > 0.0:
        shares = np.array([int(sha256_of(key.encode())[:8], 16) / 2**32 for key in index.sample_keys()])
        enough &= (shares < holdout) == held_out
    elif held_out:
        enough &= False
    return np.flatnonzero(enough).astype(np.int64)


def filter_sha256(*, min_masks: int, holdout: float) -> str:
    """Identity of a filter, for the loader's state."""
    return sha256_of(canonical_json({"min_masks": min_masks, "holdout": holdout}))
