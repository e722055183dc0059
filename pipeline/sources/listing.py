"""Inputs: folders, globs, files, tars and parquet -> units of samples, in one fixed order.

A **source** is one `--input`. Its samples have an order of their own: files by the UTF-8 bytes of their relative path,
a tar's samples by their first member, a parquet file's by row. A **unit** is at most N consecutive samples of one
source. The plan holds an entry for every sample (where its bytes lie, and what is wrong with it if that is known), so a
worker reads any sample by one ranged read and the same plan gives the same samples whatever happened to the run before.

What counts as one sample:

- an image file, by its ending (`.jpg .jpeg .jpe .jfif .png .webp .tif .tiff .bmp`, any case) or, if it has none that
  says otherwise, by its first bytes; the content decides the format. A `.json` beside it with the same stem is its
  annotation (SA-1B);
- in a tar, members whose names agree up to the first dot of the last component; several images of one such sample are
  several samples (`tar_samples.py`); members of one need not stand together. A name that is repeated is one more
  sample that failed (`duplicate_key`), the first one stands;
- a row of a parquet file with an image column: bytes, or the Hub's struct of `bytes` and `path`.

A folder that holds a run or a release is its shards (`shards.py`).

Every entry ends in exactly one of samples and failures; so do members that cannot be used (`bad_member_name`), samples
without an image (`incomplete_sample`), what a cut goes through (`truncated`) and the rest of a cut container
(`truncated_source`). Everything else that was seen is counted (`passed_over.py`).
"""

from __future__ import annotations

import collections
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import pyarrow as pa

from ..errors import FAILURE_REASONS, FailureReason, InputError, SampleFailureError
from ..format.schema import make_key, sha256_of, slug_of
from .kinds import SNIFF_BYTES, Kind, Use, kind_of_bytes, kind_of_name, named_format, stem_of, suffix_of
from .own_outputs import require_apart
from .parquet_rows import ParquetRows, image_rows
from .passed_over import PassedOver
from .roots import ListedFile, Root, base_of
from .shards import open_source
from .tar_samples import tar_samples
from .tars import name_problem

READERS: Final = 8
"""Threads that read ahead from a remote source: enough to hide some tens of milliseconds of latency a request."""
MAX_SAMPLE_BYTES: Final = 2 * 2**30
"""A member or file larger than this is refused before it is read (`too_large`)."""


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


# ---------------------------------------------------------------------------------------------------------------------
# Planning


def plan_units(
    sources: Sequence[SourceSpec],
    *,
    samples_per_shard: int,
    limit: int | None,
    first_unit: int = 0,
    only: frozenset[str] | None = None,
    output: str | None = None,
    passed: PassedOver | None = None,
) -> Iterator[UnitSpec]:
    """Units in order; one unit and one container's headers are in memory at a time.

    Args:
        sources: in the order of the command line.
        samples_per_shard: entries of one unit at most.
        limit: the first N entries of the plan; None for all.
        first_unit: number of the first unit.
        only: uris (`LABEL/path`) of the files to plan, as `check_unchanged` returns them; None for all.
        output: where the run writes: never part of a source.
        passed: hears of everything that is seen and not planned; of JSON files beside images as `annotation`.

    Raises:
        InputError: a source is not there, cannot be listed, or is what the run writes.
    """
    passed = PassedOver() if passed is None else passed
    unit, left = first_unit, limit
    for index, source in enumerate(sources):
        batch: list[Entry] = []
        for entry in _entries(source, only, output, passed):
            if left is not None and left <= 0:
                break
            left = None if left is None else left - 1
            batch.append(entry)
            if len(batch) == samples_per_shard:
                yield UnitSpec(unit=unit, source=index, entries=tuple(batch))
                unit, batch = unit + 1, []
        if batch:
            yield UnitSpec(unit=unit, source=index, entries=tuple(batch))
            unit += 1


def _entries(
    source: SourceSpec, only: frozenset[str] | None, output: str | None, passed: PassedOver
) -> Iterator[Entry]:
    root = _opened(source, output)
    for file, use in _inputs(root, source.label, passed):
        if only is None or f"{source.label}/{file.path}" in only:
            yield from _entries_of(root, file, use, source, passed)


def _opened(source: SourceSpec, output: str | None) -> Root:
    if output is not None:
        require_apart(base_of(source.location), output)
    return open_source(source.location, output=output)


