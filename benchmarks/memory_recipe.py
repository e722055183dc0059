"""Peak memory of one training step, computed without a GPU: the recipe for an 8 GB card.

    python -m benchmarks.memory_recipe [--size small] [--adapter paper] [--image-size 1024] [--masks-per-image 30]
        [--micro-batch-size 1] [--clicks 4]

The step is run on fake tensors (shapes and types, no values), in bf16 autocast, and the bytes of all live tensors are
followed; weights, gradients and AdamW's moments are tensors among them. Not counted: the CUDA context and library
workspaces (about 0.5 to 1 GiB), the allocator's fragments, and memory that an operator needs inside itself.
"""

from __future__ import annotations

import argparse
import json
import sys
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.data.sampler import Order
from model.network.granular import GranularSam2
from model.training.config import make_config
from model.training.step import accumulate_gradients

from .fake_step import blank_example, use_fake_weights


class LiveBytes(TorchDispatchMode):
    """Follows the bytes of all storages that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def watch(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._seen:
            return
        key, size = storage._cdata, storage.nbytes()
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.watch(leaf)
        return out


def peak_mib(arguments: argparse.Namespace) -> dict[str, float]:
    """Peak of one micro-batch's passes, as `training/step.py` takes them, after AdamW has its moments."""
    config = make_config(
        arguments.size, "path", arguments.adapter, order=Order(), seed=0, min_masks=1, holdout=0.0, precision="bf16",
        image_size=arguments.image_size, masks_per_image=arguments.masks_per_image, clicks=arguments.clicks,
    )  # fmt: skip
    model = GranularSam2(arguments.size, arguments.adapter, arguments.image_size, sight=config.sight)
    names = set(model.set_trainable())
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, LiveBytes() as live:
        use_fake_weights(model)
        trained = [parameter for name, parameter in model.named_parameters() if name in names]
        moments = [torch.empty_like(parameter) for parameter in trained for _ in range(2)]
        held = live.now
        accumulate_gradients(
            model, [blank_example(config) for _ in range(arguments.micro_batch_size)], config, prompts_in_step=1.0
        )
        del fake, moments
    return {
        "weights_and_moments_mib": round(held / 2**20),
        "peak_mib": round(live.peak / 2**20),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="small")
    parser.add_argument("--adapter", default="paper")
    parser.add_argument("--image-size", type=int, default=1024)
    parser.add_argument("--masks-per-image", type=int, default=30)
    parser.add_argument("--micro-batch-size", type=int, default=1)
    parser.add_argument("--clicks", type=int, default=4)
    arguments = parser.parse_args(argv)
    print(json.dumps({**vars(arguments), **peak_mib(arguments)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
