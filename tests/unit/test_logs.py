"""Workers' structured lines: unit, key, node; one JSON object each."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.dataset.open import open_dataset
from pipeline.executors.logs import LoggedMiner, UnitLog
from pipeline.format.schema import FailureRow
from pipeline.sources.units import UnitSpec
from pipeline.units.attempt import InProcessMiner
from pipeline.units.batches import BatchResult


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_every_line_names_unit_and_node(drawn_run: Path) -> None:
    stream = io.StringIO()
    log = UnitLog(node="node-7", stream=stream)
    unit = UnitSpec(unit=1, source=0, entries=())
    log.started(unit)
    log.committed(next(open_dataset(drawn_run).commits()))
    log.failed(unit, RuntimeError("broken\nin two"))
    found = lines(stream)
    assert [line["event"] for line in found] == ["unit_started", "unit_committed", "unit_failed"]
    assert {line["node"] for line in found} == {"node-7"}
    assert all("unit" in line and "pid" in line and "time" in line for line in found)
    assert found[1]["samples"] == 3
    assert found[2]["message"] == "broken\nin two"


class _Miner(InProcessMiner):
    def __init__(self) -> None: ...

    def results(self, unit: UnitSpec) -> Iterator[BatchResult]:
        row = FailureRow(key="k-1", source_uri="in/a", member=None, stage="decode", reason="truncated", message="cut")
        yield BatchResult(results=[row])


def test_failed_samples_are_logged_with_their_key_and_passed_on(write_drawn_run: Callable[..., Path]) -> None:
    stream = io.StringIO()
    miner = LoggedMiner(_Miner(), UnitLog(node="n", stream=stream))
    (batch,) = miner.results(UnitSpec(unit=4, source=0, entries=()))
    assert len(batch.results) == 1
    (line,) = lines(stream)
    assert (line["event"], line["unit"], line["key"], line["reason"]) == ("sample_failed", 4, "k-1", "truncated")
