"""Does a release hold what it says? From cold: manifest, checksums, tables, headers, samples, every number again.

Nothing but the folder is asked. The manifest is sealed by its own sha256 and names every other file; statistics,
figures, card, changelog and Croissant are made again from the index and must be the same bytes. A card of another
template (a release made by another version of Grainmill) is compared number by number.
"""

from __future__ import annotations

import difflib
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from ..dataset.failures import failure_rows
from ..dataset.release import ReleaseReader
from ..dataset.verify import VerifyTotals, seal_problem
from ..dataset.verify_unit import Problem, file_problems, sample_problems, shard_problems
from ..errors import GrainmillError
from ..format.records import (
    ReleaseManifest,
    ReleaseStatistics,
    SampleRow,
    ShardRecord,
    TableRecord,
    read_release_manifest,
)
from ..format.release_tables import DUPLICATES_SCHEMA, MANIFEST, RELEASED_SAMPLES_SCHEMA, REMOVED_SCHEMA
from ..format.schema import FAILURES_SCHEMA, FORMAT, MASKS_SCHEMA, canonical_json, load_json
from ..storage.base import Reader
from ..storage.open import open_versioned
from ..storage.versions import VersionStorage
from . import charts
from .card import card_text, changelog_text, shards_card_text, template_sha256
from .commit import sums_text
from .croissant import croissant
from .documents import as_read, count_index, statistics_json
from .draft import release_digest
from .records import CARD, CHANGELOG, CROISSANT, MACHINES, RESULT_FOLDERS, SHARDS_CARD, STATISTICS, SUMS, named_files


def release_at(location: str) -> Reader | None:
    """The folder of the release at a location; None if no release lies there, whatever else does.

    A folder with a damaged manifest counts as a release if it holds what only releases have.
    """
    storage = open_versioned(location)
    if storage.exists("plan.json") or not any(storage.exists(name) for name in (MANIFEST, SUMS, CROISSANT)):
        return None
    return storage


def verify_release(
    storage: Reader,
    *,
    deep: bool = False,
    totals: VerifyTotals | None = None,
    on_unit: Callable[[VerifyTotals], None] | None = None,
) -> Iterator[Problem]:
    """Every problem of a release, as it is found.

    Args:
        storage: its folder, or a `versions.VersionStorage` for an older version.
        deep: also decode every sample, mask and image.
        totals: counts what was checked.
        on_unit: called after each shard.
    """
    totals = VerifyTotals() if totals is None else totals
    for problem in _problems(storage, deep, totals, on_unit):
        totals.problems += 1
        yield problem


