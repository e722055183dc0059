"""UnSAMv2's own checkpoints: their code's answers, its names, SAM-2's part, and files that are nearly right."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from model.desk.answers import ModelPredictor
from model.evaluation.checkpoint import load_model
from model.evaluation.flags import ScoreFlags
from model.evaluation.options import score_options
from model.evaluation.subjects.predictors import as_click_model
from model.network import sam2_base
from model.network.checkpoint import read_checkpoint, write_checkpoint
from model.network.click_features import Sight
from model.network.granular import GranularSam2
from model.network.load import (
    checkpoint_record,
    load_for_prediction,
    load_granular,
    load_sam2,
    new_model,
    recognised,
    trained_state,
)
from model.network.merge import merge_checkpoint, write_for_unsamv2
from model.network.sam2_base import build_base
from model.network.unsamv2 import base_of, in_our_names, in_their_names
from model.predict.image import GranularPredictor
from model.predict.mask_generator import AutomaticConfig, GranularMaskGenerator, generate_masks
from model.predict.video import GranularVideoPredictor
from model.training.flags import TrainFlags
from model.training.options import train_options
from pipeline import cli
from pipeline.errors import InputError
from tests.golden.unsamv2 import drawn
from tests.numeric import assert_same_sums
from tests.unit.test_granular_model import sam2_predictor

GOLDEN = Path(__file__).parents[1] / "golden" / "unsamv2"
SHAPES: dict[str, list[int]] = json.loads((GOLDEN / "state_dict.json").read_text())
ANSWERS = np.load(GOLDEN / "answers.npz")
SIDE = 128


def assert_theirs(found: Any, name: str) -> None:
    """Within 1e-5 of the largest value that the authors' code gives."""
    expected = ANSWERS[name]
    assert np.shape(found) == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn weights as the authors' trainer saves them."""
    path = tmp_path_factory.mktemp("theirs") / "unsamv2_ckpt.pt"
    state = {name: torch.from_numpy(each) for name, each in drawn.weights(SHAPES).items()}
    torch.save({"model": state, "epoch": 5, "steps": {"train": 15000}}, path)
    return path


