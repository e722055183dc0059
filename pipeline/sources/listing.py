"""Inputs: folders, globs, files, tars and parquet -> units of samples, in one fixed order.

A source's samples have an order of their own: files by the UTF-8 bytes of their relative path, a tar's samples by their
first member, a parquet file's by row.

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
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import pyarrow as pa

from ..errors import FailureReason
from .kinds import SNIFF_BYTES, Kind, Use, kind_of_bytes, kind_of_name, named_format, stem_of, suffix_of
from .own_outputs import require_apart
from .parquet_rows import image_rows
from .passed_over import PassedOver
from .roots import ListedFile, Root, base_of
from .shards import open_source
from .tar_samples import tar_samples
from .tars import name_problem
from .units import Entry, SourceSpec, UnitSpec

READERS: Final = 8
"""Threads that read ahead from a remote source: enough to hide some tens of milliseconds of latency a request."""


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
    root = opened(source, output)
    for file, use in inputs_of(root, source.label, passed):
        if only is None or f"{source.label}/{file.path}" in only:
            yield from _entries_of(root, file, use, source, passed)


def opened(source: SourceSpec, output: str | None) -> Root:
    """A source's files.

    Raises:
        InputError: it is not there, or is what the run writes.
    """
    if output is not None:
        require_apart(base_of(source.location), output)
    return open_source(source.location, output=output)


def inputs_of(root: Root, label: str, passed: PassedOver) -> Iterator[tuple[ListedFile, Use]]:
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
