"""`grainmill demo`: the whole loop on photographs that come with scikit-image: what a newcomer would type, in order.

Each step is a `grainmill` command of its own, printed before it runs, so that the demo teaches the command line and
tests it at once. Steps that are done are not done again: `mine`, `train` and `score` resume, a release that is there is
verified and kept. Only `pipeline` is imported here; training and scoring run as commands, like everything else.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import cv2
import numpy as np
import typer
from numpy.typing import NDArray
from scipy import ndimage

from ..console import note
from ..environment.kept_student import KEPT, kept_student
from ..environment.timm_weights import packaged_weights
from ..errors import GrainmillError, InputError, InterruptedRunError
from ..storage.local import explained

PHOTOGRAPHS: Final[Mapping[str, tuple[str, ...]]] = {
    "cc0": ("camera.png", "cell.png", "chelsea.png", "coffee.png", "gravel.png", "retina.jpg"),
    "free": ("astronaut.png", "clock_motion.png", "coins.png", "hubble_deep_field.jpg", "ihc.png", "rocket.jpg"),
}
"""Label of a source -> files in scikit-image's `data` folder, by the terms that its documentation states for them."""

LICENSES: Final[Mapping[str, str]] = {"cc0": "CC0-1.0", "free": "public-domain"}
"""`free`: in the public domain, or without known copyright restrictions."""

RELEASE_LICENSE: Final = "CC-BY-4.0"
"""Of the labels; it may cover photographs under the terms above."""
RELEASE_DATE: Final = "2026-01-01"
"""Fixed, so that two demos make the same release."""

COINS: Final = "coins.png"
COIN_MIN_PX: Final = 200
CLICKS: Final[Mapping[str, str]] = {"astronaut.png": "220,120", "coffee.png": "300,180", "retina.jpg": "245,650"}
"""Photograph -> the pixel clicked on: a face, a cup, the optic disc."""
DIALLED: Final = ("0.1", "0.3", "0.5", "0.7", "1.0")
REPORT: Final = "report.html"
GALLERY: Final = "release/gallery.html"


@dataclass(frozen=True)
class Step:
    """One command of the demo.

    Attributes:
        title: what it is for, for people.
        arguments: of `grainmill`.
        done: the file whose presence says that the step need not run again; None for steps that resume by themselves.
    """

    title: str
    arguments: tuple[str, ...]
    done: Path | None = None


@dataclass(frozen=True, kw_only=True)
class DemoFlags:
    """What `grainmill demo` is asked for."""

    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Where everything goes. Default demo. Again: only what is missing.")
    ] = Path("demo")
    train_steps: Annotated[
        int, typer.Option(min=1, help="Steps of the small model. Default 300: a minute or two on two cores.")
    ] = 300
    executor: Annotated[str, typer.Option(metavar="ray|local|inline", help="Of `mine`. Default ray, as there.")] = "ray"
    workers: Annotated[
        int, typer.Option(min=1, help="Of `mine`. Default 2: any machine has two cores, and 1 GiB each is enough.")
    ] = 2


def run(flags: DemoFlags) -> None:
    """Mines, verifies, releases, trains briefly, scores, and shows it all on one page, on twelve real photographs.

    Each step is a command of its own, printed before it runs. Nothing is downloaded, no GPU is needed.
    """
    run_demo(flags.output, train_steps=flags.train_steps, executor=flags.executor, workers=flags.workers)


