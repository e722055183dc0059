"""What goes wrong around training: full disks, stops at awkward moments, flags that do not go together, bad samples."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.data.sampler import Order, Sampler
from model.data.shards import ShardIndex
from model.network.checkpoint import checkpoint_steps, read_checkpoint
from model.network.load import load_granular, new_model, recorded_sight, trained_state
from model.network.sam2_base import build_base
from model.training import train as train_module
from model.training.config import RunOptions, images_per_pass
from model.training.distributed import Distributed
from model.training.run_log import RunLog
from model.training.train import train
from pipeline import cli
from pipeline.errors import GrainmillError, InputError, SchemaError
from tests.training import logged, small_config, small_options


def losses(output: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in logged(output)]


@pytest.fixture(scope="module")
def undisturbed(drawn_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps that is validated at its end, and that nothing disturbed."""
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    train(small_config(holdout=0.4), small_options(drawn_run, output, validation_images=2))
    return output


# -- full disks --------------------------------------------------------------------------------------------------------

FILL_AND_FREE = """
import os, sys
from model.training import train as module
from pipeline import cli
folder, real, calls = sys.argv[1], module.accumulate_gradients, 0
def step(*arguments, **named):
    global calls
    calls += 1
    if calls == 3:
        with open(folder + "/filler", "wb", buffering=0) as filler:
            for size in (2**20, 2**12):
                try:
                    while True:
                        filler.write(bytes(size))
                except OSError:
                    pass
    if calls == 6:
        os.unlink(folder + "/filler")
    return real(*arguments, **named)
module.accumulate_gradients = step
sys.exit(cli.main(sys.argv[2:]))
"""


