"""Stage 1 without weights: boundary cues and a watershed, no learned part.

RGB in; out come two boundary maps for each of eight orientations, texton labels and an over-segmentation into
superpixels (about one for 64 pixels). The cues are the classical ones (gradients of brightness and colour, differences
of colour and texton histograms on both sides of a pixel), with the half-discs replaced by two Gaussian blobs, so that
an image of 481 x 321 takes about a third of a second on one core. Weights and scales were chosen on BSDS500 train (our
own measurement; the scale-2 histograms, the dearest cue, are left out at no measurable loss).

Orientation o has the edge *normal* at the angle pi * o / 8 (x right, y down).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import cv2
import numba
import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import watershed

from ..atoms import Atoms
from ..config import FeaturesConfig

Float = NDArray[np.float32]

ORIENTATIONS: Final = 8
TEXTONS: Final = 16
POINTS_AT_ONCE: Final = 256
"""Whose nearest texton is looked for together: their sums stay in the fastest cache."""
BINS: Final = 20
"""Bins of the histograms that are compared across a pixel."""
RANGES: Final = ((0.0, 100.0), (-50.0, 60.0), (-50.0, 70.0))
"""Of the L, a, b histograms."""
PATCH_SIGMA: Final = 0.7
"""Blur of the histograms of a patch grid, in patches."""
GRADIENT_SIGMAS: Final = (0.6, 1.0, 2.0)
HISTOGRAM_SCALES: Final = (4, 8)

# Weights of the watershed's map and of the boundary strength (all but textons; textons), per cue.
_WATERSHED: Final = {"gradient": (0.4, 0.53, 0.4), 4: (0.25, 0.3, 0.3, 0.27), 8: (0.25, 0.2, 0.2, 0.45)}
_EDGE: Final = {"gradient": (0.3, 1.06, 0.4), 4: (0.2, 0.35, 0.3, 0.36), 8: (0.3, 0.3, 0.4, 0.34)}


@dataclass(frozen=True)
class Description:
    """What the descriptor knows of an image of (h, w) pixels.

    Attributes:
        lab: (h, w, 3) float32, CIE Lab, L in [0, 100].
        textons: (h, w) uint8, 0..15.
        edge: (8, h, w) float32, boundary strength by orientation, all cues but textons.
        edge_texture: (8, h, w) float32, the texton cue alone.
        superpixels: the over-segmentation, by a watershed.
    """

    lab: Float
    textons: NDArray[np.uint8]
    edge: Float
    edge_texture: Float
    superpixels: Atoms


def describe(rgb: NDArray[np.uint8], config: FeaturesConfig, *, seed: int) -> Description:
    """Runs the descriptor.

    Args:
        rgb: (h, w, 3) uint8, upright, already at the size at which it is mined.
        config: `texton_samples` and `texton_rounds` are read.
        seed: of the choice of pixels that the textons are learned from.
    """
    lab = cv2.cvtColor(rgb.astype(np.float32) / 255.0, cv2.COLOR_RGB2LAB)
    textons = _textons(np.ascontiguousarray(lab[:, :, 0]), config, seed)
    flood, edge = _gradients(lab)
    edge_texture = np.zeros_like(edge)
    for scale in HISTOGRAM_SCALES:
        differences = _histogram_differences(lab, textons, scale)
        weights = np.array([_WATERSHED[scale], _EDGE[scale]], dtype=np.float32)
        for target, kept, row in ((flood, slice(0, 4), 0), (edge, slice(0, 3), 1), (edge_texture, slice(3, 4), 1)):
            mixed = np.tensordot(weights[row, kept], differences[kept], axes=1)
            target += _upsampled(mixed, lab.shape[1], lab.shape[0])
    superpixels = _watershed(flood.max(axis=0))
    return Description(lab=lab, textons=textons, edge=edge, edge_texture=edge_texture, superpixels=superpixels)


def patch_features(rgb: NDArray[np.uint8], config: FeaturesConfig, *, seed: int) -> NDArray[np.float32]:
    """The descriptor on a patch grid, for recipes that cut and merge patches: (h, w, 76) float32.

    Roots of the L, a, b and texton histograms of each patch and a little of its neighbours, less their mean over the
    image: what all patches share would make all of them similar. (Our own measurement on BSDS500: AR1000 0.137 ->
    0.165 for merging by cosine.)

    Args:
        rgb: (H, W, 3) uint8, sides of whole patches of `config.descriptor_patch_px`.
        config: that, and what `describe` reads.
        seed: as there.
    """
    side = config.descriptor_patch_px
    lab = cv2.cvtColor(rgb.astype(np.float32) / 255.0, cv2.COLOR_RGB2LAB)
    textons = _textons(np.ascontiguousarray(lab[:, :, 0]), config, seed)
    channels = [_soft_histogram(lab[:, :, index], side, *RANGES[index], BINS) for index in range(3)]
    cells = np.concatenate([*channels, _word_histogram(textons, side, TEXTONS)], axis=-1)
    smooth = cv2.GaussianBlur(cells, (0, 0), PATCH_SIGMA, borderType=cv2.BORDER_REPLICATE).reshape(cells.shape)
    roots = np.sqrt(smooth)
    return np.asarray(roots - roots.mean(axis=(0, 1)), dtype=np.float32)


def _directions() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    angles = np.pi * np.arange(ORIENTATIONS) / ORIENTATIONS
    return np.cos(angles), np.sin(angles)


def _gradients(lab: Float) -> tuple[Float, Float]:
    """Fine gradients D = s * sqrt(dL^2 + 2 da^2 + 2 db^2) / 15, weighted for the watershed and for the edge."""
    height, width = lab.shape[:2]
    flood = np.zeros((ORIENTATIONS, height, width), dtype=np.float32)
    edge = np.zeros_like(flood)
    weights = np.array([1.0, 2.0, 2.0], dtype=np.float32)
    cosines, sines = _directions()
    for sigma, for_flood, for_edge in zip(GRADIENT_SIGMAS, _WATERSHED["gradient"], _EDGE["gradient"], strict=True):
        smooth = cv2.GaussianBlur(lab, (0, 0), sigma)
        dx = cv2.Sobel(smooth, cv2.CV_32F, 1, 0, ksize=3, scale=1 / 8)
        dy = cv2.Sobel(smooth, cv2.CV_32F, 0, 1, ksize=3, scale=1 / 8)
        xx, yy, xy = (dx * dx) @ weights, (dy * dy) @ weights, (dx * dy) @ weights
        for o in range(ORIENTATIONS):
            c, s = np.float32(cosines[o]), np.float32(sines[o])
            value = np.sqrt(np.maximum(c * c * xx + 2 * c * s * xy + s * s * yy, 0)) * np.float32(sigma / 15)
            flood[o] += np.float32(for_flood) * value
            edge[o] += np.float32(for_edge) * value
    return flood, edge


def _histogram_differences(lab: Float, textons: NDArray[np.uint8], scale: int) -> Float:
    """(4, 8, h', w') float32: chi distance of the histograms of L, a, b and textons on both sides of each cell."""
    factor = scale // 2
    cosines, sines = _directions()
    offsets = np.stack([np.rint(3.0 * sines), np.rint(3.0 * cosines)], axis=1).astype(np.int64)
    channels = []
    for index in range(4):
        if index < 3:
            low, high = RANGES[index]
            cells = _soft_histogram(lab[:, :, index], factor, low, high, BINS)
        else:
            cells = _word_histogram(textons, factor, TEXTONS)
        smooth = cv2.GaussianBlur(cells, (0, 0), 2.0, borderType=cv2.BORDER_REFLECT_101)
        channels.append(_two_sided(smooth.reshape(cells.shape), offsets))
    return np.stack(channels)


def _upsampled(maps: Float, width: int, height: int) -> Float:
    resized = [cv2.resize(each, (width, height), interpolation=cv2.INTER_LINEAR) for each in maps.astype(np.float32)]
    return np.stack(resized)


def _watershed(strength: Float) -> Atoms:
    """Floods the unsmoothed map from its minima (5 x 5 ellipse); no line between basins."""
    top = float(strength.max())
    level = np.rint(strength * (255.0 / top) if top > 0 else strength).astype(np.uint8)
    eroded = cv2.erode(level, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5)))
    _, markers = cv2.connectedComponents((level == eroded).astype(np.uint8), connectivity=8)
    basins = watershed(level, markers.astype(np.int32), connectivity=1)
    compact = np.cumsum(np.bincount(basins.ravel()) > 0) - 1
    return Atoms.of(compact[basins])


def _textons(lightness: Float, config: FeaturesConfig, seed: int) -> NDArray[np.uint8]:
    """Sixteen texture words learned from this image alone: seeded k-means on sixteen filter responses."""
    height, width = lightness.shape
    responses = np.empty((height, width, 16), dtype=np.float32)
    index = 0
    for sigma in (1.0, 2.0):
        smooth = cv2.GaussianBlur(lightness, (0, 0), sigma)
        dx, dy = (cv2.Sobel(smooth, cv2.CV_32F, *order, ksize=3) for order in ((1, 0), (0, 1)))
        dxx, dxy, dyy = (cv2.Sobel(smooth, cv2.CV_32F, *order, ksize=3) for order in ((2, 0), (1, 1), (0, 2)))
        for angle in np.pi * np.arange(4) / 4:
            c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
            responses[:, :, index] = (c * c * dxx + 2 * c * s * dxy + s * s * dyy) * np.float32(sigma**2 / 4)
            responses[:, :, index + 1] = (c * dx + s * dy) * np.float32(1.5 * sigma / 8)
            index += 2
    flat = responses.reshape(-1, 16)
    norm = np.sqrt((flat * flat).sum(axis=1, keepdims=True))
    flat *= np.where(norm > 0, np.log1p(norm / 3) / np.maximum(norm, np.float32(1e-12)), 0).astype(np.float32)
    random = np.random.default_rng(seed)
    count = min(config.texton_samples, flat.shape[0])
    chosen = flat[np.sort(random.choice(flat.shape[0], size=count, replace=False))].astype(np.float32)
    centres = chosen[random.permutation(count)[:TEXTONS]].copy()
    for _ in range(config.texton_rounds):
        words = _nearest(chosen, centres)
        for word in range(centres.shape[0]):
            members = chosen[words == word]
            if members.size:
                centres[word] = members.mean(axis=0)
    return _nearest(flat, centres).reshape(height, width)


@numba.njit(cache=True)
def _nearest(points, centres):  # type: ignore[no-untyped-def]
    """The nearest centre of each point. The inner loop runs over points, whose sums do not wait for each other."""
    (points_count, depth), count = points.shape, centres.shape[0]
    words = np.empty(points_count, dtype=np.uint8)
    columns = np.zeros((depth, POINTS_AT_ONCE), dtype=np.float32)
    for start in range(0, points_count, POINTS_AT_ONCE):
        several = min(POINTS_AT_ONCE, points_count - start)
        for i in range(several):
            for j in range(depth):
                columns[j, i] = points[start + i, j]
        best = np.full(POINTS_AT_ONCE, np.float32(np.inf))
        word = np.zeros(POINTS_AT_ONCE, dtype=np.uint8)
        for k in range(count):
            total = np.float32(0)
            for j in range(depth):
                total += centres[k, j] * centres[k, j]
            value = np.full(POINTS_AT_ONCE, total * np.float32(0.5))
            for j in range(depth):
                centre, column = centres[k, j], columns[j]
                for i in range(POINTS_AT_ONCE):
                    value[i] -= column[i] * centre
            for i in range(POINTS_AT_ONCE):
                nearer = value[i] < best[i]
                best[i] = value[i] if nearer else best[i]
                word[i] = k if nearer else word[i]
        words[start : start + several] = word[:several]
    return words


@numba.njit(cache=True)
def _soft_histogram(values, factor, low, high, bins):  # type: ignore[no-untyped-def]
    height, width = values.shape
    rows, columns = (height + factor - 1) // factor, (width + factor - 1) // factor
    cells = np.zeros((rows, columns, bins), dtype=np.float32)
    counts = np.zeros((rows, columns), dtype=np.float32)
    scale = (bins - 1) / (high - low)
    for y in range(height):
        for x in range(width):
            place = (values[y, x] - low) * scale
            place = min(max(place, 0.0), bins - 1.000001)
            lower = int(place)
            share = np.float32(place - lower)
            cells[y // factor, x // factor, lower] += np.float32(1) - share
            cells[y // factor, x // factor, lower + 1] += share
            counts[y // factor, x // factor] += np.float32(1)
    for r in range(rows):
        for c in range(columns):
            for b in range(bins):
                cells[r, c, b] /= counts[r, c]
    return cells


@numba.njit(cache=True)
def _word_histogram(words, factor, bins):  # type: ignore[no-untyped-def]
    height, width = words.shape
    rows, columns = (height + factor - 1) // factor, (width + factor - 1) // factor
    cells = np.zeros((rows, columns, bins), dtype=np.float32)
    counts = np.zeros((rows, columns), dtype=np.float32)
    for y in range(height):
        for x in range(width):
            cells[y // factor, x // factor, words[y, x]] += np.float32(1)
            counts[y // factor, x // factor] += np.float32(1)
    for r in range(rows):
        for c in range(columns):
            for b in range(bins):
                cells[r, c, b] /= counts[r, c]
    return cells


@numba.njit(cache=True, error_model="numpy")
def _two_sided(cells, offsets):  # type: ignore[no-untyped-def]
    """The inner loop runs along a row: of each cell the bins are added up in their order all the same."""
    rows, columns, bins = cells.shape
    pad = np.abs(offsets).max()
    by_bin = np.empty((bins, rows, columns + 2 * pad), dtype=np.float32)
    for b in range(bins):
        for r in range(rows):
            for c in range(-pad, columns + pad):
                by_bin[b, r, c + pad] = cells[r, min(max(c, 0), columns - 1), b]
    result = np.empty((offsets.shape[0], rows, columns), dtype=np.float32)
    for o in range(offsets.shape[0]):
        dy, dx = offsets[o, 0], offsets[o, 1]
        for r in range(rows):
            r1, r2 = min(max(r + dy, 0), rows - 1), min(max(r - dy, 0), rows - 1)
            total = np.zeros(columns, dtype=np.float32)
            for b in range(bins):
                one, other = by_bin[b, r1, pad + dx :], by_bin[b, r2, pad - dx :]
                for c in range(columns):
                    gap = one[c] - other[c]
                    total[c] += gap * gap / (one[c] + other[c] + np.float32(1e-4))
            for c in range(columns):
                result[o, r, c] = np.sqrt(np.float32(0.5) * total[c])
    return result


def region_histograms(lab: Float, textons: NDArray[np.uint8], superpixels: Atoms, bins: int) -> NDArray[np.float64]:
    """Sums (not divided) over each superpixel: (L, 3 * bins + 16) float64 of soft L, a, b bins and texton counts."""
    low = np.array([each[0] for each in RANGES])
    high = np.array([each[1] for each in RANGES])
    return _region_histograms(lab, textons, superpixels.labels, len(superpixels), low, high, bins)


def region_channels(bins: int) -> NDArray[np.int64]:
    """Which channel (0 L, 1 a, 2 b, 3 textons) a column of `region_histograms` belongs to: (3 * bins + 16,) int64."""
    return np.repeat(np.arange(4), [bins, bins, bins, TEXTONS]).astype(np.int64)


@numba.njit(cache=True)
def _region_histograms(lab, textons, labels, count, low, high, bins) -> Any:  # type: ignore[no-untyped-def]
    sums = np.zeros((count, 3 * bins + TEXTONS))
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            region = labels[y, x]
            for channel in range(3):
                place = (lab[y, x, channel] - low[channel]) / (high[channel] - low[channel]) * (bins - 1)
                place = min(max(place, 0.0), bins - 1.000001)
                lower = int(place)
                sums[region, channel * bins + lower] += 1.0 - (place - lower)
                sums[region, channel * bins + lower + 1] += place - lower
            sums[region, 3 * bins + textons[y, x]] += 1.0
    return sums
