"""The plan: which units there are and what decides their bytes, frozen before the first of them is mined.

`plan.json` is written once. The units lie in `plan/units-*.parquet` and are read in row groups, so that ten million
of them cost no memory. `--extend` adds `plan/extension-NNNN.json`, each created so that the first wins, with further
units behind those that stand; nothing that is planned ever changes.
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from .. import __version__
from ..errors import ConfigMismatchError, InputError, SchemaError
from ..format.licenses import spelled
from ..format.records import (
    ConfigRecord,
    ExtensionRecord,
    HashedSource,
    PassedRecord,
    PlanRecord,
    UnitTableRecord,
    read_record,
)
from ..format.schema import FORMAT, canonical_json, sealed
from ..labeling.config import MineConfig, config_hash
from ..sources.passed_over import PassedOver, one_line
from ..storage.base import Reader, Writer
from ..storage.local import explained, sha256_of_file, sync_file
from .writer import HASH_DIGITS, PARQUET_OPTIONS

if TYPE_CHECKING:  # readers of a run need no sources
    from ..sources.units import SourceSpec, UnitSpec

PLAN: Final = "plan.json"
SAMPLES_PER_FILE: Final = 4_000_000
SAMPLES_PER_GROUP: Final = 2048
"""Entries of units held in memory at a time when they are read."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `plan.json` and its extensions say."""

    record: PlanRecord
    """plan.json."""
    tables: tuple[UnitTableRecord, ...] = field(repr=False)
    """Unit tables in order."""
    passed_over: dict[str, PassedRecord] = field(default_factory=dict, repr=False)
    """What planning saw and did not use (see `passed_over.py`), as of the last extension; empty in earlier plans."""

    @property
    def config(self) -> ConfigRecord:
        """The configuration with the source list, as hashed."""
        return self.record["config"]

    @property
    def config_hash(self) -> str:
        return self.record["config_hash"]

    @property
    def environment(self) -> dict[str, object]:
        return self.record["environment"]

    @property
    def units_total(self) -> int:
        return sum(table["rows"] for table in self.tables)

    @property
    def samples_total(self) -> int:
        """Planned input samples; each ends in exactly one of samples and failures."""
        return sum(table["samples"] for table in self.tables)

    def units(self, storage: Reader, *, skip: bytearray | None = None) -> Iterator[UnitSpec]:
        """Units in ascending order without those whose byte in `skip` is set; one row group in memory at a time.

        Raises:
            SchemaError: a table is not the one that was planned.
        """
        from ..sources.units import UnitSpec

        for table in self.tables:
            first, rows = table["first_unit"], table["rows"]
            if skip is not None and skip.count(1, first, first + rows) == rows:
                continue
            for row in _read_rows(storage, table, skip):
                yield UnitSpec.from_row(row)


def _read_rows(storage: Reader, table: UnitTableRecord, skip: bytearray | None) -> Iterator[dict[str, Any]]:
    name = table["name"]
    if storage.size(name) != table["size"]:
        raise SchemaError(f"{name}: expected {table['size']} bytes, found {storage.size(name)}; the plan is damaged")
    with storage.open(name) as stream, pq.ParquetFile(stream, pre_buffer=False) as file:
        first = table["first_unit"]
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if skip is None or skip.count(1, first, first + rows) < rows:
                for row in file.read_row_group(group, use_threads=False).to_pylist():
                    if skip is None or not skip[row["unit"]]:
                        yield row
            first += rows


def config_record(config: MineConfig, sources: Sequence[SourceSpec]) -> ConfigRecord:
    """The configuration as it is hashed: what decides the shards' bytes, with labels and licences of the sources.

    Where a source lies is not in it: the same images give the same shards from any folder, so two people who mine them
    get one hash, and a run goes on after its images were moved. `changes.check_unchanged` looks at every file.
    """
    return {**config.to_json(), "sources": [_hashed(each.label, each.license, each.image_column) for each in sources]}


def _hashed(label: str, license: str | None, image_column: str | None) -> HashedSource:
    """What of a source decides the shards' bytes."""
    if image_column is None:
        return {"label": label, "license": license}
    return {"label": label, "license": license, "image_column": image_column}


