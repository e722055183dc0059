"""Weights and inputs that two programs draw alike: by Philox's raw bits, keyed by seed and name, never by torch's RNG.

Raw bits of a bit generator are the same in every version of NumPy; its distributions are not promised to be. So a value
is a uniform one, scaled to the wanted standard deviation.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

SEED: Final = 20261128
SIDE: Final = 128
"""Pixels a side of the small cases; one case has 1,024."""

IMAGE_SIZE: Final = (100, 140)
CLICK: Final = [[70.0, 41.0]]
TWO_CLICKS: Final = [[70.0, 41.0], [12.5, 88.0]]
BOX: Final = [20.0, 15.0, 118.0, 77.5]
THREE_PROMPTS: Final = [[[30.0, 20.0]], [[99.0, 60.0]], [[70.0, 90.0]]]

IMAGE_CASES: Final[dict[str, dict[str, Any]]] = {
    "click at 0.1": {"points": CLICK, "labels": [1], "g": 0.1},
    "click at 0.37": {"points": CLICK, "labels": [1], "g": 0.37},
    "click at 1.0": {"points": CLICK, "labels": [1], "g": 1.0},
    "click at 0.37, several asked for": {"points": CLICK, "labels": [1], "g": 0.37, "multimask": True},
    "two clicks": {"points": TWO_CLICKS, "labels": [1, 0], "g": 0.5},
    "two clicks, several asked for": {"points": TWO_CLICKS, "labels": [1, 0], "g": 0.5, "multimask": True},
    "box": {"box": BOX, "g": 0.8},
    "box and click": {"box": BOX, "points": CLICK, "labels": [0], "g": 0.25},
    "click and mask": {"points": CLICK, "labels": [1], "g": 0.37, "mask": True},
    "mask alone": {"g": 0.6, "mask": True},
    "three prompts": {"points": THREE_PROMPTS, "labels": [[1], [1], [0]], "g": 0.45, "multimask": True},
}
"""What is asked of the image. `mask`: with the logits of `click at 0.37` as mask input."""

FRAMES: Final = 3
FRAME_SIZE: Final = (48, 64)
VIDEO_G: Final = 0.4
VIDEO_CLICK: Final = [[30.0, 20.0]]
VIDEO_BOX: Final = [8.0, 10.0, 40.0, 44.0]
"""Of a first object a click and of a second one a box on frame 0, both at `VIDEO_G`, then all frames."""


def values(name: str, count: int, seed: int = SEED) -> NDArray[np.float64]:
    """`count` numbers in [-1, 1)."""
    key = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:16], "big")
    raw = np.random.Philox(key=key).random_raw((count + 1) // 2).view(np.uint32)[:count]
    return raw / 2.0**31 - 1.0


def weights(shapes: Mapping[str, Sequence[int]], seed: int = SEED) -> dict[str, NDArray[np.float32]]:
    """A tensor for each name and shape, of sizes at which no layer saturates and the answer hangs on all of them."""
    found = {}
    for name, shape in shapes.items():
        uniform = math.sqrt(3) * values(name, math.prod(shape), seed).reshape(shape)
        last = name.rsplit(".", 1)[-1]
        if name.endswith("pred_obj_score_head.layers.2.bias"):
            drawn = uniform + 6.0  # there is an object: video would answer -1024 everywhere
        elif last == "bias":
            drawn = 0.1 * uniform
        elif last == "gamma" or (last == "weight" and len(shape) == 1):
            drawn = 1.0 + 0.1 * uniform if last == "weight" else 0.3 * uniform
        elif "patch_embed" not in name and any(each in name for each in ("token.", "tokens.", "embed", "pos", "ptr")):
            drawn = 0.5 * uniform if len(shape) != 2 or min(shape) < 8 else uniform / math.sqrt(shape[1])
        else:
            drawn = uniform / math.sqrt(max(1, math.prod(shape[1:])))
        found[name] = np.ascontiguousarray(drawn, dtype=np.float32)
    return found


def photograph(name: str, height: int, width: int) -> NDArray[np.uint8]:
    """(H, W, 3) RGB: large squares with some noise on them."""
    cells = values(f"{name} cells", 4 * 5 * 3).reshape(4, 5, 3)
    coarse = np.kron(cells, np.ones((-(-height // 4), -(-width // 5), 1)))[:height, :width]
    noise = values(f"{name} noise", height * width * 3).reshape(height, width, 3)
    return np.floor(128 + 100 * coarse + 20 * noise).astype(np.uint8)
