"""SA-1B: photographs with the masks of Segment Anything.

Source: ai.meta.com/datasets/segment-anything; cite Kirillov et al., ICCV 2023. Licence: SA-1B Dataset Research License.
No official split: the papers take 1,000 random images outside training and publish no list. Layout: `sa_N.jpg` and
`sa_N.json` side by side, in the folder given or in folders below it (`sa_000020/`); `--split FOLDER` takes one of
those. Images may also be PNG and others, as `grainmill export --to sa1b` copies them. Objects: `annotations` of the
JSON, about 100 an image. Label g by containment. Clicks end at IoU 0.90.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Final

from pipeline.errors import InputError
from pipeline.sources.kinds import IMAGE_SUFFIXES

from .coco_style import load_annotations
from .files import alone, existing, told
from .records import Benchmark, EvalImage, GroundTruth, Split

ALL: Final = "all"


def read_sa1b(root: Path, split: str) -> Split:
    """`sa1b`: see the module. `all` is everything under the folder.

    Raises:
        InputError: no such folder, no image, or an image without its JSON.
    """
    base = existing(root if split == ALL else root / split, what="a folder of sa_N.jpg and sa_N.json")
    records = set(base.rglob("sa_*.json"))
    found = [path for path in base.rglob("sa_*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    if not found:
        beside = f", and {len(records)} sa_N.json without their images" if records else ""
        raise InputError(f"{base / 'sa_1.jpg'}: missing; expected sa_N.jpg and sa_N.json, found no such image{beside}")
    images: dict[Path, Path] = {}
    for path in sorted(found, key=lambda path: (path.stem, path)):
        record = existing(path.with_suffix(".json"))
        if record in images:
            raise InputError(f"{images[record]} and {path.name}: {record.name} can be of one of them only")
        images[record] = path
    stray = records - set(images)
    return Split(
        images=tuple(
            EvalImage(name=path.relative_to(base).as_posix(), path=path, load=partial(load_sa1b, record))
            for record, path in images.items()
        ),
        notes=alone(stray, without="its image"),
        left_out={"sa_N.json without their image": len(stray)} if stray else {},
    )


def load_sa1b(path: Path) -> GroundTruth:
    """One image.

    Raises:
        InputError: a JSON that is not SA-1B's.
    """
    try:
        record = json.loads(path.read_bytes())
        height, width = int(record["image"]["height"]), int(record["image"]["width"])
        annotations = record["annotations"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: expected SA-1B's `image` and `annotations`; {told(error)}") from error
    if not isinstance(annotations, list) or not all(isinstance(each, dict) for each in annotations):
        raise InputError(f"{path}: expected SA-1B's `annotations`, a list of objects; found {annotations!r:.40}")
    return load_annotations(annotations, height, width, "containment", str(path))


BENCHMARKS: Final = (
    Benchmark(
        name="sa1b",
        title="SA-1B",
        source="ai.meta.com/datasets/segment-anything; cite Kirillov et al., ICCV 2023",
        licence="SA-1B Dataset Research License",
        splits=(ALL,),
        objects="about 100 masks an image; the papers score 1,000 random images whose list is not published",
        layout="[FOLDER/]sa_N.jpg (or .png and others), sa_N.json",
        read=read_sa1b,
        label_rule="containment",
        clicked_per_image=5,
        published="sa1b",
    ),
)
