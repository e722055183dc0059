"""One step's arithmetic: correction clicks, targets, what passes tell each other, gradients; nothing is read back."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from model.data.prompts import correction_clicks, no_prompts
from model.data.sampler import Order
from model.data.stream import Example, TrainingDataset, _example
from model.network.granular import Decoded, GranularSam2
from model.network.init import start_from_clicks
from model.network.pixels import normalised_batch
from model.training import step
from model.training.config import TrainConfig, make_config
from model.training.dense_loss import DenseHead
from model.training.losses import LossSums, mask_losses
from model.training.step import SUMS, _unpacked, accumulate_gradients

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
    """Refuses what makes a processor wait for a GPU: numbers taken out of tensors, shapes that depend on values."""

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
    found = TrainingDataset(str(drawn_run), config.example_settings(), seed=0, order=Order(), min_masks=1, holdout=0.0)
    return [found[position] for position in range(4)]


def fresh_model(config: TrainConfig) -> GranularSam2:
    torch.manual_seed(0)
    model = GranularSam2("micro", "full", config.image_size, sight=config.sight)
    start_from_clicks(model)
    model.set_trainable()
    return model


def test_a_step_reads_nothing_back_before_it_ends(config: TrainConfig, examples: list[Example]) -> None:
    model = fresh_model(config)
    head = DenseHead(8)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NothingReadBack():
        torch.ones(1).item()
    with NothingReadBack():
        sums = accumulate_gradients(model, examples, config, prompts_in_step=8.0, head=head, anchors_in_step=192.0)
    loss, mask, dice, iou, iou_error, prompts, dense, anchors = sums.tolist()
    assert prompts == sum(each.count for each in examples) > 0
    assert loss > dice + mask > 0  # of three passes; the others of the last one
    assert 0 <= iou <= prompts
    assert 0 <= iou_error <= prompts
    assert anchors == sum(len(each.anchors.points) for each in examples) > 0
    assert 0 < dense <= 2 * anchors
    assert all(each.grad is not None for each in model.parameters() if each.requires_grad)
    assert all(each.grad is not None for each in head.parameters())


# -- what passes tell each other, and what is differentiated -----------------------------------------------------------

LOUDER = 40.0
"""The micro model's first logits lie within a few units of 0; so much louder, some pass the limit and some do not."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What the decoder was asked in one pass, and its logits."""

    points: Tensor
    labels: Tensor
    granularity: Tensor
    mask_input: Tensor | None
    logits: Tensor


def listen(model: GranularSam2, monkeypatch: pytest.MonkeyPatch) -> list[Pass]:
    """Makes a model's logits louder and notes each pass."""
    decode, passes = model.decode, list[Pass]()

    def louder(features: Any, points: Tensor, labels: Tensor, granularity: Tensor, **more: Any) -> Decoded:
        found = decode(features, points, labels, granularity, **more)
        found = dataclasses.replace(found, logits_NMHW=LOUDER * found.logits_NMHW)
        passes.append(
            Pass(
                points=points, labels=labels, granularity=granularity, mask_input=more["mask_input_N1HW"],
                logits=found.logits_NMHW.detach(),
            )
        )  # fmt: skip
        return found

    monkeypatch.setattr(model, "decode", louder)
    return passes


def resized(logits: Tensor, size: int) -> Tensor:
    return F.interpolate(logits, size=(size, size), mode="bilinear", align_corners=False)[:, 0]


