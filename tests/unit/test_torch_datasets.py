"""Shards for other trainers: the dataset by number, the stream that resumes exactly, the decoder for `webdataset`."""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from torch.utils.data import DataLoader

from model.data.sampler import Order
from model.data.shards import BadSampleError, LoadedSample
from model.data.torch_datasets import ShardDataset, ShardStream, decode_sample
from pipeline.dataset.open import open_dataset
from pipeline.errors import InputError, SchemaError

BATCH = 2

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # on a machine with one core
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),  # webdataset leaves its shards open
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def key_of(sample: LoadedSample) -> str:
    return sample.key


def key_and_draw(sample: LoadedSample, chance: np.random.Generator) -> tuple[str, float]:
    return sample.key, float(chance.random())


def as_it_is(batch: list[Any]) -> list[Any]:
    return batch


def batches(stream: ShardStream, *, workers: int = 0) -> Iterator[list[Any]]:
    loader = DataLoader(stream, batch_size=BATCH, num_workers=workers, collate_fn=as_it_is)
    return iter(loader)


def stream_of(run: Path, **more: Any) -> ShardStream:
    return ShardStream(run, **{"batch_size": BATCH, "seed": 5, "transform": key_and_draw, **more})


def test_a_sample_by_its_number(drawn_run: Path) -> None:
    dataset, samples = ShardDataset(drawn_run), list(open_dataset(drawn_run))
    assert len(dataset) == len(samples)
    for number, expected in enumerate(samples):
        found = dataset[number]
        assert found.key == expected.key == dataset[number - len(dataset)].key
        assert (found.image == expected.image).all()
        assert (found.masks() == expected.masks()).all()
        assert (found.masks([1, 0]) == expected.masks()[[1, 0]]).all()
        assert (found.masks(found.area_px > 300) == expected.masks()[expected.area_px > 300]).all()
        assert found.masks([]).shape == expected.masks([]).shape == (0, *expected.image.shape[:2])
        assert found.granularity == pytest.approx(expected.granularity)
        assert (found.instance_id == expected.instance_id).all()
    with pytest.raises(IndexError):
        _ = dataset[len(dataset)]


def test_a_dataset_in_a_loader_with_workers(drawn_run: Path) -> None:
    dataset = ShardDataset(drawn_run, transform=key_of)
    loader = DataLoader(dataset, batch_size=3, num_workers=2, multiprocessing_context="spawn")
    assert list(itertools.chain(*loader)) == [dataset[number] for number in range(len(dataset))]


def test_samples_with_few_masks_are_left_out(drawn_run: Path) -> None:
    assert len(ShardDataset(drawn_run, min_masks=5)) == len(open_dataset(drawn_run))
    with pytest.raises(InputError, match="holds no sample with 6 masks"):
        ShardDataset(drawn_run, min_masks=6)


def test_shards_without_images_are_refused(write_drawn_run: Callable[..., Path], tmp_path: Path) -> None:
    run = write_drawn_run(tmp_path / "out", images=False)
    with pytest.raises(InputError, match="no-images"):
        ShardDataset(run)


def test_every_epoch_holds_every_sample_once_in_another_order(drawn_run: Path) -> None:
    stream = stream_of(drawn_run, batch_size=1)
    keys = [key for key, _ in itertools.islice(stream, 3 * stream.samples)]
    epochs = [keys[number * stream.samples : (number + 1) * stream.samples] for number in range(3)]
    assert all(sorted(each) == sorted(epochs[0]) for each in epochs)
    assert len({tuple(each) for each in epochs}) > 1
    assert len({*keys}) == stream.samples


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_are_the_same_with_any_number_of_workers(drawn_run: Path, workers: int) -> None:
    alone = list(itertools.islice(batches(stream_of(drawn_run)), 7))
    assert list(itertools.islice(batches(stream_of(drawn_run), workers=workers), 7)) == alone


def test_ranks_share_each_batch(drawn_run: Path) -> None:
    alone = list(itertools.islice(stream_of(drawn_run, batch_size=1), 12))
    ranks = [list(itertools.islice(stream_of(drawn_run, rank=rank, ranks=3), 4)) for rank in range(3)]
    assert [each for step in (0, 2) for rank in ranks for each in rank[step : step + 2]] == alone


