"""People's segments of BSDS500 as committed shards, to train a student on them: the ceiling beside mined labels.

    python -m benchmarks.people_shards --bsds500 DIR --output OUT [--split train] [--people all|fewest]
        [--whole segments|photograph]

People's segments of at least 32 px: all people's, or those of the person who drew the fewest. With `--whole segments`
each is a candidate for a whole, and what becomes instance and part, and each mask's granularity, follows by the rules
of mined labels (`labeling.hierarchy`). With `--whole photograph` the photograph is the one whole and the segments are
its parts, so that g tells a segment's size in the photograph (arXiv 2511.13714, eq. 3, with the photograph as the
instance). For measuring only: the annotations' terms are research and education, and nobody's segments belong into a
run that is called unsupervised.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.evaluation.benchmarks.bsds import read_bsds500
from model.evaluation.benchmarks.records import EvalImage, EvalObject, GroundTruth
from pipeline.console import ProgressBar
from pipeline.format import rle
from pipeline.format.schema import Annotation, Sample, make_key, sha256_of
from pipeline.labeling.atoms import BoxMask, cut_atoms
from pipeline.labeling.config import MineConfig
from pipeline.labeling.hierarchy import Candidates, build_hierarchy

from .committed import write_run

PEOPLE = ("all", "fewest")
WHOLES = ("segments", "photograph")
LABEL = "bsds500_people"
LICENSE = "BSDS500: research and education"


def segments_of(truth: GroundTruth, people: str) -> list[EvalObject]:
    """The scored segments of all people, or of the one who drew the fewest."""
    segments = [truth.objects[position] for position in truth.scored]
    if people == "all":
        return segments
    fewest = min(each.annotator for each in segments if each.annotator is not None)
    return [each for each in segments if each.annotator == fewest]


def annotations_of(
    image: EvalImage, config: MineConfig, *, people: str, whole: str
) -> tuple[int, int, tuple[Annotation, ...]]:
    """Height, width and the tree of an image's segments."""
    truth = image.load()
    masks = [rle.decode(each.mask) for each in segments_of(truth, people)]
    wholes = [whole == "segments"] * len(masks)
    if whole == "photograph":
        masks.append(np.ones((truth.height, truth.width), dtype=np.bool_))
        wholes.append(True)
    return truth.height, truth.width, tree_of(masks, wholes, truth.height, truth.width, config)


def tree_of(
    masks: Sequence[NDArray[np.bool_]], wholes: Sequence[bool], height: int, width: int, config: MineConfig
) -> tuple[Annotation, ...]:
    """Instances and parts among given masks, (H, W) each, by the rules of mined labels.

    Args:
        masks: any number.
        wholes: which may be instances.
        height: pixels.
        width: likewise.
        config: of mining.
    """
    atoms, members, _ = cut_atoms(np.zeros((height, width), dtype=np.int32), [BoxMask.of(each) for each in masks])
    candidates = Candidates(
        atoms=atoms,
        members=members,
        origin=["annotation"] * len(masks),
        score=np.full(len(masks), np.nan),
        level=[None] * len(masks),
        may_be_instance=np.array(wholes, dtype=np.bool_),
    )
    return build_hierarchy(
        candidates, height=height, width=width, tree=config.tree, granularity=config.granularity.method
    )


def sample_of(image: EvalImage, data: bytes, config: MineConfig, *, people: str, whole: str) -> Sample:
    """The record of one photograph."""
    height, width, annotations = annotations_of(image, config, people=people, whole=whole)
    sha256 = sha256_of(data)
    name = image.path.name
    key = make_key(label=LABEL, relative_path=name, member=None, occurrence=0, sha256=sha256)
    return Sample(
        key=key,
        source_uri=f"{LABEL}/{name}",
        member=None,
        source_sha256=sha256,
        license=LICENSE,
        width=width,
        height=height,
        exif_orientation=1,
        file_name=f"{key}.jpg",
        annotations=annotations,
    )


def write_shards(images: Sequence[EvalImage], output: str, *, people: str = "all", whole: str = "segments") -> int:
    """One committed unit of all images; returns its masks."""
    samples = []
    with ProgressBar("people's segments", len(images)) as progress:
        for number, image in enumerate(images):
            data = image.path.read_bytes()
            samples.append((sample_of(image, data, MineConfig(), people=people, whole=whole), data))
            progress.update(number + 1)
    return write_run(samples, output, label=LABEL, license=LICENSE)[1]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bsds500", type=Path, required=True, help="As downloaded, or `BSDS500/data` of it.")
    parser.add_argument("--output", required=True, help="Where the shards go.")
    parser.add_argument("--split", default="train", help="Default train.")
    parser.add_argument("--people", choices=PEOPLE, default="all", help="Whose segments. Default all.")
    parser.add_argument("--whole", choices=WHOLES, default="segments", help="What g = 1.0 means. Default segments.")
    options = parser.parse_args(arguments)
    images = read_bsds500(options.bsds500, options.split).images
    masks = write_shards(images, options.output, people=options.people, whole=options.whole)
    print(f"{options.output}: {len(images)} photographs, {masks} masks")
    return 0


if __name__ == "__main__":
    sys.exit(main())
