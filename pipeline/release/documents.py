"""What describes a release, made of its manifest and statistics: figures, examples, gallery, card, Croissant."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..dataset.export import sample_rows
from ..dataset.release import ReleaseReader
from ..dataset.viewer import chosen
from ..format.schema import canonical_json, load_json
from ..storage.local import LocalStorage
from . import charts
from .card import card_text, changelog_text, shards_card_text
from .croissant import croissant
from .durable_files import put
from .gallery import write_gallery
from .records import CARD, CHANGELOG, CROISSANT, NEXT, SHARDS_CARD, STATISTICS, file_record, json_text
from .statistics import count_index, statistics_json


def describe(output: LocalStorage, draft: dict[str, Any], *, gallery_images: int) -> dict[str, Any]:
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
    examples = []
    for number, (name, data, described) in enumerate(_examples(released), start=1):
        files[f"examples/{number}-{name}.jpg"] = data
        examples.append({"name": f"examples/{number}-{name}.jpg", **described})
    gallery = _write_gallery(released, output, draft, limit=gallery_images)
    draft = as_read({**draft, "charts": list(drawn), "examples": examples, "gallery": bool(gallery)})
    files[CARD] = card_text(draft, statistics).encode()
    files[CHANGELOG] = changelog_text(draft).encode()
    files[SHARDS_CARD] = shards_card_text(draft).encode()
    files[CROISSANT] = json_text(croissant(draft))
    for name, data in files.items():
        put(output, f"{NEXT}/{name}", data)
    listed = [file_record(name, data) for name, data in files.items()]
    listed += [file_record(name, output.read_bytes(f"{NEXT}/{name}")) for name in gallery]
    return {**draft, "files": sorted(listed, key=lambda each: str(each["name"]))}


def as_read(value: dict[str, Any]) -> dict[str, Any]:
    """A record as a reader will find it, so that nothing rests on an order that JSON does not keep."""
    found: dict[str, Any] = load_json(canonical_json(value), where="a record of our own")
    return found


def _write_gallery(run: ReleaseReader, output: LocalStorage, draft: dict[str, Any], *, limit: int) -> list[str]:
    """Pages for people, under `tmp/next/`; names of the files written."""
    if limit == 0:
        return []
    folder = output.path(NEXT)
    folder.mkdir(parents=True, exist_ok=True)
    title = f"{draft['name']} {draft['version']}"
    return write_gallery(run, folder, title=title, limit=limit)


def _examples(released: ReleaseReader) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """A seeded choice of images: key, JPEG, and what the card says of it."""
    for row in chosen(sample_rows(released), limit=charts.EXAMPLES, seed=0):
        sample = released.read_sample(row)
        image = None if row["image_offset"] is None else released.read_image(row)
        described = {"key": row["key"], "masks": row["num_masks"], "instances": row["num_instances"]}
        yield row["key"], charts.example_jpeg(sample, image), described
