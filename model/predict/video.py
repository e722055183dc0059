"""One granularity for each object of a video, kept with the object, carried on by SAM-2's memory.

sam2's `SAM2VideoPredictor` does the work: its state, its memory attention and encoder, its object pointers. Two things
are added. The mask decoder answers at the granularity of the object it works for, on every frame and for every kind of
prompt (the reference wants g twice, shares one among all objects, and never gives it to mask prompts). And frames come
from any folder of images, any video file that OpenCV reads, a GIF or WebP, or images in memory; a folder's frames are
read when they are needed.

An object without a granularity is tracked by SAM-2 as it is. sam2's own builder also fills holes of up to 8 logits,
which needs its CUDA extension; that is off here, on every device.

Legend: N objects, H W pixels of a frame, h w of the logits.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import cv2
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pipeline.environment.torch_compat import ensure_torchvision
from pipeline.errors import InputError

from ..network.adapters import granularity_values
from ..network.granular import GranularSam2
from ..network.load import load_for_prediction
from ..network.pixels import resized_as_frame
from .image import NO_DIAL
from .image_files import (
    IMAGE_SUFFIXES,
    Rgb,
    as_rgb,
    image_size,
    images_in,
    is_animation,
    read_animation,
    read_rgb,
    real_numbers,
)

ensure_torchvision()
from sam2 import sam2_video_predictor as sam2_video  # noqa: E402  (needs torchvision's operators)

MAX_FILE_FRAMES: Final = 2000
"""A video file is held decoded, 3 bytes a pixel; a folder of images is read frame by frame instead."""
_TOO_MANY: Final = "more than {} frames, which would fill the memory; put them into a folder as images"

KEEP: Final = "keep"
Granularity = float | None | Literal["keep"]


class Frames(Sequence[Rgb]):
    """A video's frames, (H, W, 3) uint8 RGB, all of one size.

    Args:
        source: a folder of images (in natural order: 2 before 10), a video file that OpenCV reads, a GIF or WebP, or
            images: arrays (H, W, 3) uint8 RGB or Pillow's of mode RGB.

    Attributes:
        files: of a folder's frames, in order; empty for the rest.
        remarks: what a person should hear of: files of a folder that are no frames, frames that a file lacks.

    Raises:
        InputError: no such file, no images in it, a file that OpenCV does not read, or frames that are no images.
    """

    def __init__(self, source: str | os.PathLike[str] | Sequence[Any]) -> None:
        self.files: tuple[Path, ...] = ()
        self.remarks = ""
        self._arrays: Sequence[Any] = ()
        self.name = "frames"
        if isinstance(source, str | os.PathLike):
            path = Path(source)
            self.name = path.resolve().name
            if path.is_dir():
                found = images_in(path)
                self.files, self.remarks = found.files, found.passed_over
            elif is_animation(path):
                self._arrays = read_animation(path, max_frames=MAX_FILE_FRAMES)
                if len(self._arrays) > MAX_FILE_FRAMES:
                    raise InputError(f"{path}: {_TOO_MANY.format(MAX_FILE_FRAMES)}")
            else:
                self._arrays, self.remarks = _read_video(path)
        else:
            if not hasattr(source, "__len__") or not hasattr(source, "__getitem__"):
                raise InputError(
                    f"video: expected a folder, a video file or a list of frames, found {type(source).__name__}"
                )
            if not len(source):
                raise InputError("video: expected at least one frame")
            self._arrays = source
        self.height, self.width = self[0].shape[:2]
        if isinstance(source, list | tuple):
            for index in range(len(source)):
                self[index]

    def __len__(self) -> int:
        return len(self.files) or len(self._arrays)

    def __getitem__(self, index: Any) -> Any:
        frame = read_rgb(self.files[index]) if self.files else as_rgb(self._arrays[index], f"video: frame {index}")
        if hasattr(self, "width"):
            self._expect_size(index, frame.shape[1], frame.shape[0])
        return frame

    def expect_one_size(self) -> None:
        """Looks at the headers of all of a folder's frames, which are otherwise read when their turn comes.

        Raises:
            InputError: one of another size, or one that is no image.
        """
        for index, path in enumerate(self.files):
            self._expect_size(index, *image_size(path))

    def _expect_size(self, index: Any, width: int, height: int) -> None:
        if (width, height) != (self.width, self.height):
            file = f" ({self.files[index].name})" if self.files else ""
            raise InputError(
                f"{self.name}: frame {index}{file} is {width} x {height} pixels, the first "
                f"{self.width} x {self.height}; a video's frames are of one size"
            )


def _read_video(path: Path) -> tuple[list[Rgb], str]:
    """The frames, and what is missing of them."""
    if not path.is_file():
        raise InputError(f"{path}: expected a folder of frames or a video file, found nothing")
    if path.suffix.lower() in IMAGE_SUFFIXES:  # OpenCV would take its neighbours too: a_1.jpg, a_2.jpg
        raise InputError(f"{path}: expected a folder of frames or a video file, found an image")
    reader = cv2.VideoCapture(str(path))
    frames: list[Rgb] = []
    try:
        told = reader.get(cv2.CAP_PROP_FRAME_COUNT)
        while len(frames) <= MAX_FILE_FRAMES:
            more, bgr = reader.read()
            if not more:
                break
            frames.append(np.ascontiguousarray(bgr[:, :, ::-1]))
    finally:
        reader.release()
    if not frames:
        raise InputError(f"{path}: OpenCV reads no frame of it; put its frames into a folder as images")
    if len(frames) > MAX_FILE_FRAMES:
        raise InputError(f"{path}: {_TOO_MANY.format(MAX_FILE_FRAMES)}")
    missing = f"its header tells of {told:.0f} frames, {len(frames)} can be read" if told > len(frames) else ""
    return frames, missing


class _ModelFrames:
    """What sam2's state holds as `images`: frames as its own loader makes them, one at a time."""

    def __init__(self, frames: Frames, side: int) -> None:
        self._frames, self._side = frames, side

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Tensor:
        """(3, S, S) float32, normalised."""
        return resized_as_frame(self._frames[index], self._side)


