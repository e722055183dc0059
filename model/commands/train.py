"""`grainmill train`: committed or released shards -> a SAM-2 with a granularity dial."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from ..training.flags import TrainFlags

GOES_ON = "--resume goes on from the newest checkpoint"
"""What is said after an interruption."""


@dataclass(frozen=True, kw_only=True)
class TrainCommandFlags(TrainFlags):
    """What `grainmill train` is asked for: a run, or a look at what it would be."""

    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Build the model, open everything that training would open (base, data, validation data, the "
            "checkpoint to resume), count parameters and what --cache-features takes, and stop. Nothing is written or "
            "fetched. Default: off.",
        ),
    ] = False
    json: Annotated[
        bool, typer.Option("--json", help="One JSON object on standard output. Default: off, words for people.")
    ] = False


def run(flags: TrainCommandFlags) -> int | None:
    """Trains SAM-2 to select as large a part as one number says, from mined shards.

    Under torchrun for several processes:
    torchrun --nproc-per-node 2 -m pipeline train --data DIR --output RUN
    """
    from pipeline.errors import InputError

    if not flags.dry_run and (not flags.data or flags.output is None):
        raise InputError("expected --data and --output (only --dry-run goes without)")

    from ..training.options import train_options
    from ..training.train import describe, interrupted, train

    config, options = train_options(flags)
    if flags.dry_run:
        _tell(describe(config, options), flags.json)
        return None
    summary = train(config, options)
    if summary["rank"] == 0:
        _tell(summary, flags.json)
    return interrupted(summary)


def _tell(found: dict[str, Any], json: bool) -> None:
    from pipeline.console import print_json

    if json:
        print_json(found)
        return
    if "trainable_parameters" in found:
        print(
            f"size {found['size']}, adapter {found['adapter']}, {found['image_size']} px: trains "
            f"{found['trainable_parameters']:,} parameters; adds {found['added_parameters']:,}, "
            f"{found['added_percent']} % of the base's {found['base_parameters']:,}"
            + (
                f"; and {found['training_only_parameters']:,} of the dense loss, which are left behind"
                if found["training_only_parameters"]
                else ""
            )
        )
        for line in found["opened"]:
            print(f"opened: {line}")
        for line in found["not_opened"]:
            print(f"not opened: {line}")
        if "features_bytes" in found:
            each = f"features: {found['features_bytes_per_image'] / 2**20:g} MiB an image"
            whole = (
                f", {found['features_bytes'] / 2**30:.2f} GiB for {found['images']} images" if found["images"] else ""
            )
            print(f"{each}{whole}; {found['free_bytes'] / 2**30:.2f} GiB may be used")
        return
    print(f"step {found['step']} of {found['steps']} on {found['samples']} images in {found['seconds']:.0f} s")
    if found["metrics"]:
        from model.training.feature_cache import told_features

        metrics = found["metrics"]
        print(f"loss {metrics['loss']:.4f}, IoU {metrics['iou']:.3f} on the last batch{told_features(metrics)}")
    if found["validation"]:
        held = found["validation"]
        print(
            f"held out: IoU {held['iou_label_g']:.3f} at the label's g, {held['iou_best_fixed_g']:.3f} at the best "
            f"fixed g ({held['best_fixed_g']}), {held['iou_shuffled_g']:.3f} with g shuffled, "
            f"{held['iou_best_of_10']:.3f} at the best of ten; area against g: spearman {held['area_spearman']:.2f}"
        )
    if found["skipped"]:
        print(f"skipped: {found['skipped']} samples that could not be read")
    print(f"checkpoint: {found['checkpoint']}")
