"""A benchmark whose files do not belong together: an image without mask, a mask without image, a mask of another size.

Each is one message of `grainmill score` that names the file; nothing is passed over without a word.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from pipeline import cli

SIZE = (80, 60)
"""Width and height of an image."""
OTHER = (70, 60)


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE, (200, 120, 40)).save(path)


def labels(size: tuple[int, int], value: int = 255, ground: int = 0) -> NDArray[np.uint8]:
    found = np.full(size[::-1], ground, dtype=np.uint8)
    found[10:40, 10:50] = value
    return found


def mask(path: Path, size: tuple[int, int], value: int = 255, ground: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels(size, value, ground)).save(path)


def matlab(path: Path, content: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, content)


def bsds(root: Path, stem: str, size: tuple[int, int]) -> tuple[Path, Path]:
    people = np.empty((1, 2), dtype=object)
    people[0, 0] = people[0, 1] = {"Segmentation": labels(size, 2, 1).astype(np.uint16)}
    image(root / f"images/val/{stem}.jpg")
    matlab(root / f"groundTruth/val/{stem}.mat", {"groundTruth": people})
    return root / f"images/val/{stem}.jpg", root / f"groundTruth/val/{stem}.mat"


def of_masks(images: str, masks: str) -> Callable[[Path, str, tuple[int, int]], tuple[Path, Path]]:
    def write(root: Path, stem: str, size: tuple[int, int]) -> tuple[Path, Path]:
        paths = root / images.format(stem), root / masks.format(stem)
        image(paths[0])
        mask(paths[1], size, **({"value": 3, "ground": 40} if "annotations" in masks else {}))
        return paths

    return write


def sbd(root: Path, stem: str, size: tuple[int, int]) -> tuple[Path, Path]:
    image(root / f"img/{stem}.jpg")
    matlab(root / f"inst/{stem}.mat", {"GTinst": {"Segmentation": labels(size, 1)}})
    with (root / "val.txt").open("a") as file:
        file.write(f"{stem}\n")
    return root / f"img/{stem}.jpg", root / f"inst/{stem}.mat"


def pascalpart(root: Path, stem: str, size: tuple[int, int]) -> tuple[Path, Path]:
    image(root / f"JPEGImages/{stem}.jpg")
    part = np.zeros((1, 1), dtype=[("part_name", object), ("mask", object)])
    part[0, 0] = ("head", labels(size, 1))
    thing = np.zeros((1, 1), dtype=[("class", object), ("mask", object), ("parts", object)])
    thing[0, 0] = ("cat", labels(size, 1), part)
    matlab(root / f"Annotations_Part/{stem}.mat", {"anno": {"objects": thing}})
    (root / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
    with (root / "ImageSets/Main/val.txt").open("a") as file:
        file.write(f"{stem}\n")
    return root / f"JPEGImages/{stem}.jpg", root / f"Annotations_Part/{stem}.mat"


def sa1b(root: Path, stem: str, size: tuple[int, int]) -> tuple[Path, Path]:
    path = root / f"sa_{stem}.jpg"
    image(path)
    square = [[10, 10, 50, 10, 50, 40, 10, 40]]
    record = {"image": {"width": size[0], "height": size[1]}, "annotations": [{"id": 1, "segmentation": square}]}
    path.with_suffix(".json").write_text(json.dumps(record))
    return path, path.with_suffix(".json")


def ade20k(root: Path, stem: str, size: tuple[int, int]) -> tuple[Path, Path]:
    path = root / f"validation/city/ADE_{stem}.jpg"
    image(path)
    mask(path.with_suffix("") / "instance_0.png", size)
    thing = {"id": 0, "instance_mask": f"{path.stem}/instance_0.png", "parts": {"part_level": 0, "ispartof": []}}
    record = {"annotation": {"imsize": [size[1], size[0], 3], "object": [thing]}}
    path.with_suffix(".json").write_text(json.dumps(record))
    return path, path.with_suffix(".json")


def davis2016(root: Path, stem: str, size: tuple[int, int]) -> tuple[Path, Path]:
    return of_masks("JPEGImages/480p/camel/{}.jpg", "Annotations/480p/camel/{}.png")(root, stem, size)


WRITERS: dict[str, Callable[[Path, str, tuple[int, int]], tuple[Path, Path]]] = {
    "bsds500": bsds,
    "bsds-g": bsds,
    "grabcut": of_masks("data_GT/{}.jpg", "boundary_GT/{}.png"),
    "berkeley": of_masks("images/{}.jpg", "masks/{}.png"),
    "davis": of_masks("img/{}.jpg", "gt/{}.png"),
    "partimagenet": of_masks("images/val/{}.JPEG", "annotations/val/{}.png"),
    "folder": of_masks("images/{}.jpg", "masks/{}.png"),
    "sbd": sbd,
    "pascalpart": pascalpart,
    "sa1b": sa1b,
    "ade20k": ade20k,
    "davis2016": davis2016,
}


PASSED_OVER = {
    ("bsds500", "no image"), ("bsds-g", "no image"), ("davis", "no image"), ("folder", "no image"),
    ("sa1b", "no image"), ("ade20k", "no image"), ("partimagenet", "no mask"), ("pascalpart", "no mask"),
}  # fmt: skip
"""What is said and not scored, since the rest is whole; all else is refused."""


@pytest.mark.parametrize("fault", ["no mask", "no image", "size"])
@pytest.mark.parametrize("name", WRITERS)
def test_files_that_do_not_belong_together(
    name: str, fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    WRITERS[name](root, "1", SIZE)
    photograph, annotation = WRITERS[name](root, "2", OTHER if fault == "size" else SIZE)
    if name == "davis2016":
        WRITERS[name](root, "3", SIZE)
        WRITERS[name](root, "4", SIZE)
    if fault != "size":
        (annotation if fault == "no mask" else photograph).unlink()
    code, said = scored(name, root, tmp_path, capsys)
    assert code == (0 if (name, fault) in PASSED_OVER else 2)
    named = (str(photograph.with_suffix("")), str(annotation.with_suffix("")))
    assert any(each in said for each in named)


def scored(name: str, root: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and what was said of a score with few clicks."""
    model = name_of_video_model(folder) if name == "davis2016" else "tree"
    flags = ["--benchmark", name, "--data", str(root), "--output", str(folder / "out"), "--workers", "1"]
    flags += ["--checkpoint", model, "--objects-per-image", "1", "--granularity", "fixed:0.5", "--device", "cpu"]
    code = cli.main(["score", *flags])
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return code, said


