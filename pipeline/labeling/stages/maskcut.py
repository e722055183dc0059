"""Stage 2, divide: patch features -> what may be instances, by normalised cuts (MaskCut, arXiv 2301.11320, sec. 3.2).

One cut: patches whose features have a cosine above tau are linked by 1, all others by eps. With A these weights and D
their row sums, the second smallest generalised eigenvector of (D - A) x = lambda D x says which patches belong
together; it is split at its mean, the side that holds the object is chosen by the grid's corners, and of that side the
connected piece around the most extreme patch is the mask. The next round cuts what is left.

The eigenvector is not taken from a dense decomposition. With y = D^1/2 x it is the largest but one of
D^-1/2 A D^-1/2, whose largest is D^1/2 1 and known; so a Krylov space (Lanczos) grown from a seeded vector and from the
graph's components without eps gives it within some dozen products, each of which reads the 0/1 links as single bytes
and the constant eps part as one sum. Same cut, some fifty times faster at 3,600 patches.

Where we differ from the reference, on purpose:
- A found object's patches leave the graph. (There they stay with zero features, and can win a round as a cluster of
  their own; and a rejected round is solved again, unchanged, until the rounds are up.)
- Which side is the object does not depend on the sign that a solver happens to give.
- A graph that has nothing to cut (all patches alike) gives no mask instead of an arbitrary one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numba
import numpy as np
from numpy.typing import NDArray

from ..config import DivideConfig
from ..regions import MergeTree

START_COMPONENTS: Final = 32
"""Connected components of the graph that the search starts from, the largest first."""
START_VECTORS: Final = 3
"""Seeded vectors besides. From a single one, a search can settle on the third eigenvector before it sees the second."""
MAX_BASIS: Final = 160
"""Vectors of the search space before it is drawn together around the best ones."""
KEPT_BASIS: Final = 12
"""Vectors it is drawn together to."""
MAX_PRODUCTS: Final = 3000
"""Of the operator with a vector; nearly closed gaps need hundreds, ordinary ones some dozen."""
VECTOR_TOLERANCE: Final = 3e-3
"""Bound on the sine between the vector found and the true one, from the residual and the gap."""
VALUE_TOLERANCE: Final = 1e-8
"""Bound on the error of the eigenvalue."""
NEXT_TOLERANCE: Final = 0.02
"""Residual of the next Ritz vector that is asked for, so that the gap is a gap and the first is the first."""
SINGLE_FLOOR: Final = 1e-5
"""Residual at which single precision has given what it can."""
DOUBLE_FLOOR: Final = 1e-9
"""Residual below which a closed gap counts as solved."""
NOTHING_TO_CUT: Final = 1e-6
"""Second eigenvalue of D^-1/2 A D^-1/2 below which the graph is one piece."""


@dataclass(frozen=True)
class Cut:
    """One normalised cut of n patches.

    Attributes:
        vector: (n,) float64, x, of D-norm 1; its sign is that of its largest entry by magnitude, positive.
        value: lambda, the second smallest generalised eigenvalue (the relaxed value of the cut), in [0, 2].
        products: of the operator with a vector that it took.
        residual: |D^-1/2 A D^-1/2 y - (1 - lambda) y|.
    """

    vector: NDArray[np.float64]
    value: float
    products: int
    residual: float


def links_between(features: NDArray[np.floating], tau: float) -> NDArray[np.uint8]:
    """(n, n) uint8: 1 where the cosine of two patches is above tau. A zero vector is linked to nothing.

    Args:
        features: (n, d).
        tau: threshold.
    """
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    unit = np.divide(features, norms, out=np.zeros_like(features), where=norms > 0)
    similar = (unit @ unit.T) > tau
    return (similar & similar.T).astype(np.uint8)  # rounding is not always symmetric


def normalised_cut(links: NDArray[np.uint8], *, eps: float, seed: int) -> Cut:
    """Solves (D - A) x = lambda D x for its second smallest eigenvalue, A = eps + (1 - eps) * links.

    Args:
        links: (n, n) uint8, symmetric, 0 or 1; n at least 2.
        eps: weight of what is not linked, above 0.
        seed: of the vector that the search starts from; with a closed gap it decides which vector of the space is
            found, and always the same one.
    """
    operator = _Operator(links, eps)
    random = np.random.default_rng(seed)
    seeded = random.standard_normal((START_VECTORS, len(links)))
    start = [operator.constant, *_component_vectors(links, operator), *seeded]
    basis, products, residual, vector = np.stack(start), 0, 0.0, start[-1]
    for single, floor in ((True, SINGLE_FLOOR), (False, DOUBLE_FLOOR)):
        search = _Search(operator, single=single)
        basis, vector, residual, gap = search.run(basis, floor, MAX_PRODUCTS - products)
        products += search.products
        if _good_enough(residual, gap):
            break
    x = vector * operator.scale
    x *= np.sign(x[np.argmax(np.abs(x))])
    return Cut(vector=x, value=operator.cut_value(vector), products=products, residual=residual)


def _good_enough(residual: float, gap: float) -> bool:
    """The vector is near the true one (residual / gap), and its value nearer still (residual^2 / gap)."""
    return residual <= VECTOR_TOLERANCE * gap and residual * residual <= VALUE_TOLERANCE * gap


class _Operator:
    """D^-1/2 A D^-1/2 without A: links as bytes, the constant part as a sum."""

    def __init__(self, links: NDArray[np.uint8], eps: float) -> None:
        self.links, self.eps = np.ascontiguousarray(links), eps
        self.degree = eps * len(links) + (1.0 - eps) * links.sum(axis=1, dtype=np.int64)
        self.scale = 1.0 / np.sqrt(self.degree)
        self.constant = np.sqrt(self.degree / self.degree.sum())

    def times(self, vector: NDArray[np.float64], *, single: bool) -> NDArray[np.float64]:
        scaled = vector * self.scale
        if single:
            linked = _linked_sums_single(self.links, scaled.astype(np.float32)).astype(np.float64)
        else:
            linked = _linked_sums(self.links, scaled)
        return self.scale * (self.eps * scaled.sum() + (1.0 - self.eps) * linked)

    def cut_value(self, vector: NDArray[np.float64]) -> float:
        """lambda of a vector, in double precision whatever it was found with."""
        return float(1.0 - vector @ self.times(vector, single=False) / (vector @ vector))


class _Search:
    """A Krylov space that is grown by residuals, orthogonal throughout; its second Ritz vector is what is wanted.

    Growing by residuals is Lanczos' space, but may begin with more than one vector. The first basis vector is the known
    eigenvector; all others are orthogonal to it.
    """

    def __init__(self, operator: _Operator, *, single: bool) -> None:
        self._operator, self._single = operator, single
        self.products = 0

    def run(
        self, start: NDArray[np.float64], floor: float, budget: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], float, float]:
        """Searches until the residual says that the vector is good enough, or is at `floor`.

        Returns:
            The best basis to go on from, the vector, its residual, the gap to the next Ritz value.
        """
        size = start.shape[1]
        limit = min(MAX_BASIS, size + 2)
        basis, images = np.zeros((limit, size)), np.zeros((limit, size))
        small = np.zeros((limit, limit))
        basis[0] = start[0]
        count = 1  # the known eigenvector; its image is itself and is never needed
        pending = list(start[1:])
        while True:
            for vector in pending:
                count += self._append(basis, images, small, count, vector)
            if count == 1:
                return basis[:1], np.zeros(size), 0.0, 1.0
            values, rotations = np.linalg.eigh(small[1:count, 1:count])
            best = rotations[:, -2:].T  # the wanted one and the next
            vectors = best @ basis[1:count]
            rests = best @ images[1:count] - values[-2:, None] * vectors
            residuals = np.linalg.norm(rests, axis=1)
            vector, residual = vectors[-1], float(residuals[-1])
            gap = float(values[-1] - values[-2]) if values.size > 1 else 1.0
            solved = _good_enough(residual, gap) or residual <= floor
            if (solved and residuals[0] <= NEXT_TOLERANCE) or self.products >= budget or count == size:
                kept = rotations[:, -KEPT_BASIS:].T @ basis[1:count]
                return np.concatenate([basis[:1], kept]), vector, residual, gap
            if count + 2 > limit:
                kept = rotations[:, -KEPT_BASIS:].T
                basis[1 : 1 + len(kept)], images[1 : 1 + len(kept)] = kept @ basis[1:count], kept @ images[1:count]
                count = 1 + len(kept)
                small[1:count, 1:count] = np.diag(values[-KEPT_BASIS:])
            pending = list(rests)

    def _append(
        self,
        basis: NDArray[np.float64],
        images: NDArray[np.float64],
        small: NDArray[np.float64],
        count: int,
        vector: NDArray[np.float64],
    ) -> int:
        """Adds one vector's new direction; 0 if it has none."""
        length = np.linalg.norm(vector)
        if count == len(basis) or length == 0:
            return 0
        vector = vector / length
        for _ in range(2):
            vector = vector - (basis[:count] @ vector) @ basis[:count]
        left = np.linalg.norm(vector)
        if left < 1e-10:
            return 0
        basis[count] = vector / left
        for _ in range(1 if left > 0.1 else 2):
            basis[count] -= (basis[:count] @ basis[count]) @ basis[:count]
            basis[count] /= np.linalg.norm(basis[count])
        images[count] = self._operator.times(basis[count], single=self._single)
        self.products += 1
        small[count, 1 : count + 1] = small[1 : count + 1, count] = basis[1 : count + 1] @ images[count]
        return 1


