"""Everything that changes labels, in frozen records; nothing else.

`MineConfig` and what it holds decides every byte of a shard (with the inputs and the numeric environment). Its
hash stands in the plan, and a run with another hash is refused (exit 3). Workers, executor, time-outs and limits on
failures are not here: they change when a run ends, not what it writes.

A field's sentence gives meaning, unit, range and the source of its default.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Literal

from ..errors import InputError
from ..format.granularity import GranularityMethod
from ..format.records import ConfigRecord
from ..format.schema import FORMAT, LABELS_VERSION, canonical_json, sha256_of

RecipeName = Literal["default", "default-1000", "leaves", "learned", "unsamv2"]
DivideName = Literal["maskcut", "proposals", "union"]
RefineName = Literal["guided", "none"]
LayerName = Literal["auto", "key", "final"]
GraphName = Literal["leaves", "patches"]
MapScaling = Literal["centred", "none"]
WholesName = Literal["adaptive", "flat", "stable"]
RankingName = Literal["trees", "consistency"]


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """Stage 1, `stages/backbone_features.py` (a backbone) or `stages/texture_features.py` (no weights)."""

    backbone: str = "descriptor"
    """`descriptor`, `lite0`, or `timm:NAME` with an optional `@CHECKPOINT`; a run's plan has `timm:NAME`, the weights'
    path is not part of the hash."""
    weights_sha256: str | None = None
    """Of the checkpoint file; None for `descriptor`."""
    max_side_px: int = 1024
    """Longer side at which features are computed; larger images are reduced for mining, masks stay full-size."""
    texton_samples: int = 4000
    """Pixels from which an image's texture words are learned (our own measurement)."""
    texton_rounds: int = 10
    """Rounds of k-means for them."""
    region_bins: int = 12
    """Bins of a region's L, a and b histograms."""
    layer: LayerName = "auto"
    """What of a backbone's last block: `key` projections, `final` normalised tokens, `auto` by family (MaskCut reads
    keys of DINO, UnSAMv2 tokens of DINOv3)."""
    side_px: int = 480
    """Of the square that an image is squashed to for normalised cuts, rounded to whole patches (MaskCut)."""
    enlargement: float = 2.0
    """Of the image for a backbone whose maps are pooled on superpixels: of what a classifier knows, maps at 4 and 8 px
    say most (our own measurement on BSDS500 train: AR1000 0.442 -> 0.452 of one tree against 1.0)."""
    max_input_side_px: int = 1536
    """Longer side of such an enlarged image; larger photographs are enlarged less."""
    map_strides: tuple[int, ...] = (8, 16)
    """Which maps of a pyramid are pooled, by stride at its input; a plain transformer has one map. (Alone or with the
    ones at 4 and 32 they are worth less, BSDS500 train.)"""
    map_scaling: MapScaling = "centred"
    """`centred`: each map minus its mean over the image, divided by the root mean square of its vectors' lengths, so
    that what all places share does not make them alike and no map outweighs the other. `none`: as they are."""
    boundaries_sha256: str | None = None
    """Of the `--boundaries` file; None without one."""
    crop_patches: int = 48
    """Patches on the longer side of an instance's crop (UnSAMv2: 768 pixels of 16)."""
    descriptor_patch_px: int = 8
    """Side of the descriptor's patches, where a patch grid is asked of it."""


