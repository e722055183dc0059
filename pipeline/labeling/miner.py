"""The mill: photographs in, granularity masks out. The five stages from top to bottom, for one image at a time.

`Mill.mine` is a pure function of images, configuration and weights: nothing else in the process changes its output.

On **leaves** (recipes `default`, `leaves`) the graph is that of the image's watershed leaves; trees of the whole image
give wholes and parts. A backbone's features join the merge cost. On **patches** (recipe `unsamv2`) normalised cuts of a
patch grid give wholes, and each whole's crop is merged patch by patch. Either way detections may come from a file
instead (`proposals`) or besides from the sample itself (`union`), and one function makes the tree of instances and
parts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from ..environment.timm_weights import file_sha256, locate_checkpoint, split_backbone
from ..errors import InputError, SampleFailureError
from ..format import rle as rle_codec
from ..format.rle import Rle, runs_of
from ..format.schema import CONTAINED_FRACTION, MAX_IMAGE_FRACTION, ORIGINS, Annotation, Origin
from ..sources.passed_over import PassedOver
from ..sources.proposals import Proposals
from .atoms import BoxMask, contained_fraction, cut_atoms, enlargement, intersection_px, sampled, suppress_duplicates
from .config import DivideConfig, MineConfig
from .hierarchy import Candidates, build_forest
from .stages import backbone_features as backbones
from .stages.candidates import pool_trees
from .stages.instances import choose_wholes
from .stages.maskcut import as_masks, mask_cut, remainder_regions
from .stages.merge_patches import clusters_of, merge_patches
from .stages.merge_regions import conquer
from .stages.refine import EdgeGuide
from .stages.region_adjacency import build_leaf_graph
from .stages.texture_features import describe, patch_features, region_channels, region_histograms

Rgb = NDArray[np.uint8]
PatchGrid = NDArray[np.float32]

_CONQUERED: Final[Origin] = "conquer"
PROPOSAL_RADIUS_PX: Final = 4
"""Of the guided filter for proposals: about what the mask of a detector's head is coarse by."""


@dataclass(frozen=True)
class ImageInput:
    """One decoded sample.

    Attributes:
        rgb: (H, W, 3) uint8, upright.
        source_uri: LABEL/relative/path.
        member: inside a tar or a table, else None.
        annotations: the sample's own masks (SA-1B), for `--divide union`.
    """

    rgb: Rgb
    source_uri: str
    member: str | None
    annotations: tuple[Rle, ...] = ()


@dataclass(frozen=True)
class MinedImage:
    """Masks of one image, and the seconds that each stage took."""

    annotations: tuple[Annotation, ...]
    seconds: dict[str, float]
    passed_over: dict[str, Any] = field(default_factory=dict)
    """Of what was given for this image and not used (see `sources/passed_over.py`)."""


@dataclass(frozen=True)
class BatchFeatures:
    """Of one image of a batch: (h, w, d) patch features, None where the mill needs none, and its share of the time."""

    grid: PatchGrid | None
    seconds: float


@dataclass(frozen=True)
class _Given:
    """A mask from outside, at the image's own size."""

    rle: Rle
    origin: Origin
    score: float | None


@dataclass(frozen=True)
class _Detection:
    """A mask that may be a whole, on the grid at which the image is mined."""

    mask: BoxMask
    origin: Origin
    score: float | None


