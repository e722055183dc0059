"""A run as whole files in the layout of other readers: COCO instances, or SA-1B.

Both are written beside the target and moved there when they are complete, one sample in memory at a time. Image bytes
are copied unchanged, so their EXIF orientation still stands in them. Sizes and masks are on the upright grid, which is
what readers see that apply the orientation (OpenCV's `imread`, Pillow with `ImageOps.exif_transpose`); each image's
record says its `exif_orientation`, 1 for most.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

import numpy as np

from . import __version__, rle
from .committed import CommittedRun
from .errors import InputError
from .schema import FORMAT, Annotation, Sample, canonical_json
from .storage import explained

Layout = Literal["coco", "sa1b"]
LAYOUTS: Final[tuple[Layout, ...]] = ("coco", "sa1b")

COCO_JSON: Final = "annotations/instances.json"

SA1B_NOTES: Final = """\
SA-1B layout, written by Grainmill.

sa_N.EXT   the source image's bytes, unchanged; EXT is jpg, png, webp, tif or bmp by content (SA-1B itself has jpg only)
sa_N.json  {"image": {...}, "annotations": [...]} with SA-1B's field names

N counts the samples from 1 in the order of the run's plan; it stays the same when a complete run is extended. "image"
also holds the sample's key, source, licence and EXIF orientation. Masks and sizes are on the upright grid: readers must
apply the orientation (OpenCV does; Pillow needs ImageOps.exif_transpose) where it is not 1.

Each annotation also holds granularity, instance_id, parent_id (ids within the image), level, origin and score.
"predicted_iou" and "stability_score" are null: no model predicted these masks. "crop_box" is the whole image, and
"point_coords" holds one pixel inside the mask.
"""


def export_run(
    run: CommittedRun,
    target: Path,
    *,
    layout: Layout,
    images: bool = True,
    on_sample: Callable[[int], None] | None = None,
) -> dict[str, int]:
    """Writes everything that is committed.

    Args:
        run: complete or not.
        target: a new or empty directory.
        layout: `coco` or `sa1b`.
        images: copy the images too; False writes annotations only.
        on_sample: called with the number of samples written.

    Returns:
        `samples`, `masks` and `images` written.

    Raises:
        InputError: the target is not empty; or nothing is committed.
        StorageError: the disk is full, for example.
    """
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise InputError(f"{target}: expected a new or empty directory, found something there; choose another --output")
    run.require_samples()
    scratch = target.parent / f".{target.name}.{secrets.token_hex(6)}.partial"
    with explained("write", target):
        scratch.mkdir(parents=True)
        try:
            write = _write_coco if layout == "coco" else _write_sa1b
            counts = write(run, scratch, images, on_sample or (lambda count: None))
            if target.is_dir():
                target.rmdir()
            os.rename(scratch, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)  # gone already if it was moved
    return counts


def sample_rows(run: CommittedRun) -> Iterator[dict[str, Any]]:
    """Every row of the samples' index, in the order of the plan, one unit's table in memory at a time."""
    for commit in run.commits():
        yield from run.samples(commit).to_pylist()


# ---------------------------------------------------------------------------------------------------------------------
# COCO


def _write_coco(run: CommittedRun, folder: Path, images: bool, on_sample: Callable[[int], None]) -> dict[str, int]:
    """`images/KEY.EXT` and one `annotations/instances.json`, its two long lists streamed one after the other."""
    (folder / "annotations").mkdir()
    if images:
        (folder / "images").mkdir()
    licenses: dict[str, int] = {}
    copied = masks = samples = 0
    with (folder / COCO_JSON).open("wb", buffering=1 << 20) as stream:
        stream.write(b'{"info":' + canonical_json(_coco_info()))
        stream.write(b',"categories":[{"id":1,"name":"object","supercategory":"object"}],"images":[')
        for image_id, row in enumerate(sample_rows(run), start=1):
            license_id = None if row["license"] is None else licenses.setdefault(row["license"], len(licenses) + 1)
            _append(stream, coco_image(row, image_id=image_id, license_id=license_id), first=image_id == 1)
            if images and row["image_offset"] is not None:
                (folder / "images" / f"{row['key']}.{row['ext']}").write_bytes(run.read_image(row))
                copied += 1
        stream.write(b'],"annotations":[')
        for image_id, row in enumerate(sample_rows(run), start=1):
            sample = run.read_sample(row)
            for record in coco_annotations(sample, image_id=image_id, first_id=masks + 1):
                _append(stream, record, first=masks == 0)
                masks += 1
            samples = image_id
            on_sample(samples)
        named = [{"id": number, "name": name, "url": ""} for name, number in licenses.items()]
        stream.write(b'],"licenses":' + canonical_json(named) + b"}")
        stream.flush()
        os.fsync(stream.fileno())
    return {"samples": samples, "masks": masks, "images": copied}


def _append(stream: BinaryIO, record: dict[str, Any], *, first: bool) -> None:
    stream.write((b"" if first else b",\n") + canonical_json(record))


def _coco_info() -> dict[str, Any]:
    return {
        "description": "Granularity-labelled masks mined by Grainmill",
        "version": __version__,
        "format": FORMAT,
        "note": "masks and sizes are upright: apply each image's EXIF orientation when reading it",
    }


def coco_image(row: dict[str, Any], *, image_id: int, license_id: int | None) -> dict[str, Any]:
    """COCO's image record of one row of the samples' index, with a few fields more."""
    extension = row["ext"]
    return {
        "id": image_id,
        "width": row["width"],
        "height": row["height"],
        "file_name": row["source_uri"] if extension is None else f"{row['key']}.{extension}",
        "license": license_id,
        "key": row["key"],
        "source_uri": row["source_uri"],
        "member": row["member"],
        "source_sha256": row["source_sha256"],
        "exif_orientation": row["exif_orientation"],
    }


def coco_annotations(sample: Sample, *, image_id: int, first_id: int) -> Iterator[dict[str, Any]]:
    """COCO's annotation records of one sample; `instance_id` and `parent_id` are annotation ids of the whole file."""
    for mask in sample.annotations:
        yield {
            "id": first_id + mask.id,
            "image_id": image_id,
            **_common(mask),
            "category_id": 1,
            "iscrowd": 0,
            "instance_id": first_id + mask.instance_id,
            "parent_id": None if mask.parent_id is None else first_id + mask.parent_id,
        }


