"""Masks that need no training, so that numbers have company. Each is a function of one image.

- `people`: what the other people drew. A segment is scored against those of everyone but who drew it (leave one
  annotator out), largest first: as good as a set of masks at human granularities can be.
- `ucm`: gPb-UCM (Arbelaez et al., TPAMI 2011), whose boundaries were learned from people: 4-connected components of
  `ucm2 <= t` at ten thresholds, read at odd rows and columns, exact copies removed, largest first.
- `ucm-tree`: the same hierarchy whole, its fair form: every region at every level, ranked by the strength at which it
  is absorbed into a larger one.
- `slic`: 600 SLIC superpixels, their mean-Lab graph cut at eight thresholds, largest first.
- `felzenszwalb`: Felzenszwalb and Huttenlocher's graph segmentation at seven scales, finest first.

All leave out masks below 32 px, and none has a granularity. The settings are those of the figures in the literature
notes that our report compares with, except that the evaluator's cap of 1,000 decides how many count.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.format import rle as rle_codec
from pipeline.format.rle import Rle

from ..benchmarks.files import decoded_rgb, load_mat, told
from ..benchmarks.mined import MaskSet
from ..benchmarks.records import EvalImage, GroundTruth
from ..protocols.metrics import MAX_DETECTIONS

MIN_AREA_PX: Final = 32
UCM_THRESHOLDS: Final = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
SLIC_THRESHOLDS: Final = (6, 10, 15, 20, 30, 45, 60, 80)
FELZENSZWALB_SCALES: Final = (20, 50, 100, 200, 400, 800, 1600)

LabelMap = NDArray[np.integer[Any]]


def peer_masks(peer: str, image: EvalImage, truth: GroundTruth, ucm: Path | None) -> MaskSet:
    """The masks of one image.

    Args:
        peer: `people`, `ucm`, `ucm-tree`, `slic` or `felzenszwalb`.
        image: of the benchmark.
        truth: its annotations; `people` are taken from them.
        ucm: folder with `NAME.mat` of the split, for `ucm` and `ucm-tree`.

    Raises:
        InputError: a missing or damaged file.
    """
    if peer == "people":
        return people(truth)
    if peer in ("ucm", "ucm-tree"):
        if ucm is None:
            raise InputError(f"{image.name}: no folder with gPb-UCM files")
        masks = ucm_masks if peer == "ucm" else ucm_tree_masks
        return MaskSet(rles=tuple(masks(ucm / f"{image.path.stem}.mat")))
    rgb = decoded_rgb(image.read_bytes(), where=str(image.path))
    return MaskSet(rles=tuple(slic_masks(rgb) if peer == "slic" else felzenszwalb_masks(rgb)))


def ucm_folder(data: Path | str, split: str) -> Path | None:
    """Where the gPb-UCM files of a split lie; None if they do not."""
    for candidate in ("ucm2", "data/ucm2", "BSDS500/ucm2", "BSR/BSDS500/ucm2", "../ucm2"):
        if (Path(data) / candidate / split).is_dir():
            return Path(data) / candidate / split
    return None


def people(truth: GroundTruth) -> MaskSet:
    """Everyone's segments, largest first, each with who drew it."""
    drawn = sorted(
        (each for each in truth.objects if each.annotator is not None and not each.crowd),
        key=lambda each: -each.area_px,
    )
    return MaskSet(
        rles=tuple(each.mask for each in drawn),
        made_by=tuple(each.annotator for each in drawn if each.annotator is not None),
    )


def ucm_masks(path: Path) -> list[Rle]:
    """Regions of a `ucm2` file (twice the image's size plus one), exact copies removed, largest first."""
    ucm = _read_ucm(path)
    maps = []
    for threshold in UCM_THRESHOLDS:
        _, labels = cv2.connectedComponents((ucm <= threshold).astype(np.uint8), connectivity=4)
        maps.append(labels[1::2, 1::2])
    return distinct_masks(maps, background=0)


def ucm_tree_masks(path: Path) -> list[Rle]:
    """At most 1,000 regions of all levels of a `ucm2` file, what is absorbed last first; the whole image is none.

    Two regions are one from the level on at which some boundary between them is not above it: single linkage of the
    finest regions, in which merges at one level are one merge.
    """
    ucm = _read_ucm(path)
    _, labels = cv2.connectedComponents((ucm <= 0).astype(np.uint8), connectivity=4)
    pixels = labels[1::2, 1::2].astype(np.int64)
    across, down = ucm[1::2, 2:-1:2], ucm[2:-1:2, 1::2]
    first = np.concatenate([pixels[:, :-1].ravel(), pixels[:-1].ravel()])
    second = np.concatenate([pixels[:, 1:].ravel(), pixels[1:].ravel()])
    level = np.concatenate([across.ravel(), down.ravel()])
    border = np.flatnonzero(first != second)
    order = border[np.argsort(level[border], kind="stable")]
    nodes = _linked(np.stack([first[order], second[order]], axis=1).tolist(), level[order].tolist(), pixels)
    area_px = np.bincount(pixels.ravel())
    found = []
    for absorbed, members in nodes:
        size = int(area_px[members].sum())
        if MIN_AREA_PX <= size < pixels.size:
            found.append((-absorbed, -size, members))
    found.sort(key=lambda each: each[:2])
    masks = []
    for _, _, members in found[: MAX_DETECTIONS[-1]]:
        chosen = np.zeros(area_px.size, dtype=np.bool_)
        chosen[members] = True
        masks.append(rle_codec.encode(chosen[pixels]))
    return masks


