"""Committed runs as one run of reduced images: what a machine without a network is sent to train a small student on.

    python -m benchmarks.reduced_shards --data RUN [RUN ...] --output OUT [--longer-side 256] [--quality 82]
        [--max-mib 40] [--drawn-only]

Each image is reduced so that its longer side is at most so many pixels, and encoded as JPEG; its masks are averaged on
the same grid and kept where more than half of a pixel lies in them, so that a part stays inside its parent. Tree and
granularity stay those that were mined at full size. A mask that is left with fewer than 16 pixels goes, or with its
parent's very pixels; its parts become its parent's. With `--max-mib`, samples are taken from the runs in turn until
they would fill so much, compressed as `infra/gpu/prepare.sh` packs them (tar and xz). Keys, sources and terms are kept.
With `--drawn-only`, masks go that `grainmill train` never draws from scratch (parts of instances with less than ten),
so that more images have room.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import lzma
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from model.data.shards import ShardIndex
from model.training.config import micro_recipe
from pipeline.console import ProgressBar
from pipeline.format import rle
from pipeline.format.schema import Annotation, Sample, order_key, sample_from_json, sample_to_json, sha256_of
from pipeline.sources.images import decode_rgb

from .committed import write_run

LABEL = "reduced"
FROM_SCRATCH: Final[dict[str, Any]] = {
    "smallest_parts": True,
    **{name: micro_recipe("micro")[name] for name in ("min_parts", "wholes_only")},
}
"""What `grainmill train` draws from scratch; an instance's smallest part stays, for it is one of those counted."""
MIN_AREA_PX = 16
MAX_PIXELS = 10**8
RATIO_SAMPLES = 24
"""Of which the compressed size of a sample is measured, as one block."""


def reduced_annotations(
    sample: Sample, height: int, width: int, *, among: NDArray[np.bool_] | None = None
) -> tuple[Annotation, ...]:
    """The annotations of a sample on a smaller grid; they pass `schema.validate_sample`.

    Args:
        sample: with n annotations, and its size.
        height, width: of the smaller grid, pixels.
        among: (n,) which of them may stay: of an instance none, the whole alone, or everything; None: all.
    """
    masks: dict[int, NDArray[np.bool_]] = {}
    kept_parent: dict[int, int | None] = {}
    for each in sample.annotations:
        if among is not None and not among[each.id]:
            continue
        full = rle.decode(each.segmentation).astype(np.uint8) * np.uint8(255)
        mask = cv2.resize(full, (width, height), interpolation=cv2.INTER_AREA) > 127
        parent = each.parent_id
        if parent is not None and parent not in masks:
            parent = kept_parent[parent]
        kept_parent[each.id] = parent
        large = np.count_nonzero(mask) >= MIN_AREA_PX
        if each.is_instance:
            is_kept = large
        else:
            is_kept = large and parent is not None and not np.array_equal(mask, masks[parent])
        if is_kept:
            masks[each.id] = mask
    annotations: list[Annotation] = []
    for _, family in itertools.groupby(sample.annotations, key=lambda each: each.instance_id):
        described = [(each.id, _described(each, masks[each.id])) for each in family if each.id in masks]
        if not described:
            continue
        whole, *parts = described
        place: dict[int, int] = {}
        for old, each in [whole, *sorted(parts, key=lambda pair: order_key(pair[1]))]:
            parent = kept_parent[old]
            place[old] = len(annotations)
            annotations.append(
                dataclasses.replace(
                    each,
                    id=place[old],
                    instance_id=place[whole[0]],
                    parent_id=None if parent is None else place[parent],
                )
            )
    return tuple(annotations)


def _described(annotation: Annotation, mask: NDArray[np.bool_]) -> Annotation:
    segmentation = rle.encode(mask)
    lengths = rle.run_lengths_of(segmentation)
    return dataclasses.replace(
        annotation, segmentation=segmentation, area=rle.area_px(lengths), bbox=rle.bbox_xywh(lengths, mask.shape[0])
    )


