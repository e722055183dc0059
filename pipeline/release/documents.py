"""What describes a release, made of manifest and index: statistics, figures, examples, gallery, card, Croissant."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TypeVar, cast

from ..dataset.export import sample_rows
from ..dataset.release import ReleaseReader
from ..dataset.stats import RunStatistics
from ..dataset.viewer import chosen
from ..format.records import ExampleRecord, ReleaseManifest, ReleaseStatistics
from ..format.schema import canonical_json, load_json
from ..storage.local import LocalStorage
from . import charts
from .card import card_text, changelog_text, shards_card_text
from .commit import put
from .croissant import croissant
from .gallery import write_gallery
from .records import CARD, CHANGELOG, CROISSANT, NEXT, SHARDS_CARD, STATISTICS, file_record, json_text

_Record = TypeVar("_Record")

MACHINE_FIELDS: Final = (
    "seconds", "seconds_share", "wall_seconds", "seconds_per_image", "images_per_second", "units",
)  # fmt: skip
"""Of `RunStatistics.to_json`: they are about machines, and stand in machines.json."""


def describe(output: LocalStorage, draft: ReleaseManifest, *, gallery_images: int) -> ReleaseManifest:
    """Writes figures, examples, statistics, card, changelog, Croissant and a gallery of at most so many images.

    Returns:
        The manifest with its files.
    """
    draft = as_read(draft)
    released = ReleaseReader(output, draft)
    statistics = as_read(statistics_json(count_index(released), draft))
    files: dict[str, bytes] = {STATISTICS: canonical_json(statistics)}
    drawn = charts.charts(statistics)
    files |= {f"figures/{name}.svg": text.encode() for name, text in drawn.items()}
    examples: list[ExampleRecord] = []
    for name, data, example in _examples(released):
        files[name] = data
        examples.append(example)
    gallery = _write_gallery(released, output, draft, limit=gallery_images)
    draft["charts"], draft["examples"], draft["gallery"] = list(drawn), examples, bool(gallery)
    draft = as_read(draft)
    files[CARD] = card_text(draft, statistics).encode()
    files[CHANGELOG] = changelog_text(draft).encode()
    files[SHARDS_CARD] = shards_card_text(draft).encode()
    files[CROISSANT] = json_text(croissant(draft))
    for name, data in files.items():
        put(output, f"{NEXT}/{name}", data)
    listed = [file_record(name, data) for name, data in files.items()]
    listed += [file_record(name, output.read_bytes(f"{NEXT}/{name}")) for name in gallery]
    return {**draft, "files": sorted(listed, key=lambda each: str(each["name"]))}


def as_read(record: _Record) -> _Record:
    """A record as a reader will find it, so that nothing rests on an order that JSON does not keep."""
    return cast(_Record, load_json(canonical_json(record), where="a record of our own"))


def count_index(released: ReleaseReader) -> RunStatistics:
    """Counts every row of the index and of the failures."""
    counted = RunStatistics()
    for unit in released.units():
        counted.add_samples(released.samples(unit))
        counted.add_masks(released.masks(unit))
        counted.failures_by_reason.update(unit.reasons)
    return counted


def statistics_json(counted: RunStatistics, manifest: ReleaseManifest) -> ReleaseStatistics:
    """`statistics.json`: what `stats` counts, from the index alone, without anything about machines."""
    kept = {name: value for name, value in counted.to_json().items() if name not in MACHINE_FIELDS}
    histogram = charts.masks_per_image_histogram(counted.masks_per_image)
    return cast(ReleaseStatistics, {**kept, "masks_per_image_histogram": histogram, "digest": manifest["digest"]})


def _write_gallery(run: ReleaseReader, output: LocalStorage, draft: ReleaseManifest, *, limit: int) -> list[str]:
    """Pages for people, under `tmp/next/`; names of the files written."""
    if limit == 0:
        return []
    folder = output.path(NEXT)
    folder.mkdir(parents=True, exist_ok=True)
    title = f"{draft['name']} {draft['version']}"
    return write_gallery(run, folder, title=title, limit=limit)


def _examples(released: ReleaseReader) -> Iterator[tuple[str, bytes, ExampleRecord]]:
    """A seeded choice of images: name, JPEG, and what the card says of it."""
    for number, row in enumerate(chosen(sample_rows(released), limit=charts.EXAMPLES, seed=0), start=1):
        sample = released.read_sample(row)
        image = None if row["image_offset"] is None else released.read_image(row)
        name = f"examples/{number}-{row['key']}.jpg"
        described: ExampleRecord = {
            "name": name, "key": row["key"], "masks": row["num_masks"], "instances": row["num_instances"],
        }  # fmt: skip
        yield name, charts.example_jpeg(sample, image), described
