"""Images mined on patch grids (recipe `unsamv2`), with the descriptor's patches: what is found on drawn and real ones,
and that the reference's defects are absent. Masks from outside, on patches and superpixels."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.gpu import drawn_backbone
from pipeline.errors import SampleFailureError
from pipeline.format import rle
from pipeline.format.granularity import granularity_of
from pipeline.format.schema import Annotation
from pipeline.labeling import miner as miner_module
from pipeline.labeling.atoms import Atoms
from pipeline.labeling.config import MineConfig
from pipeline.labeling.given import GivenMask, join_given
from pipeline.labeling.hierarchy import Candidates
from pipeline.labeling.miner import ImageInput, ImageMiner, MinedImage
from pipeline.labeling.recipes import recipe
from pipeline.sources.proposals import Proposals
from tests.annotations import check_annotations


def unsamv2() -> MineConfig:
    """The recipe on smaller grids than its own, for speed: 40 x 40 patches, crops of 32."""
    config = recipe("unsamv2")
    return replace(config, features=replace(config.features, backbone="descriptor", side_px=320, crop_patches=32))


@pytest.fixture(scope="module")
def miner() -> ImageMiner:
    return ImageMiner(unsamv2())


def mine(miner: ImageMiner, rgb: NDArray[np.uint8], annotations: tuple[rle.Rle, ...] = ()) -> tuple[Annotation, ...]:
    answer = miner.mine([ImageInput(rgb=rgb, source_uri="in/a.png", member=None, annotations=annotations)])[0]
    assert isinstance(answer, MinedImage), answer
    check_annotations(answer.annotations, *rgb.shape[:2])
    assert {"features", "divide", "conquer", "granularity"} <= set(answer.seconds)
    return answer.annotations


def scene(*boxes: tuple[int, int, int, int], height: int = 160, width: int = 200) -> NDArray[np.uint8]:
    """Two-coloured boxes (left half, right half) on a green ground, with noise."""
    image = np.empty((height, width, 3), dtype=np.float32)
    image[:] = (60, 130, 60)
    for top, left, high, wide in boxes:
        image[top : top + high, left : left + wide] = (200, 60, 50)
        image[top : top + high, left + wide // 2 : left + wide] = (70, 60, 200)
    noise = np.random.default_rng(0).normal(0, 5, image.shape)
    return (image + noise).clip(0, 255).astype(np.uint8)


def box_mask(top: int, left: int, high: int, wide: int, shape: tuple[int, int] = (160, 200)) -> NDArray[np.bool_]:
    mask = np.zeros(shape, dtype=np.bool_)
    mask[top : top + high, left : left + wide] = True
    return mask


def iou(annotation: Annotation, mask: NDArray[np.bool_]) -> float:
    found = rle.decode(annotation.segmentation)
    return float((found & mask).sum() / (found | mask).sum())


def test_warming_up_reaches_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is compiled at its first call is compiled before the first image, whatever a backbone says of noise."""
    checkpoint = drawn_backbone("test_vit", tmp_path)
    config = unsamv2()
    miner = ImageMiner(
        replace(config, features=replace(config.features, backbone=f"timm:test_vit@{checkpoint}")), device="cpu"
    )
    built = []
    real = miner_module.build_hierarchy
    monkeypatch.setattr(miner_module, "build_hierarchy", lambda *given, **named: built.append(real(*given, **named)))
    with contextlib.suppress(SampleFailureError):
        miner.warm_up()
    assert any(each.origin == "conquer" for each in built[0])


def test_an_object_is_a_whole_and_its_halves_are_parts(miner: ImageMiner) -> None:
    found = mine(miner, scene((40, 50, 80, 90)))
    whole = max((each for each in found if each.is_instance), key=lambda each: iou(each, box_mask(40, 50, 80, 90)))
    assert iou(whole, box_mask(40, 50, 80, 90)) > 0.75
    family = [each for each in found if each.instance_id == whole.id and not each.is_instance]
    for half in (box_mask(40, 50, 80, 45), box_mask(40, 95, 80, 45)):
        best = max(family, key=lambda each: iou(each, half))
        assert iou(best, half) > 0.75
        assert best.origin == "conquer"
        assert best.level is not None
        assert best.granularity < 1.0


