"""What `grainmill segment` does with a video: prompts for objects on one frame, masks of all of them on every frame."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.console import ProgressBar
from pipeline.errors import InputError

from .coco_json import FIRST_ID, MASK_FORMAT, PredictedMask
from .draw import MAX_ID, Mask, id_image, png_bytes, segment_map
from .output_files import OutputFiles
from .prompt_flags import Prompt
from .segment_image import mark_prompt
from .video import Frames, GranularVideoPredictor


@dataclass(frozen=True, kw_only=True)
class VideoObject:
    """What is tracked, and how large a part of it."""

    prompt: Prompt
    granularity: float | None


def check_objects(frames: Frames, objects: Mapping[int, VideoObject], *, frame: int, kinds: Sequence[str] = ()) -> None:
    """Do the prompts speak of this video? Told before a model is loaded.

    Raises:
        InputError: no object, one without a prompt, a frame that is not there, a point or a box outside; frames of
            several sizes.
    """
    flags = "--point [N:]X,Y, --not-point [N:]X,Y or --box [N:]X0,Y0,X1,Y1"
    if not objects:
        raise InputError(f"{frames.name}: expected {flags} for at least one object of the video, found none")
    if not 0 <= frame < len(frames):
        raise InputError(f"{frames.name}: --frame {frame}: expected 0 to {len(frames) - 1}")
    for number, each in objects.items():
        if "ids" in kinds and not 1 <= number <= MAX_ID:
            raise InputError(f"--masks ids: a PNG holds objects 1 to {MAX_ID}, found object {number}")
        if not each.prompt.given:
            raise InputError(
                f"{frames.name}: object {number} has a --granularity and nothing that points at it; each object of a "
                f"video needs {flags}, where N is its number and 1 if left out"
            )
        each.prompt.check(width=frames.width, height=frames.height, where=f"{frames.name}, object {number}")
    frames.expect_one_size()


def track_objects(
    predictor: GranularVideoPredictor,
    frames: Frames,
    objects: Mapping[int, VideoObject],
    *,
    frame: int,
    files: OutputFiles,
    name: str,
    kinds: Sequence[str] = (),
) -> dict[str, Any]:
    """Tracks forwards, and backwards if the prompts lie later; writes one overlay a frame, and masks as `kinds` says.

    Args:
        predictor: for video.
        frames: of the video.
        objects: by number, as `check_objects` has let them pass.
        frame: that the prompts speak of.
        files: that are written.
        name: pictures are `NAME.masks/00000.png`, `00001.png` …; prompts are drawn on their frame.
        kinds: `ids` adds `NAME.masks.ids/00000.png`, objects by number; `each` `NAME.masks.each/OBJECT/00000.png`.

    Returns:
        The JSON: as of one image, with one entry of `images` a frame (`frame` counts from 0, as --frame does; the
        file's name in a folder, the frame's number in a video file) and an `object_id` in each annotation. `score` is
        null: sam2's tracker gives none.
    """
    state = predictor.init_state(frames)
    for number, each in objects.items():
        predictor.add_new_points_or_box(
            state,
            frame,
            number,
            each.prompt.points or None,
            each.prompt.labels or None,
            box=each.prompt.box,
            granularity=each.granularity,
        )
    granularity = {number: each.granularity for number, each in objects.items()}
    marked = {frame: [each.prompt for each in objects.values()]}
    with ProgressBar("segment", len(frames), unit="frames") as progress:
        content = follow_objects(
            predictor, state, frames, granularity, start=frame, marked=marked, files=files, name=name, kinds=kinds,
            on_frame=progress.update,
        )  # fmt: skip
    return {
        **content,
        "frame": frame,
        "objects": {
            str(number): {"granularity": each.granularity, **each.prompt.to_json()} for number, each in objects.items()
        },
    }


def follow_objects(
    predictor: GranularVideoPredictor,
    state: dict[str, Any],
    frames: Frames,
    granularity: Mapping[int, float | None],
    *,
    start: int,
    marked: Mapping[int, Sequence[Prompt]],
    files: OutputFiles,
    name: str,
    kinds: Sequence[str] = (),
    on_frame: Callable[[int], None],
) -> dict[str, Any]:
    """Propagates a state whose objects are prompted; what is written and returned is as `track_objects` tells.

    Args:
        predictor: for video.
        state: of these frames.
        frames: of the video.
        granularity: of each object.
        start: the first frame with a prompt.
        marked: prompts to draw, by frame.
        files: that are written.
        name: of the pictures.
        kinds: further pictures.
        on_frame: hears how many frames are done, and may raise to stop.
    """
    annotations: list[dict[str, Any]] = []
    done = 0
    for backwards in (False, True) if start else (False,):
        for place, ids, logits in predictor.propagate_in_video(state, start, reverse=backwards):
            if backwards and place == start:
                continue
            masks = dict(zip(ids, (logits[:, 0] > 0).cpu().numpy(), strict=True))
            picture = segment_map(frames[place], list(masks.values()))
            for prompt in marked.get(place, ()):
                picture = mark_prompt(picture, prompt)
            files.write(f"{name}.masks/{place:05d}.png", png_bytes(picture))
            _write_masks(files, name, place, masks, kinds)
            annotations += _annotations(place, masks, granularity)
            done += 1
            on_frame(done)
    annotations.sort(key=lambda each: (each["image_id"], each["object_id"]))
    return {
        "format": MASK_FORMAT,
        "images": [
            {
                "id": FIRST_ID + number,
                "frame": number,
                "file_name": frames.files[number].name if frames.files else f"{number:05d}",
                "width": frames.width,
                "height": frames.height,
            }
            for number in range(len(frames))
        ],
        "categories": [{"id": 1, "name": "mask"}],
        "annotations": [{**each, "id": number} for number, each in enumerate(annotations, FIRST_ID)],
    }


def _write_masks(files: OutputFiles, name: str, frame: int, masks: Mapping[int, Mask], kinds: Sequence[str]) -> None:
    if "ids" in kinds:
        ids = id_image(masks, *next(iter(masks.values())).shape, max_id=max(masks))
        files.write(f"{name}.masks.ids/{frame:05d}.png", png_bytes(ids))
    if "each" in kinds:
        for number, mask in masks.items():
            files.write(f"{name}.masks.each/{number}/{frame:05d}.png", png_bytes(mask.astype(np.uint8) * 255))


def _annotations(
    frame: int, masks: Mapping[int, Mask], granularity: Mapping[int, float | None]
) -> list[dict[str, Any]]:
    """Of the objects that are there; one that is hidden on a frame has no annotation on it."""
    return [
        {
            **PredictedMask.of(mask, granularity[number], 0.0).to_json(0, image_id=FIRST_ID + frame),
            "score": None,
            "object_id": number,
        }
        for number, mask in masks.items()
        if mask.any()
    ]
