"""Files of weights: official checkpoints of the base, what a file is taken for, and files that are none of these."""

from __future__ import annotations

import argparse
import logging
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from model.network import sam2_base
from model.network.checkpoint import read_checkpoint, step_path, write_checkpoint
from model.network.granular import GranularSam2
from model.network.load import (
    Weights,
    install_base,
    load_granular,
    load_sam2,
    new_model,
    recognised,
)
from model.network.sam2_base import build_base, load_base_weights, state_sha256
from model.network.weight_files import read_state
from model.predict.image import GranularPredictor
from pipeline.errors import InputError, SchemaError
from tests.unit.test_adapters_and_merged import adapter_checkpoint

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
