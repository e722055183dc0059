"""People's segments as shards and as clicks: the same segments, the same granularity, on both sides."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import micro_run, tree_clicks
from benchmarks.micro_run import iou_other_photograph, people_sample
from benchmarks.people_shards import segments_of, write_shards
from model.data.shards import ShardIndex
from model.evaluation.benchmarks.bsds import read_bsds500
from model.evaluation.benchmarks.records import EvalImage
from model.network.load import new_model
from model.training.validation import answers, fixed_example, iou
from pipeline import cli


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


@pytest.fixture(scope="module")
def both_splits(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags of the benchmarks on BSDS500: two photographs of train and of val, as if they had been mined."""
    folder = tmp_path_factory.mktemp("splits")
    for split in ("train", "val"):
        write_shards(list(read_bsds500(shared_data / "bsds500", split).images[:2]), str(folder / split))
    runs = ["--train", str(folder / "train"), "--validation", str(folder / "val")]
    return [*runs, "--bsds500", str(shared_data / "bsds500"), "--images", "2"]


def test_clicks_on_trees_are_measured(both_splits: list[str], tmp_path: Path) -> None:
    assert tree_clicks.main([*both_splits, "--output", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    mined, people = found["val"]["mined_labels"], found["val"]["people"]
    assert mined["iou_best_under_click"] == 1.0  # the clicked mask is in the tree
    for each in (mined, people):
        assert 0 < each["iou_g_1"] <= each["iou_best_of_10"] <= each["iou_best_under_click"]
    shipped = next(rule for name, rule in found["rules_on_train"].items() if "shipped" in name)
    assert len(found["rules_on_train"]) == len(tree_clicks.RULES)
    assert any(rule != shipped for rule in found["rules_on_train"].values())
    assert found["corrections_on_val"]["objects"] == 2 * tree_clicks.CORRECTED_OBJECTS


def test_a_micro_run_is_measured(both_splits: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    sizes = [
        "--image-size",
        "64",
        "--steps",
        "1",
        "--global-batch-size",
        "1",
        "--min-parts",
        "0",
        "--coarse-images",
        "0",
    ]
    train = ["train", "--data", both_splits[1], "--output", str(run), "--size", "micro", "--init", "scratch", *sizes]
    assert cli.main(train) == 0
    output = tmp_path / "found.json"
    asked = ["--runs", str(run), *both_splits, "--recall-images", "1", "--output", str(output)]
    assert micro_run.main(asked) in (0, 1)  # one step reaches no bar
    [found] = json.loads(output.read_text())["runs"]
    assert found["step"] == 1
    assert found["recall"]["labels_ar1000"] > 0.9  # these labels are people's own segments
    assert 0 <= found["recall"]["student_ar1000"] < found["recall"]["labels_ar1000"]
