"""Sending a release to the Hugging Face Hub, by its own client.

Each of its calls is repeated as a request to any store is. The client repeats some requests inside a call as well, such
as uploads of large files; that cannot be switched off.

Data goes in commits of its own; the last commit brings everything that describes it (card, Croissant, sums, manifest)
and takes away what the new version does not have, so that the branch shows the version before or the new one. Each
version gets a tag, `v1.0.0`, by which it stays loadable (`revision=`).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from ..console import note
from ..errors import InputError
from ..format.records import ReleaseManifest
from ..format.release_tables import MANIFEST
from ..storage.local import LocalStorage, sha256_of_file
from ..storage.retry import is_permanent, retrying
from .push_plan import FILES_PER_COMMIT, LAST, PushReport, files_in_order, resumable

_REPOSITORY: Final = re.compile(r"hf://(?:datasets/)?([\w.-]+/[\w.-]+)/?")
TOKEN: Final = "HF_TOKEN"
_Result = TypeVar("_Result")


def push_to_hub(
    release: LocalStorage,
    manifest: ReleaseManifest,
    target: str,
    *,
    dry_run: bool,
    on_file: Callable[[int, int], None] | None,
) -> PushReport:
    """Sends a release to `hf://OWNER/NAME` (a dataset repository, made private if it is missing).

    Raises:
        InputError: not such an address, no token, or no client installed.
        PushError: it did not work, however often it was tried.
    """
    match = _REPOSITORY.fullmatch(target)
    if match is None:
        raise InputError(f"--push {target}: expected hf://OWNER/NAME")
    names = files_in_order(release, manifest)
    last = [name for name in names if name in LAST or name.endswith(MANIFEST)]
    data = [name for name in names if name not in set(last)]
    report = PushReport(target=target)
    hub = _Hub(match[1], report, dry_run=dry_run)
    hub.make()
    there = hub.files()
    fresh = [name for name in data if there.get(name) not in _identities(release.path(name))]
    report.standing += len(data) - len(fresh)
    for start in range(0, len(fresh), FILES_PER_COMMIT):
        batch = fresh[start : start + FILES_PER_COMMIT]
        hub.commit(release, batch, [], f"Data of {manifest['version']}, {start + len(batch)} of {len(fresh)} files")
        if on_file is not None:
            on_file(start + len(batch), len(names))
    gone = sorted(name for name in there if _ours(name) and name not in set(names))
    changed = [name for name in last if there.get(name) not in _identities(release.path(name))]
    report.standing += len(last) - len(changed)
    if changed or gone:
        hub.commit(release, changed, gone, f"{manifest['name']} {manifest['version']}")
    hub.tag(f"v{manifest['version']}")
    if on_file is not None:
        on_file(len(names), len(names))
    return report


def _ours(name: str) -> bool:
    """Whether a name in the repository is one that releases use."""
    return name.split("/", 1)[0] in {
        "shards", "index", "failures", "duplicates", "removed", "figures", "examples", "gallery", "gallery.html",
    }  # fmt: skip


def _identities(path: Path) -> set[str]:
    """By what the Hub may know a file: its sha256 (large files) or the id of its git blob."""
    blob = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as stream:
        while data := stream.read(2**20):
            blob.update(data)
    return {sha256_of_file(path), blob.hexdigest()}


def _is_permanent(error: Exception) -> bool:
    """As of any store, but a conflict stays one, and its client's uploads fail with a bare RuntimeError."""
    if getattr(getattr(error, "response", None), "status_code", None) == 409:
        return True
    return is_permanent(error) and not isinstance(error, RuntimeError)


class _Hub:
    """The few calls that a push makes; with `dry_run` they are only told."""

    def __init__(self, repository: str, report: PushReport, *, dry_run: bool) -> None:
        self._repository, self._report, self._dry_run = repository, report, dry_run
        self._api: Any = None
        if dry_run:
            return
        try:
            import huggingface_hub
            import huggingface_hub.utils
        except ImportError as error:
            raise InputError(f"--push hf://: needs huggingface_hub ({error}); install grainmill[hub]") from error
        token = os.environ.get(TOKEN)
        if not token:
            raise InputError(f"--push hf://: set {TOKEN} in the environment; tokens are read from nowhere else")
        huggingface_hub.utils.disable_progress_bars()  # ours tells files; theirs would stand between its lines
        self._api = huggingface_hub.HfApi(token=token, library_name="grainmill")

    def _call(self, line: str, call: Callable[[], _Result]) -> _Result | None:
        self._report.calls.append(line)
        if self._dry_run:
            return None
        with resumable():
            what = f"call {line.splitlines()[0]} ({self._repository})"
            return retrying(what, call, is_permanent=_is_permanent, on_wait=note)

    def make(self) -> None:
        """The repository, private if it is new: who publishes it looks at it first."""
        self._call(
            f"create_repo {self._repository} (dataset, private, if it is missing)",
            lambda: self._api.create_repo(self._repository, repo_type="dataset", private=True, exist_ok=True),
        )

    def files(self) -> dict[str, str]:
        """name -> sha256 of what is there, or for small files the id of their git blob."""

        def listed() -> dict[str, str]:
            found = {}
            for entry in self._api.list_repo_tree(self._repository, repo_type="dataset", recursive=True):
                if hasattr(entry, "blob_id"):  # a file
                    found[entry.path] = entry.lfs.sha256 if entry.lfs else entry.blob_id
            return found

        return self._call(f"list_repo_tree {self._repository}", listed) or {}

    def commit(self, release: LocalStorage, names: list[str], gone: list[str], message: str) -> None:
        """One commit: files to add, files to delete."""
        self._report.sent += names
        self._report.removed += gone
        self._report.sent_bytes += sum(release.path(name).stat().st_size for name in names)

        def committed() -> None:
            from huggingface_hub import CommitOperationAdd, CommitOperationDelete

            operations: list[Any] = [
                CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(release.path(name))) for name in names
            ]
            operations += [CommitOperationDelete(path_in_repo=name, is_folder=False) for name in gone]
            self._api.create_commit(self._repository, operations, commit_message=message, repo_type="dataset")

        added = "".join(f"\n  add {name}" for name in names) + "".join(f"\n  delete {name}" for name in gone)
        self._call(f"create_commit {message!r}{added}", committed)

    def tag(self, name: str) -> None:
        """Marks the version; a tag that stands is left."""
        self._call(
            f"create_tag {name}",
            lambda: self._api.create_tag(self._repository, tag=name, repo_type="dataset", exist_ok=True),
        )
