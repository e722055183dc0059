"""The main job, top to bottom: sources -> plan -> units -> commits -> merged index and manifest.

The same call again resumes. Whatever is killed, the commits say what is done.
"""

from __future__ import annotations

import collections
import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..console import Waiting, note
from ..environment import faults
from ..environment.numeric import differences, numeric_environment
from ..errors import TooManyFailuresError
from ..executors.driver import DriverCommits, ExecutorName, make_pool, run_inline, run_pool
from ..executors.pool import Listener, PoolOptions
from ..format.records import RunSummary
from ..format.release_tables import MANIFEST
from ..labeling.config import MineConfig, config_hash
from ..shards.commits import CommitWriter
from ..shards.lease import Lease
from ..shards.plan import (
    Plan,
    config_record,
    create_plan,
    extend_plan,
    moved_sources,
    no_images,
    open_plan,
    require_equal_config,
)
from ..sources.changes import check_unchanged
from ..sources.listing import plan_units
from ..sources.own_outputs import require_apart
from ..sources.passed_over import INSIDE_CONTAINERS, PassedOver, one_line
from ..sources.proposals import Proposals
from ..sources.roots import base_of
from ..sources.units import SourceSpec, UnitSpec
from ..storage.base import Writer
from ..storage.object_store import offers_conditional_puts
from ..storage.open import open_storage
from ..units.batches import RunSpec
from .flags import MineFlags
from .manifest import write_manifest
from .output import check_output, move_away, revoke_failed
from .progress import RunProgress


@dataclass(frozen=True, kw_only=True)
class MineOptions:
    """One call of `mine`: the flags, and what they come to here; `options.mine_options` makes it."""

    flags: MineFlags
    config: MineConfig
    """What changes labels: the recipe's values, and over them the flags'."""
    sources: tuple[SourceSpec, ...]
    executor: ExecutorName
    pool: PoolOptions
    proposals: str | None
    """Absolute path of the `--proposals` file."""
    boundaries: str | None
    """Absolute path of the `--boundaries` file."""
    checkpoint: str | None
    """Path of the backbone's weights."""
    memory_limit_bytes: int
    """Of one worker."""


def mine(options: MineOptions) -> dict[str, Any]:
    """Mines until every planned unit is committed.

    Returns:
        What `--json` prints: samples, masks, masks_per_image, failures, images_per_second, digest and more.

    Raises:
        ConfigMismatchError, InputError, OutputBusyError, StorageError: before or while it mines.
        TooManyFailuresError: at the end, when every sample failed, or more than allowed; the commits stand.
    """
    for source in options.sources:
        require_apart(base_of(source.location), options.flags.output)
    storage = open_output(options.flags.output)
    check_output(storage, overwrite=options.flags.overwrite)
    with Lease(storage):
        if options.flags.overwrite:
            move_away(storage)
        storage.clean_scratch()
        with Waiting(f"{storage.location}: reading what is planned, and listing the sources"):
            plan = frozen_plan(storage, options)
        if plan.passed_over:
            note(f"passed over: {one_line(plan.passed_over)}; `grainmill status` gives examples")
        log = CommitWriter(storage)
        if options.flags.retry_failed:
            revoke_failed(storage, plan, tuple(options.flags.retry_failed))
        done = log.committed(plan.units_total)
        report = RunProgress(plan=plan, totals=log.totals(), compact=log.compact)
        if not all(done):
            with contextlib.suppress(FileNotFoundError):
                storage.remove(MANIFEST)
            with report:
                run_units(plan.units(storage, skip=done), options, plan, storage, report, pending=done.count(0))
        with Waiting(f"{storage.location}: merging the index"):
            manifest = finished_manifest(storage, plan, changed=report.commits > 0)
            storage.clean_scratch()
    result = report.result(manifest)
    check_failures(result, options.flags.max_failed_fraction)
    return result


