"""What a micro run learned: does the dial work on new photographs, on mined labels and on people's segments.

    python -m benchmarks.micro_run --runs RUN [RUN ...] --train MINED --validation MINED --bsds500 DIR \\
        --output FILE.json [--images 100] [--people all|fewest] [--whole segments|photograph]
        [--recall-images 10] [--curves FILE.png] [--pictures FILE.png]

Each RUN is the directory of `grainmill train --size micro --init scratch`. For each run the figures of
`validation.dial_figures` stand on two grounds: labels mined from the validation photographs, with the best single
granularity chosen on the training photographs' labels; and people's segments of the same photographs (at least 32 px,
those that have a whole or a part among the others; label g by containment), with the best single granularity chosen on
these very segments, which flatters that control. `--people fewest` takes the segments of the person who drew the
fewest, and `--whole photograph` labels every segment by its size in the photograph, as `benchmarks.people_shards` does.
`iou_other_photograph` is the label's g with another photograph's pixels: what click and g alone can do; `iou_true_disc`
is that of discs around the clicks, as large as the masks. Recall is by `recall_best` against all people's segments.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.data.run_lengths import RunLengths
from model.data.shards import LoadedSample, ShardIndex, filter_rows
from model.data.stream import Example
from model.evaluation.benchmarks.bsds import read_bsds500
from model.evaluation.benchmarks.files import read_rgb
from model.evaluation.benchmarks.mined import match_mined
from model.evaluation.benchmarks.records import EvalImage, GroundTruth, iou_with
from model.evaluation.protocols.metrics import recall_best
from model.network.checkpoint import read_checkpoint
from model.network.granular import GranularSam2
from model.network.load import load_granular
from model.predict.draw import contact_sheet, write_png
from model.predict.image import GranularPredictor
from model.predict.mask_generator import default_config, generate_masks
from model.predict.tree import TreePredictor
from model.training.validation import PICTURED, answers, best_fixed_g, dial_figures, fixed_example, iou, measure_clicks
from pipeline.bench.report import environment
from pipeline.console import ProgressBar
from pipeline.format.granularity import granularity_of
from pipeline.labeling.config import GranularityConfig

from .people_shards import PEOPLE, WHOLES, segments_of

CLICKS = {
    "astronaut.png": (230, 130),
    "coffee.png": (300, 190),
    "chelsea.png": (200, 130),
    "rocket.jpg": (320, 200),
    "camera.png": (150, 250),
    "coins.png": (350, 45),
    "retina.jpg": (245, 650),
    "ihc.png": (340, 430),
    "cell.png": (420, 360),
    "clock_motion.png": (210, 150),
}
"""Photographs of scikit-image, and where they are clicked, (x, y) in pixels."""
CHOOSING_IMAGES = 40
"""Of the training data, to choose the best single granularity on."""


def mined_samples(directory: str, images: int) -> list[LoadedSample]:
    """The first samples of mined shards, in their order."""
    index = ShardIndex.open(directory)
    rows = filter_rows(index, min_masks=1, holdout=0.0, held_out=False)[:images]
    return [index.load(int(row)) for row in rows]


def people_sample(image: EvalImage, truth: GroundTruth, *, people: str, whole: str) -> LoadedSample:
    """People's segments that have a label g, as if they had been mined; each is its own instance."""
    segments = segments_of(truth, people)
    if whole == "photograph":
        areas = [truth.height * truth.width, *(round(each.area_px) for each in segments)]
        granularity = granularity_of(np.array(areas, dtype=np.int64), GranularityConfig().method)[1:]
    else:
        segments = [each for each in segments if each.granularity is not None]
        granularity = np.array([each.granularity for each in segments])
    counts = tuple(each.mask["counts"] for each in segments)
    return LoadedSample(
        key=image.path.stem,
        where=str(image.path),
        image=read_rgb(image.path),
        counts=counts,
        run_lengths=RunLengths.of(counts, truth.height, truth.width),
        granularity=granularity.astype(np.float32),
        instance_id=np.arange(len(counts)),
        area_px=np.array([each.area_px for each in segments], dtype=np.int64),
    )


