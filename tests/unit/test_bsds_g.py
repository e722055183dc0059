"""BSDS500 and BSDS-G: built from the annotations as the counts in the literature say."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from model.evaluation.benchmarks import bsds, containment
from pipeline.errors import InputError
from pipeline.format import rle
from pipeline.format.granularity import equation_3

NAMES = ("at_least_64", "consensus", "extended", "core", "pairs", "pairs_all")
COUNTS = {
    "train": dict(zip(NAMES, (17317, 11125, 9769, 3577, 1487, 11747), strict=True)),
    "val": dict(zip(NAMES, (8475, 5183, 4976, 1684, 740, 6641), strict=True)),
}


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "val"])
def test_counts_of_the_real_annotations(shared_data: Path, split: str) -> None:
    root = shared_data / "bsds500"
    counts: Counter[str] = Counter()
    for image in bsds.read_bsds_g(root, split).images:
        segments = bsds.segments_of(bsds.read_annotators(image.load.args[0]), 64)  # type: ignore[attr-defined]
        agreed = bsds.consensus(segments)
        extended = bsds.pooled(segments, np.arange(agreed.size))
        core = extended[agreed[extended]]
        counts["at_least_64"] += agreed.size
        counts["consensus"] += int(agreed.sum())
        counts["extended"] += extended.size
        counts["core"] += core.size
        for name, kept in (("pairs_all", extended), ("pairs", core)):
            counts[name] += int(containment.part_matrix(segments.shared_px[np.ix_(kept, kept)]).sum())
    assert dict(counts) == COUNTS[split]


def test_real_images_of_both_forms(shared_data: Path) -> None:
    root = shared_data / "bsds500"
    union = bsds.read_bsds500(root, "val").images
    assert len(union) == 100
    truth = union[0].load()
    assert set(truth.subsets) == {"all", "coarse", "middle", "fine", "wholes"}
    assert sum(len(truth.subsets[name]) for name in ("coarse", "middle", "fine")) == len(truth.objects)
    assert all(each.area_px == rle.area_px(rle.run_lengths_of(each.mask)) >= 32 for each in truth.objects)
    pool = bsds.read_bsds_g(root, "val").images[0].load()
    assert set(pool.subsets["core"]) <= set(pool.subsets["extended"])
    assert all(pair.part in pool.subsets["core"] and pair.whole in pool.subsets["core"] for pair in pool.pairs)


def nested_maps() -> list[NDArray[np.uint16]]:
    """Three people: a coarse one (two halves), two who split the left half in the same two pieces."""
    coarse = np.ones((40, 60), dtype=np.uint16)
    coarse[:, 30:] = 2
    fine = coarse.copy()
    fine[:12, :30] = 3
    finer = fine.copy()
    finer[30:, 50:] = 9
    return [finer, coarse, fine]


def write_bsds(root: Path, maps: list[NDArray[np.uint16]]) -> Path:
    (root / "images/val").mkdir(parents=True)
    (root / "groundTruth/val").mkdir(parents=True)
    Image.new("RGB", (60, 40), (90, 120, 30)).save(root / "images/val/12.jpg")
    cells = np.empty((1, len(maps)), dtype=object)
    for person, labels in enumerate(maps):
        cells[0, person] = {"Segmentation": labels, "Boundaries": np.zeros_like(labels)}
    savemat(root / "groundTruth/val/12.mat", {"groundTruth": cells})
    return root


def test_a_drawn_image(tmp_path: Path) -> None:
    root = write_bsds(tmp_path / "BSDS500/data", nested_maps())
    pool = bsds.read_bsds_g(tmp_path, "val").images[0].load()
    assert root.is_dir()
    by_area: dict[int, Any] = {pool.objects[index].area_px: pool.objects[index] for index in pool.subsets["core"]}
    # halves of 1,200 px; the left one is a whole of 840 (a version of it, ratio 0.7) and of 360 (a part, ratio 0.3)
    assert sorted(by_area) == [
        360,
        1200,
    ]  # 840 px is a copy of the left half (IoU 0.7), the right half was drawn thrice
    assert by_area[360].granularity == pytest.approx(0.1)
    assert [round(pair.area_ratio, 3) for pair in pool.pairs] == [0.3]
    assert pool.pairs[0].granularity == pytest.approx(0.1)
    assert pool.objects[pool.pairs[0].whole].area_px == 1200
    labels = sorted((pool.objects[i].area_px, pool.objects[i].granularity or 0) for i in pool.subsets["core"])
    assert labels == [(360, pytest.approx(0.1)), (1200, 0), (1200, 1.0)]  # the right half has neither whole nor part
    union = bsds.read_bsds500(tmp_path, "val").images[0].load()
    assert [union.objects[i].area_px for i in union.subsets["wholes"]] == [1200, 1200]
    assert len(union.objects) == 2 + 3 + 4


def test_labels_come_from_the_root() -> None:
    area = {"whole": 10_000, "middle": 2_500, "small": 400, "alone": 3_000}
    shared = np.diag(list(area.values())).astype(np.int64)
    for part, whole in ((1, 0), (2, 0), (2, 1)):
        shared[part, whole] = shared[whole, part] = shared[part, part]
    labels, pairs = containment.label_granularities(shared)
    assert labels[0] == 1.0
    assert labels[1] == pytest.approx(0.1 + 0.9 * (50 - 20) / (100 - 20))
    assert labels[2] == pytest.approx(0.1)
    assert labels[3] is None
    assert [(pair.whole, pair.part) for pair in pairs] == [(0, 1), (0, 2), (1, 2)]
    assert [pair.granularity for pair in pairs] == pytest.approx([labels[1], 0.1, 0.1])


def test_two_equal_roots_give_the_lower_index() -> None:
    shared = np.array([[1000, 0, 300, 0], [0, 1000, 300, 200], [300, 300, 300, 0], [0, 200, 0, 200]])
    labels, _ = containment.label_granularities(shared)
    assert labels[2] == pytest.approx(0.1)  # under mask 0 it is the smallest; under mask 1 the 200 px would be


def test_equation_3_at_its_ends() -> None:
    assert equation_3(100, 100, 400) == pytest.approx(0.1)
    assert equation_3(400, 100, 400) == pytest.approx(1.0)
    assert equation_3(100, 100, 100) == 1.0


def test_another_layout_names_the_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="groundTruth/val"):
        bsds.read_bsds500(tmp_path, "val")
    root = write_bsds(tmp_path / "data", nested_maps())
    (root / "groundTruth/val/12.mat").rename(root / "groundTruth/val/13.mat")
    with pytest.raises(InputError, match=r"12\.mat"):
        bsds.read_bsds500(tmp_path, "val")
    savemat(root / "groundTruth/val/12.mat", {"other": np.zeros(3)})
    with pytest.raises(InputError, match="groundTruth"):
        bsds.read_bsds500(tmp_path, "val").images[0].load()
    (root / "groundTruth/val/12.mat").write_bytes(b"MATLAB 5.0 cut")
    with pytest.raises(InputError, match="Matlab"):
        bsds.read_bsds500(tmp_path, "val").images[0].load()
