"""A release, top to bottom: check, copy and select, index, count, describe, list, commit.

Everything is streamed piece by piece (a piece is one shard with its rows); memory holds some hundred bytes for each
sample. `manifest.json` is written last, so that a directory without it, or with that of the version before, is what a
killed release leaves; the same command goes on from the shards that are there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from ..commits import Commit
from ..committed import CommittedRun
from ..console import note
from ..errors import InputError, SampleFailureError
from ..manifest import MergedTable
from ..plan import config_differences
from ..schema import FAILURES_SCHEMA, FORMAT, MASKS_SCHEMA, canonical_json, dataset_digest, load_json, sealed
from ..stats import RunStatistics
from ..storage import LocalStorage, Storage, explained, open_storage
from ..writer import HASH_DIGITS, parquet_bytes
from . import figures
from .bulk import make_durable, place, put
from .card import card_text, changelog_text, shards_card_text, template_sha256
from .checks import ReleaseRefusedError, label_config, require_license, require_releasable
from .croissant import croissant
from .dates import newest_commit_date
from .duplicates import DuplicateIndex, Signature, signature_of_bytes
from .pieces import Piece, copy_and_sign, cut_shard, pieces_of_release, pieces_of_run, sign
from .reading import ReleasedRun, read_manifest
from .records import (
    CARD,
    CHANGELOG,
    CROISSANT,
    DUPLICATES_SCHEMA,
    KIND,
    MACHINES,
    MANIFEST,
    RELEASED_SAMPLES_SCHEMA,
    SHARDS_CARD,
    STATISTICS,
    SUMS,
    ReleaseOptions,
    file_record,
)
from .removal import REMOVED_SCHEMA, Exclusions
from .selection import EvaluationSet, Selection
from .statistics import count_index, statistics_json
from .versions_out import retire, sweep, withdraw

NEXT: Final = "tmp/next"
"""Where described files wait until everything is there."""
PIECES_AHEAD: Final = 4
"""Pieces in flight for each worker process."""


def build_release(
    run: CommittedRun | None,
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
    previous = _previous(output, options, append=append, overwrite=overwrite)
    if isinstance(run, ReleasedRun):
        raise InputError(
            f"{run.location}: is a release already; give the run, or --append without DIR for a new version"
        )
    commits = [] if run is None else require_releasable(run, max_failed_fraction=options.max_failed_fraction)
    entry = None if run is None else run_record(run, commits, options)
    if previous is not None and entry is not None:
        _require_same_labels(previous, entry)
    options = _carried_on(options, previous)
    known = _sources(previous, run, options)
    require_license(options.license, _declared(known, previous, entry, options))
    selection = Selection(
        options=options,
        exclusions=exclusions or Exclusions(),
        taken_down=_taken_down(output, previous),
        evaluation=tuple(_evaluation_set(each) for each in options.against),
    )
    with contextlib.closing(MergedTables(output)) as tables:
        shards = _select(run, commits, entry, previous, output, selection, known, tables, on_piece)
        index = tables.finish(options.splits)
    failures = _failures(run, commits, output, previous)
    require_license(options.license, _declared(known, previous, entry, options))  # and what only samples declare
    draft = _draft(options, previous, entry, run, shards, index, failures, selection, known, output)
    manifest = describe(output, draft, options)
    retire(output, previous, manifest)
    commit_release(output, manifest, canonical_json(sealed(_machines(output, previous, run, commits, entry))))
    sweep(output, manifest)
    if purge:
        withdraw(output, manifest)
    for line in selection.exclusions.unmet:
        note(f"--exclude: nothing in this release is named by {line!r}")
    return manifest


def standing_version(output: LocalStorage, name: str | None, version: str | None) -> dict[str, Any] | None:
    """The release that stands in a folder, if it is the one that is asked for (None asks for any)."""
    manifest = read_manifest(output)
    if manifest is None or name not in (None, manifest["name"]) or version not in (None, manifest["version"]):
        return None
    return manifest


def _previous(output: LocalStorage, options: ReleaseOptions, *, append: bool, overwrite: bool) -> dict[str, Any] | None:
    """The version that this one follows; None for a first one.

    Raises:
        InputError: the folder holds something else than what the flags say.
    """
    manifest = read_manifest(output)
    if append:
        if manifest is None:
            raise InputError(
                f"{output.location}: --append needs a release there, found none; leave --append out for a first one"
            )
        if manifest["name"] != options.name:
            raise InputError(
                f"{output.location}: holds the release {manifest['name']!r}, found --name {options.name!r}"
            )
        if any(each["version"] == options.version for each in manifest["versions"]):
            raise InputError(
                f"{output.location}: has version {options.version} already; a new version needs a new --version"
            )
        return manifest
    if manifest is not None:
        same = (manifest["name"], manifest["version"]) == (options.name, options.version)
        if not (overwrite and same and len(manifest["versions"]) == 1):
            raise InputError(
                f"{output.location}: holds {manifest['name']} {manifest['version']}; give --append for a next version, "
                "--overwrite to make this very version again, or another --output"
            )
        return None
    foreign = sorted(entry.name for entry in os.scandir(output.root) if entry.name not in _OWNED)
    if foreign:
        raise InputError(f"{output.location}: expected an empty directory or a release, found {', '.join(foreign[:3])}")
    return None


_OWNED: Final = frozenset({
    "shards", "index", "failures", "duplicates", "removed", "figures", "examples", "gallery", "gallery.html",
    "versions", "tmp", CARD, CHANGELOG, CROISSANT, MACHINES, MANIFEST, STATISTICS, SUMS, ".gitattributes",
})  # fmt: skip
"""Names at the top of a release's folder."""


