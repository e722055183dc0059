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
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.granular import GranularSam2
from model.losses import mask_losses
from model.order import Order
from model.step import _leaves
from model.train_config import make_config


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
    """Peak of one micro-batch's passes, as `step.py` takes them, after AdamW has its moments."""
    config = make_config(
        arguments.size, "path", arguments.adapter, order=Order(), seed=0, min_masks=1, holdout=0.0, precision="bf16",
        image_size=arguments.image_size, masks_per_image=arguments.masks_per_image, clicks=arguments.clicks,
    )  # fmt: skip
    model = GranularSam2(arguments.size, arguments.adapter, arguments.image_size)
    names = set(model.set_trainable())
    with FakeTensorMode(allow_non_fake_inputs=False) as fake, LiveBytes() as live:
        for module in model.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    copy = torch.nn.Parameter(
                        torch.empty(parameter.shape, dtype=parameter.dtype), requires_grad=parameter.requires_grad
                    )
                    module._parameters[name] = copy
            buffers = module._buffers
            buffers.update(
                {name: torch.empty(each.shape, dtype=each.dtype) for name, each in buffers.items() if each is not None}
            )
        model._lora = [each for each in model.modules() if type(each).__name__ == "LoraLinear"]
        trained = [parameter for name, parameter in model.named_parameters() if name in names]
        moments = [torch.empty_like(parameter) for parameter in trained for _ in range(2)]
        held = live.now
        size, count = arguments.image_size, arguments.masks_per_image * arguments.micro_batch_size
        images = torch.empty(arguments.micro_batch_size, 3, size, size)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            features = model.encode(images)
        after_encoder = live.peak
        leaves = _leaves(features, trained=False)
        image_of = torch.empty(count, dtype=torch.long).zero_()
        target = torch.empty(count, size // config.loss_stride, size // config.loss_stride)
        full = torch.empty(count, size, size, dtype=torch.bool)
        mask_input = None
        points = torch.empty(count, 1, 2)
        labels = torch.ones(count, 1, dtype=torch.int32)
        for _ in range(config.clicks):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                decoded = model.decode(
                    leaves.select(image_of), points, labels, torch.empty(count), mask_input_N1HW=mask_input
                )
            logits = decoded.logits_NMHW.float()
            enlarged = F.interpolate(logits, size=target.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
            losses = mask_losses(enlarged, target, decoded.iou_NM[:, 0], decoded.object_N1[:, 0], config.loss)
            losses.total.backward()
            mask_input = logits.detach().clamp(-32, 32)
            del decoded, logits, enlarged, losses
            wrong = F.interpolate(mask_input, size=(size, size), mode="bilinear", align_corners=False)[:, 0] > 0
            wrong = wrong != full
            points = torch.cat([points, torch.empty(count, 1, 2)], dim=1)
            labels = torch.cat([labels, torch.ones(count, 1, dtype=torch.int32)], dim=1)
        del fake, moments
    return {
        "weights_and_moments_mib": round(held / 2**20),
        "after_encoder_mib": round(after_encoder / 2**20),
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
