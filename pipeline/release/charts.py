"""The card's pictures: bar charts as SVG text, and images with their masks as JPEG.

Charts are text made from the statistics, so `verify` draws them again and compares.
"""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from ..dataset.viewer import jpeg, reduced_rle, thumbnail, thumbnail_size
from ..format import rle
from ..format.records import LabelledHistogram, ReleaseStatistics
from ..format.schema import Annotation, Sample

WIDTH: Final = 720
ROW: Final = 26
LABELS: Final = 150
EXAMPLE_SIDE_PX: Final = 400
"""Longer side of one of the three panels of an example."""
EXAMPLES: Final = 4
JPEG_QUALITY: Final = 88
PER_IMAGE_EDGES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
"""Lower borders of the bins of masks per image; the last one is open."""


def charts(statistics: ReleaseStatistics) -> dict[str, str]:
    """Name -> SVG, of the statistics as they stand in `statistics.json`."""
    grain, area = statistics["granularity_histogram"], statistics["area_histogram"]
    per_image = statistics["masks_per_image_histogram"]
    grain_labels = [f"{low:.1f} to {high:.1f}" for low, high in zip(grain["edges"], grain["edges"][1:], strict=False)]
    area_labels = [f"{low:g} to {high:g}" for low, high in zip(area["edges"], area["edges"][1:], strict=False)]
    depths = sorted(statistics["depth"].items(), key=lambda each: int(each[0]))
    reasons = list(statistics["failures_by_reason"].items())
    made = {
        "masks_per_image": bar_chart("Images by their number of masks", per_image["labels"], per_image["counts"]),
        "granularity": bar_chart("Masks by granularity", grain_labels, grain["counts"]),
        "area": bar_chart("Masks by their share of the image's area", area_labels, area["counts"]),
        "depth": bar_chart(
            "Masks by depth in the part tree (0 is the whole)", [name for name, _ in depths], [n for _, n in depths]
        ),
    }
    if reasons:
        made["drop_reasons"] = bar_chart(
            "Input images in no shard, by reason", [name for name, _ in reasons], [n for _, n in reasons]
        )
    return made


def bar_chart(title: str, labels: Sequence[str], counts: Sequence[int]) -> str:
    """A horizontal bar for each label, with its count and share."""
    total, largest = sum(counts), max([*counts, 1])
    height = 48 + ROW * len(labels) + 10
    room = WIDTH - LABELS - 150
    said = "; ".join(f"{label}: {count:,}" for label, count in zip(labels, counts, strict=True))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'role="img" font-family="ui-sans-serif, system-ui, Segoe UI, Helvetica, Arial, sans-serif" font-size="13">',
        f"<title>{escape(title)}</title>",
        f"<desc>{escape(said)}</desc>",
        f'<rect width="{WIDTH}" height="{height}" rx="10" fill="#fffdf9"/>',
        f'<text x="18" y="28" font-size="15" font-weight="600" fill="#1d1b17">{escape(title)}</text>',
    ]
    for index, (label, count) in enumerate(zip(labels, counts, strict=True)):
        y = 48 + ROW * index
        width = max(round(room * count / largest, 1), 1.0 if count else 0.0)
        share = f"{100 * count / total:.1f} %" if total else ""
        lines += [
            f'<text x="{LABELS - 8}" y="{y + 14}" text-anchor="end" fill="#6b6459">{escape(label)}</text>',
            f'<rect x="{LABELS}" y="{y + 3}" width="{width:g}" height="15" rx="3" fill="#b4530a"/>',
            f'<text x="{LABELS + width + 8:g}" y="{y + 15}" fill="#1d1b17">{count:,}'
            f'<tspan fill="#6b6459" dx="7">{share}</tspan></text>',
        ]
    return "\n".join([*lines, "</svg>", ""])


def masks_per_image_histogram(counts: Counter[int]) -> LabelledHistogram:
    """Labels and counts of images, in the bins of `PER_IMAGE_EDGES`; images without masks are in the failures."""
    labels, binned = [], []
    for low, high in zip(PER_IMAGE_EDGES, [*PER_IMAGE_EDGES[1:], None], strict=True):
        last = None if high is None else high - 1
        labels.append(f"{low:,} and more" if last is None else f"{low}" if last == low else f"{low} to {last}")
        binned.append(sum(n for masks, n in counts.items() if masks >= low and (high is None or masks < high)))
    while len(labels) > 1 and binned[-1] == 0 and binned[-2] == 0:  # no empty tail
        labels.pop()
        binned.pop()
    return {"labels": labels, "counts": binned}


# ---------------------------------------------------------------------------------------------------------------------
# Examples


def example_jpeg(sample: Sample, image: bytes | None) -> bytes:
    """Three panels: image, instances, parts (the smaller, the more on top). Without an image, on grey."""
    width, height = thumbnail_size(sample.width, sample.height, EXAMPLE_SIDE_PX)
    if image is None:
        rgb: NDArray[np.uint8] = np.full((height, width, 3), 225, dtype=np.uint8)
    else:
        rgb = thumbnail(image, width=width, height=height, key=sample.key)
    instances = [mask for mask in sample.annotations if mask.is_instance]
    parts = [mask for mask in sample.annotations if not mask.is_instance]
    panels = [rgb, _overlaid(rgb, instances), _overlaid(rgb, parts)]
    gap = np.full((height, 8, 3), 255, dtype=np.uint8)
    return jpeg(np.hstack([panels[0], gap, panels[1], gap, panels[2]]), JPEG_QUALITY)


def _overlaid(rgb: NDArray[np.uint8], masks: Sequence[Annotation]) -> NDArray[np.uint8]:
    """Each mask in a colour of its own, larger ones first, with a light border."""
    height, width = rgb.shape[:2]
    canvas = rgb.astype(np.float32)
    for mask in sorted(masks, key=lambda each: (-each.area, each.id)):
        inside = rle.decode(reduced_rle(mask.segmentation, width=width, height=height))
        hue = (mask.id * 0.618034) % 1.0
        colour = np.array(colorsys.hls_to_rgb(hue, 0.55, 0.75), dtype=np.float32) * 255
        canvas[inside] = 0.5 * rgb[inside] + 0.5 * colour
        border = inside & ~cv2.erode(inside.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
        canvas[border] = 0.25 * canvas[border] + 0.75 * 255
    return np.clip(canvas, 0, 255).astype(np.uint8)
