"""Grainmill's recipes beside what one would run instead: seconds and average recall on the same photographs, in turn.

    OMP_NUM_THREADS=1 python -m benchmarks.side_by_side --bsds500 DIR --output OUT [--images 20] [--method NAME ...]
        [--boundaries FILE] [--unsamv2 DIR [--unsamv2-python PYTHON] [--unsamv2-flags FLAGS] [--unsamv2-limit-s S]]

The first photographs of BSDS500 val by name, and on each of them every method (`--list` tells what each is), so that a
neighbour's load falls on all. Seconds are processor time of one call on decoded pixels, after a first call that is not
counted; what only reads masks (gPb-UCM's files, people) has none. Average recall is `grainmill score`'s on `bsds500`:
best IoU of every person's every segment over at most 1,000 masks, 95 % intervals over images.

`unsamv2` runs the authors' divide-and-conquer as published, from a checkout of theirs (never copied), with a Python
that has what it needs (detectron2, CascadePSP, a GPU) and flags for its weights (`--opts MODEL.WEIGHTS FILE`); DINOv3's
code and weights must lie where its INSTALL.md puts them. Its seconds are processor time of the whole command over its
images, loading included. `unsamv2-merging` takes of the checkout what runs anywhere, merging and removal of copies
(`iterative_merging.py`, `helper.py`), on EfficientNet-lite0's maps, with the photograph as the one instance.

OUT keeps a row for each photograph and method; one that died says why and is done again by the next call.
`side_by_side.json`, `.md` and `.png` are of all rows that were asked for.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from model.evaluation.benchmarks.bsds import read_bsds500
from model.evaluation.benchmarks.files import decoded_rgb
from model.evaluation.benchmarks.mined import MaskSet, ranked_masks
from model.evaluation.benchmarks.records import EvalImage
from model.evaluation.protocols.label_masks import interval, masks_answer
from model.evaluation.results import write_json
from model.evaluation.subjects import baselines
from pipeline.bench.report import environment, table
from pipeline.environment.timm_weights import named_weights
from pipeline.environment.torch_compat import ensure_torchvision
from pipeline.errors import GrainmillError, InputError, SampleFailureError
from pipeline.format import rle
from pipeline.labeling.config import FeaturesConfig
from pipeline.labeling.miner import ImageInput, ImageMiner
from pipeline.labeling.stages.backbone_features import Pyramid
from pipeline.mining.flags import MineFlags
from pipeline.mining.options import resolved
from pipeline.storage.local import sha256_of_file

from .grid import DONE, Task, filled

Rgb = NDArray[np.uint8]
Masks = Callable[[EvalImage, Rgb], MaskSet]
SUPERPIXELS: Final = 600
EDGE_THRESHOLDS: Final = (0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15)
"""Of mean Sobel magnitude along a boundary."""
THETAS: Final = (0.9, 0.8, 0.7, 0.6, 0.5)
"""Cosines of the authors' script; their other settings too: patches of a cluster at least 4, copies from IoU 0.8 among
the next 5."""
STEPS: Final = "granularity_divide_and_conquer"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What methods need besides an image."""

    bsds500: Path
    output: Path
    boundaries: str | None
    unsamv2: Path | None
    python: str
    flags: str
    limit_s: float


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to masks.

    Attributes:
        words: what it is, for people.
        make: gives its function, which is called once on the first image before it is timed.
        timed: False: it only reads masks, or its seconds are those of a command.
        needs: a field of `Setting` without which it cannot run.
    """

    words: str
    make: Callable[[Setting], Masks]
    timed: bool = True
    needs: str | None = None


# ---------------------------------------------------------------------------------------------------------------------
# Methods


def peer(name: str) -> Callable[[Setting], Masks]:
    """One of `grainmill score --peer`."""

    def make(setting: Setting) -> Masks:
        ucm = baselines.ucm_folder(setting.bsds500, "val")
        return lambda image, rgb: baselines.peer_masks(name, image, image.load(), ucm)

    return make


def of_pixels(masks: Callable[[Rgb], list[rle.Rle]]) -> Callable[[Setting], Masks]:
    return lambda setting: lambda image, rgb: MaskSet(rles=tuple(masks(rgb)))


def cut_graph(rgb: Rgb) -> list[rle.Rle]:
    """scikit-image's `cut_threshold` of its mean-colour graph of superpixels, at the thresholds of SLIC merging."""
    from skimage import graph

    lab, labels = superpixels(rgb)
    whole = graph.rag_mean_color(lab, labels)
    return baselines.distinct_masks(
        graph.cut_threshold(labels, whole, threshold, in_place=False) for threshold in baselines.SLIC_THRESHOLDS
    )


