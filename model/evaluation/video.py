"""One click and one g on the first frame, propagated: DAVIS' J, F and J&F.

The click is the clicker's first for the object in the first frame. As in DAVIS' semi-supervised protocol the first and
the last frame are not scored. Columns as in `interactive.py`: `oracle` (the g of ten with the best J&F, chosen with the
ground truth), `label` (1.0: the object is a whole), `fixed:G`; controls `ignored`, `own`, `best_of_10_clicks`, and
`held`, the first frame's mask left where it is. arXiv 2511.13714 shows videos and publishes no numbers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError

from .clicker import Click, jittered_first_clicks
from .controls import GRANULARITIES, JITTER_CLICKS, JITTER_RADIUS, seed_of
from .layout import read_map
from .metrics import BoolArray, boundary_accuracy, region_similarity
from .model_options import ModelOptions
from .records import EvalVideo

WHOLE_LABEL: Final = 1.0


class VideoModel(Protocol):
    """What the protocol needs of a model of video."""

    takes_granularity: bool
    answers_without: bool

    def open(self, frames: Sequence[Path]) -> None:
        """Takes a video in: frames in order, all of one size."""

    def propagate(self, click: Click, granularity: float | None) -> Sequence[BoolArray]:
        """One click on the first frame: a (H, W) mask of every frame."""

    def close(self) -> None:
        """Lets go of the video."""


class Sam2Video:
    """sam2's own `SAM2VideoPredictor`: no dial."""

    takes_granularity = False
    answers_without = True

    def __init__(self, predictor: Any) -> None:
        self._predictor = predictor
        self._state: Any = None
        self._opened = ExitStack()

    def open(self, frames: Sequence[Path]) -> None:
        folder = Path(self._opened.enter_context(tempfile.TemporaryDirectory()))
        for number, frame in enumerate(frames):  # sam2 reads a folder of N.jpg
            (folder / f"{number:05d}.jpg").symlink_to(frame.resolve())
        self._state = self._predictor.init_state(str(folder))

    def propagate(self, click: Click, granularity: float | None) -> Sequence[BoolArray]:
        assert granularity is None, "sam2's own predictor has no dial"
        self._predictor.reset_state(self._state)
        points = np.array([[click.x, click.y]], dtype=np.float32)
        self._predictor.add_new_points_or_box(self._state, 0, 1, points=points, labels=np.array([1], dtype=np.int32))
        found = {}
        for frame, _, logits in self._predictor.propagate_in_video(self._state):
            found[int(frame)] = (logits[0, 0] > 0).cpu().numpy()
        return [found[frame] for frame in sorted(found)]

    def close(self) -> None:
        self._state = None
        self._opened.close()


def as_video_model(predictor: Any) -> VideoModel:
    """The face of a predictor.

    Raises:
        InputError: it can do nothing with a video.
    """
    if all(callable(getattr(predictor, name, None)) for name in ("open", "propagate", "close")):
        model: VideoModel = predictor
        return model
    if callable(getattr(predictor, "propagate_in_video", None)):
        return Sam2Video(predictor)
    raise InputError(
        f"--benchmark of videos: a model needs open(frames), propagate(click, granularity), close(), or to be sam2's "
        f"video predictor; found {type(predictor).__name__}"
    )


def video_row(model: VideoModel, video: EvalVideo, options: ModelOptions) -> dict[str, float | list[float]]:
    """The numbers of one video.

    Returns:
        For each column NAME: `NAME.j`, `NAME.f`, `NAME.jf`, `NAME.drift` (mean |log area growth since the first frame,
        ours over theirs|); `oracle.granularity`; the list `NAME.j_by_frame`.

    Raises:
        InputError: fewer than three frames, or an empty first mask.
    """
    truth = [object_mask(path) for path in video.masks]
    if len(truth) < 3 or not truth[0].any():
        raise InputError(
            f"{video.name}: expected at least three frames and an object in the first, see {video.masks[0]}"
        )
    clicks = jittered_first_clicks(
        truth[0], JITTER_CLICKS, radius=JITTER_RADIUS, seed=seed_of(options.seed, "jitter", video.name, "0")
    )
    first = clicks[0]
    columns: dict[str, list[tuple[Click, float | None]]] = {}
    constant = None
    if model.takes_granularity:
        constant = options.constant
        if options.oracle:
            columns["oracle"] = [(first, g) for g in GRANULARITIES]
        if options.label:
            columns["label"] = [(first, WHOLE_LABEL)]
        columns |= {f"fixed:{g:.2f}": [(first, g)] for g in options.fixed}
        if options.controls:
            columns["ignored"] = [(first, constant)]
    if model.answers_without and (options.controls or not model.takes_granularity):
        columns["own"] = [(first, None)]
    if options.controls:
        columns["best_of_10_clicks"] = [(click, constant) for click in clicks]
    row: dict[str, float | list[float]] = {}
    known: dict[tuple[Click, float | None], dict[str, Any]] = {}
    model.open(video.frames)
    try:
        for name, prompts in columns.items():
            for prompt in prompts:
                if prompt not in known:
                    known[prompt] = _compared(model.propagate(*prompt), truth)
            best = max(prompts, key=lambda prompt: known[prompt]["jf"])  # the first of equals
            row |= {f"{name}.{key}": value for key, value in known[best].items() if key != "first"}
            if name == "oracle":
                assert best[1] is not None
                row["oracle.granularity"] = best[1]
        if options.controls:
            still = known[(first, constant)]["first"]
            held = _compared([still] * len(truth), truth)
            row |= {f"held.{key}": value for key, value in held.items() if key != "first"}
    finally:
        model.close()
    return row


def object_mask(path: Path) -> NDArray[np.bool_]:
    """(H, W) bool of an annotation: what is not zero in any channel."""
    found = read_map(path)
    return np.asarray(found > 0 if found.ndim == 2 else (found[..., :3] > 0).any(axis=2), dtype=np.bool_)


def _compared(predicted: Sequence[BoolArray], truth: Sequence[BoolArray]) -> dict[str, Any]:
    if len(predicted) != len(truth) or any(a.shape != b.shape for a, b in zip(predicted, truth, strict=True)):
        raise InputError(
            f"video: expected a mask of {truth[0].shape} for each of {len(truth)} frames, found {len(predicted)} of "
            f"{sorted({each.shape for each in predicted})}"
        )
    scored = range(1, len(truth) - 1)
    j = [region_similarity(predicted[t], truth[t]) for t in scored]
    f = [boundary_accuracy(predicted[t], truth[t]) for t in scored]
    grown = [
        abs(np.log(predicted[t].sum() / predicted[0].sum()) - np.log(truth[t].sum() / truth[0].sum()))
        for t in scored
        if predicted[t].any() and predicted[0].any() and truth[t].any()
    ]
    return {
        "j": float(np.mean(j)),
        "f": float(np.mean(f)),
        "jf": float((np.mean(j) + np.mean(f)) / 2),
        "drift": float(np.mean(grown)) if grown else float("nan"),
        "j_by_frame": j,
        "first": predicted[0],
    }
