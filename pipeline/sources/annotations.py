"""SA-1B annotations that come with an image: `sa_N.json`, masks as COCO run-length encodings.

They are given for the image as it is stored. An EXIF orientation other than 1 would turn the image and not the masks,
so such a sample is refused rather than labelled wrongly (SA-1B's own photographs have none). Records of our own format
have the same fields and lie on the upright image, so they are taken whatever the orientation.
"""

from __future__ import annotations

from typing import Any, Final

from ..errors import SampleFailureError, SchemaError
from ..format import rle as rle_codec
from ..format.rle import Rle
from ..format.schema import FORMAT, load_json
from .passed_over import PassedOver

MAX_ANNOTATIONS: Final = 20_000
"""More masks than any image of SA-1B has (it has some hundred at most)."""


def parse_sa1b(
    data: bytes, *, height: int, width: int, where: str, passed: PassedOver | None = None
) -> tuple[Rle, ...]:
    """Reads `annotations[].segmentation` of one image; those without a mask, or with an empty one, are left out.

    Args:
        data: the JSON's bytes.
        height: of the image, pixels, as stored.
        width: likewise.
        where: for the message.
        passed: hears of what is left out.

    Raises:
        SampleFailureError: `bad_annotation`, with what was expected and found.
    """
    try:
        record = load_json(data, where=where)
        annotations = record["annotations"] if isinstance(record, dict) else None
        if not isinstance(annotations, list) or len(annotations) > MAX_ANNOTATIONS:
            raise SchemaError(f"{where}: expected a list `annotations` of at most {MAX_ANNOTATIONS} masks")
        masks = [_mask(each, height, width, f"{where}: annotations[{n}]") for n, each in enumerate(annotations)]
        if passed is not None:
            passed.add("annotation_without_mask", where, count=masks.count(None))
        return tuple(mask for mask in masks if mask is not None)
    except (SchemaError, KeyError) as error:
        message = str(error) if isinstance(error, SchemaError) else f"{where}: no field {error}"
        raise SampleFailureError("bad_annotation", "read", message) from error


def are_upright(data: bytes, *, where: str) -> bool:
    """Whether masks lie on the image after its EXIF orientation: those of our own format do."""
    try:
        record = load_json(data, where=where)
    except SchemaError:
        return False  # which `parse_sa1b` will say
    return isinstance(record, dict) and record.get("format") == FORMAT


def _mask(entry: Any, height: int, width: int, where: str) -> Rle | None:
    segmentation = entry.get("segmentation") if isinstance(entry, dict) else None
    if isinstance(entry, dict) and "segmentation" in entry and segmentation in (None, []):
        return None
    if not isinstance(segmentation, dict) or segmentation.get("size") != [height, width]:
        found = segmentation.get("size") if isinstance(segmentation, dict) else type(segmentation).__name__
        raise SchemaError(f"{where}: expected an RLE of size [{height}, {width}], found {found!r:.80}")
    rle = rle_codec.from_coco(segmentation, height, width, where=where)
    return rle if rle_codec.area_px(rle_codec.run_lengths_of(rle)) > 0 else None
