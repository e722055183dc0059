"""Clicks and a granularity in, masks out: SAM-2's predictor with one argument more.

Photographs of any size are squeezed to the model's square and masks come back on the photograph's own grid. One
`set_image` serves any number of prompts and granularities. `granularity=None` is SAM-2's own answer.
Legend: N prompts, K points of a prompt, H W pixels of the photograph, h w of the logits (a quarter of the input).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import InputError

from .adapters import granularity_tensor
from .granular import IMAGE_MEAN, IMAGE_STD, GranularSam2, ImageFeatures
from .loading import load_granular

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float32]

LOGIT_LIMIT: Final = 32.0
"""Logits handed back for refinement are clipped to this, as SAM-2's predictor does."""


class GranularPredictor:
    """A model with one image (or several) in its hands.

    Args:
        model: in evaluation mode, on its device.
    """

    def __init__(self, model: GranularSam2) -> None:
        self.model = model
        self._features: ImageFeatures | None = None
        self._sizes: list[tuple[int, int]] = []

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], device: str | torch.device = "cpu", *, base: str | None = None
    ) -> GranularPredictor:
        """Loads a checkpoint, or the newest one of a training run.

        Args:
            path: file or directory.
            device: cpu, cuda, cuda:N.
            base: the base's weights for an adapter's checkpoint; None: where they were when it was trained.

        Raises:
            InputError: no checkpoint or no fitting base.
            SchemaError: a file that is no checkpoint of ours.
        """
        return cls(load_granular(path, device, base=base))

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    # -- images ----------------------------------------------------------------------------------------------------

    def set_image(self, rgb: NDArray[np.uint8]) -> None:
        """Encodes one photograph: (H, W, 3) uint8 RGB."""
        self.set_images([rgb])

    @torch.no_grad()
    def set_images(self, rgbs: Sequence[NDArray[np.uint8]]) -> None:
        """Encodes several photographs, of any sizes, in one pass.

        Raises:
            InputError: an array that is no RGB photograph.
        """
        for rgb in rgbs:
            if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
                raise InputError(f"set_image: expected (H, W, 3) uint8 RGB, found {rgb.shape} {rgb.dtype}")
        self._features = self.model.encode(torch.cat([self._squared(rgb) for rgb in rgbs]))
        self._sizes = [(rgb.shape[0], rgb.shape[1]) for rgb in rgbs]

    def _squared(self, rgb: NDArray[np.uint8]) -> Tensor:
        """(1, 3, S, S), resized and normalised as SAM-2's own transform does."""
        image = torch.from_numpy(np.ascontiguousarray(rgb)).to(self.device).permute(2, 0, 1)[None].float() / 255.0
        side = self.model.image_size
        image = F.interpolate(image, size=(side, side), mode="bilinear", align_corners=False, antialias=True)
        mean = torch.tensor(IMAGE_MEAN, device=self.device).view(1, 3, 1, 1)
        std = torch.tensor(IMAGE_STD, device=self.device).view(1, 3, 1, 1)
        return (image - mean) / std

    # -- one prompt ------------------------------------------------------------------------------------------------

    def predict(
        self,
        points_xy: NDArray[Any] | Sequence[Sequence[float]] | None = None,
        labels: NDArray[Any] | Sequence[int] | None = None,
        granularity: float | None = None,
        *,
        box: Sequence[float] | NDArray[Any] | None = None,
        mask_input: FloatArray | None = None,
        image: int = 0,
    ) -> tuple[BoolArray, float, FloatArray]:
        """The mask of one prompt.

        Args:
            points_xy: (K, 2) clicks (x, y) in pixels of the photograph.
            labels: (K,) 1 inside, 0 outside.
            granularity: in [0.1, 1.0]; None: SAM-2's own single mask.
            box: (4,) x0, y0, x1, y1 in pixels.
            mask_input: (h, w) logits of an earlier answer, to refine it.
            image: which of the images of `set_images`.

        Returns:
            mask (H, W) bool, predicted IoU of that mask, its logits (h, w) float32.

        Raises:
            InputError: no image set, no prompt, a granularity out of range.
        """
        masks, ious, logits = self.predict_many(
            None if points_xy is None else np.asarray(points_xy, dtype=np.float32)[None],
            None if labels is None else np.asarray(labels)[None],
            granularity,
            boxes=None if box is None else np.asarray(box, dtype=np.float32)[None],
            mask_inputs=None if mask_input is None else np.asarray(mask_input, dtype=np.float32).squeeze()[None],
            image=image,
        )
        return masks[0], float(ious[0]), logits[0]

    def predict_many(
        self,
        points_xy: NDArray[Any] | None,
        labels: NDArray[Any] | None,
        granularity: Any,
        *,
        boxes: NDArray[Any] | None = None,
        mask_inputs: FloatArray | None = None,
        image: int = 0,
    ) -> tuple[BoolArray, FloatArray, FloatArray]:
        """The masks of N prompts on one image, in one pass.

        Args:
            points_xy: (N, K, 2), or None with boxes.
            labels: (N, K).
            granularity: None, one number, or one for each prompt.
            boxes: (N, 4) x0, y0, x1, y1.
            mask_inputs: (N, h, w).
            image: which image.

        Returns:
            masks (N, H, W) bool, predicted IoU (N,), logits (N, h, w).
        """
        low, iou = self.predict_logits(
            points_xy, labels, granularity, boxes=boxes, mask_inputs=mask_inputs, image=image
        )
        height, width = self._sizes[image]
        full = F.interpolate(low[:, None], size=(height, width), mode="bilinear", align_corners=False)[:, 0]
        kept = low.clamp(-LOGIT_LIMIT, LOGIT_LIMIT)
        return (full > 0).cpu().numpy(), iou.cpu().numpy(), kept.cpu().numpy()

    @torch.no_grad()
    def predict_logits(
        self,
        points_xy: NDArray[Any] | None,
        labels: NDArray[Any] | None,
        granularity: Any,
        *,
        boxes: NDArray[Any] | None = None,
        mask_inputs: FloatArray | None = None,
        image: int = 0,
        multimask: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """As `predict_many`, without leaving the device: logits (N, h, w) and IoU (N,), float32.

        With `multimask` (only without a granularity) both have three columns: (N, 3, h, w) and (N, 3).
        """
        if self._features is None:
            raise InputError("predict: set_image first")
        if multimask and granularity is not None:
            raise InputError("predict: several masks for a prompt are SAM-2's own answer; leave the granularity out")
        coordinates, kinds = self._prompt(points_xy, labels, boxes, self._sizes[image])
        count = len(coordinates)
        values = None if granularity is None else granularity_tensor(granularity, count, self.device)
        dense = None
        if mask_inputs is not None:
            dense = torch.as_tensor(mask_inputs, dtype=torch.float32, device=self.device)[:, None]
        features = self._features.select(torch.full((count,), image, dtype=torch.long, device=self.device))
        decoded = self.model.decode(features, coordinates, kinds, values, mask_input_N1HW=dense, multimask=multimask)
        logits, iou = decoded.logits_NMHW.float(), decoded.iou_NM.float()
        return (logits, iou) if multimask else (logits[:, 0], iou[:, 0])

    def _prompt(
        self,
        points_xy: NDArray[Any] | None,
        labels: NDArray[Any] | None,
        boxes: NDArray[Any] | None,
        size: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """Points and boxes (as two points, first) in the model's pixels: (N, P, 2) float32 and (N, P) int32."""
        parts, kinds = [], []
        if boxes is not None:
            corners = np.asarray(boxes, dtype=np.float32).reshape(-1, 2, 2)
            parts.append(corners)
            kinds.append(np.broadcast_to(np.array([2, 3], dtype=np.int32), corners.shape[:2]))
        if points_xy is not None:
            points = np.asarray(points_xy, dtype=np.float32)
            given = np.asarray(labels if labels is not None else np.ones(points.shape[:2]), dtype=np.int32)
            if points.ndim != 3 or points.shape[2] != 2 or given.shape != points.shape[:2]:
                raise InputError(
                    f"predict: expected points (N, K, 2) and labels (N, K), found {points.shape}, {given.shape}"
                )
            parts.append(points)
            kinds.append(given)
        if not parts:
            raise InputError("predict: expected points or a box")
        coordinates = np.concatenate(parts, axis=1)
        if not np.isfinite(coordinates).all():
            raise InputError("predict: a coordinate is not a finite number")
        height, width = size
        scale = np.array([self.model.image_size / width, self.model.image_size / height], dtype=np.float32)
        return (
            torch.from_numpy(coordinates * scale).to(self.device),
            torch.from_numpy(np.ascontiguousarray(np.concatenate(kinds, axis=1))).to(self.device),
        )
