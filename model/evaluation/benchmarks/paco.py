"""PACO-LVIS: objects of 75 classes and their parts on COCO's photographs.

Source: Ramanathan et al., "PACO: parts and attributes of common objects", CVPR 2023 (`paco_lvis_v1.zip`). Licence:
annotations CC BY 4.0 (MIT code), photographs under COCO's terms. Splits: val 2,410 images, train 45,790, test 9,443.
Clicks until IoU 0.85. Layout: `annotations/paco_lvis_v1_SPLIT.json` (COCO's form; a part's `obj_ann_id` is its object's
`id`, an object's its own), images as `train2017/…` and `val2017/…`, as `file_name` says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Final

from pipeline.errors import InputError
from pipeline.format import rle as rle_codec
from pipeline.format.rle import Rle

from .coco_style import annotations_by_image, drawn, images_by_id, load_record
from .files import existing, first_folder, told
from .part_objects import Annotated, parts_of_objects
from .records import EMPTY_MASKS, Benchmark, EvalImage, GroundTruth, Split


def read_paco(root: Path, split: str) -> Split:
    """One sample for each image with annotations.

    Raises:
        InputError: the annotations or an image is missing, or a part without its object.
    """
    name = f"paco_lvis_v1_{split}.json"
    path = first_folder(root, ("annotations", "", "paco_lvis_v1"), holding=name) / name
    content = load_record(path)
    images = images_by_id(content, path)
    by_image, left_out, notes = annotations_by_image(content, images, path)
    names = _categories(content, path)
    made = []
    for key, each in images.items():
        if key not in by_image:
            continue
        where = f"{path}: image {key}"
        kept = tuple(_kept(annotation, names, where) for annotation in by_image[key])
        load = partial(load_objects, kept, each["height"], each["width"], where)
        made.append(EvalImage(name=str(key), path=_image(root, str(each.get("file_name", ""))), load=load))
    if len(made) < len(images):
        left_out["images without annotations"] = len(images) - len(made)
    return Split(images=tuple(made), notes=notes, left_out=left_out)


def _categories(content: Any, path: Path) -> dict[int, str]:
    try:
        return {int(each["id"]): str(each["name"]) for each in content["categories"]}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: expected `categories` with id and name; {told(error)}") from error


def _kept(annotation: dict[str, Any], categories: dict[int, str], where: str) -> dict[str, Any]:
    """What of an annotation is needed: id, obj_ann_id, segmentation and a name."""
    category = annotation.get("category_id")
    if category not in categories:
        raise InputError(f"{where}: category_id {category!r:.40} is none of the file's {len(categories)} categories")
    try:
        number, whole = int(annotation["id"]), int(annotation["obj_ann_id"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where}: expected annotations with id and obj_ann_id; {told(error)}") from error
    return {
        "id": number,
        "obj_ann_id": whole,
        "segmentation": annotation.get("segmentation"),
        "name": f"{categories[category]}.{number}",
    }


def _image(root: Path, name: str) -> Path:
    if not name or name.startswith("/") or ".." in PurePosixPath(name).parts:
        raise InputError(f"file_name {name!r}: expected a path below the images' folder")
    folders = (root, root / "images", root / "coco", root / "coco" / "images")
    return existing(next((each / name for each in folders if (each / name).is_file()), root / name))


def load_objects(annotations: Sequence[dict[str, Any]], height: int, width: int, where: str) -> GroundTruth:
    """Objects with their parts, of one image. Annotations with no mask, or an empty one, are left out and counted.

    Raises:
        InputError: a part whose object is not there, two annotations of one id, or a segmentation that is none.
    """
    left_out: Counter[str] = Counter()
    masks: dict[int, Rle] = {}
    known = {each["id"] for each in annotations}
    if len(known) < len(annotations):
        raise InputError(f"{where}: an annotation id stands there twice; parts name their object by it")
    for each in annotations:
        segmentation = drawn(each["segmentation"], left_out)
        if segmentation is None:
            continue
        mask = rle_codec.from_coco(segmentation, height, width, where=f"{where}, annotation {each['id']}")
        if rle_codec.area_px(rle_codec.run_lengths_of(mask)):
            masks[each["id"]] = mask
        else:
            left_out[EMPTY_MASKS] += 1
    own = [each for each in annotations if each["id"] == each["obj_ann_id"] and each["id"] in masks]
    parts: dict[int, list[tuple[str, Rle]]] = {each["id"]: [] for each in own}
    for each in annotations:
        number, whole = each["id"], each["obj_ann_id"]
        if whole not in known:
            raise InputError(f"{where}, annotation {number}: its object {whole} is not among the image's")
        if number == whole or number not in masks:
            continue
        if whole in parts:
            parts[whole].append((each["name"], masks[number]))
        else:
            left_out["parts whose object has no mask"] += 1
    objects = [Annotated(name=each["name"], mask=masks[each["id"]], parts=parts[each["id"]]) for each in own]
    truth = parts_of_objects(objects, height=height, width=width, first="all")
    return replace(truth, left_out=dict(left_out))


BENCHMARKS: Final = (
    Benchmark(
        name="paco",
        title="PACO-LVIS, parts of common objects",
        source="paco_lvis_v1.zip and COCO 2017's photographs; Ramanathan et al., CVPR 2023",
        licence="annotations CC BY 4.0; photographs under COCO's terms",
        splits=("val", "train", "test"),
        objects="images: val 2,410, train 45,790, test 9,443",
        layout="annotations/paco_lvis_v1_SPLIT.json, train2017/N.jpg, val2017/N.jpg",
        read=read_paco,
        target_iou=0.85,
        label_rule="part",
        published="paco",
    ),
)
