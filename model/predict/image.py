"""Clicks and a granularity in, masks out: SAM-2's image predictor with one argument more.

Photographs of any size are squeezed to the model's square and masks come back on the photograph's own grid. One
`set_image` serves any number of prompts and granularities. `granularity=None` is SAM-2's own answer: the transform, the
prompts' encoding and the single mask's fallback to a stable one are those of `sam2.SAM2ImagePredictor`.

`predict` takes that class's arguments in its order, and `granularity` by name. Two differences: one mask is the default
(`multimask_output` answers "which of three sizes?", the dial answers it in advance), and several prompts go to
`predict_many`, so that every function has one shape of answer.
Legend: N prompts, K points of a prompt, C masks of a prompt, H W pixels of the photograph, h w of the logits (a quarter
of the model's input).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from pipeline.errors import InputError

from ..network.adapters import granularity_tensor, granularity_values
from ..network.granular import GranularSam2, ImageFeatures
from ..network.load import load_for_prediction
from ..network.pixels import resized_as_image
from .image_files import as_rgb, real_numbers

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float32]
Photograph = NDArray[np.uint8] | Image.Image

LOGIT_LIMIT: Final = 32.0
"""Logits handed back for refinement are clipped to this, as SAM-2's predictor does."""

NO_DIAL: Final = "these are SAM-2's own weights, which know no granularity; leave it out, or load what was trained"

