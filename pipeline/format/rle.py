"""COCO compressed run-length encoding: the form in which every mask is stored.

A mask of (height, width) is read column by column; the run lengths alternate between background and foreground and
begin with background. They are written as a string of 6-bit characters, each after the second as the difference to
the one two places before (the scheme of the COCO API).

pycocotools encodes fast but trusts its input when it decodes: run lengths that do not sum to height x width read or
write outside the array. Everything here checks first, and decodes itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypedDict

import numba
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from ..errors import SchemaError

MAX_RUN_LENGTHS = 50_000_000
"""No honest mask has more run lengths than this; a longer string is refused before anything is allocated."""

MAX_COORDINATE = 2.0**20
"""Of a polygon, pixels."""


class Rle(TypedDict):
    """COCO's own record: `size` is [height, width], `counts` the compressed string."""

    size: list[int]
    counts: str


def encode(mask: NDArray[np.bool_]) -> Rle:
    """Encodes one mask of shape (H, W), bool."""
    height, width = mask.shape
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(height), int(width)], "counts": encoded["counts"].decode("ascii")}


def decode(rle: Rle) -> NDArray[np.bool_]:
    """Decodes to (H, W) bool.

    Raises:
        SchemaError: the run lengths do not sum to height x width, or the string is malformed.
    """
    height, width = rle["size"]
    return _fill(run_lengths_of(rle), height, width).T.copy()


def run_lengths_of(rle: Rle) -> NDArray[np.int64]:
    """The run lengths, background first: (R,) int64, checked to sum to height x width.

    Raises:
        SchemaError: as `decode`.
    """
    height, width = rle["size"]
    try:
        text = rle["counts"].encode("ascii")
    except (UnicodeEncodeError, AttributeError) as error:
        raise SchemaError(f"RLE counts: expected an ASCII string, found {rle['counts']!r:.60}") from error
    if len(text) > 7 * MAX_RUN_LENGTHS:
        raise SchemaError(f"RLE counts: {len(text)} characters are more than any mask needs")
    lengths, status = _parse(np.frombuffer(text, dtype=np.uint8))
    if status == 1:
        raise SchemaError("RLE counts: a character outside the alphabet of COCO's compressed form")
    if status == 2:
        raise SchemaError("RLE counts: the string ends inside a number")
    if status == 3:
        raise SchemaError("RLE counts: a negative or too large run")
    total = int(lengths.sum())
    if total != height * width:
        raise SchemaError(f"RLE counts sum to {total}, expected height x width = {height} x {width} = {height * width}")
    return lengths


