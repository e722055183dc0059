"""Sending a release on: to a folder, an object store, or the Hugging Face Hub; the same command again resumes.

Files go first whose names hold their hash, then what describes them, then `manifest.json`: readers see the version
before or the new one, never half of one. What is there already is not sent again: files named by their hash if the size
is right, others if their bytes are. Everything is tried again with growing pauses. Credentials come from the
environment (`AWS_…`, `HF_TOKEN`, …) by the stores' own clients, and are written nowhere.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from ..console import note
from ..errors import GrainmillError, InputError
from ..storage import LocalStorage, Storage, StorageError, open_storage, scheme_of
from .reading import read_manifest
from .records import CARD, CHANGELOG, CROISSANT, MACHINES, MANIFEST, SHARDS_CARD, STATISTICS, SUMS, named_files

ATTEMPTS: Final = 6
"""Tries for each call; the pauses between them add up to about half a minute."""
FIRST_PAUSE_S: Final = 1.0
FILES_PER_COMMIT: Final = 200
"""Of the Hub, whose limits are on commits rather than on files."""
LAST: Final = (STATISTICS, CHANGELOG, CROISSANT, SHARDS_CARD, CARD, MACHINES, SUMS)
"""What describes a release; goes after everything that it describes, and before the manifests."""
_HASHED: Final = re.compile(r".+-[0-9a-f]{8}\.(?:tar|parquet)")
_Result = TypeVar("_Result")


class PushError(GrainmillError):
    """A release could not be sent; the same command goes on where it stopped."""


@dataclass(kw_only=True)
class PushReport:
    """What was done, or with `dry_run` would be.

    Attributes:
        target: without credentials.
        sent: names of files.
        standing: files that were there already.
        removed: names that the new version does not have.
        calls: one line each, in order.
    """

    target: str
    sent: list[str] = field(default_factory=list)
    standing: int = 0
    removed: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    sent_bytes: int = 0


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
        from .push_hub import push_to_hub

        return push_to_hub(release, manifest, target, dry_run=dry_run, on_file=on_file)
    return _push_to_storage(release, manifest, target, dry_run=dry_run, on_file=on_file)


def files_in_order(release: LocalStorage, manifest: dict[str, Any]) -> list[str]:
    """Every file of the release in the order in which it is to appear; the manifest last."""
    names = [
        str(path.relative_to(release.root))
        for path in sorted(release.root.rglob("*"))
        if path.is_file() and not path.is_symlink()
    ]
    mine = {file["name"] for file in named_files(manifest)} | {MANIFEST, SUMS, MACHINES}
    kept = [name for name in names if name in mine or name.startswith("versions/")]
    missing = sorted(mine - set(kept))
    if missing:
        raise InputError(f"{release.location}: {missing[0]} is missing; `grainmill verify` tells more")
    return sorted(kept, key=_rank)


def _rank(name: str) -> tuple[int, str]:
    """Hashed names, then the rest, then descriptions, then manifests of versions, then the manifest."""
    if name == MANIFEST:
        return (4, name)
    if name.startswith("versions/") and name.endswith(f"/{MANIFEST}"):
        return (3, name)
    if name in LAST:
        return (2, f"{LAST.index(name):02d}")
    return (0 if _HASHED.fullmatch(name) else 1, name)


def patiently(
    what: str,
    call: Callable[[], _Result],
    *,
    failures: tuple[type[BaseException], ...] = (StorageError, OSError),
    hopeless: Callable[[BaseException], bool] = lambda error: False,
    pause: Callable[[float], None] | None = None,
) -> _Result:
    """Calls until it works, with pauses of 1, 2, 4, … seconds and some chance.

    Args:
        what: for messages.
        call: may be called again after a failure.
        failures: what is worth another try.
        hopeless: of those, what is not (no such bucket, no rights).
        pause: sleeps; given in tests.

    Raises:
        PushError: after `ATTEMPTS` tries.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except failures as error:
            why = _reason(error)
            if attempt == ATTEMPTS or hopeless(error):
                tries = "" if attempt == 1 else f" after {attempt} tries"
                raise PushError(f"{what}{tries}: {why}; the same command goes on from here") from error
            seconds = FIRST_PAUSE_S * 2 ** (attempt - 1) * (0.75 + 0.5 * random.random())
            note(f"{what}: {why}; again in {seconds:.0f} s")
            (pause or time.sleep)(seconds)
    raise AssertionError("the loop returns or raises")


def _reason(error: BaseException) -> str:
    """What happened, with its cause where a client only says what it was doing."""
    if isinstance(error, GrainmillError) or error.__cause__ is None:
        return str(error)
    return f"{error} {error.__cause__}"


# ---------------------------------------------------------------------------------------------------------------------
# Folders and object stores


def _push_to_storage(
    release: LocalStorage,
    manifest: dict[str, Any],
    target: str,
    *,
    dry_run: bool,
    on_file: Callable[[int, int], None] | None,
) -> PushReport:
    there = _open_target(target, release)
    report = PushReport(target=target)
    before = _standing_manifest(there)
    if before is not None and before["name"] != manifest["name"]:
        raise InputError(
            f"{target}: holds the release {before['name']!r}, not {manifest['name']!r}; choose another target"
        )
    names = files_in_order(release, manifest)
    for number, name in enumerate(names, start=1):
        path = release.path(name)
        if patiently(f"look for {target}/{name}", lambda: _stands(there, name, path), hopeless=_no_rights):  # noqa: B023
            report.standing += 1
        else:
            report.calls.append(f"put {name} ({path.stat().st_size} bytes)")
            report.sent.append(name)
            report.sent_bytes += path.stat().st_size
            if not dry_run:
                patiently(f"put {target}/{name}", lambda: there.upload(path, name), hopeless=_no_rights)  # noqa: B023
        if on_file is not None:
            on_file(number, len(names))
    for name in _left_over(before, names):
        report.calls.append(f"delete {name}")
        report.removed.append(name)
        if not dry_run:
            patiently(f"delete {target}/{name}", lambda: there.remove(name), hopeless=_no_rights)  # noqa: B023
    return report


def _open_target(target: str, release: LocalStorage) -> Storage:
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


def _standing_manifest(there: Storage) -> dict[str, Any] | None:
    return patiently(f"look at {there.location}", lambda: read_manifest(there), hopeless=_no_rights)


def _stands(there: Storage, name: str, path: Path) -> bool:
    """Whether a file is there: by size if its name holds its hash, else byte by byte."""
    if there.size(name) != path.stat().st_size:
        return False
    return bool(_HASHED.fullmatch(name)) or there.read_bytes(name) == path.read_bytes()


def _left_over(before: dict[str, Any] | None, names: Iterable[str]) -> list[str]:
    """What the version that stood there named and this one does not have under that name."""
    kept = set(names)
    return [] if before is None else sorted(f["name"] for f in named_files(before) if f["name"] not in kept)


def _no_rights(error: BaseException) -> bool:
    """What trying again cannot mend."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, PermissionError | FileNotFoundError | InputError):
            return True
        cause = cause.__cause__
    return False
