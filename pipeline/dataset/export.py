"""A run as whole files in the layout of other readers: COCO instances, or SA-1B.

Both are written beside the target and moved there when they are complete, one sample in memory at a time. Image bytes
are copied unchanged, so their EXIF orientation still stands in them. Sizes and masks are on the upright grid, which is
what readers see that apply the orientation (OpenCV's `imread`, Pillow with `ImageOps.exif_transpose`); each image's
record says its `exif_orientation`, 1 for most.

For readers that know no EXIF, `upright` writes images whose orientation is not 1 again, as PNG of the upright RGB
pixels that were mined, which loses nothing of them; all others keep their bytes. For readers that know no compressed
run lengths, COCO's masks come as plain run lengths or as polygons (see `format/polygons.py`).
"""

from __future__ import annotations

import io
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

import numpy as np
from PIL import Image

from .. import __version__
from ..errors import InputError, SampleFailureError
from ..format import rle
from ..format.records import SampleRow
from ..format.schema import FORMAT, Annotation, Sample, canonical_json
from ..sources.images import decode_rgb
from ..storage.local import explained
from .reader import Dataset

Layout = Literal["coco", "sa1b"]
LAYOUTS: Final[tuple[Layout, ...]] = ("coco", "sa1b")
MaskForm = Literal["rle", "uncompressed", "polygons"]

COCO_JSON: Final = "annotations/instances.json"

SA1B_NOTES: Final = """\
SA-1B layout, written by Grainmill.

sa_N.EXT   the source image's bytes, unchanged; EXT is jpg, png, webp, tif or bmp by content (SA-1B itself has jpg
           only); of an export with --upright, images that had an EXIF orientation are upright PNG instead
sa_N.json  {"image": {...}, "annotations": [...]} with SA-1B's field names

N counts the samples from 1 in the order of the run's plan; it stays the same when a complete run is extended. "image"
also holds the sample's key, source, licence and EXIF orientation. Masks and sizes are on the upright grid: readers must
apply the orientation (OpenCV does; Pillow needs ImageOps.exif_transpose) where it is not 1.

Each annotation also holds granularity, instance_id, parent_id (ids within the image, from 1), level, origin and score.
"predicted_iou" and "stability_score" are null: no model predicted these masks. "crop_box" is the whole image, and
"point_coords" holds one pixel inside the mask.
"""


def export_run(
    dataset: Dataset,
    target: Path,
    *,
    layout: Layout,
    images: bool = True,
    upright: bool = False,
    masks: MaskForm = "rle",
    on_sample: Callable[[int], None] | None = None,
) -> dict[str, int]:
    """Writes everything that is committed.

    Args:
        dataset: complete or not.
        target: a new or empty directory.
        layout: `coco` or `sa1b`.
        images: copy the images too; False writes annotations only.
        upright: write images again whose EXIF orientation is not 1, as upright PNG.
        masks: COCO's form of them; SA-1B's is `rle`.
        on_sample: called with the number of samples written.

    Returns:
        `samples`, `masks` and `images` written, and how many of the images were `turned`.

    Raises:
        InputError: the target is not empty; nothing is committed; options that do not go together; or an image to be
            turned cannot be decoded.
        StorageError: the disk is full, for example.
    """
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise InputError(f"{target}: expected a new or empty directory, found something there; choose another --output")
    if layout == "sa1b" and masks != "rle":
        raise InputError(f"--to sa1b: SA-1B's masks are compressed run lengths; --{masks} goes with --to coco")
    if upright and not images:
        raise InputError("--upright writes images; it does not go with --no-images")
    dataset.require_samples()
    options = _Options(images=images, upright=upright, masks=masks)
    scratch = target.parent / f".{target.name}.{secrets.token_hex(6)}.partial"
    with explained("write", target):
        scratch.mkdir(parents=True)
        try:
            write = _write_coco if layout == "coco" else _write_sa1b
            counts = write(dataset, scratch, options, on_sample or (lambda count: None))
            if target.is_dir():
                target.rmdir()
            os.rename(scratch, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)  # gone already if it was moved
    return counts


