"""The benchmark of training runs the real command's loop, and its floor counts what the step computes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import train_speed
from benchmarks.train_speed import flops_of_step
from model.data.sampler import Order
from model.training.config import TrainConfig, make_config


def micro(**changes: int) -> TrainConfig:
    values = {"image_size": 64, "clicks": 1, "masks_per_image": 4, "coarse_images": 0, "global_batch_size": 4}
    return make_config(
        "micro", "scratch", None, order=Order(), seed=0, min_masks=1, holdout=0.0, precision="fp32",
        **{**values, **changes},
    )  # fmt: skip


def test_flops_grow_with_what_a_step_does() -> None:
    once = flops_of_step(micro(), 2)
    in_one_pass = flops_of_step(micro(), 4)
    assert in_one_pass["bytes"] < once["bytes"]  # weights are read once
    assert {**in_one_pass, "bytes": 0} == pytest.approx({**once, "bytes": 0}, rel=1e-4)
    assert flops_of_step(micro(global_batch_size=8), 4) == {name: 2 * value for name, value in in_one_pass.items()}
    # Training an encoder takes thrice its forward pass; the decoder comes on top, and once more with every click.
    decoder = once["step"] - 3 * once["encoder_forward"]
    clicks = flops_of_step(micro(clicks=2), 2)
    assert clicks["encoder_forward"] == once["encoder_forward"]
    assert decoder > 0
    assert clicks["step"] - once["step"] == pytest.approx(decoder, rel=0.2)


def test_attention_is_counted() -> None:
    """Four times the pixels are four times the work of all layers, and more of attention over the whole image."""
    small, large = (flops_of_step(micro(image_size=size), 2)["encoder_forward"] for size in (128, 256))
    assert 4.1 * small < large < 8 * small


def test_one_run_prints_rates_and_the_floor(
    drawn_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--data", str(drawn_run), "--work", str(tmp_path), "--size", "micro", "--init", "scratch"]
    sizes = ["--image-size", "64", "--masks-per-image", "4", "--steps", "3", "--warmup-steps", "1", "--device", "cpu"]
    assert train_speed.main([*command, *sizes, "--parts"]) == 0
    found = json.loads(capsys.readouterr().out)
    run = found["runs"]["eager"]
    assert run["steps"] == 2
    assert run["seconds_per_step"]["min"] <= run["seconds_per_step"]["median"] <= run["seconds_per_step"]["max"]
    assert run["images_per_second"] == pytest.approx(run["share_of_floor"] * found["floor_images_per_second"])
    assert 0 < run["share_of_floor"] < 1
    assert 0 <= run["wait_share"] < 1
    assert run["memory_mib"] > 0
    parts = found["parts"]
    assert parts.keys() == {*train_speed.PARTS, "step"}
    assert all(each["median"] >= each["min"] >= 0 for each in parts.values())
    for part in ("encoder", "decoder", "backward, decoder and losses", "backward, encoder", "gradient norm, AdamW"):
        assert parts[part]["min"] > 0, part
    assert sum(each["min"] for part, each in parts.items() if part != "step") <= parts["step"]["min"] * (1 + 1e-6)
