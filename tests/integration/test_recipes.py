"""Every recipe and stage option on the command itself, from start to a verified shard, with a tiny backbone."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from pipeline import cli
from pipeline.dataset.open import open_dataset
from pipeline.environment.torch_compat import ensure_torchvision
from pipeline.format import rle
from pipeline.labeling.boundary_file import BoundaryRecord
from pipeline.labeling.stages.boundary_net import BoundaryNet, save_boundaries

NAME = "test_vit"
"""timm's smallest transformer: six blocks of 64 dimensions."""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run_here(capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """`grainmill mine`, as typed, in this process; loading torch for every command would take most of the time."""
    before = signal.getsignal(signal.SIGTERM)

    def run(source: Path, output: Path, *flags: str) -> subprocess.CompletedProcess[str]:
        arguments = ["mine", "--input", f"in={source}", "--output", str(output), "--samples-per-shard", "2", "--json"]
        capsys.readouterr()
        code = cli.main([*arguments, "--executor", "inline", *flags])
        printed = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, printed.out, printed.err)

    yield run
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that were never trained: good for nothing but showing that the way is open."""
    ensure_torchvision()
    import timm

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    safetensors.torch.save_file(timm.create_model(NAME, num_classes=0).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def two_photographs(small_photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    for name in ("p00.jpg", "p01.png"):
        (folder / name).write_bytes((small_photographs / name).read_bytes())
    return folder


def mined(done: subprocess.CompletedProcess[str], output: Path) -> list[dict[str, Any]]:
    """The samples of a finished run."""
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["samples"] == 2
    samples = []
    for shard in sorted((output / "shards").glob("*.tar")):
        with tarfile.open(shard) as tar:
            samples += [json.load(tar.extractfile(each)) for each in tar if each.name.endswith(".json")]  # type: ignore[arg-type]
    return samples


def origins(samples: list[dict[str, Any]]) -> set[str]:
    return {each["origin"] for sample in samples for each in sample["annotations"]}


def plan(output: Path) -> dict[str, Any]:
    found = json.loads((output / "plan.json").read_text())
    assert isinstance(found, dict)
    return found["config"]


@pytest.mark.slow
def test_unsamv2_cuts_and_merges_features_of_a_backbone(
    run_mine: Run, two_photographs: Path, checkpoint: Path, tmp_path: Path
) -> None:
    flags = ("--recipe", "unsamv2", "--backbone", f"timm:{NAME}@{checkpoint}")
    samples = mined(run_mine(two_photographs, tmp_path / "out", "--executor", "local", *flags), tmp_path / "out")
    assert origins(samples) <= {"divide", "conquer"}
    assert "divide" in origins(samples)
    for sample in samples:
        pixels = sample["image"]["width"] * sample["image"]["height"]
        assert all(each["area"] > 0.05 * pixels for each in sample["annotations"] if each["parent_id"] is None)
    config = plan(tmp_path / "out")
    assert config["features"]["weights_sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert config["features"]["backbone"] == f"timm:{NAME}"  # where the file lay is no part of it
    assert str(checkpoint) not in (tmp_path / "out" / "plan.json").read_text()


def test_leaves_merge_with_features_of_a_backbone(
    run_here: Run, two_photographs: Path, checkpoint: Path, tmp_path: Path
) -> None:
    flags = ("--recipe", "leaves", "--backbone", f"timm:{NAME}@{checkpoint}")
    with_features = run_here(two_photographs, tmp_path / "leaves", *flags)
    mined(with_features, tmp_path / "leaves")
    without = run_here(two_photographs, tmp_path / "default")
    assert json.loads(with_features.stdout)["digest"] != json.loads(without.stdout)["digest"]
    again = run_here(two_photographs, tmp_path / "again", *flags, "--batch-size", "2")
    assert json.loads(again.stdout)["digest"] == json.loads(with_features.stdout)["digest"]


@pytest.mark.slow
def test_learned_has_one_digest_whatever_mined_it(
    run_here: Run, run_mine: Run, two_photographs: Path, tmp_path: Path
) -> None:
    """A pyramid, a boundary net on its maps, the flat cut and the ranking: inline, and by two processes."""
    ensure_torchvision()
    import timm

    torch.manual_seed(0)
    weights, net = tmp_path / "pyramid.pth", tmp_path / "boundaries.safetensors"
    torch.save(timm.create_model("test_efficientnet", num_classes=2).state_dict(), weights)
    channels = tuple(timm.create_model("test_efficientnet", features_only=True).feature_info.channels()[-4:])
    record = BoundaryRecord(
        backbone="timm:test_efficientnet",
        weights_sha256=hashlib.sha256(weights.read_bytes()).hexdigest(),
        strides=(4, 8, 16, 32),
        channels=channels,
        enlargement=2.0,
        max_input_side_px=1536,
    )
    save_boundaries(net, BoundaryNet(record.strides, channels).eval(), record)
    flags = ("--recipe", "learned", "--backbone", f"timm:test_efficientnet@{weights}")
    heard = (*flags, "--boundaries", str(net))
    here = run_here(two_photographs, tmp_path / "here", *heard)
    mined(here, tmp_path / "here")
    there = run_mine(
        two_photographs, tmp_path / "there", "--executor", "local", "--workers", "2", *heard, "--samples-per-shard", "2"
    )
    assert json.loads(there.stdout)["digest"] == json.loads(here.stdout)["digest"]
    assert "without --boundaries" not in here.stderr
    features = plan(tmp_path / "here")["features"]
    assert features["boundaries_sha256"] == hashlib.sha256(net.read_bytes()).hexdigest()
    deaf = run_here(two_photographs, tmp_path / "deaf", *flags)
    assert "--recipe learned without --boundaries FILE" in deaf.stderr
    assert json.loads(deaf.stdout)["digest"] != json.loads(here.stdout)["digest"]
    again = run_here(two_photographs, tmp_path / "here", *flags)
    assert again.returncode == 3
    assert "boundaries_sha256" in again.stderr


def test_another_checkpoint_is_another_configuration(
    run_here: Run, two_photographs: Path, checkpoint: Path, tmp_path: Path
) -> None:
    flags = ("--recipe", "leaves")
    done = run_here(two_photographs, tmp_path / "out", *flags, "--backbone", f"timm:{NAME}@{checkpoint}")
    mined(done, tmp_path / "out")
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(checkpoint.read_bytes())
    again = run_here(two_photographs, tmp_path / "out", *flags, "--backbone", f"timm:{NAME}@{moved}")
    assert again.returncode == 0, again.stderr
    weights = safetensors.torch.load_file(checkpoint)
    weights["norm.bias"] += 1
    safetensors.torch.save_file(weights, moved)
    other = run_here(two_photographs, tmp_path / "out", *flags, "--backbone", f"timm:{NAME}@{moved}")
    assert other.returncode == 3
    assert "weights_sha256" in other.stderr


def test_a_missing_checkpoint_is_one_clear_error(
    run_here: Run, two_photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    done = run_here(two_photographs, tmp_path / "out", "--recipe", "unsamv2")
    assert done.returncode == 2
    assert "model.safetensors of https://huggingface.co/timm/vit_base_patch8_224.dino" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def with_annotations(two_photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of SA-1B samples, and a file of proposals for the same two photographs."""
    folder = tmp_path_factory.mktemp("sa1b")
    records: dict[str, Any] = {"images": [], "annotations": []}
    for number, name in enumerate(("p00.jpg", "p01.png"), start=1):
        image = cv2.imread(str(two_photographs / name))
        assert image is not None
        height, width = image.shape[:2]
        cv2.imwrite(str(folder / f"sa_{number}.jpg"), image)
        left, right = np.zeros((2, height, width), dtype=np.bool_)
        left[5:45, 4:34] = True
        right[10:50, 40:68] = True
        (folder / f"sa_{number}.json").write_text(
            json.dumps({"image": {"image_id": number}, "annotations": [{"segmentation": rle.encode(left)}]})
        )
        records["images"].append({"id": number, "file_name": f"sa_{number}.jpg", "height": height, "width": width})
        records["annotations"].append({"image_id": number, "segmentation": rle.encode(right), "score": 0.8})
    file = folder.parent / f"{folder.name}-proposals.json"
    file.write_text(json.dumps(records))
    return folder, file