def sample_rows(dataset: Dataset) -> Iterator[SampleRow]:
    """Every row of the samples' index, in the order of the plan, one unit's table in memory at a time."""
    for unit in dataset.units():
        yield from dataset.samples(unit).to_pylist()


@dataclass(frozen=True, kw_only=True)
class _Options:
    """What is written of each sample, see `export_run`."""

    images: bool
    upright: bool
    masks: MaskForm

    def turns(self, row: SampleRow) -> bool:
        """Whether a sample's image is written again."""
        return self.upright and row["exif_orientation"] != 1

    def extension(self, row: SampleRow) -> str | None:
        """Of the image file; None where the run has no image."""
        return "png" if self.turns(row) else row["ext"]


def _image_bytes(dataset: Dataset, row: SampleRow, options: _Options) -> bytes:
    """The image's own bytes, or those of the upright PNG.

    Raises:
        InputError: it cannot be decoded, or was not mined.
    """
    data = dataset.read_image(row)
    if not options.turns(row):
        return data
    try:
        rgb = decode_rgb(data, max_pixels=row["width"] * row["height"])
    except SampleFailureError as error:
        raise InputError(f"{dataset.location}: {row['key']}: cannot be turned upright: {error.message}") from error
    turned = io.BytesIO()
    Image.fromarray(rgb).save(turned, "PNG")
    return turned.getvalue()


# ---------------------------------------------------------------------------------------------------------------------
# COCO


def _write_coco(dataset: Dataset, folder: Path, options: _Options, on_sample: Callable[[int], None]) -> dict[str, int]:
    """`images/KEY.EXT` and one `annotations/instances.json`, its two long lists streamed one after the other."""
    (folder / "annotations").mkdir()
    if options.images:
        (folder / "images").mkdir()
    licenses: dict[str, int] = {}
    copied = turned = masks = samples = 0
    with (folder / COCO_JSON).open("wb", buffering=1 << 20) as stream:
        stream.write(b'{"info":' + canonical_json(_coco_info(options)))
        stream.write(b',"categories":[{"id":1,"name":"object","supercategory":"object"}],"images":[')
        for image_id, row in enumerate(sample_rows(dataset), start=1):
            license_id = None if row["license"] is None else licenses.setdefault(row["license"], len(licenses) + 1)
            shown: SampleRow = {**row, "ext": options.extension(row)}
            if options.turns(row):
                shown["exif_orientation"] = 1
                turned += 1
            _append(stream, coco_image(shown, image_id=image_id, license_id=license_id), first=image_id == 1)
            if options.upright or (options.images and row["image_offset"] is not None):
                (folder / "images" / f"{row['key']}.{shown['ext']}").write_bytes(_image_bytes(dataset, row, options))
                copied += 1
        stream.write(b'],"annotations":[')
        for image_id, row in enumerate(sample_rows(dataset), start=1):
            sample = dataset.read_sample(row)
            for record in coco_annotations(sample, image_id=image_id, first_id=masks + 1, form=options.masks):
                _append(stream, record, first=masks == 0)
                masks += 1
            samples = image_id
            on_sample(samples)
        named = [{"id": number, "name": name, "url": ""} for name, number in licenses.items()]
        stream.write(b'],"licenses":' + canonical_json(named) + b"}")
        stream.flush()
        os.fsync(stream.fileno())
    return {"samples": samples, "masks": masks, "images": copied, "turned": turned}


def _append(stream: BinaryIO, record: dict[str, object], *, first: bool) -> None:
    stream.write((b"" if first else b",\n") + canonical_json(record))


def _coco_info(options: _Options) -> dict[str, str]:
    note = "masks and sizes are upright: apply each image's EXIF orientation when reading it"
    if options.upright:
        note = "images, masks and sizes are upright as they are stored: do not turn anything"
    if options.masks == "polygons":
        note += (
            "; polygons run along the borders between pixels, each piece of a mask is one, holes are reached by slits "
            "of no width: filled as pycocotools does, they are the masks to the pixel"
        )
    return {
        "description": "Granularity-labelled masks mined by Grainmill",
        "version": __version__,
        "format": FORMAT,
        "note": note,
    }