def _component_vectors(links: NDArray[np.uint8], operator: _Operator) -> list[NDArray[np.float64]]:
    """D^1/2 times the indicator of each connected component: nearly eigenvectors, with eigenvalues near 1 all of them.

    A search that began without them would have to tell apart eigenvalues that differ by eps only.
    """
    component = _connected_components(links)
    sizes = np.bincount(component)
    if sizes.size == 1:
        return []
    largest = np.argsort(-sizes, kind="stable")[:START_COMPONENTS]
    return [np.where(component == index, operator.constant, 0.0) for index in largest]


@numba.njit(cache=True, fastmath={"reassoc", "contract"})
def _linked_sums_single(links, values):  # type: ignore[no-untyped-def]
    sums = np.empty(links.shape[0], dtype=np.float32)
    for i in range(links.shape[0]):
        total = np.float32(0)
        for j in range(links.shape[1]):
            total += np.float32(links[i, j]) * values[j]
        sums[i] = total
    return sums


@numba.njit(cache=True, fastmath={"reassoc", "contract"})
def _linked_sums(links, values):  # type: ignore[no-untyped-def]
    sums = np.empty(links.shape[0], dtype=np.float64)
    for i in range(links.shape[0]):
        total = 0.0
        for j in range(links.shape[1]):
            total += np.float64(links[i, j]) * values[j]
        sums[i] = total
    return sums


