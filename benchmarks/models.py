"""The scoreboard of models: `grainmill score` of several models on several benchmarks, and one report of all of it.

    python -m benchmarks.models --output OUT --model NAME=CKPT ... --benchmark NAME=DATA[:SPLIT] ... [--mined]
        [--peers] [--domains DIR] [--davis2016 DIR] [--images 32] [--objects-per-image 4] [--jobs N]

CKPT is what `grainmill score --checkpoint` takes: a student, `tree` (the masks that mining finds, without weights),
SAM-2.1's or UnSAMv2's weights. NAME, DATA and SPLIT of a benchmark are as `grainmill score --benchmark`, `--data` and
`--split` take them. So whoever has SAM-2.1's weights and COCO types

    python -m benchmarks.models --output OUT --model sam2.1=sam2.1_hiera_small.pt --model student=run/ \\
        --benchmark coco=coco/ --benchmark grabcut=GrabCut/ --mined --images 500

`--mined` scores the masks of `grainmill mine` on the same images beside them, `--peers` also what needs no training.
Two kinds of data are brought into a layout that `score` reads, in OUT/data: `--domains` (`benchmarks.domain_images`; of
each domain the reported half, as `folder`), and `--davis2016`, whose sequences become single images (every
`--frames-every`th frame, as `davis`) for models without a memory.

A row is one benchmark with one model, in OUT/scores with everything that `score` writes. A row that died says why, and
the next call does it again; so does one that was cut off, from the image where it was. `models.json`, `models.md` and
`models.png` are of all rows. The tree takes seconds for an object, so it is asked about fewer images (`--tree-images`)
and not for the clicks of ten g by the ground truth; differences are of the objects that both models were asked for.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from model.evaluation.benchmarks.all import BENCHMARKS, find_benchmark
from model.evaluation.benchmarks.davis import read_davis2016
from model.evaluation.checkpoint import load_model
from model.evaluation.flags import PEERS, ScoreFlags
from model.evaluation.options import score_options
from model.evaluation.published import published_for
from model.evaluation.results import OBJECTS, write_json
from model.library import score
from model.predict.draw import write_png
from model.training.validation import paired_gain
from pipeline.bench.report import environment
from pipeline.errors import GrainmillError, InputError
from pipeline.format import rle
from pipeline.format.schema import canonical_json, sha256_of
from pipeline.library import mine
from pipeline.storage.parquet import parquet_table

from .domain_images import read_domains
from .grid import DONE, Task, filled

TREE: Final = "tree"
MINED: Final = "mined masks"
GRANULARITY: Final = ("oracle", "label", "fixed:0.5", "fixed:1.0")
CONTROLS: Final = ("constant", "shuffled", "best_of_10_clicks", "best_of_3")


@dataclass(frozen=True, kw_only=True)
class Ground:
    """One benchmark, in a layout that `score` reads.

    Attributes:
        title: in the tables.
        benchmark: of `grainmill score --list`.
        data, split: as its flags.
        images: at most, of models; the tree's own limit comes first.
        source: what `data` was made of, so that a row of another is not taken for it.
    """

    title: str
    benchmark: str
    data: str
    split: str
    images: int
    source: str = ""


# ---------------------------------------------------------------------------------------------------------------------
# Data


def named(text: str, flag: str) -> tuple[str, str]:
    """NAME=VALUE.

    Raises:
        InputError: it is none.
    """
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise InputError(f"{flag} {text}: expected NAME=VALUE")
    return name, value


def grounds_of(options: argparse.Namespace) -> list[Ground]:
    """All benchmarks, those that must be brought into a layout written to OUT/data.

    Raises:
        InputError: no such benchmark or split, or files that are missing.
    """
    found = []
    for each in options.benchmark:
        name, data = named(each, "--benchmark")
        benchmark = find_benchmark(name)
        place, _, split = data.rpartition(":")
        if split not in benchmark.splits or not place:
            place, split = data, benchmark.splits[0]
        found.append(Ground(title=name, benchmark=name, data=place, split=split, images=options.images))
    if options.davis2016:
        data = frames_as_images(options.davis2016, options.output / "data" / "davis", every=options.frames_every)
        source = f"{options.davis2016}, every {options.frames_every}"
        found.append(
            Ground(
                title="davis, frames", benchmark="davis", data=data, split="test", images=options.images, source=source
            )
        )
    for name, data in (domains_as_folders(options.domains, options.output / "data") if options.domains else {}).items():
        images = options.domain_images
        source = str(options.domains)
        found.append(Ground(title=name, benchmark="folder", data=data, split="val", images=images, source=source))
    titles = Counter(each.title for each in found)
    found = [
        each if titles[each.title] == 1 else replace(each, title=f"{each.title} {each.data}:{each.split}")
        for each in found
    ]
    if not found:
        raise InputError("expected --benchmark NAME=DATA, --domains or --davis2016: nothing to score on")
    for ground in found:
        find_benchmark(ground.benchmark).split_of(ground.data, ground.split)
    return found


def frames_as_images(root: Path, target: Path, *, every: int) -> str:
    """Frames of the sequences of DAVIS-2016's val as `davis` reads them.

    Raises:
        InputError: as `read_davis2016`.
    """
    shutil.rmtree(target, ignore_errors=True)
    for video in read_davis2016(root, "val").videos:
        for number in range(0, len(video.frames), every):
            frame, mask = video.frames[number], video.masks[number]
            for folder, path in (("img", frame), ("gt", mask)):
                copied = target / folder / f"{video.name}-{path.name}"
                copied.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copied)
    return str(target)


def domains_as_folders(root: Path, target: Path) -> dict[str, str]:
    """The reported half of each domain as `folder` reads it: one black and white image for each object.

    Images without any object are left out.

    Raises:
        InputError: as `read_domains`, or a mask of another size.
    """
    found = {}
    for domain in read_domains(root):
        folder = target / f"domain-{domain.name}"
        shutil.rmtree(folder, ignore_errors=True)
        for image in domain.half("reported"):
            if not (objects := image.load().objects):
                continue
            masks = folder / "masks" / image.name
            masks.mkdir(parents=True)
            for number, each in enumerate(objects):
                mask = rle.decode(each.mask).astype(np.uint8)
                write_png(masks / f"{number:04}.png", np.repeat(255 * mask[..., None], 3, axis=2))
            (folder / "images").mkdir(exist_ok=True)
            shutil.copyfile(image.path, folder / "images" / image.name)
        found[domain.name] = str(folder)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Rows


def model_row(ground: Ground, checkpoint: str, output: Path, flags: dict[str, Any]) -> dict[str, Any]:
    """One model on one benchmark."""
    record = score(ground.benchmark, ground.data, output, checkpoint=checkpoint, split=ground.split, **flags)
    kept = {name: each for name, each in record["metrics"].items() if not _is_a_view(name, list(record["metrics"]))}
    return _kept(dict(record), kept, output)


def _is_a_view(name: str, names: Sequence[str]) -> bool:
    """Recall of another view of the ground truth than the benchmark's first; `scores.json` has it."""
    if not name.startswith("whole.") or name.count(".") < 3:
        return False
    first = next(each for each in names if each.startswith("whole.") and each.endswith(".ar_1"))
    return name.split(".")[1] != first.split(".")[1]


