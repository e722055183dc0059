"""Prompts to masks, the whole dial at once: one encoding an image, one pass of the decoder for its 19 granularities.

Two kinds of predictors answer, a model (`GranularPredictor`) and the image's own tree (`TreePredictor`). A
correction is answered as the benchmark's clicker is: all clicks, and at each granularity the logits of the answer
before. What was asked before is remembered, so that undo costs nothing, and an answer depends on the prompt alone.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pipeline.dataset.viewer import reduced_rle, thumbnail_size
from pipeline.environment.kept_student import kept_student
from pipeline.errors import InputError
from pipeline.format import rle as rle_codec
from pipeline.format.rle import Rle

from ..network.granular import GranularSam2
from ..network.load import load_for_prediction, usable_device
from ..predict.coco_json import PredictedMask
from ..predict.image import LOGIT_LIMIT, GranularPredictor
from ..predict.image_files import Rgb
from ..predict.mask_generator import default_config, generate_masks
from ..predict.prompt_flags import Prompt
from ..predict.segment_inputs import checkpoint_name
from ..predict.tree import TreePredictor

DIAL: Final = tuple(round(0.1 + 0.05 * step, 2) for step in range(19))
"""0.10, 0.15 … 1.00: what one pass of the decoder answers."""
DISPLAY_SIDE_PX: Final = 1024
"""Longer side of an image in the page. Masks are shown on that grid, and kept on the image's own."""
KEPT_IMAGES: Final = 8
KEPT_ANSWERS: Final = 64
"""Of one image."""
MAX_CLICKS: Final = 100

BoolArray = NDArray[np.bool_]
T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """The masks of one prompt.

    Attributes:
        granularity: of each; None: the predictor's own sizes.
        score: predicted IoU of each.
        shown: each on the page's grid.
        full: (H, W) bool on the image's grid, by place.
    """

    granularity: tuple[float | None, ...]
    score: tuple[float, ...]
    shown: tuple[Rle, ...]
    full: Callable[[int], BoolArray]


class Encoded(Protocol):
    """One image, ready to be asked.

    Attributes:
        height: of the image, pixels.
        width: likewise.
    """

    height: int
    width: int

    def dial(self, prompt: Prompt) -> Answer:
        """A mask at each granularity of `DIAL`."""

    def own(self, prompt: Prompt) -> Answer:
        """Three sizes without a granularity."""

    def everything(self, on_done: Callable[[float], None]) -> list[PredictedMask]:
        """All masks as a tree; `on_done` hears the share that is done, and may raise to stop."""


class Predictor(Protocol):
    """Who answers.

    Attributes:
        name: for people, and in what is accepted.
        has_dial: it takes a granularity.
        own_name: what its three sizes are called; None: it has none.
        checkpoint: a model's file or training run; None: it needs none.
    """

    name: str
    checkpoint: str | None
    has_dial: bool
    own_name: str | None

    def encode(self, rgb: Rgb) -> Encoded: ...


def checked(prompt: Prompt, height: int, width: int) -> Prompt:
    """Raises InputError for clicks that lie outside, too many of them, or none that says what is meant."""
    if len(prompt.points) > MAX_CLICKS:
        raise InputError(f"a prompt has {len(prompt.points)} clicks, more than {MAX_CLICKS}")
    if prompt.box is None and 1 not in prompt.labels:
        raise InputError("expected a box or a click inside of what is meant, found neither")
    prompt.check(width=width, height=height, where="prompt")
    return prompt


def before(prompt: Prompt) -> Prompt | None:
    """The prompt without its last click; None: nothing that could have been asked is left."""
    if not prompt.points:
        return None
    shorter = dataclasses.replace(prompt, points=prompt.points[:-1], labels=prompt.labels[:-1])
    return shorter if shorter.box is not None or 1 in shorter.labels else None


class _Remembered(Generic[T]):
    """The newest answers, by prompt."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Any, T] = OrderedDict()

    def get(self, key: Any, make: Callable[[], T]) -> T:
        if key not in self._kept:
            self._kept[key] = make()
        self._kept.move_to_end(key)
        while len(self._kept) > KEPT_ANSWERS:
            self._kept.popitem(last=False)
        return self._kept[key]


# ---------------------------------------------------------------------------------------------------------------------
# A model


class TurnPredictor(GranularPredictor):
    """A predictor whose model others use too: its decoder's LoRA is switched on and off, so they take turns."""

    def __init__(self, model: Any, turn: threading.Lock) -> None:
        super().__init__(model)
        self._turn = turn

    def predict_logits(
        self,
        point_coords: ArrayLike | None,
        point_labels: ArrayLike | None,
        granularity: Any = None,
        *,
        box: ArrayLike | None = None,
        mask_input: ArrayLike | None = None,
        multimask: bool = False,
    ) -> tuple[Tensor, Tensor]:
        with self._turn:
            return super().predict_logits(
                point_coords, point_labels, granularity, box=box, mask_input=mask_input, multimask=multimask
            )


