"""What changed between two versions: samples that came, went or changed their masks, by key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TypedDict

import pyarrow as pa

from ..dataset.reader import Dataset, Unit
from ..dataset.release import ReleaseReader
from ..format.records import SampleRow

LISTED: Final = 1000
"""Keys of each kind that a difference lists; the counts are always whole."""


class Difference(TypedDict):
    """`grainmill diff --json`, see `difference`."""

    samples: dict[str, int]
    masks: dict[str, int]
    moved: int
    by_source: dict[str, dict[str, int]]
    keys: dict[str, list[str]]


class ComparedRow(TypedDict):
    """What a comparison needs of a sample."""

    key: str
    json_sha256: str
    num_masks: int
    source_uri: str
    split: str | None


def difference(old: Dataset, new: Dataset) -> Difference:
    """Compares two runs, releases or versions.

    Returns:
        `samples`: added, removed, changed (other masks under the same key), equal; `masks`: added, removed and equal
        (by geometry and granularity, within samples that both have, plus those of samples that came or went); `keys`:
        lists of the first of each; `by_source`: samples added and removed of each source; `moved`: samples whose split
        changed.
    """
    ours, theirs = _samples(old), _samples(new)
    added = [key for key in theirs if key not in ours]
    removed = [key for key in ours if key not in theirs]
    common = [key for key in theirs if key in ours]
    changed = [key for key in common if ours[key]["json_sha256"] != theirs[key]["json_sha256"]]
    masks = {"added": sum(theirs[key]["num_masks"] for key in added)}
    masks["removed"] = sum(ours[key]["num_masks"] for key in removed)
    masks["equal"] = sum(theirs[key]["num_masks"] for key in common) - sum(theirs[key]["num_masks"] for key in changed)
    before, after = _masks(old, set(changed)), _masks(new, set(changed))
    for key in changed:
        equal = len(before[key] & after[key])
        masks["equal"] += equal
        masks["added"] += len(after[key]) - equal
        masks["removed"] += len(before[key]) - equal
    by_source: dict[str, dict[str, int]] = {}
    for kind, keys, rows in (("added", added, theirs), ("removed", removed, ours)):
        for key in keys:
            label = rows[key]["source_uri"].split("/", 1)[0]
            by_source.setdefault(label, {"added": 0, "removed": 0})[kind] += 1
    return {
        "samples": {
            "added": len(added),
            "removed": len(removed),
            "changed": len(changed),
            "equal": len(common) - len(changed),
        },
        "masks": masks,
        "moved": sum(ours[key]["split"] != theirs[key]["split"] for key in common),
        "by_source": dict(sorted(by_source.items())),
        "keys": {
            kind: sorted(keys)[:LISTED] for kind, keys in (("added", added), ("removed", removed), ("changed", changed))
        },
    }


def _samples(dataset: Dataset) -> dict[str, ComparedRow]:
    """key -> what a comparison needs."""
    columns = ["key", "json_sha256", "num_masks", "source_uri"]
    found: dict[str, ComparedRow] = {}
    for unit in dataset.units():
        table = _released(dataset, unit)
        split = table.column("split").to_pylist() if "split" in table.column_names else [None] * table.num_rows
        rows: list[ComparedRow] = table.select(columns).to_pylist()
        for row, name in zip(rows, split, strict=True):
            found[row["key"]] = {**row, "split": name}
    return found


def _released(dataset: Dataset, unit: Unit) -> pa.Table:
    return dataset.released_samples(unit) if isinstance(dataset, ReleaseReader) else dataset.samples(unit)


def _masks(dataset: Dataset, keys: set[str]) -> dict[str, set[tuple[str, float]]]:
    """(RLE, granularity) of each mask of some samples."""
    found: dict[str, set[tuple[str, float]]] = {}
    for row in _rows(dataset, keys):
        sample = dataset.read_sample(row)
        found[row["key"]] = {(mask.segmentation["counts"], mask.granularity) for mask in sample.annotations}
    return found


def _rows(dataset: Dataset, keys: set[str]) -> Iterator[SampleRow]:
    if keys:
        for unit in dataset.units():
            yield from (row for row in dataset.samples(unit).to_pylist() if row["key"] in keys)