# ---------------------------------------------------------------------------------------------------------------------
# What goes in


def run_record(run: CommittedRun, commits: list[Commit], options: ReleaseOptions) -> dict[str, Any]:
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


def _require_same_labels(previous: dict[str, Any], entry: dict[str, Any]) -> None:
    if entry["id"] in {run["id"] for run in previous["runs"]}:
        return
    lines = config_differences(label_config(previous["runs"][-1]["config"]), label_config(entry["config"]))
    if lines:
        listed = "\n".join(f"  {line}" for line in lines)
        raise ReleaseRefusedError(f"--append: the run was mined with another configuration than the release:\n{listed}")


def _carried_on(options: ReleaseOptions, previous: dict[str, Any] | None) -> ReleaseOptions:
    """The options, with the splits of the version before, which never change.

    Raises:
        InputError: other splits are asked for.
    """
    import dataclasses

    if previous is None:
        return options
    shares, key = dict(previous["splits"]["shares"]), previous["splits"]["key"]
    if options.splits and (list(options.splits.items()) != list(shares.items()) or options.split_key != key):
        raise InputError(f"--splits: the release has {shares or 'none'} with key {key!r}, which a new version keeps")
    card = previous["card"]
    return dataclasses.replace(
        options,
        splits=shares,
        split_key=key or options.split_key,
        description=options.description or card["description"],
        people=options.people or card["people"],
    )


def _sources(
    previous: dict[str, Any] | None, run: CommittedRun | None, options: ReleaseOptions
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


def _declared(
    known: dict[str, dict[str, Any]],
    previous: dict[str, Any] | None,
    entry: dict[str, Any] | None,
    options: ReleaseOptions,
) -> list[tuple[str, str]]:
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


def _taken_down(output: LocalStorage, previous: dict[str, Any] | None) -> frozenset[str]:
    rows = [] if previous is None else table_rows(output, previous["removed_table"])
    return frozenset(value for row in rows if row["why"] == "excluded" for value in (row["key"], row["source_sha256"]))


def table_rows(storage: Storage, file: dict[str, Any] | None) -> list[dict[str, Any]]:
    import io

    import pyarrow.parquet as pq

    if file is None:
        return []
    rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(storage.read_bytes(file["name"]))).to_pylist()
    return rows


def _evaluation_set(text: str) -> EvaluationSet:
    """Reads every image of `[LABEL=]SRC`; images that cannot be read are noted."""
    from ..sources import UnitReader, parse_inputs, plan_units

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


# ---------------------------------------------------------------------------------------------------------------------
# Shards and index


def _select(
    run: CommittedRun | None,
    commits: list[Commit],
    entry: dict[str, Any] | None,
    previous: dict[str, Any] | None,
    output: LocalStorage,
    selection: Selection,
    known: dict[str, dict[str, Any]],
    tables: MergedTables,
    on_piece: Callable[[int], None] | None,
) -> list[dict[str, Any]]:
    """Copies what stays, in order, and feeds the index. Returns the shards of the manifest."""
    standing = set() if previous is None else {shard["sha256"] for shard in previous["shards"]}
    shards, done = [], 0
    before = iter(()) if previous is None else pieces_of_release(ReleasedRun(output, previous))
    for piece in before:
        kept = _decided(piece, _standing_signatures(piece, output, selection), selection, output, known, tables)
        shards += kept
        done += 1
        if on_piece is not None:
            on_piece(done)
    if run is not None and entry is not None:
        fresh = (p for p in pieces_of_run(run, commits, entry["id"]) if p.shard and p.shard["sha256"] not in standing)
        for piece, signatures in _copied(fresh, output, selection.options):
            shards += _decided(piece, signatures, selection, output, known, tables)
            done += 1
            if on_piece is not None:
                on_piece(done)
    if not shards:
        raise ReleaseRefusedError("nothing is left: every image was excluded, a duplicate, or in the release already")
    return shards


