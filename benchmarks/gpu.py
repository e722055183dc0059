"""What a GPU does with the project, part by part: `infra/gpu/run.sh` calls each with a time limit of its own.

    python -m benchmarks.gpu PART --output DIR --photographs DIR --data SHARDS [--seconds S] [--toy]
        [--train "FLAGS OF grainmill train"]

Each part writes its figures into `results.json` of the output before the next begins. Parts:

- machine: the card, its matrix and copy rates, the processor beside it.
- tests: the tests marked `gpu`.
- step: a step of training `small` at 1024 px by the paper's recipe in bf16, on drawn examples: its kernels, and its
  memory (`benchmarks.memory_recipe` computes it without a card).
- loop: the same recipe as a user runs it: images per second against the floor of counted FLOPs over the card's own
  matrix rate, and the share of time that it waits for examples.
- compiled: the step alone with `torch.compile` of the decoder's transformer, and of the encoder too.
- mill: `mine` with drawn weights, ViT-B/16 with crops of 768 px and ViT-B/8, against the backbone's own rate.
- automatic: all masks at ten granularities from one encoding, against ten encodings; by prompts in a pass, and with
  the decoder's transformer in bf16.
- nccl: one rank under torchrun, its losses beside those without.
- student: `grainmill train` with the given flags for as long as `--seconds` says; its checkpoint and curves. Several of
  different `--name` may train beside each other, each with its share of the loader processes.

`--toy` does all of it at a size for a processor, so that nothing runs for the first time on a card.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import io
import json
import os
import platform
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from benchmarks import train_speed
from model.data.sampler import Order
from model.data.stream import Example
from model.network.granular import GranularSam2
from model.predict.image import GranularPredictor
from model.predict.mask_generator import AutomaticConfig, generate_masks
from model.training.config import TrainConfig, make_config
from model.training.step import accumulate_gradients
from pipeline.bench.report import environment
from pipeline.environment.torch_compat import ensure_torchvision
from pipeline.format.granularity import GRANULARITIES
from pipeline.labeling.stages.backbone_features import Backbone
from pipeline.mining.flags import MineFlags
from pipeline.mining.job import mine
from pipeline.mining.options import mine_options
from pipeline.storage.parquet import parquet_table

RESULTS: Final = "results.json"
CALIBRATION_STEPS: Final = 60
"""Of the student, from which the number of steps that the time allows is taken."""
AFTER_TRAINING_S: Final = 40.0
"""For saving, merging and copying, beside others that do the same."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """How large everything is."""

    output: Path
    photographs: str
    data: str
    seconds: float
    toy: bool
    train_flags: tuple[str, ...]
    name: str
    share: int
    """So many students train at once."""

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def cores(self) -> int:
        return len(os.sched_getaffinity(0))

    @property
    def loaders(self) -> int:
        """Loader processes beside a training process."""
        return 0 if self.toy else max((self.cores - self.share) // self.share, 1)

    def keep(self, part: str, found: dict[str, Any]) -> None:
        """What is measured so far: the part may be cut off after this."""
        record(self.output, part, found)


def synchronized_s(device: torch.device) -> float:
    """The clock, after all work of the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds_of(work: Callable[[], Any], device: torch.device, *, repeats: int, warm_up: int = 1) -> list[float]:
    """Of each repetition, the device waited for."""
    for _ in range(warm_up):
        work()
    found = []
    for _ in range(repeats):
        begun_s = synchronized_s(device)
        work()
        found.append(synchronized_s(device) - begun_s)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Parts


