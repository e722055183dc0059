"""Named configurations: `grainmill mine --recipe NAME`.

- `default` measures best on people's segments without any weights at no more than 300 masks per image on average
  (BSDS500, our own measurement): superpixels of a watershed, four merge trees pooled, instances by a flat cut of the
  first at six regions unless others stand out.
- `default-1000` keeps up to 1,000 masks per image: more is found, by three times as many masks.
- `leaves` adds the features of a `timm` backbone, pooled on the superpixels, as one more term of the merge cost: masks
  with the image's own edges, and no refinement. The image is enlarged for the backbone, maps are centred and scaled.
  Its instances are those that survive merging longest: fewer than by a flat cut, and surer on such trees.
- `learned` is `leaves` with EfficientNet-lite0, and what a boundary net says of the borders, which is trained on the
  mill's own trees (`--boundaries FILE`); without such a file it merges without that term. Its instances are a flat cut,
  and its candidates come by consistency. Image labels went into the backbone, no human mask into anything.
- `unsamv2` has the paper's constants and scope (arXiv 2511.13714) on patch grids: MaskCut's three cuts, instances above
  5 % of the image, crops of 48 patches merged through five thresholds, duplicates at 0.8, and nothing outside of
  instances. The reference's defects stay mended: parts are held to their instance, near-copies do not eliminate each
  other, sub-objects keep their place in the tree, duplicates are compared over all pairs. It cuts and merges features
  of one backbone, DINO ViT-B/8, the one MaskCut is for. `--backbone timm:vit_base_patch16_dinov3.lvd1689m --divide
  proposals` is the nearest to the reference's code; `--backbone descriptor` runs without weights.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from .config import (
    BASE_COST,
    ConquerConfig,
    DivideConfig,
    FeaturesConfig,
    MineConfig,
    PoolConfig,
    RankingConfig,
    RecipeName,
    TreeConfig,
)

DINO_S16: Final = "timm:vit_small_patch16_224.dino"
DINO_B8: Final = "timm:vit_base_patch8_224.dino"
LITE0: Final = "lite0"

FEATURE_WEIGHTS: Final = (2.0, 4.0, 2.0, 3.0)
"""Of a backbone's features in the four trees (base, ward, texture or boundary, appearance): one tree's AR1000 is 0.437
at 0.5, 0.442 at 1, 0.452 at 2, 0.445 at 4, 0.419 at 8 (EfficientNet-lite0, BSDS500 train)."""
BOUNDARY_WEIGHTS: Final = (3.0, 3.0, 12.0, 3.0)
"""Of a boundary net in the same trees, the third of which has the base tree's other weights then (BSDS500 train: 1 to
8 in one tree differ by less than 0.008)."""
BOUNDARY_WEIGHT_ALONE: Final = 2.0
"""In all four trees, where the net had no backbone's features to see (BSDS500 train)."""

_LED_LONGER: Final = PoolConfig(lead=200, nested_fraction=0.97)
"""The first tree's nodes come first for longer: where more masks are kept, and where features make that tree better."""
_FEATURES_ON_TREES: Final = ConquerConfig(
    costs=tuple(
        replace(cost, features=weight) for cost, weight in zip(ConquerConfig().costs, FEATURE_WEIGHTS, strict=True)
    ),
    pool=_LED_LONGER,
)
_RECIPES: Final[dict[RecipeName, MineConfig]] = {
    "default": MineConfig(),
    "default-1000": MineConfig(
        recipe="default-1000", conquer=ConquerConfig(pool=_LED_LONGER), tree=TreeConfig(max_masks=1000)
    ),
    "leaves": MineConfig(
        recipe="leaves",
        features=FeaturesConfig(backbone=DINO_S16),
        divide=DivideConfig(wholes="stable"),
        conquer=_FEATURES_ON_TREES,
    ),
    "learned": MineConfig(
        recipe="learned",
        features=FeaturesConfig(backbone=LITE0),
        divide=DivideConfig(wholes="flat"),
        conquer=replace(_FEATURES_ON_TREES, ranking=RankingConfig(method="consistency", scale=0.6)),
    ),
    "unsamv2": MineConfig(
        recipe="unsamv2",
        features=FeaturesConfig(backbone=DINO_B8),
        divide=DivideConfig(cuts=3, min_area_fraction=0.05, min_given_fraction=0.05, remainder=False),
        conquer=ConquerConfig(graph="patches"),
        tree=TreeConfig(duplicate_iou=0.8, max_masks=1000, loose=False),
    ),
}


def recipe(name: RecipeName) -> MineConfig:
    """The resolved configuration of a recipe; flags change single values of it afterwards."""
    return _RECIPES[name]


def with_boundaries(config: MineConfig, sha256: str) -> MineConfig:
    """A configuration whose trees also hear a boundary net, by the weights above.

    Args:
        config: of a recipe that merges superpixels.
        sha256: of the net's file.
    """
    costs = config.conquer.costs
    if any(cost.features for cost in costs):
        base, ward, texture, appearance = costs
        costs = (base, ward, replace(BASE_COST, features=texture.features), appearance)
        costs = tuple(replace(cost, boundary=each) for cost, each in zip(costs, BOUNDARY_WEIGHTS, strict=True))
    else:
        costs = tuple(replace(cost, boundary=BOUNDARY_WEIGHT_ALONE) for cost in costs)
    return replace(
        config,
        features=replace(config.features, boundaries_sha256=sha256),
        conquer=replace(config.conquer, costs=costs),
    )
