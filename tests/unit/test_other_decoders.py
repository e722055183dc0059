"""Students of the ablations whose decoder hears g otherwise, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.decoders import CLASSES, MASKS, Decoder, ThreeMasks, best_of_three, decoder_of
from model.data.sampler import Order
from model.data.stream import Example, TrainingDataset
from model.network import load
from model.network.click_features import Sight
from model.network.granular import GranularSam2
from model.network.pixels import normalised_batch
from model.training import train
from model.training.config import TrainConfig, make_config
from model.training.dense_loss import DenseHead
from model.training.losses import shape_losses
from model.training.step import SUMS

POINTS = torch.tensor([[[20.0, 30.0]], [[50.0, 9.0]], [[33.0, 40.0]]])
LABELS = torch.ones(3, 1, dtype=torch.int32)


def made(name: Decoder | None, *, sight: Sight | None = None) -> GranularSam2:
    with decoder_of(name):
        return load.new_model("micro", "full", 64, init="scratch", seed=3, sight=sight).eval()


def asked(model: GranularSam2, g: float | None) -> Tensor:
    torch.manual_seed(5)
    with torch.no_grad():
        features = model.encode(torch.randn(1, 3, 64, 64)).repeat(0, 3)
        return model.decode(features, POINTS, LABELS, None if g is None else torch.full((3,), g)).logits_NMHW


@pytest.mark.parametrize("name", CLASSES)
def test_models_are_of_the_decoder_inside_alone(name: Decoder) -> None:
    step = train.accumulate_gradients
    assert type(made(name)) is CLASSES[name]
    assert type(made(None)) is GranularSam2
    assert train.accumulate_gradients is step


@pytest.mark.parametrize(("name", "hears"), [("one-mask", False), ("token", True), ("prompt", True)])
def test_who_hears_g(name: Decoder, hears: bool) -> None:
    model = made(name)
    assert torch.equal(asked(model, 0.1), asked(model, 1.0)) != hears


def test_what_one_mask_answers_is_what_sams_first_token_answers() -> None:
    student, base = made("one-mask"), made(None)
    with torch.no_grad():
        student.mask_token += 0.1
        for one in student.hypernetwork.parameters():
            one += 0.02
    base.load_state_dict(student.state_dict())
    decoder = base.base.sam_mask_decoder
    with torch.no_grad():
        decoder.mask_tokens.weight[:1] = student.mask_token
    decoder.output_hypernetworks_mlps[0].load_state_dict(student.hypernetwork.state_dict())
    decoder.dynamic_multimask_via_stability = False
    torch.testing.assert_close(asked(base, None), asked(student, 0.4), rtol=1e-4, atol=1e-4)


def test_a_prompt_alone_leaves_the_mask_token_to_sam() -> None:
    assert {each.split(".")[0] for each in made("prompt").set_trainable()} == {"granularity_encoder"}
    for name in ("one-mask", "three-masks"):
        assert not any(each.startswith("granularity_encoder.") for each in made(name).set_trainable())


def test_three_masks_are_asked_by_size_and_choose_by_predicted_iou() -> None:
    model = made("three-masks", sight=Sight(click_features=True, similarity="place"))
    assert isinstance(model, ThreeMasks)
    torch.manual_seed(5)
    features = model.encode(torch.randn(1, 3, 64, 64)).repeat(0, 3)
    every = model.all_masks(features, POINTS, LABELS)
    assert every.logits_NMHW.shape == (3, MASKS, 16, 16)
    sizes = (every.logits_NMHW > 0).sum(dim=(2, 3))
    for rank, several in enumerate([(0.1, 0.39), (0.41, 0.69), (0.71, 1.0)]):
        for g in several:
            found = model.decode(features, POINTS, LABELS, torch.full((3,), g)).logits_NMHW
            assert torch.equal((found > 0).sum(dim=(1, 2, 3)), sizes.sort(dim=1).values[:, rank])
    own = model.decode(features, POINTS, LABELS, None)
    assert torch.equal(own.iou_NM[:, 0], every.iou_NM.max(dim=1).values)


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    return make_config(
        "micro", "scratch", None, image_size=64, masks_per_image=4, steps=1, coarse_images=0, min_parts=0,
        order=Order(), seed=0, min_masks=1, holdout=0.0, precision="fp32",
    )  # fmt: skip


@pytest.fixture(scope="module")
def examples(drawn_run: Path, config: TrainConfig) -> list[Example]:
    found = TrainingDataset(str(drawn_run), config.example_settings(), seed=0, order=Order(), min_masks=1, holdout=0.0)
    return [found[position] for position in range(4)]


def test_the_mask_that_fits_best_is_trained(config: TrainConfig, examples: list[Example]) -> None:
    model = made("three-masks", sight=config.sight)
    assert isinstance(model, ThreeMasks)
    model.set_trainable()
    head = DenseHead(8)
    found = best_of_three(model, examples, config, prompts_in_step=8.0, head=head, anchors_in_step=100.0)
    sums = dict(zip(SUMS, found.tolist(), strict=True))
    assert sums["prompts"] == sum(each.count for each in examples) > 0
    assert sums["anchors"] == sum(len(each.anchors.points) for each in examples) > 0
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    assert all("mask_downscaling" in name for name, each in trained.items() if each.grad is None)  # no mask is fed back
    assert all(each.grad is not None for each in head.parameters())
    best = 0.0
    for each in examples:
        if not each.count:
            continue
        features = model.encode(normalised_batch([each.image], torch.device("cpu"))).repeat(0, each.count)
        labels = torch.ones(each.count, 1, dtype=torch.int32)
        logits = model.all_masks(features, torch.from_numpy(each.points)[:, None], labels).logits_NMHW
        target = torch.nn.functional.avg_pool2d(torch.from_numpy(each.masks())[:, None].float(), 4).flatten(2)
        losses = [shape_losses(mask.flatten(1), target[:, 0], config.loss) for mask in logits.unbind(1)]
        best += torch.stack([one.mask_N + one.dice_N for one in losses]).min(dim=0).values.sum().item()
    assert sums["mask"] + sums["dice"] == pytest.approx(best, rel=1e-3)
