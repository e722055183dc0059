"""Prepared images -> a boundary net: crops, losses, steps; goes on from its last saved state, to the same numbers.

Each crop and what is left out by chance comes from (seed, step) alone. The loss is binary cross entropy with soft
targets, each of the six maps weighted by 1 / (p (1 - p)) of its mean p over the images, weights of mean 1, so that the
rare borders of few regions count as much as the common ones.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..console import ProgressBar
from ..errors import GrainmillError
from ..labeling.stages.boundary_net import OUTPUTS, STRIDE, BoundaryNet, PlainNet, make_net
from .targets import POOLED
from .teacher import CROP_PX

BATCH: Final = 4
RATE: Final = 3e-3
WARM_UP: Final = 60
"""Steps in which the rate rises; it falls to 0 by a cosine over all."""
WEIGHT_DECAY: Final = 1e-3
MIRRORED: Final = 0.5
RECOLOURED: Final = 0.8
"""Share of crops whose image (not the backbone's maps) gets other brightness, contrast and saturation."""
TURNED: Final = 0.3
EXCHANGED: Final = 0.2
NOISED: Final = 0.3
"""Shares of crops of a net without a backbone that are turned by quarters, whose channels change places, that get
noise."""
SAVED_EVERY: Final = 50
"""Steps between two saved states."""
MEASURED: Final = 8
"""Times that the held-out loss is taken, the last time after the last step."""
_FORGET: Final = 0.02
"""Share of a step in the running mean of training losses."""
_STATE: Final = "state.safetensors"


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Of one training.

    Attributes:
        steps: of `BATCH` crops each.
        seed: of weights, crops and dropout.
        strides: of the backbone's maps, finest first.
        channels: likewise.
    """

    steps: int
    seed: int
    strides: tuple[int, ...]
    channels: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A net, and its losses by map: each the mean binary cross entropy, not weighted."""

    net: BoundaryNet | PlainNet
    training_loss: list[float]
    """The running mean over the last steps, on crops."""
    held_out: list[tuple[int, list[float]]]
    """Step and losses on whole images that were not trained on."""
    guess_loss: list[float]
    """Of the constant answer, each map's mean over the training images: what knowing nothing costs."""
    weights: list[float]
    """Of each map in what is minimised."""


def train_net(
    schedule: Schedule,
    images: Sequence[Path],
    held_out: Sequence[Path],
    *,
    work: Path,
    device: torch.device,
    progress: ProgressBar,
) -> Trained:
    """Trains until the last step.

    Args:
        schedule: of the training.
        images: prepared files that are trained on.
        held_out: those that losses are measured on.
        work: where the state is saved.
        device: of torch.
        progress: hears of each step.

    Raises:
        GrainmillError: the loss is not a number.
    """
    means = _mean_targets(images)
    weights = 1.0 / (means * (1.0 - means)).clip(1e-4)
    weights /= weights.mean()
    with _deterministic(device):
        torch.manual_seed(schedule.seed)
        net = make_net(schedule.strides, schedule.channels).to(device).train()
        optimizer = torch.optim.AdamW(net.parameters(), RATE, weight_decay=WEIGHT_DECAY)
        step, running, measured = _load_state(work / _STATE, net, optimizer)
        weights_6 = torch.tensor(weights, dtype=torch.float32, device=device)
        marks = {max(round(schedule.steps * part / MEASURED), 1) for part in range(1, MEASURED + 1)}
        progress.update(step, _words(running, weights, measured))
        while step < schedule.steps:
            for group in optimizer.param_groups:
                group["lr"] = rate(step, schedule.steps)
            torch.manual_seed(schedule.seed * 1_000_003 + step)  # of dropout
            maps, image, targets = _batch(images, schedule, step, device)
            losses = F.binary_cross_entropy_with_logits(net(maps, image), targets, reduction="none").mean(dim=(0, 2, 3))
            optimizer.zero_grad()
            (losses * weights_6).mean().backward()
            optimizer.step()
            step += 1
            now = losses.detach().cpu().double().numpy()
            if not np.isfinite(now).all():
                raise GrainmillError(f"step {step}: the loss is not finite; another --seed, or check the images")
            running = now if step == 1 else running + _FORGET * (now - running)
            if step in marks:
                measured.append((step, measure(net, held_out, device).tolist()))
            progress.update(step, _words(running, weights, measured))
            if step % SAVED_EVERY == 0 or step == schedule.steps:
                _save_state(work / _STATE, net, optimizer, step, running, measured)
    return Trained(
        net=net.eval(),
        training_loss=running.tolist(),
        held_out=measured,
        guess_loss=(-(means * np.log(means.clip(1e-9)) + (1 - means) * np.log((1 - means).clip(1e-9)))).tolist(),
        weights=weights.tolist(),
    )


def rate(step: int, steps: int) -> float:
    """The learning rate of a step, counted from 0."""
    return RATE * min(1.0, (step + 1) / WARM_UP) * 0.5 * (1.0 + math.cos(math.pi * step / steps))


@torch.inference_mode()
def measure(net: BoundaryNet | PlainNet, images: Sequence[Path], device: torch.device) -> NDArray[np.float64]:
    """(6,) losses on whole images, the mean over images; the net is left in training."""
    net.eval()
    sums = np.zeros(OUTPUTS)
    for path in images:
        maps, image, targets = read_prepared(path, device)
        found = F.binary_cross_entropy_with_logits(net(maps, image), targets, reduction="none").mean(dim=(0, 2, 3))
        sums += found.double().cpu().numpy()
    net.train()
    return sums / len(images)


def read_prepared(path: Path, device: torch.device) -> tuple[list[Tensor], Tensor, Tensor]:
    """A whole prepared image as a batch of one: maps (1, C, h, w) each, image (1, 3, H, W) in [0, 1] and targets
    (1, 6, H / 2, W / 2), float32."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as opened:
        count = len(opened.keys()) - 2
        arrays = [opened.get_tensor(name)[None].to(device).float() for name in _names(count)]
    return arrays[:count], arrays[count] / 255.0, arrays[count + 1] / 255.0


def _names(maps: int) -> list[str]:
    return [*(f"map{number}" for number in range(maps)), "rgb", "targets"]


def _batch(
    images: Sequence[Path], schedule: Schedule, step: int, device: torch.device
) -> tuple[list[Tensor], Tensor, Tensor]:
    random = np.random.Generator(np.random.Philox(key=[schedule.seed, step]))
    crops = [_crop(images[int(random.integers(len(images)))], schedule.strides, random) for _ in range(BATCH)]
    *maps, image, targets = (torch.from_numpy(np.stack(each)).to(device) for each in zip(*crops, strict=True))
    return maps, image, targets


def _crop(path: Path, strides: tuple[int, ...], random: np.random.Generator) -> list[NDArray[np.float32]]:
    """Maps, image in [0, 1] and targets of a random square, mirrored or not, that whole cells of each map fill."""
    from safetensors import safe_open

    cell = math.lcm(*strides, STRIDE)  # in pixels of the backbone's input
    side = max(CROP_PX * STRIDE // POOLED // cell, 1)
    with safe_open(path, framework="np") as opened:
        shape = opened.get_slice("targets").get_shape()
        top, left = (int(random.integers(max(length * STRIDE // cell - side, 0) + 1)) for length in shape[1:])
        found = []
        for name, stride in zip(_names(len(strides)), (*strides, STRIDE // POOLED, STRIDE), strict=True):
            each = cell // stride
            rows, columns = (slice(start * each, (start + side) * each) for start in (top, left))
            found.append(opened.get_slice(name)[:, rows, columns].astype(np.float32))
    found[-1] /= 255.0
    found[-2] = recoloured(found[-2] / 255.0, random)
    if random.random() < MIRRORED:
        found = [np.ascontiguousarray(each[:, :, ::-1]) for each in found]
    if not strides:
        found = _changed(found, random)
    return found


def _changed(crop: list[NDArray[np.float32]], random: np.random.Generator) -> list[NDArray[np.float32]]:
    """Image and targets of a net without a backbone's maps, which bear more: turned, other colours, noise."""
    image, targets = crop
    if random.random() < TURNED:
        quarters = int(random.integers(1, 4))
        image, targets = (np.ascontiguousarray(np.rot90(each, quarters, axes=(1, 2))) for each in (image, targets))
    if random.random() < EXCHANGED:
        image = image[random.permutation(3)]
    if random.random() < NOISED:
        noise = random.normal(0.0, random.uniform(0.0, 0.05), image.shape)
        image = np.clip(image + noise, 0.0, 1.0).astype(np.float32)
    return [image, targets]


def recoloured(image: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """(3, H, W) in [0, 1]: with other gamma, contrast and saturation, or as it is."""
    if random.random() >= RECOLOURED:
        return image
    gamma, contrast = math.exp(random.uniform(-0.3, 0.3)), math.exp(random.uniform(-0.3, 0.2))
    saturation = random.uniform(0.2, 1.5)
    bent = 0.5 + (image**gamma - 0.5) * contrast
    grey = bent.mean(axis=0, keepdims=True)
    return np.clip(grey + (bent - grey) * saturation, 0.0, 1.0).astype(np.float32)


def _mean_targets(images: Sequence[Path]) -> NDArray[np.float64]:
    from safetensors import safe_open

    sums = np.zeros(OUTPUTS)
    for path in images:
        with safe_open(path, framework="np") as opened:
            sums += opened.get_tensor("targets").mean(axis=(1, 2), dtype=np.float64) / 255.0
    return sums / len(images)


def _words(
    running: NDArray[np.float64], weights: NDArray[np.float64], measured: Sequence[tuple[int, list[float]]]
) -> str:
    if not running.any():
        return ""
    held = f", held out {np.dot(measured[-1][1], weights) / OUTPUTS:.4f}" if measured else ""
    return f"loss {np.dot(running, weights) / OUTPUTS:.4f}{held}"


@contextlib.contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """On a GPU torch enlarges maps in a fixed order only when it is told to."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(before or device.type != "cpu")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _save_state(
    path: Path,
    net: BoundaryNet | PlainNet,
    optimizer: torch.optim.Optimizer,
    step: int,
    running: NDArray[np.float64],
    measured: Sequence[tuple[int, list[float]]],
) -> None:
    from safetensors.torch import save

    tensors = {f"net.{name}": value for name, value in net.state_dict().items()}
    for number, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in values.items()}
    record = {"step": step, "running": running.tolist(), "measured": measured}
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(
        save({name: each.cpu().contiguous() for name, each in tensors.items()}, {"state": json.dumps(record)})
    )
    temporary.replace(path)


def _load_state(
    path: Path, net: BoundaryNet | PlainNet, optimizer: torch.optim.Optimizer
) -> tuple[int, NDArray[np.float64], list[tuple[int, list[float]]]]:
    """Step, running losses and measurements of the saved state, which goes into net and optimizer; zeros without."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    if not path.is_file():
        return 0, np.zeros(OUTPUTS), []
    with safe_open(path, framework="pt") as opened:
        record = json.loads(opened.metadata()["state"])
    moments: dict[int, dict[str, Any]] = {}
    weights = {}
    for name, value in load_file(path).items():
        kind, _, rest = name.partition(".")
        if kind == "net":
            weights[rest] = value
        else:
            number, _, moment = rest.partition(".")
            moments.setdefault(int(number), {})[moment] = value
    net.load_state_dict(weights)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    measured = [(int(step), [float(each) for each in losses]) for step, losses in record["measured"]]
    return int(record["step"]), np.array(record["running"]), measured
