"""One self-contained page that shows what a run made: images, masks, the granularity dial, the part tree.

The page holds everything it shows: thumbnails as JPEG in data URIs, masks as run-length codes at the thumbnails' size,
a few hundred lines of script and style of our own (`templates/`). It refers to nothing outside, and its content
security policy forbids it: only the one script and the one style whose sha256 stand in the policy run. Every name
reaches the page as JSON and is shown as text, never as markup.

The dial's rule: a pixel shows the mask that a click on it would select at granularity g. Of the smallest instance that
holds the pixel, and of that instance's masks over the pixel (instance, part, part of the part, ...), it is the one
whose granularity is nearest to g, the coarser of two equally near. So what has masks is covered at every g.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import itertools
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Final, TypedDict

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..errors import InputError, SampleFailureError, SchemaError
from ..format import rle
from ..format.records import FailedRow, MetricRecord, RunStatisticsRecord, SampleRow, ScoresRecord
from ..format.rle import Rle
from ..format.schema import FORMAT, Sample, sha256_of
from ..labeling.atoms import sampled
from ..sources import passed_over
from ..sources.images import MAX_STORED_PIXELS, decode_rgb
from ..storage.local import explained
from .export import sample_rows
from .failures import failure_rows
from .reader import Dataset
from .stats import collect
from .status import StatusRecord, run_status

THUMBNAIL_SIDE_PX: Final = 640
"""Longer side of an image in the page. Larger ones are reduced, smaller ones stay as they are."""
JPEG_QUALITY: Final = 82
CLICK_LIMIT: Final = 20
"""Clicks after which the interactive protocol gives an object up; a mean of as many says that none was reached."""
HEADLINES: Final[Mapping[str, str]] = {
    "AR1000": "objects found, all masks (AR1000)",
    "AR100": "objects found, the first 100 masks (AR100)",
    "mean_best_iou": "IoU of an object's best mask",
    **{
        f"interactive.{way}.{metric}": f"{words}, {g}"
        for metric, words in (
            ("iou_1", "IoU of one click"),
            ("noc_80", "clicks until IoU 0.80"),
            ("noc_90", "clicks until IoU 0.90"),
        )
        for way, g in (
            ("label", "at the label's g"),
            ("shuffled", "at another object's g (control)"),
            ("constant", "at the best single g (control)"),
            ("oracle", "at its best g"),
        )
    },
    "interactive.best_of_10_clicks.iou_1": "IoU of one click, best of ten near clicks at one g (control)",
    "whole.all.everything.ar_1000": "objects found, all masks (AR1000)",
    **{
        f"annotators.{policy}.{metric}": f"{words}, {way}"
        for metric, words in (
            ("seconds_80", "simulated annotator: seconds to IoU 0.80 (53: not reached)"),
            ("iou_10s", "simulated annotator: IoU after ten seconds"),
        )
        for policy, way in (
            ("clicks", "clicks alone"),
            ("dial", "with the dial"),
            ("best_single", "clicks at the best single g (control)"),
            ("dial - clicks", "the dial less clicks alone"),
        )
    },
    "whole.all.pooled.ar_1000": "objects found, masks of ten g (AR1000)",
    "whole.all.ten_grids.ar_1000": "objects found, ten grids of clicks at one g (AR1000, control)",
}
"""Metric of `scores.json` -> what it is in words, in the order in which the page begins with them."""
PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"


class Report(TypedDict):
    """What the page's script reads, see `report_data`."""

    format: str
    version: str
    title: str
    seed: int
    images: list[dict[str, object]]
    statistics: RunStatisticsRecord
    failures: list[FailedRow]
    state: StatusRecord
    passed_over: list[dict[str, object]]
    pictures: list[dict[str, str]]
    scores: list[dict[str, object]]


def report_of_run(
    dataset: Dataset,
    *,
    limit: int,
    seed: int,
    side_px: int = THUMBNAIL_SIDE_PX,
    max_failures: int,
    title: str | None = None,
    pictures: Sequence[dict[str, str]] = (),
    scores: Sequence[object] = (),
    on_image: Callable[[int], None] | None = None,
) -> Report:
    """Gathers what the page of a run holds (see `report_data`): numbers of everything, some images and failures.

    Args:
        dataset: complete or at work; only what is committed is shown.
        limit: images at most.
        seed: chooses them.
        side_px: longer side of an image in the page.
        max_failures: rows of failed samples at most.
        title: shown at the top; None for the directory's name.
        pictures: from `picture_record`, shown below the images.
        scores: what `grainmill score` wrote as `scores.json`, shown as tables.
        on_image: called with the number of images done.
    """
    rows = chosen(sample_rows(dataset), limit=limit, seed=seed)
    images = []
    for number, row in enumerate(rows, start=1):
        image = None if row["image_offset"] is None else dataset.read_image(row)
        images.append(image_record(dataset.read_sample(row), image, side_px=side_px))
        if on_image is not None:
            on_image(number)
    return report_data(
        title=title or dataset.location.rstrip("/").rsplit("/", 1)[-1] or "run",
        images=images,
        statistics=collect(dataset).to_json(),
        failures=list(itertools.islice(failure_rows(dataset), max_failures)),
        state=run_status(dataset),
        seed=seed,
        pictures=pictures,
        scores=scores,
    )