def merged_by_colour(rgb: Rgb) -> list[rle.Rle]:
    """scikit-image's `merge_hierarchical` of the same graph at the same thresholds; a region's colour is its mean's."""
    from skimage import graph

    lab, labels = superpixels(rgb)
    whole = graph.rag_mean_color(lab, labels)

    def join(regions: Any, source: int, target: int) -> None:
        into, from_ = regions.nodes[target], regions.nodes[source]
        into["total color"] = into["total color"] + from_["total color"]
        into["pixel count"] = into["pixel count"] + from_["pixel count"]
        into["mean color"] = into["total color"] / into["pixel count"]

    def weight(regions: Any, source: int, target: int, neighbour: int) -> dict[str, float]:
        difference = regions.nodes[target]["mean color"] - regions.nodes[neighbour]["mean color"]
        return {"weight": float(np.linalg.norm(difference))}

    return baselines.distinct_masks(
        merge_at(labels, whole, threshold, join, weight) for threshold in baselines.SLIC_THRESHOLDS
    )


def merged_by_edges(rgb: Rgb) -> list[rle.Rle]:
    """scikit-image's `merge_hierarchical` of superpixels by the mean Sobel magnitude along what parts them."""
    from skimage import color, filters, graph

    _, labels = superpixels(rgb)
    whole = graph.rag_boundary(labels, filters.sobel(color.rgb2gray(rgb)))

    def weight(regions: Any, source: int, target: int, neighbour: int) -> dict[str, float]:
        sides = [regions[each][neighbour] for each in (source, target) if regions.has_edge(each, neighbour)]
        length = sum(each["count"] for each in sides)
        return {"count": length, "weight": sum(each["count"] * each["weight"] for each in sides) / length}

    return baselines.distinct_masks(
        merge_at(labels, whole, threshold, lambda regions, source, target: None, weight)
        for threshold in EDGE_THRESHOLDS
    )


def superpixels(rgb: Rgb) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The image in Lab, and its SLIC superpixels, those of SLIC merging."""
    from skimage.color import rgb2lab
    from skimage.segmentation import slic

    labels = slic(rgb, n_segments=SUPERPIXELS, compactness=10, start_label=0)
    return rgb2lab(rgb), np.asarray(labels, dtype=np.int64)


def merge_at(
    labels: NDArray[np.int64], whole: Any, threshold: float, join: Callable[..., None], weight: Callable[..., Any]
) -> NDArray[np.int64]:
    """One label map of a graph that is left as it is."""
    from skimage import graph

    merged = graph.merge_hierarchical(
        labels, whole, thresh=threshold, rag_copy=True, in_place_merge=True, merge_func=join, weight_func=weight
    )
    return np.asarray(merged)


def recipe(name: str, *, boundaries: bool = False, **flags: Any) -> Callable[[Setting], Masks]:
    """One of `grainmill mine --recipe`."""

    def make(setting: Setting) -> Masks:
        net = setting.boundaries if boundaries else None
        config, checkpoint = resolved(MineFlags(input=[], output="", recipe=name, boundaries=net, **flags))
        miner = ImageMiner(config, device="cpu", checkpoint=checkpoint, boundaries=net)
        miner.warm_up()

        def masks(image: EvalImage, rgb: Rgb) -> MaskSet:
            [mined] = miner.mine([ImageInput(rgb=rgb, source_uri=image.name, member=None)])
            if isinstance(mined, SampleFailureError):
                return MaskSet(rles=())
            return ranked_masks(mined.annotations)

        return masks

    return make


def unsamv2_merging(setting: Setting) -> Masks:
    """The authors' merging of patches and removal of copies on the maps of stride 16 of EfficientNet-lite0."""
    merging, helper = (of_checkout(setting, name) for name in ("iterative_merging", "helper"))
    pyramid = Pyramid(*named_weights("lite0"), device="cpu")

    def masks(image: EvalImage, rgb: Rgb) -> MaskSet:
        found = pyramid.maps(rgb, FeaturesConfig())
        patches = torch.from_numpy(np.ascontiguousarray(found.grids[found.strides.index(16)]))
        kept = []
        for layer in merging.iterative_merge(patches, THETAS, min_size=4):
            for each in layer:
                large = helper.resize_mask(each, [rgb.shape[1], rgb.shape[0]]) > 127
                if 0 < large.sum() < large.size:
                    kept.append(large)
        return MaskSet(rles=tuple(rle.encode(np.asarray(each)) for each in helper.NMS(kept, 0.8, 5)))

    return masks


