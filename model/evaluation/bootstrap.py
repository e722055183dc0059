"""95 % intervals by resampling whole images: objects of one image stand and fall together.

Every metric here is a mean of one value per object (average recall and the number of clicks too), so one set of
resampled images serves all columns of a table at once, and the interval of a difference is that of the column of
differences: paired, over the objects that both columns have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

RESAMPLES: Final = 1000
PERCENTILES: Final = (2.5, 97.5)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over objects and where it lies when the images are drawn again.

    Attributes:
        value: mean over the objects that have a value; NaN if none has.
        low, high: percentiles 2.5 and 97.5 of the resampled means.
        objects, images: how many it is taken over.
    """

    value: float
    low: float
    high: float
    objects: int
    images: int

    def scaled(self, factor: float) -> Interval:
        """The same, all three numbers multiplied (a share made a count)."""
        return Interval(
            value=self.value * factor,
            low=self.low * factor,
            high=self.high * factor,
            objects=self.objects,
            images=self.images,
        )


def bootstrap(
    images: Sequence[str] | NDArray[np.str_],
    columns: Mapping[str, FloatArray],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    pairs: Sequence[tuple[str, str]] = (),
) -> dict[str, Interval]:
    """Means and their intervals.

    Args:
        images: (N,) the image of each object.
        columns: name -> (N,) float64; NaN where the object has no value.
        resamples: how often the images are drawn again, as many as there are, with replacement.
        seed: of the draw; the same images and seed give the same draws for all columns.
        pairs: (a, b): the difference a - b is added under the name `a - b`.

    Returns:
        One interval for each column and each pair.
    """
    every = {name: np.asarray(values, dtype=np.float64) for name, values in columns.items()}
    every |= {f"{a} - {b}": every[a] - every[b] for a, b in pairs}
    if not every:
        return {}
    names, index = np.unique(np.asarray(images), return_inverse=True)
    values = np.stack(list(every.values()), axis=1) if len(index) else np.zeros((0, len(every)))
    known = np.isfinite(values)
    sums, counts = np.zeros((len(names), len(every))), np.zeros((len(names), len(every)))
    np.add.at(sums, index, np.where(known, values, 0.0))
    np.add.at(counts, index, known)
    means = _ratio(sums.sum(axis=0), counts.sum(axis=0))
    drawn = _ratio(*(draws(len(names), resamples, seed) @ each for each in (sums, counts)))
    low, high = (np.full(len(every), np.nan), np.full(len(every), np.nan))
    defined = np.isfinite(drawn).any(axis=0)
    if defined.any():
        low[defined], high[defined] = np.nanpercentile(drawn[:, defined], PERCENTILES, axis=0)
    return {
        name: Interval(
            value=float(means[column]),
            low=float(low[column]),
            high=float(high[column]),
            objects=int(counts[:, column].sum()),
            images=int((counts[:, column] > 0).sum()),
        )
        for column, name in enumerate(every)
    }


def ratio_interval(
    sums: FloatArray,
    counts: FloatArray,
    *,
    less: tuple[FloatArray, FloatArray] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """A sum over a sum, such as a mean over the objects of all images, with its interval.

    Args:
        sums: (I,) of each image.
        counts: (I,) likewise.
        less: sums and counts of a second ratio; the interval is of the difference, resampled on both sides alike.
        resamples: as `bootstrap`.
        seed: likewise.

    Returns:
        None where there is nothing to divide by.
    """

    def ratios(weights: FloatArray) -> FloatArray:
        ours = _ratio(weights @ sums, weights @ counts)
        return ours if less is None else ours - _ratio(weights @ less[0], weights @ less[1])

    [value] = ratios(np.ones((1, len(sums))))
    if np.isnan(value):
        return None
    low, high = np.nanpercentile(ratios(draws(len(sums), resamples, seed)), PERCENTILES)
    return Interval(
        value=float(value),
        low=float(low),
        high=float(high),
        objects=int(counts.sum()),
        images=int((counts > 0).sum()),
    )


def _ratio(sums: FloatArray, counts: FloatArray) -> FloatArray:
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def draws(images: int, resamples: int, seed: int) -> FloatArray:
    """(R, I): how often each image was drawn in each resample."""
    if not images:
        return np.zeros((resamples, 0))
    picks = np.random.default_rng([seed, images]).integers(0, images, (resamples, images))
    rows = np.arange(resamples)[:, None] * images
    return np.bincount((picks + rows).ravel(), minlength=resamples * images).reshape(resamples, images).astype(float)