def iou_other_photograph(model: GranularSam2, examples: Sequence[Example]) -> float:
    """1-IoU at the label's g when each click is answered on the next example's pixels: what click and g alone tell."""
    found = []
    for example, other in zip(examples, [*examples[1:], examples[0]], strict=True):
        asked = example.granularity[:, None].astype(np.float64)
        masks, _ = answers(model, dataclasses.replace(example, image=other.image), asked)
        found.append(iou(masks[:, 0], example.masks()))
    return float(np.concatenate(found).mean())


def iou_true_disc(examples: Sequence[Example]) -> float:
    """1-IoU of discs around the clicks, each as large as its mask in the view: what size alone could do at best."""
    found = []
    for example in examples:
        rows, columns = np.indices(example.image.shape[:2])
        for mask, (x, y) in zip(example.masks(), example.points, strict=True):
            distance = (columns - x) ** 2 + (rows - y) ** 2
            disc = distance <= np.partition(distance.ravel(), int(mask.sum()) - 1)[int(mask.sum()) - 1]
            found.append(float(iou(disc, mask)))
    return statistics.mean(found)


def recall(model: GranularSam2, mined: str, images: Sequence[EvalImage]) -> dict[str, float]:
    """AR of the student's masks and of the mined ones, pooled over all people's segments of some photographs."""
    rows = match_mined(mined, images).rows
    predictor = GranularPredictor(model)
    columns: dict[str, list[np.ndarray]] = {"student": [], "labels": []}
    counts: dict[str, list[int]] = {"student": [], "labels": []}
    with ProgressBar("recall", len(images)) as bar:
        for number, (image, row) in enumerate(zip(images, rows, strict=True)):
            truth = image.load()
            objects = [truth.objects[position] for position in truth.scored]
            area = np.array([each.area_px for each in objects], dtype=np.float64)
            crowd = np.zeros(len(objects), dtype=bool)
            found = generate_masks(predictor, read_rgb(image.path), default_config(model.size))
            sides = {
                "student": [each.segmentation for each in found],
                "labels": [] if row is None else [each.segmentation for each in row.load().annotations],
            }
            for name, masks in sides.items():
                columns[name].append(recall_best(iou_with(masks, objects), area, crowd)["recall_1000"])
                counts[name].append(len(masks))
            bar.update(number + 1)
    result = {f"{name}_ar1000": float(np.concatenate(values).mean()) for name, values in columns.items()}
    return result | {f"{name}_masks_per_image": statistics.mean(each) for name, each in counts.items()}


