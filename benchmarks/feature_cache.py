"""Seconds of a training step with kept features and without, in turn.

    python -m benchmarks.feature_cache --data SHARDS --work DIR [--size tiny] [--image-size 512] [--steps 4]
        [--repeats 5] [--masks-per-image 30] [--clicks 4]

The base has drawn weights: what a step costs does not depend on them. A first run fills the cache; then runs with it
and without follow in turn, each of `--steps` steps, of which the first is not counted. One JSON object on standard
output.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from model.data.sampler import Order
from model.network.sam2_base import build_base
from model.training.config import AUGMENTATIONS, RunOptions, make_config
from model.training.train import train
from pipeline.bench.report import environment


def main(argv: Sequence[str] | None = None) -> int:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--masks-per-image", type=int, default=30)
    parser.add_argument("--clicks", type=int, default=4)
    arguments = parser.parse_args(argv)
    arguments.work.mkdir(parents=True, exist_ok=True)
    base = arguments.work / f"base-{arguments.size}-{arguments.image_size}.safetensors"
    torch.manual_seed(0)
    save_file(build_base(arguments.size, arguments.image_size).state_dict(), base)
    config = make_config(
        arguments.size, str(base), "paper", image_size=arguments.image_size, steps=arguments.steps,
        masks_per_image=arguments.masks_per_image, clicks=arguments.clicks, global_batch_size=2,
        augmentation=AUGMENTATIONS["none"], order=Order(), seed=0, holdout=0.0, min_masks=1, precision="fp32",
    )  # fmt: skip

    def seconds_per_step(cache: Path | None) -> tuple[float, list[float]]:
        """Median of the steps after the first, and the losses."""
        output = arguments.work / "run"
        shutil.rmtree(output, ignore_errors=True)
        train(
            config,
            RunOptions(
                data=arguments.data,
                output=str(output),
                threads=1,
                device="cpu",
                log_every=1,
                cache_features=None if cache is None else str(cache),
            ),
        )
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        rates = [config.global_batch_size / line["images_per_second"] for line in lines[1:]]
        return statistics.median(rates), [line["loss"] for line in lines]

    cache = arguments.work / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    load = os.getloadavg()
    _, expected = seconds_per_step(cache)
    kept, plain = [], []
    for _ in range(arguments.repeats):
        for place, times in ((cache, kept), (None, plain)):
            seconds, losses = seconds_per_step(place)
            if losses != expected:
                raise SystemExit(f"losses differ: {losses} and {expected}")
            times.append(seconds)
    found = {
        "settings": {name: str(value) for name, value in vars(arguments).items() if name not in ("data", "work")},
        "seconds_per_step_with_cache": kept,
        "seconds_per_step_without": plain,
        "ratio": statistics.median(one / other for one, other in zip(plain, kept, strict=True)),
        "load_before": load[0],
        "load_after": os.getloadavg()[0],
        "environment": environment(),
    }
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
