"""Images of other kinds: what mined labels and students are worth there, and what training on unlabelled ones brings.

    python -m benchmarks.domains --data DIR --output OUT [--domains NAME ...] [--recipes default default-1000]
        [--checkpoint CKPT [--trunk lite0 --trunk-rate 0.1]] [--steps 150] [--photographs MINED ...] [--jobs N]

DIR holds one folder for each domain (`benchmarks.domain_images` tells the layout). Each has two halves by a hash of the
images' names: settings may be chosen on the one, all figures are of the other. A row is one domain with one subject:

- `labels RECIPE`: the masks that `grainmill mine` finds, beside `slic` and `felzenszwalb` (`score --peer`). AR1000 and
  AR at 300 by COCO's matching, and the share of objects that an instance of the labels meets with an IoU of 0.5.
- `student`: CKPT as it is; `student, N more steps here`: after `train --init CKPT` on labels mined from `unlabelled/`;
  `student from here alone`: from random weights, as many steps, on the same labels; `student, N more steps on
  photographs`: the control, with `--photographs`: as many more steps on what it was trained on. The dial's
  figures (`validation.dial_figures`) with clicks on the given masks and on the labels mined
  from the same images, the best single g chosen on the other half; on another image's pixels (`micro_run`); and recall
  of everything found in the first images.

OUT gets the shards, the runs, a file for each row, `domains.json`, `domains.md` and a picture of each domain. What is
there already is kept, so that the same call goes on; a row that died says why and is done again. A domain has one
person's masks, so people are not among the peers.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from model.data.stream import Example
from model.evaluation.benchmarks.files import read_rgb
from model.evaluation.benchmarks.mined import MaskSet, load_masks, match_mined
from model.evaluation.benchmarks.records import EvalImage, iou_with
from model.evaluation.bootstrap import ratio_interval
from model.evaluation.protocols.label_masks import CURVE, LabelItem, masks_answer, score_image
from model.evaluation.protocols.simulated_user import next_click
from model.evaluation.results import write_json
from model.evaluation.score_records import MasksAnswer
from model.library import train
from model.network.checkpoint import read_checkpoint
from model.network.granular import GranularSam2
from model.network.load import load_granular
from model.predict.draw import captioned, contact_sheet, segment_map, write_png
from model.predict.image import GranularPredictor
from model.predict.mask_generator import default_config, generate_masks
from model.training.validation import best_fixed_g, dial_figures, fixed_example, measure_clicks, paired_gain
from pipeline.bench.report import environment
from pipeline.errors import GrainmillError, InputError
from pipeline.format import rle
from pipeline.library import mine

from .domain_images import Domain, read_domains
from .grid import DONE, Task, filled
from .micro_run import iou_other_photograph, mined_samples, people_sample

PEERS: Final = ("slic", "felzenszwalb")
STUDENT: Final = "student"
ALONE: Final = "student from here alone"
LABELS: Final = "labels"
PICTURED_IMAGES: Final = 3
CELL_PX: Final = 240
MASKS: Final = "masks"
MINED: Final = "mined"


def mined(images: Path, output: Path, recipe: str) -> str:
    """Labels of a folder of images, mined now or before."""
    mine(str(images), str(output), recipe=recipe, executor="inline")
    return str(output)


def mean_of(answers: Sequence[MasksAnswer], sums: Sequence[float], counts: Sequence[float]) -> dict[str, float]:
    """A ratio of sums over images with its interval."""
    found = ratio_interval(np.array(sums, dtype=np.float64), np.array(counts, dtype=np.float64))
    assert found is not None, f"{len(answers)} images without objects"
    return {"value": found.value, "low": found.low, "high": found.high}


def recall_figures(answers: Sequence[MasksAnswer]) -> dict[str, Any]:
    """AR1000, AR300, mean best IoU, and what `label_masks` counts beside them, of some images."""
    objects = [float(each["objects"]) for each in answers]
    best = [float(np.sum(np.array(each["rows"]["all"]["best_iou"], dtype=np.float64))) for each in answers]
    found: dict[str, Any] = {
        "ar1000": mean_of(answers, [each["curve"][CURVE.index(1000)] for each in answers], objects),
        "ar300": mean_of(answers, [each["curve"][CURVE.index(300)] for each in answers], objects),
        "mean_best_iou": mean_of(answers, best, objects),
    }
    for name in ("masks_per_image", "instance_recall"):
        if name in answers[0]["sums"]:
            sums, counts = zip(*(each["sums"][name] for each in answers), strict=True)
            found[name] = mean_of(answers, sums, counts)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Rows


def label_row(domain: Domain, subject: str, labels: Path) -> dict[str, Any]:
    """Labels of a recipe, or a peer, on the reported half."""
    images = domain.half("reported")
    if subject.startswith(LABELS):
        recipe = subject.removeprefix(f"{LABELS} ")
        where = mined(domain.images[0].path.parent, labels / recipe, recipe)
        rows = match_mined(where, images).rows
        items = [LabelItem(subject=LABELS, image=image, row=row) for image, row in zip(images, rows, strict=True)]
    else:
        items = [LabelItem(subject=subject, image=image) for image in images]
    answers = [score_image(item, matching="one-to-one", ucm=None) for item in items]
    return {"images": len(images), "objects": sum(each["objects"] for each in answers), **recall_figures(answers)}


def clicks_on_masks(images: Sequence[EvalImage], size: int) -> list[Example]:
    """Fixed clicks on the given masks; images without any are left out."""
    samples = [people_sample(image, image.load(), people="all", whole="segments") for image in images]
    found = [fixed_example(sample, size) for sample in samples if sample.counts]
    return [each for each in found if each.count]


def clicks_on_labels(where: str, keys: set[str], size: int) -> list[Example]:
    """Fixed clicks on mined labels of the images with these names."""
    samples = [each for each in mined_samples(where, 10**9) if each.key in keys]
    return [each for each in (fixed_example(sample, size) for sample in samples) if each.count]


def student_row(domain: Domain, weights: Path, labels: Path, *, images: int, recall_images: int) -> dict[str, Any]:
    """A student on the reported half."""
    torch.set_num_threads(1)
    model = load_granular(weights)
    reported, choosing = (domain.half(which)[:images] for which in ("reported", "choosing"))
    where = mined(domain.images[0].path.parent, labels / "default", "default")
    found: dict[str, Any] = {"images": len(reported), "clicked": {}}
    for ground in (MASKS, MINED):
        asked, chosen_on = (
            clicks_on_masks(half, model.image_size)
            if ground == MASKS
            else clicks_on_labels(where, _keys(where, half), model.image_size)
            for half in (reported, choosing)
        )
        measured = measure_clicks(model, asked)
        fixed = best_fixed_g(measure_clicks(model, chosen_on)) if chosen_on else None
        found[ground] = dial_figures(measured, fixed_g=fixed)
        found[ground]["iou_other_image"] = iou_other_photograph(model, asked)
        pairs = zip(asked, measured, strict=True)
        found["clicked"][ground] = {each.key: columns["label_iou"].tolist() for each, columns in pairs}
    if recall_images:
        found |= student_recall(model, reported[:recall_images], where)
    return found


def _keys(where: str, images: Sequence[EvalImage]) -> set[str]:
    return {row.key for row in match_mined(where, images).rows if row is not None}


def student_recall(model: GranularSam2, images: Sequence[EvalImage], labels: str) -> dict[str, Any]:
    """Of everything that a student finds in some images, and of the labels of the same ones."""
    predictor = GranularPredictor(model)
    answers, theirs = [], []
    for image, row in zip(images, match_mined(labels, images).rows, strict=True):
        truth = image.load()
        masks = generate_masks(predictor, read_rgb(image.path), default_config(model.size))
        ranked = sorted(masks, key=lambda each: -each.score)
        one, other = MaskSet(rles=tuple(each.segmentation for each in ranked)), load_masks(row)
        answers.append(masks_answer(image.name, one, truth, matching="one-to-one", what=image.name))
        theirs.append(masks_answer(image.name, other, truth, matching="one-to-one", what=image.name))
    return {
        "recall_images": len(images),
        "recall": recall_figures(answers),
        "recall_of_labels": recall_figures(theirs),
    }


def trained(output: Path, data: Sequence[str], training: dict[str, Any]) -> Path:
    """A run of `grainmill train` with its defaults, gone on with where it was; `training` holds further flags."""
    begun = any(output.glob("checkpoints/*.safetensors"))
    if train(list(data), output, **{**RECIPE, **training}, threads=1, resume=begun)["stopped"] == "interrupted":
        raise KeyboardInterrupt  # saved; a student of fewer steps is no row
    return output


RECIPE: Final[dict[str, Any]] = {"wholes_only": True, "coarse_images": 0, "save_every": 50, "keep": 1}
"""Of `grainmill train`, beside its defaults: what is a whole in a domain is what it goes on for."""


def taught_row(
    domain: Domain, data: Sequence[str], run: Path, labels: Path, training: dict[str, Any], **limits: int
) -> dict[str, Any]:
    """A student that is trained first."""
    return student_row(domain, trained(run, data, training), labels, **limits)


def prepared_run(run: Path, data: Sequence[str], training: dict[str, Any]) -> dict[str, Any]:
    return {"run": str(trained(run, data, training))}


def prepared_labels(images: Path, output: Path) -> dict[str, Any]:
    return {"mined": mined(images, output, "default")}


def tasks_of(domains: Sequence[Domain], options: argparse.Namespace) -> tuple[list[Task], list[Task]]:
    """What several rows rest on, and the rows: by domain, labels and peers first."""
    runs, first, rows = options.output / "runs", [], []
    training: dict[str, Any] = {"steps": options.steps, "seed": options.seed, "device": options.device}
    if options.checkpoint is not None:
        record = read_checkpoint(options.checkpoint).record
        training |= {name: record[name] for name in ("size", "adapter", "image_size")}
    if options.trunk:
        training |= {"trunk": options.trunk, "trunk_rate": options.trunk_rate}
    going_on, alone = {**training, "init": str(options.checkpoint)}, {**training, "init": "scratch"}
    teaches = options.checkpoint is not None and options.steps > 0
    more = f"{STUDENT}, {options.steps} more steps"
    if teaches and options.photographs:
        work = partial(prepared_run, runs / "photographs", options.photographs, going_on)
        first.append(Task(name="photographs", asked={**going_on, "data": options.photographs}, work=work))
    for domain in domains:
        labels = options.output / "labels" / domain.name
        for subject in [*(f"{LABELS} {recipe}" for recipe in options.recipes), *PEERS]:
            rows.append(Task(name=_name(domain, subject), asked={}, work=partial(label_row, domain, subject, labels)))
        if options.checkpoint is None:
            continue
        images = domain.images[0].path.parent
        first.append(Task(name=domain.name, asked={}, work=partial(prepared_labels, images, labels / "default")))
        limits = {"images": options.images, "recall_images": options.recall_images}
        asked: dict[str, Any] = {**limits, "checkpoint": str(options.checkpoint)}
        students: list[tuple[str, Any, dict[str, Any]]] = [
            (STUDENT, partial(student_row, domain, options.checkpoint, labels, **limits), asked),
        ]
        if teaches and domain.unlabelled is not None:
            unlabelled = labels / "unlabelled"
            work = partial(prepared_labels, domain.unlabelled, unlabelled)
            first.append(Task(name=f"{domain.name}, unlabelled", asked={}, work=work))
            ways = [(f"{more} here", "going_on", going_on), (ALONE, "alone", alone)]
            for subject, run, how in ways if options.alone else ways[:1]:
                work = partial(taught_row, domain, [str(unlabelled)], runs / domain.name / run, labels, how, **limits)
                students.append((subject, work, {**asked, **how}))
        if teaches and options.photographs:
            subject, data = f"{more} on photographs", options.photographs
            work = partial(taught_row, domain, data, runs / "photographs", labels, going_on, **limits)
            students.append((subject, work, {**asked, **going_on, "data": data}))
        rows += [Task(name=_name(domain, name), asked=what, work=work) for name, work, what in students]
    return first, rows


def _name(domain: Domain, subject: str) -> str:
    return f"{domain.name}, {subject}"


# ---------------------------------------------------------------------------------------------------------------------
# Tables and pictures


def told(found: dict[str, float] | None) -> str:
    return "–" if not found else f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """All rows as Markdown: what was found in the image, then what one click gets."""
    lines = [
        "| domain | subject | images | objects | AR1000 | AR300 | objects met by an instance | masks per image |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        domain, subject = row["name"].split(", ", 1)
        if row["state"] != DONE:
            lines.append(f"| {domain} | {subject} | {row['state']} | | | | | |")
            continue
        sides = [(subject, row)] if "ar1000" in row else []
        if "recall" in row:
            first = f"first {row['recall_images']}"
            sides = [(f"{subject}, {first}", row["recall"]), (f"labels default, {first}", row["recall_of_labels"])]
        for name, each in sides:
            images, objects = row.get("recall_images", row["images"]), row.get("objects", "")
            met = told(each.get("instance_recall"))
            cells = [told(each["ar1000"]), told(each["ar300"]), met, f"{each['masks_per_image']['value']:.0f}"]
            lines.append(f"| {domain} | {name} | {images} | {objects} | {' | '.join(cells)} |")
    lines += [
        "",
        "| domain | student | clicks on | label g | best fixed g (which) | shuffled g | best of ten | "
        "own minus another image's pixels | spearman | IoU of g 0.1 and 1.0 | label g against the student as it is |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    as_it_is = {row["name"].split(", ", 1)[0]: row for row in rows if row["name"].endswith(f", {STUDENT}")}
    for row in rows:
        domain, subject = row["name"].split(", ", 1)
        for ground in (MASKS, MINED):
            if ground not in row:
                continue
            each, base = row[ground], as_it_is.get(domain)
            gain = "–"
            if base is not None and base is not row and ground in base:
                pairs = row["clicked"][ground], base["clicked"][ground]
                gain = told(paired_gain([np.array(pairs[0][key]) - np.array(pairs[1][key]) for key in pairs[0]]))
            all_alike = each["iou_shuffled_g"] == each["iou_label_g"]  # every given mask is a whole, with g = 1.0
            cells = [
                f"{each['iou_label_g']:.3f}",
                f"{each['iou_best_fixed_g']:.3f} ({each['best_fixed_g']})",
                "–" if all_alike else f"{each['iou_shuffled_g']:.3f}",
                f"{each['iou_best_of_10']:.3f}",
                f"{each['iou_label_g'] - each['iou_other_image']:.3f}",
                f"{each['area_spearman']:.2f}",
                f"{each['iou_low_high']:.2f}",
                gain,
            ]
            words = "given masks" if ground == MASKS else "labels of the same images"
            lines.append(f"| {domain} | {subject} | {words} | {' | '.join(cells)} |")
    return lines


def picture(domain: Domain, labels: str, students: dict[str, Path], path: Path) -> None:
    """Some reported images: the given masks, the labels that fit them best, and a click in one of them by students."""
    predictors = {name: GranularPredictor(load_granular(weights)) for name, weights in students.items()}
    images = domain.half("reported")[:PICTURED_IMAGES]
    sheets = []
    for image, row in zip(images, match_mined(labels, images).rows, strict=True):
        truth, rgb = image.load(), read_rgb(image.path)
        given = [rle.decode(each.mask) for each in truth.objects]
        masks = load_masks(row)
        wholes = [rle.decode(each) for each, whole in zip(masks.rles, masks.instance or (), strict=True) if whole]
        overlap = iou_with(masks.rles, truth.objects)
        best = [rle.decode(masks.rles[place]) for place in overlap.argmax(axis=0)] if len(overlap) else []
        # Clicked is the object of middle size, in its thickest place.
        clicked = given[int(np.argsort([each.sum() for each in given])[len(given) // 2])]
        click = next_click(np.zeros_like(clicked), clicked, None, [])
        assert click is not None
        cells = [("given masks", segment_map(rgb, given)), ("labels: best for each", segment_map(rgb, best))]
        cells.append(("labels: instances", segment_map(rgb, wholes)))
        row_of_cells = [_cell(each, caption) for caption, each in cells]
        answers = [_answers(predictor, rgb, (click.x, click.y)) for predictor in predictors.values()]
        if answers:
            at_g = [(name, g, mask) for name, several in zip(predictors, answers, strict=True) for g, mask in several]
            row_of_cells.append(
                contact_sheet(
                    rgb,
                    [mask for _, _, mask in at_g],
                    [f"{name}, g {g}" for name, g, _ in at_g],
                    points_xy=np.array([[click.x, click.y]], dtype=np.float64),
                    labels=np.ones(1, dtype=np.int64),
                    width_px=CELL_PX,
                )
            )
        height = max(each.shape[0] for each in row_of_cells)
        sheets.append(np.concatenate([_padded(each, height, each.shape[1]) for each in row_of_cells], axis=1))
    width = max(each.shape[1] for each in sheets)
    write_png(path, np.concatenate([_padded(each, each.shape[0], width) for each in sheets]))


def _answers(
    predictor: GranularPredictor, rgb: NDArray[np.uint8], point: tuple[int, int]
) -> list[tuple[float, NDArray[np.bool_]]]:
    predictor.set_image(rgb)
    return [(g, predictor.predict([point], [1], granularity=g)[0][0]) for g in (0.5, 1.0)]


def _cell(image: NDArray[np.uint8], caption: str) -> NDArray[np.uint8]:
    import cv2

    height = round(image.shape[0] * CELL_PX / image.shape[1])
    return captioned(cv2.resize(image, (CELL_PX, height), interpolation=cv2.INTER_AREA).astype(np.uint8), caption)


def _padded(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    margins = ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0))
    return np.pad(image, margins, constant_values=255)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 if a row died, 2 for bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="A folder of domains.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--domains", nargs="+", help="Some of them. Default: all.")
    parser.add_argument("--recipes", nargs="+", default=["default", "default-1000"], help="Default: these two.")
    parser.add_argument("--checkpoint", type=Path, help="A student. Default: labels and peers alone.")
    parser.add_argument("--steps", type=int, default=150, help="Of further training; 0: none. Default 150.")
    parser.add_argument("--trunk", help="Of CKPT, as `grainmill train --trunk`. Default: the size's own.")
    parser.add_argument("--trunk-rate", type=float, help="As of `grainmill train`, with --trunk.")
    parser.add_argument("--no-alone", dest="alone", action="store_false", help="No student from a domain alone.")
    parser.add_argument("--photographs", nargs="+", help="Mined shards that the student was trained on. Default: none.")
    parser.add_argument("--images", type=int, default=30, help="With clicks, of each half at most. Default 30.")
    parser.add_argument("--recall-images", type=int, default=5, help="Taken apart by students. Default 5.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="As of `grainmill train`.")
    parser.add_argument("--jobs", type=int, default=1, help="Rows side by side; 0: in this process. Default 1.")
    options = parser.parse_args(argv)
    load = os.getloadavg()
    try:
        found = read_domains(options.data)
        unknown = sorted(set(options.domains or ()) - {each.name for each in found})
        if unknown:
            raise InputError(f"--domains {unknown[0]}: {options.data} holds {', '.join(each.name for each in found)}")
        domains = [each for each in found if not options.domains or each.name in options.domains]
        for domain in domains:
            for image in domain.images:
                image.load()  # a bad mask is told before hours of work
    except GrainmillError as error:
        print(f"benchmarks.domains: {error}", file=sys.stderr)
        return error.exit_code
    first, tasks = tasks_of(domains, options)
    filled(first, options.output / "prepared", jobs=options.jobs)
    rows = filled(tasks, options.output / "rows", jobs=options.jobs)
    write_json(options.output / "domains.json", {"rows": rows, "environment": environment(load)})
    (options.output / "domains.md").write_text("\n".join(table(rows)) + "\n", encoding="utf-8")
    for domain in domains:
        labels, runs = options.output / "labels" / domain.name / "default", options.output / "runs" / domain.name
        if not labels.is_dir():
            continue
        students = {} if options.checkpoint is None else {"as it is": options.checkpoint}
        if any(runs.glob("going_on/checkpoints/*.safetensors")):
            students["here"] = runs / "going_on"
        picture(domain, str(labels), students, options.output / f"{domain.name}.png")
    print("\n".join(table(rows)))
    return int(any(row["state"] != DONE for row in rows))


if __name__ == "__main__":
    sys.exit(main())
