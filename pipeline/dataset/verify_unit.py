"""Does one unit hold, byte for byte, what its commit says? `verify.py` asks it of every unit of a run.

Without `deep`: every file has its size and sha256, and its rows are as many as the commit says. In a shard that has
another sha256 the bad bytes are found: headers and padding can be predicted, each member's hash stands in the index.
With `deep`: every sample is parsed and checked down to its pixels, every image is decoded, and every row of the index
is compared with what the tar holds.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..errors import GrainmillError, SampleFailureError
from ..format.records import FileRecord, MaskRow, SampleRow, ShardRecord, TableRecord
from ..format.schema import (
    FAILURES_SCHEMA,
    MASKS_SCHEMA,
    SAMPLES_SCHEMA,
    MemberLocation,
    Sample,
    mask_rows,
    sample_from_json,
    sample_row,
    validate_sample,
)
from ..shards.commits import Commit
from ..shards.tar import BLOCK, RECORD, ustar_header
from ..sources.images import MAX_STORED_PIXELS, decode_image
from ..storage.base import Reader
from ..storage.parquet import parquet_table

CHUNK_BYTES: Final = 8 * 2**20

DIGEST_COLUMNS: Final = ["key", "source_uri", "member", "stage", "reason"]
"""Of a failure row, what the digest of a run covers."""

ProblemKind = Literal[
    "missing", "size", "sha256", "bytes", "count", "index", "sample", "image", "commit", "plan", "manifest"
]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that is not as a commit, the plan or the manifest says.

    Attributes:
        kind: what was compared.
        file: relative to the run's directory.
        message: what was expected and found.
        key: the sample, where it is known.
        start: first bad byte of `file`, or None for the whole file.
        end: one past the last bad byte.
    """

    kind: ProblemKind
    file: str
    message: str
    key: str | None = None
    start: int | None = None
    end: int | None = None

    def __str__(self) -> str:
        where = self.file
        if self.start is not None:
            where += f" bytes {self.start} to {self.end}"
        return f"{where}{'' if self.key is None else f', {self.key}'}: {self.message}"


@dataclass(kw_only=True)
class UnitReport:
    """What the check of one unit found."""

    unit: int
    problems: list[Problem] = field(default_factory=list)
    samples: int = 0
    masks: int = 0
    checked_bytes: int = 0
    sample_keys: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, dtype=np.uint64))
    """64 bits of each key, to find keys that two units hold."""
    failure_keys: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, dtype=np.uint64))
    failures: list[list[str | None]] = field(default_factory=list)
    """`DIGEST_COLUMNS` of each failure row that could be read."""


# ---------------------------------------------------------------------------------------------------------------------
# One unit


def verify_unit(storage: Reader, commit: Commit, *, config_hash: str, deep: bool) -> UnitReport:
    """Checks the files of one commit. Never raises for what the run holds: everything becomes a `Problem`.

    Args:
        storage: the run's directory.
        commit: the record to check against.
        config_hash: the plan's.
        deep: decode every sample and image as well.
    """
    report = UnitReport(unit=commit.unit)
    report.problems += _commit_problems(commit, config_hash)
    if report.problems:
        return report
    shard, index, failed = commit.shard, commit.record["index"], commit.record["failures"]
    samples = masks = None
    if index is not None:
        samples = _read_table(storage, index["samples"], SAMPLES_SCHEMA, report)
        masks = _read_table(storage, index["masks"], MASKS_SCHEMA, report)
    if failed is not None:
        failures = _read_table(storage, failed, FAILURES_SCHEMA, report)
        if failures is not None:
            report.failure_keys = key_numbers(failures)
            report.failures = [list(row.values()) for row in failures.select(DIGEST_COLUMNS).to_pylist()]
            _compare_reasons(commit, failed["name"], failures, report)
    if shard is None or index is None:
        return report
    intact = _check_file(storage, shard, report)
    if samples is None:
        return report
    report.samples, report.sample_keys = samples.num_rows, key_numbers(samples)
    report.masks = 0 if masks is None else masks.num_rows
    _compare_counts(shard, samples, masks, f"commits/{commit.unit:08d}.json", index["masks"]["name"], report)
    if intact is not None and (deep or not intact):
        report.problems += list(shard_problems(storage, shard, samples.to_pylist()))
    if deep and intact is not None:
        report.problems += list(sample_problems(storage, samples.to_pylist(), masks))
    return report