@dataclass(frozen=True, kw_only=True)
class DivideConfig:
    """Stage 2, `stages/instances.py` on superpixels, `stages/maskcut.py` on patches."""

    method: DivideName = "maskcut"
    proposals_sha256: str | None = None
    """Of the `--proposals` file; None without one."""
    proposals_license: str | None = None
    """As that file declares it (`info.license`, or its only entry of `licenses`); `release` heeds it."""
    min_proposal_score: float = 0.3
    """Proposals that have a score must be above it (UnSAMv2, tau_conf)."""
    min_given_fraction: float = 0.0
    """A proposal or annotation may be an instance if its share of the image is above this (0.05 in `unsamv2`)."""
    given_side_px: int = 2400
    """Longer side at which proposals and annotations are kept; exact for images up to that size, as SA-1B's are."""
    wholes: WholesName = "adaptive"
    """Which regions of the first tree are instances: `flat`, those that stand when so many are left, `stable`, those
    that survive merging longest, or `adaptive`: the flat cut's, unless the stable ones stand out
    (`stages/instances.py`)."""
    flat_regions: int = 6
    """For `flat` (BSDS500 train: at equal numbers better on both counts; 4 to 10 trade recall for precision)."""
    min_clearance: float = 0.55
    """For `adaptive`: the stable regions are the instances from this mean of 1 - height / height of the parent on.
    Coins have 0.60, drawn shapes mostly 0.57 to 0.97; of 200 photographs (BSDS500 train) the median is 0.33, the
    highest 0.52."""
    many_regions: int = 18
    """For `adaptive`: likewise from so many on (BSDS500 train, recall and precision: .378 .464 from 15 on, .368 .467
    from 18, .358 .469 from 20, .352 .468 at any number; `flat` .357 .471, `stable` .323 .456)."""
    min_stability_ratio: float = 6.0
    """For `adaptive`: likewise where their stability is so many times that of the cut. Half of the photographs of
    BSDS500 train have below 1.4, 95 of 100 below 4.6; coins have 12, images of nuclei mostly 6 to 59."""
    alpha: float = 1.25
    """Of `stable`: power of the area in an instance's stability (BSDS500 train: 0.8 shatters, 1.5 swallows)."""
    min_area_fraction: float = 0.005
    """Smallest instance, share of the image."""
    max_area_fraction: float = 0.9
    """Largest instance, share of the image."""
    cuts: int = 3
    """Rounds of normalised cuts on a patch grid (MaskCut's own)."""
    tau: float = 0.15
    """Cosine above which two patches are linked (MaskCut, as it is run)."""
    eps: float = 1e-5
    """Weight between patches that are not linked (MaskCut)."""
    min_mask_fraction: float = 0.01
    """A cut's mask of at most this share of the grid is none (MaskCut)."""
    remainder: bool = True
    """Split what no cut of the grid claimed into coherent regions, instances too. (On superpixels
    `TreeConfig.loose` says it.)"""
    remainder_similarity: float = 0.5
    """Cosine down to which patches of such a region are merged."""


@dataclass(frozen=True, kw_only=True)
class MergeCost:
    """Weights and powers of the merge cost, `stages/merge_regions.py` (all measured on BSDS500 train)."""

    edge: float = 1.0
    """Of the mean boundary strength, all cues but textons."""
    edge_texture: float = 1.0
    """Of its texton cue."""
    histograms: tuple[float, float, float, float] = (0.30, 0.60, 0.40, 0.30)
    """Of the distances of the L, a, b and texton histograms."""
    features: float = 0.0
    """Of 1 - cosine of backbone features; above 0 in the recipes `leaves` and `learned`."""
    boundary: float = 0.0
    """Of the mean probability of a boundary net; above 0 in `learned`."""
    size_power: float = 0.175
    """Of the harmonic size: small regions merge first."""
    length_power: float = -0.05
    """Of the common boundary's length."""
    perimeter_power: float = -0.10
    """Of the common boundary's share of the smaller perimeter."""


BASE_COST = MergeCost()
WARD_COST = MergeCost(histograms=(0.60, 1.20, 0.80, 0.60), size_power=0.5, length_power=-0.10)
TEXTURE_COST = MergeCost(edge=0.8, edge_texture=2.0, histograms=(0.30, 0.60, 0.40, 0.90))
APPEARANCE_COST = MergeCost(histograms=(1.80, 3.60, 2.40, 1.80))


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """Which nodes of which trees become candidates, `stages/candidates.py`."""

    nodes_per_tree: int = 600
    lead: int = 75
    """Nodes of the first tree that come before all others (BSDS500 train, 200 images, AR at 300 masks: 0.4261 at 200,
    0.4273 at 75, 0.4230 at 0)."""
    pairs: int = 500
    """Unions of two neighbours; 0 for none."""
    pair_nodes: int = 60
    """The first nodes of the first tree, of which unions are made."""
    candidates: int = 2200
    """Cut of the pooled order, before duplicates go."""
    max_iou: float = 0.9
    """Candidates above this IoU with a better one go: the tree would drop them anyway (`hierarchy.py`)."""
    nested_fraction: float = 0.985
    """Of two candidates, one inside the other by 0.9 to this share, the worse goes: the tree would clip it (likewise:
    0.4284 for 0.4273 at 0.97)."""
    min_area_px: int = 24
    """Smallest candidate, at the size of the features."""
    max_area_fraction: float = 0.9
    """Largest candidate, share of the image."""


