"""One face for everything that can be clicked: `GranularPredictor`, sam2's own predictor, and whatever has `set_image`
and `predict`.

A prompt is K clicks and, where the model has a dial, a g; prompts of one image go through in batches after a single
pass of the encoder. Legend: N prompts, K clicks of a prompt, H W pixels of the image, h w cells of the model's own
mask grid (a quarter of its input for SAM-2; the image itself for a model that returns no logits).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from ...predict.coco_json import PredictedMask

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]
LogitArray = NDArray[np.float32]

_PIXELS_PER_BATCH: Final = 64 * 256 * 256
"""Prompts of a batch times pixels of the model's square input: what fits two processor cores' caches and memory."""
_GPU_BATCH: Final = 64


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What a model said to N prompts.

    Attributes:
        size: (H, W) of the image.
        iou: (N,) float64, the model's own estimate.
        logits: (N, h, w) float32, foreground above `threshold`; None: the model gives masks only.
        full: (N, H, W) bool, where there are no logits.
        threshold: logit above which a pixel belongs to the mask.
        carried: (N, h, w) float32 that the model wants back, where its masks are its own.
    """

    size: tuple[int, int]
    iou: FloatArray
    logits: LogitArray | None = None
    full: BoolArray | None = None
    threshold: float = 0.0
    carried: LogitArray | None = None

    def __len__(self) -> int:
        return len(self.iou)

    def masks(self, chosen: NDArray[np.int64] | None = None) -> BoolArray:
        """(n, H, W) bool of all prompts or the chosen ones, logits enlarged bilinearly as SAM-2 does."""
        rows = slice(None) if chosen is None else chosen
        if self.logits is None:
            assert self.full is not None
            return self.full[rows]
        import torch
        import torch.nn.functional as F

        small = torch.from_numpy(np.ascontiguousarray(self.logits[rows]))[:, None]
        large = F.interpolate(small, size=self.size, mode="bilinear", align_corners=False)[:, 0]
        enlarged: BoolArray = (large > self.threshold).numpy()
        return enlarged

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Logits (N, h, w), foreground above 0, and predicted IoU (N,), as the mask generator takes them."""
        import torch

        assert self.logits is not None
        return torch.from_numpy(self.logits - np.float32(self.threshold)), torch.from_numpy(self.iou)

    def mask_inputs(self) -> LogitArray | None:
        """(N, h, w) what goes back into the model with the next click; clipped as SAM-2 does."""
        from ...predict.image import LOGIT_LIMIT

        return self.carried if self.logits is None else np.clip(self.logits, -LOGIT_LIMIT, LOGIT_LIMIT)


class ClickModel(Protocol):
    """What the protocols need of a model."""

    takes_granularity: bool
    """It has a dial."""
    answers_without: bool
    """It answers without a g."""
    multimask: int
    """Masks of its own choice for one click; 0: it gives one only."""

    def set_image(self, rgb: NDArray[np.uint8]) -> None:
        """Encodes (H, W, 3) uint8 RGB."""

    def answer(
        self,
        points: FloatArray,
        labels: NDArray[np.int32],
        granularity: FloatArray | None,
        mask_inputs: LogitArray | None = None,
    ) -> Predictions:
        """One mask for each prompt.

        Args:
            points: (N, K, 2) clicks (x, y) in pixels.
            labels: (N, K) 1 inside, 0 outside.
            granularity: (N,) or None.
            mask_inputs: (N, h, w) logits of the earlier answers, or None.
        """

    def answer_multimask(self, points: FloatArray, labels: NDArray[np.int32]) -> Predictions:
        """The model's own `multimask` masks of each prompt, prompt after prompt: N x C answers."""

    def everything(self) -> list[PredictedMask] | None:
        """All masks of the image, of a model that knows them without being clicked; None: it is to be clicked."""


def as_click_model(predictor: object) -> ClickModel:
    """The face of a predictor.

    Raises:
        InputError: it has no `set_image` and `predict`.
    """
    if not callable(getattr(predictor, "set_image", None)) or not callable(getattr(predictor, "predict", None)):
        raise InputError(
            f"a model to be scored needs set_image(image) and predict(point_coords, point_labels, granularity=..., "
            f"mask_input=...), found {type(predictor).__name__}"
        )
    if callable(getattr(predictor, "predict_logits", None)):
        return GranularClicks(predictor)
    if callable(getattr(predictor, "_predict", None)) and callable(getattr(predictor, "_prep_prompts", None)):
        return Sam2Clicks(predictor)
    return PlainClicks(predictor)


