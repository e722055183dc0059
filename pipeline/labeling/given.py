"""Masks from outside: proposals of a file and annotations of the sample, at the image's edges and among the candidates.

They keep their pixels: exact up to `divide.given_side_px`, whatever size the image is mined at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from ..format import rle as rle_codec
from ..format.rle import Rle, run_lengths_of
from ..format.schema import Origin
from .atoms import BoxMask, cut_atoms, enlarged, sampled
from .config import DivideConfig, RefineConfig
from .hierarchy import Candidates
from .regions import Rgb
from .stages.refine import EdgeGuide

PROPOSAL_RADIUS_PX: Final = 4
"""Of the guided filter for proposals: about what the mask of a detector's head is coarse by."""


@dataclass(frozen=True)
class GivenMask:
    """A mask from outside, at the image's own size."""

    rle: Rle
    origin: Origin
    score: float | None


def refine_given(rgb: Rgb, given: Sequence[GivenMask], refine: RefineConfig) -> list[GivenMask]:
    """Masks at the image's edges; one whose refined mask differs too much stays as it is.

    Args:
        rgb: (H, W, 3) uint8, the image at full size.
        given: at that size.
        refine: `min_iou`.
    """
    height, width = rgb.shape[:2]
    guide = EdgeGuide(rgb, radius_px=PROPOSAL_RADIUS_PX)
    refined = []
    for each in given:
        mask = guide.refine(BoxMask.of(rle_codec.decode(each.rle)), refine).mask
        refined.append(replace(each, rle=rle_codec.encode(mask.full(height, width))))
    return refined


def join_given(
    candidates: Candidates, given: Sequence[GivenMask], height: int, width: int, divide: DivideConfig
) -> Candidates:
    """The candidates with masks from outside before them, on a grid fine enough for both.

    Args:
        candidates: on the grid at which the image was mined.
        given: N masks.
        height: of the image at full size.
        width: likewise.
        divide: `given_side_px`, the longer side of the grid at most; `min_given_fraction`, the share of the image above
            which a given mask may be an instance.
    """
    labels = candidates.atoms.labels
    scale = min(divide.given_side_px / max(height, width), 1.0)
    rows, columns = (max(round(side * scale), small) for side, small in zip((height, width), labels.shape, strict=True))
    boxes = [sampled(run_lengths_of(each.rle), (height, width), (rows, columns)) for each in given]
    atoms, members, base = cut_atoms(enlarged(labels, rows, columns), boxes)
    large = divide.min_given_fraction * atoms.area_px.sum()
    scores = np.array([np.nan if each.score is None else each.score for each in given])
    return Candidates(
        atoms=atoms,
        members=np.concatenate([members, candidates.members[:, base]]),
        origin=[*(each.origin for each in given), *candidates.origin],
        score=np.concatenate([scores, candidates.score]),
        level=[None] * len(given) + list(candidates.level),
        may_be_instance=np.concatenate([np.array([box.area_px > large for box in boxes]), candidates.may_be_instance]),
    )
