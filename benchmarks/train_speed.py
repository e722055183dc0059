"""Photographs per second of `grainmill train` against the floor that its FLOPs set on the same device.

    python -m benchmarks.train_speed --data SHARDS --work DIR [--size small] [--init scratch] [--image-size 1024]
        [--masks-per-image 30] [--clicks 4] [--global-batch-size 4] [--micro-batch-size 2] [--device cuda]
        [--precision bf16] [--workers 4] [--threads N] [--steps 24] [--warmup-steps 4] [--compile] [--parts]
        [--trunk lite0 --trunk-rate 0.1]

The floor: the FLOPs of one step, counted by torch while the step's own code runs on fake tensors, over the rate of the
device's best product of two large square matrices in the step's precision. Counted are products and convolutions,
forward and backward, attention included; all else (normalising, losses, reading memory) is what the share misses.
Counted beside them are the bytes that the step's operators read and write, each by itself: over the device's copy rate
they are the time that a step takes at least as long as nothing is fused.
Without `--init` the base has drawn weights: what a step costs does not depend on them. With `--compile` the encoder is
compiled, and both runs stand in the output. The first steps of each are not counted. Prints one JSON object.

With `--parts`, on a CPU, one more run takes the processor's time of each part of a step: seconds that this process
computed, which another process on the same cores does not lengthen as it does those on the clock.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final
from unittest import mock

import torch
from safetensors.torch import save_file
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from model.data.sampler import Order
from model.data.shards import ShardIndex
from model.data.stream import TrainingDataset
from model.network.granular import GranularSam2
from model.network.sam2_base import build_base
from model.network.trunks import trunk_of_flags
from model.training import step as step_module
from model.training.config import RunOptions, TrainConfig, images_per_pass, make_config
from model.training.step import accumulate_gradients
from model.training.train import Trainer, dense_head, train
from pipeline.bench.report import environment

from .fake_step import blank_example, use_fake_weights

MATRIX_ROWS: Final = {"cpu": 2048, "cuda": 8192}
PRODUCTS: Final = 12


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(
    grad: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any
) -> int:
    return int(sdpa_backward_flop_count(grad, query, key, value))


_CPU_ATTENTION: Final = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""What torch's counter knows of GPUs only. By shapes."""


class MovedBytes(TorchDispatchMode):
    """Adds up the bytes of what each operator reads and writes; views and allocations move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace == "aten" and not func.is_view and "empty" not in func.__name__:
            leaves = (leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor))
            self.total += sum(leaf.numel() * leaf.element_size() for leaf in leaves)
        return out


def flops_of_step(config: TrainConfig, micro_batch_size: int) -> dict[str, int]:
    """Of one step's forward passes, and of these with the backward ones: multiplications and additions, each counted.

    `bytes` are those that the step's operators read and write, one by one.

    Args:
        config: of the run; its examples are taken as full.
        micro_batch_size: photographs in a pass.
    """
    model = GranularSam2(config.size, config.adapter, config.image_size, sight=config.sight, trunk=config.trunk)
    model.set_trainable()
    head = dense_head(model, config)
    examples = [blank_example(config) for _ in range(micro_batch_size)]
    with FakeTensorMode(allow_non_fake_inputs=True):
        use_fake_weights(model)
        if head is not None:
            use_fake_weights(head)
        with MovedBytes() as moved, FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as whole:
            accumulate_gradients(model, examples, config, prompts_in_step=1.0, head=head)
        images = torch.empty(micro_batch_size, 3, config.image_size, config.image_size)
        with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as encoder, torch.no_grad():
            model.encode(images)
    passes = config.global_batch_size // micro_batch_size
    return {
        "step": passes * whole.get_total_flops(),
        "encoder_forward": passes * encoder.get_total_flops(),
        "bytes": passes * moved.total,
    }


def flops_per_second(device: torch.device, precision: str) -> float:
    """Of the best of some products of two large square matrices."""
    rows = MATRIX_ROWS[device.type]
    matrix = torch.randn(rows, rows, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    seconds = []
    for _ in range(PRODUCTS):
        begun_s = _now(device)
        matrix @ matrix
        seconds.append(_now(device) - begun_s)
    return 2.0 * rows**3 / min(seconds)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def measure(config: TrainConfig, options: RunOptions, *, skip: int) -> dict[str, Any]:
    """One run of `train`: what its own metrics say after the first steps."""
    shutil.rmtree(options.output, ignore_errors=True)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    train(config, options)
    lines = [json.loads(line) for line in (Path(options.output) / "metrics.jsonl").read_text().splitlines()]
    counted = [line for line in lines if line["step"] > skip]
    seconds = [config.global_batch_size / line["images_per_second"] for line in counted]
    waited = sum(each * line["wait_share"] for each, line in zip(seconds, counted, strict=True))
    return {
        "steps": len(counted),
        "images_per_second": config.global_batch_size * len(counted) / sum(seconds),
        "seconds_per_step": {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)},
        "wait_share": waited / sum(seconds),
        "memory_mib": max(line["memory_mib"] for line in counted),
        "prompts_per_step": statistics.mean(line["prompts"] for line in counted),
    }


PARTS: Final[dict[str, tuple[tuple[Any, str], ...]]] = {
    "read and decode images": ((ShardIndex, "load"),),
    "views, prompts": ((TrainingDataset, "__getitem__"),),
    "encoder": ((GranularSam2, "encode"),),
    "decoder": ((GranularSam2, "decode"),),
    "losses": ((step_module, "mask_losses"),),
    "dense loss": ((step_module, "dense_loss"),),
    "backward, decoder and losses": ((torch.Tensor, "backward"),),
    "backward, encoder": ((step_module, "_backward_through_encoder"),),
    "gradient norm, AdamW": ((torch.nn.utils, "clip_grad_norm_"), (torch.optim.AdamW, "step")),
    "all else": ((Trainer, "_step"),),
}
"""Parts of a step with the functions that are theirs, less what they call of another part."""


class PartSeconds:
    """Processor seconds of each part, of each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._now = dict.fromkeys(PARTS, 0.0)
        self._inner = [0.0]

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Inside, the parts' functions are timed."""
        with contextlib.ExitStack() as stack:
            for part, functions in PARTS.items():
                for owner, name in functions:
                    stack.enter_context(mock.patch.object(owner, name, self._timed(part, getattr(owner, name))))
            yield

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **more: Any) -> Any:
            begun_s = time.process_time()
            self._inner.append(0.0)
            try:
                return function(*arguments, **more)
            finally:
                seconds = time.process_time() - begun_s
                self._now[part] += seconds - self._inner.pop()
                self._inner[-1] += seconds
                if part == "all else":
                    self.steps.append(self._now)
                    self._now = dict.fromkeys(PARTS, 0.0)

        return timed


