"""What the method's pieces are worth: students trained with one thing taken away or exchanged, on equal steps.

    python -m benchmarks.ablations --train MINED --validation MINED --bsds500 DIR --output OUT [--more MINED ...]
        [--rows NAME ...] [--steps 170] [--seeds 0] [--jobs N] [--coco DIR] [--images 100]

MINED of `--train` and `--validation` are shards of `grainmill mine` of BSDS500's two splits; `--more` are others that
rows of more images take besides. A row is one student, `grainmill train --size micro --init scratch` on `--train` but
for what its name says (`--list` shows all):

- what is added to SAM-2's decoder and to the recipe, each taken away by a flag of `train`;
- how the decoder hears g, or SAM's three masks in its place (`decoders`);
- the pairs of mask and granularity, exchanged by `benchmarks.pair_sources`, `people_shards` or another recipe;
- the number of images, at equal steps;
- the dial beside a frozen base: the student `base` is SAM-2's plain decoder, told no g (the dense loss is;
  `base-no-dense` is trained without it), trained 3.5 times as long; what answered there becomes SAM's own answer,
  without a loss, and adapters are trained beside it. `beside-*` are the same beside `constant`, to which every pair
  said g = 1.0, and which loses what it heard at the click as a base.

Three masks, and rows beside a base, have a second table: what the model answers by itself (SAM's first mask,
without sam2's switch to another one where the first is unstable; of three masks the one of the highest predicted IoU)
and what the label's g is worth against that.

Each is judged by the same fixed clicks (`validation.fixed_example`) on three grounds: labels mined from the validation
photographs, people's segments of them (label g by containment), and with `--coco` COCO's objects, which are wholes
(g = 1.0). Beside 1-IoU at the label's g its controls; the differences to `full` of the same seed are paired, with 95 %
intervals over images. `relative` is asked for its own g on mined labels; on people's segments, whose label g is of
equation 3, only its best of ten means something. Signatures of failure are those of `sweep_columns`: deaf (few distinct
masks, the same at both ends), not monotone (size does not follow g), not nested, and no better than the best fixed g;
and one that no sweep shows, blind to the image (another image's pixels do as well).

OUT keeps shards, runs and rows: a row that died says so, and the next call does it again. `ablations.json`,
`ablations.md` and `ablations.png` are of all rows that were asked for.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from torch import Tensor

from model.data.shards import LoadedSample
from model.data.stream import Example
from model.evaluation.benchmarks.bsds import read_bsds500
from model.evaluation.benchmarks.coco_style import labelled
from model.evaluation.benchmarks.files import by_stem, image_size, matching_files
from model.evaluation.benchmarks.records import EvalImage, EvalObject, GroundTruth
from model.evaluation.results import write_json
from model.library import train
from model.network.adapters import SPECS, Adapter
from model.network.granular import GranularSam2
from model.network.load import load_granular, new_model
from model.network.pixels import normalised_batch
from model.training.config import micro_recipe
from model.training.validation import best_fixed_g, dial_figures, fixed_example, iou, measure_clicks, paired_gain
from pipeline.bench.report import environment
from pipeline.errors import GrainmillError, InputError
from pipeline.format import rle
from pipeline.format.granularity import granularity_of
from pipeline.library import mine

from .decoders import Decoder, decoder_of
from .grid import DONE, Task, filled
from .micro_run import CHOOSING_IMAGES, iou_other_photograph, mined_samples, people_sample
from .pair_sources import write_pairs
from .people_shards import write_shards

FULL: Final = "full"
PEOPLE: Final = "people"
MINED_ANEW: Final[dict[str, dict[str, str]]] = {
    "patches": {"recipe": "unsamv2", "backbone": "descriptor"},
    "default-1000": {"recipe": "default-1000"},
    "learned": {"recipe": "learned"},
}
"""Pairs that `grainmill mine` makes of the same images, with its flags."""
ADAPTED: Final = "constant"
BASE: Final = "base"
NO_DENSE: Final = "base-no-dense"
"""Rows that become bases without a dial: a student at one g, and SAM-2's plain decoder without any, with the dense loss
(which is told g) and without it."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One student.

    Attributes:
        words: what it is, for people.
        pairs: a way of `pair_sources`, `people` or one of `MINED_ANEW`.
        images: of them, the first by a hash; None: all.
        more: with the images of `--more`.
        flags: of `grainmill train`.
        beside: the adapter that is trained beside a base without a dial.
        base: the row that becomes that base.
        spec: changes of the adapter's widths (`network.adapters.AdapterSpec`).
        decoder: another than the dial's own.
        longer: times the steps of the others.
    """

    words: str
    pairs: str = "same"
    images: int | None = None
    more: bool = False
    flags: dict[str, Any] = field(default_factory=dict)
    beside: Adapter | None = None
    base: str = ADAPTED
    spec: dict[str, Any] = field(default_factory=dict)
    decoder: Decoder | None = None
    longer: float = 1.0


BESIDE_A_BASE: Final[dict[str, Any]] = {
    **{name: micro_recipe("micro")[name] for name in (
        "masks_per_image", "masks_per_click", "min_parts", "wholes_only", "balance", "clicks", "loss_stride",
        "learning_rate",
    )},
    "augmentation": "crops",
}  # fmt: skip
"""The recipe from scratch beside a frozen base, but for the loss and weight decay, which stay the paper's, and without
the dense loss."""
BESIDE_BY_ITS_LOSS: Final = {**BESIDE_A_BASE, "loss": "scratch"}
PLAIN: Final[dict[str, Any]] = {"click_features": False, "similarity": "off", "dense_anchors": 0}
ROWS: Final = {
    FULL: Row(words="the default recipe"),
    "no-click-features": Row(words="without click features", flags={"click_features": False}),
    "similarity-features": Row(words="similarity in features alone", flags={"similarity": "features"}),
    "no-similarity": Row(words="without the similarity term", flags={"similarity": "off"}),
    "no-dense": Row(words="without the dense loss", flags={"dense_anchors": 0}),
    "plain": Row(words="SAM-2's plain decoder: none of the three", flags=PLAIN),
    "wholes-alone": Row(words="pairs of wholes alone", flags={"wholes_only": True}),
    "all-pairs": Row(
        words="all pairs, as the paper draws them",
        flags={"wholes_only": False, "min_parts": 0, "smallest_parts": True},
    ),
    "one-mask-a-click": Row(words="one mask under each click", flags={"masks_per_click": 1}),
    "four-clicks": Row(words="a click and three corrections", flags={"clicks": 4}),
    "unsamv2-tokens": Row(words="the mask token beside SAM's four", flags={"unsamv2_tokens": True}),
    "shuffled": Row(words="g shuffled in training", pairs="shuffled"),
    ADAPTED: Row(words="g = 1.0 in all of training: no dial", pairs="constant"),
    "relative": Row(words="instance-relative g in place of equation 3", pairs="relative"),
    "slic": Row(words="pairs of merged SLIC superpixels", pairs="slic"),
    "felzenszwalb": Row(words="pairs of Felzenszwalb's regions", pairs="felzenszwalb"),
    "patches": Row(words="pairs of a patch grid at five cosines (recipe unsamv2, descriptor)", pairs="patches"),
    "default-1000": Row(words="pairs of the recipe default-1000", pairs="default-1000"),
    "learned": Row(words="pairs of the recipe learned", pairs="learned"),
    "rectangles": Row(words="pairs of random rectangles", pairs="rectangles"),
    PEOPLE: Row(words="people's segments (an upper bound)", pairs=PEOPLE),
    "6-images": Row(words="6 photographs", images=6),
    "25-images": Row(words="25 photographs", images=25),
    "100-images": Row(words="100 photographs", images=100),
    "more-images": Row(words="the photographs of --more too", more=True),
    "beside-paper": Row(words="adapter paper beside a frozen base without a dial", flags=BESIDE_A_BASE, beside="paper"),
    "beside-lite": Row(words="adapter lite beside the same base", flags=BESIDE_A_BASE, beside="lite"),
    "beside-paper-loss": Row(
        words="adapter paper beside it, the loss from scratch", flags=BESIDE_BY_ITS_LOSS, beside="paper"
    ),
    "beside-lite-loss": Row(
        words="adapter lite beside it, the loss from scratch", flags=BESIDE_BY_ITS_LOSS, beside="lite"
    ),
    BASE: Row(
        words="SAM-2's plain decoder, told no g, one mask",
        flags={"click_features": False, "similarity": "off"},
        decoder="one-mask",
        longer=3.5,
    ),
    "base-paper": Row(
        words="adapter paper beside that base, frozen", flags=BESIDE_BY_ITS_LOSS, beside="paper", base=BASE
    ),
    "base-lite": Row(words="adapter lite beside it", flags=BESIDE_BY_ITS_LOSS, beside="lite", base=BASE),
    "base-paper-focal": Row(
        words="adapter paper beside it, the paper's loss", flags=BESIDE_A_BASE, beside="paper", base=BASE
    ),
    "base-paper-slow": Row(
        words="adapter paper beside it, the paper's loss at its rate, 1e-4",
        flags={**BESIDE_A_BASE, "learning_rate": 1e-4},
        beside="paper",
        base=BASE,
    ),
    "base-no-lora": Row(
        words="adapter paper without LoRA beside it",
        flags=BESIDE_BY_ITS_LOSS,
        beside="paper",
        base=BASE,
        spec={"lora_rank": 0},
    ),
    "base-prompt": Row(
        words="g as a prompt alone beside it, mask token and LoRA off",
        flags=BESIDE_BY_ITS_LOSS,
        beside="paper",
        base=BASE,
        spec={"lora_rank": 0},
        decoder="prompt",
    ),
    "base-token": Row(
        words="g in the mask token alone beside it, LoRA off",
        flags=BESIDE_BY_ITS_LOSS,
        beside="paper",
        base=BASE,
        spec={"lora_rank": 0},
        decoder="token",
    ),
    "base-paper-sight": Row(
        words="adapter paper beside it, with click features and similarity",
        flags={**BESIDE_BY_ITS_LOSS, "click_features": True, "similarity": "place"},
        beside="paper",
        base=BASE,
    ),
    "base-full": Row(
        words="all of that base trained on with a dial",
        flags={"click_features": False, "similarity": "off"},
        beside="full",
        base=BASE,
    ),
    NO_DENSE: Row(words="the base without the dense loss", flags=PLAIN, decoder="one-mask", longer=3.5),
    "base-no-dense-paper": Row(
        words="adapter paper beside that one", flags=BESIDE_BY_ITS_LOSS, beside="paper", base=NO_DENSE
    ),
    "base-no-dense-sight": Row(
        words="adapter paper beside that one, with click features and similarity",
        flags={**BESIDE_BY_ITS_LOSS, "click_features": True, "similarity": "place"},
        beside="paper",
        base=NO_DENSE,
    ),
    "three-masks": Row(words="told no g: SAM's three masks, the best one trained", decoder="three-masks"),
    "token-alone": Row(words="g in the mask token, not as a prompt", decoder="token"),
    "narrow-fourier": Row(words="8 Fourier features of g in place of 128", spec={"fourier_dim": 8}),
}

GROUNDS: Final = {"mined": "mined labels", "people": "people's segments", "coco": "COCO's objects"}
AREAS: Final = (0.0, 0.1, 0.25, 0.5, 1.0)
"""Bounds of what is asked for, as shares of the view."""


# ---------------------------------------------------------------------------------------------------------------------
# Shards


def pairs_name(row: Row) -> str:
    return row.pairs if row.images is None else f"{row.pairs}-{row.images}"


def write_data(options: argparse.Namespace, row: Row) -> dict[str, Any]:
    """Shards of a row's pairs, in a folder that appears whole; one that lies there is of other settings, and goes."""
    target = options.output / "data" / pairs_name(row)
    shutil.rmtree(target, ignore_errors=True)
    partly = target.with_name(f".{target.name}")
    shutil.rmtree(partly, ignore_errors=True)
    if row.pairs == PEOPLE:
        write_shards(list(read_bsds500(Path(options.bsds500), "train").images), str(partly))
    elif row.pairs in MINED_ANEW:
        mine(options.train, str(partly), executor="inline", **MINED_ANEW[row.pairs])
    else:
        write_pairs(options.train, row.pairs, str(partly), images=row.images)
    os.replace(partly, target)
    return {"data": str(target)}


