"""The kit for a machine with a GPU: packed here, installed without an index, and run at toy size on a processor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gpu, reduced_shards
from model.data.shards import ShardIndex
from pipeline.format.schema import sample_from_json, validate_sample


def test_reduced_shards_hold_the_same_trees(drawn_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "reduced"
    assert reduced_shards.main(["--data", str(drawn_run), "--output", str(output), "--longer-side", "48"]) == 0
    whole, small = ShardIndex.open(drawn_run), ShardIndex.open(output)
    assert sorted(small.sample_keys()) == sorted(whole.sample_keys())
    before = {key: whole.read_raw(number)[1] for number, key in enumerate(whole.sample_keys())}
    for number, key in enumerate(small.sample_keys()):
        sample = sample_from_json(bytes(small.read_raw(number)[1]), where=key)
        validate_sample(sample, where=key)
        full = sample_from_json(bytes(before[key]), where=key)
        assert max(sample.width, sample.height) == 48
        assert abs(sample.width / sample.height - full.width / full.height) < 0.05
        # The three wholes stay; of the nested parts those of which enough pixels are left, with their granularity.
        wholes = [each for each in sample.annotations if each.is_instance]
        assert len(wholes) == sum(each.is_instance for each in full.annotations)
        assert {each.granularity for each in sample.annotations} <= {each.granularity for each in full.annotations}
        scale = sample.width * sample.height / (full.width * full.height)
        largest = (max(each.area for each in found.annotations) for found in (sample, full))
        assert next(largest) == pytest.approx(scale * next(largest), rel=0.15)
        small.load(number)  # the image's bytes are those whose sha256 stands in its record


def test_reduced_shards_stop_where_the_room_ends(drawn_run: Path, tmp_path: Path) -> None:
    samples, _ = reduced_shards.write_reduced(
        [str(drawn_run)] * 1, str(tmp_path / "some"), longer_side=48, quality=80, max_bytes=6000
    )
    assert 0 < samples < len(ShardIndex.open(drawn_run))


def test_what_is_never_drawn_from_scratch_is_left_out(drawn_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "drawn"
    reduced_shards.main(["--data", str(drawn_run), "--output", str(output), "--longer-side", "64", "--drawn-only"])
    whole, small = ShardIndex.open(drawn_run), ShardIndex.open(output)
    drawable = {key: whole.load(number) for number, key in enumerate(whole.sample_keys())}
    for number, key in enumerate(small.sample_keys()):
        validate_sample(sample_from_json(bytes(small.read_raw(number)[1]), where=key), where=key)
        expected = drawable[key].drawable(min_parts=10, smallest_parts=True, wholes_only=False)
        assert 0 < len(small.load(number).counts) <= np.count_nonzero(expected)
    assert any(
        not each.drawable(min_parts=10, smallest_parts=True, wholes_only=False).all() for each in drawable.values()
    )


def test_a_loop_that_is_cut_off_leaves_the_steps_it_had_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(asked: list[str]) -> None:
        run = Path(asked[asked.index("--work") + 1]) / "run"
        run.mkdir(parents=True)
        line = {"step": 1, "images_per_second": 9.0, "wait_share": 0.01, "memory_mib": 7.0, "loss": 1.0}
        (run / "metrics.jsonl").write_text(f"{json.dumps(line)}\n" * 2)
        raise ValueError("stopped before a step that counts")

    monkeypatch.setattr(gpu.train_speed, "main", stopped)
    with pytest.raises(ValueError, match="stopped before"):
        gpu.main(["loop", "--output", str(tmp_path), "--photographs", "none", "--data", "none", "--toy"])
    found = json.loads((tmp_path / gpu.RESULTS).read_text())["loop"]
    assert found["cut_off"] == "ValueError: stopped before a step that counts"
    assert found["images_per_second"] == [9.0, 9.0]
    assert not (tmp_path / "work-loop").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_kit_installs_without_an_index_and_runs(
    repository: Path, drawn_run: Path, photographs: Path, tmp_path: Path
) -> None:
    kit, output, images = tmp_path / "kit", tmp_path / "output", tmp_path / "images"
    images.mkdir()
    for name in ("coffee.png", "chelsea.png"):
        (images / name).write_bytes((photographs / name).read_bytes())
    packed = subprocess.run(
        ["bash", str(repository / "infra/gpu/prepare.sh"), str(kit), str(images), str(drawn_run)],
        env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if packed.returncode != 0 and "No matching distribution" in packed.stderr + packed.stdout:
        pytest.skip("no package index to take wheels from")
    assert packed.returncode == 0, packed.stderr
    done = subprocess.run(
        ["bash", str(kit / "code/infra/gpu/run.sh"), str(output), "--size", "micro", "--init", "scratch"],
        env={**os.environ, "PYTHON": sys.executable, "TOY": "1", "BUDGET_S": "1500", "GRAINMILL_TEST_DEVICE": "cpu",
             "STEP_S": "400", "MILL_S": "300", "COMPILED_S": "300"},
        capture_output=True, text=True, check=False, timeout=1600,
    )  # fmt: skip
    log = (output / "run.log").read_text()
    assert done.returncode == 0, done.stderr + log
    found = json.loads((output / "results.json").read_text())
    expected = {"machine", "tests", "step", "loop", "compiled", "mill", "automatic", "nccl", "student-1"}
    assert expected <= set(found), log
    assert found["tests"]["exit"] == 0
    assert {"eager", "transformer", "transformer and encoder"} <= set(found["compiled"])
    assert len(found["automatic"]["one_encoding_s_by_pass"]) == 4
    assert found["nccl"]["equal"]
    assert found["student-1"]["last"]["step"] == 4
    assert (output / "student-1.safetensors").stat().st_size > 0
    assert " exit 0," in done.stdout
    assert "exit 1" not in done.stdout.replace("exit 124", "cut")
