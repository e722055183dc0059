"""Structured logs of workers: one JSON object a line, with unit, attempt, node, and the key where one is concerned.

They go to the process's standard error, which Ray keeps in a file of each worker and log collectors read. Nothing in
them is needed to go on: what happened to samples stands in commits and failure files.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO

from ..format.schema import FailureRow
from ..shards.commits import Commit
from ..sources.units import UnitSpec
from ..units.attempt import UnitMiner
from ..units.batches import BatchResult


class UnitLog:
    """Writes what happens to the units of one worker.

    Args:
        node: of this worker, as its executor calls it.
        stream: default standard error, as it is when a line is written.
    """

    def __init__(self, *, node: str, stream: TextIO | None = None) -> None:
        self._node, self._stream = node, stream

    def started(self, unit: UnitSpec) -> None:
        self._write("unit_started", unit=unit.unit, samples=len(unit.entries))

    def committed(self, commit: Commit) -> None:
        """One line for the unit, one for each thing its commit notes."""
        record = commit.record
        self._write(
            "unit_committed", unit=commit.unit, attempt=record["attempt"], samples=commit.samples, masks=commit.masks,
            failures=commit.reasons, seconds=commit.seconds,
        )  # fmt: skip
        for text in record["notes"]:
            self._write("unit_note", unit=commit.unit, attempt=record["attempt"], text=text)

    def sample_failed(self, unit: int, *, key: str, stage: str, reason: str, message: str) -> None:
        self._write("sample_failed", unit=unit, key=key, stage=stage, reason=reason, message=message)

    def failed(self, unit: UnitSpec, error: Exception) -> None:
        """What ends the run."""
        self._write("unit_failed", unit=unit.unit, error=type(error).__name__, message=str(error))

    def _write(self, event: str, **fields: Any) -> None:
        line = {"time": round(time.time(), 3), "event": event, "node": self._node, "pid": os.getpid(), **fields}
        print(json.dumps(line, ensure_ascii=False, sort_keys=True), file=self._stream or sys.stderr, flush=True)


class LoggedMiner:
    """Mines as another miner does, and logs the samples that failed.

    Args:
        miner: does the work.
        log: where the lines go.
    """

    def __init__(self, miner: UnitMiner, log: UnitLog) -> None:
        self._miner, self._log = miner, log

    def results(self, unit: UnitSpec) -> Iterator[BatchResult]:
        for batch in self._miner.results(unit):
            for result in batch.results:
                if isinstance(result, FailureRow):
                    self._log.sample_failed(
                        unit.unit, key=result.key, stage=result.stage, reason=result.reason, message=result.message
                    )
            yield batch

    def environment(self) -> dict[str, Any]:
        return self._miner.environment()

    def notes(self) -> list[str]:
        return self._miner.notes()

    def close(self) -> None:
        self._miner.close()