def data_of(options: argparse.Namespace, row: Row) -> list[str]:
    own = options.train
    if row.pairs != "same" or row.images is not None:
        own = str(options.output / "data" / pairs_name(row))
    return [own, *(options.more if row.more else ())]


# ---------------------------------------------------------------------------------------------------------------------
# Students


def base_without_a_dial(run: Path, path: Path) -> Path:
    """SAM-2's weights of a student that was told g = 1.0 alone: its mask token and hypernetwork become SAM's first.

    What is left of the granularity, one constant prompt token, is lost with it.
    """
    model = load_granular(run)
    decoder = model.base.sam_mask_decoder
    with torch.no_grad():
        decoder.mask_tokens.weight[:1] = model.mask_token
        decoder.output_hypernetworks_mlps[0].load_state_dict(model.hypernetwork.state_dict())
    partly = path.with_suffix(".partly")
    torch.save({"model": model.base_state()}, partly)
    os.replace(partly, path)
    return path


@contextmanager
def adapter_of(row: Row) -> Iterator[None]:
    """Inside, models are made and read with the row's widths and decoder; a checkpoint does not say them."""
    adapter: Adapter = row.beside or "full"
    before = SPECS[adapter]
    SPECS[adapter] = replace(before, **row.spec)
    try:
        with decoder_of(row.decoder):
            yield
    finally:
        SPECS[adapter] = before


