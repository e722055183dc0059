"""What training is shown: how many pairs of click, g and mask contradict each other, under each way of drawing them.

    python -m benchmarks.training_pairs --data MINED --output FILE.json [--images 200]

Pairs are drawn as `grainmill train` draws them on images shown whole, a click at a time. Of each pair the tree that it
comes from is known, so that it can be said what else the same click might mean: the masks that may be drawn and hold
the click, the instances that these are of, and how well they agree with the drawn mask where their g is the same (by
0.05) or the nearest other one. A pair is *ambiguous* where a mask of about its g (by 0.05) holds the click too and has
an IoU below 0.5 with it: nothing that a student sees tells the two apart.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model.data.augmentation import NO_AUGMENTATION
from model.data.shards import LoadedSample, ShardIndex
from model.data.stream import ExampleSettings, make_example
from model.training.validation import iou
from pipeline.console import ProgressBar
from pipeline.format.granularity import GRANULARITY_MAX, GRANULARITY_MIN
from pipeline.labeling.atoms import enlargement

SIDE: Final = 256
PAIRS: Final = 16
"""Of an image."""
SAME_G: Final = 0.05
AGREES: Final = 0.5
WAYS: Final[dict[str, dict[str, Any]]] = {
    "all pairs, as the paper draws them": {"smallest_parts": True, "wholes_only": False, "min_parts": 0},
    "instances of ten parts, no g of exactly 0.1 (from scratch)": {
        "smallest_parts": False, "wholes_only": False, "min_parts": 10,
    },
    "and wholes alone (--wholes-only)": {"smallest_parts": False, "wholes_only": True, "min_parts": 10},
}  # fmt: skip


def pairs_of(sample: LoadedSample, position: int, way: dict[str, Any]) -> list[dict[str, float]]:
    """What is known of each pair drawn from one image.

    Args:
        sample: of mined shards.
        position: in the stream, which decides the draws.
        way: of `ExampleSettings`.
    """
    settings = ExampleSettings(
        image_size=SIDE, masks_per_image=PAIRS, masks_per_click=1, balance=0.25, clicks=1,
        augmentation=NO_AUGMENTATION, **way,
    )  # fmt: skip
    example = make_example(sample, position, seed=0, settings=settings)
    places = np.flatnonzero(sample.drawable(**way))
    height, width = sample.image.shape[:2]
    bits = sample.run_lengths.sampled(places, enlargement(width, SIDE), enlargement(height, SIDE))
    masks = np.unpackbits(bits, axis=2).astype(np.bool_)
    found = []
    for (x, y), g, truth in zip(example.points.astype(int), example.granularity, example.masks(), strict=True):
        over = masks[:, y, x]
        found.append(_pair(masks[over], sample.granularity[places[over]], sample.instance_id[places[over]], g, truth))
    return found


def _pair(
    masks: NDArray[np.bool_],
    granularity: NDArray[np.float32],
    instance: NDArray[np.int64],
    g: float,
    truth: NDArray[np.bool_],
) -> dict[str, float]:
    """Of one drawn mask (H, W) and its g, beside all n masks that hold its click: (n, H, W), their g and instance."""
    overlap = iou(masks, truth[None])
    gap = np.abs(granularity - g)
    near, other = gap <= SAME_G, gap > 1e-6
    return {
        "masks over the click": len(masks),
        "instances over the click": len(np.unique(instance)),
        "ambiguous": float((overlap[near] < AGREES).any()),
        "iou_same_g": float(overlap[near].mean()),
        "iou_next_g": float(overlap[other][np.argmin(gap[other])]) if other.any() else np.nan,
        "g of exactly 0.1": float(g <= GRANULARITY_MIN + 1e-6),
        "g of exactly 1.0": float(g >= GRANULARITY_MAX - 1e-6),
        "share of the image": float(truth.mean()),
    }


def counted(pairs: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over the pairs that have the number; and how large the masks are, those of the ends of g apart."""
    columns = {name: np.array([pair[name] for pair in pairs]) for name in pairs[0]}
    ends = {f"of those with {name}": columns[name] > 0 for name in ("g of exactly 0.1", "g of exactly 1.0")}
    share = columns.pop("share of the image")
    return {
        "pairs": len(pairs),
        **{name: float(np.nanmean(values)) for name, values in columns.items() if not np.isnan(values).all()},
        "median share of the image": float(np.median(share)),
        "over half of the image": float((share > 0.5).mean()),
        **{name: float(np.median(share[end])) if end.any() else 0.0 for name, end in ends.items()},
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--images", type=int, default=200)
    arguments = parser.parse_args(argv)
    index = ShardIndex.open(arguments.data)
    images = min(arguments.images, len(index))
    pairs: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    with ProgressBar("pairs", images) as bar:
        for place in range(images):
            sample = index.load(place)
            for name, way in WAYS.items():
                pairs[name] += pairs_of(sample, place, way)
            bar.update(place + 1)
    found = {name: counted(each) for name, each in pairs.items()}
    arguments.output.write_text(json.dumps({"data": index.digest, "images": images, "ways": found}, indent=1) + "\n")
    for name, values in found.items():
        print(name, *(f"  {key}: {value:.3f}" for key, value in values.items()), sep="\n", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