def open_output(location: str) -> Writer:
    """The output, with commits by this one driver if its store cannot let the first of two writers win."""
    storage = open_storage(location, create=True)
    if offers_conditional_puts(storage):
        return storage
    note(f"{storage.location}: no conditional puts there; this driver writes all commits itself, so it must be alone")
    return open_storage(location, conditional_puts=False)


def dry_run(options: MineOptions) -> dict[str, Any]:
    """What a call would do, without writing anything: units by source, configuration, workers.

    Raises:
        InputError: nothing to mine, or a source that cannot be listed.
    """
    passed = PassedOver()
    units = planned_units(options, passed)
    by_source = collections.Counter(options.sources[unit.source].label for unit in units)
    if not by_source:
        raise no_images(options.sources, passed)
    return {
        "units": sum(by_source.values()),
        "units_by_source": dict(by_source),
        "passed_over": passed.to_json(),
        "config": config_record(options.config, options.sources),
        "config_hash": config_hash(config_record(options.config, options.sources)),
        "executor": options.executor,
        "workers": options.pool.workers,
    }


def planned_units(options: MineOptions, passed: PassedOver) -> Iterator[UnitSpec]:
    """What a call plans where nothing is planned; `passed` hears of what is not used."""
    units = plan_units(
        options.sources,
        samples_per_shard=options.config.samples_per_shard,
        limit=options.config.limit,
        output=options.flags.output,
        passed=passed,
    )
    return _watched(units, options, passed, read_proposals(options))


def read_proposals(options: MineOptions) -> Proposals | None:
    """The file of `--proposals`, if there is one."""
    if options.proposals is None:
        return None
    return Proposals.read(options.proposals, sha256=options.config.divide.proposals_sha256)


def _watched(
    units: Iterator[UnitSpec], options: MineOptions, passed: PassedOver, proposals: Proposals | None
) -> Iterator[UnitSpec]:
    """Units that are being planned, while annotations and proposals that will not be used are counted.

    Raises:
        InputError: no proposal is for an image of the sources, or one is for two.
    """
    divide, example = options.config.divide, None
    for unit in units:
        label = options.sources[unit.source].label
        for entry in unit.entries:
            uri = f"{label}/{entry.path}"
            if entry.json_offset is not None and divide.method != "union":
                passed.add("member", f"{uri} {entry.member}", kind=".json")
            if proposals is not None and entry.reason is None:
                example = example or f"{entry.path} {entry.member or ''}".rstrip()
                proposals.meet(uri, entry.member)
        yield unit
    if divide.method == "union":
        passed.forget("annotation")
    if proposals is not None:
        if example is not None and options.config.limit is None:
            proposals.require_met(example)
        passed.include(proposals.unused(min_score=divide.min_proposal_score).to_json())


def frozen_plan(storage: Writer, options: MineOptions) -> Plan:
    """The plan that stands, checked against this call; a new one if there is none."""
    plan = open_plan(storage)
    environment = numeric_environment()
    if plan is None:
        passed = PassedOver()
        units = planned_units(options, passed)
        plan = create_plan(
            storage, options.config, options.sources, environment=environment, units=units, passed=passed
        )
        faults.reach("planned")
        return plan
    require_equal_config(plan, config_record(options.config, options.sources), storage.location)
    for line in moved_sources(plan, options.sources):
        note(line)
    for line in differences(plan.environment, environment):
        note(f"numeric environment: {line}; masks may differ in their last pixels from those already committed")
    return with_new_files(storage, plan, options)


def with_new_files(storage: Writer, plan: Plan, options: MineOptions) -> Plan:
    """Checks that planned sources are unchanged; notes new files, or plans them with `--extend`."""
    limit = options.config.limit
    new = check_unchanged(options.sources, plan.units(storage), limited=limit is not None, output=options.flags.output)
    if not new:
        return plan
    if not options.flags.extend:
        note(f"{len(new)} new files in the sources are not planned, {new[0]} for instance; --extend adds them")
        return plan
    passed = PassedOver()
    further = plan_units(
        options.sources,
        samples_per_shard=options.config.samples_per_shard,
        limit=None if limit is None else max(limit - plan.samples_total, 0),
        first_unit=plan.units_total,
        only=frozenset(new),
        output=options.flags.output,
        passed=passed,
    )
    passed.include({reason: plan.passed_over[reason] for reason in INSIDE_CONTAINERS if reason in plan.passed_over})
    proposals = read_proposals(options)
    if proposals is not None:
        for unit in plan.units(storage):
            for entry in unit.entries:
                proposals.meet(f"{options.sources[unit.source].label}/{entry.path}", entry.member)
    return extend_plan(storage, plan, _watched(further, options, passed, proposals), passed)


