"""`grainmill score` on a hundred images with a thousand masks each; and stopped by a signal, then resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
from PIL import Image

from pipeline.format import rle, schema
from pipeline.labeling.config import MineConfig
from pipeline.mining import manifest
from pipeline.shards import commits, plan
from pipeline.shards.writer import ShardWriter
from pipeline.sources.listing import plan_units
from pipeline.sources.unit_reader import UnitReader
from pipeline.sources.units import parse_inputs
from pipeline.storage.open import open_storage

HEIGHT, WIDTH = 321, 481


def blobs(random: np.random.Generator, count: int) -> list[schema.Annotation]:
    """Ragged ellipses of all sizes, each an instance of its own, in the order of the contract."""
    noise = cv2.GaussianBlur(random.standard_normal((HEIGHT, WIDTH)), (0, 0), 2)
    noise /= np.abs(noise).max()
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    found: dict[str, tuple[int, rle.Rle, tuple[int, int, int, int]]] = {}
    while len(found) < count:
        radius = 4 * 2 ** (4.5 * random.random(2))
        distance = ((x - random.integers(WIDTH)) / radius[0]) ** 2 + ((y - random.integers(HEIGHT)) / radius[1]) ** 2
        mask = distance < 1 + 0.8 * noise
        if mask.sum() >= 16:
            encoded = rle.encode(mask)
            box = rle.bbox_xywh(rle.run_lengths_of(encoded), HEIGHT)
            found[encoded["counts"]] = (int(mask.sum()), encoded, box)
    ordered = sorted(found.values(), key=lambda each: (-each[0], each[1]["counts"].encode("ascii")))
    return [
        schema.Annotation(
            id=number, segmentation=encoded, bbox=box, area=area_px, granularity=1.0, instance_id=number,
            parent_id=None, level=None, origin="divide", score=None,
        )
        for number, (area_px, encoded, box) in enumerate(ordered)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A benchmark of 100 images with 80 objects each, and a run with 1,000 masks for each of them."""
    root = tmp_path_factory.mktemp("thousand")
    random = np.random.default_rng(0)
    drawn = [blobs(random, 1000) for _ in range(4)]
    (root / "images").mkdir()
    truth: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
    for number in range(100):
        Image.new("RGB", (WIDTH, HEIGHT), (number, 0, 0)).save(root / f"images/{number:03d}.png")
        truth["images"].append({"id": number, "height": HEIGHT, "width": WIDTH, "file_name": f"{number:03d}.png"})
        for each in random.choice(1000, 80, replace=False):
            made = drawn[(number + 1) % 4][each] if each % 2 else drawn[number % 4][each]
            entry = {"id": len(truth["annotations"]), "image_id": number, "area": made.area, "iscrowd": 0}
            truth["annotations"].append(entry | {"segmentation": dict(made.segmentation)})
    (root / "annotations.json").write_text(json.dumps(truth))
    storage = open_storage(root / "out", create=True)
    specs = parse_inputs([f"in={root / 'images'}"])
    planned = plan_units(specs, samples_per_shard=100, limit=None)
    made_plan = plan.create_plan(storage, MineConfig(samples_per_shard=100), specs, environment={}, units=planned)
    (unit,) = made_plan.units(storage)
    with ShardWriter(storage, unit=0, attempt="drawn") as writer:
        with UnitReader(unit, specs) as reader:
            for index in range(len(reader)):
                read = reader.read(index)
                sample = schema.Sample(
                    key=read.key, source_uri=read.source_uri, member=None, source_sha256=read.sha256, license=None,
                    width=WIDTH, height=HEIGHT, exif_orientation=1, file_name=f"{read.key}.png",
                    annotations=tuple(drawn[index % 4]),
                )  # fmt: skip
                writer.add(sample, read.image)
        outputs = writer.finish()
        outputs.publish(storage)
    commit = commits.make_commit(
        outputs, unit=0, config_hash=made_plan.config_hash, seconds={"wall": 1.0}, environment={}, attempt="drawn",
        notes=[],
    )  # fmt: skip
    assert commits.CommitWriter(storage).create(commit)
    manifest.write_manifest(storage, made_plan)
    return root, root / "out"


def start(root: Path, masks: Path, output: Path, *flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable, "-m", "pipeline", "score", "--benchmark", "coco-json", "--data", str(root), "--masks",
            str(masks), "--output", str(output), "--json", *flags,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )  # fmt: skip


def rss_bytes(process: psutil.Process) -> int:
    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            total += each.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


@pytest.mark.slow
def test_a_hundred_images_with_a_thousand_masks(thousand: tuple[Path, Path], tmp_path: Path) -> None:
    """Under 2 GiB, and under 60 s of two cores: processor time is what a loaded machine leaves alone."""
    root, masks = thousand
    before = os.times()
    process = start(root, masks, tmp_path / "s", "--workers", "2")
    watched = psutil.Process(process.pid)
    peak = 0
    while process.poll() is None:
        try:
            peak = max(peak, rss_bytes(watched))
        except psutil.NoSuchProcess:
            break
        time.sleep(0.2)
    out, err = process.communicate()
    assert process.returncode == 0, err
    after = os.times()
    spent_s = after.children_user + after.children_system - before.children_user - before.children_system
    record = json.loads(out)
    assert record["dataset"]["images"] == 100
    assert record["metrics"]["masks_per_image"]["value"] == 1000
    assert 0.5 < record["metrics"]["AR1000"]["value"] < 1
    print(f"processor time {spent_s:.1f} s, peak {peak / 2**20:.0f} MiB")
    assert spent_s < 2 * 60
    assert peak < 2 * 2**30


@pytest.mark.slow
def test_stopped_by_a_signal_it_goes_on_with_the_same_numbers(thousand: tuple[Path, Path], tmp_path: Path) -> None:
    root, masks = thousand
    undisturbed, err = start(root, masks, tmp_path / "a", "--limit", "20", "--workers", "2").communicate()
    assert undisturbed, err
    process = start(root, masks, tmp_path / "b", "--limit", "20", "--workers", "2")
    while process.poll() is None and len(list((tmp_path / "b/parts").glob("[!.]*.json"))) < 3:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    if process.returncode != 0:  # else it was faster than the signal
        assert process.returncode == 130, err
        assert "goes on from here" in err
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "b/parts").glob("[!.]*.json")}
    assert kept
    out, err = start(root, masks, tmp_path / "b", "--limit", "20", "--workers", "1").communicate()
    assert out, err
    assert all(path.stat().st_mtime_ns == changed for path, changed in kept.items())  # nothing was done twice
    first, second = json.loads(undisturbed), json.loads(out)
    for name in ("metrics", "curves", "details", "dataset"):
        assert first[name] == second[name]
