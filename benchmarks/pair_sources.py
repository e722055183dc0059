"""Other pairs of mask and granularity for the same images, as committed shards: what mined ones are compared with.

    python -m benchmarks.pair_sources WAY --data MINED --output OUT [--images N] [--seed 0]

The images are those of MINED, with their bytes; WAY says what becomes of the masks:

- `shuffled`: the mined masks, each image's granularities permuted among all of them: must destroy the dial.
- `constant`: the mined masks, all with g = 1.0: a model that is told nothing.
- `relative`: the mined masks with `instance-relative` g in the place of equation 3.
- `slic`, `felzenszwalb`: the regions of these peers (`model.evaluation.subjects.baselines`), the largest 300, every one
  a candidate for a whole; instances, parts and g by the rules of mined labels.
- `rectangles`: ten random rectangles as wholes and thirty in each of them as parts, by the same rules.
- `same`: as they are; with `--images`, only the first by a hash of their keys.

`grainmill mine --recipe unsamv2 --backbone descriptor` makes a patch grid's clusters at five cosines from the same
images, and `benchmarks.people_shards` people's segments. Such shards are for measuring: `shuffled` and `constant` break
the format's rule about parents on purpose.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.data.shards import ShardIndex
from model.evaluation.subjects.baselines import felzenszwalb_masks, slic_masks
from pipeline.console import ProgressBar
from pipeline.format import rle
from pipeline.format.granularity import GRANULARITY_MAX, granularity_of
from pipeline.format.schema import Annotation, Sample, sample_from_json, sha256_of
from pipeline.labeling.config import MineConfig
from pipeline.sources.images import decode_rgb

from .committed import write_run
from .people_shards import tree_of

REGIONS: Final = 300
"""As many as the default recipe keeps."""
RECTANGLES: Final = 10
PARTS: Final = 30
MAX_PIXELS: Final = 10**8

Rgb = NDArray[np.uint8]
Masks = list[NDArray[np.bool_]]


def shuffled(sample: Sample, rng: np.random.Generator) -> tuple[Annotation, ...]:
    order = rng.permutation(len(sample.annotations))
    return tuple(
        replace(each, granularity=sample.annotations[int(other)].granularity)
        for each, other in zip(sample.annotations, order, strict=True)
    )


def constant(sample: Sample, rng: np.random.Generator) -> tuple[Annotation, ...]:
    return tuple(replace(each, granularity=GRANULARITY_MAX) for each in sample.annotations)


def relative(sample: Sample, rng: np.random.Generator) -> tuple[Annotation, ...]:
    found: list[Annotation] = []
    for _, group in itertools.groupby(sample.annotations, key=lambda each: each.instance_id):
        family = list(group)
        values = granularity_of(np.array([each.area for each in family], dtype=np.int64), "instance-relative")
        found += [replace(each, granularity=float(g)) for each, g in zip(family, values, strict=True)]
    return tuple(found)


def same(sample: Sample, rng: np.random.Generator) -> tuple[Annotation, ...]:
    return sample.annotations


def slic(rgb: Rgb, rng: np.random.Generator) -> Masks:
    return [rle.decode(each) for each in slic_masks(rgb)[:REGIONS]]  # the largest come first


def felzenszwalb(rgb: Rgb, rng: np.random.Generator) -> Masks:
    found = felzenszwalb_masks(rgb)
    largest = np.argsort([-rle.area_px(rle.run_lengths_of(each)) for each in found], kind="stable")[:REGIONS]
    return [rle.decode(found[place]) for place in largest]


def rectangles(rgb: Rgb, rng: np.random.Generator) -> Masks:
    """Sides are uniform between a tenth and the whole of what they lie in, places uniform."""
    height, width = rgb.shape[:2]
    found: Masks = []
    for _ in range(RECTANGLES):
        whole = _rectangle((0, 0, height, width), rng)
        for top, left, down, across in (whole, *(_rectangle(whole, rng) for _ in range(PARTS))):
            mask = np.zeros((height, width), dtype=np.bool_)
            mask[top : top + down, left : left + across] = True
            found.append(mask)
    return found


def _rectangle(within: tuple[int, int, int, int], rng: np.random.Generator) -> tuple[int, int, int, int]:
    top, left, height, width = within
    down, across = (max(2, round(side * rng.uniform(0.1, 1.0))) for side in (height, width))
    down, across = min(down, height), min(across, width)
    return (
        top + int(rng.integers(0, height - down + 1)),
        left + int(rng.integers(0, width - across + 1)),
        down,
        across,
    )


Labelled = Callable[[Sample, np.random.Generator], tuple[Annotation, ...]]
Drawn = Callable[[Rgb, np.random.Generator], Masks]
RELABELLED: Final[dict[str, Labelled]] = {
    "same": same,
    "shuffled": shuffled,
    "constant": constant,
    "relative": relative,
}
DRAWN: Final[dict[str, Drawn]] = {"slic": slic, "felzenszwalb": felzenszwalb, "rectangles": rectangles}
WAYS: Final = (*RELABELLED, *DRAWN)


def samples(data: str, way: str, *, images: int | None, seed: int) -> Iterator[tuple[Sample, bytes]]:
    """The images of committed shards with other masks; those without any mask left are left out.

    Args:
        data: committed or released shards with images.
        way: of `WAYS`.
        images: so many, the first by a hash of their keys; None: all, in their order.
        seed: of what is random; an image's draws depend on its key alone.
    """
    index = ShardIndex.open(data)
    keys = index.sample_keys()
    rows = list(range(len(index)))
    if images is not None:
        rows = sorted(rows, key=lambda row: sha256_of(keys[row].encode()))[:images]
    with ProgressBar(f"pairs of {way}", len(rows)) as bar:
        for number, row in enumerate(rows):
            image, record = index.read_raw(row)
            sample = sample_from_json(bytes(record), where=f"{data}: {keys[row]}")
            rng = np.random.default_rng([seed, int(sha256_of(keys[row].encode())[:8], 16)])
            if way in RELABELLED:
                annotations = RELABELLED[way](sample, rng)
            else:
                masks = DRAWN[way](decode_rgb(bytes(image), max_pixels=MAX_PIXELS), rng)
                annotations = tree_of(masks, [True] * len(masks), sample.height, sample.width, MineConfig())
            if annotations:
                yield replace(sample, annotations=annotations), bytes(image)
            bar.update(number + 1)


def write_pairs(data: str, way: str, output: str, *, images: int | None = None, seed: int = 0) -> tuple[int, int]:
    """One committed unit; returns its images and masks."""
    return write_run(list(samples(data, way, images=images, seed=seed)), output, label=f"pairs_{way}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--data", required=True, help="Mined shards, with images.")
    parser.add_argument("--output", required=True)
    parser.add_argument("--images", type=int, help="Default: all.")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    images, masks = write_pairs(options.data, options.way, options.output, images=options.images, seed=options.seed)
    print(f"{options.output}: {images} images, {masks} masks")
    return 0


if __name__ == "__main__":
    sys.exit(main())
