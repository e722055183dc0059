"""The boundary net in use: its file, its answer, what it changes in the trees, and every file that is not one."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from pipeline.environment.timm_weights import timm_package
from pipeline.errors import InputError
from pipeline.labeling.boundary_file import METADATA, BoundaryRecord, read_record
from pipeline.labeling.config import MineConfig
from pipeline.labeling.miner import ImageInput, ImageMiner, MinedImage
from pipeline.labeling.recipes import recipe, with_boundaries
from pipeline.labeling.regions import FeatureMaps
from pipeline.labeling.stages.boundary_net import Boundaries, BoundaryNet, image_for, save_boundaries
from pipeline.library import label_image
from pipeline.mining.flags import MineFlags
from pipeline.mining.options import mine_options
from pipeline.storage.local import sha256_of_file

BACKBONE = "test_efficientnet"


def record_of(weights: Path, channels: tuple[int, ...] = (24, 32, 48, 64)) -> BoundaryRecord:
    return BoundaryRecord(
        backbone=f"timm:{BACKBONE}",
        weights_sha256=sha256_of_file(weights),
        strides=(4, 8, 16, 32),
        channels=channels,
        enlargement=2.0,
        max_input_side_px=1536,
        provenance={"data": "drawn"},
    )


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "small.pth"
    torch.save(timm_package().create_model(BACKBONE, num_classes=2).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def channels() -> tuple[int, ...]:
    model = timm_package().create_model(BACKBONE, features_only=True)
    return tuple(model.feature_info.channels()[-4:])


@pytest.fixture(scope="module")
def file(weights: Path, channels: tuple[int, ...]) -> Path:
    torch.manual_seed(1)
    path = weights.with_name("boundaries.safetensors")
    save_boundaries(path, BoundaryNet((4, 8, 16, 32), channels).eval(), record_of(weights, channels))
    return path


def picture(height: int = 60, width: int = 84) -> NDArray[np.uint8]:
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    rgb = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)
    return np.clip(rgb + random.normal(0, 6, rgb.shape), 0, 255).astype(np.uint8)


def maps_of(channels: tuple[int, ...], rows: int = 32, columns: int = 48) -> FeatureMaps:
    random = np.random.default_rng(2)
    strides = (4, 8, 16, 32)
    grids = tuple(
        random.normal(size=(rows * 4 // s, columns * 4 // s, c)).astype(np.float32)
        for s, c in zip(strides, channels, strict=True)
    )
    return FeatureMaps(grids, strides)


def test_on_lite0s_maps_it_has_as_many_parameters_as_were_measured() -> None:
    net = BoundaryNet((4, 8, 16, 32), (24, 40, 112, 320))
    assert sum(each.numel() for each in net.parameters()) == 91_366


@pytest.mark.parametrize(
    ("strides", "side"), [((4, 8, 16, 32), 64), ((16,), 64), ((8,), 64), ((14,), 70), ((4, 8), 32), ((32,), 32)]
)
def test_it_answers_at_half_the_image_whatever_maps_there_are(strides: tuple[int, ...], side: int) -> None:
    maps = FeatureMaps(
        tuple(np.ones((side // each, 2 * side // each, 5), dtype=np.float32) for each in strides), strides
    )
    seen = image_for(np.zeros((side // 2, side, 3), dtype=np.uint8), maps)
    net = BoundaryNet(strides, (5,) * len(strides)).eval()
    with torch.inference_mode():
        grids = [torch.from_numpy(each).permute(2, 0, 1)[None] for each in maps.grids]
        answer = net(grids, torch.from_numpy(seen).permute(2, 0, 1)[None] / 255.0)
    assert answer.shape == (1, 6, seen.shape[0] // 2, seen.shape[1] // 2)
    assert abs(answer.shape[2] - side / 4) < 1


def test_a_file_keeps_the_net_and_where_it_comes_from(file: Path, weights: Path, channels: tuple[int, ...]) -> None:
    assert read_record(file) == record_of(weights, channels)
    torch.manual_seed(1)
    net = BoundaryNet((4, 8, 16, 32), channels)
    for name, value in Boundaries(file, device="cpu").net.state_dict().items():
        torch.testing.assert_close(value, net.state_dict()[name], rtol=1e-3, atol=1e-4)


def test_the_answer_is_a_probability_of_each_pixel_and_mirrors_with_the_image(
    file: Path, channels: tuple[int, ...]
) -> None:
    boundaries, maps, rgb = Boundaries(file, device="cpu"), maps_of(channels), picture(64, 96)
    found = boundaries(rgb, maps)
    assert (found.shape, found.dtype) == ((64, 96), np.float32)
    assert 0.0 < found.min() < found.max() < 1.0
    mirrored = FeatureMaps(tuple(np.ascontiguousarray(each[:, ::-1]) for each in maps.grids), maps.strides)
    np.testing.assert_allclose(boundaries(np.ascontiguousarray(rgb[:, ::-1]), mirrored)[:, ::-1], found, atol=1e-5)
    assert boundaries(rgb[:41, :77], maps).shape == (41, 77)


def test_maps_of_another_network_are_refused(file: Path, channels: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="at strides"):
        Boundaries(file, device="cpu")(picture(), maps_of((*channels[:3], channels[3] + 1)))


def test_a_miner_hears_the_net_that_its_configuration_names(file: Path, weights: Path, tmp_path: Path) -> None:
    config = recipe("learned")
    config = replace(config, features=replace(config.features, backbone=f"timm:{BACKBONE}"))
    image = ImageInput(rgb=picture(), source_uri="a", member=None)

    def mined(config: MineConfig, boundaries: Path | None) -> MinedImage:
        miner = ImageMiner(config, device="cpu", checkpoint=weights, boundaries=boundaries)
        found = miner.mine([image])[0]
        assert isinstance(found, MinedImage)
        return found

    heard = with_boundaries(config, sha256_of_file(file))
    assert mined(heard, file).annotations == mined(heard, file).annotations
    assert mined(heard, file).annotations != mined(config, None).annotations
    in_memory = label_image(
        picture(), recipe="learned", backbone=f"timm:{BACKBONE}@{weights}", boundaries=str(file), device="cpu"
    )
    assert in_memory.annotations == mined(heard, file).annotations
    other = tmp_path / "other.safetensors"
    save_file({**load_file(file), "more": torch.zeros(1)}, other, metadata=read_record(file).to_metadata())
    with pytest.raises(InputError, match="not the file that the run was planned with"):
        mined(heard, other)
    with pytest.raises(InputError, match="names a boundary net, found --boundaries None"):
        mined(heard, None)
    with pytest.raises(InputError, match="names no boundary net"):
        mined(config, file)


def flags_of(folder: Path, boundaries: Path, weights: Path, **more: object) -> MineFlags:
    given = {"recipe": "learned", "backbone": f"timm:{BACKBONE}@{weights}", **more}
    return MineFlags(input=[str(folder)], output="out", boundaries=str(boundaries), **given)  # type: ignore[arg-type]


def test_the_files_sha256_is_part_of_the_configuration_and_its_place_is_not(
    file: Path, weights: Path, tmp_path: Path
) -> None:
    options = mine_options(flags_of(tmp_path, file, weights))
    assert options.config.features.boundaries_sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert options.boundaries == str(file)
    assert str(file) not in repr(options.config)
    assert [each.boundary for each in options.config.conquer.costs] == [3.0, 3.0, 12.0, 3.0]


def test_files_that_are_no_boundary_net_of_this_backbone_are_refused_in_one_message(
    file: Path, weights: Path, channels: tuple[int, ...], tmp_path: Path
) -> None:
    def refused(path: Path, match: str, **more: object) -> None:
        with pytest.raises(InputError, match=match) as caught:
            mine_options(flags_of(tmp_path, path, weights, **more))
        assert str(caught.value).startswith(f"--boundaries {path}")

    refused(tmp_path / "none.safetensors", "no such file")
    cut, pickled, foreign, newer, damaged = (tmp_path / f"{each}.safetensors" for each in "abcde")
    cut.write_bytes(file.read_bytes()[:2000])
    refused(cut, "a cut file")
    torch.save({"a": torch.zeros(1)}, pickled)
    refused(pickled, "a pickle, which is not read")
    save_file({"a": torch.zeros(1)}, foreign)
    refused(foreign, "no boundary net's")
    text = record_of(weights, channels).to_metadata()[METADATA]
    save_file({"a": torch.zeros(1)}, newer, metadata={METADATA: text.replace("boundaries/1", "boundaries/9")})
    refused(newer, "boundaries/9")
    save_file({"a": torch.zeros(1)}, damaged, metadata={METADATA: text.replace("backbone", "spine")})
    refused(damaged, "its record is damaged")
    save_file({"a": torch.zeros(1)}, damaged, metadata={METADATA: text.replace("1536", '"1536"')})
    refused(damaged, "its record is damaged .*max_input_side_px")
    refused(file, "merges no superpixels by a backbone's features", recipe="default", backbone=None)
    other = tmp_path / "other.pth"
    torch.save({each: value + 1 for each, value in torch.load(weights, weights_only=True).items()}, other)
    refused(file, "use that backbone, or train a net", backbone=f"timm:{BACKBONE}@{other}")
    save_file({"a": torch.zeros(1)}, newer, metadata={METADATA: text})
    with pytest.raises(InputError, match="not those of a boundary net"):
        Boundaries(newer, device="cpu")
