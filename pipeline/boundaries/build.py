"""The job of `grainmill boundaries`, top to bottom: images -> trees and maps -> a trained net, its file, its picture.

What is computed lies in FILE.work until the file is there; the same call goes on from it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import cv2

from .. import __version__
from ..console import ProgressBar
from ..environment.numeric import device_name, fix_threads, numeric_environment
from ..environment.process_map import process_map
from ..environment.timm_weights import PREFIX, named_weights
from ..errors import InputError
from ..format.schema import LABELS_VERSION
from ..labeling.boundary_file import ALONE, BoundaryRecord, read_record
from ..labeling.config import MineConfig
from ..labeling.recipes import recipe
from ..storage.local import explained, sha256_of_file
from .flags import BoundariesFlags
from .teacher import CROP_PX, MAX_SIDE_PX, Chosen, choose_images, prepare, prepared_path, teachers

HELD_OUT: Final = 10
"""Every so many-th image is held out."""
SETTINGS: Final = "settings.json"


def build_boundaries(flags: BoundariesFlags, *, workers: int) -> dict[str, Any]:
    """Trains a net and writes its file and its picture.

    Args:
        flags: of the command.
        workers: processes that prepare images.

    Returns:
        What `--json` prints: output, picture, sha256, images, passed over, losses.

    Raises:
        InputError: nothing to learn from, a file in the way, or work of another call in FILE.work.
        StorageError: the disk is full, or nothing may be written there.
    """
    output = Path(flags.output).absolute()
    if output.suffix != ".safetensors":
        raise InputError(f"--output {flags.output}: expected a file that ends in .safetensors")
    device = _usable(flags.device)
    config, weights = _teacher(flags.backbone)
    chosen = choose_images(flags.data, count=flags.images, seed=flags.seed)
    settings = _settings(flags, config, chosen)
    if output.exists():
        with contextlib.suppress(InputError):  # of a file that is no net's
            there = read_record(output)
            if there.provenance.get("settings") == settings:
                return {**_result(output, there), "trained": False}
        raise InputError(f"--output {flags.output}: a file is there, of another call; remove it or choose another one")
    work = output.with_name(f"{output.name}.work")
    with explained("write", work):
        _claim(work, settings)
        good, passed = _prepared(flags, config, chosen, work, weights, workers)
        record = _train(output, good, flags, config, settings, passed, work, device)
        shutil.rmtree(work)
    return {**_result(output, record), "trained": True}


def _usable(device: str | None) -> str:
    """The device's name; None: a GPU if there is one.

    Raises:
        InputError: torch does not know it, or this machine has no such GPU.
    """
    import torch

    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"--device {device}: not usable here ({reason}); expected cpu, cuda or cuda:N") from error
    return str(found)


def _teacher(backbone: str) -> tuple[MineConfig, Path | None]:
    """The configuration whose trees teach, `learned` on a backbone or `default` without one, and the weights' file."""
    if backbone == ALONE:
        return recipe("default"), None
    name, weights = named_weights(backbone)
    config = recipe("learned")
    features = replace(config.features, backbone=f"{PREFIX}{name}", weights_sha256=sha256_of_file(weights))
    return replace(config, features=features), weights


def _settings(flags: BoundariesFlags, config: MineConfig, chosen: Chosen) -> dict[str, Any]:
    """Everything that decides the net, and the data's identity."""
    teacher = config.to_json()
    whole: dict[str, Any] = {
        "features": teacher["features"],
        "trees": teacher["conquer"]["costs"][: len(teachers(config))],  # type: ignore[typeddict-item]
        "labels_version": LABELS_VERSION,
        "max_side_px": MAX_SIDE_PX,
        "crop_px": CROP_PX,
        "images": flags.images,
        "steps": flags.steps,
        "seed": flags.seed,
        "data": list(chosen.data),
        "sources": list(chosen.sources),
    }
    plain: dict[str, Any] = json.loads(json.dumps(whole))
    return plain


def _claim(work: Path, settings: dict[str, Any]) -> None:
    work.mkdir(parents=True, exist_ok=True)
    path = work / SETTINGS
    if not path.exists():
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(settings, indent=2, sort_keys=True))
        temporary.replace(path)
    elif json.loads(path.read_text()) != settings:
        raise InputError(
            f"{work}: holds the work of a call with other data or settings; repeat that call, or remove the folder"
        )


