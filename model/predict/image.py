"""Clicks and a granularity in, masks out: SAM-2's image predictor with one argument more.

Images of any size are squeezed to the model's square and masks come back on the image's own grid. One `set_image`
serves any number of prompts and granularities. `granularity=None` is SAM-2's own answer: the transform, the prompts'
encoding and the single mask's fallback to a stable one are those of `sam2.SAM2ImagePredictor`.

Methods, arguments, their order and the shapes of what is returned are that class's; `granularity` comes by name, and
with it the answer is one mask a prompt. Masks are bool (sam2 returns 0.0 and 1.0).
Legend: N prompts, K points of a prompt, C masks of a prompt, H W pixels of the image, h w of the logits (a quarter of
the model's input).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from pipeline.errors import InputError

from ..network.adapters import granularity_values
from ..network.granular import GranularSam2, ImageFeatures
from ..network.load import load_for_prediction
from ..network.pixels import resized_as_image
from ..network.sam2_base import SCRATCH_WIDTH
from .image_files import as_rgb, real_numbers

FloatArray = NDArray[np.float32]
ImageLike = NDArray[np.uint8] | Image.Image

LOGIT_LIMIT: Final = 32.0
"""Logits handed back for refinement are clipped to this, as SAM-2's predictor does."""

HOLE_SHARE: Final = 32 / 64**2
SPRINKLE_SHARE: Final = 8 / 64**2
"""Of the grid of logits: the largest hole and island of a student from scratch that are mended. Chosen on at most 400
clicks on people's segments of the first 50 photographs of BSDS500 train, one student on EfficientNet-lite0: holes of up
to 4, 8, 16, 32 and 64 cells of 64 x 64 filled bring +0.0003 to +0.0015 of 1-IoU at the label's g (+0.0014 +- 0.0004 at
32), islands of up to 8 cells left out cost nothing, larger ones do (-0.0025 at 64). It is for the eye."""
MENDED_BY: Final = 10.0
"""How far beyond the threshold what was mended lies, as in sam2."""

NO_DIAL: Final = "these are SAM-2's own weights, which know no granularity; leave it out, or load what was trained"
NO_BASE: Final = (
    "this file has no LoRA beside its decoder, which may have it folded in, so SAM-2's own answer is not in it; give a "
    "granularity, or load SAM 2.1's own weights"
)

LABELS: Final = (-1, 0, 1, 2, 3)
"""Of a point: padding, outside, inside, a box's first and second corner."""


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """N prompts on one image, checked. What was not given is None.

    Attributes:
        points: (N, K, 2) float32, x and y as they were given.
        labels: (N, K) int32, of `LABELS`.
        boxes: (N, 4) float32 x0, y0, x1, y1.
        mask_inputs: (N, h, w) float32 logits.
        granularity: (N,) float64 in [0.1, 1.0].
        count: N.
        several: several prompts were given, not one (at several granularities).
    """

    points: FloatArray | None
    labels: NDArray[np.int32] | None
    boxes: FloatArray | None
    mask_inputs: FloatArray | None
    granularity: NDArray[np.float64] | None
    count: int
    several: bool


