"""Everything in an image, at one or more granularities: a grid of clicks in, a tree of masks out.

The image is encoded once for any number of granularities. For each granularity the grid's points go through the decoder
in batches; masks that the model itself thinks little of are dropped (predicted IoU, and stability under a shifted
threshold, as in SAM-2's generator). Of two masks whose *pixels* nearly agree the one with the better predicted IoU
stays: first among the masks of a granularity on the logits' grid, then among all of them on the image's. SAM-2's
generator compares boxes instead, and so loses a part to a whole with the same box, or the whole to the part.

What is left becomes a tree: a mask's parent is the smallest mask that holds at least 0.9 of it.

`grainmill segment --everything`, `grainmill score` and `GranularMaskGenerator` all search with the functions here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NotRequired, TypedDict, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import InputError
from pipeline.format import rle as rle_codec
from pipeline.format.granularity import GRANULARITIES
from pipeline.format.rle import Rle
from pipeline.format.schema import CONTAINED_FRACTION, MAX_IMAGE_FRACTION
from pipeline.labeling.atoms import contained_fraction, suppress_duplicates

from ..network.adapters import granularity_values
from ..network.granular import GranularSam2
from ..network.sam2_base import SCRATCH_WIDTH, Size, sam2_feature_sizes, scripted_transforms
from .coco_json import PredictedMask
from .image import NO_BASE, NO_DIAL, GranularPredictor
from .image_files import as_rgb

_ENLARGED_PIXELS: Final = 2**25
"""Float32 pixels enlarged at once: 128 MB."""


@dataclass(frozen=True, kw_only=True)
class AutomaticConfig:
    """How an image is searched; SAM-2's names and, where it has them, its values."""

    granularities: tuple[float | None, ...] = GRANULARITIES
    """None: SAM-2's own three masks a point."""
    points_per_side: int = 32
    """Of the grid."""
    points_per_batch: int = 64
    """Prompts in one pass of the decoder. Less needs less memory."""
    pred_iou_thresh: float = 0.8
    """Masks with a lower predicted IoU are dropped."""
    stability_score_thresh: float = 0.95
    """So are those with a lower stability score."""
    stability_score_offset: float = 1.0
    """Stability is the IoU of the masks at logits above plus and minus this."""
    max_iou: float = 0.9
    """Two masks are one if their pixels' IoU is above this (the labels' own value)."""
    min_area_px: int = 16
    """On the image's grid; smaller masks are noise."""
    max_masks: int = 1000
    """The best by predicted IoU; benchmarks take 1000."""

    def __post_init__(self) -> None:
        if not self.granularities:
            raise InputError("granularities: expected at least one")
        if numbers := [each for each in self.granularities if each is not None]:
            granularity_values(numbers)
        for name in ("points_per_side", "points_per_batch", "max_masks"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)}: expected at least 1")
        for name in ("pred_iou_thresh", "stability_score_thresh", "max_iou"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InputError(f"{name} {getattr(self, name)}: expected a number in [0, 1]")

    def to_json(self) -> dict[str, object]:
        """As the JSON of `segment --everything` has it."""
        return {_JSON_NAMES.get(name, name): value for name, value in dataclasses.asdict(self).items()}


_JSON_NAMES: Final = {
    "pred_iou_thresh": "min_predicted_iou",
    "stability_score_thresh": "min_stability",
    "stability_score_offset": "stability_offset",
}
MICRO_CONFIG: Final = AutomaticConfig(points_per_side=16, pred_iou_thresh=0.25, stability_score_thresh=0.6)
"""A model of minutes of training expects IoUs of 0.2 to 0.5 of itself, and its 64 x 64 logits need no finer grid."""


def default_config(size: Size) -> AutomaticConfig:
    """SAM-2's thresholds for its sizes, lower ones for those that train from scratch."""
    return MICRO_CONFIG if size in SCRATCH_WIDTH else AutomaticConfig()


def point_grid(points_per_side: int, height: int, width: int) -> NDArray[np.float32]:
    """(n * n, 2) x, y in pixels: the centres of n x n equal cells, row by row."""
    steps = (np.arange(points_per_side) + 0.5) / points_per_side
    x, y = np.meshgrid(steps * width, steps * height)
    return np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)


