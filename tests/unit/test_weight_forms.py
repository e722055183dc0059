"""SAM-2's weights in every form in which they come, each against its own authors' code where that is installed.

All weights are drawn: SAM 2.0 is compared with sam2's own configuration of 2.0, `transformers`' layout with its own
classes, names, shapes and answers, on images and videos.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from model.network import sam2_base
from model.network.load import Weights, load_for_prediction, load_sam2, new_model, recognised
from model.network.pixels import resized_as_frame
from model.network.sam2_base import build_base, install_state, load_base_weights, sam2_state, state_sha256
from model.network.transformers_layout import meta_names
from model.network.weight_files import read_state, weights_files, weights_sha256
from model.predict.image import GranularPredictor
from pipeline.environment.torch_compat import ensure_torchvision
from pipeline.errors import InputError
from tests.numeric import assert_same_sums, rounding

SIDE = 256
"""Micro's own image size, which is also what weights alone are used at."""

MEMORY = 64
"""Channels of the memory in `transformers`' class, which knows no others."""

State = dict[str, Tensor]


def drawn(module: torch.nn.Module, seed: int = 0) -> None:
    """Every parameter away from where it starts: zeros would hide a name that is not mapped. There is an object."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            value.add_(torch.randn(value.shape, generator=random) * 0.05)
            if "pred_obj_score_head" in name and len(value) == 1:
                value.fill_(3.0 if value.ndim == 1 else 0.01)


@pytest.fixture(scope="module")
def micro() -> State:
    torch.manual_seed(3)
    model = build_base("micro", SIDE)
    drawn(model)
    return dict(model.state_dict())


def saved(state: State, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: value.clone().contiguous() for name, value in state.items()}, path)
    else:
        torch.save({"model": state}, path)
    return path


def sharded(state: State, folder: Path, shards: int = 3) -> Path:
    """As `save_pretrained` of `transformers` splits a model."""
    folder.mkdir(exist_ok=True)
    names, table = sorted(state), {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        some = names[number::shards]
        saved({name: state[name] for name in some}, folder / file)
        table |= dict.fromkeys(some, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": table}))
    return index


# -- one state dict, many files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_half_precision_is_read_as_single(
    kind: torch.dtype, suffix: str, micro: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved({name: value.to(kind) for name, value in micro.items()}, tmp_path / f"half{suffix}")
    found = sam2_state(path)
    assert {str(value.dtype) for value in found.values()} == {"torch.float32"}
    assert all(torch.equal(found[name], value.to(kind).float()) for name, value in micro.items())
    name = str(kind).removeprefix("torch.")
    assert capsys.readouterr().err == f"{path}: SAM 2.1 size micro, {len(micro)} weights read; from {name}\n"
    model = load_for_prediction(path)
    assert {value.dtype for value in model.parameters()} == {torch.float32}


def test_shards_are_one_model_by_their_index_or_their_folder(
    micro: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = sharded(micro, tmp_path / "hub")
    for path in (index, tmp_path / "hub"):
        assert recognised(path) == Weights(path=index, ours=False, size="micro")
        assert load_base_weights(build_base("micro", SIDE), str(path), size="micro") == state_sha256(micro)
        assert new_model("micro", "lite", SIDE, init=str(path), seed=0).adapter == "lite"
    assert capsys.readouterr().err == f"{index}: SAM 2.1 size micro, {len(micro)} weights read; 3 shards\n"
    assert weights_files(index)[0] == index
    assert len(weights_files(index)) == 4
    before = weights_sha256(index)
    sharded({**micro, "no_mem_embed": micro["no_mem_embed"] + 1}, tmp_path / "hub")
    assert weights_sha256(index) != before


def test_a_folder_with_one_file_is_that_file(micro: State, tmp_path: Path) -> None:
    path = saved(micro, tmp_path / "model.safetensors")
    assert recognised(tmp_path).path == path
    assert state_sha256(sam2_state(tmp_path)) == state_sha256(micro)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: {**table, "no_mem_embed": "../elsewhere.safetensors"}, r"shard '../elsewhere.*' lies elsewhere"),
        (lambda table: {**table, "no_mem_embed": "gone.safetensors"}, r"shard gone\.safetensors is missing; put all 3"),
        (
            lambda table: {**table, "head.weight": table["no_mem_embed"]},
            r"1 of its weights are in none .* head\.weight",
        ),
        (lambda table: {}, "an index of shards with a `weight_map`"),
        (lambda table: "x", "an index of shards with a `weight_map`"),
    ],
)
def test_shards_that_are_not_whole_are_told(change: Callable[[Any], Any], message: str, tmp_path: Path) -> None:
    state = {"no_mem_embed": torch.zeros(1), "a": torch.zeros(1), "b": torch.zeros(1)}
    index = sharded(state, tmp_path)
    table = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": change(table)}))
    with pytest.raises(InputError, match=message):
        read_state(index)


def test_what_lies_beside_the_weights_is_told_as_left_out(
    micro: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({"model": micro, "optimizer": {"state": {}, "param_groups": []}, "epoch": 3, "loss": {}}, path)
    assert state_sha256(sam2_state(path)) == state_sha256(micro)
    expected = f"{path}: SAM 2.1 size micro, {len(micro)} weights read; left out: epoch, loss, optimizer\n"
    assert capsys.readouterr().err == expected


# -- SAM 2.0 -----------------------------------------------------------------------------------------------------------


def sam2_video(version: str, size: sam2_base.Size = "micro", *, memory: int = 16) -> Any:
    """sam2's own video predictor in its configuration of a version, at a small size, with drawn weights."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf
    from sam2 import __file__ as package

    name = {"2.0": "sam2/sam2_hiera_t.yaml", "2.1": "sam2.1/sam2.1_hiera_t.yaml"}[version]
    written = OmegaConf.load(Path(package).parent / "configs" / name).model
    config = OmegaConf.merge(written, sam2_base._overrides(size, SIDE, True))
    config["_target_"] = "sam2.sam2_video_predictor.SAM2VideoPredictor"
    config.memory_attention.layer.cross_attention.kv_in_dim = memory
    config.memory_encoder.out_dim = config.memory_encoder.position_encoding.num_pos_feats = memory
    torch.manual_seed(5)
    model = instantiate(config, _recursive_=True).eval()
    drawn(model)
    return model.requires_grad_(False)


