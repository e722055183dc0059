"""One click and one g on the first frame, propagated: DAVIS' J, F and J&F.

The click is the clicker's first for the object in the first frame. As in DAVIS' semi-supervised protocol the first and
the last frame are not scored. Columns as in `interactive.py`: `oracle` (the g of ten with the best J&F, chosen with the
ground truth), `label` (1.0: the object is a whole), `fixed:G`; controls `ignored`, `own`, `best_of_10_clicks`, and
`held`, the first frame's mask left where it is. arXiv 2511.13714 shows videos and publishes no numbers.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.format.granularity import GRANULARITIES

from ..benchmarks.files import image_size, read_map
from ..benchmarks.records import EvalVideo
from .controls import JITTER_CLICKS, JITTER_RADIUS, seed_of
from .metrics import BoolArray, boundary_accuracy, region_similarity
from .options import ModelOptions
from .simulated_user import Click, jittered_first_clicks

WHOLE_LABEL: Final = 1.0
_OBJECTS_AT_ONCE: Final = 8
"""Prompts that share one encoding of the frames; each keeps memories of its own."""


class VideoModel(Protocol):
    """What the protocol needs of a model of video."""

    takes_granularity: bool
    answers_without: bool

    def open(self, frames: Sequence[Path]) -> None:
        """Takes a video in: frames in order, all of one size."""

    def propagate(self, prompts: Sequence[Prompt]) -> Iterable[BoolArray]:
        """One click on the first frame for each of N objects, none of which knows of the others: frame after frame
        their masks, (N, H, W) bool."""

    def close(self) -> None:
        """Lets go of the video."""


class Prompt(NamedTuple):
    """A click on the first frame and a g (None: the model's own answer)."""

    click: Click
    granularity: float | None


class _InFolder:
    """Frames as a folder of their own, which sam2's readers want."""

    def __init__(self) -> None:
        self._opened = ExitStack()

    def fill(self, frames: Sequence[Path]) -> Path:
        folder = Path(self._opened.enter_context(tempfile.TemporaryDirectory()))
        for number, frame in enumerate(frames):
            (folder / f"{number:05d}{frame.suffix}").symlink_to(frame.resolve())
        return folder

    def close(self) -> None:
        self._opened.close()


class Sam2Video:
    """`GranularVideoPredictor` or sam2's own `SAM2VideoPredictor`, and its state while frames are open. sam2's takes no
    granularity, and frames of JPEG alone."""

    answers_without = True

    def __init__(self, predictor: Any) -> None:
        self._predictor = predictor
        self._state: Any = None
        self._folder = _InFolder()
        self.takes_granularity = "granularity" in inspect.signature(predictor.add_new_points_or_box).parameters

    def open(self, frames: Sequence[Path]) -> None:
        self._state = self._predictor.init_state(str(self._folder.fill(frames)))

    def close(self) -> None:
        self._state = None
        self._folder.close()

    def propagate(self, prompts: Sequence[Prompt]) -> Iterator[BoolArray]:
        self._predictor.reset_state(self._state)
        for number, prompt in enumerate(prompts):
            assert prompt.granularity is None or self.takes_granularity, "sam2's own predictor has no dial"
            dial = {"granularity": prompt.granularity} if self.takes_granularity else {}
            points, labels = _arrays(prompt.click)
            self._predictor.add_new_points_or_box(self._state, 0, number, points, labels, **dial)
        for _, _, logits in self._predictor.propagate_in_video(self._state):
            yield (logits[:, 0] > 0).cpu().numpy()


def _arrays(click: Click) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    return np.array([[click.x, click.y]], dtype=np.float32), np.array([1], dtype=np.int32)


def as_video_model(predictor: object) -> VideoModel:
    """The face of a predictor.

    Raises:
        InputError: it can do nothing with a video.
    """

    def has(*names: str) -> bool:
        return all(callable(getattr(predictor, name, None)) for name in names)

    if has("open", "propagate", "close"):
        return cast(VideoModel, predictor)
    if has("init_state", "add_new_points_or_box", "propagate_in_video", "reset_state"):
        return Sam2Video(predictor)
    raise InputError(
        f"a benchmark of videos: a model needs open(frames), propagate(prompts) and close(), or to be our "
        f"GranularVideoPredictor or sam2's SAM2VideoPredictor; found {type(predictor).__name__}"
    )


def video_row(model: VideoModel, video: EvalVideo, options: ModelOptions) -> dict[str, float | list[float]]:
    """The numbers of one video.

    Returns:
        For each column NAME: `NAME.j`, `NAME.f`, `NAME.jf`, `NAME.drift` (mean |log of the area's growth since the
        first frame, ours less theirs|); `oracle.granularity`; the list `NAME.j_by_frame`.

    Raises:
        InputError: fewer than three frames, an empty first mask, or a mask of another size than the frames.
    """
    truth = [object_mask(path) for path in video.masks]
    if len(truth) < 3 or not truth[0].any():
        raise InputError(
            f"{video.name}: expected at least three frames and an object in the first, see {video.masks[0].parent}"
        )
    size = image_size(video.frames[0])
    for path, mask in zip(video.masks, truth, strict=True):
        if mask.shape != size:
            raise InputError(f"{path}: expected {size[0]} x {size[1]} as {video.frames[0]}, found {mask.shape}")
    columns = _columns(model, video, truth[0], options)
    prompts = list(dict.fromkeys(prompt for several in columns.values() for prompt in several))
    found: dict[Prompt, _Track] = {}
    model.open(video.frames)
    try:
        for start in range(0, len(prompts), _OBJECTS_AT_ONCE):
            together = prompts[start : start + _OBJECTS_AT_ONCE]
            tracks = [_Track(truth) for _ in together]
            for number, masks in enumerate(model.propagate(together)):
                for track, mask in zip(tracks, masks, strict=True):
                    track.add(number, mask)
            for track in tracks:
                track.expect_every_frame(video.name)
            found |= dict(zip(together, tracks, strict=True))
    finally:
        model.close()
    row: dict[str, float | list[float]] = {}
    for name, several in columns.items():
        best = max(several, key=lambda prompt: found[prompt].jf)  # the first of equals
        row |= found[best].columns(name)
        if name == "oracle":
            assert best.granularity is not None
            row["oracle.granularity"] = best.granularity
    if options.controls:
        held = _Track(truth)
        first = found[columns["best_of_10_clicks"][0]].first
        assert first is not None
        for number in range(len(truth)):
            held.add(number, first)
        row |= held.columns("held")
    return row


def _columns(
    model: VideoModel, video: EvalVideo, first_mask: BoolArray, options: ModelOptions
) -> dict[str, list[Prompt]]:
    seed = seed_of(options.seed, "jitter", video.name, "0")
    clicks = jittered_first_clicks(first_mask, JITTER_CLICKS, radius=JITTER_RADIUS, seed=seed)
    first = clicks[0]
    columns: dict[str, list[Prompt]] = {}
    constant = None
    if model.takes_granularity:
        constant = options.constant
        if options.oracle:
            columns["oracle"] = [Prompt(first, g) for g in GRANULARITIES]
        if options.label:
            columns["label"] = [Prompt(first, WHOLE_LABEL)]
        columns |= {f"fixed:{g:.2f}": [Prompt(first, round(g, 6))] for g in options.fixed}
        if options.controls:
            columns["ignored"] = [Prompt(first, constant)]
    if model.answers_without and (options.controls or not model.takes_granularity):
        columns["own"] = [Prompt(first, None)]
    if options.controls:
        columns["best_of_10_clicks"] = [Prompt(click, constant) for click in clicks]
    return columns


class _Track:
    """One prompt's masks compared with the truth, frame by frame; the first and the last frame are not scored."""

    def __init__(self, truth: Sequence[BoolArray]) -> None:
        self._truth = truth
        self._j: list[float] = []
        self._f: list[float] = []
        self._growth: list[float] = []
        self.first: BoolArray | None = None
        self._frames = 0

    def add(self, number: int, mask: BoolArray) -> None:
        if number >= len(self._truth) or mask.shape != self._truth[number].shape:
            raise InputError(
                f"video: expected {len(self._truth)} masks of {self._truth[0].shape}, found one of {mask.shape} for "
                f"frame {number}"
            )
        self._frames += 1
        truth = self._truth[number]
        if self.first is None:
            self.first = mask
        elif number < len(self._truth) - 1:
            self._j.append(region_similarity(mask, truth))
            self._f.append(boundary_accuracy(mask, truth))
            if mask.any() and self.first.any() and truth.any():
                ours = np.log(mask.sum() / self.first.sum())
                self._growth.append(abs(float(ours - np.log(truth.sum() / self._truth[0].sum()))))

    def expect_every_frame(self, name: str) -> None:
        if self._frames != len(self._truth):
            raise InputError(f"{name}: the model gave masks of {self._frames} of {len(self._truth)} frames")

    @property
    def jf(self) -> float:
        return (float(np.mean(self._j)) + float(np.mean(self._f))) / 2

    def columns(self, name: str) -> dict[str, float | list[float]]:
        drift = float(np.mean(self._growth)) if self._growth else float("nan")
        return {
            f"{name}.j": float(np.mean(self._j)),
            f"{name}.f": float(np.mean(self._f)),
            f"{name}.jf": self.jf,
            f"{name}.drift": drift,
            f"{name}.j_by_frame": self._j,
        }


def object_mask(path: Path) -> NDArray[np.bool_]:
    """(H, W) bool of an annotation: what is not zero in any channel."""
    found = read_map(path)
    return np.asarray(found > 0 if found.ndim == 2 else (found[..., :3] > 0).any(axis=2), dtype=np.bool_)