def run_units(
    units: Iterator[UnitSpec],
    options: MineOptions,
    plan: Plan,
    storage: Writer,
    report: RunProgress,
    *,
    pending: int,
) -> None:
    """Runs the executor that was asked for."""
    run = RunSpec(
        output=storage.location if "://" in storage.location else os.path.abspath(storage.location),
        config=options.config,
        sources=options.sources,
        batch_size=options.flags.batch_size,
        cpus=options.pool.cpus_per_worker,
        proposals=options.proposals,
        boundaries=options.boundaries,
        checkpoint=options.checkpoint,
        config_hash=plan.config_hash,
        environment=plan.environment,
        sample_timeout_s=options.flags.sample_timeout_s,
        memory_limit_bytes=options.memory_limit_bytes,
        commits_by_driver=not storage.conditional_puts,
    )
    listener: Listener = DriverCommits(report, CommitWriter(storage)) if run.commits_by_driver else report
    if options.config.recipe == "learned" and options.boundaries is None:
        note("--recipe learned without --boundaries FILE merges by the classifier's features alone")
    if idle := idle_workers_note(plan, options):
        note(idle)
    if options.executor == "inline":
        run_inline(units, run, storage, listener)
        return
    if options.executor == "ray":
        address = options.pool.ray_address
        listener.waits_for("Ray starts on this machine" if address is None else f"connecting to Ray at {address}")
    with contextlib.closing(make_pool(options.executor, run, options.pool)) as pool:
        run_pool(units, pool, listener, options.pool, pending=pending)


def idle_workers_note(plan: Plan, options: MineOptions) -> str | None:
    """What to say when there are fewer units than workers; None if every worker gets one."""
    workers = options.pool.workers
    if options.executor == "inline" or workers is None or plan.units_total >= min(workers, plan.samples_total):
        return None
    share = math.ceil(plan.samples_total / workers)
    return (
        f"{plan.units_total} of {workers} workers will have something to do: the {plan.samples_total} samples make "
        f"{plan.units_total} units of at most {options.config.samples_per_shard}. --samples-per-shard {share} into "
        "a new --output keeps all of them busy"
    )


def finished_manifest(storage: Writer, plan: Plan, *, changed: bool) -> RunSummary:
    """`manifest.json` of a run whose units are all committed; written if it is missing or out of date."""
    from ..dataset.run import RunReader

    standing = None if changed else RunReader(storage, plan).manifest
    return standing if standing is not None else write_manifest(storage, plan)


def check_failures(result: dict[str, Any], max_failed_fraction: float) -> None:
    """Compares the failures, without `no_masks`, to what `--max-failed-fraction` allows; all of them is never allowed.

    Raises:
        TooManyFailuresError: naming the reasons.
    """
    total = result["samples"] + result["failures"]
    failed = result["failures"] - result["failure_reasons"].get("no_masks", 0)
    reasons = ", ".join(f"{name} {count}" for name, count in result["failure_reasons"].items())
    if total and not result["samples"]:
        raise TooManyFailuresError(
            f"nothing was mined: {total} of {total} samples failed ({reasons}). `grainmill failures` lists them, "
            "`--retry-failed REASON` tries them again",
            result,
        )
    if total and failed / total > max_failed_fraction:
        raise TooManyFailuresError(
            f"{failed} of {total} samples failed ({reasons}), more than --max-failed-fraction {max_failed_fraction:g}; "
            "everything else is committed. `grainmill failures` lists them",
            result,
        )
