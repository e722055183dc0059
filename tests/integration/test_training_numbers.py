"""Numbers of training as they should be: AdamW's steps, the clipped gradient, the best step, who is named.

What the loop does with a gradient is seen with gradients that are known; what it does with a score, with known scores.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.data.shards import ShardIndex
from model.network.checkpoint import Checkpoint, checkpoint_steps, read_checkpoint
from model.network.load import new_model
from model.training import train as train_module
from model.training.config import TrainConfig
from model.training.distributed import Distributed
from model.training.step import SUMS
from model.training.train import learning_rate, train
from pipeline.errors import GrainmillError
from tests.training import logged, small_config, small_options

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Of AdamW, as its paper has them."""


def config(**changes: Any) -> TrainConfig:
    return small_config(**{"steps": 4, "clicks": 1, "min_parts": 0, **changes})


# -- what is done with a gradient --------------------------------------------------------------------------------------


def known_gradient(name: str, shape: torch.Size, step: int) -> Tensor:
    """Of a parameter at one of three steps: of all parameters together below the limit once, and twice above it."""
    seed = torch.Generator().manual_seed(sum(map(ord, name)) + step)
    return (1e-4, 0.3, 0.02)[step] * torch.randn(shape, generator=seed)


@pytest.fixture
def known_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of one forward pass whose gradients are `known_gradient`'s."""
    step = itertools.count()

    def accumulate(model: Any, examples: Any, *_: Any, **__: Any) -> Tensor:
        number = next(step)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.grad = known_gradient(name, parameter.shape, number)
        return torch.ones(len(SUMS), dtype=torch.float64)

    monkeypatch.setattr(train_module, "accumulate_gradients", accumulate)


@pytest.mark.usefixtures("known_gradients")
def test_steps_are_adamws_with_the_clipped_gradient(drawn_run: Path, tmp_path: Path) -> None:
    """Three steps in double precision by the formulas of Loshchilov and Hutter (arXiv 1711.05101)."""
    run = config(steps=3, weight_decay=0.3, learning_rate=0.02, gradient_norm_limit=0.7)
    train(run, small_options(drawn_run, tmp_path / "run"))
    model = new_model("micro", "full", 64, init="scratch", seed=0, sight=config().sight)
    names = model.set_trainable()
    weights = {name: value.detach().double() for name, value in model.named_parameters()}
    first = {name: torch.zeros_like(weights[name]) for name in names}
    second = {name: torch.zeros_like(weights[name]) for name in names}
    norms = []
    for step in range(3):
        gradients = {name: known_gradient(name, weights[name].shape, step).double() for name in names}
        norms.append(math.sqrt(sum(float((each**2).sum()) for each in gradients.values())))
        rate = learning_rate(run, step)
        for name in names:
            gradient = gradients[name] * min(1.0, 0.7 / norms[step])
            first[name] = BETAS[0] * first[name] + (1 - BETAS[0]) * gradient
            second[name] = BETAS[1] * second[name] + (1 - BETAS[1]) * gradient**2
            mean, spread = first[name] / (1 - BETAS[0] ** (step + 1)), second[name] / (1 - BETAS[1] ** (step + 1))
            weights[name] = weights[name] * (1 - rate * 0.3) - rate * mean / (spread.sqrt() + EPSILON)
    saved = read_checkpoint(tmp_path / "run")
    found, moments = saved.group("model"), saved.group("optimizer")
    for name in names:
        torch.testing.assert_close(moments[f"exp_avg.{name}"].double(), first[name], rtol=1e-3, atol=1e-9)
        torch.testing.assert_close(moments[f"exp_avg_sq.{name}"].double(), second[name], rtol=1e-3, atol=1e-12)
        torch.testing.assert_close(found[name].double(), weights[name], rtol=1e-4, atol=1e-5)
    assert min(norms) < 0.7 < sorted(norms)[1]
    told = logged(tmp_path / "run")
    assert [line["gradient_norm"] for line in told] == pytest.approx(norms, rel=1e-4)  # before it was clipped
    assert [line["learning_rate"] for line in told] == [learning_rate(run, step) for step in range(3)]


