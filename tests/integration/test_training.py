"""Training on real shards: resuming gives the same numbers, several processes act as one, what goes wrong says so."""

from __future__ import annotations

import dataclasses
import json
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.data.shards import ShardIndex
from model.network.checkpoint import CheckpointWriteError, checkpoint_steps, read_checkpoint
from model.network.load import load_granular
from model.network.merge import merge_checkpoint
from model.training import train as train_module
from model.training.config import TrainConfig
from model.training.train import train
from pipeline.errors import ConfigMismatchError, GrainmillError, InputError
from tests.training import logged, small_config, small_options

FLAGS = {
    "image-size": 64, "coarse-images": 4, "masks-per-image": 4, "global-batch-size": 2, "steps": 6, "min-masks": 1,
}  # fmt: skip


def config(**changes: Any) -> TrainConfig:
    """Six steps of two small views; the first two at half the size."""
    return small_config(**{"coarse_images": 4, "clicks": 2, **changes})


def numbers(output: Path) -> list[tuple[float, ...]]:
    """What each step computed."""
    return [
        tuple(line[name] for name in ("step", "loss", "dense_loss", "iou", "gradient_norm")) for line in logged(output)
    ]


def weights(output: Path) -> dict[str, Tensor]:
    return read_checkpoint(output).tensors


def go_back_to(output: Path, step: int) -> None:
    """As if the run had died after this checkpoint and before the next."""
    for number, path in checkpoint_steps(output).items():
        if number > step:
            path.unlink()