LABELS: Final = (-1, 0, 1, 2, 3)
"""Of a point: padding, outside, inside, a box's first and second corner."""


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
        """Loads a checkpoint, the newest one of a training run, or SAM-2's own weights, which know no granularity.

        Args:
            path: file or directory.
            device: cpu, cuda, cuda:N.
            base: the base's weights for an adapter's checkpoint; None: where they were when it was trained.

        Raises:
            InputError: no checkpoint or no fitting base.
            SchemaError: a file that is no checkpoint.
        """
        return cls(load_for_prediction(path, device, base=base))

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each image that is set."""
        return list(self._sizes)

    # -- images ----------------------------------------------------------------------------------------------------

    def set_image(self, image: Photograph) -> None:
        """Encodes one photograph: (H, W, 3) uint8 RGB, or Pillow's image of mode RGB."""
        self.set_image_batch([image])

    @torch.no_grad()
    def set_image_batch(self, images: Sequence[Photograph]) -> None:
        """Encodes several photographs, of any sizes, in one pass; each as in `set_image`.

        Raises:
            InputError: none, or something that is no RGB photograph.
        """
        photographs = [as_rgb(each, "set_image") for each in images]
        if not photographs:
            raise InputError("set_image_batch: expected at least one photograph, found none")
        self._features = self.model.encode(torch.cat([self._resized_as_image(each) for each in photographs]))
        self._sizes = [(each.shape[0], each.shape[1]) for each in photographs]

    def _resized_as_image(self, image: NDArray[np.uint8]) -> Tensor:
        """(1, 3, S, S), resized and normalised as SAM-2's own transform does."""
        return resized_as_image(image, self.model.image_size, self.device)

    # -- one prompt ------------------------------------------------------------------------------------------------

    def predict(
        self,
        point_coords: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask_input: FloatArray | None = None,
        multimask_output: bool = False,
        return_logits: bool = False,
        normalize_coords: bool = True,
        *,
        granularity: Any = None,
        image: int = 0,
    ) -> tuple[NDArray[Any], FloatArray, FloatArray]:
        """The mask of one prompt: one, one for each granularity, or SAM-2's own three.

        Arguments before the star are SAM-2's, in its order.

        Args:
            point_coords: (K, 2) clicks (x, y) in pixels of the photograph.
            point_labels: (K,) 1 inside, 0 outside; None: all inside.
            box: (4,) x0, y0, x1, y1 in pixels.
            mask_input: (1, h, w) or (h, w) logits of an earlier answer, to refine it; with C granularities also C.
            multimask_output: SAM-2's three masks; only without a granularity.
            return_logits: masks as float32 logits instead of bool.
            normalize_coords: False: points and box are in [0, 1] instead of pixels.
            granularity: in [0.1, 1.0], one number or C of them; None: SAM-2's own answer.
            image: which of the images of `set_image_batch`.

        Returns:
            masks (C, H, W) bool, the predicted IoU of each (C,) float32, and logits (C, h, w) float32 for `mask_input`.

        Raises:
            InputError: no image set, no prompt, shapes that do not fit, a granularity out of range.
        """
        points = None if point_coords is None else real_numbers(point_coords, "points", "predict")
        if points is not None and points.ndim != 2:
            raise InputError(f"predict: expected one prompt's points (K, 2), found {points.shape}; see predict_many")
        corners = None if box is None else real_numbers(box, "box", "predict").reshape(-1)
        if corners is not None and corners.size != 4:
            raise InputError(f"predict: expected one box x0, y0, x1, y1, found {corners.size} numbers")
        wanted = None if granularity is None else granularity_values(granularity)
        count = 1 if wanted is None else wanted.size
        dense = None
        if mask_input is not None:
            given = real_numbers(mask_input, "mask_input", "predict")
            given = given[None] if given.ndim == 2 else given
            side = self.model.image_size // 4
            if given.shape not in {(1, side, side), (count, side, side)}:
                many = f" or ({count}, {side}, {side}), one for each granularity" if count > 1 else ""
                raise InputError(
                    f"predict: expected mask_input ({side}, {side}), (1, {side}, {side}){many}, found "
                    f"{np.shape(mask_input)}"
                )
            dense = np.broadcast_to(given, (count, side, side))
        logits, ious = self.predict_logits(
            None if points is None else np.repeat(points[None], count, axis=0),
            None
            if point_labels is None
            else np.repeat(real_numbers(point_labels, "labels", "predict")[None], count, axis=0),
            wanted,
            boxes=None if corners is None else np.repeat(corners[None], count, axis=0),
            mask_inputs=dense,
            image=image,
            multimask=multimask_output,
            normalize=normalize_coords,
        )
        if multimask_output:
            logits, ious = logits[0], ious[0]
        return self._answer(logits, ious, image, return_logits=return_logits)

    def predict_batch(
        self,
        point_coords_batch: Sequence[ArrayLike | None] | None = None,
        point_labels_batch: Sequence[ArrayLike | None] | None = None,
        box_batch: Sequence[ArrayLike | None] | None = None,
        mask_input_batch: Sequence[FloatArray | None] | None = None,
        multimask_output: bool = False,
        return_logits: bool = False,
        normalize_coords: bool = True,
        *,
        granularity_batch: Sequence[Any] | None = None,
    ) -> tuple[list[NDArray[Any]], list[FloatArray], list[FloatArray]]:
        """One prompt for each image of `set_image_batch`; arguments and answers are lists over images, see `predict`.

        Raises:
            InputError: lists of another length than there are images, and what `predict` raises.
        """
        if self._features is None:
            raise InputError("predict_batch: set_image_batch first")
        count = len(self._sizes)
        given: dict[str, Sequence[Any] | None] = {
            "point_coords": point_coords_batch,
            "point_labels": point_labels_batch,
            "box": box_batch,
            "mask_input": mask_input_batch,
            "granularity": granularity_batch,
        }
        for name, values in given.items():
            if values is not None and len(values) != count:
                raise InputError(f"predict_batch: expected {count} values of {name}, one an image, found {len(values)}")
        answers = [
            self.predict(
                **{name: None if values is None else values[index] for name, values in given.items()},
                multimask_output=multimask_output,
                return_logits=return_logits,
                normalize_coords=normalize_coords,
                image=index,
            )
            for index in range(count)
        ]
        return [each[0] for each in answers], [each[1] for each in answers], [each[2] for each in answers]

    # -- many prompts ----------------------------------------------------------------------------------------------

    def predict_many(
        self,
        point_coords: ArrayLike | None,
        point_labels: ArrayLike | None,
        granularity: Any = None,
        *,
        boxes: ArrayLike | None = None,
        mask_inputs: FloatArray | None = None,
        image: int = 0,
    ) -> tuple[BoolArray, FloatArray, FloatArray]:
        """The masks of N prompts on one image, in one pass.

        Args:
            point_coords: (N, K, 2), or None with boxes.
            point_labels: (N, K); -1 pads a prompt with fewer points (a little different from leaving it out).
            granularity: None, one number, or one for each prompt.
            boxes: (N, 4) x0, y0, x1, y1.
            mask_inputs: (N, h, w).
            image: which image.

        Returns:
            masks (N, H, W) bool, predicted IoU (N,), logits (N, h, w).
        """
        logits, ious = self.predict_logits(
            point_coords, point_labels, granularity, boxes=boxes, mask_inputs=mask_inputs, image=image
        )
        return self._answer(logits, ious, image, return_logits=False)

    def _answer(
        self, logits_CHW: Tensor, ious_C: Tensor, image: int, *, return_logits: bool
    ) -> tuple[NDArray[Any], FloatArray, FloatArray]:
        full = self.enlarge(logits_CHW, image)
        kept = logits_CHW.clamp(-LOGIT_LIMIT, LOGIT_LIMIT)
        return (full if return_logits else full > 0).cpu().numpy(), ious_C.cpu().numpy(), kept.cpu().numpy()

    def enlarge(self, logits_CHW: Tensor, image: int = 0) -> Tensor:
        """Logits (C, h, w) -> logits on the photograph's grid (C, H, W)."""
        return F.interpolate(logits_CHW[None], size=self._sizes[image], mode="bilinear", align_corners=False)[0]

    @torch.no_grad()
    def predict_logits(
        self,
        point_coords: ArrayLike | None,
        point_labels: ArrayLike | None,
        granularity: Any = None,
        *,
        boxes: ArrayLike | None = None,
        mask_inputs: FloatArray | None = None,
        image: int = 0,
        multimask: bool = False,
        normalize: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """As `predict_many`, without leaving the device: logits (N, h, w) and IoU (N,), float32.

        With `multimask` (only without a granularity) both have three columns: (N, 3, h, w) and (N, 3). Without
        `normalize` points and boxes are in [0, 1].
        """
        if self._features is None:
            raise InputError("predict: set_image first")
        if granularity is not None and not self.model.has_dial:
            raise InputError(f"predict: {NO_DIAL}")
        if multimask and granularity is not None:
            raise InputError("predict: several masks for a prompt are SAM-2's own answer; leave the granularity out")
        if not 0 <= image < len(self._sizes):
            raise InputError(f"predict: image {image} of {len(self._sizes)}")
        prompt = self._prompt(point_coords, point_labels, boxes, self._sizes[image] if normalize else (1, 1))
        dense = None if mask_inputs is None else self._mask_inputs(mask_inputs)
        if prompt is None and dense is None:
            raise InputError("predict: expected points, a box or a mask")
        counts = {len(each) for each in (None if prompt is None else prompt[0], dense) if each is not None}
        if len(counts) != 1:
            raise InputError(f"predict: expected as many mask inputs as prompts, found {sorted(counts)}")
        count = counts.pop()
        if not count:
            raise InputError("predict: expected at least one prompt, found none")
        values = None if granularity is None else granularity_tensor(granularity, count, self.device)
        features = self._features.repeat(image, count)
        coordinates, kinds = prompt if prompt is not None else (None, None)
        decoded = self.model.decode(features, coordinates, kinds, values, mask_input_N1HW=dense, multimask=multimask)
        logits, iou = decoded.logits_NMHW.float(), decoded.iou_NM.float()
        return (logits, iou) if multimask else (logits[:, 0], iou[:, 0])

    def _mask_inputs(self, mask_inputs: FloatArray) -> Tensor:
        dense = real_numbers(mask_inputs, "mask inputs", "predict")
        side = self.model.image_size // 4
        if dense.ndim != 3 or dense.shape[1:] != (side, side):
            raise InputError(f"predict: expected mask inputs (N, {side}, {side}), found {dense.shape}")
        if not np.isfinite(dense).all():
            raise InputError("predict: a logit of the mask inputs is not a finite number")
        return torch.tensor(dense, device=self.device)[:, None]

    def _prompt(
        self,
        point_coords: ArrayLike | None,
        point_labels: ArrayLike | None,
        boxes: ArrayLike | None,
        size: tuple[int, int],
    ) -> tuple[Tensor, Tensor] | None:
        """Points and boxes (as two points, first) in the model's pixels: (N, P, 2) float32 and (N, P) int32."""
        parts, kinds = [], []
        if boxes is not None:
            corners = real_numbers(boxes, "boxes", "predict")
            if corners.ndim != 2 or corners.shape[1] != 4:
                raise InputError(f"predict: expected boxes (N, 4), found {corners.shape}")
            corners = corners.reshape(-1, 2, 2)
            parts.append(corners)
            kinds.append(np.broadcast_to(np.array([2, 3], dtype=np.int32), corners.shape[:2]))
        if point_coords is not None:
            points = real_numbers(point_coords, "points", "predict")
            given = (
                np.ones(points.shape[:2]) if point_labels is None else real_numbers(point_labels, "labels", "predict")
            )
            if points.ndim != 3 or points.shape[2] != 2 or given.shape != points.shape[:2]:
                raise InputError(
                    f"predict: expected points (N, K, 2) and labels (N, K), found {points.shape}, {given.shape}"
                )
            if not np.isin(given, LABELS).all():
                raise InputError("predict: expected labels 1 (inside) and 0 (outside), found others")
            parts.append(points)
            kinds.append(given.astype(np.int32))
        if not parts:
            return None
        if len({len(each) for each in parts}) != 1:
            raise InputError(f"predict: found {len(parts[0])} boxes and points for {len(parts[1])} prompts")
        coordinates = np.concatenate(parts, axis=1)
        if not np.isfinite(coordinates).all():
            raise InputError("predict: a coordinate is not a finite number")
        height, width = size
        # Divided, then multiplied, on the device, as sam2 does: another order is off by a last bit, which logits show.
        pixels = torch.from_numpy(coordinates).to(self.device)
        pixels[..., 0] = pixels[..., 0] / width
        pixels[..., 1] = pixels[..., 1] / height
        return (
            pixels * self.model.image_size,
            torch.from_numpy(np.ascontiguousarray(np.concatenate(kinds, axis=1))).to(self.device),
        )
