"""Files of weights: official checkpoints, adapters on their base, merged ones, and files that are none of these."""

from __future__ import annotations

import argparse
import json
import logging
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from model.evaluation.checkpoint import load_model, sam2_predictor
from model.evaluation.flags import ScoreFlags
from model.evaluation.options import score_options
from model.network import sam2_base
from model.network.checkpoint import read_checkpoint, step_path, write_checkpoint
from model.network.granular import GranularSam2
from model.network.load import (
    Weights,
    _find_base,
    checkpoint_record,
    install_base,
    load_granular,
    load_sam2,
    new_model,
    recognised,
    trained_state,
)
from model.network.merge import merge_checkpoint
from model.network.sam2_base import build_base, load_base_weights, state_sha256
from model.network.weight_files import read_state
from model.predict.image import GranularPredictor
from model.predict.video import GranularVideoPredictor
from model.training.distributed import Distributed
from pipeline import cli
from pipeline.errors import InputError, SchemaError
from tests.numeric import assert_same_sums

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
    return (*dial, *predictor.predict([[20, 30]], [1], multimask_output=False, return_logits=True))


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


# -- what a file is ----------------------------------------------------------------------------------------------------


def test_what_a_file_is(micro_base: Path, official_tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    step = step_path(run, 3)
    step.parent.mkdir(parents=True)
    step.write_bytes(adapter_checkpoint(micro_base, "lite", tmp_path).read_bytes())
    for path, file, ours, size in (
        (run, step, True, "micro"),
        (step, step, True, "micro"),
        (micro_base, micro_base, False, "micro"),
        (official_tiny, official_tiny, False, "tiny"),
    ):
        assert recognised(path) == Weights(path=file, ours=ours, size=size)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="a directory without checkpoints"):
        recognised(tmp_path)
    checkpoint = read_checkpoint(step)
    write_checkpoint(step, {**checkpoint.record, "size": "huge"}, checkpoint.tensors)
    with pytest.raises(SchemaError, match="size is 'huge'"):
        recognised(run)


def other_weights() -> dict[str, Any]:
    block = torch.zeros(96, 3, 7, 7)
    return {
        "SAM 1's weights": {"image_encoder.blocks.0.norm1.weight": torch.zeros(3)},
        r"1 weights of something else, such as conv1\.weight": {"conv1.weight": torch.zeros(3)},
        "0 weights of something else;": {},
        "2 weights of something else, such as image": {
            "image_encoder.trunk.patch_embed.proj.weight": block, "image_encoder.trunk.blocks.0.x": torch.zeros(1)
        },
    }  # fmt: skip


