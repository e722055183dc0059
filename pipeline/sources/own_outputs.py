"""What of a source is our own: outputs of this program are never its inputs, whatever lies in whatever.

The output of the run at hand is known by identity: a folder by its inode, so that neither `..`, nor a link, nor another
mount hides it, a prefix of an object store by its name. Other runs, releases, trainings and scores are known by the
records that stand in their folders. Who wants to mine the shards of a run names it (or its `shards/`) as a source.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from ..errors import InputError
from ..format.schema import FORMAT
from ..storage.base import SCRATCH, scheme_of
from ..storage.object_store import ObjectStorage

RECORDS: Final = ("plan.json", "manifest.json", "lease.json")
"""Of a run or a release; somebody else's file may have one of these names."""
SHARDS: Final = "shards"
OWN_SHARD: Final = re.compile(r"\d{8,}-[0-9a-f]{8}\.tar")
MAX_RECORD_BYTES: Final = 64 * 2**20
OUTPUT_FOLDERS: Final = ("commits", SHARDS, "index", "index-all", "failures", "plan", SCRATCH)
"""Of a run; none of them can be a source of that run."""
_WRITTEN_TOGETHER: Final = (("metrics.jsonl", "pictures"), ("scores.json", "objects.parquet"))
"""Names in one folder that only `train` and `score` write together."""
_TELLING: Final = frozenset({*RECORDS, SHARDS, *itertools.chain(*_WRITTEN_TOGETHER)})
_REMOTE_SCRATCH: Final = re.compile(r"grainmill-(plan|index-all|\d{8,})\.[0-9a-f]+\.[a-z0-9_]+")
"""Of a run on an object store: in the machine's folder for temporary files."""


def is_own_folder(names: Collection[str], read: Callable[[str], bytes], shards: Callable[[], Collection[str]]) -> bool:
    """Whether a folder is what this program wrote: a run (also a killed one), a release, a training, a score.

    Args:
        names: of the files and folders in it.
        read: gives the first `MAX_RECORD_BYTES` of a file in it.
        shards: lists its folder `shards`.
    """
    if any(all(name in names for name in together) for together in _WRITTEN_TOGETHER):
        return True
    if any(is_own_record(name, read(name)) for name in RECORDS if name in names):
        return True
    return SHARDS in names and any(OWN_SHARD.fullmatch(name) for name in shards())


def is_telling(name: str) -> bool:
    """Whether a name in a folder is one that `is_own_folder` asks for; of a folder `shards`, of what is in it."""
    return name in _TELLING or OWN_SHARD.fullmatch(name) is not None


def is_own_record(name: str, data: bytes) -> bool:
    """Whether a file of one of the names in `RECORDS` is ours."""
    if name == "lease.json":
        return b'"driver":' in data and b'"process_started":' in data
    return f'"format":"{FORMAT}"'.encode() in data


def is_own_file(name: str, beside: Callable[[str], bool]) -> bool:
    """Whether a file is what `segment` wrote: `NAME.masks.png` and such, beside `NAME.masks.json`."""
    stem, masks, rest = name.rpartition(".masks")
    return bool(stem and masks) and rest.startswith((".", "/")) and rest != ".json" and beside(f"{stem}.masks.json")


def is_scratch(name: str) -> bool:
    """Whether a folder is where a run on an object store keeps files on their way."""
    return _REMOTE_SCRATCH.fullmatch(name) is not None


@dataclass(frozen=True)
class OutputPlace:
    """Where the run at hand writes.

    Attributes:
        location: folder or URL as given.
        scheme: None for a folder.
        path: of a folder resolved; of a URL the path in its store.
    """

    location: str
    scheme: str | None = field(init=False)
    path: str = field(init=False)

    def __post_init__(self) -> None:
        scheme = scheme_of(self.location)
        if scheme in (None, "file"):
            scheme, path = None, os.path.realpath(local_path(self.location))
        else:
            path = ObjectStorage(self.location).prefix
        object.__setattr__(self, "scheme", scheme)
        object.__setattr__(self, "path", path)

    def is_folder(self, status: os.stat_result) -> bool:
        """Whether a folder that was looked at is the output."""
        if self.scheme is not None:
            return False
        try:
            own = os.stat(self.path)
        except OSError:
            return False
        return (own.st_dev, own.st_ino) == (status.st_dev, status.st_ino)

    def holds(self, scheme: str | None, path: str) -> bool:
        """Whether a place, resolved, is the output or lies in it."""
        return _same_store(self.scheme, scheme) and (path == self.path or path.startswith(f"{self.path.rstrip('/')}/"))


def require_apart(source: str, output: str) -> None:
    """Refuses a source that is the output itself or a part of it that the run writes.

    Args:
        source: location of a source; of a pattern, the folder before its first special character.
        output: location of the output.

    Raises:
        InputError: what was written would be read.
    """
    place = OutputPlace(output)
    scheme = scheme_of(source)
    if scheme in (None, "file"):
        scheme, path = None, os.path.realpath(local_path(source))
    else:
        path = ObjectStorage(source).prefix
    if not place.holds(scheme, path):
        return
    inside = path[len(place.path) :].strip("/").split("/")[0]
    if not inside:
        raise InputError(f"--output {output} is also an --input; write to another folder, one in it for instance")
    if inside in OUTPUT_FOLDERS or inside.startswith(".trash-"):
        raise InputError(f"--input {source} is what the run in --output {output} writes; choose another --output")


def local_path(location: str) -> Path:
    """Of a folder or a `file://` URL."""
    return Path(urlsplit(location).path if location.startswith("file://") else location)


def _same_store(one: str | None, other: str | None) -> bool:
    same = {"gcs": "gs", "abfs": "az"}
    return same.get(one or "", one) == same.get(other or "", other)
