"""The computed peak of a training step: it counts the weights, and grows with what is said to cost memory."""

from __future__ import annotations

import argparse

from benchmarks.memory_recipe import peak_mib
from model.network.granular import GranularSam2


def peak(**changes: int) -> dict[str, float]:
    values = {"image_size": 128, "masks_per_image": 8, "micro_batch_size": 1, "clicks": 2, **changes}
    return peak_mib(argparse.Namespace(size="tiny", adapter="paper", **values))


def test_peak_counts_weights_and_grows_with_masks_and_images() -> None:
    least = peak()
    weights = sum(each.numel() * 4 for each in GranularSam2("tiny", "paper", 128).parameters()) / 2**20
    assert abs(least["weights_and_moments_mib"] - weights) < 0.05 * weights
    assert least["weights_and_moments_mib"] < least["peak_mib"] < peak(masks_per_image=32)["peak_mib"]
    assert peak(micro_batch_size=4)["peak_mib"] > least["peak_mib"]