@pytest.fixture(scope="module")
def undisturbed(drawn_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps that nothing disturbed."""
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    summary = train(config(), small_options(drawn_run, output))
    assert summary["step"] == 6
    assert summary["stopped"] is None
    return output


@pytest.mark.parametrize("step", [2, 4])
def test_a_resumed_run_gives_the_numbers_of_one_that_never_stopped(
    drawn_run: Path, undisturbed: Path, tmp_path: Path, step: int
) -> None:
    output = tmp_path / "run"
    shutil.copytree(undisturbed, output)
    go_back_to(output, step)
    with (output / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 6, "loss": 1')  # a line that the crash cut
    train(config(), small_options(drawn_run, output, resume=True))
    assert numbers(output) == numbers(undisturbed)
    resumed = weights(output)
    for name, value in weights(undisturbed).items():
        assert torch.equal(value, resumed[name]), name


def test_a_run_leaves_metrics_and_tensorboard(undisturbed: Path) -> None:
    assert [line["step"] for line in logged(undisturbed)] == [1, 2, 3, 4, 5, 6]
    expected = {"loss", "iou", "images_per_second", "wait_share", "memory_mib", "learning_rate", "skipped", "position"}
    assert expected <= set(logged(undisturbed)[0])
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (the extra `app`)")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(undisturbed / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert [step for step, _ in found] == [1, 2, 3, 4, 5, 6]
    assert [value for _, value in found] == pytest.approx([line["loss"] for line in logged(undisturbed)])


def test_checkpoints_hold_all_that_resuming_needs(undisturbed: Path, tmp_path: Path) -> None:
    saved = read_checkpoint(undisturbed)
    assert set(saved.record) >= {"config", "loader", "progress", "step", "size", "adapter", "image_size"}
    assert saved.record["loader"]["next_position"] == 12
    assert saved.group("model")
    assert saved.group("dense_head")
    moments = {name.split(".")[0] for name in saved.group("optimizer")}
    assert moments == {"step", "exp_avg", "exp_avg_sq"}
    merge_checkpoint(undisturbed, tmp_path / "merged.safetensors")
    merged = read_checkpoint(tmp_path / "merged.safetensors")
    assert load_granular(merged.path).sight == config().sight
    assert {name.split(".")[0] for name in merged.tensors} == {"model"}, "what only training needs stays behind"


def test_another_batch_size_goes_on_at_the_next_position(
    drawn_run: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    shutil.copytree(undisturbed, output)
    go_back_to(output, 4)
    train(config(global_batch_size=4), small_options(drawn_run, output, resume=True))
    assert logged(output)[-1]["position"] == 8 + 2 * 4
    assert "going on at position 8" in capsys.readouterr().err


def test_other_data_another_configuration_and_nothing_to_resume_are_errors(
    drawn_run: Path, undisturbed: Path, write_drawn_run: Any, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    shutil.copytree(undisturbed, output)
    with pytest.raises(InputError, match="--resume goes on with it"):
        train(config(), small_options(drawn_run, output))
    other = write_drawn_run(tmp_path / "other", units=2)
    with pytest.raises(InputError, match="of other data: dataset_digest"):
        train(config(), small_options(other, output, resume=True))
    with pytest.raises(ConfigMismatchError, match=r"learning_rate: 0\.001 there, 0\.002 now"):
        train(config(learning_rate=2e-3), small_options(drawn_run, output, resume=True))
    with pytest.raises(InputError, match="--resume needs a checkpoint, found none"):
        train(config(), small_options(drawn_run, tmp_path / "nothing", resume=True))


GENTLE = 1e-4
"""A learning rate at which sums rounded in another order stay near each other; AdamW's first steps magnify them."""


def test_a_run_in_batches_of_parts_gives_nearly_the_same_numbers(drawn_run: Path, tmp_path: Path) -> None:
    for size in (1, 2):
        train(config(learning_rate=GENTLE), small_options(drawn_run, tmp_path / str(size), micro_batch_size=size))
    for ours, whole in zip(numbers(tmp_path / "1"), numbers(tmp_path / "2"), strict=True):
        assert ours == pytest.approx(whole, rel=2e-3, abs=2e-3)


def test_a_loss_that_is_not_finite_stops_with_the_keys(drawn_run: Path, tmp_path: Path) -> None:
    with pytest.raises(GrainmillError, match="the batch held ") as error:
        train(config(learning_rate=1e30), small_options(drawn_run, tmp_path / "run"))
    keys = set(ShardIndex.open(drawn_run).sample_keys())
    named = str(error.value).split("the batch held ")[1].split(". The last")[0].split(", ")
    assert len(named) == 2
    assert set(named) <= keys


# -- validation and pictures -------------------------------------------------------------------------------------------


def test_validation_draws_pictures_and_keeps_the_best(drawn_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    summary = train(
        config(holdout=0.4),
        small_options(drawn_run, output, validate_every=2, save_every=6, keep=1, validation_images=2),
    )
    found = logged(output, "validation.jsonl")
    assert [line["step"] for line in found] == [2, 4, 6]
    assert summary["validation"]["iou_label_g"] == found[-1]["iou_label_g"]
    assert found[-1]["fixed_g_chosen_elsewhere"]
    gain = found[-1]["gain_over_fixed_g"]
    assert gain["low"] <= gain["value"] <= gain["high"]
    assert gain["value"] == pytest.approx(found[-1]["iou_label_g"] - found[-1]["iou_best_fixed_g"])
    from PIL import Image

    pictures = sorted((output / "pictures").glob("*.png"))
    assert len(pictures) == 6
    with Image.open(pictures[0]) as picture:
        assert picture.width == 6 * 64  # the click, and five granularities
    best = max(found, key=lambda line: line["iou_label_g"])["step"]
    assert set(checkpoint_steps(output)) == {best, 6}


def test_validating_on_what_is_trained_on_is_refused(drawn_run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it holds samples of --data"):
        train(config(), small_options(drawn_run, tmp_path / "run", validation_data=str(drawn_run)))


# -- checkpoints and disks ---------------------------------------------------------------------------------------------


def test_only_the_newest_checkpoints_stay(drawn_run: Path, tmp_path: Path) -> None:
    train(config(), small_options(drawn_run, tmp_path / "run", save_every=1, keep=2))
    assert sorted(checkpoint_steps(tmp_path / "run")) == [5, 6]
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


def test_training_goes_on_without_space_for_a_checkpoint_and_says_so(
    drawn_run: Path,
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The limit on a file's size is the system's own; it makes the same write fail that a full disk would."""
    real, limit = train_module.write_checkpoint, resource.getrlimit(resource.RLIMIT_FSIZE)

    def write(path: Path, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        if path.name != "step-00000004.safetensors":
            return real(path, record, tensors)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
        try:
            real(path, record, tensors)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    monkeypatch.setattr(train_module, "write_checkpoint", write)
    output = tmp_path / "run"
    train(config(), small_options(drawn_run, output))
    assert sorted(checkpoint_steps(output)) == [2, 6]
    assert not list((output / "checkpoints").glob(".*"))
    assert numbers(output) == numbers(undisturbed)
    said = capsys.readouterr().err
    assert "step-00000004.safetensors: could not be written" in said
    assert "training goes on, the last good checkpoint stands" in said


def test_a_last_checkpoint_that_cannot_be_written_is_an_error(drawn_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    output.mkdir()
    (output / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(CheckpointWriteError, match="could not be written"):
        train(config(steps=1), small_options(drawn_run, output))


# -- bad samples -------------------------------------------------------------------------------------------------------


def test_a_bad_sample_stops_the_run_and_names_shard_and_key(damaged_run: tuple[Path, str, str], tmp_path: Path) -> None:
    directory, key, shard = damaged_run
    with pytest.raises(GrainmillError, match="--on-bad-sample skip") as error:
        train(config(), small_options(directory, tmp_path / "run"))
    assert key in str(error.value)
    assert shard in str(error.value)


def test_bad_samples_are_skipped_and_counted_if_asked(damaged_run: tuple[Path, str, str], tmp_path: Path) -> None:
    summary = train(config(steps=7), small_options(damaged_run[0], tmp_path / "run", on_bad_sample="skip"))
    assert summary["step"] == 7
    assert summary["skipped"] == 2  # seven samples, two epochs


# -- the real command --------------------------------------------------------------------------------------------------


def flags(data: Path, output: Path, *more: str) -> list[str]:
    given = [f"--{name}={value}" for name, value in FLAGS.items()]
    return [
        "train", "--data", str(data), "--output", str(output), "--size", "micro", "--init", "scratch", "--clicks", "2",
        "--threads", "1", "--log-every", "1", "--save-every", "2", "--keep", "9", "--json", *given, *more,
    ]  # fmt: skip


SIGNALLED = """
import os, signal, sys
from model.training import train
from pipeline import cli
place, number = sys.argv[1], signal.Signals[sys.argv[2]]
metrics, validate = train.RunLog.metrics, train.validate

def line(log, values):
    metrics(log, values)
    if place == f"after step {values['step']}":
        os.killpg(0, number)

def validation(*arguments, show):
    return validate(*arguments, show=(lambda *_: os.killpg(0, number)) if place == "in a validation" else show)

train.RunLog.metrics, train.validate = line, validation
sys.exit(cli.main(sys.argv[3:]))
"""


def signalled(place: str, number: signal.Signals, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """The command in a process group that gets a signal once it has come to this place, however slow the machine is."""
    command = [sys.executable, "-c", SIGNALLED, place, number.name, *arguments]
    return subprocess.run(command, capture_output=True, text=True, start_new_session=True, timeout=240, check=False)


def validated(output: Path) -> list[int]:
    return [line["step"] for line in logged(output, "validation.jsonl")]


def test_kills_anywhere_and_resuming_give_the_undisturbed_numbers(drawn_run: Path, tmp_path: Path) -> None:
    """Killed between two steps, with a loader process, and in the middle of a validation."""
    undisturbed, output = tmp_path / "undisturbed", tmp_path / "run"
    train(config(holdout=0.4), small_options(drawn_run, undisturbed, validate_every=2))
    arguments = flags(drawn_run, output, "--holdout", "0.4", "--validate-every", "2")
    for place, more, steps in (("after step 3", ["--workers", "1"], 3), ("in a validation", ["--resume"], 4)):
        killed = signalled(place, signal.SIGKILL, [*arguments, *more])
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert (len(logged(output)), validated(output)) == (steps, [2])
    train(config(holdout=0.4), small_options(drawn_run, output, validate_every=2, resume=True))
    assert numbers(output) == numbers(undisturbed)
    assert logged(output, "validation.jsonl") == logged(undisturbed, "validation.jsonl")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on a processor")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of its own making
def test_a_compiled_encoder_computes_the_same_and_leaves_the_same_names(
    drawn_run: Path, undisturbed: Path, tmp_path: Path
) -> None:
    train(config(), small_options(drawn_run, tmp_path / "run", compile_encoder=True, time_limit_s=0.0))
    [(_, *found), *_], [(_, *expected), *_] = numbers(tmp_path / "run"), numbers(undisturbed)
    assert found == pytest.approx(expected, rel=1e-3)
    assert weights(tmp_path / "run").keys() == weights(undisturbed).keys()


def test_ctrl_c_saves_and_exits_130(drawn_run: Path, undisturbed: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    arguments = flags(drawn_run, output, "--save-every", "100")
    stopped = signalled("after step 3", signal.SIGINT, arguments)
    assert stopped.returncode == 130, stopped.stderr
    summary = json.loads(stopped.stdout)
    assert (summary["stopped"], summary["step"]) == ("interrupted", 3)
    assert list(checkpoint_steps(output)) == [3]
    command = [sys.executable, "-m", "pipeline", *arguments, "--resume"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout)["step"] == 6
    assert numbers(output) == numbers(undisturbed)


def test_two_processes_give_the_numbers_of_one_even_when_one_has_nothing(
    damaged_run: tuple[Path, str, str], tmp_path: Path
) -> None:
    """Batches of two over two ranks: where the damaged sample is drawn, its rank joins with nothing."""
    one, two = tmp_path / "one", tmp_path / "two"
    train(config(learning_rate=GENTLE), small_options(damaged_run[0], one, on_bad_sample="skip"))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "pipeline",
        *flags(damaged_run[0], two, "--device", "cpu", "--on-bad-sample", "skip"),
        "--learning-rate", str(GENTLE),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["skipped"] >= 1
    for ours, alone in zip(numbers(two), numbers(one), strict=True):
        assert ours == pytest.approx(alone, rel=5e-3, abs=5e-3)
    resumed = dataclasses.replace(small_options(damaged_run[0], two, on_bad_sample="skip"), resume=True)
    go_back_to(two, 4)
    train(config(learning_rate=GENTLE), resumed)  # what two ranks saved, one goes on with
    assert numbers(two)[-1] == pytest.approx(numbers(one)[-1], rel=5e-3, abs=5e-3)