def _common(mask: Annotation) -> dict[str, Any]:
    return {
        "segmentation": {"size": mask.segmentation["size"], "counts": mask.segmentation["counts"]},
        "bbox": list(mask.bbox),
        "area": mask.area,
        "granularity": mask.granularity,
        "level": mask.level,
        "origin": mask.origin,
        "score": mask.score,
    }


# ---------------------------------------------------------------------------------------------------------------------
# SA-1B


def _write_sa1b(run: CommittedRun, folder: Path, images: bool, on_sample: Callable[[int], None]) -> dict[str, int]:
    """`sa_N.EXT` and `sa_N.json` beside each other, and a README that says what the fields hold."""
    copied = masks = samples = 0
    for samples, row in enumerate(sample_rows(run), start=1):
        sample = run.read_sample(row)
        record = sa1b_record(sample, image_id=samples, extension=row["ext"])
        (folder / f"sa_{samples}.json").write_bytes(canonical_json(record))
        masks += len(sample.annotations)
        if images and row["image_offset"] is not None:
            (folder / record["image"]["file_name"]).write_bytes(run.read_image(row))
            copied += 1
        on_sample(samples)
    (folder / "README.txt").write_text(SA1B_NOTES, encoding="utf-8")
    return {"samples": samples, "masks": masks, "images": copied}


def sa1b_record(sample: Sample, *, image_id: int, extension: str | None) -> dict[str, Any]:
    """The JSON of one image in SA-1B's fields, with those of Grainmill beside them (see `SA1B_NOTES`)."""
    return {
        "image": {
            "image_id": image_id,
            "width": sample.width,
            "height": sample.height,
            "file_name": f"sa_{image_id}.{extension or 'jpg'}",
            "key": sample.key,
            "source_uri": sample.source_uri,
            "member": sample.member,
            "license": sample.license,
            "exif_orientation": sample.exif_orientation,
        },
        "annotations": [
            {
                "id": mask.id,
                **_common(mask),
                "predicted_iou": None,
                "stability_score": None,
                "crop_box": [0, 0, sample.width, sample.height],
                "point_coords": [list(inner_point(mask))],
                "instance_id": mask.instance_id,
                "parent_id": mask.parent_id,
            }
            for mask in sample.annotations
        ],
    }


def inner_point(mask: Annotation) -> tuple[int, int]:
    """(x, y) of one foreground pixel: the middle of the longest vertical run, pixels from the upper left corner."""
    runs = rle.runs_of(mask.segmentation)
    longest = 1 + 2 * int(np.argmax(runs[1::2]))
    middle = int(runs[:longest].sum() + runs[longest] // 2)
    height = mask.segmentation["size"][0]
    return middle // height, middle % height
