"""A dataset for reading: what a run and a release have in common.

Both are a row of units, each with at most one shard, and an index with a row for each sample and each mask. `RunReader`
(`run.py`) reads what the commits of a run name, `ReleaseReader` (`release.py`) what the manifest of a release names;
nothing else that may lie in the directory is looked at. `open.open_dataset` opens either.
"""

from __future__ import annotations

import collections
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypedDict

import pyarrow as pa

from ..errors import InputError, SchemaError
from ..format.records import (
    ConfigRecord,
    FileRecord,
    PassedRecord,
    PlannedSource,
    ReleasedSource,
    ReleaseManifest,
    RunManifest,
    SampleRow,
    ShardRecord,
    TableRecord,
)
from ..format.schema import SAMPLES_SCHEMA, Sample, sample_from_json, sha256_of
from ..shards.commits import Commit
from ..storage.base import Reader
from ..storage.parquet import parquet_table
from .labeled_image import LabeledImage


class JsonPlace(TypedDict):
    """Columns of the index that say where a sample's record lies."""

    key: str
    shard: str
    json_offset: int
    json_size: int


class ImagePlace(TypedDict):
    """Columns of the index that say where a sample's image lies."""

    key: str
    shard: str
    image_offset: int | None
    image_size: int | None


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What is read at once: a committed unit of a run, or a shard of a release; or failed samples alone."""

    number: int
    """Ascending; in a release the place among the shards."""
    shard: ShardRecord | None
    """None if no sample was good."""
    failures: TableRecord | None
    """The table of failed samples; None if there are none."""
    reasons: Mapping[str, int]
    """Failed samples by reason."""
    commit: Commit | None = None
    """Of a run: the record that decides the unit."""

    @property
    def samples(self) -> int:
        return 0 if self.shard is None else self.shard["samples"]

    @property
    def masks(self) -> int:
        return 0 if self.shard is None else self.shard["masks"]

    @property
    def seconds(self) -> Mapping[str, float]:
        """Seconds of each stage; a release does not say them."""
        return {} if self.commit is None else self.commit.seconds


@dataclass(frozen=True, kw_only=True)
class SamplesIndex:
    """The rows of all samples in order, some columns of them."""

    table: pa.Table
    digest: str
    """Of the data: the manifest's, or of what was committed when this was read."""
    complete: bool


