"""A mask that a model found, and the JSON file of an image's masks.

The file is COCO's layout for one image (`images`, `annotations` with `image_id`, compressed RLE, `bbox`, `area`,
`score`), so that COCO readers take it as it is. Ids begin with 1: COCOeval takes a match with annotation 0 for none.
`score` is the IoU that the model predicts for that very mask, `granularity` the dial's value that gave it, null where
SAM-2's own answer was asked for. `parent_id` is the smallest mask that holds at least 0.9 of this one, `instance_id`
the root of its tree, both by `id`; both are null where no tree was built. Of UnSAMv2's own weights everything that is
found has `score` as their code returns it, which was predicted for another mask, and `own_score` for that very mask.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.format import rle as rle_codec
from pipeline.format.rle import Rle

MASK_FORMAT: Final = "grainmill-masks/1"
FIRST_ID: Final = 1
"""Of images and of annotations."""
SCORE_DECIMALS: Final = 6


@dataclass(frozen=True, kw_only=True)
class PredictedMask:
    """One mask of one image."""

    segmentation: Rle
    granularity: float | None
    """The dial's value; None: SAM-2's own answer."""
    score: float
    """Predicted IoU of this mask."""
    own_score: float | None = None
    """Predicted IoU of this mask, where `score` is UnSAMv2's, which was predicted for another one."""
    stability: float | None = None
    """IoU of the mask at a higher and a lower threshold; None if not measured."""
    point: tuple[float, float] | None = None
    """Where it was clicked, (x, y) in pixels; None for what a person prompted."""
    parent_id: int | None = None
    """Place in the list of the mask that holds it."""
    instance_id: int | None = None
    """Place of its tree's root, its own if it is one."""

    @staticmethod
    def of(mask: NDArray[np.bool_], granularity: float | None, score: float) -> PredictedMask:
        """From pixels (H, W)."""
        return PredictedMask(segmentation=rle_codec.encode(mask), granularity=granularity, score=score)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(H, W)."""
        return rle_codec.decode(self.segmentation)

    @property
    def area_px(self) -> int:
        return rle_codec.area_px(rle_codec.run_lengths_of(self.segmentation))

    def to_json(self, place: int, *, image_id: int = FIRST_ID) -> dict[str, Any]:
        """An entry of `annotations`, of the mask at this place (0, 1, …) of its list."""
        lengths = rle_codec.run_lengths_of(self.segmentation)
        return {
            "id": _id_of(place),
            "image_id": image_id,
            "category_id": 1,
            "iscrowd": 0,
            "segmentation": self.segmentation,
            "bbox": list(rle_codec.bbox_xywh(lengths, self.segmentation["size"][0])),
            "area": rle_codec.area_px(lengths),
            "granularity": self.granularity,
            "score": round(self.score, SCORE_DECIMALS),
            **({} if self.own_score is None else {"own_score": round(self.own_score, SCORE_DECIMALS)}),
            "stability": None if self.stability is None else round(self.stability, SCORE_DECIMALS),
            "point": None if self.point is None else list(self.point),
            "parent_id": _id_of(self.parent_id),
            "instance_id": _id_of(self.instance_id),
        }


def _id_of(place: int | None) -> int | None:
    return None if place is None else FIRST_ID + place


def mask_file(found: Sequence[PredictedMask], *, image: str, width: int, height: int, **about: Any) -> dict[str, Any]:
    """The JSON of one image; `about` is added at the top."""
    return {
        "format": MASK_FORMAT,
        "images": [{"id": FIRST_ID, "file_name": image, "width": width, "height": height}],
        "categories": [{"id": 1, "name": "mask"}],
        "annotations": [each.to_json(place) for place, each in enumerate(found)],
        **about,
    }


def json_bytes(content: dict[str, Any]) -> bytes:
    """A JSON file's content."""
    return json.dumps(content, allow_nan=False).encode()