@pytest.fixture(scope="module")
def small_side() -> Any:
    """Within, models of size small take 128 pixels a side, as the golden cases do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sam2_base.DEFAULT_IMAGE_SIZE, "small", drawn.SIDE)
        yield


@pytest.fixture(scope="module")
def predictor(theirs: Path, small_side: None) -> GranularPredictor:
    found = GranularPredictor.load(theirs)
    found.set_image(drawn.photograph("image", *drawn.IMAGE_SIZE))
    return found


def asked(predictor: GranularPredictor, case: dict[str, Any]) -> Any:
    return predictor.predict(
        case.get("points"),
        case.get("labels"),
        case.get("box"),
        ANSWERS["click at 0.37/logits"] if case.get("mask") else None,
        case.get("multimask", False),
        granularity=case["g"],
    )


# -- as the authors' code answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", drawn.IMAGE_CASES)
def test_an_image_is_answered_as_by_their_code(predictor: GranularPredictor, name: str) -> None:
    case = drawn.IMAGE_CASES[name]
    _, iou, logits = asked(predictor, case)
    assert_theirs(logits, f"{name}/logits")
    assert_theirs(iou, f"{name}/iou")
    assert (predictor.own_iou is not None) == case.get("multimask", False)


@pytest.mark.parametrize("name", ["click at 0.37", "two clicks"])
def test_the_masks_own_iou_stands_beside_theirs_of_another_mask(predictor: GranularPredictor, name: str) -> None:
    _, iou, _ = asked(predictor, drawn.IMAGE_CASES[f"{name}, several asked for"])
    assert predictor.own_iou is not None
    assert_theirs(predictor.own_iou[0], f"{name}/iou")
    assert abs(float(predictor.own_iou[0, 0]) - float(iou[0])) > 0.1


def test_the_golden_cases_differ_from_each_other() -> None:
    """Else an answer that hangs on nothing would pass."""
    one = [ANSWERS[f"{name}/logits"] for name in drawn.IMAGE_CASES if "several" not in name and "three" not in name]
    for place, each in enumerate(one):
        for other in one[place + 1 :]:
            assert np.abs(each - other).max() > 0.01 * np.abs(each).max()


def test_a_video_is_answered_as_by_their_code(theirs: Path, small_side: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "bfloat16", torch.float32)  # as in the golden run, see its README
    predictor = GranularVideoPredictor.load(theirs)
    frames = [drawn.photograph(f"frame {index}", *drawn.FRAME_SIZE) for index in range(drawn.FRAMES)]
    state = predictor.init_state(frames)
    predictor.add_new_points_or_box(state, 0, 1, drawn.VIDEO_CLICK, [1], granularity=drawn.VIDEO_G)
    _, _, first = predictor.add_new_points_or_box(state, 0, 2, box=drawn.VIDEO_BOX, granularity=drawn.VIDEO_G)
    assert_theirs(first.numpy(), "video/first")
    assert_theirs(np.stack([each.numpy() for _, _, each in predictor.propagate_in_video(state)]), "video/all")


@pytest.mark.slow
def test_an_image_at_1024_pixels_is_answered_as_by_their_code(theirs: Path) -> None:
    found = GranularPredictor.load(theirs)
    assert found.model.image_size == 1024
    found.set_image(drawn.photograph("image", *drawn.IMAGE_SIZE))
    _, iou, logits = asked(found, drawn.IMAGE_CASES["click at 0.37"])
    assert_theirs(logits[:, ::8, ::8], "large/logits")
    assert_theirs(iou, "large/iou")


def test_their_names_and_shapes_are_ours_renamed(predictor: GranularPredictor) -> None:
    state = predictor.model.state_dict()
    named = in_their_names(state)
    assert {name: list(value.shape) for name, value in named.items()} == SHAPES
    assert len(named) == 589
    assert all(torch.equal(value, state[name]) for name, value in in_our_names(named).items())
    added = sum(predictor.model.get_parameter(name).numel() for name in predictor.model.adapter_names())
    assert added == 345_760


def test_without_a_granularity_the_base_in_their_file_answers(
    predictor: GranularPredictor, theirs: Path, small_side: None
) -> None:
    state = torch.load(theirs, weights_only=True)["model"]
    base = sam2_base_of(state)
    own = sam2_predictor(base)
    own.set_image(drawn.photograph("image", *drawn.IMAGE_SIZE))
    for multimask in (False, True):
        click = {"point_coords": np.array(drawn.TWO_CLICKS), "point_labels": np.array([1, 0])}
        expected = own.predict(**click, multimask_output=multimask, return_logits=True)
        found = predictor.predict(**click, multimask_output=multimask, return_logits=True)
        for one, other in zip(found, expected, strict=True):
            assert_same_sums(one, other)
    assert predictor.own_iou is None


def sam2_base_of(state: dict[str, Tensor]) -> Any:
    """sam2's own model with the weights that their names say are SAM-2's."""
    base = build_base("small", drawn.SIDE)
    own = {name: state.get(name) for name in base.state_dict()}
    for name in own:
        layer, _, last = name.rpartition(".")
        own[name] = state[f"{layer}.original_layer.{last}"] if own[name] is None else own[name]
    base.load_state_dict(own)
    return base


# -- a small file of theirs, for what does not hang on the numbers ----------------------------------------------------


@pytest.fixture(scope="module")
def micro_state() -> dict[str, Tensor]:
    """Of a micro model whose added parameters have moved away from their start, under their names."""
    torch.manual_seed(3)
    model = GranularSam2("micro", "paper", 256, unsamv2_tokens=True)
    with torch.no_grad():
        for name in model.adapter_names():
            model.get_parameter(name).add_(0.1 * torch.randn_like(model.get_parameter(name)))
    return {name: value.detach().clone() for name, value in in_their_names(model.state_dict()).items()}


@pytest.fixture
def micro(micro_state: dict[str, Tensor], tmp_path: Path) -> Path:
    torch.save({"model": micro_state}, tmp_path / "unsamv2_micro.pt")
    return tmp_path / "unsamv2_micro.pt"


def photograph() -> Any:
    return drawn.photograph("other", 90, 120)


def test_every_loader_recognises_the_file(micro: Path) -> None:
    assert recognised(micro).ours
    assert recognised(micro).size == "micro"
    for model in (load_granular(micro), load_for_prediction(micro)):
        assert (model.adapter, model.unsamv2_tokens, model.has_dial, model.has_base) == ("paper", True, True, True)
    options = score_options(ScoreFlags(benchmark="shards", data=str(micro.parent), checkpoint=str(micro), output="x"))
    made = load_model(options)
    assert isinstance(made(), GranularPredictor)
    assert "for another mask" in made.notes()[0]
    with pytest.raises(InputError, match="is a whole model and needs none"):
        load_for_prediction(micro, base=str(micro))


def test_segment_answers_with_and_without_a_granularity(
    micro: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(photograph()).save(tmp_path / "photo.png")
    flags = ["segment", str(tmp_path / "photo.png"), "--checkpoint", str(micro), "--output", str(tmp_path / "out")]
    assert cli.main([*flags, "--point", "60,40", "--granularity", "none,0.5", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["granularities"] == [None, 0.5]
    search = ["--points-per-side", "3", "--min-predicted-iou", "0", "--min-stability", "0"]
    assert cli.main([*flags, "--everything", "--granularity", "0.5", "--json", *search]) == 0
    told = capsys.readouterr()
    assert "as UnSAMv2's code returns it, `score`" in told.err
    masks = json.loads(told.out)["annotations"]
    assert masks
    assert all(each["own_score"] != each["score"] for each in masks)


def test_everything_is_ranked_by_their_iou_with_ours_beside(micro: Path) -> None:
    predictor = GranularPredictor.load(micro)
    image = photograph()
    config = AutomaticConfig(
        granularities=(0.5,), points_per_side=3, pred_iou_thresh=0.0, stability_score_thresh=0.0, max_iou=1.0
    )
    found = generate_masks(predictor, image, config)
    assert found
    for each in found:
        assert each.point is not None
        _, iou, _ = predictor.predict([each.point], [1], granularity=0.5)
        assert predictor.own_iou is not None
        assert each.score == pytest.approx(float(iou[0]), abs=1e-5)
        assert each.own_score == pytest.approx(float(predictor.own_iou[0, 0]), abs=1e-5)
        _, own, _ = predictor.predict([each.point], [1], granularity=0.5, multimask_output=False)
        assert each.own_score == pytest.approx(float(own[0]), abs=1e-5)
    model = GranularMaskGenerator(predictor.model, 3, pred_iou_thresh=0.0, stability_score_thresh=0.0, granularity=0.5)
    assert all("own_predicted_iou" in each for each in model.generate(image))
    click_model = as_click_model(predictor)
    click_model.set_image(image)
    answer = click_model.answer(np.array([[[60.0, 40.0]]]), np.array([[1]], dtype=np.int32), np.array([0.5]))
    _, iou, _ = predictor.predict([[60.0, 40.0]], [1], granularity=0.5)
    assert answer.iou[0] == pytest.approx(float(iou[0]), abs=1e-5)


def test_training_goes_on_from_it(micro: Path, micro_state: dict[str, Tensor], tmp_path: Path) -> None:
    model = new_model("micro", "paper", SIDE, init=str(micro), seed=0, unsamv2_tokens=True)
    start = in_their_names(model.state_dict())
    assert all(torch.equal(value, micro_state[name]) for name, value in start.items())
    with torch.no_grad():
        model.mask_token.add_(1.0)
    path = tmp_path / "trained.safetensors"
    state = {f"model.{name}": value for name, value in trained_state(model).items()}
    write_checkpoint(path, checkpoint_record(model, init=str(micro)), state)
    assert read_checkpoint(path).record["beside"] is True
    again = load_granular(path)
    assert again.unsamv2_tokens
    assert torch.equal(again.mask_token, model.mask_token)
    assert again.base_state().keys() == base_of(micro_state, where="").keys()
    assert all(torch.equal(value, again.base_state()[name]) for name, value in base_of(micro_state, where="").items())
    predictor = GranularPredictor(again)
    predictor.set_image(photograph())
    predictor.predict([[60.0, 40.0]], [1], granularity=0.5)
    assert predictor.own_iou is None, "what is trained here predicts the IoU of the mask itself"
    further = new_model("micro", "paper", SIDE, init=str(path), seed=0, unsamv2_tokens=True)
    assert torch.equal(further.mask_token, model.mask_token)


@pytest.mark.parametrize(("asked", "taken"), [(None, True), (True, True), (False, False)])
def test_train_takes_tokens_and_sight_from_the_file(micro: Path, asked: bool | None, taken: bool) -> None:
    config, _ = train_options(TrainFlags(size="micro", init=str(micro), unsamv2_tokens=asked, device="cpu"))
    assert (config.adapter, config.unsamv2_tokens, config.sight) == ("paper", taken, Sight())


def test_the_command_trains_on_from_it_without_further_flags(micro: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["train", "--init", str(micro), "--size", "micro", "--device", "cpu", "--dry-run"]
    assert cli.main(flags) == 0
    assert f"opened: --init {micro}: weights of size micro" in capsys.readouterr().out
    assert cli.main([*flags, "--no-unsamv2-tokens"]) == 2
    assert "or neither, which takes the checkpoint's" in capsys.readouterr().err


def test_the_place_of_the_mask_token_cannot_change_on_the_way(micro: Path) -> None:
    with pytest.raises(InputError, match=r"stands beside SAM's four.*in the place of SAM's first.*--unsamv2-tokens"):
        new_model("micro", "paper", SIDE, init=str(micro), seed=0)
    with pytest.raises(InputError, match=r"of size micro and adapter lite .* found kind unsamv2, size micro"):
        new_model("micro", "lite", SIDE, init=str(micro), seed=0, unsamv2_tokens=True)


# -- merged, and back -------------------------------------------------------------------------------------------------


def merged_and_back(path: Path, folder: Path, *more: str) -> dict[str, Tensor]:
    """Their file -> ours, merged -> theirs, by the command."""
    assert cli.main(["merge", str(path), "--output", str(folder / "merged.safetensors"), *more]) == 0
    assert cli.main(["merge", str(folder / "merged.safetensors"), "--to", "unsamv2", "--output", f"{folder}/b.pt"]) == 0
    found = torch.load(folder / "b.pt", weights_only=True)
    assert list(found) == ["model"]
    return dict(found["model"])


def assert_same_state(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
        assert torch.equal(found[name], value), name


def test_their_file_comes_back_out_of_a_merged_one(micro: Path, micro_state: dict[str, Tensor], tmp_path: Path) -> None:
    assert_same_state(merged_and_back(micro, tmp_path), micro_state)
    merged, whole = GranularPredictor.load(tmp_path / "merged.safetensors"), GranularPredictor.load(micro)
    assert read_checkpoint(tmp_path / "merged.safetensors").record["kind"] == "merged"
    answers = []
    for predictor in (merged, whole):
        predictor.set_image(photograph())
        dial = predictor.predict([[60, 40]], [1], granularity=[0.1, 0.7], return_logits=True)
        assert predictor.own_iou is not None
        answers.append([*dial, predictor.own_iou, *predictor.predict([[60, 40]], [1], return_logits=True)])
    for one, other in zip(*answers, strict=True):
        assert_same_sums(one, other)
    again = merged_and_back(tmp_path / "b.pt", tmp_path)
    assert_same_state(again, micro_state)


def test_halves_come_back_as_halves_are(micro: Path, micro_state: dict[str, Tensor], tmp_path: Path) -> None:
    found = merged_and_back(micro, tmp_path, "--half")
    for name, value in micro_state.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_all_589_tensors_come_back(theirs: Path, tmp_path: Path) -> None:
    assert_same_state(merged_and_back(theirs, tmp_path), torch.load(theirs, weights_only=True)["model"])


def trained_on(base: Path, folder: Path, **more: Any) -> Path:
    """A checkpoint as `train` writes it, its added parameters away from their start."""
    model = new_model("micro", more.pop("adapter", "paper"), SIDE, init=str(base), seed=0, **more)
    with torch.no_grad():
        for name in model.adapter_names():
            model.get_parameter(name).add_(0.1 * torch.randn_like(model.get_parameter(name)))
    state = {f"model.{name}": value for name, value in trained_state(model).items()}
    write_checkpoint(folder / "run.safetensors", checkpoint_record(model, init=str(base)), state)
    return folder / "run.safetensors"


@pytest.fixture
def sam2_micro(tmp_path: Path) -> Path:
    torch.save({"model": build_base("micro", SIDE).state_dict()}, tmp_path / "sam2.pt")
    return tmp_path / "sam2.pt"


def test_what_is_trained_here_goes_out_for_their_code(sam2_micro: Path, tmp_path: Path) -> None:
    run = trained_on(sam2_micro, tmp_path, unsamv2_tokens=True)
    assert cli.main(["merge", str(run), "--to", "unsamv2", "--output", str(tmp_path / "out" / "run.pt")]) == 0
    exported, model = load_granular(tmp_path / "out" / "run.pt"), load_granular(run)
    assert_same_state(dict(exported.state_dict()), dict(model.state_dict()))
    theirs = torch.load(tmp_path / "out" / "run.pt", weights_only=True)["model"]
    assert {re.sub(r"blocks\.\d+|layers\.\d+", "N", name) for name in theirs} >= {
        re.sub(r"blocks\.\d+|layers\.\d+", "N", name) for name in SHAPES if "memory_attention" not in name
    }


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({}, "trained in the place of SAM's first.*train with --unsamv2-tokens"),
        ({"adapter": "lite", "unsamv2_tokens": True}, "adapter lite; train with --adapter paper"),
        (
            {"sight": Sight(click_features=True), "unsamv2_tokens": True},
            "train with --no-click-features --similarity off",
        ),
    ],
)
def test_models_that_their_code_has_no_place_for_are_refused(
    more: dict[str, Any], told: str, sam2_micro: Path, tmp_path: Path
) -> None:
    run = trained_on(sam2_micro, tmp_path, **more)
    with pytest.raises(InputError, match=rf"UnSAMv2's code has no place for this model: .*{told}"):
        write_for_unsamv2(run, tmp_path / "run.pt")
    assert not (tmp_path / "run.pt").exists()


def test_flags_of_merge_that_do_not_go_together_are_told(
    micro: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags, told in (
        (["--to", "unsamv2", "--output", f"{tmp_path}/x.safetensors"], "let the name end in .pt"),
        (["--to", "unsamv2", "--half", "--output", f"{tmp_path}/x.pt"], "leave --half and --images-only out"),
        (["--to", "sam2", "--output", f"{tmp_path}/x.pt"], "--to sam2: expected grainmill or unsamv2"),
    ):
        assert cli.main(["merge", str(micro), *flags]) == 2
        assert told in capsys.readouterr().err
    merge_checkpoint(micro, tmp_path / "images.safetensors", images_only=True)
    with pytest.raises(InputError, match="merged with --images-only"):
        write_for_unsamv2(tmp_path / "images.safetensors", tmp_path / "x.pt")


# -- files that are nearly right --------------------------------------------------------------------------------------


def test_lora_folded_away_leaves_the_dial_and_says_that_the_base_is_gone(
    micro: Path, micro_state: dict[str, Tensor], tmp_path: Path
) -> None:
    state = {}
    for name, value in micro_state.items():
        if name.endswith(".original_layer.weight"):
            layer = name.removesuffix(".original_layer.weight")
            value = value + 2 * micro_state[f"{layer}.lora_B"] @ micro_state[f"{layer}.lora_A"]
        if ".lora_" not in name:
            state[name.replace(".original_layer.", ".")] = value
    path = tmp_path / "folded.pt"
    torch.save({"model": state}, path)
    predictor, whole = GranularPredictor.load(path), GranularPredictor.load(micro)
    for each in (predictor, whole):
        each.set_image(photograph())
    for one, other in zip(
        predictor.predict([[60, 40]], [1], granularity=0.4, return_logits=True),
        whole.predict([[60, 40]], [1], granularity=0.4, return_logits=True),
        strict=True,
    ):
        assert_same_sums(one, other)
    gone = "which may have it folded in, so SAM"
    with pytest.raises(InputError, match=gone):
        predictor.predict([[60, 40]], [1])
    with pytest.raises(InputError, match=gone):
        GranularMaskGenerator(predictor.model)
    assert (as_click_model(predictor).answers_without, as_click_model(predictor).multimask) == (False, 0)
    assert ModelPredictor.load(str(path), device="cpu").own_name is None, "the desk asks for its own answer by it"
    assert ModelPredictor.load(str(micro), device="cpu").own_name == "SAM-2"
    video = GranularVideoPredictor.load(path)
    state_of_video = video.init_state([photograph()])
    with pytest.raises(InputError, match=gone):
        video.add_new_points_or_box(state_of_video, 0, 1, [[60, 40]], [1])
    video.add_new_points_or_box(state_of_video, 0, 1, [[60, 40]], [1], granularity=0.4)
    with pytest.raises(InputError, match="nothing to train on from"):
        new_model("micro", "paper", SIDE, init=str(path), seed=0, unsamv2_tokens=True)
    assert_same_state(merged_and_back(path, tmp_path), state)
    with pytest.raises(InputError, match=gone):
        GranularMaskGenerator(load_granular(tmp_path / "merged.safetensors"))
    with pytest.raises(InputError, match=gone):
        sam2_base.load_base_weights(build_base("micro", SIDE), str(path), size="micro")


def changed(state: dict[str, Tensor], **changes: Any) -> dict[str, Tensor]:
    return {name: value for name, value in {**state, **changes}.items() if value is not None}


def nearly_right(state: dict[str, Tensor]) -> dict[str, tuple[dict[str, Tensor], str]]:
    lora = "sam_mask_decoder.transformer.layers.0.self_attn.q_proj.lora_A"
    fourier = "sam_prompt_encoder.fourier_embedder.mlp.mlp.0.weight"
    round_one = "sam_prompt_encoder.granularity_round_embedding.gran_values"
    added = {name: value for name, value in state.items() if "gra_" in name or "fourier" in name or "lora_" in name}
    rank_4 = {
        name: value[:4].clone() if name.endswith("lora_A") else value[:, :4].clone()
        for name, value in state.items()
        if ".lora_" in name
    }
    return {
        "one tensor missing": (
            changed(state, no_mem_embed=None),
            r"UnSAMv2's model on SAM 2\.1 micro; of its \d+ tensors 1 missing \(first no_mem_embed\)\. .*fetch",
        ),
        "one more": (
            changed(state, **{round_one: torch.zeros(10)}),
            rf"1 unknown \(first {round_one}\)\. Their older code .* taken out",
        ),
        "another rank": (
            {**state, **rank_4},
            rf"56 of another shape \(first {lora} \(4, 64\) instead of \(8, 64\)\)\. Read are LoRA of rank 8",
        ),
        "other Fourier features": (
            changed(state, **{fourier: state[fourier][:, :64].clone()}),
            r"1 of another shape \(first .*mlp\.0\.weight \(96, 64\) instead of \(96, 128\)\)\. Read are .*128 Fourier",
        ),
        "what was trained alone": (added, "no size of SAM-2's image encoder is in it, so it is a part of the model"),
        "some LoRA missing": (changed(state, **{lora: None}), rf"1 missing \(first {re.escape(lora)}\)"),
    }


@pytest.mark.parametrize(
    "kind", nearly_right({"sam_prompt_encoder.fourier_embedder.mlp.mlp.0.weight": torch.zeros(1, 1)})
)
def test_a_file_that_is_nearly_right_is_told_in_one_message(
    kind: str, micro_state: dict[str, Tensor], tmp_path: Path
) -> None:
    state, told = nearly_right(micro_state)[kind]
    torch.save({"model": state}, tmp_path / "nearly.pt")
    for load in (load_granular, load_for_prediction):
        with pytest.raises(InputError, match=rf"nearly\.pt: taken for .*{told}"):
            load(tmp_path / "nearly.pt")
    with pytest.raises(InputError, match=rf"nearly\.pt: taken for .*{told}"):
        new_model("micro", "paper", SIDE, init=str(tmp_path / "nearly.pt"), seed=0, unsamv2_tokens=True)


@pytest.mark.parametrize(
    ("kept", "told"),
    [
        ({"ema": "floats"}, "taken for the averages"),
        ({"optimizer": "floats", "epoch": 3}, "taken for an optimizer's checkpoint"),
        ({"model": "bytes"}, "taken for quantised weights"),
    ],
)
def test_a_file_without_their_weights_as_numbers_is_told(
    kept: dict[str, Any], told: str, micro_state: dict[str, Tensor], tmp_path: Path
) -> None:
    states = {"floats": micro_state, "bytes": {name: value.to(torch.int8) for name, value in micro_state.items()}}
    torch.save({name: states.get(str(value), value) for name, value in kept.items()}, tmp_path / "odd.pt")
    with pytest.raises(InputError, match=told):
        load_for_prediction(tmp_path / "odd.pt")
    with pytest.raises(InputError, match=told):
        new_model("micro", "paper", SIDE, init=str(tmp_path / "odd.pt"), seed=0, unsamv2_tokens=True)


def test_what_lies_beside_the_weights_is_left_out_and_said(
    micro_state: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = {f"module.{name}": value.half() for name, value in micro_state.items()}
    torch.save({"model": half, "optimizer": {}, "epoch": 3}, tmp_path / "checkpoint.pt")
    model = load_granular(tmp_path / "checkpoint.pt")
    assert torch.equal(model.mask_token, micro_state["sam_mask_decoder.gra_token.weight"].half().float())
    told = capsys.readouterr().err
    assert re.search(r"UnSAMv2's model on SAM 2\.1 size micro, \d+ weights read; left out: epoch, optimizer; ", told)


def test_another_size_is_loaded_as_what_it_is_or_told(micro: Path) -> None:
    with pytest.raises(InputError, match=r"size small and adapter paper .* found kind unsamv2, size micro"):
        new_model("small", "paper", 64, init=str(micro), seed=0, unsamv2_tokens=True)


def test_sam2_alone_is_taken_out_of_their_file(micro: Path, micro_state: dict[str, Tensor]) -> None:
    found = load_sam2(micro).state_dict()
    assert all(torch.equal(value, found[name]) for name, value in base_of(micro_state, where="").items())
    assert len(base_of(micro_state, where="")) == len(found)
