"""Candidate masks from patch grids (recipe `unsamv2`): normalised cuts, then merging within each instance's crop.

Normalised cuts of the image's patch features give detections; the largest that are no copies and lie in no other are
the instances. Each instance's crop gets patch features of its own, and clusters of its patches, merged through falling
cosine thresholds, are the instance's parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..environment.stage_seconds import StageSeconds
from ..format.rle import run_lengths_of
from ..format.schema import CONTAINED_FRACTION, MAX_IMAGE_FRACTION, ORIGINS, Origin
from .atoms import (
    BoxMask,
    contained_fraction,
    cut_atoms,
    enlarged,
    enlargement,
    intersection_px,
    sampled,
    suppress_duplicates,
)
from .config import MineConfig, RefineConfig
from .given import GivenMask
from .hierarchy import Candidates
from .regions import PatchGrid, Rgb
from .stages.backbone_features import squashed
from .stages.maskcut import mask_cut, remainder_regions
from .stages.merge_patches import clusters_of, merge_patches
from .stages.refine import EdgeGuide


@dataclass(frozen=True)
class Detection:
    """A mask that may be an instance, on the grid at which the image is mined."""

    mask: BoxMask
    origin: Origin
    score: float | None


@dataclass(frozen=True)
class Part:
    """A cluster of patches of an instance's crop, on the grid at which the image is mined."""

    mask: BoxMask
    level: int
    """Index of the threshold at which it appeared."""
    similarity: float
    """Cosine at which it was made."""


@dataclass(frozen=True)
class CropFeatures:
    """How patch features of crops are computed."""

    patch_px: int
    compute: Callable[[Sequence[Rgb]], list[PatchGrid]]
    """Crops of one size, (H, W, 3) uint8, sides of whole patches -> (H / patch_px, W / patch_px, d) float32 each."""


def patch_candidates(
    full: Rgb,
    rgb: Rgb,
    grid: PatchGrid,
    given: Sequence[GivenMask],
    config: MineConfig,
    crop_features: CropFeatures,
    *,
    find_instances: bool,
    seconds: StageSeconds,
) -> Candidates:
    """Candidates of one image: detections first, then the parts of every instance.

    Masks that are given join the candidates later, on a finer grid; here they only say what is merged.

    Args:
        full: (H, W, 3) uint8, the image at full size.
        rgb: (h, w, 3) uint8, at the size at which it is mined.
        grid: (h', w', d) patch features of the whole image.
        given: masks from outside.
        config: of the run.
        crop_features: for the instances' crops.
        find_instances: whether instances are found in the image itself; False where a file names them.
        seconds: the time of each stage is added.
    """
    height, width = rgb.shape[:2]
    detected: list[Detection] = []
    with seconds.timed("divide"):
        if find_instances:
            detected = _cut_detections(grid, height, width, config)
    with seconds.timed("refine"):
        if detected and config.refine.method == "guided":
            # Of a detection whose refined mask strays too far, the mask it had stays.
            guide = EdgeGuide(rgb, radius_px=round(max(height / grid.shape[0], width / grid.shape[1]) / 2))
            detected = [replace(each, mask=guide.refine(each.mask, config.refine).mask) for each in detected]
    with seconds.timed("divide"):
        outside = [
            Detection(sampled(run_lengths_of(each.rle), full.shape[:2], (height, width)), each.origin, each.score)
            for each in given
        ]
        instances = _instances([*detected, *outside], height, width, config)
    with seconds.timed("features"):
        grids = _crop_grids(instances, full, rgb, crop_features, config.features.crop_patches)
    parts: list[Part] = []
    for instance, crop_grid in zip(instances, grids, strict=True):
        with seconds.timed("conquer"):
            clusters = _clusters(instance, crop_grid, config)
        with seconds.timed("refine"):
            cell_px = max(np.divide(instance.inside.shape, crop_grid.shape[:2]))
            parts += _refined_parts(clusters, instance, rgb, cell_px, config.refine)
    with seconds.timed("conquer"):
        if len(parts) > config.tree.max_masks:
            parts = sorted(parts, key=lambda part: -part.mask.area_px)[: config.tree.max_masks]
        boxes = [each.mask for each in detected] + [each.mask for each in parts]
        atoms, members, _ = cut_atoms(np.zeros((height, width), dtype=np.int32), boxes)
        large = config.divide.min_area_fraction * height * width
        merged: list[Origin] = ["conquer"] * len(parts)
        return Candidates(
            atoms=atoms,
            members=members,
            origin=[*(each.origin for each in detected), *merged],
            score=np.array([np.nan] * len(detected) + [each.similarity for each in parts], dtype=np.float64),
            level=[None] * len(detected) + [each.level for each in parts],
            may_be_instance=np.array(
                [each.mask.area_px > large for each in detected] + [False] * len(parts), dtype=np.bool_
            ),
        )


def _cut_detections(grid: PatchGrid, height: int, width: int, config: MineConfig) -> list[Detection]:
    """Objects of normalised cuts and, if wanted, regions of what they left."""
    divide = config.divide
    cuts = mask_cut(grid, divide, seed=config.seed)
    found: list[tuple[NDArray[np.bool_], Origin]] = [(np.asarray(each), "divide") for each in cuts]
    if divide.remainder:
        claimed = np.asarray(cuts.any(axis=0))
        unclaimed = np.where(claimed[..., None], np.float32(0), grid)
        tree = merge_patches(unclaimed, min_similarity=divide.remainder_similarity)
        smallest = int(np.ceil(divide.min_area_fraction * claimed.size))
        found += [(np.asarray(each), "remainder") for each in remainder_regions(tree, claimed, min_patches=smallest)]
    return [Detection(BoxMask.of(enlarged(each, height, width)), origin, None) for each, origin in found]


