"""Each term of the loss against its definition, written out again in numpy."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model.training.losses import LossSums, LossWeights, mask_losses
from pipeline.errors import InputError

NAMES = tuple(field.name for field in fields(LossWeights))
Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Case:
    """N prompts as the decoder and the labels give them."""

    logits: Array
    target: Array
    predicted_iou: Array
    object_logit: Array

    def losses(self, weights: LossWeights) -> LossSums:
        return mask_losses(*(torch.from_numpy(each).float() for each in vars(self).values()), weights)

    def part(self, chosen: slice) -> Case:
        return Case(**{name: value[chosen] for name, value in vars(self).items()})


def only(**weights: float) -> LossWeights:
    """All other terms left out."""
    return LossWeights(**{**dict.fromkeys(NAMES, 0.0), **weights})


def defined(case: Case) -> dict[str, Array]:
    """(N,) of each term, unweighted, and the true IoU."""
    found: dict[str, list[float]] = {name: [] for name in (*NAMES, "true_iou")}
    for x, t, predicted, there in zip(*vars(case).values(), strict=True):
        p = 1 / (1 + np.exp(-x))
        entropy = -t * np.log(p) - (1 - t) * np.log(1 - p)
        probability_of_the_truth = t * p + (1 - t) * (1 - p)
        alpha = 0.25 * t + 0.75 * (1 - t)
        inside, wanted = x > 0, t > 0.5
        union = np.count_nonzero(inside | wanted)
        true_iou = np.count_nonzero(inside & wanted) / union if union else 1.0
        found["focal"].append(np.mean(alpha * (1 - probability_of_the_truth) ** 2 * entropy))
        found["cross_entropy"].append(np.mean(entropy))
        found["dice"].append(1 - (2 * np.sum(p * t) + 1) / (np.sum(p) + np.sum(t) + 1))
        found["iou"].append(abs(predicted - true_iou))
        found["object_score"].append(-np.log(1 / (1 + np.exp(-there))))
        found["true_iou"].append(true_iou)
    return {name: np.array(values) for name, values in found.items()}


@pytest.fixture(scope="module", params=["hard", "soft"])
def case(request: pytest.FixtureRequest) -> Case:
    """Five prompts of 6 x 8 pixels; soft targets are means of four pixels, as training takes them."""
    rng = np.random.default_rng(5)
    target = rng.random((5, 6, 8)) < 0.4 if request.param == "hard" else rng.integers(0, 5, (5, 6, 8)) / 4
    return Case(
        logits=rng.normal(0, 3, (5, 6, 8)),
        target=target.astype(np.float64),
        predicted_iou=rng.random(5),
        object_logit=rng.normal(0, 2, 5),
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weight", [1.0, 2.5])
def test_each_term_alone_is_its_definition_summed_over_prompts(case: Case, name: str, weight: float) -> None:
    expected = defined(case)
    found = case.losses(only(**{name: weight}))
    assert found.total.item() == pytest.approx(weight * expected[name].sum(), rel=1e-5)
    weighted = found.mask.item()
    assert weighted == pytest.approx(
        weight * expected[name].sum() if name in ("focal", "cross_entropy") else 0.0, rel=1e-5
    )
    # what a run reports of these does not depend on the weights
    assert found.dice.item() == pytest.approx(expected["dice"].sum(), rel=1e-5)
    assert found.iou_error.item() == pytest.approx(expected["iou"].sum(), rel=1e-5)
    assert found.iou.item() == pytest.approx(expected["true_iou"].sum(), rel=1e-6)


def test_the_total_is_the_weighted_sum(case: Case) -> None:
    weights = LossWeights(focal=20.0, cross_entropy=0.3, dice=1.5, iou=0.7, object_score=0.2)
    expected = defined(case)
    total = sum(weight * expected[name].sum() for name, weight in asdict(weights).items())
    assert case.losses(weights).total.item() == pytest.approx(total, rel=1e-5)


def test_the_usual_weights_are_sam2s() -> None:
    assert asdict(LossWeights()) == {
        "focal": 20.0, "cross_entropy": 0.0, "dice": 1.0, "iou": 1.0, "object_score": 1.0,
    }  # fmt: skip


def test_prompts_add_up_however_they_are_spread(case: Case) -> None:
    weights = LossWeights(cross_entropy=1.0)
    whole, parts = (
        case.losses(weights),
        [case.part(slice(0, 2)).losses(weights), case.part(slice(2, 5)).losses(weights)],
    )
    for name in vars(whole):
        assert getattr(whole, name).item() == pytest.approx(sum(getattr(each, name).item() for each in parts), rel=1e-5)
    assert case.part(slice(0, 0)).losses(weights).total.item() == 0.0


def test_every_prediction_gets_its_own_gradient(case: Case) -> None:
    """Mask terms pull at the logits; the IoU's error at the predicted IoU alone, for the true one is no function."""
    tensors = [
        torch.from_numpy(each).float().requires_grad_() for each in vars(case).values() if each is not case.target
    ]
    logits, predicted, there = tensors
    target = torch.from_numpy(case.target).float()
    for name in NAMES:
        total = mask_losses(logits, target, predicted, there, only(**{name: 1.0})).total
        gradients = torch.autograd.grad(total, tensors, allow_unused=True)
        pulled = ["logits", "predicted", "there"]
        moved = [each for each, found in zip(pulled, gradients, strict=True) if found is not None and found.any()]
        assert moved == [{"iou": "predicted", "object_score": "there"}.get(name, "logits")], name


def test_the_true_iou_takes_halves_and_zero_logits_as_outside() -> None:
    logits = torch.tensor([[[1.0, 0.0, 2.0, -1.0]], [[-1.0, 0.0, -2.0, -1.0]]])
    target = torch.tensor([[[0.75, 1.0, 0.5, 0.0]], [[0.0, 0.5, 0.25, 0.0]]])
    found = mask_losses(logits, target, torch.tensor([0.5, 0.25]), torch.zeros(2), LossWeights())
    assert found.iou.item() == pytest.approx(1 / 3 + 1)  # nothing where nothing is: right
    assert found.iou_error.item() == pytest.approx(0.5 - 1 / 3 + 0.75)


@pytest.mark.parametrize("name", NAMES)
def test_negative_weights_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="must not be negative"):
        LossWeights(**{name: -0.1})
    assert getattr(LossWeights(**{name: 0.0}), name) == 0.0