def _problems(
    storage: Reader, deep: bool, totals: VerifyTotals, on_unit: Callable[[VerifyTotals], None] | None
) -> Iterator[Problem]:
    manifest = _manifest(storage)
    if isinstance(manifest, Problem):
        yield manifest
        return
    try:
        yield from _against_manifest(storage, manifest, deep, totals, on_unit)
    except (GrainmillError, KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        message = f"cannot be followed to its end: {type(error).__name__} {error}"
        yield Problem(kind="manifest", file=MANIFEST, message=message)


def _against_manifest(
    storage: Reader,
    manifest: ReleaseManifest,
    deep: bool,
    totals: VerifyTotals,
    on_unit: Callable[[VerifyTotals], None] | None,
) -> Iterator[Problem]:
    """Every other file, each against what the manifest says."""
    bad: set[str] = set()
    shards = {shard["name"] for shard in manifest["shards"]}
    for file in named_files(manifest):
        if file["name"] in shards:
            continue
        for problem in file_problems(storage, file):
            bad.add(file["name"])
            yield problem
        totals.checked_bytes += storage.size(file["name"]) or 0
    yield from _sums(storage, manifest)
    yield from _machines(storage)
    yield from _copies_and_strays(storage, manifest)
    readable = not any(file["name"] in bad for file, _ in _tables(manifest))
    for problem in _table_problems(storage, manifest, bad):
        readable = False
        yield problem
    yield from _shards(storage, manifest, deep, readable, totals, on_unit)
    if readable:
        yield from _recomputed(storage, manifest, bad)


# ---------------------------------------------------------------------------------------------------------------------
# Manifest and files


def _manifest(storage: Reader) -> ReleaseManifest | Problem:
    """The manifest, or why it cannot be used."""
    reason: str | None
    try:
        data = storage.read_bytes(MANIFEST)
        manifest = read_release_manifest(data, where=MANIFEST)
        if manifest is None:
            reason = f"expected a release of {FORMAT}"
        elif (reason := seal_problem(manifest)) is None:
            if data == canonical_json(manifest):
                return manifest
            reason = "is not the canonical JSON that was written"
    except GrainmillError as error:
        reason = f"not a manifest: {error}"
    return Problem(kind="manifest", file=MANIFEST, message=reason)


def _sums(storage: Reader, manifest: ReleaseManifest) -> Iterator[Problem]:
    expected = sums_text(manifest, canonical_json(manifest)).decode().splitlines()
    if not storage.exists(SUMS):
        yield Problem(kind="missing", file=SUMS, message="missing")
        return
    found = storage.read_bytes(SUMS).decode(errors="replace")
    if found != "\n".join(expected) + "\n":
        lines = set(found.splitlines()) ^ set(expected)
        shown = sorted(line[66:] for line in lines)[:3]
        yield Problem(
            kind="manifest", file=SUMS, message=f"differs from the manifest, about {', '.join(shown) or 'its end'}"
        )


def _machines(storage: Reader) -> Iterator[Problem]:
    try:
        data = storage.read_bytes(MACHINES)
        record = load_json(data, where=MACHINES)
        reason = seal_problem(record)
        if reason is not None or data != canonical_json(record):
            yield Problem(
                kind="manifest", file=MACHINES, message=reason or "is not the canonical JSON that was written"
            )
    except (GrainmillError, AttributeError, ValueError) as error:
        yield Problem(kind="manifest", file=MACHINES, message=f"cannot be read: {error}")


def _copies_and_strays(storage: Reader, manifest: ReleaseManifest) -> Iterator[Problem]:
    """The copy of the manifest under its version, and files that nothing names in folders that are read by pattern."""
    if not isinstance(storage, VersionStorage):  # the newest version
        copy = f"versions/{manifest['version']}/{MANIFEST}"
        if not storage.exists(copy) or storage.read_bytes(copy) != storage.read_bytes(MANIFEST):
            yield Problem(kind="manifest", file=copy, message=f"missing, or not equal to {MANIFEST}")
        named = {file["name"] for file in named_files(manifest)}
        for folder in RESULT_FOLDERS:
            for name in storage.list(folder):
                if f"{folder}/{name}" not in named:
                    message = "is not part of the release, but lies where loaders look for all files"
                    yield Problem(kind="manifest", file=f"{folder}/{name}", message=message)


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def _tables(manifest: ReleaseManifest) -> list[tuple[TableRecord, pa.Schema]]:
    """Every table with its columns."""
    tables = [(manifest["index"]["samples"], RELEASED_SAMPLES_SCHEMA), (manifest["index"]["masks"], MASKS_SCHEMA)]
    for split in manifest["splits"]["files"].values():
        tables += [(split["samples"], RELEASED_SAMPLES_SCHEMA), (split["masks"], MASKS_SCHEMA)]
    for file, schema in (
        (manifest["failures_table"], FAILURES_SCHEMA),
        (manifest["removed_table"], REMOVED_SCHEMA),
        (manifest["duplicates"]["table"], DUPLICATES_SCHEMA),
    ):
        tables += [] if file is None else [(file, schema)]
    return tables


def _table_problems(storage: Reader, manifest: ReleaseManifest, bad: set[str]) -> Iterator[Problem]:
    """Columns and numbers of rows of every table that is what it was."""
    for file, schema in _tables(manifest):
        if file["name"] in bad:
            continue
        try:
            found = pq.ParquetFile(io.BytesIO(storage.read_bytes(file["name"])), pre_buffer=False)
            if not found.schema_arrow.equals(schema):
                yield Problem(kind="index", file=file["name"], message="its columns are not the format's")
            elif found.metadata.num_rows != file["rows"]:
                message = f"expected {file['rows']} rows, found {found.metadata.num_rows}"
                yield Problem(kind="count", file=file["name"], message=message)
        except (OSError, ValueError) as error:  # pyarrow's errors derive from these
            yield Problem(kind="index", file=file["name"], message=f"not readable parquet: {error}")
    index, shards = manifest["index"], manifest["shards"]
    for name, count, said, rows in (
        ("samples", sum(each["samples"] for each in shards), manifest["samples"], index["samples"]["rows"]),
        ("masks", sum(each["masks"] for each in shards), manifest["masks"], index["masks"]["rows"]),
    ):
        if not count == said == rows:
            message = f"{name}: the shards hold {count}, it says {said}, the index has rows {rows}"
            yield Problem(kind="count", file=MANIFEST, message=message)


# ---------------------------------------------------------------------------------------------------------------------
# Shards


def _shards(
    storage: Reader,
    manifest: ReleaseManifest,
    deep: bool,
    readable: bool,
    totals: VerifyTotals,
    on_unit: Callable[[VerifyTotals], None] | None,
) -> Iterator[Problem]:
    released = ReleaseReader(storage, manifest)
    keys: Counter[str] = Counter()
    for unit in released.units():
        shard = unit.shard
        if shard is None:
            continue
        problems = list(file_problems(storage, shard))
        yield from problems
        size = storage.size(shard["name"])
        totals.units += 1
        totals.checked_bytes += size or 0
        if readable:
            table = released.samples(unit)
            rows = table.to_pylist()
            totals.samples += len(rows)
            totals.masks += shard["masks"]
            keys.update(table.column("key").to_pylist())
            if size is not None and (deep or problems):
                yield from _inside(storage, shard, rows, released.masks(unit), deep)
        if on_unit is not None:
            on_unit(totals)
    for key, count in keys.items():
        if count > 1:
            yield Problem(
                kind="count", file=manifest["index"]["samples"]["name"], key=key, message=f"appears {count} times"
            )


def _inside(
    storage: Reader, shard: ShardRecord, rows: list[SampleRow], masks: pa.Table, deep: bool
) -> Iterator[Problem]:
    """Headers, padding and members of one shard; with `deep` every sample too."""
    try:
        found = list(shard_problems(storage, shard, rows))
        yield from found
        if deep and not any(problem.kind == "index" for problem in found):
            yield from sample_problems(storage, rows, masks)
    except GrainmillError as error:
        yield Problem(kind="bytes", file=shard["name"], message=str(error))


# ---------------------------------------------------------------------------------------------------------------------
# Every number again


def _recomputed(storage: Reader, manifest: ReleaseManifest, bad: set[str]) -> Iterator[Problem]:
    """Digest, counts, statistics, figures, card, changelog and Croissant, from index and shards' records."""
    released = ReleaseReader(storage, manifest)
    counted = count_index(released)
    failures = list(failure_rows(released))
    expected_values: dict[str, object] = {
        "digest": release_digest(manifest["shards"], failures),
        "samples": counted.samples,
        "masks": counted.masks,
        "failures": len(failures),
        "failure_reasons": dict(sorted(Counter(row["reason"] for row in failures).items())),
    }
    for name, value in manifest.items():
        if name in expected_values and value != expected_values[name]:
            message = f"{name} is {value!r:.120}, shards and index give {expected_values[name]!r:.120}"
            yield Problem(kind="manifest", file=MANIFEST, message=message)
    yield from _counted_sources(released, manifest)
    statistics = as_read(statistics_json(counted, manifest))
    expected: dict[str, bytes] = {STATISTICS: canonical_json(statistics)}
    expected |= {f"figures/{name}.svg": text.encode() for name, text in charts.charts(statistics).items()}
    expected[CHANGELOG] = changelog_text(manifest).encode()
    expected[SHARDS_CARD] = shards_card_text(manifest).encode()
    expected[CROISSANT] = (json.dumps(croissant(manifest), ensure_ascii=False, indent=2) + "\n").encode()
    for name, data in expected.items():
        if name not in bad and storage.exists(name) and storage.read_bytes(name) != data:
            yield Problem(kind="manifest", file=name, message=_difference(storage.read_bytes(name), data))
    if CARD not in bad and storage.exists(CARD):
        yield from card_problems(storage.read_bytes(CARD).decode(errors="replace"), manifest, statistics)


def _counted_sources(released: ReleaseReader, manifest: ReleaseManifest) -> Iterator[Problem]:
    sources: Counter[str] = Counter()
    splits: Counter[str | None] = Counter()
    for unit in released.units():
        table = released.released_samples(unit)
        sources.update(uri.split("/", 1)[0] for uri in table.column("source_uri").to_pylist())
        splits.update(table.column("split").to_pylist())
    for source in manifest["sources"]:
        if source["samples"] != sources[source["label"]]:
            message = f"source {source['label']} has {source['samples']} images, the index {sources[source['label']]}"
            yield Problem(kind="manifest", file=MANIFEST, message=message)
    for split, count in manifest["splits"]["counts"].items():
        if count != splits[split]:
            message = f"split {split} has {count} images, the index {splits[split]}"
            yield Problem(kind="manifest", file=MANIFEST, message=message)


def card_problems(text: str, manifest: ReleaseManifest, statistics: ReleaseStatistics) -> Iterator[Problem]:
    """The card against the one that manifest and statistics give."""
    expected = card_text(manifest, statistics)
    if text == expected:
        return
    if manifest["card"]["template_sha256"] == template_sha256():
        yield Problem(kind="manifest", file=CARD, message=_difference(text.encode(), expected.encode()))
        return
    known = set(_numbers(expected))
    for number, line in enumerate(text.splitlines(), start=1):
        wrong = [each for each in _numbers(line) if each not in known]
        if wrong:
            message = f"line {number} says {', '.join(wrong)}, which nothing in the release gives"
            yield Problem(kind="manifest", file=CARD, message=message)


def _numbers(text: str) -> list[str]:
    """Numbers of two digits or more, as printed."""
    return re.findall(r"(?<![\w.])\d[\d,]*\.?\d+(?![\w])", text)


def _difference(found: bytes, expected: bytes) -> str:
    """The first line that is not as recomputed."""
    ours, theirs = expected.decode(errors="replace").splitlines(), found.decode(errors="replace").splitlines()
    for line in difflib.unified_diff(ours, theirs, lineterm="", n=0):
        if line[:1] in "+-" and line[:3] not in ("+++", "---"):
            added = f"says {line[1:]!r:.160}, which recomputing does not give"
            return added if line[0] == "+" else f"lacks {line[1:]!r:.160}"
    return "its line ends differ from what was written"
