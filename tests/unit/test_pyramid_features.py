"""Pyramids as backbones: timm's own answers, the input they see, scaled maps on superpixels, and what is refused.

Every network here is one of timm's small ones with drawn weights.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.environment.timm_weights import named_weights, timm_package
from pipeline.errors import InputError
from pipeline.labeling.atoms import Atoms
from pipeline.labeling.config import FeaturesConfig, MineConfig
from pipeline.labeling.miner import ImageInput, ImageMiner, load_backbone
from pipeline.labeling.on_superpixels import describe_graph
from pipeline.labeling.recipes import recipe, with_boundaries
from pipeline.labeling.regions import FeatureMaps
from pipeline.labeling.stages.backbone_features import (
    Backbone,
    Pyramid,
    load_network,
    pooled_on_superpixels,
    scaled_map,
    superpixel_features,
)
from pipeline.labeling.stages.merge_regions import merge_regions
from tests.numeric import assert_same_sums

CONFIG = FeaturesConfig()


def weights_of(name: str, folder: Path) -> Path:
    torch.manual_seed(3)
    model = timm_package().create_model(name, num_classes=2).eval()
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(0.1 * torch.rand_like(value))
    path = folder / f"{name}.pth"
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def small(folder: Path) -> Path:
    return weights_of("test_efficientnet", folder)


def picture(height: int = 48, width: int = 80) -> NDArray[np.uint8]:
    """Two halves with speckles."""
    drawn = np.random.default_rng(0).integers(0, 60, size=(height, width, 3), dtype=np.uint8)
    drawn[:, width // 2 :] += 150
    return drawn


@pytest.mark.parametrize("name", ["test_efficientnet", "test_convnext", "test_resnet", "test_mambaout"])
def test_maps_are_timms_own_of_the_enlarged_image_normalised_as_the_weights_want(name: str, folder: Path) -> None:
    path = weights_of(name, folder)
    pyramid = load_network(name, path, device="cpu")
    assert isinstance(pyramid, Pyramid)
    found = pyramid.maps(picture(), CONFIG)
    model: Any = timm_package().create_model(name, num_classes=2).eval()
    model.load_state_dict(torch.load(path, weights_only=True))
    mean, std = (torch.tensor(model.pretrained_cfg[each]) for each in ("mean", "std"))
    seen = cv2.resize(picture(), (160, 96), interpolation=cv2.INTER_CUBIC)
    with torch.no_grad():
        pixels = ((torch.from_numpy(seen) / 255 - mean) / std).permute(2, 0, 1)[None]
        stages = model.forward_intermediates(pixels, intermediates_only=True)
    assert found.strides == (4, 8, 16, 32)
    for stride, grid in zip(found.strides, found.grids, strict=True):
        assert grid.shape[:2] == (96 // stride, 160 // stride)
        [expected] = [each for each in stages if each.shape[-1] == 160 // stride]
        assert_same_sums(grid, expected[0].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "pvt_v2_b0"])
@pytest.mark.slow
def test_hierarchical_transformers_are_pyramids_for_images_of_any_size(name: str, folder: Path) -> None:
    found = load_network(name, weights_of(name, folder), device="cpu").maps(picture(), CONFIG)
    assert [each.shape[:2] for each in found.grids] == [(24, 40), (12, 20), (6, 10), (3, 5)]


def test_a_plain_transformer_has_one_grid_of_the_whole_enlarged_image(folder: Path) -> None:
    network = load_network("test_vit", weights_of("test_vit", folder), device="cpu")
    assert isinstance(network, Backbone)
    found = network.maps(picture(), CONFIG)
    assert [each.shape for each in found.grids] == [(96 // 16, 160 // 16, 64)]
    unlike = network.maps(picture(), replace(CONFIG, enlargement=1.0)).grids[0]
    assert unlike.shape == (3, 5, 64)
    features = superpixel_features(found, Atoms.of(np.arange(48 * 80).reshape(48, 80) // 1920), CONFIG)
    assert features.shape == (2, 64)


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"), [(1, 1, 32, 32), (321, 481, 640, 960), (500, 2000, 384, 1536)]
)
def test_the_input_is_twice_the_image_and_no_longer_than_the_limit(
    small: Path, height: int, width: int, rows: int, columns: int
) -> None:
    network = Pyramid("test_efficientnet", small, device="cpu")
    assert network.enlarged(np.zeros((height, width, 3), dtype=np.uint8), CONFIG).shape == (rows, columns, 3)


def test_a_scaled_map_has_no_mean_and_vectors_of_length_one_in_the_root_mean_square() -> None:
    grid = np.random.default_rng(1).normal(7.0, 3.0, size=(6, 5, 4)).astype(np.float32)
    scaled = scaled_map(grid, "centred")
    np.testing.assert_allclose(scaled.mean(axis=(0, 1)), 0.0, atol=1e-6)
    np.testing.assert_allclose(np.square(scaled).sum(axis=2).mean(), 1.0, rtol=1e-5)
    np.testing.assert_allclose(scaled_map(grid * 9 + 2, "centred"), scaled, atol=1e-5)
    assert not scaled_map(np.full((3, 3, 2), 5.0, dtype=np.float32), "centred").any()
    assert scaled_map(grid, "none") is grid


def test_superpixels_take_the_maps_that_the_configuration_names_side_by_side() -> None:
    random = np.random.default_rng(2)
    grids = tuple(random.normal(size=shape).astype(np.float32) for shape in ((12, 16, 2), (6, 8, 3), (3, 4, 5)))
    superpixels = Atoms.of(np.arange(24 * 32).reshape(24, 32) // 96)
    maps = FeatureMaps(grids, (4, 8, 16))
    found = superpixel_features(maps, superpixels, CONFIG)
    expected = [pooled_on_superpixels(scaled_map(grids[place], "centred"), superpixels) for place in (1, 2)]
    np.testing.assert_array_equal(found, np.concatenate(expected, axis=1))
    assert superpixel_features(maps, superpixels, replace(CONFIG, map_strides=(4,))).shape == (8, 2)
    with pytest.raises(InputError, match="stride 64, found maps at 4, 8, 16"):
        superpixel_features(maps, superpixels, replace(CONFIG, map_strides=(64, 8)))


def test_a_boundary_raises_the_cost_of_merging_across_it_by_its_mean() -> None:
    config = MineConfig()
    rgb = picture()
    boundary = np.random.default_rng(4).random(rgb.shape[:2], dtype=np.float32)
    described, without = describe_graph(rgb, None, None, config)
    _, graph = describe_graph(rgb, None, boundary, config)
    labels = described.superpixels.labels
    expected = {tuple(pair): 0.0 for pair in graph.pairs.tolist()}
    for y, x in np.ndindex(labels.shape):
        for down, right in ((1, 0), (0, 1)):
            if y + down < labels.shape[0] and x + right < labels.shape[1]:
                a, b = labels[y, x], labels[y + down, x + right]
                if a != b:
                    mean = 0.5 * (float(boundary[y, x]) + float(boundary[y + down, x + right]))
                    expected[min(a, b), max(a, b)] += mean
    np.testing.assert_allclose(graph.boundary_sum, list(expected.values()), rtol=1e-6)
    assert not without.boundary_sum.any()
    cost = replace(config.conquer.costs[0], boundary=3.0)
    assert (merge_regions(without, cost).cost == merge_regions(without, config.conquer.costs[0]).cost).all()
    assert merge_regions(graph, cost).cost[0] > merge_regions(without, cost).cost[0]


def test_boundaries_change_the_third_tree_where_there_are_features_and_all_alike_where_not() -> None:
    learned, default = with_boundaries(recipe("learned"), "a" * 64), with_boundaries(recipe("default"), "a" * 64)
    assert [each.boundary for each in learned.conquer.costs] == [3.0, 3.0, 12.0, 3.0]
    base, _, third, _ = learned.conquer.costs
    assert replace(third, boundary=3.0) == base
    assert [replace(each, boundary=0.0) for each in default.conquer.costs] == list(recipe("default").conquer.costs)
    assert len({each.boundary for each in default.conquer.costs}) == 1
    assert learned.features.boundaries_sha256 == "a" * 64


def test_a_miner_labels_tiny_and_grey_images_with_a_pyramid(small: Path) -> None:
    config = recipe("learned")
    config = replace(config, features=replace(config.features, backbone="timm:test_efficientnet"))
    miner = ImageMiner(config, device="cpu", checkpoint=small)
    grey = np.repeat(picture()[:, :, :1], 3, axis=2)
    images = [ImageInput(rgb=each, source_uri="a", member=None) for each in (grey, picture(1, 1), picture(3, 40))]
    found = miner.mine(images)
    assert len(found) == 3
    assert getattr(found[0], "annotations", ())
    again = miner.mine([images[0]])[0]
    assert getattr(again, "annotations", None) == found[0].annotations  # type: ignore[union-attr]


def test_patches_are_cut_of_plain_transformers_alone(small: Path) -> None:
    config = recipe("unsamv2")
    config = replace(config, features=replace(config.features, backbone="timm:test_efficientnet"))
    with pytest.raises(InputError, match="a pyramid; use --recipe leaves"):
        load_backbone(config, small, device="cpu", batch_size=None)


def test_a_pyramids_weights_must_be_its_own(small: Path) -> None:
    with pytest.raises(InputError, match="of another model"):
        load_network("test_convnext", small, device="cpu")


def test_lite0_without_its_package_says_which_extra_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--backbone lite0: .*grainmill\[lite\]"):
        named_weights("lite0")
