"""Named configurations: `grainmill mine --recipe NAME`.

- `default` measures best on people's segments without any weights at no more than 300 masks per image on average
  (BSDS500, our own measurement): superpixels of a watershed, four merge trees pooled, instances by how long they
  survive merging.
- `default-1000` is the same with up to 1,000 masks per image: more is found, by three times as many masks.
- `leaves` adds the features of a `timm` backbone, pooled on the superpixels, as one more term of the merge cost: masks
  with the image's own edges, and no refinement.
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

from .config import ConquerConfig, DivideConfig, FeaturesConfig, MineConfig, RecipeName, TreeConfig

DINO_S16: Final = "timm:vit_small_patch16_224.dino"
DINO_B8: Final = "timm:vit_base_patch8_224.dino"

_RECIPES: Final[dict[RecipeName, MineConfig]] = {
    "default": MineConfig(),
    "default-1000": MineConfig(recipe="default-1000", tree=TreeConfig(max_masks=1000)),
    "leaves": MineConfig(
        recipe="leaves",
        features=FeaturesConfig(backbone=DINO_S16),
        conquer=ConquerConfig(costs=tuple(replace(cost, features=0.5) for cost in ConquerConfig().costs)),
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