@pytest.mark.parametrize("fault", ["no image", "size"])
def test_coco_annotations_of_other_images(fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, annotations = [], []
    for number in (1, 2):
        image(tmp_path / f"data/images/{number}.jpg")
        width, height = OTHER if (fault, number) == ("size", 2) else SIZE
        images.append({"id": number, "file_name": f"{number}.jpg", "width": width, "height": height})
        square = [[10, 10, 50, 10, 50, 40, 10, 40]]
        annotations.append({"id": number, "image_id": number, "category_id": 1, "segmentation": square, "iscrowd": 0})
    if fault == "no image":
        (tmp_path / "data/images/2.jpg").unlink()
    file = tmp_path / "data/annotations.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "x"}]}))
    code, said = scored("coco-json", file, tmp_path, capsys)
    assert code == 2
    assert "2.jpg: " in said


def test_polygons_without_an_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image(tmp_path / "data/images/1.jpg")
    (tmp_path / "data/labels").mkdir()
    for number in (1, 2):
        (tmp_path / f"data/labels/{number}.txt").write_text("7 0.2 0.2 0.6 0.2 0.6 0.6 0.2 0.6\n")
    code, said = scored("yolo-seg", tmp_path / "data", tmp_path, capsys)
    assert code == 0
    assert f"{tmp_path / 'data/labels/2.txt'}: without an image, not scored" in said


def name_of_video_model(folder: Path) -> str:
    """Weights that can follow an object."""
    from model.network.checkpoint import write_checkpoint
    from model.network.load import checkpoint_record, new_model, trained_state

    fresh = new_model("micro", "full", 64, init="scratch", seed=1)
    path = folder / "fresh.safetensors"
    tensors = {f"model.{name}": value for name, value in trained_state(fresh).items()}
    write_checkpoint(path, checkpoint_record(fresh, init="scratch"), tensors)
    return str(path)
