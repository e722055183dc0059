"""The training loop, readable top to bottom.

positions -> examples -> gradients, summed over ranks -> AdamW -> metrics.jsonl, checkpoints, validation. What a step
computes is a function of (configuration, weights, optimizer, step), so a run resumed at any checkpoint gives the
numbers of one that never stopped (equal ranks and threads; otherwise sums are rounded in another order).
"""

from __future__ import annotations

import contextlib
import itertools
import math
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
import torch
from torch import Tensor, nn

from pipeline.console import ProgressBar, note
from pipeline.errors import ConfigMismatchError, GrainmillError, InputError, InterruptedRunError, SchemaError
from pipeline.format.schema import sha256_of

from ..data.sampler import LoaderState, batch_positions
from ..data.shards import Locations, told_locations
from ..data.stream import AHEAD, Example, TrainingDataset, stream
from ..network.checkpoint import (
    Checkpoint,
    CheckpointWriteError,
    checkpoint_steps,
    prune,
    read_checkpoint,
    step_path,
    write_checkpoint,
)
from ..network.granular import GranularSam2
from ..network.load import SCRATCH, checkpoint_record, install_trained, new_model, trained_state
from ..network.pixels import normalised_batch
from ..network.sam2_base import is_at_hand, parameter_count
from ..network.trunks import STANDARD_IMAGES, STATE_PREFIX
from ..predict.draw import Rgb
from .config import RunOptions, TrainConfig, expect_usable, images_per_pass, resumed_config
from .dense_loss import DenseHead
from .distributed import Distributed
from .feature_cache import FeatureCache, expect_cacheable, space_needed, told_features
from .run_log import METRICS, RunLog
from .step import SUMS, accumulate_gradients
from .validation import Validation, validate

HEAD: Final = "dense_head"
"""Before the names of the dense loss's head in checkpoints."""


@dataclass
class Progress:
    """Where a run stands."""

    step: int = 0
    position: int = 0
    skipped: int = 0
    best_step: int | None = None
    best_score: float | None = None
    last_metrics: dict[str, Any] | None = None


def train(config: TrainConfig, options: RunOptions) -> dict[str, Any]:
    """Trains, or goes on training.

    Args:
        config: what is computed.
        options: how.

    Returns:
        steps, position, skipped, last metrics, validation, checkpoint, seconds, interrupted.

    Raises:
        InputError: data, base or output that do not fit, or features that cannot be kept.
        ConfigMismatchError: `--resume` with another configuration.
        GrainmillError: the loss is not finite, or a sample is bad and `--on-bad-sample` is `stop`.
    """
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    with Distributed(options.device) as ranks, _Interrupts() as interrupts:
        return Trainer(config, options, ranks, interrupts).run()


