"""What may go into a release: the run, the terms of its sources, what was taken down, what images are compared with."""

from __future__ import annotations

import dataclasses
import datetime
from dataclasses import dataclass

from ..console import note
from ..dataset.reader import Unit
from ..dataset.run import RunReader
from ..errors import InputError, SampleFailureError
from ..format.granularity import GranularityMethod
from ..format.records import ConfigRecord, ReleasedSource, ReleaseManifest, RunEntry
from ..shards.plan import config_differences
from ..storage.base import Reader
from ..storage.local import LocalStorage
from .checks import ReleaseRefusedError, label_config, require_license, require_releasable
from .duplicates import DuplicateIndex, signature_of_bytes
from .mask_list import MaskList
from .records import ReleaseOptions
from .selection import EvaluationSet, SampleList, Selection
from .tables import removed_rows


@dataclass(frozen=True, kw_only=True)
class AddedRun:
    """The run that a release adds.

    Attributes:
        run: complete, see `checks.require_releasable`.
        units: all of them.
        entry: what the release says of it.
    """

    run: RunReader
    units: list[Unit]
    entry: RunEntry


@dataclass(frozen=True, kw_only=True)
class ReleaseBuild:
    """What a release is made of, and where; all that is known before its first shard is copied.

    Attributes:
        options: the flags, with what the version before decides.
        output: the release's folder.
        previous: the version that this one follows; None for a first one.
        added: None for a version that only leaves things out.
        sources: label -> licence and terms of every source that is or was in it; `samples` is 0.
        selection: decides on each sample.
        masks: what was decided about single masks.
    """

    options: ReleaseOptions
    output: LocalStorage
    previous: ReleaseManifest | None
    added: AddedRun | None
    sources: dict[str, ReleasedSource]
    selection: Selection
    masks: MaskList | None

    def granularity_method(self, run: str) -> GranularityMethod:
        """By which a run of this release computed granularities."""
        runs = [] if self.previous is None else [*self.previous["runs"]]
        runs += [] if self.added is None else [self.added.entry]
        config = next(each["config"] for each in runs if each["id"] == run)
        relative = config.get("granularity", {}).get("method") == "instance-relative"
        return "instance-relative" if relative else "instance-minmax"


def prepared_build(
    run: RunReader | None,
    output: LocalStorage,
    options: ReleaseOptions,
    previous: ReleaseManifest | None,
    exclusions: SampleList,
    kept: SampleList | None,
    masks: MaskList | None,
) -> ReleaseBuild:
    """Checks that all of it may be published together.

    Raises:
        ReleaseRefusedError: a run, a configuration or a licence that must not be.
        InputError: options that do not fit the sources or the version before.
    """
    added = None
    if run is not None:
        units = require_releasable(run, max_failed_fraction=options.max_failed_fraction)
        added = AddedRun(run=run, units=units, entry=run_entry(run, len(units), options))
        if previous is not None:
            require_same_labels(previous, added.entry)
    options = carried_on(options, previous)
    sources = known_sources(previous, run, options)
    declared = [(f"the source {label}", each["license"]) for label, each in sources.items() if each["license"]]
    proposals = proposals_license(previous, None if added is None else added.entry, options)
    require_license(options.license, declared if proposals is None else [*declared, ("the proposal file", proposals)])
    selection = Selection(
        options=options,
        exclusions=exclusions,
        kept=kept,
        taken_down=taken_down(output, previous),
        evaluation=tuple(evaluation_set(each) for each in options.against),
    )
    return ReleaseBuild(
        options=options,
        output=output,
        previous=previous,
        added=added,
        sources=sources,
        selection=selection,
        masks=masks,
    )


def run_entry(run: RunReader, units: int, options: ReleaseOptions) -> RunEntry:
    """What a release says of a run: every setting, nothing about the machine."""
    manifest, plan = run.manifest, run.plan
    assert manifest is not None
    config: ConfigRecord = {**run.config}
    config.pop("sources", None)
    return {
        "id": manifest["digest"][:12],
        "digest": manifest["digest"],
        "config": config,
        "config_hash": plan["config_hash"],
        "code_version": plan["code_version"],
        "weights_sha256": plan["weights_sha256"],
        "seed": plan["seed"],
        "sources": sorted(source["label"] for source in plan["sources"]),
        "units": units,
        "samples": manifest["samples"],
        "masks": manifest["masks"],
        "failures": manifest["failures"],
        "date": options.date or newest_commit_date(run.storage),
    }


def newest_commit_date(storage: Reader) -> str:
    """The day (UTC) on which the last commit of a run was written, as YYYY-MM-DD.

    Raises:
        InputError: the store does not say when its files were written.
    """
    times = [storage.modified(f"commits/{name}") for name in storage.list("commits")]
    known = [time for time in times if time is not None]
    if not known:
        raise InputError(f"{storage.location}: the store gives no times of its commits; say --date YYYY-MM-DD")
    return max(known).astimezone(datetime.UTC).date().isoformat()


def require_same_labels(previous: ReleaseManifest, entry: RunEntry) -> None:
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


def carried_on(options: ReleaseOptions, previous: ReleaseManifest | None) -> ReleaseOptions:
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
    previous: ReleaseManifest | None, run: RunReader | None, options: ReleaseOptions
) -> dict[str, ReleasedSource]:
    """label -> licence and terms, of every source that is or was in the release."""
    known: dict[str, ReleasedSource] = {}
    for each in [] if previous is None else previous["sources"]:
        known[each["label"]] = {**each, "samples": 0}
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


def proposals_license(previous: ReleaseManifest | None, entry: RunEntry | None, options: ReleaseOptions) -> str | None:
    """Terms of the `--proposals` file: as it declares them itself, or as the publisher does."""
    runs = [*([] if previous is None else previous["runs"]), *([] if entry is None else [entry])]
    mined = [run["config"].get("divide", {}).get("proposals_license") for run in runs]
    said = [options.proposals_license, None if previous is None else previous["proposals_license"]]
    return next((license for license in [*mined, *said] if license is not None), None)


def licenses_of_samples(build: ReleaseBuild, copied: list[ReleasedSource]) -> list[tuple[str, str]]:
    """(source, licence) where samples alone declare it: known only after they were copied.

    Args:
        build: with what the sources declare.
        copied: the same sources, with what their samples declare.
    """
    return [
        (f"the source {each['label']}", each["license"])
        for each in copied
        if each["license"] and not build.sources[each["label"]]["license"]
    ]


def taken_down(output: LocalStorage, previous: ReleaseManifest | None) -> frozenset[str]:
    """Keys and sha256 of what earlier versions excluded, which never comes back."""
    rows = [] if previous is None else removed_rows(output, previous)
    return frozenset(value for row in rows if row["why"] == "excluded" for value in (row["key"], row["source_sha256"]))


def evaluation_set(text: str) -> EvaluationSet:
    """Reads every image of `[LABEL=]SRC`; images that cannot be read are noted."""
    from ..sources.listing import plan_units
    from ..sources.unit_reader import UnitReader
    from ..sources.units import parse_inputs

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
