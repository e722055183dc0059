"""What readers see of a run: its plan, and what its commits name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from ..errors import InputError, SchemaError
from ..format.records import (
    ConfigRecord,
    IndexRecord,
    PassedRecord,
    PlannedSource,
    PlanRecord,
    RunManifest,
    read_record,
)
from ..format.release_tables import MANIFEST
from ..format.schema import FAILURES_SCHEMA, MASKS_SCHEMA, SAMPLES_SCHEMA, dataset_digest
from ..shards.commits import Commit, CommitLog
from ..shards.plan import Plan
from ..storage.base import Reader
from .reader import Dataset, SamplesIndex, Unit


class RunReader(Dataset):
    """A run's directory, for reading. Made by `open.open_dataset`; cheap, and safe beside a driver at work."""

    def __init__(self, storage: Reader, plan: Plan) -> None:
        super().__init__(storage)
        self._plan = plan
        self._log = CommitLog(storage)

    @property
    def plan(self) -> PlanRecord:
        """plan.json."""
        return self._plan.record

    @property
    def config(self) -> ConfigRecord:
        return self._plan.config

    @property
    def sources(self) -> Sequence[PlannedSource]:
        return self.plan["sources"]

    @property
    def passed_over(self) -> dict[str, PassedRecord]:
        return self._plan.passed_over

    @property
    def units_total(self) -> int:
        """Planned units, extensions included."""
        return self._plan.units_total

    @property
    def manifest(self) -> RunManifest | None:
        if not self.storage.exists(MANIFEST):
            return None
        return read_record(self.storage.read_bytes(MANIFEST), RunManifest, where=f"{self.location}/{MANIFEST}")

    def commits(self) -> Iterator[Commit]:
        """Every committed unit once, ascending."""
        return iter(self._log)

    def committed_units(self) -> bytearray:
        """One byte for each planned unit, 1 if committed."""
        return self._log.committed(self.units_total)

    def units(self) -> Iterator[Unit]:
        return map(committed_unit, self.commits())

    def totals(self) -> dict[str, int]:
        return self._log.totals()

    def samples(self, unit: Unit) -> pa.Table:
        index = _index(unit)
        return self._table(None if index is None else index["samples"], SAMPLES_SCHEMA)

    def masks(self, unit: Unit) -> pa.Table:
        index = _index(unit)
        return self._table(None if index is None else index["masks"], MASKS_SCHEMA)

    def failures(self, unit: Unit) -> pa.Table:
        return self._table(unit.failures, FAILURES_SCHEMA)

    def samples_index(self, columns: Sequence[str], *, split: str | None = None) -> SamplesIndex:
        """See `Dataset.samples_index`; the merged index of a complete run, else that of each unit that is committed."""
        if split is not None:
            raise InputError(f"{self.location}: no split {split!r}; there is all (a run has no splits, a release may)")
        manifest = self.manifest
        if manifest is not None:
            table = self._checked_samples(manifest["index"]["samples"], columns)
            return SamplesIndex(table=table, digest=manifest["digest"], complete=True)
        tables, shards, units = [SAMPLES_SCHEMA.empty_table().select(columns)], [], 0
        for unit in self.units():
            units += 1
            if unit.shard is None:
                continue
            index = _index(unit)
            if index is None:
                raise SchemaError(
                    f"{self.location}: the commit of unit {unit.number} names a shard and no index; `grainmill verify` "
                    "tells more"
                )
            shards.append([unit.number, unit.shard["sha256"], unit.samples, unit.masks])
            tables.append(self._checked_samples(index["samples"], columns))
        if not units:
            raise InputError(
                f"{self.location}: expected committed or released shards, found neither manifest.json nor a commit; "
                "`grainmill mine` makes them"
            )
        return SamplesIndex(table=pa.concat_tables(tables), digest=dataset_digest(shards, []), complete=False)


def committed_unit(commit: Commit) -> Unit:
    """A unit of a run, as its commit says it."""
    return Unit(
        number=commit.unit,
        shard=commit.shard,
        failures=commit.record["failures"],
        reasons=commit.reasons,
        commit=commit,
    )


def _index(unit: Unit) -> IndexRecord | None:
    assert unit.commit is not None, "a unit of a run has its commit"
    return unit.commit.record["index"]
