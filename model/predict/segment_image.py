"""What `grainmill segment` does with one image: prompts in, masks and an overlay out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .coco_json import FIRST_ID, PredictedMask
from .draw import captioned, contact_sheet, id_image, in_line, mark_box, mark_points, overlay, png_bytes, segment_map
from .image import GranularPredictor
from .image_files import Rgb
from .mask_generator import depths
from .output_files import OutputFiles
from .prompt_flags import Prompt

_LEVELS_SHOWN: Final = 3
CLICK_GRANULARITY: Final = 1.0
"""Of a click without --granularity: the whole thing under it."""


def click_masks(
    predictor: GranularPredictor, prompt: Prompt, granularities: Sequence[float | None], *, refine: int = 0
) -> list[PredictedMask]:
    """The mask of a prompt at each granularity, in their order, all numbers in one pass of the decoder.

    Args:
        predictor: with its image set.
        prompt: in the image.
        granularities: numbers, or None for SAM-2's own answer.
        refine: further passes, each fed with the logits of the one before.
    """
    answers: dict[float | None, PredictedMask] = {}
    numbers = [each for each in granularities if each is not None]
    passes: list[list[float] | None] = [numbers] if numbers else []
    if len(numbers) < len(granularities):
        passes.append(None)
    for wanted in passes:
        prompted: dict[str, Any] = {
            "point_coords": np.array(prompt.points, dtype=np.float32) if prompt.points else None,
            "point_labels": np.array(prompt.labels) if prompt.points else None,
            "box": prompt.box,
            "multimask_output": False,
            "granularity": wanted,
        }
        answer = predictor.predict(**prompted)
        for _ in range(refine):
            answer = predictor.predict(**prompted, mask_input=answer[2])
        for g, mask, iou in zip([None] if wanted is None else wanted, *answer[:2], strict=True):
            answers[g] = PredictedMask.of(mask, g, float(iou))
    return [answers[each] for each in granularities]


def write_masks(
    files: OutputFiles, name: str, found: Sequence[PredictedMask], *, kinds: Sequence[str], height: int, width: int
) -> None:
    """The masks of an image as PNG files: `ids` in one, `each` in one of its own. Numbers are the annotations' ids."""
    if "ids" in kinds:
        masks = {number: each.mask for number, each in enumerate(found, FIRST_ID)}
        files.write(f"{name}.masks.ids.png", png_bytes(id_image(masks, height, width, max_id=len(found))))
    if "each" in kinds:
        for number, each in enumerate(found, FIRST_ID):
            files.write(f"{name}.masks.each/{number:05d}.png", png_bytes(each.mask.astype(np.uint8) * 255))


def click_picture(image: Rgb, prompt: Prompt, found: Sequence[PredictedMask]) -> Rgb:
    """The mask over the image, with the clicks and the box; several granularities side by side."""
    if len(found) == 1:
        return mark_prompt(overlay(image, found[0].mask), prompt)
    captions = ["SAM-2" if each.granularity is None else f"g = {each.granularity:g}" for each in found]
    points, labels = _clicks(prompt)
    masks = [each.mask for each in found]
    return contact_sheet(image, masks, captions, points_xy=points, labels=labels, box=prompt.box)


def mark_prompt(image: Rgb, prompt: Prompt) -> Rgb:
    """The box and the clicks of a prompt, drawn into a picture."""
    return mark_points(image if prompt.box is None else mark_box(image, prompt.box), *_clicks(prompt))


def _clicks(prompt: Prompt) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    return np.array(prompt.points, dtype=np.float64).reshape(-1, 2), np.array(prompt.labels, dtype=np.int64)


def everything_picture(image: Rgb, found: Sequence[PredictedMask]) -> Rgb:
    """All masks over the image, and those of each of the tree's first levels; see `in_line`."""
    depth = depths(found)
    cells = [captioned(segment_map(image, [each.mask for each in found]), f"all {len(found)} masks")]
    for level in range(min(max(depth, default=-1) + 1, _LEVELS_SHOWN)):
        chosen = [each.mask for each, its in zip(found, depth, strict=True) if its == level]
        name = "wholes" if level == 0 else "parts" if level == 1 else f"parts of parts, level {level}"
        cells.append(captioned(segment_map(image, chosen), f"{name}: {len(chosen)}"))
    return in_line(cells, image)