def masks_row(ground: Ground, output: Path, flags: dict[str, Any], *, peers: bool) -> dict[str, Any]:
    """Masks mined from the images that models are asked about, and peers."""
    images = find_benchmark(ground.benchmark).split_of(ground.data, ground.split).images[: flags["limit"]]
    copies = output / "images"
    shutil.rmtree(copies, ignore_errors=True)
    copies.mkdir(parents=True)
    for number, image in enumerate(images):
        shutil.copyfile(image.path, copies / f"{number:06}-{image.path.name}")
    mine(str(copies), str(output / "mined"), executor="inline")
    record = score(
        ground.benchmark, ground.data, output / "scores", masks=output / "mined", split=ground.split,
        peer=["all"] if peers else None, **flags,
    )  # fmt: skip
    kept = {
        name: each for name, each in record["metrics"].items() if name.split(".")[-1] in ("AR1000", "mean_best_iou")
    }
    return _kept(dict(record), kept, output / "scores")


def _kept(record: dict[str, Any], metrics: dict[str, Any], output: Path) -> dict[str, Any]:
    names = ("benchmark", "split", "dataset", "left_out", "command", "published")
    return {**{name: record[name] for name in names}, "metrics": metrics, "notes": record["notes"], "at": str(output)}


def tasks_of(options: argparse.Namespace, grounds: Sequence[Ground], models: dict[str, str]) -> list[Task]:
    """One for each row; the folder of a row's scores is named by what is asked, so that none meets another's."""
    tasks = []
    for ground in grounds:
        several: dict[str, str | None] = dict(models)
        if options.mined and "whole" in find_benchmark(ground.benchmark).tasks:
            several[MINED] = None
        for name, checkpoint in several.items():
            most = min(ground.images, options.tree_images) if checkpoint == TREE else ground.images
            flags: dict[str, Any] = {"limit": most, "seed": options.seed}
            asked = {"ground": ground.title, "model": name, "data": ground.data, "split": ground.split}
            asked |= {"source": ground.source} if ground.source else {}
            if checkpoint is not None:
                flags |= {"objects_per_image": options.objects_per_image, "points_per_side": options.points_per_side}
                asked_g = [each for each in GRANULARITY if each != "oracle" or checkpoint != TREE]
                flags |= {"granularity": asked_g, "device": options.device}
                asked["identity"] = identity_of(ground, checkpoint, options.device)
            else:
                asked["peers"] = options.peers
            asked |= flags
            output = (
                options.output / "scores" / f"{slug(f'{ground.title}-{name}')}-{sha256_of(canonical_json(asked))[:8]}"
            )
            work = (
                partial(masks_row, ground, output, flags, peers=options.peers)
                if checkpoint is None
                else partial(model_row, ground, checkpoint, output, flags)
            )
            tasks.append(Task(name=slug(f"{ground.title}-{name}"), asked=asked, work=work))
    return tasks