@pytest.mark.parametrize("recipe", [(), ("--recipe", "unsamv2", "--backbone", "descriptor")])
@pytest.mark.parametrize("divide", ["proposals", "union"])
def test_proposals_and_union_name_the_wholes(
    run_here: Run, with_annotations: tuple[Path, Path], tmp_path: Path, recipe: tuple[str, ...], divide: str
) -> None:
    folder, proposals = with_annotations
    flags = (*recipe, "--divide", divide, "--proposals", str(proposals), "--refine", "none")
    samples = mined(run_here(folder, tmp_path / "out", *flags), tmp_path / "out")
    expected = {"proposal": [40, 10, 28, 40]} | ({"annotation": [4, 5, 30, 40]} if divide == "union" else {})
    for sample in samples:
        wholes = {each["origin"]: each for each in sample["annotations"] if each["parent_id"] is None}
        for origin, bbox in expected.items():
            assert wholes[origin]["bbox"] == bbox
            assert wholes[origin]["area"] == bbox[2] * bbox[3]
            assert wholes[origin]["granularity"] == 1.0
        assert wholes["proposal"]["score"] == 0.8
        assert "divide" not in wholes
        assert recipe == () or set(wholes) == set(expected)


def test_union_without_a_file_adds_annotations_to_what_is_cut(
    run_here: Run, with_annotations: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, _ = with_annotations
    samples = mined(run_here(folder, tmp_path / "out", "--divide", "union"), tmp_path / "out")
    assert {"annotation", "divide"} <= origins(samples)


@pytest.mark.slow
def test_refinement_and_granularity_change_what_they_should(
    run_here: Run, with_annotations: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, _ = with_annotations
    flags = ("--recipe", "unsamv2", "--backbone", "descriptor")
    found = {}
    for name, more in (
        ("guided", ()),
        ("none", ("--refine", "none")),
        ("relative", ("--refine", "none", "--granularity", "instance-relative")),
    ):
        found[name] = mined(run_here(folder, tmp_path / name, *flags, *more), tmp_path / name)

    def masks(samples: list[dict[str, Any]]) -> list[Any]:
        return [each["segmentation"] for sample in samples for each in sample["annotations"]]

    assert masks(found["guided"]) != masks(found["none"])
    assert masks(found["none"]) == masks(found["relative"])
    for sample in found["relative"]:
        area = {each["id"]: each["area"] for each in sample["annotations"]}
        for each in sample["annotations"]:
            expected = 0.1 + 0.9 * (each["area"] / area[each["instance_id"]]) ** 0.5
            assert each["granularity"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--divide", "proposals"), "needs --proposals FILE"),
        (("--proposals", "FILE"), "goes with --divide proposals or --divide union"),
        (("--divide", "proposals", "--proposals", "absent.json"), "cannot be read"),
        (("--divide", "union", "--proposals", "BROKEN"), "a list `images`, found nothing"),
        (("--recipe", "leaves", "--backbone", "resnet50"), "timm:NAME"),
        (("--backbone", f"timm:{NAME}@FILE"), "--recipe default needs no weights"),
        (("--recipe", "leaves", "--backbone", "descriptor"), "use --recipe default"),
        (("--recipe", "leaves", "--backbone", f"timm:{NAME}@absent.pth"), "no such file"),
    ],
)
def test_flags_that_do_not_go_together(
    run_here: Run, with_annotations: tuple[Path, Path], tmp_path: Path, flags: tuple[str, ...], message: str
) -> None:
    folder, proposals = with_annotations
    (tmp_path / "broken.json").write_text('{"annotations": []}')
    named = {"FILE": str(proposals), "BROKEN": str(tmp_path / "broken.json")}
    done = run_here(folder, tmp_path / "out", *(named.get(each, each) for each in flags))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_masks_of_shards_join_a_union_whatever_the_orientation(tmp_path: Path, run_here: Run) -> None:
    """Our own masks lie on the upright image, so an orientation does not make them wrong, as it does SA-1B's."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    image = Image.new("RGB", (96, 64), (200, 60, 40))
    image.paste((30, 120, 200), (8, 8, 40, 50))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(folder / "turned.jpg", exif=exif, quality=95)
    samples = []
    for name, source, flags in (("first", folder, ()), ("second", tmp_path / "first", ("--divide", "union"))):
        done = run_here(source, tmp_path / name, *flags)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["failures"] == 0
        run = open_dataset(tmp_path / name)
        samples += [run.read_sample(row) for unit in run.units() for row in run.samples(unit).to_pylist()]
    before, after = samples
    assert (after.width, after.height, after.exif_orientation) == (64, 96, 6)
    kept = {each.segmentation["counts"] for each in after.annotations if each.origin == "annotation"}
    assert {each.segmentation["counts"] for each in before.annotations if each.is_instance} <= kept
