"""Pieces of a release: one shard each with its rows, from a run or from an earlier version; copied or cut down.

A shard of which everything stays is copied as it is, hashed on the way. One of which samples go is written anew from
the same members, in the same order, and gets the name that its new bytes give.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ..dataset.release import ReleaseReader
from ..dataset.run import RunReader
from ..dataset.verify_unit import CHUNK_BYTES
from ..errors import SampleFailureError, SchemaError
from ..shards.commits import Commit
from ..shards.tar import TarWriter
from ..shards.writer import HASH_DIGITS
from ..storage.base import Reader
from ..storage.local import LocalStorage, explained, sha256_of_file
from ..storage.open import open_storage
from .duplicates import Signature, signature_of_bytes
from .durable_files import place, scratch_file


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One shard with its rows, or the failures of a unit without one.

    Attributes:
        location: where the shard lies.
        run: id of the run that made it.
        unit: of that run.
        shard: name, size, sha256, samples, masks; None if there is none.
        samples: rows of `SAMPLES_SCHEMA`, or of `RELEASED_SAMPLES_SCHEMA` from an earlier version.
        masks: rows of `MASKS_SCHEMA`.
        standing: it lies in the release's folder already.
    """

    location: str
    run: str
    unit: int
    shard: dict[str, Any] | None
    samples: pa.Table
    masks: pa.Table
    standing: bool


def pieces_of_run(run: RunReader, commits: list[Commit], run_id: str) -> Iterator[Piece]:
    """A run's units with a shard, in order."""
    for commit in commits:
        if commit.shard is not None:
            yield Piece(
                location=run.location, run=run_id, unit=commit.unit, shard=dict(commit.shard),
                samples=run.samples(commit), masks=run.masks(commit), standing=False,
            )  # fmt: skip


def pieces_of_release(release: ReleaseReader) -> Iterator[Piece]:
    """An earlier version's shards, in its order."""
    for commit in release.commits():
        shard = commit.shard
        if shard is not None:
            yield Piece(
                location=release.location, run=shard["run"], unit=shard["unit"],
                shard={name: shard[name] for name in ("name", "size", "sha256", "samples", "masks")},
                samples=release.released_samples(commit), masks=release.masks(commit), standing=True,
            )  # fmt: skip


def copy_shard(source: Reader, shard: dict[str, Any], target: LocalStorage) -> None:
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


def sign(storage: Reader, rows: list[dict[str, Any]]) -> list[Signature | None]:
    """The signature of each row's image; None for one without an image in its shard.

    Raises:
        SchemaError: an image that cannot be decoded.
    """
    signatures: list[Signature | None] = []
    for row in rows:
        if row["image_offset"] is None:
            signatures.append(None)
            continue
        image = storage.read_range(row["shard"], row["image_offset"], row["image_size"])
        try:
            signatures.append(signature_of_bytes(image))
        except SampleFailureError as error:
            raise SchemaError(f"{storage.location}/{row['shard']}: {row['key']}: {error}") from error
    return signatures


def copy_and_sign(location: str, shard: dict[str, Any], rows: list[dict[str, Any]], target: str, signed: bool
                  ) -> list[Signature | None]:  # fmt: skip
    """What a worker process does with a piece of a run: the copy, then the signatures of its images."""
    storage = LocalStorage(Path(target))
    copy_shard(open_storage(location), shard, storage)
    return sign(storage, rows) if signed else [None] * len(rows)


def cut_shard(storage: Reader, piece: Piece, keep: list[bool], target: LocalStorage) -> Piece | None:
    """The piece without some of its samples, written to `target`; None if none is left.

    Args:
        storage: where the whole shard lies.
        piece: to be cut.
        keep: for each of its samples.
        target: the release's folder.
    """
    rows = [row for row, kept in zip(piece.samples.to_pylist(), keep, strict=True) if kept]
    if not rows:
        return None
    with scratch_file(target) as path:
        with explained("write", path), path.open("xb") as stream:
            tar = TarWriter(stream)
            for row in rows:
                if row["image_offset"] is not None:
                    image = storage.read_range(row["shard"], row["image_offset"], row["image_size"])
                    row["image_offset"] = tar.add(f"{row['key']}.{row['ext']}", image)
                record = storage.read_range(row["shard"], row["json_offset"], row["json_size"])
                row["json_offset"] = tar.add(f"{row['key']}.json", record)
            sha256 = tar.finish()
        name = f"shards/{piece.unit:08d}-{sha256[:HASH_DIGITS]}.tar"
        place(target, path, name)
    for row in rows:
        row["shard"] = name
    samples = pa.Table.from_pylist(rows, schema=piece.samples.schema)
    masks = piece.masks.filter(pc.is_in(piece.masks.column("key"), value_set=samples.column("key").combine_chunks()))
    counts = {"samples": samples.num_rows, "masks": masks.num_rows}
    shard = {"name": name, "size": tar.size, "sha256": sha256, **counts}
    return Piece(
        location=target.location, run=piece.run, unit=piece.unit, shard=shard, samples=samples, masks=masks,
        standing=True,
    )  # fmt: skip
