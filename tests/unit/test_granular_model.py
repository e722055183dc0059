"""The model: exact counts, SAM-2's own answer at any time, the dial's values, the returned IoU, fused attention."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from model.network import sam2_base
from model.network.adapters import granularity_values
from model.network.click_features import Sight
from model.network.granular import GranularSam2
from model.network.load import new_model
from model.network.sam2_base import SIZES
from model.predict.image import GranularPredictor, check_prompts
from pipeline import cli
from pipeline.errors import InputError
from tests.numeric import assert_same_sums

PARAMETERS = {"tiny": 38_962_498, "small": 46_060_354, "base_plus": 80_850_178, "large": 224_446_642}
"""Of SAM 2.1 (Meta's table says 38.9, 46, 80.8 and 224.4 million)."""


def noise_image(height: int = 90, width: int = 120) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(5).integers(0, 256, (height, width, 3), dtype=np.uint8)


def micro(adapter: str = "paper", side: int = 128, seed: int = 1) -> GranularSam2:
    """A micro model whose frozen base has random weights."""
    torch.manual_seed(seed)
    return GranularSam2("micro", adapter, side).eval()  # type: ignore[arg-type]


def built_by_sam2(size: str, side: int, checkpoint: Path | None = None) -> Any:
    """A model of sam2's own builder, untouched by our code: a smaller input, and for micro our widths."""
    from sam2.build_sam import build_sam2

    changes = [f"++model.image_size={side}"]
    if size == "micro":
        changes = flags(sam2_base._overrides("micro", side, False), "model")
    names = {"tiny": "t", "small": "s", "base_plus": "b+", "large": "l", "micro": "t"}
    config = f"configs/sam2.1/sam2.1_hiera_{names[size]}.yaml"
    return build_sam2(config, checkpoint and str(checkpoint), device="cpu", hydra_overrides_extra=changes)


def flags(values: dict[str, Any], prefix: str) -> list[str]:
    """Nested values as hydra's command line has them."""
    found = []
    for name, value in values.items():
        place = f"{prefix}.{name}"
        found += flags(value, place) if isinstance(value, dict) else [f"++{place}={str(value).lower()}"]
    return found


def sam2_predictor(base: Any) -> Any:
    """sam2's own predictor."""
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    with warnings.catch_warnings():  # sam2 scripts its transforms
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
        predictor = SAM2ImagePredictor(base)
    predictor._bb_feat_sizes = [(base.image_size // stride,) * 2 for stride in (4, 8, 16)]  # fixed to 1024 px in sam2
    return predictor


def own_predictor(model: GranularSam2) -> Any:
    """sam2's own predictor with the weights that a model of ours has now."""
    base = built_by_sam2(model.size, model.image_size)
    base.load_state_dict(model.base_state())
    return sam2_predictor(base)


@torch.no_grad()
def make_loud(model: GranularSam2) -> GranularSam2:
    """Scales SAM's hypernetworks until each mask's logits reach 20, as trained ones' do; random ones stay below 1."""
    decoder, side = model.base.sam_mask_decoder, model.image_size
    predictor = GranularPredictor(model)
    predictor.set_image(noise_image())
    assert predictor._features is not None
    click = (torch.full((1, 1, 2), side / 2), torch.ones(1, 1, dtype=torch.int32))
    sparse, dense = model.base.sam_prompt_encoder(points=click, boxes=None, masks=None)
    masks = decoder.predict_masks(
        image_embeddings=predictor._features.embedding_BCHW,
        image_pe=model.base.sam_prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        repeat_image=False,
        high_res_features=list(predictor._features.high_res),
    )[0]
    for hypernetwork, peak in zip(decoder.output_hypernetworks_mlps, masks.abs().amax(dim=(0, 2, 3)), strict=True):
        hypernetwork.layers[-1].weight.mul_(20 / peak)
        hypernetwork.layers[-1].bias.mul_(20 / peak)
    model.adopt_base()
    return model


def train_a_little(model: GranularSam2, steps: int = 3) -> None:
    """Real steps of AdamW on what the adapter trains, dropout on."""
    names = set(model.set_trainable())
    parameters = [parameter for name, parameter in model.named_parameters() if name in names]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    model.train()
    side = model.image_size
    features = model.encode(torch.randn(1, 3, side, side))
    target = (torch.rand(4, 1, side // 4, side // 4) > 0.5).float()
    for _ in range(steps):
        decoded = model.decode(
            features.repeat(0, 4),
            torch.rand(4, 1, 2) * side,
            torch.ones(4, 1, dtype=torch.int32),
            torch.tensor([0.1, 0.4, 0.7, 1.0]),
        )
        loss = F.binary_cross_entropy_with_logits(decoded.logits_NMHW, target) + decoded.iou_NM.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def assert_equal_to_sam2(ours: GranularPredictor, own: Any) -> None:
    """Single mask, three masks, refinement, a box, several points, several prompts, at logits of about 20."""
    prompts: list[dict[str, Any]] = [
        {"point_coords": np.array([[60.0, 40.0]]), "point_labels": np.array([1])},
        {"point_coords": np.array([[10.0, 70.0], [100.3, 5.1]]), "point_labels": np.array([1, 0])},
        {"box": np.array([20.0, 11.0, 91.0, 83.0])},
        {"box": np.array([5.0, 5.0, 53.7, 49.9]), "point_coords": np.array([[31.0, 29.0]]), "point_labels": [1]},
    ]
    peaks = []
    for prompt in prompts:
        for multimask in (False, True):
            expected = own.predict(**prompt, multimask_output=multimask, return_logits=True)
            found = ours.predict(**prompt, multimask_output=multimask, return_logits=True)
            for one, other in zip(found, expected, strict=True):
                assert_same_sums(one, other)
            peaks.append(np.abs(expected[2]).max())
        low = expected[2][:1]
        for prompted in (prompt, {}):  # a mask alone is a prompt too
            again = own.predict(**prompted, mask_input=low, multimask_output=False, return_logits=True)
            found = ours.predict(**prompted, mask_input=low, multimask_output=False, return_logits=True)
            for one, other in zip(found, again, strict=True):
                assert_same_sums(one, other)
    points = np.random.default_rng(3).uniform(0, 90, (3, 2, 2)).astype(np.float32)
    labels = np.array([[1, 0], [1, 1], [0, 1]])
    for multimask in (False, True):
        _, iou, logits = own.predict(points, labels, multimask_output=multimask, return_logits=True)
        found = ours.predict_logits(points, labels, multimask=multimask)
        assert_same_sums(found[0].clamp(-32, 32).reshape(logits.shape), logits)
        assert_same_sums(found[1].reshape(iou.shape), iou)
    assert min(peaks) > 10, "faint logits show no difference"
    assert max(peaks) > 18


def check_before_and_after_training(model: GranularSam2, *, steps: int) -> None:
    """Equal to sam2 as it is, after steps of training, and when it is loaded into another model."""
    image = noise_image()
    own, ours = own_predictor(make_loud(model)), GranularPredictor(model)
    own.set_image(image)
    ours.set_image(image)
    assert_equal_to_sam2(ours, own)
    before = ours.predict([[60, 40]], [1], granularity=0.3, return_logits=True)[0]
    train_a_little(model, steps)
    assert_equal_to_sam2(ours, own)
    torch.manual_seed(9)
    loaded = GranularSam2(model.size, model.adapter, model.image_size, sight=model.sight).eval()
    loaded.load_state_dict(model.state_dict())
    first_use = GranularPredictor(loaded)  # nothing has been asked of it yet, with a granularity or without
    first_use.set_image(image)
    assert_equal_to_sam2(first_use, own)
    after = ours.predict([[60, 40]], [1], granularity=0.3, return_logits=True)[0]
    assert np.abs(after - before).max() > 1e-3


SEEING = Sight(click_features=True, similarity="place")


@pytest.mark.parametrize(("adapter", "sight"), [("paper", None), ("paper", SEEING), ("lite", None)])
def test_without_granularity_the_answer_is_sam2s_before_and_after_training(adapter: Any, sight: Sight | None) -> None:
    torch.manual_seed(1)
    check_before_and_after_training(GranularSam2("tiny", adapter, 128, sight=sight).eval(), steps=2)


def test_places_of_points_are_sam2s_to_the_last_bit() -> None:
    ours = GranularPredictor(micro("lite"))
    own = own_predictor(ours.model)
    size = (333, 481)
    coordinates = np.random.default_rng(0).uniform(0, 481, (500, 3, 2)).astype(np.float32)
    boxes = coordinates[:, :2].reshape(-1, 4)
    found, _ = ours._in_model_pixels(check_prompts(coordinates, None, boxes, None, None, side=32), size)
    expected = own._transforms.transform_coords(torch.from_numpy(coordinates), normalize=True, orig_hw=size)
    assert found is not None
    assert torch.equal(found, torch.cat([expected[:, :2], expected], dim=1))


def test_a_checkpoint_that_train_wrote_gives_its_bases_answer(drawn_run: Path, tmp_path: Path) -> None:
    """Weights in Meta's layout, which sam2's builder loads too, `grainmill train`, and the file that it wrote."""
    base = tmp_path / "base.pt"
    torch.save({"model": make_loud(micro("paper", 64)).base_state()}, base)
    code = cli.main([
        "train", "--data", str(drawn_run), "--output", str(tmp_path / "run"), "--size", "micro", "--init", str(base),
        "--adapter", "paper", "--image-size", "64", "--steps", "2", "--global-batch-size", "2",
        "--masks-per-image", "4", "--coarse-images", "0", "--holdout", "0", "--learning-rate", "0.01",
        "--min-masks", "1",
    ])  # fmt: skip
    assert code == 0
    own, ours = sam2_predictor(built_by_sam2("micro", 64, base)), GranularPredictor.load(tmp_path / "run")
    own.set_image(noise_image())
    ours.set_image(noise_image())
    assert_equal_to_sam2(ours, own)
    fresh = GranularPredictor(new_model("micro", "paper", 64, init=str(base), seed=0).eval())
    fresh.set_image(noise_image())
    answers = [each.predict([[60, 40]], [1], granularity=0.3, return_logits=True)[0] for each in (ours, fresh)]
    assert np.abs(answers[0] - answers[1]).max() > 1e-2, "it was trained"


def test_the_fallback_to_a_stable_mask_is_sam2s() -> None:
    """Random weights give faint logits (unstable, so sam2 takes a multimask); scaled weights give stable ones."""
    taken = set()
    for scale in (1.0, 3000.0):
        model = micro("lite")
        with torch.no_grad():
            for hypernetwork in model.base.sam_mask_decoder.output_hypernetworks_mlps:
                hypernetwork.layers[-1].weight.mul_(scale)
                hypernetwork.layers[-1].bias.mul_(scale)
        own, ours = own_predictor(model), GranularPredictor(model)
        own.set_image(noise_image())
        ours.set_image(noise_image())
        expected = own.predict(np.array([[60, 40]]), np.array([1]), multimask_output=False, return_logits=True)
        found = ours.predict([[60, 40]], [1], multimask_output=False, return_logits=True)
        assert_same_sums(found[0], expected[0])
        assert_same_sums(found[1], expected[1])
        three = ours.predict([[60, 40]], [1], multimask_output=True)[1]
        taken.add(bool((np.abs(three - found[1]) < 1e-7).any()))
    assert taken == {True, False}, "both the single mask and the fallback must have been met"


@pytest.mark.slow
def test_tiny_at_its_own_size_equals_sam2s_predictor() -> None:
    torch.manual_seed(0)
    check_before_and_after_training(GranularSam2("tiny", "paper", 1024).eval(), steps=1)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["paper", "lite"])
@pytest.mark.parametrize("size", ["tiny", "small", "base_plus", "large"])
def test_every_official_size_equals_sam2s_predictor(size: Any, adapter: Any) -> None:
    """At 256 pixels, for the time it takes: weights and code are the same at every image size."""
    torch.manual_seed(0)
    check_before_and_after_training(GranularSam2(size, adapter, 256).eval(), steps=1)


def test_paper_on_small_trains_exactly_what_the_paper_does() -> None:
    counts = GranularSam2("small", "paper", 256).counts()
    assert counts["trainable_parameters"] == counts["added_parameters"] == 345_760
    assert counts["base_parameters"] == 46_060_354
    assert counts["added_percent"] == 0.7507


def test_the_command_shows_the_count(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--dry-run", "--size", "small", "--adapter", "paper", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["trainable_parameters"], shown["base_parameters"]) == (345_760, 46_060_354)


@pytest.mark.parametrize("size", ["tiny", "small", "base_plus", "large"])
def test_lite_is_at_most_two_hundredths_of_a_per_cent(size: Any) -> None:
    model = GranularSam2(size, "lite", 256)
    counts = model.counts()
    assert counts["base_parameters"] == PARAMETERS[size]
    assert counts["trainable_parameters"] == 7_596
    assert counts["trainable_parameters"] <= 0.0002 * PARAMETERS[size]
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert sum(model.get_parameter(name).numel() for name in trained) == 7_596
    assert "large" in SIZES


# -- the dial's values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        0.5, np.float32(0.5), np.float64(0.5), [0.5], np.array(0.5), np.array([0.5, 0.5, 0.5]), (0.5, 0.5, 0.5),
        np.array([0.5, 0.5, 0.5], dtype=np.float16), torch.tensor(0.5), torch.tensor([0.5, 0.5], dtype=torch.float64),
        torch.tensor([0.5], requires_grad=True), torch.tensor([0.5], dtype=torch.float16),
        torch.tensor([0.5], dtype=torch.bfloat16, requires_grad=True), [torch.tensor(0.5, requires_grad=True)] * 3,
        [torch.tensor([0.5]), 0.5, np.float16(0.5)], [np.array([0.5, 0.5]), torch.tensor([0.5], dtype=torch.bfloat16)],
        np.array([0.5] * 3, dtype=object),
    ],
)  # fmt: skip
def test_numbers_of_every_kind_are_granularities(value: Any) -> None:
    values = granularity_values(value)
    assert (values.ndim, values.dtype) == (1, np.float64)
    assert set(values.tolist()) == {0.5}


@pytest.mark.parametrize(
    "value",
    [
        0.1, [0.1], np.float16(0.1), np.array(0.1, dtype=np.float16), np.float32(0.1), float(np.float32(0.1)),
        torch.tensor(0.1, dtype=torch.float16), torch.tensor(0.1, dtype=torch.bfloat16), torch.tensor(0.1),
        [np.float16(0.1)], [torch.tensor(0.1, dtype=torch.float16)],
    ],
)  # fmt: skip
def test_a_tenth_is_in_the_range_in_every_type(value: Any) -> None:
    """In half precision the nearest number to 0.1 is 0.09998, in bfloat16 0.10010."""
    assert granularity_values(value).tolist() == [pytest.approx(0.1, abs=1e-7)]


@pytest.mark.parametrize("value", [1, 1.0, np.int64(1), torch.tensor(1), [1], np.ones(1, dtype=np.uint8)])
def test_whole_numbers_are_granularities(value: Any) -> None:
    assert granularity_values(value).tolist() == [1.0]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0.0999, r"granularity 0.0999: expected a number in \[0.1, 1.0\]"),
        (1.01, r"granularity 1.01: expected a number in \[0.1, 1.0\]"),
        (float("nan"), "granularity nan: expected a number"),
        (float("inf"), "granularity inf: expected a number"),
        ([0.5, 0.5, -1.0], "granularity -1: expected a number"),
        (torch.tensor([0.5, float("nan"), 0.5]), "granularity nan"),
        (0, "granularity 0: expected a number"),
        (torch.tensor(0), "granularity 0: expected a number"),
        (np.float16(0.0999), "granularity 0.0999"),
        (torch.tensor([0.5, 0.099], dtype=torch.bfloat16), "granularity 0.09"),
        (torch.tensor(1.01, dtype=torch.float16), "granularity 1.0"),
        ([torch.tensor(0.05, requires_grad=True)], "granularity 0.05"),
        ("big", "expected numbers, found 'big'"),
        (["0.5"], "expected numbers"),
        ([0.1, None, 0.2], "expected numbers"),
        (None, "expected numbers"),
        ([[0.1], [0.1, 0.2]], "expected numbers"),
        (True, "expected numbers, found True"),
        ([True, 0.5], "expected numbers"),
        (torch.tensor([True]), "expected numbers"),
        (0.5j, "expected numbers"),
        (torch.tensor(0.5j), "expected numbers, found tensor"),
        (np.array([0.5j]), "expected numbers"),
        ({0.5}, "expected numbers"),
        (torch.empty(1, device="meta"), "expected numbers"),
        ([], "at least one number, found none"),
        ((), "at least one number, found none"),
        (torch.zeros(0), "at least one number, found none"),
    ],
)
def test_other_values_are_refused_with_a_clear_message(value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        granularity_values(value)


def test_the_predictor_refuses_the_same() -> None:
    predictor = GranularPredictor(micro("lite"))
    predictor.set_image(noise_image())
    for wrong in (0.0, 2, float("nan"), [0.5, 1.5], torch.tensor([0.05])):
        with pytest.raises(InputError, match=r"expected a number in \[0.1, 1.0\]"):
            predictor.predict([[5, 5]], [1], granularity=wrong)
    with pytest.raises(InputError, match="expected numbers"):
        predictor.predict([[5, 5]], [1], granularity="large")
    with pytest.raises(InputError, match="expected at least one number, found none"):
        predictor.predict([[5, 5]], [1], granularity=[])
    with pytest.raises(InputError, match="one value or one for each of 3 prompts, found 2"):
        predictor.predict(np.ones((3, 1, 2)), granularity=[0.1, 0.2])


# -- the answer --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", ["paper", "lite", "full"])
def test_at_the_start_the_mask_token_is_sams_own(adapter: str) -> None:
    """Without the granularity prompt and LoRA, the granular path is SAM's mask token 0: only the prompt differs."""
    model = micro(adapter)
    torch.manual_seed(2)
    features = model.encode(torch.randn(1, 3, 128, 128)).repeat(0, 2)
    prompt = (torch.rand(2, 1, 2) * 128, torch.ones(2, 1, dtype=torch.int32))
    sparse, dense = model.base.sam_prompt_encoder(points=prompt, boxes=None, masks=None)
    no_token = torch.zeros(2, 0, sparse.shape[-1])
    model.granularity_encoder.forward = lambda g: no_token
    decoded = model.decode_prompts(features, sparse, dense, torch.full((2,), 0.5))
    masks, iou, _, _ = model.base.sam_mask_decoder.predict_masks(
        image_embeddings=features.embedding_BCHW,
        image_pe=model.base.sam_prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        repeat_image=False,
        high_res_features=list(features.high_res),
    )
    assert_same_sums(decoded.logits_NMHW, masks[:, :1])
    assert_same_sums(decoded.iou_NM, iou[:, :1])


def test_the_returned_iou_is_slot_0_of_the_head() -> None:
    model = micro("paper")
    head = model.base.sam_mask_decoder.iou_prediction_head
    with torch.no_grad():
        head.layers[-1].weight.zero_()
        head.layers[-1].bias.copy_(torch.tensor([1.0, -9.0, -9.0, 9.0]))
    predictor = GranularPredictor(model)
    predictor.set_image(noise_image())
    assert predictor.predict([[5, 5]], [1], granularity=0.4)[1] == pytest.approx(1 / (1 + np.exp(-1.0)))
    assert predictor.predict([[5, 5]], [1], multimask_output=True)[1][2] == pytest.approx(1 / (1 + np.exp(-9.0)))


class Operations(TorchDispatchMode):
    """Names of every operation that reaches a backend."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("granularity", [None, 0.3])
def test_attention_is_fused_everywhere(granularity: float | None) -> None:
    """No attention map is materialised by a softmax, in the encoder or the decoder, with LoRA or without."""
    predictor = GranularPredictor(micro("paper"))
    with Operations() as operations:
        predictor.set_image(noise_image())
    encoder = operations.names
    with Operations() as operations:
        predictor.predict([[5, 5]], [1], granularity=granularity)
    decoder = operations.names
    assert not [name for name in encoder + decoder if "softmax" in name]
    assert sum("scaled_dot_product" in name for name in decoder) == 7
    assert sum("scaled_dot_product" in name for name in encoder) == 7  # micro's blocks


def test_lora_is_off_outside_the_granular_path() -> None:
    model = micro("paper")
    train_a_little(model, steps=1)
    assert not any(layer.active for layer in model.lora_modules())
    assert len(model.lora_modules()) == 28


def test_scratch_models_are_equal_for_equal_seeds() -> None:
    one, other = (new_model("micro", "full", 64, init="scratch", seed=4).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_mini_is_micro_with_a_decoder_twice_as_wide() -> None:
    """It answers, takes both additions and is told from micro by its weights; small enough for 8 MB in half."""
    seeing = Sight(click_features=True, similarity="place")
    model = new_model("mini", "full", 64, init="scratch", seed=0, sight=seeing).eval()
    narrow = micro("full", 64)
    trunks = [sam2_base.parameter_count(each.base.image_encoder.trunk) for each in (model, narrow)]
    assert trunks[0] == trunks[1]
    assert model.base.sam_mask_decoder.transformer_dim == 2 * narrow.base.sam_mask_decoder.transformer_dim == 128
    assert sum(each.numel() for each in model.state_dict().values()) * 2 < 8e6
    predictor = GranularPredictor(model)
    predictor.set_image(noise_image())
    masks, iou, _ = predictor.predict([[60, 40]], [1], granularity=[0.2, 0.9])
    assert (masks.shape, iou.shape) == ((2, 90, 120), (2,))
    assert [sam2_base.size_of_state(each.base_state()) for each in (model, narrow)] == ["mini", "micro"]