def identity_of(ground: Ground, checkpoint: str, device: str | None) -> str:
    """sha256 of the weights.

    Raises:
        InputError: no checkpoint there, or not one that can be scored.
    """
    flags = ScoreFlags(benchmark=ground.benchmark, data=ground.data, checkpoint=checkpoint, device=device, workers=1)
    return load_model(score_options(flags)).sha256()


def slug(text: str) -> str:
    return "".join(each if each.isalnum() or each in "._-" else "_" for each in text)


# ---------------------------------------------------------------------------------------------------------------------
# The report


def told(metric: dict[str, Any] | None, digits: int = 3) -> str:
    if metric is None or metric["value"] is None:
        return "–"
    if metric["low"] is None:
        return f"{metric['value']:.{digits}f}"
    return f"{metric['value']:.{digits}f} [{metric['low']:.{digits}f}, {metric['high']:.{digits}f}]"


def recalls(row: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Column -> AR1000 in the benchmark's first view."""
    return {
        name.split(".", 2)[2].removesuffix(".ar_1000"): value
        for name, value in row["metrics"].items()
        if name.startswith("whole.") and name.endswith(".ar_1000") and " - " not in name
    }


def one_pass(columns: dict[str, dict[str, Any]]) -> str:
    """The best of ten single passes, which one, chosen afterwards on these images."""
    passes = {name: each for name, each in columns.items() if name.startswith("single:") and not name.endswith("_raw")}
    if not passes:
        return told(columns.get("everything")) if "everything" in columns else "–"
    best = max(passes, key=lambda name: passes[name]["value"] or 0.0)
    return f"{told(passes[best])} ({best.removeprefix('single:')})"


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Clicks, everything, differences and published numbers."""
    done = [row for row in rows if row["state"] == DONE]
    models = [row for row in done if row["asked"]["model"] != MINED]
    lines = ["Clicks:", ""]
    lines += ["| benchmark | model | images, objects | 1-IoU, label g | g = 0.5 | g = 1.0 | oracle | best of 19 g | "
              "NoC80 / 85 / 90, label g | the same, oracle | best single g afterwards | shuffled g | "
              "best of ten near clicks | SAM's best of three | spearman | distinct of 19 |",
              "|" + "---|" * 16]  # fmt: skip
    for row in rows:
        if row["state"] != DONE:
            asked = row["asked"]
            lines.append(f"| {asked['ground']} | {asked['model']} | {row['state']} |" + " |" * 13)
        if row not in models or not any(name.startswith("interactive.") for name in row["metrics"]):
            continue
        each = {name.removeprefix("interactive."): value for name, value in row["metrics"].items()}
        clicks = [
            " / ".join(told(each.get(f"{column}.noc_{target}"), 1).split(" [")[0] for target in (80, 85, 90))
            for column in ("label", "oracle")
        ]
        firsts = [told(each.get(f"{column}.iou_1")) for column in ("label", "fixed:0.50", "fixed:1.00", "oracle")]
        firsts.append(told(row["metrics"].get("sweep.dial.best_iou")).split(" [")[0])
        controls = [told(each.get(f"{column}.iou_1")).split(" [")[0] for column in CONTROLS]
        dial = [told(each.get(f"sweep.dial.{name}"), 2).split(" [")[0] for name in ("spearman", "distinct_masks")]
        counts = f"{row['dataset']['images']}, {row['dataset']['clicked_objects']}"
        cells = [row["asked"]["ground"], row["asked"]["model"], counts, *firsts, *clicks, *controls, *dial]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Everything found, AR1000:", ""]
    lines += ["| benchmark | model | images, objects | best single pass (its g, chosen afterwards) | g = 0.5 | "
              "ten passes pooled | ten grids, one g | SAM's own mask | masks an image, pooled |",
              "|" + "---|" * 9]  # fmt: skip
    for row in done:
        start = [row["asked"]["ground"], row["asked"]["model"]]
        if row["asked"]["model"] == MINED:
            peers = [name for name in PEERS if f"{name}.AR1000" in row["metrics"]]
            counts = f"{row['dataset']['images']}, {row['dataset']['objects']}"
            lines.append(f"| {' | '.join([*start, counts, told(row['metrics']['AR1000'])])} | – | – | – | – | – |")
            for peer in peers:
                value = told(row["metrics"][f"{peer}.AR1000"])
                lines.append(f"| {start[0]} | {peer} | {counts} | {value} | – | – | – | – | – |")
            continue
        columns = recalls(row)
        if not columns:
            continue
        view = next(name.split(".")[1] for name in row["metrics"] if name.endswith(".ar_1000") and " - " not in name)
        objects = row["dataset"].get(f"objects_{view}", "")
        found = "pooled" if "pooled" in columns else "everything"
        masks = row["metrics"].get(f"whole.{found}.masks_per_image")
        cells = [*start, f"{row['dataset']['images']}, {objects}", one_pass(columns)]
        cells += [told(columns.get(name)) for name in ("single:0.50", "pooled", "ten_grids", "own")]
        lines.append(f"| {' | '.join([*cells, told(masks, 0).split(' [')[0]])} |")
    lines += ["", *differences(models), "", *published(done)]
    return lines


def differences(models: Sequence[dict[str, Any]]) -> list[str]:
    """Each benchmark's first model less its others, 1-IoU of the objects that both were asked for."""
    lines = ["1-IoU, less, paired over images, on the objects that both were asked for:", ""]
    lines += ["| benchmark | models | objects | label g | g = 0.5 | g = 1.0 | best of 19 g |", "|" + "---|" * 7]
    grounds = list(dict.fromkeys(row["asked"]["ground"] for row in models))
    for ground in grounds:
        first, *others = [row for row in models if row["asked"]["ground"] == ground]
        ours = first_clicks(first)
        for other in others:
            theirs = first_clicks(other)
            cells, count = [], 0
            for column in ("label.iou_1", "fixed:0.50.iou_1", "fixed:1.00.iou_1", "dial.best_iou"):
                by_image: dict[str, list[float]] = {}
                for key in ours.keys() & theirs.keys():
                    pair = [each[key].get(column) for each in (ours, theirs)]
                    if pair[0] is not None and pair[1] is not None:
                        by_image.setdefault(key[0], []).append(pair[0] - pair[1])
                gain = paired_gain([np.array(by_image[name]) for name in sorted(by_image)]) if by_image else None
                cells.append("–" if gain is None else f"{gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]")
                count = max(count, sum(map(len, by_image.values())))
            names = f"{first['asked']['model']} - {other['asked']['model']}"
            lines.append(f"| {ground} | {names} | {count} | {' | '.join(cells)} |")
    return lines


def first_clicks(row: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """(image, object) -> its cells of `objects.parquet`, of clicks and of the sweep."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for each in parquet_table((Path(row["at"]) / OBJECTS).read_bytes()).to_pylist():
        if each["task"] in ("interactive", "sweep"):
            cells = {name: value for name, value in each.items() if value is not None}
            found.setdefault((each["image"], each["object"]), {}).update(cells)
    return found


def published(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The papers' rows of the benchmarks that have any, with why they do not compare."""
    of: dict[str, dict[str, Any]] = {}
    for row in rows:
        name = row["benchmark"]
        # COCO's objects as polygons are COCO's, though not its val.
        flags = ScoreFlags(benchmark="coco" if name == "yolo-seg" else name, data="x", checkpoint="x", workers=1)
        if found := published_for(score_options(flags)):
            of[name] = dict(found)
    lines = ["As published, not measured here (UnSAMv2, arXiv 2511.13714v1, Tables 1 to 3; UnSAM):", ""]
    lines += ["| benchmark | method | choice | AR1000 | NoC80 | NoC90 or 85 | 1-IoU |", "|---|---|---|---|---|---|---|"]
    for name, found in of.items():
        title = "COCO (of yolo-seg)" if name == "yolo-seg" else name
        for each in found["rows"]:
            second = next(value for key, value in each.items() if key.startswith("NoC") and key != "NoC80")
            cells = [each["AR1000"], each["NoC80"], second, each["1-IoU"]]
            words = " | ".join("–" if cell is None else f"{cell:.3g}" for cell in cells)
            lines.append(f"| {title} | {each['method']} | {each['choice']} | {words} |")
    return lines if of else []


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """1-IoU at the label's g or 1.0, at the best of ten, and recall of everything, by benchmark and model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    done = [row for row in rows if row["state"] == DONE]
    grounds = list(dict.fromkeys(row["asked"]["ground"] for row in done))
    if not grounds:
        return
    names = list(dict.fromkeys(row["asked"]["model"] for row in done))
    panels = {
        "1-IoU, g = 0.5": "interactive.fixed:0.50.iou_1",
        "1-IoU, best of 19 g": "sweep.dial.best_iou",
        "AR1000, all found": None,
    }
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 0.3 * len(grounds) + 1.6), sharey=True)
    places = {ground: len(grounds) - number for number, ground in enumerate(grounds)}
    for axis, (title, metric) in zip(axes, panels.items(), strict=True):
        for number, name in enumerate(names):
            points = []
            for row in done:
                if row["asked"]["model"] == name:
                    columns = recalls(row)
                    found = columns.get("pooled") or columns.get("everything") or row["metrics"].get("AR1000")
                    each = row["metrics"].get(metric) if metric else found
                    if each is not None and each["value"] is not None and each["low"] is not None:
                        points.append((each, places[row["asked"]["ground"]] - 0.15 * (number - (len(names) - 1) / 2)))
            values = [each["value"] for each, _ in points]
            errors = [
                [max(0.0, each["value"] - each["low"]) for each, _ in points],
                [max(0.0, each["high"] - each["value"]) for each, _ in points],
            ]
            axis.errorbar(values, [y for _, y in points], xerr=errors, fmt="osv^D"[number % 5], ms=4, lw=1, label=name)
        axis.set(title=title, xlim=(0, 1))
        axis.grid(alpha=0.3)
    axes[0].set_yticks(list(places.values()), list(places))
    axes[-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 if a row died, 2 for bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", action="append", default=[], metavar="NAME=CKPT", help="Repeat it for several.")
    parser.add_argument("--benchmark", action="append", default=[], metavar="NAME=DATA[:SPLIT]",
                        help=f"One of {', '.join(BENCHMARKS)}; repeat it for several.")  # fmt: skip
    parser.add_argument("--domains", type=Path, help="A folder of domains. Default: none.")
    parser.add_argument("--davis2016", type=Path, help="DAVIS-2016 as downloaded, for single frames. Default: none.")
    parser.add_argument("--frames-every", type=int, default=20, help="Of its sequences. Default 20.")
    parser.add_argument("--mined", action="store_true", help="Also the masks of `grainmill mine`. Default: off.")
    parser.add_argument("--peers", action="store_true", help="With --mined, `score --peer all` too. Default: off.")
    parser.add_argument("--images", type=int, default=32, help="Of a benchmark at most. Default 32.")
    parser.add_argument("--domain-images", type=int, default=3, help="Of a domain at most. Default 3.")
    parser.add_argument("--tree-images", type=int, default=6, help="That `tree` is asked about. Default 6.")
    parser.add_argument("--objects-per-image", type=int, default=4, help="That are clicked. Default 4.")
    parser.add_argument("--points-per-side", type=int, default=8, help="Of whole images; SAM-2 has 32. Default 8.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="As of `grainmill score`.")
    parser.add_argument("--jobs", type=int, default=1, help="Rows side by side; 0: in this process. Default 1.")
    options = parser.parse_args(argv)
    load = os.getloadavg()
    try:
        models = dict(named(each, "--model") for each in options.model)
        if len(models) < len(options.model):
            raise InputError("--model: two of one name; a row is called by it, so give each its own")
        if options.frames_every < 1:
            raise InputError(f"--frames-every {options.frames_every}: expected 1 or more")
        if MINED in models:
            raise InputError(f"--model {MINED}: the name of what --mined makes; choose another")
        if not models and not options.mined:
            raise InputError("expected --model NAME=CKPT or --mined: nothing to score")
        tasks = tasks_of(options, grounds_of(options), models)
        rows = filled(tasks, options.output / "rows", jobs=options.jobs)
    except GrainmillError as error:
        print(f"benchmarks.models: {error}", file=sys.stderr)
        return error.exit_code
    write_json(options.output / "models.json", {"rows": rows, "environment": environment(load)})
    (options.output / "models.md").write_text("\n".join(table(rows)) + "\n", encoding="utf-8")
    draw(rows, options.output / "models.png")
    print("\n".join(table(rows)))
    return int(any(row["state"] != DONE for row in rows))


if __name__ == "__main__":
    sys.exit(main())
