"""Readers of the benchmarks with clicks, on small files of the official layouts, and DAVIS on real frames."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from model.evaluation.benchmarks import berkeley, davis, grabcut, paco, partimagenet, pascal_part, sbd
from model.evaluation.benchmarks.all import BENCHMARKS
from model.evaluation.benchmarks.records import GroundTruth
from pipeline.errors import InputError
from pipeline.format import rle

HEIGHT, WIDTH = 40, 60
NAMES = ("grabcut", "berkeley", "sbd", "davis", "davis2016", "pascalpart", "partimagenet", "paco")


def photograph(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT), (90, 120, 30)).save(path, format="JPEG")
    return path


def write_map(path: Path, labels: NDArray[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels.astype(np.uint8)).save(path)
    return path


def box(y: int, x: int, height: int, width: int) -> NDArray[np.bool_]:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y : y + height, x : x + width] = True
    return mask


def labels_of(truth: GroundTruth, subset: str) -> dict[str, float | None]:
    return {truth.objects[index].id: truth.objects[index].granularity for index in truth.subsets[subset]}


@pytest.mark.parametrize("name", NAMES)
def test_listed_with_the_protocols_threshold(name: str) -> None:
    entry = BENCHMARKS[name]
    assert entry.target_iou == (0.85 if name in ("pascalpart", "partimagenet", "paco") else 0.90)
    assert entry.label_rule == ("part" if entry.target_iou == 0.85 else "whole")
    assert entry.licence
    assert entry.source


@pytest.mark.parametrize("name", NAMES)
def test_another_layout_names_what_is_missing(name: str, tmp_path: Path) -> None:
    entry = BENCHMARKS[name]
    with pytest.raises(InputError, match=str(tmp_path)):
        entry.read(tmp_path, entry.splits[0])
    with pytest.raises(InputError, match="nowhere"):
        entry.read(tmp_path / "nowhere", entry.splits[0])


def test_grabcut(tmp_path: Path) -> None:
    photograph(tmp_path / "GrabCut/data_GT/21077.jpg")
    labels = np.where(box(5, 5, 20, 30), 255, 0)
    labels[5, 5:35] = 128
    write_map(tmp_path / "GrabCut/boundary_GT/21077.bmp", labels)
    (image,) = grabcut.read_grabcut(tmp_path, "test").images
    truth = image.load()
    (one,) = truth.objects
    assert one.area_px == 19 * 30
    assert one.granularity == 1.0
    assert one.ignore is not None
    assert rle.decode(one.ignore).sum() == 30
    photograph(tmp_path / "GrabCut/data_GT/24077.jpg")
    with pytest.raises(InputError, match=r"24077\.png: missing"):
        grabcut.read_grabcut(tmp_path, "test")
    (tmp_path / "GrabCut/data_GT/21077.jpg").unlink()
    with pytest.raises(InputError, match=r"21077\.jpg: missing"):
        grabcut.read_grabcut(tmp_path, "test")
    write_map(tmp_path / "empty.png", box(0, 0, 2, 2) * 100)
    with pytest.raises(InputError, match="expected an object"):
        grabcut.load_map(tmp_path / "empty.png")


def test_berkeley_has_photographs_with_several_objects(tmp_path: Path) -> None:
    for name in ("12003", "148026"):
        photograph(tmp_path / f"images/{name}.jpg")
    for name, shape in (("12003", box(2, 2, 9, 9)), ("148026-1", box(3, 3, 5, 5)), ("148026-2", box(20, 20, 6, 6))):
        write_map(tmp_path / f"masks/{name}.png", shape * 255)
    images = berkeley.read_berkeley(tmp_path, "test").images
    assert [(each.name, each.path.name) for each in images] == [
        ("12003.png", "12003.jpg"),
        ("148026-1.png", "148026.jpg"),
        ("148026-2.png", "148026.jpg"),
    ]
    assert [each.load().objects[0].area_px for each in images] == [81, 25, 36]


def test_sbd(tmp_path: Path) -> None:
    root = tmp_path / "benchmark_RELEASE/dataset"
    photograph(root / "img/2008_000003.jpg")
    labels = box(2, 2, 10, 10).astype(np.uint8) + 2 * box(20, 20, 8, 30).astype(np.uint8)
    (root / "inst").mkdir()
    savemat(root / "inst/2008_000003.mat", {"GTinst": {"Segmentation": labels, "Categories": np.array([[1], [2]])}})
    (root / "val.txt").write_text("2008_000003\n")
    (image,) = sbd.read_sbd(tmp_path, "val").images
    truth = image.load()
    assert [(each.id, each.area_px, each.granularity) for each in truth.objects] == [("1", 100, 1.0), ("2", 240, 1.0)]
    (root / "val.txt").write_text("2008_000003\n2008_000009\n")
    with pytest.raises(InputError, match=r"2008_000009\.jpg"):
        sbd.read_sbd(tmp_path, "val")
    savemat(root / "inst/2008_000003.mat", {"GTcls": np.zeros(2)})
    with pytest.raises(InputError, match="GTinst"):
        image.load()


def test_davis_frames_are_one_object(tmp_path: Path) -> None:
    photograph(tmp_path / "img/bear_00015.jpg")
    colours = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    colours[box(1, 1, 5, 5), 0] = 255
    colours[box(20, 20, 4, 4), 2] = 128
    write_map(tmp_path / "gt/bear_00015.png", colours)
    (image,) = davis.read_davis(tmp_path, "test").images
    assert image.load().objects[0].area_px == 25 + 16


def test_davis2016_by_its_lists_and_without(tmp_path: Path) -> None:
    for name in ("blackswan", "bear", "camel"):
        for frame in range(3):
            photograph(tmp_path / f"JPEGImages/480p/{name}/{frame:05d}.jpg")
            write_map(tmp_path / f"Annotations/480p/{name}/{frame:05d}.png", box(4, frame, 9, 9) * 255)
    without = davis.read_davis2016(tmp_path, "val")
    assert [video.name for video in without.videos] == ["blackswan", "camel"]  # bear is of train
    assert "2 of the 20" in without.notes[0]
    (tmp_path / "ImageSets/480p").mkdir(parents=True)
    lines = [f"/JPEGImages/480p/camel/{n:05d}.jpg /Annotations/480p/camel/{n:05d}.png" for n in range(3)]
    (tmp_path / "ImageSets/480p/val.txt").write_text("\n".join(lines))
    listed = davis.read_davis2016(tmp_path, "val")
    assert [video.name for video in listed.videos] == ["camel"]
    assert listed.notes == ()
    assert [path.name for path in listed.videos[0].frames] == ["00000.jpg", "00001.jpg", "00002.jpg"]
    (tmp_path / "Annotations/480p/camel/00001.png").unlink()
    with pytest.raises(InputError, match=r"camel/00001\.png"):
        davis.read_davis2016(tmp_path, "val")


def test_davis2016_on_real_frames(shared_data: Path) -> None:
    found = davis.read_davis2016(shared_data / "davis2016-4seq", "val")
    assert [video.name for video in found.videos] == ["blackswan", "bmx-trees", "breakdance", "camel"]
    assert all(len(video.frames) == len(video.masks) >= 7 for video in found.videos)
    first = davis.load_frame(found.videos[0].masks[0])
    assert (first.height, first.width) == (480, 854)
    assert 0.01 < first.objects[0].area_px / (480 * 854) < 0.5


OBJECT = box(4, 4, 30, 40)
HEAD, LEG = box(4, 4, 10, 10), box(20, 20, 6, 6)


def eq3(area: float, smallest: float, whole: float) -> float:
    return 0.1 + 0.9 * (area**0.5 - smallest**0.5) / (whole**0.5 - smallest**0.5)


def test_pascal_part(tmp_path: Path) -> None:
    photograph(tmp_path / "VOCdevkit/VOC2010/JPEGImages/2008_000008.jpg")
    listed = tmp_path / "VOCdevkit/VOC2010/ImageSets/Main"
    listed.mkdir(parents=True)
    (listed / "val.txt").write_text("2008_000008\n2008_000999\n")
    parts = np.empty((1, 2), dtype=object)
    for index, (name, mask) in enumerate((("head", HEAD), ("lfleg", LEG))):
        parts[0, index] = {"part_name": name, "mask": mask.astype(np.uint8)}
    objects = np.empty((1, 2), dtype=object)
    objects[0, 0] = {"class": "horse", "class_ind": 13, "mask": OBJECT.astype(np.uint8), "parts": parts}
    objects[0, 1] = {"class": "person", "class_ind": 15, "mask": LEG.astype(np.uint8), "parts": np.zeros((0, 0))}

    def as_struct(cells: Any) -> Any:
        names = list(cells.ravel()[0])
        made = np.zeros(cells.shape, dtype=[(name, object) for name in names])
        for place, cell in np.ndenumerate(cells):
            made[place] = tuple(cell[name] for name in names)
        return made

    objects[0, 0]["parts"] = as_struct(parts)
    (tmp_path / "Annotations_Part").mkdir()
    path = tmp_path / "Annotations_Part/2008_000008.mat"
    savemat(path, {"anno": {"imname": "2008_000008", "objects": as_struct(objects)}})
    split = pascal_part.read_pascal_part(tmp_path, "val")
    assert "1 of the 2" in split.notes[0]
    (image,) = split.images
    truth = image.load()
    assert labels_of(truth, "parts") == {
        "horse.0/head": pytest.approx(eq3(100, 36, 1200)),
        "horse.0/lfleg": pytest.approx(0.1),
    }
    assert labels_of(truth, "objects") == {"horse.0": 1.0, "person.1": 1.0}
    assert truth.scored == truth.subsets["parts"]
    assert [(pair.part, pair.whole) for pair in truth.pairs] == [(0, 2), (1, 2)]
    (listed / "part_val.txt").write_text("2008_000999\n")  # GraCo's list goes first
    with pytest.raises(InputError, match=r"2008_000999\.mat: missing"):
        pascal_part.read_pascal_part(tmp_path, "val")
    savemat(path, {"anno": np.zeros(3)})
    with pytest.raises(InputError, match="expected `anno"):
        pascal_part.load_parts(path)


def test_partimagenet(tmp_path: Path) -> None:
    photograph(tmp_path / "images/val/n01440764_10029.JPEG")
    labels = np.full((HEIGHT, WIDTH), 40)
    labels[OBJECT], labels[HEAD], labels[LEG] = 7, 3, 5
    write_map(tmp_path / "annotations/val/n01440764_10029.png", labels)
    (image,) = partimagenet.read_partimagenet(tmp_path, "val").images
    assert image.path.name == "n01440764_10029.JPEG"
    truth = image.load()
    rest = 1200 - 100 - 36
    assert labels_of(truth, "parts") == {
        "object/03": pytest.approx(eq3(100, 36, 1200)),
        "object/05": pytest.approx(0.1),
        "object/07": pytest.approx(eq3(rest, 36, 1200)),
    }
    assert len(truth.pairs) == 2  # the rest is 0.89 of the object: a version of it
    write_map(tmp_path / "annotations/val/n01440764_11.png", labels)
    with pytest.raises(InputError, match="n01440764_11"):
        partimagenet.read_partimagenet(tmp_path, "val")


def test_paco(tmp_path: Path) -> None:
    photograph(tmp_path / "val2017/000000000139.jpg")

    def polygon(y: int, x: int, height: int, width: int) -> list[list[int]]:
        return [[x, y, x + width, y, x + width, y + height, x, y + height]]

    annotations = [
        {"id": 1, "obj_ann_id": 1, "image_id": 139, "category_id": 44, "segmentation": polygon(4, 4, 30, 40)},
        {"id": 2, "obj_ann_id": 1, "image_id": 139, "category_id": 99, "segmentation": rle.encode(HEAD)},
        {"id": 3, "obj_ann_id": 1, "image_id": 139, "category_id": 99, "segmentation": polygon(20, 20, 6, 6)},
        {"id": 4, "obj_ann_id": 4, "image_id": 139, "category_id": 44, "segmentation": polygon(0, 50, 8, 8)},
    ]
    content = {
        "images": [{"id": 139, "file_name": "val2017/000000000139.jpg", "height": HEIGHT, "width": WIDTH}],
        "categories": [{"id": 44, "name": "bottle"}, {"id": 99, "name": "bottle:cap"}],
        "annotations": annotations,
    }
    path = tmp_path / "annotations/paco_lvis_v1_val.json"
    path.parent.mkdir()
    path.write_text(json.dumps(content))
    (image,) = paco.read_paco(tmp_path, "val").images
    truth = image.load()
    assert labels_of(truth, "parts") == {
        "bottle.1/bottle:cap.2": pytest.approx(eq3(100, 36, 1200)),
        "bottle.1/bottle:cap.3": pytest.approx(0.1),
    }
    assert labels_of(truth, "objects") == {"bottle.1": 1.0, "bottle.4": 1.0}
    assert next(iter(truth.subsets)) == "all"  # whole images are scored on objects and parts
    assert len(truth.subsets["all"]) == 4
    annotations[2]["obj_ann_id"] = 7
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="object 7"):
        paco.read_paco(tmp_path, "val").images[0].load()
    del annotations[2]["obj_ann_id"]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="obj_ann_id"):
        paco.read_paco(tmp_path, "val")
