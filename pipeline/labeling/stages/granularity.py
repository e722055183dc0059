"""Stage 5: from areas within one instance's tree to the granularity g in [0.1, 1.0].

    instance-minmax    g = 0.1 + 0.9 (sqrt A - sqrt A_min) / (sqrt A_max - sqrt A_min)      (arXiv 2511.13714, eq. 3)
    instance-relative  g = 0.1 + 0.9 sqrt(A / A_max)

A in pixels, A_max the instance, A_min its smallest part. An instance alone, or parts that are all as large as it, have
1.0. We differ from the reference: the instance is always the largest (its parts are clipped to it), there is no
constant fallback of 0.5, and no value is forced by rank. `instance-relative` is ours: a tiny noise mask cannot stretch
it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...format.schema import GRANULARITY_MAX, GRANULARITY_MIN
from ..config import GranularityConfig


def granularity_of(area_px: NDArray[np.int64], config: GranularityConfig) -> NDArray[np.float64]:
    """Granularities of an instance and its parts.

    Args:
        area_px: (N,) int64, positive; the instance first, no part larger than it.
        config: which formula.

    Returns:
        (N,) float64 in [0.1, 1.0], six decimals, the first 1.0; never smaller for a larger area.
    """
    root = np.sqrt(area_px.astype(np.float64))
    largest, smallest = root[0], root.min()
    if config.method == "instance-relative":
        share = root / largest
    elif largest > smallest:
        share = (root - smallest) / (largest - smallest)
    else:
        share = np.ones_like(root)
    values = GRANULARITY_MIN + (GRANULARITY_MAX - GRANULARITY_MIN) * share
    values[0] = GRANULARITY_MAX
    return np.round(np.clip(values, GRANULARITY_MIN, GRANULARITY_MAX), 6)