@pytest.mark.parametrize("found", other_weights())
def test_weights_of_other_models_are_named(found: str, tmp_path: Path) -> None:
    torch.save({"model": other_weights()[found]}, tmp_path / "weights.pt")
    for read in (recognised, load_sam2, lambda path: new_model("micro", "lite", SIDE, init=str(path), seed=0)):
        with pytest.raises(
            InputError, match=rf"weights.pt: expected a checkpoint of .grainmill train. .*found {found}"
        ):
            read(tmp_path / "weights.pt")


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "image_encoder."])
def test_names_that_a_wrapper_has_lengthened_are_read_and_it_is_said(
    wrapper: str, micro_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = read_state(micro_base)
    if wrapper == "image_encoder.":  # torch.compile of the encoder alone
        longer = {name.replace(wrapper, f"{wrapper}_orig_mod."): value for name, value in state.items()}
    else:
        longer = {f"{wrapper}{name}": value for name, value in state.items()}
    torch.save({"state_dict" if wrapper == "model." else "model": longer}, tmp_path / "wrapped.pt")
    save_file({name: value.clone() for name, value in longer.items()}, tmp_path / "wrapped.safetensors")
    for path in (tmp_path / "wrapped.pt", tmp_path / "wrapped.safetensors"):
        assert recognised(path) == Weights(path=path, ours=False, size="micro")
        assert load_base_weights(build_base("micro", SIDE), str(path), size="micro") == state_sha256(state)
        said = capsys.readouterr().err
        assert said.startswith(f"{path}: SAM 2.1 size micro, {len(state)} weights read; names without what a wrapper")
        assert said.count("\n") == 1
    assert not capsys.readouterr().err
    read_state(micro_base)
    assert not capsys.readouterr().err


def test_a_wrapper_around_some_names_only_is_no_wrapper(micro_base: Path, tmp_path: Path) -> None:
    state = {f"module.{name}": value for name, value in read_state(micro_base).items()}
    torch.save({"model": {**state, "head.weight": torch.zeros(1)}}, tmp_path / "odd.pt")
    assert set(read_state(tmp_path / "odd.pt")) == {*state, "head.weight"}


def test_a_checkpoint_of_ours_is_no_base(micro_base: Path, tmp_path: Path) -> None:
    path = adapter_checkpoint(micro_base, "lite", tmp_path)
    with pytest.raises(InputError, match=r"expected SAM 2\.1's own weights, found a checkpoint that `grainmill train`"):
        load_base_weights(build_base("micro", SIDE), str(path), size="micro")


def test_pickled_code_is_never_run(tmp_path: Path, micro_base: Path) -> None:
    marker = tmp_path / "ran"
    with (tmp_path / "plain.pkl").open("wb") as stream:
        pickle.dump({"model": Canary(marker)}, stream)
    torch.save({"model": {"weight": Canary(marker)}}, tmp_path / "zip.pt")
    torch.save({"model": Canary(marker)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("plain.pkl", "zip.pt", "old.pt"):
        with pytest.raises(InputError, match="Pickles can run code"):
            load_base_weights(build_base("micro", SIDE), str(tmp_path / name), size="micro")
        with pytest.raises(SchemaError, match=r"found a file of torch.save or a pickle; .*go to --init .*--base"):
            load_granular(tmp_path / name)
    assert not marker.exists()
    torch.load(tmp_path / "zip.pt", weights_only=False)
    assert marker.exists(), "the canary itself must work"


class Calls:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __reduce__(self) -> Any:
        return self.function, ("true",)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"model": torch.zeros(1), "args": argparse.Namespace(a=1)}, r"pickled code \(argparse.Namespace\)"),
        (torch.nn.Linear(2, 2), r"pickled code \(torch.nn.modules.linear.Linear\)"),
        ({"model": Calls(os.system)}, r"pickled code \((posix|os).system\)"),
        (b"plain", "a pickle that is cut or holds more than tensors"),
    ],
)
def test_unread_files_are_told_in_our_own_words(content: Any, found: str, tmp_path: Path) -> None:
    """Torch's message advises to read the file unsafely, in bold type that it does not end, and warns beside it."""
    path = tmp_path / "weights.pt"
    if content == b"plain":
        path.write_bytes(pickle.dumps({"model": {"a": np.zeros(3)}}, protocol=5))
    else:
        torch.save(content, path)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with pytest.raises(InputError, match=found) as caught:
            read_state(path)
    assert not told
    message = str(caught.value)
    assert message.endswith("have the state dict alone saved, by torch.save or as safetensors")
    assert message.isprintable()
    assert "can still be loaded" not in message
    assert "weights_only" not in message


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"PK\x03\x04 cut", "a cut or damaged file of torch.save; fetch it again$"),
        (b"some text", "something else or a cut file; fetch it again$"),
        (b"<!DOCTYPE html><html>{}</html>", r"a web page \(HTML\) in place of the file; fetch it again"),
        (b"<html>log in</html>", r"a web page \(HTML\)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a pointer of Git LFS"),
    ],
)
def test_damaged_files_are_told_in_our_own_words(content: bytes, found: str, tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(content)
    for read in (read_state, recognised):
        with pytest.raises(InputError, match=f"found {found}"):
            read(tmp_path / "weights.pt")


@pytest.mark.parametrize("cut", [0, 4, 1000, -1000])
def test_cut_files_are_told(cut: int, micro_base: Path, tmp_path: Path) -> None:
    save_file({name: value.clone() for name, value in read_state(micro_base).items()}, tmp_path / "whole.safetensors")
    for whole in (micro_base, tmp_path / "whole.safetensors"):
        path = tmp_path / f"cut{whole.suffix}"
        path.write_bytes(whole.read_bytes()[:cut])
        with pytest.raises(InputError, match=path.name):
            load_base_weights(build_base("micro", SIDE), str(path), size="micro")


def test_no_file_names_what_is_known(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"found nothing; give a path, or one of sam2.1_hiera_tiny"):
        load_base_weights(build_base("micro", SIDE), str(tmp_path / "gone.pt"), size="micro")


def test_a_name_without_network_asks_for_a_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"sam2.1_hiera_small: could not be fetched.*offline mode.*give its path"):
        load_base_weights(build_base("micro", SIDE), "sam2.1_hiera_small", size="small")