def _inputs(root: Root, label: str, passed: PassedOver) -> Iterator[tuple[ListedFile, Use]]:
    """Files that are images or containers of them; what else there is, is counted."""
    near = _SameName()
    for file, kind in _with_kinds(root):
        uri = f"{label}/{file.path}"
        if file.passed is not None:
            passed.add(file.passed, uri)
            continue
        near.see(file.path, kind.use == "image", label, passed)
        if kind.use is not None:
            yield file, kind.use
        elif kind.name != ".json":
            passed.add(kind.reason, uri, kind=kind.name)
    near.end(label, passed)


class _SameName:
    """Tells JSON files beside an image of the same stem from others: such files stand together in a listing."""

    def __init__(self) -> None:
        self._shared, self._images, self._json = "", set[str](), list[str]()

    def see(self, path: str, is_image: bool, label: str, passed: PassedOver) -> None:
        folder, slash, name = path.rpartition("/")
        shared = f"{folder}{slash}{name.partition('.')[0]}."
        if shared != self._shared:
            self.end(label, passed)
            self._shared = shared
        if is_image:
            self._images.add(stem_of(path))
        elif suffix_of(path) == ".json":
            self._json.append(path)

    def end(self, label: str, passed: PassedOver) -> None:
        for path in self._json:
            beside = stem_of(path) in self._images
            passed.add("annotation" if beside else "other", f"{label}/{path}", kind="" if beside else ".json")
        self._images.clear()
        self._json.clear()


def _with_kinds(root: Root) -> Iterator[tuple[ListedFile, Kind]]:
    """Every file with its kind, in order; the first bytes of some are read ahead, `READERS` at a time."""
    waiting: collections.deque[tuple[ListedFile, Kind | Future[Kind]]] = collections.deque()

    def first() -> tuple[ListedFile, Kind]:
        file, kind = waiting.popleft()
        return file, kind if isinstance(kind, Kind) else kind.result()

    with ThreadPoolExecutor(READERS, thread_name_prefix="grainmill-look") as readers:
        for file in root.walk():
            known = Kind() if file.passed is not None else kind_of_name(file.path)
            waiting.append((file, known or readers.submit(_looked_at, root, file)))
            if len(waiting) > 4 * READERS:
                yield first()
        while waiting:
            yield first()


def _looked_at(root: Root, file: ListedFile) -> Kind:
    try:
        return kind_of_bytes(root.reader.read_at(file.raw, 0, min(SNIFF_BYTES, max(file.size, 0))), file.path)
    except OSError:
        return Kind(name="unreadable, or a link to nothing")


def _entries_of(root: Root, file: ListedFile, use: Use, source: SourceSpec, passed: PassedOver) -> Iterator[Entry]:
    uri = f"{source.label}/{file.path}"
    base = Entry(path=file.path, raw=_storable(file.raw), file_size=file.size, version=file.version)
    problem = name_problem(os.fsencode(file.raw or file.path))
    if problem is not None:
        yield _failed(base, "bad_member_name", problem)
    elif file.size < 0:
        yield _failed(base, "source_missing", "a link to nothing")
    elif use == "tar":
        with root.reader.open(file.raw) as stream:
            for sample in tar_samples(stream, file.size, uri=uri, passed=passed):
                yield _with(base, member=sample.name, **{name: getattr(sample, name) for name in _OF_A_MEMBER})
    elif use == "parquet":
        yield from _parquet_entries(root, file, base, source.image_column)
    else:
        json_raw = stem_of(file.raw) + ".json"
        found = root.reader.stat(json_raw)
        if found is None:
            yield _with(base, size=file.size)
        else:
            size, version = found
            yield _with(base, size=file.size, json_raw=json_raw, json_size=size, json_version=version)


_OF_A_MEMBER: Final = ("occurrence", "offset", "size", "json_offset", "json_size", "reason", "message")


def _parquet_entries(root: Root, file: ListedFile, base: Entry, column: str | None) -> Iterator[Entry]:
    try:
        with root.reader.open(file.raw) as stream:
            names = image_rows(stream, column)
            if isinstance(names, str):
                yield _failed(base, "unsupported_format", names)
                return
            for row, name in enumerate(names):
                yield _with(base, member=name, offset=row)
    except (OSError, pa.ArrowException) as error:
        first = root.reader.read_at(file.raw, 0, SNIFF_BYTES)
        found = named_format(first)
        said = str(error) if found is None else f"it is {found[1]}"
        yield _failed(base, "truncated_source", f"not a readable parquet file ({said})"[:300])


