"""Files in the style of COCO's instance annotations: COCO, LVIS, EntitySeg, and any other.

`images` (id, height, width, and file_name or coco_url), `annotations` (image_id, segmentation as polygons or as run
lengths, area, iscrowd). Categories are not looked at: every score here is class-agnostic.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Final

from pipeline.errors import InputError
from pipeline.format import rle as rle_codec

from . import containment
from .files import alone, by_stem, existing, first_folder, matching_files, others_in
from .records import EMPTY_MASKS, Benchmark, EvalImage, EvalObject, GroundTruth, LabelRule, Split

Record = dict[str, Any]
Key = int | float | str


def read_coco(root: Path, split: str) -> Split:
    """COCO 2017, instances; `val2017`: 5,000 images, 36,781 annotations with crowds.

    Layout as downloaded from cocodataset.org: `annotations/instances_SPLIT.json`, and the images in `SPLIT/` (or
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
    folders = [each for each in (root, root / "images", root / "coco", root / "coco/images") if each.is_dir()]
    return read_style(
        annotations,
        partial(_by_url, folders),
        rule="containment",
        keep=_in_val2017 if split == "minival" else None,
    )


def read_entityseg(root: Path, split: str) -> Split:
    """EntitySeg (Qi et al., High-Quality Entity Segmentation, ICCV 2023); `val`: 1,314 low-resolution images in the
    paper's selection, 18.1 entities an image over the whole set.

    Layout: the annotation file of the release (`entityseg_SPLIT_lr.json`, `entityseg_insseg_SPLIT.json` or the
    project's `entityv2_01_entity_SPLIT.json`), in the folder or under `annotations/` or
    `annotations/entity_segmentation/`; images anywhere under `images/` by the name that the annotations give (the
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
    """Any file in COCO's style: `PATH` is the file, or a folder that holds one where the usual tools put it
    (`_JSON_PLACES`), `grainmill export --to coco` among them.

    Images are looked for by `file_name` beside the file, under `images/`, `data/` and `SPLIT/`. Licence and counts
    are the data's own. Label g by containment. Clicks end at IoU 0.90.

    Raises:
        InputError: a missing file, named; or one that is not in this style.
    """
    existing(root, what="a COCO-style JSON or a folder that holds one")
    file = root
    if root.is_dir():
        names = [name.format(split=split) for name in _JSON_PLACES]
        found = [root / name for name in names if (root / name).is_file()]
        if not found:
            there = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.json"))
            beside = f"; there is {there[0]}, pass the file itself or another --split" if there else ""
            raise InputError(f"{root / names[0]}: expected a COCO-style JSON ({', '.join(names)}), found none{beside}")
        file = found[0]
    base = file.parent.parent if file.parent.name == "annotations" else file.parent
    bases = dict.fromkeys([file.parent, base, root if root.is_dir() else base])
    places = [each / inner for each in bases for inner in ("", "images", "data", split, f"images/{split}")]
    return read_style(file, partial(_among, [each for each in places if each.is_dir()]), rule="containment")


_JSON_PLACES: Final = (
    "{split}.json",
    "annotations.json",
    "annotations/{split}.json",
    "annotations/instances_{split}.json",
    "annotations/instances.json",
    "annotations/instances_default.json",
    "{split}/_annotations.coco.json",
    "_annotations.coco.json",
    "instances_{split}.json",
    "instances.json",
    "labels.json",
    "result.json",
)
"""Ours, COCO's, and those of CVAT, Roboflow, FiftyOne and Label Studio; the first that is there is read."""


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
        find: image record -> where its image should lie.
        rule: of label g.
        keep: which image records count; None: all.

    Raises:
        InputError: the file is not in COCO's style, an image of it is missing, or no annotation is of an image.
    """
    record = load_record(annotations)
    images = images_by_id(record, annotations)
    by_image, left_out, notes = annotations_by_image(record, images, annotations)
    kept = {key: each for key, each in images.items() if keep is None or keep(each)}
    if not kept:
        raise InputError(f"{annotations}: expected images, found none")
    names = Counter(_file_name(each) for each in kept.values())
    made = []
    for key, each in kept.items():
        file = _file_name(each)
        made.append(
            EvalImage(
                name=file if names[file] == 1 else f"{file}#{key}",  # two records of one file are two images
                path=find(each),
                load=partial(
                    load_annotations, tuple(by_image[key]), each["height"], each["width"], rule,
                    f"{annotations}: image {key}",
                ),
                file=file,
            )
        )  # fmt: skip
    missing = [image.path for image in made if not image.path.is_file()]
    if missing:
        raise InputError(
            f"{missing[0]}: missing, as are {len(missing) - 1} more of the {len(made)} images that {annotations} "
            "names; put them there"
        )
    return Split(images=tuple(sorted(made, key=lambda image: image.name)), notes=notes, left_out=left_out)


def images_by_id(record: Record, file: Path) -> dict[Key, Record]:
    """The image records of an annotation file: id -> record, height and width whole numbers.

    Raises:
        InputError: a record without id, height, width and a name, or two of one id.
    """
    found: dict[Key, Record] = {}
    for number, each in enumerate(record["images"]):
        where = f"{file}: images[{number}]"
        key = _key(each, "id", where)
        if key in found:
            raise InputError(
                f"{where}: image id {key!r} stands there twice; annotations cannot tell which they belong to"
            )
        if not all(isinstance(each.get(name, ""), str) for name in _NAMES) or not any(name in each for name in _NAMES):
            raise InputError(f"{where}: expected a text file_name (or coco_url), found neither")
        _file_name(each, where)
        sides: list[Any] = [each.get(name) for name in ("height", "width")]
        if not all(_is_finite(side) and 0 < side < 2**20 and side == int(side) for side in sides):
            raise InputError(
                f"{where}: expected height and width in pixels, found {sides[0]!r:.40} and {sides[1]!r:.40}"
            )
        found[key] = {**each, "height": int(sides[0]), "width": int(sides[1])}
    return found


_NAMES: Final = ("file_name", "coco_url")


def annotations_by_image(
    record: Record, images: Mapping[Key, Record], file: Path
) -> tuple[defaultdict[Key, list[Record]], dict[str, int], tuple[str, ...]]:
    """The annotations of each image id, what is left out because its `image_id` is no image, and a note about it.

    Raises:
        InputError: an entry without `image_id`; or none of them belongs to an image.
    """
    found: defaultdict[Key, list[Record]] = defaultdict(list)
    for number, each in enumerate(record["annotations"]):
        found[_key(each, "image_id", f"{file}: annotations[{number}]")].append(each)
    stray = {key: len(several) for key, several in found.items() if key not in images}
    if not stray:
        return found, {}, ()
    told = f"image_id {_some(stray)}, the images' ids are {_some(images)}"
    if {str(key) for key in stray} & {str(key) for key in images}:
        told += " (a text and a number are two ids, as for pycocotools; write both alike)"
    total = len(record["annotations"])
    if len(stray) == len(found):
        raise InputError(f"{file}: none of its {total} annotations belongs to an image: they have {told}")
    count = sum(stray.values())
    return found, {STRAY: count}, (f"{count} of {total} annotations are of no image: {told}",)


STRAY: Final = "annotations whose image_id is no image"


def _some(keys: Iterable[Key]) -> str:
    first = [repr(key) for key in itertools.islice(keys, 6)]
    return ", ".join(first if len(first) < 6 else [*first[:5], "…"])


def _key(entry: Any, name: str, where: str) -> Key:
    value = entry.get(name) if isinstance(entry, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise InputError(f"{where}: expected an object with {name}, a number or a text; found {_kind(entry, name)}")
    return value


def _kind(entry: Any, name: str) -> str:
    if not isinstance(entry, dict):
        return f"{entry!r:.40}"
    return f"{name} {entry[name]!r:.40}" if name in entry else f"no {name}"


def load_annotations(
    annotations: Iterable[Record], height: int, width: int, rule: LabelRule, where: str
) -> GroundTruth:
    """Objects of one image. An annotation with no mask, or an empty one, is left out and counted.

    Raises:
        InputError: a segmentation, area or iscrowd that is none.
    """
    objects: list[EvalObject] = []
    left_out: Counter[str] = Counter()
    for number, each in enumerate(annotations, start=1):  # an id of 0 is no match for COCO's evaluation
        at = f"{where}, annotation {each.get('id', number)}"
        segmentation = drawn(each.get("segmentation"), left_out)
        if segmentation is None:
            continue
        mask = rle_codec.from_coco(segmentation, height, width, where=at)
        pixels = rle_codec.area_px(rle_codec.run_lengths_of(mask))
        if pixels == 0:
            left_out[EMPTY_MASKS] += 1
            continue
        crowd = each.get("iscrowd") or 0
        area = each.get("area")
        if crowd not in (0, 1):
            raise InputError(f"{at}: expected iscrowd 0 or 1, found {crowd!r:.40}")
        if area is not None and not _is_finite(area):
            raise InputError(f"{at}: expected an area in pixels, found {area!r:.40}")
        objects.append(
            EvalObject(
                id=str(each.get("id", number)),
                mask=mask,
                area_px=float(pixels if area is None else area),
                crowd=bool(crowd),
                granularity=1.0 if rule == "whole" and not crowd else None,
            )
        )
    return GroundTruth(
        height=height,
        width=width,
        objects=tuple(labelled(objects) if rule == "containment" else objects),
        left_out=dict(left_out),
    )


def drawn(segmentation: Any, left_out: Counter[str]) -> Any:
    """A segmentation without polygons that cannot be one; None, and counted, if nothing is left of it."""
    if segmentation is None or segmentation == []:
        left_out["annotations without a segmentation"] += 1
        return None
    if not isinstance(segmentation, list) or not all(isinstance(each, list) for each in segmentation):
        return segmentation
    kept = [each for each in segmentation if len(each) >= 6]
    if not kept:
        left_out["annotations whose polygons have fewer than three points"] += 1
        return None
    if len(kept) < len(segmentation):
        left_out["polygons of fewer than three points, beside others"] += len(segmentation) - len(kept)
    return kept


def labelled(objects: list[EvalObject]) -> list[EvalObject]:
    """The same objects with label g by containment; crowds take no part."""
    from dataclasses import replace

    counted = [index for index, each in enumerate(objects) if not each.crowd]
    labels, _ = containment.labels_of([objects[index].mask for index in counted])
    found = list(objects)
    for index, label in zip(counted, labels, strict=True):
        found[index] = replace(objects[index], granularity=label)
    return found


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


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


def _file_name(record: Record, where: str = "file_name") -> str:
    """Raises InputError for a name that leaves the folder."""
    name = str(record["file_name"]) if "file_name" in record else PurePosixPath(record["coco_url"]).name
    if not name or name.startswith("/") or ".." in PurePosixPath(name).parts:
        raise InputError(f"{where}: expected a file name inside the folder, found {name!r:.80}")
    return name


def _beside(folder: Path, record: Record) -> Path:
    return folder / _file_name(record)


def _among(folders: list[Path], record: Record) -> Path:
    name = _file_name(record)
    return next((folder / name for folder in folders if (folder / name).is_file()), folders[0] / name)


def _by_url(folders: list[Path], record: Record) -> Path:
    """LVIS: the last two parts of `coco_url` are COCO's folder and name."""
    parts = PurePosixPath(str(record.get("coco_url", ""))).parts[-2:]
    if len(parts) < 2 or ".." in parts:
        raise InputError(f"image {record['id']}: expected a coco_url with a folder and a name, found {parts!r:.80}")
    name = "/".join(parts)
    return next((folder / name for folder in folders if (folder / name).is_file()), folders[0] / name)


def _in_val2017(record: Record) -> bool:
    return "/val2017/" in str(record.get("coco_url"))


class _Anywhere:
    """Images by name, wherever below a folder they lie; the folder is walked once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._places: defaultdict[str, list[Path]] | None = None

    def __call__(self, record: Record) -> Path:
        name = _file_name(record)
        if (self._folder / name).is_file():
            return self._folder / name
        if self._places is None:
            self._places = defaultdict(list)
            for path in sorted(self._folder.rglob("*")):
                if path.is_file():
                    self._places[path.name].append(path)
        found = self._places[PurePosixPath(name).name]
        found = [path for path in found if path.as_posix().endswith(f"/{name}")] or found
        if len(found) > 1:
            raise InputError(
                f"{name}: lies at {found[0]} and at {found[1]}, and the annotations do not tell which is meant"
            )
        return found[0] if found else self._folder / name


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
    labels = root / "labels" / inner
    images = by_stem(matching_files(root / "images" / inner))
    known = {*images, "classes"}
    stray = [path for path in labels.iterdir() if path.suffix == ".txt" and path.stem not in known]
    left_out = others_in(root / "images" / inner, images.values())
    return Split(
        images=tuple(
            EvalImage(name=path.name, path=path, load=partial(_load_yolo, path, labels / f"{stem}.txt"))
            for stem, path in images.items()
        ),
        notes=alone(stray, without="an image"),
        left_out=left_out | ({"labels of no image": len(stray)} if stray else {}),
    )


def _load_yolo(image: Path, labels: Path) -> GroundTruth:
    from .files import image_size, read_lines

    height, width = image_size(image)
    annotations = []
    for number, line in enumerate(read_lines(labels) if labels.is_file() else [], start=1):
        try:
            numbers = [float(word) for word in line.split()[1:]]
        except ValueError as error:
            raise InputError(f"{labels}, line {number}: expected numbers ({error})") from error
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
        layout="the JSON itself, or a folder with SPLIT.json, annotations.json, annotations/instances.json "
        "(our export) or as other tools call it; images beside it or under images/",
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