def write_report(data: Report, output: Path) -> int:
    """Writes the page, replacing an older one in a single step, and returns its size in bytes.

    Raises:
        StorageError: the disk is full or the folder is missing, for example.
    """
    page = render(data).encode("utf-8")
    with explained("write", output):
        scratch = output.with_name(f".{output.name}.{secrets.token_hex(6)}.partial")
        try:
            scratch.write_bytes(page)
            os.replace(scratch, output)
        finally:
            scratch.unlink(missing_ok=True)
    return len(page)


def chosen(rows: Iterator[SampleRow], *, limit: int, seed: int) -> list[SampleRow]:
    """A seeded sample of at most `limit` index rows, in the order they came, in memory that depends on `limit` only.

    A row is kept by the hash of seed and key, so it does not depend on how the rest of the run is cut into units.
    """
    ranked = (
        (hashlib.sha256(f"{seed}\0{row['key']}".encode()).digest(), position, row) for position, row in enumerate(rows)
    )
    best = heapq.nsmallest(limit, ranked, key=lambda entry: entry[:2])
    return [row for _, _, row in sorted(best, key=lambda entry: entry[1])]


def thumbnail_size(width: int, height: int, side_px: int) -> tuple[int, int]:
    """(width, height) of the reduced image: the longer side is at most `side_px`, no side is below one pixel."""
    scale = min(1.0, side_px / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def reduced_rle(segmentation: Rle, *, width: int, height: int) -> Rle:
    """A mask on a smaller grid: each pixel of it takes what lies under its centre in the full-size mask.

    Works on the run lengths, without an array of the full size. A mask too thin to meet any centre keeps one pixel.

    Args:
        segmentation: full-size mask.
        width: of the smaller grid, pixels.
        height: of the smaller grid, pixels.

    Raises:
        SchemaError: the run lengths do not sum to the mask's size.
    """
    full_height, full_width = segmentation["size"]
    lengths = rle.run_lengths_of(segmentation)
    if (height, width) == (full_height, full_width):
        return segmentation
    mask = sampled(lengths, (full_height, full_width), (height, width)).full(height, width)
    if not mask.any() and lengths.size > 1:
        column, row = divmod(int(lengths[0] + lengths[1] // 2), full_height)
        mask[min(row * height // full_height, height - 1), min(column * width // full_width, width - 1)] = True
    return rle.encode(mask)


def committed_image(image: bytes, key: str) -> NDArray[np.uint8]:
    """The upright image of a committed sample, (H, W, 3) uint8.

    Raises:
        SchemaError: it cannot be decoded.
    """
    try:
        return decode_rgb(image, max_pixels=MAX_STORED_PIXELS)
    except SampleFailureError as error:
        raise SchemaError(
            f"{key}: its image cannot be decoded ({error}); `grainmill verify --deep` lists all such samples"
        ) from error


def thumbnail(image: bytes, *, width: int, height: int, key: str) -> NDArray[np.uint8]:
    """`committed_image`, reduced: (height, width, 3) uint8."""
    rgb = committed_image(image, key)
    return np.asarray(cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def thumbnail_jpeg(image: bytes, *, width: int, height: int, key: str) -> str:
    """`thumbnail` coded as JPEG, in base64."""
    data = jpeg(thumbnail(image, width=width, height=height, key=key), JPEG_QUALITY)
    return base64.b64encode(data).decode("ascii")


def jpeg(rgb: NDArray[np.uint8], quality: int) -> bytes:
    done, encoded = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done, "OpenCV encodes any RGB image as JPEG"
    return encoded.tobytes()


def image_record(sample: Sample, image: bytes | None, *, side_px: int = THUMBNAIL_SIDE_PX) -> dict[str, object]:
    """What the page needs of one image: a thumbnail and its masks on the thumbnail's grid, as lists by field.

    Args:
        sample: the committed record.
        image: the source image's bytes, or None for a run without images.
        side_px: longer side of the thumbnail.
    """
    width, height = thumbnail_size(sample.width, sample.height, side_px)
    masks = sample.annotations
    return {
        "key": sample.key,
        "source": sample.source_uri,
        "member": sample.member,
        "license": sample.license,
        "size": [sample.width, sample.height],
        "thumbnail": None if image is None else thumbnail_jpeg(image, width=width, height=height, key=sample.key),
        "width": width,
        "height": height,
        "rle": [reduced_rle(mask.segmentation, width=width, height=height)["counts"] for mask in masks],
        "area": [mask.area for mask in masks],
        "granularity": [mask.granularity for mask in masks],
        "instance": [mask.instance_id for mask in masks],
        "parent": [mask.parent_id for mask in masks],
        "level": [mask.level for mask in masks],
        "origin": [mask.origin for mask in masks],
        "score": [mask.score for mask in masks],
    }


def picture_record(picture: Path, caption: str) -> dict[str, str]:
    """A PNG with its caption, such as the contact sheets that `grainmill train` writes: one click, five granularities.

    Raises:
        InputError: no PNG lies there.
    """
    with explained("read", picture):
        data = picture.read_bytes()
    if not data.startswith(PNG_SIGNATURE):
        raise InputError(
            f"{picture}: expected a PNG, found {data[:8]!r}; give a picture that `train` or `segment` wrote"
        )
    return {"caption": caption, "png": base64.b64encode(data).decode("ascii")}


def score_record(scores: object) -> dict[str, object]:
    """What the page shows of one `scores.json`: what was scored, on which benchmark, each metric with its interval.

    The metrics of `HEADLINES` come first, in words.

    Raises:
        InputError: it lacks a field that `grainmill score` writes.
    """
    try:
        record = msgspec.convert(scores, ScoresRecord)
    except msgspec.ValidationError as error:
        raise InputError(
            f"scores.json: expected benchmark, split and metrics with value, low, high ({error!r})"
        ) from error
    metrics = record["metrics"]
    first = [name for name in HEADLINES if name in metrics]
    return {
        "benchmark": record["benchmark"],
        "split": record["split"],
        "command": record.get("command", ""),
        "metrics": [_metric_row(name, metrics[name]) for name in [*first, *(n for n in metrics if n not in first)]],
    }


def _metric_row(name: str, metric: MetricRecord) -> list[str | float | None]:
    """Name or headline, value, low, high; clicks that never were enough say so."""
    ends = [metric["value"], metric["low"], metric["high"]]
    unreached = ".noc_" in name
    shown = ["not reached" if unreached and end == CLICK_LIMIT else end for end in ends]
    return [HEADLINES.get(name, name), *shown]


def report_data(
    *,
    title: str,
    images: Sequence[dict[str, object]],
    statistics: RunStatisticsRecord,
    failures: Sequence[FailedRow],
    state: StatusRecord,
    seed: int,
    pictures: Sequence[dict[str, str]] = (),
    scores: Sequence[object] = (),
) -> Report:
    """The one object that the page's script reads.

    Args:
        title: name of the run, shown as text.
        images: from `image_record`.
        statistics: `RunStatistics.to_json()` of the whole run.
        failures: the rows shown, at most as many as the page should hold.
        state: `status` of the run: committed and pending units among others.
        seed: by which the images were chosen.
        pictures: from `picture_record`.
        scores: contents of `scores.json` files.
    """
    return {
        "format": FORMAT,
        "version": __version__,
        "title": title,
        "seed": seed,
        "images": list(images),
        "statistics": statistics,
        "failures": list(failures),
        "state": state,
        "passed_over": passed_over.rows(state.get("passed_over", {})),
        "pictures": list(pictures),
        "scores": [score_record(each) for each in scores],
    }


def render(data: Report) -> str:
    """The report's page as text, its data included."""
    page = page_of(
        "report.html",
        styles=("report.css",),
        scripts=("report_masks.js", "report_charts.js", "viewer.js", "report_page.js"),
    )
    return _filled(page, "data", embedded_json(data))


def page_of(template: str, *, styles: Sequence[str], scripts: Sequence[str], script_source: str = "") -> str:
    """A template joined with one style and one script, and the policy that allows these two by their hashes.

    Args:
        template: in `templates/`, with `{{policy}}`, `{{style}}`, `{{script}}`, and places for what every page with
            masks has: `{{dial}}` and `{{image}}` (with its part tree).
        styles: files in `templates/`, joined in this order.
        scripts: likewise.
        script_source: of further scripts, as the policy has it; "" for none.
    """
    script = "\n".join(template_text(name) for name in scripts)
    style = "\n".join(template_text(name) for name in styles)
    policy = (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src '{_csp_hash(style)}'; script-src '{_csp_hash(script)}'"
    )
    if script_source:
        policy += f" {script_source}"
    page = template_text(template)
    parts = {name: template_text(f"{name}.html") for name in ("dial", "image")}
    for name, text in {**parts, "policy": policy, "style": style, "script": script}.items():
        page = _filled(page, name, text)
    return page


def _filled(page: str, name: str, text: str) -> str:
    before, marker, after = page.partition("{{" + name + "}}")
    assert marker, f"the template lacks {name}"
    return before + text + after


def embedded_json(value: object) -> str:
    """JSON that can stand inside a `<script>` element: ASCII only, without `<`, `>` or `&`."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"), sort_keys=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def template_text(name: str) -> str:
    """A file of `pipeline/templates/`."""
    return (resources.files("pipeline") / "templates" / name).read_text(encoding="utf-8")


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(bytes.fromhex(sha256_of(text.encode()))).decode("ascii")
