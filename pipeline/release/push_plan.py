"""What every push has in common: which files go in which order, a report, and calls that are tried again."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from ..console import note
from ..errors import GrainmillError, InputError
from ..format.release_tables import MANIFEST
from ..storage.stores import LocalStorage, StorageError
from .records import CARD, CHANGELOG, CROISSANT, MACHINES, SHARDS_CARD, STATISTICS, SUMS, named_files

ATTEMPTS: Final = 6
"""Tries for each call; the pauses between them add up to about half a minute."""
FIRST_PAUSE_S: Final = 1.0
FILES_PER_COMMIT: Final = 200
"""Of the Hub, whose limits are on commits rather than on files."""
LAST: Final = (STATISTICS, CHANGELOG, CROISSANT, SHARDS_CARD, CARD, MACHINES, SUMS)
"""What describes a release; goes after everything that it describes, and before the manifests."""
HASHED: Final = re.compile(r".+-[0-9a-f]{8}\.(?:tar|parquet)")
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
    return (0 if HASHED.fullmatch(name) else 1, name)


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
