"""Named configurations: `grainmill mine --recipe NAME`.

- `default` measures best on people's segments without any weights (BSDS500, our own measurement): leaves of a
watershed,
  four merge trees pooled, wholes by how long they survive merging.
- `leaves` adds the features of a `timm` backbone, pooled on the leaves, as one more term of the merge cost.
- `unsamv2` has the paper's constants and scope on a patch grid; the defects that we mended stay mended.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from .config import ConquerConfig, FeaturesConfig, MineConfig, RecipeName

DINO_S16: Final = "timm:vit_small_patch16_224.dino"

_RECIPES: Final[dict[RecipeName, MineConfig]] = {
    "default": MineConfig(),
    "leaves": MineConfig(
        recipe="leaves",
        features=FeaturesConfig(backbone=DINO_S16),
        conquer=ConquerConfig(costs=tuple(replace(cost, features=0.5) for cost in ConquerConfig().costs)),
    ),
}


def recipe(name: RecipeName) -> MineConfig:
    """The resolved configuration of a recipe; flags change single values of it afterwards."""
    return _RECIPES[name]
