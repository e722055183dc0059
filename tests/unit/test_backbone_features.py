"""Backbones: layouts of checkpoints, channels, keys and tokens, batches, and what is said when weights are missing.

Every checkpoint here is made on the spot: a transformer with a few small blocks and drawn weights, of timm's own class
or of that of `transformers`, whose answers are then the reference.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray

from pipeline.environment.timm_weights import install_weights, locate_checkpoint, split_backbone
from pipeline.environment.torch_compat import ensure_torchvision
from pipeline.errors import InputError
from pipeline.labeling.atoms import Atoms
from pipeline.labeling.stages.backbone_features import Backbone, nearest_multiple, pooled_on_superpixels, squashed
from pipeline.storage.local import sha256_of_file
from tests.numeric import assert_same_sums

ensure_torchvision()
import timm  # noqa: E402

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}
DINO, DINO_S16 = "vit_base_patch8_224.dino", "vit_small_patch16_224.dino"
DINOV2, DINOV2_REG = "vit_base_patch14_dinov2.lvd142m", "vit_base_patch14_reg4_dinov2.lvd142m"
DINOV3, DINOV3_BIAS = "vit_base_patch16_dinov3.lvd1689m", "vit_small_patch16_dinov3_qkvb.lvd1689m"

Weights = dict[str, Any]


def model_of(name: str) -> Any:
    """timm's own model with few and small blocks, and weights that all differ from what a fresh model has."""
    model = timm.create_model(name, num_classes=0, dynamic_img_size=True, **SMALL).eval()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=random) * 0.2)
    return model


def authors_layout(name: str, weights: Weights) -> Weights:
    """timm's names -> the original authors', as their repositories write them."""
    found = dict(weights)
    if "dinov3" in name:
        found["storage_tokens"] = found.pop("reg_token")
        for key in [key for key in found if ".gamma_" in key]:
            found[key.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")] = found.pop(key)
        for block in range(SMALL["depth"]):
            bias = f"blocks.{block}.attn.qkv.bias"
            if f"blocks.{block}.attn.q_bias" in found:
                q, v = (found.pop(f"blocks.{block}.attn.{each}_bias") for each in "qv")
                found[bias] = torch.cat([q, torch.zeros_like(q), v])
                found[bias + "_mask"] = torch.ones(3 * q.numel())
        found["rope_embed.periods"] = torch.ones(4)
        found["mask_token"] = torch.zeros(1, SMALL["embed_dim"])
    elif "dinov2" in name:
        found["mask_token"] = torch.zeros(1, SMALL["embed_dim"])
        if "reg_token" in found:  # their class token and position of it are apart, timm adds them up
            place = torch.full_like(found["cls_token"], 0.25)
            found["pos_embed"] = torch.cat([place, found["pos_embed"]], dim=1)
            found["cls_token"] = found["cls_token"] - place
            found["register_tokens"] = found.pop("reg_token")
    return found


def chunked(weights: Weights) -> Weights:
    return {
        key.replace("blocks.0.", "blocks.0.0.").replace("blocks.1.", "blocks.1.1."): v for key, v in weights.items()
    }


def wrapped(weights: Weights, prefix: str) -> Weights:
    return {f"{prefix}{key}": value for key, value in weights.items()} | {"head.mlp.weight": torch.ones(3, 3)}


WRAPPERS: dict[str, Callable[[Weights], Weights]] = {
    "as it is": lambda weights: weights,
    "model": lambda weights: {"model": weights},
    "DINO training": lambda weights: {
        "teacher": wrapped(weights, "module.backbone."),
        "student": wrapped({key: value * 0 for key, value in weights.items()}, "module.backbone."),
        "epoch": 3,
        "args": argparse.Namespace(arch="vit_small"),
    },
    "teacher in chunks": lambda weights: {"teacher": wrapped(chunked(weights), "backbone.")},
    "state_dict": lambda weights: {"state_dict": wrapped(weights, "module.")},
}


def images(count: int, side: int = 112) -> list[NDArray[np.uint8]]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, size=(side, side, 3), dtype=np.uint8) for _ in range(count)]


def save(weights: Weights, path: Path) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file({key: value.clone().contiguous() for key, value in weights.items()}, path)
    else:
        torch.save(weights, path)
    return path


