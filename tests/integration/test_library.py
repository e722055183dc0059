"""The way from Python: mine, label one image, read, release, verify, train, score; each as the command does it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import model
import pipeline
from pipeline.errors import InputError
from pipeline.format import rle
from pipeline.sources.images import decode_rgb


@pytest.fixture(scope="module")
def run(small_photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`small_photographs`, mined from Python."""
    output = tmp_path_factory.mktemp("library") / "out"
    pipeline.mine(f"in={small_photographs}", output, executor="inline", samples_per_shard=2)
    return output


def test_mine_gives_the_commands_run(run: Path, undisturbed_digest: str) -> None:
    dataset = pipeline.open_dataset(run)
    assert dataset.manifest is not None
    assert dataset.manifest["digest"] == undisturbed_digest
    assert len(dataset) == 11 == len(list(dataset))


def test_mine_from_several_sources_with_local_workers(small_photographs: Path, tmp_path: Path) -> None:
    one, two = (small_photographs / name for name in ("p00.jpg", "p01.png"))
    dataset = pipeline.mine([one, two], tmp_path / "out", workers=1, samples_per_shard=1)
    assert sorted(sample.key[:3] for sample in dataset) == ["p00", "p01"]
    again = pipeline.mine([one, two], tmp_path / "out", workers=1, samples_per_shard=1)
    assert len(again) == 2


def test_mine_knows_no_other_flag(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="colour"):
        pipeline.mine("photos/", tmp_path / "out", colour="blue")


def test_a_sample_holds_its_image_and_its_masks(run: Path, small_photographs: Path) -> None:
    dataset = pipeline.open_dataset(run)
    for number, sample in enumerate(dataset):
        assert sample.record is not None
        file = small_photographs / sample.record.source_uri.removeprefix("in/")
        assert (sample.image == decode_rgb(file.read_bytes(), max_pixels=10**6)).all()
        assert sample.masks().shape == (len(sample), *sample.image.shape[:2])
        assert (sample.masks().sum(axis=(1, 2)) == sample.area_px).all()
        for place, mask in enumerate(sample.annotations):
            assert (sample.masks([place])[0] == rle.decode(mask.segmentation)).all()
        wholes = sample.masks(sample.granularity == 1.0)
        assert (wholes == sample.masks()[sample.granularity == 1.0]).all()
        assert (sample.granularity[sample.parent_id < 0] == 1.0).all()
        assert (sample.instance_id[sample.parent_id < 0] == np.flatnonzero(sample.parent_id < 0)).all()
        assert dataset[number].key == sample.key == dataset[number - len(dataset)].key
    with pytest.raises(IndexError, match="of 11"):
        _ = dataset[11]


def test_an_image_in_memory_gets_the_masks_of_a_run(run: Path) -> None:
    for sample in list(pipeline.open_dataset(run))[:3]:
        found = pipeline.label_image(sample.image)
        assert found.annotations == sample.annotations
        assert found.key == ""
        assert (found.image == sample.image).all()
    assert pipeline.label_image(sample.image, seed=1, granularity="instance-relative").annotations
    few = pipeline.label_image(sample.image, max_masks=4)
    assert 0 < len(few) < len(sample)
    with pytest.raises(InputError, match="--max-masks must be at least 1, found 0"):
        pipeline.label_image(sample.image, max_masks=0)


@pytest.mark.parametrize("flag", [{"proposals": "p.json"}, {"divide": "proposals"}, {"workers": 2}])
def test_an_image_in_memory_takes_no_flag_that_it_would_pass_over(flag: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(flag))):
        pipeline.label_image(np.zeros((40, 60, 3), dtype=np.uint8), **flag)


def test_an_image_in_which_nothing_stands_out_has_no_masks() -> None:
    found = pipeline.label_image(np.full((40, 60, 3), 128, dtype=np.uint8))
    assert len(found) == 0
    assert found.masks().shape == (0, 40, 60)


@pytest.mark.parametrize("image", [np.zeros((4, 4)), np.zeros((4, 4, 4), dtype=np.uint8), "photo.jpg"])
def test_label_image_takes_rgb_alone(image: object) -> None:
    with pytest.raises(InputError, match="label_image: expected an array"):
        pipeline.label_image(image)  # type: ignore[arg-type]


def test_release_and_verify(run: Path, tmp_path: Path) -> None:
    assert pipeline.verify(run, deep=True) == []
    manifest = pipeline.build_release(
        run, tmp_path / "rel", name="small", version="1.0.0", license="CC0-1.0", splits="train=0.5,val=0.5"
    )
    assert manifest["samples"] == 11
    assert pipeline.verify(tmp_path / "rel") == []
    released = pipeline.open_dataset(tmp_path / "rel")
    assert len(released) == 11
    assert {each.key for each in released} == {each.key for each in pipeline.open_dataset(run)}
    parts = [len(model.ShardDataset(tmp_path / "rel", split=name)) for name in ("train", "val")]
    assert sum(parts) == sum(len(each) > 0 for each in released)
    with pytest.raises(InputError, match="--name"):
        pipeline.build_release(run, tmp_path / "other", name="a b", version="1.0.0", license="CC0-1.0")


def test_verify_names_what_is_damaged(run: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(run, broken)
    shard = sorted((broken / "shards").iterdir())[0]
    shard.write_bytes(shard.read_bytes()[:-1])
    problems = pipeline.verify(broken)
    assert problems[0].kind == "size"
    assert {Path(each.file).name for each in problems} == {shard.name}
    with pytest.raises(InputError):
        pipeline.verify(tmp_path)


def test_train_predict_and_score(run: Path, tmp_path: Path) -> None:
    few = {"steps": 1, "masks_per_image": 2, "min_parts": 0, "global_batch_size": 1, "dense_anchors": 0}
    summary = model.train(run, tmp_path / "run", image_size=64, device="cpu", **few)
    assert summary["step"] == 1
    [sample, *_] = pipeline.open_dataset(run)
    predictor = model.GranularPredictor(model.load_model(tmp_path / "run"))
    for each in (predictor, model.TreePredictor()):
        each.set_image(sample.image)
        masks, iou, _ = each.predict([[30, 20]], [1], granularity=[0.1, 1.0])
        assert masks.shape == (2, *sample.image.shape[:2])
        assert iou.shape == (2,)
    scores = model.score("shards", run, tmp_path / "scores", masks=run)
    assert scores["metrics"]["AR1000"]["value"] == 1.0
    assert (tmp_path / "scores" / "scores.json").exists()
    with pytest.raises(InputError, match="found both"):
        model.score("shards", run, tmp_path / "both", masks=run, checkpoint="tree")