@dataclass(frozen=True, kw_only=True)
class RankingConfig:
    """In which order candidates come, `stages/consistency.py`; the first `TreeConfig.max_masks` are kept."""

    method: RankingName = "trees"
    """`trees`: the pool's own, by when regions are absorbed. `consistency`: first what a second mining finds again."""
    scale: float = 1.5
    """Of the image for the second mining, which is also mirrored. 0.6 in `learned`, where it gains nearly as much for a
    seventh of the time (BSDS500 train, 40 images, AR100 and seconds: without 0.400; at 0.6 0.407 for 0.07, at 1.0 0.406
    for 0.18, at 1.5 0.407 for 0.49)."""
    gamma: float = 1.15
    """Exponent of its values in [0, 1]."""
    saturation: float = 0.8
    """Of its colours."""
    nodes_per_tree: int = 600
    """Regions of each of its two trees (the costs of the first two, without backbone and boundary net)."""
    weight: float = 2.0
    """Of consistency beside the logarithm of the place (BSDS500 train: 1 to 4 differ little)."""


@dataclass(frozen=True, kw_only=True)
class ConquerConfig:
    """Stage 3, `stages/merge_regions.py` and `stages/candidates.py` on superpixels, `stages/merge_patches.py` on
    patches."""

    graph: GraphName = "leaves"
    """What is merged: the image's superpixels (`leaves`), or each instance's patch grid. (Patches cost 0.07 to 0.12
    of AR, BSDS500, our own measurement.)"""
    thresholds: tuple[float, ...] = (0.9, 0.8, 0.7, 0.6, 0.5)
    """Cosines at which clusters of patches are read (UnSAMv2)."""
    min_patches: int = 4
    """Smallest cluster of patches (UnSAMv2)."""
    min_coverage: float = 0.9
    """Share of a cluster that must lie in its instance, above it (UnSAMv2)."""
    costs: tuple[MergeCost, ...] = (BASE_COST, WARD_COST, TEXTURE_COST, APPEARANCE_COST)
    """One tree for each; the first also says which regions are instances."""
    pool: PoolConfig = field(default_factory=PoolConfig)
    ranking: RankingConfig = field(default_factory=RankingConfig)


@dataclass(frozen=True, kw_only=True)
class RefineConfig:
    """Stage 4, `stages/refine.py`: for masks of a patch grid, and proposals. Superpixels have the image's
    own edges."""

    method: RefineName = "guided"
    min_iou: float = 0.5
    """A refined mask counts if its IoU with what it was is at least this (UnSAM)."""


@dataclass(frozen=True, kw_only=True)
class GranularityConfig:
    """Stage 5, `pipeline/format/granularity.py`."""

    method: GranularityMethod = "instance-minmax"


@dataclass(frozen=True, kw_only=True)
class TreeConfig:
    """How masks become instances and parts, `pipeline/labeling/hierarchy.py`."""

    duplicate_iou: float = 0.9
    """Masks above this IoU are one (0.8 in `unsamv2`)."""
    max_masks: int = 300
    """Best candidates of an image that are kept; instances are kept besides."""
    min_area_px: int = 16
    """Parts that clipping left smaller than this go."""
    loose: bool = True
    """Keep candidates that lie in no instance, as instances of their own: what none covers, and what joins several."""


@dataclass(frozen=True, kw_only=True)
class MineConfig:
    """Everything that decides what one run labels."""

    recipe: RecipeName = "default"
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    divide: DivideConfig = field(default_factory=DivideConfig)
    conquer: ConquerConfig = field(default_factory=ConquerConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    granularity: GranularityConfig = field(default_factory=GranularityConfig)
    tree: TreeConfig = field(default_factory=TreeConfig)
    samples_per_shard: int = 256
    """Input samples of one unit: the unit of work, of a commit and of what a crash can cost."""
    limit: int | None = None
    """The first N samples of the plan; None for all."""
    seed: int = 0
    images: bool = True
    """False with `--no-images`: shards hold masks and references only."""
    max_image_pixels: int = 100_000_000
    """Larger images become `too_large` before they are decoded."""

    def __post_init__(self) -> None:
        if self.samples_per_shard < 1:
            raise InputError(f"--samples-per-shard must be at least 1, found {self.samples_per_shard}")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"--limit must be at least 1, found {self.limit}")
        if self.tree.max_masks < 1:
            raise InputError(f"--max-masks must be at least 1, found {self.tree.max_masks}")

    def to_json(self) -> ConfigRecord:
        """The resolved configuration as it stands in `plan.json`."""
        record = {"format": FORMAT, "labels_version": LABELS_VERSION, **dataclasses.asdict(self)}
        plain: ConfigRecord = json.loads(canonical_json(record))  # lists, as a reader of the file finds them
        return plain


def config_hash(config: ConfigRecord) -> str:
    """sha256 of the canonical JSON of `MineConfig.to_json()` together with the source list."""
    return sha256_of(canonical_json(config))