class ModelPredictor:
    """A model.

    Args:
        model: in evaluation mode, on its device.
        name: for people.
        checkpoint: where it was loaded from.
    """

    def __init__(self, model: GranularSam2, name: str, checkpoint: str | None) -> None:
        self.model, self.name, self.checkpoint = model, name, checkpoint
        self.has_dial = model.has_dial
        # A model from scratch has no answer of SAM-2's to give: its base was never trained without a granularity.
        whole = model.has_base and not (model.adapter == "full" and self.has_dial)
        self.own_name = "SAM-2" if whole else None
        self._turn = threading.Lock()

    @classmethod
    def load(cls, checkpoint: str, *, base: str | None = None, device: str | None = None) -> ModelPredictor:
        """From a file or a training run.

        Args:
            checkpoint: the path.
            base: of an adapter; None: where it was.
            device: None: a GPU if there is one.

        Raises:
            InputError: no checkpoint, or no fitting base.
        """
        model = load_for_prediction(checkpoint, usable_device(device), base=base)
        return cls(model, str(checkpoint_name(checkpoint)), checkpoint)

    def encode(self, rgb: Rgb) -> Encoded:
        return EncodedByModel(TurnPredictor(self.model, self._turn), rgb)


class EncodedByModel:
    """An image that a model has encoded."""

    def __init__(self, predictor: GranularPredictor, rgb: Rgb) -> None:
        predictor.set_image(rgb)
        self._predictor = predictor
        self._rgb = rgb
        self.height, self.width = rgb.shape[:2]
        self._decoded: _Remembered[tuple[Tensor, Tensor]] = _Remembered()
        self._answers: _Remembered[Answer] = _Remembered()
        self._lock = threading.Lock()

    def dial(self, prompt: Prompt) -> Answer:
        with self._lock:
            return self._answers.get(("dial", prompt), lambda: self._answer(prompt, DIAL, *self._dial_logits(prompt)))

    def own(self, prompt: Prompt) -> Answer:
        with self._lock:
            return self._answers.get(
                ("own", prompt), lambda: self._answer(prompt, (None,) * 3, *self._own_logits(prompt))
            )

    def everything(self, on_done: Callable[[float], None]) -> list[PredictedMask]:
        config = default_config(self._predictor.model.size)
        if not self._predictor.model.has_dial:
            config = dataclasses.replace(config, granularities=(None,))
        clicks = len(config.granularities) * config.points_per_side**2
        return generate_masks(self._predictor, self._rgb, config, on_prompts=lambda done: on_done(done / clicks))

    def _dial_logits(self, prompt: Prompt) -> tuple[Tensor, Tensor]:
        """(19, h, w) and (19,)."""

        def decode() -> tuple[Tensor, Tensor]:
            earlier = before(prompt)
            fed = None
            if earlier is not None:
                fed = self._dial_logits(earlier)[0].clamp(-LOGIT_LIMIT, LOGIT_LIMIT).cpu().numpy()
            logits, score = self._predictor.predict_logits(*_arrays(prompt), DIAL, box=prompt.box, mask_input=fed)
            return logits.flatten(0, 1), score.flatten()

        return self._decoded.get(prompt, decode)

    def _own_logits(self, prompt: Prompt) -> tuple[Tensor, Tensor]:
        logits, score = self._predictor.predict_logits(*_arrays(prompt), None, box=prompt.box, multimask=True)
        return logits[0], score[0]

    def _answer(self, prompt: Prompt, granularity: tuple[float | None, ...], logits: Tensor, score: Tensor) -> Answer:
        width, height = thumbnail_size(self.width, self.height, DISPLAY_SIDE_PX)
        mended = self._predictor.mended(logits, prompt.labels)
        shown = torch.nn.functional.interpolate(
            mended[None], size=(height, width), mode="bilinear", align_corners=False
        )
        masks = (shown[0] > self._predictor.mask_threshold).cpu().numpy()
        return Answer(
            granularity=granularity,
            score=tuple(score.tolist()),
            shown=tuple(rle_codec.encode(each) for each in masks),
            full=lambda place: self._full(mended[place]),
        )

    def _full(self, logits: Tensor) -> BoolArray:
        mask: BoolArray = (self._predictor.interpolated(logits[None])[0] > self._predictor.mask_threshold).cpu().numpy()
        return mask


def _arrays(prompt: Prompt) -> tuple[NDArray[np.float32] | None, NDArray[np.int32] | None]:
    if not prompt.points:
        return None, None
    return np.array(prompt.points, dtype=np.float32), np.array(prompt.labels, dtype=np.int32)


