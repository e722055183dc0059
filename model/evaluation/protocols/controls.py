"""Controls: what an oracle's luck alone would give. Every table of a model's scores has them as columns.

| control | what it takes away or grants |
|---|---|
| `ignored` | one constant g for every object: a model whose dial does nothing scores the same as with any g |
| `shuffled` | the labels g of an image dealt to its objects anew: a dial that works must lose by it |
| `own` | SAM-2's own single mask, no g at all |
| `best_of_3` | SAM-2's three masks, the best chosen with the ground truth |
| `best_of_10_clicks` | one constant g, ten first clicks near the first, the best chosen with the ground truth |
| `ten_grids` | whole image: ten passes, the grid of clicks moved, one constant g: ten passes without a dial |
| `shuffled_pass` | whole image: one pass, every click with a g drawn at random |

The constant g is 1.0 where every object of the benchmark is a whole, else 0.5: what somebody would set who knows the
benchmark but not the object.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..benchmarks.records import LabelRule

FloatArray = NDArray[np.float64]

SWEEP: Final = tuple(round(0.05 * step, 2) for step in range(2, 21))
"""0.10, 0.15, …, 1.00 for the sweeps; holds all of `GRANULARITIES`."""
JITTER_CLICKS: Final = 10
JITTER_RADIUS: Final = 0.5
"""Share of the largest inscribed circle's radius within which the jittered first clicks fall."""
GRID_PASSES: Final = 10


def constant_granularity(label_rule: LabelRule) -> float:
    """The one g of the controls without a dial."""
    return 1.0 if label_rule == "whole" else 0.5


def seed_of(seed: int, *names: str) -> list[int]:
    """A generator's seed from the run's seed and names (image, object, control), equal in every process."""
    digest = hashlib.sha256("\0".join(names).encode()).digest()
    return [seed, *np.frombuffer(digest[:16], dtype=np.uint32).tolist()]


def shuffled_labels(labels: Sequence[float | None], seed: Sequence[int]) -> list[float | None]:
    """The known labels dealt anew among the objects that have one, so that no object keeps its own place.

    A drawn cyclic order: each object gets the label of the next. With fewer than two labelled objects there is nothing
    to shuffle, and the answer is None for all.
    """
    dealt: list[float | None] = [None] * len(labels)
    known = [index for index, label in enumerate(labels) if label is not None]
    if len(known) < 2:
        return dealt
    order = np.random.default_rng([*seed]).permutation(known)
    for index, source in zip(order, np.roll(order, 1), strict=True):
        dealt[index] = labels[source]
    return dealt


def click_grid(height: int, width: int, points_per_side: int) -> FloatArray:
    """(P x P, 2) float64 clicks (x, y) in pixels, at the centres of P x P equal cells, row by row."""
    centres = (np.arange(points_per_side) + 0.5) / points_per_side
    y, x = np.meshgrid(centres * height, centres * width, indexing="ij")
    return np.stack([x.ravel(), y.ravel()], axis=1)


def moved_grids(height: int, width: int, points_per_side: int, count: int, seed: Sequence[int]) -> list[FloatArray]:
    """`count` grids, the first as it is, the others moved by up to half a cell, clicks clipped to the image."""
    grid = click_grid(height, width, points_per_side)
    cell = np.array([width, height]) / points_per_side
    moves = np.random.default_rng([*seed]).uniform(-0.5, 0.5, (count - 1, 2))
    last = np.array([width - 1, height - 1])
    return [grid, *(np.clip(grid + move * cell, 0, last) for move in moves)]
