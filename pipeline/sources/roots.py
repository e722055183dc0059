"""Where inputs lie: a local folder or a URL, listed in one fixed order and read by range.

The order is that of the UTF-8 bytes of the relative paths. Symbolic links to files are followed, links to folders are
not, so that a walk always ends. What is passed over (hidden names with a leading dot, links to folders, pipes and
devices, our own outputs) is listed too, with the reason, so that it can be counted.
"""

from __future__ import annotations

import collections
import contextlib
import glob
import itertools
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..errors import InputError
from ..storage.base import Reader, scheme_of
from ..storage.local import LocalStorage
from ..storage.object_store import ObjectStorage
from .own_outputs import (
    MAX_RECORD_BYTES,
    SHARDS,
    OutputPlace,
    is_own_file,
    is_own_folder,
    is_scratch,
    is_telling,
    local_path,
)
from .passed_over import PassedReason
from .tars import printable


@dataclass(frozen=True, kw_only=True)
class ListedFile:
    """A file as it was found.

    Attributes:
        path: relative to the root, POSIX, printable; `raw` opens it.
        raw: the name as the file system knows it.
        size: bytes.
        version: what changes when the content does, see `storage.base.FileStat`.
        passed: why it is no input, whatever it holds; None if it may be one. A folder stands for all that is in it.
    """

    path: str
    raw: str
    size: int = 0
    version: str = ""
    passed: PassedReason | None = None

    @property
    def order(self) -> bytes:
        return self.path.encode("utf-8")


class Root(Protocol):
    """A place with files that can be listed."""

    @property
    def reader(self) -> Reader:
        """Reads the files, by their raw names."""
        ...

    def walk(self, *, own: bool = False) -> Iterator[ListedFile]:
        """Every file, in the order of its path's bytes; `own`: what this program wrote as well."""
        ...


def open_root(location: str, *, output: str | None = None) -> Root:
    """A folder, a file, a glob, or a URL of an allowed scheme.

    Args:
        location: of the source.
        output: where the run writes: never part of a source.

    Raises:
        InputError: there is nothing, or the scheme is not allowed.
    """
    place = None if output is None else OutputPlace(output)
    if scheme_of(location) not in (None, "file"):
        return _RemoteRoot(location, place)
    path = local_path(location)
    if path.is_dir():
        return _LocalRoot(path, None, place)
    if path.exists():
        return _LocalRoot(path.parent, [path.name], place)
    if glob.has_magic(location):
        base = Path(*before_magic(path.parts))
        found = glob.glob(str(path), recursive=True)
        names = [os.path.relpath(each, base) for each in found if "**" not in path.parts or not os.path.isdir(each)]
        if not names:
            raise InputError(f"{location}: no file matches; quote the pattern if the shell should not expand it")
        return _LocalRoot(base, sorted(names, key=_sort_key), place)
    raise InputError(f"{location}: expected a folder, a file, a glob or a URL, found nothing there")


def _sort_key(raw: str) -> bytes:
    """As `ListedFile.order`: of the printable name, since that is what a plan holds."""
    return printable(os.fsencode(raw)).encode("utf-8")


def is_pattern(location: str) -> bool:
    """Whether a location with `*`, `?` or `[` means others than what is called so."""
    if not glob.has_magic(location):
        return False
    if scheme_of(location) in (None, "file"):
        return not local_path(location).exists()
    return not ObjectStorage(location).holds_anything()


def base_of(location: str) -> str:
    """The location, or of a pattern the folder before its first special character."""
    return "/".join(before_magic(location.split("/"))) or "/" if is_pattern(location) else location


def _passed(raw: str, reason: PassedReason) -> ListedFile:
    return ListedFile(path=printable(os.fsencode(raw)), raw=raw, passed=reason)


def before_magic(parts: Iterable[str]) -> list[str]:
    """The parts of a path before the first with a special character."""
    return list(itertools.takewhile(lambda part: not glob.has_magic(part), parts))


