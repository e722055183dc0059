"""Checkpoints in use: adapters on their base, merged ones, SAM-2's own weights in their place, and where models run."""

from __future__ import annotations

import json
import subprocess
import sys
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
from model.network.checkpoint import read_checkpoint, write_checkpoint
from model.network.load import (
    _find_base,
    checkpoint_record,
    load_granular,
    load_sam2,
    new_model,
    trained_state,
)
from model.network.merge import merge_checkpoint
from model.network.sam2_base import build_base
from model.network.weight_files import read_state
from model.predict.image import GranularPredictor
from model.predict.video import GranularVideoPredictor
from model.training.distributed import Distributed
from pipeline import cli
from pipeline.errors import InputError, SchemaError
from tests.numeric import assert_same_sums

SIDE = 128


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