def photographs(count: int) -> list[Any]:
    """Square frames that change slowly."""
    random = np.random.default_rng(4)
    one, other = random.integers(0, 256, (2, SIDE, SIDE, 3))
    return [((1 - share) * one + share * other).astype(np.uint8) for share in np.linspace(0, 0.4, count)]


def test_sam_2_0_answers_as_in_its_own_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = sam2_video("2.0")
    state = dict(theirs.state_dict())
    path = saved(state, tmp_path / "sam2_hiera_micro.pt")
    ours = load_sam2(path, video=True)
    assert capsys.readouterr().err == (
        f"{path}: SAM 2.0 size micro, {len(state)} weights read; what 2.1 added to the memory is zero, so it answers "
        "as 2.0\n"
    )
    assert ours.add_tpos_enc_to_obj_ptrs
    assert not theirs.add_tpos_enc_to_obj_ptrs
    answers = [propagated(model, photographs(4), tmp_path) for model in (theirs, ours)]
    assert_same_sums(answers[1], answers[0])
    changed = load_sam2(path, video=True)
    torch.nn.init.constant_(changed.obj_ptr_tpos_proj.bias, 9.0)
    other = np.abs(propagated(changed, photographs(4), tmp_path) - answers[0])
    assert other[0].max() == 0
    assert other[1:].max() > 10 * rounding(answers[0])


