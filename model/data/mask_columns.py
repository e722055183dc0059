"""`KEY.json` as training reads it: the columns of its masks, in a tenth of the time of `schema.sample_from_json`.

An image has some hundred masks, of which training needs shape, granularity, instance, area and origin. These fields
are checked as there, types and ranges; what else the record holds is not looked at. Readers that vouch for a whole
record (`grainmill verify`, releases, scores) use `sample_from_json`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from pipeline.errors import SchemaError
from pipeline.format.granularity import GRANULARITY_MAX, GRANULARITY_MIN
from pipeline.format.schema import (
    FORMAT,
    MAX_JSON_BYTES,
    ORIGINS,
    Origin,
    sample_from_json,
)

_Pixels = Annotated[int, Meta(ge=1, le=2**31 - 1)]


class _Source(msgspec.Struct):
    sha256: str


class _Image(msgspec.Struct):
    width: _Pixels
    height: _Pixels


class _Segmentation(msgspec.Struct, gc=False):
    counts: str
    size: tuple[int, int]


class _Mask(msgspec.Struct, gc=False):
    id: int
    area: Annotated[int, Meta(ge=1, le=2**62)]
    granularity: Annotated[float, Meta(ge=GRANULARITY_MIN, le=GRANULARITY_MAX)]
    instance_id: Annotated[int, Meta(ge=0, le=2**31)]
    origin: Origin
    segmentation: _Segmentation


class _Record(msgspec.Struct):
    format: str
    key: str
    source: _Source
    image: _Image
    annotations: list[_Mask]


_DECODER: Final = msgspec.json.Decoder(_Record)


@dataclass(frozen=True, kw_only=True)
class MaskColumns:
    """The masks of one image, n of them, in the order of the record."""

    key: str
    source_sha256: str
    """Of the image's bytes."""
    height: int
    """Pixels, upright."""
    width: int
    counts: tuple[str, ...]
    """COCO's compressed run lengths, not parsed."""
    granularity: NDArray[np.float32]
    """(n,) in [0.1, 1.0]."""
    instance_id: NDArray[np.int64]
    """(n,) in [0, n)."""
    area_px: NDArray[np.int64]
    """(n,) in [1, height x width]."""
    origin_rank: NDArray[np.int64]
    """(n,) place of their origin in `schema.ORIGINS`."""


def mask_columns_from_json(data: bytes, *, where: str) -> MaskColumns:
    """Reads the masks of `KEY.json`.

    Args:
        data: the member's bytes.
        where: shard and key, for the message.

    Raises:
        SchemaError: what was expected and found, and where; in `sample_from_json`'s words.
    """
    found = _columns(data)
    if isinstance(found, MaskColumns):
        return found
    sample_from_json(data, where=where)  # which says what is wrong
    raise SchemaError(f"{where}: {found}")


def _columns(data: bytes) -> MaskColumns | str:
    """The columns, or what is wrong."""
    if len(data) > MAX_JSON_BYTES:
        return f"JSON of {len(data)} bytes is larger than the limit of {MAX_JSON_BYTES}"
    try:
        record = _DECODER.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        return str(error)
    masks, image = record.annotations, record.image
    if record.format != FORMAT:
        return f"format is {record.format!r}, this version reads {FORMAT!r}"
    size = (image.height, image.width)
    if any(mask.segmentation.size != size for mask in masks) or any(mask.id != i for i, mask in enumerate(masks)):
        return f"expected masks of {size[0]} x {size[1]} pixels, numbered from 0"
    instance_id = np.array([mask.instance_id for mask in masks], dtype=np.int64)
    area_px = np.array([mask.area for mask in masks], dtype=np.int64)
    if masks and (instance_id.max() >= len(masks) or area_px.max() > image.height * image.width):
        return f"expected instances below {len(masks)} and areas within {size[0]} x {size[1]} pixels"
    return MaskColumns(
        key=record.key,
        source_sha256=record.source.sha256,
        height=image.height,
        width=image.width,
        counts=tuple([mask.segmentation.counts for mask in masks]),
        granularity=np.array([mask.granularity for mask in masks], dtype=np.float32),
        instance_id=instance_id,
        area_px=area_px,
        origin_rank=np.array([ORIGINS.index(mask.origin) for mask in masks], dtype=np.int64),
    )
