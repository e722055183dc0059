"""One granularity for each object of a video, kept with the object, carried on by SAM-2's memory.

sam2's `SAM2VideoPredictor` does the work: its state, its memory attention and encoder, its object pointers. Two things
are added. The mask decoder answers at the granularity of the object it works for, on every frame and for every kind of
prompt (the reference wants g twice, shares one among all objects, and never gives it to mask prompts). And frames come
from any folder of images, any video file that OpenCV reads, or arrays; a folder's frames are read when they are needed.

An object without a granularity is tracked by SAM-2 as it is. sam2's own builder also fills holes of up to 8 logits,
which needs its CUDA extension; that is off here, on every device.

Legend: N objects, H W pixels of a frame, h w of the logits.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import cv2
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from pipeline.errors import InputError, SampleFailureError
from pipeline.images import decode_rgb
from pipeline.torch_compat import ensure_torchvision

from .adapters import granularity_values
from .granular import IMAGE_MEAN, IMAGE_STD, GranularSam2
from .loading import load_granular

ensure_torchvision()
from sam2 import sam2_video_predictor as sam2_video  # noqa: E402  (needs torchvision's operators)

IMAGE_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
MAX_FILE_FRAMES: Final = 2000
"""A video file is held decoded, 3 bytes a pixel; a folder of images is read frame by frame instead."""
MAX_FRAME_PIXELS: Final = 100_000_000

Rgb = NDArray[np.uint8]
KEEP: Final = "keep"
Granularity = float | None | Literal["keep"]


class Frames(Sequence[Rgb]):
    """A video's frames, (H, W, 3) uint8 RGB, all of one size.

    Args:
        source: a folder of images (in natural order: 2 before 10), a video file, or arrays.

    Raises:
        InputError: no such file, no images in it, or a file that OpenCV does not read.
    """

    def __init__(self, source: str | os.PathLike[str] | Sequence[Rgb]) -> None:
        self._files: list[Path] = []
        self._arrays: Sequence[Rgb] = ()
        if isinstance(source, str | os.PathLike):
            self.name = Path(source).name
            path = Path(source)
            if path.is_dir():
                self._files = _frame_files(path)
            else:
                self._arrays = _read_video(path)
        else:
            self.name = "frames"
            self._arrays = source
            if not len(source):
                raise InputError("video: expected at least one frame")
        self.height, self.width = self[0].shape[:2]

    def __len__(self) -> int:
        return len(self._files) or len(self._arrays)

    def __getitem__(self, index: Any) -> Any:
        frame = self._read(self._files[index]) if self._files else self._arrays[index]
        if hasattr(self, "width") and frame.shape[:2] != (self.height, self.width):
            raise InputError(
                f"{self.name}: frame {index} is {frame.shape[1]} x {frame.shape[0]} pixels, the first "
                f"{self.width} x {self.height}; a video's frames are of one size"
            )
        return frame

    @staticmethod
    def _read(path: Path) -> Rgb:
        try:
            return decode_rgb(path.read_bytes(), max_pixels=MAX_FRAME_PIXELS)
        except SampleFailureError as error:
            raise InputError(f"{path}: not an image that can be read: {error.message}") from error


def _frame_files(folder: Path) -> list[Path]:
    files = [each for each in folder.iterdir() if each.suffix.lower() in IMAGE_SUFFIXES and each.is_file()]
    if not files:
        raise InputError(f"{folder}: expected a video's frames ({', '.join(IMAGE_SUFFIXES)}), found no image")
    return sorted(files, key=lambda each: [(not part.isdigit(), part.zfill(20)) for part in _PARTS.findall(each.name)])


_PARTS: Final = re.compile(r"\d+|\D+")


def _read_video(path: Path) -> list[Rgb]:
    if not path.is_file():
        raise InputError(f"{path}: expected a folder of frames or a video file, found nothing")
    reader = cv2.VideoCapture(str(path))
    frames: list[Rgb] = []
    try:
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
        raise InputError(
            f"{path}: more than {MAX_FILE_FRAMES} frames, which would fill the memory; put them into a folder as images"
        )
    return frames


class _ModelFrames:
    """What sam2's state holds as `images`: frames as its own loader makes them, one at a time."""

    def __init__(self, frames: Frames, side: int) -> None:
        self._frames, self._side = frames, side

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Tensor:
        """(3, S, S) float32, normalised."""
        small = np.asarray(Image.fromarray(self._frames[index]).resize((self._side, self._side)))
        pixels = torch.from_numpy(small / 255.0).permute(2, 0, 1).float()
        return (pixels - torch.tensor(IMAGE_MEAN).view(3, 1, 1)) / torch.tensor(IMAGE_STD).view(3, 1, 1)


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
        return cls(load_granular(path, device, base=base, video=True))

    def start(
        self, frames: Frames, *, offload_video_to_cpu: bool = True, offload_state_to_cpu: bool = False
    ) -> dict[str, Any]:
        """The state of a video: sam2's own, with `granularity` (object id -> g) in it.

        Args:
            frames: of the video.
            offload_video_to_cpu: frames go to the device one at a time.
            offload_state_to_cpu: memories wait in main memory: a little slower, much less of a GPU's.
        """

        def load(**_: Any) -> tuple[_ModelFrames, int, int]:
            return _ModelFrames(frames, self.model.image_size), frames.height, frames.width

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
            InputError: a frame that is not there, no prompt, a granularity out of range.
        """
        if point_coords is None and box is None:
            raise InputError("video: expected points or a box")
        self._set(state, frame, object_id, granularity)
        points = None if point_coords is None else np.asarray(point_coords, dtype=np.float32).reshape(-1, 2)
        labels = None
        if points is not None:
            labels = np.ones(len(points)) if point_labels is None else np.asarray(point_labels)
            labels = labels.astype(np.int32)
            if labels.shape != (len(points),):
                raise InputError(f"video: expected {len(points)} labels, found {labels.shape}")
        return _tracked(
            self._base.add_new_points_or_box(
                state,
                frame,
                object_id,
                points=points,
                labels=labels,
                box=None if box is None else np.asarray(box, dtype=np.float32),
                clear_old_points=clear_old_points,
            )
        )

    def add_mask(
        self,
        state: dict[str, Any],
        frame: int,
        object_id: int,
        mask: NDArray[np.bool_],
        *,
        granularity: Granularity = KEEP,
    ) -> Tracked:
        """Prompts an object with its mask (H, W) on a frame; the rest as `add_points`."""
        size = (state["video_height"], state["video_width"])
        if mask.shape != size:
            raise InputError(f"video: expected a mask {size}, found {mask.shape}")
        self._set(state, frame, object_id, granularity)
        return _tracked(self._base.add_new_mask(state, frame, object_id, np.asarray(mask, dtype=bool)))

    def _set(self, state: dict[str, Any], frame: int, object_id: int, granularity: Granularity) -> None:
        if not 0 <= frame < state["num_frames"]:
            raise InputError(f"video: frame {frame}: expected 0 to {state['num_frames'] - 1}")
        if isinstance(granularity, str):
            if granularity != KEEP:
                raise InputError(f"granularity {granularity!r}: expected a number, None or {KEEP!r}")
            state["granularity"].setdefault(object_id, None)
            return
        if granularity is None:
            state["granularity"][object_id] = None
            return
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
