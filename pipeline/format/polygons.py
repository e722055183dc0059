"""Masks as COCO polygons, without loss for readers that fill polygons as the COCO API does.

A polygon runs along the borders between pixels, in whole coordinates from the upper left corner of the image. COCO
adds the polygons of one mask together and knows no holes, so each piece (pixels that share an edge) is one polygon, and
its holes are reached from its border by a slit of no width, walked there and back. pycocotools then fills exactly the
mask's pixels. Readers that take whole coordinates for pixel centres are off by half a pixel, and those that draw
outlines show the slits.
"""

from __future__ import annotations

import itertools

import cv2
import numba
import numpy as np
from numpy.typing import NDArray


def polygons_of(mask: NDArray[np.bool_]) -> list[list[int]]:
    """The polygons of one mask.

    Args:
        mask: (H, W) bool.

    Returns:
        For each piece [x0, y0, x1, y1, ...] with at least four corners, in pixels: 0 <= x <= W, 0 <= y <= H; none for
        an empty mask. The corners are walked with the piece on the right.
    """
    corners, starts, pixels = _borders(np.pad(mask, 1))
    if len(starts) == 1:
        return []
    _, labels = cv2.connectedComponents(np.ascontiguousarray(mask, dtype=np.uint8), connectivity=4, ltype=cv2.CV_32S)
    borders = [corners[start:end] for start, end in itertools.pairwise(starts.tolist())]
    pieces: dict[int, list[NDArray[np.int64]]] = {}
    for border, (x, y) in zip(borders, pixels, strict=True):
        pieces.setdefault(int(labels[y, x]), []).append(border)
    # The uppermost left pixel of a piece lies at its outer border, so that border was met first.
    return [_with_slits(outer, holes).ravel().tolist() for outer, *holes in pieces.values()]


def _with_slits(outer: NDArray[np.int64], holes: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """One closed walk over the outer border (n, 2) and the holes', each from the corner that is nearest to it."""
    ways: dict[int, list[NDArray[np.int64]]] = {}
    for hole in holes:
        nearest = int(((outer - hole[0]) ** 2).sum(axis=1).argmin())
        ways.setdefault(nearest, []).append(np.concatenate([hole, hole[:1], outer[nearest : nearest + 1]]))
    parts, done = [], 0
    for corner in sorted(ways):
        parts += [outer[done : corner + 1], *ways[corner]]
        done = corner + 1
    return np.concatenate([*parts, outer[done:]])


@numba.njit(cache=True)
def _borders(padded: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Every border of a mask with one background pixel around it, in rows of the upper left edge of each.

    Returns:
        corners (n, 2) int64 x y, one border after the other; starts (b + 1,) int64; and for each border a pixel (x, y)
        of the mask that it touches, (b, 2) int64.
    """
    height, width = padded.shape[0] - 2, padded.shape[1] - 2
    # edges[d, y, x]: the border leaves corner (x, y) to the right, down, left or up, with the mask on its right.
    edges = np.zeros((4, height + 1, width + 1), dtype=np.bool_)
    count = 0
    for y in range(height):
        for x in range(width):
            if padded[y + 1, x + 1]:
                edges[0, y, x] = not padded[y, x + 1]
                edges[1, y, x + 1] = not padded[y + 1, x + 2]
                edges[2, y + 1, x + 1] = not padded[y + 2, x + 1]
                edges[3, y + 1, x] = not padded[y + 1, x]
                count += edges[0, y, x] + edges[1, y, x + 1] + edges[2, y + 1, x + 1] + edges[3, y + 1, x]
    corners = np.empty((count, 2), dtype=np.int64)
    starts = np.zeros(count // 4 + 1, dtype=np.int64)
    pixels = np.empty((count // 4, 2), dtype=np.int64)
    steps = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
    found = borders = 0
    for row in range(height):
        for column in range(width):
            if not edges[0, row, column]:
                continue
            x, y, ahead = column, row, 0
            pixels[borders, 0], pixels[borders, 1] = column, row
            corners[found, 0], corners[found, 1] = x, y
            found += 1
            closed = False
            while not closed:
                edges[ahead, y, x] = False
                x += steps[ahead, 0]
                y += steps[ahead, 1]
                # First to the right, around the same pixel: pieces that touch at a corner only stay apart.
                for turn in (1, 0, 3):
                    further = (ahead + turn) % 4
                    closed = further == 0 and y == row and x == column
                    if closed or edges[further, y, x]:
                        if turn != 0 and not closed:
                            corners[found, 0], corners[found, 1] = x, y
                            found += 1
                        ahead = further
                        break
            borders += 1
            starts[borders] = found
    return corners[:found], starts[: borders + 1], pixels[:borders]