def of_checkout(setting: Setting, name: str) -> ModuleType:
    """A module of the authors' steps.

    Raises:
        InputError: it is not there.
    """
    assert setting.unsamv2 is not None
    folder = setting.unsamv2.absolute() / STEPS
    if not (folder / f"{name}.py").is_file():
        raise InputError(f"--unsamv2 {setting.unsamv2}: no {STEPS}/{name}.py; expected a checkout of UnSAMv2")
    ensure_torchvision()
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))


def published_row(setting: Setting, images: Sequence[EvalImage]) -> dict[str, Any]:
    """Runs the authors' command over all images, and tells what it took.

    Raises:
        RuntimeError: it ended with an error, with the last it said; or left out an image.
    """
    assert setting.unsamv2 is not None
    work = setting.output / "unsamv2"
    shutil.rmtree(work, ignore_errors=True)
    (work / "images").mkdir(parents=True)
    for image in images:
        shutil.copy(image.path, work / "images")
    command = [setting.python, "gra_divide_conquer.py", "--input-dir", str((work / "images").absolute())]
    command += ["--output-dir", str((work / "masks").absolute()), "--preprocess", "True", "--postprocess", "True"]
    command += ["--granularity", "True", *shlex.split(setting.flags)]
    before, begun_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        command, cwd=setting.unsamv2 / STEPS, capture_output=True, text=True, check=False, timeout=setting.limit_s
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    missing = [image.name for image in images if not (work / f"masks/{image.path.stem}.json").is_file()]
    if missing:
        raise RuntimeError(f"no masks of {', '.join(missing[:5])}")
    spent_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    wall_s = time.monotonic() - begun_s
    return {"cpu_s_each": spent_s / len(images), "wall_s_each": wall_s / len(images)}


def unsamv2(setting: Setting) -> Masks:
    """What `published_row` left, largest first: their files carry no order."""

    def masks(image: EvalImage, rgb: Rgb) -> MaskSet:
        told = json.loads((setting.output / f"unsamv2/masks/{image.path.stem}.json").read_text(encoding="utf-8"))
        found = sorted(told["annotations"], key=lambda each: -each["area"])
        return MaskSet(rles=tuple(each["segmentation"] for each in found))

    return masks


PUBLISHED: Final = "unsamv2"
METHODS: Final = {
    "people": Method(words="people, leave one out", make=peer("people"), timed=False),
    "ucm": Method(words="gPb-UCM, ten thresholds (its files; its program is not run)", make=peer("ucm"), timed=False),
    "felzenszwalb": Method(words="Felzenszwalb, seven scales", make=of_pixels(baselines.felzenszwalb_masks)),
    "slic": Method(words="SLIC merging, eight thresholds", make=of_pixels(baselines.slic_masks)),
    "rag-cut": Method(words="scikit-image `cut_threshold`, mean colour", make=of_pixels(cut_graph)),
    "rag-colour": Method(words="scikit-image `merge_hierarchical`, mean colour", make=of_pixels(merged_by_colour)),
    "rag-edges": Method(words="scikit-image `merge_hierarchical`, edges", make=of_pixels(merged_by_edges)),
    "default": Method(words="`mine`, recipe `default`", make=recipe("default")),
    "default-1000": Method(words="`mine --recipe default-1000`", make=recipe("default-1000")),
    "leaves": Method(words="`mine --recipe leaves --backbone lite0`", make=recipe("leaves", backbone="lite0")),
    "learned": Method(words="`mine --recipe learned`", make=recipe("learned")),
    "learned-net": Method(
        words="`mine --recipe learned --boundaries`", make=recipe("learned", boundaries=True), needs="boundaries"
    ),
    "learned-net-1000": Method(
        words="the same with `--max-masks 1000`", make=recipe("learned", boundaries=True, max_masks=1000),
        needs="boundaries",
    ),
    "unsamv2-merging": Method(
        words="UnSAMv2's merging on EfficientNet-lite0's maps, one instance", make=unsamv2_merging, needs="unsamv2"
    ),
    PUBLISHED: Method(words="UnSAMv2's steps as published", make=unsamv2, timed=False, needs="unsamv2"),
}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Rows


