"""Mined or released shards as ground truth: how well a model, or another run's masks, agree with them.

`--data` is a run, a release, or one version of a release (`REL/versions/V`), a path or a URL. Objects: every mask of a
sample, with the g that it has there; `wholes` are its instances, pairs a part and its instance. `--split all` is
everything, any other one of the release's own splits. Nobody drew these masks: a score against them says how much of
the labels was learned, not how well people are matched. Clicks end at IoU 0.90.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Final

from pipeline.errors import InputError
from pipeline.format.schema import sha256_of

from ...data.shards import COLUMNS, ShardIndex
from .containment import MAX_AREA_RATIO
from .mined import MINED_COLUMNS, MinedRow, dataset_at, mined_row, sample_path
from .records import Benchmark, EvalImage, EvalObject, GroundTruth, PartOf, Split

ALL: Final = "all"


def read_shards(location: Path | str, split: str) -> Split:
    """`shards`: see the module.

    Raises:
        InputError: nothing committed lies there, or no such split.
    """
    index = ShardIndex.open(location, columns=(*COLUMNS, *MINED_COLUMNS, "ext"), split=None if split == ALL else split)
    images = []
    for row in index.table.to_pylist():
        mined = mined_row(index.location, row)
        images.append(
            EvalImage(
                name=row["key"],
                path=Path(row["shard"], f"{row['key']}.{row['ext']}"),
                load=partial(load_sample, mined),
                read=partial(read_image, index.location, {name: row[name] for name in _IMAGE}),
                sha256=row["source_sha256"],
                file=sample_path(row["source_uri"], row["member"]),
            )
        )
    return Split(images=tuple(images))


_IMAGE: Final = ("key", "shard", "image_offset", "image_size", "source_sha256")


def load_sample(row: MinedRow) -> GroundTruth:
    """The masks of one sample.

    Raises:
        InputError: the bytes are not those that the index names.
    """
    sample = row.load()
    masks = sample.annotations
    pairs = [
        PartOf(part=each.id, whole=each.instance_id, area_ratio=ratio, granularity=each.granularity)
        for each in masks
        if not each.is_instance and (ratio := each.area / masks[each.instance_id].area) < MAX_AREA_RATIO
    ]
    objects = [
        EvalObject(id=str(each.id), mask=each.segmentation, area_px=each.area, granularity=each.granularity)
        for each in masks
    ]
    wholes = tuple(each.id for each in masks if each.is_instance)
    return GroundTruth(
        height=sample.height,
        width=sample.width,
        objects=tuple(objects),
        subsets={"all": tuple(range(len(objects))), "wholes": wholes},
        pairs=tuple(pairs),
    )


def read_image(location: str, row: dict[str, Any]) -> bytes:
    """The image's bytes as they lie in the shard.

    Raises:
        InputError: there are none, or others than the index names.
    """
    where = f"{location}/{row['shard']}: {row['key']}"
    if row["image_offset"] is None:
        raise InputError(f"{where}: the shards hold no images; `grainmill join` brings them together with their images")
    data = dataset_at(location).storage.read_range(row["shard"], row["image_offset"], row["image_size"])
    if sha256_of(data) != row["source_sha256"]:
        raise InputError(f"{where}: its image does not match the index's sha256; `grainmill verify` tells more")
    return data


BENCHMARKS: Final = (
    Benchmark(
        name="shards",
        title="mined or released shards as ground truth",
        source="your own",
        licence="of the data",
        splits=(ALL,),
        objects="the masks of the shards",
        layout="a run, a release or REL/versions/V, a path or a URL; --split also takes the release's own splits",
        read=read_shards,
        by_url=read_shards,
        label_rule="mined",
    ),
)
