"""Click features and the similarity term against their plain definitions, in loops and double precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model.network.checkpoint import read_checkpoint, write_checkpoint
from model.network.click_features import ClickFeatures, Clicks, Sight, SimilarityTerm, at_clicks
from model.network.granular import GranularSam2, ImageFeatures
from model.network.init import look_at_clicks
from model.network.load import checkpoint_record, load_granular, new_model, trained_state
from model.network.merge import merge_checkpoint
from model.predict.onnx_export import export_onnx
from model.predict.video import Frames, GranularVideoPredictor
from pipeline.errors import InputError, SchemaError

Array = NDArray[np.float64]
SIDE = 32
LABELS = [[1, 0, 1, 0, -1], [1, -1, -1, -1, -1], [0, 0, -1, -1, -1], [2, 3, -1, -1, -1]]
"""Both kinds of click; one inside; outside alone; a box."""
BOTH = Sight(click_features=True, similarity="place")


def clicks() -> Clicks:
    points = torch.rand(4, 5, 2, generator=torch.Generator().manual_seed(3)) * (SIDE + 2) - 1.5  # some off the map
    return Clicks(points_NP2=points, labels_NP=torch.tensor(LABELS), side=SIDE)


def plain_at(level: Array, x: float, y: float) -> Array:
    """A map (C, h, w) at a pixel of the input: bilinear between cells' centres, borders continued."""
    height, width = level.shape[1:]
    u = min(max((x + 0.5) / SIDE * width - 0.5, 0), width - 1)
    v = min(max((y + 0.5) / SIDE * height - 0.5, 0), height - 1)
    left, top = min(int(u), width - 2), min(int(v), height - 2)
    found = np.zeros(len(level))
    for row in (top, top + 1):
        for column in (left, left + 1):
            found += (1 - abs(u - column)) * (1 - abs(v - row)) * level[:, row, column]
    return found


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


def plain_term(token: Array, features: Array, weight: Array, bias: Array, gate: float, place: bool) -> Array:
    """The class's docstring, pixel by pixel."""
    points, labels = clicks().points_NP2.double().numpy(), clicks().labels_NP.numpy()
    height, width = features.shape[-2:]
    term = np.zeros((len(token), height, width))
    for n in range(len(token)):
        for row in range(height):
            for column in range(width):
                near: dict[int, list[float]] = {1: [], 0: []}
                for (x, y), label in zip(points[n], labels[n], strict=True):
                    if label not in near:
                        continue
                    clicked = plain_at(features[n], x, y)
                    asked = weight @ np.concatenate([token[n], clicked]) + bias
                    value = asked[0] - softplus(asked[1]) * ((features[n, :, row, column] - clicked) ** 2).sum()
                    if place:
                        across, down = (
                            (column + 0.5) / width - (x + 0.5) / SIDE,
                            (row + 0.5) / height - (y + 0.5) / SIDE,
                        )
                        value -= 10 * softplus(asked[2]) * (across**2 + down**2)
                    near[label].append(value)
                inside = max(near[1]) if near[1] else 0.0
                outside = softplus(max(near[0])) if near[0] else 0.0
                term[n, row, column] = gate * (inside - outside)
    return term


@pytest.mark.parametrize("place", [False, True])
def test_the_similarity_term_and_its_gradient_are_those_of_the_plain_definition(place: bool) -> None:
    random = torch.Generator().manual_seed(0)
    module = SimilarityTerm(6, 3, place=place, silent=False)
    token = torch.randn(4, 6, generator=random, requires_grad=True)
    features = torch.randn(4, 3, 8, 8, generator=random, requires_grad=True)
    with torch.no_grad():
        module.ask.weight.normal_(0, 0.3, generator=random)
        module.gate.fill_(0.7)
    inputs = [token, features, module.ask.weight, module.ask.bias, module.gate]

    def plain(values: list[Array]) -> Array:
        return plain_term(values[0], values[1], values[2], values[3], float(values[4][0]), place)

    def found() -> torch.Tensor:
        return module(token, features, clicks())

    expect_value_and_gradient(found, plain, inputs)
    assert not found()[3].any(), "a box has no term"


def expect_value_and_gradient(
    found: Callable[[], torch.Tensor], plain: Callable[[list[Array]], Array], inputs: list[torch.Tensor]
) -> None:
    """The value; and the derivative along one drawn direction of all inputs, by central differences."""
    values = [each.detach().double().numpy() for each in inputs]
    answer = found()
    np.testing.assert_allclose(answer.detach().numpy(), plain(values), atol=2e-5)
    random = np.random.default_rng(1)
    direction, mix = [random.normal(size=each.shape) for each in values], random.normal(size=answer.shape)
    step = 1e-5
    ends = [plain([v + sign * step * d for v, d in zip(values, direction, strict=True)]) for sign in (1, -1)]
    expected = float((mix * (ends[0] - ends[1])).sum() / (2 * step))
    gradients = torch.autograd.grad((answer * torch.from_numpy(mix).float()).sum(), inputs)
    assert all(each.abs().max() > 0 for each in gradients)
    ours = sum(float((each.double().numpy() * d).sum()) for each, d in zip(gradients, direction, strict=True))
    assert ours == pytest.approx(expected, rel=1e-3)