def _linked(pairs: list[list[int]], levels: list[float], pixels: NDArray[np.int64]) -> list[tuple[float, list[int]]]:
    """(level at which it is absorbed, finest regions in it) of every region, from borders by ascending level."""
    present = np.unique(pixels).tolist()
    top = {region: region for region in present}
    members = {region: [region] for region in present}
    born = dict.fromkeys(present, 0.0)
    found: list[tuple[float, list[int]]] = []

    def root(region: int) -> int:
        while top[region] != region:
            top[region] = top[top[region]]
            region = top[region]
        return region

    for (a, b), level in zip(pairs, levels, strict=True):
        one, other = root(a), root(b)
        if one == other:
            continue
        for side in (one, other):
            if born[side] < level:  # it stood for a while: a region of its own
                found.append((level, members[side]))
        top[other] = one
        members[one] = members[one] + members[other]
        born[one] = level
    return found


def _read_ucm(path: Path) -> NDArray[np.float64]:
    try:
        ucm = np.asarray(load_mat(path)["ucm2"], dtype=np.float64)
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path}: expected an array `ucm2`; {told(error)}") from error
    if ucm.ndim != 2 or ucm.shape[0] % 2 == 0 or ucm.shape[1] % 2 == 0:
        raise InputError(f"{path}: expected `ucm2` of twice the image's size plus one, found {ucm.shape}")
    return ucm


def slic_masks(rgb: NDArray[np.uint8]) -> list[Rle]:
    """Superpixels merged by mean colour at several thresholds, exact copies removed, largest first."""
    from skimage.color import rgb2lab
    from skimage.segmentation import slic

    lab = rgb2lab(rgb)
    labels = np.asarray(slic(rgb, n_segments=600, compactness=10, start_label=0), dtype=np.int64)
    return distinct_masks(cut_mean_colour(labels, lab, SLIC_THRESHOLDS))


def cut_mean_colour(labels: LabelMap, lab: NDArray[np.float64], thresholds: Iterable[float]) -> list[LabelMap]:
    """Label maps in which touching regions are one where their mean colours differ by less than a threshold.

    Args:
        labels: (H, W) 0..n-1.
        lab: (H, W, 3).
        thresholds: Euclidean distances in Lab.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = int(labels.max()) + 1
    area = np.maximum(np.bincount(labels.ravel(), minlength=count), 1)
    sums = [np.bincount(labels.ravel(), weights=lab[..., c].ravel(), minlength=count) for c in range(3)]
    mean = np.stack(sums) / area
    sides = [(labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])]
    pairs = np.unique(np.concatenate([np.stack([a[a != b], b[a != b]], axis=1) for a, b in sides]), axis=0)
    distance = np.sqrt(((mean[:, pairs[:, 0]] - mean[:, pairs[:, 1]]) ** 2).sum(axis=0))
    maps: list[LabelMap] = []
    for threshold in thresholds:
        joined = pairs[distance < threshold]
        graph = coo_array((np.ones(len(joined)), (joined[:, 0], joined[:, 1])), shape=(count, count))
        maps.append(connected_components(graph, directed=False)[1][labels])
    return maps


def felzenszwalb_masks(rgb: NDArray[np.uint8]) -> list[Rle]:
    """Graph segmentations at several scales, finest first."""
    from skimage.segmentation import felzenszwalb

    maps = [felzenszwalb(rgb, scale=scale, sigma=0.8, min_size=40) for scale in FELZENSZWALB_SCALES]
    return [rle for _, rle in _regions(maps)]


def distinct_masks(maps: Iterable[LabelMap], *, background: int | None = None) -> list[Rle]:
    """Regions of at least 32 px of all maps, exact copies removed, largest first.

    Args:
        maps: (H, W) each.
        background: a label that is no region.
    """
    found: dict[str, tuple[int, Rle]] = {}
    for area_px, rle in _regions(maps, background=background):
        found.setdefault(rle["counts"], (area_px, rle))
    return [rle for _, rle in sorted(found.values(), key=lambda each: -each[0])]


def _regions(maps: Iterable[LabelMap], *, background: int | None = None) -> Iterable[tuple[int, Rle]]:
    """(area, mask) of every region of at least 32 px of every map, by label."""
    for labels in maps:
        values, area = np.unique(labels, return_counts=True)
        columns = np.ascontiguousarray(labels.T).ravel()
        change = np.flatnonzero(np.diff(columns)) + 1
        starts, ends = np.concatenate([[0], change]), np.concatenate([change, [columns.size]])
        of_run = columns[starts]
        order = np.argsort(of_run, kind="stable")
        first = np.searchsorted(of_run[order], values)
        last = np.searchsorted(of_run[order], values, side="right")
        for value, area_px, begin, end in zip(values, area, first, last, strict=True):
            if area_px < MIN_AREA_PX or value == background:
                continue
            runs = order[begin:end]
            borders = np.stack([starts[runs], ends[runs]], axis=1).ravel()
            lengths = np.diff(np.concatenate([[0], borders, [columns.size]]))
            if lengths[-1] == 0:
                lengths = lengths[:-1]
            yield int(area_px), rle_codec.from_run_lengths(lengths.astype(np.int64), *labels.shape)