def test_a_pass_is_asked_with_the_answer_before_it_and_one_more_click(
    config: TrainConfig, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fresh_model(config)
    passes = listen(model, monkeypatch)
    accumulate_gradients(model, examples, config, prompts_in_step=8.0)
    targets = np.concatenate([each.masks() for each in examples])
    draws = np.concatenate([each.correction_draws for each in examples])
    granularity = np.concatenate([each.granularity for each in examples])
    clicks = np.concatenate([each.points for each in examples])[:, None]
    kinds = np.ones(clicks.shape[:2])
    assert len(passes) == config.clicks == 3
    assert passes[0].mask_input is None
    for number, each in enumerate(passes):
        assert each.granularity.tolist() == granularity.tolist()
        assert each.points.tolist() == clicks.tolist()
        assert each.labels.tolist() == kinds.tolist()
        if number == 2:
            break
        fed = passes[number + 1].mask_input
        assert fed is not None
        assert torch.equal(fed, each.logits.clip(-32.0, 32.0))
        assert not fed.requires_grad
        assert 0 < (fed.abs() == 32.0).float().mean() < 1
        wrong = (resized(fed, config.image_size) > 0).numpy() != targets
        places = [np.argwhere(each) for each in wrong]
        assert all(map(len, places))
        pixels = [each[int(draw * len(each))] for each, draw in zip(places, draws[:, number], strict=True)]
        more = np.array([[[x, y]] for y, x in pixels])
        kind = np.array([[targets[prompt, y, x]] for prompt, (y, x) in enumerate(pixels)])
        clicks, kinds = np.concatenate([clicks, more], axis=1), np.concatenate([kinds, kind], axis=1)
    assert set(kinds[:, 1:].ravel()) == {0, 1}  # corrections of both kinds


def test_the_gradient_is_the_sum_of_all_passes_over_the_prompts_of_the_step(
    config: TrainConfig, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against passes differentiated one by one, through the encoder, with what each was asked."""
    model = fresh_model(config)
    passes = listen(model, monkeypatch)
    sums = dict(zip(SUMS, accumulate_gradients(model, examples, config, prompts_in_step=13.0).tolist(), strict=True))
    found = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    asked = list(passes)
    image_of = torch.tensor([number for number, each in enumerate(examples) for _ in range(each.count)])
    targets = torch.from_numpy(np.concatenate([each.masks() for each in examples])).float()
    small = F.avg_pool2d(targets[:, None], config.loss_stride)[:, 0]
    expected = {name: torch.zeros_like(each) for name, each in found.items()}
    losses: list[LossSums] = []
    shares: list[float] = []
    for each in asked:
        model.zero_grad()
        features = model.encode(normalised_batch([each.image for each in examples], torch.device("cpu")))
        answer = model.decode(
            features.select(image_of), each.points, each.labels, each.granularity, mask_input_N1HW=each.mask_input
        )
        logits = resized(answer.logits_NMHW, small.shape[-1])
        losses.append(mask_losses(logits, small, answer.iou_NM[:, 0], answer.object_N1[:, 0], config.loss))
        losses[-1].total.backward()
        shares.append(math.hypot(*(float(p.grad.norm()) for p in model.parameters() if p.grad is not None)) / 13.0)
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                expected[name] += parameter.grad / 13.0
    size = math.hypot(*(float(each.norm()) for each in expected.values()))
    apart = math.hypot(*(float((found[name] - expected[name]).norm()) for name in found))
    assert apart < 1e-4 * size
    assert min(shares) > 1e-2 * size  # so that no pass could be missing
    assert sums["loss"] == pytest.approx(sum(each.total.item() for each in losses), rel=1e-5)
    assert sums["prompts"] == len(targets)
    for name in ("mask", "dice", "iou", "iou_error"):  # of the last pass
        assert sums[name] == pytest.approx(getattr(losses[-1], name).item(), rel=1e-4, abs=1e-4), name


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_losses_are_taken_on_the_views_grid_divided_by_the_stride(
    config: TrainConfig, examples: list[Example], monkeypatch: pytest.MonkeyPatch, stride: int
) -> None:
    config = dataclasses.replace(config, loss_stride=stride, clicks=1)
    model = fresh_model(config)
    passes = listen(model, monkeypatch)
    compared: list[tuple[Tensor, Tensor]] = []

    def losses(logits: Tensor, target: Tensor, *more: Any) -> LossSums:
        compared.append((logits.detach(), target))
        return mask_losses(logits, target, *more)

    monkeypatch.setattr(step, "mask_losses", losses)
    accumulate_gradients(model, examples, config, prompts_in_step=8.0)
    [(logits, target)] = compared
    side = 64 // stride
    masks = np.concatenate([each.masks() for each in examples])
    means = masks.reshape(len(masks), side, stride, side, stride).mean(axis=(2, 4))
    assert target.numpy() == pytest.approx(means)
    assert torch.equal(logits, resized(passes[0].logits, side))


def test_autocast_is_on_in_bf16_and_gives_nearly_the_same_gradient(
    config: TrainConfig, examples: list[Example]
) -> None:
    """bf16 has 8 bits of mantissa: its gradient differs from that of fp32, and by a few per cent at most."""
    gradients = []
    for precision in ("fp32", "bf16"):
        model = fresh_model(config)
        changed = dataclasses.replace(config, precision=precision, clicks=1)
        accumulate_gradients(model, examples, changed, prompts_in_step=8.0)
        assert all(each.grad is None or each.grad.dtype == torch.float32 for each in model.parameters())
        gradients.append(torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None]))
    apart = float((gradients[0] - gradients[1]).norm() / gradients[0].norm())
    assert 1e-3 < apart < 0.1
