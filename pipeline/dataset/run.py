"""What readers see of a run: its plan, and what its commits name; nothing else that may lie in the directory."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from ..errors import InputError, SchemaError
from ..format.schema import FAILURES_SCHEMA, MASKS_SCHEMA, SAMPLES_SCHEMA, Sample, load_json, sample_from_json
from ..shards.commits import Commit, CommitLog
from ..shards.plan import Plan
from ..storage.base import Reader
from ..storage.parquet import parquet_table
from .labeled_image import LabeledImage


class RunReader:
    """A run's directory, for reading. Made by `open.open_dataset`; cheap, and safe beside a driver at work."""

    def __init__(self, storage: Reader, plan: Plan) -> None:
        self.storage = storage
        self._plan = plan
        self._log = CommitLog(storage)

    @property
    def location(self) -> str:
        return self.storage.location

    @property
    def plan(self) -> dict[str, Any]:
        """plan.json."""
        return self._plan.record

    @property
    def config(self) -> dict[str, Any]:
        """The configuration, resolved."""
        return self._plan.config

    @property
    def passed_over(self) -> dict[str, Any]:
        """What planning saw and did not use; commits say the rest (see `sources/passed_over.py`)."""
        return self._plan.passed_over

    @property
    def units_total(self) -> int:
        """Planned units, extensions included."""
        return self._plan.units_total

    @property
    def manifest(self) -> dict[str, Any] | None:
        """manifest.json; None until every unit is committed."""
        if not self.storage.exists("manifest.json"):
            return None
        where = f"{self.location}/manifest.json"
        manifest: dict[str, Any] = load_json(self.storage.read_bytes("manifest.json"), where=where)
        return manifest

    def commits(self) -> Iterator[Commit]:
        """Every committed unit once, ascending."""
        return iter(self._log)

    def committed_units(self) -> bytearray:
        """One byte for each planned unit, 1 if committed."""
        return self._log.committed(self.units_total)

    def totals(self) -> dict[str, int]:
        """units, samples, masks, failures over all commits, fast."""
        return self._log.totals()

    def __len__(self) -> int:
        """Committed samples."""
        return self.totals()["samples"]

    def __iter__(self) -> Iterator[LabeledImage]:
        """Every committed sample with its image and masks, in the order of the plan."""
        for commit in self.commits():
            for row in self.samples(commit).to_pylist():
                yield self.read_labeled(row)

    def __getitem__(self, number: int) -> LabeledImage:
        """One sample by its place in that order; negative counts from the end. It looks through the commits each time.

        Raises:
            IndexError: there are fewer.
        """
        count = len(self)
        place = number + count if number < 0 else number
        if not 0 <= place < count:
            raise IndexError(f"{self.location}: sample {number} of {count}")
        for commit in self.commits():
            if place < commit.samples:
                return self.read_labeled(self.samples(commit).slice(place, 1).to_pylist()[0])
            place -= commit.samples
        raise IndexError(f"{self.location}: sample {number} of {count}")

    def require_samples(self) -> None:
        """Ends what cannot be done with a run in which nothing is mined.

        Raises:
            InputError: no sample is committed; with what is there instead.
        """
        done, reasons = 0, collections.Counter[str]()
        for commit in self.commits():
            if commit.samples:
                return
            done += 1
            reasons.update(commit.reasons)
        pending = self.units_total - done
        said = [f"{pending} of {self.units_total} units are not committed yet"] if pending else []
        if reasons:
            failed = ", ".join(f"{name} {count}" for name, count in sorted(reasons.items()))
            said.append(
                f"{reasons.total()} of {reasons.total()} samples failed ({failed}), `grainmill failures` lists them"
            )
        raise InputError(f"{self.location}: holds no sample: {'; '.join(said) or 'nothing is in it'}")

    def samples(self, commit: Commit) -> pa.Table:
        """The rows of `SAMPLES_SCHEMA` of one unit."""
        index = commit.record["index"]
        return self._table(None if index is None else index["samples"], SAMPLES_SCHEMA)

    def masks(self, commit: Commit) -> pa.Table:
        """The rows of `MASKS_SCHEMA` of one unit."""
        index = commit.record["index"]
        return self._table(None if index is None else index["masks"], MASKS_SCHEMA)

    def failures(self, commit: Commit) -> pa.Table:
        """The rows of `FAILURES_SCHEMA` of one unit."""
        return self._table(commit.record["failures"], FAILURES_SCHEMA)

    def read_sample(self, row: Mapping[str, Any]) -> Sample:
        """The sample of one row of `samples`, by one ranged read.

        Raises:
            SchemaError: the bytes are not a sample of this format.
        """
        data = self.storage.read_range(row["shard"], row["json_offset"], row["json_size"])
        return sample_from_json(data, where=f"{self.location}/{row['shard']}: {row['key']}")

    def read_image(self, row: Mapping[str, Any]) -> bytes:
        """The image's bytes of one row of `samples`.

        Raises:
            InputError: the run was mined with `--no-images`.
        """
        if row["image_offset"] is None:
            raise InputError(f"{self.location}: {row['key']}: mined with --no-images, the shard holds no image")
        return self.storage.read_range(row["shard"], row["image_offset"], row["image_size"])

    def read_labeled(self, row: Mapping[str, Any]) -> LabeledImage:
        """Image and masks of one row of `samples`; the image's bytes are not decoded yet.

        Raises:
            SchemaError: the bytes are not a sample of this format.
        """
        sample = self.read_sample(row)
        return LabeledImage(
            annotations=sample.annotations,
            height=sample.height,
            width=sample.width,
            pixels=None if row["image_offset"] is None else self.read_image(row),
            record=sample,
        )

    def _table(self, file: Mapping[str, Any] | None, schema: pa.Schema) -> pa.Table:
        if file is None:
            return schema.empty_table()
        try:
            return parquet_table(self.storage.read_bytes(file["name"]), schema=schema)
        except (OSError, ValueError, KeyError) as error:  # pyarrow's errors derive from these
            raise SchemaError(
                f"{self.location}/{file['name']}: damaged ({error}); `grainmill verify` tells more"
            ) from error
