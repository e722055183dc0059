"""What `grainmill segment` does with one image: prompts in, masks, an overlay and a JSON file out.

The JSON is a COCO-style file of one image (`images`, `annotations` with `image_id`, compressed RLE, `bbox`, `area`,
`score`), so that COCO readers take it as it is. `score` is the IoU that the model predicts for that very mask,
`granularity` the dial's value, null where SAM-2's own answer was asked for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline import rle as rle_codec
from pipeline.errors import InputError, SampleFailureError
from pipeline.images import decode_rgb

from .pictures import contact_sheet, mark_points, overlay
from .predictor import GranularPredictor

MAX_IMAGE_PIXELS: Final = 100_000_000
"""As `grainmill mine` has it."""
MASK_FORMAT: Final = "grainmill-masks/1"
CLICK_GRANULARITY: Final = 1.0
"""Of a click without --granularity: the whole thing under it."""

Rgb = NDArray[np.uint8]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What a person points at, in pixels of the photograph."""

    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()
    """1 inside, 0 outside, one a point."""
    box: tuple[float, float, float, float] | None = None
    """x0, y0, x1, y1."""

    def check(self, *, width: int, height: int, where: str) -> None:
        """Raises:
        InputError: nothing to point with, a point outside, or a box without area.
        """
        if not self.points and self.box is None:
            raise InputError(f"{where}: expected --point X,Y, --box X0,Y0,X1,Y1 or --everything, found none")
        for x, y in self.points:
            if not (0 <= x < width and 0 <= y < height):
                raise InputError(
                    f"{where}: point {x:g},{y:g} lies outside the image of {width} x {height} pixels; x runs to the "
                    "right and y down, from 0,0"
                )
        if self.box is not None:
            x0, y0, x1, y1 = self.box
            if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
                raise InputError(
                    f"{where}: box {x0:g},{y0:g},{x1:g},{y1:g}: expected 0 <= X0 < X1 <= {width} and "
                    f"0 <= Y0 < Y1 <= {height}, the image's size"
                )

    def to_json(self) -> dict[str, Any]:
        return {"points": [list(each) for each in self.points], "labels": list(self.labels), "box": self.box}


@dataclass(frozen=True, kw_only=True)
class Found:
    """One mask and what is known of it."""

    mask: BoolArray
    """(H, W)."""
    granularity: float | None
    score: float
    """Predicted IoU."""
    logits: NDArray[np.float32] | None = None
    """(h, w), for refinement."""
    parent: int | None = None
    """Place of the mask that holds it; None: none does, or it is not known."""


def read_rgb(path: str) -> Rgb:
    """An image file: upright RGB, (H, W, 3) uint8.

    Raises:
        InputError: no file, or not an image.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{path}: expected an image, found {'a directory' if file.is_dir() else 'nothing'}")
    try:
        return decode_rgb(file.read_bytes(), max_pixels=MAX_IMAGE_PIXELS)
    except SampleFailureError as error:
        raise InputError(f"{path}: not an image that can be read: {error.message}") from error


def click_masks(
    predictor: GranularPredictor, prompt: Prompt, granularities: Sequence[float | None], *, refine: int = 0
) -> list[Found]:
    """The mask of a prompt at each granularity, all in one pass of the decoder.

    Args:
        predictor: with its image set.
        prompt: in the image.
        granularities: numbers, or None for SAM-2's own answer.
        refine: further passes, each fed with the logits of the one before.
    """
    found = []
    numbers = [each for each in granularities if each is not None]
    passes: list[list[float] | None] = [numbers] if numbers else []
    if len(numbers) < len(granularities):
        passes.append(None)
    for wanted in passes:
        prompted: dict[str, Any] = {
            "point_coords": np.array(prompt.points, dtype=np.float32) if prompt.points else None,
            "point_labels": np.array(prompt.labels) if prompt.points else None,
            "box": prompt.box,
            "granularity": wanted,
        }
        answer = predictor.predict(**prompted)
        for _ in range(refine):
            answer = predictor.predict(**prompted, mask_input=answer[2])
        found += [
            Found(mask=mask, granularity=g, score=float(iou), logits=logits)
            for g, mask, iou, logits in zip([None] if wanted is None else wanted, *answer, strict=True)
        ]
    return found


def annotation(found: Found, number: int) -> dict[str, Any]:
    """One mask as COCO has it, and what we add."""
    rle = rle_codec.encode(found.mask)
    runs = rle_codec.runs_of(rle)
    return {
        "id": number,
        "image_id": 0,
        "category_id": 1,
        "iscrowd": 0,
        "segmentation": rle,
        "bbox": list(rle_codec.bbox_xywh(runs, found.mask.shape[0])),
        "area": rle_codec.area_px(runs),
        "granularity": found.granularity,
        "score": round(found.score, 6),
        "parent_id": found.parent,
    }


def mask_file(found: Sequence[Found], *, image: str, width: int, height: int, **about: Any) -> dict[str, Any]:
    """The JSON of one image."""
    return {
        "format": MASK_FORMAT,
        "images": [{"id": 0, "file_name": image, "width": width, "height": height}],
        "categories": [{"id": 1, "name": "mask"}],
        "annotations": [annotation(each, number) for number, each in enumerate(found)],
        **about,
    }


def write_mask_file(path: Path, content: dict[str, Any]) -> None:
    """Writes JSON that appears whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content, allow_nan=False), encoding="utf-8")
    temporary.replace(path)


def click_picture(image: Rgb, prompt: Prompt, found: Sequence[Found]) -> Rgb:
    """The mask over the photograph; several granularities side by side."""
    points = np.array(prompt.points, dtype=np.float64).reshape(-1, 2)
    labels = np.array(prompt.labels, dtype=np.int64)
    if len(found) == 1:
        return mark_points(overlay(image, found[0].mask), points, labels)
    captions = ["SAM-2" if each.granularity is None else f"g = {each.granularity:g}" for each in found]
    return contact_sheet(image, [each.mask for each in found], captions, points_xy=points, labels=labels)
