"""Training with kept features gives the numbers of training without, whatever happens to the folder they lie in."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from model.data.sampler import Order
from model.network.checkpoint import checkpoint_steps, read_checkpoint
from model.network.granular import GranularSam2, ImageFeatures
from model.network.sam2_base import build_base
from model.training.config import AUGMENTATIONS, RunOptions, TrainConfig, make_config
from model.training.train import describe, train
from pipeline.errors import InputError
from tests.training import logged, small_config, small_options

FLAGS = {"image-size": 64, "masks-per-image": 4, "global-batch-size": 2, "steps": 6, "clicks": 2}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two frozen bases of sam2's classes with drawn weights."""
    folder = tmp_path_factory.mktemp("bases")
    for seed in (0, 1):
        torch.manual_seed(seed)
        save_file(build_base("micro", 64).state_dict(), folder / f"{seed}.safetensors")
    return folder / "0.safetensors", folder / "1.safetensors"


def config(base: Path, adapter: Any = "paper", **changes: Any) -> TrainConfig:
    return small_config(str(base), adapter, **{"augmentation": AUGMENTATIONS["none"], "clicks": 2, **changes})


def options(data: Path, output: Path, cache: Path | None, **changes: Any) -> RunOptions:
    return small_options(data, output, cache_features=None if cache is None else str(cache), **changes)


def numbers(output: Path) -> list[tuple[float, ...]]:
    return [tuple(line[name] for name in ("step", "loss", "iou", "gradient_norm")) for line in logged(output)]


def assert_same_run(one: Path, other: Path) -> None:
    """Every number of every step, and every bit of the weights and moments at the end."""
    assert numbers(one) == numbers(other)
    ours, theirs = read_checkpoint(one).tensors, read_checkpoint(other).tensors
    assert set(ours) == set(theirs)
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def counts(output: Path) -> tuple[int, int, int]:
    last = logged(output)[-1]
    return last["features_read"], last["features_computed"], last["features_refused"]


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Photographs in each call of the encoder."""
    calls: list[int] = []
    real = GranularSam2.encode

    def encode(self: GranularSam2, images: Tensor) -> ImageFeatures:
        calls.append(len(images))
        return real(self, images)

    monkeypatch.setattr(GranularSam2, "encode", encode)
    return calls


@pytest.fixture(scope="module")
def plain(drawn_run: Path, bases: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps without a cache."""
    output = tmp_path_factory.mktemp("plain") / "run"
    train(config(bases[0]), options(drawn_run, output, None))
    assert "features_read" not in logged(output)[-1]
    return output


def test_numbers_are_equal_and_a_second_run_calls_no_encoder(
    drawn_run: Path, bases: tuple[Path, Path], plain: Path, tmp_path: Path, encoded: list[int]
) -> None:
    cache = tmp_path / "cache"
    train(config(bases[0]), options(drawn_run, tmp_path / "first", cache))
    assert_same_run(tmp_path / "first", plain)
    assert counts(tmp_path / "first") == (5, 7, 0)  # twelve examples of seven photographs
    assert sum(encoded) == 7
    encoded.clear()
    train(config(bases[0]), options(drawn_run, tmp_path / "second", cache))
    assert encoded == []
    assert_same_run(tmp_path / "second", plain)
    assert counts(tmp_path / "second") == (12, 0, 0)


def test_lite_on_the_same_base_reads_what_paper_wrote(
    drawn_run: Path, bases: tuple[Path, Path], tmp_path: Path, encoded: list[int]
) -> None:
    cache = tmp_path / "cache"
    train(config(bases[0]), options(drawn_run, tmp_path / "paper", cache))
    train(config(bases[0], "lite"), options(drawn_run, tmp_path / "plain", None))
    encoded.clear()
    train(config(bases[0], "lite"), options(drawn_run, tmp_path / "lite", cache))
    assert encoded == []
    assert_same_run(tmp_path / "lite", tmp_path / "plain")


@pytest.mark.parametrize("how", ["the same", "empty", "none"])
def test_a_resumed_run_gives_the_same_numbers_whatever_became_of_the_cache(
    drawn_run: Path, bases: tuple[Path, Path], plain: Path, tmp_path: Path, how: str
) -> None:
    output, cache = tmp_path / "run", tmp_path / "cache"
    train(config(bases[0]), options(drawn_run, output, cache))
    for number, path in checkpoint_steps(output).items():
        if number > 2:
            path.unlink()
    if how == "empty":
        shutil.rmtree(cache)
    train(config(bases[0]), options(drawn_run, output, None if how == "none" else cache, resume=True))
    assert_same_run(output, plain)