class _LocalRoot:
    def __init__(self, base: Path, names: list[str] | None, output: OutputPlace | None) -> None:
        self.reader = LocalStorage(base)
        self._base, self._names, self._output = base, names, output
        self._own: dict[str, bool] = {}
        """Of the folders that a pattern led into."""

    def walk(self, *, own: bool = False) -> Iterator[ListedFile]:
        if self._names is None:
            yield from self._folder("", own)
            return
        told = set()
        for name in self._names:
            folder = None if own else self._own_parent(name)
            if folder is None:
                yield from self._file(name, own)
            elif folder not in told:
                told.add(folder)
                yield _passed(folder, "own_output")

    def _folder(self, folder: str, own: bool) -> Iterator[ListedFile]:
        path = self._base / folder
        try:
            with os.scandir(path) as entries:
                # A folder sorts as its name with a slash: the order of whole paths, without holding them all.
                found = sorted(
                    (_sort_key(each.name) + (b"/" if each.is_dir(follow_symlinks=False) else b""), each.name)
                    for each in entries
                )
        except OSError as error:
            raise InputError(f"{path}: cannot be listed ({error.strerror})") from error
        if folder and not own and self._is_own(path, {name for _, name in found}):
            yield _passed(folder, "own_output")
            return
        for key, name in found:
            inner = f"{folder}/{name}" if folder else name
            if name.startswith("."):
                yield _passed(inner, "hidden")
            elif not key.endswith(b"/"):
                yield from self._file(inner, own)
            elif not own and (is_scratch(name) or is_own_file(f"{inner}/", self._is_file)):
                yield _passed(inner, "own_output")
            else:
                yield from self._folder(inner, own)

    def _file(self, raw: str, own: bool) -> Iterator[ListedFile]:
        path = self._base / raw
        try:
            status = os.stat(path)
        except OSError:
            yield ListedFile(path=printable(os.fsencode(raw)), raw=raw, size=-1, version="missing")
            return
        if stat.S_ISDIR(status.st_mode):
            yield _passed(raw, "link_to_folder" if path.is_symlink() else "not_a_file")
        elif not stat.S_ISREG(status.st_mode):
            yield _passed(raw, "not_a_file")
        elif not own and (is_own_file(raw, self._is_file) or self._leads_into_output(path)):
            yield _passed(raw, "own_output")
        else:
            yield ListedFile(
                path=printable(os.fsencode(raw)), raw=raw, size=status.st_size, version=str(status.st_mtime_ns)
            )

    def _is_file(self, raw: str) -> bool:
        return (self._base / raw).is_file()

    def _leads_into_output(self, path: Path) -> bool:
        return self._output is not None and path.is_symlink() and self._output.holds(None, os.path.realpath(path))

    def _own_parent(self, raw: str) -> str | None:
        """The folder of ours that a file lies in, below the base."""
        parts = raw.split("/")[:-1]
        for folder in map("/".join, itertools.accumulate([part] for part in parts)):
            if folder not in self._own:
                path = self._base / folder
                with contextlib.suppress(OSError):
                    self._own[folder] = is_scratch(path.name) or self._is_own(path, set(os.listdir(path)))
            if self._own.get(folder):
                return folder
        return None

    def _is_own(self, path: Path, names: set[str]) -> bool:
        def read(name: str) -> bytes:
            try:
                with (path / name).open("rb") as stream:
                    return stream.read(MAX_RECORD_BYTES)
            except OSError:
                return b""

        def shards() -> list[str]:
            return os.listdir(path / SHARDS) if (path / SHARDS).is_dir() else []

        if self._output is not None and self._output.is_folder(path.stat()):
            return True
        return is_own_folder(names, read, shards)


class _RemoteRoot:
    """A prefix of an object store, one file of it, or a pattern: listed once."""

    def __init__(self, location: str, output: OutputPlace | None) -> None:
        self._location, self._output, self._scheme = location, output, scheme_of(location)
        self._pattern: str | None = None
        base = location
        if is_pattern(location):
            parts = location.split("/")
            depth = len(before_magic(parts))
            base = "/".join(parts[:depth]) if depth > 2 else f"{self._scheme}://"
            self._pattern = "/".join(parts[depth:]).rstrip("/")
        self.reader = ObjectStorage(base)

    def walk(self, *, own: bool = False) -> Iterator[ListedFile]:
        try:
            files = self.reader.files(self._pattern)
        except OSError as error:
            raise InputError(f"{self._location}: cannot be listed ({error})") from error
        if not files:
            raise InputError(f"{self._location}: expected files, found nothing there")
        known = () if own else self._known(files)
        owned = self._own_folders(known)
        listed = [_passed(folder, "own_output") for folder in owned]
        hidden = set()
        for raw, (size, version) in files.items():
            relative = raw or self.reader.prefix.rsplit("/", 1)[-1]
            if relative.startswith(tuple(f"{folder}/" for folder in owned)):
                continue
            if "/." in f"/{relative}":
                folder, _, name = f"/{relative}".partition("/.")
                hidden.add(f"{folder}/.{name.partition('/')[0]}"[1:])
            elif not own and is_own_file(relative, known.__contains__):
                listed.append(_passed(relative, "own_output"))
            else:
                path = printable(os.fsencode(relative))
                listed.append(ListedFile(path=path, raw=raw, size=size, version=version))
        listed += [_passed(each, "hidden") for each in hidden]
        yield from sorted(listed, key=lambda each: each.order)

    def _known(self, files: Collection[str]) -> Collection[str]:
        """What lies below the root: of a pattern also what it does not match, such as the records of a run."""
        if self._pattern is None:
            return files
        depth = None if "**" in self._pattern else self._pattern.strip("/").count("/") + 1
        return self.reader.files(depth=depth)

    def _own_folders(self, known: Collection[str]) -> tuple[str, ...]:
        """Prefixes below the root that hold the output at hand, or another run or release, training or score."""
        folders = {raw.rpartition("/")[0] for raw in known}
        folders |= {folder[:end] for folder in folders for end, character in enumerate(folder) if character == "/"}
        names: dict[str, set[str]] = collections.defaultdict(set)
        for path in itertools.chain(known, folders):
            folder, _, name = path.rpartition("/")
            if is_telling(name):
                names[folder].add(name)
        owned: list[str] = []
        for folder in sorted(folders - {""}):
            if folder.startswith(tuple(f"{each}/" for each in owned)) or "/." in f"/{folder}":
                continue

            def read(name: str, folder: str = folder) -> bytes:
                return self.reader.read_at(f"{folder}/{name}", 0, MAX_RECORD_BYTES)

            by_name = is_scratch(folder.rpartition("/")[2]) or is_own_file(f"{folder}/", known.__contains__)
            is_output = self._output is not None and self._output.holds(self._scheme, f"{self.reader.prefix}/{folder}")
            shards = names.get(f"{folder}/{SHARDS}", ())
            if by_name or is_output or is_own_folder(names[folder], read, lambda shards=shards: shards):  # type: ignore[misc]
                owned.append(folder)
        return tuple(owned)