@torch.no_grad()
def generate_masks(
    predictor: GranularPredictor,
    image: NDArray[np.uint8],
    config: AutomaticConfig,
    *,
    points: NDArray[np.float32] | None = None,
    on_prompts: Callable[[int], None] = lambda done: None,
) -> list[PredictedMask]:
    """The masks of an image, as a tree.

    Args:
        predictor: `image` is set in it, once.
        image: (H, W, 3) uint8 RGB.
        config: what is searched and kept.
        points: (N, 2) x, y in pixels; None: the configuration's grid.
        on_prompts: called with the prompts done so far, of N for each granularity.

    Returns:
        Trees by the area of their root, within a tree larger masks first; `parent_id` and `instance_id` are places in
        the list. Roots are the masks that no other holds.
    """
    predictor.set_image(image)
    height, width = image.shape[:2]
    grid = point_grid(config.points_per_side, height, width) if points is None else points
    candidates: list[PredictedMask] = []
    done = 0
    for granularity in config.granularities:
        batches = []
        for start in range(0, len(grid), config.points_per_batch):
            clicks = grid[start : start + config.points_per_batch]
            logits, score = predictor.predict_logits(clicks[:, None], None, granularity, multimask=True)
            each, own = logits.shape[1], predictor.own_iou
            dial = None if granularity is None else np.full(len(clicks) * each, granularity)
            batches.append(
                ConfidentMasks.of(
                    logits.flatten(0, 1),
                    score.flatten(),
                    np.repeat(clicks, each, axis=0),
                    dial,
                    config,
                    own=None if own is None else own.flatten(),
                )
            )
            done += len(clicks)
            on_prompts(done)
        candidates += distinct_of_pass(ConfidentMasks.together(batches), (height, width), config)
    return as_tree(ranked_masks(candidates, config, height * width))