def run_demo(output: Path, *, train_steps: int, executor: str, workers: int) -> Path:
    """Runs all steps and returns the report's path.

    Args:
        output: folder of the demo; made if missing.
        train_steps: how long the small model learns.
        executor: of `mine`.
        workers: of `mine`.

    Raises:
        InputError: scikit-image lies without its photographs.
        GrainmillError: a step failed; its own message has been printed.
    """
    began_s = time.monotonic()
    lay_out_photographs(output / "photographs")
    lay_out_coins(output / "coins")
    for step in steps(output, train_steps=train_steps, executor=executor, workers=workers):
        if step.done is not None and step.done.exists():
            note(f"\n== {step.title}: done before, kept")
        else:
            _run(step)
    report = output / REPORT
    note(f"\n{time.monotonic() - began_s:.0f} s in all. Open {report} and {output / GALLERY} in a browser.")
    if packaged_weights("lite0") is not None:
        learned = ("mine", "--recipe", "learned", "--input", f"{output}/photographs", "--output", f"{output}/learned")
        note(f"To mine with a small classifier's features, in twice the time:\n$ grainmill {shlex.join(learned)}")
    desk = ("annotate", f"{output}/photographs/*/*", "--checkpoint", f"{output}/student", "--output", f"{output}/desk")
    note(f"To click and turn the dial yourself, open the desk:\n$ grainmill {shlex.join(desk)}")
    return report


def steps(output: Path, *, train_steps: int, executor: str, workers: int) -> Iterator[Step]:
    """The loop from top to bottom. A generator: later steps look at what earlier ones left."""
    masks, release, student, scores = (str(output / name) for name in ("masks", "release", "student", "scores"))
    inputs = [flag for label in PHOTOGRAPHS for flag in ("--input", f"{label}={output / 'photographs' / label}")]
    terms = [flag for label, license in LICENSES.items() for flag in ("--license", f"{label}={license}")]
    yield Step(
        "mine: every photograph into instances, parts and their granularity",
        ("mine", *inputs, *terms, "--output", masks, "--samples-per-shard", "4", "--executor", executor,
         "--workers", str(workers)),
    )  # fmt: skip
    yield Step("verify: what was written is whole, down to each mask", ("verify", masks, "--deep"))
    yield Step("stats: what the labels look like", ("stats", masks))
    yield Step(
        "release: a dataset that others load with their own tools",
        ("release", masks, "--output", release, "--name", "grainmill-demo", "--version", "1.0.0",
         "--license", RELEASE_LICENSE, "--date", RELEASE_DATE),
        done=Path(release) / "manifest.json",
    )  # fmt: skip
    yield Step("verify: the release from cold, its card's numbers included", ("verify", release, "--deep"))
    checkpoints = sorted(Path(student).glob("checkpoints/*.safetensors"))
    lite0 = _has_trunk(checkpoints[-1]) if checkpoints else packaged_weights("lite0") is not None
    resume = ("--resume",) if checkpoints else ()
    yield Step(
        f"train: a small SAM-2 with a granularity dial, {train_steps} steps, "
        + ("on EfficientNet-lite0" if lite0 else "from random weights; the extra [lite] would make it see better"),
        ("train", "--data", release, "--output", student, "--size", "micro", "--init", "scratch",
         *(("--trunk", "lite0", "--trunk-rate", "0.1") if lite0 else ()), "--steps", str(train_steps), *resume),
    )  # fmt: skip
    coins = ("--benchmark", "folder", "--data", str(output / "coins"))
    yield Step("score: the mined masks of the coins against Otsu's threshold",
               ("score", *coins, "--masks", masks, "--output", f"{scores}/labels"))  # fmt: skip
    answers = {"tree": "the photograph's own tree", "student": "the student"}
    asked = {"tree": "tree", "student": student}
    if kept_student().is_file():
        answers["kept"], asked["kept"] = "the kept student, which trained longer", KEPT
    for who, checkpoint in asked.items():
        yield Step(
            f"score: {answers[who]} on eight of the coins, with its controls",
            ("score", *coins, "--checkpoint", checkpoint, "--objects-per-image", "8", "--points-per-side", "8",
             "--output", f"{scores}/{who}"),
        )  # fmt: skip
    pictures: list[str] = []
    for name, point in CLICKS.items():
        photograph = next(path for path in (output / "photographs").glob(f"*/{name}"))
        for who, words in answers.items():
            model = () if who == "tree" else ("--checkpoint", asked[who])
            yield Step(
                f"segment: one click on {name} at five granularities, answered by {words}",
                ("segment", str(photograph), *model, "--point", point,
                 "--granularity", ",".join(DIALLED), "--output", str(output / "segments" / who)),
            )  # fmt: skip
            picture = output / "segments" / who / f"{photograph.stem}.masks.png"
            pictures += ["--picture", f"{name}, one click at {point}, answered by {words}={picture}"]
    shown = [flag for name in ("labels", *answers) for flag in ("--scores", f"{scores}/{name}/scores.json")]
    yield Step(
        "view: all of it on one page",
        ("view", masks, "--output", str(output / REPORT), "--title", "Grainmill demo", *pictures, *shown),
    )


