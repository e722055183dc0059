"""Shards with their rows of the index, from a run or from an earlier version of the release; copied or cut down.

A shard of which everything stays is copied as it is, hashed on the way. One of which samples go is written anew from
the same members, in the same order, and gets the name that its new bytes give; so is one whose masks people judged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ..dataset.reader import ImagePlace
from ..dataset.release import ReleaseReader
from ..dataset.verify_unit import CHUNK_BYTES
from ..errors import SampleFailureError, SchemaError
from ..format.records import ReleasedRow, ShardRecord
from ..format.schema import Sample, mask_rows, sample_to_json, sha256_of
from ..shards.tar import TarWriter
from ..shards.writer import HASH_DIGITS
from ..storage.base import Reader
from ..storage.local import LocalStorage, explained, sha256_of_file
from ..storage.open import open_storage
from .commit import place, scratch_file
from .duplicates import Signature, signature_of_bytes
from .eligibility import AddedRun


@dataclass(frozen=True, kw_only=True)
class IndexedShard:
    """One shard with its rows of the index.

    Attributes:
        location: where the shard lies.
        run: id of the run that made it.
        unit: of that run.
        shard: its file.
        samples: rows of `SAMPLES_SCHEMA`, or of `RELEASED_SAMPLES_SCHEMA` from an earlier version.
        masks: rows of `MASKS_SCHEMA`.
        standing: it lies in the release's folder already.
    """

    location: str
    run: str
    unit: int
    shard: ShardRecord
    samples: pa.Table
    masks: pa.Table
    standing: bool


def shards_of_run(added: AddedRun) -> Iterator[IndexedShard]:
    """A run's units with a shard, in order."""
    run = added.run
    for unit in added.units:
        if unit.shard is not None:
            yield IndexedShard(
                location=run.location, run=added.entry["id"], unit=unit.number, shard=unit.shard,
                samples=run.samples(unit), masks=run.masks(unit), standing=False,
            )  # fmt: skip


def shards_of_release(release: ReleaseReader) -> Iterator[IndexedShard]:
    """An earlier version's shards, in its order."""
    for unit in release.units():
        shard = release.shard(unit)
        if shard is not None:
            yield IndexedShard(
                location=release.location, run=shard["run"], unit=shard["unit"], shard=shard,
                samples=release.released_samples(unit), masks=release.masks(unit), standing=True,
            )  # fmt: skip


def copy_shard(source: Reader, shard: ShardRecord, target: LocalStorage) -> None:
    """Copies a shard and checks it on the way; nothing to do if it is there with its size and sha256.

    Raises:
        SchemaError: the source's bytes are not those that were committed.
        StorageError: the disk is full, for example.
    """
    name = shard["name"]
    if target.size(name) == shard["size"]:
        with explained("read", target.path(name)):
            if sha256_of_file(target.path(name)) == shard["sha256"]:
                return
    digest, size = hashlib.sha256(), source.size(name) or 0
    with scratch_file(target) as path:
        with explained("write", path), path.open("xb") as stream:
            for start in range(0, size, CHUNK_BYTES):
                data = source.read_range(name, start, min(CHUNK_BYTES, size - start))
                digest.update(data)
                stream.write(data)
        if digest.hexdigest() != shard["sha256"]:
            raise SchemaError(
                f"{source.location}/{name}: sha256 is {digest.hexdigest()}, the commit says {shard['sha256']}; "
                "`grainmill verify` says what is wrong with it"
            )
        place(target, path, name)


def sign(storage: Reader, rows: Sequence[ImagePlace]) -> list[Signature | None]:
    """The signature of each row's image; None for one without an image in its shard.

    Raises:
        SchemaError: an image that cannot be decoded.
    """
    signatures: list[Signature | None] = []
    for row in rows:
        if row["image_offset"] is None or row["image_size"] is None:
            signatures.append(None)
            continue
        image = storage.read_range(row["shard"], row["image_offset"], row["image_size"])
        try:
            signatures.append(signature_of_bytes(image))
        except SampleFailureError as error:
            raise SchemaError(f"{storage.location}/{row['shard']}: {row['key']}: {error}") from error
    return signatures


def copy_and_sign(
    location: str, shard: ShardRecord, rows: list[ImagePlace], target: Path, signed: bool
) -> list[Signature | None]:
    """What a worker process does with a shard of a run: the copy, then the signatures of its images."""
    storage = LocalStorage(target)
    copy_shard(open_storage(location), shard, storage)
    return sign(storage, rows) if signed else [None] * len(rows)


def cut_shard(
    storage: Reader, indexed: IndexedShard, keep: list[bool], judged: Mapping[str, Sample], target: LocalStorage
) -> IndexedShard | None:
    """The shard without some of its samples, and others with other masks, written to `target`; None if none is left.

    Args:
        storage: where the whole shard lies.
        indexed: the shard to be cut.
        keep: for each of its samples.
        judged: key -> what people left of it.
        target: the release's folder.
    """
    rows: list[ReleasedRow] = [row for row, kept in zip(indexed.samples.to_pylist(), keep, strict=True) if kept]
    if not rows:
        return None
    with scratch_file(target) as path:
        with explained("write", path), path.open("xb") as stream:
            tar = TarWriter(stream)
            for row in rows:
                if row["image_offset"] is not None and row["image_size"] is not None:
                    image = storage.read_range(row["shard"], row["image_offset"], row["image_size"])
                    row["image_offset"] = tar.add(f"{row['key']}.{row['ext']}", image)
                record = storage.read_range(row["shard"], row["json_offset"], row["json_size"])
                if row["key"] in judged:
                    sample = judged[row["key"]]
                    record = sample_to_json(sample)
                    row["json_size"], row["json_sha256"] = len(record), sha256_of(record)
                    row["num_masks"] = len(sample.annotations)
                    row["num_instances"] = sum(mask.is_instance for mask in sample.annotations)
                row["json_offset"] = tar.add(f"{row['key']}.json", record)
            sha256 = tar.finish()
        name = f"shards/{indexed.unit:08d}-{sha256[:HASH_DIGITS]}.tar"
        place(target, path, name)
    for row in rows:
        row["shard"] = name
    samples = pa.Table.from_pylist(rows, schema=indexed.samples.schema)
    masks = indexed.masks.filter(
        pc.is_in(indexed.masks.column("key"), value_set=samples.column("key").combine_chunks())
    )
    if not judged.keys().isdisjoint(row["key"] for row in rows):
        masks = _judged_masks(masks, [row["key"] for row in rows], judged)
    shard: ShardRecord = {
        "name": name, "size": tar.size, "sha256": sha256, "samples": samples.num_rows, "masks": masks.num_rows,
    }  # fmt: skip
    return IndexedShard(
        location=target.location, run=indexed.run, unit=indexed.unit, shard=shard, samples=samples, masks=masks,
        standing=True,
    )  # fmt: skip


def _judged_masks(masks: pa.Table, keys: Sequence[str], judged: Mapping[str, Sample]) -> pa.Table:
    """Rows of `MASKS_SCHEMA` in the order of the samples, those of judged samples anew."""
    rows: dict[str, list[dict[str, object]]] = {key: [] for key in keys}
    for row in masks.to_pylist():
        rows[row["key"]].append(row)
    rows.update({key: mask_rows(judged[key]) for key in keys if key in judged})
    return pa.Table.from_pylist([row for key in keys for row in rows[key]], schema=masks.schema)
