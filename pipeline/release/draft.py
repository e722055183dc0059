"""The manifest of a release without its list of files, and the record of the machines beside it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ..dataset.run import RunReader
from ..dataset.stats import RunStatistics
from ..format.release_tables import DUPLICATES_SCHEMA, KIND
from ..format.schema import FAILURES_SCHEMA, FORMAT, dataset_digest, load_json
from ..shards.commits import Commit
from ..storage.local import LocalStorage
from .card import template_sha256
from .checks import ReleaseRefusedError
from .eligibility import proposals_license
from .records import MACHINES, ReleaseOptions
from .selection import Selection
from .tables import put_table, table_rows
from .takedown import REMOVED_SCHEMA


def draft_manifest(
    options: ReleaseOptions,
    previous: dict[str, Any] | None,
    entry: dict[str, Any] | None,
    run: RunReader | None,
    shards: list[dict[str, Any]],
    index: dict[str, Any],
    failures: list[dict[str, Any]],
    selection: Selection,
    known: dict[str, dict[str, Any]],
    output: LocalStorage,
) -> dict[str, Any]:
    """The manifest, without its list of files and its seal."""
    runs = [] if previous is None else list(previous["runs"])
    if entry is not None and entry["id"] not in {each["id"] for each in runs}:
        runs.append(entry)
    date = options.date or max(each["date"] for each in runs)
    digest = dataset_digest(
        ([each["unit"], each["sha256"], each["samples"], each["masks"]] for each in shards),
        ([row[name] for name in ("key", "source_uri", "member", "stage", "reason")] for row in failures),
    )
    counts = {"samples": sum(each["samples"] for each in shards), "masks": sum(each["masks"] for each in shards)}
    old_samples = 0 if previous is None else previous["samples"]
    left = {why: count for why, count in sorted(selection.left.items()) if why != "present"}
    changes = {
        "added": counts["samples"] + sum(left.values()) - old_samples if previous is not None else counts["samples"],
        "runs": 0 if entry is None else 1,
        "present": selection.left["present"],
        "left": left,
        "excluded_keys": sorted(row["key"] for row in selection.removed if row["why"] == "excluded")[:100],
    }
    version = {"version": options.version, "date": date, "digest": digest, **counts, "changes": changes}
    earlier = [] if previous is None else previous["versions"]
    removed = [] if previous is None else table_rows(output, previous["removed_table"])
    return {
        "format": FORMAT,
        "kind": KIND,
        "complete": True,
        "name": options.name,
        "title": options.name,
        "version": options.version,
        "license": options.license,
        **({} if options.license_link is None else {"license_link": options.license_link}),
        "date": date,
        "hub": None,
        "digest": digest,
        **counts,
        "failures": len(failures),
        "failure_reasons": dict(sorted(Counter(row["reason"] for row in failures).items())),
        "units": sum(each["units"] for each in runs),
        "images": _holds_images(run, previous),
        "config_hash": runs[-1]["config_hash"],
        "config": runs[-1]["config"],
        "runs": runs,
        "sources": [known[label] for label in sorted(known)],
        "proposals_license": proposals_license(previous, entry, options),
        "shards": shards,
        "index": {"samples": index["samples"], "masks": index["masks"]},
        "failures_table": put_table(output, "failures/failures", failures, FAILURES_SCHEMA),
        "removed_table": put_table(output, "removed/removed", removed + selection.removed, REMOVED_SCHEMA),
        "splits": {
            "shares": [[name, share] for name, share in options.splits.items()],  # their order decides
            "key": options.split_key if options.splits else None,
            "files": index["splits"],
            "counts": {name: tables["samples"]["rows"] for name, tables in index["splits"].items()},
            "none": _in_no_split(counts["samples"], index["splits"]),
        },
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
            "table": put_table(output, "duplicates/duplicates", selection.pairs, DUPLICATES_SCHEMA),
        },
        "card": {
            "description": options.description, "people": options.people, "template_sha256": template_sha256(),
        },
        "versions": [*earlier, version],
    }  # fmt: skip


def _in_no_split(samples: int, splits: dict[str, Any]) -> int:
    return samples - sum(tables["samples"]["rows"] for tables in splits.values()) if splits else 0


def _holds_images(run: RunReader | None, previous: dict[str, Any] | None) -> bool:
    found = set() if previous is None else {bool(previous["images"])}
    if run is not None:
        found.add(bool(run.config.get("images", True)))
    if len(found) > 1:
        raise ReleaseRefusedError("--append: one of run and release holds images, the other references only")
    return found.pop()


def machines_record(
    output: LocalStorage, previous: dict[str, Any] | None, run: RunReader | None, commits: list[Commit],
    entry: dict[str, Any] | None,
) -> dict[str, Any]:  # fmt: skip
    """Where and how fast the runs were mined: no part of the digest, and no business of the manifest."""
    runs = []
    if previous is not None and output.exists(MACHINES):
        runs = load_json(output.read_bytes(MACHINES), where=f"{output.location}/{MACHINES}")["runs"]
    if run is not None and entry is not None and entry["id"] not in {each["run"] for each in runs}:
        counted = RunStatistics()
        environments: list[Any] = []
        for commit in commits:
            counted.add_unit(seconds=commit.seconds, failures={})
            if commit.record["environment"] not in environments:
                environments.append(commit.record["environment"])
        seconds = {name: round(value, 3) for name, value in sorted(counted.seconds.items())}
        runs.append({
            "run": entry["id"], "environment": run.plan["environment"], "commit_environments": environments[:100],
            "seconds": seconds, "wall_seconds": round(counted.wall_s, 3),
        })  # fmt: skip
    return {"format": FORMAT, "kind": "machines", "runs": runs}
