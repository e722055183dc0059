"""Committed or released shards, for reading: which samples there are, and one sample by ranged reads.

A complete directory is read through `manifest.json` and its merged index; a run still going on through what its commits
name, so that training can start on the first shards. Nothing else that may lie in the directory is looked at.
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

from pipeline.errors import GrainmillError, InputError, SampleFailureError, SchemaError
from pipeline.format import rle as rle_codec
from pipeline.format.granularity import GRANULARITY_MIN
from pipeline.format.rle import Rle
from pipeline.format.schema import (
    FORMAT,
    SAMPLES_SCHEMA,
    canonical_json,
    dataset_digest,
    load_json,
    sha256_of,
)
from pipeline.sources.images import decode_rgb
from pipeline.storage.base import Reader, StorageError
from pipeline.storage.local import LocalStorage
from pipeline.storage.open import open_versioned
from pipeline.storage.parquet import parquet_table

from .mask_columns import mask_columns_from_json
from .run_lengths import Runs

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


PART: Final = "part"
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
    runs: Runs
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

    def masks(self, which: Sequence[int] | NDArray[np.integer[Any]] | None = None) -> NDArray[np.bool_]:
        """(m, H, W) bool: the masks of some numbers, or all n of them; a byte a pixel each."""
        numbers = range(len(self.counts)) if which is None else [int(each) for each in which]
        rles = self.rles
        if not len(numbers):
            return np.zeros((0, *self.image.shape[:2]), dtype=np.bool_)
        return np.stack([rle_codec.decode(rles[number]) for number in numbers])

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
        held = dict(zip(instances.tolist(), self.runs.sampled(instances, columns, rows), strict=True))
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
        return self.image.nbytes + self.runs.nbytes + sum(map(len, self.counts))


class ShardIndex:
    """The samples of a directory, or of several as one, see `open_all`."""

    def __init__(self, storages: Sequence[Reader], table: pa.Table, digest: str, *, complete: bool) -> None:
        self.storages = tuple(storages)
        self.table = table
        """Of several directories with a column `PART`: which of `storages` holds a sample."""
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
        storage = open_versioned(directory)
        if storage.exists("manifest.json"):
            return cls._from_manifest(storage, columns, split)
        if split is not None:
            raise InputError(f"{storage.location}: expected a release with a split {split!r}, found no manifest.json")
        return cls._from_commits(storage, columns)

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
            index.table.append_column(PART, pa.array(np.full(len(index), part, dtype=np.int32)))
            for part, index in enumerate(indexes)
        ]
        digest = sha256_of(canonical_json([index.digest for index in indexes]))
        storages = [storage for index in indexes for storage in index.storages]
        return cls(storages, pa.concat_tables(tables), digest, complete=all(index.complete for index in indexes))

    @classmethod
    def _from_manifest(cls, storage: Reader, columns: tuple[str, ...], split: str | None) -> ShardIndex:
        where = f"{storage.location}/manifest.json"
        manifest = load_json(storage.read_bytes("manifest.json"), where=where)
        _check_format(manifest, where)
        try:
            index = manifest["index"] if split is None else _files_of(manifest, split, storage.location)
            file, digest = index["samples"], str(manifest["digest"])
            name, sha256 = str(file["name"]), str(file["sha256"])
        except (KeyError, TypeError) as error:
            raise SchemaError(f"{where}: expected the fields index.samples and digest, found no {error}") from error
        return cls([storage], _read_table(storage, name, sha256, columns), digest, complete=True)

    @classmethod
    def _from_commits(cls, storage: Reader, columns: tuple[str, ...]) -> ShardIndex:
        tables, shards = [], []
        records = _commit_records(storage)
        for unit, record in records:
            try:
                shard = record["shard"]
                if shard is None:
                    continue
                file = record["index"]["samples"]
                name, sha256 = str(file["name"]), str(file["sha256"])
                shards.append([record["unit"], shard["sha256"], shard["samples"], shard["masks"]])
            except (KeyError, TypeError) as error:
                raise SchemaError(
                    f"{storage.location}/commits: unit {unit}: expected the record of a commit, found something else "
                    f"({type(error).__name__}: {error}); `grainmill verify` tells more"
                ) from error
            tables.append(_read_table(storage, name, sha256, columns))
        if not records:
            raise InputError(
                f"{storage.location}: expected committed or released shards, found neither manifest.json nor a commit; "
                "`grainmill mine` makes them"
            )
        table = pa.concat_tables(tables) if tables else SAMPLES_SCHEMA.empty_table().select(columns)
        return cls([storage], table, dataset_digest(shards, []), complete=False)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def location(self) -> str:
        return told_locations([each.location for each in self.storages])

    def select(self, rows: NDArray[np.int64]) -> ShardIndex:
        """The same data with only these rows, in this order."""
        return ShardIndex(self.storages, self.table.take(pa.array(rows)), self.digest, complete=self.complete)

    def sample_keys(self) -> list[str]:
        return self.table.column("key").to_pylist()

    def read_raw(self, number: int) -> tuple[memoryview, memoryview]:
        """One sample's bytes as they lie in the shard, in one ranged read: the image's, and its masks' JSON.

        Both are views of the shard itself where it is a local file.

        Raises:
            StorageError: the shard is shorter than the index says.
        """
        if self._places is None:
            self._places, self._ranges = _Places(self.table), [_RangeReader(each) for each in self.storages]
        part, shard, image_offset, image_size, json_offset, json_size = self._places.of(number)
        start = min(image_offset, json_offset)
        end = max(image_offset + image_size, json_offset + json_size)
        data = self._ranges[part].read(shard, start, end - start)
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
        part = self.table.column(PART)[number].as_py() if len(self.storages) > 1 else 0
        where = f"{self.storages[part].location}/{self.table.column('shard')[number]}: {key}"
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


def decoded(photograph: bytes, record: bytes, *, where: str) -> LoadedSample:
    """The sample of an image's bytes and its masks' JSON, checked against each other.

    Args:
        photograph: the image file.
        record: KEY.json.
        where: shard and key, for messages.

    Raises:
        BadSampleError: an image that cannot be decoded, or has another size than its masks.
        SchemaError: JSON that is not of this format, or another image than the one that was mined.
    """
    sample = mask_columns_from_json(record, where=where)
    if sha256_of(photograph) != sample.source_sha256:  # a JPEG with a few wrong bytes decodes without complaint
        raise SchemaError(f"{where}: its photograph is not the one that was mined; `grainmill verify` tells more")
    try:
        image = decode_rgb(photograph, max_pixels=MAX_IMAGE_PIXELS)
    except SampleFailureError as error:
        raise BadSampleError(f"{where}: {error}") from error
    runs = Runs.of(sample.counts, sample.height, sample.width)
    if image.shape[:2] != (sample.height, sample.width):
        raise BadSampleError(f"{where}: the image is {image.shape[:2]}, its masks {(sample.height, sample.width)}")
    return LoadedSample(
        key=sample.key,
        where=where,
        image=image,
        counts=sample.counts,
        runs=runs,
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
        several = PART in table.column_names
        self._part = table.column(PART).to_numpy() if several else np.zeros(table.num_rows, dtype=np.int32)
        self._numbers = [
            table.column(name).combine_chunks().to_numpy(zero_copy_only=False)
            for name in ("image_offset", "image_size", "json_offset", "json_size")
        ]

    def of(self, number: int) -> tuple[int, str, int, int, int, int]:
        image_offset, image_size, json_offset, json_size = (int(column[number]) for column in self._numbers)
        return (
            int(self._part[number]),
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


def _check_format(record: Any, where: str) -> None:
    found = record.get("format") if isinstance(record, dict) else None
    if found != FORMAT:
        raise SchemaError(f"{where}: format is {found!r}, this version reads {FORMAT!r}; use the version that wrote it")


def _commit_records(storage: Reader) -> list[tuple[int, dict[str, Any]]]:
    """Every committed unit with its record, ascending: compacted files first, then the single ones."""
    records: dict[int, dict[str, Any]] = {}
    names = storage.list("commits")
    for name in [each for each in names if each.startswith("compact-") and each.endswith(".parquet")]:
        table = parquet_table(storage.read_bytes(f"commits/{name}"), columns=["unit", "record"])
        for unit, record in zip(table.column("unit").to_pylist(), table.column("record").to_pylist(), strict=True):
            records.setdefault(unit, load_json(record, where=f"{storage.location}/commits/{name}"))
    for name in [each for each in names if each.endswith(".json") and each[:-5].isdigit()]:
        if int(name[:-5]) not in records:
            where = f"{storage.location}/commits/{name}"
            records[int(name[:-5])] = load_json(storage.read_bytes(f"commits/{name}"), where=where)
    for unit, record in records.items():
        _check_format(record, f"{storage.location}/commits: unit {unit}")
    return sorted(records.items())


def _files_of(manifest: Any, split: str, location: str) -> Any:
    """Index files of one split of a release."""
    found = manifest["splits"]["files"] if "splits" in manifest else {}
    if split not in found:
        raise InputError(f"{location}: no split {split!r}; there is {', '.join(['all', *found])}")
    return found[split]


def _read_table(storage: Reader, name: str, sha256: str, columns: tuple[str, ...]) -> pa.Table:
    data = storage.read_bytes(name)
    found = sha256_of(data)
    if found != sha256:
        raise InputError(
            f"{storage.location}/{name}: sha256 is {found}, expected {sha256}; `grainmill verify` tells more"
        )
    return parquet_table(data, schema=SAMPLES_SCHEMA, columns=columns)