def ends_of(counts: Sequence[str], height: int, width: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Where the run lengths of all masks of one image end, checked as by `run_lengths_of`.

    Args:
        counts: compressed run lengths of n masks.
        height: of every mask in pixels; height x width below 2**31.
        width: likewise.

    Returns:
        ends, int32: the masks' run lengths one after the other, as the column-major pixel at which each ends; and
        first, (n + 1,) int64: mask m has `ends[first[m]:first[m + 1]]`, of which every second one is foreground.

    Raises:
        SchemaError: as `run_lengths_of`, for the first mask that is wrong.
    """
    if height * width >= 2**31:
        raise SchemaError(f"RLE: {height} x {width} pixels, expected fewer than 2**31")
    starts = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum([len(text) for text in counts], out=starts[1:])
    text = "".join(counts)
    if text.isascii():
        ends, first, good = _parse_ends(np.frombuffer(text.encode("ascii"), dtype=np.uint8), starts, height * width)
        if good:
            return ends, first
    # Something is wrong, or written with more characters than it needs: `run_lengths_of` knows.
    lengths = [run_lengths_of({"size": [height, width], "counts": each}) for each in counts]
    ends = np.concatenate([np.cumsum(each, dtype=np.int32) for each in lengths])
    return ends, np.cumsum([0, *map(len, lengths)], dtype=np.int64)


def from_run_lengths(lengths: NDArray[np.int64], height: int, width: int) -> Rle:
    """The inverse of `run_lengths_of`: (R,) int64, background first, summing to height x width."""
    return {"size": [height, width], "counts": bytes(_format(lengths.astype(np.int64))).decode("ascii")}


def from_coco(segmentation: Any, height: int, width: int, *, where: str, clip: bool = False) -> Rle:
    """A checked mask from any of COCO's forms: polygons, uncompressed or compressed run lengths.

    Args:
        segmentation: a list of polygons [x, y, x, y, …] in pixels, filled as the COCO API does, or {size, counts}.
        height: of the image, pixels.
        width: likewise.
        where: for the message.
        clip: move points of polygons that lie outside the image to its border.

    Raises:
        SchemaError: none of these, or of another size.
    """
    try:
        if isinstance(segmentation, list):
            expect_polygons(segmentation, limit=math.inf if clip else MAX_COORDINATE)
            drawn = segmentation
            if clip:
                inside = (np.clip(np.reshape(each, (-1, 2)), 0.0, [width, height]) for each in segmentation)
                drawn = [each.ravel().tolist() for each in inside]
            merged = coco_mask.merge(coco_mask.frPyObjects(drawn, height, width))
            return {"size": [height, width], "counts": merged["counts"].decode("ascii")}
        if not isinstance(segmentation, dict) or "size" not in segmentation:
            raise SchemaError(f"found {segmentation!r:.60}")
        size, counts = segmentation["size"], segmentation.get("counts")
        if not isinstance(size, list | tuple) or list(size) != [height, width]:
            raise SchemaError(f"found size {size!r:.40}")
        if isinstance(counts, list):
            if not all(isinstance(each, int) and not isinstance(each, bool) and 0 <= each < 2**40 for each in counts):
                raise SchemaError("its uncompressed counts are no whole numbers from 0")
            if sum(counts) != height * width:
                raise SchemaError(f"RLE counts sum to {sum(counts)}, expected {height} x {width}")
            return from_run_lengths(np.asarray(counts, dtype=np.int64), height, width)
        if not isinstance(counts, str):
            raise SchemaError(f"counts must be a string or a list, found counts {counts!r:.40}")
        rle: Rle = {"size": [height, width], "counts": counts}
        run_lengths_of(rle)
        return rle
    except SchemaError as error:
        raise SchemaError(f"{where}: expected polygons or run lengths of {height} x {width}; {error}") from error


def expect_polygons(polygons: Sequence[Any], *, limit: float = math.inf) -> None:
    """Checks COCO's polygons.

    Args:
        polygons: [x, y, x, y, …] each.
        limit: every coordinate's size is below it.

    Raises:
        SchemaError: none, fewer than three points, or what are no finite numbers.
    """
    if not polygons:
        raise SchemaError("found no polygon")
    for each in polygons:
        if not isinstance(each, list):
            raise SchemaError(f"found {each!r:.40} in place of a polygon")
        if len(each) < 6 or len(each) % 2:
            raise SchemaError(f"a polygon has x, y pairs of at least three points, found {len(each)} numbers")
        if not all(isinstance(x, int | float) and not isinstance(x, bool) and abs(x) < limit for x in each):
            raise SchemaError("a polygon's coordinates are finite numbers of pixels, found others")


def area_px(lengths: NDArray[np.int64]) -> int:
    """Foreground pixels of checked run lengths."""
    return int(lengths[1::2].sum())


def bbox_xywh(lengths: NDArray[np.int64], height: int) -> tuple[int, int, int, int]:
    """Tight box (x, y, w, h) in whole pixels, w = max - min + 1; (0, 0, 0, 0) for an empty mask."""
    x, y, w, h = _bbox(lengths, height)
    return int(x), int(y), int(w), int(h)


def pairwise_intersection_px(rles: Sequence[Rle]) -> NDArray[np.int64]:
    """Intersections of all pairs: (N, N) int64, symmetric, areas on the diagonal.

    Raises:
        ValueError: masks of several sizes.
        SchemaError: as `decode`.
    """
    return np.asarray(_pairwise(*_intervals(rles)), dtype=np.int64)


def without_copies(rles: Sequence[Rle], *, max_iou: float) -> NDArray[np.int64]:
    """`atoms.suppress_duplicates` of masks in the order of preference, without the intersections of all pairs: only
    those are counted that the two areas leave room for, and only with masks that are kept.

    Args:
        rles: best first.
        max_iou: a mask goes when its IoU with a kept one is above this.

    Returns:
        Indices kept, ascending.

    Raises:
        ValueError: masks of several sizes.
        SchemaError: as `decode`.
    """
    return np.asarray(_without_copies(*_intervals(rles), max_iou), dtype=np.int64)


def _intervals(rles: Sequence[Rle]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Foreground of N masks, column by column: where it starts and ends, (R,) int64 each, one mask after the other; and
    where each mask begins among them, (N + 1,) int64."""
    if len({tuple(rle["size"]) for rle in rles}) > 1:
        raise ValueError("masks of one image have one size")
    bounds = [np.cumsum(run_lengths_of(rle)) for rle in rles]
    ends = [each[1::2] for each in bounds]
    starts = [each[0::2][: len(end)] for each, end in zip(bounds, ends, strict=True)]
    first = np.cumsum([0, *map(len, ends)], dtype=np.int64)
    nothing = np.zeros(0, dtype=np.int64)
    return np.concatenate([nothing, *starts]), np.concatenate([nothing, *ends]), first


@numba.njit(cache=True)
def _shared(starts, ends, one, one_end, other, other_end):  # type: ignore[no-untyped-def]
    shared = 0
    if one == one_end or other == other_end or ends[one_end - 1] <= starts[other] or ends[other_end - 1] <= starts[one]:
        return shared
    while one < one_end and other < other_end:
        shared += max(0, min(ends[one], ends[other]) - max(starts[one], starts[other]))
        if ends[one] < ends[other]:
            one += 1
        else:
            other += 1
    return shared


@numba.njit(cache=True)
def _pairwise(starts, ends, first):  # type: ignore[no-untyped-def]
    count = first.size - 1
    shared = np.zeros((count, count), dtype=np.int64)
    for i in range(count):
        shared[i, i] = (ends[first[i] : first[i + 1]] - starts[first[i] : first[i + 1]]).sum()
        for j in range(i):
            shared[i, j] = _shared(starts, ends, first[i], first[i + 1], first[j], first[j + 1])
            shared[j, i] = shared[i, j]
    return shared


@numba.njit(cache=True)
def _without_copies(starts, ends, first, max_iou):  # type: ignore[no-untyped-def]
    count = first.size - 1
    areas = np.empty(count, dtype=np.int64)
    kept = np.empty(count, dtype=np.int64)
    size = 0
    for i in range(count):
        areas[i] = (ends[first[i] : first[i + 1]] - starts[first[i] : first[i + 1]]).sum()
        copy = False
        for position in range(size):
            j = kept[position]
            small, large = min(areas[i], areas[j]), max(areas[i], areas[j])
            if small == 0 or small / large <= max_iou:  # no IoU is above the ratio of the areas
                continue
            shared = _shared(starts, ends, first[i], first[i + 1], first[j], first[j + 1])
            if shared / (small + large - shared) > max_iou:
                copy = True
                break
        if not copy:
            kept[size] = i
            size += 1
    return kept[:size]


@numba.njit(cache=True)
def _number(text, position, stop):  # type: ignore[no-untyped-def]
    """One number of the compressed form: (value, position behind it, 0), or a status as in `run_lengths_of`."""
    value = np.int64(0)
    shift = 0
    more = True
    while more:
        if position >= stop:
            return value, position, 2
        char = np.int64(text[position]) - 48
        if char < 0 or char > 63:
            return value, position, 1
        if shift > 55:
            return value, position, 3
        value |= (char & 0x1F) << shift
        more = (char & 0x20) != 0
        position += 1
        shift += 5
        if not more and (char & 0x10) != 0:
            value |= np.int64(-1) << shift
    return value, position, 0


@numba.njit(cache=True)
def _parse(text):  # type: ignore[no-untyped-def]
    lengths = np.empty(max(text.size, 1), dtype=np.int64)
    count = 0
    position = 0
    while position < text.size:
        value, position, status = _number(text, position, text.size)
        if status:
            return lengths[:count], status
        if count > 2:
            value += lengths[count - 2]
        if value < 0 or value > (1 << 48):
            return lengths[:count], 3
        lengths[count] = value
        count += 1
    return lengths[:count], 0


@numba.njit(cache=True)
def _parse_ends(text, starts, total):  # type: ignore[no-untyped-def]
    """As `_parse`, for all masks in one pass, without saying what is wrong.

    Most of decoding masks is here, so nothing is asked that need not be: what is wrong is gathered in two numbers and
    looked at once. Until then nothing can go astray: a run takes one character at least, so there is a place for each.

    Args:
        text: of all masks, uint8.
        starts: (n + 1,) where each mask's begins in it, and its length.
        total: pixels of a mask, below 2**31.

    Returns:
        ends and first as `ends_of`; and whether all is as it should be. If not, both are nonsense.
    """
    ends = np.empty(text.size, dtype=np.int32)
    first = np.zeros(starts.size, dtype=np.int64)
    count = np.uint64(0)
    foreign = np.uint8(0)  # a bit that no character of the alphabet has
    wrong = np.int64(0)  # negative if a run is
    for mask in range(starts.size - 1):
        value, shift = np.int64(0), np.int64(0)
        last, before_last, end = np.int64(0), np.int64(0), np.int64(0)
        begin = count
        for position in range(np.uint64(starts[mask]), np.uint64(starts[mask + 1])):
            char = np.uint8(text[position] - np.uint8(48))
            foreign |= char >> np.uint8(6)
            value |= np.int64(char & np.uint8(31)) << shift
            shift += 5
            if char < np.uint8(32):  # the last character of a number
                value = (value << (64 - shift)) >> (64 - shift)  # its highest bit is its sign
                if count - begin > np.uint64(2):
                    value += before_last
                end += value
                wrong |= value
                ends[count] = end
                before_last, last = last, value
                count += np.uint64(1)
                value, shift = np.int64(0), np.int64(0)
            elif shift > 30:  # numbers below 2**31 and their differences need no more than seven characters
                return ends[:count], first, False
        if shift != 0 or end != total:  # ends inside a number, or too early
            return ends[:count], first, False
        first[mask + 1] = count
    return ends[:count].copy(), first, foreign == 0 and wrong >= 0


@numba.njit(cache=True)
def _fill(lengths, height, width):  # type: ignore[no-untyped-def]
    columns = np.zeros(height * width, dtype=np.bool_)
    start = 0
    for i in range(lengths.size):
        if i % 2 == 1:
            columns[start : start + lengths[i]] = True
        start += lengths[i]
    return columns.reshape((width, height))


@numba.njit(cache=True)
def _format(lengths):  # type: ignore[no-untyped-def]
    text = np.empty(lengths.size * 11, dtype=np.uint8)
    length = 0
    for i in range(lengths.size):
        value = lengths[i]
        if i > 2:
            value -= lengths[i - 2]
        more = True
        while more:
            char = value & 0x1F
            value >>= 5
            if (char & 0x10) != 0:
                more = value != -1
            else:
                more = value != 0
            if more:
                char |= 0x20
            text[length] = char + 48
            length += 1
    return text[:length]


@numba.njit(cache=True)
def _bbox(lengths, height):  # type: ignore[no-untyped-def]
    min_x, max_x, min_y, max_y = 1 << 60, -1, 1 << 60, -1
    start = 0
    for i in range(lengths.size):
        length = lengths[i]
        if i % 2 == 1 and length > 0:
            end = start + length - 1
            first_column, last_column = start // height, end // height
            min_x = min(min_x, first_column)
            max_x = max(max_x, last_column)
            if first_column == last_column:
                min_y = min(min_y, start % height)
                max_y = max(max_y, end % height)
            else:
                min_y = 0
                max_y = height - 1
                # A run over a column's border touches the last row of one and the first of the next.
        start += length
    if max_x < 0:
        return 0, 0, 0, 0
    return min_x, min_y, max_x - min_x + 1, max_y - min_y + 1
