"""Files of weights: official checkpoints, adapters on their base, merged ones, and files that are none of these."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from model import base_models
from model.base_models import build_base, load_base_weights, read_state, state_sha256
from model.checkpoint import read_checkpoint, write_checkpoint
from model.granular import GranularSam2
from model.loading import checkpoint_record, install_base, load_granular, new_model, trained_state
from model.merge import merge_checkpoint
from model.predictor import GranularPredictor
from pipeline.errors import InputError, SchemaError

SIDE = 128


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def official_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file laid out as Meta's, from sam2's own builder with random weights."""
    from sam2.build_sam import build_sam2

    path = tmp_path_factory.mktemp("official") / "sam2.1_hiera_tiny.pt"
    torch.manual_seed(0)
    model = build_sam2("configs/sam2.1/sam2.1_hiera_t.yaml", None, device="cpu")
    torch.save({"model": model.state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def micro_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "micro.pt"
    torch.manual_seed(1)
    torch.save({"model": build_base("micro", SIDE).state_dict()}, path)
    return path


def adapter_checkpoint(base: Path, adapter: Any, folder: Path) -> Path:
    """An adapter moved away from its start, as `train` writes it."""
    model = new_model("micro", adapter, SIDE, init=str(base), seed=2)
    with torch.no_grad():
        for name in model.adapter_names():
            parameter = model.get_parameter(name)
            parameter += 0.1 * torch.randn_like(parameter)
    path = folder / f"{adapter}.safetensors"
    state = {f"model.{name}": value for name, value in trained_state(model).items()}
    write_checkpoint(path, checkpoint_record(model, init=str(base)), state)
    return path


def answers(predictor: GranularPredictor) -> tuple[Any, ...]:
    image = np.random.default_rng(3).integers(0, 256, (70, 50, 3), dtype=np.uint8)
    predictor.set_image(image)
    dial = predictor.predict([[20, 30], [5, 5]], [1, 0], granularity=[0.1, 0.5, 1.0], return_logits=True)
    return (*dial, *predictor.predict([[20, 30]], [1], return_logits=True))


# -- the base ----------------------------------------------------------------------------------------------------------


def test_an_official_checkpoint_loads_by_path(official_tiny: Path) -> None:
    published = torch.load(official_tiny, weights_only=True)["model"]
    model = GranularSam2("tiny", "paper", 256)
    install_base(model, str(official_tiny))
    found = model.base_state()
    assert set(found) == set(published)
    assert all(torch.equal(found[name], published[name]) for name in published)
    assert torch.equal(model.mask_token, published["sam_mask_decoder.mask_tokens.weight"][:1])
    prefix = "sam_mask_decoder.output_hypernetworks_mlps.0."
    own = {name: value for name, value in published.items() if name.startswith(prefix)}
    assert own
    assert all(torch.equal(model.hypernetwork.state_dict()[name[len(prefix) :]], own[name]) for name in own)


def test_safetensors_hold_the_same_base(micro_base: Path, tmp_path: Path) -> None:
    state = read_state(micro_base)
    save_file({name: value.clone() for name, value in state.items()}, tmp_path / "base.safetensors")
    model = build_base("micro", SIDE)
    assert load_base_weights(model, str(tmp_path / "base.safetensors"), size="micro") == state_sha256(state)


def test_another_size_is_told_apart(official_tiny: Path, micro_base: Path) -> None:
    with pytest.raises(InputError, match=r"SAM 2.1 size micro.*look like size tiny"):
        install_base(GranularSam2("micro", "lite", SIDE), str(official_tiny))
    with pytest.raises(InputError, match=r"SAM 2.1 size tiny.*look like size micro"):
        install_base(GranularSam2("tiny", "lite", SIDE), str(micro_base))


def test_missing_and_unknown_weights_are_told(micro_base: Path, tmp_path: Path) -> None:
    state = read_state(micro_base)
    state.pop("no_mem_embed")
    state["head.weight"] = torch.zeros(1)
    torch.save({"model": state}, tmp_path / "odd.pt")
    with pytest.raises(InputError, match=r"1 missing \['no_mem_embed'\], 1 unknown \['head.weight'\]"):
        install_base(GranularSam2("micro", "lite", SIDE), str(tmp_path / "odd.pt"))


def test_pickled_code_is_never_run(tmp_path: Path, micro_base: Path) -> None:
    marker = tmp_path / "ran"
    with (tmp_path / "plain.pkl").open("wb") as stream:
        pickle.dump({"model": Canary(marker)}, stream)
    torch.save({"model": {"weight": Canary(marker)}}, tmp_path / "zip.pt")
    for name in ("plain.pkl", "zip.pt"):
        with pytest.raises(InputError, match="Pickles can run code"):
            load_base_weights(build_base("micro", SIDE), str(tmp_path / name), size="micro")
        with pytest.raises(SchemaError, match="expected a checkpoint that `grainmill train` wrote"):
            load_granular(tmp_path / name)
    assert not marker.exists()
    torch.load(tmp_path / "zip.pt", weights_only=False)
    assert marker.exists(), "the canary itself must work"


@pytest.mark.parametrize("cut", [0, 4, 1000, -1000])
def test_cut_files_are_told(cut: int, micro_base: Path, tmp_path: Path) -> None:
    save_file({name: value.clone() for name, value in read_state(micro_base).items()}, tmp_path / "whole.safetensors")
    for whole in (micro_base, tmp_path / "whole.safetensors"):
        path = tmp_path / f"cut{whole.suffix}"
        path.write_bytes(whole.read_bytes()[:cut])
        with pytest.raises(InputError, match=path.name):
            load_base_weights(build_base("micro", SIDE), str(path), size="micro")


def test_no_file_names_what_is_known(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"found nothing; give a path, `scratch`, or one of sam2.1_hiera_tiny"):
        load_base_weights(build_base("micro", SIDE), str(tmp_path / "gone.pt"), size="micro")


def test_a_name_without_network_asks_for_a_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"sam2.1_hiera_small: could not be fetched.*give the path of sam2.1_hiera_sm"):
        load_base_weights(build_base("micro", SIDE), "sam2.1_hiera_small", size="small")


def test_a_fetched_file_is_compared_with_its_published_sha256(
    official_tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repository, filename: str(official_tiny))
    with pytest.raises(InputError, match=r"not the sam2.1_hiera_tiny.pt that Meta published: sha256 is"):
        load_base_weights(build_base("tiny", SIDE), "sam2.1_hiera_tiny", size="tiny")
    import hashlib
    from dataclasses import replace

    known = replace(
        base_models.PUBLISHED["sam2.1_hiera_tiny"], sha256=hashlib.sha256(official_tiny.read_bytes()).hexdigest()
    )
    monkeypatch.setitem(base_models.PUBLISHED, "sam2.1_hiera_tiny", known)
    load_base_weights(build_base("tiny", SIDE), "sam2.1_hiera_tiny", size="tiny")


# -- adapters and merged checkpoints -----------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", ["paper", "lite"])
def test_merging_folds_lora_into_one_file_with_the_same_masks(adapter: str, micro_base: Path, tmp_path: Path) -> None:
    base = tmp_path / "base.pt"
    base.write_bytes(micro_base.read_bytes())
    path = adapter_checkpoint(base, adapter, tmp_path)
    before = answers(GranularPredictor.load(path))
    done = merge_checkpoint(path, tmp_path / "merged.safetensors")
    assert done["folded_layers"] == (28 if adapter == "paper" else 6)
    base.unlink()
    path.unlink()
    merged = GranularPredictor.load(tmp_path / "merged.safetensors")
    for one, other in zip(answers(merged), before, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4, rtol=0)
    assert not any("lora" in name for name in read_checkpoint(tmp_path / "merged.safetensors").tensors)
    assert str(tmp_path) not in json.dumps({**merged_record(tmp_path), "base": None})


def merged_record(folder: Path) -> dict[str, Any]:
    return read_checkpoint(folder / "merged.safetensors").record


def test_a_merged_checkpoint_without_its_folded_weights_would_differ(micro_base: Path, tmp_path: Path) -> None:
    """The folded projections matter: the same file with the base's own projections gives other masks."""
    path = adapter_checkpoint(micro_base, "paper", tmp_path)
    merge_checkpoint(path, tmp_path / "merged.safetensors")
    merged = GranularPredictor.load(tmp_path / "merged.safetensors")
    right = answers(merged)
    for layer in merged.model.lora_modules():
        layer.folded = layer.weight
    assert np.abs(answers(merged)[0] - right[0]).max() > 1e-2


def test_the_command_writes_what_segment_reads(micro_base: Path, tmp_path: Path) -> None:
    path = adapter_checkpoint(micro_base, "lite", tmp_path)
    call = [sys.executable, "-m", "model.merge", str(path), "--output", str(tmp_path / "merged.safetensors")]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["kind"] == "merged"
    assert load_granular(tmp_path / "merged.safetensors").adapter == "lite"
    done = subprocess.run([*call[:3], str(tmp_path / "gone"), *call[4:]], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "gone: expected a checkpoint" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_adapter_wants_the_base_it_was_trained_on(micro_base: Path, tmp_path: Path) -> None:
    base = tmp_path / "base.pt"
    base.write_bytes(micro_base.read_bytes())
    path = adapter_checkpoint(base, "lite", tmp_path)
    base.unlink()
    with pytest.raises(InputError, match="an adapter without its base; pass --base"):
        load_granular(path)
    state = read_state(micro_base)
    state["no_mem_embed"] = state["no_mem_embed"] + 1
    torch.save({"model": state}, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"not the base that .* was trained on"):
        load_granular(path, base=str(tmp_path / "other.pt"))
    assert load_granular(path, base=str(micro_base)).adapter == "lite"


def test_a_checkpoint_with_other_tensors_is_told(micro_base: Path, tmp_path: Path) -> None:
    path = adapter_checkpoint(micro_base, "lite", tmp_path)
    checkpoint = read_checkpoint(path)
    tensors = dict(checkpoint.tensors)
    tensors["model.mask_token"] = torch.zeros(1, 3)
    write_checkpoint(tmp_path / "odd.safetensors", checkpoint.record, tensors)
    with pytest.raises(InputError, match="1 do not fit, first mask_token"):
        load_granular(tmp_path / "odd.safetensors")
    write_checkpoint(tmp_path / "huge.safetensors", {**checkpoint.record, "size": "huge"}, tensors)
    with pytest.raises(SchemaError, match="size is 'huge', expected one of tiny"):
        load_granular(tmp_path / "huge.safetensors")


def test_a_base_is_no_checkpoint_of_ours(micro_base: Path, tmp_path: Path) -> None:
    save_file({name: value.clone() for name, value in read_state(micro_base).items()}, tmp_path / "base.safetensors")
    with pytest.raises(SchemaError, match="goes to --init or --base"):
        load_granular(tmp_path / "base.safetensors")


def test_a_missing_gpu_is_one_message(micro_base: Path, tmp_path: Path) -> None:
    path = adapter_checkpoint(micro_base, "lite", tmp_path)
    with pytest.raises(InputError, match="expected cpu, cuda or cuda:N"):
        load_granular(path, "gpu")
    with pytest.raises(InputError, match="torch sees"):
        load_granular(path, "cuda:99")