@dataclass(frozen=True)
class ConfidentMasks:
    """Masks of one pass that the model is sure of.

    Attributes:
        logits: (M, h, w) in half precision.
        score: (M,) predicted IoU.
        stability: (M,).
        point: (M, 2) the click of each.
        granularity: (M,); None: SAM-2's own masks.
        own: (M,) the IoU predicted for the mask itself, where `score` is UnSAMv2's, which is not; else None.
    """

    logits: Tensor
    score: Tensor
    stability: Tensor
    point: NDArray[np.float32]
    granularity: NDArray[np.float64] | None
    own: Tensor | None = None

    @classmethod
    def of(
        cls,
        logits: Tensor,
        score: Tensor,
        point: NDArray[np.float32],
        granularity: NDArray[np.float64] | None,
        config: AutomaticConfig,
        *,
        own: Tensor | None = None,
    ) -> ConfidentMasks:
        """Of some masks, those that are not empty and meet both thresholds, in their order."""
        stability = stability_score(logits, config.stability_score_offset)
        sure = (score >= config.pred_iou_thresh) & (stability >= config.stability_score_thresh)
        chosen = torch.nonzero(sure & (logits > 0).flatten(1).any(dim=1))[:, 0]
        return cls(logits.half(), score, stability, point, granularity, own).rows(chosen)

    @classmethod
    def together(cls, batches: Sequence[ConfidentMasks]) -> ConfidentMasks:
        """Of all batches of a pass, which all have granularities or all none."""
        return cls(
            torch.cat([each.logits for each in batches]),
            torch.cat([each.score for each in batches]),
            torch.cat([each.stability for each in batches]),
            np.concatenate([each.point for each in batches]),
            None
            if batches[0].granularity is None
            else np.concatenate([each.granularity for each in batches if each.granularity is not None]),
            None if batches[0].own is None else torch.cat([each.own for each in batches if each.own is not None]),
        )

    def rows(self, chosen: Tensor) -> ConfidentMasks:
        """Those at some places."""
        places = chosen.cpu().numpy()
        return ConfidentMasks(
            self.logits[chosen], self.score[chosen], self.stability[chosen], self.point[places],
            None if self.granularity is None else self.granularity[places],
            None if self.own is None else self.own[chosen],
        )  # fmt: skip

    def best(self, count: int | None = None) -> ConfidentMasks:
        """By falling predicted IoU, at most `count`; equal ones in their order."""
        return self.rows(torch.argsort(self.score, descending=True, stable=True)[:count])

    def on_image_grid(self, size: tuple[int, int]) -> Iterator[NDArray[np.bool_]]:
        """Each mask as (H, W), enlarged some at a time."""
        step = max(1, _ENLARGED_PIXELS // (size[0] * size[1]))
        for start in range(0, len(self.score), step):
            some = self.logits[start : start + step, None].float()
            yield from (F.interpolate(some, size=size, mode="bilinear", align_corners=False)[:, 0] > 0).cpu().numpy()


def stability_score(logits_NHW: Tensor, offset: float) -> Tensor:
    """IoU of the masks above `+offset` and above `-offset`: (N,); 0 for an empty one."""
    high = (logits_NHW > offset).flatten(1).sum(dim=1)
    low = (logits_NHW > -offset).flatten(1).sum(dim=1)
    return high / low.clamp(min=1)


def distinct_of_pass(confident: ConfidentMasks, size: tuple[int, int], config: AutomaticConfig) -> list[PredictedMask]:
    """The masks of one pass without copies of each other (on the logits' grid), on the image's grid, best first."""
    ranked = confident.best()
    rows = (ranked.logits > 0).flatten(1).float()
    places = torch.from_numpy(suppress_duplicates(_intersections(rows), max_iou=config.max_iou))
    kept = ranked.rows(places.to(rows.device))
    found = []
    for place, mask in enumerate(kept.on_image_grid(size)):
        if mask.sum() >= config.min_area_px:
            x, y = kept.point[place].tolist()
            found.append(
                PredictedMask(
                    segmentation=rle_codec.encode(mask),
                    granularity=None if kept.granularity is None else float(kept.granularity[place]),
                    score=float(kept.score[place]),
                    stability=float(kept.stability[place]),
                    own_score=None if kept.own is None else float(kept.own[place]),
                    point=(x, y),
                )
            )
    return found


def ranked_masks(
    candidates: Sequence[PredictedMask], config: AutomaticConfig, image_area_px: int
) -> list[PredictedMask]:
    """What is kept of the masks of all passes, best first: without copies, without background, at most `max_masks`."""
    kept = distinct(candidates, config.max_iou)
    moderate = [each for each in kept if each.area_px <= MAX_IMAGE_FRACTION * image_area_px]
    return (moderate or kept[:1])[: config.max_masks]


def _intersections(rows_NP: Tensor) -> NDArray[np.int64]:
    """Shared pixels of each pair of 0/1 rows: exact, since a row has fewer than 2^24."""
    return (rows_NP @ rows_NP.T).round().long().cpu().numpy()


def distinct(found: Sequence[PredictedMask], max_iou: float) -> list[PredictedMask]:
    """Without near-copies by pixels, best first: by predicted IoU, then area, then RLE."""
    ranked = sorted(found, key=lambda each: (-each.score, -each.area_px, each.segmentation["counts"]))
    return [
        ranked[index] for index in rle_codec.without_copies([each.segmentation for each in ranked], max_iou=max_iou)
    ]


def as_tree(found: Sequence[PredictedMask]) -> list[PredictedMask]:
    """Orders masks by tree and fills in `parent_id` and `instance_id`; see `generate_masks`."""
    by_area = sorted(found, key=lambda each: (-each.area_px, -each.score, each.segmentation["counts"]))
    inside = contained_fraction(rle_codec.pairwise_intersection_px([each.segmentation for each in by_area]))
    parent: list[int | None] = []
    root: list[int] = []
    for place in range(len(by_area)):
        holders = np.flatnonzero(inside[place, :place] >= CONTAINED_FRACTION)
        parent.append(int(holders[-1]) if holders.size else None)
        root.append(root[int(holders[-1])] if holders.size else place)
    order = sorted(range(len(by_area)), key=lambda place: (root[place], place))
    new = {place: number for number, place in enumerate(order)}
    return [
        dataclasses.replace(by_area[place], parent_id=_renamed(new, parent[place]), instance_id=new[root[place]])
        for place in order
    ]


def _renamed(new: dict[int, int], place: int | None) -> int | None:
    return None if place is None else new[place]


def depths(found: Sequence[PredictedMask]) -> list[int]:
    """Of each mask in its tree, 0 for a root."""
    depth: list[int] = []
    for each in found:
        depth.append(0 if each.parent_id is None else depth[each.parent_id] + 1)
    return depth


OUTPUT_MODES: Final = ("binary_mask", "uncompressed_rle", "coco_rle")


class UncompressedRle(TypedDict):
    """As sam2 writes it: the numbers of pixels outside and inside in turn, column by column."""

    size: list[int]
    """[height, width]."""
    counts: list[int]


Segmentation = NDArray[np.bool_] | Rle | UncompressedRle


class GeneratedMask(TypedDict):
    """A mask of `GranularMaskGenerator.generate`, which says more: sam2's fields, and those of the tree."""

    segmentation: Segmentation
    area: int
    bbox: list[float]
    predicted_iou: float
    point_coords: list[list[float]]
    stability_score: float | None
    crop_box: list[float]
    granularity: float | None
    parent_id: NotRequired[int | None]
    instance_id: NotRequired[int | None]
    own_predicted_iou: NotRequired[float]


class GranularMaskGenerator:
    """`SAM2AutomaticMaskGenerator` with a granularity.

    Without one, sam2's own generator runs on SAM-2's own masks, with all its options. With one or more, the image is
    searched as `grainmill segment --everything` does: copies are told by their pixels, not by their boxes, and the
    masks are a tree. Options of the other search are refused then.

    Arguments before the star are SAM-2's, in its order.

    Args:
        model: in evaluation mode, on its device.
        points_per_side: of the grid; None with `point_grids`.
        points_per_batch: clicks in one pass of the decoder.
        pred_iou_thresh: masks with a lower predicted IoU are dropped.
        stability_score_thresh: so are those with a lower stability score.
        stability_score_offset: the threshold is shifted by this for it.
        mask_threshold: only without a granularity.
        box_nms_thresh: likewise; None: sam2's 0.7.
        crop_n_layers: likewise.
        crop_nms_thresh: likewise.
        crop_overlap_ratio: likewise.
        crop_n_points_downscale_factor: likewise.
        point_grids: (N, 2) points in [0, 1] instead of a grid, one array for each layer of crops.
        min_mask_region_area: only without a granularity; sam2's own code needs its CUDA extension for it.
        output_mode: `binary_mask`, `uncompressed_rle` or `coco_rle`.
        use_m2m: only without a granularity.
        multimask_output: three masks a click; with a granularity there is one, whatever this says.
        granularity: None, a number in [0.1, 1.0], or several, whose masks are pooled.

    Raises:
        InputError: an option that does not go with a granularity, weights that know none, a value out of range.
    """

    def __init__(
        self,
        model: GranularSam2,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.8,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        mask_threshold: float = 0.0,
        box_nms_thresh: float | None = None,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: Sequence[NDArray[np.float32 | np.float64]] | None = None,
        min_mask_region_area: int = 0,
        output_mode: str = "binary_mask",
        use_m2m: bool = False,
        multimask_output: bool = True,
        *,
        granularity: float | Sequence[float] | None = None,
    ) -> None:
        if output_mode not in OUTPUT_MODES:
            raise InputError(f"output_mode {output_mode}: expected one of {', '.join(OUTPUT_MODES)}")
        if (points_per_side is None) == (point_grids is None):
            raise InputError("expected points_per_side or point_grids, and the other one None")
        if points_per_side is not None and points_per_side < 1:
            raise InputError(f"points_per_side {points_per_side}: expected 1 or more")
        if point_grids is not None and not (len(point_grids) and all(len(grid) for grid in point_grids)):
            raise InputError("point_grids: expected grids of at least one point, found none")
        if granularity is None and not model.has_base:
            raise InputError(f"granularity: {NO_BASE}")
        self.output_mode = output_mode
        self.predictor = GranularPredictor(model)
        self._point_grids = point_grids
        self._own: Any = None
        if granularity is None:
            self._own = _sam2_generator(
                model,
                points_per_side=points_per_side,
                points_per_batch=points_per_batch,
                pred_iou_thresh=pred_iou_thresh,
                stability_score_thresh=stability_score_thresh,
                stability_score_offset=stability_score_offset,
                mask_threshold=mask_threshold,
                box_nms_thresh=0.7 if box_nms_thresh is None else box_nms_thresh,
                crop_n_layers=crop_n_layers,
                crop_nms_thresh=crop_nms_thresh,
                crop_overlap_ratio=crop_overlap_ratio,
                crop_n_points_downscale_factor=crop_n_points_downscale_factor,
                point_grids=point_grids,
                min_mask_region_area=min_mask_region_area,
                use_m2m=use_m2m,
                multimask_output=multimask_output,
            )
            return
        if not model.has_dial:
            raise InputError(f"granularity: {NO_DIAL}")
        refused: dict[str, bool] = {
            "mask_threshold": mask_threshold != 0.0,
            "box_nms_thresh": box_nms_thresh is not None,
            "crop_n_layers": crop_n_layers != 0,
            "min_mask_region_area": min_mask_region_area != 0,
            "use_m2m": bool(use_m2m),
        }
        if given := [name for name, stated in refused.items() if stated]:
            raise InputError(f"{', '.join(given)}: only without a granularity, where sam2's own generator searches")
        self.config = AutomaticConfig(
            granularities=tuple(granularity_values(granularity).tolist()),
            points_per_side=points_per_side or 1,
            points_per_batch=points_per_batch,
            pred_iou_thresh=pred_iou_thresh,
            stability_score_thresh=stability_score_thresh,
            stability_score_offset=stability_score_offset,
        )

    def generate(self, image: NDArray[np.uint8]) -> list[GeneratedMask]:
        """The masks of an image.

        Args:
            image: (H, W, 3) uint8 RGB.

        Returns:
            For each mask `segmentation` ((H, W) bool, or run lengths as `output_mode` says), `area` in pixels, `bbox`
            and `crop_box` (x, y, width, height), `predicted_iou`, `stability_score`, `point_coords` [[x, y]] and
            `granularity`; with a granularity also `parent_id` and `instance_id`, places in the list (None: no parent);
            of UnSAMv2's own weights also `own_predicted_iou`, the IoU predicted for the mask itself, while
            `predicted_iou`, by which masks are kept and ranked, is as their code returns it.

        Raises:
            InputError: no RGB image.
        """
        rgb = as_rgb(image, "generate")
        if self._own is not None:
            own: list[GeneratedMask] = self._own.generate(rgb)
            return [
                {**each, "segmentation": self._form(cast(UncompressedRle, each["segmentation"])), "granularity": None}
                for each in own
            ]
        height, width = rgb.shape[:2]
        scale = np.array([width, height])
        points = None if self._point_grids is None else (self._point_grids[0] * scale).astype(np.float32)
        made: list[GeneratedMask] = []
        for each in generate_masks(self.predictor, rgb, self.config, points=points):
            made.append(
                {
                    "segmentation": self._form(_uncompressed(each)),
                    "area": each.area_px,
                    "bbox": [float(value) for value in each.to_json(0)["bbox"]],
                    "predicted_iou": each.score,
                    "point_coords": [list(each.point or ())],
                    "stability_score": each.stability,
                    "crop_box": [0.0, 0.0, float(width), float(height)],
                    "granularity": each.granularity,
                    "parent_id": each.parent_id,
                    "instance_id": each.instance_id,
                }
            )
            if each.own_score is not None:
                made[-1]["own_predicted_iou"] = each.own_score
        return made

    def _form(self, mask: UncompressedRle) -> Segmentation:
        """Uncompressed run lengths as `output_mode` wants them."""
        if self.output_mode == "uncompressed_rle":
            return mask
        height, width = mask["size"]
        compressed = rle_codec.from_run_lengths(np.array(mask["counts"], dtype=np.int64), height, width)
        return compressed if self.output_mode == "coco_rle" else rle_codec.decode(compressed)


def _uncompressed(mask: PredictedMask) -> UncompressedRle:
    return {"size": list(mask.segmentation["size"]), "counts": rle_codec.run_lengths_of(mask.segmentation).tolist()}


def _sam2_generator(model: GranularSam2, **options: Any) -> Any:
    """sam2's own generator on the model's base, which may have another input size than 1024."""
    with scripted_transforms():
        from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator

        generator = SAM2AutomaticMaskGenerator(model.base, **options, output_mode="uncompressed_rle")
    generator.predictor._bb_feat_sizes = sam2_feature_sizes(model.image_size)
    return generator