@pytest.mark.parametrize("taken", [1, 4, 5])
def test_a_stream_resumes_where_it_was(drawn_run: Path, taken: int) -> None:
    whole = list(itertools.islice(batches(stream_of(drawn_run)), 10))
    stream = stream_of(drawn_run)
    list(itertools.islice(batches(stream), taken))
    state = stream.state_dict()
    assert state == stream_of(drawn_run).state_dict(taken=taken)
    again = stream_of(drawn_run)
    again.load_state_dict(state)
    assert list(itertools.islice(batches(again, workers=2), 10 - taken)) == whole[taken:]
    with pytest.raises(InputError, match="taken=n"):
        again.state_dict()
    assert again.state_dict(taken=2) == stream_of(drawn_run).state_dict(taken=taken + 2)


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_iterate_once_and_then_want_to_know_where_to_go_on(drawn_run: Path, persistent: bool) -> None:
    whole = list(itertools.islice(batches(stream_of(drawn_run)), 9))
    stream = stream_of(drawn_run)
    loader = DataLoader(stream, batch_size=BATCH, num_workers=2, collate_fn=as_it_is, persistent_workers=persistent)
    assert list(itertools.islice(loader, 3)) == whole[:3]
    again = iter(loader)
    for _ in range(2):  # both workers: a kept one that only begins later would take the next state for its own
        with pytest.raises(InputError, match="say where the next pass begins"):
            next(again)
    with pytest.raises(InputError, match="say where the next pass begins"):
        next(iter(stream))
    stream.load_state_dict(stream.state_dict(taken=3))
    assert list(itertools.islice(loader, 2)) == whole[3:5]
    stream.load_state_dict(stream.state_dict(taken=2))
    assert list(itertools.islice(batches(stream), 2)) == whole[5:7]
    assert stream.state_dict() == stream_of(drawn_run).state_dict(taken=7)
    assert list(itertools.islice(batches(stream, workers=1), 2)) == whole[7:]


