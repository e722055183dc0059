"""`grainmill bench load`: the loader against `webdataset`'s own on the same shards, by processor seconds.

Bytes: ours reads every sample's image and masks at the places that the index names, in a shuffled order, and touches
one byte of every 4 KiB; webdataset reads the same tars from front to back, grouped into samples, without decoding.
Megatron-Energon does the same beside them where the extra [bench] is installed.

Decoding: a plain reader of the same bytes by the fastest decoders known to us: simplejpeg decodes the photograph,
msgspec the JSON, pycocotools as many masks as an example has; and the same with our own decoder of masks, twice as
fast as pycocotools. Nothing is checked, nothing is made of it. The faster of the two is what decoding alone allows,
and the second promise is that examples with augmentation come at least at 0.95 of its rate.

Ours, decoding: reading, checking the sha256, decoding the photograph, parsing and checking the run lengths of all
masks, which is all that examples need of them. Examples: that, and the photograph at the model's size, clicks and
targets. With augmentation: that, and a crop, a flip and changed colours. All of these by the micro model's recipe; the
paper's, at 1024 px, turned and sheared, with 30 masks, stands below them, for it says how many loader processes a GPU
needs.
"""

from __future__ import annotations

import importlib.util
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import cv2
import msgspec
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from pipeline.bench.report import BenchOptions, BenchReport, environment, median_ratio
from pipeline.errors import InputError
from pipeline.format import rle

from ..data.augmentation import NO_AUGMENTATION, Augmentation
from ..data.sampler import Order, Sampler
from ..data.shards import ShardIndex
from ..data.stream import ExampleSettings, make_example
from ..training.config import AUGMENTATIONS

BAR: Final = 4.0
DECODING_SHARE_BAR: Final = 0.95
PASSES: Final = 20
"""Over the data in one timed run of raw reading: a few photographs are read in no time."""
PAGE_BYTES: Final = 4096
PHOTOGRAPHS: Final = 12
PEER_DECODING: Final = "simplejpeg, msgspec, pycocotools: decoding, 16 masks"
OWN_MASKS: Final = "simplejpeg, msgspec, our masks to pixels: decoding, 16 masks"
DECODING: Final = "ours: decoding, all masks"
EXAMPLES: Final = "ours: decoding, examples"
AUGMENTED: Final = "ours: decoding, examples, augmentation"
PAPER: Final = "ours: the paper's recipe, 1024 px, 30 masks, turned"

SETTINGS: Final = ExampleSettings(
    image_size=256, masks_per_image=16, masks_per_click=2, balance=0.25, clicks=1, augmentation=Augmentation()
)
"""As the micro model's recipe."""
PAPER_SETTINGS: Final = ExampleSettings(
    image_size=1024, masks_per_image=30, masks_per_click=1, balance=0.5, clicks=4, augmentation=AUGMENTATIONS["paper"]
)
"""As that of the official sizes."""


def run(options: BenchOptions) -> BenchReport:
    """Times all sides in turn on committed shards (`--input DIR`; by default photographs of scikit-image, mined first).

    Raises:
        InputError: the directory holds no committed shards.
    """
    load = os.getloadavg()
    cv2.setNumThreads(1)  # as in the loader's processes
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(options.input[0].split("=", 1)[-1]) if options.input else _mined(Path(folder) / "mined")
        index = ShardIndex.open(directory)
        count = min(len(index), options.limit or len(index))
        raw = {
            "ours": lambda: _read_ours(index, options.seed),
            "webdataset": lambda: _read_webdataset(directory),
        }
        if has_energon():
            raw["energon"] = _energon_reader(directory, Path(folder) / "energon")
        read = {name: side() for name, side in raw.items()}  # warms the page cache, and counts
        raw_s = _cpu_seconds(raw, repeats=options.repeats)
        decoding_s = _cpu_seconds(
            {
                PEER_DECODING: lambda: _decode_plainly(index, count, options.seed, coco_mask.decode),
                OWN_MASKS: lambda: _decode_plainly(index, count, options.seed, rle.decode),
                DECODING: lambda: _decode(index, count, options.seed, None),
                EXAMPLES: lambda: _decode(index, count, options.seed, replace(SETTINGS, augmentation=NO_AUGMENTATION)),
                AUGMENTED: lambda: _decode(index, count, options.seed, SETTINGS),
            },
            repeats=options.repeats,
        )
        # Not in turn with the others, which its large arrays might disturb.
        decoding_s |= _cpu_seconds(
            {PAPER: lambda: _decode(index, count, options.seed, PAPER_SETTINGS)}, repeats=options.repeats
        )
    samples = {**{name: PASSES * len(index) for name in raw}, **dict.fromkeys(decoding_s, count)}
    seconds = {**raw_s, **decoding_s}
    # Of decoding the least disturbed run: a neighbour adds a third to some runs, and the differences are smaller.
    best = {name: (min if name in decoding_s else statistics.median)(times) for name, times in seconds.items()}
    rate = {name: samples[name] / best[name] for name in seconds}
    share = rate[AUGMENTED] / max(rate[PEER_DECODING], rate[OWN_MASKS])
    return BenchReport(
        name="load",
        command=f"grainmill bench load --repeats {options.repeats}"
        + "".join(f" --input {each}" for each in options.input or ())
        + (f" --limit {options.limit}" if options.limit else ""),
        ratio=median_ratio(raw_s, ours="ours", peer="webdataset"),
        bar=BAR,
        rows=[
            {
                "side": name,
                "samples": samples[name],
                "samples_per_cpu_s": rate[name],
                "mb_per_cpu_s": rate[name] * read["ours"] / (PASSES * len(index)) / 1e6 if name in raw else None,
            }
            for name in seconds
        ],
        checks={
            "all sides read the same bytes": len(set(read.values())) == 1,
            f"examples with augmentation come at {DECODING_SHARE_BAR:.0%} of decoding's rate ({share:.1%})": share
            >= DECODING_SHARE_BAR,
            "examples are no faster than the decoding in them (else the machine was too busy to tell)": rate[AUGMENTED]
            <= rate[DECODING],
        },
        details={
            "samples": len(index),
            "bytes_per_sample": read["ours"] // (PASSES * len(index)),
            "passes": PASSES,
            "augmentation_share": share,
            "augmentation_share_of_our_decoding": rate[AUGMENTED] / rate[DECODING],
            "augmentation_share_of_examples": rate[AUGMENTED] / rate[EXAMPLES],
        },
        environment=environment(load),
    )