def _with(entry: Entry, **changes: Any) -> Entry:
    return Entry(**{**entry.__dict__, **changes})


def _failed(entry: Entry, reason: FailureReason, message: str) -> Entry:
    return _with(entry, reason=reason, message=message)


def _storable(raw: str) -> str:
    """The name for the plan; one that is not UTF-8 is never opened, so its printable form is enough."""
    return os.fsencode(raw).decode("utf-8", "backslashreplace")


# ---------------------------------------------------------------------------------------------------------------------
# Changed and new files


def check_unchanged(
    sources: Sequence[SourceSpec], units: Iterable[UnitSpec], *, limited: bool = False, output: str | None = None
) -> list[str]:
    """Compares what is planned with what is there now, walking both in order, so that memory does not grow.

    Args:
        sources: of the plan.
        units: all planned units, in order.
        limited: the plan holds the first samples only (`--limit`): files behind the last planned one are not new.
        output: where the run writes: never part of a source.

    Returns:
        Uris of files that are not planned.

    Raises:
        InputError: a planned file is gone or has another size or time of change; named.
    """
    new: list[str] = []
    later: dict[str, Entry] = {}
    planned = _planned_files(units, later)
    following = next(planned, None)
    for index, source in enumerate(sources):
        root = _opened(source, output)
        for file, _ in _inputs(root, source.label, PassedOver()):
            if following is not None and following[0] == index and following[1].path.encode() < file.order:
                raise _gone(source, following[1].path)
            if following is not None and following[0] == index and following[1].path == file.path:
                _require_same(root, source, following[1], (file.size, file.version))
                following = next(planned, None)
            elif following is not None or not limited:
                new.append(f"{source.label}/{file.path}")
        if following is not None and following[0] == index:
            raise _gone(source, following[1].path)
    if later:
        new = _without_later(sources, new, later)
    return new


def _planned_files(units: Iterable[UnitSpec], later: dict[str, Entry]) -> Iterator[tuple[int, Entry]]:
    """Planned files in order; those of extensions, which begin again at the front, go to `later`."""
    last: tuple[int, bytes] = (-1, b"")
    extending = False
    for unit in units:
        for entry in unit.entries:
            place = (unit.source, entry.path.encode())
            if place == last:
                continue
            extending = extending or place < last
            if extending:
                later[f"{unit.source}/{entry.path}"] = entry
            else:
                last = place
                yield unit.source, entry


def _without_later(sources: Sequence[SourceSpec], new: list[str], later: dict[str, Entry]) -> list[str]:
    for name, entry in later.items():
        source = sources[int(name.split("/", 1)[0])]
        root = open_source(source.location)
        found = root.reader.stat(entry.raw)
        if found is None:
            raise _gone(source, entry.path)
        _require_same(root, source, entry, found)
    extended = {f"{sources[int(name.split('/', 1)[0])].label}/{entry.path}" for name, entry in later.items()}
    return [uri for uri in new if uri not in extended]


def _require_same(root: Root, source: SourceSpec, entry: Entry, found: tuple[int, str]) -> None:
    """Compares a planned file, and the annotation beside it, with size and version as they are now."""
    _require_equal(source, entry.path, (entry.file_size, entry.version), found)
    if entry.json_raw is not None and entry.json_version is not None:
        name = stem_of(entry.path) + ".json"
        json_found = root.reader.stat(entry.json_raw)
        if json_found is None:
            raise _gone(source, name)
        _require_equal(source, name, (entry.json_size, entry.json_version), json_found)


def _require_equal(source: SourceSpec, path: str, planned: tuple[int, str], found: tuple[int, str]) -> None:
    if planned != found:
        what = f"{planned[0]} bytes then, {found[0]} now" if found[0] != planned[0] else "same size, changed since"
        raise InputError(
            f"{source.label}/{path} in {source.location} is not what was planned ({what}); bring it back as it was, "
            "or start again with --overwrite or another --output"
        )


