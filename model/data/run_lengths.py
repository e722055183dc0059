"""Masks as run lengths, asked without decoding them: what a view keeps, how a mask looks in it.

An image has some hundred masks and a view needs a dozen of them at a fraction of their size, so full-size boolean
images would be most of the work. The run lengths of all masks of an image lie in one array; every question is one
pass over those it concerns, also which masks hold a click (`prompts.py`). Column-major as COCO's encoding: pixel (x, y)
of an image H pixels high has the number x H + y.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numba
import numpy as np
from numpy.typing import NDArray

from pipeline.format.rle import ends_of

TILE: Final = 32
"""Rows of a turned view that are looked up together."""


@dataclass(frozen=True)
class RunLengths:
    """The run lengths of n masks of one image.

    Attributes:
        ends: (T,) int32, where each run length ends, mask after mask; each mask begins with background and
            ends at H W.
        first: (n + 1,) int64, each mask's first in `ends`, and T.
        height: H.
    """

    ends: NDArray[np.int32]
    first: NDArray[np.int64]
    height: int

    @staticmethod
    def of(counts: Sequence[str], height: int, width: int) -> RunLengths:
        """From the compressed run lengths of masks of one image, checked.

        Raises:
            SchemaError: as `rle.run_lengths_of`, for the first mask that is wrong.
        """
        ends, first = ends_of(counts, height, width)
        return RunLengths(ends, first, height)

    @property
    def nbytes(self) -> int:
        return self.ends.nbytes + self.first.nbytes

    def mostly_between(
        self,
        masks: NDArray[np.int64],
        areas_px: NDArray[np.int64],
        low: NDArray[np.int64],
        high: NDArray[np.int64],
        share: float,
    ) -> NDArray[np.bool_]:
        """(m,) bool: which masks have at least a share of their pixels in rows low[x] <= y < high[x] of the columns x.

        Args:
            masks: (m,) which; each is looked at once, however often it is asked for.
            areas_px: (n,) pixels of every mask.
            low: (W,) rows.
            high: (W,) rows.
            share: in [0, 1].
        """
        found: NDArray[np.bool_] = _mostly_between(
            self.ends, self.first, self.height, masks, areas_px, low, high, share
        )
        return found

    def sampled(
        self, masks: NDArray[np.int64], columns: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """Masks at the crossings of some columns and rows.

        Args:
            masks: (m,) which; a mask that was asked for before is copied.
            columns: (R,) x of each crossing, monotone either way; R a multiple of 8.
            rows: (R,) y, never descending.

        Returns:
            (m, R, R / 8) uint8, row by row, eight crossings to a byte as `np.packbits` does.
        """
        found: NDArray[np.uint8] = _sampled(self.ends, self.first, masks, self.height, columns, rows)
        wide = len(columns) // 8
        return found if found.shape[2] == wide else np.ascontiguousarray(found[:, :, :wide])

    def gathered(
        self, masks: NDArray[np.int64], pixels: NDArray[np.int32], back: NDArray[np.float64]
    ) -> NDArray[np.uint8]:
        """Masks at the pixels that an affine view shows.

        Args:
            masks: (m,) which.
            pixels: (R, R), the number of the pixel under each of the view's, -1 outside; R a multiple of 8.
            back: (2, 3), from a point (x, y) of the image to the one of the view, both with pixel (0, 0) as the unit
                square at the origin. It says where to look for a mask.

        Returns:
            (m, R, R / 8) uint8 as `sampled`.
        """
        found: NDArray[np.uint8] = _gathered(self.ends, self.first, self.height, masks, pixels, back)
        return found


@numba.njit(cache=True)
def _mostly_between(ends, first, height, masks, areas_px, low, high, share):  # type: ignore[no-untyped-def]
    UNKNOWN, LESS, ENOUGH = 0, 1, 2
    known = np.full(areas_px.size, UNKNOWN, dtype=np.uint8)
    for mask in masks:
        if known[mask] == UNKNOWN:
            wanted = share * areas_px[mask]
            inside = _between(ends[first[mask] : first[mask + 1]], height, low, high)
            known[mask] = ENOUGH if inside >= wanted else LESS
    return known[masks] == ENOUGH


@numba.njit(cache=True)
def _between(ends, height, low, high):  # type: ignore[no-untyped-def]
    """Pixels of one mask in rows low[x] <= y < high[x] of each column x."""
    inside = 0
    column, top = 0, 0
    for run in range(1, ends.size, 2):
        start, end = ends[run - 1], ends[run]
        while start < end:
            while start >= top + height:  # steps, for a division costs more: most runs begin where the last one did
                column += 1
                top += height
            stop = min(end, top + height)
            inside += max(0, min(stop - top, high[column]) - max(start - top, low[column]))
            start = stop
    return inside


@numba.njit(cache=True)
def _sampled(ends, first, masks, height, columns, rows):  # type: ignore[no-untyped-def]
    size = columns.size
    width = (size + 63) // 64  # rows are padded to whole words of 64 bits, by which bits are spread
    byte_of, bit_of = _shown(columns, ends[-1] // height if ends.size else 0)
    row_of = _rows_behind(rows, height) * np.uint32(8 * width)
    words = np.empty((masks.size, size * width), dtype=np.uint64)
    edges = np.zeros((size + 1) * width, dtype=np.uint64)  # of one mask: stays in the nearest cache
    for i in range(masks.size):
        seen = words[i]
        earlier = _earlier(masks, i)
        if earlier >= 0:
            seen[:] = words[earlier]
            continue
        mask = ends[first[masks[i]] : first[masks[i] + 1]].view(np.uint32)
        for k in range(len(byte_of)):
            _turn_edges(edges.view(np.uint8), mask, np.uint64(height), row_of, byte_of[k], bit_of[k])
        for column in range(width):
            inside = np.uint64(0)
            for k in range(column, seen.size, width):
                inside ^= edges[k]
                seen[k] = inside
        edges[:] = 0
    return words.view(np.uint8).reshape(masks.size, size, 8 * width)


@numba.njit(cache=True)
def _shown(columns, width):  # type: ignore[no-untyped-def]
    """Where image columns are seen: the byte in a row of the view and the bit in it, (most, W) each.

    A view that enlarges shows a column several times, `most` at most; the bits of one that is shown less often are 0.
    """
    times = np.zeros(width, dtype=np.int64)
    for x in columns:
        times[x] += 1
    most = times.max() if width else 0
    byte_of, bit_of = np.zeros((most, width), dtype=np.uint32), np.zeros((most, width), dtype=np.uint8)
    for u, x in enumerate(columns):
        times[x] -= 1
        byte_of[times[x], x], bit_of[times[x], x] = u // 8, 128 >> (u % 8)
    return byte_of, bit_of


@numba.njit(cache=True)
def _rows_behind(rows, height):  # type: ignore[no-untyped-def]
    """(H + 1,) uint32: the first row of the view that shows each row of the image or one behind it; R if none does."""
    behind = np.empty(height + 1, dtype=np.uint32)
    v = 0
    for y in range(height + 1):
        while v < rows.size and rows[v] < y:
            v += 1
        behind[y] = v
    return behind


@numba.njit(cache=True)
def _turn_edges(bits, ends, height, row_of, byte_of, bit_of):  # type: ignore[no-untyped-def]
    """Turns the bits of one mask where a run begins and where one ends: inside is what has an odd number above it.

    This is most of a view's work, so nothing is asked in it: a run between two rows of the view turns one bit twice,
    one in a column that is not seen turns no bit, one that ends below the view turns a bit behind the last row. All
    numbers are unsigned, else each index would be asked whether it counts from the end.

    Args:
        bits: (R + 1 rows,) uint8, one after the other.
        ends: of the mask's run lengths, uint32.
        height: H, uint64.
        row_of: (H + 1,) uint32, where the first row of the view at each row of the image or behind it begins in `bits`.
        byte_of: (W,) uint32, the byte of each column of the image in a row of the view.
        bit_of: (W,) uint8, and the bit in it.
    """
    column = ends[0] // height
    top = column * height
    for run in range(np.uint64(1), np.uint64(ends.size), np.uint64(2)):
        start, end = np.uint64(ends[run - np.uint64(1)]), np.uint64(ends[run])
        while start < end:
            while start >= top + height:
                column += np.uint64(1)
                top += height
            stop = min(end, top + height)
            byte, bit = byte_of[column], bit_of[column]
            bits[row_of[start - top] + byte] ^= bit
            bits[row_of[stop - top] + byte] ^= bit
            start = stop


@numba.njit(cache=True)
def _gathered(ends, first, height, masks, pixels, back):  # type: ignore[no-untyped-def]
    size = pixels.shape[0]
    packed = np.zeros((masks.size, size, size // 8), dtype=np.uint8)
    inside = np.zeros(1 + (ends[-1] if ends.size else 0), dtype=np.uint8)  # of pixel - 1 first: outside is no branch
    for i in range(masks.size):
        earlier = _earlier(masks, i)
        if earlier >= 0:
            packed[i] = packed[earlier]
            continue
        mask = ends[first[masks[i]] : first[masks[i] + 1]]
        _paint(inside, mask, np.uint8(1))
        left, top, right, bottom = _seen_box(_box(mask, height), back, size)
        for above in range(top, bottom, TILE):  # a column of the image lies together, a row of the view does not
            for byte in range(left // 8, (right + 7) // 8):
                for v in range(above, min(above + TILE, bottom)):
                    bits = np.uint8(0)
                    for u in range(8 * byte, 8 * byte + 8):
                        bits = np.uint8(bits << 1) | inside[np.uint32(pixels[v, u] + 1)]
                    packed[i, v, byte] = bits
        _paint(inside, mask, np.uint8(0))
    return packed


@numba.njit(cache=True)
def _earlier(masks, i):  # type: ignore[no-untyped-def]
    """Where the i-th mask was asked for before; -1 if it was not."""
    for earlier in range(i):
        if masks[earlier] == masks[i]:
            return earlier
    return -1


@numba.njit(cache=True)
def _paint(inside, ends, value):  # type: ignore[no-untyped-def]
    """Sets the pixels of one mask, each one place further on in `inside`."""
    for run in range(1, ends.size, 2):
        inside[1 + ends[run - 1] : 1 + ends[run]] = value


@numba.njit(cache=True)
def _box(ends, height):  # type: ignore[no-untyped-def]
    """Of one mask: x0, y0, x1, y1 in pixels, the last ones behind it; nothing at all for an empty mask."""
    x0, y0, x1, y1 = 1 << 31, height, 0, 0
    for run in range(1, ends.size, 2):
        start, end = ends[run - 1], ends[run]
        if start == end:
            continue
        first, last = start // height, (end - 1) // height
        x0, x1 = min(x0, first), max(x1, last + 1)
        if first == last:
            y0, y1 = min(y0, start - first * height), max(y1, end - first * height)
        else:
            y0, y1 = 0, height
    return x0, y0, x1, y1


@numba.njit(cache=True)
def _seen_box(box, back, size):  # type: ignore[no-untyped-def]
    """Where a box of the image lies in a view: left, top, right, bottom in its pixels, a pixel larger than need be."""
    x0, y0, x1, y1 = box
    if x0 >= x1:
        return 0, 0, 0, 0
    left, top, right, bottom = float(size), float(size), 0.0, 0.0
    for x in (x0, x1):
        for y in (y0, y1):
            u = back[0, 0] * x + back[0, 1] * y + back[0, 2]
            v = back[1, 0] * x + back[1, 1] * y + back[1, 2]
            left, right = min(left, u), max(right, u)
            top, bottom = min(top, v), max(bottom, v)
    return (
        max(0, int(np.floor(left)) - 1),
        max(0, int(np.floor(top)) - 1),
        min(size, int(np.ceil(right)) + 1),
        min(size, int(np.ceil(bottom)) + 1),
    )
