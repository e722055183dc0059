"""What `grainmill segment` does with a video: prompts for objects on one frame, masks of all of them on every frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.console import ProgressBar
from pipeline.errors import InputError

from .mask_records import MASK_FORMAT, FoundMask
from .pictures import segment_map, write_png
from .prompt_flags import Prompt
from .video import Frames, GranularVideoPredictor, Tracked


@dataclass(frozen=True, kw_only=True)
class VideoObject:
    """What is tracked, and how large a part of it."""

    prompt: Prompt
    granularity: float | None


def track_objects(
    predictor: GranularVideoPredictor,
    frames: Frames,
    objects: Mapping[int, VideoObject],
    *,
    frame: int,
    folder: Path,
) -> dict[str, Any]:
    """Tracks forwards, and backwards if the prompts lie later; writes one overlay a frame into `folder`.

    Args:
        predictor: for video.
        frames: of the video.
        objects: by number.
        frame: that the prompts speak of.
        folder: for `00000.png`, `00001.png` …; older ones are replaced.

    Returns:
        The JSON: as of one image, with one entry of `images` a frame and an `object_id` in each annotation. `score` is
        null: sam2's tracker gives none.

    Raises:
        InputError: a frame that is not there, a point outside.
    """
    if not 0 <= frame < len(frames):
        raise InputError(f"{frames.name}: --frame {frame}: expected 0 to {len(frames) - 1}")
    for each in objects.values():
        each.prompt.check(width=frames.width, height=frames.height, where=frames.name)
    state = predictor.start(frames)
    for number, each in objects.items():
        predictor.add_points(
            state,
            frame,
            number,
            each.prompt.points or None,
            each.prompt.labels or None,
            box=each.prompt.box,
            granularity=each.granularity,
        )
    annotations: list[dict[str, Any]] = []
    done = 0
    with ProgressBar("segment", len(frames), unit="frames") as progress:
        for backwards in (False, True) if frame else (False,):
            for tracked in predictor.propagate(state, start_frame=frame, reverse=backwards):
                if backwards and tracked.frame == frame:
                    continue
                _write_overlay(frames, tracked, folder)
                annotations += _annotations(tracked, objects)
                done += 1
                progress.update(done)
    annotations.sort(key=lambda each: (each["image_id"], each["object_id"]))
    return {
        "format": MASK_FORMAT,
        "images": [
            {"id": number, "file_name": f"{number:05d}", "width": frames.width, "height": frames.height}
            for number in range(len(frames))
        ],
        "categories": [{"id": 1, "name": "mask"}],
        "annotations": [{**each, "id": number} for number, each in enumerate(annotations)],
        "frame": frame,
        "objects": {
            str(number): {"granularity": each.granularity, **each.prompt.to_json()} for number, each in objects.items()
        },
    }


def _write_overlay(frames: Frames, tracked: Tracked, folder: Path) -> None:
    picture = segment_map(frames[tracked.frame], list(tracked.masks_NHW))
    write_png(folder / f"{tracked.frame:05d}.png", picture)


def _annotations(tracked: Tracked, objects: Mapping[int, VideoObject]) -> list[dict[str, Any]]:
    """Of the objects that are there; one that is hidden on a frame has no annotation on it."""
    return [
        {
            **FoundMask.of(mask, objects[number].granularity, 0.0).to_json(0, image_id=tracked.frame),
            "score": None,
            "object_id": number,
        }
        for number, mask in zip(tracked.object_ids, np.asarray(tracked.masks_NHW), strict=True)
        if mask.any()
    ]