def test_whatever_stops_the_hubs_client_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.errors
    import requests

    client = pytest.importorskip("httpx2", reason="another version of huggingface_hub has another client")
    general = huggingface_hub.errors.LocalEntryNotFoundError("Please check your connection.")
    general.__cause__ = client.ConnectTimeout("timed out")
    stops: list[tuple[Exception, str]] = [
        (client.ReadTimeout("The read operation timed out"), "The read operation timed out"),
        (client.ConnectError(""), "ConnectError"),
        (requests.exceptions.ConnectionError("no route"), "no route"),
        (requests.exceptions.Timeout(), "Timeout"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (ValueError("\n"), "ValueError"),
        (general, "timed out"),
    ]
    for error, reason in stops:

        def fails(repository: str, filename: str, error: Exception = error) -> str:
            raise error

        monkeypatch.setattr("huggingface_hub.hf_hub_download", fails)
        with pytest.raises(InputError) as caught:
            sam2_base._fetch("sam2.1_hiera_small")
        message = str(caught.value)
        assert f"{reason}); fetch https://huggingface.co/facebook/sam2.1-hiera-small/resolve/main/" in message
        assert "sam2.1_hiera_small.pt by hand" in message
        assert "--init PATH" in message


def test_of_the_hubs_attempts_one_line_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = logging.getLogger("huggingface_hub")
    handler = logging.StreamHandler()

    def tries(repository: str, filename: str) -> str:
        for number in range(3):
            logging.getLogger("huggingface_hub.utils._http").warning("attempt %d", number)
        raise OSError("gave up")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", tries)
    monkeypatch.setattr(log, "handlers", [handler])
    with pytest.raises(InputError, match="gave up"):
        sam2_base._fetch("sam2.1_hiera_small")
    assert capsys.readouterr().err == "attempt 0\n"
    assert not handler.filters, "it speaks again afterwards"


def test_a_fetched_file_is_compared_with_its_published_sha256(
    official_tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repository, filename: str(official_tiny))
    with pytest.raises(InputError, match=r"not the sam2.1_hiera_tiny.pt that Meta published: sha256 is"):
        load_base_weights(build_base("tiny", SIDE), "sam2.1_hiera_tiny", size="tiny")
    import hashlib
    from dataclasses import replace

    known = replace(
        sam2_base.PUBLISHED["sam2.1_hiera_tiny"], sha256=hashlib.sha256(official_tiny.read_bytes()).hexdigest()
    )
    monkeypatch.setitem(sam2_base.PUBLISHED, "sam2.1_hiera_tiny", known)
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
        assert_same_sums(one, other)
    assert not any("lora" in name for name in read_checkpoint(tmp_path / "merged.safetensors").tensors)
    assert str(tmp_path) not in json.dumps(merged_record(tmp_path)), "a file to be shared tells no folders"
    assert merged_record(tmp_path)["base"]["source"] == "base.pt"


@pytest.mark.parametrize("adapter", ["paper", "lite"])
def test_merging_what_was_merged_changes_nothing(adapter: str, micro_base: Path, tmp_path: Path) -> None:
    path = adapter_checkpoint(micro_base, adapter, tmp_path)
    before = answers(GranularPredictor.load(path))
    done = merge_checkpoint(path, tmp_path / "once.safetensors")
    again = merge_checkpoint(tmp_path / "once.safetensors", tmp_path / "merged.safetensors")
    assert again["folded_layers"] == done["folded_layers"]
    for one, other in zip(answers(GranularPredictor.load(tmp_path / "merged.safetensors")), before, strict=True):
        assert_same_sums(one, other)
    once, twice = (read_checkpoint(tmp_path / f"{name}.safetensors") for name in ("once", "merged"))
    assert once.record == twice.record
    assert set(once.tensors) == set(twice.tensors)
    assert all(torch.equal(once.tensors[name], twice.tensors[name]) for name in once.tensors)


def test_a_merged_checkpoint_with_other_tensors_is_told(micro_base: Path, tmp_path: Path) -> None:
    merge_checkpoint(adapter_checkpoint(micro_base, "lite", tmp_path), tmp_path / "merged.safetensors")
    whole = read_checkpoint(tmp_path / "merged.safetensors")
    folded = {name: value for name, value in whole.tensors.items() if name.startswith("folded.")}
    first = min(folded)
    for tensors in (
        {name: value for name, value in whole.tensors.items() if name not in folded},
        {name: value for name, value in whole.tensors.items() if name != first},
        {**whole.tensors, first: torch.zeros(1, 2)},
        {**whole.tensors, "model.mask_token": torch.zeros(1, 3)},
    ):
        write_checkpoint(tmp_path / "odd.safetensors", whole.record, tensors)
        with pytest.raises(InputError, match="its tensors are not those of size micro, adapter lite"):
            load_granular(tmp_path / "odd.safetensors")


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
    with pytest.raises(InputError, match=r"other.pt: not the base that .* was trained on.*pass --base with .*base.pt"):
        load_granular(path, base=str(tmp_path / "other.pt"))
    for wrong in (tmp_path / "gone.pt", path):
        with pytest.raises(InputError, match=rf"--base for .*lite.safetensors: .*{wrong.name}: expected") as caught:
            load_granular(path, base=str(wrong))
        assert "without its base" not in str(caught.value), "one was passed"
    assert load_granular(path, base=str(micro_base)).adapter == "lite"


def test_a_base_given_by_a_relative_path_is_found_from_any_folder(
    micro_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "micro.pt").write_bytes(micro_base.read_bytes())
    monkeypatch.chdir(tmp_path / "work")
    path = adapter_checkpoint(Path("micro.pt"), "lite", tmp_path)
    assert read_checkpoint(path).record["base"]["source"] == str(tmp_path / "work" / "micro.pt")
    monkeypatch.chdir(tmp_path)
    assert load_granular(path).adapter == "lite"


def test_a_name_of_a_base_stays_a_name(micro_base: Path) -> None:
    model = new_model("micro", "lite", SIDE, init=str(micro_base), seed=2)
    assert checkpoint_record(model, init="sam2.1_hiera_small")["base"]["source"] == "sam2.1_hiera_small"


@pytest.mark.parametrize("place", ["run/checkpoints/micro.pt", "run/micro.pt", "micro.pt", "folder/micro.pt"])
def test_a_base_that_moved_with_its_run_is_found(
    place: str, micro_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the checkpoint, in the run, beside the run; checkpoints of before hold paths as they were given."""
    checkpoint = read_checkpoint(adapter_checkpoint(micro_base, "lite", tmp_path))
    path = tmp_path / "moved" / "run" / "checkpoints" / "step-00000002.safetensors"
    base = tmp_path / "moved" / place
    path.parent.mkdir(parents=True)
    base.parent.mkdir(exist_ok=True)
    base.write_bytes(micro_base.read_bytes())
    monkeypatch.chdir(path.parent)
    for given in ("folder/micro.pt", "micro.pt", "/gone/micro.pt"):
        found = given if place.startswith("folder") and given != "folder/micro.pt" else str(base)
        for name in (path, Path(path.name)):
            assert Path(_find_base(name, given)).absolute() == Path(found).absolute()
    record = {**checkpoint.record, "base": {**checkpoint.record["base"], "source": "folder/micro.pt"}}
    write_checkpoint(path, record, checkpoint.tensors)
    assert load_granular("..").adapter == "lite"
    assert _find_base(path, "sam2.1_hiera_small") == "sam2.1_hiera_small"


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


def test_sam2s_file_as_a_checkpoint_hears_where_it_goes(micro_base: Path, tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=r"micro.pt: .*found a file of torch.save.* go to --init .*and to --base"):
        load_granular(micro_base)
    (tmp_path / "text.safetensors").write_text("no checkpoint at all")
    with pytest.raises(SchemaError, match=r"found something else or a cut file \("):
        load_granular(tmp_path / "text.safetensors")


@pytest.mark.parametrize("form", ["pt", "safetensors"])
def test_sam2s_own_weights_predict_without_a_granularity(form: str, micro_base: Path, tmp_path: Path) -> None:
    path = micro_base
    if form == "safetensors":
        path = tmp_path / "base.safetensors"
        save_file({name: value.clone() for name, value in read_state(micro_base).items()}, path)
    predictor, own = GranularPredictor.load(path), sam2_predictor(load_sam2(micro_base))
    image = np.random.default_rng(5).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    for each in (predictor, own):
        each.set_image(image)
    for multimask in (False, True):
        found, expected = (
            each.predict(np.array([[20, 30]]), np.array([1]), None, None, multimask, True) for each in (predictor, own)
        )
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)
    with pytest.raises(InputError, match="SAM-2's own weights, which know no granularity"):
        predictor.predict([[20, 30]], [1], granularity=0.5)
    video = GranularVideoPredictor.load(path)
    state = video.init_state([image, image])
    with pytest.raises(InputError, match="SAM-2's own weights, which know no granularity"):
        video.add_new_points_or_box(state, 0, 1, [[20, 30]], granularity=0.5)
    video.add_new_points_or_box(state, 0, 1, [[20, 30]])
    assert [frame for frame, _, _ in video.propagate_in_video(state)] == [0, 1]


def test_weights_of_something_else_do_not_predict(micro_base: Path, tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(3, 3)}, tmp_path / "resnet.pt")
    with pytest.raises(InputError, match=r"resnet.pt: expected .* or of SAM 2.1 .*something else, such as fc.weight"):
        GranularPredictor.load(tmp_path / "resnet.pt")
    save_file({"fc.weight": torch.zeros(3, 3)}, tmp_path / "resnet.safetensors")
    with pytest.raises(InputError, match=r"resnet.safetensors: expected .* or of SAM 2.1 .*something else"):
        GranularPredictor.load(tmp_path / "resnet.safetensors")
    with (tmp_path / "code.pt").open("wb") as stream:
        pickle.dump({"model": Canary(tmp_path / "ran")}, stream)
    with pytest.raises(InputError, match="Pickles can run code"):
        GranularPredictor.load(tmp_path / "code.pt")
    assert not (tmp_path / "ran").exists()
    state = read_state(micro_base)
    state.pop("no_mem_embed")
    torch.save({"model": state}, tmp_path / "less.pt")
    with pytest.raises(InputError, match=r"less.pt: .*1 missing \['no_mem_embed'\]"):
        GranularPredictor.load(tmp_path / "less.pt")
    (tmp_path / "text.jpg").write_text("no checkpoint at all")
    with pytest.raises(InputError, match=r"text.jpg: expected a checkpoint .* found something else or a cut file"):
        GranularPredictor.load(tmp_path / "text.jpg")


def test_a_base_that_nothing_needs_is_not_passed_over(micro_base: Path, tmp_path: Path) -> None:
    path = adapter_checkpoint(micro_base, "lite", tmp_path)
    merge_checkpoint(path, tmp_path / "merged.safetensors")
    model = new_model("micro", "full", SIDE, init="scratch", seed=3)
    state = {f"model.{name}": value for name, value in trained_state(model).items()}
    write_checkpoint(tmp_path / "whole.safetensors", checkpoint_record(model, init="scratch"), state)
    (tmp_path / "nonsense.pt").write_text("nonsense")
    for whole in (tmp_path / "merged.safetensors", tmp_path / "whole.safetensors", micro_base):
        flags = ScoreFlags(benchmark="davis", data=str(tmp_path), checkpoint=str(whole), base="nonsense.pt")
        options = score_options(flags)
        for call in (lambda: GranularPredictor.load(whole, base="nonsense.pt"), lambda: load_model(options)):  # noqa: B023
            with pytest.raises(
                InputError, match=rf"^--base nonsense.pt: .*{whole.name} is a whole model and needs non"
            ):
                call()


@pytest.mark.parametrize("name", ["mps", "meta", "xpu", "privateuseone", "gpu", "", "cuda:-1"])
def test_a_device_that_models_do_not_run_on_is_one_message_everywhere(
    name: str, micro_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = adapter_checkpoint(micro_base, "lite", tmp_path)
    expected = f"device {name}: expected cpu, cuda or cuda:N"
    options = score_options(ScoreFlags(benchmark="davis", data=str(tmp_path), checkpoint=str(path), device=name))
    for call in (lambda: load_granular(path, name), lambda: Distributed(name), lambda: load_model(options)):
        with pytest.raises(InputError, match=f"^{expected}"):
            call()
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    for command in (
        ["segment", str(tmp_path / "a.png"), "--checkpoint", str(path), "--point", "1,1", "--output", str(tmp_path)],
        ["train", "--size", "micro", "--dry-run"],
    ):
        assert cli.main([*command, "--device", name]) == 2
        assert capsys.readouterr() == ("", f"grainmill {command[0]}: {expected}, all that models here run on\n")


@pytest.mark.skipif(torch.cuda.device_count() > 99, reason="a hundred GPUs")
def test_a_missing_gpu_is_one_message(micro_base: Path, tmp_path: Path) -> None:
    path = adapter_checkpoint(micro_base, "lite", tmp_path)
    for call in (lambda: load_granular(path, "cuda:99"), lambda: Distributed("cuda:99")):
        with pytest.raises(InputError, match=r"^device cuda:99: torch sees \d+ GPUs here; use cpu$"):
            call()
