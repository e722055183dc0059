"""Training a boundary net: what trees teach, the command from a run to a file, going on, and data without enough."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline import cli
from pipeline.boundaries import build, training
from pipeline.boundaries.targets import border_targets, joining_nodes, pooled
from pipeline.boundaries.teacher import choose_images, teachers
from pipeline.boundaries.training import RATE, rate, recoloured
from pipeline.environment.timm_weights import timm_package
from pipeline.labeling.boundary_file import read_record
from pipeline.labeling.regions import FeatureMaps, MergeTree, RegionAdjacencyGraph
from pipeline.labeling.stages.boundary_net import Boundaries
from pipeline.storage.local import sha256_of_file

BACKBONE = "test_efficientnet"

Command = Callable[..., tuple[int, str, str]]


def textured(seed: int, height: int = 200, width: int = 232, *, grey: bool = False) -> NDArray[np.uint8]:
    """Coloured rectangles under noise: some thousand superpixels, and something to be learned."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (4, 5, 1 if grey else 3), dtype=np.uint8)
    rgb = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST).reshape(height, width, -1)
    noisy = np.clip(rgb + random.normal(0, 20, rgb.shape), 0, 255).astype(np.uint8)
    return noisy[:, :, 0] if grey else noisy


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "small.pth"
    torch.save(timm_package().create_model(BACKBONE, num_classes=2).state_dict(), path)
    return path


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """`grainmill ...`, as typed, in this process: exit code, standard output, standard error."""
    before = signal.getsignal(signal.SIGTERM)

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(arguments)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    yield run
    signal.signal(signal.SIGTERM, before)