def test_a_worker_that_begins_late_does_not_hold_up_the_next_pass(
    drawn_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker of a pass that was left may begin when a state is loaded already; it has its own copy of the stream."""
    here: list[Any] = [None]
    monkeypatch.setattr("model.data.torch_datasets.get_worker_info", lambda: here[0])
    whole = list(itertools.islice(stream_of(drawn_run), 6))
    stream = stream_of(drawn_run)
    prompt, late = copy.copy(stream), copy.copy(stream)
    here[0] = SimpleNamespace(id=0, num_workers=2, seed=100)
    assert next(iter(prompt)) == whole[0]
    stream.load_state_dict(stream.state_dict(taken=1))
    here[0] = SimpleNamespace(id=1, num_workers=2, seed=101)
    with pytest.raises(InputError, match="say where the next pass begins"):
        next(iter(late))
    fresh, another = copy.copy(stream), copy.copy(stream)
    here[0] = SimpleNamespace(id=0, num_workers=1, seed=200)
    assert list(itertools.islice(fresh, 2)) == whole[2:4]
    with pytest.raises(InputError, match="say where the next pass begins"):
        next(iter(fresh))  # a persistent worker again
    here[0] = SimpleNamespace(id=0, num_workers=1, seed=300)
    with pytest.raises(InputError, match="say where the next pass begins"):
        next(iter(another))
    here[0] = None
    with pytest.raises(InputError, match="say where the next pass begins"):
        next(iter(stream))
    stream.load_state_dict(stream.state_dict(taken=1))
    here[0] = SimpleNamespace(id=0, num_workers=1, seed=200)
    assert next(iter(fresh)) == whole[4]


def test_a_kept_worker_that_begins_a_refused_pass_late_costs_a_refusal_and_no_sample(
    drawn_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here: list[Any] = [None]
    monkeypatch.setattr("model.data.torch_datasets.get_worker_info", lambda: here[0])
    whole = list(itertools.islice(stream_of(drawn_run), 6 * BATCH))
    stream = stream_of(drawn_run)
    kept = [copy.copy(stream), copy.copy(stream)]

    def taken(worker: int) -> list[Any]:
        here[0] = SimpleNamespace(id=worker, num_workers=2, seed=100 + worker)
        return list(itertools.islice(kept[worker], BATCH))

    assert taken(0) + taken(1) == whole[: 2 * BATCH]
    with pytest.raises(InputError, match="say where the next pass begins"):
        taken(0)
    stream.load_state_dict(stream.state_dict(taken=2))
    taken(1)  # of the pass that the other one refused
    assert taken(0) == whole[2 * BATCH : 3 * BATCH]
    with pytest.raises(InputError, match="say where the next pass begins"):
        taken(1)
    stream.load_state_dict(stream.state_dict(taken=0))
    assert taken(0) + taken(1) == whole[2 * BATCH : 4 * BATCH]


def test_a_stream_resumes_with_other_ranks_and_batches(drawn_run: Path) -> None:
    order = list(itertools.islice(stream_of(drawn_run, batch_size=1), 16))
    state = stream_of(drawn_run, ranks=2, rank=1).state_dict(taken=2)
    again = stream_of(drawn_run, batch_size=3)
    again.load_state_dict(state)
    assert list(itertools.islice(again, 8)) == order[8:]


def test_a_stream_goes_on_where_its_last_iteration_ended(drawn_run: Path) -> None:
    whole = list(itertools.islice(stream_of(drawn_run, batch_size=1), 6))
    stream = stream_of(drawn_run, batch_size=1)
    assert list(itertools.islice(stream, 2)) + list(itertools.islice(stream, 4)) == whole


@pytest.mark.parametrize(
    "other", [{"seed": 6}, {"min_masks": 2}, {"order": Order(kind="block", block=2, window=2)}], ids=str
)
def test_a_state_of_another_stream_is_refused(drawn_run: Path, other: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="is of other data"):
        stream_of(drawn_run, **other).load_state_dict(stream_of(drawn_run).state_dict())


def test_what_is_no_state_is_refused(drawn_run: Path) -> None:
    with pytest.raises(SchemaError, match="load_state_dict"):
        stream_of(drawn_run).load_state_dict({"position": 3})


def test_ranks_come_from_torchrun(drawn_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    stream = stream_of(drawn_run)
    assert (stream.rank, stream.ranks) == (1, 4)
    with pytest.raises(InputError, match="rank 4 of 4"):
        stream_of(drawn_run, rank=4)


def test_data_that_changed_is_refused_in_a_new_process(write_drawn_run: Callable[..., Path], tmp_path: Path) -> None:
    run = write_drawn_run(tmp_path / "out")
    dataset = ShardDataset(run)
    os.rename(run, tmp_path / "before")
    write_drawn_run(run, units=1)
    with pytest.raises(InputError, match="the data changed"):
        copy.deepcopy(dataset)


def test_a_webdataset_pipeline_decodes_samples(drawn_run: Path) -> None:
    shards = sorted(str(path) for path in (drawn_run / "shards").iterdir())
    pipeline = wds.WebDataset(shards, shardshuffle=False).map(decode_sample)
    dataset = ShardDataset(drawn_run)
    found = list(pipeline)
    assert [each.key for each in found] == [dataset[number].key for number in range(len(dataset))]
    assert (found[0].masks() == dataset[0].masks()).all()


def test_the_decoder_says_what_is_wrong(drawn_run: Path) -> None:
    shards = sorted(str(path) for path in (drawn_run / "shards").iterdir())
    [sample, *_] = wds.WebDataset(shards, shardshuffle=False)
    image = next(name for name in ("png", "jpg") if name in sample)
    with pytest.raises(BadSampleError, match="not the one that was mined"):
        decode_sample({**sample, image: sample[image][:-1]})
    with pytest.raises(BadSampleError, match=sample["__key__"]):
        decode_sample({**sample, "json": b"{}"})
    with pytest.raises(InputError, match=r"leave \.decode\(\) out"):
        decode_sample({**sample, "json": {}})
    with pytest.raises(InputError, match="with images"):
        decode_sample({name: value for name, value in sample.items() if name != image})


def test_an_object_store_is_opened_again_in_a_new_process(drawn_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, stream = ShardDataset(drawn_run), stream_of(drawn_run)
    expected, before = dataset[0].key, dataset._shards.index
    monkeypatch.setattr(os, "getpid", lambda: 0)
    assert dataset._shards.index is before
    monkeypatch.setattr("model.data.torch_datasets.LocalStorage", type("Elsewhere", (), {}))
    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert dataset._shards.index is not before
    assert dataset[0].key == expected
    assert next(iter(stream)) == next(iter(stream_of(drawn_run)))