def _standing_signatures(piece: Piece, output: LocalStorage, selection: Selection) -> list[Signature | None]:
    """From the index of the version before; from the images, if that version did not look for duplicates."""
    if not selection.options.duplicates:
        return [None] * piece.samples.num_rows
    rows = piece.samples.to_pylist()
    if all(row["perceptual_hash"] is not None for row in rows):
        return [Signature.from_hex(row["perceptual_hash"], row["colour_grid"]) for row in rows]
    return sign(output, rows)


def _copied(
    pieces: Iterator[Piece], output: LocalStorage, options: ReleaseOptions
) -> Iterator[tuple[Piece, list[Signature | None]]]:
    """Pieces of a run, in order, each copied into the release, with the signatures of its images."""
    columns = ["key", "shard", "image_offset", "image_size"]
    target = str(output.root)
    if options.workers <= 1:
        for piece in pieces:
            assert piece.shard is not None
            rows = piece.samples.select(columns).to_pylist()
            yield piece, copy_and_sign(piece.location, piece.shard, rows, target, options.duplicates)
        return
    waiting: deque[tuple[Piece, Future[list[Signature | None]]]] = deque()
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        for piece in pieces:
            assert piece.shard is not None
            rows = piece.samples.select(columns).to_pylist()
            future = pool.submit(copy_and_sign, piece.location, piece.shard, rows, target, options.duplicates)
            waiting.append((piece, future))
            if len(waiting) >= options.workers * PIECES_AHEAD:
                first, result = waiting.popleft()
                yield first, result.result()
        while waiting:
            first, result = waiting.popleft()
            yield first, result.result()


def _decided(
    piece: Piece,
    signatures: list[Signature | None],
    selection: Selection,
    output: LocalStorage,
    known: dict[str, dict[str, Any]],
    tables: MergedTables,
) -> list[dict[str, Any]]:
    """Decides on each sample of a piece, cuts the shard if some go, and indexes what stays."""
    rows = piece.samples.to_pylist()
    decisions = [
        selection.decide(row, signature, standing=piece.standing)
        for row, signature in zip(rows, signatures, strict=True)
    ]
    keep = [decision.left is None for decision in decisions]
    added = [
        _added_columns(row, piece.run, decision.split, signature, known)
        for row, decision, signature in zip(rows, decisions, signatures, strict=True)
        if decision.left is None
    ]
    final: Piece | None = piece
    if not all(keep):
        final = cut_shard(output, piece, keep, output)
        assert piece.shard is not None
        if not piece.standing and (final is None or final.shard is None or final.shard["name"] != piece.shard["name"]):
            output.remove(piece.shard["name"])
    if final is None:
        return []
    kept_rows = [{**row, **columns} for row, columns in zip(final.samples.to_pylist(), added, strict=True)]
    tables.add(pa.Table.from_pylist(kept_rows, schema=RELEASED_SAMPLES_SCHEMA), final.masks)
    assert final.shard is not None
    return [{**final.shard, "unit": final.unit, "run": final.run}]


