"""Masks as run lengths, asked without decoding them: what holds a pixel, what a view keeps, how a mask looks in a view.

A photograph has some hundred masks and a view needs a dozen of them at a fraction of their size, so full-size boolean
images would be most of the work. The runs of all masks of a photograph lie in one array; every question is one pass
over the runs it concerns. Column-major as COCO's encoding: pixel (x, y) of an image H pixels high has the number
x H + y.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from pipeline.rle import Rle, ends_of


@dataclass(frozen=True)
class Runs:
    """The run lengths of n masks of one image.

    Attributes:
        ends: (T,) int32, where each run ends, mask after mask; each mask's runs begin with background and end at H W.
        first: (n + 1,) int64, each mask's first run in `ends`, and T.
        height: H.
    """

    ends: NDArray[np.int32]
    first: NDArray[np.int64]
    height: int

    @staticmethod
    def of(rles: Sequence[Rle], height: int) -> Runs:
        """From masks of one image, checked.

        Raises:
            SchemaError: as `rle.runs_of`, for the first mask that is wrong.
        """
        ends, first = ends_of(rles)
        return Runs(ends, first, height)

    @property
    def nbytes(self) -> int:
        return self.ends.nbytes + self.first.nbytes

    def holds(self, masks: NDArray[np.int64], pixels: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(m, p) bool: which of m masks hold which of p pixels, given by their numbers; -1 is held by none."""
        found: NDArray[np.bool_] = _holds(self.ends, self.first, masks, pixels)
        return found

    def first_held(self, masks: NDArray[np.int64], pixels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """Places in `pixels` of the first `count` that any of some masks holds; fewer if there are not so many."""
        found: NDArray[np.int64] = _first_held(self.ends, self.first, masks, pixels, count)
        return found

    def areas_between(
        self, masks: NDArray[np.int64], low: NDArray[np.int64], high: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """(m,) int64: pixels of each mask in rows low[x] <= y < high[x] of each column x."""
        found: NDArray[np.int64] = _areas_between(self.ends, self.first, masks, self.height, low, high)
        return found

    def sampled(
        self, masks: NDArray[np.int64], columns: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """Masks at the crossings of some columns and rows.

        Args:
            masks: (m,) which.
            columns: (R,) x of each crossing, monotone either way; R a multiple of 8.
            rows: (R,) y, never descending.

        Returns:
            (m, R, R / 8) uint8, row by row, eight crossings to a byte as `np.packbits` does.
        """
        found: NDArray[np.uint8] = _sampled(self.ends, self.first, masks, self.height, columns, rows)
        return found

    def gathered(self, masks: NDArray[np.int64], pixels: NDArray[np.int32]) -> NDArray[np.uint8]:
        """Masks at any pixels: (R, R) numbers, -1 is outside -> (m, R, R / 8) uint8 as `sampled`."""
        found: NDArray[np.uint8] = _gathered(self.ends, self.first, masks, pixels)
        return found


@numba.njit(cache=True)
def _run_at(ends, low, high, pixel):  # type: ignore[no-untyped-def]
    """The first run in ends[low:high] that ends behind a pixel."""
    while low < high:
        middle = (low + high) // 2
        if ends[middle] <= pixel:
            low = middle + 1
        else:
            high = middle
    return low


@numba.njit(cache=True)
def _holds(ends, first, masks, pixels):  # type: ignore[no-untyped-def]
    held = np.zeros((masks.size, pixels.size), dtype=np.bool_)
    for i in range(masks.size):
        start, stop = first[masks[i]], first[masks[i] + 1]
        if stop - start < 2:
            continue
        lowest, behind = ends[start], ends[stop - 1 - (stop - start) % 2]  # of the foreground
        for j in range(pixels.size):
            if lowest <= pixels[j] < behind:
                held[i, j] = (_run_at(ends, start, stop, pixels[j]) - start) % 2 == 1
    return held


@numba.njit(cache=True)
def _first_held(ends, first, masks, pixels, count):  # type: ignore[no-untyped-def]
    places = np.empty(count, dtype=np.int64)
    found = 0
    for j in range(pixels.size):
        if found == count:
            break
        for i in range(masks.size if pixels[j] >= 0 else 0):
            start = first[masks[i]]
            if (_run_at(ends, start, first[masks[i] + 1], pixels[j]) - start) % 2 == 1:
                places[found] = j
                found += 1
                break
    return places[:found]


@numba.njit(cache=True)
def _areas_between(ends, first, masks, height, low, high):  # type: ignore[no-untyped-def]
    areas = np.zeros(masks.size, dtype=np.int64)
    for i in range(masks.size):
        for run in range(first[masks[i]] + 1, first[masks[i] + 1], 2):
            start, end = ends[run - 1], ends[run]
            if start == end:
                continue
            column = start // height
            while start < end:
                top = column * height
                stop = min(end, top + height)
                areas[i] += max(0, min(stop - top, high[column]) - max(start - top, low[column]))
                start = stop
                column += 1
    return areas


@numba.njit(cache=True)
def _sampled(ends, first, masks, height, columns, rows):  # type: ignore[no-untyped-def]
    size = columns.size
    before = np.empty(height + 1, dtype=np.int64)  # rows of the view above each row of the image
    v = 0
    for y in range(height + 1):
        while v < size and rows[v] < y:
            v += 1
        before[y] = v
    packed = np.zeros((masks.size, size, size // 8), dtype=np.uint8)
    leftwards = columns[0] > columns[size - 1]
    for i in range(masks.size):
        begin, stop = first[masks[i]], first[masks[i] + 1]
        bits = packed[i]
        run = begin
        # Bits are set where a run begins and where one ends, and then spread downwards.
        for number in range(size):
            u = size - 1 - number if leftwards else number
            top = columns[u] * height
            bottom = top + height
            while run < stop and ends[run] <= top:
                run += 1
            here = run
            start = ends[here - 1] if here > begin else 0
            bit = np.uint8(128 >> (u % 8))
            while here < stop and start < bottom:
                end = ends[here]
                if (here - begin) % 2 == 1:
                    from_row = before[max(start, top) - top]
                    to_row = before[min(end, bottom) - top]
                    if from_row < to_row:
                        bits[from_row, u // 8] ^= bit
                        if to_row < size:
                            bits[to_row, u // 8] ^= bit
                start = end
                here += 1
        for row in range(1, size):
            for byte in range(size // 8):
                bits[row, byte] ^= bits[row - 1, byte]
    return packed


@numba.njit(cache=True)
def _gathered(ends, first, masks, pixels):  # type: ignore[no-untyped-def]
    size = pixels.shape[0]
    packed = np.zeros((masks.size, size, size // 8), dtype=np.uint8)
    inside = np.zeros(ends[-1] if ends.size else 0, dtype=np.bool_)
    for i in range(masks.size):
        begin, stop = first[masks[i]], first[masks[i] + 1]
        for run in range(begin + 1, stop, 2):
            inside[ends[run - 1] : ends[run]] = True
        for v in range(size):
            for u in range(size):
                pixel = pixels[v, u]
                if pixel >= 0 and inside[pixel]:
                    packed[i, v, u // 8] |= np.uint8(128 >> (u % 8))
        for run in range(begin + 1, stop, 2):
            inside[ends[run - 1] : ends[run]] = False
    return packed