def propagated(model: Any, frames: list[Any], folder: Path) -> Any:
    """Logits (T, H, W) of one object, clicked on the first frame, by sam2's own predictor."""
    from PIL import Image

    place = folder / "frames"
    place.mkdir(exist_ok=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(place / f"{number}.jpg", format="PNG")  # sam2 wants the ending
    state = model.init_state(str(place), offload_video_to_cpu=True)
    model.add_new_points_or_box(state, 0, 1, np.array([[100.0, 120.0]], dtype=np.float32), np.array([1], np.int32))
    return np.stack([masks[0, 0].numpy() for _, _, masks in model.propagate_in_video(state)])


def test_sam_2_0_trains_and_is_found_again(tmp_path: Path) -> None:
    state = dict(sam2_video("2.0").state_dict())
    path = saved(state, tmp_path / "sam2_hiera_micro.pt")
    model = new_model("micro", "lite", SIDE, init=str(path), seed=0)
    assert all(torch.equal(model.base_state()[name], value) for name, value in state.items())
    assert not model.base.obj_ptr_tpos_proj.weight.any()
    del state["no_mem_embed"]
    with pytest.raises(InputError, match=r"1 missing \['no_mem_embed'\].* taken for a changed or incomplete copy"):
        load_for_prediction(saved(state, path))


# -- transformers' layout ------------------------------------------------------------------------------------------


def transformers_mini(cls: str) -> Any:
    """`transformers`' own class at mini's widths, with drawn weights."""
    ensure_torchvision()
    transformers = pytest.importorskip("transformers", reason="the test dependency is not installed")
    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=32,
        num_attention_heads=1,
        blocks_per_stage=[1, 2, 3, 1],
        embed_dim_per_stage=[32, 64, 128, 256],
        num_attention_heads_per_stage=[1, 2, 4, 8],
        window_size_per_stage=[8, 4, 8, 8],
        global_attention_blocks=[4, 5],
        image_size=[SIDE, SIDE],
    )
    vision = transformers.Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[256, 128, 64, 32],
        backbone_feature_sizes=[[64, 64], [32, 32], [16, 16]],
        fpn_hidden_size=128,
    )
    prompts, decoder = {"hidden_size": 128, "image_size": SIDE}, {"hidden_size": 128}
    if cls == "Sam2Model":
        config = transformers.Sam2Config(
            vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder
        )
    else:
        config = transformers.Sam2VideoConfig(
            vision_config=vision,
            prompt_encoder_config=prompts,
            mask_decoder_config=decoder,
            image_size=SIDE,
            memory_attention_hidden_size=128,
            memory_attention_num_layers=1,
            memory_attention_feed_forward_hidden_size=256,
            memory_attention_rope_feat_sizes=[16, 16],
            memory_encoder_hidden_size=128,
            memory_encoder_output_channels=MEMORY,
            mask_downsampler_embed_dim=128,
            memory_fuser_num_layers=1,
            memory_fuser_embed_dim=128,
            memory_fuser_intermediate_dim=512,
        )
    torch.manual_seed(7)
    model = getattr(transformers, cls)(config).eval().requires_grad_(False)
    drawn(model)
    # One matrix of positions in SAM-2, saved twice.
    model.prompt_encoder.shared_embedding.positional_embedding.copy_(model.shared_image_embedding.positional_embedding)
    return model


