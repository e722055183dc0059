"""Kept features: what is read is what was computed, and a file that is not what it should be is never believed."""

from __future__ import annotations

import dataclasses
import os
import resource
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model.network.granular import GranularSam2, ImageFeatures
from model.network.pixels import normalised_batch
from model.network.sam2_base import DEFAULT_IMAGE_SIZE
from model.training.feature_cache import (
    RESERVE_BYTES,
    STALE_S,
    FeatureCache,
    FeatureIdentity,
    decoder_width,
    feature_bytes,
    feature_specs,
    pixels_sha256,
)
from pipeline.errors import InputError
from tests.numeric import assert_same_sums

SIDE = 64
IDENTITY = FeatureIdentity(base_sha256="ab" * 32, size="micro", image_size=SIDE, precision="fp32", device="cpu")
CPU = torch.device("cpu")

Images = Sequence[NDArray[np.uint8]]


@pytest.fixture(scope="module")
def model() -> GranularSam2:
    torch.manual_seed(3)
    return GranularSam2("micro", "paper", SIDE).eval()


def photographs(count: int) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for _ in range(count)]


class Encoder:
    """The real encoder; counts the photographs that it is asked for."""

    def __init__(self, model: GranularSam2) -> None:
        self.model, self.images = model, 0

    @torch.no_grad()
    def __call__(self, images: Images) -> ImageFeatures:
        self.images += len(images)
        return self.model.encode(normalised_batch(images, CPU))


def never(images: Images) -> ImageFeatures:
    raise AssertionError("the encoder was called")


def open_cache(folder: Path, **changes: Any) -> FeatureCache:
    return FeatureCache(
        str(folder), dataclasses.replace(IDENTITY, **changes), feature_specs(64, SIDE, changes.get("precision", "fp32"))
    )


def levels(features: ImageFeatures) -> list[torch.Tensor]:
    return [*features.high_res, features.embedding_BCHW]


def assert_equal(one: ImageFeatures, other: ImageFeatures) -> None:
    for ours, theirs in zip(levels(one), levels(other), strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


@pytest.fixture
def filled(model: GranularSam2, tmp_path: Path) -> tuple[Path, Images, ImageFeatures]:
    """A cache with the features of two photographs."""
    images = photographs(2)
    computed = open_cache(tmp_path).features(images, Encoder(model), CPU)
    return tmp_path, images, computed


def test_what_is_read_is_what_was_computed(model: GranularSam2, filled: tuple[Path, Images, ImageFeatures]) -> None:
    folder, images, computed = filled
    again = open_cache(folder)
    assert_equal(again.features(images, never, CPU), computed)
    assert again.counts() == (2, 0, 0)
    assert again.stored() == 2
    assert_equal(computed, Encoder(model)(images))


def test_only_what_is_missing_is_computed_and_rows_keep_their_order(
    model: GranularSam2, filled: tuple[Path, Images, ImageFeatures]
) -> None:
    folder = filled[0]
    more = photographs(4)
    asked = [more[3], more[1], more[2], more[0]]  # the first two lie there
    cache, encoder = open_cache(folder), Encoder(model)
    found = cache.features(asked, encoder, CPU)
    assert encoder.images == 2
    assert cache.counts() == (2, 2, 0)
    for row, image in enumerate(asked):
        alone = Encoder(model)([image])
        for ours, theirs in zip(levels(found), levels(alone), strict=True):
            assert_same_sums(ours[row], theirs[0])


def test_half_precision_keeps_the_types_that_the_encoder_gives(model: GranularSam2, tmp_path: Path) -> None:
    def encode(images: Images) -> ImageFeatures:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return Encoder(model)(images)

    computed = open_cache(tmp_path, precision="bf16").features(photographs(1), encode, CPU)
    again = open_cache(tmp_path, precision="bf16")
    assert_equal(again.features(photographs(1), never, CPU), computed)
    assert computed.high_res[0].dtype == torch.bfloat16
    assert open_cache(tmp_path).stored() == 0  # float32 lies elsewhere


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"not safetensors at all",
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: data[:-4096] + bytes(4096),
        lambda data: data + b"\0",
    ],
    ids=["cut", "empty", "foreign", "one bit", "zeros at its end", "longer"],
)
def test_a_damaged_file_is_computed_again_counted_and_replaced(
    model: GranularSam2,
    filled: tuple[Path, Images, ImageFeatures],
    damage: Callable[[bytes], bytes],
) -> None:
    folder, images, computed = filled
    cache, encoder = open_cache(folder), Encoder(model)
    path = cache.path(pixels_sha256(images[0]))
    path.write_bytes(damage(path.read_bytes()))
    found = cache.features(images[:1], encoder, CPU)
    assert encoder.images == 1
    assert cache.counts() == (0, 1, 1)
    assert_same_sums(found.embedding_BCHW[0], computed.embedding_BCHW[0])
    assert open_cache(folder).features(images[:1], never, CPU).embedding_BCHW.shape[0] == 1  # whole again


