"""One image to its annotations, from top to bottom: features, candidate masks, hierarchy, granularity.

`ImageMiner.mine` is a pure function of images, configuration and weights: nothing else in the process changes its
output. There are two ways to candidate masks, `on_superpixels.py` and `on_patches.py`; either way detections may come
from a file instead (`proposals`) or besides from the sample itself (`union`), and `hierarchy.py` makes the tree of
instances and parts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..environment.stage_seconds import StageSeconds
from ..environment.timm_weights import PREFIX, named_weights
from ..errors import InputError, SampleFailureError
from ..format.rle import Rle
from ..format.schema import Annotation
from ..sources.passed_over import PassedOver
from ..sources.proposals import Proposals
from ..storage.local import sha256_of_file
from .boundary_file import read_record
from .config import MineConfig
from .given import GivenMask, join_given, refine_given
from .hierarchy import build_hierarchy
from .on_patches import CropFeatures, patch_candidates
from .on_superpixels import superpixel_candidates
from .regions import FeatureMaps, PatchGrid, Rgb
from .stages import backbone_features as backbones
from .stages.texture_features import patch_features

if TYPE_CHECKING:
    from .stages.boundary_net import Boundaries


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
    """Of one image of a batch, and its share of the time."""

    grid: PatchGrid | None
    """(h, w, d) patch features for recipes that cut and merge patches."""
    maps: FeatureMaps | None
    """For recipes that merge superpixels: a backbone's."""
    boundary: NDArray[np.float32] | None
    """(h, w) of the image at the size at which it is mined: a boundary net's."""
    seconds: float