def _has_trunk(checkpoint: Path) -> bool:
    """Whether a student that was begun stands on another network than its own, so that it goes on as it began.

    Raises:
        InputError: its checkpoint is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(checkpoint, framework="np") as opened:
            return bool(json.loads(opened.metadata()["grainmill"]).get("trunk"))
    except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
        student = checkpoint.parent.parent
        raise InputError(
            f"{checkpoint}: not a checkpoint of `grainmill train`; remove {student} to begin it anew"
        ) from error


def lay_out_photographs(folder: Path) -> None:
    """Copies the photographs out of scikit-image, one folder for each of `PHOTOGRAPHS`.

    Raises:
        InputError: a file is not there.
    """
    for label, names in PHOTOGRAPHS.items():
        with explained("make", folder / label):
            (folder / label).mkdir(parents=True, exist_ok=True)
        for name in names:
            target = folder / label / name
            if not target.exists():
                with explained("write", target):
                    shutil.copyfile(_packaged(name), target)


def lay_out_coins(folder: Path) -> None:
    """`images/coins.png` and `masks/coins/NN.png`, one for each coin: Otsu's threshold, filled, its larger components.

    This is the one photograph whose objects a fixed rule finds, so it can be scored without anybody's annotations.
    """
    coins = cv2.imread(str(_packaged(COINS)), cv2.IMREAD_GRAYSCALE)
    assert coins is not None, "lay_out_photographs has read it before"
    with explained("make", folder):
        (folder / "images").mkdir(parents=True, exist_ok=True)
        (folder / "masks" / "coins").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(_packaged(COINS), folder / "images" / COINS)
    for number, mask in enumerate(coin_masks(np.asarray(coins, dtype=np.uint8))):
        cv2.imwrite(str(folder / "masks" / "coins" / f"{number:02d}.png"), mask.astype(np.uint8) * 255)


def coin_masks(coins: NDArray[np.uint8]) -> list[NDArray[np.bool_]]:
    """(H, W) grey -> one (H, W) bool mask for each coin of at least `COIN_MIN_PX`."""
    _, bright = cv2.threshold(coins, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    labels, count = ndimage.label(ndimage.binary_fill_holes(bright > 0))
    masks = [labels == number for number in range(1, count + 1)]
    return [mask for mask in masks if mask.sum() >= COIN_MIN_PX]


def _packaged(name: str) -> Path:
    import skimage

    path = Path(skimage.__file__).parent / "data" / name
    if not path.is_file():
        raise InputError(f"{path}: expected a photograph of the scikit-image package, found none; install it anew")
    return path


def _run(step: Step) -> None:
    """Runs a step as a command of its own; its output goes where ours goes."""
    note(f"\n== {step.title}\n$ grainmill {shlex.join(step.arguments)}")
    done = subprocess.run([sys.executable, "-m", "pipeline", *step.arguments], check=False)
    if done.returncode == InterruptedRunError.exit_code:
        raise InterruptedRunError("the demo was stopped; the same command goes on from here")
    if done.returncode != 0:
        raise GrainmillError(f"`grainmill {step.arguments[0]}` ended with exit code {done.returncode}; see above")