def _commit_problems(commit: Commit, config_hash: str) -> Iterator[Problem]:
    """The record itself: numbers, names, and what it says twice; `read_commit` has checked its fields."""
    file, config = f"commits/{commit.unit:08d}.json", commit.record["config_hash"]
    said = [commit.samples, commit.masks, commit.failures, *commit.reasons.values(), *commit.seconds.values()]
    paired = (commit.shard is None) == (commit.record["index"] is None)
    if any(number < 0 for number in said) or not paired:
        yield Problem(kind="commit", file=file, message="not a commit record: a count or the index is wrong")
    if config != config_hash:
        yield Problem(
            kind="commit", file=file, message=f"made with configuration {config!r:.80}, the plan has {config_hash}"
        )
    if sum(commit.reasons.values()) != commit.failures:
        yield Problem(kind="commit", file=file, message="its failures by reason do not sum to its failure rows")
    for each in commit.files():
        name, size, sha256 = each["name"], each["size"], each["sha256"]
        pattern = rf"(shards/|index/samples-|index/masks-|failures/){commit.unit:08d}-([0-9a-f]{{8}})\.(tar|parquet)"
        match = re.fullmatch(pattern, name)
        if match is None or not sha256.startswith(match[2]) or len(sha256) != 64:
            yield Problem(
                kind="commit", file=file, message=f"names {name!r:.100} with sha256 {sha256!r:.80}: they do not fit"
            )
        elif size < 0:
            yield Problem(kind="commit", file=file, message=f"gives {name} the size {size!r:.40}")


def file_problems(storage: Reader, file: FileRecord) -> Iterator[Problem]:
    """Presence, size and sha256 of one file."""
    name, expected = file["name"], file["size"]
    size = storage.size(name)
    if size is None:
        yield Problem(kind="missing", file=name, message=f"missing, expected {expected} bytes")
        return
    if size != expected:
        low, high = sorted((size, expected))
        yield Problem(kind="size", file=name, start=low, end=high, message=f"expected {expected} bytes, found {size}")
    digest = hashlib.sha256()
    try:
        for start in range(0, size, CHUNK_BYTES):
            digest.update(storage.read_range(name, start, min(CHUNK_BYTES, size - start)))
    except GrainmillError as error:
        yield Problem(kind="missing", file=name, message=f"cannot be read: {error}")
        return
    if digest.hexdigest() != file["sha256"]:
        message = f"sha256 is {digest.hexdigest()}, expected {file['sha256']}"
        yield Problem(kind="sha256", file=name, start=0, end=size, message=message)


def _check_file(storage: Reader, file: FileRecord, report: UnitReport) -> bool | None:
    """Size and sha256 of one file: True if both hold, False if not, None if it cannot be read."""
    found = list(file_problems(storage, file))
    report.problems += found
    if any(each.kind == "missing" for each in found):
        return None
    report.checked_bytes += file["size"]
    return not found


def _read_table(storage: Reader, file: TableRecord, schema: pa.Schema, report: UnitReport) -> pa.Table | None:
    """A parquet file of the run, None (with the problem noted) if it is not what was committed."""
    if not _check_file(storage, file, report):
        return None
    try:
        table = parquet_table(storage.read_bytes(file["name"]))
    except (OSError, ValueError) as error:  # pyarrow's errors derive from these
        report.problems.append(Problem(kind="index", file=file["name"], message=f"not readable parquet: {error}"))
        return None
    if not table.schema.equals(schema):
        report.problems.append(Problem(kind="index", file=file["name"], message="its columns are not the format's"))
        return None
    if table.num_rows != file["rows"]:
        message = f"expected {file['rows']} rows, found {table.num_rows}"
        report.problems.append(Problem(kind="count", file=file["name"], message=message))
    return table


