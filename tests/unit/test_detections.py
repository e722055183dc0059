"""What detectors write, gathered into proposals: each form by a small file as its program writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from model.predict.coco_json import PredictedMask, mask_file
from pipeline import cli
from pipeline.errors import InputError
from pipeline.format import rle
from pipeline.sources.detections import gather
from pipeline.sources.proposals import Proposals

HEIGHT, WIDTH = 60, 80


def box(top: int, left: int, height: int, width: int) -> NDArray[np.bool_]:
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.bool_)
    mask[top : top + height, left : left + width] = True
    return mask


ONE, OTHER = box(10, 20, 30, 40), box(5, 5, 12, 10)
BOTH = {"000000000139.jpg": [ONE, OTHER], "000000000285.jpg": [OTHER]}
CORNERS = {"one": [20, 10, 60, 10, 60, 40, 20, 40], "other": [5, 5, 15, 5, 15, 17, 5, 17]}


def polygon(name: str) -> list[float]:
    return [float(each) for each in CORNERS[name]]


def shares(name: str) -> str:
    return " ".join(f"{value / (HEIGHT if place % 2 else WIDTH):.6g}" for place, value in enumerate(CORNERS[name]))


def segments(name: str, **more: Any) -> dict[str, Any]:
    corners = polygon(name)
    return {
        "name": "cat",
        "class": 15,
        "confidence": 0.91823,
        "box": {"x1": corners[0], "y1": corners[1], "x2": corners[4], "y2": corners[5]},
        "segments": {"x": corners[::2], "y": corners[1::2]},
        **more,
    }


def automatic(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """As SAM's amg.py writes it with --convert-to-rle."""
    return {
        "segmentation": rle.encode(mask),
        "area": int(mask.sum()),
        "bbox": [20.0, 10.0, 39.0, 29.0],
        "predicted_iou": 0.9834,
        "point_coords": [[40.5, 25.5]],
        "stability_score": 0.9712,
        "crop_box": [0.0, 0.0, float(WIDTH), float(HEIGHT)],
    }


def result(number: int | str, mask: NDArray[np.bool_], **more: Any) -> dict[str, Any]:
    """As detectron2's COCOEvaluator and ultralytics' validator write it."""
    return {
        "image_id": number,
        "category_id": 1,
        "bbox": [20.0, 10.0, 40.0, 30.0],
        "score": 0.874,
        "segmentation": rle.encode(mask),
        **more,
    }


def written(form: str, folder: Path) -> Path:
    """Files of masks of both images, as a program writes them; what is to be named to `grainmill proposals`."""
    folder.mkdir(parents=True)
    names = [Path(name).stem for name in BOTH]
    one_file: dict[str, Any] = {
        "detectron2": [result(139, ONE), result(139, OTHER), result(285, OTHER)],
        "ultralytics predictions": [
            result(139, ONE, file_name=f"{names[0]}.jpg"),
            result(139, OTHER, file_name=f"{names[0]}.jpg"),
            result(285, OTHER, file_name=f"{names[1]}.jpg"),
        ],
        "ultralytics predictions of names": [
            result(names[0], ONE),
            result(names[0], OTHER),
            result(names[1], OTHER),
        ],
        "coco": {
            "info": {"description": "x"},
            "images": [{"id": 7, "file_name": f"train/{names[0]}.jpg"}, {"id": 8, "file_name": f"{names[1]}.jpg"}],
            "annotations": [
                {"id": 1, "image_id": 7, "category_id": 3, "iscrowd": 0, "segmentation": [polygon("one")]},
                {"id": 2, "image_id": 7, "category_id": 3, "iscrowd": 0, "segmentation": [polygon("other")]},
                {"id": 3, "image_id": 8, "category_id": 3, "iscrowd": 0, "segmentation": rle.encode(OTHER)},
            ],
        },
    }  # fmt: skip
    if form in one_file:
        (folder / "coco_instances_results.json").write_text(json.dumps(one_file[form]))
        return folder / "coco_instances_results.json"
    for name, masks in BOTH.items():
        stem = Path(name).stem
        words = ["one", "other"] if len(masks) == 2 else ["other"]
        if form == "ultralytics save_txt":
            (folder / f"{stem}.txt").write_text("".join(f"0 {shares(word)}\n" for word in words))
            continue
        if form == "ultralytics save_txt save_conf":
            (folder / f"{stem}.txt").write_text("".join(f"15 {shares(word)} 0.914\n" for word in words))
            continue
        records: dict[str, Any] = {
            "SAM's automatic masks": [automatic(mask) for mask in masks],
            "SA-1B": {
                "image": {"image_id": 139, "width": WIDTH, "height": HEIGHT, "file_name": name},
                "annotations": [{"id": 3, **automatic(mask)} for mask in masks],
            },
            "ultralytics to_json": [segments(word) for word in words],
            "ultralytics to_json normalised": [
                segments(
                    word,
                    segments={
                        "x": [value / WIDTH for value in polygon(word)[::2]],
                        "y": [value / HEIGHT for value in polygon(word)[1::2]],
                    },
                )
                for word in words
            ],
            "segment --everything": mask_file(
                [PredictedMask.of(mask, 0.5, 0.93) for mask in masks], image=name, width=WIDTH, height=HEIGHT
            ),
        }
        (folder / f"{stem}.json").write_text(json.dumps(records[form]))
    return folder


