"""ONNX: the exported files give torch's masks, for any number of prompts and points, at any granularity."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.network.checkpoint import write_checkpoint
from model.network.granular import GranularSam2
from model.network.load import checkpoint_record, load_granular, new_model, trained_state
from model.network.merge import merge_checkpoint
from model.network.pixels import resized_as_image
from model.predict import onnx_export
from model.predict.image import GranularPredictor
from model.predict.onnx_export import (
    FEATURE_NAMES,
    PROMPT_NAMES,
    Decoder,
    Encoder,
    export_onnx,
    random_prompts,
    session_of,
)
from pipeline.errors import GrainmillError
from tests.numeric import assert_same_sums

pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")


def lively(adapter: Any, side: int = 64) -> GranularSam2:
    torch.manual_seed(8)
    model = GranularSam2("micro", adapter, side).eval()
    with torch.no_grad():
        for name in model.adapter_names():
            parameter = model.get_parameter(name)
            parameter += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[GranularSam2, Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("onnx")
    model = lively("paper")
    return model, folder, export_onnx(model, folder)


def test_onnxruntime_reads_them_without_a_word(
    exported: tuple[GranularSam2, Path, dict[str, Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    import onnxruntime

    for name in ("encoder.onnx", "decoder.onnx"):
        onnxruntime.InferenceSession(str(exported[1] / name), providers=["CPUExecutionProvider"])
    assert capfd.readouterr() == ("", "")


def test_files_give_the_predictors_answer(exported: tuple[GranularSam2, Path, dict[str, Any]]) -> None:
    """From an image to masks by numpy and onnxruntime alone, against the predictor without folded LoRA."""
    _, folder, about = exported
    assert about["largest_difference"] < 1e-4
    assert json.loads((folder / "about.json").read_text()) == about
    assert sorted(each.name for each in folder.iterdir()) == ["about.json", "decoder.onnx", "encoder.onnx"]
    predictor = GranularPredictor(lively("paper"))
    image = np.random.default_rng(1).integers(0, 256, (40, 80, 3), dtype=np.uint8)
    predictor.set_image(image)
    features = session_of(folder / "encoder.onnx").run(
        None, {"image": resized_as_image(image, about["image_size"], torch.device("cpu")).numpy()}
    )
    decoder = session_of(folder / "decoder.onnx")
    scale = np.array([64 / 80, 64 / 40], dtype=np.float32)
    points = np.array([[[10, 20], [60, 30]]], dtype=np.float32)
    previous = np.zeros((1, 16, 16), dtype=np.float32)
    for granularity in (0.1, 0.5, 1.0):
        for has_mask in (0, 1):
            masks, iou = decoder.run(
                None,
                {
                    **dict(zip(FEATURE_NAMES, features, strict=True)),
                    "point_coords": points * scale,
                    "point_labels": np.array([[1, 0]]),
                    "mask_input": previous[:, None],
                    "has_mask_input": np.array([has_mask], dtype=np.float32),
                    "granularity": np.array([granularity], dtype=np.float32),
                },
            )
            given = {"mask_input": previous} if has_mask else {}
            _, expected_iou, expected = predictor.predict(points[0], [1, 0], granularity=granularity, **given)
            assert_same_sums(masks, expected)
            assert_same_sums(iou, expected_iou)
            previous = np.clip(masks, -32, 32)


def test_a_wrong_export_is_an_error(
    exported: tuple[GranularSam2, Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder, _ = exported
    encoder, decoder = onnx_export.Encoder(model).eval(), onnx_export.Decoder(model).eval()
    with torch.no_grad():
        assert onnx_export._compare(encoder, decoder, folder) < 1e-4
        original = model.mask_token.clone()
        model.mask_token += 1
        with pytest.raises(GrainmillError, match="onnxruntime differs from torch"):
            onnx_export._compare(encoder, decoder, folder)
        model.mask_token.copy_(original)


def test_a_merged_checkpoint_keeps_its_dial(tmp_path: Path) -> None:
    """Folded LoRA is exported as it lies there: the decoder of the file is the adapter's own."""
    torch.manual_seed(7)
    base = tmp_path / "base.pt"
    torch.save({"model": GranularSam2("micro", "paper", 64).base_state()}, base)
    model = new_model("micro", "paper", 64, init=str(base), seed=0)
    with torch.no_grad():
        for name in model.adapter_names():
            parameter = model.get_parameter(name)
            parameter += 0.1 * torch.randn_like(parameter)
    path = tmp_path / "adapter.safetensors"
    state = {f"model.{name}": value for name, value in trained_state(model).items()}
    write_checkpoint(path, checkpoint_record(model, init=str(base)), state)
    merge_checkpoint(path, tmp_path / "merged.safetensors")
    merged = load_granular(tmp_path / "merged.safetensors")
    export_onnx(merged, tmp_path / "onnx")
    first = load_granular(path)
    with torch.no_grad():
        features = Encoder(first)(torch.randn(1, 3, 64, 64))
        prompts = random_prompts(64, count=4, points=2)
        expected = Decoder(first)(*features, *prompts)
    names = (*FEATURE_NAMES, *PROMPT_NAMES)
    given = {name: value.numpy() for name, value in zip(names, (*features, *prompts), strict=True)}
    found = session_of(tmp_path / "onnx" / "decoder.onnx").run(None, given)
    for one, other in zip(found, expected, strict=True):
        assert_same_sums(one, other)


@pytest.mark.slow
def test_the_command_exports_a_checkpoint(tmp_path: Path) -> None:
    model = lively("full")
    path = tmp_path / "micro.safetensors"
    state = {f"model.{name}": value for name, value in trained_state(model).items()}
    write_checkpoint(path, checkpoint_record(model, init="scratch"), state)
    call = [sys.executable, "-m", "model.onnx_export", str(path), "--output", str(tmp_path / "onnx")]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["image_size"] == 64
    assert (tmp_path / "onnx" / "decoder.onnx").stat().st_size > 100_000
    done = subprocess.run([*call[:3], str(tmp_path), *call[4:]], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "expected a checkpoint" in done.stderr
