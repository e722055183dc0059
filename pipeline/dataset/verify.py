"""Does a run hold what its plan, its commits and its manifest say?

Units are checked one by one (`verify_unit.py`), in this process or in several; then the plan's tables, the manifest,
and keys over all units. Memory holds eight bytes for each sample and a few units at a time. Files that no commit names
are not errors: they are what an attempt left that was overtaken or is still at work; `stray_files` lists them.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..environment.process_map import process_map
from ..errors import GrainmillError, SchemaError
from ..format.records import ExtensionRecord, RunManifest, read_record
from ..format.release_tables import MANIFEST
from ..format.schema import FORMAT, SEAL, canonical_json, dataset_digest, sealed
from ..labeling.config import config_hash
from ..shards.commits import Commit, CommitLog, read_commit
from ..shards.plan import PLAN, extension_names
from ..storage.base import Reader
from ..storage.open import open_storage
from .open import open_dataset
from .run import RunReader
from .verify_unit import Problem, UnitReport, file_problems, key_numbers, verify_unit


@dataclass(kw_only=True)
class VerifyTotals:
    """What was looked at; filled while `verify_run` goes on."""

    units: int = 0
    samples: int = 0
    masks: int = 0
    checked_bytes: int = 0
    problems: int = 0
    shards: list[tuple[int, str, int, int]] = field(default_factory=list)
    """(unit, sha256, samples, masks) of each shard, as in the manifest's digest."""
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
        run = open_dataset(directory)
    except SchemaError as error:
        return Problem(kind="plan", file=PLAN, message=str(error))
    assert isinstance(run, RunReader), "a release is verified by `release.verify`"
    return run


def _unit_reports(
    run: RunReader, commits: Iterator[Commit], *, deep: bool, workers: int, totals: VerifyTotals
) -> Iterator[UnitReport]:
    """A report for each commit, in order."""

    def listed() -> Iterator[Commit]:
        for commit in commits:
            shard = commit.shard
            if shard is not None:
                totals.shards.append((commit.unit, shard["sha256"], shard["samples"], shard["masks"]))
                totals.shard_files[commit.unit] = (shard["name"], shard["size"])
            totals.reasons.update(commit.reasons)
            yield commit

    check = functools.partial(_verify_at, run.location, config_hash=run.plan["config_hash"], deep=deep)
    if workers <= 1:  # in this process the run is open already
        check = functools.partial(verify_unit, run.storage, config_hash=run.plan["config_hash"], deep=deep)
    for _, report in process_map(check, listed(), workers=workers):
        yield report


def _verify_at(location: str, commit: Commit, *, config_hash: str, deep: bool) -> UnitReport:
    return verify_unit(open_storage(location), commit, config_hash=config_hash, deep=deep)


# ---------------------------------------------------------------------------------------------------------------------
# Commits


def readable_commits(storage: Reader, damaged: list[Problem]) -> Iterator[Commit]:
    """The commit that decides each unit, as `CommitLog` sees it, but going on past damaged records.

    Args:
        storage: the run's directory.
        damaged: gets a problem for each record that cannot be read.
    """

    def problem(file: str, message: str) -> None:
        damaged.append(Problem(kind="commit", file=file, message=message))

    for record in CommitLog(storage).records(problem):
        try:
            commit = read_commit(record.data, where=record.file)
        except SchemaError as error:
            problem(record.file, str(error))
            continue
        if commit.unit != record.unit:
            problem(record.file, f"is the commit of unit {commit.unit}, not of {record.unit}")
        elif commit.to_bytes() != record.data:
            problem(record.file, "is not the canonical JSON that was written")
        elif (reason := seal_problem(commit.record)) is not None:
            problem(record.file, reason)
        else:
            yield commit


def seal_problem(record: Mapping[str, Any]) -> str | None:
    """What is wrong with a record's seal (`schema.sealed`); None if it holds."""
    expected = sealed(record)[SEAL]
    if record.get(SEAL) == expected:
        return None
    return f"its content has {SEAL} {expected}, it says {record.get(SEAL)!r:.80}"


def stray_files(run: RunReader) -> list[str]:
    """Files in the folders of results that no commit names: harmless, and removed by the next run."""
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
    except GrainmillError as error:
        yield Problem(kind="plan", file=PLAN, message=f"not a plan: {type(error).__name__} {error}")


def _plan_against_itself(run: RunReader) -> Iterator[Problem]:
    plan = run.plan
    if config_hash(plan["config"]) != plan["config_hash"]:
        message = f"config_hash is {plan['config_hash']!r:.80}, its configuration has {config_hash(plan['config'])}"
        yield Problem(kind="plan", file=PLAN, message=message)
    first = 0
    records: list[tuple[str, ExtensionRecord]] = [(PLAN, plan)]
    for name in extension_names(run.storage):
        records.append((name, read_record(run.storage.read_bytes(name), ExtensionRecord, where=name)))
    for file, record in records:
        if (reason := seal_problem(record)) is not None or run.storage.read_bytes(file) != canonical_json(record):
            yield Problem(kind="plan", file=file, message=reason or "is not the canonical JSON that was written")
        for table in record["units"]["tables"]:
            if table["first_unit"] != first:
                message = f"{table['name']} begins with unit {table['first_unit']}, expected {first}"
                yield Problem(kind="plan", file=file, message=message)
            first += table["rows"]
            yield from file_problems(run.storage, table)


def manifest_problems(run: RunReader, totals: VerifyTotals) -> Iterator[Problem]:
    """The manifest against the commits; nothing if there is none."""
    try:
        manifest = run.manifest
        if manifest is not None:
            yield from _manifest_against_commits(run, manifest, totals)
    except GrainmillError as error:
        yield Problem(kind="manifest", file=MANIFEST, message=f"not a manifest: {type(error).__name__} {error}")


def _manifest_against_commits(run: RunReader, manifest: RunManifest, totals: VerifyTotals) -> Iterator[Problem]:
    def problem(message: str) -> Problem:
        return Problem(kind="manifest", file=MANIFEST, message=message)

    if run.storage.read_bytes(MANIFEST) != canonical_json(manifest):
        yield problem("is not the canonical JSON that was written")
    if (reason := seal_problem(manifest)) is not None:
        yield problem(reason)
    if not manifest["complete"]:
        yield problem(f"expected a complete manifest of {FORMAT}")
    listed = [(each["unit"], each["sha256"], each["samples"], each["masks"]) for each in manifest["shards"]]
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
    samples, masks = sum(row[2] for row in totals.shards), sum(row[3] for row in totals.shards)
    expected_values: dict[str, object] = {
        "digest": digest, "samples": samples, "masks": masks, "failures": len(totals.failures),
        "failure_reasons": dict(sorted(totals.reasons.items())), "units": run.units_total,
        "config_hash": run.plan["config_hash"], "config": run.config,
    }  # fmt: skip
    for name, value in manifest.items():
        if name in expected_values and value != expected_values[name]:
            yield problem(f"{name} is {value!r:.120}, the commits give {expected_values[name]!r:.120}")
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
    for unit in run.units():
        for table, what in ((run.samples(unit), "sample"), (run.failures(unit), "failure")):
            for key, number in zip(table.column("key").to_pylist(), key_numbers(table).tolist(), strict=True):
                if number in repeated:
                    file = f"commits/{unit.number:08d}.json"
                    yield Problem(kind="count", file=file, key=key, message=f"this {what}'s key appears more than once")


def _joined(keys: list[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    return np.concatenate([np.zeros(0, dtype=np.uint64), *keys])