@functools.cache
def ready(method: Method, setting: Setting, first: EvalImage) -> Masks:
    """A method, warm."""
    masks = method.make(setting)
    if method.timed:
        masks(first, pixels(first))
    return masks


def net_sha256(path: str) -> str | None:
    """Of a boundary net's file, so that rows of another one at the same place are not taken for its.

    None: there is none, which the rows that want it will say.
    """
    return sha256_of_file(path) if Path(path).is_file() else None


def pixels(image: EvalImage) -> Rgb:
    return decoded_rgb(image.read_bytes(), where=str(image.path))


def measured(name: str, setting: Setting, image: EvalImage, first: EvalImage) -> dict[str, Any]:
    """One photograph by one method."""
    masks, rgb, truth = ready(METHODS[name], setting, first), pixels(image), image.load()
    begun_cpu_s, begun_s = time.process_time(), time.perf_counter()
    found = masks(image, rgb)
    cpu_s, wall_s = time.process_time() - begun_cpu_s, time.perf_counter() - begun_s
    answer = masks_answer(image.name, found, truth, matching="best", what=f"{name}/{image.name}")
    columns = next(iter(answer["rows"].values()))
    counted = np.isfinite(np.array(columns["recall_1000"], dtype=np.float64))
    return {
        "masks": len(found.rles),
        "segments": int(counted.sum()),
        "recall": {each: float(np.nansum(np.array(columns[f"recall_{each}"], np.float64))) for each in (100, 1000)},
        **({"cpu_s": cpu_s, "wall_s": wall_s} if METHODS[name].timed else {}),
    }


def summary(name: str, rows: Sequence[dict[str, Any]], command: dict[str, Any] | None) -> dict[str, Any]:
    """Figures of one method over the photographs."""
    done = [row for row in rows if row["state"] == DONE]
    found: dict[str, Any] = {"method": name, "words": METHODS[name].words, "images": len(done)}
    if why := next((row["state"] for row in (*([command] if command else []), *rows) if row["state"] != DONE), None):
        return {**found, "died": why}
    segments = np.array([row["segments"] for row in done], dtype=np.float64)
    for most in (100, 1000):
        told = interval((np.array([row["recall"][str(most)] for row in done]), segments), seed=0)
        found[f"AR{most}"] = {"value": told.value, "low": told.low, "high": told.high}
    found["masks_per_image"] = statistics.mean(row["masks"] for row in done)
    if METHODS[name].timed:
        spent = [row["cpu_s"] for row in done]
        found["cpu_s"] = {"median": statistics.median(spent), "min": min(spent), "max": max(spent)}
        found["wall_s"] = statistics.median(row["wall_s"] for row in done)
    elif command is not None:
        each = command["cpu_s_each"]
        found |= {"cpu_s": {"median": each, "min": each, "max": each}, "wall_s": command["wall_s_each"]}
    return found


def lines_of(found: Sequence[dict[str, Any]]) -> list[str]:
    """The table."""
    rows = []
    for each in found:
        row = {"masks": each["words"]}
        if "died" in each:
            rows.append({**row, "CPU s an image": each["died"], "AR1000": "", "AR100": "", "masks per image": ""})
            continue
        whole = each["AR1000"]
        rows.append({
            **row,
            "CPU s an image": f"{each['cpu_s']['median']:.2f}" if "cpu_s" in each else "",
            "AR1000": f"{whole['value']:.3f} [{whole['low']:.3f}, {whole['high']:.3f}]",
            "AR100": f"{each['AR100']['value']:.3f}",
            "masks per image": f"{each['masks_per_image']:,.0f}",
        })  # fmt: skip
    return table(rows)


