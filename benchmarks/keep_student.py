"""The best student that can be kept: trains it, makes it small, measures it, and writes its card.

    python -m benchmarks.keep_student --data MINED [--data MINED ...] [--validation MINED --train MINED --bsds500 DIR]
        [--output FILE.safetensors] [--work DIR] [--steps 1600] [--correction-steps 350] [-- FLAGS of grainmill train]

    pip install grainmill[lite]
    python -m benchmarks.keep_student --data out/train --data out/web --validation out/val --train out/train \\
        --bsds500 BSR/BSDS500/data

MINED are shards of `grainmill mine`; the recipe is `RECIPE`, one click to a mask, and then some steps with corrections
(`CORRECTIONS`), without which each further click makes the answer worse. What `--checkpoint kept` means is written by
default (see `pipeline.environment.kept_student`): a checkpoint of at most 8 MB in half precision that answers on
images, and beside it its card, `NAME.md`: what it was trained on and under which terms, the commands, the figures of
`benchmarks.micro_run` on the validation photographs (with `--validation`), and its limits. Called again it goes on
where it was; other settings want another --work. A student may be passed on only where the terms of its training images
allow it; the card lists them.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from model.network.checkpoint import read_checkpoint
from model.network.merge import merge_checkpoint
from pipeline.console import note
from pipeline.dataset.open import open_dataset
from pipeline.environment.kept_student import kept_student
from pipeline.errors import GrainmillError

RECIPE: Final = (
    "--size",
    "micro",
    "--init",
    "scratch",
    "--trunk",
    "lite0",
    "--trunk-rate",
    "0.1",
    "--coarse-images",
    "0",
)
"""Of `grainmill train`: EfficientNet-lite0 (Apache-2.0, trained on ImageNet's classes) under SAM-2's decoder."""
CORRECTIONS: Final = ("--clicks", "3", "--learning-rate", "3e-4")
"""Of the steps that follow. With one seed they left one click as it was (0.511, 0.512 at the label's g on people's
segments of BSDS500 val) and brought NoC80 from 18.3 to 13.4 on 25 of its photographs (`student_sight_cpu2_202611.md`).
"""
LIMIT_BYTES: Final = 8_000_000
FIGURES: Final = {
    "iou_label_g": "IoU of one click at the label's g",
    "iou_best_fixed_g": "at the best single g (control)",
    "iou_shuffled_g": "at another mask's g (control)",
    "iou_best_of_10": "at the best of ten g (an oracle)",
    "iou_other_photograph": "on another photograph's pixels (control)",
    "iou_true_disc": "of a disc of the true area (control)",
    "area_spearman": "rank correlation of g and area",
    "iou_low_high": "IoU of the masks at g 0.1 and 1.0",
}
"""Of `benchmarks.micro_run`, in words."""


def data_rows(locations: Sequence[str]) -> list[tuple[str, int, int, str]]:
    """(source, images, masks, terms) of all datasets together, most images first; terms as the samples state them."""
    images: Counter[tuple[str, str]] = Counter()
    masks: Counter[tuple[str, str]] = Counter()
    for location in locations:
        dataset = open_dataset(location)
        for unit in dataset.units():
            for row in dataset.samples(unit).select(["source_uri", "license", "num_masks"]).to_pylist():
                of = (row["source_uri"].split("/")[0], row["license"] or "not stated")
                images[of] += 1
                masks[of] += row["num_masks"]
    return [(source, count, masks[source, terms], terms) for (source, terms), count in images.most_common()]


def card(
    *,
    file: Path,
    commands: Sequence[str],
    record: dict[str, Any],
    rows: Sequence[tuple[str, int, int, str]],
    digest: str,
    figures: dict[str, Any] | None,
) -> str:
    """The card's text in Markdown.

    Args:
        file: the kept checkpoint, for its name and size.
        commands: what made it, one after the other.
        record: of the last training's last checkpoint.
        rows: of `data_rows`.
        digest: of the training data.
        figures: of one run in `benchmarks.micro_run`'s file; None: not measured.
    """
    lines = [
        f"# {file.name}: a student with a granularity dial",
        "",
        f"Answers a click on an image with a mask as large as g in [0.1, 1.0] says: `grainmill segment photo.jpg "
        f"--checkpoint {file.name} --point X,Y --granularity 0.1,0.5,1.0`. {file.stat().st_size / 1e6:.2f} MB; "
        f"matrices in half precision, computed with in single precision; input {record['image_size']} px a side.",
        "",
        "## Training",
        "",
        "```",
        *commands,
        "```",
        "",
        "Base: random weights"
        + (f", trunk {record['trunk']['name']}" if record.get("trunk") else "")
        + f"; labels mined by Grainmill, no human mask. Digest of the training data: `{digest}`.",
        "",
        "| source | images | masks | terms of the images |",
        "|---|---|---|---|",
        *(f"| {source} | {count} | {masks} | {terms} |" for source, count, masks, terms in rows),
        "",
        "Pass this file on only where these terms allow it. Where they are not stated, ask those who gave the images.",
        "",
        "## Figures",
        "",
    ]
    if figures is None:
        lines.append("Not measured: no validation data was given.")
    else:
        grounds = {"mined_labels": "mined labels", "people": "people's segments"}
        lines += [
            "Validation photographs of BSDS500, one click each (`python -m benchmarks.micro_run`); means over clicks.",
            "",
            f"| | {' | '.join(grounds.values())} |",
            "|---|---|---|",
            *(
                f"| {words} | {' | '.join(f'{figures[ground][name]:.3f}' for ground in grounds)} |"
                for name, words in FIGURES.items()
            ),
        ]
    lines += [
        "",
        "## Limits",
        "",
        "- Masks are drawn on a grid of 64 x 64 cells: thin parts and small things are lost.",
        "- The label's g says how large a part of its whole is meant, not which whole; where several wholes lie under "
        "a click, the answer may be of another one.",
        "- It learned from mined labels and repeats their mistakes; people's names for things mean nothing to it.",
        "- Images only: it has no memory for video, and without a granularity its answers mean nothing.",
        "",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", required=True, help="Mined shards to train on; may be repeated.")
    parser.add_argument("--validation", help="Mined shards of BSDS500 val, to measure on. Default: not measured.")
    parser.add_argument("--train", help="Mined shards of BSDS500 train, for the best single g. Goes with --validation.")
    parser.add_argument("--bsds500", help="The benchmark's folder. Goes with --validation.")
    parser.add_argument("--output", type=Path, help="Default: where `--checkpoint kept` looks.")
    parser.add_argument(
        "--work", type=Path, default=Path("kept-student"), help="Of the training run. Default: %(default)s."
    )
    parser.add_argument("--steps", type=int, default=1600, help="Default: %(default)s.")
    parser.add_argument("--correction-steps", type=int, default=350, help="0: none. Default: %(default)s.")
    parser.add_argument("flags", nargs="*", help="After --: further flags of `grainmill train`, over the recipe's.")
    arguments = parser.parse_args(argv)
    if len({arguments.validation is None, arguments.train is None, arguments.bsds500 is None}) > 1:
        parser.error("--validation, --train and --bsds500 go together: all three or none")
    output = kept_student() if arguments.output is None else arguments.output
    data = [flag for each in arguments.data for flag in ("--data", each)]
    first = arguments.work / "run"
    run = first / "corrected"  # removed with what it began with
    steps, more = ["--steps", str(arguments.steps)], ["--steps", str(arguments.correction_steps)]
    follows = [*CORRECTIONS, *more, *arguments.flags, "--init", str(first), "--adapter", "full"]
    trainings = [(first, [*steps, *arguments.flags])]
    if arguments.correction_steps:
        trainings.append((run, follows))
    else:
        run = first
    trained = []
    for place, flags in trainings:
        command = ["train", *data, "--output", str(place), *RECIPE, *flags]
        trained.append(f"grainmill {shlex.join(command)}")
        resume = ["--resume"] if any(place.glob("checkpoints/*.safetensors")) else []
        note(f"$ grainmill {shlex.join([*command, *resume])}")
        done = subprocess.run([sys.executable, "-m", "pipeline", *command, *resume], check=False)
        if done.returncode:
            return done.returncode
        record = read_checkpoint(place).record
        if record["step"] < record["config"]["steps"]:  # --time-limit-s: what follows must not begin with half a run
            note(f"{place}: stopped after {record['step']} of {record['config']['steps']} steps; call again to go on")
            return 1
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        made = merge_checkpoint(run, output, half=True, images_only=True)
        figures = measured(arguments, output) if arguments.validation else None
        text = card(
            file=output,
            commands=trained,
            record=record,
            rows=data_rows(arguments.data),
            digest=record["loader"]["dataset_digest"],
            figures=figures,
        )
        output.with_suffix(".md").write_text(text, encoding="utf-8")
    except GrainmillError as error:
        print(f"benchmarks.keep_student: {error}", file=sys.stderr)
        return error.exit_code
    note(f"{output}: {made['bytes'] / 1e6:.2f} MB; its card: {output.with_suffix('.md')}")
    if made["bytes"] > LIMIT_BYTES:
        note(f"that is more than the {LIMIT_BYTES / 1e6:.0f} MB that a kept student should have")
    return 0


def measured(arguments: argparse.Namespace, student: Path) -> dict[str, Any]:
    """The figures of the small file itself, by `benchmarks.micro_run`."""
    file = arguments.work / "figures.json"
    command = [sys.executable, "-m", "benchmarks.micro_run", "--runs", str(student), "--train", arguments.train]
    command += ["--validation", arguments.validation, "--bsds500", arguments.bsds500, "--output", str(file)]
    file.unlink(missing_ok=True)  # an earlier student's figures must not stand in this one's card
    done = subprocess.run(command, check=False)
    if done.returncode not in (0, 1) or not file.exists():  # 1: measured, and below the bar of a first dial
        raise GrainmillError(f"`{shlex.join(command[1:])}` ended with exit code {done.returncode}; see above")
    figures: dict[str, Any] = json.loads(file.read_text())["runs"][0]
    return figures


if __name__ == "__main__":
    sys.exit(main())
