"""SA-1B: photographs with the masks of Segment Anything.

Source: ai.meta.com/datasets/segment-anything; cite Kirillov et al., ICCV 2023. Licence: SA-1B Dataset Research License.
No official split: the papers take 1,000 random images outside training and publish no list. Layout: `sa_N.jpg` and
`sa_N.json` side by side, in the folder given or in folders below it (`sa_000020/`); `--split FOLDER` takes one of
those. Objects: `annotations` of the JSON, about 100 an image. Label g by containment. Clicks end at IoU 0.90.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Final

from pipeline.errors import InputError

from ..layout import existing
from ..records import Benchmark, EvalImage, GroundTruth, Split
from .coco_style import load_annotations

ALL: Final = "all"


def read_sa1b(root: Path, split: str) -> Split:
    """`sa1b`: see the module. `all` is everything under the folder.

    Raises:
        InputError: no such folder, no image, or an image without its JSON.
    """
    base = existing(root if split == ALL else root / split, what="a folder of sa_N.jpg and sa_N.json")
    images = sorted(base.rglob("sa_*.jpg"), key=lambda path: path.stem)
    if not images:
        raise InputError(f"{base / 'sa_1.jpg'}: missing; expected sa_N.jpg and sa_N.json, found no such image")
    return Split(
        images=tuple(
            EvalImage(name=path.stem, path=path, load=partial(load_sa1b, existing(path.with_suffix(".json"))))
            for path in images
        )
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
        if not isinstance(annotations, list) or not all(isinstance(each, dict) for each in annotations):
            raise TypeError("annotations is no list of records")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: expected SA-1B's `image` and `annotations` ({error!r})") from error
    return load_annotations(annotations, height, width, "containment", str(path))


BENCHMARKS: Final = (
    Benchmark(
        name="sa1b",
        title="SA-1B",
        source="ai.meta.com/datasets/segment-anything; cite Kirillov et al., ICCV 2023",
        licence="SA-1B Dataset Research License",
        splits=(ALL,),
        objects="about 100 masks an image; the papers score 1,000 random images whose list is not published",
        layout="[FOLDER/]sa_N.jpg, sa_N.json",
        read=read_sa1b,
        label_rule="containment",
        clicked_per_image=5,
        published="sa1b",
    ),
)
