"""The loader: every rank, worker and cut sees its own share of one sequence; views keep what granularity means."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import json
import multiprocessing
import shutil
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from model.data.augmentation import (
    NO_AUGMENTATION,
    VIEW_DRAWS,
    Augmentation,
    draw_view,
    true_masks,
    unpacked,
    view_image,
    view_masks,
    whole_view,
)
from model.data.prompts import draw_prompts, prompt_draws
from model.data.run_lengths import RunLengths
from model.data.sampler import Order, batch_positions
from model.data.shards import BadSampleError, LoadedSample, ShardIndex, filter_rows
from model.data.stream import Example, ExampleSettings, TrainingDataset, make_example, stream
from pipeline.errors import InputError, SchemaError
from pipeline.format import rle
from pipeline.format.schema import ORIGINS

SETTINGS = ExampleSettings(
    image_size=32,
    masks_per_image=4,
    masks_per_click=2,
    balance=0.5,
    clicks=2,
    augmentation=Augmentation(),
    dense_anchors=5,
)
BATCH = 4
RANKS = (1, 2, 4)


def examples_of(directory: Path, settings: ExampleSettings = SETTINGS, order: Order | None = None) -> TrainingDataset:
    return TrainingDataset(str(directory), settings, seed=3, order=order or Order(), min_masks=1, holdout=0.0)


def identity(example: Example) -> tuple[object, ...]:
    """Everything in an example, comparable."""
    anchors = example.anchors
    arrays = (
        example.image, example.points, example.granularity, example.masks_packed, example.correction_draws,
        anchors.points, anchors.granularity, anchors.masks_packed,
    )  # fmt: skip
    return (example.position, example.key, example.problem, *(array.tobytes() for array in arrays))


def positions_from(batch: int, batches: int, *, rank: int, ranks: int) -> Iterator[int]:
    for number in range(batch, batches):
        yield from batch_positions(number * BATCH, global_batch_size=BATCH, rank=rank, ranks=ranks)


@pytest.fixture(scope="module")
def one_sequence(drawn_run: Path) -> list[tuple[object, ...]]:
    """Seven batches of four: four epochs of seven samples, read one position after the other."""
    examples = examples_of(drawn_run)
    assert len(examples) == 7
    return [identity(examples[position]) for position in range(7 * BATCH)]


def read(directory: Path, *, ranks: int, workers: int, cut: int, batches: int) -> list[tuple[object, ...]]:
    """What `ranks` ranks see from a cut on, put together batch by batch."""
    share = BATCH // ranks
    seen = []
    for rank in range(ranks):
        examples = examples_of(directory)
        positions = positions_from(cut, batches, rank=rank, ranks=ranks)
        seen.append([identity(each) for each in stream(examples, positions, workers=workers)])
    batched = [
        [each for rank in range(ranks) for each in seen[rank][share * number : share * (number + 1)]]
        for number in range(batches - cut)
    ]
    return list(itertools.chain.from_iterable(batched))


@pytest.mark.parametrize(("ranks", "cut"), [(ranks, cut) for ranks in RANKS for cut in range(7)])
def test_any_ranks_and_any_cut_give_the_one_sequence(
    drawn_run: Path, one_sequence: list[tuple[object, ...]], ranks: int, cut: int
) -> None:
    assert read(drawn_run, ranks=ranks, workers=0, cut=cut, batches=7) == one_sequence[cut * BATCH :]


CUTS = range(4)
"""Of four batches: two epochs and two samples of a third."""


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("cut", CUTS)
def test_worker_processes_give_every_rank_its_share_from_any_cut(
    drawn_run: Path, one_sequence: list[tuple[object, ...]], cut: int, workers: int
) -> None:
    """Processes are started anew at each cut; one rank after the other, of one, two and four, asks the same ones.

    That is enough: a stream hears of ranks only by the positions that it is asked for, whose examples depend on nothing
    else, and without processes each rank is read by itself above. With processes of its own each is, slowly, below.
    """
    asked = [
        position
        for ranks in RANKS
        for rank in range(ranks)
        for position in positions_from(cut, len(CUTS), rank=rank, ranks=ranks)
    ]
    assert len(asked) == len(RANKS) * (len(CUTS) - cut) * BATCH
    streamed = stream(examples_of(drawn_run), iter(asked), workers=workers)
    assert [identity(each) for each in streamed] == [one_sequence[position] for position in asked]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("ranks", RANKS)
def test_worker_processes_of_each_rank_change_nothing_at_any_cut(
    drawn_run: Path, one_sequence: list[tuple[object, ...]], ranks: int, workers: int
) -> None:
    for cut in CUTS:
        found = read(drawn_run, ranks=ranks, workers=workers, cut=cut, batches=len(CUTS))
        assert found == one_sequence[cut * BATCH : len(CUTS) * BATCH]


def test_an_epoch_holds_every_sample_once_and_every_rank_as_many(one_sequence: list[tuple[object, ...]]) -> None:
    keys = [each[1] for each in one_sequence]
    for epoch in range(4):
        assert len(set(keys[7 * epoch : 7 * epoch + 7])) == 7
    for ranks in RANKS:
        shares = {len(list(positions_from(0, 7, rank=rank, ranks=ranks))) for rank in range(ranks)}
        assert shares == {7 * BATCH // ranks}


def test_several_datasets_are_read_as_one(  # type: ignore[no-untyped-def]
    drawn_run: Path, write_drawn_run, tmp_path: Path
) -> None:
    """Each sample from its own folder, by processes too; the digest depends on which they are and on their order."""
    other = write_drawn_run(tmp_path / "other", units=2, label="other", samples_per_shard=2)
    indexes = [ShardIndex.open(each) for each in (drawn_run, other)]
    both = ShardIndex.open_all((str(drawn_run), str(other)))
    assert len(both) == len(indexes[0]) + len(indexes[1]) == 11
    assert both.sample_keys() == indexes[0].sample_keys() + indexes[1].sample_keys()
    assert both.location == f"{drawn_run}, {other}"
    for row in (0, 6, 7, 10):
        part, place = divmod(row, 7)
        assert both.load(row).where.startswith(str((drawn_run, other)[part]))
        assert both.load(row).counts == indexes[part].load(place).counts
    assert both.select(np.array([10, 1])).load(0).key == indexes[1].load(3).key
    assert both.digest != ShardIndex.open_all((str(other), str(drawn_run))).digest
    assert ShardIndex.open_all((str(other),)).digest == ShardIndex.open_all(str(other)).digest == indexes[1].digest
    examples = TrainingDataset((str(drawn_run), str(other)), SETTINGS, seed=3, order=Order(), min_masks=1, holdout=0.0)
    read = [identity(examples[position]) for position in range(11)]
    assert sorted(str(each[1]) for each in read) == sorted(both.sample_keys())
    assert [identity(each) for each in stream(examples, iter(range(11)), workers=1)] == read
    with pytest.raises(InputError, match="data that was named before it; name it once"):
        ShardIndex.open_all((str(drawn_run), str(other), str(drawn_run)))


RECTANGLES = [
    # x0, y0, x1, y1, instance, origin, g
    (0, 0, 20, 40, 0, "divide", 1.0), (2, 2, 12, 12, 0, "conquer", 0.4), (2, 2, 8, 8, 0, "conquer", 0.1),
    (20, 0, 40, 40, 3, "divide", 1.0), (22, 4, 30, 30, 3, "conquer", 0.1),
    (0, 10, 40, 40, 5, "conquer", 1.0), (1, 11, 30, 30, 5, "conquer", 0.5),
    (38, 0, 60, 40, 7, "remainder", 1.0),
]  # fmt: skip


def sample_of_rectangles() -> LoadedSample:
    masks = np.zeros((len(RECTANGLES), 40, 60), dtype=bool)
    for mask, (x0, y0, x1, y1, *_) in zip(masks, RECTANGLES, strict=True):
        mask[y0:y1, x0:x1] = True
    counts = tuple(rle.encode(mask)["counts"] for mask in masks)
    return LoadedSample(
        key="drawn",
        where="nowhere",
        image=np.zeros((40, 60, 3), dtype=np.uint8),
        counts=counts,
        run_lengths=RunLengths.of(counts, 40, 60),
        granularity=np.array([each[6] for each in RECTANGLES], dtype=np.float32),
        instance_id=np.array([each[4] for each in RECTANGLES]),
        area_px=masks.sum(axis=(1, 2)),
        origin_rank=np.array([ORIGINS.index(each[5]) for each in RECTANGLES]),
    )


def test_pairs_are_drawn_from_wholes_beside_each_other_and_not_at_exactly_the_lowest_g() -> None:
    """The joint instance goes with its part; the remainder that overlaps a whole by a hair stays."""
    sample = sample_of_rectangles()
    assert sample.alone.tolist() == [True] * 5 + [False] * 2 + [True]
    larger_first = dataclasses.replace(sample, origin_rank=None)
    assert np.flatnonzero(larger_first.alone).tolist() == [5, 6, 7], "the largest claims most of both"
    every = {"min_parts": 0, "smallest_parts": True, "wholes_only": False}
    for changes, kept in (
        ({}, range(8)),
        ({"smallest_parts": False}, (0, 1, 3, 5, 6, 7)),
        ({"wholes_only": True, "smallest_parts": False}, (0, 1, 3, 7)),
        ({"wholes_only": True, "min_parts": 2}, (0, 1, 2, 3, 7)),
    ):
        assert np.flatnonzero(sample.drawable(**{**every, **changes})).tolist() == list(kept)  # type: ignore[arg-type]
    settings = dataclasses.replace(SETTINGS, smallest_parts=False, wholes_only=True, masks_per_image=16)
    allowed = {each[6] for each in (RECTANGLES[0], RECTANGLES[1])}
    for position in range(20):
        example = make_example(sample, position, seed=0, settings=settings)
        found = {round(float(g), 1) for g in (*example.granularity, *example.anchors.granularity)}
        assert found <= allowed


def test_a_state_names_its_data(drawn_run: Path, write_drawn_run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    state = examples_of(drawn_run).state(12)
    state.expect_same_data(examples_of(drawn_run).state(0), where="here")
    other = write_drawn_run(tmp_path / "other", units=2)
    with pytest.raises(InputError, match="of other data: dataset_digest"):
        state.expect_same_data(examples_of(other).state(0), where="here")


def test_a_run_still_going_on_can_be_read(write_drawn_run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    index = ShardIndex.open(write_drawn_run(tmp_path / "part", units=1))
    assert not index.complete
    assert 0 < len(index) < 7


def test_shares_held_out_are_apart_and_hang_on_the_key_alone(drawn_run: Path) -> None:
    index = ShardIndex.open(drawn_run)
    kept = filter_rows(index, min_masks=1, holdout=0.4, held_out=False)
    held = filter_rows(index, min_masks=1, holdout=0.4, held_out=True)
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(7))
    assert 0 < len(held) < 7
    with pytest.raises(InputError, match="nothing to train on"):
        TrainingDataset(str(drawn_run), SETTINGS, seed=0, order=Order(), min_masks=99, holdout=0.0)


# -- bad input ---------------------------------------------------------------------------------------------------------


def damaged(run: Path, target: Path, *, at: str) -> tuple[Path, str, str]:
    """A copy of a run with one byte of one sample changed; also its key and shard."""
    shutil.copytree(run, target)
    row = ShardIndex.open(run).row(2)
    shard = target / row["shard"]
    data = bytearray(shard.read_bytes())
    data[row[f"{at}_offset"] + row[f"{at}_size"] // 2] ^= 0x55
    shard.write_bytes(bytes(data))
    return target, row["key"], row["shard"]


@pytest.mark.parametrize(
    ("at", "message"),
    [("json", "do not match the index's sha256"), ("image", "its image is not the one that was mined")],
)
def test_bytes_that_do_not_match_name_shard_and_key(drawn_run: Path, tmp_path: Path, at: str, message: str) -> None:
    directory, key, shard = damaged(drawn_run, tmp_path / "copy", at=at)
    with pytest.raises(BadSampleError, match=message) as error:
        ShardIndex.open(directory).load(2)
    assert key in str(error.value)
    assert shard in str(error.value)


def test_a_bad_sample_keeps_its_position_and_says_why(drawn_run: Path, tmp_path: Path) -> None:
    directory, key, shard = damaged(drawn_run, tmp_path / "copy", at="json")
    whole, broken = examples_of(drawn_run), examples_of(directory)
    for position in range(7):
        example = broken[position]
        if example.key == key:
            assert example.count == 0
            assert example.problem is not None
            assert key in example.problem
            assert shard in example.problem
        else:
            assert identity(example) == identity(whole[position])


def test_directories_without_commits_or_of_another_format_are_refused(drawn_run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a run \(plan\.json\), found none"):
        ShardIndex.open(tmp_path)
    directory = tmp_path / "newer"
    shutil.copytree(drawn_run, directory)
    manifest = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").write_text(json.dumps({**manifest, "format": "grainmill/2"}))
    with pytest.raises(SchemaError, match="format is 'grainmill/2', this version reads 'grainmill/1'"):
        ShardIndex.open(directory)


def test_an_index_file_that_does_not_match_is_refused(drawn_run: Path, tmp_path: Path) -> None:
    directory = tmp_path / "copy"
    shutil.copytree(drawn_run, directory)
    name = json.loads((directory / "manifest.json").read_text())["index"]["samples"]["name"]
    data = bytearray((directory / name).read_bytes())
    data[len(data) // 2] ^= 0x55
    (directory / name).write_bytes(bytes(data))
    with pytest.raises(InputError, match="sha256 is"):
        ShardIndex.open(directory)


def test_runs_without_images_are_refused(write_drawn_run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    directory = write_drawn_run(tmp_path / "masks-only", images=False)
    with pytest.raises(InputError, match="--no-images"):
        examples_of(directory)


# -- views and prompts -------------------------------------------------------------------------------------------------


def drawn_sample(run: Path) -> LoadedSample:
    return ShardIndex.open(run).load(0)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    "how",
    [
        Augmentation(rotation_deg=25.0, shear_deg=20.0, crop_probability=1.0),
        Augmentation(flip_probability=1.0),
        Augmentation(flip_probability=0.0),
    ],
    ids=["turned", "flipped", "cropped"],
)
def test_a_view_shows_image_and_masks_through_one_map(drawn_run: Path, how: Augmentation, seed: int) -> None:
    """A mask painted into the image and then viewed is where the viewed mask is."""
    sample = drawn_sample(drawn_run)
    height, width = sample.image.shape[:2]
    painted = np.where(rle.decode(sample.rles[1])[:, :, None], 255, 0).astype(np.uint8).repeat(3, axis=2)
    view = draw_view(np.random.default_rng(seed).random(VIEW_DRAWS), height, width, 128, how)
    seen, mask = (
        view_image(painted, view)[:, :, 0] > 127,
        unpacked(view_masks(sample.run_lengths, np.array([1]), view))[0],
    )
    outside = view.source < 0
    union = ((seen | mask) & ~outside).sum()
    assert union == 0 or ((seen & mask) & ~outside).sum() / union > 0.9


def test_a_crop_drops_instances_of_which_it_keeps_less_than_nine_tenths(drawn_run: Path) -> None:
    sample = drawn_sample(drawn_run)
    height, width = sample.image.shape[:2]
    dropped = kept = 0
    for seed in range(60):
        how = Augmentation(crop_probability=1.0, crop_min_scale=0.4, flip_probability=0.5)
        view = draw_view(np.random.default_rng(seed).random(VIEW_DRAWS), height, width, 64, how)
        stays = true_masks(sample, view)
        x0, y0, x1, y1 = view.box_xyxy
        for number, instance in enumerate(sample.instance_id):
            share = rle.decode(sample.rles[instance])[y0:y1, x0:x1].sum() / sample.area_px[instance]
            assert stays[number] == (share >= 0.9)
        dropped, kept = dropped + int((~stays).sum()), kept + int(stays.sum())
    assert dropped
    assert kept


def test_a_view_that_breaks_every_whole_shows_the_image_uncropped(drawn_run: Path) -> None:
    sample = drawn_sample(drawn_run)
    how = Augmentation(crop_probability=1.0, crop_min_scale=0.05, brightness=0, contrast=0, saturation=0)
    settings = dataclasses.replace(SETTINGS, augmentation=how)
    for position in range(20):
        assert make_example(sample, position, seed=0, settings=settings).count > 0


def test_clicks_lie_on_their_masks_and_one_click_has_several(drawn_run: Path) -> None:
    sample = drawn_sample(drawn_run)
    view = whole_view(*sample.image.shape[:2], 96)
    prompts = draw_prompts(
        np.random.default_rng(0).random(prompt_draws(400, 3)),
        sample,
        view,
        np.ones(len(sample.rles), bool),
        count=400,
        masks_per_click=3,
        balance=0.5,
    )
    for (x, y), mask in zip(prompts.points.astype(int), prompts.masks(), strict=True):
        assert mask[y, x]
    by_click: dict[tuple[float, float], set[int]] = {}
    for (x, y), number in zip(prompts.points.tolist(), prompts.mask_id.tolist(), strict=True):
        by_click.setdefault((x, y), set()).add(number)
    assert max(len(each) for each in by_click.values()) == 3  # whole, part, part of the part
    assert {float(g) for g in prompts.granularity} <= {float(g) for g in sample.granularity}


def test_balance_draws_small_granularities_more_often() -> None:
    """Nine of ten masks under the click have one granularity; balance makes the tenth as frequent as the nine."""
    from model.data.prompts import _choose

    granularity = np.array([0.95] * 9 + [0.15], dtype=np.float32)
    draws = np.random.default_rng(1).random((4000, 3))
    uniform = np.mean([_choose(granularity, each, 0.0) == 9 for each in draws])
    balanced = np.mean([_choose(granularity, each, 1.0) == 9 for each in draws])
    assert 0.07 < uniform < 0.13
    assert 0.46 < balanced < 0.54


def test_the_first_positions_are_seen_at_half_the_size(drawn_run: Path) -> None:
    settings = dataclasses.replace(SETTINGS, coarse_images=3, augmentation=NO_AUGMENTATION)
    examples = examples_of(drawn_run, settings)
    assert [examples[position].image.shape[0] for position in range(5)] == [16, 16, 16, 32, 32]


def test_parts_of_instances_with_few_parts_are_left_out_if_asked(drawn_run: Path) -> None:
    sample = drawn_sample(drawn_run)  # the first instance has two parts, the others none
    assert sample.with_scale(2).all()
    assert sample.with_scale(3).tolist() == [True, False, False, True, True]
    settings = dataclasses.replace(SETTINGS, masks_per_image=64, min_parts=3)
    for position in range(8):
        drawn = make_example(sample, position, seed=0, settings=settings).granularity
        assert drawn.size
        assert (drawn == 1.0).all()


def test_raw_bytes_are_what_the_shard_holds(drawn_run: Path) -> None:
    from pipeline.format.schema import sha256_of

    index = ShardIndex.open(drawn_run)
    for number in range(len(index)):
        image, record = index.read_raw(number)
        row = index.row(number)
        data = (drawn_run / row["shard"]).read_bytes()
        assert bytes(image) == data[row["image_offset"] : row["image_offset"] + row["image_size"]]
        assert sha256_of(bytes(record)) == row["json_sha256"]


def test_a_cut_shard_names_itself(drawn_run: Path, tmp_path: Path) -> None:
    directory = tmp_path / "copy"
    shutil.copytree(drawn_run, directory)
    row = ShardIndex.open(directory).row(6)
    shard = directory / row["shard"]
    shard.write_bytes(shard.read_bytes()[: row["json_offset"] + 10])
    with pytest.raises(BadSampleError, match="the file is cut") as error:
        ShardIndex.open(directory).load(6)
    assert row["shard"] in str(error.value)


def test_the_bench_reads_the_same_bytes_on_both_sides(drawn_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.bench.load.has_energon", lambda: False)  # it takes some seconds
    from model.bench.load import run
    from pipeline.bench.report import BenchOptions

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves its files to the garbage collector
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools' arrays know less than numpy asks of them
        report = run(BenchOptions(repeats=1, input=[str(drawn_run)]))
        gc.collect()
    assert report.checks["all sides read the same bytes"]
    assert report.ratio is not None
    assert report.ratio > 0  # how much it is depends on the images and on what else the machine does
    assert [row["side"] for row in report.rows] == [
        "ours",
        "webdataset",
        "simplejpeg, msgspec, pycocotools: decoding, 16 masks",
        "simplejpeg, msgspec, our masks to pixels: decoding, 16 masks",
        "ours: decoding, all masks",
        "ours: decoding, examples",
        "ours: decoding, examples, augmentation",
        "ours: the paper's recipe, 1024 px, 30 masks, turned",
    ]
    rates = [row["samples_per_cpu_s"] for row in report.rows]
    assert report.details["augmentation_share"] == pytest.approx(rates[6] / max(rates[2:4]))
    assert report.details["augmentation_share_of_our_decoding"] == pytest.approx(rates[6] / rates[4])


@pytest.mark.slow
def test_the_bench_takes_energon_beside_it_where_it_is_installed(drawn_run: Path) -> None:
    pytest.importorskip("megatron.energon", reason="needs the extra [bench]")
    from model.bench.load import run
    from pipeline.bench.report import BenchOptions

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = run(BenchOptions(repeats=1, input=[str(drawn_run)]))
        gc.collect()
    assert report.checks["all sides read the same bytes"]
    assert [row["side"] for row in report.rows][:3] == ["ours", "webdataset", "energon"]


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "examples"]


def test_a_stream_ends_with_its_positions_and_a_closed_one_with_its_processes(drawn_run: Path) -> None:
    examples = examples_of(drawn_run)
    whole = stream(examples, iter(range(7)), workers=2)
    assert [each.position for each in whole] == list(range(7))
    assert list(whole) == []
    endless = stream(examples, itertools.count(), workers=2)
    assert [next(endless).position for _ in range(3)] == [0, 1, 2]
    assert loader_threads() == ["examples"]
    endless.close()
    assert loader_threads() == []
    assert multiprocessing.active_children() == []


def test_what_fails_in_a_loader_process_is_raised_at_its_place(drawn_run: Path) -> None:
    streamed = stream(examples_of(drawn_run), iter([0, 1, "no position"]), workers=1)  # type: ignore[list-item]
    assert [next(streamed).position for _ in range(2)] == [0, 1]
    with pytest.raises(TypeError):
        next(streamed)
    assert loader_threads() == []


def test_shards_on_remote_storage_give_the_same_examples(drawn_run: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(drawn_run), "/loader-test", recursive=True)
    try:
        local, remote = examples_of(drawn_run), examples_of("memory://loader-test")  # type: ignore[arg-type]
        assert [identity(remote[position]) for position in range(7)] == [identity(local[p]) for p in range(7)]
    finally:
        memory.rm("/loader-test", recursive=True)