class Dataset(ABC):
    """A run or a release.

    Args:
        storage: its directory.
    """

    def __init__(self, storage: Reader) -> None:
        self.storage: Final = storage

    @property
    def location(self) -> str:
        return self.storage.location

    @property
    @abstractmethod
    def manifest(self) -> RunManifest | ReleaseManifest | None:
        """manifest.json; None for a run until every unit is committed."""

    @property
    @abstractmethod
    def config(self) -> ConfigRecord:
        """The configuration, resolved; of a release that of its newest run."""

    @property
    @abstractmethod
    def sources(self) -> Sequence[PlannedSource] | Sequence[ReleasedSource]:
        """Where the images come from."""

    @property
    @abstractmethod
    def passed_over(self) -> dict[str, PassedRecord]:
        """What planning saw and did not use, see `sources/passed_over.py`; commits say the rest, a release nothing."""

    @property
    @abstractmethod
    def units_total(self) -> int:
        """Units, those that are not committed yet included."""

    @abstractmethod
    def units(self) -> Iterator[Unit]:
        """Every unit that can be read, once, ascending."""

    @abstractmethod
    def totals(self) -> dict[str, int]:
        """units, samples, masks, failures, fast."""

    @abstractmethod
    def samples(self, unit: Unit) -> pa.Table:
        """The rows of `SAMPLES_SCHEMA` of one unit."""

    @abstractmethod
    def masks(self, unit: Unit) -> pa.Table:
        """The rows of `MASKS_SCHEMA` of one unit."""

    @abstractmethod
    def failures(self, unit: Unit) -> pa.Table:
        """The rows of `FAILURES_SCHEMA` of one unit."""

    @abstractmethod
    def samples_index(self, columns: Sequence[str], *, split: str | None = None) -> SamplesIndex:
        """Columns of `SAMPLES_SCHEMA` of all samples, from files that have the sha256 that is said of them.

        Args:
            columns: their names.
            split: one of a release's own splits; None for everything.

        Raises:
            InputError: nothing is committed, an index file has another sha256, or there is no such split.
        """

    def __len__(self) -> int:
        """Committed samples."""
        return self.totals()["samples"]

    def __iter__(self) -> Iterator[LabeledImage]:
        """Every committed sample with its image and masks, in order."""
        for unit in self.units():
            for row in self.samples(unit).to_pylist():
                yield self.read_labeled(row)

    def __getitem__(self, number: int) -> LabeledImage:
        """One sample by its place in that order; negative counts from the end. It looks through the units each time.

        Raises:
            IndexError: there are fewer.
        """
        count = len(self)
        place = number + count if number < 0 else number
        if not 0 <= place < count:
            raise IndexError(f"{self.location}: sample {number} of {count}")
        for unit in self.units():
            if place < unit.samples:
                return self.read_labeled(self.samples(unit).slice(place, 1).to_pylist()[0])
            place -= unit.samples
        raise IndexError(f"{self.location}: sample {number} of {count}")

    def require_samples(self) -> None:
        """Ends what cannot be done with a dataset that holds nothing.

        Raises:
            InputError: no sample is committed; with what is there instead.
        """
        done, reasons = 0, collections.Counter[str]()
        for unit in self.units():
            if unit.samples:
                return
            done += 1
            reasons.update(unit.reasons)
        pending = self.units_total - done
        said = [f"{pending} of {self.units_total} units are not committed yet"] if pending else []
        if reasons:
            failed = ", ".join(f"{name} {count}" for name, count in sorted(reasons.items()))
            said.append(
                f"{reasons.total()} of {reasons.total()} samples failed ({failed}), `grainmill failures` lists them"
            )
        raise InputError(f"{self.location}: holds no sample: {'; '.join(said) or 'nothing is in it'}")

    def read_sample(self, row: JsonPlace) -> Sample:
        """The sample of one row of `samples`, by one ranged read.

        Raises:
            SchemaError: the bytes are not a sample of this format.
        """
        data = self.storage.read_range(row["shard"], row["json_offset"], row["json_size"])
        return sample_from_json(data, where=f"{self.location}/{row['shard']}: {row['key']}")

    def read_image(self, row: ImagePlace) -> bytes:
        """The image's bytes of one row of `samples`.

        Raises:
            InputError: the run was mined with `--no-images`.
        """
        if row["image_offset"] is None or row["image_size"] is None:
            raise InputError(f"{self.location}: {row['key']}: mined with --no-images, the shard holds no image")
        return self.storage.read_range(row["shard"], row["image_offset"], row["image_size"])

    def read_labeled(self, row: SampleRow) -> LabeledImage:
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

    def _table(self, file: FileRecord | None, schema: pa.Schema) -> pa.Table:
        """A whole table; empty where there is no file."""
        if file is None:
            return schema.empty_table()
        try:
            return parquet_table(self.storage.read_bytes(file["name"]), schema=schema)
        except (OSError, ValueError, KeyError) as error:  # pyarrow's errors derive from these
            raise SchemaError(
                f"{self.location}/{file['name']}: damaged ({error}); `grainmill verify` tells more"
            ) from error

    def _checked_samples(self, file: FileRecord, columns: Sequence[str]) -> pa.Table:
        """Columns of a samples' table whose bytes are those that were committed."""
        data = self.storage.read_bytes(file["name"])
        found = sha256_of(data)
        if found != file["sha256"]:
            raise InputError(
                f"{self.location}/{file['name']}: sha256 is {found}, expected {file['sha256']}; "
                "`grainmill verify` tells more"
            )
        return parquet_table(data, schema=SAMPLES_SCHEMA, columns=columns)
