"""What a CUDA device computes beside what a processor computes. Skipped without one; `infra/gpu/run.sh` runs them.

GRAINMILL_TEST_DEVICE=cpu runs them on a processor against itself, to try the tests themselves.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.gpu import drawn_example
from model.data.prompts import correction_clicks
from model.data.sampler import Order
from model.network.adapters import Adapter
from model.network.granular import GranularSam2
from model.network.load import load_granular
from model.predict.image import GranularPredictor
from model.predict.mask_generator import AutomaticConfig, generate_masks
from model.predict.video import Frames, GranularVideoPredictor
from model.training.config import RunOptions, TrainConfig, make_config
from model.training.step import SUMS, accumulate_gradients
from model.training.train import train

DEVICE = os.environ.get("GRAINMILL_TEST_DEVICE", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no CUDA device"),
]
RELATIVE = 3e-4
"""Of float32 sums in another order through some thirty layers, relative to the largest value."""


@pytest.fixture(autouse=True)
def _float32_is_float32() -> Iterator[None]:
    """cuDNN's convolutions round their inputs to 10 bits unless told otherwise (5e-4 at the logits on an H200)."""
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield


def config(adapter: Adapter | None, **changes: object) -> TrainConfig:
    values: dict[str, object] = {
        "image_size": 64,
        "masks_per_image": 6,
        "clicks": 3,
        "global_batch_size": 2,
        "coarse_images": 0,
    }
    values["precision"] = "fp32"
    init = "scratch" if adapter in (None, "full") else "drawn"
    return make_config(
        "micro", init, adapter, order=Order(), seed=0, min_masks=1, holdout=0.0,
        **{**values, **changes},
    )  # fmt: skip


def model_on(device: str, adapter: Adapter) -> GranularSam2:
    torch.manual_seed(0)
    model = GranularSam2("micro", adapter, 64)
    with torch.no_grad():  # LoRA adds zero at the start; here it shall add something
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.05)
    return model.to(device)


def assert_near(found: Tensor, expected: Tensor) -> None:
    difference = (found.cpu() - expected.cpu()).abs().max()
    assert difference <= RELATIVE * max(float(expected.abs().max()), 1e-3), float(difference)


@pytest.mark.parametrize("adapter", ["paper", "lite", "full"])
@pytest.mark.parametrize("granularity", [None, 0.3])
def test_answers_are_a_processors(adapter: Adapter, granularity: float | None) -> None:
    torch.manual_seed(1)
    images, points = torch.randn(2, 3, 64, 64), torch.rand(2, 1, 2) * 64
    answers = []
    for device in ("cpu", DEVICE):
        model = model_on(device, adapter).eval()
        with torch.no_grad():
            features = model.encode(images.to(device))
            dial = None if granularity is None else torch.full((2,), granularity, device=device)
            labels = torch.ones(2, 1, dtype=torch.int32, device=device)
            answers.append(model.decode(features, points.to(device), labels, dial))
    assert_near(answers[1].logits_NMHW, answers[0].logits_NMHW)
    assert_near(answers[1].iou_NM, answers[0].iou_NM)


@pytest.mark.parametrize("adapter", ["paper", "full"])
def test_a_steps_sums_and_gradients_are_a_processors(adapter: Adapter) -> None:
    settings = config(adapter, clicks=1)
    rng = np.random.default_rng(0)
    examples = [drawn_example(settings, rng) for _ in range(2)]
    sums, gradients = [], []
    for device in ("cpu", DEVICE):
        model = model_on(device, adapter).eval()  # without dropout, whose draws are each device's own
        names = model.set_trainable()
        sums.append(accumulate_gradients(model, examples, settings, prompts_in_step=12.0).cpu())
        gradients.append({name: each.grad for name, each in model.named_parameters() if name in names})
    assert torch.allclose(sums[0], sums[1], rtol=1e-3), dict(zip(SUMS, zip(*sums, strict=True), strict=True))
    for name, gradient in gradients[0].items():
        if gradient is not None:
            assert_near(gradients[1][name], gradient)


def test_half_precision_and_corrections_stay_near() -> None:
    settings = config("paper")
    rng = np.random.default_rng(0)
    examples = [drawn_example(settings, rng) for _ in range(2)]
    found = []
    for precision in ("fp32", "bf16"):
        model = model_on(DEVICE, "paper").eval()
        model.set_trainable()
        chosen = config("paper", precision=precision)
        found.append(accumulate_gradients(model, examples, chosen, prompts_in_step=12.0).cpu())
        assert all(each.grad is None or bool(each.grad.isfinite().all()) for each in model.parameters())
    assert torch.allclose(found[0][:3], found[1][:3], rtol=0.05)


def test_correction_clicks_are_a_processors() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted, target = (torch.rand(9, 64, 64, generator=generator) > share for share in (0.5, 0.3))
    predicted[0] = target[0]
    draws = torch.rand(9, generator=generator)
    found = [correction_clicks(predicted.to(each), target.to(each), draws) for each in ("cpu", DEVICE)]
    assert torch.equal(found[1][0].cpu(), found[0][0])
    assert torch.equal(found[1][1].cpu(), found[0][1])


def test_a_run_trains_resumes_and_answers(drawn_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = config("full", steps=4, masks_per_image=4)
    stopped = RunOptions(
        data=str(drawn_run), output=str(run), device=DEVICE, log_every=1, time_limit_s=1e-3, save_every=1
    )
    assert train(settings, stopped)["stopped"]
    train(settings, RunOptions(data=str(drawn_run), output=str(run), device=DEVICE, log_every=1, resume=True))
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 4
    assert np.isfinite(losses).all()
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    answers = []
    for device in ("cpu", DEVICE):
        predictor = GranularPredictor(load_granular(run, device))
        predictor.set_image(image)
        answers.append(predictor.predict([(30, 20)], [1], granularity=0.5, return_logits=True)[0])
    assert np.abs(answers[0] - answers[1]).max() <= RELATIVE * np.abs(answers[0]).max()


def test_everything_is_found_as_on_a_processor() -> None:
    settings = AutomaticConfig(
        granularities=(0.2, 1.0), points_per_side=4, pred_iou_thresh=0.0, stability_score_thresh=0.0, min_area_px=1
    )
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    areas = []
    for device in ("cpu", DEVICE):
        found = generate_masks(GranularPredictor(model_on(device, "paper").eval()), image, settings)
        areas.append(sorted(each.area_px for each in found))
    assert len(areas[0]) == len(areas[1])
    assert np.allclose(areas[0], areas[1], rtol=0.02, atol=2)


def test_video_is_tracked() -> None:
    torch.manual_seed(0)
    model = GranularSam2("micro", "paper", 64, video=True).to(DEVICE).eval()
    frames = np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3), dtype=np.uint8)
    predictor = GranularVideoPredictor(model)
    state = predictor.init_state(Frames(list(frames)))
    predictor.add_new_points_or_box(state, 0, 1, [(20, 20)], [1], granularity=0.5)
    predictor.add_new_points_or_box(state, 0, 2, [(40, 20)], [1])
    tracked = list(predictor.propagate_in_video(state))
    assert [logits.shape for _, _, logits in tracked] == [(2, 1, 48, 64)] * 3