FORMS = {
    "detectron2": "results", "ultralytics predictions": "results", "ultralytics predictions of names": "results",
    "coco": "coco", "ultralytics save_txt": "txt", "ultralytics save_txt save_conf": "txt",
    "SAM's automatic masks": "automatic", "SA-1B": "sa1b", "ultralytics to_json": "segments",
    "ultralytics to_json normalised": "segments", "segment --everything": "coco",
}  # fmt: skip
WITH_SCORE = set(FORMS) - {"coco", "ultralytics save_txt"}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "train").mkdir(parents=True)
    for name, place in zip(BOTH, ("train", "."), strict=True):
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / place / name)
    Image.new("RGB", (9, 9)).save(folder / "other.png")
    return folder


def masks_of(record: dict[str, Any], uri: str) -> list[Any]:
    return list(Proposals(record, where="x").of(uri, None, height=HEIGHT, width=WIDTH, min_score=0.3))


@pytest.mark.parametrize("form", FORMS)
def test_each_form_gives_its_masks_to_the_images_that_it_speaks_of(form: str, tmp_path: Path, images: Path) -> None:
    found = gather([written(form, tmp_path / "detections")], images=images)
    assert found.forms == {FORMS[form]: 3}
    assert not found.unmatched
    assert [each.get("file_name") for each in found.record["images"]] == [
        "train/000000000139.jpg",
        "000000000285.jpg",
    ]
    for place, (name, masks) in zip(("train/", ""), BOTH.items(), strict=True):
        proposals = masks_of(found.record, f"in/{place}{name}")
        assert [rle.decode(each.rle).tolist() for each in proposals] == [mask.tolist() for mask in masks]
        assert all((each.score is not None and 0.8 < each.score < 1) == (form in WITH_SCORE) for each in proposals)
    assert masks_of(found.record, "in/other.png") == []


@pytest.mark.parametrize("form", [form for form in FORMS if "txt" not in form and "normalised" not in form])
def test_without_the_images_names_stay_and_mining_finds_them(form: str, tmp_path: Path) -> None:
    found = gather([written(form, tmp_path / "detections")], images=None)
    for name, masks in BOTH.items():
        assert len(masks_of(found.record, f"in/train/{name}")) == len(masks)


def test_numbers_are_names_by_the_dataset(tmp_path: Path, images: Path) -> None:
    results = tmp_path / "results.json"
    results.write_text(json.dumps([result(1, ONE), result(2, OTHER), result(3, OTHER)]))
    dataset = tmp_path / "instances.json"
    named = [{"id": number, "file_name": name} for number, name in enumerate(BOTH, start=1)]
    dataset.write_text(json.dumps({"images": named, "annotations": []}))
    found = gather([results], images=images, dataset=dataset)
    assert [each["file_name"] for each in found.record["images"]] == ["train/000000000139.jpg", "000000000285.jpg"]
    assert found.unmatched == {"3": 1}
    with pytest.raises(
        InputError, match=r"none of the 3 masks is for an image of .*photos: .* speak of '1' for instan"
    ):
        gather([results], images=images)
    with pytest.raises(InputError, match=r"--dataset .*results\.json: expected a COCO file"):
        gather([results], images=images, dataset=results)


