"""What may go into a release: the run, the terms of its sources, what was taken down, what images are compared with."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..console import note
from ..dataset.run import RunReader
from ..errors import InputError, SampleFailureError
from ..shards.commits import Commit
from ..shards.plan import config_differences
from ..storage.local import LocalStorage
from .checks import ReleaseRefusedError, label_config
from .dates import newest_commit_date
from .duplicates import DuplicateIndex, signature_of_bytes
from .records import ReleaseOptions
from .selection import EvaluationSet
from .tables import table_rows


def run_record(run: RunReader, commits: list[Commit], options: ReleaseOptions) -> dict[str, Any]:
    """What a release says of a run: every setting, nothing about the machine."""
    manifest = run.manifest
    assert manifest is not None
    config = {name: value for name, value in run.config.items() if name != "sources"}
    return {
        "id": manifest["digest"][:12],
        "digest": manifest["digest"],
        "config": config,
        "config_hash": run.plan["config_hash"],
        "code_version": run.plan["code_version"],
        "weights_sha256": run.plan["weights_sha256"],
        "seed": run.plan["seed"],
        "sources": sorted(source["label"] for source in run.plan["sources"]),
        "units": len(commits),
        "samples": manifest["samples"],
        "masks": manifest["masks"],
        "failures": manifest["failures"],
        "date": options.date or newest_commit_date(run.storage),
    }


def require_same_labels(previous: dict[str, Any], entry: dict[str, Any]) -> None:
    """A run that is added was mined like those that are there.

    Raises:
        ReleaseRefusedError: with every difference.
    """
    if entry["id"] in {run["id"] for run in previous["runs"]}:
        return
    lines = config_differences(label_config(previous["runs"][-1]["config"]), label_config(entry["config"]))
    if lines:
        listed = "\n".join(f"  {line}" for line in lines)
        raise ReleaseRefusedError(f"--append: the run was mined with another configuration than the release:\n{listed}")


def carried_on(options: ReleaseOptions, previous: dict[str, Any] | None) -> ReleaseOptions:
    """The options, with the splits of the version before, which never change.

    Raises:
        InputError: other splits are asked for.
    """
    if previous is None:
        return options
    shares, key = dict(previous["splits"]["shares"]), previous["splits"]["key"]
    if options.splits and (list(options.splits.items()) != list(shares.items()) or options.split_key != key):
        raise InputError(f"--splits: the release has {shares or 'none'} with key {key!r}, which a new version keeps")
    card = previous["card"]
    same_license = options.license.lower() == previous["license"].lower()
    return dataclasses.replace(
        options,
        splits=shares,
        split_key=key or options.split_key,
        license_link=options.license_link or (previous.get("license_link") if same_license else None),
        description=options.description or card["description"],
        people=options.people or card["people"],
    )


def known_sources(
    previous: dict[str, Any] | None, run: RunReader | None, options: ReleaseOptions
) -> dict[str, dict[str, Any]]:
    """label -> licence and terms, of every source that is or was in the release."""
    known = {} if previous is None else {each["label"]: {**each, "samples": 0} for each in previous["sources"]}
    for source in [] if run is None else run.plan["sources"]:
        label = source["label"]
        known.setdefault(label, {"label": label, "license": None, "terms": None, "samples": 0})
        known[label]["license"] = source.get("license") or known[label]["license"]
    for label, license in options.source_licenses.items():
        if label not in known:
            raise InputError(f"--source-license {label}={license}: the sources are {', '.join(sorted(known))}")
        declared = known[label]["license"]
        if declared is not None and declared.lower() != license.lower():
            raise ReleaseRefusedError(
                f"--source-license {label}={license}: {label} declared {declared} when it was mined"
            )
        known[label]["license"] = license
    for label, terms in options.source_terms.items():
        if label not in known:
            raise InputError(f"--source-terms {label}=...: the sources are {', '.join(sorted(known))}")
        known[label]["terms"] = terms
    return known


def declared_licenses(
    known: dict[str, dict[str, Any]],
    previous: dict[str, Any] | None,
    entry: dict[str, Any] | None,
    options: ReleaseOptions,
) -> list[tuple[str, str]]:
    """(who declares it, licence) of every source and of the proposal file, as far as they are declared."""
    declared = [(f"the source {each['label']}", each["license"]) for each in known.values() if each["license"]]
    license = proposals_license(previous, entry, options)
    return declared if license is None else [*declared, ("the proposal file", license)]


def proposals_license(
    previous: dict[str, Any] | None, entry: dict[str, Any] | None, options: ReleaseOptions
) -> str | None:
    """Terms of the `--proposals` file: as it declares them itself, or as the publisher does."""
    runs = [*([] if previous is None else previous["runs"]), *([] if entry is None else [entry])]
    mined = [run["config"].get("divide", {}).get("proposals_license") for run in runs]
    said = [options.proposals_license, None if previous is None else previous["proposals_license"]]
    return next((license for license in [*mined, *said] if license is not None), None)


def taken_down(output: LocalStorage, previous: dict[str, Any] | None) -> frozenset[str]:
    """Keys and sha256 of what earlier versions excluded, which never comes back."""
    rows = [] if previous is None else table_rows(output, previous["removed_table"])
    return frozenset(value for row in rows if row["why"] == "excluded" for value in (row["key"], row["source_sha256"]))


def evaluation_set(text: str) -> EvaluationSet:
    """Reads every image of `[LABEL=]SRC`; images that cannot be read are noted."""
    from ..sources.listing import UnitReader, parse_inputs, plan_units

    specs = parse_inputs([text])
    index, images, bad = DuplicateIndex(), 0, 0
    for unit in plan_units(specs, samples_per_shard=1024, limit=None):
        with UnitReader(unit, specs) as reader:
            for number in range(len(reader)):
                try:
                    read = reader.read(number)
                    signature = signature_of_bytes(read.image)
                except SampleFailureError:
                    bad += 1
                    continue
                name = read.source_uri if read.member is None else f"{read.source_uri}/{read.member}"
                index.add(name, read.sha256, signature)
                images += 1
    if bad:
        note(f"--against {text}: {bad} images cannot be read and were not compared")
    if images == 0:
        raise InputError(f"--against {text}: no image there could be read")
    return EvaluationSet(label=specs[0].label, index=index, images=images)