def test_distances_stay_in_single_precision_under_autocast() -> None:
    module = SimilarityTerm(6, 3, place=True, silent=False)
    features = 100 + torch.rand(4, 3, 8, 8)  # whose squares bfloat16 rounds to steps of 64
    expected = module(torch.zeros(4, 6), features, clicks())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = module(torch.zeros(4, 6, dtype=torch.bfloat16), features, clicks())
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_click_features_go_to_the_tokens_of_clicks_inside() -> None:
    torch.manual_seed(0)
    maps = [torch.randn(4, channels, side, side) for channels, side in ((5, 2), (2, 8), (3, 4))]
    module = ClickFeatures(10, 6, silent=False)
    prompts, masks = module(maps, clicks())
    assert (prompts.shape, masks.shape) == ((4, 5, 6), (4, 6))
    to_prompt, to_mask = (each.weight.detach().double().numpy() for each in (module.to_prompt, module.to_mask))
    for n in range(4):
        told = []
        for p, (x, y) in enumerate(clicks().points_NP2[n].tolist()):
            heard = np.concatenate([plain_at(each[n].double().numpy(), x, y) for each in maps])
            inside = LABELS[n][p] == 1
            np.testing.assert_allclose(prompts[n, p].detach().numpy(), inside * (to_prompt @ heard), atol=1e-5)
            told += [to_mask @ heard] if inside else []
        expected = np.mean(told, axis=0) if told else np.zeros(6)
        np.testing.assert_allclose(masks[n].detach().numpy(), expected, atol=1e-5)
    assert torch.equal(at_clicks(maps[0], clicks()).isfinite(), torch.ones(4, 5, 5, dtype=torch.bool))


# -- in the model ------------------------------------------------------------------------------------------------------


