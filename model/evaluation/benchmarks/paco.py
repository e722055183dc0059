"""PACO-LVIS: objects of 75 classes and their parts on COCO's photographs.

Source: Ramanathan et al., "PACO: parts and attributes of common objects", CVPR 2023 (`paco_lvis_v1.zip`). Licence:
annotations CC BY 4.0 (MIT code), photographs under COCO's terms. Splits: val 2,410 images, train 45,790, test 9,443.
Clicks until IoU 0.85. Layout: `annotations/paco_lvis_v1_SPLIT.json` (COCO's form; a part's `obj_ann_id` is its object's
`id`, an object's its own), photographs as `train2017/…` and `val2017/…`, as `file_name` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Final

from pipeline import rle as rle_codec
from pipeline.errors import InputError
from pipeline.rle import Rle

from ..layout import existing, first_folder
from ..records import Benchmark, EvalImage, GroundTruth, Split
from .coco_style import load_record, to_rle
from .part_objects import Annotated, parts_of_objects


def read_paco(root: Path, split: str) -> Split:
    """One sample for each image with annotations.

    Raises:
        InputError: the annotations or a photograph is missing, or a part without its object.
    """
    name = f"paco_lvis_v1_{split}.json"
    path = first_folder(root, ("annotations", "", "paco_lvis_v1"), holding=name) / name
    content = load_record(path)
    by_image: dict[int, list[dict[str, Any]]] = {}
    try:
        categories = {int(each["id"]): str(each["name"]) for each in content["categories"]}
        for each in content["annotations"]:
            kept = {key: each[key] for key in ("id", "obj_ann_id", "segmentation")}
            kept["name"] = f"{categories[int(each['category_id'])]}.{each['id']}"
            by_image.setdefault(int(each["image_id"]), []).append(kept)
        images = [
            EvalImage(
                name=str(int(each["id"])),
                path=_photograph(root, str(each["file_name"])),
                load=partial(
                    load_objects,
                    tuple(by_image[int(each["id"])]),
                    int(each["height"]),
                    int(each["width"]),
                    f"{path}: image {each['id']}",
                ),
            )
            for each in content["images"]
            if int(each["id"]) in by_image
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: expected COCO's `images`, `categories` and `annotations` with `obj_ann_id`; found an entry "
            f"without {error}"
        ) from error
    return Split(images=tuple(images))


def _photograph(root: Path, name: str) -> Path:
    if name.startswith("/") or ".." in PurePosixPath(name).parts:
        raise InputError(f"file_name {name!r}: expected a path below the photographs' folder")
    folders = (root, root / "images", root / "coco", root / "coco" / "images")
    return existing(next((each / name for each in folders if (each / name).is_file()), root / name))


def load_objects(annotations: Sequence[dict[str, Any]], height: int, width: int, where: str) -> GroundTruth:
    """Objects with their parts, of one image. Annotations with an empty mask are left out.

    Raises:
        InputError: a part whose object is not there, or a segmentation that is none.
    """
    masks = {
        int(each["id"]): to_rle(each["segmentation"], height, width, f"{where}, annotation {each['id']}")
        for each in annotations
    }
    filled = {number for number, mask in masks.items() if rle_codec.area_px(rle_codec.runs_of(mask))}
    own = [each for each in annotations if each["id"] == each["obj_ann_id"] and int(each["id"]) in filled]
    parts: dict[int, list[tuple[str, Rle]]] = {int(each["id"]): [] for each in own}
    for each in annotations:
        number, whole = int(each["id"]), int(each["obj_ann_id"])
        if whole not in masks:
            raise InputError(f"{where}, annotation {number}: its object {whole} is not among the image's")
        if number != whole and number in filled and whole in parts:
            parts[whole].append((each["name"], masks[number]))
    objects = [Annotated(name=each["name"], mask=masks[int(each["id"])], parts=parts[int(each["id"])]) for each in own]
    return parts_of_objects(objects, height=height, width=width, first="all")


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