def _cpu_seconds(sides: Mapping[str, Callable[[], int]], *, repeats: int) -> dict[str, list[float]]:
    """Processor seconds of each side, run in turn: what one core does, whoever else is on the machine.

    A first run of each, which compiles, is not counted; the order changes from round to round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side()
    for repeat in range(repeats):
        for name, side in list(sides.items())[:: 1 if repeat % 2 == 0 else -1]:
            began_s = time.process_time()
            side()
            seconds[name].append(time.process_time() - began_s)
    return seconds


def _read_ours(index: ShardIndex, seed: int) -> int:
    """Bytes of all samples, shuffled, several times over."""
    sampler = Sampler(len(index), seed=seed, order=Order())
    total = 0
    for position in range(PASSES * len(index)):
        image, record = index.read_raw(sampler.sample(position))
        total += len(image) + len(record)
        sum(image[::PAGE_BYTES])  # bring every page in, as a decoder would
        sum(record[::PAGE_BYTES])
    return total


def _read_webdataset(directory: Path) -> int:
    """The same bytes by webdataset's reader, in the shards' order."""
    import webdataset

    shards = sorted(str(path) for path in (directory / "shards").glob("*.tar"))
    total = 0
    for _ in range(PASSES):
        for sample in webdataset.WebDataset(shards, shardshuffle=False, empty_check=False):
            total += sum(len(value) for name, value in sample.items() if not name.startswith("__"))
    return total


def has_energon() -> bool:
    """Whether Megatron-Energon can be imported."""
    return importlib.util.find_spec("megatron") is not None and importlib.util.find_spec("megatron.energon") is not None


def _energon_reader(directory: Path, folder: Path) -> Callable[[], int]:
    """The same bytes by Megatron-Energon, which wants an index beside the shards: beside links to them, here."""
    from megatron.energon import (
        Cooker,
        CrudeSample,
        DefaultTaskEncoder,
        WorkerConfig,
        get_loader,
        get_train_dataset,
        stateless,
    )

    folder.mkdir()
    for shard in sorted((directory / "shards").glob("*.tar")):
        (folder / shard.name).symlink_to(shard.resolve())
    prepare = Path(sys.executable).parent / "energon"
    flags = ["--non-interactive", "--split-ratio", "1,0,0", "--sample-type", "CrudeWebdataset", "--num-workers", "1"]
    done = subprocess.run([str(prepare), "prepare", *flags, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"energon prepare failed: {done.stderr.strip()[-500:]}")

    @stateless
    def as_it_is(sample: CrudeSample) -> CrudeSample:
        return sample

    class Raw(DefaultTaskEncoder):
        decoder = None
        cookers = [Cooker(as_it_is)]  # noqa: RUF012 (energon's own way)

    dataset = get_train_dataset(
        str(folder),
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0),
        batch_size=None,
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
        task_encoder=Raw(),
        repeat=False,
    )
    loader = get_loader(dataset)

    def read() -> int:
        total = 0
        with warnings.catch_warnings():  # torch's, of memory that it cannot pin
            warnings.simplefilter("ignore")
            for _ in range(PASSES):
                for sample in loader:
                    total += sum(len(value) for value in sample.values() if isinstance(value, bytes))
        return total

    return read


def _decode_plainly(index: ShardIndex, count: int, seed: int, decode_mask: Callable[[rle.Rle], object]) -> int:
    """Masks of `count` samples, decoded to pixels as a plain reader does: those that an example has, not all."""
    sampler = Sampler(len(index), seed=seed, order=Order())
    total = 0
    for position in range(count):
        picture, record = index.read_raw(sampler.sample(position))
        if simplejpeg.is_jpeg(picture):
            simplejpeg.decode_jpeg(picture)
        else:
            _decode_any(picture)
        masks = msgspec.json.decode(record)["annotations"]
        some = masks[:: max(1, len(masks) // SETTINGS.masks_per_image)][: SETTINGS.masks_per_image]
        total += len([decode_mask(mask["segmentation"]) for mask in some])
    return total


def _decode_any(picture: memoryview) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(picture)) as image:
        return np.array(image.convert("RGB"))


def _decode(index: ShardIndex, count: int, seed: int, settings: ExampleSettings | None) -> int:
    """Masks of `count` decoded samples, or prompts of as many examples."""
    sampler = Sampler(len(index), seed=seed, order=Order())
    total = 0
    for position in range(count):
        sample = index.load(sampler.sample(position))
        total += (
            len(sample.counts)
            if settings is None
            else make_example(sample, position, seed=seed, settings=settings).count
        )
    return total


def _mined(output: Path) -> Path:
    """Photographs of the scikit-image package, mined by the real command."""
    import skimage

    source = Path(skimage.__file__).parent / "data"
    command = [
        sys.executable, "-m", "pipeline", "mine", "--input", f"skimage={source}", "--output", str(output),
        "--executor", "inline", "--limit", str(PHOTOGRAPHS),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"mining scikit-image's photographs failed: {done.stderr.strip()[-500:]}")
    return output
