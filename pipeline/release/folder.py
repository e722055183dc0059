"""The folder of a release: opened, found empty, or holding the version that the new one follows."""

from __future__ import annotations

import os
from typing import Final

from ..dataset.release import read_manifest
from ..errors import InputError
from ..format.records import ReleaseManifest
from ..format.release_tables import MANIFEST
from ..storage.local import LocalStorage
from ..storage.open import open_storage
from ..storage.versions import version_order
from .records import CARD, CHANGELOG, CROISSANT, MACHINES, STATISTICS, SUMS, ReleaseOptions


def open_output(path: str) -> LocalStorage:
    """The release's folder, made if it is missing.

    Raises:
        InputError: a URL: a release is made locally, then pushed.
    """
    if "://" in path:
        raise InputError(f"--output {path}: a release is made in a local folder; --push {path} sends it on")
    storage = open_storage(path, create=True)
    assert isinstance(storage, LocalStorage)
    return storage


def open_empty_output(path: str) -> LocalStorage:
    """A folder for a release of its own.

    Raises:
        InputError: something lies there.
    """
    output = open_output(path)
    found = sorted(entry.name for entry in os.scandir(output.root))
    if found:
        raise InputError(
            f"{path}: expected a new or empty folder, found {', '.join(found[:3])}; choose another --output"
        )
    return output


def standing_version(output: LocalStorage, name: str | None, version: str | None) -> ReleaseManifest | None:
    """The release that stands in a folder, if it is the one that is asked for (None asks for any)."""
    manifest = read_manifest(output)
    if manifest is None or name not in (None, manifest["name"]) or version not in (None, manifest["version"]):
        return None
    return manifest


def previous_version(
    output: LocalStorage, options: ReleaseOptions, *, append: bool, overwrite: bool
) -> ReleaseManifest | None:
    """The version that this one follows; None for a first one.

    Raises:
        InputError: the folder holds something else than what the flags say.
    """
    manifest = read_manifest(output)
    if append:
        if manifest is None:
            raise InputError(
                f"{output.location}: --append needs a release there, found none; leave --append out for a first one"
            )
        if manifest["name"] != options.name:
            raise InputError(
                f"{output.location}: holds the release {manifest['name']!r}, found --name {options.name!r}"
            )
        if any(each["version"] == options.version for each in manifest["versions"]):
            raise InputError(
                f"{output.location}: has version {options.version} already; a new version needs a new --version"
            )
        asked = version_order(options.version)
        for standing in (each["version"] for each in manifest["versions"]):
            order = version_order(standing)
            if asked is not None and order is not None and order >= asked:
                raise InputError(
                    f"{output.location}: has version {standing}; a new version needs a later --version, found "
                    f"{options.version}"
                )
        return manifest
    if manifest is not None:
        same = (manifest["name"], manifest["version"]) == (options.name, options.version)
        if not (overwrite and same and len(manifest["versions"]) == 1):
            raise InputError(
                f"{output.location}: holds {manifest['name']} {manifest['version']}; give --append for a next version, "
                "--overwrite to make this very version again, or another --output"
            )
        return None
    foreign = sorted(entry.name for entry in os.scandir(output.root) if entry.name not in _OWNED)
    if foreign:
        raise InputError(f"{output.location}: expected an empty directory or a release, found {', '.join(foreign[:3])}")
    return None


_OWNED: Final = frozenset({
    "shards", "index", "failures", "duplicates", "removed", "figures", "examples", "gallery", "gallery.html",
    "versions", "tmp", CARD, CHANGELOG, CROISSANT, MACHINES, MANIFEST, STATISTICS, SUMS, ".gitattributes",
})  # fmt: skip
"""Names at the top of a release's folder."""
