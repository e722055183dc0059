"""The manifest of a release without its list of files, and the record of the machines beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ..dataset.stats import RunStatistics
from ..format.records import (
    ChangesRecord,
    FailedRow,
    MachineRecord,
    MachinesRecord,
    ReleasedShardRecord,
    ReleaseManifest,
    SplitsRecord,
    VersionRecord,
    read_record,
)
from ..format.release_tables import DUPLICATES_SCHEMA, KIND, REMOVED_SCHEMA
from ..format.schema import FAILURES_SCHEMA, FORMAT, dataset_digest
from .card import template_sha256
from .checks import ReleaseRefusedError
from .copy import CopiedShards
from .eligibility import AddedRun, ReleaseBuild, proposals_license
from .records import MACHINES
from .tables import ReleasedIndex, failure_rows, put_table, removed_rows


def draft_manifest(build: ReleaseBuild, copied: CopiedShards, index: ReleasedIndex) -> ReleaseManifest:
    """The manifest, without what `documents.describe` makes of it."""
    options, previous, added, selection = build.options, build.previous, build.added, build.selection
    runs = [] if previous is None else [*previous["runs"]]
    if added is not None and added.entry["id"] not in {each["id"] for each in runs}:
        runs.append(added.entry)
    date = options.date or max(each["date"] for each in runs)
    failures = _failures(build)
    digest = release_digest(copied.shards, failures)
    samples, masks = (sum(each["samples"] for each in copied.shards), sum(each["masks"] for each in copied.shards))
    left = {why: count for why, count in sorted(selection.left.items()) if why != "present"}
    changes: ChangesRecord = {
        "added": samples if previous is None else samples + selection.left_standing - previous["samples"],
        "runs": 0 if added is None else 1,
        "present": selection.left["present"],
        "left": left,
        "excluded_keys": sorted(row["key"] for row in selection.removed if row["why"] == "excluded")[:100],
    }
    if build.masks is not None:
        changes["curated"] = build.masks.record()
    version: VersionRecord = {
        "version": options.version, "date": date, "digest": digest, "samples": samples, "masks": masks,
        "changes": changes,
    }  # fmt: skip
    removed = [] if previous is None else removed_rows(build.output, previous)
    manifest: ReleaseManifest = {
        "format": FORMAT,
        "kind": KIND,
        "complete": True,
        "name": options.name,
        "title": options.name,
        "version": options.version,
        "license": options.license,
        "date": date,
        "hub": None,
        "digest": digest,
        "samples": samples,
        "masks": masks,
        "failures": len(failures),
        "failure_reasons": dict(sorted(Counter(row["reason"] for row in failures).items())),
        "units": sum(each["units"] for each in runs),
        "images": _holds_images(previous, added),
        "config_hash": runs[-1]["config_hash"],
        "config": runs[-1]["config"],
        "runs": runs,
        "sources": copied.sources,
        "proposals_license": proposals_license(previous, None if added is None else added.entry, options),
        "shards": copied.shards,
        "index": index.whole,
        "failures_table": put_table(build.output, "failures/failures", failures, FAILURES_SCHEMA),
        "removed_table": put_table(build.output, "removed/removed", removed + selection.removed, REMOVED_SCHEMA),
        "splits": splits_record(
            [(name, share) for name, share in options.splits.items()],
            options.split_key if options.splits else None, index, samples,
        ),
        "duplicates": {
            "searched": options.duplicates,
            "counts": {kind: selection.counts[kind] for kind in ("exact", "near")},
            "removed": {kind: selection.left[kind] for kind in ("exact", "near")},
            "unsigned": selection.unsigned if options.duplicates else 0,
            "against": [
                {
                    "label": each.label, "images": each.images, "exact": each.exact, "near": each.near,
                    "removed": each.removed,
                }
                for each in selection.evaluation
            ],
            "table": put_table(build.output, "duplicates/duplicates", selection.pairs, DUPLICATES_SCHEMA),
        },
        "card": {
            "description": options.description, "people": options.people, "template_sha256": template_sha256(),
        },
        "versions": [*([] if previous is None else previous["versions"]), version],
        "charts": [],
        "examples": [],
        "gallery": False,
        "files": [],
    }  # fmt: skip
    if options.license_link is not None:
        manifest["license_link"] = options.license_link
    return manifest


def release_digest(shards: Iterable[ReleasedShardRecord], failures: Iterable[FailedRow]) -> str:
    """Of the data of a release."""
    return dataset_digest(
        ([each["unit"], each["sha256"], each["samples"], each["masks"]] for each in shards),
        ([row["key"], row["source_uri"], row["member"], row["stage"], row["reason"]] for row in failures),
    )


def splits_record(
    shares: Sequence[tuple[str, float]], key: str | None, index: ReleasedIndex, samples: int
) -> SplitsRecord:
    """Of a release with an index and so many samples."""
    counts = {name: tables["samples"]["rows"] for name, tables in index.splits.items()}
    none = samples - sum(counts.values()) if counts else 0
    return {"shares": [*shares], "key": key, "files": index.splits, "counts": counts, "none": none}


def _failures(build: ReleaseBuild) -> list[FailedRow]:
    """Every sample that is in no shard, those of earlier versions first, each key once."""
    rows = [] if build.previous is None else failure_rows(build.output, build.previous)
    seen = {row["key"] for row in rows}
    if build.added is not None:
        for unit in build.added.units:
            rows += [row for row in build.added.run.failures(unit).to_pylist() if row["key"] not in seen]
    return rows


def _holds_images(previous: ReleaseManifest | None, added: AddedRun | None) -> bool:
    found = set() if previous is None else {previous["images"]}
    if added is not None:
        found.add(added.run.config.get("images", True))
    if len(found) > 1:
        raise ReleaseRefusedError("--append: one of run and release holds images, the other references only")
    return found.pop()


def machines_record(build: ReleaseBuild) -> MachinesRecord:
    """Where and how fast the runs were mined: no part of the digest, and no business of the manifest."""
    output, added = build.output, build.added
    runs: list[MachineRecord] = []
    if build.previous is not None and output.exists(MACHINES):
        where = f"{output.location}/{MACHINES}"
        runs = read_record(output.read_bytes(MACHINES), MachinesRecord, where=where)["runs"]
    if added is not None and added.entry["id"] not in {each["run"] for each in runs}:
        counted = RunStatistics()
        environments: list[dict[str, object]] = []
        for unit in added.units:
            counted.add_unit(seconds=unit.seconds, failures={})
            if unit.commit is not None and unit.commit.record["environment"] not in environments:
                environments.append(unit.commit.record["environment"])
        seconds = {name: round(value, 3) for name, value in sorted(counted.seconds.items())}
        runs.append({
            "run": added.entry["id"], "environment": added.run.plan["environment"],
            "commit_environments": environments[:100], "seconds": seconds, "wall_seconds": round(counted.wall_s, 3),
        })  # fmt: skip
    return {"format": FORMAT, "kind": "machines", "runs": runs}
