"""What may stand in an output directory before a run, and how an earlier run there is moved away or redone in part."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path
from typing import Final

from ..dataset.run import RunReader
from ..errors import FAILURE_REASONS, InputError
from ..format.release_tables import MANIFEST
from ..shards.commits import CommitWriter
from ..shards.lease import LEASE, OutputBusyError, busy_message, is_alive, read_lease
from ..shards.plan import PLAN, Plan, open_plan
from ..storage.base import SCRATCH, Writer
from ..storage.local import LocalStorage, explained, remove_tree

OWNED_FOLDERS: Final = ("commits", "shards", "index", "index-all", "failures", "plan")
OWNED: Final = (MANIFEST, *OWNED_FOLDERS, PLAN)
"""Names that the format owns; nothing else is ever moved or deleted. In the order in which they are moved away: the
commits early and the plan last, so that a crash between leaves a run of which less is done."""
_TRASH: Final = re.compile(r"\.trash-[0-9a-f]{16}")


def check_output(storage: Writer, *, overwrite: bool) -> None:
    """Refuses a directory that `mine` must not write into.

    Raises:
        InputError: it holds other things but no plan of ours; or `--overwrite` finds no plan of ours.
        OutputBusyError: `--overwrite` while another driver is alive.
    """
    plan = open_plan(storage)
    if overwrite:
        lease = read_lease(storage)
        if lease is not None and is_alive(storage, lease):
            raise OutputBusyError(busy_message(storage, lease))
    if plan is not None or not isinstance(storage, LocalStorage):
        return
    known = {*OWNED_FOLDERS, LEASE, SCRATCH}
    foreign = sorted(entry.name for entry in os.scandir(storage.root) if entry.name not in known)
    foreign = [name for name in foreign if not _TRASH.fullmatch(name)]
    leftovers = [name for name in OWNED_FOLDERS if name != "plan" and (storage.root / name).exists()]
    if foreign or leftovers:
        raise InputError(
            f"{storage.location}: expected an empty directory or a run of ours (plan.json), found "
            f"{', '.join((foreign + leftovers)[:3])}; choose another --output"
        )


def move_away(storage: Writer) -> None:
    """`--overwrite`: moves what the format owns into `.trash-…`, then deletes that. Follows no links.

    Raises:
        InputError: an object store, where deleting is left to its own tools.
    """
    if not isinstance(storage, LocalStorage):
        raise InputError(f"{storage.location}: --overwrite works on local directories; remove the prefix yourself")
    root = storage.root
    with explained("move away the run in", root):
        trash = root / f".trash-{secrets.token_hex(8)}"
        trash.mkdir()
        for name in OWNED:
            if os.path.lexists(root / name):
                os.rename(root / name, trash / name)
        for entry in os.scandir(root):
            if _TRASH.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                remove_tree(Path(entry.path))


def revoke_failed(storage: Writer, plan: Plan, reasons: tuple[str, ...]) -> int:
    """`--retry-failed`: makes units pending again in which a sample failed for one of these reasons.

    Returns:
        The number of units.

    Raises:
        InputError: a reason that does not exist.
    """
    for reason in reasons:
        if reason not in FAILURE_REASONS:
            raise InputError(f"--retry-failed {reason}: no such reason; there are {', '.join(FAILURE_REASONS)}")
    units = {commit.unit for commit in RunReader(storage, plan).commits() if set(commit.reasons) & set(reasons)}
    if units:
        storage.remove(MANIFEST)
        CommitWriter(storage).revoke(units)
    return len(units)
