"""Objects of a video, followed from the masks that people accepted on some of its frames; written as `segment` writes.

What was accepted on a frame is what is followed, at the granularity of the object's newest mask. The results lie in
DIR: `NAME.masks.json` and `NAME.masks/`, whole or not at all.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pipeline.errors import InputError
from pipeline.format import rle as rle_codec
from pipeline.format.rle import Rle

from ..network.load import usable_device
from ..predict.coco_json import FIRST_ID, json_bytes
from ..predict.output_files import OutputFiles
from ..predict.prompt_flags import Prompt
from ..predict.segment_inputs import checkpoint_name, forget_older, source_of
from ..predict.segment_video import follow_objects
from ..predict.video import GranularVideoPredictor
from .images import VideoFrames
from .jobs import Report
from .records import AcceptedMask

Accepted = tuple[int, AcceptedMask]
"""A frame, and a mask that was accepted on it."""


class VideoTracker:
    """Follows objects, and knows what was found last.

    Args:
        video: its frames.
        folder: DIR.
        checkpoint: of a model; it is loaded when it is first needed.
        base: of an adapter.
        device: None: a GPU if there is one.
    """

    def __init__(
        self, video: VideoFrames, folder: Path, checkpoint: str | None, *, base: str | None, device: str | None
    ) -> None:
        self._video, self._folder = video, folder
        self._checkpoint, self._base, self._device = checkpoint, base, device
        path = video.path
        self.name = path.resolve().name if path.is_dir() else path.stem

    @functools.cached_property
    def _predictor(self) -> GranularVideoPredictor:
        if self._checkpoint is None:
            raise InputError(
                "a video is followed by a model (--checkpoint): the trees of two frames do not know each other"
            )
        return GranularVideoPredictor.load(self._checkpoint, usable_device(self._device), base=self._base)

    def propagate(self, accepted: Sequence[Accepted], report: Report) -> str:
        """Follows all objects through all frames and writes what came of it; returns that in words.

        Args:
            accepted: masks with an `object_id`, in the order in which they were accepted.
            report: hears the share that is done, and may raise to stop: nothing is written then.

        Raises:
            InputError: no mask, no model, or a checkpoint that is gone.
            StorageError: a full disk.
        """
        objects = objects_of(accepted)
        if not objects:
            raise InputError("accept a mask of an object on at least one frame first")
        predictor, frames = self._predictor, self._video.frames
        state = predictor.init_state(frames)
        granularity = {number: self._granularity(masks) for number, masks in objects.items()}
        marked: defaultdict[int, list[Prompt]] = defaultdict(list)
        for number, masks in objects.items():
            for frame in sorted({frame for frame, _ in masks}):
                there = [mask for at, mask in masks if at == frame]
                union = np.logical_or.reduce([rle_codec.decode(mask.segmentation) for mask in there])
                predictor.add_new_mask(state, frame, number, union, granularity=granularity[number])
                marked[frame] += [_drawn(mask) for mask in there if mask.prompt is not None]
        with OutputFiles(self._folder) as files:
            content = follow_objects(
                predictor, state, frames, granularity, start=min(marked_frames(objects)), marked=marked, files=files,
                name=self.name, on_frame=lambda done: report(done / len(frames)),
            )  # fmt: skip
            content |= {
                "frame": min(marked_frames(objects)),
                "objects": {str(number): _object_json(masks, granularity[number]) for number, masks in objects.items()},
                "source": source_of(self._video.path, frames),
                "checkpoint": checkpoint_name(self._checkpoint),
            }
            files.write(f"{self.name}.masks.json", json_bytes(content))
        forget_older(self._folder, self.name, files.names)
        many = "1 object" if len(objects) == 1 else f"{len(objects)} objects"
        return f"{many} on {len(frames)} frames: {self.name}.masks.json and {self.name}.masks/"

    def _granularity(self, masks: Sequence[Accepted]) -> float | None:
        """The newest mask's that has one; else SAM-2's own answer, where the model has it, or the whole."""
        known = [mask.granularity for _, mask in masks if mask.granularity is not None]
        model = self._predictor.model
        if not model.has_dial:
            return None
        if known:
            return known[-1]
        return 1.0 if model.adapter == "full" else None

    def found(self, frame: int) -> list[tuple[int, Rle]]:
        """The objects on a frame and their masks, as they were last written."""
        path = self._folder / f"{self.name}.masks.json"
        try:
            return _found(path, path.stat().st_mtime_ns).get(frame, [])
        except (OSError, msgspec.MsgspecError):  # nothing was followed yet
            return []


class _Followed(msgspec.Struct):
    image_id: int
    object_id: int
    segmentation: Rle


class _FollowedFile(msgspec.Struct):
    annotations: list[_Followed]


@functools.lru_cache(maxsize=1)
def _found(path: Path, changed_ns: int) -> dict[int, list[tuple[int, Rle]]]:
    """By frame; read again when the file changed."""
    by_frame: defaultdict[int, list[tuple[int, Rle]]] = defaultdict(list)
    for each in msgspec.json.decode(path.read_bytes(), type=_FollowedFile).annotations:
        by_frame[each.image_id - FIRST_ID].append((each.object_id, each.segmentation))
    return dict(by_frame)


def objects_of(accepted: Sequence[Accepted]) -> dict[int, list[Accepted]]:
    """The masks of each object, by its number."""
    objects: defaultdict[int, list[Accepted]] = defaultdict(list)
    for frame, mask in accepted:
        if mask.object_id is not None:
            objects[mask.object_id].append((frame, mask))
    return dict(sorted(objects.items()))


def marked_frames(objects: dict[int, list[Accepted]]) -> set[int]:
    """Frames on which something was accepted."""
    return {frame for masks in objects.values() for frame, _ in masks}


def _drawn(mask: AcceptedMask) -> Prompt:
    assert mask.prompt is not None
    return Prompt(points=mask.prompt.points, labels=mask.prompt.labels, box=mask.prompt.box)


def _object_json(masks: Sequence[Accepted], granularity: float | None) -> dict[str, Any]:
    return {
        "granularity": granularity,
        "accepted": [
            {"frame": frame, "id": mask.id, **(_drawn(mask).to_json() if mask.prompt else {})} for frame, mask in masks
        ],
    }