def _added_columns(
    row: dict[str, Any], run: str, split: str | None, signature: Signature | None, known: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    source = known[row["source_uri"].split("/", 1)[0]]
    source["samples"] += 1
    if row["license"] is not None and source["license"] is None:  # declared by the samples alone
        source["license"] = row["license"]
    return {
        "run": run,
        "split": split,
        "source_license": row["license"] or source["license"],
        "source_terms": source["terms"],
        "perceptual_hash": None if signature is None else signature.perceptual_hash,
        "colour_grid": None if signature is None else signature.colour_grid,
    }


class MergedTables:
    """The merged index, and one pair of tables for each split besides."""

    def __init__(self, output: LocalStorage) -> None:
        self._output = output
        self._folder = output.scratch(f"index.{os.urandom(6).hex()}")
        self._schemas = {"samples": RELEASED_SAMPLES_SCHEMA, "masks": MASKS_SCHEMA}
        self._parts: dict[tuple[str | None, str], MergedTable] = {}

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)  # swept with tmp/ if it stays

    def add(self, samples: pa.Table, masks: pa.Table) -> None:
        import pyarrow.compute as pc

        self._part(None, "samples").add(samples)
        self._part(None, "masks").add(masks)
        for split in sorted(set(samples.column("split").to_pylist()) - {None}):
            theirs = samples.filter(pc.equal(samples.column("split"), split))
            keys = theirs.column("key").combine_chunks()
            self._part(split, "samples").add(theirs)
            self._part(split, "masks").add(masks.filter(pc.is_in(masks.column("key"), value_set=keys)))

    def _part(self, split: str | None, table: str) -> MergedTable:
        if (split, table) not in self._parts:
            path = self._folder / f"{table}-{split or ''}.parquet"
            self._parts[split, table] = MergedTable(path, self._schemas[table])
        return self._parts[split, table]

    def finish(self, splits: dict[str, float]) -> dict[str, Any]:
        """Publishes everything: {"samples", "masks", "splits": {name: {"samples", "masks"}}}."""
        records: dict[str, Any] = {"splits": {}}
        for split in [None, *splits]:
            tables = {table: self._publish(split, table) for table in ("samples", "masks")}
            if split is None:
                records |= tables
            else:
                records["splits"][split] = tables
        return records

    def _publish(self, split: str | None, table: str) -> dict[str, Any]:
        part = self._part(split, table)
        rows = part.finish()
        with part.path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        middle = "" if split is None else f"{split}-"
        name = f"index/{table}-{middle}{sha256[:HASH_DIGITS]}.parquet"
        size = part.path.stat().st_size
        place(self._output, part.path, name)
        return {"name": name, "size": size, "sha256": sha256, "rows": rows}


def put_table(output: LocalStorage, name: str, rows: list[dict[str, Any]], schema: pa.Schema) -> dict[str, Any] | None:
    """Writes rows as `NAME-HASH.parquet`; None (and nothing written) if there are none."""
    if not rows:
        return None
    data = parquet_bytes(pa.Table.from_pylist(rows, schema=schema))
    record = file_record("", data)
    record["name"] = f"{name}-{record['sha256'][:HASH_DIGITS]}.parquet"
    put(output, record["name"], data)
    return {**record, "rows": len(rows)}


def _failures(
    run: CommittedRun | None, commits: list[Commit], output: LocalStorage, previous: dict[str, Any] | None
) -> list[dict[str, Any]]:
    """Rows of every sample that is in no shard, those of earlier versions first, each key once."""
    rows = [] if previous is None else table_rows(output, previous["failures_table"])
    seen = {row["key"] for row in rows}
    for commit in commits:
        assert run is not None
        rows += [row for row in run.failures(commit).to_pylist() if row["key"] not in seen]
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# Manifest and description