def mined(folder: Path, images: dict[str, NDArray[np.uint8]], *flags: str) -> str:
    """A run of some images."""
    (folder / "in").mkdir(parents=True)
    for name, image in images.items():
        cv2.imwrite(str(folder / "in" / f"{name}.png"), image if image.ndim == 2 else image[:, :, ::-1])
    source = ("--input", f"{folder.name}={folder / 'in'}", "--license", f"{folder.name}=CC0-1.0")
    assert cli.main(["mine", *source, "--output", str(folder / "run"), "--executor", "inline", *flags]) == 0
    return str(folder / "run")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three images, one of them grey, and two of no use: a flat one with a spot, and a tiny one."""
    before = signal.getsignal(signal.SIGTERM)
    flat = np.full((200, 232, 3), 90, dtype=np.uint8)
    flat[60:120, 60:140] = (200, 40, 40)
    images = {
        "a": textured(0),
        "b": textured(1),
        "grey": textured(2, grey=True),
        "flat": flat,
        "tiny": textured(4, 40, 60),
    }
    found = mined(tmp_path_factory.mktemp("runs") / "drawn", images)
    signal.signal(signal.SIGTERM, before)
    return found


def trained(command: Command, run: str, weights: Path, output: Path, *flags: str) -> tuple[int, str, str]:
    backbone = ("--backbone", f"timm:{BACKBONE}@{weights}", "--device", "cpu", "--steps", "4", "--json")
    return command("boundaries", "--data", run, "--output", str(output), *backbone, "--workers", "1", *flags)


# ---------------------------------------------------------------------------------------------------------------------
# Targets


def four_in_a_row() -> tuple[NDArray[np.int32], RegionAdjacencyGraph, MergeTree]:
    """Superpixels 0 1 2 3 side by side; 0 joins 1 at cost 0.5, 2 joins 3 at 0.2, both join at 1."""
    pairs = np.array([[0, 1], [1, 2], [2, 3]])
    three = np.ones(3)
    graph = RegionAdjacencyGraph(
        area_px=np.full(4, 4.0), histograms=np.zeros((4, 0)), channels=np.zeros(0, dtype=np.int64), pairs=pairs,
        edge_sum=three, edge_texture_sum=three, boundary_sum=three, length_px=three, features=np.zeros((4, 0)),
    )  # fmt: skip
    tree = MergeTree(4, np.array([[0, 1], [2, 3], [4, 5]]), np.array([0.5, 0.2, 1.0]))
    return np.repeat(np.arange(4, dtype=np.int32), 2)[None].repeat(2, axis=0), graph, tree


def test_pairs_are_joined_at_their_lowest_common_node() -> None:
    _, graph, tree = four_in_a_row()
    assert joining_nodes(tree.parent, graph.pairs).tolist() == [4, 6, 5]


def test_targets_say_how_many_regions_were_left_and_how_dear_the_merge_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.boundaries.targets.REGIONS_LEFT", (1, 2, 3, 4, 5))
    labels, graph, tree = four_in_a_row()
    other = MergeTree(4, np.array([[1, 2], [0, 4], [5, 3]]), np.array([0.1, 0.2, 0.3]))
    found = border_targets(labels, graph, [tree, other])
    assert found.shape == (6, 2, 8)
    # Left at the merges of 0|1, 1|2, 2|3: 4, 2, 3 in one tree, 3, 4, 2 in the other. Both pixels of a side have it.
    sides = [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0.5, 1], [1, 1, 1], [1, 1, 1]]
    for row, expected in zip(found[:, 0], sides, strict=False):
        np.testing.assert_allclose(
            row, [0, expected[0], expected[0], expected[1], expected[1], expected[2], expected[2], 0]
        )
    heights = 1 - np.exp(-np.array([0.5, 1.0, 0.2]))
    np.testing.assert_allclose(found[5, 0], [0, *np.repeat(heights, 2), 0], rtol=1e-6)
    np.testing.assert_array_equal(found[:, 0], found[:, 1])


def test_of_four_pixels_the_greatest_counts() -> None:
    targets = np.zeros((6, 5, 6), dtype=np.float32)
    targets[0, 1, 1], targets[2, 3, 5] = 1.0, 0.5
    small = pooled(targets, 2, 3)
    assert (small.shape, small.dtype) == ((6, 2, 3), np.uint8)
    assert small[0, 0, 0] == 255
    assert small[2, 1, 2] in (127, 128)
    assert np.count_nonzero(small) == 2


# ---------------------------------------------------------------------------------------------------------------------
# Training


def test_the_rate_rises_and_falls_to_nothing() -> None:
    assert rate(0, 1000) < 0.02 * RATE
    assert rate(100, 1000) > 0.9 * RATE
    assert rate(999, 1000) < 1e-5 * RATE


def test_other_colours_keep_the_shape_and_the_range() -> None:
    image = np.random.default_rng(0).random((3, 8, 8)).astype(np.float32)
    changed = [recoloured(image, np.random.default_rng(seed)) for seed in range(20)]
    same = sum(np.array_equal(each, image) for each in changed)
    assert 0 < same < 10
    assert all(each.shape == image.shape and each.min() >= 0 and each.max() <= 1 for each in changed)


def test_a_run_becomes_a_net_with_its_provenance_and_a_picture(
    command: Command, run: str, weights: Path, tmp_path: Path
) -> None:
    code, out, err = trained(command, run, weights, tmp_path / "net.safetensors")
    assert code == 0, err
    result = json.loads(out)
    assert result["passed_over"] == {"shallow": 1, "small": 1}
    assert (result["trained_on"], result["held_out"]) == (2, 1)
    assert result["sources"] == [{"label": "drawn", "license": "CC0-1.0", "terms": None, "images": 5}]
    record = read_record(tmp_path / "net.safetensors")
    manifest = json.loads((Path(run) / "manifest.json").read_text())
    assert record.provenance["settings"]["data"] == [{"digest": manifest["digest"], "samples": 5}]
    assert (record.backbone, record.weights_sha256) == (f"timm:{BACKBONE}", sha256_of_file(weights))
    losses = record.provenance["losses"]
    assert [step for step, _ in losses["held_out"]][-1] == 4
    assert all(0 < each < 2 for each in (*losses["training"], *losses["held_out"][-1][1], *losses["guess"]))
    assert sum(losses["weights"]) == pytest.approx(6)
    assert cv2.imread(str(tmp_path / "net.png")).shape[0] == 3 * 164
    assert not (tmp_path / "net.safetensors.work").exists()
    grids = tuple(
        np.zeros((64 * 4 // stride, 64 * 4 // stride, depth), dtype=np.float32)
        for stride, depth in zip(record.strides, record.channels, strict=True)
    )
    net = Boundaries(tmp_path / "net.safetensors", device="cpu")
    assert net(textured(9, 128, 128), FeatureMaps(grids, record.strides)).shape == (128, 128)

    code, out, _ = trained(command, run, weights, tmp_path / "net.safetensors")
    assert code == 0
    assert not json.loads(out)["trained"]
    code, _, err = trained(command, run, weights, tmp_path / "net.safetensors", "--seed", "1")
    assert code == 2
    assert "a file is there, of another call" in err
    (tmp_path / "foreign.safetensors").write_bytes(b"not a net")
    code, _, err = trained(command, run, weights, tmp_path / "foreign.safetensors")
    assert (code, "a file is there, of another call" in err, "--boundaries" in err) == (2, True, False)
    code, _, err = trained(command, run, weights, tmp_path / "one.safetensors", "--images", "2", "--seed", "3")
    assert code == 2, err
    assert "at least two are needed" in err


def test_an_interrupted_training_goes_on_to_the_same_net(
    command: Command, run: str, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert trained(command, run, weights, tmp_path / "whole.safetensors")[0] == 0
    monkeypatch.setattr(training, "SAVED_EVERY", 1)
    batch, steps = training._batch, list[int]()

    def interrupted(*arguments: Any) -> Any:
        steps.append(arguments[2])
        if steps == [0, 1, 2]:
            raise KeyboardInterrupt
        return batch(*arguments)

    monkeypatch.setattr(training, "_batch", interrupted)
    output = tmp_path / "twice.safetensors"
    code, _, err = trained(command, run, weights, output)
    assert (code, output.exists()) == (130, False)
    assert "the same command goes on" in err
    other = trained(command, run, weights, output, "--seed", "5")
    assert other[0] == 2
    assert "holds the work of a call with other data or settings" in other[2]
    assert trained(command, run, weights, output)[0] == 0
    assert steps == [0, 1, 2, 2, 3]
    assert output.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_without_a_backbone_the_net_sees_the_image_alone_and_the_default_recipe_hears_it(
    command: Command, run: str, weights: Path, tmp_path: Path
) -> None:
    file = tmp_path / "alone.safetensors"
    code, out, err = trained(command, run, weights, file, "--backbone", "descriptor")
    assert code == 0, err
    assert (json.loads(out)["backbone"], read_record(file).channels) == ("descriptor", ())
    assert sum(each.numel() for each in Boundaries(file, device="cpu").net.parameters()) == 217_750
    found = Boundaries(file, device="cpu")(textured(9, 41, 77), None)
    assert (found.shape, found.dtype) == ((41, 77), np.float32)

    def digest(name: str, *flags: str) -> str:
        source = ("--input", f"drawn={Path(run).parent / 'in'}", "--limit", "2", "--executor", "inline", "--json")
        code, out, err = command("mine", *source, "--output", str(tmp_path / name), *flags)
        assert code == 0, err
        return str(json.loads(out)["digest"])

    heard = digest("heard", "--boundaries", str(file))
    assert heard != digest("plain")
    assert heard == digest("again", "--boundaries", str(file), "--batch-size", "2")
    config = json.loads((tmp_path / "heard" / "plan.json").read_text())["config"]
    assert config["features"]["boundaries_sha256"] == sha256_of_file(file)
    leaves = ("--recipe", "leaves", "--backbone", f"timm:{BACKBONE}@{weights}")
    code, _, err = command("mine", "--input", run, "--output", str(tmp_path / "no"), "--boundaries", str(file), *leaves)
    assert code == 2
    assert "trained without a backbone" in err


# ---------------------------------------------------------------------------------------------------------------------
# Data


def test_images_are_taken_in_turn_and_each_once(run: str, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    second = mined(tmp_path / "more", {"again": textured(0), "new": textured(7)})
    signal.signal(signal.SIGTERM, before)
    chosen = choose_images([run, second], count=100, seed=0)
    assert len(chosen.images) == 6
    assert len({each.row["source_sha256"] for each in chosen.images}) == 6
    assert [each["samples"] for each in chosen.data] == [5, 2]
    assert sum(each["images"] for each in chosen.sources) == 6
    few = choose_images([run, second], count=3, seed=0)
    assert few.images == chosen.images[:3]
    assert [each.key for each in choose_images([run], count=9, seed=1).images] != [
        each.key for each in choose_images([run], count=9, seed=0).images
    ]


@pytest.mark.parametrize(
    ("images", "flags", "expected"),
    [
        ({"a": textured(1, 60, 60)}, (), "0 of 1 images can be learned from, 1 are too small"),
        ({"a": textured(0), "b": textured(1)}, ("--no-images",), "mined with --no-images"),
    ],
)
def test_data_that_holds_too_little_is_one_message(
    command: Command,
    weights: Path,
    tmp_path: Path,
    images: dict[str, NDArray[np.uint8]],
    flags: tuple[str, ...],
    expected: str,
) -> None:
    code, _, err = trained(command, mined(tmp_path / "few", images, *flags), weights, tmp_path / "net.safetensors")
    assert code == 2
    assert expected in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--output", "net.pth"), "ends in .safetensors"),
        (("--output", "n.safetensors", "--device", "nonsense"), "not usable here"),
        (("--output", "n.safetensors", "--backbone", "nothing"), "--backbone nothing"),
    ],
)
def test_flags_that_make_no_sense_are_one_message(
    command: Command, run: str, flags: tuple[str, ...], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = command("boundaries", "--data", run, *flags)
    assert code == 2
    assert expected in err
    assert "Traceback" not in err


def test_the_teacher_is_the_learned_recipe_without_a_net(weights: Path) -> None:
    config, _ = build._teacher(f"timm:{BACKBONE}@{weights}")
    assert len(teachers(config)) == 2
    assert len(teachers(build._teacher("descriptor")[0])) == 4
    assert [cost.features for cost in config.conquer.costs[:2]] == [2.0, 4.0]
    assert not any(cost.boundary for cost in config.conquer.costs)
