"""One unit from input to commit: `mine_unit`.

The flow is the same in every executor; what differs is who does the native work. `InProcessMiner` does it in this
process, unprotected; `supervisor.SupervisedMiner` in a child that may die, hang or grow without harm to the unit.
"""

from __future__ import annotations

import secrets
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from ..environment import faults
from ..environment.numeric import differences
from ..environment.stage_seconds import StageSeconds
from ..errors import GrainmillError
from ..shards.commits import Commit, CommitWriter, make_commit
from ..shards.writer import Outputs, ShardWriter
from ..sources.passed_over import PassedOver
from ..sources.units import SampleIdentity, UnitSpec
from ..storage.base import Writer
from .batches import BatchMiner, BatchResult, MinedSample, RunSpec, UnitRepeatError, failure_row


@dataclass(frozen=True, kw_only=True)
class UnitProgress:
    """How far a unit is, for the progress bar."""

    unit: int
    samples: int
    masks: int
    failures: int


class UnitMiner(Protocol):
    """What mines the samples of units."""

    def results(self, unit: UnitSpec) -> Iterator[BatchResult]:
        """Every input sample of the unit once, in order."""
        ...

    def environment(self) -> dict[str, Any]:
        """Of the process that does the native work."""
        ...

    def notes(self) -> list[str]:
        """What the commit of the last unit should say."""
        ...

    def close(self) -> None: ...


def mine_unit(
    unit: UnitSpec,
    run: RunSpec,
    storage: Writer,
    miner: UnitMiner,
    *,
    on_progress: Callable[[UnitProgress], None] | None = None,
    waited_s: float = 0.0,
) -> Commit:
    """Makes an attempt at a unit and returns the commit that decides it: this attempt's, or that of one before.

    Args:
        unit: what to mine.
        run: the run it belongs to.
        storage: of the output.
        miner: mines its samples.
        on_progress: hears how far it is.
        waited_s: since this worker's last unit ended; counts as `idle`, and into the `wall` seconds.

    Raises:
        GrainmillError: what ends the run, such as a full disk or a source that changed.
    """
    log = CommitWriter(storage)
    standing = log.read_single(unit.unit)
    if standing is not None:  # committed by a worker that died before it could say so
        return standing
    while True:
        try:
            return _attempt(unit, run, storage, miner, on_progress or (lambda progress: None), waited_s)
        except UnitRepeatError:
            continue  # in smaller batches; the commit will say so


def _attempt(
    unit: UnitSpec,
    run: RunSpec,
    storage: Writer,
    miner: UnitMiner,
    on_progress: Callable[[UnitProgress], None],
    waited_s: float,
) -> Commit:
    log = CommitWriter(storage)
    attempt = secrets.token_hex(6)
    started_s = time.perf_counter()
    seconds = StageSeconds()
    passed = PassedOver()
    with ShardWriter(storage, unit=unit.unit, attempt=attempt) as writer:
        faults.reach("attempt-started", str(unit.unit))
        for batch in miner.results(unit):
            _write_batch(writer, batch, seconds)
            passed.include(batch.passed_over)
            on_progress(
                UnitProgress(unit=unit.unit, samples=writer.samples, masks=writer.masks, failures=writer.failed)
            )
        with seconds.timed("write"):
            outputs = _publish(writer, storage, unit)
        wall_s = time.perf_counter() - started_s
        # What no stage accounts for: waiting for the next unit, for the child, for the store to answer.
        seconds["idle"] = waited_s + max(wall_s - sum(seconds.values()), 0.0)
        seconds["wall"] = waited_s + wall_s
        environment = miner.environment()
        commit = make_commit(
            outputs,
            unit=unit.unit,
            config_hash=run.config_hash,
            seconds=seconds,
            environment=environment,
            attempt=attempt,
            notes=[*miner.notes(), *differences(run.environment, environment)],
            passed_over=passed.to_json(),
        )
        faults.reach("before-commit", str(unit.unit))
        if run.commits_by_driver:
            return commit
        if not log.create(commit):
            return log.read(unit.unit) or commit
        faults.reach("committed", str(unit.unit))
        return commit


def _write_batch(writer: ShardWriter, batch: BatchResult, seconds: StageSeconds) -> None:
    seconds.include(batch.seconds)
    with seconds.timed("write"):
        for result in batch.results:
            if isinstance(result, MinedSample):
                writer.add(result.sample, result.image)
            else:
                writer.fail(result)


def _publish(writer: ShardWriter, storage: Writer, unit: UnitSpec) -> Outputs:
    outputs = writer.finish()
    faults.reach("shard-written", str(unit.unit))
    outputs.publish(storage)
    faults.reach("published", str(unit.unit))
    return outputs


class InProcessMiner:
    """Mines in this process: for debugging, without protection against samples that kill, hang or eat memory.

    An exception nobody expected becomes the same failure row as in a supervised worker, with its traceback on standard
    error.
    """

    def __init__(self, run: RunSpec) -> None:
        self._batches = BatchMiner(run)
        self._held: dict[int, SampleIdentity] = {}

    def results(self, unit: UnitSpec) -> Iterator[BatchResult]:
        count = self._batches.open(unit)
        for first in range(0, count, self._batches.batch_size):
            positions = list(range(first, min(first + self._batches.batch_size, count)))
            yield from self._mine(positions)

    def _mine(self, positions: list[int]) -> Iterator[BatchResult]:
        try:
            yield self._batches.mine(positions, holding=self._held.__setitem__)
        except GrainmillError:
            raise
        except Exception as error:
            if len(positions) > 1:
                for position in positions:
                    yield from self._mine([position])
                return
            traceback.print_exc(file=sys.stderr)
            identity = self._held.get(positions[0]) or self._batches.identity(positions[0])
            row = failure_row(identity, "mine", "worker_died", f"{type(error).__name__}: {error}")
            yield BatchResult(results=[row])

    def environment(self) -> dict[str, Any]:
        return self._batches.environment()

    def notes(self) -> list[str]:
        return []

    def close(self) -> None:
        self._batches.close()
