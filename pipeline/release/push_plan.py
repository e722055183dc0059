"""What every push has in common: which files go in which order, a report, and how it ends where it cannot go on."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from ..errors import GrainmillError, InputError
from ..format.records import ReleaseManifest
from ..format.release_tables import MANIFEST
from ..storage.base import StorageError
from ..storage.local import LocalStorage
from .records import CARD, CHANGELOG, CROISSANT, MACHINES, SHARDS_CARD, STATISTICS, SUMS, named_files

FILES_PER_COMMIT: Final = 200
"""Of the Hub, whose limits are on commits rather than on files."""
LAST: Final = (STATISTICS, CHANGELOG, CROISSANT, SHARDS_CARD, CARD, MACHINES, SUMS)
"""What describes a release; goes after everything that it describes, and before the manifests."""
HASHED: Final = re.compile(r".+-[0-9a-f]{8}\.(?:tar|parquet)")


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


def files_in_order(release: LocalStorage, manifest: ReleaseManifest) -> list[str]:
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


@contextlib.contextmanager
def resumable() -> Iterator[None]:
    """What fails inside, after every try that it is worth, ends the push with one message.

    Raises:
        PushError: instead of any StorageError or OSError inside.
    """
    try:
        yield
    except (StorageError, OSError) as error:
        raise PushError(f"{error}; the same command goes on from here") from error