class _Interrupts:
    """Notes SIGINT and SIGTERM instead of dying, so that a step is finished and saved first."""

    def __init__(self) -> None:
        self.seen = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Interrupts:
        with contextlib.suppress(ValueError):  # not in the main thread: whoever runs us there handles signals
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, signum: int, frame: object) -> None:
        if self.seen:  # asked twice: go at once, the last checkpoint stands
            raise KeyboardInterrupt
        self.seen = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Trainer:
    def __init__(self, config: TrainConfig, options: RunOptions, ranks: Distributed, interrupts: _Interrupts) -> None:
        self.config, self.options, self.ranks, self.interrupts = config, options, ranks, interrupts
        self.output = Path(options.output)
        expect_usable(config, options)
        share = len(batch_positions(0, global_batch_size=config.global_batch_size, rank=0, ranks=ranks.ranks))
        self.micro = options.micro_batch_size or images_per_pass(config, share, on_gpu=ranks.device.type == "cuda")
        if share % self.micro:
            raise InputError(
                f"--global-batch-size {config.global_batch_size} is {share} for each of {ranks.ranks} ranks, which "
                f"does not divide by --micro-batch-size {self.micro}"
            )
        saved, config = saved_run(config, options)
        self.config = config
        if saved is None and (self.output / METRICS).exists() and ranks.is_first:
            note(f"{self.output}: the run that lies here ended before its first checkpoint; starting anew")
        if options.cache_features is not None:
            expect_cacheable(config)
        self.examples = _examples(options.data, config)
        self.progress = Progress()
        self.saved_step = 0
        """Of the newest checkpoint; the first rank's counts."""
        self.model = _fresh_model(config, options)
        self.record = {**checkpoint_record(self.model, init=config.init), "config": config.to_json()}
        self.model.to(ranks.device)
        if config.trunk is not None and config.init == SCRATCH and saved is None:
            self._standardise_trunk()
        if options.compile_encoder:
            self.model.base.image_encoder.compile()  # in place, so that names in checkpoints stay
        self.cache = self._open_cache()
        self.trainable_names = self.model.set_trainable()
        named = dict(self.model.named_parameters())
        self.trainable = [named[name] for name in self.trainable_names]
        self.head = dense_head(self.model, config)
        """Trained with the model and left behind: no part of its checkpoint's `model` tensors."""
        if self.head is not None:
            self.head.to(ranks.device)
            self.trainable_names += [f"{HEAD}.{name}" for name, _ in self.head.named_parameters()]
            self.trainable += self.head.parameters()
        on_cpu = ranks.device.type == "cpu"
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(self.trainable_names, self.trainable, config),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=on_cpu,
            foreach=not on_cpu,
        )
        self.validation = ranks.on_first(self._open_validation) or Validation(images=())
        if saved is not None:
            self._restore(saved)
        self.log: RunLog | None = None
        self.started_s = time.monotonic()

    def _standardise_trunk(self) -> None:
        """From some images as they are, the first of the run's order; every rank takes the first one's figures."""
        trunk = self.model.base.image_encoder.trunk

        def found() -> list[tuple[Tensor, Tensor]]:
            pixels = self.examples.images(STANDARD_IMAGES)
            images = (normalised_batch([each], self.ranks.device) for each in pixels)
            statistics: list[tuple[Tensor, Tensor]] = trunk.statistics(images)
            if self.config.coarse_images:
                side = self.config.image_size // 2
                trunk.checked_levels(torch.zeros(1, 3, side, side, device=self.ranks.device))
            return statistics

        trunk.standardise(self.ranks.gather(self.ranks.on_first(found))[0])

    def _open_validation(self) -> Validation:
        return Validation.open(
            self.options.data,
            self.config,
            images=self.options.validation_images,
            apart=self.options.validation_data,
            skip_bad=self.options.on_bad_sample == "skip",
        )

    def _open_cache(self) -> FeatureCache | None:
        directory = self.options.cache_features
        if directory is None:
            return None
        cache = FeatureCache.open(directory, self.model, self.record["base"]["sha256"], self.config)
        if self.ranks.is_first:
            space = space_needed(directory, self.model, self.config, len(self.examples) - cache.stored())
            if space["features_bytes"] > space["free_bytes"]:
                note(
                    f"--cache-features {directory}: {space['features_bytes'] / 2**30:.1f} GiB are wanted and "
                    f"{space['free_bytes'] / 2**30:.1f} GiB are free; what does not fit is computed each time"
                )
        return cache

    # -- resuming and saving ---------------------------------------------------------------------------------------

    def _restore(self, saved: Checkpoint) -> None:
        state = _install_saved(saved, self.model, self.examples, self.config, self.record)
        if self.head is not None:
            self.head.load_state_dict(saved.group(HEAD))
        moments = saved.group("optimizer")
        for name, parameter in zip(self.trainable_names, self.trainable, strict=True):
            values = {key: moments[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            # In the parameter's layout, which the fused kernel takes for granted.
            self.optimizer.state[parameter] = {
                key: value if key == "step" else torch.empty_like(parameter, requires_grad=False).copy_(value)
                for key, value in values.items()
            }
        run = saved.record["progress"]
        self.progress = Progress(
            step=run["step"],
            position=state.next_position,
            skipped=run["skipped"],
            best_step=run["best_step"],
            best_score=run["best_score"],
        )
        self.saved_step = self.progress.step
        size_then = saved.record["config"]["global_batch_size"]
        if size_then != self.config.global_batch_size and self.ranks.is_first:
            note(
                f"batches of {self.config.global_batch_size} instead of {size_then}: going on at position "
                f"{state.next_position}"
            )

    def _save(self, *, must: bool = False) -> bool:
        """Writes a checkpoint; whether it could be. One that must be written and cannot ends the run on all ranks."""
        error = self._write_checkpoint() if self.ranks.is_first else None
        if must:
            self.ranks.agree(error)
        if error is not None:
            older = "the last good checkpoint stands" if checkpoint_steps(self.output) else "there is no checkpoint yet"
            note(f"{error}; training goes on, {older}")
            return False
        self.saved_step = self.progress.step
        return True

    def _write_checkpoint(self) -> CheckpointWriteError | None:
        tensors = {f"model.{name}": value for name, value in trained_state(self.model).items()}
        if self.head is not None:
            tensors |= {f"{HEAD}.{name}": value for name, value in self.head.state_dict().items()}
        for name, parameter in zip(self.trainable_names, self.trainable, strict=True):
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{key}.{name}"] = value
        progress = self.progress
        record = {
            **self.record,
            "step": progress.step,
            "loader": self.examples.state(progress.position).to_json(),
            "progress": {
                "step": progress.step,
                "skipped": progress.skipped,
                "best_step": progress.best_step,
                "best_score": progress.best_score,
            },
        }
        try:
            write_checkpoint(step_path(self.output, progress.step), record, tensors)
        except CheckpointWriteError as error:
            return error
        prune(self.output, keep=self.options.keep, best=progress.best_step)
        return None

    # -- the loop --------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        config, progress = self.config, self.progress
        self._train_mode()
        self.log = self.ranks.on_first(lambda: RunLog(self.output, progress.step))
        [validated_step] = self.ranks.sum([float(self.log.validated_step if self.log is not None else 0)])
        validates = bool(config.holdout or self.options.validation_data)
        stopped = ""
        validation: dict[str, Any] | None = None
        every = self.options.validate_every
        if every and progress.step % every == 0 and progress.step > validated_step:  # stopped before it was written
            validation, validated_step = self._validate(), progress.step
        share = config.global_batch_size // self.ranks.ranks
        streamed = stream(self.examples, self._positions(), workers=self.options.workers, ahead=max(AHEAD, 2 * share))
        bar = ProgressBar("train", config.steps, unit="steps", shown=self.ranks.is_first)
        with contextlib.closing(streamed) as examples, bar:
            while progress.step < config.steps and not stopped:
                metrics = self._step(examples)
                if self.ranks.is_first:
                    self._report(bar, metrics)
                if every and progress.step % every == 0:
                    validation, validated_step = self._validate(), progress.step
                if progress.step % self.options.save_every == 0 or progress.step == config.steps:
                    self._save(must=progress.step == config.steps)
                stopped = self._agree_to_stop()
        # The first rank alone knows: it also saves where a validation was the best.
        if any(self.ranks.gather(self.ranks.is_first and self.saved_step != progress.step)):
            self._save(must=True)
        if validates and not stopped and progress.step > validated_step:
            validation = self._validate()
        self.ranks.wait()
        if self.log is not None:
            self.log.close()
        return self._summary(stopped, validation)

    def _positions(self) -> Iterator[int]:
        start = self.progress.position
        for batch in itertools.count():
            yield from batch_positions(
                start + batch * self.config.global_batch_size,
                global_batch_size=self.config.global_batch_size,
                rank=self.ranks.rank,
                ranks=self.ranks.ranks,
            )

    def _step(self, stream_of_examples: Iterator[Example]) -> dict[str, Any]:
        config, progress = self.config, self.progress
        begun_s = time.perf_counter()
        share = config.global_batch_size // self.ranks.ranks
        examples = [next(stream_of_examples) for _ in range(share)]
        waited_s = time.perf_counter() - begun_s
        skipped = self._bad_samples(examples)
        # Dropout is the only chance that is not in the examples.
        torch.manual_seed(int(sha256_of(f"{config.seed}/{progress.step}/{self.ranks.rank}".encode())[:15], 16))
        seen = [each for each in examples if each.count]
        prompts, anchors = self.ranks.sum([
            float(sum(each.count for each in seen)), float(sum(len(each.anchors.points) for each in seen))
        ])  # fmt: skip
        self.optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(len(SUMS), dtype=torch.float64, device=self.ranks.device)
        for start in range(0, share, self.micro):
            sums += accumulate_gradients(
                self.model,
                examples[start : start + self.micro],
                config,
                prompts_in_step=max(prompts, 1.0),
                cache=self.cache,
                head=self.head,
                anchors_in_step=max(anchors, 1.0),
            )
        self.ranks.sum_gradients(self.trainable)
        clipped = nn.utils.clip_grad_norm_(self.trainable, config.gradient_norm_limit)
        # Read here for the first time in a step: a GPU has been given all work before.
        totals = dict(zip(SUMS, self.ranks.sum(sums.tolist()), strict=True))
        norm = float(clipped)
        self._expect_finite(totals["loss"] + totals["dense"], norm, examples)
        rate = learning_rate(config, progress.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        self.optimizer.step()
        progress.step += 1
        progress.position += config.global_batch_size
        progress.skipped += skipped
        features = self._feature_counts()
        seconds = time.perf_counter() - begun_s
        count = max(totals["prompts"], 1.0)
        return {
            "step": progress.step,
            "position": progress.position,
            **{name: totals[name] / count for name in SUMS[: SUMS.index("prompts")]},
            "prompts": int(totals["prompts"]),
            **({} if self.head is None else {"dense_loss": totals["dense"] / max(anchors, 1.0)}),
            "gradient_norm": norm,
            "learning_rate": rate,
            "skipped": progress.skipped,
            "images_per_second": config.global_batch_size / seconds,
            "wait_share": waited_s / seconds,
            "memory_mib": _memory_mib(self.ranks.device),
            **features,
        }

    def _feature_counts(self) -> dict[str, int]:
        """Over all ranks, since this process began; empty without a cache."""
        if self.cache is None:
            return {}
        read, computed, refused = self.ranks.sum(map(float, self.cache.counts()))
        return {"features_read": int(read), "features_computed": int(computed), "features_refused": int(refused)}

    def _bad_samples(self, examples: list[Example]) -> int:
        """Samples of this step that could not be read, over all ranks; stops if that is asked for."""
        problems = [each.problem for each in examples if each.problem]
        found = (
            [problem for rank in self.ranks.gather(problems) for problem in rank] if self.ranks.ranks > 1 else problems
        )
        if found and self.options.on_bad_sample == "stop":
            if self.progress.step > self.saved_step:  # so that --resume loses nothing
                self._save()
            raise GrainmillError(
                f"{found[0]}; `--on-bad-sample skip` goes on without such samples and counts them"
                + (f" ({len(found)} in this batch)" if len(found) > 1 else "")
            )
        if self.ranks.is_first:
            for problem in found:
                note(f"skipped: {problem}")
        return len(found)

    def _expect_finite(self, loss: float, norm: float, examples: list[Example]) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        keys = [key for rank in self.ranks.gather([each.key for each in examples]) for key in rank]
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient norm is {norm}"
        raise GrainmillError(
            f"step {self.progress.step + 1}: {what}; the batch held {', '.join(keys)}. The last checkpoint stands; "
            "a lower --learning-rate or --precision fp32 may help"
        )

    def _agree_to_stop(self) -> str:
        """Why to stop now, the same on every rank; empty to go on."""
        limit = self.options.time_limit_s
        late = limit is not None and time.monotonic() - self.started_s >= limit
        asked, late_ranks = self.ranks.sum([float(self.interrupts.seen), float(late and self.ranks.is_first)])
        return "interrupted" if asked else "time limit" if late_ranks else ""

    def _train_mode(self) -> None:
        """Dropout belongs to the adapter alone; the frozen base stays in evaluation mode."""
        self.model.eval()
        self.model.granularity_encoder.train()
        for layer in self.model.lora_modules():
            layer.train()

    # -- what people see -------------------------------------------------------------------------------------------

    def _report(self, bar: ProgressBar, metrics: dict[str, Any]) -> None:
        self.progress.last_metrics = metrics
        if metrics["step"] % self.options.log_every == 0 or metrics["step"] == self.config.steps:
            assert self.log is not None
            self.log.metrics(metrics)
        bar.update(
            metrics["step"],
            f"loss {metrics['loss']:.3f}, IoU {metrics['iou']:.3f}, {metrics['images_per_second']:.1f} images/s, "
            f"waits {metrics['wait_share']:.0%}, {metrics['memory_mib']:.0f} MiB{told_features(metrics)}",
        )

    def _validate(self) -> dict[str, Any] | None:
        """Measures the images that are not trained on, on the first rank, and keeps the best step."""
        return self.ranks.on_first(self._validate_here)

    def _validate_here(self) -> dict[str, Any]:
        assert self.log is not None
        progress = self.progress
        self.model.eval()
        found = validate(self.model, self.validation, show=self._show)
        self._train_mode()
        before = progress.best_step, progress.best_score
        if progress.best_score is None or found["iou_label_g"] > progress.best_score:
            progress.best_step, progress.best_score = progress.step, found["iou_label_g"]
            if not self._save():
                progress.best_step, progress.best_score = before
        self.log.validation({"step": progress.step, **found})
        return found

    def _show(self, number: int, picture: Rgb) -> None:
        assert self.log is not None
        self.log.picture(number, picture, self.progress.step)

    def _summary(self, stopped: str, validation: dict[str, Any] | None) -> dict[str, Any]:
        return {
            "rank": self.ranks.rank,
            "output": str(self.output),
            "step": self.progress.step,
            "steps": self.config.steps,
            "position": self.progress.position,
            "skipped": self.progress.skipped,
            "samples": len(self.examples),
            "metrics": self.progress.last_metrics,
            "validation": validation,
            "checkpoint": str(step_path(self.output, self.progress.step)),
            "seconds": round(time.monotonic() - self.started_s, 3),
            "stopped": stopped or None,
        }


def _parameter_groups(names: list[str], parameters: list[nn.Parameter], config: TrainConfig) -> list[dict[str, Any]]:
    """All that is trained, and apart from it a trunk, each with its share of the learning rate."""
    rate = config.trunk.rate if config.trunk is not None else 1.0
    shares = [rate if name.startswith(STATE_PREFIX) else 1.0 for name in names]
    return [
        {"params": [each for each, own in zip(parameters, shares, strict=True) if own == share], "share": share}
        for share in sorted(set(shares), reverse=True)
    ]


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then a cosine to the final rate; `step` counts from 0."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    span = config.learning_rate - config.final_learning_rate
    return config.final_learning_rate + span * 0.5 * (1 + math.cos(math.pi * done))


def interrupted(summary: dict[str, Any]) -> int | None:
    """The exit code that a summary asks for."""
    return InterruptedRunError.exit_code if summary["stopped"] == "interrupted" else None


def saved_run(config: TrainConfig, options: RunOptions) -> tuple[Checkpoint | None, TrainConfig]:
    """The newest checkpoint that `--resume` goes on from, None without it, and the configuration of the run.

    Raises:
        InputError: a run lies in the output that was not to be resumed, or there is none to resume.
        SchemaError: a damaged checkpoint.
        ConfigMismatchError: a run with another configuration.
    """
    output = Path(options.output)
    steps = checkpoint_steps(output)
    if not options.resume:
        if steps:
            raise InputError(
                f"{output}: a training run lies here already; --resume goes on with it, another --output starts another"
            )
        return None, config
    if not steps:
        raise InputError(f"{output}: --resume needs a checkpoint, found none; leave --resume out to start")
    try:
        saved = read_checkpoint(output)
    except SchemaError as error:
        older = sorted(steps)[-2:-1]
        hint = "".join(f"; remove it, and --resume goes on from step {step}" for step in older)
        raise SchemaError(f"{error}{hint}") from error
    try:
        return saved, resumed_config(saved.record["config"], config, where=str(saved.path))
    except ConfigMismatchError as error:
        if saved.record["config"].get("steps") == config.steps:
            raise
        raise ConfigMismatchError(
            f"{error}. The learning rate of a run follows its steps, so they cannot change; `--init {output} --size "
            f"{config.size} --adapter {config.adapter} --steps N --output ANOTHER` trains on from its weights"
        ) from error


def _install_saved(
    saved: Checkpoint, model: GranularSam2, examples: TrainingDataset, config: TrainConfig, record: dict[str, Any]
) -> LoaderState:
    """Puts a checkpoint's weights into the model of the same run, and says where its data goes on."""
    state = LoaderState.from_json(saved.record.get("loader"), where=str(saved.path))
    state.expect_same_data(examples.state(0), where=str(saved.path))
    if config.adapter != "full" and saved.record["base"]["sha256"] != record["base"]["sha256"]:
        raise InputError(f"{saved.path}: it was trained on another base than --init {config.init} holds")
    install_trained(model, saved)
    return state


def describe(config: TrainConfig, options: RunOptions) -> dict[str, Any]:
    """What `--dry-run` tells, after opening what `train` would open: base, data, validation data and, to resume, the
    checkpoint. Nothing is written or fetched.

    Args:
        config: of the run.
        options: of the run; `data` and `output` may be empty, then nothing of them is looked at.

    Returns:
        Parameters by count of the model as built; `opened` and `not_opened`, lines for people; with a cache of features
        what it takes, `features_bytes` and `images` None without data.

    Raises:
        InputError, ConfigMismatchError, GrainmillError: as `train`.
    """
    expect_usable(config, options)
    if options.cache_features is not None:
        expect_cacheable(config)
    saved, config = saved_run(config, options) if options.output else (None, config)
    opened, not_opened = [], []
    examples = _examples(options.data, config) if options.data else None
    if examples is not None:
        problem = examples[0].problem
        if problem and options.on_bad_sample == "stop":
            raise GrainmillError(f"{problem}; `--on-bad-sample skip` goes on without such samples and counts them")
        opened.append(f"--data {told_locations(options.data)}: {len(examples)} images to train on")
    if config.init != SCRATCH and not is_at_hand(config.init):
        model = GranularSam2(config.size, config.adapter, config.image_size, sight=config.sight, trunk=config.trunk)
        not_opened.append(f"--init {config.init}: it will be fetched")
    else:
        model = _fresh_model(config, options)
        if options.trunk_file is not None:
            opened.append(f"--trunk {options.trunk_file}")
        if config.init != SCRATCH:
            opened.append(f"--init {config.init}: weights of size {config.size}")
    if options.data:
        validation = Validation.open(
            options.data,
            config,
            images=options.validation_images,
            apart=options.validation_data,
            skip_bad=options.on_bad_sample == "skip",
        )
        if validation.images:
            opened.append(f"{len(validation.images)} images to validate on")
    if saved is not None and examples is not None and not not_opened:
        _install_saved(saved, model, examples, config, checkpoint_record(model, init=config.init))
        opened.append(f"--resume: {saved.path}")
    head = dense_head(model, config)
    told = {
        "size": config.size,
        "adapter": config.adapter,
        "image_size": config.image_size,
        **model.counts(),
        "training_only_parameters": 0 if head is None else parameter_count(head),
        "opened": opened,
        "not_opened": not_opened,
    }
    if options.cache_features is None:
        return told
    images = None if examples is None else len(examples)
    space = space_needed(options.cache_features, model, config, images or 0)
    return {**told, **space, "features_bytes": space["features_bytes"] if images else None, "images": images}


def _fresh_model(config: TrainConfig, options: RunOptions) -> GranularSam2:
    """The model that a run begins with."""
    return new_model(
        config.size,
        config.adapter,
        config.image_size,
        init=config.init,
        seed=config.seed,
        sight=config.sight,
        trunk=config.trunk,
        trunk_file=options.trunk_file,
        unsamv2_tokens=config.unsamv2_tokens,
    )


def dense_head(model: GranularSam2, config: TrainConfig) -> DenseHead | None:
    """A fresh head for the dense loss of a run; None: it has none."""
    return DenseHead(model.base.sam_mask_decoder.conv_s0.out_channels) if config.dense_anchors else None


def _examples(data: Locations, config: TrainConfig) -> TrainingDataset:
    return TrainingDataset(
        data,
        config.example_settings(),
        seed=config.seed,
        order=config.order,
        min_masks=config.min_masks,
        holdout=config.holdout,
    )


def _memory_mib(device: torch.device) -> float:
    """Peak memory of the GPU, or resident memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return float(psutil.Process().memory_info().rss) / 2**20
