"""The learning rate of a step: a straight rise, half a cosine down to the final rate."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.data.sampler import Order
from model.training.config import TrainConfig, make_config
from model.training.train import learning_rate


def config(**changes: Any) -> TrainConfig:
    """Ten steps of warm-up to 1e-3 and a hundred down to 1e-5."""
    made = make_config(
        "micro", "scratch", None, order=Order(), seed=0, min_masks=1, holdout=0.0, precision="fp32", coarse_images=0
    )
    values = {"steps": 110, "warmup_steps": 10, "learning_rate": 1e-3, "final_learning_rate": 1e-5, **changes}
    return dataclasses.replace(made, **values)


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 1e-4),
        (1, 2e-4),
        (4, 5e-4),
        (9, 1e-3),  # the last of the warm-up
        (10, 1e-3),
        (35, 1e-5 + 0.99e-3 * (2 + math.sqrt(2)) / 4),
        (60, (1e-3 + 1e-5) / 2),  # half-way
        (85, 1e-5 + 0.99e-3 * (2 - math.sqrt(2)) / 4),
        (110, 1e-5),
    ],
)
def test_rates_worked_out_by_hand(step: int, rate: float) -> None:
    assert learning_rate(config(), step) == pytest.approx(rate, rel=1e-12)


@given(
    steps=st.integers(1, 3000),
    warmup=st.integers(0, 200),
    rate=st.floats(1e-6, 1.0),
    share=st.floats(0.0, 1.0),
)
def test_it_rises_evenly_and_falls_to_the_final_rate_and_no_further(
    steps: int, warmup: int, rate: float, share: float
) -> None:
    final = share * rate
    run = config(steps=steps, warmup_steps=warmup, learning_rate=rate, final_learning_rate=final)
    rates = [learning_rate(run, step) for step in range(max(steps, warmup) + 1)]
    assert rates[:warmup] == pytest.approx([rate * (step + 1) / warmup for step in range(warmup)])
    falling = rates[warmup:]
    assert falling[0] == pytest.approx(rate)
    slack = 1e-12 * rate
    assert all(final - slack <= later <= sooner + slack for sooner, later in itertools.pairwise(falling))
    if steps > warmup:
        assert falling[-1] == pytest.approx(final, abs=slack)
        for sooner, later in zip(falling, reversed(falling), strict=True):  # half a cosine is its own mirror image
            assert sooner + later == pytest.approx(rate + final)


def test_a_run_without_warm_up_begins_at_the_highest_rate() -> None:
    assert learning_rate(config(warmup_steps=0), 0) == 1e-3