def answer(model: GranularSam2, granularity: float | None, labels: list[int], seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    points = torch.rand(1, len(labels), 2, generator=random) * model.image_size
    values = None if granularity is None else torch.tensor([granularity])
    with torch.no_grad():
        features = model.encode(torch.randn(1, 3, model.image_size, model.image_size, generator=random))
        return model.decode(features, points, torch.tensor([labels]), values).logits_NMHW


def built(adapter: Any, sight: Sight | None, **more: Any) -> GranularSam2:
    torch.manual_seed(1)
    return GranularSam2("micro", adapter, 64, sight=sight, **more).eval()


@torch.no_grad()
def lively(model: GranularSam2) -> GranularSam2:
    torch.manual_seed(2)
    for name in model.adapter_names():
        parameter = model.get_parameter(name)
        parameter += 0.2 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("sight", [Sight(similarity="features"), BOTH])
def test_beside_a_frozen_base_it_is_silent_at_first_and_for_ever_without_a_granularity(sight: Sight) -> None:
    plain, seeing = built("paper", None), built("paper", sight)
    for labels in ([1], [1, 0, 1], [2, 3], [2, 3, 1]):
        assert torch.equal(answer(plain, 0.4, labels), answer(seeing, 0.4, labels))
    lively(seeing)
    for labels in ([1], [1, 0, 1], [2, 3]):
        assert torch.equal(answer(plain, None, labels), answer(seeing, None, labels))


def test_each_part_is_heard_and_only_where_there_are_clicks() -> None:
    """Every parameter is trained, counted and changes the answer to a click; none that to a box."""
    for sight in (Sight(click_features=True), Sight(similarity="features"), Sight(similarity="place")):
        model = built("full", sight)
        names = [name for name in model.set_trainable() if name.startswith(("click_features.", "similarity."))]
        assert len(names) == (4 if sight.click_features else 3)
        assert not {name.split(".")[0] for name in names} - {"click_features", "similarity"}
        added = built("full", None).counts()["trainable_parameters"]
        assert model.counts()["trainable_parameters"] == added + sum(model.get_parameter(n).numel() for n in names)
        for name in names:
            before = [answer(model, 0.4, labels) for labels in ([1, 0], [2, 3])]
            with torch.no_grad():
                model.get_parameter(name).add_(0.3)
            after = [answer(model, 0.4, labels) for labels in ([1, 0], [2, 3])]
            assert (before[0] - after[0]).abs().max() > 1e-4, name
            assert torch.equal(before[1], after[1]), name


def test_a_click_outside_lowers_what_is_like_it_and_raises_nothing() -> None:
    model = built("full", Sight(similarity="place"))
    features = torch.randn(1, 8, 16, 16)
    token, side = torch.randn(1, 64), 64
    assert model.similarity is not None
    points = torch.tensor([[[10.0, 20.0], [49.5, 41.5]]])  # the second at a cell's centre
    inside, both = (
        model.similarity(token, features, Clicks(points_NP2=points, labels_NP=torch.tensor([labels]), side=side))
        for labels in ([1, -1], [1, 0])
    )
    assert (both <= inside).all()
    drop = (inside - both)[0]
    assert drop[10, 12] > 0.9 > drop.median()


def test_the_blob_start_keeps_click_features_out_of_the_position_channels() -> None:
    model = new_model("micro", "full", 64, init="scratch", seed=0, sight=BOTH)
    fresh = GranularSam2("micro", "full", 64)
    position = look_at_clicks(fresh.base.sam_prompt_encoder, fresh.base.sam_mask_decoder.transformer)
    assert model.click_features is not None
    silent = (model.click_features.to_prompt.weight == 0).all(dim=1)
    assert torch.equal(silent, position)


@pytest.mark.parametrize("adapter", ["paper", "full"])
def test_it_is_kept_in_checkpoints_merged_files_and_exports(adapter: Any, tmp_path: Path) -> None:
    model = lively(built(adapter, BOTH))
    base = tmp_path / "base.pt"
    torch.save({"model": model.base_state()}, base)
    path = tmp_path / "trained.safetensors"
    record = checkpoint_record(model, init=str(base))
    write_checkpoint(path, record, {f"model.{name}": value for name, value in trained_state(model).items()})
    loaded = load_granular(path)
    merge_checkpoint(path, tmp_path / "merged.safetensors")
    merged = load_granular(tmp_path / "merged.safetensors")
    for each in (loaded, merged):
        assert each.sight == BOTH
        np.testing.assert_allclose(answer(each, 0.4, [1, 0]), answer(model, 0.4, [1, 0]), atol=1e-5)
    about = export_onnx(merged, tmp_path / "onnx")  # compared with torch there, over several points
    assert about["sight"] == {"click_features": True, "similarity": "place"}
    if adapter == "full":
        with pytest.raises(InputError, match="click features and similarity place, and this run has no click"):
            new_model("micro", "full", 64, init=str(path), seed=0)
        again = new_model("micro", "full", 64, init=str(path), seed=0, sight=BOTH).eval()
        assert torch.equal(answer(again, 0.4, [1]), answer(model, 0.4, [1]))
    old = {name: value for name, value in record.items() if name != "sight"}
    write_checkpoint(path, old, {f"model.{name}": value for name, value in trained_state(built(adapter, None)).items()})
    needed = None if adapter == "full" else str(base)
    assert load_granular(path, base=needed).sight == Sight(), "checkpoints from before it hear nothing"
    write_checkpoint(path, {**record, "sight": {"colour": 1}}, read_checkpoint(path).tensors)
    with pytest.raises(SchemaError, match="sight is"):
        load_granular(path, base=needed)


def test_an_unknown_similarity_is_refused() -> None:
    with pytest.raises(InputError, match="--similarity colour: expected one of off, features, place"):
        Sight(similarity="colour")  # type: ignore[arg-type]


def test_in_video_the_prompted_frame_hears_its_clicks() -> None:
    """On the prompted frame the answer depends on the similarity; it has no clicks on the frames behind it."""
    model = lively(built("paper", BOTH, video=True))
    with torch.no_grad():
        model.base.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(20.0)
    predictor = GranularVideoPredictor(model)
    random = np.random.default_rng(0)
    frames = Frames([random.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(2)])
    found = []
    for gate in (0.0, 3.0):
        assert model.similarity is not None
        model.similarity.gate.data.fill_(gate)
        state = predictor.init_state(frames)
        found.append(predictor.add_new_points_or_box(state, 0, 1, [[20, 30]], granularity=0.5)[2].numpy())
        list(predictor.propagate_in_video(state))
    assert np.abs(found[0] - found[1]).max() > 0.1
    decoder, encoder = model.base.sam_mask_decoder, model.base.sam_prompt_encoder
    assert not {"forward"} & {*decoder.__dict__, *encoder.__dict__}, "both are sam2's again"


def test_features_of_a_frozen_encoder_get_no_gradient_from_it() -> None:
    model = built("paper", BOTH)
    model.set_trainable()
    with torch.no_grad():
        features = model.encode(torch.randn(1, 3, 64, 64))
    decoded = model.decode(features, torch.rand(1, 1, 2) * 64, torch.ones(1, 1), torch.tensor([0.5]))
    decoded.logits_NMHW.square().mean().backward()
    assert isinstance(features, ImageFeatures)
    assert model.similarity is not None
    assert model.similarity.gate.grad is not None
    assert model.similarity.gate.grad.abs() > 0