def reduced_sample(
    record: bytes, image: bytes, *, longer_side: int, quality: int, where: str, among: NDArray[np.bool_] | None = None
) -> tuple[Sample, bytes]:
    """One sample and its image's bytes, reduced; the key is the mined one.

    Args:
        record: `KEY.json`.
        image: the source's bytes.
        longer_side: pixels; smaller images stay as large as they are.
        quality: of the JPEG.
        where: for messages.
        among: see `reduced_annotations`.
    """
    sample = sample_from_json(record, where=where)
    rgb = decode_rgb(image, max_pixels=MAX_PIXELS)
    scale = min(1.0, longer_side / max(sample.height, sample.width))
    height, width = max(1, round(sample.height * scale)), max(1, round(sample.width * scale))
    small = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)
    data = cv2.imencode(".jpg", small[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    reduced = dataclasses.replace(
        sample,
        source_sha256=sha256_of(data),
        width=width,
        height=height,
        exif_orientation=1,
        file_name=f"{sample.key}.jpg",
        annotations=reduced_annotations(sample, height, width, among=among),
    )
    return reduced, data


def in_turn(
    runs: Sequence[str], *, longer_side: int, quality: int, drawn_only: bool = False
) -> Iterator[tuple[Sample, bytes]]:
    """Reduced samples of all runs, spread evenly: the n-th part of each run lies in the n-th part of the result."""
    indices = [ShardIndex.open(run) for run in runs]
    places = sorted(
        (number / len(index), which, number) for which, index in enumerate(indices) for number in range(len(index))
    )
    for _, which, number in places:
        image, record = indices[which].read_raw(number)
        among = indices[which].load(number).drawable(**FROM_SCRATCH) if drawn_only else None
        yield reduced_sample(
            bytes(record), bytes(image), longer_side=longer_side, quality=quality, where=f"{runs[which]}: {number}",
            among=among,
        )  # fmt: skip


def write_reduced(
    runs: Sequence[str],
    output: str,
    *,
    longer_side: int,
    quality: int,
    max_bytes: float | None = None,
    drawn_only: bool = False,
) -> tuple[int, int]:
    """One committed unit; returns its samples and masks."""
    total = sum(len(ShardIndex.open(run)) for run in runs)
    samples: list[tuple[Sample, bytes]] = []
    first: list[bytes] = []
    used, ratio = 0.0, 1.0
    with ProgressBar("reducing", total) as progress:
        for sample, data in in_turn(runs, longer_side=longer_side, quality=quality, drawn_only=drawn_only):
            record = sample_to_json(sample)
            if len(first) < RATIO_SAMPLES:
                first.append(record)
                if len(first) == RATIO_SAMPLES:
                    block = b"".join(first)
                    ratio = len(lzma.compress(block)) / len(block)
                    used = sum(len(bytes_) for _, bytes_ in samples) + ratio * len(block)
            used += len(data) + ratio * len(record)
            if max_bytes is not None and used > max_bytes:
                break
            samples.append((sample, data))
            progress.update(len(samples))
    return write_run(samples, output, label=LABEL)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, help="Committed or released shards, with images.")
    parser.add_argument("--output", required=True, help="Where the reduced run goes.")
    parser.add_argument("--longer-side", type=int, default=256, help="Pixels. Default 256, the micro student's view.")
    parser.add_argument("--quality", type=int, default=82, help="Of the JPEGs. Default 82.")
    parser.add_argument("--max-mib", type=float, help="Compressed. Default: everything.")
    parser.add_argument("--drawn-only", action="store_true", help="Only masks that training from scratch draws.")
    options = parser.parse_args(argv)
    limit = None if options.max_mib is None else options.max_mib * 2**20
    samples, masks = write_reduced(
        options.data,
        options.output,
        longer_side=options.longer_side,
        quality=options.quality,
        max_bytes=limit,
        drawn_only=options.drawn_only,
    )
    print(f"{options.output}: {samples} images, {masks} masks")
    return 0


if __name__ == "__main__":
    sys.exit(main())