def test_damaged_files_change_no_number_and_are_counted(
    drawn_run: Path, bases: tuple[Path, Path], plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    train(config(bases[0]), options(drawn_run, tmp_path / "first", cache))
    files = sorted(cache.rglob("*.safetensors"))
    files[0].write_bytes(files[0].read_bytes()[:-100])
    shutil.copy(files[1], files[2])
    train(config(bases[0]), options(drawn_run, tmp_path / "second", cache))
    assert_same_run(tmp_path / "second", plain)
    assert counts(tmp_path / "second") == (10, 2, 2)
    assert "features: 10 read, 2 computed, 2 files did not match" in capsys.readouterr().err


def test_another_base_and_another_image_size_share_a_folder_but_no_file(
    drawn_run: Path, bases: tuple[Path, Path], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    train(config(bases[0]), options(drawn_run, tmp_path / "first", cache))
    for name, other in {"base": config(bases[1]), "size": config(bases[0], image_size=96)}.items():
        train(other, options(drawn_run, tmp_path / name, cache))
        train(other, options(drawn_run, tmp_path / f"{name} without", None))
        assert counts(tmp_path / name) == (5, 7, 0)
        assert_same_run(tmp_path / name, tmp_path / f"{name} without")
    assert len(list(cache.iterdir())) == 3


def test_what_would_change_the_features_is_refused_with_the_flags_to_change(
    drawn_run: Path, bases: tuple[Path, Path], tmp_path: Path
) -> None:
    cases = [
        (config(bases[0], augmentation=AUGMENTATIONS["paper"]), "add --augmentation none"),
        (config(bases[0], coarse_images=2), "add --coarse-images 0"),
        (make_config("micro", "scratch", None, order=Order(), seed=0, holdout=0.0, min_masks=1, precision="fp32"),
         "train --adapter paper or lite on --init CKPT"),
    ]  # fmt: skip
    for refused, advice in cases:
        with pytest.raises(InputError, match=advice):
            train(refused, options(drawn_run, tmp_path / "run", tmp_path / "cache"))
        with pytest.raises(InputError, match=advice):
            describe(refused, RunOptions(data="", output="", cache_features=str(tmp_path / "cache")))
    assert not list(tmp_path.iterdir())


def flags(data: Path, output: Path, base: Path, cache: Path, *more: str) -> list[str]:
    given = [f"--{name}={value}" for name, value in FLAGS.items()]
    return [
        sys.executable, "-m", "pipeline", "train", "--data", str(data), "--output", str(output), "--size", "micro",
        "--init", str(base), "--augmentation", "none", "--cache-features", str(cache), "--threads", "1",
        "--device", "cpu", "--log-every", "1", "--save-every", "2", "--keep", "9", "--json", *given, *more,
    ]  # fmt: skip


def test_a_dry_run_tells_what_the_features_take(drawn_run: Path, bases: tuple[Path, Path], tmp_path: Path) -> None:
    command = flags(drawn_run, tmp_path / "run", bases[0], tmp_path / "cache", "--dry-run")
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert told["images"] == 7
    assert told["features_bytes_per_image"] == 16 * 2**10  # a quarter of 16 MiB at 1/16 of the side, squared
    assert told["features_bytes"] == 7 * 16 * 2**10
    assert told["free_bytes"] >= 0
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_kills_anywhere_leave_a_cache_that_is_true(
    drawn_run: Path, bases: tuple[Path, Path], plain: Path, tmp_path: Path
) -> None:
    output, cache = tmp_path / "run", tmp_path / "cache"
    for step in (1, 3, 4):
        resume = ["--resume"] if checkpoint_steps(output) else []
        process = subprocess.Popen(
            flags(drawn_run, output, bases[0], cache, *resume),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        deadline_s = time.monotonic() + 240
        while time.monotonic() < deadline_s and process.poll() is None:
            if (output / "metrics.jsonl").exists() and len(logged(output)) >= step:
                break
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if not checkpoint_steps(output):
            shutil.rmtree(output, ignore_errors=True)
    resume = ["--resume"] if checkpoint_steps(output) else []
    done = subprocess.run(
        flags(drawn_run, output, bases[0], cache, *resume), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert_same_run(output, plain)
    train(config(bases[0]), options(drawn_run, tmp_path / "again", cache))
    assert counts(tmp_path / "again") == (12, 0, 0)


@pytest.mark.slow
def test_two_processes_share_a_folder(drawn_run: Path, bases: tuple[Path, Path], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    command = flags(drawn_run, tmp_path / "two", bases[0], cache)
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *command[1:]]
    done = subprocess.run(ranks, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    read, computed, refused = counts(tmp_path / "two")
    assert (read + computed, refused) == (12, 0)
    assert computed >= 7
    train(config(bases[0]), options(drawn_run, tmp_path / "again", cache))
    assert counts(tmp_path / "again") == (12, 0, 0)