def prompts(count: int = 2) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(6)
    return {
        "points": torch.rand(count, 2, 2, generator=random) * SIDE,
        "labels": torch.tensor([[1, 0]]).expand(count, -1),
        "boxes": torch.tensor([[30.0, 40.0, 200.0, 180.0], [5.0, 9.0, 60.0, 250.0]])[:count],
        "masks": torch.randn(1, 1, SIDE // 4, SIDE // 4, generator=random) * 4,
    }


@pytest.mark.parametrize("cls", ["Sam2Model", "Sam2VideoModel"])
@pytest.mark.parametrize("form", ["file", "shards"])
def test_transformers_files_hold_the_same_weights(
    cls: str, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names and shapes, from a folder that its own `save_pretrained` writes."""
    theirs = transformers_mini(cls)
    theirs.save_pretrained(tmp_path, max_shard_size="400KB" if form == "shards" else "1GB")
    capsys.readouterr()  # its progress
    path = tmp_path / ("model.safetensors" if form == "file" else "model.safetensors.index.json")
    assert path.is_file()
    state = sam2_state(tmp_path)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{path}: SAM 2{'.1' if 'Video' in cls else ''} size mini, {len(state)} weights read; " in said
    assert "from transformers' layout, left out: prompt_encoder.shared_embedding.positional_embedding" in said
    assert ("it holds no memory: for images alone" in said) == (cls == "Sam2Model")
    own = sam2_video("2.1", "mini", memory=MEMORY).state_dict()
    expected = set(own) if "Video" in cls else {name for name in own if not name.startswith(sam2_base.MEMORY_NAMES)}
    assert set(state) == expected
    assert all(state[name].shape == own[name].shape for name in expected)
    assert sum(value.numel() for value in state.values()) == (
        sum(value.numel() for value in theirs.parameters()) + theirs.shared_image_embedding.positional_embedding.numel()
    )


def test_transformers_weights_give_transformers_answers(tmp_path: Path) -> None:
    theirs = transformers_mini("Sam2Model")
    theirs.save_pretrained(tmp_path)
    ours = load_for_prediction(tmp_path)
    image = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    asked = prompts()
    corners = asked["boxes"].reshape(-1, 2, 2)
    clicks = {"input_points": asked["points"][None], "input_labels": asked["labels"][None]}
    cases: list[tuple[dict[str, Tensor], Tensor, Tensor, Tensor | None]] = [
        (clicks, asked["points"], asked["labels"], None),
        ({**clicks, "input_masks": asked["masks"]}, asked["points"], asked["labels"], asked["masks"]),
        ({"input_boxes": asked["boxes"][None]}, corners, torch.tensor([[2, 3], [2, 3]]), None),
    ]
    with torch.no_grad():
        features = ours.encode(image)
        for given, points, labels, mask in cases:
            for multimask in (True, False):
                expected = theirs(pixel_values=image, multimask_output=multimask, **given)
                found = ours.decode(
                    features.repeat(0, 2),
                    points,
                    labels,
                    None,
                    mask_input_N1HW=None if mask is None else mask.expand(2, -1, -1, -1),
                    multimask=multimask,
                )
                assert_same_sums(found.logits_NMHW.numpy(), expected.pred_masks[0].numpy())
                assert_same_sums(found.iou_NM.numpy(), expected.iou_scores[0].numpy())
                assert_same_sums(found.object_N1.numpy(), expected.object_score_logits[0].numpy())


def test_transformers_video_weights_track_as_transformers_does(tmp_path: Path) -> None:
    theirs = transformers_mini("Sam2VideoModel")
    theirs.save_pretrained(tmp_path)
    from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

    frames = photographs(4)
    session = Sam2VideoInferenceSession(
        video=torch.stack([resized_as_frame(frame, SIDE) for frame in frames]),
        video_height=SIDE,
        video_width=SIDE,
        dtype=torch.float32,
    )
    point = {"point_coords": torch.tensor([[[[100.0, 120.0]]]]), "point_labels": torch.tensor([[[1]]])}
    session.add_point_inputs(session.obj_id_to_idx(1), 0, point)
    session.obj_with_new_inputs = [1]
    expected = [theirs(session, frame_idx=0).pred_masks]
    expected += [each.pred_masks for each in theirs.propagate_in_video_iterator(session, start_frame_idx=1)]
    ours = sam2_video("2.1", "mini", memory=MEMORY)
    install_state(ours, sam2_state(tmp_path), where="x", size="mini")
    found = propagated(ours, frames, tmp_path)
    large = F.interpolate(torch.stack(expected).reshape(4, 1, 64, 64), (SIDE, SIDE), mode="bilinear")
    assert_same_sums(found, large[:, 0].numpy())
    assert np.abs(found[3] - found[0]).max() > 1e-3, "the memory says something"


def test_sam2model_without_memory_is_for_images_alone(tmp_path: Path) -> None:
    transformers_mini("Sam2Model").save_pretrained(tmp_path)
    assert GranularPredictor.load(tmp_path).model.size == "mini"
    for read in (
        lambda: load_for_prediction(tmp_path, video=True),
        lambda: load_sam2(tmp_path, video=True),
        lambda: new_model("mini", "lite", SIDE, init=str(tmp_path), seed=0),
    ):
        with pytest.raises(
            InputError, match=r"taken for SAM-2 for images alone .*the memory is missing.* Give the whole"
        ):
            read()


def test_two_matrices_of_positions_are_refused() -> None:
    state = {
        "shared_image_embedding.positional_embedding": torch.zeros(2, 3),
        "prompt_encoder.shared_embedding.positional_embedding": torch.ones(2, 3),
    }
    with pytest.raises(InputError, match=r"x: .* differ; SAM-2 has one matrix"):
        meta_names(state, where="x")
    del state["shared_image_embedding.positional_embedding"]
    found, left_out = meta_names(state, where="x")
    assert (list(found), left_out) == (["sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"], [])


# -- nearly right ------------------------------------------------------------------------------------------------------


ONE = "image_encoder.trunk.blocks.0.attn.qkv"
MOMENTS = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}


def matrices_as(kind: torch.dtype, state: State) -> State:
    return {name: value.to(kind) if value.ndim == 2 else value for name, value in state.items()}


def alone(name: str) -> Callable[[State], Any]:
    return lambda state: {"model": {name: torch.zeros(1)}}


NEARLY: dict[str, tuple[Callable[[State], Any], str]] = {
    "one tensor missing": (
        lambda state: {"model": {name: value for name, value in state.items() if name != f"{ONE}.weight"}},
        rf"1 missing \['{ONE}\.weight'\], 0 unknown .*taken for a changed or incomplete copy: fetch it again",
    ),
    "int8": (
        lambda state: {"model": matrices_as(torch.int8, state)},
        r"taken for quantised weights \(.* is int8\); the numbers .* are missing\. Give the weights",
    ),
    "int8 with scales": (
        lambda state: {"model": {**matrices_as(torch.int8, state), f"{ONE}.weight_scale": torch.ones(1)}},
        rf"taken for quantised weights \(.* is int8, {ONE}\.weight_scale beside it",
    ),
    "float8": (
        lambda state: {"model": matrices_as(torch.float8_e4m3fn, state)},
        r"taken for quantised weights \(.* is float8_e4m3fn\)",
    ),
    "packed": (
        lambda state: {"model": {**state, f"{ONE}.qweight": torch.zeros(3, 3, dtype=torch.int32)}},
        rf"taken for quantised weights \({ONE}\.qweight is int32",
    ),
    "averages": (
        lambda state: {"ema": state, "step": 3},
        r"taken for the averages \(EMA\) .* under `ema`; .* are missing .* Give the checkpoint",
    ),
    "AveragedModel": (
        lambda state: {"n_averaged": torch.tensor(3), **{f"module.{name}": value for name, value in state.items()}},
        r"taken for the averages \(EMA\) .* with `n_averaged`.*save their table",
    ),
    "an optimizer": (
        lambda state: MOMENTS,
        r"taken for an optimizer's checkpoint \(param_groups, state\); .* missing .* Give the checkpoint",
    ),
    "an optimizer with its step": (
        lambda state: {"optimizer": MOMENTS, "step": 1},
        r"taken for an optimizer's checkpoint \(optimizer, step\)",
    ),
    "a detector": (alone("backbone.bottom_up.x"), "a detectron2 detector.*--divide proposals"),
    "a backbone": (alone("blocks.0.attn.qkv.weight"), "a vision transformer .*--backbone timm:NAME@FILE"),
    "their backbone": (alone("embeddings.cls_token"), "a vision transformer .*--backbone timm:NAME@FILE"),
    "a pyramid": (alone("stages.0.0.gamma"), "a convolutional pyramid .*--trunk timm:NAME@FILE"),
    "SAM 3": (alone("detector.backbone.x"), "found SAM 3's weights; SAM-2's are needed"),
    "PEFT": (alone("base_model.model.x.lora_A.weight"), "an adapter of the library PEFT"),
}


@pytest.mark.parametrize("case", NEARLY)
def test_nearly_right_files_are_told_in_one_message(case: str, micro: State, tmp_path: Path) -> None:
    content, message = NEARLY[case]
    path = tmp_path / "near.pt"
    torch.save(content(micro), path)
    for read in (load_for_prediction, load_sam2, lambda path: new_model("micro", "lite", SIDE, init=str(path), seed=0)):
        with pytest.raises(InputError, match=rf"near\.pt: .*{message}") as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_another_size_says_which_to_ask_for(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = saved(dict(build_base("mini", SIDE).state_dict()), tmp_path / "mini.pt")
    with pytest.raises(
        InputError, match=r"weights look like size mini: give --size mini, or the weights of size micro"
    ):
        new_model("micro", "lite", SIDE, init=str(path), seed=0)


def test_gguf_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF\x03\x00\x00\x00\x01\x00")
    with pytest.raises(InputError, match="found GGUF, quantised weights"):
        load_for_prediction(tmp_path / "model.gguf")
