"""Readers of whole-image benchmarks on small files of the official layout, and on real data where it is there."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from model.evaluation.benchmarks.all import BENCHMARKS, find_benchmark, list_text
from model.evaluation.benchmarks.files import read_map
from pipeline.errors import InputError
from pipeline.format import rle
from pipeline.format.granularity import equation_3

HEIGHT, WIDTH = 40, 60


def box(x: int, y: int, w: int, h: int) -> NDArray[np.bool_]:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y : y + h, x : x + w] = True
    return mask


def polygon(x: int, y: int, w: int, h: int) -> list[list[float]]:
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def photograph(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT), (90, 120, 30)).save(path)


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def annotation(number: int, image: int, segmentation: Any, **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": 1, "segmentation": segmentation, "iscrowd": 0, **more}


def uncompressed(mask: NDArray[np.bool_]) -> dict[str, Any]:
    return {"size": [HEIGHT, WIDTH], "counts": rle.run_lengths_of(rle.encode(mask)).tolist()}


def coco_record(names: list[str]) -> dict[str, Any]:
    return {
        "images": [{"id": 7 + n, "height": HEIGHT, "width": WIDTH, "file_name": name} for n, name in enumerate(names)],
        "annotations": [
            annotation(1, 7, polygon(0, 0, 30, 20), area=600.5),
            annotation(2, 7, uncompressed(box(0, 0, 10, 10)), area=100),
            annotation(3, 7, uncompressed(box(20, 20, 30, 10)), area=300, iscrowd=1),
            annotation(4, 8, dict(rle.encode(box(5, 5, 5, 5))), area=25),
        ],
    }


def test_coco(tmp_path: Path) -> None:
    write_json(tmp_path / "annotations/instances_val2017.json", coco_record(["000000000002.jpg", "000000000001.jpg"]))
    for name in ("000000000001.jpg", "000000000002.jpg"):
        photograph(tmp_path / "val2017" / name)
    split = find_benchmark("coco").read(tmp_path, "val2017")
    assert [image.name for image in split.images] == ["000000000001.jpg", "000000000002.jpg"]
    truth = pickle.loads(pickle.dumps(split.images[1])).load()  # noqa: S301
    assert [each.crowd for each in truth.objects] == [False, False, True]
    assert truth.objects[0].area_px == 600.5
    assert [each.granularity for each in truth.objects] == [1.0, 1.0, None]
    assert truth.scored == (0, 1)
    assert np.array_equal(rle.decode(truth.objects[0].mask), box(0, 0, 30, 20))
    assert np.array_equal(rle.decode(truth.objects[2].mask), box(20, 20, 30, 10))
    (tmp_path / "val2017/000000000001.jpg").unlink()
    with pytest.raises(InputError, match=r"000000000001\.jpg: missing"):
        find_benchmark("coco").read(tmp_path, "val2017")
    with pytest.raises(InputError, match=r"instances_train2017\.json"):
        find_benchmark("coco").read(tmp_path, "train2017")


def test_lvis(tmp_path: Path) -> None:
    record = coco_record(["", ""])
    for each, folder in zip(record["images"], ("train2017", "val2017"), strict=True):
        del each["file_name"]
        each["coco_url"] = f"http://images.cocodataset.org/{folder}/{each['id']:012d}.jpg"
    write_json(tmp_path / "lvis_v1_val.json", record)
    photograph(tmp_path / "train2017/000000000007.jpg")
    photograph(tmp_path / "val2017/000000000008.jpg")
    split = find_benchmark("lvis").read(tmp_path, "val")
    assert [image.path.parent.name for image in split.images] == ["train2017", "val2017"]
    truth = split.images[0].load()
    assert [each.granularity for each in truth.objects] == [1.0, pytest.approx(0.1), None]  # the 10 px box is a part
    assert len(find_benchmark("lvis").read(tmp_path, "minival").images) == 1
    (tmp_path / "train2017/000000000007.jpg").unlink()
    assert len(find_benchmark("lvis").read(tmp_path, "minival").images) == 1
    with pytest.raises(InputError, match=r"train2017/000000000007\.jpg: missing"):
        find_benchmark("lvis").read(tmp_path, "val")
    with pytest.raises(InputError, match=r"lvis_v1_train\.json"):
        find_benchmark("lvis").read(tmp_path, "train")


@pytest.mark.parametrize("name", ["entityseg_val_lr.json", "annotations/entityseg_insseg_val.json"])
def test_entityseg(tmp_path: Path, name: str) -> None:
    write_json(tmp_path / name, coco_record(["a.jpg", "entity_02_11598/b.jpg"]))
    photograph(tmp_path / "images/entity_01_11580/images_merge/a.jpg")
    photograph(tmp_path / "images/entity_02_11598/b.jpg")
    split = find_benchmark("entityseg").read(tmp_path, "val")
    assert [len(image.load().objects) for image in split.images] == [3, 1]
    with pytest.raises(InputError, match="entityseg_train_lr"):
        find_benchmark("entityseg").read(tmp_path, "train")


def test_any_coco_json(tmp_path: Path) -> None:
    file = write_json(tmp_path / "mine.json", coco_record(["a.jpg", "b.jpg"]))
    for name in "ab":
        photograph(tmp_path / f"images/{name}.jpg")
    entry = find_benchmark("coco-json")
    assert len(entry.read(file, "val").images) == 2
    with pytest.raises(InputError, match=r"val\.json"):
        entry.read(tmp_path, "val")
    file.rename(tmp_path / "val.json")
    assert len(entry.read(tmp_path, "val").images) == 2
    for broken, message in (
        ("{", "damaged"),
        ("[]", "lists `images` and `annotations`"),
        ('{"images": [], "annotations": []}', "expected images"),
        ('{"images": [{"id": 1}], "annotations": []}', "file_name"),
        ('{"images": [{"id": 1, "file_name": "../a.jpg", "height": 4, "width": 4}], "annotations": []}', "inside"),
    ):
        (tmp_path / "val.json").write_text(broken)
        with pytest.raises(InputError, match=message):
            entry.read(tmp_path, "val")


def test_ade20k(tmp_path: Path) -> None:
    folder = tmp_path / "ADE20K_2021_17_01/images/ADE/validation/urban/street"
    photograph(folder / "ADE_val_00000001.jpg")
    masks = {0: box(0, 0, 30, 30), 1: box(0, 0, 10, 30), 2: box(2, 2, 5, 5), 3: box(40, 0, 10, 10), 4: box(0, 0, 0, 0)}
    (folder / "ADE_val_00000001").mkdir()
    objects = []
    for number, mask in masks.items():
        pixels = np.where(mask, 255, 0).astype(np.uint8)
        pixels[39, 59] = 128  # hidden behind something: not counted
        name = f"ADE_val_00000001/instance_{number:03d}_ADE_val_00000001.png"
        Image.fromarray(pixels).save(folder / name)
        above = {1: 0, 2: 1}.get(number, [])
        level = {1: 1, 2: 2}.get(number, 0)
        parts = {"hasparts": [], "ispartof": above, "part_level": level}
        objects.append({"id": number, "name": "thing", "instance_mask": name, "parts": parts})
    record = {"annotation": {"imsize": [HEIGHT, WIDTH, 3], "object": objects}}
    write_json(folder / "ADE_val_00000001.json", record)
    truth = find_benchmark("ade20k").read(tmp_path, "validation").images[0].load()
    assert truth.subsets == {"objects": (0, 3), "parts": (1, 2), "all": (0, 1, 2, 3)}
    expected = [1.0, equation_3(300, 25, 900), 0.1, 1.0]
    assert [each.granularity for each in truth.objects] == pytest.approx(expected)
    assert [(pair.part, pair.whole) for pair in truth.pairs] == [(1, 0), (2, 0)]
    with pytest.raises(InputError, match="training"):
        find_benchmark("ade20k").read(tmp_path, "training")
    (folder / "ADE_val_00000001/instance_002_ADE_val_00000001.png").unlink()
    with pytest.raises(InputError, match="instance_002"):
        find_benchmark("ade20k").read(tmp_path, "validation").images[0].load()
    (folder / "ADE_val_00000001.json").unlink()
    with pytest.raises(InputError, match=r"ADE_val_00000001\.json"):
        find_benchmark("ade20k").read(tmp_path, "validation")


def test_sa1b(tmp_path: Path) -> None:
    photograph(tmp_path / "sa_000020/sa_5.jpg")
    record = {
        "image": {"image_id": 5, "height": HEIGHT, "width": WIDTH, "file_name": "sa_5.jpg"},
        "annotations": [
            {"id": 50, "segmentation": rle.encode(box(0, 0, 30, 30)), "area": 900},
            {"id": 51, "segmentation": rle.encode(box(0, 0, 10, 10)), "area": 100},
        ],
    }
    file = write_json(tmp_path / "sa_000020/sa_5.json", record)
    for split in ("all", "sa_000020"):
        truth = find_benchmark("sa1b").read(tmp_path, split).images[0].load()
        assert [each.granularity for each in truth.objects] == pytest.approx([1.0, 0.1])
    file.write_text('{"annotations": 3}')
    with pytest.raises(InputError, match="SA-1B"):
        find_benchmark("sa1b").read(tmp_path, "all").images[0].load()
    file.unlink()
    with pytest.raises(InputError, match=r"sa_5\.json"):
        find_benchmark("sa1b").read(tmp_path, "all")


def test_a_folder_of_images_and_masks(tmp_path: Path) -> None:
    photograph(tmp_path / "images/map.jpg")
    photograph(tmp_path / "images/single.jpg")
    labels = box(0, 0, 30, 30).astype(np.uint8) * 3
    labels[30:, 40:] = 200
    (tmp_path / "masks/single").mkdir(parents=True)
    Image.fromarray(labels).save(tmp_path / "masks/map.png")
    for name, mask in (("whole", box(0, 0, 30, 30)), ("part", box(0, 0, 10, 30))):
        Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / f"masks/single/{name}.png")
    images = find_benchmark("folder").read(tmp_path, "val").images
    assert [(each.id, each.area_px) for each in images[0].load().objects] == [("3", 900), ("200", 200)]
    assert [(each.id, each.granularity) for each in images[1].load().objects] == [
        ("part.png", pytest.approx(0.1)),
        ("whole.png", 1.0),
    ]
    Image.fromarray(labels[:20]).save(tmp_path / "masks/map.png")
    with pytest.raises(InputError, match="40 x 60"):
        images[0].load()
    (tmp_path / "masks/map.png").unlink()
    with pytest.raises(InputError, match=r"map\.png"):
        find_benchmark("folder").read(tmp_path, "val")


def test_polygons_in_text_files(tmp_path: Path) -> None:
    photograph(tmp_path / "images/a.jpg")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.txt").write_text("45 0 0 0.5 0 0.5 0.5 0 0.5\n")
    truth = find_benchmark("yolo-seg").read(tmp_path, "val").images[0].load()
    assert np.array_equal(rle.decode(truth.objects[0].mask), box(0, 0, 30, 20))
    assert [each.id for each in truth.objects] == ["1"]
    (tmp_path / "labels/a.txt").write_text("45 0 zero\n")
    with pytest.raises(InputError, match="line 1"):
        find_benchmark("yolo-seg").read(tmp_path, "val").images[0].load()


def test_real_photographs_with_polygons(shared_data: Path) -> None:
    split = find_benchmark("yolo-seg").read(shared_data / "coco64-seg", "val")
    assert len(split.images) == 64
    assert sum(len(image.load().objects) for image in split.images[:8]) > 20


def test_real_scenes_with_parts(shared_data: Path) -> None:
    split = find_benchmark("ade20k").read(shared_data / "ade20k-3img", "training")
    truths = [image.load() for image in split.images]
    assert [len(truth.objects) for truth in truths] == [70, 37, 32]
    assert [len(truth.subsets["parts"]) for truth in truths] == [19, 3, 8]
    for truth in truths:
        for pair in truth.pairs:
            assert truth.objects[pair.part].area_px < truth.objects[pair.whole].area_px


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_an_absent_folder_is_one_error_that_names_it(name: str, tmp_path: Path) -> None:
    entry = BENCHMARKS[name]
    with pytest.raises(InputError, match="nowhere"):
        entry.read(tmp_path / "nowhere", entry.splits[0])


def test_the_list_tells_source_licence_and_counts() -> None:
    text = list_text()
    for entry in BENCHMARKS.values():
        assert f"{entry.name}: {entry.title}" in text
        assert entry.source
        assert entry.licence in text
        assert entry.objects in text
    with pytest.raises(InputError, match="coco"):
        find_benchmark("koko")


def test_a_damaged_label_image_is_an_error_and_no_labels(tmp_path: Path) -> None:
    path = tmp_path / "labels.png"
    labels = np.random.default_rng(0).integers(0, 5, size=(HEIGHT, WIDTH), dtype=np.uint8)
    Image.fromarray(labels).save(path)
    assert np.array_equal(read_map(path), labels)
    data = bytearray(path.read_bytes())
    for place in range(60, len(data) - 12, 40):  # of the pixels, and of their checksum
        path.write_bytes(bytes([*data[:place], data[place] ^ 1, *data[place + 1 :]]))
        with pytest.raises(InputError, match=r"labels\.png: expected a label image"):
            read_map(path)
