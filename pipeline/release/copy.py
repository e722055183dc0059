"""Shards on their way into a release: copied piece by piece, decided on in order, cut where samples go, indexed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, Final

import pyarrow as pa

from ..dataset.release import ReleaseReader
from ..dataset.run import RunReader
from ..format.release_tables import RELEASED_SAMPLES_SCHEMA
from ..shards.commits import Commit
from ..storage.local import LocalStorage
from .checks import ReleaseRefusedError
from .duplicates import Signature
from .records import ReleaseOptions
from .selection import Selection
from .shard_parts import Piece, copy_and_sign, cut_shard, pieces_of_release, pieces_of_run, sign
from .tables import MergedTables

PIECES_AHEAD: Final = 4
"""Pieces in flight for each worker process."""


def select_shards(
    run: RunReader | None,
    commits: list[Commit],
    entry: dict[str, Any] | None,
    previous: dict[str, Any] | None,
    output: LocalStorage,
    selection: Selection,
    known: dict[str, dict[str, Any]],
    tables: MergedTables,
    on_piece: Callable[[int], None] | None,
) -> list[dict[str, Any]]:
    """Copies what stays, in order, and feeds the index. Returns the shards of the manifest."""
    standing = set() if previous is None else {shard["sha256"] for shard in previous["shards"]}
    shards, done = [], 0
    before = iter(()) if previous is None else pieces_of_release(ReleaseReader(output, previous))
    for piece in before:
        kept = _decided(piece, _standing_signatures(piece, output, selection), selection, output, known, tables)
        shards += kept
        done += 1
        if on_piece is not None:
            on_piece(done)
    if run is not None and entry is not None:
        fresh = (p for p in pieces_of_run(run, commits, entry["id"]) if p.shard and p.shard["sha256"] not in standing)
        for piece, signatures in _copied(fresh, output, selection.options):
            shards += _decided(piece, signatures, selection, output, known, tables)
            done += 1
            if on_piece is not None:
                on_piece(done)
    if not shards:
        raise ReleaseRefusedError("nothing is left: every image was excluded, a duplicate, or in the release already")
    return shards


def _standing_signatures(piece: Piece, output: LocalStorage, selection: Selection) -> list[Signature | None]:
    """From the index of the version before; from the images, if that version did not look for duplicates."""
    if not selection.options.duplicates:
        return [None] * piece.samples.num_rows
    rows = piece.samples.to_pylist()
    if all(row["perceptual_hash"] is not None for row in rows):
        return [Signature.from_hex(row["perceptual_hash"], row["colour_grid"]) for row in rows]
    return sign(output, rows)


def _copied(
    pieces: Iterator[Piece], output: LocalStorage, options: ReleaseOptions
) -> Iterator[tuple[Piece, list[Signature | None]]]:
    """Pieces of a run, in order, each copied into the release, with the signatures of its images."""
    columns = ["key", "shard", "image_offset", "image_size"]
    target = str(output.root)
    if options.workers <= 1:
        for piece in pieces:
            assert piece.shard is not None
            rows = piece.samples.select(columns).to_pylist()
            yield piece, copy_and_sign(piece.location, piece.shard, rows, target, options.duplicates)
        return
    waiting: deque[tuple[Piece, Future[list[Signature | None]]]] = deque()
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        for piece in pieces:
            assert piece.shard is not None
            rows = piece.samples.select(columns).to_pylist()
            future = pool.submit(copy_and_sign, piece.location, piece.shard, rows, target, options.duplicates)
            waiting.append((piece, future))
            if len(waiting) >= options.workers * PIECES_AHEAD:
                first, result = waiting.popleft()
                yield first, result.result()
        while waiting:
            first, result = waiting.popleft()
            yield first, result.result()


def _decided(
    piece: Piece,
    signatures: list[Signature | None],
    selection: Selection,
    output: LocalStorage,
    known: dict[str, dict[str, Any]],
    tables: MergedTables,
) -> list[dict[str, Any]]:
    """Decides on each sample of a piece, cuts the shard if some go, and indexes what stays."""
    rows = piece.samples.to_pylist()
    decisions = [
        selection.decide(row, signature, standing=piece.standing)
        for row, signature in zip(rows, signatures, strict=True)
    ]
    keep = [decision.left is None for decision in decisions]
    added = [
        _added_columns(row, piece.run, decision.split, signature, known)
        for row, decision, signature in zip(rows, decisions, signatures, strict=True)
        if decision.left is None
    ]
    final: Piece | None = piece
    if not all(keep):
        final = cut_shard(output, piece, keep, output)
        assert piece.shard is not None
        if not piece.standing and (final is None or final.shard is None or final.shard["name"] != piece.shard["name"]):
            output.remove(piece.shard["name"])
    if final is None:
        return []
    kept_rows = [{**row, **columns} for row, columns in zip(final.samples.to_pylist(), added, strict=True)]
    tables.add(pa.Table.from_pylist(kept_rows, schema=RELEASED_SAMPLES_SCHEMA), final.masks)
    assert final.shard is not None
    return [{**final.shard, "unit": final.unit, "run": final.run}]


def _added_columns(
    row: dict[str, Any], run: str, split: str | None, signature: Signature | None, known: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    source = known[row["source_uri"].split("/", 1)[0]]
    source["samples"] += 1
    if row["license"] is not None and source["license"] is None:  # declared by the samples alone
        source["license"] = row["license"]
    return {
        "run": run,
        "split": split,
        "source_license": row["license"] or source["license"],
        "source_terms": source["terms"],
        "perceptual_hash": None if signature is None else signature.perceptual_hash,
        "colour_grid": None if signature is None else signature.colour_grid,
    }
