"""The gallery of a release: search and sort its images, click a point, move the dial, see the mask mined there.

Static files that open from disk as well as from a web server: `gallery.html`, and beside it `gallery/` with the data in
chunks that the page loads when it needs them. Chunks are scripts that hand one JSON value to the page, because a page
opened from disk may load scripts beside it but not fetch files. Names reach the page as JSON and are shown as text; the
content security policy allows the page's own script, its chunks and nothing else.

| file | holds |
|---|---|
| `gallery/index.js` | one row for each image (name, masks, instances, median granularity) and each failed sample |
| `gallery/thumbs-NNNN.js` | the small pictures of 100 images |
| `gallery/images-NNNNN.js` | 8 images with all their masks, on the shown picture's grid |

So a page over 10,000 images loads one row for each (about 2 MB), 100 small pictures for each screen or two, and
the masks of what was opened.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Final

from .. import __version__
from ..dataset.export import sample_rows
from ..dataset.failures import failure_rows
from ..dataset.reader import Dataset
from ..dataset.viewer import chosen, embedded_json, image_record, page_of, thumbnail_jpeg, thumbnail_size
from ..format.records import FailedRow
from ..format.schema import FORMAT, Sample
from ..storage.local import explained

SIDE_PX: Final = 480
"""Longer side of an opened image, pixels; its masks are on the same grid."""
THUMB_SIDE_PX: Final = 160
THUMBS_PER_CHUNK: Final = 100
IMAGES_PER_CHUNK: Final = 8
MAX_IMAGES: Final = 10_000
MAX_FAILURES: Final = 10_000
PAGE: Final = "gallery.html"
FOLDER: Final = "gallery"


def write_gallery(
    dataset: Dataset,
    output: Path,
    *,
    title: str,
    limit: int = MAX_IMAGES,
    seed: int = 0,
    side_px: int = SIDE_PX,
    on_image: Callable[[int], None] | None = None,
) -> list[str]:
    """Writes `gallery.html` and `gallery/` and returns the names of all files, ascending.

    Args:
        dataset: what is shown; a run without images shows masks over an empty ground.
        output: folder that will hold both; it must exist. Equal runs give equal bytes.
        title: shown at the top, as text.
        limit: images at most; of more, a seeded choice, and the page says how many it left out.
        seed: of that choice.
        side_px: longer side of an opened image.
        on_image: called with the number of images done.

    Raises:
        StorageError: the disk is full, for example.
        SchemaError: a sample that is not of this format.
    """
    folder = output / FOLDER
    with explained("make", folder):
        folder.mkdir(exist_ok=True)
    written: list[str] = []

    def chunk(name: str, value: object) -> None:
        _write(folder / f"{name}.js", f"grainmill.take({embedded_json(name)}, {embedded_json(value)});\n")
        written.append(f"{FOLDER}/{name}.js")

    rows = chosen(sample_rows(dataset), limit=limit, seed=seed)
    index: list[list[object]] = []
    thumbs: list[str | None] = []
    opened: list[dict[str, object]] = []
    for number, row in enumerate(rows):
        sample = dataset.read_sample(row)
        image = None if row["image_offset"] is None else dataset.read_image(row)
        opened.append(image_record(sample, image, side_px=side_px))
        thumbs.append(_thumb(sample, image))
        index.append(_index_row(sample))
        last = number + 1 == len(rows)
        if len(opened) == IMAGES_PER_CHUNK or last:
            chunk(f"images-{number // IMAGES_PER_CHUNK:05d}", opened)
            opened = []
        if len(thumbs) == THUMBS_PER_CHUNK or last:
            chunk(f"thumbs-{number // THUMBS_PER_CHUNK:04d}", thumbs)
            thumbs = []
        if on_image is not None:
            on_image(number + 1)
    chunk(
        "index",
        _index(dataset, index, list(itertools.islice(failure_rows(dataset), MAX_FAILURES)), title=title, seed=seed),
    )
    _write(output / PAGE, page())
    return sorted([*written, PAGE])


def page() -> str:
    """The page as text; the same for every release, since all data is in the chunks."""
    return page_of(
        "gallery.html",
        styles=("report.css", "gallery.css"),
        scripts=("report_masks.js", "report_charts.js", "viewer.js", "gallery_page.js"),
        script_source="'self'",
    )


def _index(
    dataset: Dataset, rows: list[list[object]], failures: list[FailedRow], *, title: str, seed: int
) -> dict[str, object]:
    totals = dataset.totals()
    return {
        "format": FORMAT,
        "version": __version__,
        "title": title,
        "seed": seed,
        "columns": list(INDEX_COLUMNS),
        "rows": rows,
        "failures": failures,
        "totals": {name: totals[name] for name in ("samples", "masks", "failures")},
        "images_per_chunk": IMAGES_PER_CHUNK,
        "thumbs_per_chunk": THUMBS_PER_CHUNK,
    }


INDEX_COLUMNS: Final = ("key", "source", "member", "width", "height", "masks", "instances", "granularity")
"""Of a row of the index; `granularity` is the median over the image's masks."""


def _index_row(sample: Sample) -> list[object]:
    masks = sample.annotations
    return [
        sample.key,
        sample.source_uri,
        sample.member,
        sample.width,
        sample.height,
        len(masks),
        sum(mask.is_instance for mask in masks),
        round(statistics.median(mask.granularity for mask in masks), 4) if masks else None,
    ]


def _thumb(sample: Sample, image: bytes | None) -> str | None:
    if image is None:
        return None
    width, height = thumbnail_size(sample.width, sample.height, THUMB_SIDE_PX)
    return thumbnail_jpeg(image, width=width, height=height, key=sample.key)


def _write(path: Path, text: str) -> None:
    with explained("write", path):
        path.write_bytes(text.encode("ascii" if path.suffix == ".js" else "utf-8"))
