"""The granularity g of a mask: how it follows from areas, and the values and bins in which it is tried and counted.

    instance-minmax    g = 0.1 + 0.9 (sqrt A - sqrt A_min) / (sqrt A_max - sqrt A_min)      (arXiv 2511.13714, eq. 3)
    instance-relative  g = 0.1 + 0.9 sqrt(A / A_max)

A in pixels, A_max the instance, A_min its smallest part. An instance alone, or parts that are all as large as it, have
1.0. We differ from the reference: the instance is always the largest (its parts are clipped to it), there is no
constant fallback of 0.5, and no value is forced by rank. `instance-relative` is ours: a tiny noise mask cannot stretch
it.
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

GranularityMethod = Literal["instance-minmax", "instance-relative"]

GRANULARITY_MIN: Final = 0.1
GRANULARITY_MAX: Final = 1.0
GRANULARITIES: Final = tuple(step / 10 for step in range(1, 11))
"""0.1, 0.2 … 1.0: the values that arXiv 2511.13714 tries, and the edges of the bins."""
GRANULARITY_BINS: Final = 9
"""Equal bins between `GRANULARITIES`; each includes its lower edge, the last one both."""
PUBLISHED_GRANULARITY_PERCENT: Final = (59.8, 23.4, 7.8, 3.1, 2.2, 1.6, 1.0, 0.69, 0.40)
"""UnSAMv2's own masks in these bins, percent (arXiv 2511.13714, Fig. 4); its images, not ours."""


def equation_3(area_px: ArrayLike, smallest_px: float, whole_px: float) -> NDArray[np.float64]:
    """g of masks between the smallest part and the whole.

    Args:
        area_px: any shape, areas in pixels.
        smallest_px: A_min.
        whole_px: A_max.

    Returns:
        float64 in [0.1, 1.0], shaped as `area_px`; 1.0 where smallest and whole are equal.
    """
    root = np.sqrt(np.asarray(area_px, dtype=np.float64))
    largest, smallest = np.sqrt(whole_px), np.sqrt(smallest_px)
    if largest <= smallest:
        return np.full_like(root, GRANULARITY_MAX)
    return _from_share((root - smallest) / (largest - smallest))


def granularity_of(area_px: NDArray[np.int64], method: GranularityMethod) -> NDArray[np.float64]:
    """Granularities of an instance and its parts.

    Args:
        area_px: (N,) int64, positive; the instance first, no part larger than it.
        method: which formula.

    Returns:
        (N,) float64 in [0.1, 1.0], six decimals, the first 1.0; never smaller for a larger area.
    """
    if method == "instance-relative":
        root = np.sqrt(area_px.astype(np.float64))
        values = _from_share(root / root[0])
    else:
        values = equation_3(area_px, area_px.min(), area_px[0])
    values[0] = GRANULARITY_MAX
    return np.round(values, 6)


def _from_share(share: NDArray[np.float64]) -> NDArray[np.float64]:
    values = GRANULARITY_MIN + (GRANULARITY_MAX - GRANULARITY_MIN) * share
    return np.clip(values, GRANULARITY_MIN, GRANULARITY_MAX)


def granularity_bins(granularity: NDArray[np.float64]) -> NDArray[np.int64]:
    """Bin 0..8 of each g; counted in millionths, so that 0.3 falls into [0.3, 0.4) and not below it."""
    millionths = np.rint(np.asarray(granularity, dtype=np.float64) * 1e6).astype(np.int64)
    return np.clip((millionths - 100_000) // 100_000, 0, GRANULARITY_BINS - 1)
