"""A location, a folder or a URL, opened for reading or for writing."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from ..errors import SchemaError
from ..format.records import read_release_manifest
from ..format.release_tables import MANIFEST
from .base import Reader, Writer, scheme_of
from .local import LocalStorage
from .object_store import ObjectStorage
from .versions import VERSION_NAME, VERSIONS, VersionStorage

_VERSIONED: Final = re.compile(r"(?P<root>.+)/versions/(?P<version>[^/]+)/*")


def open_storage(location: str | os.PathLike[str], *, create: bool = False, conditional_puts: bool = True) -> Writer:
    """Opens a folder or a URL of an allowed scheme.

    Args:
        location: a path, or `SCHEME://…` with a scheme of `SCHEMES`.
        create: make the folder if it is missing (object stores have none to make).
        conditional_puts: False for an object store that does not honour them; see `offers_conditional_puts`.

    Raises:
        InputError: a scheme that is not allowed, a chain or a pipe, credentials in the URL, a missing folder.
        StorageError: the folder cannot be made.
    """
    text = os.fspath(location)
    scheme = scheme_of(text)
    if scheme is None or scheme == "file":
        path = Path(text if scheme is None else urlsplit(text).path)
        return LocalStorage(path, create=create)
    return ObjectStorage(text, conditional_puts=conditional_puts)


def open_versioned(location: str | os.PathLike[str]) -> Reader:
    """Opens a run, a release, or one version of a release (`REL/versions/V`), for reading.

    Raises:
        InputError: as `open_storage`, or no such version.
    """
    match = _VERSIONED.fullmatch(os.fspath(location))
    if match is None:
        return open_storage(location)
    root = open_storage(match["root"])
    folder = f"{VERSIONS}/{match['version']}"
    if not root.exists(f"{folder}/{MANIFEST}"):
        return open_storage(location)  # some other folder of that name
    return VersionStorage(root, [folder, *_newer(root, match["version"])])


def _newer(root: Reader, version: str) -> list[str]:
    """Folders of the versions after this one, oldest first, as the root's manifest lists them."""
    where = f"{root.location}/{MANIFEST}"
    manifest = read_release_manifest(root.read_bytes(MANIFEST), where=where)
    if manifest is None:
        raise SchemaError(f"{where}: not the manifest of a release")
    order = [each["version"] for each in manifest["versions"]]
    after = order[order.index(version) + 1 :] if version in order else []
    return [f"{VERSIONS}/{each}" for each in after if VERSION_NAME.fullmatch(each)]