class Mill:
    """Holds the weights; mines batches.

    Example:
        >>> mill = Mill(MineConfig())
        >>> mined = mill.mine([ImageInput(rgb=rgb, source_uri="a/b.png", member=None)])[0]  # doctest: +SKIP

    Args:
        config: everything that changes labels.
        device: torch device of the backbone; None lets it choose. The descriptor runs on the CPU.
        batch_size: images that share one pass of the backbone; None lets it choose. The descriptor has no batches.
        checkpoint: file of the backbone's weights, with the sha256 that the configuration names.
        proposals: of `--divide proposals` and `union`.
    """

    def __init__(
        self,
        config: MineConfig,
        *,
        device: str | None = None,
        batch_size: int | None = None,
        checkpoint: str | Path | None = None,
        proposals: Proposals | None = None,
    ) -> None:
        cv2.setNumThreads(1)
        self.config, self._proposals = config, proposals
        self._backbone = None
        self._one_at_a_time = threading.Lock()
        if config.features.backbone != "descriptor":
            self._backbone = load_backbone(config, checkpoint, device=device, batch_size=batch_size)
        self.batch_size = batch_size or (1 if self._backbone is None else self._backbone.batch_size)

    def environment(self) -> dict[str, Any]:
        """What of the numeric environment only the mill knows: nothing without a backbone."""
        if self._backbone is None:
            return {}
        return {"precision": str(self._backbone.precision), "batch_size": self._backbone.batch_size}

    def warm_up(self) -> None:
        """Compiles and loads what the first image would pay for."""
        rng = np.random.default_rng(0)
        speckled = ImageInput(
            rgb=rng.integers(0, 256, size=(48, 64, 3), dtype=np.uint8), source_uri="warm-up", member=None
        )
        [mined] = self.features([speckled])
        if mined.grid is not None:
            # Features that surely show an object with parts, whatever the backbone says of speckles.
            rows, columns, depth = mined.grid.shape
            inside = np.zeros((rows, columns, 1), dtype=bool)
            inside[rows // 4 : 3 * rows // 4, columns // 4 : 3 * columns // 4] = True
            direction = rng.standard_normal(depth)
            grid = np.where(inside, direction, -direction) + 0.1 * rng.standard_normal(mined.grid.shape)
            mined = replace(mined, grid=grid.astype(np.float32))
        self.finish(speckled, mined)

    def mine(self, batch: Sequence[ImageInput]) -> list[MinedImage | SampleFailureError]:
        """Mines some images; each answer stands at its image's place.

        An image without any mask is the failure `no_masks`.
        """
        return [self.finish(image, features) for image, features in zip(batch, self.features(batch), strict=True)]

    def features(self, batch: Sequence[ImageInput]) -> list[BatchFeatures]:
        """The first half of `mine`: what is computed for a batch at once, on a GPU where there is one."""
        began_s = time.perf_counter()
        grids: Sequence[PatchGrid | None] = [None] * len(batch)
        if batch and (self._backbone is not None or self.config.conquer.graph == "patches"):
            side = backbones.nearest_multiple(self.config.features.side_px, self._patch_px)
            grids = self._patches([backbones.squashed(image.rgb, side, side) for image in batch], fixed=True)
        each_s = (time.perf_counter() - began_s) / max(len(batch), 1)
        return [BatchFeatures(grid, each_s) for grid in grids]

    def finish(self, image: ImageInput, features: BatchFeatures) -> MinedImage | SampleFailureError:
        """The second half, of one image: everything else. Several threads may be in it."""
        try:
            return self._mine_one(image, features.grid, _Clock({"features": features.seconds}))
        except SampleFailureError as error:
            return error

    def _mine_one(self, image: ImageInput, grid: PatchGrid | None, clock: _Clock) -> MinedImage:
        height, width = image.rgb.shape[:2]
        passed = PassedOver()
        with clock("divide"):
            given = self._given(image, passed)
        rgb = reduced(image.rgb, self.config.features.max_side_px)
        if self.config.conquer.graph == "patches":
            assert grid is not None
            candidates = self._patch_candidates(image.rgb, rgb, grid, given, clock)
        else:
            candidates = self._leaf_candidates(rgb, grid, given, clock)
        with clock("granularity"):
            if given:
                candidates = with_given(candidates, given, height, width, self.config.divide)
            annotations = build_forest(
                replace(candidates, atoms=candidates.atoms.at_size(height, width)),
                height=height,
                width=width,
                tree=self.config.tree,
                granularity=self.config.granularity,
            )
        if not annotations:
            raise SampleFailureError("no_masks", "granularity", "no region stands out from the image")
        return MinedImage(annotations=annotations, seconds=clock.seconds, passed_over=passed.to_json())

    # -----------------------------------------------------------------------------------------------------------------
    # Detections from outside

    def _given(self, image: ImageInput, passed: PassedOver) -> list[_Given]:
        """Proposals of the file and annotations of the sample, as the configuration wants them."""
        method, given = self.config.divide.method, []
        if method != "maskcut" and self._proposals is not None:
            found = self._proposals.of(
                image.source_uri,
                image.member,
                height=image.rgb.shape[0],
                width=image.rgb.shape[1],
                min_score=self.config.divide.min_proposal_score,
                passed=passed,
            )
            given += [_Given(each.rle, "proposal", each.score) for each in found]
            if self.config.refine.method == "guided" and given:
                given = self._sharpened(image.rgb, given)
        if method == "union":
            given += [_Given(each, "annotation", None) for each in image.annotations]
        return given

    def _sharpened(self, rgb: Rgb, given: Sequence[_Given]) -> list[_Given]:
        """Proposals at the image's edges; one whose refined mask strays keeps its own."""
        height, width = rgb.shape[:2]
        if max(height, width) > self.config.features.max_side_px:
            return list(given)  # a detector's grid is finer than that of a reduced image
        guide = EdgeGuide(rgb, radius_px=PROPOSAL_RADIUS_PX)
        sharp = []
        for each in given:
            refined = guide.refine(BoxMask.of(rle_codec.decode(each.rle)), self.config.refine)
            sharp.append(replace(each, rle=rle_codec.encode(refined.mask.full(height, width))))
        return sharp

    @property
    def _mines_wholes(self) -> bool:
        """Whether wholes are found in the image itself: not where a file names them."""
        method = self.config.divide.method
        return method == "maskcut" or (method == "union" and self._proposals is None)

    # -----------------------------------------------------------------------------------------------------------------
    # On leaves

    def _leaf_candidates(self, rgb: Rgb, grid: PatchGrid | None, given: Sequence[_Given], clock: _Clock) -> Candidates:
        """Leaves, graph, trees, wholes, pool."""
        config = self.config
        with clock("features"):
            view = describe(rgb, config.features, seed=config.seed)
            bins = config.features.region_bins
            histograms = region_histograms(view.lab, view.textons, view.leaves, bins)
            pooled = None if grid is None else backbones.pooled_on_leaves(grid, view.leaves)
            graph = build_leaf_graph(
                view.leaves, view.edge, view.edge_texture, histograms, region_channels(bins), pooled
            )
        with clock("conquer"):
            trees = [conquer(graph, cost) for cost in config.conquer.costs]
            pool = pool_trees(trees, graph, config.conquer.pool)
        with clock("divide"):
            wholes = np.zeros(0, dtype=np.int64)
            if self._mines_wholes:
                wholes = choose_wholes(trees[0], graph.area_px, config.divide)
        parts = min(config.tree.max_masks, len(pool.level))
        origin: list[Origin] = ["divide"] * len(wholes)
        kept: list[Origin] = ["conquer"] * parts
        return Candidates(
            atoms=view.leaves,
            members=np.concatenate([trees[0].members(wholes), pool.members[:parts]]),
            origin=[*origin, *kept],
            score=np.concatenate([np.full(len(wholes), np.nan), 1.0 - np.arange(parts) / max(len(pool.level), 1)]),
            level=[None] * len(wholes) + [None if each < 0 else int(each) for each in pool.level[:parts]],
            is_whole=np.arange(len(wholes) + parts) < len(wholes),
        )

    # -----------------------------------------------------------------------------------------------------------------
    # On patches

    @property
    def _patch_px(self) -> int:
        return self.config.features.descriptor_patch_px if self._backbone is None else self._backbone.patch_px

    def _patches(self, images: Sequence[Rgb], *, fixed: bool) -> list[PatchGrid]:
        """Patch features of images of one size."""
        if self._backbone is not None:
            with self._one_at_a_time:
                return self._backbone(images, fixed_batch=fixed)
        return [patch_features(each, self.config.features, seed=self.config.seed) for each in images]

    def _patch_candidates(
        self, full: Rgb, rgb: Rgb, grid: PatchGrid, given: Sequence[_Given], clock: _Clock
    ) -> Candidates:
        """Cuts of the grid; then each whole's crop is merged patch by patch.

        Masks that are given join the candidates later, on a finer grid; here they only say what is merged.
        """
        height, width = rgb.shape[:2]
        with clock("divide"):
            mined = self._cut_detections(grid, height, width) if self._mines_wholes else []
        with clock("refine"):
            if mined and self.config.refine.method == "guided":
                # Of an instance whose refined mask strays too far, the mask it had stays.
                guide = EdgeGuide(rgb, radius_px=round(max(height / grid.shape[0], width / grid.shape[1]) / 2))
                mined = [replace(each, mask=guide.refine(each.mask, self.config.refine).mask) for each in mined]
        with clock("divide"):
            outside = [
                _Detection(sampled(runs_of(each.rle), full.shape[:2], (height, width)), each.origin, each.score)
                for each in given
            ]
            wholes = self._wholes([*mined, *outside], height, width)
        parts = self._parts_of(wholes, full, rgb, clock)
        with clock("conquer"):
            boxes = [each.mask for each in mined] + [mask for mask, _, _ in parts]
            atoms, members, _ = cut_atoms(np.zeros((height, width), dtype=np.int32), boxes)
            large = self.config.divide.min_area_fraction * height * width
            return Candidates(
                atoms=atoms,
                members=members,
                origin=[*(each.origin for each in mined), *(_CONQUERED for _ in parts)],
                score=np.array([np.nan] * len(mined) + [similarity for _, _, similarity in parts], dtype=np.float64),
                level=[None] * len(mined) + [level for _, level, _ in parts],
                is_whole=np.array([each.mask.area_px > large for each in mined] + [False] * len(parts), dtype=np.bool_),
            )

    def _cut_detections(self, grid: PatchGrid, height: int, width: int) -> list[_Detection]:
        """Objects of normalised cuts and, if wanted, regions of what they left."""
        divide = self.config.divide
        cuts = mask_cut(grid, divide, seed=self.config.seed)
        found: list[tuple[NDArray[np.bool_], Origin]] = [(np.asarray(each), "divide") for each in cuts]
        if divide.remainder:
            claimed = np.asarray(cuts.any(axis=0))
            unclaimed = np.where(claimed[..., None], np.float32(0), grid)
            tree = merge_patches(unclaimed, min_similarity=divide.remainder_similarity)
            smallest = int(np.ceil(divide.min_area_fraction * claimed.size))
            found += [
                (np.asarray(each), "remainder") for each in remainder_regions(tree, claimed, min_patches=smallest)
            ]
        return [_Detection(BoxMask.of(as_masks(each[None], height, width)[0]), origin, None) for each, origin in found]

    def _wholes(self, detections: Sequence[_Detection], height: int, width: int) -> list[BoxMask]:
        """Which detections are instances: large enough, no copy of a better one, inside no other one."""
        tree, pixels = self.config.tree, height * width
        smallest = self.config.divide.min_area_fraction * pixels
        candidates = [each for each in detections if smallest < each.mask.area_px <= MAX_IMAGE_FRACTION * pixels]
        candidates.sort(key=lambda each: (ORIGINS.index(each.origin), -(each.score or 0.0), -each.mask.area_px))
        if not candidates:
            return []
        masks = [each.mask for each in candidates]
        atoms, members, _ = cut_atoms(np.zeros((height, width), dtype=np.int32), masks)
        kept = suppress_duplicates(intersection_px(members, atoms.area_px), max_iou=tree.duplicate_iou)
        inside = contained_fraction(intersection_px(members[kept], atoms.area_px)) >= CONTAINED_FRACTION
        area = members[kept].astype(np.float64) @ atoms.area_px
        inside &= area[None, :] > area[:, None]  # of two that hold each other, the larger one holds
        return [masks[kept[place]] for place in np.flatnonzero(~inside.any(axis=1))]

    def _parts_of(
        self, wholes: Sequence[BoxMask], full: Rgb, rgb: Rgb, clock: _Clock
    ) -> list[tuple[BoxMask, int, float]]:
        """Clusters of each whole's crop: mask, level, cosine; clipped to the whole."""
        parts: list[tuple[BoxMask, int, float]] = []
        with clock("features"):
            grids = self._crop_grids(wholes, full, rgb)
        for whole, grid in zip(wholes, grids, strict=True):
            with clock("conquer"):
                clusters = self._clusters(whole, grid)
            with clock("refine"):
                parts += self._refined_parts(clusters, whole, rgb, max(np.divide(whole.inside.shape, grid.shape[:2])))
        most = self.config.tree.max_masks
        return sorted(parts, key=lambda part: -part[0].area_px)[:most] if len(parts) > most else parts

    def _crop_grids(self, wholes: Sequence[BoxMask], full: Rgb, rgb: Rgb) -> list[PatchGrid]:
        """Patch features of each whole's box, the longer side `crop_patches` patches, from the full-size image."""
        crops = []
        for whole in wholes:
            rows = _spread(whole.top, whole.bottom, rgb.shape[0], full.shape[0])
            columns = _spread(whole.left, whole.right, rgb.shape[1], full.shape[1])
            crop = full[rows, columns]
            cell = max(crop.shape[:2]) / self.config.features.crop_patches
            height, width = (int(np.ceil(side / cell - 1e-9)) * self._patch_px for side in crop.shape[:2])
            crops.append(backbones.squashed(crop, height, width))
        grids: dict[int, PatchGrid] = {}
        for shape in sorted({crop.shape for crop in crops}):
            places = [place for place, crop in enumerate(crops) if crop.shape == shape]
            grids |= zip(places, self._patches([crops[place] for place in places], fixed=False), strict=True)
        return [grids[place] for place in range(len(crops))]

    def _clusters(self, whole: BoxMask, grid: PatchGrid) -> list[tuple[BoxMask, int, float]]:
        """What merging found in a whole's box and what lies in the whole, not clipped yet; no copies."""
        conquer = self.config.conquer
        tree = merge_patches(grid, min_similarity=conquer.thresholds[-1])
        clusters = clusters_of(tree, conquer.thresholds, min_patches=conquer.min_patches)
        order = np.lexsort((-clusters.members.sum(axis=1), -clusters.similarity))
        shared = intersection_px(clusters.members[order], np.ones(tree.leaves, dtype=np.int64))
        order = order[suppress_duplicates(shared, max_iou=self.config.tree.duplicate_iou)]
        rows, columns = (enlargement(side, full) for side, full in zip(grid.shape[:2], whole.inside.shape, strict=True))
        found = []
        for place in order:
            cells = BoxMask.of(clusters.members[place].reshape(grid.shape[:2]))
            first, after = np.searchsorted(rows, [cells.top, cells.bottom])
            left, right = np.searchsorted(columns, [cells.left, cells.right])
            mask = cells.inside[np.ix_(rows[first:after] - cells.top, columns[left:right] - cells.left)]
            if (mask & whole.inside[first:after, left:right]).sum() > conquer.min_coverage * mask.sum():
                box = BoxMask.of(mask, top=whole.top + int(first), left=whole.left + int(left))
                found.append((box, int(clusters.level[place]), float(clusters.similarity[place])))
        return found

    def _refined_parts(
        self, clusters: Sequence[tuple[BoxMask, int, float]], whole: BoxMask, rgb: Rgb, cell_px: float
    ) -> list[tuple[BoxMask, int, float]]:
        """Clusters at the image's edges and clipped to their whole; one that dissolves goes."""
        guide = None
        if clusters and self.config.refine.method == "guided":
            crop = rgb[whole.top : whole.bottom, whole.left : whole.right]
            guide = EdgeGuide(crop, radius_px=round(cell_px / 2))
        parts = []
        for mask, level, similarity in clusters:
            inner = replace(mask, top=mask.top - whole.top, left=mask.left - whole.left)
            if guide is not None:
                refined = guide.refine(inner, self.config.refine)
                if not refined.accepted:
                    continue
                inner = refined.mask
            place = (slice(inner.top, inner.bottom), slice(inner.left, inner.right))
            clipped = BoxMask.of(
                inner.inside & whole.inside[place], top=whole.top + inner.top, left=whole.left + inner.left
            )
            if clipped.area_px > 0:
                parts.append((clipped, level, similarity))
        return parts


def load_backbone(
    config: MineConfig, checkpoint: str | Path | None, *, device: str | None, batch_size: int | None
) -> backbones.Backbone:
    """The backbone of a configuration, from the weights that it names.

    Raises:
        InputError: the file is missing, or is another one than planned.
    """
    name, file = split_backbone(config.features.backbone)
    path = locate_checkpoint(name, file if checkpoint is None else str(checkpoint))
    if config.features.weights_sha256 not in (None, file_sha256(path)):
        raise InputError(
            f"{path}: not the weights that the run was planned with (sha256 {config.features.weights_sha256}); bring "
            "that file back, on every machine of a cluster"
        )
    return backbones.Backbone(name, path, device=device, batch_size=batch_size, layer=config.features.layer)


def with_given(
    candidates: Candidates, given: Sequence[_Given], height: int, width: int, divide: DivideConfig
) -> Candidates:
    """Adds detections from outside, on a grid fine enough for them: exact up to `divide.given_side_px`."""
    labels = candidates.atoms.labels
    scale = min(divide.given_side_px / max(height, width), 1.0)
    size = tuple(max(round(side * scale), small) for side, small in zip((height, width), labels.shape, strict=True))
    rows, columns = enlargement(labels.shape[0], size[0]), enlargement(labels.shape[1], size[1])
    boxes = [sampled(runs_of(each.rle), (height, width), (size[0], size[1])) for each in given]
    atoms, members, base = cut_atoms(labels[np.ix_(rows, columns)], boxes)
    large = divide.min_given_fraction * atoms.area_px.sum()
    return Candidates(
        atoms=atoms,
        members=np.concatenate([members, candidates.members[:, base]]),
        origin=[*(each.origin for each in given), *candidates.origin],
        score=np.concatenate(
            [np.array([np.nan if each.score is None else each.score for each in given]), candidates.score]
        ),
        level=[None] * len(given) + list(candidates.level),
        is_whole=np.concatenate([np.array([box.area_px > large for box in boxes]), candidates.is_whole]),
    )


def _spread(first: int, after: int, small: int, full: int) -> slice:
    """The rows of the full-size image that a range of rows of the reduced one stands for."""
    return slice(first * full // small, max(-(-after * full // small), first * full // small + 1))


def reduced(rgb: NDArray[np.uint8], max_side_px: int) -> NDArray[np.uint8]:
    """The image at the size at which it is mined: its longer side at most `max_side_px`, area-averaged."""
    height, width = rgb.shape[:2]
    scale = max_side_px / max(height, width)
    if scale >= 1:
        return rgb
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    return cv2.resize(rgb, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


class _Clock:
    """Seconds per stage."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - began