def test_a_file_of_another_photograph_or_base_is_not_believed(
    model: GranularSam2, filled: tuple[Path, Images, ImageFeatures]
) -> None:
    folder, images, _ = filled
    cache, encoder = open_cache(folder), Encoder(model)
    one, other = (cache.path(pixels_sha256(image)) for image in images)
    shutil.copy(one, other)  # under a name that is not its own
    cache.features(images, encoder, CPU)
    assert (encoder.images, cache.refused) == (1, 1)
    elsewhere = open_cache(folder, base_sha256="cd" * 32)
    moved = elsewhere.path(pixels_sha256(images[0]))
    moved.parent.mkdir()
    shutil.copy(one, moved)  # into another base's folder
    elsewhere.features(images[:1], encoder, CPU)
    assert (encoder.images, elsewhere.refused) == (2, 1)


@pytest.mark.parametrize(
    "change",
    [{"base_sha256": "cd" * 32}, {"size": "tiny"}, {"image_size": 128}, {"precision": "bf16"}, {"device": "cuda"}],
)
def test_other_weights_sizes_and_precisions_lie_apart(
    filled: tuple[Path, Images, ImageFeatures], change: dict[str, Any]
) -> None:
    folder, images, _ = filled
    assert not open_cache(folder, **change).path(pixels_sha256(images[0])).exists()


def test_one_pixel_makes_another_photograph() -> None:
    image = photographs(1)[0]
    other = image.copy()
    other[5, 5, 1] ^= 1
    assert pixels_sha256(image) != pixels_sha256(other)
    assert pixels_sha256(image) != pixels_sha256(image.reshape(SIDE // 2, SIDE * 2, 3))
    assert pixels_sha256(image[:, ::-1]) == pixels_sha256(np.ascontiguousarray(image[:, ::-1]))


def test_a_write_that_dies_leaves_no_file_that_is_read(
    model: GranularSam2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    cache = open_cache(tmp_path)
    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        cache.features(photographs(1), Encoder(model), CPU)
    monkeypatch.undo()
    [left] = cache.folder.glob("tmp/*.tmp")
    next_one, encoder = open_cache(tmp_path), Encoder(model)
    assert left.exists()  # a moment old: it may belong to a process that lives
    next_one.features(photographs(1), encoder, CPU)
    assert encoder.images == 1
    long_ago = left.stat().st_mtime - 2 * STALE_S
    os.utime(left, (long_ago, long_ago))
    open_cache(tmp_path)
    assert not left.exists()


def test_a_disk_without_room_ends_the_writing_and_says_so_once(
    model: GranularSam2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = photographs(3)
    open_cache(tmp_path).features(images[:1], Encoder(model), CPU)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=RESERVE_BYTES + 1000))
    cache, encoder = open_cache(tmp_path), Encoder(model)
    for image in images:
        cache.features([image], encoder, CPU)
    assert cache.counts() == (1, 2, 0)  # what lies there is still read
    assert cache.stored() == 1
    assert capsys.readouterr().err.count("could not be written (1.0 GiB are free, and 1.0 are left to others)") == 1


def test_a_write_that_the_system_refuses_leaves_nothing(
    model: GranularSam2, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The limit on a file's size is the system's own; it makes the same write fail that a full disk would."""
    cache, limit = open_cache(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        found = cache.features(photographs(1), Encoder(model), CPU)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert found.embedding_BCHW.shape == (1, 64, 4, 4)
    assert not [path for path in cache.folder.rglob("*") if path.is_file()]
    assert "training goes on" in capsys.readouterr().err


def test_a_url_and_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a folder on a local disk, found a URL"):
        FeatureCache("s3://bucket/cache", IDENTITY, {})
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="expected a folder, or a place to make one"):
        FeatureCache(str(tmp_path / "file"), IDENTITY, {})


@pytest.mark.parametrize(("size", "side"), [("micro", 256), ("tiny", 64), ("base_plus", 64)])
def test_the_stated_size_is_the_encoders(size: Any, side: int) -> None:
    model = GranularSam2(size, "paper", side).eval()
    image = np.zeros((side, side, 3), np.uint8)
    for precision in ("fp32", "bf16"):
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            found = levels(model.encode(normalised_batch([image], CPU)))
        width = decoder_width(model)
        assert sum(each.nbytes for each in found) == feature_bytes(width, side, precision)
        specs = feature_specs(width, side, precision).values()
        assert [(tuple(each.shape[1:]), each.dtype) for each in found] == list(specs)


def test_the_help_states_what_a_photograph_takes() -> None:
    official = {precision: feature_bytes(256, DEFAULT_IMAGE_SIZE["small"], precision) for precision in ("fp32", "bf16")}
    assert official == {"fp32": 16 * 2**20, "bf16": 10 * 2**20}
    assert feature_bytes(256, 512, "bf16") == 2.5 * 2**20
    assert feature_bytes(256, 256, "bf16") == 0.625 * 2**20
    assert feature_bytes(64, 256, "fp32") == feature_bytes(256, 256, "fp32") // 4