@numba.njit(cache=True)
def _connected_components(links):  # type: ignore[no-untyped-def]
    """Which component of the 0/1 graph each patch is in, numbered by their lowest patch: (n,) int64."""
    size = links.shape[0]
    component = np.full(size, -1, dtype=np.int64)
    waiting = np.empty(size, dtype=np.int64)
    unseen = np.arange(size)
    left = size
    components = 0
    for first in range(size):
        if component[first] >= 0:
            continue
        component[first], waiting[0], count = components, first, 1
        while count > 0:
            count -= 1
            patch = waiting[count]
            kept = 0
            for place in range(left):
                other = unseen[place]
                if component[other] >= 0:
                    continue
                if links[patch, other]:
                    component[other] = components
                    waiting[count] = other
                    count += 1
                else:
                    unseen[kept] = other
                    kept += 1
            left = kept
        components += 1
    return component


# ---------------------------------------------------------------------------------------------------------------------
# Masks


def mask_cut(features: NDArray[np.floating], config: DivideConfig, *, seed: int) -> NDArray[np.bool_]:
    """Up to `config.cuts` objects of an image, on its patch grid: (N, h, w) bool, disjoint, in the order found.

    Example:
        >>> grid = np.zeros((8, 8, 2), dtype=np.float32)
        >>> grid[..., 0] = 1                        # ground
        >>> grid[2:5, 3:6] = [0, 1]                 # an object of other features
        >>> mask_cut(grid, DivideConfig(cuts=1), seed=0)[0].sum()
        np.int64(9)

    Args:
        features: (h, w, d), raw; a zero vector is like nothing.
        config: `cuts`, `tau`, `eps`, `min_mask_fraction`.
        seed: of the solver's first vector.
    """
    height, width, depth = features.shape
    links = links_between(np.ascontiguousarray(features, dtype=np.float32).reshape(-1, depth), config.tau)
    free = np.ones(height * width, dtype=np.bool_)
    found = []
    for _ in range(config.cuts):
        patches = np.flatnonzero(free)
        if patches.size < 2:
            break
        cut = normalised_cut(links[np.ix_(patches, patches)], eps=config.eps, seed=seed)
        if 1.0 - cut.value < NOTHING_TO_CUT:
            break
        mask = object_of(cut.vector, free.reshape(height, width))
        free[mask.ravel()] = False
        if mask.sum() > config.min_mask_fraction * height * width:
            found.append(mask)
    return np.stack(found) if found else np.zeros((0, height, width), dtype=np.bool_)


