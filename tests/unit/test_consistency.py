"""Ranking by consistency: the changed image, IoU with what is found in it against pixels, and the order."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.labeling.atoms import Atoms
from pipeline.labeling.config import MineConfig, RankingConfig
from pipeline.labeling.miner import ImageInput, ImageMiner, MinedImage
from pipeline.labeling.regions import MergeTree
from pipeline.labeling.stages.consistency import SecondMining, changed_image, consistency, consistent_first

CONFIG = RankingConfig(method="consistency")


def drawn_tree(leaves: int, seed: int) -> MergeTree:
    random = np.random.default_rng(seed)
    alive, children = list(range(leaves)), []
    while len(alive) > 1:
        a, b = (alive.pop(random.integers(len(alive))) for _ in range(2))
        alive.append(leaves + len(children))
        children.append([a, b])
    return MergeTree(leaves, np.array(children), np.arange(len(children), dtype=np.float64))


def blocks(height: int, width: int, side: int) -> NDArray[np.int64]:
    rows, columns = np.arange(height) // side, np.arange(width) // side
    return rows[:, None] * (columns[-1] + 1) + columns[None, :]


def test_the_changed_image_is_mirrored_larger_darker_in_the_middle_and_paler() -> None:
    rgb = np.zeros((20, 30, 3), dtype=np.uint8)
    rgb[:, :10] = (200, 40, 40)
    changed = changed_image(rgb, CONFIG)
    assert changed.shape == (30, 45, 3)
    assert not changed[:, :28].any()
    red, green, blue = changed[15, 40].tolist()
    bent = [255 * (each / 255) ** 1.15 for each in (200, 40, 40)]
    grey = 0.299 * bent[0] + 0.587 * bent[1] + 0.114 * bent[2]
    assert (red, green) == pytest.approx((grey + 0.8 * (bent[0] - grey), grey + 0.8 * (bent[1] - grey)), abs=1)
    assert green == blue
    assert changed_image(rgb[:1, :1], replace(CONFIG, scale=0.6)).shape == (1, 1, 3)


@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_consistency_is_the_best_iou_with_a_region_of_the_mirrored_image(scale: float) -> None:
    ours = Atoms.of(blocks(24, 36, 6))
    height, width = round(24 * scale), round(36 * scale)
    theirs = Atoms.of(blocks(height, width, 5))
    trees = [drawn_tree(len(theirs), seed) for seed in (0, 1)]
    members = np.random.default_rng(2).random((7, len(ours))) < 0.3
    members[6] = False
    found = consistency(members, ours, SecondMining(theirs, trees), nodes_per_tree=9)
    back = cv2.resize(theirs.labels[:, ::-1].astype(np.int32), (36, 24), interpolation=cv2.INTER_NEAREST)
    regions = [tree.members(np.argsort(tree.rank)[:9])[:, back] for tree in trees]
    for candidate, value in zip(members[:, ours.labels], found, strict=True):
        expected = max(
            (candidate & region).sum() / max((candidate | region).sum(), 1) for each in regions for region in each
        )
        assert value == pytest.approx(expected, abs=1e-6)


def test_what_is_found_again_comes_first_and_ties_keep_their_order() -> None:
    ours = Atoms.of(blocks(4, 32, 4))
    tree = MergeTree(8, np.array([[0, 1], [2, 3], [8, 9], [4, 5], [6, 7], [11, 12], [10, 13]]), np.arange(7.0))
    members = np.zeros((8, 8), dtype=np.bool_)
    members[np.arange(8), np.arange(8)] = True
    members[7] = False
    members[7, 4:] = True  # the mirrored image's region of four leaves
    second = SecondMining(ours, [tree])
    assert consistency(members, ours, second, nodes_per_tree=2).argmax() == 7
    # Place 7 is worth ln 8 = 2.08, and consistency 2 at most.
    weights = {
        weight: consistent_first(members, ours, second, replace(CONFIG, nodes_per_tree=2, weight=weight))
        for weight in (0.0, 9.0)
    }
    assert weights[0.0].tolist() == list(range(8))
    assert weights[9.0][0] == 7
    few = consistent_first(members, ours, second, replace(CONFIG, nodes_per_tree=0, weight=9.0))
    assert few.tolist() == list(range(8))


def test_ranking_only_reorders_what_is_kept_when_there_is_room_for_all() -> None:
    random = np.random.default_rng(0)
    rgb = cv2.resize(random.integers(0, 256, (5, 7, 3), dtype=np.uint8), (84, 60), interpolation=cv2.INTER_NEAREST)
    rgb = np.clip(rgb + random.normal(0, 6, rgb.shape), 0, 255).astype(np.uint8)
    found = {}
    for method in ("trees", "consistency"):
        config = MineConfig()
        config = replace(
            config,
            conquer=replace(config.conquer, ranking=RankingConfig(method=method)),  # type: ignore[arg-type]
            tree=replace(config.tree, max_masks=5000),
        )
        mined = ImageMiner(config).mine([ImageInput(rgb=rgb, source_uri="a", member=None)])[0]
        assert isinstance(mined, MinedImage)
        found[method] = {each.segmentation["counts"]: each.score for each in mined.annotations}
    common = found["trees"].keys() & found["consistency"].keys()
    assert len(common) > 0.8 * len(found["trees"])
    assert any(found["trees"][each] != found["consistency"][each] for each in common)