def moved_sources(plan: Plan, sources: Sequence[SourceSpec]) -> list[str]:
    """What to say of sources that lie elsewhere than when the run was planned, a line each."""
    planned = {each["label"]: each["location"] for each in plan.record["sources"]}
    return [
        f"source {each.label} was planned in {planned[each.label]} and is read from {each.location} now"
        for each in sources
        if planned[each.label] != each.location
    ]


def create_plan(
    storage: Writer,
    config: MineConfig,
    sources: Sequence[SourceSpec],
    *,
    environment: dict[str, object],
    units: Iterable[UnitSpec],
    passed: PassedOver | None = None,
) -> Plan:
    """Writes the unit tables, then `plan.json`; if another driver was first, its plan holds.

    Args:
        storage: of the output.
        config: of the run.
        sources: of the run.
        environment: where it is planned.
        units: in order; taken until they end.
        passed: what was passed over while they were made.

    Raises:
        ConfigMismatchError: another driver was first, with another configuration.
        InputError: no units, that is no image in any source.
    """
    record = config_record(config, sources)
    tables, digest = _write_tables(storage, units, first_unit=0)
    if not tables:
        raise no_images(sources, passed)
    plan: PlanRecord = {
        "format": FORMAT,
        "config": record,
        "config_hash": config_hash(record),
        "code_version": __version__,
        "weights_sha256": config.features.weights_sha256,
        "seed": config.seed,
        "environment": environment,
        "sources": [
            {"label": s.label, "location": s.location, "license": s.license, "image_column": s.image_column}
            for s in sources
        ],
        "units": {"digest": digest, "tables": tables},
        "passed_over": {} if passed is None else passed.to_json(),
    }
    storage.write_new(PLAN, canonical_json(sealed(plan)))
    standing = open_plan(storage)
    assert standing is not None
    require_equal_config(standing, record, storage.location)
    return standing


def no_images(sources: Sequence[SourceSpec], passed: PassedOver | None) -> InputError:
    """The error of a plan without units: what is taken, and what was there instead."""
    where = ", ".join(each.location for each in sources)
    seen = "" if not passed else f"; passed over: {one_line(passed.to_json())}"
    return InputError(
        f"no images found in {where}: expected JPEG, PNG, WebP, TIFF or BMP files, plain tars (.tar) or parquet files "
        f"with an image column{seen}"
    )


def extend_plan(storage: Writer, plan: Plan, units: Iterable[UnitSpec], passed: PassedOver | None = None) -> Plan:
    """Adds units behind those that are planned; their numbers start at `plan.units_total`.

    Args:
        storage: of the output.
        plan: that stands.
        units: in order; taken until they end.
        passed: what was passed over, in the whole plan.

    Raises:
        InputError: another driver extended the plan at the same time.
    """
    tables, digest = _write_tables(storage, units, first_unit=plan.units_total)
    if not tables:
        return plan
    number = len(extension_names(storage)) + 1
    extension: ExtensionRecord = {
        "format": FORMAT,
        "config_hash": plan.config_hash,
        "units": {"digest": digest, "tables": tables},
        "passed_over": plan.passed_over if passed is None else passed.to_json(),
    }
    if not storage.write_new(f"plan/extension-{number:04d}.json", canonical_json(sealed(extension))):
        raise InputError(f"{storage.location}: another run extended the plan at the same time; run the command again")
    extended = open_plan(storage)
    assert extended is not None
    return extended


def open_plan(storage: Reader) -> Plan | None:
    """The plan that stands in a directory; None if there is none.

    Raises:
        SchemaError: a plan of another format, or a damaged one.
    """
    if not storage.exists(PLAN):
        return None
    record = read_record(storage.read_bytes(PLAN), PlanRecord, where=f"{storage.location}/{PLAN}")
    tables, passed = list(record["units"]["tables"]), record.get("passed_over", {})
    for name in extension_names(storage):
        extension = read_record(storage.read_bytes(name), ExtensionRecord, where=f"{storage.location}/{name}")
        tables += extension["units"]["tables"]
        passed = extension.get("passed_over", passed)
    return Plan(record=record, tables=tuple(tables), passed_over=passed)


