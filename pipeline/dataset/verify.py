"""Does a run hold what its plan, its commits and its manifest say?

Units are checked one by one (`verify_unit.py`), in this process or in several; then the plan's tables, the manifest,
and keys over all units. Memory holds eight bytes for each sample and a few units at a time. Files that no commit names
are not errors: they are what an attempt left that was overtaken or is still at work; `stray_files` lists them.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..errors import GrainmillError, SchemaError
from ..format.schema import FORMAT, SEAL, canonical_json, dataset_digest, load_json, sealed
from ..labeling.config import config_hash
from ..shards.commits import Commit, read_commit
from ..storage.base import Reader
from ..storage.open import open_storage
from ..storage.parquet import parquet_table
from .open import open_dataset
from .run import RunReader
from .verify_unit import CHUNK_BYTES, Problem, UnitReport, key_numbers, verify_unit

_COMMIT_FIELDS: Final = {"shard", "index", "failures", "seconds", "config_hash", "attempt"}
UNITS_AHEAD: Final = 4
"""Units in flight for each worker process."""


@dataclass(kw_only=True)
class VerifyTotals:
    """What was looked at; filled while `verify_run` goes on."""

    units: int = 0
    samples: int = 0
    masks: int = 0
    checked_bytes: int = 0
    problems: int = 0
    shards: list[list[Any]] = field(default_factory=list)
    """[unit, sha256, samples, masks] of each shard, as in the manifest's digest."""
    shard_files: dict[int, tuple[str, int]] = field(default_factory=dict)
    """Unit -> name and size of its shard."""
    failures: list[list[str | None]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)


def verify_run(
    run: RunReader,
    *,
    deep: bool = False,
    workers: int = 1,
    totals: VerifyTotals | None = None,
    on_unit: Callable[[VerifyTotals], None] | None = None,
) -> Iterator[Problem]:
    """Every problem of a run, as it is found.

    Args:
        run: to be checked; may be at work, its uncommitted units are not looked at.
        deep: decode every sample and image too.
        workers: processes; 1 checks in this one.
        totals: counts what was checked.
        on_unit: called after each unit.
    """
    totals = VerifyTotals() if totals is None else totals
    sample_keys: list[NDArray[np.uint64]] = []
    failure_keys: list[NDArray[np.uint64]] = []

    def counted(problems: Iterator[Problem]) -> Iterator[Problem]:
        for problem in problems:
            totals.problems += 1
            yield problem

    yield from counted(plan_problems(run))
    damaged: list[Problem] = []
    for report in _unit_reports(run, readable_commits(run.storage, damaged), deep=deep, workers=workers, totals=totals):
        totals.units += 1
        totals.samples += report.samples
        totals.masks += report.masks
        totals.checked_bytes += report.checked_bytes
        totals.failures += report.failures
        sample_keys.append(report.sample_keys)
        failure_keys.append(report.failure_keys)
        yield from counted(iter(report.problems))
        if on_unit is not None:
            on_unit(totals)
    yield from counted(iter(damaged))
    if totals.problems == 0:  # they read the index again
        yield from counted(repeated_key_problems(run, _joined(sample_keys), _joined(failure_keys)))
    yield from counted(manifest_problems(run, totals))


def open_damaged(directory: str) -> RunReader | Problem:
    """The run in a directory, or what is wrong with its plan.

    Raises:
        InputError: no run lies there at all.
    """
    try:
        return open_dataset(directory)
    except SchemaError as error:
        return Problem(kind="plan", file="plan.json", message=str(error))
    except (KeyError, TypeError, AttributeError) as error:
        return Problem(kind="plan", file="plan.json", message=f"not a plan: {type(error).__name__} {error}")


def _unit_reports(
    run: RunReader, commits: Iterator[Commit], *, deep: bool, workers: int, totals: VerifyTotals
) -> Iterator[UnitReport]:
    """A report for each commit, in order, with a bounded number of units in flight."""

    def listed() -> Iterator[Commit]:
        for commit in commits:
            shard = commit.record.get("shard")
            if shard is not None:
                totals.shards.append([commit.unit, *(shard.get(name) for name in ("sha256", "samples", "masks"))])
                totals.shard_files[commit.unit] = (shard.get("name"), shard.get("size"))
            totals.reasons.update(commit.reasons)
            yield commit

    expected = run.plan.get("config_hash")
    if workers <= 1:
        for commit in listed():
            yield verify_unit(run.storage, commit, config_hash=expected, deep=deep)
        return
    location = run.location
    waiting: list[Future[UnitReport]] = []
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        source = listed()
        while True:
            for commit in itertools.islice(source, workers * UNITS_AHEAD - len(waiting)):
                waiting.append(pool.submit(_verify_elsewhere, location, commit, expected, deep))
            if not waiting:
                return
            yield waiting.pop(0).result()