class DialledVideo(sam2_video.SAM2VideoPredictor):
    """sam2's predictor, whose decoder answers at the granularity of the object whose outputs are being made."""

    dialled: Any = None
    """`GranularSam2.dialled` of the model this is the base of."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.memory_attention.register_forward_pre_hook(_in_the_models_precision, with_kwargs=True)

    def _run_single_frame_inference(self, inference_state: Any, output_dict: Any, **more: Any) -> Any:
        with self.dialled(_granularity_of(inference_state, output_dict)):
            return super()._run_single_frame_inference(inference_state, output_dict, **more)


def _in_the_models_precision(module: Any, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """sam2 keeps memories in bfloat16 and relies on autocast or on float32 pointers beside them; neither is sure."""
    return args, {**given, "memory": given["memory"].to(given["memory_pos"].dtype)}


def _granularity_of(state: dict[str, Any], output_dict: Any) -> float | None:
    """Of the object to which a dictionary of outputs belongs; sam2 hands over the dictionary alone."""
    for index, outputs in state["output_dict_per_obj"].items():
        if outputs is output_dict:
            granularity: float | None = state["granularity"].get(state["obj_idx_to_id"][index])
            return granularity
    raise AssertionError("outputs of no object")


@dataclass(frozen=True, kw_only=True)
class Tracked:
    """The objects on one frame."""

    frame: int
    object_ids: tuple[int, ...]
    logits_NHW: NDArray[np.float32]
    """On the frame's own grid; an object that is not there has -1024 everywhere."""

    @property
    def masks_NHW(self) -> NDArray[np.bool_]:
        return self.logits_NHW > 0