def coco_image(row: SampleRow, *, image_id: int, license_id: int | None) -> dict[str, object]:
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


def coco_annotations(
    sample: Sample, *, image_id: int, first_id: int, form: MaskForm = "rle"
) -> Iterator[dict[str, object]]:
    """COCO's annotation records of one sample; `instance_id` and `parent_id` are annotation ids of the whole file.

    A mask without a score has no field `score`: readers such as CVAT's take a null for a number and refuse the file.
    """
    for mask in sample.annotations:
        common = _common(mask)
        if mask.score is None:
            del common["score"]
        yield {
            "id": first_id + mask.id,
            "image_id": image_id,
            **common,
            "segmentation": _segmentation(mask, form),
            "category_id": 1,
            "iscrowd": 0,
            "instance_id": first_id + mask.instance_id,
            "parent_id": None if mask.parent_id is None else first_id + mask.parent_id,
        }


def _segmentation(mask: Annotation, form: MaskForm) -> object:
    """A mask as COCO has it: compressed or plain run lengths, or polygons."""
    size, counts = mask.segmentation["size"], mask.segmentation["counts"]
    if form == "uncompressed":
        return {"size": size, "counts": rle.run_lengths_of(mask.segmentation).tolist()}
    if form == "polygons":
        from ..format.polygons import polygons_of

        x, y, width, height = mask.bbox
        pieces = polygons_of(rle.decode(mask.segmentation)[y : y + height, x : x + width])
        return [[value + (y if index % 2 else x) for index, value in enumerate(piece)] for piece in pieces]
    return {"size": size, "counts": counts}


def _common(mask: Annotation) -> dict[str, object]:
    return {
        "segmentation": _segmentation(mask, "rle"),
        "bbox": list(mask.bbox),
        "area": mask.area,
        "granularity": mask.granularity,
        "level": mask.level,
        "origin": mask.origin,
        "score": mask.score,
    }


# ---------------------------------------------------------------------------------------------------------------------
# SA-1B


def _write_sa1b(dataset: Dataset, folder: Path, options: _Options, on_sample: Callable[[int], None]) -> dict[str, int]:
    """`sa_N.EXT` and `sa_N.json` beside each other, and a README that says what the fields hold."""
    copied = turned = masks = samples = 0
    for samples, row in enumerate(sample_rows(dataset), start=1):
        sample = dataset.read_sample(row)
        record = sa1b_record(sample, image_id=samples, extension=options.extension(row))
        if options.turns(row):
            record["image"]["exif_orientation"] = 1
            turned += 1
        (folder / f"sa_{samples}.json").write_bytes(canonical_json(record))
        masks += len(sample.annotations)
        if options.upright or (options.images and row["image_offset"] is not None):
            (folder / record["image"]["file_name"]).write_bytes(_image_bytes(dataset, row, options))
            copied += 1
        on_sample(samples)
    (folder / "README.txt").write_text(SA1B_NOTES, encoding="utf-8")
    return {"samples": samples, "masks": masks, "images": copied, "turned": turned}


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
                "id": 1 + mask.id,  # COCO's evaluation takes 0 for "no match"
                **_common(mask),
                "predicted_iou": None,
                "stability_score": None,
                "crop_box": [0, 0, sample.width, sample.height],
                "point_coords": [list(inner_point(mask))],
                "instance_id": 1 + mask.instance_id,
                "parent_id": None if mask.parent_id is None else 1 + mask.parent_id,
            }
            for mask in sample.annotations
        ],
    }


def inner_point(mask: Annotation) -> tuple[int, int]:
    """(x, y) of one foreground pixel: the middle of the longest vertical stretch, pixels from the upper left corner."""
    lengths = rle.run_lengths_of(mask.segmentation)
    longest = 1 + 2 * int(np.argmax(lengths[1::2]))
    middle = int(lengths[:longest].sum() + lengths[longest] // 2)
    height = mask.segmentation["size"][0]
    return middle // height, middle % height