def _compare_counts(
    shard: ShardRecord, samples: pa.Table, masks: pa.Table | None, file: str, masks_file: str, report: UnitReport
) -> None:
    masks_count = int(samples.column("num_masks").to_numpy().sum())
    counts = (("samples", shard["samples"], samples.num_rows), ("masks", shard["masks"], masks_count))
    for name, expected, found in counts:
        if expected != found:
            message = f"says {expected} {name}, the index has {found}"
            report.problems.append(Problem(kind="count", file=file, message=message))
    if masks is not None and masks.num_rows != masks_count:
        message = f"has {masks.num_rows} masks, the samples' rows say {masks_count}"
        report.problems.append(Problem(kind="count", file=masks_file, message=message))


def _compare_reasons(commit: Commit, file: str, failures: pa.Table, report: UnitReport) -> None:
    found = dict(sorted(Counter(failures.column("reason").to_pylist()).items()))
    if found != commit.reasons:
        message = f"has the reasons {found}, the commit says {commit.reasons}"
        report.problems.append(Problem(kind="count", file=file, message=message))


# ---------------------------------------------------------------------------------------------------------------------
# One shard


def shard_problems(storage: Reader, shard: ShardRecord, rows: list[SampleRow]) -> Iterator[Problem]:
    """Walks a shard beside its index rows and names every range of bytes that is not as it must be.

    Headers, padding and the end are known; the data of a member has its sha256 in the index. So each byte is covered.

    Args:
        storage: where `shard["name"]` lies.
        shard: with its expected size.
        rows: all rows of `SAMPLES_SCHEMA` of this shard, in order.
    """
    name, position = shard["name"], 0
    size = storage.size(name) or 0
    for row in rows:
        if row["shard"] != name:
            yield Problem(kind="index", file=name, key=row["key"], message=f"its index row names {row['shard']}")
            return
        members = [(f"{row['key']}.json", row["json_offset"], row["json_size"], row["json_sha256"])]
        if row["image_offset"] is not None and row["image_size"] is not None:
            image = (f"{row['key']}.{row['ext']}", row["image_offset"], row["image_size"], row["source_sha256"])
            members.insert(0, image)
        for member, offset, length, sha256 in members:
            if offset != position + BLOCK:
                message = f"the index puts {member} at {offset}, the members before it end at {position}"
                yield Problem(kind="index", file=name, key=row["key"], message=message)
                return
            end = offset + length + -length % BLOCK
            if end > size:
                message = f"the shard ends inside {member}"
                yield Problem(kind="bytes", file=name, key=row["key"], start=size, end=end, message=message)
                return
            data = storage.read_range(name, position, end - position)
            yield from _member_problems(name, row["key"], member, position, data, length, sha256)
            position = end
    tail_size = min(size, shard["size"]) - position
    expected = 2 * BLOCK + -(position + 2 * BLOCK) % RECORD
    if size != position + expected:
        message = f"expected {expected} bytes of zeros after the last member, found {size - position} bytes"
        yield Problem(kind="bytes", file=name, start=position, end=size, message=message)
    elif any(tail := storage.read_range(name, position, tail_size)):
        start, end = _differing(tail, bytes(len(tail)))
        message = "expected zeros after the last member"
        yield Problem(kind="bytes", file=name, start=position + start, end=position + end, message=message)