def test_instances_are_above_a_twentieth_of_the_image_and_nothing_is_outside_of_them(miner: ImageMiner) -> None:
    found = mine(miner, scene((40, 50, 80, 90), (130, 10, 10, 10)))
    assert all(each.area > 0.05 * 160 * 200 for each in found if each.is_instance)
    assert {each.origin for each in found} <= {"divide", "conquer"}


def test_off_by_one_masks_reach_the_last_row_and_column(miner: ImageMiner) -> None:
    """With the box's maximum as an exclusive bound, the last row and column were in no part."""
    corner = box_mask(80, 110, 80, 90)
    found = mine(miner, scene((80, 110, 80, 90)))
    whole = max((each for each in found if each.is_instance), key=lambda each: iou(each, corner))
    parts = [each for each in found if each.instance_id == whole.id and not each.is_instance]
    for annotation in (whole, max(parts, key=lambda each: iou(each, box_mask(80, 155, 80, 45)))):
        x, y, w, h = annotation.bbox
        assert (x + w, y + h) == (200, 160)


def test_parts_outgrowing_instances_is_impossible_after_refinement(miner: ImageMiner, photographs: Path) -> None:
    """A refined part took g = 1.0 and left the instance less. (`mine` has validated that parts lie inside.)"""
    bgr = cv2.imread(str(photographs / "coffee.png"))
    assert bgr is not None
    small = cv2.resize(bgr[:, :, ::-1], (300, 200), interpolation=cv2.INTER_AREA).astype(np.uint8)
    found = mine(miner, small)
    area = {each.id: each.area for each in found}
    parts = [each for each in found if not each.is_instance]
    assert len(parts) > 5
    assert all(each.area < area[each.instance_id] and each.granularity < 1.0 for each in parts)
    assert all(each.granularity == 1.0 for each in found if each.is_instance)


def test_minmax_is_stretched_by_noise_and_relative_is_not() -> None:
    """One tiny mask moves the granularity of all others of its instance; the relative formula is ours."""
    areas = np.array([10_000, 4_000, 1_000], dtype=np.int64)
    with_speck = np.append(areas, 9)
    assert abs(granularity_of(areas, "instance-minmax") - granularity_of(with_speck, "instance-minmax")[:3]).max() > 0.2
    relative = granularity_of(areas, "instance-relative")
    assert np.array_equal(relative, granularity_of(with_speck, "instance-relative")[:3])


def test_the_same_image_gives_the_same_masks_whatever_came_along(miner: ImageMiner) -> None:
    first, second = scene((40, 50, 80, 90)), scene((20, 20, 60, 70))
    alone = mine(miner, first)
    together = miner.mine([ImageInput(rgb=each, source_uri="in/b.png", member=None) for each in (second, first)])
    assert isinstance(together[1], MinedImage)
    assert together[1].annotations == alone


def test_a_large_image_is_mined_small_and_has_full_size_masks() -> None:
    config = unsamv2()
    small = ImageMiner(replace(config, features=replace(config.features, max_side_px=128)))
    found = mine(small, scene((80, 100, 160, 180), height=320, width=400))
    truth = box_mask(80, 100, 160, 180, (320, 400))
    assert all(each.segmentation["size"] == [320, 400] for each in found)
    assert max(iou(each, truth) for each in found if each.is_instance) > 0.7


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 3), (17, 5)])
def test_tiny_and_flat_images_are_mined_or_say_that_there_is_nothing(miner: ImageMiner, shape: tuple[int, int]) -> None:
    for rgb in (
        np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8),
        np.full((*shape, 3), 9, np.uint8),
    ):
        answer = miner.mine([ImageInput(rgb=rgb, source_uri="in/a.png", member=None)])[0]
        assert isinstance(answer, MinedImage) or answer.reason == "no_masks"


def test_what_no_cut_claimed_can_be_kept_as_remainder() -> None:
    config = unsamv2()
    more = ImageMiner(replace(config, divide=replace(config.divide, cuts=1, remainder=True)))
    found = mine(more, scene((40, 50, 80, 90)))
    assert {"divide", "remainder"} <= {each.origin for each in found if each.is_instance}