def _instances(detections: Sequence[Detection], height: int, width: int, config: MineConfig) -> list[BoxMask]:
    """Which detections are instances: large enough, no copy of a better one, inside no other one."""
    pixels = height * width
    smallest = config.divide.min_area_fraction * pixels
    candidates = [each for each in detections if smallest < each.mask.area_px <= MAX_IMAGE_FRACTION * pixels]
    candidates.sort(key=lambda each: (ORIGINS.index(each.origin), -(each.score or 0.0), -each.mask.area_px))
    if not candidates:
        return []
    masks = [each.mask for each in candidates]
    atoms, members, _ = cut_atoms(np.zeros((height, width), dtype=np.int32), masks)
    kept = suppress_duplicates(intersection_px(members, atoms.area_px), max_iou=config.tree.duplicate_iou)
    inside = contained_fraction(intersection_px(members[kept], atoms.area_px)) >= CONTAINED_FRACTION
    area = members[kept].astype(np.float64) @ atoms.area_px
    inside &= area[None, :] > area[:, None]  # of two that hold each other, the larger one holds
    return [masks[kept[place]] for place in np.flatnonzero(~inside.any(axis=1))]


def _crop_grids(
    instances: Sequence[BoxMask], full: Rgb, rgb: Rgb, features: CropFeatures, crop_patches: int
) -> list[PatchGrid]:
    """Patch features of each instance's box, the longer side `crop_patches` patches, from the full-size image."""
    crops = []
    for instance in instances:
        rows = _spread(instance.top, instance.bottom, rgb.shape[0], full.shape[0])
        columns = _spread(instance.left, instance.right, rgb.shape[1], full.shape[1])
        crop = full[rows, columns]
        cell = max(crop.shape[:2]) / crop_patches
        height, width = (int(np.ceil(side / cell - 1e-9)) * features.patch_px for side in crop.shape[:2])
        crops.append(squashed(crop, height, width))
    grids: dict[int, PatchGrid] = {}
    for shape in sorted({crop.shape for crop in crops}):
        places = [place for place, crop in enumerate(crops) if crop.shape == shape]
        grids |= zip(places, features.compute([crops[place] for place in places]), strict=True)
    return [grids[place] for place in range(len(crops))]


def _spread(first: int, after: int, small: int, full: int) -> slice:
    """The rows of the full-size image that a range of rows of the reduced one stands for."""
    return slice(first * full // small, max(-(-after * full // small), first * full // small + 1))


def _clusters(instance: BoxMask, grid: PatchGrid, config: MineConfig) -> list[Part]:
    """What merging found in an instance's box and what lies in the instance, not clipped yet; no copies."""
    conquer = config.conquer
    tree = merge_patches(grid, min_similarity=conquer.thresholds[-1])
    clusters = clusters_of(tree, conquer.thresholds, min_patches=conquer.min_patches)
    order = np.lexsort((-clusters.members.sum(axis=1), -clusters.similarity))
    shared = intersection_px(clusters.members[order], np.ones(tree.leaves, dtype=np.int64))
    order = order[suppress_duplicates(shared, max_iou=config.tree.duplicate_iou)]
    rows, columns = (enlargement(side, full) for side, full in zip(grid.shape[:2], instance.inside.shape, strict=True))
    found = []
    for place in order:
        cells = BoxMask.of(clusters.members[place].reshape(grid.shape[:2]))
        first, after = np.searchsorted(rows, [cells.top, cells.bottom])
        left, right = np.searchsorted(columns, [cells.left, cells.right])
        mask = cells.inside[np.ix_(rows[first:after] - cells.top, columns[left:right] - cells.left)]
        if (mask & instance.inside[first:after, left:right]).sum() > conquer.min_coverage * mask.sum():
            box = BoxMask.of(mask, top=instance.top + int(first), left=instance.left + int(left))
            found.append(Part(box, int(clusters.level[place]), float(clusters.similarity[place])))
    return found


def _refined_parts(
    clusters: Sequence[Part], instance: BoxMask, rgb: Rgb, cell_px: float, config: RefineConfig
) -> list[Part]:
    """Clusters at the image's edges and clipped to their instance; one that dissolves goes."""
    guide = None
    if clusters and config.method == "guided":
        crop = rgb[instance.top : instance.bottom, instance.left : instance.right]
        guide = EdgeGuide(crop, radius_px=round(cell_px / 2))
    parts = []
    for cluster in clusters:
        inner = replace(cluster.mask, top=cluster.mask.top - instance.top, left=cluster.mask.left - instance.left)
        if guide is not None:
            refined = guide.refine(inner, config)
            if not refined.accepted:
                continue
            inner = refined.mask
        place = (slice(inner.top, inner.bottom), slice(inner.left, inner.right))
        clipped = BoxMask.of(
            inner.inside & instance.inside[place], top=instance.top + inner.top, left=instance.left + inner.left
        )
        if clipped.area_px > 0:
            parts.append(replace(cluster, mask=clipped))
    return parts