def _verify_elsewhere(location: str, commit: Commit, config_hash: str | None, deep: bool) -> UnitReport:
    return verify_unit(open_storage(location), commit, config_hash=config_hash, deep=deep)


# ---------------------------------------------------------------------------------------------------------------------
# Commits


def readable_commits(storage: Reader, damaged: list[Problem]) -> Iterator[Commit]:
    """The commit that decides each unit, as `CommitLog` sees it, but going on past damaged records.

    Args:
        storage: the run's directory.
        damaged: gets a problem for each record that cannot be read.
    """
    names = storage.list("commits")
    decided: set[int] = set()
    for name in names:
        if re.fullmatch(r"compact-\d{8}\.parquet", name):
            yield from _compacted_commits(storage, f"commits/{name}", decided, damaged)
    for name in names:
        match = re.fullmatch(r"(\d{8,})\.json", name)
        if match is None or int(match[1]) in decided:
            continue
        commit = _parsed(storage.read_bytes(f"commits/{name}"), f"commits/{name}", int(match[1]), damaged)
        if commit is not None:
            yield commit


def _compacted_commits(storage: Reader, file: str, decided: set[int], damaged: list[Problem]) -> Iterator[Commit]:
    try:
        table = parquet_table(storage.read_bytes(file), columns=["unit", "record"])
        rows = list(zip(table.column("unit").to_pylist(), table.column("record").to_pylist(), strict=True))
    except (OSError, ValueError, KeyError) as error:  # pyarrow's errors derive from these
        damaged.append(Problem(kind="commit", file=file, message=f"not readable parquet: {error}"))
        return
    for unit, record in rows:
        if unit not in decided:
            decided.add(unit)
            commit = _parsed(record, file, unit, damaged)
            if commit is not None:
                yield commit


def _parsed(data: bytes, file: str, unit: int, damaged: list[Problem]) -> Commit | None:
    try:
        commit = read_commit(data, where=file)
    except SchemaError as error:
        damaged.append(Problem(kind="commit", file=file, message=str(error)))
        return None
    if commit.unit != unit:
        damaged.append(Problem(kind="commit", file=file, message=f"is the commit of unit {commit.unit}, not of {unit}"))
    elif missing := _COMMIT_FIELDS - set(commit.record):
        damaged.append(Problem(kind="commit", file=file, message=f"lacks the fields {sorted(missing)}"))
    elif commit.to_bytes() != data:
        damaged.append(Problem(kind="commit", file=file, message="is not the canonical JSON that was written"))
    elif (reason := seal_problem(commit.record)) is not None:
        damaged.append(Problem(kind="commit", file=file, message=reason))
    else:
        return commit
    return None


def seal_problem(record: dict[str, Any]) -> str | None:
    """What is wrong with a record's seal (`schema.sealed`); None if it holds."""
    expected = sealed(record)[SEAL]
    if record.get(SEAL) == expected:
        return None
    return f"its content has {SEAL} {expected}, it says {record.get(SEAL)!r:.80}"


