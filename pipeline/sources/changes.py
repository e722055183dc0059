"""Is what was planned still there, and what is new: sources against a plan, by size and version of every file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ..errors import InputError
from .kinds import stem_of
from .listing import inputs_of, opened
from .passed_over import PassedOver
from .roots import Root
from .shards import open_source
from .units import Entry, SourceSpec, UnitSpec


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
        root = opened(source, output)
        for file, _ in inputs_of(root, source.label, PassedOver()):
            if following is not None and following[0] == index and following[1].path.encode() < file.order:
                raise gone(source, following[1].path)
            if following is not None and following[0] == index and following[1].path == file.path:
                require_same(root, source, following[1], (file.size, file.version))
                following = next(planned, None)
            elif following is not None or not limited:
                new.append(f"{source.label}/{file.path}")
        if following is not None and following[0] == index:
            raise gone(source, following[1].path)
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
            raise gone(source, entry.path)
        require_same(root, source, entry, found)
    extended = {f"{sources[int(name.split('/', 1)[0])].label}/{entry.path}" for name, entry in later.items()}
    return [uri for uri in new if uri not in extended]


def require_same(root: Root, source: SourceSpec, entry: Entry, found: tuple[int, str]) -> None:
    """Compares a planned file, and the annotation beside it, with size and version as they are now."""
    _require_equal(source, entry.path, (entry.file_size, entry.version), found)
    if entry.json_raw is not None and entry.json_version is not None:
        name = stem_of(entry.path) + ".json"
        json_found = root.reader.stat(entry.json_raw)
        if json_found is None:
            raise gone(source, name)
        _require_equal(source, name, (entry.json_size, entry.json_version), json_found)


def _require_equal(source: SourceSpec, path: str, planned: tuple[int, str], found: tuple[int, str]) -> None:
    if planned != found:
        what = f"{planned[0]} bytes then, {found[0]} now" if found[0] != planned[0] else "same size, changed since"
        raise InputError(
            f"{source.label}/{path} in {source.location} is not what was planned ({what}); bring it back as it was, "
            "or start again with --overwrite or another --output"
        )


def gone(source: SourceSpec, path: str) -> InputError:
    return InputError(
        f"{source.label}/{path} was planned and is not in {source.location} any more; bring it back, or start again "
        "with --overwrite or another --output"
    )