def proposals(*boxes: tuple[int, int, int, int]) -> Proposals:
    entries = [{"image_id": "a.png", "segmentation": rle.encode(box_mask(*each)), "score": 0.5} for each in boxes]
    return Proposals(entries, where="test")


def test_given_masks_are_exact_and_small_ones_live_inside_large_ones() -> None:
    """Proposals and annotations keep every pixel, and a detection inside another becomes a part of it."""
    config = unsamv2()
    config = replace(
        config, divide=replace(config.divide, method="union"), refine=replace(config.refine, method="none")
    )
    whole, inner, apart = (31, 43, 97, 101), (61, 59, 31, 25), (3, 4, 9, 8)
    miner = ImageMiner(config, proposals=proposals(whole, apart))
    found = mine(miner, scene((40, 50, 80, 90)), annotations=(rle.encode(box_mask(*inner)),))
    by_origin = {each.origin: each for each in found if each.origin in ("proposal", "annotation")}
    assert iou(by_origin["proposal"], box_mask(*whole)) == 1.0
    assert by_origin["proposal"].is_instance
    assert iou(by_origin["annotation"], box_mask(*inner)) == 1.0
    assert by_origin["annotation"].instance_id == by_origin["proposal"].id
    # 3 % of the image and inside nothing: neither instance nor part, in the paper's scope.
    assert sum(each.origin == "proposal" for each in found) == 1


def test_given_masks_of_the_wrong_size_fail_their_sample_alone() -> None:
    config = replace(unsamv2(), divide=replace(unsamv2().divide, method="proposals"))
    miner = ImageMiner(config, proposals=proposals((31, 43, 97, 101)))
    good = ImageInput(rgb=scene((40, 50, 80, 90)), source_uri="in/a.png", member=None)
    bad = ImageInput(rgb=scene((40, 50, 80, 90), height=170), source_uri="in/x/a.png", member=None)
    answers = miner.mine([bad, good])
    assert isinstance(answers[0], SampleFailureError)
    assert answers[0].reason == "bad_annotation"
    assert isinstance(answers[1], MinedImage)


def test_given_masks_on_superpixels_are_exact_on_a_reduced_image() -> None:
    config = MineConfig()
    config = replace(
        config,
        features=replace(config.features, max_side_px=96),
        divide=replace(config.divide, method="union"),
    )
    inner = box_mask(31, 43, 97, 101)
    found = mine(ImageMiner(config), scene((40, 50, 80, 90)), annotations=(rle.encode(inner),))
    annotation = next(each for each in found if each.origin == "annotation")
    assert iou(annotation, inner) == 1.0


def test_given_masks_can_be_bounded_in_size() -> None:
    candidates = Candidates(
        atoms=Atoms.of(np.zeros((16, 20), dtype=np.int32)),
        members=np.zeros((0, 1), dtype=np.bool_),
        origin=[],
        score=np.zeros(0),
        level=[],
        may_be_instance=np.zeros(0, dtype=np.bool_),
    )
    given = [GivenMask(rle.encode(box_mask(30, 40, 60, 80)), "annotation", None)]
    divide = replace(MineConfig().divide, given_side_px=50)
    bounded = join_given(candidates, given, 160, 200, divide)
    assert bounded.atoms.labels.shape == (40, 50)
    exact = join_given(candidates, given, 160, 200, MineConfig().divide)
    assert exact.atoms.labels.shape == (160, 200)
    assert exact.members.sum(axis=1).tolist() == [1]


def test_scenes_of_small_objects_have_labels() -> None:
    """With instances above 5 % of the image only, a scene of small objects had few labels or none."""
    boxes = [(20 + 45 * row, 20 + 45 * column, 16, 18) for row in range(3) for column in range(4)]
    image = scene(*boxes)
    assert all(high * wide < 0.01 * 160 * 200 for _, _, high, wide in boxes)
    found = mine(ImageMiner(MineConfig()), image)
    for each in boxes:
        assert max(iou(annotation, box_mask(*each)) for annotation in found) > 0.7