def _gone(source: SourceSpec, path: str) -> InputError:
    return InputError(
        f"{source.label}/{path} was planned and is not in {source.location} any more; bring it back, or start again "
        "with --overwrite or another --output"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Reading


class UnitReader:
    """Reads a unit's samples by position, in any order; writes nothing.

    Args:
        unit: which samples.
        sources: of the run.
    """

    def __init__(self, unit: UnitSpec, sources: Sequence[SourceSpec]) -> None:
        self._unit, self._source = unit, sources[unit.source]
        self._root = open_source(self._source.location)
        self._parquet: dict[str, ParquetRows] = {}
        self._checked: set[str] = set()
        self._ahead: dict[int, Future[InputSample]] = {}
        self._readers: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._readers is not None:
            self._readers.shutdown(wait=True, cancel_futures=True)
            self._readers = None
        self._ahead.clear()
        for rows in self._parquet.values():
            rows.close()
        self._parquet.clear()

    def __len__(self) -> int:
        return len(self._unit.entries)

    def identity(self, position: int) -> SampleIdentity:
        """Of a sample that may not be readable: its key is made without the bytes' sha256."""
        return self._identity(self._unit.entries[position], sha256="")

    def prefetch(self, positions: Iterable[int], *, max_bytes: int) -> None:
        """Begins to read samples that `read` will be asked for, from a remote source; does nothing for a local one.

        Args:
            positions: in the order in which they will be read.
            max_bytes: of samples read ahead; one at least, whatever its size.
        """
        if "://" not in self._source.location:
            return
        planned = 0
        for position in positions:
            entry = self._unit.entries[position]
            planned += entry.size + entry.json_size
            if planned > max_bytes and self._ahead:
                return
            if position in self._ahead or entry.path.lower().endswith(".parquet"):
                continue  # rows of a table come one after the other, from one reader
            if self._readers is None:
                self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="grainmill-read")
            self._ahead[position] = self._readers.submit(self._read, position)

    def read(self, position: int) -> InputSample:
        """Reads one sample, or takes it from what was read ahead.

        Raises:
            SampleFailureError: it cannot be read, or is planned as a failure.
            InputError: the file is not the one that was planned.
        """
        ahead = self._ahead.pop(position, None)
        return self._read(position) if ahead is None else ahead.result()

    def _read(self, position: int) -> InputSample:
        """Reads one sample.

        Raises:
            SampleFailureError: it cannot be read, or is planned as a failure.
            InputError: the file is not the one that was planned.
        """
        entry = self._unit.entries[position]
        if entry.reason is not None:
            assert entry.reason in FAILURE_REASONS
            raise SampleFailureError(entry.reason, "read", entry.message or entry.reason)
        if max(entry.size, entry.json_size) > MAX_SAMPLE_BYTES:
            raise SampleFailureError(
                "too_large", "read", f"{max(entry.size, entry.json_size)} bytes of {MAX_SAMPLE_BYTES}"
            )
        self._require_planned(entry)
        try:
            image = self._image(entry)
            annotation = self._annotation(entry)
        except (OSError, pa.ArrowException) as error:
            raise SampleFailureError("unreadable", "read", f"{entry.path}: {error}") from error
        sha256 = sha256_of(image)
        identity = self._identity(entry, sha256=sha256)
        return InputSample(
            key=identity.key,
            source_uri=identity.source_uri,
            member=identity.member,
            sha256=sha256,
            license=self._source.license,
            image=image,
            annotation_json=annotation,
        )

    def _identity(self, entry: Entry, *, sha256: str) -> SampleIdentity:
        label = self._source.label
        key = make_key(
            label=label, relative_path=entry.path, member=entry.member, occurrence=entry.occurrence, sha256=sha256
        )
        return SampleIdentity(key=key, source_uri=f"{label}/{entry.path}", member=entry.member)

    def _require_planned(self, entry: Entry) -> None:
        if entry.path not in self._checked:
            found = self._root.reader.stat(entry.raw)
            if found is None:
                raise _gone(self._source, entry.path)
            _require_same(self._root, self._source, entry, found)
            self._checked.add(entry.path)

    def _image(self, entry: Entry) -> bytes:
        if entry.path.lower().endswith(".parquet"):
            if entry.path not in self._parquet:
                self._parquet[entry.path] = ParquetRows(self._root.reader.open(entry.raw), self._source.image_column)
            assert entry.offset is not None
            return self._parquet[entry.path].image(entry.offset)
        return self._range(entry.raw, entry.offset or 0, entry.size)

    def _annotation(self, entry: Entry) -> bytes | None:
        if entry.json_offset is not None:
            return self._range(entry.raw, entry.json_offset, entry.json_size)
        if entry.json_raw is not None:
            return self._range(entry.json_raw, 0, entry.json_size)
        return None

    def _range(self, raw: str, offset: int, size: int) -> bytes:
        data = self._root.reader.read_at(raw, offset, size) if size else b""
        if len(data) != size:
            raise SampleFailureError("truncated", "read", f"{len(data)} of {size} bytes at offset {offset}")
        return data