def _draft(
    options: ReleaseOptions,
    previous: dict[str, Any] | None,
    entry: dict[str, Any] | None,
    run: CommittedRun | None,
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


def _holds_images(run: CommittedRun | None, previous: dict[str, Any] | None) -> bool:
    found = set() if previous is None else {bool(previous["images"])}
    if run is not None:
        found.add(bool(run.config.get("images", True)))
    if len(found) > 1:
        raise ReleaseRefusedError("--append: one of run and release holds images, the other references only")
    return found.pop()


def describe(output: LocalStorage, draft: dict[str, Any], options: ReleaseOptions) -> dict[str, Any]:
    """Writes figures, examples, statistics, card, changelog and Croissant; returns the manifest with its files."""
    draft = as_read(draft)
    released = ReleasedRun(output, draft)
    statistics = as_read(statistics_json(count_index(released), draft))
    files: dict[str, bytes] = {STATISTICS: canonical_json(statistics)}
    drawn = figures.charts(statistics)
    files |= {f"figures/{name}.svg": text.encode() for name, text in drawn.items()}
    examples = []
    for number, (name, data, described) in enumerate(_examples(released), start=1):
        files[f"examples/{number}-{name}.jpg"] = data
        examples.append({"name": f"examples/{number}-{name}.jpg", **described})
    gallery = _write_gallery(released, output, options)
    draft = as_read({**draft, "charts": list(drawn), "examples": examples, "gallery": bool(gallery)})
    files[CARD] = card_text(draft, statistics).encode()
    files[CHANGELOG] = changelog_text(draft).encode()
    files[SHARDS_CARD] = shards_card_text(draft).encode()
    files[CROISSANT] = _json_text(croissant(draft))
    for name, data in files.items():
        put(output, f"{NEXT}/{name}", data)
    listed = [file_record(name, data) for name, data in files.items()]
    listed += [file_record(name, output.read_bytes(f"{NEXT}/{name}")) for name in gallery]
    return {**draft, "files": sorted(listed, key=lambda each: str(each["name"]))}


def as_read(value: dict[str, Any]) -> dict[str, Any]:
    """A record as a reader will find it, so that nothing rests on an order that JSON does not keep."""
    found: dict[str, Any] = load_json(canonical_json(value), where="a record of our own")
    return found


def _json_text(value: Any) -> bytes:
    import json

    return (json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n").encode()


def _write_gallery(run: ReleasedRun, output: LocalStorage, options: ReleaseOptions) -> list[str]:
    """Pages for people, under `tmp/next/`; names of the files written."""
    from .gallery import write_gallery

    if options.gallery_images == 0:
        return []
    folder = output.path(NEXT)
    folder.mkdir(parents=True, exist_ok=True)
    title = f"{options.name} {options.version}"
    return write_gallery(run, folder, title=title, limit=options.gallery_images)


def _examples(released: ReleasedRun) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """A seeded choice of images: key, JPEG, and what the card says of it."""
    from ..export import sample_rows
    from ..view import chosen

    for row in chosen(sample_rows(released), limit=figures.EXAMPLES, seed=0):
        sample = released.read_sample(row)
        image = None if row["image_offset"] is None else released.read_image(row)
        described = {"key": row["key"], "masks": row["num_masks"], "instances": row["num_instances"]}
        yield row["key"], figures.example_jpeg(sample, image), described


def _machines(
    output: LocalStorage, previous: dict[str, Any] | None, run: CommittedRun | None, commits: list[Commit],
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


def sums_text(manifest: dict[str, Any], manifest_bytes: bytes) -> bytes:
    """SHA256SUMS: every file of the manifest and the manifest itself, for `sha256sum --check`."""
    named = [(record["name"], record["sha256"]) for record in named_files(manifest)]
    named.append((MANIFEST, file_record(MANIFEST, manifest_bytes)["sha256"]))
    return "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(named)).encode()


def named_files(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Every file that a manifest names, by name: shards, tables, and the rest."""
    tables = [manifest["index"]["samples"], manifest["index"]["masks"]]
    tables += [table for split in manifest["splits"]["files"].values() for table in split.values()]
    tables += [manifest[name] for name in ("failures_table", "removed_table")] + [manifest["duplicates"]["table"]]
    found = [*manifest["shards"], *(each for each in tables if each is not None), *manifest["files"]]
    return sorted(found, key=lambda each: str(each["name"]))


def commit_release(output: LocalStorage, manifest: dict[str, Any], machines: bytes) -> None:
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


def copy_card(output: LocalStorage, manifest: dict[str, Any], folder: str) -> None:
    """Puts `NAME-VERSION.md` and, as `NAME-VERSION.json`, the numbers it was rendered from into a folder."""
    target = Path(folder)
    name = f"{manifest['name'].rsplit('/', 1)[-1]}-{manifest['version']}"
    told = {field: value for field, value in manifest.items() if field != "files"}
    where = f"{output.location}/{STATISTICS}"
    record = {"manifest": told, "statistics": load_json(output.read_bytes(STATISTICS), where=where)}
    with explained("write", target):
        target.mkdir(parents=True, exist_ok=True)
        (target / f"{name}.md").write_bytes(output.read_bytes(CARD))
        (target / f"{name}.json").write_bytes(_json_text(record))


def open_empty_output(path: str) -> LocalStorage:
    """A folder for a release of its own.

    Raises:
        InputError: something lies there.
    """
    output = open_output(path)
    found = sorted(entry.name for entry in os.scandir(output.root))
    if found:
        raise InputError(
            f"{path}: expected a new or empty folder, found {', '.join(found[:3])}; choose another --output"
        )
    return output


def open_output(path: str) -> LocalStorage:
    """The release's folder, made if it is missing.

    Raises:
        InputError: a URL: a release is made locally, then pushed.
    """
    if "://" in path:
        raise InputError(f"--output {path}: a release is made in a local folder; --push {path} sends it on")
    storage = open_storage(path, create=True)
    assert isinstance(storage, LocalStorage)
    return storage