def draw(found: Sequence[dict[str, Any]], path: Path) -> None:
    """Quality against cost; what has no cost is a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 5))
    shown = [each for each in found if "died" not in each]
    for number, each in enumerate(shown):
        whole, ours = each["AR1000"], "`mine" in each["words"] or "max-masks" in each["words"]
        if "cpu_s" not in each:
            axis.axhline(whole["value"], color="0.6", linestyle="--", linewidth=1)
            axis.text(0.01, whole["value"], each["method"], color="0.4", va="bottom",
                      transform=axis.get_yaxis_transform(), fontsize=8)  # fmt: skip
            continue
        spread = [[max(0.0, whole["value"] - whole["low"])], [max(0.0, whole["high"] - whole["value"])]]
        axis.errorbar(each["cpu_s"]["median"], whole["value"], yerr=spread, fmt="o" if ours else "s",
                      color="tab:blue" if ours else "tab:orange", capsize=2, elinewidth=0.8)  # fmt: skip
        axis.annotate(each["method"], (each["cpu_s"]["median"], whole["value"]), textcoords="offset points",
                      xytext=(6, 4 - 14 * (number % 2)), fontsize=8)  # fmt: skip
    axis.set(xscale="log", xlabel="processor seconds an image", ylabel="AR1000, people's segments")
    axis.set_ylim(bottom=0)
    axis.set_xlim(right=2 * axis.get_xlim()[1])  # for the names
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("{x:g}")
    axis.grid(alpha=0.3, which="both")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bsds500", type=Path, help="The benchmark's folder.")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--images", type=int, default=20, help="Default: %(default)s.")
    parser.add_argument("--method", action="append", choices=METHODS, help="Default: all that can run.")
    parser.add_argument("--boundaries", help="A file of `grainmill boundaries`, for the methods learned-net.")
    parser.add_argument("--unsamv2", type=Path, help="A checkout of UnSAMv2, for the methods unsamv2.")
    parser.add_argument("--unsamv2-python", default=sys.executable, help="What runs it. Default: this Python.")
    parser.add_argument("--unsamv2-flags", default="", help="Of gra_divide_conquer.py, one string.")
    parser.add_argument("--unsamv2-limit-s", type=float, default=3600.0, help="For all images. Default: an hour.")
    parser.add_argument("--list", action="store_true", help="Tell the methods, and stop.")
    options = parser.parse_args(argv)
    if options.list:
        print("\n".join(f"{name}: {each.words}" for name, each in METHODS.items()))
        return 0
    if options.bsds500 is None or options.output is None:
        parser.error("--bsds500 and --output are needed")
    names = options.method or [name for name, each in METHODS.items() if not each.needs or getattr(options, each.needs)]
    for name in names:
        needed = METHODS[name].needs
        if needed and getattr(options, needed) is None:
            parser.error(f"--method {name} needs --{needed}")
    try:
        return compared(options, names)
    except GrainmillError as error:
        print(f"benchmarks.side_by_side: {error}", file=sys.stderr)
        return error.exit_code


def compared(options: argparse.Namespace, names: Sequence[str]) -> int:
    """Fills the rows and writes the report.

    Raises:
        InputError: no such benchmark or file.
    """
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    setting = Setting(
        bsds500=options.bsds500, output=options.output, boundaries=options.boundaries, unsamv2=options.unsamv2,
        python=options.unsamv2_python, flags=options.unsamv2_flags, limit_s=options.unsamv2_limit_s,
    )  # fmt: skip
    images, load = read_bsds500(options.bsds500, "val").images[: options.images], os.getloadavg()
    asked = {name: str(getattr(options, METHODS[name].needs or "", None)) for name in names}
    asked |= {name: str(net_sha256(options.boundaries)) for name in names if METHODS[name].needs == "boundaries"}
    command = None
    if PUBLISHED in names:
        asked[PUBLISHED] += f" {setting.flags}".rstrip()
        task = Task(
            name="command.unsamv2",
            asked={"unsamv2": asked[PUBLISHED], "flags": setting.flags, "images": [image.name for image in images]},
            work=lambda: published_row(setting, images),
        )
        [command] = filled([task], options.output / "rows", jobs=0)
    tasks = [
        Task(
            name=f"{image.path.stem}.{name}",
            asked={"method": name, "with": asked[name]},
            work=functools.partial(measured, name, setting, image, images[0]),
        )
        for image in images
        for name in names
        if name != PUBLISHED or (command is not None and command["state"] == DONE)
    ]
    rows = filled(tasks, options.output / "rows", jobs=0)
    of = {name: [row for row in rows if row["asked"]["method"] == name] for name in names}
    found = [summary(name, of[name], command if name == PUBLISHED else None) for name in names]
    write_json(options.output / "side_by_side.json", {"methods": found, "environment": environment(load)})
    text = "\n".join(lines_of(found)) + "\n"
    (options.output / "side_by_side.md").write_text(text, encoding="utf-8")
    draw(found, options.output / "side_by_side.png")
    print(text, end="")
    return int(any("died" in each for each in found))


if __name__ == "__main__":
    sys.exit(main())
