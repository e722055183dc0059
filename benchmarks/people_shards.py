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

from model.evaluation.benchmarks.bsds import read_bsds500
from model.evaluation.benchmarks.records import EvalImage, EvalObject, GroundTruth
from pipeline.console import ProgressBar
from pipeline.format import rle
from pipeline.format.schema import Annotation, Sample, make_key, sha256_of
from pipeline.labeling.atoms import BoxMask, cut_atoms
from pipeline.labeling.config import MineConfig
from pipeline.labeling.hierarchy import Candidates, build_hierarchy
from pipeline.mining.manifest import write_manifest
from pipeline.shards import plan as plans
from pipeline.shards.commits import CommitWriter, make_commit
from pipeline.shards.writer import ShardWriter
from pipeline.sources.units import Entry, SourceSpec, UnitSpec
from pipeline.storage.open import open_storage

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
    boxes = [BoxMask.of(rle.decode(each.mask)) for each in segments_of(truth, people)]
    wholes = [whole == "segments"] * len(boxes)
    if whole == "photograph":
        boxes.append(BoxMask.of(np.ones((truth.height, truth.width), dtype=np.bool_)))
        wholes.append(True)
    atoms, members, _ = cut_atoms(np.zeros((truth.height, truth.width), dtype=np.int32), boxes)
    candidates = Candidates(
        atoms=atoms,
        members=members,
        origin=["annotation"] * len(boxes),
        score=np.full(len(boxes), np.nan),
        level=[None] * len(boxes),
        may_be_instance=np.array(wholes, dtype=np.bool_),
    )
    annotations = build_hierarchy(
        candidates, height=truth.height, width=truth.width, tree=config.tree, granularity=config.granularity.method
    )
    return truth.height, truth.width, annotations


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
    config = MineConfig(samples_per_shard=len(images))
    storage = open_storage(output, create=True)
    entries = tuple(
        Entry(path=each.path.name, raw=each.path.name, file_size=each.path.stat().st_size, version="1")
        for each in images
    )
    sources = (SourceSpec(label=LABEL, location=str(images[0].path.parent), license=LICENSE),)
    units = iter([UnitSpec(unit=0, source=0, entries=entries)])
    plan = plans.create_plan(storage, config, sources, environment={}, units=units)
    masks = 0
    with (
        ShardWriter(storage, unit=0, attempt="people") as writer,
        ProgressBar("people's segments", len(images)) as progress,
    ):
        for number, image in enumerate(images):
            data = image.path.read_bytes()
            sample = sample_of(image, data, config, people=people, whole=whole)
            writer.add(sample, data)
            masks += len(sample.annotations)
            progress.update(number + 1)
        outputs = writer.finish()
        outputs.publish(storage)
    commit = make_commit(
        outputs, unit=0, config_hash=plan.config_hash, seconds={}, environment={}, attempt="people", notes=[]
    )
    CommitWriter(storage).create(commit)
    write_manifest(storage, plan)
    return masks


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