def test_the_whole_base_but_what_images_never_use_is_trained_and_the_rest_stays(
    drawn_run: Path, tmp_path: Path
) -> None:
    """Weight decay would move a parameter that the optimizer should not have."""
    train(config(steps=1, weight_decay=0.5), small_options(drawn_run, tmp_path / "run"))
    saved = read_checkpoint(tmp_path / "run").group("model")
    model = new_model("micro", "full", 64, init="scratch", seed=0, sight=config().sight)
    names = set(model.set_trainable())
    for name, value in model.named_parameters():
        if name in names:
            assert not value.any() or not torch.equal(value, saved[name]), name
        else:
            assert torch.equal(value, saved[name]), name


# -- the best step -----------------------------------------------------------------------------------------------------

SCORES = (0.5, 0.9, 0.3, 0.8)


class KilledError(Exception):
    """As if the process had died."""


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Validations whose scores are known; `dies_in` names one in whose middle the run ends."""

    def score(*, begin: int = 1, dies_in: int | None = None) -> None:
        steps = itertools.count(begin)

        def validate(*_: Any, **__: Any) -> dict[str, Any]:
            step = next(steps)
            if step == dies_in:
                raise KilledError
            return {"iou_label_g": SCORES[step - 1]}

        monkeypatch.setattr(train_module, "validate", validate)

    return score


def best(saved: Checkpoint) -> tuple[int, float]:
    return saved.record["progress"]["best_step"], saved.record["progress"]["best_score"]


@pytest.mark.parametrize("dies_in", [3, 4])
def test_the_best_step_survives_a_run_that_ends_and_goes_on(
    drawn_run: Path, tmp_path: Path, scored: Callable[..., None], dies_in: int
) -> None:
    """The second of four steps is the best: who goes on must neither take another for it nor remove it."""
    run, output = config(holdout=0.4), tmp_path / "run"
    values = {"validate_every": 1, "save_every": 1, "keep": 1, "validation_images": 1}
    scored(dies_in=dies_in)
    with pytest.raises(KilledError):
        train(run, small_options(drawn_run, output, **values))
    assert set(checkpoint_steps(output)) == {2, dies_in - 1}
    scored(begin=dies_in)
    train(run, small_options(drawn_run, output, resume=True, **values))
    assert set(checkpoint_steps(output)) == {2, 4}
    assert best(read_checkpoint(output)) == (2, 0.9)
    found = logged(output, "validation.jsonl")
    assert [(line["step"], line["iou_label_g"]) for line in found] == list(enumerate(SCORES, start=1))


def test_a_better_step_takes_the_place_of_the_best(
    drawn_run: Path, tmp_path: Path, scored: Callable[..., None]
) -> None:
    scored()
    output = tmp_path / "run"
    summary = train(
        config(steps=2, holdout=0.4), small_options(drawn_run, output, validate_every=1, keep=1, save_every=2)
    )
    assert summary["validation"] == {"iou_label_g": 0.9}
    assert set(checkpoint_steps(output)) == {2}
    assert best(read_checkpoint(output)) == (2, 0.9)


# -- who is named ------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_the_photographs_of_every_rank(
    drawn_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other rank's answer is played; that ranks hear of each other is seen with two real ones."""

    def gather(self: Distributed, value: Any) -> list[Any]:
        return [value, ["theirs-1", "theirs-2"]] if value else [value]

    monkeypatch.setattr(Distributed, "gather", gather)
    monkeypatch.setattr(
        train_module, "accumulate_gradients", lambda *_, **__: torch.full((len(SUMS),), math.nan).double()
    )
    with pytest.raises(GrainmillError, match="the loss is nan; the batch held ") as error:
        train(config(), small_options(drawn_run, tmp_path / "run"))
    named = str(error.value).split("the batch held ")[1].split(". The last")[0].split(", ")
    assert named[2:] == ["theirs-1", "theirs-2"]
    assert set(named[:2]) <= set(ShardIndex.open(drawn_run).sample_keys())
    assert not checkpoint_steps(tmp_path / "run")
