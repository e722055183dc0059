"""Sending a release on: to a folder, an object store, or the Hugging Face Hub; the same command again resumes.

Files go first whose names hold their hash, then what describes them, then `manifest.json`: readers see the version
before or the new one, never half of one. What is there already is not sent again: files named by their hash if the size
is right, others if their bytes are. The storage, and for the Hub `push_hub`, repeats what may succeed at the next try.
Credentials come from the environment (`AWS_…`, `HF_TOKEN`, …) by the stores' own clients, and are written nowhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from ..dataset.release import read_manifest
from ..errors import InputError
from ..format.records import ReleaseManifest
from ..format.release_tables import MANIFEST
from ..storage.base import Reader, Writer, scheme_of
from ..storage.local import LocalStorage
from ..storage.open import open_storage
from .push_hub import push_to_hub
from .push_plan import HASHED, PushReport, files_in_order, resumable
from .records import named_files


def push_release(
    release: LocalStorage,
    target: str,
    *,
    dry_run: bool = False,
    on_file: Callable[[int, int], None] | None = None,
) -> PushReport:
    """Sends a release to a folder, `s3://…` or another store, or `hf://OWNER/NAME`.

    Args:
        release: its folder.
        target: where to.
        dry_run: only tell every call.
        on_file: called with files done and files in all.

    Raises:
        InputError: no release lies there, or the target is not allowed.
        PushError: it did not work, however often it was tried.
    """
    manifest = read_manifest(release)
    if manifest is None:
        raise InputError(f"{release.location}: expected a release, found none")
    if scheme_of(target) == "hf":
        return push_to_hub(release, manifest, target, dry_run=dry_run, on_file=on_file)
    with resumable():
        return _push_to_storage(release, manifest, target, dry_run=dry_run, on_file=on_file)


# ---------------------------------------------------------------------------------------------------------------------
# Folders and object stores


def _push_to_storage(
    release: LocalStorage,
    manifest: ReleaseManifest,
    target: str,
    *,
    dry_run: bool,
    on_file: Callable[[int, int], None] | None,
) -> PushReport:
    there = _open_target(target, release)
    report = PushReport(target=target)
    before = read_manifest(there)
    if before is not None and before["name"] != manifest["name"]:
        raise InputError(
            f"{target}: holds the release {before['name']!r}, not {manifest['name']!r}; choose another target"
        )
    names = files_in_order(release, manifest)
    for number, name in enumerate(names, start=1):
        path = release.path(name)
        if _stands(there, name, path):
            report.standing += 1
        else:
            report.calls.append(f"put {name} ({path.stat().st_size} bytes)")
            report.sent.append(name)
            report.sent_bytes += path.stat().st_size
            if not dry_run:
                there.upload(path, name)
        if on_file is not None:
            on_file(number, len(names))
    for name in _left_over(before, names):
        report.calls.append(f"delete {name}")
        report.removed.append(name)
        if not dry_run:
            there.remove(name)
    return report


def _open_target(target: str, release: LocalStorage) -> Writer:
    """The target; a folder is made if it is missing.

    Raises:
        InputError: the release itself, or a folder with other things.
    """
    there = open_storage(target, create=scheme_of(target) is None)
    if isinstance(there, LocalStorage):
        if there.root.resolve() == release.root.resolve():
            raise InputError(f"--push {target}: this is the release itself")
        foreign = sorted(each.name for each in os.scandir(there.root) if not (release.root / each.name).exists())
        if foreign and not there.exists(MANIFEST) and foreign != ["tmp"]:
            raise InputError(f"--push {target}: expected a new folder or a release, found {', '.join(foreign[:3])}")
    return there


def _stands(there: Reader, name: str, path: Path) -> bool:
    """Whether a file is there: by size if its name holds its hash, else byte by byte."""
    if there.size(name) != path.stat().st_size:
        return False
    return bool(HASHED.fullmatch(name)) or there.read_bytes(name) == path.read_bytes()


def _left_over(before: ReleaseManifest | None, names: Iterable[str]) -> list[str]:
    """What the version that stood there named and this one does not have under that name."""
    kept = set(names)
    return [] if before is None else sorted(f["name"] for f in named_files(before) if f["name"] not in kept)
