"""What a plan is made of: sources, units, and where each of their samples lies; a sample as it is read.

A **source** is one `--input`. A **unit** is at most N consecutive samples of one source (`listing.py`). The plan holds
an entry for every sample (where its bytes lie, and what is wrong with it, if known), so a worker reads any sample
by one ranged read and the same plan gives the same samples whatever happened to the run before.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from ..errors import InputError
from ..format.schema import slug_of


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """One `--input`.

    Attributes:
        label: first part of every uri; unique among the sources.
        location: absolute path, glob or URL.
        license: SPDX identifier or None if nothing was said.
        image_column: of its parquet files; None for the only one, or the one with a usual name.
    """

    label: str
    location: str
    license: str | None = None
    image_column: str | None = None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Where one sample lies.

    Attributes:
        path: of the file or container, relative to the source.
        raw: the same as the file system knows it.
        file_size: of the file or container, bytes, when it was planned.
        version: of the file or container: see `roots.ListedFile`.
        member: image member's name in a tar, row in a parquet file (with the path that the table keeps), None for a
            plain file.
        occurrence: how often the member's name was met before in its tar.
        offset: of the image's data in a tar, or the row; None for a plain file.
        size: of the image's data, bytes.
        json_raw: annotation file beside a plain file.
        json_version: of that file.
        json_offset: of the annotation's data in a tar.
        json_size: bytes.
        reason: why it is known to fail, or None.
        message: about that.
    """

    path: str
    raw: str
    file_size: int
    version: str
    member: str | None = None
    occurrence: int = 0
    offset: int | None = None
    size: int = 0
    json_raw: str | None = None
    json_version: str | None = None
    json_offset: int | None = None
    json_size: int = 0
    reason: str | None = None
    message: str | None = None


_ENTRY_TYPE: Final = pa.struct(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("raw", pa.string(), nullable=False),
        pa.field("file_size", pa.int64(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
        pa.field("member", pa.string()),
        pa.field("occurrence", pa.int32(), nullable=False),
        pa.field("offset", pa.int64()),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("json_raw", pa.string()),
        pa.field("json_version", pa.string()),
        pa.field("json_offset", pa.int64()),
        pa.field("json_size", pa.int64(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("message", pa.string()),
    ]
)
UNITS_SCHEMA: Final = pa.schema(
    [
        pa.field("unit", pa.int64(), nullable=False),
        pa.field("source", pa.int32(), nullable=False),
        pa.field("entries", pa.list_(_ENTRY_TYPE), nullable=False),
    ]
)
"""Of `plan/units-*.parquet`."""


@dataclass(frozen=True, kw_only=True)
class UnitSpec:
    """The unit of work, of a shard and of a commit."""

    unit: int
    source: int
    """Index into the run's sources."""
    entries: tuple[Entry, ...]

    def to_row(self) -> dict[str, Any]:
        return {"unit": self.unit, "source": self.source, "entries": [dict(each.__dict__) for each in self.entries]}

    @staticmethod
    def from_row(row: Mapping[str, Any]) -> UnitSpec:
        entries = tuple(Entry(**each) for each in row["entries"])
        return UnitSpec(unit=row["unit"], source=row["source"], entries=entries)


@dataclass(frozen=True, kw_only=True)
class SampleIdentity:
    """Who a sample is, also if it cannot be read."""

    key: str
    source_uri: str
    member: str | None


@dataclass(frozen=True, kw_only=True)
class InputSample:
    """A sample's bytes as they were found."""

    key: str
    source_uri: str
    member: str | None
    sha256: str
    license: str | None
    image: bytes
    annotation_json: bytes | None


def parse_inputs(
    values: Sequence[str], *, licenses: Mapping[str, str] | None = None, image_column: str | None = None
) -> tuple[SourceSpec, ...]:
    """Reads `[LABEL=]SRC`; a label that is not given is the slug of the last part of the path.

    Args:
        values: as on the command line.
        licenses: label -> SPDX identifier.
        image_column: of parquet files.

    Raises:
        InputError: no source, a bad or repeated label, or a licence for a label that is not there.
    """
    if not values:
        raise InputError("--input: give at least one source")
    sources = []
    for value in values:
        label, separator, location = value.partition("=")
        if not separator or "/" in label or "://" in label:
            label, location = "", value
        elif label != slug_of(label):
            raise InputError(f"--input {value!r}: a label has at most 40 of a-z, 0-9, _ and -, found {label!r}")
        if not location:
            raise InputError(f"--input {value!r}: nothing behind the label")
        if "://" not in location:
            location = os.path.abspath(location)
        name = location.rstrip("/").rsplit("/", 1)[-1]
        label = label or slug_of(name.rsplit(".", 1)[0] if "." in name[1:] else name)
        license = (licenses or {}).get(label)
        sources.append(SourceSpec(label=label, location=location, license=license, image_column=image_column))
    labels = [source.label for source in sources]
    for label in labels:
        if labels.count(label) > 1:
            raise InputError(
                f"--input: two sources are called {label!r}; name them, as in --input a={sources[0].location}"
            )
    for label in licenses or {}:
        if label not in labels:
            raise InputError(f"a licence is given for {label!r}; there is {', '.join(labels)}")
    return tuple(sources)
