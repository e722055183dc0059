"""`grainmill bench conquer`: merging 48 x 48 patches x 768 through five thresholds, against the plain definition.

The features that are timed look like a backbone's: smooth over neighbouring patches, with noise, so that merging goes
on through all five thresholds. (On independent noise nothing merges, and both sides only compute the first
similarities; it is a row of the table too.) That the clusters are the same is checked on all kinds: smooth, integers
with many ties, one constant vector, and noise.

The peer is the definition as it is written: for each merge a scan of all edges, one dot product at a time. A second
peer keeps the similarities of unchanged edges between scans, as the reference implementation does; its ratio stands in
the table beside the other.

How much of an image's time conquering takes is measured on a photograph inside the scikit-image package with the
recipe `unsamv2` and a transformer of DINOv3's size (ViT-B/16, 768 dimensions, crops of 48 x 48 patches). Its weights
are drawn: they decide what is found, not how long the way takes.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from ..errors import InputError
from ..labeling.stages.merge_patches import label_grids, merge_patches
from .plain_conquer import plain_label_grids
from .report import BenchOptions, BenchReport, environment, interleaved

SIDE: Final = 48
DEPTH: Final = 768
THRESHOLDS: Final = (0.9, 0.8, 0.7, 0.6, 0.5)
BAR: Final = 100.0
BACKBONE: Final = "vit_base_patch16_dinov3.lvd1689m"
MOST_SHARE: Final = 0.05
"""At most so much of the time of mining an image."""
KINDS: Final = ("smooth", "ties", "constant", "noise")


def drawn_features(kind: str, seed: int, side: int = SIDE, depth: int = DEPTH) -> NDArray[np.float32]:
    """(side, side, depth) float32: `smooth`, `noise`, `ties` (integers 0..2) or `constant` (integers)."""
    random = np.random.default_rng(seed)
    if kind == "smooth":
        noise = random.standard_normal((side, side, depth))
        smooth = gaussian_filter(noise, (2.5, 2.5, 0)) + 0.02 * random.standard_normal((side, side, depth))
        return smooth.astype(np.float32)
    if kind == "ties":
        return random.integers(0, 3, size=(side, side, depth)).astype(np.float32)
    if kind == "constant":
        return np.broadcast_to(random.integers(1, 4, size=depth), (side, side, depth)).astype(np.float32)
    return random.standard_normal((side, side, depth)).astype(np.float32)


def mining_seconds(seed: int) -> dict[str, float]:
    """Seconds by stage of one image, `unsamv2`, with a backbone of the paper's size and drawn weights."""
    import cv2
    import skimage
    import torch

    from ..environment.torch_compat import ensure_torchvision
    from ..labeling.miner import ImageInput, ImageMiner, MinedImage
    from ..labeling.recipes import recipe

    ensure_torchvision()
    import timm

    torch.manual_seed(seed)
    config = recipe("unsamv2")
    config = replace(config, features=replace(config.features, backbone=f"timm:{BACKBONE}"))
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "drawn.pth"
        torch.save(timm.create_model(BACKBONE, num_classes=0).state_dict(), checkpoint)
        miner = ImageMiner(config, device="cpu", checkpoint=checkpoint)
    torch.set_num_threads(1)
    miner.warm_up()
    bgr = cv2.imread(str(Path(skimage.__file__).parent / "data" / "coffee.png"))
    if bgr is None:
        raise InputError("the scikit-image package has no data/coffee.png; install it anew")
    rgb = bgr[:, :, ::-1].astype(np.uint8)
    mined = miner.mine([ImageInput(rgb=rgb, source_uri="skimage/coffee.png", member=None)])[0]
    if not isinstance(mined, MinedImage):
        raise InputError(f"nothing was mined from the image ({mined}); try another --seed")
    return mined.seconds


def our_label_grids(features: NDArray[np.float32]) -> NDArray[np.int32]:
    """The whole of what is measured on our side: merge, cut, labels."""
    height, width, _ = features.shape
    return label_grids(merge_patches(features, min_similarity=THRESHOLDS[-1]), THRESHOLDS, height, width)


def run(options: BenchOptions) -> BenchReport:
    """Times all sides in turn, the smooth features `repeats` times and the others once, and compares the clusters."""
    load = os.getloadavg()
    our_label_grids(drawn_features("noise", options.seed, side=6, depth=8))  # compile
    rows, checks, ratios = [], {}, {}
    for kind in KINDS:
        repeats = options.repeats if kind == "smooth" else 1
        found, seconds = _measure(drawn_features(kind, options.seed), repeats)
        ours_s, plain_s, remembering_s = (statistics.median(seconds[side]) for side in ("ours", "plain", "remembering"))
        ratios[kind] = plain_s / ours_s
        same = all(np.array_equal(found["ours"], found[side]) for side in ("plain", "remembering"))
        checks[f"the same clusters at all five thresholds, {kind} features"] = same
        rows.append(
            {
                "features": kind,
                "runs": repeats,
                "ours_ms": 1e3 * ours_s,
                "plain_ms": 1e3 * plain_s,
                "plain/ours": plain_s / ours_s,
                "remembering_ms": 1e3 * remembering_s,
                "remembering/ours": remembering_s / ours_s,
                "clusters": " ".join(str(np.unique(grid).size) for grid in found["ours"]),
            }
        )
    stages_s = mining_seconds(options.seed)
    share = stages_s["conquer"] / sum(stages_s.values())
    checks[f"conquering takes under {MOST_SHARE:.0%} of mining's time ({share:.1%})"] = share < MOST_SHARE
    return BenchReport(
        name="conquer",
        command=f"grainmill bench conquer --repeats {options.repeats} --seed {options.seed}",
        ratio=ratios["smooth"],
        bar=BAR,
        rows=rows,
        checks=checks,
        details={
            "patches": [SIDE, SIDE],
            "depth": DEPTH,
            "thresholds": list(THRESHOLDS),
            "mining_backbone": f"timm:{BACKBONE}, drawn weights, CPU, one thread",
            "mining_seconds": stages_s,
            "mining_share": share,
        },
        environment=environment(load),
    )


def _measure(
    features: NDArray[np.float32], repeats: int
) -> tuple[dict[str, NDArray[np.int32]], dict[str, list[float]]]:
    """What each side found, and its seconds."""
    found: dict[str, NDArray[np.int32]] = {}

    def side(name: str, grids: Callable[[], NDArray[np.int32]]) -> Callable[[], None]:
        def keep() -> None:
            found[name] = grids()

        return keep

    seconds = interleaved(
        {
            "ours": side("ours", lambda: our_label_grids(features)),
            "plain": side("plain", lambda: plain_label_grids(features, THRESHOLDS, remember=False)),
            "remembering": side("remembering", lambda: plain_label_grids(features, THRESHOLDS, remember=True)),
        },
        repeats=repeats,
    )
    return found, seconds
