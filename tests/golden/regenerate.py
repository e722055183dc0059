"""Writes the golden shard again: `python tests/golden/regenerate.py`.

`images/` holds five inputs: a JPEG that EXIF turns, a PNG, one in a folder, a zero-byte file and a text. `out/` holds
what the writer makes of them, with masks given below instead of mined. So these bytes depend on nothing but the format:
`tests/unit/test_golden_shard.py` fails when a change of code changes them. Run this only when the format is meant to
change, and say why in the commit.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from pipeline.errors import SampleFailureError
from pipeline.format import rle, schema
from pipeline.shards.writer import Outputs, ShardWriter
from pipeline.sources.images import read_header
from pipeline.sources.listing import plan_units
from pipeline.sources.unit_reader import UnitReader
from pipeline.sources.units import parse_inputs
from pipeline.storage.open import open_storage

GOLDEN = Path(__file__).resolve().parent
LICENSE = "CC0-1.0"


def annotations(width: int, height: int) -> tuple[schema.Annotation, ...]:
    """An instance with a part that has a part, and an instance beside it; every field has a value and a null."""
    given: list[tuple[tuple[int, int, int, int], int | None, float, int | None, schema.Origin, float | None]] = [
        ((0, 0, width // 2, height), None, 1.0, None, "divide", 0.75),
        ((1, 1, width // 2 - 2, height // 2), 0, 0.5, 0, "conquer", None),
        ((2, 2, 3, 2), 1, 0.1, 4, "conquer", 1.0),
        ((width // 2 + 1, 3, 4, 4), None, 1.0, None, "remainder", None),
    ]
    made: list[schema.Annotation] = []
    for (x, y, w, h), parent, granularity, level, origin, score in given:
        mask = np.zeros((height, width), dtype=bool)
        mask[y : y + h, x : x + w] = True
        made.append(
            schema.Annotation(
                id=len(made),
                segmentation=rle.encode(mask),
                bbox=(x, y, w, h),
                area=w * h,
                granularity=granularity,
                instance_id=len(made) if parent is None else made[parent].instance_id,
                parent_id=parent,
                level=level,
                origin=origin,
                score=score,
            )
        )
    return tuple(made)


def write_golden(output: Path) -> Outputs:
    """One unit of `images/`, written into `output` by today's code."""
    storage = open_storage(output, create=True)
    specs = parse_inputs([f"golden={GOLDEN / 'images'}"], licenses={"golden": LICENSE})
    (unit,) = plan_units(specs, samples_per_shard=16, limit=None)
    with ShardWriter(storage, unit=unit.unit, attempt="golden") as writer, UnitReader(unit, specs) as reader:
        for position in range(len(reader)):
            identity = reader.identity(position)
            try:
                read = reader.read(position)
                header = read_header(read.image, max_pixels=10**6)
            except SampleFailureError as error:
                writer.fail(
                    schema.FailureRow(
                        key=identity.key,
                        source_uri=identity.source_uri,
                        member=identity.member,
                        stage=error.stage,
                        reason=error.reason,
                        message=error.message,
                    )
                )
                continue
            sample = schema.Sample(
                key=read.key,
                source_uri=read.source_uri,
                member=read.member,
                source_sha256=read.sha256,
                license=read.license,
                width=header.width,
                height=header.height,
                exif_orientation=header.exif_orientation,
                file_name=f"{read.key}.{header.ext}",
                annotations=annotations(header.width, header.height),
            )
            writer.add(sample, read.image)
        outputs = writer.finish()
        outputs.publish(storage)
    storage.clean_scratch()
    return outputs


if __name__ == "__main__":
    shutil.rmtree(GOLDEN / "out", ignore_errors=True)
    for each in write_golden(GOLDEN / "out").files():
        print(each.name, each.size)