def timm_tokens(model: Any, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What timm's model says to the image, prepared here independently: ImageNet statistics, red first."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (torch.from_numpy(image) / 255 - mean) / std
    with torch.no_grad():
        return model.forward_features(pixels.permute(2, 0, 1)[None]).numpy()[0, model.num_prefix_tokens :]


@pytest.mark.parametrize("name", [DINO, DINO_S16, DINOV2, DINOV2_REG, DINOV3, DINOV3_BIAS])
def test_authors_files_and_timms_give_the_same_features(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    image = images(1)[0]
    expected = timm_tokens(model, image)
    timms = save(model.state_dict(), tmp_path / "model.safetensors")
    authors = save(authors_layout(name, model.state_dict()), tmp_path / "authors.pth")
    for checkpoint in (timms, authors):
        backbone = Backbone(name, checkpoint, device="cpu", layer="final", architecture=SMALL)
        side = 112 // backbone.patch_px
        features = backbone([image])[0]
        assert features.shape == (side, side, 32)
        assert_same_sums(features.reshape(-1, 32), expected)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", [DINO_S16, DINOV2])
def test_what_training_wraps_around_weights_is_taken_off(name: str, wrapper: str, tmp_path: Path) -> None:
    model = model_of(name)
    checkpoint = save(WRAPPERS[wrapper](authors_layout(name, model.state_dict())), tmp_path / "checkpoint.pth")
    image = images(1)[0]
    backbone = Backbone(name, checkpoint, device="cpu", layer="final", architecture=SMALL)
    assert_same_sums(backbone([image])[0].reshape(-1, 32), timm_tokens(model, image))


def test_dino_gives_keys_of_its_last_block(tmp_path: Path) -> None:
    model = model_of(DINO)
    checkpoint = save(model.state_dict(), tmp_path / "dino.pth")
    backbone = Backbone(DINO, checkpoint, device="cpu", architecture=SMALL)
    assert (backbone.layer, backbone.patch_px, backbone.depth) == ("key", 8, 32)
    seen: list[torch.Tensor] = []
    model.blocks[-1].norm1.register_forward_hook(lambda module, inputs, output: seen.append(output))
    image = images(1)[0]
    timm_tokens(model, image)
    projection = model.blocks[-1].attn.qkv
    with torch.no_grad():
        keys = seen[0] @ projection.weight[32:64].T + projection.bias[32:64]
    for _ in range(2):  # one hook, however often it is asked
        assert_same_sums(backbone([image])[0].reshape(-1, 32), keys[0, 1:])
    assert backbone._keys == []


def test_default_layers_are_keys_of_dino_and_tokens_of_its_successors(tmp_path: Path) -> None:
    for name, layer in ((DINO_S16, "key"), (DINOV2, "final"), (DINOV3, "final")):
        checkpoint = save(model_of(name).state_dict(), tmp_path / f"{name}.safetensors")
        assert Backbone(name, checkpoint, device="cpu", architecture=SMALL).layer == layer
    checkpoint = save(model_of(DINOV3_BIAS).state_dict(), tmp_path / "biased.safetensors")
    backbone = Backbone(DINOV3_BIAS, checkpoint, device="cpu", architecture=SMALL, layer="key")
    with pytest.raises(InputError, match="does not compute keys"):
        backbone(images(1))


def test_channels_are_rgb(tmp_path: Path) -> None:
    """The reference gives BGR to a model of RGB. Red must meet red's mean and the model's first channel."""
    checkpoint = save(model_of(DINO_S16).state_dict(), tmp_path / "dino.pth")
    backbone = Backbone(DINO_S16, checkpoint, device="cpu", architecture=SMALL)
    red = np.zeros((32, 32, 3), dtype=np.uint8)
    red[:, :, 0] = 255
    batch = backbone.normalised([red], 1)
    assert batch.shape == (1, 3, 32, 32)
    assert batch[0, :, 5, 5] == pytest.approx([(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225], abs=1e-5)


def test_features_do_not_depend_on_how_many_images_came_along(tmp_path: Path) -> None:
    checkpoint = save(model_of(DINO_S16).state_dict(), tmp_path / "dino.pth")
    backbone = Backbone(DINO_S16, checkpoint, device="cpu", batch_size=4, architecture=SMALL)
    five = images(5, side=64)
    together = backbone(five)
    assert len(together) == 5
    for image, features in zip(five, together, strict=True):
        assert np.array_equal(backbone([image])[0], features)


def test_half_precision_is_near(tmp_path: Path) -> None:
    checkpoint = save(model_of(DINO_S16).state_dict(), tmp_path / "dino.pth")
    backbone = Backbone(DINO_S16, checkpoint, device="cpu", architecture=SMALL)
    image = images(1)[0]
    full = backbone([image])[0]
    backbone.precision = torch.bfloat16
    half = backbone([image])[0]
    assert half.dtype == np.float32
    cosine = (full * half).sum(-1) / np.linalg.norm(full, axis=-1) / np.linalg.norm(half, axis=-1)
    assert 0.99 < cosine.min() < 1 - 1e-9


@pytest.mark.gpu
def test_a_gpu_gives_nearly_the_same(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    checkpoint = save(model_of(DINO_S16).state_dict(), tmp_path / "dino.pth")
    image = images(1)[0]
    ours, theirs = (
        Backbone(DINO_S16, checkpoint, device=each, architecture=SMALL)([image])[0] for each in ("cpu", "cuda")
    )
    cosine = (ours * theirs).sum(-1) / np.linalg.norm(ours, axis=-1) / np.linalg.norm(theirs, axis=-1)
    assert cosine.min() > 0.99


def test_weights_that_are_missing_or_of_another_model_are_an_error(tmp_path: Path) -> None:
    weights = model_of(DINO_S16).state_dict()
    del weights["blocks.1.attn.qkv.bias"]
    with pytest.raises(InputError, match=r"1 are missing \(blocks\.1\.attn\.qkv\.bias"):
        Backbone(DINO_S16, save(weights, tmp_path / "a.pth"), device="cpu", architecture=SMALL)
    with pytest.raises(InputError, match="of another model"):
        Backbone(DINO, save(model_of(DINOV3).state_dict(), tmp_path / "b.pth"), device="cpu", architecture=SMALL)
    with pytest.raises(InputError, match="of another model"):
        Backbone("test_vit", save(model_of(DINO).state_dict(), tmp_path / "c.pth"), device="cpu")


# -- transformers' layout ------------------------------------------------------------------------------------------


def transformers_model(cls: str, **settings: Any) -> Any:
    """`transformers`' own class, with drawn weights."""
    transformers = pytest.importorskip("transformers", reason="the test dependency is not installed")
    kinds = {
        "Dinov2": "Dinov2Config",
        "Dinov2WithRegisters": "Dinov2WithRegistersConfig",
        "DINOv3ViT": "DINOv3ViTConfig",
    }
    model = getattr(transformers, f"{cls}Model")(getattr(transformers, kinds[cls])(**settings)).eval()
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.device.type != "meta":
                weight.copy_(torch.randn(weight.shape, generator=random) * 0.2)
    return model


V2 = {"image_size": 518, "patch_size": 14}
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
FAMILIES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "DINOv2": (DINOV2, "Dinov2", {**TINY, **V2}, SMALL),
    "DINOv2 giant": (
        "vit_giant_patch14_dinov2.lvd142m",
        "Dinov2",
        {**TINY, **V2, "hidden_size": 48, "use_swiglu_ffn": True},
        {**SMALL, "embed_dim": 48},
    ),
    "DINOv2 with registers": (DINOV2_REG, "Dinov2WithRegisters", {**TINY, **V2}, SMALL),
    "DINOv3": (DINOV3_BIAS, "DINOv3ViT", {**TINY, "intermediate_size": 128, "num_register_tokens": 4}, SMALL),
    "DINOv3 plus": (
        "vit_small_plus_patch16_dinov3_qkvb.lvd1689m",
        "DINOv3ViT",
        {**TINY, "intermediate_size": 128, "num_register_tokens": 4, "use_gated_mlp": True, "hidden_act": "silu"},
        SMALL,
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_files_give_transformers_features(family: str, tmp_path: Path) -> None:
    """Its final normalised tokens of patches: class token and registers are dropped, the image is normalised alike."""
    name, cls, settings, architecture = FAMILIES[family]
    theirs = transformers_model(cls, **settings)
    theirs.save_pretrained(tmp_path)
    backbone = Backbone(name, tmp_path / "model.safetensors", device="cpu", architecture=architecture)
    assert backbone.layer == "final"
    # At the size that its table of positions has, which the two libraries resize in different ways.
    image = images(1, side=518 if "DINOv2" in family else 112)[0]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        tokens = theirs(((torch.from_numpy(image) / 255 - mean) / std).permute(2, 0, 1)[None]).last_hidden_state
    features = backbone([image])[0]
    others = {"DINOv2": 1, "DINOv2 giant": 1}.get(family, 5)
    assert features.shape[0] * features.shape[1] == tokens.shape[1] - others
    assert_same_sums(features.reshape(-1, features.shape[2]), tokens[0, others:])


PUBLISHED: dict[str, tuple[str, int, int, int, dict[str, Any]]] = {
    "vit_small_patch14_dinov2": ("Dinov2", 384, 12, 6, V2),
    "vit_large_patch14_dinov2": ("Dinov2", 1024, 24, 16, V2),
    "vit_giant_patch14_dinov2": ("Dinov2", 1536, 40, 24, {**V2, "use_swiglu_ffn": True}),
    "vit_base_patch14_reg4_dinov2": ("Dinov2WithRegisters", 768, 12, 12, V2),
    "vit_base_patch16_dinov3_qkvb": ("DINOv3ViT", 768, 12, 12, {"intermediate_size": 3072}),
    "vit_huge_plus_patch16_dinov3_qkvb": (
        "DINOv3ViT", 1280, 32, 20, {"intermediate_size": 5120, "use_gated_mlp": True},
    ),
    "vit_7b_patch16_dinov3": (
        "DINOv3ViT", 4096, 40, 32,
        {"intermediate_size": 8192, "use_gated_mlp": True, "query_bias": False, "value_bias": False},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_and_shapes_of_the_published_sizes_fit(name: str) -> None:
    """All weights of timm's model, no others, each of its shape; without their numbers."""
    cls, width, depth, heads, more = PUBLISHED[name]
    settings = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads, **more}
    if cls == "DINOv3ViT":
        settings["num_register_tokens"] = 4
    with torch.device("meta"):
        theirs = transformers_model(cls, **settings).state_dict()
        ours = timm.create_model(name, num_classes=0, dynamic_img_size=True)
    install_weights(ours, theirs, where=name)
    short = {key: value for key, value in theirs.items() if "layer.1." not in key}
    with pytest.raises(InputError, match=f"^{name}: the weights are of another model"):
        install_weights(ours, short, where=name)


def test_transformers_weights_inside_a_classifier_are_found(tmp_path: Path) -> None:
    theirs = transformers_model("Dinov2", **TINY, **V2).state_dict()
    plain = save(theirs, tmp_path / "plain.safetensors")
    inside = {**{f"dinov2.{key}": value for key, value in theirs.items()}, "classifier.weight": torch.ones(2, 64)}
    image = images(1)[0]
    found = [
        Backbone(DINOV2, path, device="cpu", architecture=SMALL)([image])[0]
        for path in (plain, save(inside, tmp_path / "inside.safetensors"))
    ]
    assert np.array_equal(*found)


def test_satellite_weights_see_images_normalised_their_own_way(tmp_path: Path) -> None:
    name = "vit_large_patch16_dinov3_qkvb.sat493m"
    checkpoint = save(model_of(name).state_dict(), tmp_path / "sat.safetensors")
    backbone = Backbone(name, checkpoint, device="cpu", architecture=SMALL)
    batch = backbone.normalised([np.zeros((16, 16, 3), dtype=np.uint8)], 1)
    assert batch[0, :, 0, 0] == pytest.approx([-0.430 / 0.213, -0.411 / 0.156, -0.296 / 0.143], abs=1e-5)


def test_biases_that_a_network_would_drop_are_an_error(tmp_path: Path) -> None:
    biased = save(authors_layout(DINOV3_BIAS, model_of(DINOV3_BIAS).state_dict()), tmp_path / "biased.pth")
    with pytest.raises(InputError, match=r"biases of queries and values .*vit_small_patch16_dinov3_qkvb"):
        Backbone(DINOV3, biased, device="cpu", architecture=SMALL)
    weights = torch.load(biased, weights_only=True)
    zero = {key: value * 0 if key.endswith("qkv.bias") else value for key, value in weights.items()}
    assert Backbone(DINOV3, save(zero, tmp_path / "zero.pth"), device="cpu", architecture=SMALL).depth == 32


def test_nearly_right_weights_are_named(tmp_path: Path) -> None:
    weights = model_of(DINO_S16).state_dict()
    other = timm.create_model(DINO_S16, num_classes=0, embed_dim=64, depth=3, num_heads=2).state_dict()
    with pytest.raises(
        InputError,
        match=r"of another model: taken for 3 blocks of width 64 on patches of 16 px, the network has 2 blocks of wid",
    ):
        Backbone(DINO_S16, save(other, tmp_path / "other.pth"), device="cpu", architecture=SMALL)
    eight = {key: value.to(torch.int8) if value.ndim == 2 else value for key, value in weights.items()}
    with pytest.raises(InputError, match=r"taken for quantised weights \(.* is int8\); .* Give the weights in float32"):
        Backbone(DINO_S16, save(eight, tmp_path / "eight.pth"), device="cpu", architecture=SMALL)


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harm"),))


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Harmful()}, tmp_path / "harmful.pth")
    (tmp_path / "text.pth").write_text("not weights")
    (tmp_path / "text.safetensors").write_text("not weights")
    (tmp_path / "empty.pth").touch()
    torch.save(torch.ones(3), tmp_path / "tensor.pth")
    for name in ("harmful.pth", "text.pth", "text.safetensors", "empty.pth", "tensor.pth"):
        with pytest.raises(InputError, match=name):
            Backbone(DINO, tmp_path / name, device="cpu", architecture=SMALL)
    assert not (tmp_path / "harm").exists()


def test_a_missing_checkpoint_says_which_file_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError) as caught:
        locate_checkpoint(DINO, None)
    message = str(caught.value)
    assert "model.safetensors of https://huggingface.co/timm/vit_base_patch8_224.dino" in message
    assert "--backbone timm:vit_base_patch8_224.dino@/path/to/model.safetensors" in message
    with pytest.raises(InputError, match="no such file"):
        locate_checkpoint(DINO, str(tmp_path / "absent.pth"))
    with pytest.raises(InputError, match="no such model"):
        locate_checkpoint("vit_unheard_of", None)
    with pytest.raises(InputError, match="timm:NAME"):
        split_backbone("resnet50")
    with pytest.raises(InputError, match="timm:NAME"):
        split_backbone("timm:vit_tiny_patch16_224@")
    assert split_backbone(f"timm:{DINO}@/a/b@c.pth") == (DINO, "/a/b@c.pth")
    file = tmp_path / "weights.pth"
    file.write_bytes(b"weights")
    assert locate_checkpoint(DINO, str(file)) == file
    assert sha256_of_file(file) == hashlib.sha256(b"weights").hexdigest()


def test_pooling_on_leaves_sums_bilinear_features() -> None:
    labels = np.repeat(np.arange(4), 4)[None].repeat(8, axis=0)  # four columns of leaves under two of patches
    features = np.zeros((1, 2, 1), dtype=np.float32)
    features[0, 1] = 1
    sums = pooled_on_superpixels(features, Atoms.of(labels))[:, 0]
    share = np.clip((np.arange(16) + 0.5) / 8 - 0.5, 0, 1)
    assert sums == pytest.approx(8 * share.reshape(4, 4).sum(axis=1))
    flat = pooled_on_superpixels(np.ones((3, 5, 2), dtype=np.float32), Atoms.of(labels))
    assert flat == pytest.approx(np.full((4, 2), 32.0))


def test_sides_are_whole_patches() -> None:
    assert [nearest_multiple(480, patch) for patch in (8, 14, 16, 500)] == [480, 476, 480, 500]
    assert squashed(np.zeros((30, 40, 3), dtype=np.uint8), 16, 16).shape == (16, 16, 3)