class ImageMiner:
    """Holds the weights; mines batches.

    Example:
        >>> miner = ImageMiner(MineConfig())
        >>> mined = miner.mine([ImageInput(rgb=rgb, source_uri="a/b.png", member=None)])[0]  # doctest: +SKIP

    Args:
        config: everything that changes labels.
        device: torch device of the backbone; None lets it choose. The descriptor runs on the CPU.
        batch_size: images that share one pass of the backbone; None lets it choose. The descriptor has no batches.
        checkpoint: file of the backbone's weights, with the sha256 that the configuration names.
        proposals: of `--divide proposals` and `union`.
        boundaries: file of the boundary net, with the sha256 that the configuration names.

    Raises:
        InputError: a file is missing, or is another one than the configuration names.
    """

    def __init__(
        self,
        config: MineConfig,
        *,
        device: str | None = None,
        batch_size: int | None = None,
        checkpoint: str | Path | None = None,
        proposals: Proposals | None = None,
        boundaries: str | Path | None = None,
    ) -> None:
        cv2.setNumThreads(1)
        self.config, self._proposals = config, proposals
        self._backbone = None
        self._one_at_a_time = threading.Lock()
        if config.features.backbone != "descriptor":
            self._backbone = load_backbone(config, checkpoint, device=device, batch_size=batch_size)
        self._boundaries = _load_boundaries(config, boundaries, device=device)
        self.batch_size = batch_size or (1 if self._backbone is None else self._backbone.batch_size)

    def environment(self) -> dict[str, Any]:
        """What of the numeric environment only the backbone decides: nothing without one."""
        if self._backbone is None:
            return {}
        return {"precision": str(self._backbone.precision), "batch_size": self._backbone.batch_size}

    def warm_up(self) -> None:
        """Compiles and loads what the first image would pay for."""
        rng = np.random.default_rng(0)
        speckled = ImageInput(
            rgb=rng.integers(0, 256, size=(48, 64, 3), dtype=np.uint8), source_uri="warm-up", member=None
        )
        [features] = self.features([speckled])
        if features.grid is not None:
            # Features that surely show an object with parts, whatever the backbone says of speckles.
            rows, columns, depth = features.grid.shape
            inside = np.zeros((rows, columns, 1), dtype=bool)
            inside[rows // 4 : 3 * rows // 4, columns // 4 : 3 * columns // 4] = True
            direction = rng.standard_normal(depth)
            grid = np.where(inside, direction, -direction) + 0.1 * rng.standard_normal(features.grid.shape)
            features = replace(features, grid=grid.astype(np.float32))
        self.label(speckled, features)

    def mine(self, batch: Sequence[ImageInput]) -> list[MinedImage | SampleFailureError]:
        """Mines some images; each answer stands at its image's place.

        An image without any mask is the failure `no_masks`.
        """
        return [self.label(image, features) for image, features in zip(batch, self.features(batch), strict=True)]

    def features(self, batch: Sequence[ImageInput]) -> list[BatchFeatures]:
        """The first half of `mine`: what is computed for a batch at once, on a GPU where there is one."""
        began_s = time.perf_counter()
        grids: Sequence[PatchGrid | None] = [None] * len(batch)
        maps: Sequence[FeatureMaps | None] = [None] * len(batch)
        boundary: Sequence[NDArray[np.float32] | None] = [None] * len(batch)
        features = self.config.features
        if batch and self.config.conquer.graph == "patches":
            side = backbones.nearest_multiple(features.side_px, self._patch_px)
            grids = self._patch_grids([backbones.squashed(image.rgb, side, side) for image in batch], fixed_batch=True)
        elif self._backbone is not None or self._boundaries is not None:
            with self._one_at_a_time:
                images = [reduced(each.rgb, features.max_side_px) for each in batch]
                if self._backbone is not None:
                    maps = [self._backbone.maps(each, features) for each in images]
                if self._boundaries is not None:
                    boundary = [self._boundaries(*each) for each in zip(images, maps, strict=True)]
        each_s = (time.perf_counter() - began_s) / max(len(batch), 1)
        return [BatchFeatures(*each, each_s) for each in zip(grids, maps, boundary, strict=True)]

    def label(self, image: ImageInput, features: BatchFeatures) -> MinedImage | SampleFailureError:
        """The second half, of one image: everything else. Several threads may be in it."""
        try:
            return self._label(image, features)
        except SampleFailureError as error:
            return error

    def _label(self, image: ImageInput, features: BatchFeatures) -> MinedImage:
        config, seconds, passed = self.config, StageSeconds(features=features.seconds), PassedOver()
        height, width = image.rgb.shape[:2]
        with seconds.timed("divide"):
            given = self._given(image, passed)
        rgb = reduced(image.rgb, config.features.max_side_px)
        if config.conquer.graph == "patches":
            assert features.grid is not None
            candidates = patch_candidates(
                image.rgb,
                rgb,
                features.grid,
                given,
                config,
                CropFeatures(self._patch_px, partial(self._patch_grids, fixed_batch=False)),
                find_instances=self._finds_instances,
                seconds=seconds,
            )
        else:
            candidates = superpixel_candidates(
                rgb,
                features.maps,
                config,
                find_instances=self._finds_instances,
                seconds=seconds,
                boundary=features.boundary,
            )
        with seconds.timed("granularity"):
            if given:
                candidates = join_given(candidates, given, height, width, config.divide)
            annotations = build_hierarchy(
                replace(candidates, atoms=candidates.atoms.at_size(height, width)),
                height=height,
                width=width,
                tree=config.tree,
                granularity=config.granularity.method,
            )
        if not annotations:
            raise SampleFailureError("no_masks", "granularity", "no region stands out from the image")
        return MinedImage(annotations=annotations, seconds=seconds, passed_over=passed.to_json())

    @property
    def _finds_instances(self) -> bool:
        """Whether instances are found in the image itself: not where a file names them."""
        method = self.config.divide.method
        return method == "maskcut" or (method == "union" and self._proposals is None)

    def _given(self, image: ImageInput, passed: PassedOver) -> list[GivenMask]:
        """Proposals of the file and annotations of the sample, as the configuration wants them."""
        config, given = self.config, []
        if config.divide.method != "maskcut" and self._proposals is not None:
            proposals = self._proposals.of(
                image.source_uri,
                image.member,
                height=image.rgb.shape[0],
                width=image.rgb.shape[1],
                min_score=config.divide.min_proposal_score,
                passed=passed,
            )
            given += [GivenMask(each.rle, "proposal", each.score) for each in proposals]
            # The grid of a detector's masks is finer than that of a reduced image: there they stay as they are.
            if config.refine.method == "guided" and given and max(image.rgb.shape[:2]) <= config.features.max_side_px:
                given = refine_given(image.rgb, given, config.refine)
        if config.divide.method == "union":
            given += [GivenMask(each, "annotation", None) for each in image.annotations]
        return given

    @property
    def _patch_px(self) -> int:
        return self.config.features.descriptor_patch_px if self._backbone is None else self._backbone.stride_px

    def _patch_grids(self, images: Sequence[Rgb], *, fixed_batch: bool) -> list[PatchGrid]:
        """Patch features of images of one size."""
        if self._backbone is not None:
            assert isinstance(self._backbone, backbones.Backbone)
            with self._one_at_a_time:
                return self._backbone(images, fixed_batch=fixed_batch)
        return [patch_features(each, self.config.features, seed=self.config.seed) for each in images]


def load_backbone(
    config: MineConfig, checkpoint: str | Path | None, *, device: str | None, batch_size: int | None
) -> backbones.Backbone | backbones.Pyramid:
    """The backbone of a configuration, from the weights that it names.

    Raises:
        InputError: the file is missing, or is another one than planned; or a pyramid, where patches are cut.
    """
    given = config.features.backbone
    name, path = named_weights(given if checkpoint is None else f"{given.partition('@')[0]}@{checkpoint}")
    if config.features.weights_sha256 not in (None, sha256_of_file(path)):
        raise InputError(
            f"{path}: not the weights that the run was planned with (sha256 {config.features.weights_sha256}); bring "
            "that file back, on every machine of a cluster"
        )
    found = backbones.load_network(name, path, device=device, batch_size=batch_size, layer=config.features.layer)
    if config.conquer.graph == "patches" and isinstance(found, backbones.Pyramid):
        raise InputError(
            f"--recipe {config.recipe} cuts and merges the patches of a plain transformer, such as DINO's, found "
            f"--backbone {PREFIX}{name}, a pyramid; use --recipe leaves"
        )
    return found


def _load_boundaries(config: MineConfig, path: str | Path | None, *, device: str | None) -> Boundaries | None:
    expected = config.features.boundaries_sha256
    if path is None or expected is None:
        if path is None and expected is None:
            return None
        raise InputError(
            f"the configuration names {'no' if expected is None else 'a'} boundary net, found --boundaries {path}"
        )
    read_record(path)  # whether it is such a file at all
    if sha256_of_file(path) != expected:
        raise InputError(
            f"--boundaries {path}: not the file that the run was planned with (sha256 {expected}); bring that file "
            "back, on every machine of a cluster"
        )
    from .stages.boundary_net import Boundaries

    return Boundaries(path, device=device)


def reduced(rgb: Rgb, max_side_px: int) -> Rgb:
    """The image at the size at which it is mined: its longer side at most `max_side_px`, area-averaged."""
    height, width = rgb.shape[:2]
    scale = max_side_px / max(height, width)
    if scale >= 1:
        return rgb
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    return cv2.resize(rgb, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