def test_a_disk_that_is_full_for_a_while_costs_log_and_checkpoints_but_not_the_run(
    own_mounts: None, drawn_run: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """A file system of its own is full to the last page from the third step to the fifth."""
    output, kept = tmp_path / "out", tmp_path / "kept"
    output.mkdir()
    command = [
        sys.executable, "-c", FILL_AND_FREE, str(output), "train", "--data", str(drawn_run), "--output",
        str(output / "run"), "--image-size", "64", "--coarse-images", "0", "--masks-per-image", "4",
        "--global-batch-size", "2", "--steps", "6", "--threads", "1", "--log-every", "1", "--save-every", "2",
        "--holdout", "0.4", "--validate-every", "2", "--validation-images", "2", "--keep", "9", "--json",
    ]  # fmt: skip
    folder = shlex.quote(str(output))
    script = f"""
        mount -t tmpfs -o size=160m tmpfs {folder} || exit 99
        {shlex.join(command)}
        status=$?
        cp -a {folder} {shlex.quote(str(kept))}
        exit $status
    """
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    run = kept / "run"
    # A short line may still fit into a page that the file has; whatever is there is whole and true.
    assert {1, 2, 6} <= {step for step, _ in losses(run)}
    assert set(losses(run)) <= set(losses(undisturbed))
    assert {2, 6} <= {line["step"] for line in logged(run, "validation.jsonl")}
    assert sorted(checkpoint_steps(run)) == [2, 6]
    for name in ("pictures", "tensorboard"):
        assert done.stderr.count(f"{output}/run/{name}: could not be written") == 1, name
    assert "step-00000004.safetensors: could not be written" in done.stderr
    assert "training goes on, the last good checkpoint stands" in done.stderr
    best = read_checkpoint(run).record["progress"]
    assert best["best_step"] in (2, 6), "a best that was not saved"


def test_without_any_checkpoint_nobody_is_told_that_one_stands(
    drawn_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(path: Path, record: object, tensors: object) -> None:
        raise train_module.CheckpointWriteError(f"{path}: could not be written (No space left on device)")

    monkeypatch.setattr(train_module, "write_checkpoint", write)
    with pytest.raises(GrainmillError, match=r"step-00000003\.safetensors: could not be written"):
        train(small_config(steps=3), small_options(drawn_run, tmp_path / "run"))
    assert "training goes on, there is no checkpoint yet" in capsys.readouterr().err


def test_a_best_that_could_not_be_saved_is_not_the_best(
    drawn_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best validation is the first, whose checkpoint fails; of the later, worse ones the best stays."""
    scores = iter([0.9, 0.5, 0.6])
    real_validate, real_write = train_module.validate, train_module.write_checkpoint

    def validate(*arguments: Any, **named: Any) -> dict[str, Any]:
        return {**real_validate(*arguments, **named), "iou_label_g": next(scores)}

    def write(path: Path, record: Any, tensors: Any) -> None:
        if record["step"] == 2:
            raise train_module.CheckpointWriteError("no space")
        real_write(path, record, tensors)

    monkeypatch.setattr(train_module, "validate", validate)
    monkeypatch.setattr(train_module, "write_checkpoint", write)
    output = tmp_path / "run"
    train(
        small_config(holdout=0.4),
        small_options(drawn_run, output, validate_every=2, save_every=6, keep=1, validation_images=1),
    )
    progress = read_checkpoint(output).record["progress"]
    assert (progress["best_step"], progress["best_score"]) == (6, 0.6)


def test_a_line_that_does_not_fit_leaves_none_of_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import io

    log = RunLog(tmp_path, 0)
    log.metrics({"step": 1, "loss": 0.5})
    before = (tmp_path / "metrics.jsonl").read_bytes()
    real = io.FileIO.write

    class Half(io.FileIO):
        def write(self, data: Any) -> int:
            return real(self, data[: len(data) // 2])

    monkeypatch.setattr(Path, "open", lambda path, mode, buffering: Half(path, mode.replace("b", "")))
    log.metrics({"step": 2, "loss": 0.4})
    log.metrics({"step": 3, "loss": 0.3})
    monkeypatch.undo()
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert capsys.readouterr().err.count("metrics.jsonl: could not be written") == 1
    log.metrics({"step": 4, "loss": 0.2})
    assert [line["step"] for line in logged(tmp_path)] == [1, 4]


# -- stops at awkward moments ------------------------------------------------------------------------------------------


def test_a_run_that_ended_before_its_first_checkpoint_starts_anew(
    drawn_run: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    output.mkdir()
    (output / "metrics.jsonl").write_text('{"step": 1, "loss": 9.0}\n{"step": 2, "lo')
    with pytest.raises(InputError, match="--resume needs a checkpoint, found none; leave --resume out"):
        train(small_config(holdout=0.4), small_options(drawn_run, output, resume=True))
    train(small_config(holdout=0.4), small_options(drawn_run, output))
    assert "ended before its first checkpoint; starting anew" in capsys.readouterr().err
    assert losses(output) == losses(undisturbed)
    with pytest.raises(InputError, match="--resume goes on with it"):
        train(small_config(holdout=0.4), small_options(drawn_run, output))


def test_a_bad_sample_costs_none_of_the_steps_before_it(damaged_run: tuple[Path, str, str], tmp_path: Path) -> None:
    output = tmp_path / "run"
    settings = small_config(global_batch_size=1, steps=9)
    with pytest.raises(GrainmillError, match="--on-bad-sample skip"):
        train(settings, small_options(damaged_run[0], output, save_every=500))
    done = logged(output)[-1]["step"]
    assert sorted(checkpoint_steps(output)) == [done] != [0]
    summary = train(settings, small_options(damaged_run[0], output, save_every=500, resume=True, on_bad_sample="skip"))
    assert [line["step"] for line in logged(output)] == list(range(1, 10))
    assert summary["skipped"] == 1


@pytest.mark.parametrize("every", [0, 3])
def test_a_validation_that_was_interrupted_is_done_on_resuming(
    every: int, drawn_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the checkpoint and before the validation's line: that validation is still owed."""
    output, settings = tmp_path / "run", small_config(holdout=0.4)
    how = small_options(drawn_run, output, validate_every=every, validation_images=1, save_every=3)
    expected = tmp_path / "expected"
    train(settings, small_options(drawn_run, expected, validate_every=every, validation_images=1, save_every=3))

    class Killed(Exception):
        pass

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "validation", killed)
        with pytest.raises(Killed):
            train(settings, how)
    assert not (output / "validation.jsonl").exists()
    train(
        settings, small_options(drawn_run, output, validate_every=every, validation_images=1, save_every=3, resume=True)
    )
    assert logged(output, "validation.jsonl") == logged(expected, "validation.jsonl")
    assert losses(output) == losses(expected)
    found, wanted = (read_checkpoint(each).record["progress"] for each in (output, expected))
    assert found == wanted
    train(settings, small_options(drawn_run, output, validate_every=every, validation_images=1, resume=True))
    assert logged(output, "validation.jsonl") == logged(expected, "validation.jsonl"), "validated twice"


def test_a_damaged_newest_checkpoint_names_the_one_before(undisturbed: Path, drawn_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    shutil.copytree(undisturbed, output)
    newest = checkpoint_steps(output)[6]
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.raises(SchemaError, match="remove it, and --resume goes on from step 4"):
        train(small_config(holdout=0.4), small_options(drawn_run, output, resume=True))
    newest.unlink()
    train(small_config(holdout=0.4), small_options(drawn_run, output, resume=True, validation_images=2))
    assert losses(output) == losses(undisturbed)


def test_an_interrupted_command_says_how_it_goes_on(
    drawn_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(train_module, "accumulate_gradients", interrupted)
    command = ["train", "--data", str(drawn_run), "--output", str(tmp_path / "run"), "--image-size", "64"]
    try:
        assert cli.main(command) == 130
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "interrupted; --resume goes on from the newest checkpoint" in capsys.readouterr().err


# -- bad samples in validation, several ranks --------------------------------------------------------------------------


def test_a_bad_sample_in_validation_stops_or_is_passed_over(
    damaged_run: tuple[Path, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = small_config(holdout=0.4, steps=1)
    with pytest.raises(GrainmillError, match="`--on-bad-sample skip` validates on others"):
        train(settings, small_options(damaged_run[0], tmp_path / "stops"))
    summary = train(settings, small_options(damaged_run[0], tmp_path / "skips", on_bad_sample="skip"))
    assert capsys.readouterr().err.count("skipped in validation:") == 1
    assert summary["validation"]["images"] >= 1


def test_what_the_first_rank_raises_all_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gathering of two ranks, in one process; `torchrun` itself is run by the tests of two processes."""
    error = InputError("nothing to validate on")
    ranks = Distributed("cpu")
    ranks.ranks, ranks.rank = 2, 1
    monkeypatch.setattr(ranks, "gather", lambda value: [error, value])
    with pytest.raises(InputError, match="nothing to validate on"):
        ranks.on_first(lambda: 1)
    monkeypatch.setattr(ranks, "gather", lambda value: [None, value])
    assert ranks.on_first(lambda: 1) is None


def test_two_ranks_agree_on_what_is_left_to_save(drawn_run: Path, tmp_path: Path) -> None:
    """Stopped by its time limit after one step, whose checkpoint the first rank has already written as the best."""
    output = tmp_path / "run"
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m",
            "pipeline", "train", "--data", str(drawn_run), "--output", str(output), "--image-size", "64",
            "--masks-per-image", "4", "--global-batch-size", "2", "--steps", "6", "--threads", "1", "--device", "cpu",
            "--holdout", "0.4", "--validate-every", "1", "--validation-images", "1", "--time-limit-s", "0", "--json",
        ],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["stopped"] == "time limit"
    assert sorted(checkpoint_steps(output)) == [1]


# -- commits that are not what they should be --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "grainmill/2"}, "commits/00000001.json: format is 'grainmill/2', this version reads 'grainmill/1'"),
        ({"shard": {}}, "commits/00000001.json: .*missing required field `name`.*shard.*; `grainmill verify`"),
        ({"index": None}, "the commit of unit 1 names a shard and no index; `grainmill verify`"),
    ],
)
def test_a_commit_of_another_kind_is_refused(
    change: dict[str, Any], message: str, drawn_run: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "unfinished"
    shutil.copytree(drawn_run, directory)
    (directory / "manifest.json").unlink()
    path = directory / "commits" / "00000001.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(SchemaError, match=message):
        ShardIndex.open(directory)


# -- flags that do not go together -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output": "s3://bucket/run"}, "--output s3://bucket/run: expected a local folder"),
        ({"validate_every": 2}, "--validate-every 2: there is nothing to validate on; add --holdout"),
    ],
)
def test_flags_are_refused_before_anything_is_read(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    values = {"data": "nowhere", "output": str(tmp_path), "device": "cpu", **change}
    with pytest.raises(InputError, match=message):
        train(small_config(), RunOptions(**values))
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_a_file_is_refused(drawn_run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(InputError, match="expected a folder, found a file there"):
            train(small_config(steps=1), small_options(drawn_run, output))


def test_an_image_size_is_judged_before_what_follows_from_it() -> None:
    with pytest.raises(InputError, match="--image-size 100: expected a multiple of 32"):
        small_config(image_size=100, coarse_images=4)


@pytest.mark.parametrize(("batch", "passes"), [(6, 3), (5, 1), (4, 4), (7, 1)])
def test_a_forward_pass_takes_as_many_photographs_as_divide_the_batch(
    batch: int, passes: int, drawn_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real: Callable[..., Any] = train_module.accumulate_gradients

    def counted(model: Any, examples: Any, *arguments: Any, **named: Any) -> Any:
        seen.append(len(examples))
        return real(model, examples, *arguments, **named)

    monkeypatch.setattr(train_module, "accumulate_gradients", counted)
    train(small_config(global_batch_size=batch, steps=1), small_options(drawn_run, tmp_path / "run"))
    assert seen == [passes] * (batch // passes)


def test_on_a_gpu_a_micro_model_takes_many_at_once() -> None:
    for size, share, passes in ((256, 32, 32), (256, 96, 48), (512, 32, 16), (1024, 6, 3)):
        assert images_per_pass(small_config(image_size=size, coarse_images=0), share, on_gpu=True) == passes


# -- before anything is trained ----------------------------------------------------------------------------------------


def dry_run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit code, and what was told: JSON, or the message."""
    code = cli.main(["train", "--dry-run", "--device", "cpu", *map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out if code == 0 else err


def test_a_dry_run_opens_what_training_would_open(
    drawn_run: Path,
    write_drawn_run: Callable[..., Path],
    undisturbed: Path,
    damaged_run: tuple[Path, str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base, page = tmp_path / "base.pt", tmp_path / "sam2.1_hiera_tiny.pt"
    torch.save({"model": build_base("micro", 64).state_dict()}, base)
    page.write_text("<!DOCTYPE html><title>403</title>")
    empty = write_drawn_run(tmp_path / "bare", images=False)
    seed = next(seed for seed in range(99) if Sampler(7, seed=seed, order=Order()).sample(0) == 3)  # the damaged one
    same = ("--size", "micro", "--image-size", "64", "--min-masks", "1")
    run = (*same, "--data", drawn_run, "--output", tmp_path / "new")
    code, told = dry_run(capsys, *run, "--init", base, "--adapter", "lite", "--holdout", "0.4")
    assert code == 0
    assert [line.split(":")[0] for line in json.loads(told)["opened"]] == [
        f"--data {drawn_run}", f"--init {base}", "3 images to validate on",
    ]  # fmt: skip
    for arguments, message in (
        ((*same, "--init", page), "a web page (HTML)"),
        ((*same, "--init", tmp_path / "gone.pt"), "gone.pt: expected a checkpoint file, found nothing"),
        (("--size", "tiny", "--init", base), "its weights look like size micro"),
        ((*run[:-4], "--data", tmp_path / "gone", "--output", "x"), "gone"),
        ((*run[:-4], "--data", empty, "--output", "x"), "mined with --no-images"),
        ((*run[:-4], "--data", damaged_run[0], "--output", "x", "--seed", seed), damaged_run[1]),
        ((*run, "--validation-data", tmp_path / "nothing"), "nothing"),
        ((*run, "--validation-data", drawn_run), "holds samples of --data"),
        ((*run, "--validate-every", "2"), "there is nothing to validate on"),
        ((*run[:-1], undisturbed), "--resume goes on with it"),
        ((*run, "--resume"), "--resume needs a checkpoint, found none"),
        ((*run, "--min-masks", "99"), "there is nothing to train on"),
    ):
        code, told = dry_run(capsys, *arguments)
        assert code != 0, arguments
        assert message in told, told
    assert not (tmp_path / "new").exists()
    code, told = dry_run(capsys, "--size", "small")
    assert code == 0
    assert json.loads(told)["not_opened"] == ["--init sam2.1_hiera_small: it will be fetched"]


def test_a_dry_run_of_a_resumption_reads_the_checkpoint(
    drawn_run: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    shutil.copytree(undisturbed, output)
    told = train_module.describe(small_config(holdout=0.4), small_options(drawn_run, output, resume=True))
    assert told["opened"][-1] == f"--resume: {checkpoint_steps(output)[6]}"
    newest = checkpoint_steps(output)[6]
    newest.write_bytes(newest.read_bytes()[:-9])
    with pytest.raises(SchemaError, match="remove it, and --resume goes on from step 4"):
        train_module.describe(small_config(holdout=0.4), small_options(drawn_run, output, resume=True))


# -- training on -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", ["full", "lite"])
def test_more_steps_are_another_run_that_begins_with_the_weights_of_this_one(
    adapter: str, drawn_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message of --resume names the way, and the way is one."""
    init = "scratch"
    if adapter == "lite":
        init = str(tmp_path / "base.pt")
        torch.save({"model": build_base("micro", 64).state_dict()}, init)
    flags = [
        "train", "--data", str(drawn_run), "--min-masks", "1", "--image-size", "64", "--masks-per-image", "2",
        "--global-batch-size", "1", "--threads", "1", "--device", "cpu", "--coarse-images", "0", "--clicks", "1",
    ]  # fmt: skip
    first, then, last = (tmp_path / name for name in ("first", "then", "last"))
    begun = [*flags, "--size", "micro", "--adapter", adapter, "--init", init, "--output", str(first)]
    assert cli.main([*begun, "--steps", "1"]) == 0
    capsys.readouterr()
    assert cli.main([*begun, "--steps", "2", "--resume"]) == 3
    told = capsys.readouterr().err
    assert "steps: 1 there, 2 now" in told
    way = told[told.index("`--init") + 1 :].partition("`")[0]
    assert way == f"--init {first} --size micro --adapter {adapter} --steps N --output ANOTHER"
    further = way.replace("ANOTHER", str(then)).split()
    assert cli.main([*flags, *[each if each != "N" else "1" for each in further]]) == 0
    old, new = read_checkpoint(first), read_checkpoint(then)
    moved = [name for name, value in new.group("model").items() if not torch.equal(value, old.group("model")[name])]
    assert moved
    sight = recorded_sight(old.record)
    fresh = new_model("micro", adapter, 64, init=str(first), seed=5, sight=sight)  # type: ignore[arg-type]
    assert all(torch.equal(value, old.group("model")[name]) for name, value in trained_state(fresh).items())
    if adapter == "lite":
        assert new.record["base"] == old.record["base"]
        assert load_granular(then).adapter == "lite"
        other = [each if each not in ("N", "lite") else {"N": "1", "lite": "paper"}[each] for each in further]
        assert cli.main([*flags, *[str(last) if each == str(then) else each for each in other]]) == 2
        assert "of size micro and adapter paper (--size, --adapter) to train on from" in capsys.readouterr().err