def trained(options: argparse.Namespace, name: str, seed: int) -> Path:
    """The run of a row; gone on with where it was."""
    row, output = ROWS[name], Path(options.output)
    run = output / "runs" / f"{name}-seed{seed}-steps{options.steps}"
    steps = round(row.longer * options.steps)
    init: str | Path = "scratch"
    if row.beside is not None:
        base = trained(options, row.base, seed)
        init = base_without_a_dial(base, run.with_suffix(".pt"))
    begun = any(run.glob("checkpoints/*.safetensors"))
    flags: dict[str, Any] = {
        "size": "micro", "init": str(init), "adapter": row.beside, "steps": steps, "seed": seed, "threads": 1,
        "device": options.device, "coarse_images": 0, "image_size": options.image_size, "resume": begun, "keep": 1,
        "save_every": max(1, steps // 2), **row.flags,
    }  # fmt: skip
    with adapter_of(row):
        stopped = train(data_of(options, row), run, **flags)["stopped"]
    if stopped == "interrupted":
        raise KeyboardInterrupt  # saved; a student of fewer steps is no row
    return run


def student(options: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """Trains and judges one row."""
    torch.set_num_threads(1)
    row = ROWS[name]
    run = trained(options, name, seed)
    with adapter_of(row):
        model = load_granular(run)
    size = model.image_size
    relabel = relative_labels if row.pairs == "relative" else unchanged
    chosen_on = [fixed_example(relabel(each), size) for each in mined_samples(options.train, CHOOSING_IMAGES)]
    fixed = best_fixed_g(measure_clicks(model, chosen_on))
    photographs = read_bsds500(Path(options.bsds500), "val").images[: options.images]
    samples = {
        "mined": [relabel(each) for each in mined_samples(options.validation, options.images)],
        "people": [people_sample(each, each.load(), people="all", whole="segments") for each in photographs],
    }
    if options.coco:
        objects = coco_images(options.coco)[: options.images]
        samples["coco"] = [people_sample(each, each.load(), people="all", whole="segments") for each in objects]
    found: dict[str, Any] = {"words": row.words, "steps": round(row.longer * options.steps), "clicked": {}}
    model.set_trainable()
    found["trained_parameters"] = sum(each.numel() for each in model.parameters() if each.requires_grad)
    for ground, several in samples.items():
        examples = [each for each in (fixed_example(sample, size) for sample in several if sample.counts) if each.count]
        measured = measure_clicks(model, examples)
        found[ground] = dial_figures(measured, fixed_g=fixed)
        found[ground]["iou_other_image"] = iou_other_photograph(model, examples)
        found["clicked"][ground] = {
            each.key: {
                "area": each.masks().mean(axis=(1, 2)).tolist(),
                "label_g": columns["label_iou"].tolist(),
                "best": columns["sweep_iou"].max(axis=1).tolist(),
            }
            for each, columns in zip(examples, measured, strict=True)
        }
        if row.beside is not None or row.decoder == "three-masks":
            own = [iou_own_answer(model, each) for each in examples]
            gains = [columns["label_iou"] - each for columns, each in zip(measured, own, strict=True)]
            found[ground] |= {"iou_own": float(np.concatenate(own).mean()), "gain_over_own": paired_gain(gains)}
            for each, answered in zip(examples, own, strict=True):
                found["clicked"][ground][each.key]["own"] = answered.tolist()
    if row.beside is not None:
        base = new_model(model.size, "paper", size, init=str(run.with_suffix(".pt")), seed=seed).eval()
        found["own_logits_moved"] = max(
            float((own_answer(model, each) - own_answer(base, each)).abs().max()) for each in examples[:5]
        )
    return found


@torch.no_grad()
def own_answer(model: GranularSam2, example: Example) -> Tensor:
    """Logits (N, H, W) of what the model says to each click without any g: its first mask, or its choice of three."""
    model.base.sam_mask_decoder.dynamic_multimask_via_stability = False
    features = model.encode(normalised_batch([example.image], torch.device("cpu")))
    labels = torch.ones(example.count, 1, dtype=torch.int32)
    found = model.decode(features.repeat(0, example.count), torch.from_numpy(example.points)[:, None], labels, None)
    return found.logits_NMHW[:, 0]


def iou_own_answer(model: GranularSam2, example: Example) -> NDArray[np.float64]:
    """1-IoU of `own_answer`, of each click."""
    logits, size = own_answer(model, example)[:, None], example.image.shape[:2]
    seen = functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    return iou((seen[:, 0] > 0).numpy(), example.masks())


def unchanged(sample: LoadedSample) -> LoadedSample:
    return sample


def relative_labels(sample: LoadedSample) -> LoadedSample:
    """With `instance-relative` g, as `pair_sources` writes it."""
    granularity = sample.granularity.copy()
    for instance in np.unique(sample.instance_id):
        members = np.flatnonzero(sample.instance_id == instance)  # the instance comes first
        granularity[members] = granularity_of(sample.area_px[members], "instance-relative")
    return replace(sample, granularity=granularity)


def coco_images(root: Path) -> list[EvalImage]:
    """`images/` and `labels/STEM.txt`, one polygon a line: class, then x and y divided by the image's width and height.

    An image without labels has no object, and is left out.

    Raises:
        InputError: no such folders, labels without image, or (when loaded) a line that is no polygon; it names the
            file.
    """
    images = by_stem(matching_files(root / "images"))
    labels = by_stem(matching_files(root / "labels", (".txt",)))
    for stem, path in labels.items():
        if stem not in images:
            raise InputError(f"{path}: labels without image; expected {root / 'images' / stem}.jpg")
    return [
        EvalImage(name=images[stem].name, path=images[stem], load=partial(_polygons, images[stem], path))
        for stem, path in labels.items()
    ]


def _polygons(image: Path, file: Path) -> GroundTruth:
    import cv2

    height, width = image_size(image)
    objects = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines()):
        try:
            corners = np.array(line.split()[1:], dtype=np.float64).reshape(-1, 2) * (width, height)
        except ValueError as error:
            raise InputError(f"{file}: line {number + 1}: expected a class, then pairs of x and y; {error}") from error
        mask = np.zeros((height, width), dtype=np.uint8)
        cv2.fillPoly(mask, [np.round(corners).astype(np.int32)], 1)
        if area := int(mask.sum()):
            objects.append(EvalObject(id=str(number), mask=rle.encode(mask > 0), area_px=area))
    wholes = [replace(each, granularity=1.0) for each in labelled(objects)]
    return GroundTruth(height=height, width=width, objects=tuple(wholes))


# ---------------------------------------------------------------------------------------------------------------------
# The table


def signatures(found: dict[str, Any]) -> list[str]:
    """In words, what of the method fails."""
    words = []
    if found["distinct_masks"] < 3 or found["iou_low_high"] > 0.6:
        words.append("deaf to g")
    if found["area_spearman"] < 0.8:
        words.append("not monotone")
    if found["nesting"] < 0.9:
        words.append("not nested")
    if found["iou_label_g"] - found["iou_other_image"] < 0.01:
        words.append("blind to the image")
    if found["gain_over_fixed_g"]["low"] <= 0:
        words.append("no better than one g")
    return words


def against(row: dict[str, Any], base: dict[str, Any] | None, ground: str, column: str) -> str:
    """The paired difference to the full recipe."""
    if base is None or base is row or ground not in base["clicked"]:
        return "–"
    ours, theirs = row["clicked"][ground], base["clicked"][ground]
    gain = paired_gain([np.array(ours[key][column]) - np.array(theirs[key][column]) for key in ours])
    return f"{gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One block for each ground."""
    lines: list[str] = []
    full = {row["asked"]["seed"]: row for row in rows if row["asked"]["row"] == FULL and row["state"] == DONE}
    for ground, title in GROUNDS.items():
        if not any(ground in row for row in rows):
            continue
        lines += [
            f"On {title}:",
            "",
            "| row | seed | label g | minus full, label g | minus full, best of ten | best fixed g (which) | "
            "shuffled g | best of ten | own minus another image's pixels | spearman | distinct of ten | nesting | "
            "signatures |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for row in rows:
            name, seed = row["asked"]["row"], row["asked"]["seed"]
            if row["state"] != DONE:
                lines.append(f"| {name} | {seed} | {row['state']} | | | | | | | | | | |")
                continue
            each, base = row[ground], full.get(seed)
            cells = [
                f"{each['iou_label_g']:.3f}",
                against(row, base, ground, "label_g"),
                against(row, base, ground, "best"),
                f"{each['iou_best_fixed_g']:.3f} ({each['best_fixed_g']})",
                f"{each['iou_shuffled_g']:.3f}",
                f"{each['iou_best_of_10']:.3f}",
                f"{each['iou_label_g'] - each['iou_other_image']:.3f}",
                f"{each['area_spearman']:.2f}",
                f"{each['distinct_masks']:.1f}",
                f"{each['nesting']:.2f}",
                ", ".join(signatures(each)) or "none",
            ]
            lines.append(f"| {row['words']} (`{name}`) | {seed} | {' | '.join(cells)} |")
        lines.append("")
    return [*lines, *area_table(rows, full), *own_table(rows)]


def area_table(rows: Sequence[dict[str, Any]], full: dict[int, dict[str, Any]]) -> list[str]:
    """The difference to the full recipe at the best of ten, apart for small and large masks that are asked for."""
    bounds = list(itertools.pairwise(AREAS))
    lines = []
    for row in rows:
        base = full.get(row["asked"]["seed"])
        if row["state"] != DONE or base is None or base is row:
            continue
        for ground, ours in row["clicked"].items():
            theirs, cells = base["clicked"].get(ground, {}), []
            for low, high in bounds:
                gains = []
                for key in (each for each in ours if each in theirs):
                    area = np.array(ours[key]["area"])
                    gain = np.array(ours[key]["best"]) - np.array(theirs[key]["best"])
                    if (asked := (area > low) & (area <= high)).any():
                        gains.append(gain[asked])
                found = paired_gain(gains) if gains else None
                cells.append(
                    "–" if found is None else f"{found['value']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"
                )
            name, seed = row["asked"]["row"], row["asked"]["seed"]
            lines.append(f"| `{name}` | {seed} | {GROUNDS[ground]} | {' | '.join(cells)} |")
    if not lines:
        return []
    titles = [f"{low:.0%} to {high:.0%}" for low, high in bounds]
    return [
        "Best of ten minus full, by the share of the view that the asked mask takes:",
        "",
        f"| row | seed | asked for | {' | '.join(titles)} |",
        "|---|---|---|" + "---|" * len(bounds),
        *lines,
        "",
    ]


def own_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What rows answer by themselves, beside their dial."""
    several = [
        row for row in rows if row["state"] == DONE and any("gain_over_own" in row.get(each, {}) for each in GROUNDS)
    ]
    if not several:
        return []
    grounds = [each for each in GROUNDS if any(each in row for row in several)]
    lines = [
        "Without g, and what the label's g is worth against that:",
        "",
        "| row | seed | trained parameters | own answer's logits moved by |"
        + "".join(f" own answer, {GROUNDS[each]} | label g minus own |" for each in grounds),
        "|---|---|---|---|" + "---|---|" * len(grounds),
    ]
    for row in several:
        moved = f"{row['own_logits_moved']:.1e}" if "own_logits_moved" in row else "–"
        cells = [f"{row['trained_parameters']:,}", moved]
        for each in grounds:
            gain = row[each]["gain_over_own"]
            cells += [f"{row[each]['iou_own']:.3f}", f"{gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"]
        lines.append(f"| {row['words']} (`{row['asked']['row']}`) | {row['asked']['seed']} | {' | '.join(cells)} |")
    return [*lines, ""]


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """1-IoU at the label's g of each row beside the best fixed and shuffled g, on each ground."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    done = [row for row in rows if row["state"] == DONE]
    grounds = [ground for ground in GROUNDS if any(ground in row for row in done)]
    if not grounds:
        return
    figure, axes = pyplot.subplots(
        1, len(grounds), figsize=(4.4 * len(grounds) + 1, 0.28 * len(done) + 1.4), sharey=True, squeeze=False
    )
    places = np.arange(len(done))[::-1]
    for axis, ground in zip(axes[0], grounds, strict=True):
        for name, style in (("iou_label_g", "o"), ("iou_best_fixed_g", "s"), ("iou_shuffled_g", "x")):
            axis.plot([row[ground][name] for row in done], places, style, label=name.removeprefix("iou_"), alpha=0.8)
        axis.plot([row[ground]["iou_best_of_10"] for row in done], places, "^", label="best of ten", alpha=0.5)
        axis.set(title=GROUNDS[ground], xlabel="1-IoU")
        axis.grid(alpha=0.3)
    axes[0][0].set_yticks(places, [f"{row['asked']['row']}, {row['asked']['seed']}" for row in done])
    axes[0][-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def tasks_of(options: argparse.Namespace, names: Sequence[str]) -> tuple[list[Task], list[Task]]:
    """The shards that rows want, and the rows."""
    wanted = {name: ROWS[name] for name in names}
    data_asked = {"train": options.train, "bsds500": options.bsds500}
    data = {
        pairs_name(row): Task(name=pairs_name(row), asked=data_asked, work=partial(write_data, options, row))
        for row in wanted.values()
        if row.pairs != "same" or row.images is not None
    }
    judged = {"images": options.images, "coco": str(options.coco) if options.coco else None}
    rows = []
    for seed in options.seeds:
        for name, row in wanted.items():
            asked = {"row": name, "seed": seed, "steps": options.steps, "image_size": options.image_size, **judged}
            asked |= {"train": options.train, "more": options.more if row.more else None, "flags": row.flags}
            asked |= {"spec": row.spec} if row.spec else {}
            asked |= {"decoder": row.decoder, "longer": row.longer} if row.decoder else {}
            asked |= {"base": row.base} if row.base != ADAPTED else {}
            work: Callable[[], dict[str, Any]] = partial(student, options, name, seed)
            rows.append(Task(name=f"{name}-seed{seed}-steps{options.steps}", asked=asked, work=work))
    return list(data.values()), rows


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 if a row died, 2 for bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="Show the rows, and stop.")
    parser.add_argument("--train", help="Mined shards of BSDS500 train.")
    parser.add_argument("--validation", help="Mined shards of BSDS500 val.")
    parser.add_argument("--bsds500", help="The benchmark's folder.")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--more", nargs="+", default=[], help="Further mined shards, for rows of more images.")
    parser.add_argument("--coco", type=Path, help="A folder of images/ and labels/ with polygons. Default: none.")
    parser.add_argument("--rows", nargs="+", help="Some of --list. Default: all that the data allows.")
    parser.add_argument("--steps", type=int, default=170, help="Of each student. Default 170.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--images", type=int, default=100, help="Judged on, of each ground at most. Default 100.")
    parser.add_argument("--image-size", type=int, default=256, help="Of the students, in pixels. Default 256.")
    parser.add_argument("--device", help="As of `grainmill train`.")
    parser.add_argument("--jobs", type=int, default=1, help="Students side by side; 0: in this process. Default 1.")
    options = parser.parse_args(argv)
    if options.list:
        print("\n".join(f"{name:22}{row.words}" for name, row in ROWS.items()))
        return 0
    missing = [name for name in ("train", "validation", "bsds500", "output") if getattr(options, name) is None]
    if missing:
        parser.error(f"--{missing[0]} is missing")
    names = options.rows or [name for name, row in ROWS.items() if options.more or not row.more]
    load = os.getloadavg()
    try:
        for name in names:
            if name not in ROWS:
                raise InputError(f"--rows {name}: expected some of {', '.join(ROWS)}")
            if ROWS[name].more and not options.more:
                raise InputError(f"--rows {name}: wants further images; add --more")
        read_bsds500(Path(options.bsds500), "val")
        if options.coco:
            for image in coco_images(options.coco):
                image.load()
    except GrainmillError as error:
        print(f"benchmarks.ablations: {error}", file=sys.stderr)
        return error.exit_code
    (options.output / "data").mkdir(parents=True, exist_ok=True)
    data, tasks = tasks_of(options, names)
    filled(data, options.output / "prepared", jobs=options.jobs)
    # A base comes before what is trained beside it, which would train it a second time at the same moment.
    if wanted := {ROWS[name].base for name in names if ROWS[name].beside}:
        base_data, bases = tasks_of(options, [name for name in ROWS if name in wanted])
        filled(base_data, options.output / "prepared", jobs=options.jobs)
        filled(bases, options.output / "rows", jobs=options.jobs)
    rows = filled(tasks, options.output / "rows", jobs=options.jobs)
    write_json(options.output / "ablations.json", {"rows": rows, "environment": environment(load)})
    (options.output / "ablations.md").write_text("\n".join(table(rows)) + "\n", encoding="utf-8")
    draw(rows, options.output / "ablations.png")
    print("\n".join(table(rows)))
    return int(any(row["state"] != DONE for row in rows))


if __name__ == "__main__":
    sys.exit(main())
