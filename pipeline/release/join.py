"""A release of masks and references becomes whole again: images from their sources, each checked by its sha256.

The shards of the result are what mining with images would have written: the image before its record, and the record's
`file_name` set; nothing else changes. Images are found by sha256, wherever they lie now and whatever they are called.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import pyarrow as pa

from ..dataset.export import sample_rows
from ..dataset.reader import Unit
from ..dataset.release import ReleaseReader
from ..errors import GrainmillError, InputError, SampleFailureError
from ..format.records import FailedRow, ReleasedRow, ReleasedShardRecord, ReleaseManifest, SampleRow, VersionRecord
from ..format.release_tables import RELEASED_SAMPLES_SCHEMA
from ..format.schema import FAILURES_SCHEMA, Sample, sha256_of
from ..shards.writer import ShardWriter
from ..sources.images import MAX_STORED_PIXELS, read_header
from ..sources.listing import plan_units
from ..sources.unit_reader import UnitReader
from ..sources.units import SourceSpec, UnitSpec, parse_inputs
from ..storage.local import LocalStorage
from ..storage.parquet import parquet_table
from .commit import commit_release
from .documents import describe
from .draft import release_digest, splits_record
from .duplicates import Signature, signature_of_bytes
from .records import MACHINES
from .tables import MergedTables, ReleasedIndex, failure_rows, put_table


class MissingImagesError(GrainmillError):
    """Images that a release refers to were not found among the given sources."""


@dataclass(kw_only=True)
class ImageFinder:
    """Where each image lies now: first by the uri's path, then by reading everything once.

    Attributes:
        specs: the sources.
        places: sha256 -> (unit, position).
    """

    specs: tuple[SourceSpec, ...]
    units: list[UnitSpec] = field(default_factory=list)
    places: dict[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def over(cls, images: Sequence[str], *, on_image: Callable[[int], None] | None = None) -> ImageFinder:
        """Hashes every image of the sources; what cannot be read is no image of the release.

        Args:
            images: `[LABEL=]SRC` each, as `mine --input` takes them.
            on_image: called with the number of images read.
        """
        finder = cls(specs=parse_inputs(images))
        finder.units = list(plan_units(finder.specs, samples_per_shard=1024, limit=None))
        count = 0
        for number, unit in enumerate(finder.units):
            with UnitReader(unit, finder.specs) as reader:
                for position in range(len(reader)):
                    try:
                        finder.places.setdefault(reader.read(position).sha256, (number, position))
                    except SampleFailureError:
                        continue
                    count += 1
                    if on_image is not None:
                        on_image(count)
        return finder

    def read(self, sha256s: Sequence[str]) -> Generator[bytes | None]:
        """The image of each sha256, checked again; None for one that is not there."""
        reader: UnitReader | None = None
        open_unit = -1
        try:
            for sha256 in sha256s:
                place = self.places.get(sha256)
                if place is None:
                    yield None
                    continue
                if place[0] != open_unit:
                    if reader is not None:
                        reader.__exit__(None, None, None)
                    reader = UnitReader(self.units[place[0]], self.specs).__enter__()
                    open_unit = place[0]
                assert reader is not None
                image = reader.read(place[1]).image
                yield image if sha256_of(image) == sha256 else None
        finally:
            if reader is not None:
                reader.__exit__(None, None, None)


def join_images(
    release: ReleaseReader,
    finder: ImageFinder,
    output: LocalStorage,
    *,
    allow_missing: bool = False,
    gallery_images: int = 10_000,
    on_sample: Callable[[int], None] | None = None,
) -> ReleaseManifest:
    """Writes the same release with its images in the shards.

    Args:
        release: without images.
        finder: of the images.
        output: an empty folder.
        allow_missing: leave samples out whose image is missing, as failures `source_missing`; else that is an error.
        gallery_images: images in the gallery at most.
        on_sample: called with the number of samples done.

    Returns:
        The manifest.

    Raises:
        MissingImagesError: an image is missing, or has other bytes now.
        InputError: the release holds its images.
    """
    old = release.manifest
    if old["images"]:
        raise InputError(f"{release.location}: holds its images already, there is nothing to join")
    rows = list(sample_rows(release))
    missing = [row for row in rows if row["source_sha256"] not in finder.places]
    if missing and (not allow_missing or len(missing) == len(rows)):
        listed = ", ".join(f"{row['source_uri']} (sha256 {row['source_sha256'][:12]})" for row in missing[:3])
        raise MissingImagesError(
            f"{len(missing)} of {len(rows)} images are not among --images, or have other bytes now: {listed}; give the "
            "sources that hold them, or --allow-missing to leave those samples out"
        )
    shards, done = [], 0
    with closing(MergedTables(output)) as tables:
        for unit in release.units():
            shard = release.shard(unit)
            if shard is not None:
                shards += _joined(release, unit, shard, finder, output, tables)
                done += unit.samples
                if on_sample is not None:
                    on_sample(done)
        index = tables.finish(dict(old["splits"]["shares"]))
    draft = _draft(release, output, shards, index, missing)
    manifest = describe(output, draft, gallery_images=gallery_images)
    machines = release.storage.read_bytes(MACHINES)
    commit_release(output, manifest, machines)
    return manifest


def _joined(
    release: ReleaseReader,
    unit: Unit,
    shard: ReleasedShardRecord,
    finder: ImageFinder,
    output: LocalStorage,
    tables: MergedTables,
) -> list[ReleasedShardRecord]:
    """One shard again, with its images; nothing if none of them was found."""
    released: list[ReleasedRow] = release.released_samples(unit).to_pylist()
    joined: dict[str, tuple[ReleasedRow, Signature]] = {}
    writer = ShardWriter(output, unit=shard["unit"], attempt=f"join.{os.urandom(6).hex()}")
    with writer, closing(finder.read([row["source_sha256"] for row in released])) as images:
        for row, image in zip(released, images, strict=True):
            if image is not None:
                writer.add(_with_image(release.read_sample(row), image), image)
                try:
                    joined[row["key"]] = row, signature_of_bytes(image)
                except SampleFailureError as error:
                    raise InputError(f"{row['key']}: its image cannot be decoded ({error})") from error
        outputs = writer.finish()
        file, samples, masks = outputs.shard, outputs.samples_index, outputs.masks_index
        if file is None or samples is None or masks is None:
            return []
        new_rows: list[SampleRow] = parquet_table(samples.path.read_bytes()).to_pylist()
        mask_table = parquet_table(masks.path.read_bytes())
        output.publish(file.path, file.name)
    rows: list[ReleasedRow] = []
    for new in new_rows:
        old, signature = joined[new["key"]]
        rows.append({
            **new, "run": old["run"], "split": old["split"], "source_license": old["source_license"],
            "source_terms": old["source_terms"], "perceptual_hash": signature.perceptual_hash,
            "colour_grid": signature.colour_grid,
        })  # fmt: skip
    tables.add(pa.Table.from_pylist(rows, schema=RELEASED_SAMPLES_SCHEMA), mask_table)
    return [{**shard, **file.record(), "samples": outputs.samples, "masks": outputs.masks}]


def _draft(
    release: ReleaseReader,
    output: LocalStorage,
    shards: list[ReleasedShardRecord],
    index: ReleasedIndex,
    missing: Sequence[SampleRow],
) -> ReleaseManifest:
    """The manifest of the same version, with images."""
    old: ReleaseManifest = {**release.manifest}
    old.pop("record_sha256", None)
    failures: list[FailedRow] = failure_rows(release.storage, old)
    for row in missing:
        failures.append({
            "key": row["key"], "source_uri": row["source_uri"], "member": row["member"], "stage": "read",
            "reason": "source_missing", "message": f"no image with sha256 {row['source_sha256']}",
        })  # fmt: skip
    for file in (old["removed_table"], old["duplicates"]["table"]):
        if file is not None:
            output.put_atomic(file["name"], release.storage.read_bytes(file["name"]))
    digest = release_digest(shards, failures)
    samples, masks = sum(each["samples"] for each in shards), sum(each["masks"] for each in shards)
    lost = Counter(row["source_uri"].split("/", 1)[0] for row in missing)
    version: VersionRecord = {**old["versions"][-1], "digest": digest, "samples": samples, "masks": masks}
    version["changes"] = {**version["changes"], "joined": samples}
    return {
        **old,
        "images": True,
        "digest": digest,
        "samples": samples,
        "masks": masks,
        "failures": len(failures),
        "failure_reasons": dict(sorted(Counter(row["reason"] for row in failures).items())),
        "shards": shards,
        "index": index.whole,
        "failures_table": put_table(output, "failures/failures", failures, FAILURES_SCHEMA),
        "sources": [{**each, "samples": each["samples"] - lost[each["label"]]} for each in old["sources"]],
        "splits": splits_record(old["splits"]["shares"], old["splits"]["key"], index, samples),
        "versions": [version],
        "charts": [],
        "examples": [],
        "files": [],
    }


def _with_image(sample: Sample, image: bytes) -> Sample:
    """The record as it is beside its image.

    Raises:
        InputError: the image is not of the size that its masks have.
    """
    header = read_header(image, max_pixels=MAX_STORED_PIXELS)
    if (header.width, header.height) != (sample.width, sample.height):
        raise InputError(f"{sample.key}: the image is {header.width} x {header.height}, its masks are not")
    return dataclasses.replace(sample, file_name=f"{sample.key}.{header.ext}")
