"""Batches of a unit on two sides at once: the same samples in the same order, and the next batch begun in time."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.labeling.config import MineConfig
from pipeline.labeling.miner import BatchFeatures, ImageInput, ImageMiner
from pipeline.sources.listing import plan_units
from pipeline.sources.units import parse_inputs
from pipeline.units.batches import BatchMiner, BatchResult, MinedSample, RunSpec


def mined(folder: Path, *, cpus: int, batch_size: int) -> list[BatchResult]:
    sources = parse_inputs([f"in={folder}"])
    unit = next(plan_units(sources, samples_per_shard=50, limit=None))
    run = RunSpec(
        output="out", config=MineConfig(), sources=sources, config_hash="", environment={}, sample_timeout_s=60.0,
        memory_limit_bytes=2**33, batch_size=batch_size, cpus=cpus,
    )  # fmt: skip
    miner = BatchMiner(run)
    count = miner.open(unit)
    held: list[int] = []
    thread = threading.get_ident()

    def holding(position: int, identity: object) -> None:
        assert threading.get_ident() == thread, "only the main thread talks to the supervisor"
        held.append(position)

    results = [
        miner.mine(range(first, min(first + batch_size, count)), holding=holding)
        for first in range(0, count, batch_size)
    ]
    miner.close()
    assert set(held) == set(range(count))
    return results


def samples(results: Sequence[BatchResult]) -> list[object]:
    return [each.sample if isinstance(each, MinedSample) else each for batch in results for each in batch.results]


def test_a_pool_gives_the_samples_of_one_thread(small_photographs: Path, tmp_path: Path) -> None:
    for path in small_photographs.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "p02.jpg").write_bytes(b"no image")
    alone = samples(mined(tmp_path, cpus=1, batch_size=3))
    assert samples(mined(tmp_path, cpus=3, batch_size=3)) == alone
    assert samples(mined(tmp_path, cpus=3, batch_size=1)) == alone
    assert len(alone) == 11
    assert sum(not hasattr(each, "annotations") for each in alone) == 1


def test_the_next_batch_is_begun_while_this_one_is_finished(
    small_photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`label` of the first batch waits until `features` of the second has run; without overlap it waits in vain."""
    batches: list[int] = []
    second = threading.Event()
    features, label = ImageMiner.features, ImageMiner.label

    def watched_features(self: ImageMiner, batch: Sequence[ImageInput]) -> list[BatchFeatures]:
        if batch and batch[0].source_uri != "warm-up":
            batches.append(len(batch))
            if len(batches) == 2:
                second.set()
        return features(self, batch)

    def waiting_label(self: ImageMiner, image: ImageInput, found: BatchFeatures) -> object:
        if image.source_uri != "warm-up":
            assert second.wait(30), "the second batch is not begun before the first is finished"
        return label(self, image, found)

    monkeypatch.setattr(ImageMiner, "features", watched_features)
    monkeypatch.setattr(ImageMiner, "label", waiting_label)
    results = mined(small_photographs, cpus=2, batch_size=4)
    assert batches == [4, 4, 3]
    assert len(samples(results)) == 11