def test_what_matches_no_image_is_counted_and_said(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written("ultralytics to_json", tmp_path / "detections")
    (folder / "elsewhere.json").write_text(json.dumps([segments("one"), segments("one")]))
    boxes = [segments("one", segments=None), {"name": "cat", "confidence": 0.5, "box": {}}]
    (folder / "other.json").write_text(json.dumps([*boxes, segments("one")]))
    output = tmp_path / "proposals.json"
    call = ["proposals", str(folder), "--images", str(images), "--output", str(output)]
    assert cli.main([*call, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "output": str(output), "forms": {"segments": 6}, "images": 3, "masks": 4, "unmatched_images": 1,
        "unmatched_masks": 2, "without_mask": 2,
    }  # fmt: skip
    assert err == (
        f"left out: 2 masks of 1 images that are not in {images}, such as elsewhere\n"
        "left out: 2 entries without a mask (boxes, crowds, empty ones)\n"
    )
    assert len(Proposals.read(output)) == 4
    assert cli.main(call) == 0
    assert capsys.readouterr().out == f"{output}: 4 masks on 3 images (segments)\n"


def test_two_forms_of_one_image_are_one_image(tmp_path: Path, images: Path) -> None:
    files = [written(form, tmp_path / form) for form in ("detectron2", "ultralytics to_json")]
    found = gather(files, images=images)
    assert len(found.record["images"]) == 2
    assert len(masks_of(found.record, "in/train/000000000139.jpg")) == 4


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", {"boxes": []}, "expected COCO's object, a list of results .* found an object with boxes"),
        ("a.json", [{"bbox": [1]}], r"expected COCO's object.* found a list of objects with bbox"),
        ("a.json", 3, "found int"),
        (
            "a.json",
            {"images": [{"id": [1]}], "annotations": [{"image_id": "x", "segmentation": [[1, 2, 3, 4, 5, 6]]}]},
            "none of the 1 masks is for an image",
        ),
        ("a.json", [segments("one", segments={"x": [1], "y": []})], "`segments` with x and y of one length"),
        ("a.json", [{"image_id": "other", "segmentation": [[1, 2]]}], "three points"),
        ("a.json", [{"image_id": "other", "segmentation": [[1, 2, 3, 4, 5, 6]], "score": "x"}], "finite number"),
    ],
)
def test_files_of_no_form_are_told(name: str, content: Any, message: str, tmp_path: Path, images: Path) -> None:
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        gather([tmp_path / name], images=images)


def test_bad_lines_and_missing_files_are_told(tmp_path: Path, images: Path) -> None:
    txt = tmp_path / "other.txt"
    for line, message in (
        ("0 a b", "line 1: expected numbers"),
        ("0 0.1 0.1 20 0.1 0.5 0.5", "line 1: expected shares of the image's sides"),
    ):
        txt.write_text(line)
        with pytest.raises(InputError, match=message):
            gather([txt], images=images)
    txt.write_text("0 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.2 0.2 0.9\n\n")
    assert gather([txt], images=images).without_mask == 2
    txt.write_text(f"0 {shares('one')}\n")
    with pytest.raises(InputError, match=r"'other': its masks are in shares .*--images says where"):
        gather([txt], images=None)
    with pytest.raises(InputError, match="found nothing"):
        gather([tmp_path / "gone"], images=images)
    with pytest.raises(InputError, match=r"expected files of masks .*found none in the folder"):
        gather([images], images=images)
    with pytest.raises(InputError, match=r"--images .*expected the folder"):
        gather([txt], images=tmp_path / "gone")
    (images / "other.jpg").write_bytes((images / "other.png").read_bytes())
    with pytest.raises(InputError, match=r"'other': 2 images of .* fit"):
        gather([txt], images=images)
