"""torch.export: the saved programs answer as the model does, in a process that has torch and none of our code."""

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
from model.network.click_features import Sight
from model.network.granular import GranularSam2
from model.network.load import checkpoint_record, trained_state
from model.network.pixels import resized_as_image
from model.predict import torch_export
from model.predict.image import GranularPredictor
from model.predict.onnx_export import Decoder, Encoder
from model.predict.torch_export import export_torch
from pipeline.errors import GrainmillError
from tests.numeric import assert_same_sums

SIDE = 64
ALONE = """
import importlib.util, sys
for name in ("model", "pipeline", "sam2", "timm", "tests"):
    sys.modules[name] = None  # an import of it fails
import torch
folder, asked, answers = sys.argv[1:]
encoder, decoder = (torch.export.load(f"{folder}/{name}.pt2").module() for name in ("encoder", "decoder"))
cases = torch.load(asked, weights_only=True)
with torch.no_grad():
    found = [decoder(*encoder(case[0]), *case[1:]) for case in cases]
torch.save([list(each) for each in found], answers)
"""


def lively(adapter: Any, sight: Sight | None = None) -> GranularSam2:
    torch.manual_seed(8)
    model = GranularSam2("micro", adapter, SIDE, sight=sight).eval()
    with torch.no_grad():
        for name in model.adapter_names():
            parameter = model.get_parameter(name)
            parameter += 0.1 * torch.randn_like(parameter)
    return model


@pytest.mark.slow
def test_programs_alone_give_the_predictors_answer(tmp_path: Path) -> None:
    """From a photograph on: clicks, a box, a mask, several granularities, against the predictor."""
    about = export_torch(lively("paper"), tmp_path / "pt2")
    assert about["largest_difference"] < 1e-4
    assert json.loads((tmp_path / "pt2" / "about.json").read_text()) == about
    assert sorted(each.name for each in (tmp_path / "pt2").iterdir()) == ["about.json", "decoder.pt2", "encoder.pt2"]
    predictor = GranularPredictor(lively("paper"))
    image = np.random.default_rng(1).integers(0, 256, (40, 80, 3), dtype=np.uint8)
    predictor.set_image(image)
    pixels = resized_as_image(image, about["image_size"], torch.device("cpu"))
    scale = torch.tensor([SIDE / 80, SIDE / 40])
    previous = np.random.default_rng(2).normal(0, 4, (1, 16, 16)).astype(np.float32)
    box = [5.0, 8.0, 60.0, 35.0]
    clicks = [[10.0, 20.0], [60.0, 30.0]]
    cases, expected = [], []
    for granularity in (0.1, 0.45, 1.0):
        for points, labels, given in (
            (clicks, [1, 0], {}),
            (clicks[:1], [1], {}),
            (clicks, [1, 0], {"mask_input": previous}),
            ([box[:2], box[2:]], [2, 3], {"box": np.array(box)}),
            ([box[:2], box[2:], clicks[1]], [2, 3, 1], {"box": np.array(box), "points": clicks[1:]}),
        ):
            masked = "mask_input" in given
            cases.append(
                (
                    pixels,
                    torch.tensor([points]) * scale,
                    torch.tensor([labels]),
                    torch.from_numpy(previous[:, None]) if masked else torch.zeros(1, 1, 16, 16),
                    torch.tensor([float(masked)]),
                    torch.tensor([granularity]),
                )
            )
            extra: dict[str, Any] = dict(given)
            own_points = extra.pop("points", None if "box" in extra else points)
            own_labels = None if own_points is None else [1] if "box" in extra else labels
            _, iou, logits = predictor.predict(own_points, own_labels, granularity=granularity, **extra)
            expected.append((logits, iou))
    torch.save(cases, tmp_path / "asked.pt")
    call = [
        sys.executable,
        "-I",
        "-c",
        ALONE,
        str(tmp_path / "pt2"),
        str(tmp_path / "asked.pt"),
        str(tmp_path / "out.pt"),
    ]
    done = subprocess.run(call, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    assert len(found) == len(expected) == 15
    for (masks, iou), (own_masks, own_iou) in zip(found, expected, strict=True):
        assert_same_sums(masks, own_masks)
        assert_same_sums(iou, own_iou)
    assert not np.allclose(expected[0][0], expected[10][0], atol=1e-3), "g is heard"
    assert not np.allclose(expected[0][0], expected[2][0], atol=1e-3), "the mask is heard"


@pytest.mark.slow
def test_what_is_heard_at_a_click_goes_along(tmp_path: Path) -> None:
    model = lively("full", Sight(click_features=True, similarity="place"))
    about = export_torch(model, tmp_path)
    assert about["sight"] == {"click_features": True, "similarity": "place"}
    assert about["largest_difference"] < 1e-4


def test_a_program_that_differs_is_an_error_and_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively("lite")
    right = {"encoder.pt2": Encoder(model), "decoder.pt2": Decoder(model)}

    def loaded(path: Path) -> Any:
        return lambda *given: tuple(value + (path.stem == "decoder") for value in right[path.name](*given))

    monkeypatch.setattr(torch_export, "_export", lambda module, arguments, path, free: path.touch())
    monkeypatch.setattr(torch_export, "_loaded", loaded)
    with pytest.raises(GrainmillError, match="the loaded program differs from torch by"):
        export_torch(model, tmp_path / "pt2")
    assert not (tmp_path / "pt2").exists()


@pytest.mark.slow
def test_the_command_exports_a_checkpoint(tmp_path: Path) -> None:
    model = lively("full")
    path = tmp_path / "micro.safetensors"
    state = {f"model.{name}": value for name, value in trained_state(model).items()}
    write_checkpoint(path, checkpoint_record(model, init="scratch"), state)
    call = [sys.executable, "-m", "pipeline", "torch-export", str(path), "--output", str(tmp_path / "pt2")]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["image_size"] == SIDE
    assert (tmp_path / "pt2" / "decoder.pt2").stat().st_size > 100_000