def object_of(vector: NDArray[np.float64], free: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The object's side of a cut, and of it the connected piece around its most extreme patch: (h, w) bool.

    The object is the side with fewer than two of the grid's corners; with two on each, the side of the most extreme
    patch of all.

    Args:
        vector: (n,) of the free patches, row by row.
        free: (h, w) bool, n of them True.
    """
    from scipy import ndimage

    away = np.zeros(free.shape)
    away[free] = vector - vector.mean()
    corners = away[[0, 0, -1, -1], [0, -1, 0, -1]]
    corners = corners[free[[0, 0, -1, -1], [0, -1, 0, -1]]]
    above, below = int((corners > 0).sum()), int((corners <= 0).sum())
    if max(above, below) >= 3 or above + below < 4:
        positive = above < below if above != below else bool(away.flat[np.argmax(np.abs(away))] > 0)
    else:
        positive = bool(away.flat[np.argmax(np.abs(away))] > 0)
    side = free & (away > 0 if positive else away <= 0)
    pieces, _ = ndimage.label(side)
    seed = np.argmax(np.where(side, away if positive else -away, -np.inf))
    return np.asarray(pieces == pieces.flat[seed])


def remainder_regions(tree: MergeTree, claimed: NDArray[np.bool_], *, min_patches: int) -> NDArray[np.bool_]:
    """What no cut claimed, in connected and coherent regions: (N, h, w) bool, the largest first.

    Args:
        tree: of the whole grid's patches, merged as far as a region may be called coherent; claimed patches must have
            been left out of it (zero features merge with nothing).
        claimed: (h, w) bool.
        min_patches: smallest region.
    """
    roots = np.flatnonzero(tree.parent < 0)
    size = tree.sums((~claimed).ravel().astype(np.float64))[roots]
    roots = roots[size >= max(min_patches, 1)]
    roots = roots[np.lexsort((roots, -size[size >= max(min_patches, 1)]))]
    return (tree.members(roots) & ~claimed.ravel()).reshape(-1, *claimed.shape)
