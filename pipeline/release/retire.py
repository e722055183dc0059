"""What happens to the files of the version before: those that the new one does not name move into its folder."""

from __future__ import annotations

import os
import shutil
from typing import Any

from ..storage.local import LocalStorage, explained
from .records import GALLERY, MACHINES, RESULT_FOLDERS, SUMS, named_files


def retire(output: LocalStorage, previous: dict[str, Any] | None, manifest: dict[str, Any]) -> None:
    """Links or copies them to `versions/OLD/`, so that the old version stays whole while the new one takes its place.

    The old names at the root are replaced, or removed by `sweep`, after the new version is committed.
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


def sweep(output: LocalStorage, manifest: dict[str, Any]) -> None:
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


def withdraw(output: LocalStorage, manifest: dict[str, Any]) -> list[str]:
    """Deletes what older versions alone still hold, and marks them: `versions/OLD/WITHDRAWN.txt` says why.

    Returns:
        The versions that are withdrawn.
    """
    withdrawn = []
    for each in manifest["versions"][:-1]:
        folder = output.path(f"versions/{each['version']}")
        held = [path for part in ("shards", "index", "examples", "gallery") for path in (folder / part).glob("**/*")]
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