def _member_problems(
    file: str, key: str, member: str, start: int, data: bytes, length: int, sha256: str
) -> Iterator[Problem]:
    header, content, padding = data[:BLOCK], data[BLOCK : BLOCK + length], data[BLOCK + length :]
    expected = ustar_header(member, length)
    if header != expected:
        low, high = _differing(header, expected)
        message = f"the tar header of {member} is not the one its name and size give"
        yield Problem(kind="bytes", file=file, key=key, start=start + low, end=start + high, message=message)
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        low = start + BLOCK
        message = f"{member} has sha256 {found}, the index says {sha256}"
        yield Problem(kind="bytes", file=file, key=key, start=low, end=low + length, message=message)
    if any(padding):
        low, high = _differing(padding, bytes(len(padding)))
        low, high = start + BLOCK + length + low, start + BLOCK + length + high
        yield Problem(kind="bytes", file=file, key=key, start=low, end=high, message=f"expected zeros after {member}")


def _differing(found: bytes, expected: bytes) -> tuple[int, int]:
    """The range from the first to one past the last byte that differs, of two equally long strings."""
    unlike = np.flatnonzero(np.frombuffer(found, np.uint8) != np.frombuffer(expected, np.uint8))
    return int(unlike[0]), int(unlike[-1]) + 1


def sample_problems(storage: Reader, rows: list[SampleRow], masks: pa.Table | None) -> Iterator[Problem]:
    """Parses, validates and decodes each sample and compares it with its rows of the index."""
    listed: dict[str, list[MaskRow]] = {}
    for mask in [] if masks is None else masks.to_pylist():
        listed.setdefault(mask["key"], []).append(mask)
    for row in rows:
        shard, key = row["shard"], row["key"]
        start, end = row["json_offset"], row["json_offset"] + row["json_size"]
        try:
            sample = sample_from_json(storage.read_range(shard, start, row["json_size"]), where=f"{shard}: {key}")
            validate_sample(sample, where=f"{shard}: {key}")
        except GrainmillError as error:
            yield Problem(kind="sample", file=shard, key=key, start=start, end=end, message=str(error))
            continue
        location = MemberLocation(
            shard=shard, image_offset=row["image_offset"], image_size=row["image_size"], json_offset=start,
            json_size=row["json_size"], json_sha256=row["json_sha256"],
        )  # fmt: skip
        found = {**row}
        wrong = sorted(name for name, value in sample_row(sample, location).items() if value != found[name])
        if wrong:
            message = f"its index row differs from the sample in {', '.join(wrong)}"
            yield Problem(kind="index", file=shard, key=key, start=start, end=end, message=message)
        if masks is not None and listed.get(key, []) != mask_rows(sample):
            message = "its rows in the masks' index differ from the sample"
            yield Problem(kind="index", file=shard, key=key, start=start, end=end, message=message)
        if row["image_offset"] is not None and row["image_size"] is not None:
            yield from _image_problems(storage, row, row["image_offset"], row["image_size"], sample)


def _image_problems(storage: Reader, row: SampleRow, start: int, size: int, sample: Sample) -> Iterator[Problem]:
    problem = functools.partial(Problem, kind="image", file=row["shard"], key=row["key"], start=start, end=start + size)
    try:
        data = storage.read_range(row["shard"], start, size)
        header, rgb = decode_image(data, max_pixels=MAX_STORED_PIXELS)
    except (SampleFailureError, GrainmillError) as error:
        yield problem(message=f"cannot be decoded: {error}")
        return
    if (shape := rgb.shape[:2]) != (sample.height, sample.width):
        yield problem(message=f"decodes to {shape}, the sample says {(sample.height, sample.width)}")
    if (header.ext, header.exif_orientation) != (row["ext"], sample.exif_orientation):
        found = f"{header.ext} with EXIF orientation {header.exif_orientation}"
        yield problem(message=f"is {found}, the sample says {row['ext']} with {sample.exif_orientation}")
    if sample.file_name != f"{sample.key}.{row['ext']}":
        yield problem(message=f"the sample names its image {sample.file_name!r}")


def key_numbers(table: pa.Table) -> NDArray[np.uint64]:
    """64 bits of each key: equal for equal keys; different ones meet once in 10^19 pairs."""
    keys = (hashlib.sha256(key.encode()).digest()[:8] for key in table.column("key").to_pylist())
    return np.frombuffer(b"".join(keys), dtype=np.uint64)