class _OnImage:
    """A predictor and the size of the image that it has."""

    def __init__(self, predictor: Any) -> None:
        self._predictor = predictor
        self._size = (0, 0)

    def set_image(self, rgb: NDArray[np.uint8]) -> None:
        self._predictor.set_image(rgb)
        self._size = (rgb.shape[0], rgb.shape[1])

    def everything(self) -> list[PredictedMask] | None:
        return None

    def _decoded(
        self, count: int, decode: Callable[[slice], tuple[Tensor, Tensor]], threshold: float = 0.0
    ) -> Predictions:
        """Batches of `count` prompts, decoded to logits (n, h, w) and predicted IoU (n,), as one answer."""
        model = self._predictor.model
        on_cpu = self._predictor.device.type == "cpu"
        size = max(1, min(64, _PIXELS_PER_BATCH // int(model.image_size) ** 2)) if on_cpu else _GPU_BATCH
        decoded = [decode(slice(start, start + size)) for start in range(0, count, size)]
        if not decoded:
            return Predictions(size=self._size, iou=np.zeros(0), full=np.zeros((0, *self._size), dtype=np.bool_))
        logits = [each.detach().cpu().numpy().astype(np.float32) for each, _ in decoded]
        iou = [each.detach().cpu().numpy().astype(np.float64) for _, each in decoded]
        return Predictions(size=self._size, iou=np.concatenate(iou), logits=np.concatenate(logits), threshold=threshold)


class GranularClicks(_OnImage):
    """`model.predict.image.GranularPredictor`, or whatever else has its `predict_logits`."""

    takes_granularity = True

    def __init__(self, predictor: Any) -> None:
        super().__init__(predictor)
        self.answers_without = bool(getattr(predictor.model, "has_base", True))
        self.multimask = 3 if self.answers_without else 0

    def answer(
        self,
        points: FloatArray,
        labels: NDArray[np.int32],
        granularity: FloatArray | None,
        mask_inputs: LogitArray | None = None,
    ) -> Predictions:
        def decode(rows: slice) -> tuple[Tensor, Tensor]:
            logits, iou = self._predictor.predict_logits(
                points[rows],
                labels[rows],
                None if granularity is None else granularity[rows].astype(np.float32),
                mask_input=None if mask_inputs is None else mask_inputs[rows][:, None],
                multimask=granularity is not None,  # one mask all the same; UnSAMv2's IoU is then as its code has it
            )
            return logits[:, 0], iou[:, 0]

        return self._decoded(len(points), decode)

    def answer_multimask(self, points: FloatArray, labels: NDArray[np.int32]) -> Predictions:
        def decode(rows: slice) -> tuple[Tensor, Tensor]:
            logits, iou = self._predictor.predict_logits(points[rows], labels[rows], None, multimask=True)
            return logits.flatten(0, 1), iou.flatten(0, 1)

        return self._decoded(len(points), decode)


class Sam2Clicks(_OnImage):
    """sam2's own `SAM2ImagePredictor`: no dial, one mask or three."""

    takes_granularity = False
    answers_without = True
    multimask = 3

    def answer(
        self,
        points: FloatArray,
        labels: NDArray[np.int32],
        granularity: FloatArray | None,
        mask_inputs: LogitArray | None = None,
    ) -> Predictions:
        assert granularity is None, "sam2's own predictor has no dial"
        return self._answered(points, labels, mask_inputs, multimask=False)

    def answer_multimask(self, points: FloatArray, labels: NDArray[np.int32]) -> Predictions:
        return self._answered(points, labels, None, multimask=True)

    def _answered(
        self, points: FloatArray, labels: NDArray[np.int32], mask_inputs: LogitArray | None, *, multimask: bool
    ) -> Predictions:
        """As sam2's automatic mask generator calls the same two functions, for many prompts at once."""
        predictor = self._predictor

        def decode(rows: slice) -> tuple[Tensor, Tensor]:
            dense = None if mask_inputs is None else mask_inputs[rows][:, None]
            mask_input, coordinates, kinds, _ = predictor._prep_prompts(points[rows], labels[rows], None, dense, True)
            _, iou, logits = predictor._predict(
                coordinates, kinds, mask_input=mask_input, multimask_output=multimask, return_logits=True
            )
            return logits.float().flatten(0, 1), iou.float().flatten(0, 1)

        return self._decoded(len(points), decode, float(predictor.mask_threshold))


class PlainClicks(_OnImage):
    """Anything with `set_image(image)` and `predict(point_coords, point_labels, granularity=…, mask_input=…)`.

    `predict` returns (masks, predicted IoU, logits) for one prompt: masks (H, W) or (C, H, W), the IoU a number or
    (C,), logits (h, w), (C, h, w) or None. Whether it takes a granularity, a mask input and sam2's `multimask_output`
    is read from its signature. Prompts go one by one. One with a method `everything()`, as `TreePredictor` has it, is
    asked for all masks of an image instead of being clicked on a grid.
    """

    def __init__(self, predictor: Any) -> None:
        super().__init__(predictor)
        parameters = inspect.signature(predictor.predict).parameters
        anything = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
        self._takes_mask = anything or "mask_input" in parameters
        self._takes_multimask = "multimask_output" in parameters
        self.takes_granularity = anything or "granularity" in parameters
        dial = parameters.get("granularity")
        self.answers_without = dial is None or dial.default is not inspect.Parameter.empty
        self.multimask = 3 if self._takes_multimask else 0

    def answer(
        self,
        points: FloatArray,
        labels: NDArray[np.int32],
        granularity: FloatArray | None,
        mask_inputs: LogitArray | None = None,
    ) -> Predictions:
        found = []
        for index in range(len(points)):
            given: dict[str, object] = {}
            if granularity is not None:
                given["granularity"] = float(granularity[index])
            if mask_inputs is not None and self._takes_mask:
                given["mask_input"] = mask_inputs[index][None]
            if self._takes_multimask:
                given["multimask_output"] = False
            masks, iou, logits = self._one(points[index], labels[index], given)
            found.append((masks[:1], iou[:1], None if logits is None else logits[:1]))
        return self._joined(found)

    def answer_multimask(self, points: FloatArray, labels: NDArray[np.int32]) -> Predictions:
        found = [self._one(points[i], labels[i], {"multimask_output": True}) for i in range(len(points))]
        for masks, _, _ in found:
            if len(masks) != self.multimask:
                raise InputError(f"predict(multimask_output=True): expected {self.multimask} masks, found {len(masks)}")
        return self._joined(found)

    def everything(self) -> list[PredictedMask] | None:
        known = getattr(self._predictor, "everything", None)
        return known() if callable(known) else None

    def _one(
        self, points: FloatArray, labels: NDArray[np.int32], given: Mapping[str, object]
    ) -> tuple[BoolArray, FloatArray, LogitArray | None]:
        answer = self._predictor.predict(point_coords=points, point_labels=labels, **given)
        try:
            masks, iou, logits = answer
            masks = np.asarray(masks)
            masks = masks[None] if masks.ndim == 2 else masks
            iou = np.atleast_1d(np.asarray(iou, dtype=np.float64))
            logits = None if logits is None else np.asarray(logits, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise InputError(f"predict: expected (masks, predicted IoU, logits), found {type(answer)}") from error
        if masks.ndim != 3 or masks.shape[1:] != self._size or len(iou) != len(masks):
            raise InputError(
                f"predict: expected masks (C, {self._size[0]}, {self._size[1]}) and as many predicted IoUs, found "
                f"{masks.shape} and {iou.shape}"
            )
        if logits is not None and logits.ndim == 2:
            logits = logits[None]
        return masks.astype(np.bool_) if masks.dtype != np.bool_ else masks, iou, logits

    def _joined(self, found: list[tuple[BoolArray, FloatArray, LogitArray | None]]) -> Predictions:
        """Masks as the model gave them; its logits only travel back as `mask_input`."""
        masks = np.concatenate([each[0] for each in found])
        iou = np.concatenate([each[1] for each in found])
        carried = [each[2] for each in found if each[2] is not None]
        return Predictions(
            size=self._size,
            iou=iou,
            full=masks,
            carried=np.concatenate(carried) if len(carried) == len(found) else None,
        )