class GranularVideoPredictor:
    """Clicks on any frame, a granularity for each object, masks on all frames.

    Args:
        model: built with `video=True`, in evaluation mode, on its device.
    """

    def __init__(self, model: GranularSam2) -> None:
        if not isinstance(model.base, DialledVideo):
            raise InputError("video: expected a model built for video (load_granular(..., video=True))")
        self.model = model
        self._base: Any = model.base

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], device: str | torch.device = "cpu", *, base: str | None = None
    ) -> GranularVideoPredictor:
        """As `GranularPredictor.load`."""
        return cls(load_for_prediction(path, device, base=base, video=True))

    def start(
        self,
        frames: Frames | str | os.PathLike[str] | Sequence[Any],
        *,
        offload_video_to_cpu: bool = True,
        offload_state_to_cpu: bool = False,
    ) -> dict[str, Any]:
        """The state of a video: sam2's own, with `granularity` (object id -> g) in it.

        Args:
            frames: of the video, or what `Frames` takes: a folder's or a file's path, a list of images.
            offload_video_to_cpu: frames go to the device one at a time.
            offload_state_to_cpu: memories wait in main memory: a little slower, much less of a GPU's.

        Raises:
            InputError: as `Frames`.
        """
        video = frames if isinstance(frames, Frames) else Frames(frames)

        def load(**_: Any) -> tuple[_ModelFrames, int, int]:
            return _ModelFrames(video, self.model.image_size), video.height, video.width

        # sam2 reads folders of JPEG, and MP4 through decord; its state is made by its own code, from our frames.
        with _replaced(sam2_video, "load_video_frames", load):
            state: dict[str, Any] = self._base.init_state(
                "", offload_video_to_cpu=offload_video_to_cpu, offload_state_to_cpu=offload_state_to_cpu
            )
        state["granularity"] = {}
        return state

    def add_points(
        self,
        state: dict[str, Any],
        frame: int,
        object_id: int,
        point_coords: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        *,
        box: ArrayLike | None = None,
        granularity: Granularity = KEEP,
        clear_old_points: bool = True,
    ) -> Tracked:
        """Prompts an object on a frame.

        Args:
            state: of `start`.
            frame: 0, 1, 2 …
            object_id: any number; a new one makes a new object.
            point_coords: (K, 2) clicks (x, y) in pixels of the frame.
            point_labels: (K,) 1 inside, 0 outside; None: all inside.
            box: (4,) x0, y0, x1, y1.
            granularity: in [0.1, 1.0]; None: SAM-2's own answer; "keep": what the object has (None for a new one).
            clear_old_points: False adds to the points that the object has on this frame.

        Returns:
            All objects on this frame, before propagation.

        Raises:
            InputError: a frame that is not there, no prompt, one that is no finite numbers, a granularity out of range.
        """
        if point_coords is None and box is None:
            raise InputError("video: expected points or a box")
        points = None if point_coords is None else _finite(point_coords, "points")
        if points is not None and (points.ndim != 2 or points.shape[1] != 2):
            raise InputError(f"video: expected points (K, 2), found {points.shape}")
        if point_labels is not None and points is None:
            raise InputError("video: found labels without points")
        labels = None
        if points is not None:
            given = np.ones(len(points)) if point_labels is None else real_numbers(point_labels, "labels", "video")
            if given.shape != (len(points),):
                raise InputError(f"video: expected {len(points)} labels, found {given.shape}")
            if not np.isin(given, (0, 1)).all():
                raise InputError("video: expected labels 1 (inside) and 0 (outside), found others")
            labels = given.astype(np.int32)
        corners = None if box is None else _finite(box, "box").reshape(-1)
        if corners is not None and corners.size != 4:
            raise InputError(f"video: expected one box x0, y0, x1, y1, found {corners.size} numbers")
        self._set(state, frame, object_id, granularity)
        return _tracked(
            self._base.add_new_points_or_box(
                state,
                frame,
                object_id,
                points=points,
                labels=labels,
                box=corners,
                clear_old_points=clear_old_points,
            )
        )

    def add_mask(
        self,
        state: dict[str, Any],
        frame: int,
        object_id: int,
        mask: ArrayLike,
        *,
        granularity: Granularity = KEEP,
    ) -> Tracked:
        """Prompts an object with its mask (H, W) on a frame, bool or 0 and 1; the rest as `add_points`."""
        values = real_numbers(mask, "mask", "video")
        size = (state["video_height"], state["video_width"])
        if values.shape != size or not np.isin(values, (0, 1)).all():
            raise InputError(f"video: expected a mask {size} of bool, found {values.shape} {np.asarray(mask).dtype}")
        self._set(state, frame, object_id, granularity)
        return _tracked(self._base.add_new_mask(state, frame, object_id, values > 0))

    def _set(self, state: dict[str, Any], frame: int, object_id: int, granularity: Granularity) -> None:
        if not isinstance(frame, int | np.integer) or not 0 <= frame < state["num_frames"]:
            raise InputError(f"video: frame {frame}: expected 0 to {state['num_frames'] - 1}")
        if isinstance(granularity, str):
            if granularity != KEEP:
                raise InputError(f"granularity {granularity!r}: expected a number, None or {KEEP!r}")
            state["granularity"].setdefault(object_id, None)
            return
        if granularity is None:
            state["granularity"][object_id] = None
            return
        if not self.model.has_dial:
            raise InputError(f"video: {NO_DIAL}")
        values = granularity_values(granularity)
        if values.size != 1:
            raise InputError(f"granularity: expected one value for an object, found {values.size}")
        state["granularity"][object_id] = float(values[0])

    def propagate(
        self,
        state: dict[str, Any],
        *,
        start_frame: int | None = None,
        max_frames: int | None = None,
        reverse: bool = False,
    ) -> Iterator[Tracked]:
        """All objects on all frames, from the first prompted frame on (or backwards).

        Raises:
            InputError: no object has a prompt.
        """
        if not state["obj_ids"]:
            raise InputError("video: expected a prompt for at least one object before propagation")
        steps = self._base.propagate_in_video(
            state, start_frame_idx=start_frame, max_frame_num_to_track=max_frames, reverse=reverse
        )
        # sam2 draws a bar of its own when it begins; ours is drawn by whoever calls this.
        with _replaced(sam2_video, "tqdm", lambda order, **_: order):
            first = next(steps, None)
        if first is None:
            return
        yield _tracked(first)
        for each in steps:
            yield _tracked(each)

    def reset(self, state: dict[str, Any]) -> None:
        """Forgets all objects; the frames stay."""
        self._base.reset_state(state)
        state["granularity"].clear()


def _finite(values: ArrayLike, name: str) -> NDArray[np.float32]:
    numbers = real_numbers(values, name, "video")
    if not np.isfinite(numbers).all():
        raise InputError("video: a coordinate is not a finite number")
    return numbers


def _tracked(answer: tuple[int, Sequence[int], Tensor]) -> Tracked:
    frame, object_ids, logits = answer
    return Tracked(
        frame=frame, object_ids=tuple(object_ids), logits_NHW=logits[:, 0].float().cpu().numpy().astype(np.float32)
    )


@contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)