def check_prompts(
    point_coords: ArrayLike | None,
    point_labels: ArrayLike | None,
    box: ArrayLike | None,
    mask_input: ArrayLike | None,
    granularity: Any,
    *,
    side: int,
) -> Prompts:
    """One prompt, several, or one at several granularities, as `GranularPredictor.predict` takes them.

    Args:
        point_coords: (K, 2) or (N, K, 2).
        point_labels: (K,) or (N, K); None: all inside.
        box: (4,) or (N, 4).
        mask_input: (h, w), (1, h, w), (N, h, w) or (N, 1, h, w) logits.
        granularity: None, one number, or one for each prompt.
        side: h and w.

    Raises:
        InputError: no prompt, shapes that do not fit each other, no finite numbers, a granularity out of range.
    """
    points = labels = boxes = None
    if point_coords is not None:
        points = real_numbers(point_coords, "points", "predict")
        points = points[None] if points.ndim == 2 else points
        given = np.ones(points.shape[:2]) if point_labels is None else real_numbers(point_labels, "labels", "predict")
        given = given[None] if given.ndim == 1 else given
        if points.ndim != 3 or points.shape[2] != 2 or given.shape != points.shape[:2]:
            raise InputError(
                f"predict: expected points (K, 2) or (N, K, 2) and labels (K,) or (N, K), found "
                f"{np.shape(point_coords)} and {given.shape if point_labels is None else np.shape(point_labels)}"
            )
        if not np.isin(given, LABELS).all():
            raise InputError("predict: expected labels 1 (inside) and 0 (outside), found others")
        labels = given.astype(np.int32)
    if box is not None:
        boxes = real_numbers(box, "box", "predict")
        if boxes.size % 4 or (boxes.ndim > 1 and boxes.shape[-1] != 4):
            raise InputError(f"predict: expected one box x0, y0, x1, y1, or (N, 4), found {np.shape(box)}")
        boxes = boxes.reshape(-1, 4)
    if points is None and boxes is None and mask_input is None:
        raise InputError("predict: expected points, a box or a mask")
    if points is not None and boxes is not None and len(points) != len(boxes):
        raise InputError(f"predict: found {len(boxes)} boxes and points for {len(points)} prompts")
    if not all(np.isfinite(each).all() for each in (points, boxes) if each is not None):
        raise InputError("predict: a coordinate is not a finite number")
    given_prompts = next((len(each) for each in (points, boxes) if each is not None), 1)
    if not given_prompts:
        raise InputError("predict: expected at least one prompt, found none")
    values = None if granularity is None else granularity_values(granularity)
    count = given_prompts if values is None else max(given_prompts, values.size)
    if values is not None and given_prompts > 1 and values.size not in (1, given_prompts):
        raise InputError(
            f"granularity: expected one value or one for each of {given_prompts} prompts, found {values.size}"
        )
    masks = None if mask_input is None else _mask_inputs(mask_input, count, side)

    def rows(array: NDArray[Any] | None) -> Any:
        return None if array is None else np.broadcast_to(array, (count, *array.shape[1:]))

    return Prompts(
        points=rows(points), labels=rows(labels), boxes=rows(boxes), mask_inputs=rows(masks),
        granularity=rows(values), count=count, several=given_prompts > 1,
    )  # fmt: skip


def _mask_inputs(mask_input: ArrayLike, count: int, side: int) -> FloatArray:
    """(1 or N, h, w)."""
    given = real_numbers(mask_input, "mask_input", "predict")
    masks = given[:, 0] if given.ndim == 4 and given.shape[1] == 1 else given[None] if given.ndim == 2 else given
    if masks.shape not in {(1, side, side), (count, side, side)}:
        many = f" or ({count}, {side}, {side}), one for each prompt or granularity" if count > 1 else ""
        raise InputError(
            f"predict: expected mask_input ({side}, {side}), (1, {side}, {side}){many}, found {given.shape}"
        )
    if not np.isfinite(masks).all():
        raise InputError("predict: a logit of the mask inputs is not a finite number")
    return masks


