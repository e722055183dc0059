"""A release, top to bottom: check, copy and select, index, count, describe, list, commit.

Everything is streamed shard by shard; memory holds some hundred bytes for each sample. `manifest.json` is written last,
so that a directory without it, or with that of the version before, is what a killed release leaves; the same command
goes on from the shards that are there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from ..console import note
from ..dataset.reader import Dataset
from ..dataset.run import RunReader
from ..errors import InputError
from ..format.records import ReleaseManifest
from ..format.schema import canonical_json, sealed
from ..storage.local import LocalStorage
from .checks import require_license
from .commit import commit_release, remove_unnamed, retire, withdraw
from .copy import select_shards
from .documents import describe
from .draft import draft_manifest, machines_record
from .eligibility import licenses_of_samples, prepared_build
from .folder import previous_version
from .mask_list import MaskList
from .records import ReleaseOptions
from .selection import SampleList
from .tables import MergedTables


def build_release(
    run: Dataset | None,
    output: LocalStorage,
    options: ReleaseOptions,
    *,
    append: bool = False,
    overwrite: bool = False,
    exclusions: SampleList | None = None,
    kept: SampleList | None = None,
    masks: MaskList | None = None,
    purge: bool = False,
    on_shard: Callable[[int], None] | None = None,
) -> ReleaseManifest:
    """Writes a release, or a new version of one, and returns its manifest.

    Args:
        run: what is added; None with `append` for a version that only leaves things out.
        output: the release's folder.
        options: the flags.
        append: `output` holds a release, of which this is the next version.
        overwrite: `output` may hold this very version; it is made again.
        exclusions: samples to be taken down.
        kept: of the run's samples, these alone go in; None: all.
        masks: what was decided about single masks.
        purge: delete what older versions keep of them too.
        on_shard: called with the number of shards done.

    Raises:
        ReleaseRefusedError: a run or a licence that must not be published.
        InputError: `output` holds something else.
        StorageError: the disk is full, for example.
    """
    previous = previous_version(output, options, append=append, overwrite=overwrite)
    if run is not None and not isinstance(run, RunReader):
        raise InputError(
            f"{run.location}: is a release already; give the run, or --append without DIR for a new version"
        )
    build = prepared_build(run, output, options, previous, exclusions or SampleList(), kept, masks)
    with contextlib.closing(MergedTables(output)) as tables:
        copied = select_shards(build, tables, on_shard=on_shard)
        index = tables.finish(build.options.splits)
    require_license(build.options.license, licenses_of_samples(build, copied.sources))
    draft = draft_manifest(build, copied, index)
    manifest = describe(output, draft, gallery_images=options.gallery_images)
    retire(output, previous, manifest)
    commit_release(output, manifest, canonical_json(sealed(machines_record(build))))
    remove_unnamed(output, manifest)
    if purge:
        withdraw(output, manifest)
    for line in build.selection.exclusions.unmet:
        note(f"--exclude: nothing in this release is named by {line!r}")
    for line in [] if kept is None else kept.unmet:
        note(f"--keep: nothing new in this release is named by {line!r}")
    if masks is not None:
        for key in sorted(set(masks.images) - masks.met):
            note(f"--mask-verdicts: no image in this release is named {key!r}")
        if masks.passed_over:
            note(f"--mask-verdicts: {len(masks.passed_over)} images stand with another record, which stays as it is")
    return manifest
