"""One step's parts that a GPU has for itself: correction clicks, targets, and that nothing is read back in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from model.granular import GranularSam2
from model.loader import Example, Examples, _example
from model.order import Order
from model.prompts import correction_clicks, no_prompts
from model.scratch import start_from_clicks
from model.step import _unpacked, accumulate_gradients
from model.train_config import TrainConfig, make_config

BELOW_ONE = 1.0 - 2.0**-24


@given(
    seed=st.integers(0, 2**32),
    size=st.sampled_from([(1, 8), (5, 16), (24, 32), (3, 2048), (2, 4088)]),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    draws=st.lists(st.floats(0, BELOW_ONE, width=32), min_size=3, max_size=3),
)
def test_a_correction_clicks_the_drawn_one_of_the_wrong_pixels(
    seed: int, size: tuple[int, int], shares: tuple[float, float], draws: list[float]
) -> None:
    generator = np.random.default_rng(seed)
    predicted, target = (generator.random((3, *size)) < share for share in shares)
    points, labels = correction_clicks(torch.from_numpy(predicted), torch.from_numpy(target), torch.tensor(draws))
    assert (points.shape, points.dtype) == ((3, 1, 2), torch.float32)
    assert (labels.shape, labels.dtype) == ((3, 1), torch.int32)
    for number, draw in enumerate(draws):
        wrong = np.argwhere(predicted[number] != target[number])
        if not len(wrong):
            assert (points[number].tolist(), labels[number].tolist()) == ([[0, 0]], [-1])
            continue
        y, x = wrong[int(draw * len(wrong))]
        assert points[number].tolist() == [[x, y]]
        assert labels[number].tolist() == [int(target[number, y, x])]


def test_all_wrong_and_the_last_pixel_of_a_large_view() -> None:
    """Sums of bytes overflow nowhere: every pixel of 2,048 columns is wrong."""
    wrong = torch.ones(1, 4, 2048, dtype=torch.bool)
    points, labels = correction_clicks(wrong, ~wrong, torch.tensor([BELOW_ONE]))
    assert (points.tolist(), labels.tolist()) == ([[[2047, 3]]], [[0]])


def test_a_draw_next_to_one_stays_below_it_in_single_precision() -> None:
    draws = np.array([[1.0 - 2.0**-53, 0.5]])
    blank = np.zeros((8, 8, 3), dtype=np.uint8)
    assert _example(0, "key", blank, no_prompts(8), draws, None).correction_draws.tolist() == [[BELOW_ONE, 0.5]]


def test_targets_are_unpacked_as_numpy_packs_them() -> None:
    masks = np.random.default_rng(0).random((3, 16, 24)) < 0.5
    found = _unpacked(torch.from_numpy(np.packbits(masks, axis=2)))
    assert found.dtype == torch.bool
    assert np.array_equal(found.numpy(), masks)


class NothingReadBack(TorchDispatchMode):
    """Refuses what makes a processor wait for a GPU: numbers taken out of tensors, shapes that hang on values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func.overloadpacket)
        assert name not in ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.equal"), name
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    return make_config(
        "micro", "scratch", None, image_size=64, clicks=3, masks_per_image=4, steps=1, coarse_images=0, min_parts=0,
        order=Order(), seed=0, min_masks=1, holdout=0.0, precision="fp32",
    )  # fmt: skip


@pytest.fixture(scope="module")
def examples(drawn_run: Path, config: TrainConfig) -> list[Example]:
    found = Examples(str(drawn_run), config.example_settings(), seed=0, order=Order(), min_masks=1, holdout=0.0)
    return [found[position] for position in range(2)]


def test_a_step_reads_nothing_back_before_it_ends(config: TrainConfig, examples: list[Example]) -> None:
    torch.manual_seed(0)
    model = GranularSam2("micro", "full", config.image_size)
    start_from_clicks(model)
    model.set_trainable()
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NothingReadBack():
        torch.ones(1).item()
    with NothingReadBack():
        sums = accumulate_gradients(model, examples, config, prompts_in_step=8.0)
    loss, mask, dice, iou, iou_error, prompts = sums.tolist()
    assert prompts == sum(each.count for each in examples) > 0
    assert loss > dice + mask > 0  # of three passes; the others of the last one
    assert 0 <= iou <= prompts
    assert 0 <= iou_error <= prompts
    assert all(each.grad is not None for each in model.parameters() if each.requires_grad)