class GranularPredictor:
    """A model with one image (or several) in its hands: `SAM2ImagePredictor` with a granularity.

    Args:
        model: in evaluation mode, on its device.
        mask_threshold: logits above it are foreground.
        max_hole_area: holes of a mask up to so many pixels of the logits' grid are filled where masks are made of
            logits (`predict` without `return_logits`, `enlarge`), unless a click outside asked for them; the logits
            handed back stay as they are. None: of a student from scratch `HOLE_SHARE` of the grid, else 0, none, as
            sam2's predictor.
        max_sprinkle_area: likewise of islands, which are left out, all but a mask's largest, and none after a second
            click inside (sam2's predictor leaves out all). None: `SPRINKLE_SHARE`, else 0.

    Attributes:
        own_iou: of the last answer (N, C) float32, where it was UnSAMv2's with `multimask_output`: the IoU predicted
            for the mask itself. The one returned is as their code returns it, which was predicted for another mask.
            Else None: the one returned is the mask's own.
    """

    def __init__(
        self,
        model: GranularSam2,
        mask_threshold: float = 0.0,
        max_hole_area: float | None = None,
        max_sprinkle_area: float | None = None,
    ) -> None:
        self.model = model
        self.mask_threshold = mask_threshold
        cells = (model.image_size // 4) ** 2 if model.size in SCRATCH_WIDTH else 0
        self.max_hole_area = HOLE_SHARE * cells if max_hole_area is None else max_hole_area
        self.max_sprinkle_area = SPRINKLE_SHARE * cells if max_sprinkle_area is None else max_sprinkle_area
        self.own_iou: Tensor | None = None
        self._features: ImageFeatures | None = None
        self._sizes: list[tuple[int, int]] = []

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], device: str | torch.device = "cpu", *, base: str | None = None
    ) -> GranularPredictor:
        """Loads a checkpoint, the newest one of a training run, UnSAMv2's own, or SAM-2's, which knows no granularity.

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
        """Of the model."""
        return next(self.model.parameters()).device

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each image that is set."""
        return list(self._sizes)

    # -- images ----------------------------------------------------------------------------------------------------

    def set_image(self, image: ImageLike) -> None:
        """Encodes one image: (H, W, 3) uint8 RGB, or Pillow's image of mode RGB."""
        self.set_image_batch([image])

    @torch.no_grad()
    def set_image_batch(self, image_list: Sequence[ImageLike]) -> None:
        """Encodes several images, of any sizes, in one pass; each as in `set_image`.

        Raises:
            InputError: none, or something that is no RGB image.
        """
        images = [as_rgb(each, "set_image") for each in image_list]
        if not images:
            raise InputError("set_image_batch: expected at least one image, found none")
        side, device = self.model.image_size, self.device
        self._features = self.model.encode(torch.cat([resized_as_image(each, side, device) for each in images]))
        self._sizes = [(each.shape[0], each.shape[1]) for each in images]

    def get_image_embedding(self) -> Tensor:
        """What the encoder gave at stride 16: (B, C, S / 16, S / 16), B images set.

        Raises:
            InputError: none is set.
        """
        if self._features is None:
            raise InputError("get_image_embedding: set_image first")
        return self._features.embedding_BCHW

    def reset_predictor(self) -> None:
        """Forgets the images."""
        self._features, self._sizes = None, []

    # -- prompts ---------------------------------------------------------------------------------------------------

    def predict(
        self,
        point_coords: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask_input: ArrayLike | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        normalize_coords: bool = True,
        *,
        granularity: Any = None,
        image: int = 0,
    ) -> tuple[NDArray[Any], FloatArray, FloatArray]:
        """The masks of one prompt, or of N prompts in one pass of the decoder.

        Arguments before the star are SAM-2's, in its order.

        Args:
            point_coords: (K, 2) clicks (x, y) in pixels of the image, or (N, K, 2).
            point_labels: (K,) or (N, K), 1 inside, 0 outside, -1 pads a prompt with fewer points; None: all inside.
            box: (4,) x0, y0, x1, y1 in pixels, or (N, 4).
            mask_input: (1, h, w) or (h, w) logits of an earlier answer, to refine it; (N, 1, h, w) for N prompts; with
                C granularities also (C, h, w).
            multimask_output: SAM-2's three masks a prompt instead of one. With a granularity there is one, whatever
                this says: the dial answers in advance which of three sizes is meant. Of UnSAMv2's own weights the IoU
                is as their code returns it, see `own_iou`.
            return_logits: masks as float32 logits instead of bool.
            normalize_coords: False: points and boxes are in [0, 1] instead of pixels.
            granularity: in [0.1, 1.0], one number, one for each of N prompts, or C for one prompt; None: SAM-2's own
                answer.
            image: which of the images of `set_image_batch`.

        Returns:
            masks (C, H, W) bool, the predicted IoU of each (C,) float32, and logits (C, h, w) float32 for `mask_input`;
            of N > 1 prompts (N, C, H, W), (N, C) and (N, C, h, w). C is 1, 3, or the number of granularities of one
            prompt.

        Raises:
            InputError: no image set, no prompt, shapes that do not fit, a granularity out of range.
        """
        prompts = self._checked(point_coords, point_labels, box, mask_input, granularity)
        logits, ious = self._decoded(prompts, image, multimask=multimask_output, normalize=normalize_coords)
        if not prompts.several:
            logits, ious = logits.flatten(0, 1), ious.flatten(0, 1)
        full = self.interpolated(logits, image) if return_logits else self.enlarge(logits, image, prompts.labels)
        kept = logits.clamp(-LOGIT_LIMIT, LOGIT_LIMIT)
        masks = full if return_logits else full > self.mask_threshold
        return masks.cpu().numpy(), ious.cpu().numpy(), kept.cpu().numpy()

    def predict_batch(
        self,
        point_coords_batch: Sequence[ArrayLike | None] | None = None,
        point_labels_batch: Sequence[ArrayLike | None] | None = None,
        box_batch: Sequence[ArrayLike | None] | None = None,
        mask_input_batch: Sequence[ArrayLike | None] | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        normalize_coords: bool = True,
        *,
        granularity_batch: Sequence[Any] | None = None,
    ) -> tuple[list[NDArray[Any]], list[FloatArray], list[FloatArray]]:
        """What `predict` takes for each image of `set_image_batch`; arguments and answers are lists over images.

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
        """As `predict`, without leaving the device: logits (N, C, h, w) and predicted IoU (N, C), float32."""
        prompts = self._checked(point_coords, point_labels, box, mask_input, granularity)
        return self._decoded(prompts, 0, multimask=multimask)

    def enlarge(self, logits: Tensor, image: int = 0, labels: ArrayLike | None = None) -> Tensor:
        """Logits (C, h, w) or (N, C, h, w) -> as many on the image's grid, `mended`."""
        return self.interpolated(self.mended(logits, labels), image)

    def mended(self, logits: Tensor, labels: ArrayLike | None = None) -> Tensor:
        """Logits (..., h, w) without holes and then islands up to the areas allowed, but for a mask's largest island.

        Args:
            logits: as a model answered.
            labels: of all clicks that asked for them; after one outside no hole is filled, after a second one inside
                no island is left out: those may be what was meant.
        """
        given = np.asarray([] if labels is None else labels)
        hole = 0.0 if (given == 0).any() else self.max_hole_area
        island = 0.0 if (given == 1).sum(axis=-1).max(initial=0) > 1 else self.max_sprinkle_area
        if hole <= 0 and island <= 0:
            return logits
        mended = logits.clone(memory_format=torch.contiguous_format)
        for values in mended.flatten(0, -3):
            for largest, sign in ((hole, 1), (island, -1)):
                inside = (values > self.mask_threshold).cpu().numpy()
                region = (inside if sign < 0 else ~inside).astype(np.uint8)
                _, parts, statistics, _ = cv2.connectedComponentsWithStats(region, connectivity=8)
                small = statistics[:, cv2.CC_STAT_AREA] <= largest
                small[0] = False  # all that is not of the region
                if sign < 0 and len(small) > 1:
                    small[1 + statistics[1:, cv2.CC_STAT_AREA].argmax()] = False
                values[torch.from_numpy(small[parts]).to(values.device)] = self.mask_threshold + sign * MENDED_BY
        return mended

    def interpolated(self, logits: Tensor, image: int = 0) -> Tensor:
        """Logits (C, h, w) or (N, C, h, w) -> as many on the image's grid, bilinearly."""
        batch = logits if logits.ndim == 4 else logits[None]
        return F.interpolate(batch, size=self._sizes[image], mode="bilinear", align_corners=False).view(
            *logits.shape[:-2], *self._sizes[image]
        )

    def _checked(
        self,
        point_coords: ArrayLike | None,
        point_labels: ArrayLike | None,
        box: ArrayLike | None,
        mask_input: ArrayLike | None,
        granularity: Any,
    ) -> Prompts:
        if self._features is None:
            raise InputError("predict: set_image first")
        if granularity is not None and not self.model.has_dial:
            raise InputError(f"predict: {NO_DIAL}")
        if granularity is None and not self.model.has_base:
            raise InputError(f"predict: {NO_BASE}")
        side = self.model.image_size // 4
        return check_prompts(point_coords, point_labels, box, mask_input, granularity, side=side)

    @torch.no_grad()
    def _decoded(
        self, prompts: Prompts, image: int, *, multimask: bool, normalize: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Logits (N, C, h, w) and IoU (N, C), float32."""
        assert self._features is not None
        if not 0 <= image < len(self._sizes):
            raise InputError(f"predict: image {image} of {len(self._sizes)}")
        coordinates, labels = self._in_model_pixels(prompts, self._sizes[image] if normalize else (1, 1))
        decoded = self.model.decode(
            self._features.repeat(image, prompts.count),
            coordinates,
            labels,
            None if prompts.granularity is None else self._sent(prompts.granularity.astype(np.float32)),
            mask_input_N1HW=None if prompts.mask_inputs is None else self._sent(prompts.mask_inputs[:, None]),
            multimask=multimask,
        )
        self.own_iou = None if decoded.own_iou_NM is None else decoded.own_iou_NM.float()
        return decoded.logits_NMHW.float(), decoded.iou_NM.float()

    def _in_model_pixels(self, prompts: Prompts, size: tuple[int, int]) -> tuple[Tensor | None, Tensor | None]:
        """Boxes (as two points, first) and points: (N, P, 2) float32 and (N, P) int32; None for a mask alone."""
        parts, labels = [], []
        if prompts.boxes is not None:
            parts.append(prompts.boxes.reshape(-1, 2, 2))
            labels.append(np.broadcast_to(np.array([2, 3], dtype=np.int32), (prompts.count, 2)))
        if prompts.points is not None and prompts.labels is not None:
            parts.append(prompts.points)
            labels.append(prompts.labels)
        if not parts:
            return None, None
        # Divided, then multiplied, on the device, as sam2 does: another order is off by a last bit, which logits show.
        pixels = self._sent(np.concatenate(parts, axis=1))
        pixels[..., 0] = pixels[..., 0] / size[1]
        pixels[..., 1] = pixels[..., 1] / size[0]
        return pixels * self.model.image_size, self._sent(np.concatenate(labels, axis=1))

    def _sent(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.array(array)).to(self.device)
