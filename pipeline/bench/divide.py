"""`grainmill bench divide`: one normalised cut of 3,600 patches, against SciPy's dense generalised eigensolver.

Both sides get the same 0/1 links of the same patches and give the second generalised eigenvector of (D - A) x =
lambda D x; the peer is `scipy.linalg.eigh(D - A, D, subset_by_index=[1, 2])`, as MaskCut calls it. What is timed looks
like an image: a grid of 60 x 60 with some objects of their own features, smooth variation and noise. The checks are
made on every kind: smooth fields, plain noise (a small gap), flat regions (a closed gap: there the values of the cuts
are compared, and that a second run gives the same vector), and one flat image.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from ..labeling.stages.maskcut import Cut, links_between, normalised_cut
from .report import BenchOptions, BenchReport, environment, interleaved

SIDE: Final = 60
DEPTH: Final = 64
TAU: Final = 0.15
EPS: Final = 1e-5
BAR: Final = 40.0
GAP: Final = 1e-3
"""Relative gap of the second and third eigenvalue above which the vectors are compared."""
KINDS: Final = ("objects", "smooth", "noise", "regions", "flat")

Dense = tuple[NDArray[np.float64], NDArray[np.float64]]


def drawn_links(kind: str, seed: int, side: int = SIDE, depth: int = DEPTH) -> NDArray[np.uint8]:
    """(side^2, side^2) uint8: patches that are alike.

    Args:
        kind: `objects` (discs on a ground), `smooth`, `noise`, `regions` (four flat quadrants of equal size), `flat`.
        seed: of what is drawn.
        side: of the grid.
        depth: of the features.
    """
    random = np.random.default_rng(seed)
    noise = random.standard_normal((side, side, depth))
    y, x = np.mgrid[:side, :side] / side
    if kind == "objects":
        features = 2.0 * gaussian_filter(noise, (side / 8, side / 8, 0)) + 0.15 * noise
        features += 0.3 * random.standard_normal(depth)
        for _ in range(4):
            centre, radius = random.uniform(0.2, 0.8, 2), random.uniform(0.1, 0.2)
            inside = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
            features[inside] = 0.5 * random.standard_normal(depth) + 0.2 * noise[inside]
    elif kind == "smooth":
        features = gaussian_filter(noise, (side / 15, side / 15, 0))
    elif kind == "regions":
        features = np.eye(4)[(2 * (y >= 0.5) + (x >= 0.5)).astype(int)]
    elif kind == "flat":
        features = np.ones((side, side, 1))
    else:
        features = noise
    return links_between(features.reshape(side * side, -1), TAU)


def dense_cut(links: NDArray[np.uint8]) -> Dense:
    """The peer: second and third eigenvalue, and their vectors."""
    weights = EPS + (1.0 - EPS) * links
    degree = weights.sum(axis=1)
    values, vectors = scipy.linalg.eigh(np.diag(degree) - weights, np.diag(degree), subset_by_index=[1, 2])
    return np.asarray(values), np.asarray(vectors)


def run(options: BenchOptions) -> BenchReport:
    """Times both sides in turn, the objects `repeats` times and the other kinds once, and compares what they found."""
    load = os.getloadavg()
    normalised_cut(drawn_links("smooth", options.seed, side=8), eps=EPS, seed=0)  # compile
    rows: list[dict[str, Any]] = []
    checks, ratios = {}, {}
    for kind in KINDS:
        links = drawn_links(kind, options.seed)
        repeats = options.repeats if kind == "objects" else 1
        ours, (values, vectors), seconds = _measure(links, options.seed, repeats)
        ours_s, dense_s = statistics.median(seconds["ours"]), statistics.median(seconds["dense"])
        ratios[kind] = dense_s / ours_s
        gap = float((values[1] - values[0]) / values[0])
        correlation = abs(float(np.corrcoef(ours.vector, vectors[:, 0])[0, 1])) if gap > GAP else None
        difference = abs(ours.value - float(values[0]))
        if correlation is not None:
            checks[f"the same vector, {kind}: correlation above 0.999"] = correlation > 0.999
        checks[f"the same value of the cut, {kind}: to 1e-6"] = difference < 1e-6
        again = normalised_cut(links, eps=EPS, seed=options.seed)
        checks[f"a second run gives the same bytes, {kind}"] = np.array_equal(again.vector, ours.vector)
        rows.append(
            {
                "patches": kind,
                "runs": repeats,
                "linked": float(links.mean()),
                "ours_ms": 1e3 * ours_s,
                "dense_ms": 1e3 * dense_s,
                "dense/ours": ratios[kind],
                "products": ours.products,
                "lambda": ours.value,
                "relative gap": gap,
                "correlation": correlation,
                "difference of lambda": difference,
            }
        )
    return BenchReport(
        name="divide",
        command=f"grainmill bench divide --repeats {options.repeats} --seed {options.seed}",
        ratio=ratios["objects"],
        bar=BAR,
        rows=rows,
        checks=checks,
        details={"patches": SIDE * SIDE, "tau": TAU, "eps": EPS, "least_ratio": min(ratios.values())},
        environment=environment(load),
    )


def _measure(links: NDArray[np.uint8], seed: int, repeats: int) -> tuple[Cut, Dense, dict[str, list[float]]]:
    """What each side found, and its seconds."""
    cuts: list[Cut] = []
    dense: list[Dense] = []
    sides: dict[str, Callable[[], None]] = {
        "ours": lambda: cuts.append(normalised_cut(links, eps=EPS, seed=seed)),
        "dense": lambda: dense.append(dense_cut(links)),
    }
    seconds = interleaved(sides, repeats=repeats)
    return cuts[-1], dense[-1], seconds
