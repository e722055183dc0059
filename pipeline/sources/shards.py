"""A run or a release as an input: its shards, and none of the figures, thumbnails and tables that lie beside them.

Which shards there are is what `manifest.json` says. A version of a release (`REL/versions/V`) has some of its files
where a later version put them; they keep the names that its manifest gives them, so its plan survives that move.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ..errors import InputError, SchemaError
from ..format.records import ShardsManifest, checked_record
from ..format.release_tables import MANIFEST
from ..format.schema import FORMAT, load_json
from ..storage.base import Reader, scheme_of
from ..storage.open import open_versioned
from ..storage.versions import VersionStorage
from .own_outputs import local_path
from .roots import ListedFile, Root, is_pattern, open_root

PLAN: Final = "plan.json"


def open_source(location: str, *, output: str | None = None) -> Root:
    """What one `--input` names: a folder, a file, a glob or a URL; of a run or a release the shards alone.

    Args:
        location: of the source.
        output: where the run writes: never part of a source.

    Raises:
        InputError: there is nothing, or the scheme is not allowed.
    """
    if scheme_of(location) in (None, "file"):
        is_folder = local_path(location).is_dir()
    else:
        is_folder = not is_pattern(location)
    if not is_folder:
        return open_root(location, output=output)
    dataset = open_versioned(location)
    if isinstance(dataset, VersionStorage):
        return _Shards(location, open_root(dataset.release, output=output), dataset)
    return _Shards(location, open_root(location, output=output), None)


class _Shards:
    """A folder: its shards if a manifest of ours lies there, else everything.

    Args:
        location: for messages.
        root: of the folder; for a version that of its release.
        version: knows where the files of a version are; None for any other folder.
    """

    def __init__(self, location: str, root: Root, version: VersionStorage | None) -> None:
        self._location, self._root, self._version = location, root, version
        self.reader: Reader = root.reader if version is None else version

    def walk(self, *, own: bool = False) -> Iterator[ListedFile]:
        manifest = self._record(MANIFEST)
        if manifest is None:
            if self._record(PLAN) is not None:
                raise InputError(
                    f"{self._location}: a run that is not complete; finish it by the same `grainmill mine`, or give "
                    f"{self._location.rstrip('/')}/shards for what is there now"
                )
            yield from self._root.walk(own=own)
            return
        if manifest.get("images") is False:
            raise InputError(
                f"{self._location}: a release of references, its shards hold no images; `grainmill join` brings them "
                "together"
            )
        checked = checked_record(manifest, ShardsManifest, where=f"{self._location}/{MANIFEST}")
        places = {self._place(shard["name"]): shard["name"] for shard in checked["shards"]}
        there = {places[file.raw]: file for file in self._root.walk(own=True) if file.raw in places}
        for name in sorted(places.values()):
            if name not in there:
                raise InputError(f"{self._location}: {name} is missing; `grainmill verify` tells more")
            yield ListedFile(path=name, raw=name, size=there[name].size, version=there[name].version)

    def _place(self, name: str) -> str:
        return name if self._version is None else self._version.place(name)

    def _record(self, name: str) -> dict[str, object] | None:
        """A JSON file of our own format; None if there is none, or one of somebody else's."""
        if self.reader.stat(name) is None:
            return None
        with self.reader.open(name) as stream:
            data = stream.read()
        try:
            record = load_json(data, where=f"{self._location}/{name}")
        except SchemaError:
            return None
        return record if isinstance(record, dict) and record.get("format") == FORMAT else None
