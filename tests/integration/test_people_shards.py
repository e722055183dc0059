"""People's segments as shards and as clicks: the same segments, the same granularity, on both sides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.micro_run import iou_other_photograph, people_sample
from benchmarks.people_shards import segments_of, write_shards
from model.evaluation.bsds import read_bsds500
from model.evaluation.records import EvalImage
from model.index import ShardIndex
from model.loading import new_model
from model.validation import answers, fixed_example, iou


@pytest.fixture(scope="module")
def images(shared_data: Path) -> list[EvalImage]:
    return list(read_bsds500(shared_data / "bsds500", "val").images[:2])


@pytest.mark.parametrize("people", ["all", "fewest"])
def test_with_the_photograph_as_the_whole_g_is_a_segments_size_in_it(
    images: list[EvalImage], tmp_path: Path, people: str
) -> None:
    masks = write_shards(images, str(tmp_path / "people"), people=people, whole="photograph")
    index = ShardIndex.open(str(tmp_path / "people"))
    assert masks == sum(index.table.column("num_masks").to_pylist())
    for row, image in enumerate(images):
        shard, truth = index.load(row), image.load()
        clicks = people_sample(image, truth, people=people, whole="photograph")
        assert shard.area_px[0] == truth.height * truth.width
        assert shard.granularity[0] == 1.0
        assert set(shard.instance_id) == {0}
        assert 1 < len(shard.rles) <= len(clicks.rles) + 1  # near copies are one
        root = np.sqrt(shard.area_px)
        by_size = 0.1 + 0.9 * (root - root.min()) / (root[0] - root.min())
        np.testing.assert_allclose(shard.granularity, by_size, atol=0.01)  # a parent is never below its child
        assert np.corrcoef(np.sqrt(clicks.area_px), clicks.granularity)[0, 1] == pytest.approx(1.0)


def test_fewest_is_one_persons_partition_of_the_photograph(images: list[EvalImage]) -> None:
    for image in images:
        truth = image.load()
        few, every = segments_of(truth, "fewest"), segments_of(truth, "all")
        assert {each.annotator for each in few} == {0}
        assert len(few) < len(every)
        assert sum(each.area_px for each in few) <= truth.height * truth.width


def test_another_photograph_changes_the_answer_and_not_the_question(images: list[EvalImage]) -> None:
    model = new_model("micro", "full", 128, init="scratch", seed=0).eval()
    samples = [people_sample(image, image.load(), people="all", whole="segments") for image in images]
    examples = [fixed_example(sample, 128) for sample in samples]
    own = np.concatenate(
        [
            iou(answers(model, each, each.granularity[:, None].astype(np.float64))[0][:, 0], each.masks())
            for each in examples
        ]
    )
    assert iou_other_photograph(model, examples) != own.mean()
    assert iou_other_photograph(model, [examples[0], examples[0]]) == pytest.approx(own[: examples[0].count].mean())