def _prepared(
    flags: BoundariesFlags, config: MineConfig, chosen: Chosen, work: Path, weights: Path | None, workers: int
) -> tuple[list[Path], dict[str, int]]:
    """The files of all images that a net can learn from, in order, and how many others there are by reason."""
    one = functools.partial(
        prepare,
        locations=tuple(flags.data),
        config=config,
        weights=None if weights is None else str(weights),
        device=flags.device,
        work=str(work),
    )
    good, passed = list[Path](), Counter[str]()
    with ProgressBar("trees", len(chosen.images)) as progress:
        for number, (image, what) in enumerate(process_map(one, chosen.images, workers=workers), start=1):
            progress.update(number)
            if what == "good":
                good.append(prepared_path(work, image))
            else:
                passed[what] += 1
    if len(good) < 2:
        raise InputError(
            f"--data {', '.join(flags.data)}: {len(good)} of {len(chosen.images)} images can be learned from"
            + "".join(f", {count} {_REASONS[what]}" for what, count in sorted(passed.items()))
            + "; at least two are needed, one of them to be held out, and some hundred for a net that is worth its time"
        )
    return good, dict(passed)


_REASONS: Final = {
    "shallow": "have no trees that are deep enough (at most 500 superpixels)",
    "small": f"are too small (a side below about {CROP_PX} px)",
    "unreadable": "cannot be read",
}


def _train(
    output: Path,
    good: list[Path],
    flags: BoundariesFlags,
    config: MineConfig,
    settings: dict[str, Any],
    passed: dict[str, int],
    work: Path,
    device: str,
) -> BoundaryRecord:
    import torch

    from ..labeling.stages.boundary_net import save_boundaries
    from .picture import picture
    from .training import Schedule, read_prepared, train_net

    fix_threads()
    where = torch.device(device)
    maps, _, _ = read_prepared(good[0], where)
    strides = _strides(good[0])
    schedule = Schedule(
        steps=flags.steps, seed=flags.seed, strides=strides, channels=tuple(each.shape[1] for each in maps)
    )
    held_out = good[::HELD_OUT]
    images = [each for number, each in enumerate(good) if number % HELD_OUT]
    with ProgressBar("boundaries", flags.steps, unit="steps") as progress:
        trained = train_net(schedule, images, held_out, work=work, device=where, progress=progress)
    record = BoundaryRecord(
        backbone=config.features.backbone,
        weights_sha256=config.features.weights_sha256 or "",
        strides=schedule.strides,
        channels=schedule.channels,
        enlargement=config.features.enlargement,
        max_input_side_px=config.features.max_input_side_px,
        provenance={
            "settings": settings,
            "trained_on": len(images),
            "held_out": len(held_out),
            "passed_over": passed,
            "losses": {
                "training": trained.training_loss,
                "held_out": trained.held_out,
                "guess": trained.guess_loss,
                "weights": trained.weights,
            },
            "code_version": __version__,
            "environment": {**numeric_environment(), "device": "cpu" if where.type == "cpu" else device_name()},
        },
    )
    shown = picture(trained.net, [*held_out, *images], where)
    cv2.imwrite(str(output.with_suffix(".png")), cv2.cvtColor(shown, cv2.COLOR_RGB2BGR))
    save_boundaries(output, trained.net, record)
    return record


def _strides(path: Path) -> tuple[int, ...]:
    """Of the maps of a prepared file, by their heights and that of the answer."""
    from safetensors import safe_open

    from ..labeling.stages.boundary_net import STRIDE

    with safe_open(path, framework="np") as opened:
        rows = {name: opened.get_slice(name).get_shape()[1] for name in opened.keys()}  # noqa: SIM118  (not a mapping)
    return tuple(round(STRIDE * rows["targets"] / rows[f"map{number}"]) for number in range(len(rows) - 2))


def _result(output: Path, record: BoundaryRecord) -> dict[str, Any]:
    provenance = record.provenance
    return {
        "output": str(output),
        "picture": str(output.with_suffix(".png")),
        "sha256": sha256_of_file(output),
        "backbone": record.backbone,
        "trained_on": provenance["trained_on"],
        "held_out": provenance["held_out"],
        "passed_over": provenance["passed_over"],
        "losses": provenance["losses"],
        "sources": provenance["settings"]["sources"],
    }