def measure(run: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures of one run."""
    began_s, began_cpu_s = time.monotonic(), time.process_time()
    checkpoint = read_checkpoint(run)
    model = load_granular(run)
    size = model.image_size
    chosen_on = [fixed_example(each, size) for each in mined_samples(arguments.train, CHOOSING_IMAGES)]
    fixed = best_fixed_g(measure_clicks(model, chosen_on))
    labels = [fixed_example(each, size) for each in mined_samples(arguments.validation, arguments.images)]
    people_images = read_bsds500(Path(arguments.bsds500), "val").images[: arguments.images]
    people = [
        fixed_example(people_sample(image, image.load(), people=arguments.people, whole=arguments.whole), size)
        for image in people_images
    ]
    people = [each for each in people if each.count]
    found: dict[str, Any] = {
        "run": run.name,
        "step": checkpoint.record.get("step"),  # a merged file does not say
        "config": checkpoint.record.get("config"),
        "mined_labels": dial_figures(measure_clicks(model, labels), fixed_g=fixed),
        "people": dial_figures(measure_clicks(model, people)),
        "people_segments": {"people": arguments.people, "whole": arguments.whole},
    }
    for name, examples in (("mined_labels", labels), ("people", people)):
        found[name]["iou_other_photograph"] = iou_other_photograph(model, examples)
        found[name]["iou_true_disc"] = iou_true_disc(examples)
    if arguments.recall_images:
        found["recall"] = recall(model, arguments.validation, people_images[: arguments.recall_images])
    found["seconds"] = round(time.monotonic() - began_s, 1)
    found["cpu_seconds"] = round(time.process_time() - began_cpu_s, 1)
    return found


def reached(figures: dict[str, Any]) -> dict[str, bool]:
    """The bar, sentence by sentence."""
    return {
        "spearman of area against g at least 0.8 in the median over clicks": figures["area_spearman"] >= 0.8,
        "near 0 when shuffled": abs(figures["area_spearman_shuffled"]) < 0.15,
        "mean IoU of the masks at g 0.1 and 1.0 at most 0.6": figures["iou_low_high"] <= 0.6,
        "label g above the best fixed g, interval above 0": figures["gain_over_fixed_g"]["low"] > 0,
        "label g above shuffled g, interval above 0": figures["gain_over_shuffled_g"]["low"] > 0,
    }


def draw_curves(runs: Sequence[Path], path: Path) -> None:
    """Loss, IoU and the validation's figures against steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.4), constrained_layout=True)
    for run in runs:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        steps = [line["step"] for line in lines]
        for axis, name in zip(axes, ("loss", "iou"), strict=False):
            values = np.array([line[name] for line in lines])
            width = max(1, len(values) // 25)
            smooth = np.convolve(values, np.ones(width) / width, mode="valid")
            axis.plot(steps[width - 1 :], smooth, label=run.name)
            axis.set(title=f"{name} of the batches, mean of {width} lines", xlabel="step")
        path_of = run / "validation.jsonl"
        held = [json.loads(line) for line in path_of.read_text().splitlines()] if path_of.exists() else []
        for name, style in (("iou_label_g", "C3-o"), ("iou_best_fixed_g", "C4--s"), ("iou_shuffled_g", "C7:^")):
            label = f"{name}, each run" if run == runs[0] else None
            axes[2].plot([each["step"] for each in held], [each[name] for each in held], style, label=label)
    axes[2].set(title="1-IoU on validation photographs", xlabel="step")
    for axis in axes:
        axis.legend(fontsize=6)
    figure.savefig(path, dpi=90)


def draw_pictures(run: Path, path: Path) -> None:
    """One click at five granularities on photographs of the scikit-image package, which no run trained on.

    Two rows a photograph: what its own tree answers, and under it the run.
    """
    import skimage

    predictors = {"tree": TreePredictor(), "student": GranularPredictor(load_granular(run))}
    rows = []
    for name, point in CLICKS.items():
        image = read_rgb(Path(skimage.__file__).parent / "data" / name)
        for who, predictor in predictors.items():
            predictor.set_image(image)
            masks = [
                predictor.predict([point], [1], granularity=g, multimask_output=False)[0].reshape(image.shape[:2])
                for g in PICTURED
            ]
            sheet = contact_sheet(
                image,
                masks,
                [f"{who}, g = {g}" for g in PICTURED],
                points_xy=np.array([point], dtype=np.float64),
                labels=np.ones(1, dtype=np.int64),
                width_px=160,
            )
            rows.append(sheet)
    write_png(path, np.concatenate(rows))


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the figures; exit code 1 if the first run misses the bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", type=Path, required=True)
    parser.add_argument("--train", required=True)
    parser.add_argument("--validation", required=True)
    parser.add_argument("--bsds500", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--people", choices=PEOPLE, default="all")
    parser.add_argument("--whole", choices=WHOLES, default="segments")
    parser.add_argument("--recall-images", type=int, default=0)
    parser.add_argument("--curves", type=Path)
    parser.add_argument("--pictures", type=Path)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    load = os.getloadavg()
    runs = []
    for run in arguments.runs:
        found = measure(run, arguments)
        found["bar"] = reached(found["mined_labels"])
        runs.append(found)
        print(json.dumps(found, indent=1), file=sys.stderr)
        arguments.output.write_text(json.dumps({"runs": runs, "environment": environment(load)}, indent=1) + "\n")
    if arguments.curves:
        draw_curves(arguments.runs, arguments.curves)
    if arguments.pictures:
        draw_pictures(arguments.runs[0], arguments.pictures)
    return 0 if all(runs[0]["bar"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
