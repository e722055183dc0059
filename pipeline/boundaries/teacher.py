"""Images of runs and releases -> what a net is trained on: maps of the backbone, the image, targets from its trees.

Shards hold at most some hundred masks of an image, clipped into instances and parts, and not the order in which a tree
merged its thousands of regions. So trees are grown again from the images, by the stages of `mine`. What is computed of
an image is one safetensors file in the work folder; a file that is there is not computed again.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..dataset.open import open_dataset
from ..dataset.reader import Dataset
from ..environment.numeric import fix_threads
from ..errors import InputError, SampleFailureError
from ..format.schema import sha256_of
from ..labeling.boundary_file import ALONE
from ..labeling.config import MergeCost, MineConfig
from ..labeling.miner import load_backbone, reduced
from ..labeling.on_superpixels import describe_graph
from ..labeling.stages.boundary_net import REGIONS_LEFT, image_for
from ..labeling.stages.merge_regions import merge_regions
from ..sources.images import MAX_STORED_PIXELS, decode_rgb
from .targets import POOLED, border_targets, pooled

MAX_SIDE_PX: Final = 500
"""Longer side to which photographs are reduced: that of the photographs with which the settings were chosen."""
TREES: Final = 2
"""The first ones of the recipe: `base` and `ward`; without a backbone all of them."""
CROP_PX: Final = 192
"""Side of a crop of the net's image; an image with a shorter side has none."""


@dataclass(frozen=True, kw_only=True)
class ChosenImage:
    """An image of a run or a release that a net is trained on."""

    dataset: int
    """Place in `--data`."""
    row: dict[str, Any]
    """Of the index of samples."""

    @property
    def key(self) -> str:
        return str(self.row["key"])

    @property
    def source(self) -> str:
        return str(self.row["source_uri"]).partition("/")[0]


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The images, where they come from, and the datasets."""

    images: tuple[ChosenImage, ...]
    data: tuple[dict[str, Any], ...]
    """Digest and number of samples of each run or release."""
    sources: tuple[dict[str, Any], ...]
    """Label, licence, terms and number of images of each source."""


def choose_images(locations: Sequence[str], *, count: int, seed: int) -> Chosen:
    """At most `count` images, in turn from each dataset, within it by the hash of seed and key; each image once.

    Raises:
        InputError: nothing is there, or shards without images.
    """
    columns = ("key", "shard", "image_offset", "image_size", "source_uri", "license", "source_sha256")
    queues, data, terms = [], [], dict[str, str | None]()
    for number, location in enumerate(locations):
        dataset = open_dataset(location)
        dataset.require_samples()
        index = dataset.samples_index(columns)
        rows = index.table.to_pylist()
        if any(row["image_offset"] is None for row in rows):
            raise InputError(
                f"--data {location}: mined with --no-images, and trees are grown from images; mine it again without "
                "that flag"
            )
        rows.sort(key=lambda row: sha256_of(f"{seed}:{row['key']}".encode()))
        queues.append([ChosenImage(dataset=number, row=row) for row in rows])
        data.append({"digest": index.digest, "samples": len(rows)})
        terms |= {each["label"]: str(each.get("terms") or "") or None for each in dataset.sources}
    images, seen = list[ChosenImage](), set[str]()
    for turn in range(max(map(len, queues))):
        for queue in queues:
            if turn < len(queue) and len(images) < count and queue[turn].row["source_sha256"] not in seen:
                images.append(queue[turn])
                seen.add(queue[turn].row["source_sha256"])
    counts: dict[tuple[str, str | None], int] = {}
    for image in images:
        source = (image.source, image.row["license"])
        counts[source] = counts.get(source, 0) + 1
    sources = tuple(
        {"label": label, "license": license, "terms": terms.get(label), "images": number}
        for (label, license), number in sorted(counts.items(), key=str)
    )
    return Chosen(images=tuple(images), data=tuple(data), sources=sources)


def prepare(
    image: ChosenImage,
    *,
    locations: tuple[str, ...],
    config: MineConfig,
    weights: str | None,
    device: str | None,
    work: str,
) -> str:
    """Computes one image's file if it is not there.

    Args:
        image: of `choose_images`.
        locations: the datasets.
        config: whose first trees are the teacher.
        weights: file of the backbone's weights; None without one.
        device: of torch.
        work: the folder of files.

    Returns:
        `good`, `small` (a side below 192 px), `shallow` (at most 500 superpixels) or `unreadable`.
    """
    path = prepared_path(work, image)
    if not path.is_file():
        _write(path, *_computed(image, locations, config, weights, device))
    return str(_metadata(path)["what"])


def prepared_path(work: str | Path, image: ChosenImage) -> Path:
    return Path(work) / f"{sha256_of(image.key.encode())[:32]}.safetensors"


def _computed(
    image: ChosenImage, locations: tuple[str, ...], config: MineConfig, weights: str | None, device: str | None
) -> tuple[str, dict[str, NDArray[Any]]]:
    data = _dataset(locations[image.dataset]).read_image(image.row)  # type: ignore[arg-type]
    if sha256_of(data) != image.row["source_sha256"]:
        return "unreadable", {}
    try:
        rgb = reduced(decode_rgb(data, max_pixels=MAX_STORED_PIXELS), MAX_SIDE_PX)
    except SampleFailureError:
        return "unreadable", {}
    maps = None if weights is None else _backbone(config, weights, device).maps(rgb, config.features)
    seen = image_for(rgb, maps)
    if min(seen.shape[:2]) < CROP_PX:
        return "small", {}
    described, graph = describe_graph(rgb, maps, None, config)
    if len(graph) <= REGIONS_LEFT[-1]:
        return "shallow", {}
    trees = [merge_regions(graph, cost) for cost in teachers(config)]
    targets = border_targets(described.superpixels.labels, graph, trees)
    found: dict[str, NDArray[Any]] = {
        f"map{number}": np.ascontiguousarray(grid.transpose(2, 0, 1)).astype(np.float16)
        for number, grid in enumerate(() if maps is None else maps.grids)
    }
    found["rgb"] = np.ascontiguousarray(seen.transpose(2, 0, 1))
    found["targets"] = pooled(targets, seen.shape[0] // POOLED, seen.shape[1] // POOLED)
    return "good", found


def teachers(config: MineConfig) -> tuple[MergeCost, ...]:
    """The costs whose trees teach."""
    return config.conquer.costs if config.features.backbone == ALONE else config.conquer.costs[:TREES]


@functools.lru_cache(maxsize=8)
def _dataset(location: str) -> Dataset:
    return open_dataset(location)


@functools.lru_cache(maxsize=1)
def _backbone(config: MineConfig, weights: str, device: str | None) -> Any:
    """Of a process that prepares; loaded once."""
    found = load_backbone(config, weights, device=device, batch_size=1)
    fix_threads()
    return found


def _write(path: Path, what: str, arrays: dict[str, NDArray[Any]]) -> None:
    from safetensors.numpy import save

    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(save(arrays, {"what": what}))
    temporary.replace(path)


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="np") as opened:
        return dict(opened.metadata())
