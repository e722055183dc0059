"""What a release consists of: the columns of its index, its options, and small records that its modules pass on.

REL/
  manifest.json       the commit: everything else is named here with its size and sha256; written last
  SHA256SUMS          the same for `sha256sum --check`
  README.md  CHANGELOG.md  croissant.json  statistics.json  figures/  examples/
  shards/             the run's own bytes and names; README.md there has their types for `datasets`
  index/              samples-HASH.parquet, masks-HASH.parquet; with splits one pair for each split besides
  failures/           failures-HASH.parquet: samples that are in no shard, and why
  duplicates/         duplicates-HASH.parquet: equal and near-equal images
  machines.json       where and how fast it was mined; no part of the digest nor of SHA256SUMS, sealed by itself
  versions/V/         manifest.json of each version; what a newer version replaced has moved there
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ..format.records import FileRecord, ReleaseManifest

MACHINES: Final = "machines.json"
SUMS: Final = "SHA256SUMS"
CARD: Final = "README.md"
SHARDS_CARD: Final = "shards/README.md"
CHANGELOG: Final = "CHANGELOG.md"
CROISSANT: Final = "croissant.json"
GALLERY: Final = "gallery.html"
RESULT_FOLDERS: Final = ("shards", "index", "failures", "duplicates", "removed", "figures", "examples")
"""Folders in which every file must be named: loaders read them by pattern."""
STATISTICS: Final = "statistics.json"
NEXT: Final = "tmp/next"
"""Where described files wait until everything is there."""


@dataclass(frozen=True, kw_only=True)
class ReleaseOptions:
    """The flags of `grainmill release`, checked; `options.release_options` makes it.

    Attributes:
        name: of the dataset; also the Hub's repository name.
        version: of this release.
        license: SPDX identifier of the whole.
        license_link: address of the terms, for a licence that SPDX does not list.
        date: ISO date; None for that of the newest commit.
        source_licenses: label -> SPDX identifier, for sources that declared none when they were mined.
        source_terms: label -> address or words of the source's terms.
        proposals_license: of the `--proposals` file, if it declared none itself.
        splits: name -> share of the sources; empty for none.
        split_key: text that keys the hash of the splits.
        against: evaluation sets as `[LABEL=]SRC`.
        duplicates: look for equal and near-equal images.
        remove: kinds of duplicates that are left out: exact, near, evaluation.
        max_failed_fraction: largest share of failed samples (without `no_masks`) of a run that is released.
        description: Markdown for the card's first section.
        people: what is known of people in the images, for the card; None if nothing was said.
        workers: processes that copy and decode, at least 1.
        gallery_images: images in the gallery at most; 0 for no gallery.
    """

    name: str
    version: str
    license: str
    license_link: str | None
    date: str | None
    source_licenses: dict[str, str]
    source_terms: dict[str, str]
    proposals_license: str | None
    splits: dict[str, float]
    split_key: str
    against: tuple[str, ...]
    duplicates: bool
    remove: frozenset[str]
    max_failed_fraction: float
    description: str | None
    people: str | None
    workers: int
    gallery_images: int


def file_record(name: str, data: bytes) -> FileRecord:
    """name, size and sha256 of a file, as manifests list them."""
    from ..format.schema import sha256_of

    return {"name": name, "size": len(data), "sha256": sha256_of(data)}


def json_text(value: object) -> bytes:
    """As the JSON files for people are written: two spaces, in the order given."""
    import json

    return (json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n").encode()


def judged_images(manifest: ReleaseManifest) -> int:
    """In how many images people's verdicts made the masks others than what was mined, over all versions."""
    curated = [each["changes"].get("curated") for each in manifest["versions"]]
    return sum(each["images"] for each in curated if each is not None)


def named_files(manifest: ReleaseManifest) -> list[FileRecord]:
    """Every file that a manifest names, by name: shards, tables, and the rest."""
    tables: list[FileRecord | None] = [manifest["failures_table"], manifest["removed_table"]]
    tables.append(manifest["duplicates"]["table"])
    for index in (manifest["index"], *manifest["splits"]["files"].values()):
        tables += [index["samples"], index["masks"]]
    found: list[FileRecord] = [*manifest["shards"], *manifest["files"], *(each for each in tables if each is not None)]
    return sorted(found, key=lambda each: each["name"])
