"""The mill: photographs in, granularity masks out. The five stages from top to bottom, for one image at a time.

`Mill.mine` is a pure function of images, configuration and weights: nothing else in the process changes its output.
Without weights (`descriptor`) the graph is that of watershed leaves and the trees are cut from the whole image; with a
`timm` backbone under the recipe `leaves` its features join the merge cost.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from .config import MineConfig
from .errors import SampleFailureError
from .forest import Candidates, build_forest
from .rle import Rle
from .schema import Annotation, Origin
from .stages.conquer import conquer
from .stages.descriptor import describe, region_channels, region_histograms
from .stages.leaf_graph import build_leaf_graph
from .stages.pool import pool_trees
from .stages.wholes import choose_wholes


@dataclass(frozen=True)
class ImageInput:
    """One decoded sample.

    Attributes:
        rgb: (H, W, 3) uint8, upright.
        source_uri: LABEL/relative/path.
        member: inside a tar or a table, else None.
        annotations: the sample's own masks (SA-1B), for `--divide union`.
    """

    rgb: NDArray[np.uint8]
    source_uri: str
    member: str | None
    annotations: tuple[Rle, ...] = ()


@dataclass(frozen=True)
class MinedImage:
    """Masks of one image, and the seconds that each stage took."""

    annotations: tuple[Annotation, ...]
    seconds: dict[str, float]


class Mill:
    """Holds the weights; mines batches.

    Args:
        config: everything that changes labels.
        device: torch device of the backbone; None lets it choose. The descriptor runs on the CPU.
        batch_size: images that share one pass of the backbone. Their composition is part of the numeric environment.
    """

    def __init__(self, config: MineConfig, *, device: str | None = None, batch_size: int = 1) -> None:
        cv2.setNumThreads(1)
        self.config, self.device, self.batch_size = config, device, batch_size

    def warm_up(self) -> None:
        """Compiles and loads what the first image would pay for."""
        speckled = np.random.default_rng(0).integers(0, 256, size=(48, 64, 3), dtype=np.uint8)
        self.mine([ImageInput(rgb=speckled, source_uri="warm-up", member=None)])

    def mine(self, batch: Sequence[ImageInput]) -> list[MinedImage | SampleFailureError]:
        """Mines some images; each answer stands at its image's place.

        An image without any mask is the failure `no_masks`.
        """
        return [self._mine_one(image) for image in batch]

    def _mine_one(self, image: ImageInput) -> MinedImage | SampleFailureError:
        height, width = image.rgb.shape[:2]
        clock = _Clock()
        candidates = self._descriptor_candidates(reduced(image.rgb, self.config.features.max_side_px), clock)
        with clock("granularity"):
            annotations = build_forest(
                Candidates(
                    atoms=candidates.atoms.at_size(height, width),
                    members=candidates.members,
                    origin=candidates.origin,
                    score=candidates.score,
                    level=candidates.level,
                    is_whole=candidates.is_whole,
                ),
                height=height,
                width=width,
                tree=self.config.tree,
                granularity=self.config.granularity,
            )
        if not annotations:
            return SampleFailureError("no_masks", "granularity", "no region stands out from the image")
        return MinedImage(annotations=annotations, seconds=clock.seconds)

    def _descriptor_candidates(self, rgb: NDArray[np.uint8], clock: _Clock) -> Candidates:
        """Leaves, graph, trees, wholes, pool."""
        config = self.config
        with clock("features"):
            view = describe(rgb, config.features, seed=config.seed)
            bins = config.features.region_bins
            histograms = region_histograms(view.lab, view.textons, view.leaves, bins)
            graph = build_leaf_graph(view.leaves, view.edge, view.edge_texture, histograms, region_channels(bins))
        with clock("conquer"):
            trees = [conquer(graph, cost) for cost in config.conquer.costs]
            pool = pool_trees(trees, graph, config.conquer.pool)
        with clock("divide"):
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

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - began
