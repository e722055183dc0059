"""Small training runs for tests: a configuration, where it runs, and what it logged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from model.data.sampler import Order
from model.network.adapters import Adapter
from model.training.config import RunOptions, TrainConfig, make_config


def small_config(init: str = "scratch", adapter: Adapter | None = None, **changes: Any) -> TrainConfig:
    """Six steps of two small views of the micro model; every sample is trained on."""
    values: dict[str, Any] = {
        "image_size": 64, "coarse_images": 0, "masks_per_image": 4, "global_batch_size": 2, "steps": 6, "min_masks": 1,
        "order": Order(), "seed": 0, "holdout": 0.0, "precision": "fp32",
    }  # fmt: skip
    return make_config("micro", init, adapter, **{**values, **changes})


def small_options(data: Path, output: Path, **changes: Any) -> RunOptions:
    """One thread, every step logged, every second one kept."""
    values: dict[str, Any] = {"threads": 1, "log_every": 1, "save_every": 2, "keep": 9, **changes}
    return RunOptions(data=str(data), output=str(output), **values)


def logged(output: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The lines of a log."""
    return [json.loads(line) for line in (output / name).read_text().splitlines()]