def machine(setting: Setting) -> dict[str, Any]:
    """The card's own ceilings, on random data."""
    device = setting.device
    rows, copied = (256, 2**20) if setting.toy else (8192, 2**31)
    rates = {}
    for name, dtype in (("float32", torch.float32), ("float16", torch.float16), ("bfloat16", torch.bfloat16)):
        matrix = torch.randn(rows, rows, device=device).to(dtype)
        spent = seconds_of(lambda matrix=matrix: matrix @ matrix, device, repeats=6, warm_up=2)
        rates[name] = 2.0 * rows**3 / min(spent)
    block = torch.randint(0, 255, (copied,), dtype=torch.uint8, device=device)
    target = torch.empty_like(block)
    spent = seconds_of(lambda: target.copy_(block), device, repeats=5, warm_up=2)
    host = torch.randint(0, 255, (copied // 8,), dtype=torch.uint8)
    to_device = seconds_of(lambda: host.to(device), device, repeats=3)
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "memory_gib": torch.cuda.get_device_properties(device).total_memory / 2**30 if device.type == "cuda" else None,
        "matrix_rows": rows,
        "matrix_flops_per_second": rates,
        "copy_bytes_per_second_read_and_written": 2.0 * copied / min(spent),
        "host_to_device_bytes_per_second_pageable": copied / 8 / min(to_device),
        "cuda": torch.version.cuda,
        "machine": platform.machine(),
        "environment": environment(),
    }
    return found


def tests(setting: Setting) -> dict[str, Any]:
    """The tests marked `gpu`, in a process of their own."""
    root = Path(__file__).resolve().parents[1]
    # Only these files: others import packages that a card's machine may lack.
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"]
    command += ["-o", "filterwarnings=default", "tests/unit/test_on_gpu.py", "tests/unit/test_backbone_features.py"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR", "SKIPPED", "E  "))]
    return {"exit": done.returncode, "last_line": (done.stdout.splitlines() or [""])[-1], "lines": lines[:60]}


def paper_config(setting: Setting, **changes: Any) -> TrainConfig:
    """The paper's recipe; toy: micro."""
    size, image_size = ("micro", 64) if setting.toy else ("small", 1024)
    values: dict[str, Any] = {"image_size": image_size, "masks_per_image": 4 if setting.toy else 30}
    return make_config(
        size, "drawn", "paper", order=Order(), seed=0, min_masks=1, holdout=0.0,
        precision="bf16" if setting.device.type == "cuda" else "fp32", **(values | changes),
    )  # fmt: skip


def drawn_example(config: TrainConfig, rng: np.random.Generator) -> Example:
    """Noise with discs as masks: what a step costs does not depend on what it sees."""
    size, count = config.image_size, config.masks_per_image
    centre = rng.integers(size // 4, 3 * size // 4, (count, 2))
    rows, columns = np.ogrid[:size, :size]
    radius = rng.integers(size // 16, size // 4, count)
    discs = [(rows - y) ** 2 + (columns - x) ** 2 <= r * r for (x, y), r in zip(centre, radius, strict=True)]
    blank = train_speed.blank_example(config)
    return dataclasses.replace(
        blank,
        image=rng.integers(0, 256, (size, size, 3), dtype=np.uint8),
        points=centre.astype(np.float32),
        granularity=rng.uniform(0.1, 1.0, count).astype(np.float32),
        masks_packed=np.packbits(np.stack(discs), axis=2),
        correction_draws=rng.random((count, config.clicks - 1)).astype(np.float32),
    )


def bare_step(
    setting: Setting, config: TrainConfig, micro_batch_size: int, *, compile_parts: str = "eager"
) -> dict[str, Any]:
    """One step's arithmetic without loader and optimiser, on drawn weights: seconds, memory, kernels."""
    device = setting.device
    torch.manual_seed(0)
    model = GranularSam2(config.size, config.adapter, config.image_size).to(device)
    model.set_trainable()
    backend = "aot_eager" if setting.toy else "inductor"
    if compile_parts in ("transformer", "transformer and encoder"):
        model.base.sam_mask_decoder.transformer.compile(backend=backend)
    if compile_parts == "transformer and encoder":
        model.base.image_encoder.compile(backend=backend)
    rng = np.random.default_rng(0)
    examples = [drawn_example(config, rng) for _ in range(config.global_batch_size)]

    def step() -> None:
        model.zero_grad(set_to_none=True)
        for start in range(0, len(examples), micro_batch_size):
            some = examples[start : start + micro_batch_size]
            accumulate_gradients(model, some, config, prompts_in_step=1.0)

    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    [first_s] = seconds_of(step, device, repeats=1, warm_up=0)
    spent = seconds_of(step, device, repeats=2 if setting.toy else 6, warm_up=0 if setting.toy else 1)
    found: dict[str, Any] = {
        "micro_batch_size": micro_batch_size,
        "masks_per_image": config.masks_per_image,
        "first_step_seconds": first_s,
        "seconds": {"median": statistics.median(spent), "min": min(spent), "max": max(spent)},
        "images_per_second": config.global_batch_size / statistics.median(spent),
    }
    if device.type == "cuda":
        found["peak_memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
        found["reserved_memory_mib"] = torch.cuda.max_memory_reserved() / 2**20
    if micro_batch_size > 1 or setting.toy:
        found["kernels"] = kernels_of(step, device)
    return found


def kernels_of(work: Callable[[], None], device: torch.device, *, most: int = 14) -> dict[str, Any]:
    """What one call spends the device's time on: kernels by their sum, and the share of wall time they fill."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    begun_s = synchronized_s(device)
    with torch.profiler.profile(activities=activities) as profiled:
        work()
        synchronized_s(device)
    wall_s = time.perf_counter() - begun_s
    kind = torch.autograd.DeviceType.CUDA if device.type == "cuda" else torch.autograd.DeviceType.CPU
    rows = [each for each in profiled.key_averages() if each.device_type == kind]
    total = {
        each.key: each.self_device_time_total if device.type == "cuda" else each.self_cpu_time_total for each in rows
    }
    first = sorted(rows, key=lambda each: -total[each.key])[:most]
    return {
        "wall_s_profiled": wall_s,
        "busy_s": sum(total.values()) / 1e6,
        "launches": sum(each.count for each in rows),
        "largest": [{"name": each.key[:90], "ms": total[each.key] / 1e3, "count": each.count} for each in first],
    }


def loop(setting: Setting) -> dict[str, Any]:
    """`benchmarks.train_speed` on the paper's recipe, all images of a step in one pass.

    A run that is cut off leaves the rate and the waiting of each step that it had done.
    """
    size = ["--size", "micro", "--image-size", "64", "--masks-per-image", "4", "--clicks", "2"]
    size += ["--steps", "3", "--warmup-steps", "1"]
    full = ["--size", "small", "--image-size", "1024", "--steps", "40", "--warmup-steps", "10"]
    full += ["--micro-batch-size", "4"]
    work = setting.output / "work-loop"
    command = ["--data", setting.data, "--work", str(work), "--workers", str(setting.loaders)]
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            train_speed.main([*command, *(size if setting.toy else full)])
    except Exception as error:
        told = ("images_per_second", "wait_share", "memory_mib")
        steps = metrics_of(work / "run") if (work / "run" / "metrics.jsonl").exists() else []
        done = {name: [line[name] for line in steps] for name in told}
        setting.keep("loop", {"cut_off": f"{type(error).__name__}: {error}", **done})
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    found: dict[str, Any] = json.loads(printed.getvalue())
    return found


def step(setting: Setting) -> dict[str, Any]:
    """The step alone."""
    found: dict[str, Any] = {"alone": []}
    for micro_batch_size in (1,) if setting.toy else (2, 4, 1):
        found["alone"].append(bare_step(setting, paper_config(setting), micro_batch_size))
        setting.keep("step", found)
    if not setting.toy:
        found["alone, 8 masks"] = bare_step(setting, paper_config(setting, masks_per_image=8), 1)
    return found


def compiled(setting: Setting) -> dict[str, Any]:
    """The step alone, then with its parts compiled; toy: traced alone, since compiling takes a processor minutes."""
    found: dict[str, Any] = {}
    for name in ("eager", "transformer", "transformer and encoder"):
        torch.compiler.reset()
        found[name] = bare_step(setting, paper_config(setting), 4, compile_parts=name)
        setting.keep("compiled", found)
    return found


def drawn_backbone(name: str, folder: Path) -> Path:
    """A checkpoint of random weights."""
    from safetensors.torch import save_file

    ensure_torchvision()
    import timm

    torch.manual_seed(0)
    path = folder / f"{name}.safetensors"
    model = timm.create_model(name, pretrained=False, num_classes=0)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    return path


def backbone_rates(name: str, checkpoint: Path, *, batch: int | None, repeats: int) -> dict[int, dict[str, float]]:
    """Images per second of a backbone by side in pixels: whole photographs, then crops, as `unsamv2` asks for them."""
    backbone = Backbone(name, checkpoint, batch_size=batch)
    device, half = backbone.device, backbone.precision != torch.float32
    rng = np.random.default_rng(0)
    rates = {}
    for side in (backbone.patch_px * round(480 / backbone.patch_px), 48 * backbone.patch_px):
        drawn = list(rng.integers(0, 256, (backbone.batch_size, side, side, 3), dtype=np.uint8))
        spent = seconds_of(lambda drawn=drawn: backbone(drawn), device, repeats=repeats)
        pixels = backbone.normalised(drawn, backbone.batch_size)

        def forward(pixels: torch.Tensor = pixels) -> None:
            with torch.inference_mode(), torch.autocast(device.type, dtype=backbone.precision, enabled=half):
                backbone._model.forward_features(pixels)
            backbone._keys.clear()

        bare = seconds_of(forward, device, repeats=repeats)
        rates[side] = {
            "images_per_second": backbone.batch_size / min(spent),
            "images_per_second_forward_alone": backbone.batch_size / min(bare),
        }
    return rates


def milled(setting: Setting, name: str, *, images: int, batch: int | None) -> dict[str, Any]:
    """One backbone: its own rate at the sizes that the recipe `unsamv2` asks of it, then that of `mine`."""
    folder = setting.output / "work-mill"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    checkpoint = drawn_backbone(name, folder)
    rates = backbone_rates(name, checkpoint, batch=batch, repeats=1 if setting.toy else 5)
    flags = MineFlags(
        input=[f"photographs={setting.photographs}"], output=str(folder / "out"), recipe="unsamv2",
        backbone=f"timm:{name}@{checkpoint}", executor="local", workers=1, limit=images, batch_size=batch,
        gpus_per_worker=1.0 if setting.device.type == "cuda" else 0.0, cpus_per_worker=max(setting.cores - 1, 1),
        samples_per_shard=images,
    )  # fmt: skip
    result = mine(mine_options(flags))
    mined = result["samples"] + result["failures"]
    tables = [parquet_table(path.read_bytes()) for path in (folder / "out" / "index-all").glob("samples*.parquet")]
    crops = sum(sum(table.column("num_instances").to_pylist()) for table in tables) / max(mined, 1)
    sides = list(rates)
    floor_s = 1 / rates[sides[0]]["images_per_second"] + crops / rates[sides[-1]]["images_per_second"]
    wall_s = result["seconds"]["wall"] if "wall" in result["seconds"] else mined / result["images_per_second"]
    shutil.rmtree(folder, ignore_errors=True)
    return {
        "backbone_rates": {str(side): rate for side, rate in rates.items()},
        "images": mined,
        "instances_per_image": crops,
        "masks_per_image": result["masks_per_image"],
        "images_per_second": result["images_per_second"],
        "images_per_second_by_backbone_alone": 1 / floor_s,
        "share_of_backbone": result["images_per_second"] * floor_s,
        "thread_seconds_per_image_by_stage": {
            stage: spent / max(mined, 1) for stage, spent in result["seconds"].items()
        },
        "wall_s": wall_s,
        "startup_s": result.get("startup_s"),
    }


def mill(setting: Setting) -> dict[str, Any]:
    """Two backbones with drawn weights."""
    if setting.toy:
        return {"test_vit": milled(setting, "test_vit", images=2, batch=2)}
    found: dict[str, Any] = {}
    for name in ("vit_base_patch16_224.dino", "vit_base_patch8_224.dino"):
        found[name] = milled(setting, name, images=96, batch=16)
        setting.keep("mill", found)
    return found


def automatic(setting: Setting) -> dict[str, Any]:
    """Drawn weights are sure of nothing, so all of the time is encoding, decoding and the first choice of masks."""
    config = paper_config(setting)
    size, image_size = config.size, config.image_size
    torch.manual_seed(0)
    model = GranularSam2(size, "paper", image_size).to(setting.device).eval()
    predictor = GranularPredictor(model)
    image = np.random.default_rng(0).integers(0, 256, (image_size, image_size, 3), dtype=np.uint8)
    shared = AutomaticConfig(points_per_side=4 if setting.toy else 32)
    each = [dataclasses.replace(shared, granularities=(g,)) for g in GRANULARITIES]
    found: dict[str, Any] = {"size": size, "prompts": len(GRANULARITIES) * shared.points_per_side**2}

    def of(work: Callable[[], Any], repeats: int = 1) -> float:
        return min(seconds_of(work, setting.device, repeats=repeats, warm_up=0))

    generate_masks(predictor, image, shared)
    found["one_encoding_s"] = of(lambda: generate_masks(predictor, image, shared), 1 if setting.toy else 3)
    found["ten_encodings_s"] = of(lambda: [generate_masks(predictor, image, one) for one in each])
    found["ratio"] = found["ten_encodings_s"] / found["one_encoding_s"]
    found["encoding_s"] = of(lambda: predictor.set_image(image), 5)
    setting.keep("automatic", found)
    found["one_encoding_s_by_pass"] = {}
    transformer = model.base.sam_mask_decoder.transformer
    in_float32 = transformer.forward

    def in_bf16(*maps: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.autocast(setting.device.type, dtype=torch.bfloat16):
            return tuple(each.float() for each in in_float32(*maps))

    for prompts in (4, 8) if setting.toy else (64, 256, 1024):
        several = dataclasses.replace(shared, points_per_batch=prompts)
        for precision, forward in (("bfloat16", in_bf16), ("float32", in_float32)):
            transformer.forward = forward
            name = f"{prompts} prompts in a pass, transformer in {precision}"
            found["one_encoding_s_by_pass"][name] = of(
                lambda several=several: generate_masks(predictor, image, several)
            )
            setting.keep("automatic", found)
    return found


def nccl(setting: Setting) -> dict[str, Any]:
    """A few steps under torchrun with one rank, and the same without: the losses of each."""
    losses: dict[str, list[float]] = {}
    for name, launcher in (
        ("alone", ["-m"]),
        ("torchrun", ["-m", "torch.distributed.run", "--nproc-per-node=1", "-m"]),
    ):
        run = setting.output / f"work-{name}"
        shutil.rmtree(run, ignore_errors=True)
        command = [sys.executable, *launcher, "pipeline", "train", "--data", setting.data, "--output", str(run)]
        command += ["--size", "micro", "--init", "scratch", "--steps", "4", "--log-every", "1", "--workers", "0"]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, "NCCL_DEBUG": "VERSION"}
        )
        if done.returncode != 0:
            return {"exit": done.returncode, "launcher": name, "said": (done.stdout + done.stderr)[-1500:]}
        losses[name] = [line["loss"] for line in metrics_of(run)]
        said = [line for line in (done.stdout + done.stderr).splitlines() if "NCCL version" in line]
        shutil.rmtree(run, ignore_errors=True)
    return {"losses": losses, "equal": np.allclose(losses["alone"], losses["torchrun"], rtol=1e-3), "nccl": said[:1]}


def student(setting: Setting) -> dict[str, Any]:
    """Trains for the given time: some steps to learn the rate, then as many as fit, by the same recipe.

    Whatever ends the run, its newest checkpoint is brought home: a signal that comes before the end reaches the
    training process too, which saves, and this one goes on to what follows.
    """
    begun_s = time.monotonic()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    run, trial = (setting.output / f"work-{kind}-{setting.name}" for kind in ("run", "trial"))
    flags = [*setting.train_flags] or ["--size", "micro", "--init", "scratch"]
    base = [sys.executable, "-m", "pipeline", "train", "--data", setting.data, *flags, "--json"]
    base += ["--workers", str(setting.loaders), "--log-every", "5"]
    steps = 4 if setting.toy else CALIBRATION_STEPS
    with (setting.output / f"{setting.name}.log").open("w") as log:

        def called(command: Sequence[str], *, to_its_end: bool = False) -> dict[str, Any]:
            # In a session of its own, the signal that ends this part does not reach it.
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=log, text=True, check=False, start_new_session=to_its_end
            )
            found: dict[str, Any] = json.loads(done.stdout or "{}")
            return found

        for folder in (run, trial):
            shutil.rmtree(folder, ignore_errors=True)
        summary = called([*base, "--output", str(trial), "--steps", str(steps), "--coarse-images", "0"])
        trial_s = time.monotonic() - begun_s
        lines = metrics_of(trial)
        rate = statistics.median(line["images_per_second"] for line in lines[-max(len(lines) // 2, 1) :])
        # The same start comes again, and what follows the last step.
        left_s = setting.seconds - trial_s - (trial_s - summary.get("seconds", 0.0)) - AFTER_TRAINING_S
        wanted = steps if setting.toy else max(steps, int(0.9 * left_s * rate / _flag(flags, "--global-batch-size")))
        command = [*base, "--output", str(run), "--steps", str(wanted), "--save-every", str(max(wanted // 4, 1))]
        called([*command, "--keep", "4", *([] if setting.toy else ["--time-limit-s", f"{left_s:.0f}"])])
        saved = sorted((run / "checkpoints").glob("*.safetensors"))
        for source, suffix in ((run, ""), *((path, "-first") for path in saved[:1] if len(saved) > 1)):
            merged = str(setting.output / f"{setting.name}{suffix}.safetensors")
            command = [sys.executable, "-m", "model.merge", str(source), "--output", merged, "--half", "--images-only"]
            called(command, to_its_end=True)
    shutil.copy(run / "metrics.jsonl", setting.output / f"{setting.name}_metrics.jsonl")
    told = metrics_of(run)
    for folder in (run, trial):
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "flags": flags,
        "steps_planned": wanted,
        "images_per_second_of_trial": rate,
        "last": told[-1],
        "wait_share_median": statistics.median(line["wait_share"] for line in told),
        "seconds": time.monotonic() - begun_s,
    }


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's log."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _flag(flags: Sequence[str], name: str) -> int:
    return int(flags[list(flags).index(name) + 1]) if name in flags else 4


PARTS: Final[dict[str, Callable[[Setting], dict[str, Any]]]] = {
    "machine": machine,
    "tests": tests,
    "step": step,
    "loop": loop,
    "mill": mill,
    "automatic": automatic,
    "nccl": nccl,
    "compiled": compiled,
    "student": student,
}


def record(output: Path, part: str, found: dict[str, Any]) -> None:
    """Adds a part's figures to `results.json`, in one rename; parts may run beside each other."""
    path = output / RESULTS
    with (output / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        everything = json.loads(path.read_text()) if path.exists() else {}
        everything[part] = found
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(everything, indent=1) + "\n")
        fresh.replace(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--photographs", required=True, help="Images at their own size, to mine.")
    parser.add_argument("--data", required=True, help="Shards to train on.")
    parser.add_argument("--seconds", type=float, default=60.0, help="Of the part `student`.")
    parser.add_argument("--name", default="student", help="Of its files. Default student.")
    parser.add_argument("--share", type=int, default=1, help="So many students train at once. Default 1.")
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--train", default="", help="Flags of `grainmill train`, one string, for the part `student`.")
    arguments = parser.parse_args(argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    setting = Setting(
        output=arguments.output.absolute(), photographs=arguments.photographs, data=arguments.data,
        seconds=arguments.seconds, toy=arguments.toy, train_flags=tuple(shlex.split(arguments.train)),
        name=arguments.name, share=arguments.share,
    )  # fmt: skip
    begun_s = time.monotonic()
    found = PARTS[arguments.part](setting)
    found["part_seconds"] = round(time.monotonic() - begun_s, 1)
    record(setting.output, arguments.name if arguments.part == "student" else arguments.part, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