# ---------------------------------------------------------------------------------------------------------------------
# The image's own tree


class TreePredictors:
    """No weights: the masks that `mine --wholes stable` finds in an image answer."""

    name = "tree"
    checkpoint: str | None = None
    has_dial = True
    own_name: str | None = "size"

    def __init__(self) -> None:
        self._tree = TreePredictor()
        self._lock = threading.Lock()

    def encode(self, rgb: Rgb) -> Encoded:
        with self._lock:
            self._tree.set_image(rgb)
            annotations = self._tree.tree.annotations
        return EncodedByTree(TreePredictor.of_annotations(annotations, *rgb.shape[:2]))


class EncodedByTree:
    """An image with its tree."""

    def __init__(self, predictor: TreePredictor) -> None:
        self._predictor = predictor
        self.height, self.width = predictor.tree.height, predictor.tree.width
        self._answers: _Remembered[Answer] = _Remembered()
        self._lock = threading.Lock()

    def dial(self, prompt: Prompt) -> Answer:
        return self._answer(prompt, DIAL)

    def own(self, prompt: Prompt) -> Answer:
        return self._answer(prompt, ())

    def everything(self, on_done: Callable[[float], None]) -> list[PredictedMask]:
        return self._predictor.everything()

    def _answer(self, prompt: Prompt, dial: Sequence[float]) -> Answer:
        with self._lock:
            return self._answers.get((prompt, *dial), lambda: self._asked(prompt, dial))

    def _asked(self, prompt: Prompt, dial: Sequence[float]) -> Answer:
        masks: list[Rle] = []
        scores: list[float] = []
        for g in dial or (None,):  # one by one: full-size masks of a large image would fill the memory
            found, score, _ = self._predictor.predict(*_arrays(prompt), box=prompt.box, granularity=g)
            masks += [rle_codec.encode(each) for each in found]
            scores += score.tolist()
        width, height = thumbnail_size(self.width, self.height, DISPLAY_SIDE_PX)
        return Answer(
            granularity=tuple(dial) or (None,) * len(masks),
            score=tuple(scores),
            shown=tuple(reduced_rle(each, width=width, height=height) for each in masks),
            full=lambda place: rle_codec.decode(masks[place]),
        )


def open_predictor(checkpoint: str | None, *, base: str | None, device: str | None, demo: Path) -> Predictor:
    """Who answers: a checkpoint, else the kept student, else the demo's where there is one, else the image's own tree.

    Raises:
        InputError: no such checkpoint; flags of a model without one.
    """
    if checkpoint is None:
        if kept_student().is_file():
            checkpoint = str(kept_student())
        elif any((demo / "student").glob("checkpoints/*.safetensors")):
            checkpoint = str(demo / "student")
    if checkpoint is None or checkpoint == "tree":
        for flag, value in (("--base", base), ("--device", device)):
            if value is not None:
                raise InputError(f"{flag} is for a model; without --checkpoint there is none")
        return TreePredictors()
    return ModelPredictor.load(checkpoint, base=base, device=device)


# ---------------------------------------------------------------------------------------------------------------------
# Ahead of need


class EncodedImages:
    """Images by number, each encoded once, the newest kept, and others ahead of need.

    Args:
        read: an image by its number.
        encode: of the predictor.
    """

    def __init__(self, read: Callable[[int], Rgb], encode: Callable[[Rgb], Encoded]) -> None:
        self._read, self._encode = read, encode
        self._kept: OrderedDict[int, Future[Encoded]] = OrderedDict()
        self._lock = threading.Lock()
        self._background = ThreadPoolExecutor(1, thread_name_prefix="ahead")

    def get(self, number: int) -> Encoded:
        """Waits until it is encoded.

        Raises:
            InputError: the image is damaged, or too large. It is tried again the next time.
        """
        return self._make(number).result()

    def ahead(self, number: int) -> None:
        """Encodes it in the background, if it is not."""
        with self._lock:
            if number in self._kept:
                return
        self._background.submit(self._make, number)

    def ready(self, number: int) -> bool:
        """Whether it is encoded."""
        with self._lock:
            return number in self._kept and self._kept[number].done()

    def close(self) -> None:
        """Ends the background thread when it is done with what it has in hand."""
        self._background.shutdown(wait=False, cancel_futures=True)

    def _make(self, number: int) -> Future[Encoded]:
        with self._lock:
            known = self._kept.get(number)
            if known is not None:
                self._kept.move_to_end(number)
                return known
            made: Future[Encoded] = Future()
            self._kept[number] = made
            while len(self._kept) > KEPT_IMAGES:
                self._kept.popitem(last=False)
        try:
            made.set_result(self._encode(self._read(number)))
        except Exception as error:
            with self._lock:
                self._kept.pop(number, None)
            made.set_exception(error)
        return made
