"""Shards on their way into a release: copied one by one, decided on in order, cut where samples go, indexed."""

from __future__ import annotations

import collections
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from ..dataset.reader import ImagePlace
from ..dataset.release import ReleaseReader
from ..environment.process_map import process_map
from ..format.records import ReleasedRow, ReleasedShardRecord, ReleasedSource, SampleRow, ShardRecord
from ..format.release_tables import RELEASED_SAMPLES_SCHEMA
from ..format.schema import Sample
from .checks import ReleaseRefusedError
from .duplicates import Signature
from .eligibility import ReleaseBuild
from .indexed_shards import IndexedShard, copy_and_sign, cut_shard, shards_of_release, shards_of_run, sign
from .tables import MergedTables

_Judged = tuple[Sample, Counter[str]]
_ToCopy = tuple[str, ShardRecord, list[ImagePlace]]
"""Where a shard lies, the shard, and its images' places: what `copy_and_sign` begins with."""


@dataclass(frozen=True, kw_only=True)
class CopiedShards:
    """What of the version before and of the run that is added is in the release.

    Attributes:
        shards: in order.
        sources: as in `ReleaseBuild.sources`, with the number of samples, and with the licence that samples declare
            where the source itself declares none.
    """

    shards: list[ReleasedShardRecord]
    sources: list[ReleasedSource]


def select_shards(
    build: ReleaseBuild, tables: MergedTables, *, on_shard: Callable[[int], None] | None = None
) -> CopiedShards:
    """Copies what stays, in order, and feeds the index.

    Args:
        build: what to release.
        tables: get the rows.
        on_shard: called with the number of shards done.

    Raises:
        ReleaseRefusedError: nothing stays.
    """
    licenses = {label: source["license"] for label, source in build.sources.items()}
    samples: Counter[str] = Counter()
    shards: list[ReleasedShardRecord] = []
    for done, (indexed, signatures) in enumerate(_signed_shards(build), start=1):
        chosen = _chosen(build, indexed, signatures, licenses)
        if chosen is not None:
            kept, rows = chosen
            tables.add(pa.Table.from_pylist(rows, schema=RELEASED_SAMPLES_SCHEMA), kept.masks)
            samples.update(_label(row) for row in rows)
            shards.append({**kept.shard, "unit": kept.unit, "run": kept.run})
        if on_shard is not None:
            on_shard(done)
    if not shards:
        raise ReleaseRefusedError(
            "nothing is left: every image was excluded or not listed, without a mask that was kept, a duplicate, or in "
            "the release already"
        )
    sources: list[ReleasedSource] = [
        {**build.sources[label], "license": licenses[label], "samples": samples[label]}
        for label in sorted(build.sources)
    ]
    return CopiedShards(shards=shards, sources=sources)


def _signed_shards(build: ReleaseBuild) -> Iterator[tuple[IndexedShard, list[Signature | None]]]:
    """Every shard, those of the version before first, in the release's folder, with the signatures of its images."""
    standing: set[str] = set()
    if build.previous is not None:
        standing = {shard["sha256"] for shard in build.previous["shards"]}
        for indexed in shards_of_release(ReleaseReader(build.output, build.previous)):
            yield indexed, _standing_signatures(indexed, build)
    if build.added is not None:
        fresh = (indexed for indexed in shards_of_run(build.added) if indexed.shard["sha256"] not in standing)
        copy = functools.partial(_copied, target=build.output.root, signed=build.options.duplicates)
        at_work: collections.deque[IndexedShard] = collections.deque()
        for _, signatures in process_map(copy, _to_copy(fresh, at_work), workers=build.options.workers):
            yield at_work.popleft(), signatures


def _to_copy(shards: Iterable[IndexedShard], at_work: collections.deque[IndexedShard]) -> Iterator[_ToCopy]:
    """What a worker needs of each shard; the rest of it, with all its rows, waits here."""
    for indexed in shards:
        at_work.append(indexed)
        rows = indexed.samples.select(["key", "shard", "image_offset", "image_size"]).to_pylist()
        yield indexed.location, indexed.shard, rows


def _copied(given: _ToCopy, *, target: Path, signed: bool) -> list[Signature | None]:
    return copy_and_sign(*given, target, signed)


def _standing_signatures(indexed: IndexedShard, build: ReleaseBuild) -> list[Signature | None]:
    """From the index of the version before; from the images, if that version did not look for duplicates."""
    if not build.options.duplicates:
        return [None] * indexed.samples.num_rows
    rows: list[ReleasedRow] = indexed.samples.to_pylist()
    pairs = [(row["perceptual_hash"], row["colour_grid"]) for row in rows]
    known = [Signature.from_hex(bits, grid) for bits, grid in pairs if bits is not None and grid is not None]
    return [*known] if len(known) == len(rows) else sign(build.output, rows)


def _chosen(
    build: ReleaseBuild, indexed: IndexedShard, signatures: list[Signature | None], licenses: dict[str, str | None]
) -> tuple[IndexedShard, list[ReleasedRow]] | None:
    """Decides on each sample of a shard and cuts the shard if some go: what stays, with its rows; None if nothing does.

    `licenses` of the sources get those that samples alone declare.
    """
    rows: list[SampleRow] = indexed.samples.to_pylist()
    judged = _judged(build, indexed, rows)
    decisions = [
        build.selection.decide(row, signature, standing=indexed.standing, emptied=_is_emptied(judged.get(row["key"])))
        for row, signature in zip(rows, signatures, strict=True)
    ]
    keep = [decision.left is None for decision in decisions]
    samples: dict[str, Sample] = {}
    for row, decision in zip(rows, decisions, strict=True):
        found = judged.get(row["key"])
        if build.masks is not None and found is not None and decision.left in (None, "no_masks"):
            build.masks.count(found[1])
            samples[row["key"]] = found[0]
    kept: IndexedShard | None = indexed
    if not all(keep) or samples:
        kept = cut_shard(build.output, indexed, keep, samples, build.output)
        if not indexed.standing and (kept is None or kept.shard["name"] != indexed.shard["name"]):
            build.output.remove(indexed.shard["name"])
    if kept is None:
        return None
    stays = [each for each in zip(decisions, signatures, strict=True) if each[0].left is None]
    released: list[ReleasedRow] = []
    kept_rows: list[SampleRow] = kept.samples.to_pylist()
    for row, (decision, signature) in zip(kept_rows, stays, strict=True):
        label = _label(row)
        licenses[label] = licenses[label] or row["license"]
        released.append({
            **row, "run": indexed.run, "split": decision.split,
            "source_license": row["license"] or licenses[label], "source_terms": build.sources[label]["terms"],
            "perceptual_hash": None if signature is None else signature.perceptual_hash,
            "colour_grid": None if signature is None else signature.colour_grid,
        })  # fmt: skip
    return kept, released


def _judged(build: ReleaseBuild, indexed: IndexedShard, rows: list[SampleRow]) -> dict[str, _Judged]:
    """Key -> what people left of a sample, where that is not what was mined, and why masks went."""
    if build.masks is None:
        return {}
    method = build.granularity_method(indexed.run)
    found = {row["key"]: build.masks.judged(build.output, row, method, standing=indexed.standing) for row in rows}
    return {key: each for key, each in found.items() if each is not None}


def _is_emptied(judged: _Judged | None) -> bool:
    return judged is not None and not judged[0].annotations


def _label(row: SampleRow) -> str:
    """Of the source of a sample."""
    return row["source_uri"].split("/", 1)[0]
