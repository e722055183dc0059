"""A release, top to bottom: check, copy and select, index, count, describe, list, commit.

Everything is streamed piece by piece (a piece is one shard with its rows); memory holds some hundred bytes for each
sample. `manifest.json` is written last, so that a directory without it, or with that of the version before, is what a
killed release leaves; the same command goes on from the shards that are there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from ..console import note
from ..dataset.release import ReleaseReader
from ..dataset.run import RunReader
from ..errors import InputError
from ..format.schema import canonical_json, sealed
from ..storage.local import LocalStorage
from .checks import require_license, require_releasable
from .commit import commit_release
from .copy import select_shards
from .documents import describe
from .draft import draft_manifest, machines_record
from .eligibility import (
    carried_on,
    declared_licenses,
    evaluation_set,
    known_sources,
    require_same_labels,
    run_record,
    taken_down,
)
from .folder import previous_version
from .records import ReleaseOptions
from .retire import retire, sweep, withdraw
from .selection import Selection
from .tables import MergedTables, failure_rows
from .takedown import Exclusions


def build_release(
    run: RunReader | None,
    output: LocalStorage,
    options: ReleaseOptions,
    *,
    append: bool = False,
    overwrite: bool = False,
    exclusions: Exclusions | None = None,
    purge: bool = False,
    on_piece: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Writes a release, or a new version of one, and returns its manifest.

    Args:
        run: what is added; None with `append` for a version that only leaves things out.
        output: the release's folder.
        options: the flags.
        append: `output` holds a release, of which this is the next version.
        overwrite: `output` may hold this very version; it is made again.
        exclusions: samples to be taken down.
        purge: delete what older versions keep of them too.
        on_piece: called with the number of shards done.

    Raises:
        ReleaseRefusedError: a run or a licence that must not be published.
        InputError: `output` holds something else.
        StorageError: the disk is full, for example.
    """
    previous = previous_version(output, options, append=append, overwrite=overwrite)
    if isinstance(run, ReleaseReader):
        raise InputError(
            f"{run.location}: is a release already; give the run, or --append without DIR for a new version"
        )
    commits = [] if run is None else require_releasable(run, max_failed_fraction=options.max_failed_fraction)
    entry = None if run is None else run_record(run, commits, options)
    if previous is not None and entry is not None:
        require_same_labels(previous, entry)
    options = carried_on(options, previous)
    known = known_sources(previous, run, options)
    require_license(options.license, declared_licenses(known, previous, entry, options))
    selection = Selection(
        options=options,
        exclusions=exclusions or Exclusions(),
        taken_down=taken_down(output, previous),
        evaluation=tuple(evaluation_set(each) for each in options.against),
    )
    with contextlib.closing(MergedTables(output)) as tables:
        shards = select_shards(run, commits, entry, previous, output, selection, known, tables, on_piece)
        index = tables.finish(options.splits)
    failures = failure_rows(run, commits, output, previous)
    require_license(options.license, declared_licenses(known, previous, entry, options))  # by samples too
    draft = draft_manifest(options, previous, entry, run, shards, index, failures, selection, known, output)
    manifest = describe(output, draft, gallery_images=options.gallery_images)
    retire(output, previous, manifest)
    commit_release(output, manifest, canonical_json(sealed(machines_record(output, previous, run, commits, entry))))
    sweep(output, manifest)
    if purge:
        withdraw(output, manifest)
    for line in selection.exclusions.unmet:
        note(f"--exclude: nothing in this release is named by {line!r}")
    return manifest
