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
from pathlib import Path
from typing import Any, Final, Literal

import cv2
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pipeline.environment.torch_compat import ensure_torchvision
from pipeline.errors import InputError
from pipeline.sources.kinds import IMAGE_SUFFIXES

from ..network.adapters import granularity_values
from ..network.granular import GranularSam2
from ..network.load import load_for_prediction
from ..network.pixels import resized_as_frame
from .image import NO_BASE, NO_DIAL
from .image_files import (
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
ObjectMasks = tuple[int, list[int], Tensor]
"""As sam2 returns them: a frame, the objects' ids, and their logits (N, 1, H, W) on the frame's own grid."""


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


class GranularSam2Video(sam2_video.SAM2VideoPredictor):
    """sam2's predictor, whose decoder answers at the granularity of the object whose outputs are being made."""

    granular_decoder: Any = None
    """`GranularSam2.granular_decoder` of the model this is the base of."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.memory_attention.register_forward_pre_hook(_in_the_models_precision, with_kwargs=True)

    def _run_single_frame_inference(self, inference_state: Any, output_dict: Any, **more: Any) -> Any:
        with self.granular_decoder(_granularity_of(inference_state, output_dict)):
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


class GranularVideoPredictor:
    """`SAM2VideoPredictor` with a granularity for each object: clicks on any frame, masks on all frames.

    Methods, arguments, their order and what is returned are sam2's; `granularity` comes by name.

    Args:
        model: built with `video=True`, in evaluation mode, on its device.
    """

    def __init__(self, model: GranularSam2) -> None:
        if not isinstance(model.base, GranularSam2Video):
            raise InputError("video: expected a model built for video (load_granular(..., video=True))")
        self.model = model
        self._base: Any = model.base

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], device: str | torch.device = "cpu", *, base: str | None = None
    ) -> GranularVideoPredictor:
        """As `GranularPredictor.load`."""
        return cls(load_for_prediction(path, device, base=base, video=True))

    @property
    def device(self) -> torch.device:
        """Of the model."""
        return next(self.model.parameters()).device

    @property
    def image_size(self) -> int:
        """Pixels a side of the model's input."""
        return self.model.image_size

    def init_state(
        self,
        video_path: Frames | str | os.PathLike[str] | Sequence[Any],
        offload_video_to_cpu: bool = False,
        offload_state_to_cpu: bool = False,
        async_loading_frames: bool = False,
    ) -> dict[str, Any]:
        """The state of a video: sam2's own, with `granularity` (object id -> g) in it.

        Args:
            video_path: a folder of images, a video file, a list of images: whatever `Frames` takes.
            offload_video_to_cpu: changes nothing: frames lie in main memory, and go to the device one at a time.
            offload_state_to_cpu: memories wait in main memory: a little slower, much less of a GPU's.
            async_loading_frames: changes nothing: a folder's frames are read when their turn comes.

        Raises:
            InputError: as `Frames`.
        """
        video = video_path if isinstance(video_path, Frames) else Frames(video_path)

        def load(**_: Any) -> tuple[_ModelFrames, int, int]:
            return _ModelFrames(video, self.model.image_size), video.height, video.width

        # sam2 reads folders of JPEG, and MP4 through decord; its state is made by its own code, from our frames.
        with _replaced(sam2_video, "load_video_frames", load):
            state: dict[str, Any] = self._base.init_state(
                "", offload_video_to_cpu, offload_state_to_cpu, async_loading_frames
            )
        state["granularity"] = {}
        return state

    def add_new_points_or_box(
        self,
        inference_state: dict[str, Any],
        frame_idx: int,
        obj_id: int,
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        clear_old_points: bool = True,
        normalize_coords: bool = True,
        box: ArrayLike | None = None,
        *,
        granularity: Granularity = KEEP,
    ) -> ObjectMasks:
        """Prompts an object on a frame.

        Args:
            inference_state: of `init_state`.
            frame_idx: 0, 1, 2 …
            obj_id: any number; a new one makes a new object.
            points: (K, 2) or (1, K, 2) clicks (x, y) in pixels of the frame.
            labels: (K,) or (1, K), 1 inside, 0 outside; None: all inside.
            clear_old_points: False adds to the points that the object has on this frame.
            normalize_coords: False: points and box are in [0, 1] instead of pixels.
            box: (4,) x0, y0, x1, y1.
            granularity: in [0.1, 1.0]; None: SAM-2's own answer; "keep": what the object has (None for a new one).

        Returns:
            The frame, the ids of all objects and their logits (N, 1, H, W) on it, before propagation; an object that is
            not there has -1024 everywhere.

        Raises:
            InputError: a frame that is not there, no prompt, one that is no finite numbers, a granularity out of range.
        """
        if points is None and box is None:
            raise InputError("video: expected points or a box")
        if labels is not None and points is None:
            raise InputError("video: found labels without points")
        places = kinds = None
        if points is not None:
            places = _finite(points, "points")
            places = places[0] if places.ndim == 3 and len(places) == 1 else places
            if places.ndim != 2 or places.shape[1] != 2:
                raise InputError(f"video: expected points (K, 2), found {places.shape}")
            given = np.ones(len(places)) if labels is None else real_numbers(labels, "labels", "video")
            given = given[0] if given.ndim == 2 and len(given) == 1 else given
            if given.shape != (len(places),):
                raise InputError(f"video: expected {len(places)} labels, found {given.shape}")
            if not np.isin(given, (0, 1)).all():
                raise InputError("video: expected labels 1 (inside) and 0 (outside), found others")
            kinds = given.astype(np.int32)
        corners = None if box is None else _finite(box, "box").reshape(-1)
        if corners is not None and corners.size != 4:
            raise InputError(f"video: expected one box x0, y0, x1, y1, found {corners.size} numbers")
        if corners is not None and not clear_old_points:
            raise InputError("video: a box comes before any point; expected clear_old_points=True with it")
        self._set(inference_state, frame_idx, obj_id, granularity)
        answer: ObjectMasks = self._base.add_new_points_or_box(
            inference_state, frame_idx, obj_id, places, kinds, clear_old_points, normalize_coords, corners
        )
        return answer

    def add_new_points(self, *args: Any, **kwargs: Any) -> ObjectMasks:
        """sam2's older name of `add_new_points_or_box`."""
        return self.add_new_points_or_box(*args, **kwargs)

    def add_new_mask(
        self,
        inference_state: dict[str, Any],
        frame_idx: int,
        obj_id: int,
        mask: ArrayLike,
        *,
        granularity: Granularity = KEEP,
    ) -> ObjectMasks:
        """Prompts an object with its mask (H, W) on a frame, bool or 0 and 1; the rest as `add_new_points_or_box`."""
        values = real_numbers(mask, "mask", "video")
        size = (inference_state["video_height"], inference_state["video_width"])
        if values.shape != size or not np.isin(values, (0, 1)).all():
            raise InputError(f"video: expected a mask {size} of bool, found {values.shape} {np.asarray(mask).dtype}")
        self._set(inference_state, frame_idx, obj_id, granularity)
        answer: ObjectMasks = self._base.add_new_mask(inference_state, frame_idx, obj_id, values > 0)
        return answer

    def _set(self, state: dict[str, Any], frame: int, object_id: int, granularity: Granularity) -> None:
        if not isinstance(frame, int | np.integer) or not 0 <= frame < state["num_frames"]:
            raise InputError(f"video: frame {frame}: expected 0 to {state['num_frames'] - 1}")
        if isinstance(granularity, str):
            if granularity != KEEP:
                raise InputError(f"granularity {granularity!r}: expected a number, None or {KEEP!r}")
            granularity = state["granularity"].get(object_id)
        if granularity is None:
            if not self.model.has_base:
                raise InputError(f"video: {NO_BASE}")
            state["granularity"][object_id] = None
            return
        if not self.model.has_dial:
            raise InputError(f"video: {NO_DIAL}")
        values = granularity_values(granularity)
        if values.size != 1:
            raise InputError(f"granularity: expected one value for an object, found {values.size}")
        state["granularity"][object_id] = float(values[0])

    def propagate_in_video(
        self,
        inference_state: dict[str, Any],
        start_frame_idx: int | None = None,
        max_frame_num_to_track: int | None = None,
        reverse: bool = False,
    ) -> Iterator[ObjectMasks]:
        """All objects on all frames, from the first prompted frame on (or backwards); as `add_new_points_or_box`.

        Raises:
            InputError: no object has a prompt.
        """
        if not inference_state["obj_ids"]:
            raise InputError("video: expected a prompt for at least one object before propagation")
        steps = self._base.propagate_in_video(inference_state, start_frame_idx, max_frame_num_to_track, reverse)
        # sam2 draws a bar of its own when it begins; ours is drawn by whoever calls this.
        with _replaced(sam2_video, "tqdm", lambda order, **_: order):
            first = next(steps, None)
        if first is None:
            return
        yield first
        yield from steps

    def clear_all_prompts_in_frame(
        self, inference_state: dict[str, Any], frame_idx: int, obj_id: int, need_output: bool = True
    ) -> ObjectMasks | None:
        """Takes an object's prompts on a frame back; it keeps its granularity."""
        answer: ObjectMasks | None = self._base.clear_all_prompts_in_frame(
            inference_state, frame_idx, obj_id, need_output
        )
        return answer

    def remove_object(
        self, inference_state: dict[str, Any], obj_id: int, strict: bool = False, need_output: bool = True
    ) -> tuple[list[int], list[tuple[int, Tensor]]]:
        """Forgets one object.

        Returns:
            The ids that are left, and (frame, logits) of the frames that it had a prompt on.

        Raises:
            InputError: with `strict`, there is no such object.
        """
        if strict and obj_id not in inference_state["obj_ids"]:
            raise InputError(f"video: object {obj_id}: expected one of {inference_state['obj_ids']}")
        answer: tuple[list[int], list[tuple[int, Tensor]]] = self._base.remove_object(
            inference_state, obj_id, strict, need_output
        )
        inference_state["granularity"].pop(obj_id, None)
        return answer

    def reset_state(self, inference_state: dict[str, Any]) -> None:
        """Forgets all objects; the frames stay."""
        self._base.reset_state(inference_state)
        inference_state["granularity"].clear()


def _finite(values: ArrayLike, name: str) -> NDArray[np.float32]:
    numbers = real_numbers(values, name, "video")
    if not np.isfinite(numbers).all():
        raise InputError("video: a coordinate is not a finite number")
    return numbers


@contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)
