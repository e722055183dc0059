"""Everything that changes labels, in frozen records; nothing else.

`MineConfig` and what it holds decides every byte of a shard (with the inputs and the numeric environment). Its
hash stands in the plan, and a run with another hash is refused (exit 3). Workers, executor, time-outs and limits on
failures are not here: they change when a run ends, not what it writes.

A field's sentence gives meaning, unit, range and the source of its default.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from .errors import InputError
from .schema import FORMAT, LABELS_VERSION, canonical_json, sha256_of

RecipeName = Literal["default", "leaves", "unsamv2"]
DivideName = Literal["maskcut", "proposals", "union"]
RefineName = Literal["guided", "none"]
GranularityName = Literal["instance-minmax", "instance-relative"]


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """Stage 1, `stages/features.py` (a backbone) or `stages/descriptor.py` (no weights)."""

    backbone: str = "descriptor"
    """`descriptor`, or `timm:NAME` with an optional `@CHECKPOINT`; the checkpoint's path is not part of the hash."""
    weights_sha256: str | None = None
    """Of the checkpoint file; None for `descriptor`."""
    max_side_px: int = 1024
    """Longer side at which features are computed; larger images are reduced for mining, masks stay full-size."""


@dataclass(frozen=True, kw_only=True)
class DivideConfig:
    """Stage 2, `stages/divide.py`."""

    method: DivideName = "maskcut"
    proposals_sha256: str | None = None
    """Of the `--proposals` file; None without one."""


@dataclass(frozen=True, kw_only=True)
class ConquerConfig:
    """Stage 3, `stages/conquer.py`."""


@dataclass(frozen=True, kw_only=True)
class RefineConfig:
    """Stage 4, `stages/refine.py`."""

    method: RefineName = "guided"


@dataclass(frozen=True, kw_only=True)
class GranularityConfig:
    """Stage 5, `stages/granularity.py`."""

    method: GranularityName = "instance-minmax"


@dataclass(frozen=True, kw_only=True)
class TreeConfig:
    """How masks become instances and parts, `pipeline/forest.py`."""

    duplicate_iou: float = 0.9
    """Masks above this IoU are one (design 4.2; 0.8 in `unsamv2`)."""


@dataclass(frozen=True, kw_only=True)
class MineConfig:
    """One run of the mill."""

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

    def to_json(self) -> dict[str, Any]:
        """The resolved configuration as it stands in `plan.json`."""
        return {"format": FORMAT, "labels_version": LABELS_VERSION, **dataclasses.asdict(self)}


def config_hash(config: dict[str, Any]) -> str:
    """sha256 of the canonical JSON of `MineConfig.to_json()` together with the source list."""
    return sha256_of(canonical_json(config))