def seconds_by_part(config: TrainConfig, options: RunOptions, *, skip: int) -> dict[str, Any]:
    """Median and least processor seconds of each part of a step, and of a whole step."""
    shutil.rmtree(options.output, ignore_errors=True)
    parts = PartSeconds()
    with parts.taken():
        train(config, options)
    counted = parts.steps[skip:]
    lists = {part: [each[part] for each in counted] for part in PARTS}
    lists["step"] = [sum(each.values()) for each in counted]
    return {part: {"median": statistics.median(each), "min": min(each)} for part, each in lists.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--size", default="small")
    parser.add_argument("--init", help="scratch, or a checkpoint; by default drawn weights")
    for name in ("image-size", "masks-per-image", "clicks", "global-batch-size", "micro-batch-size", "threads"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", choices=["fp32", "bf16"])
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--warmup-steps", type=int, default=4)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--parts", action="store_true")
    parser.add_argument("--trunk")
    parser.add_argument("--trunk-rate", type=float)
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.warmup_steps < arguments.steps:
        parser.error(f"--warmup-steps {arguments.warmup_steps}: expected fewer than --steps {arguments.steps}")
    device = torch.device(arguments.device)
    if arguments.parts and device.type != "cpu":
        parser.error("--parts takes the processor's time: expected --device cpu")
    precision = arguments.precision or ("bf16" if device.type == "cuda" else "fp32")
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    trunk, trunk_file = trunk_of_flags(arguments.trunk, arguments.trunk_rate)
    config = make_config(
        arguments.size, arguments.init or str(arguments.work / f"drawn-{arguments.size}.safetensors"), None,
        order=Order(), seed=0, min_masks=1, holdout=0.0, precision=precision, steps=arguments.steps,
        image_size=arguments.image_size, clicks=arguments.clicks, masks_per_image=arguments.masks_per_image,
        global_batch_size=arguments.global_batch_size, coarse_images=0, trunk=trunk,
    )  # fmt: skip
    if arguments.init is None:
        torch.manual_seed(0)
        save_file(build_base(config.size, config.image_size).state_dict(), config.init)
    micro = arguments.micro_batch_size or images_per_pass(
        config, config.global_batch_size, on_gpu=device.type == "cuda"
    )
    options = RunOptions(
        data=arguments.data, output=str(arguments.work / "run"), workers=arguments.workers, micro_batch_size=micro,
        device=arguments.device, save_every=arguments.steps, log_every=1, threads=arguments.threads,
        trunk_file=trunk_file,
    )  # fmt: skip
    load = os.getloadavg()
    flops = flops_of_step(config, micro)
    rate = flops_per_second(device, precision)
    runs = {"eager": measure(config, options, skip=arguments.warmup_steps)}
    if arguments.compile:
        compiled = dataclasses.replace(options, compile_encoder=True)
        runs["compiled encoder"] = measure(config, compiled, skip=arguments.warmup_steps)
    by_part = {"parts": seconds_by_part(config, options, skip=arguments.warmup_steps)} if arguments.parts else {}
    floor = config.global_batch_size * rate / flops["step"]
    for run in runs.values():
        run["share_of_floor"] = run["images_per_second"] / floor
    found = {
        "settings": {name: str(value) for name, value in vars(arguments).items() if name not in ("data", "work")},
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "flops_per_step": flops,
        "matrix_flops_per_second": rate,
        "floor_images_per_second": floor,
        "runs": runs,
        **by_part,
        "load_before": load[0],
        "load_after": os.getloadavg()[0],
        "environment": environment(),
    }
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