def stray_files(run: RunReader) -> list[str]:
    """Files in the folders of results that no commit names: harmless, and swept by the next run."""
    named = {file["name"] for commit in readable_commits(run.storage, []) for file in commit.files()}
    return [
        f"{folder}/{name}"
        for folder in ("shards", "index", "failures")
        for name in run.storage.list(folder)
        if f"{folder}/{name}" not in named
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Plan, manifest, keys


def plan_problems(run: RunReader) -> Iterator[Problem]:
    """The plan against its own hash, and the unit tables against the plan."""
    try:
        yield from _plan_against_itself(run)
    except (GrainmillError, KeyError, TypeError, ValueError, AttributeError) as error:
        yield Problem(kind="plan", file="plan.json", message=f"not a plan: {type(error).__name__} {error}")


def _plan_against_itself(run: RunReader) -> Iterator[Problem]:
    plan = run.plan
    if config_hash(plan["config"]) != plan["config_hash"]:
        message = f"config_hash is {plan['config_hash']!r:.80}, its configuration has {config_hash(plan['config'])}"
        yield Problem(kind="plan", file="plan.json", message=message)
    first = 0
    records = [("plan.json", plan)]
    for name in run.storage.list("plan"):
        if name.startswith("extension-"):
            records.append((f"plan/{name}", load_json(run.storage.read_bytes(f"plan/{name}"), where=f"plan/{name}")))
    for file, record in records:
        if (reason := seal_problem(record)) is not None or run.storage.read_bytes(file) != canonical_json(record):
            yield Problem(kind="plan", file=file, message=reason or "is not the canonical JSON that was written")
        for table in record["units"]["tables"]:
            if table["first_unit"] != first:
                message = f"{table['name']} begins with unit {table['first_unit']}, expected {first}"
                yield Problem(kind="plan", file=file, message=message)
            first += table["rows"]
            yield from file_problems(run.storage, table)


def file_problems(storage: Reader, file: dict[str, Any]) -> Iterator[Problem]:
    """Presence, size and sha256 of one file, given as a record with `name`, `size` and `sha256`."""
    name = file["name"]
    size = storage.size(name)
    if size is None:
        yield Problem(kind="missing", file=name, message=f"missing, expected {file['size']} bytes")
        return
    if size != file["size"]:
        low, high = sorted((size, int(file["size"])))
        message = f"expected {file['size']} bytes, found {size}"
        yield Problem(kind="size", file=name, start=low, end=high, message=message)
    digest = hashlib.sha256()
    for start in range(0, size, CHUNK_BYTES):
        digest.update(storage.read_range(name, start, min(CHUNK_BYTES, size - start)))
    if digest.hexdigest() != file["sha256"]:
        message = f"sha256 is {digest.hexdigest()}, expected {file['sha256']}"
        yield Problem(kind="sha256", file=name, start=0, end=size, message=message)


def manifest_problems(run: RunReader, totals: VerifyTotals) -> Iterator[Problem]:
    """The manifest against the commits; nothing if there is none."""
    file = "manifest.json"
    try:
        manifest = run.manifest
        if manifest is None:
            return
        yield from _manifest_against_commits(run, manifest, totals)
    except (GrainmillError, KeyError, TypeError, ValueError) as error:
        yield Problem(kind="manifest", file=file, message=f"not a manifest: {type(error).__name__} {error}")


def _manifest_against_commits(run: RunReader, manifest: dict[str, Any], totals: VerifyTotals) -> Iterator[Problem]:
    def problem(message: str) -> Problem:
        return Problem(kind="manifest", file="manifest.json", message=message)

    if run.storage.read_bytes("manifest.json") != canonical_json(manifest):
        yield problem("is not the canonical JSON that was written")
    if (reason := seal_problem(manifest)) is not None:
        yield problem(reason)
    if manifest["format"] != FORMAT or manifest["complete"] is not True:
        yield problem(f"expected a complete manifest of {FORMAT}")
    listed = [[shard[name] for name in ("unit", "sha256", "samples", "masks")] for shard in manifest["shards"]]
    expected = sorted(totals.shards)
    if sorted(listed) != expected:
        units = sorted(
            {row[0] for row in listed if row not in expected} | {row[0] for row in expected if row not in listed}
        )
        yield problem(f"its shards differ from the commits in units {units[:20]}")
    for shard in manifest["shards"]:
        if totals.shard_files.get(shard["unit"]) not in (None, (shard["name"], shard["size"])):
            yield problem(f"names another shard than the commit of unit {shard['unit']}")
    digest = dataset_digest(totals.shards, totals.failures)
    samples, masks = (sum(row[position] for row in totals.shards) for position in (2, 3))
    said = {"digest": digest, "samples": samples, "masks": masks, "failures": len(totals.failures),
            "failure_reasons": dict(sorted(totals.reasons.items())), "units": run.units_total,
            "config_hash": run.plan["config_hash"], "config": run.config}  # fmt: skip
    for name, value in said.items():
        if manifest[name] != value:
            yield problem(f"{name} is {manifest[name]!r:.120}, the commits give {value!r:.120}")
    for rows, table in ((samples, manifest["index"]["samples"]), (masks, manifest["index"]["masks"])):
        yield from file_problems(run.storage, table)
        if table["rows"] != rows:
            yield problem(f"{table['name']} has {table['rows']} rows, the commits give {rows}")


def repeated_key_problems(
    run: RunReader, sample_keys: NDArray[np.uint64], failure_keys: NDArray[np.uint64]
) -> Iterator[Problem]:
    """Names keys that two samples hold, or a sample and a failure; reads the index again only if there are any."""
    unique, counts = np.unique(sample_keys, return_counts=True)
    repeated = set(unique[counts > 1].tolist()) | set(np.intersect1d(unique, failure_keys).tolist())
    if not repeated:
        return
    for commit in run.commits():
        for table, what in ((run.samples(commit), "sample"), (run.failures(commit), "failure")):
            for key, number in zip(table.column("key").to_pylist(), key_numbers(table).tolist(), strict=True):
                if number in repeated:
                    file = f"commits/{commit.unit:08d}.json"
                    yield Problem(kind="count", file=file, key=key, message=f"this {what}'s key appears more than once")


def _joined(keys: list[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    return np.concatenate([np.zeros(0, dtype=np.uint64), *keys])
