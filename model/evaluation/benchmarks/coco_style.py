"""Files in the style of COCO's instance annotations: COCO, LVIS, EntitySeg, and any other.

`images` (id, height, width, and file_name or coco_url), `annotations` (image_id, segmentation as polygons or as run
lengths, area, iscrowd). Categories are not looked at: every score here is class-agnostic.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
from pycocotools import mask as coco_mask

from pipeline import rle as rle_codec
from pipeline.errors import InputError, SchemaError
from pipeline.rle import Rle

from .. import containment
from ..layout import existing, first_folder, matching_files
from ..records import Benchmark, EvalImage, EvalObject, GroundTruth, LabelRule, Split

Record = dict[str, Any]


def read_coco(root: Path, split: str) -> Split:
    """COCO 2017, instances; `val2017`: 5,000 images, 36,781 annotations with crowds.

    Layout as downloaded from cocodataset.org: `annotations/instances_SPLIT.json`, and the photographs in `SPLIT/` (or
    `images/SPLIT/`). Licence: annotations CC BY 4.0, images under Flickr's terms. Images without annotations count for
    nothing. Clicks end at IoU 0.90.

    Raises:
        InputError: a missing file, named; or one that is not in this style.
    """
    root = first_folder(root, ("", "coco"), holding=f"annotations/instances_{split}.json")
    annotations = root / "annotations" / f"instances_{split}.json"
    folder = first_folder(root, ("", "images"), holding=split) / split
    return read_style(annotations, partial(_beside, folder), rule="whole")


def read_lvis(root: Path, split: str) -> Split:
    """LVIS v1; `val`: 19,809 images, 244,707 annotations; `minival`: those among them that are COCO val2017's (4,809).

    Layout: `lvis_v1_val.json` (or under `annotations/`), and COCO's photographs in `val2017/` and `train2017/`, which
    each image's `coco_url` names. Licence: annotations CC BY 4.0. Annotation is federated, which a recall without
    classes does not feel. Label g by containment among the annotations of an image. Clicks end at IoU 0.90.

    Raises:
        InputError: a missing file, named; or one that is not in this style.
    """
    file = f"lvis_v1_{'val' if split == 'minival' else split}.json"
    annotations = first_folder(root, ("", "annotations", "lvis"), holding=file) / file
    photographs = [each for each in (root, root / "images", root / "coco", root / "coco/images") if each.is_dir()]
    return read_style(
        annotations,
        partial(_by_url, photographs),
        rule="containment",
        keep=_in_val2017 if split == "minival" else None,
    )


def read_entityseg(root: Path, split: str) -> Split:
    """EntitySeg (Qi et al., High-Quality Entity Segmentation, ICCV 2023); `val`: 1,314 low-resolution images in the
    paper's selection, 18.1 entities an image over the whole set.

    Layout: the annotation file of the release (`entityseg_SPLIT_lr.json`, `entityseg_insseg_SPLIT.json` or the
    project's `entityv2_01_entity_SPLIT.json`), in the folder or under `annotations/` or
    `annotations/entity_segmentation/`; photographs anywhere under `images/` by the name that the annotations give (the
    archives unpack to `entity_01_11580` and others).
    Licence: CC BY-NC 4.0 for the annotations. Clicks end at IoU 0.90.

    Raises:
        InputError: a missing file, named; or one that is not in this style.
    """
    names = [name.format(split=split) for name in _ENTITY_FILES]
    places = [root / folder / name for folder in _ENTITY_FOLDERS for name in names]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise InputError(
            f"{places[0]}: missing (also looked for {', '.join(names[1:])}, there and under "
            f"{' and '.join(folder for folder in _ENTITY_FOLDERS if folder)}); see `grainmill score --list`"
        )
    folder = root / "images" if (root / "images").is_dir() else root
    return read_style(found, _Anywhere(folder), rule="whole")


def read_coco_json(root: Path, split: str) -> Split:
    """Any file in COCO's style: `PATH` is the file, or a folder that holds `SPLIT.json`, `annotations.json` or
    `annotations/SPLIT.json`.

    Photographs are looked for by `file_name` beside the file, under `images/` and under `SPLIT/`. Licence and counts
    are the data's own. Label g by containment. Clicks end at IoU 0.90.

    Raises:
        InputError: a missing file, named; or one that is not in this style.
    """
    existing(root, what="a COCO-style JSON or a folder that holds one")
    if root.is_file():
        file, base = root, root.parent
    else:
        names = (
            f"{split}.json",
            "annotations.json",
            f"annotations/{split}.json",
            f"annotations/instances_{split}.json",
        )
        base = root
        file = next((root / name for name in names if (root / name).is_file()), root / names[0])
        existing(file, what=f"a COCO-style JSON ({', '.join(names)})")
    folders = [each for each in (base, base / "images", base / split, base / "images" / split) if each.is_dir()]
    if base.name == "annotations":
        folders += [each for each in (base.parent, base.parent / "images", base.parent / split) if each.is_dir()]
    return read_style(file, partial(_among, folders), rule="containment")


_ENTITY_FILES: Final = (
    "entityseg_{split}_lr.json",
    "entityseg_insseg_{split}_annotations.json",
    "entityseg_insseg_{split}.json",
    "entityv2_010203_entity_{split}.json",
    "entityv2_01_entity_{split}.json",
)
_ENTITY_FOLDERS: Final = ("", "annotations", "annotations/entity_segmentation")

Finder = Callable[[Record], Path]


def read_style(
    annotations: Path, find: Finder, *, rule: LabelRule, keep: Callable[[Record], bool] | None = None
) -> Split:
    """A split from one annotation file.

    Args:
        annotations: the file.
        find: image record -> where its photograph should lie.
        rule: of label g.
        keep: which image records count; None: all.

    Raises:
        InputError: the file is not in COCO's style, or a photograph of it is missing.
    """
    record = load_record(annotations)
    by_image: defaultdict[int, list[Record]] = defaultdict(list)
    try:
        for annotation in record["annotations"]:
            by_image[annotation["image_id"]].append(annotation)
        images = [each for each in record["images"] if keep is None or keep(each)]
        made = [
            EvalImage(
                name=str(PurePosixPath(_file_name(each)).with_suffix("")),
                path=find(each),
                load=partial(
                    load_annotations,
                    tuple(by_image[each["id"]]),
                    int(each["height"]),
                    int(each["width"]),
                    rule,
                    f"{annotations}: image {each['id']}",
                ),
            )
            for each in images
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{annotations}: expected COCO's `images` (id, height, width, file_name) and `annotations` (image_id, "
            f"segmentation); found an entry without {error}"
        ) from error
    if not made:
        raise InputError(f"{annotations}: expected images, found none")
    missing = [image.path for image in made if not image.path.is_file()]
    if missing:
        raise InputError(
            f"{missing[0]}: missing, as are {len(missing) - 1} more of the {len(made)} photographs that {annotations} "
            "names; put them there"
        )
    return Split(images=tuple(sorted(made, key=lambda image: image.name)))


def load_annotations(
    annotations: Iterable[Record], height: int, width: int, rule: LabelRule, where: str
) -> GroundTruth:
    """Objects of one image. An annotation with an empty mask is left out.

    Raises:
        InputError: a segmentation that is none.
    """
    objects: list[EvalObject] = []
    for number, each in enumerate(annotations):
        mask = to_rle(each.get("segmentation"), height, width, f"{where}, annotation {each.get('id', number)}")
        pixels = rle_codec.area_px(rle_codec.runs_of(mask))
        if pixels == 0:
            continue
        crowd = bool(each.get("iscrowd", 0))
        objects.append(
            EvalObject(
                id=str(each.get("id", number)),
                mask=mask,
                area_px=float(each.get("area", pixels)),
                crowd=crowd,
                granularity=1.0 if rule == "whole" and not crowd else None,
            )
        )
    return GroundTruth(
        height=height, width=width, objects=tuple(labelled(objects) if rule == "containment" else objects)
    )


def labelled(objects: list[EvalObject]) -> list[EvalObject]:
    """The same objects with label g by containment; crowds take no part."""
    from dataclasses import replace

    counted = [index for index, each in enumerate(objects) if not each.crowd]
    labels, _ = containment.labels_of([objects[index].mask for index in counted])
    found = list(objects)
    for index, label in zip(counted, labels, strict=True):
        found[index] = replace(objects[index], granularity=label)
    return found


def to_rle(segmentation: Any, height: int, width: int, where: str) -> Rle:
    """Polygons, uncompressed or compressed run lengths -> a checked RLE.

    Raises:
        InputError: neither, or of another size.
    """
    try:
        if isinstance(segmentation, list):
            if not segmentation or not all(len(each) >= 6 and len(each) % 2 == 0 for each in segmentation):
                raise ValueError("a polygon needs at least three points")
            encoded = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
            return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}
        if list(segmentation["size"]) != [height, width]:
            raise ValueError(f"size {segmentation['size']}, the image is {[height, width]}")
        counts = segmentation["counts"]
        if isinstance(counts, list):
            runs = np.asarray(counts, dtype=np.int64)
            if (runs < 0).any() or int(runs.sum()) != height * width:
                raise ValueError(f"runs sum to {int(runs.sum())}, expected {height * width}")
            return rle_codec.from_runs(runs, height, width)
        rle: Rle = {"size": [height, width], "counts": counts}
        rle_codec.runs_of(rle)
        return rle
    except (KeyError, TypeError, ValueError, SchemaError) as error:
        raise InputError(f"{where}: expected polygons or run lengths of {height} x {width} ({error})") from error


def load_record(path: Path) -> Any:
    """The JSON of an annotation file, with its lists `images` and `annotations`.

    Raises:
        InputError: missing, damaged, or without them.
    """
    try:
        with existing(path).open("rb") as file:
            record = json.load(file)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected JSON, found damaged bytes ({error})") from error
    if not isinstance(record, dict) or not all(
        isinstance(record.get(name), list) for name in ("images", "annotations")
    ):
        raise InputError(f"{path}: expected lists `images` and `annotations`, found neither or one of them")
    return record


def _file_name(record: Record) -> str:
    name = str(record["file_name"] if "file_name" in record else PurePosixPath(record["coco_url"]).name)
    if name.startswith("/") or ".." in PurePosixPath(name).parts:
        raise ValueError(f"a file name inside the folder: {name!r}")
    return name


def _beside(folder: Path, record: Record) -> Path:
    return folder / _file_name(record)


def _among(folders: list[Path], record: Record) -> Path:
    name = _file_name(record)
    return next((folder / name for folder in folders if (folder / name).is_file()), folders[0] / name)


def _by_url(folders: list[Path], record: Record) -> Path:
    """LVIS: the last two parts of `coco_url` are COCO's folder and name."""
    parts = PurePosixPath(str(record["coco_url"])).parts[-2:]
    if len(parts) < 2 or ".." in parts:
        raise ValueError(f"coco_url with a folder and a name: {record['coco_url']!r}")
    name = "/".join(parts)
    return next((folder / name for folder in folders if (folder / name).is_file()), folders[0] / name)


def _in_val2017(record: Record) -> bool:
    return "/val2017/" in str(record.get("coco_url"))


class _Anywhere:
    """Photographs by name, wherever below a folder they lie; the folder is walked once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._places: dict[str, Path] | None = None

    def __call__(self, record: Record) -> Path:
        name = _file_name(record)
        if (self._folder / name).is_file():
            return self._folder / name
        if self._places is None:
            self._places = {path.name: path for path in sorted(self._folder.rglob("*")) if path.is_file()}
        return self._places.get(PurePosixPath(name).name, self._folder / name)


def read_yolo(root: Path, split: str) -> Split:
    """Polygons as Ultralytics' tools keep them: `labels/[SPLIT/]N.txt`, one object a line, `class x y x y …` in shares
    of width and height; `images/[SPLIT/]N.jpg`.

    COCO128-seg and other cuts of COCO are passed on so. Licence and counts are the data's own. Label g 1.0. Clicks end
    at IoU 0.90.

    Raises:
        InputError: a missing folder, or a line that is not such an object.
    """
    existing(root / "labels", what="a folder")
    inner = split if (root / "labels" / split).is_dir() else ""
    images = matching_files(root / "images" / inner)
    return Split(
        images=tuple(
            EvalImage(
                name=path.stem, path=path, load=partial(_load_yolo, path, root / "labels" / inner / f"{path.stem}.txt")
            )
            for path in images
        )
    )


def _load_yolo(image: Path, labels: Path) -> GroundTruth:
    from ..layout import image_size, read_lines

    height, width = image_size(image)
    annotations = []
    for number, line in enumerate(read_lines(labels) if labels.is_file() else []):
        try:
            numbers = [float(word) for word in line.split()[1:]]
        except ValueError as error:
            raise InputError(f"{labels}, line {number + 1}: expected numbers ({error})") from error
        points = [value * (height if index % 2 else width) for index, value in enumerate(numbers)]
        annotations.append({"id": number, "segmentation": [points]})
    return load_annotations(annotations, height, width, "whole", str(labels))


BENCHMARKS: Final = (
    Benchmark(
        name="coco",
        title="COCO 2017 instances",
        source="cocodataset.org; cite Lin et al., ECCV 2014",
        licence="annotations CC BY 4.0, images under Flickr's terms",
        splits=("val2017", "train2017"),
        objects="val2017: 5,000 images, 36,781 annotations (crowds among them)",
        layout="annotations/instances_SPLIT.json, SPLIT/N.jpg (or images/SPLIT/N.jpg)",
        read=read_coco,
        published="coco",
    ),
    Benchmark(
        name="lvis",
        title="LVIS v1",
        source="lvisdataset.org; cite Gupta, Dollar, Girshick, CVPR 2019",
        licence="annotations CC BY 4.0, images are COCO's",
        splits=("val", "minival", "train"),
        objects="val: 19,809 images, 244,707 annotations; minival: those of COCO val2017, 4,809 images (the paper says "
        "5,000 validation images)",
        layout="lvis_v1_SPLIT.json (or under annotations/), val2017/N.jpg, train2017/N.jpg",
        read=read_lvis,
        label_rule="containment",
        published="lvis",
    ),
    Benchmark(
        name="entityseg",
        title="EntitySeg",
        source="github.com/adobe-research/EntitySeg-Dataset; cite Qi et al., ICCV 2023",
        licence="annotations CC BY-NC 4.0",
        splits=("val", "train"),
        objects="val: 1,314 low-resolution images in the paper; 18.1 entities an image over the whole set",
        layout="entityseg_SPLIT_lr.json or entityseg_insseg_SPLIT.json (or under annotations/), images/**",
        read=read_entityseg,
        published="entityseg",
    ),
    Benchmark(
        name="coco-json",
        title="any annotations in COCO's style",
        source="your own",
        licence="of the data",
        splits=("val", "train", "test"),
        objects="those of the file",
        layout="the JSON itself, or a folder with SPLIT.json or annotations.json; images beside it or under images/",
        read=read_coco_json,
        label_rule="containment",
    ),
    Benchmark(
        name="yolo-seg",
        title="polygons in text files, as COCO128-seg is passed on",
        source="your own; cuts of COCO: cocodataset.org",
        licence="of the data",
        splits=("val", "train"),
        objects="those of the files; the 64 COCO train2017 images that we measure with have 542",
        layout="images/[SPLIT/]N.jpg, labels/[SPLIT/]N.txt",
        read=read_yolo,
    ),
)
