"""`benchmarks.side_by_side`: scikit-image's peers on known images, rows, and a stand-in for the authors' checkout."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from benchmarks import quality_cost, side_by_side
from model.evaluation.benchmarks.records import GroundTruth
from pipeline.format import rle

COMMAND = """
import argparse, json, os
import numpy as np
from pycocotools import mask
from PIL import Image
parser = argparse.ArgumentParser()
for name in ("--input-dir", "--output-dir", "--preprocess", "--postprocess", "--granularity"):
    parser.add_argument(name)
parser.add_argument("--opts", nargs="*")
asked = parser.parse_args()
assert asked.preprocess == asked.postprocess == "True"
assert asked.opts == ["MODEL.WEIGHTS", "here"], asked.opts
os.makedirs(os.path.join(asked.output_dir, "vis"))
for name in os.listdir(asked.input_dir):
    width, height = Image.open(os.path.join(asked.input_dir, name)).size
    found = []
    for right in (width // 4, width // 2):
        drawn = np.zeros((height, width), np.uint8, order="F")
        drawn[:, :right] = 1
        coded = mask.encode(drawn)
        coded["counts"] = coded["counts"].decode()
        found.append({"segmentation": coded, "area": int(drawn.sum())})
    with open(os.path.join(asked.output_dir, name.replace(".jpg", ".json")), "w") as file:
        json.dump({"annotations": found}, file)
"""
MERGING = """
import numpy as np
def iterative_merge(features, threshes, min_size=8, logger=None):
    assert features.ndim == 3 and min_size == 4 and list(threshes) == sorted(threshes, reverse=True)
    left = np.zeros(features.shape[:2], dtype=bool)
    left[:, : left.shape[1] // 2] = True
    return [np.stack([left, ~left]), np.stack([left])]
"""
HELPER = """
import numpy as np
from PIL import Image
def resize_mask(mask, size):
    return np.asarray(Image.fromarray(np.uint8(mask) * 255).resize(size))
def NMS(pool, threshold, step):
    assert (threshold, step) == (0.8, 5)
    return [each for number, each in enumerate(pool) if not any((each == other).all() for other in pool[:number])]
"""


def halves() -> np.ndarray:
    """Two colours, 48 x 64, with a little noise."""
    rgb = np.full((48, 64, 3), (40, 90, 160), dtype=np.uint8)
    rgb[:, 32:] = (200, 120, 50)
    return rgb + np.random.default_rng(0).integers(0, 4, rgb.shape, dtype=np.uint8)


@pytest.fixture
def bsds500(tmp_path: Path) -> Path:
    """Two photographs of two halves, each drawn by two people."""
    root = tmp_path / "bsds500"
    for folder in ("images/val", "groundTruth/val"):
        (root / folder).mkdir(parents=True)
    segments = np.ones((48, 64), dtype=np.uint16)
    segments[:, 32:] = 2
    cells = np.empty((1, 2), dtype=object)
    for person in range(2):
        cells[0, person] = {"Segmentation": segments}
    for number in (11, 12):
        Image.fromarray(halves()).save(root / f"images/val/{number}.jpg", quality=95)
        savemat(root / f"groundTruth/val/{number}.mat", {"groundTruth": cells})
    return root


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    """A stand-in for UnSAMv2's repository."""
    folder = tmp_path / "unsamv2" / side_by_side.STEPS
    folder.mkdir(parents=True)
    for name, text in (("gra_divide_conquer", COMMAND), ("iterative_merging", MERGING), ("helper", HELPER)):
        (folder / f"{name}.py").write_text(text)
    yield folder.parent
    for name in ("iterative_merging", "helper"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("masks", [side_by_side.cut_graph, side_by_side.merged_by_colour, side_by_side.merged_by_edges])
def test_scikit_image_merges_two_halves(masks: side_by_side.Callable[[side_by_side.Rgb], list[rle.Rle]]) -> None:
    rgb = halves()
    before = rgb.copy()
    left = np.zeros(rgb.shape[:2], dtype=bool)
    left[:, :32] = True
    found = [rle.decode(each) for each in masks(rgb)]
    assert max((each & left).sum() / (each | left).sum() for each in found) > 0.9
    assert [each.sum() for each in found] == sorted((each.sum() for each in found), reverse=True)
    assert (rgb == before).all()


def test_rows_are_kept_and_a_method_that_dies_says_why(
    bsds500: Path, checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    asked = ["--bsds500", str(bsds500), "--output", str(output), "--method", "people", "--method", "slic"]
    asked += ["--method", "default", "--method", "unsamv2", "--unsamv2", str(checkout)]
    assert side_by_side.main(asked) == 1  # the stand-in misses its flags
    died = json.loads((output / "side_by_side.json").read_text())["methods"][-1]
    assert "AssertionError" in died["died"]
    kept = {path.name: path.stat().st_mtime_ns for path in (output / "rows").glob("1?.*.json")}
    assert side_by_side.main([*asked, "--unsamv2-flags", "--opts MODEL.WEIGHTS here"]) == 0
    table = capsys.readouterr().out
    methods = {each["method"]: each for each in json.loads((output / "side_by_side.json").read_text())["methods"]}
    assert methods["people"]["AR1000"]["value"] == pytest.approx(1.0)
    assert "cpu_s" not in methods["people"]
    assert methods["default"]["cpu_s"]["median"] > 0
    assert methods["default"]["AR1000"]["value"] > 0.8
    # Largest first, the left half is the one that two people drew: one of two segments is found.
    assert methods["unsamv2"]["AR1000"]["value"] == pytest.approx(0.5)
    assert methods["unsamv2"]["masks_per_image"] == 2
    assert methods["unsamv2"]["cpu_s"]["median"] > 0
    assert all(methods[name]["images"] == 2 for name in methods)
    assert "UnSAMv2's steps as published" in table
    assert (output / "side_by_side.png").stat().st_size > 0
    for name in ("11.default.json", "12.people.json"):
        assert (output / "rows" / name).stat().st_mtime_ns == kept[name]


def test_a_checkout_without_the_steps_is_named(tmp_path: Path) -> None:
    setting = side_by_side.Setting(
        bsds500=tmp_path, output=tmp_path, boundaries=None, unsamv2=tmp_path, python="", flags="", limit_s=1.0
    )
    with pytest.raises(side_by_side.InputError, match=r"iterative_merging\.py; expected a checkout"):
        side_by_side.of_checkout(setting, "iterative_merging")


def test_a_method_wants_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--bsds500", str(tmp_path), "--output", str(tmp_path / "out"), "--method", "learned-net"]
    with pytest.raises(SystemExit):
        side_by_side.main(asked)
    assert "--method learned-net needs --boundaries" in capsys.readouterr().err


def test_the_authors_merging_is_fed_maps_and_its_masks_are_of_the_photographs_size(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Maps:
        strides = (8, 16)
        grids = (np.zeros((12, 16, 3), np.float32), np.zeros((6, 8, 3), np.float32))

    class Network:
        def __init__(self, *_: object, **__: object) -> None: ...

        def maps(self, *_: object) -> Maps:
            return Maps()

    monkeypatch.setattr(side_by_side, "Pyramid", Network)
    monkeypatch.setattr(side_by_side, "named_weights", lambda name: (name, tmp_path))
    setting = side_by_side.Setting(
        bsds500=tmp_path, output=tmp_path, boundaries=None, unsamv2=checkout, python="", flags="", limit_s=1.0
    )
    truth = GroundTruth(height=48, width=64, objects=())
    image = side_by_side.EvalImage(name="a", path=tmp_path / "a.jpg", load=lambda: truth)
    found = side_by_side.unsamv2_merging(setting)(image, halves()).rles
    assert [tuple(each["size"]) for each in found] == [(48, 64), (48, 64)]
    assert [int(rle.decode(each).sum()) for each in found] == [48 * 32, 48 * 32]


def test_parts_of_recipes_are_compared_with_the_first_row(
    bsds500: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    asked = ["--bsds500", str(bsds500), "--output", str(output), "--boundaries", "none.safetensors"]
    for name in ("default", "default-flat", "people", "slic"):
        asked += ["--method", name]
    assert quality_cost.main(asked) == 0
    methods = {each["method"]: each for each in json.loads((output / "quality_cost.json").read_text())["methods"]}
    assert methods["people"]["recall_1000"]["value"] == pytest.approx(1.0)
    assert methods["people"]["recall_1000"]["minus_first"][0] == pytest.approx(
        1.0 - methods["default"]["recall_1000"]["value"]
    )
    assert "minus_first" not in methods["default"]["recall_1000"]
    assert methods["default"]["instance_recall"]["value"] > 0.4
    assert "instance_recall" not in methods["slic"]
    assert methods["default-flat"]["cpu_s"]["median"] > 0
    assert "cpu_s" not in methods["people"]
    assert "Minus `default`, paired:" in capsys.readouterr().out
    assert (output / "quality_cost.png").stat().st_size > 0
    assert quality_cost.main([*asked, "--method", "learned-net"]) == 1  # no such file, and the row says so
