"""The end of a release: described files into their places, SHA256SUMS, then the manifest, which is the commit.

Also how files get into a release: tens of thousands of them are written before the one that commits them, and are made
to last by one sync of the file system instead of two for each file, which would cost a disk's round trip every time.
Nothing is lost without it, because a file that a power cut spoils has another sha256 than the one that the manifest
names, and the manifest is written after `make_durable`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..format.records import ReleaseManifest
from ..format.release_tables import MANIFEST
from ..format.schema import canonical_json, load_json, sealed
from ..storage.local import LocalStorage, explained
from .records import (
    CARD,
    GALLERY,
    MACHINES,
    NEXT,
    RESULT_FOLDERS,
    STATISTICS,
    SUMS,
    file_record,
    json_text,
    named_files,
)


def commit_release(output: LocalStorage, manifest: ReleaseManifest, machines: bytes) -> None:
    """Puts the described files into their places, then SHA256SUMS, then the manifest: the commit."""
    for file in manifest["files"]:
        staged = output.path(f"{NEXT}/{file['name']}")
        if staged.is_file():
            place(output, staged, file["name"])
    data = canonical_json(sealed(manifest))
    make_durable()
    output.put_atomic(MACHINES, machines)
    output.put_atomic(SUMS, sums_text(manifest, data))
    output.put_atomic(f"versions/{manifest['version']}/{MANIFEST}", data)
    output.put_atomic(MANIFEST, data)
    output.clean_scratch()


def sums_text(manifest: ReleaseManifest, manifest_bytes: bytes) -> bytes:
    """SHA256SUMS: every file of the manifest and the manifest itself, for `sha256sum --check`."""
    named = [(record["name"], record["sha256"]) for record in named_files(manifest)]
    named.append((MANIFEST, file_record(MANIFEST, manifest_bytes)["sha256"]))
    return "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(named)).encode()


def copy_card(output: LocalStorage, manifest: ReleaseManifest, folder: str) -> None:
    """Puts `NAME-VERSION.md` and, as `NAME-VERSION.json`, the numbers it was rendered from into a folder."""
    target = Path(folder)
    name = f"{manifest['name'].rsplit('/', 1)[-1]}-{manifest['version']}"
    told = {field: value for field, value in manifest.items() if field != "files"}
    where = f"{output.location}/{STATISTICS}"
    record = {"manifest": told, "statistics": load_json(output.read_bytes(STATISTICS), where=where)}
    with explained("write", target):
        target.mkdir(parents=True, exist_ok=True)
        (target / f"{name}.md").write_bytes(output.read_bytes(CARD))
        (target / f"{name}.json").write_bytes(json_text(record))


# ---------------------------------------------------------------------------------------------------------------------
# The version before


def retire(output: LocalStorage, previous: ReleaseManifest | None, manifest: ReleaseManifest) -> None:
    """Links or copies them to `versions/OLD/`, so that the old version stays whole while the new one takes its place.

    The old names at the root are replaced, or removed (`remove_unnamed`), after the new version is committed.
    """
    if previous is None:
        return
    new = {each["name"]: each["sha256"] for each in named_files(manifest)}
    gone = [each["name"] for each in named_files(previous) if new.get(each["name"]) != each["sha256"]]
    for name in [*gone, SUMS, MACHINES]:
        source, target = output.path(name), output.path(f"versions/{previous['version']}/{name}")
        if target.exists() or not source.exists():
            continue
        with explained("write", target):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, target)
            except OSError:  # a file system without hard links
                shutil.copyfile(source, target)


def remove_unnamed(output: LocalStorage, manifest: ReleaseManifest) -> None:
    """Removes what the new version does not name from folders that loaders read as a whole.

    That is what the version before had (it lies in `versions/OLD/` by now), what this very version had when it was made
    before, and what a killed release left.
    """
    kept = {each["name"] for each in named_files(manifest)}
    for folder in (*RESULT_FOLDERS, "gallery"):
        for name in output.list(folder):
            if f"{folder}/{name}" not in kept:
                output.remove(f"{folder}/{name}")
    if GALLERY not in kept:
        output.remove(GALLERY)


def withdraw(output: LocalStorage, manifest: ReleaseManifest) -> list[str]:
    """Deletes what older versions alone still hold, and marks them: `versions/OLD/WITHDRAWN.txt` says why.

    Returns:
        The versions that are withdrawn.
    """
    withdrawn = []
    for each in manifest["versions"][:-1]:
        folder = output.path(f"versions/{each['version']}")
        held = [path for name in ("shards", "index", "examples", "gallery") for path in (folder / name).glob("**/*")]
        files = [path for path in held if path.is_file()]
        if not files:
            continue
        with explained("remove", folder):
            for path in files:
                path.unlink(missing_ok=True)
        text = f"Withdrawn with {manifest['version']}: samples were taken down; what only this version held is gone.\n"
        output.put_atomic(f"versions/{each['version']}/WITHDRAWN.txt", text.encode())
        withdrawn.append(each["version"])
    return withdrawn


# ---------------------------------------------------------------------------------------------------------------------
# Files


@contextmanager
def scratch_file(output: LocalStorage) -> Iterator[Path]:
    """A path for a file on its way to `place`; gone afterwards, whatever happened."""
    path = output.path(f"tmp/bulk.{os.urandom(8).hex()}")
    with explained("create", path.parent):
        path.parent.mkdir(exist_ok=True)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def place(output: LocalStorage, path: Path, name: str) -> None:
    """Moves a complete file to its name; durable after `make_durable`."""
    final = output.path(name)
    with explained("write", final):
        final.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, final)


def put(output: LocalStorage, name: str, data: bytes) -> None:
    """Writes a file that appears complete; durable after `make_durable`."""
    with scratch_file(output) as path:
        with explained("write", path):
            path.write_bytes(data)
        place(output, path, name)


def make_durable() -> None:
    """Everything written before this survives a power cut after it."""
    os.sync()