def require_equal_config(plan: Plan, record: ConfigRecord, location: str) -> None:
    """Compares the configuration of a command with that of the plan.

    Raises:
        ConfigMismatchError: with every difference.
    """
    # Earlier plans hash the places of their sources too, and spell licences as they were typed.
    sources = [
        _hashed(each["label"], spelled(each["license"]), each.get("image_column")) for each in plan.config["sources"]
    ]
    planned: ConfigRecord = {**plan.config, "sources": sources}
    if config_hash(record) == config_hash(planned):
        return
    lines = "\n".join(f"  {line}" for line in config_differences(planned, record))
    raise ConfigMismatchError(
        f"{location} holds a run with another configuration:\n{lines}\n"
        "choose another --output, repeat the options of that run, or give --overwrite to move it away"
    )


def config_differences(planned: Mapping[str, object], asked: Mapping[str, object]) -> list[str]:
    """`a.b[0].c: there …, here …` for every value that differs; both as they are read from JSON."""
    there, here = _flat(planned), _flat(asked)
    return [
        f"{name}: there {there.get(name, 'nothing')}, here {here.get(name, 'nothing')}"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    ]


def _flat(value: object, name: str = "") -> dict[str, str]:
    """Every value inside, as JSON, by its place."""
    if isinstance(value, Mapping):
        parts = [(f"{name}.{key}" if name else str(key), part) for key, part in value.items()]
    elif isinstance(value, list) and any(isinstance(part, Mapping) for part in value):
        parts = [(f"{name}[{index}]", part) for index, part in enumerate(value)]
    else:
        return {name: canonical_json(value).decode()}
    return {place: text for part_name, part in parts for place, text in _flat(part, part_name).items()}


def extension_names(storage: Reader) -> list[str]:
    """Files that extend the plan, in order."""
    return [f"plan/{name}" for name in storage.list("plan") if name.startswith("extension-")]


def _write_tables(storage: Writer, units: Iterable[UnitSpec], *, first_unit: int) -> tuple[list[UnitTableRecord], str]:
    """Streams units into parquet files; returns their records and the digest of all rows."""
    from ..sources.units import UNITS_SCHEMA

    rows = (unit.to_row() for unit in units)
    digest = hashlib.sha256()
    tables: list[UnitTableRecord] = []
    scratch = storage.scratch(f"plan.{secrets.token_hex(6)}")
    try:
        while True:
            path = scratch / f"{len(tables):08d}.parquet"
            count, samples = _write_table(path, UNITS_SCHEMA, rows, digest.update)
            if count == 0:
                break
            sha256 = sha256_of_file(path)
            name = f"plan/units-{first_unit:08d}-{sha256[:HASH_DIGITS]}.parquet"
            size = path.stat().st_size
            storage.publish(path, name)
            tables.append({
                "name": name, "size": size, "sha256": sha256, "rows": count, "samples": samples,
                "first_unit": first_unit,
            })  # fmt: skip
            first_unit += count
    finally:
        shutil.rmtree(scratch, ignore_errors=True)  # removed at the next start if it stays
    return tables, digest.hexdigest()


def _write_table(
    path: Path, schema: pa.Schema, rows: Iterator[dict[str, Any]], update: Callable[[bytes], None]
) -> tuple[int, int]:
    """One file of units, until the rows or the file's room end; returns its units and their samples."""
    units = samples = 0
    with explained("write", path), pq.ParquetWriter(path, schema, **PARQUET_OPTIONS) as writer:
        while samples < SAMPLES_PER_FILE:
            group: list[dict[str, Any]] = []
            held = 0
            while held < SAMPLES_PER_GROUP and (row := next(rows, None)) is not None:
                update(canonical_json(row) + b"\n")
                group.append(row)
                held += len(row["entries"])
            if not group:
                break
            writer.write_table(pa.Table.from_pylist(group, schema=schema), row_group_size=len(group))
            units, samples = units + len(group), samples + held
    with explained("write", path), path.open("rb") as stream:
        sync_file(stream.fileno())
    return units, samples
