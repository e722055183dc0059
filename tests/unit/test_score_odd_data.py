"""`grainmill score` on data as people have it: names that meet, annotations of nothing, our own exports."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from model.evaluation.benchmarks.all import find_benchmark
from model.evaluation.benchmarks.mined import match_mined, sample_path
from model.evaluation.benchmarks.records import EvalImage, GroundTruth, Split
from pipeline import cli
from pipeline.errors import InputError

SIZES = {"a.jpg": (72, 60), "a.png": (80, 64), "x/a.jpg": (84, 66), "y/a.jpg": (90, 70)}
"""Photographs with one name without ending, and with one name in two folders: (width, height)."""


def picture(path: Path, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (size[0], 2 * size[1], 90)).save(path)


def square(number: int) -> list[list[float]]:
    return [[number, 0, number + 9, 0, number + 9, 9, number, 9]]


def annotation(number: int, image: Any, segmentation: Any = None, **more: Any) -> dict[str, Any]:
    found = square(number) if segmentation is None else segmentation
    return {"id": number, "image_id": image, "category_id": 1, "segmentation": found, **more}


def image(number: Any, name: str) -> dict[str, Any]:
    width, height = SIZES[name]
    return {"id": number, "file_name": name, "width": width, "height": height}


def write_coco(root: Path, images: list[Any], annotations: list[Any], name: str = "val.json") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


@pytest.fixture(scope="module")
def photographs_of_one_name(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one-name")
    for name, size in SIZES.items():
        picture(folder / name, size)
    return folder


@pytest.fixture(scope="module")
def mined(
    photographs_of_one_name: Path, write_drawn_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return write_drawn_run(tmp_path_factory.mktemp("mined") / "run", folder=photographs_of_one_name)


def score(benchmark: str, data: Path, output: Path, *more: object) -> tuple[dict[str, Any], dict[str, int]]:
    """What scores.json holds, and how many rows of objects.parquet each image has."""
    flags = ["--benchmark", benchmark, "--data", data, "--output", output, "--workers", 1, *more]
    assert cli.main(["score", *map(str, flags)]) == 0
    rows = pq.read_table(output / "objects.parquet").column("image").to_pylist()
    return json.loads((output / "scores.json").read_text()), {name: rows.count(name) for name in rows}


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert cli.main(["score", *map(str, arguments)]) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


# ---------------------------------------------------------------------------------------------------------------------
# Who is who


def test_images_of_one_name_have_their_own_objects(photographs_of_one_name: Path, mined: Path, tmp_path: Path) -> None:
    """Names without ending, names in folders, and two records of one file."""
    data = tmp_path / "data"
    shutil.copytree(photographs_of_one_name, data)
    annotations = [annotation(1, 1), annotation(2, 1), annotation(3, 2)]
    annotations += [annotation(number, 3) for number in (4, 5, 6)] + [annotation(7, 4)]
    images = [image(number, name) for number, name in enumerate(SIZES, start=1)]
    write_coco(data, [*images, image(9, "a.png")], [*annotations, *[annotation(n, 9) for n in (10, 11, 12, 13)]])
    record, objects = score("coco-json", data, tmp_path / "s", "--masks", mined)
    assert objects == {"a.jpg": 2, "x/a.jpg": 3, "y/a.jpg": 1, "a.png#2": 1, "a.png#9": 4}
    assert (record["dataset"]["images"], record["dataset"]["objects"]) == (5, 11)
    assert record["details"]["masks"]["images_by_bytes"] == 5


def test_a_folder_where_two_images_would_share_their_masks(
    mined: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.jpg", "a.png", "b.jpg", "._a.jpg", "more/c.jpg"):
        picture(tmp_path / "images" / name, SIZES.get(name, (50, 40)))
    (tmp_path / "images/notes.txt").write_text("none")
    (tmp_path / "masks/b").mkdir(parents=True)
    for name in ("a.png", "b/0.png", "b/0.bmp", "stray.png"):
        size = SIZES["a.png"] if name == "a.png" else (50, 40)
        Image.fromarray(np.full(size[::-1], 255, dtype=np.uint8)).save(tmp_path / "masks" / name)
    flags = ("--benchmark", "folder", "--data", tmp_path, "--masks", mined, "--output", tmp_path / "s")
    message = refused(capsys, *flags)
    assert "a.jpg and a.png: both would have the masks" in message
    assert "a.png.png" in message
    labels = np.zeros(SIZES["a.jpg"][::-1], dtype=np.uint8)
    labels[:9, :9], labels[20:, 20:] = 1, 2
    Image.fromarray(labels).save(tmp_path / "masks/a.jpg.png")
    record, objects = score("folder", tmp_path, tmp_path / "s", "--masks", mined)
    assert objects == {"a.jpg": 2, "a.png": 1, "b.jpg": 2}
    assert record["left_out"] == {
        "folders in images/": 1,
        "files in images/ that are no image": 1,
        "masks of no image": 1,
        "samples of --masks that are no image of the split": 2,
    }


@pytest.mark.parametrize(
    ("benchmark", "split", "files"),
    [
        ("bsds500", "val", ["images/val/1.jpg", "images/val/1.JPG", "groundTruth/val/1.mat"]),
        ("davis", "test", ["img/1.jpg", "img/1.png", "gt/1.png"]),
        ("grabcut", "test", ["data_GT/1.jpg", "data_GT/1.bmp", "boundary_GT/1.bmp"]),
        ("partimagenet", "val", ["images/val/1.JPEG", "images/val/1.png", "annotations/val/1.png"]),
        ("yolo-seg", "val", ["images/1.jpg", "images/1.png", "labels/1.txt"]),
        ("sa1b", "all", ["sa_1.jpg", "sa_1.png", "sa_1.json"]),
        ("entityseg", "val", ["images/b/1.jpg", "images/c/1.jpg", "entityseg_val_lr.json"]),
        ("davis2016", "val", [f"{d}/480p/dog/0.{e}" for d, e in (("JPEGImages", "jpg"), ("JPEGImages", "JPG"))]),
    ],
)
def test_a_layout_that_cannot_tell_two_files_apart_is_refused(
    benchmark: str, split: str, files: list[str], tmp_path: Path
) -> None:
    for name in files:
        path = tmp_path / name
        if path.suffix in (".mat", ".json", ".txt"):
            path.parent.mkdir(parents=True, exist_ok=True)
            record = {"images": [{**image(1, "a.jpg"), "file_name": "1.jpg"}], "annotations": [annotation(1, 1)]}
            path.write_text(json.dumps(record))
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8)).save(path)
    with pytest.raises(InputError, match=r"1\.\w+ and |two files of one name|lies at .* and at "):
        find_benchmark(benchmark).read(tmp_path, split)


def test_a_peer_by_stems_is_refused_where_two_images_have_one(
    photographs_of_one_name: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(photographs_of_one_name, data)
    write_coco(data, [image(1, "a.jpg"), image(2, "a.png")], [annotation(1, 1), annotation(2, 2)])
    (data / "ucm2/val").mkdir(parents=True)
    flags = ("--benchmark", "coco-json", "--data", data, "--output", tmp_path / "s", "--peer", "ucm")
    assert "a.jpg and a.png: two files of one name" in refused(capsys, *flags)


def test_hidden_files_of_macos_are_no_images(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / f"JPEGImages/480p/dog/{number:05d}.jpg", (8, 8))
        picture(tmp_path / f"Annotations/480p/dog/{number:05d}.png", (8, 8))
        (tmp_path / f"JPEGImages/480p/dog/._{number:05d}.jpg").write_bytes(b"\0\5\x16\7")
    (video,) = find_benchmark("davis2016").read(tmp_path, "val").videos
    assert [path.name for path in video.frames] == ["00000.jpg", "00001.jpg", "00002.jpg"]


def test_a_split_with_one_name_twice_is_no_split(tmp_path: Path) -> None:
    def one() -> EvalImage:
        return EvalImage(name="a", path=tmp_path / "a.jpg", load=lambda: GroundTruth(height=1, width=1, objects=()))

    with pytest.raises(InputError, match="a: stands 2 times in the split"):
        Split(images=(one(), one()))


def test_masks_are_found_by_bytes_or_by_whole_names(mined: Path, tmp_path: Path) -> None:
    """`x/a.jpg` with other bytes is the mined x/a.jpg; neither b.jpg nor a.webp is anything, `a.jpg` is a.jpg."""

    def found(*names: str) -> list[str | None]:
        images = []
        for name in names:
            picture(tmp_path / name, (30, 20))
            images.append(EvalImage(name=name, path=tmp_path / name, load=lambda: GroundTruth(1, 1, ())))  # type: ignore
        rows = match_mined(str(mined), images).rows
        loaded = [None if row is None else row.load() for row in rows]
        return [None if each is None else sample_path(each.source_uri, each.member) for each in loaded]

    assert found("x/a.jpg", "a.webp", "a.jpg", "z/a.png") == ["x/a.jpg", None, "a.jpg", "a.png"]
    with pytest.raises(InputError, match=r"neither by bytes nor by name with its ending \(a.webp, for example"):
        found("a.webp")
    with pytest.raises(InputError, match=r"the sample a.png could be .*b/a.png or .*c/a.png by their paths"):
        found("b/a.png", "c/a.png")
    with pytest.raises(InputError, match=r"2 samples could be q/x/a.jpg"):
        found("q/x/a.jpg")


# ---------------------------------------------------------------------------------------------------------------------
# What is seen and not scored is counted


def test_annotations_of_no_image(
    photographs_of_one_name: Path, mined: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(photographs_of_one_name, data)
    flags = ("--benchmark", "coco-json", "--data", data, "--masks", mined, "--output", tmp_path / "none")
    for ids, strays, told in (
        (["1"], [1], ("none of its 1 annotations", "image_id 1, the images' ids are '1'", "a text and a number")),
        ([1], [7, "x"], ("none of its 2 annotations", "image_id 7, 'x', the images' ids are 1")),
    ):
        write_coco(data, [image(key, "a.jpg") for key in ids], [annotation(1, key) for key in strays])
        message = refused(capsys, *flags)
        assert all(words in message for words in told), message
    write_coco(data, [image(1, "a.jpg")], [annotation(1, 1), annotation(2, 8), annotation(3, 8)])
    record, objects = score("coco-json", data, tmp_path / "some", "--masks", mined)
    assert objects == {"a.jpg": 1}
    assert record["left_out"]["annotations whose image_id is no image"] == 2
    out, err = capsys.readouterr()
    for text in (out, err):  # at the end, and at the start
        assert "left out: 2 annotations whose image_id is no image" in text
        assert "2 of 3 annotations are of no image: image_id 8, the images' ids are 1" in text


def test_what_cannot_be_drawn_is_counted_and_passed_over(
    photographs_of_one_name: Path, mined: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(photographs_of_one_name, data)
    odd: list[Any] = [[], None, [[1, 2, 3, 4]], [[1, 2], *square(30)], [[5, 5, 5, 5, 5, 5]]]
    annotations = [annotation(1, 1), *[{**annotation(n + 2, 1), "segmentation": each} for n, each in enumerate(odd)]]
    write_coco(data, [image(1, "a.jpg")], annotations)
    record, objects = score("coco-json", data, tmp_path / "s", "--masks", mined)
    assert objects == {"a.jpg": 2}
    expected = {
        "annotations without a segmentation": 2,
        "annotations whose polygons have fewer than three points": 1,
        "polygons of fewer than three points, beside others": 1,
        "annotations whose mask is empty": 1,
    }
    assert expected.items() <= record["left_out"].items()
    capsys.readouterr()
    write_coco(data, [image(1, "a.jpg")], annotations[1:4])
    flags = ("--benchmark", "coco-json", "--data", data, "--output", tmp_path / "none")
    message = refused(capsys, *flags, "--masks", mined)
    assert "no annotated object in the 1 images, nothing to score" in message
    assert "2 annotations without a segmentation" in message


ODD_ENTRIES = (
    ("images", 7, r"images\[0\]: expected an object with id"),
    ("images", {"file_name": "a.jpg"}, r"images\[0\]: expected an object with id.*found no id"),
    ("images", {"id": None, "file_name": "a.jpg"}, "found id None"),
    ("images", {"id": 1, "file_name": "a.jpg", "height": None, "width": 4}, "height and width in pixels, found None"),
    ("images", {"id": 1, "file_name": None, "height": 4, "width": 4}, "expected a text file_name"),
    ("images", {"id": 1, "height": 4, "width": 4}, "expected a text file_name"),
    ("annotations", None, r"annotations\[0\]: expected an object with image_id.*found None"),
    ("annotations", {"id": 1}, "found no image_id"),
    ("annotations", {"image_id": [1]}, r"found image_id \[1\]"),
    ("annotations", annotation(1, 1, 7), "annotation 1: expected polygons or run lengths of 60 x 72; found 7"),
    ("annotations", annotation(1, 1, [3, 4, 5, 6, 7, 8]), "found 3 in place of a polygon"),
    ("annotations", annotation(1, 1, [[1, 2, 3, 4, 5, "x"]]), "coordinates are finite numbers of pixels"),
    ("annotations", annotation(1, 1, [[1, 2, 3, 4, 5, float("nan")]]), "coordinates are finite numbers of pixels"),
    ("annotations", annotation(1, 1, [[1, 2, 3, 4, 5, 1e9]]), "coordinates are finite numbers of pixels"),
    ("annotations", annotation(1, 1, [[1, 2, 3, 4, 5, 6, 7]]), "x, y pairs of at least three points, found 7"),
    ("annotations", annotation(1, 1, {"size": None, "counts": "0"}), "found size None"),
    ("annotations", annotation(1, 1, {"size": [60, 72], "counts": None}), "found counts None"),
    ("annotations", annotation(1, 1, {"size": [60, 72], "counts": [None]}), "no whole numbers"),
    ("annotations", annotation(1, 1, {"counts": [1]}), "found {'counts'"),
    ("annotations", annotation(1, 1, area="large"), "expected an area in pixels, found 'large'"),
    ("annotations", annotation(1, 1, iscrowd="no"), "expected iscrowd 0 or 1, found 'no'"),
)


def test_odd_entries_are_told_in_words(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg", SIZES["a.jpg"])
    for place, entry, message in ODD_ENTRIES:
        images = [entry] if place == "images" else [image(1, "a.jpg")]
        write_coco(tmp_path, images, [entry] if place == "annotations" else [])
        with pytest.raises(InputError, match=message) as caught:
            find_benchmark("coco-json").read(tmp_path, "val").images[0].load()
        assert "NoneType" not in str(caught.value)
    write_coco(tmp_path, [image(1, "a.jpg"), image(1, "a.jpg")], [annotation(1, 1)])
    with pytest.raises(InputError, match=r"images\[1\]: image id 1 stands there twice"):
        find_benchmark("coco-json").read(tmp_path, "val")


def test_paco_counts_too(tmp_path: Path) -> None:
    picture(tmp_path / "val2017/1.jpg", SIZES["a.jpg"])
    kept = {**image(1, "a.jpg"), "file_name": "val2017/1.jpg"}
    content = {
        "categories": [{"id": 1, "name": "dog"}],
        "images": [kept, {**kept, "id": 2}],
        "annotations": [
            annotation(1, 1, obj_ann_id=1),
            annotation(2, 1, obj_ann_id=1),
            {**annotation(3, 1, obj_ann_id=1), "segmentation": None},
            {**annotation(4, 1, obj_ann_id=4), "segmentation": []},
            annotation(5, 1, obj_ann_id=4),
            annotation(6, 9, obj_ann_id=6),
        ],
    }
    path = tmp_path / "paco_lvis_v1_val.json"
    path.write_text(json.dumps(content))
    split = find_benchmark("paco").read(tmp_path, "val")
    truth = split.images[0].load()
    assert [each.id for each in truth.objects] == ["dog.1/dog.2", "dog.1"]
    assert split.left_out == {"annotations whose image_id is no image": 1, "images without annotations": 1}
    assert truth.left_out == {"annotations without a segmentation": 2, "parts whose object has no mask": 1}
    for wrong, message in (
        (annotation(1, 1, obj_ann_id=1, category_id=3), "category_id 3 is none of the file's 1 categories"),
        (annotation(1, 1, obj_ann_id=None), "expected annotations with id and obj_ann_id"),
    ):
        path.write_text(json.dumps({**content, "annotations": [wrong]}))
        with pytest.raises(InputError, match=message):
            find_benchmark("paco").read(tmp_path, "val")
    path.write_text(json.dumps({**content, "annotations": [annotation(1, 1, obj_ann_id=1)] * 2}))
    with pytest.raises(InputError, match="an annotation id stands there twice"):
        find_benchmark("paco").read(tmp_path, "val").images[0].load()


# ---------------------------------------------------------------------------------------------------------------------
# Our own exports


def test_an_export_scored_against_its_run_is_perfect(mined: Path, drawn_run: Path, tmp_path: Path) -> None:
    """Every mask of every image, JPEG and PNG and turned ones, is found, whichever layout our own reader takes."""
    for run in (mined, drawn_run):
        for layout, benchmark in (("coco", "coco-json"), ("sa1b", "sa1b"), (None, "shards")):
            data = run
            if layout is not None:
                data = tmp_path / run.parent.name / layout
                data.parent.mkdir(exist_ok=True)
                assert cli.main(["export", str(run), "--to", layout, "--output", str(data)]) == 0
            record, objects = score(benchmark, data, tmp_path / f"{run.parent.name}-{benchmark}", "--masks", run)
            assert record["metrics"]["AR1000"]["value"] == 1.0
            assert record["metrics"]["mean_best_iou"]["value"] == 1.0
            assert record["dataset"]["images"] == len(objects) == (4 if run == mined else 7)
            assert record["dataset"]["objects"] == 5 * len(objects)
            assert record["details"]["masks"]["images_by_bytes"] == len(objects)
            assert record["left_out"] == {}


def test_annotation_files_without_their_images(tmp_path: Path) -> None:
    (tmp_path / "sa_1.json").write_text("{}")
    with pytest.raises(InputError, match=r"and 1 sa_N\.json without their images"):
        find_benchmark("sa1b").read(tmp_path, "all")
    (tmp_path / "sa_2.json").write_text(json.dumps({"image": {"height": 4, "width": 4}, "annotations": [None]}))
    picture(tmp_path / "sa_2.png", (4, 4))
    split = find_benchmark("sa1b").read(tmp_path, "all")
    assert split.left_out == {"sa_N.json without their image": 1}
    with pytest.raises(InputError, match=r"a list of objects; found \[None\]"):
        split.images[0].load()


@pytest.mark.parametrize(
    ("file", "photograph"),
    [
        ("annotations/instances.json", "images/a.jpg"),
        ("annotations/instances_val.json", "val/a.jpg"),
        ("annotations/instances_default.json", "images/default/a.jpg"),
        ("val/_annotations.coco.json", "val/a.jpg"),
        ("labels.json", "data/a.jpg"),
        ("result.json", "images/a.jpg"),
    ],
)
def test_the_usual_places_of_a_coco_file(file: str, photograph: str, tmp_path: Path) -> None:
    picture(tmp_path / photograph, SIZES["a.jpg"])
    name = "default/a.jpg" if "default" in photograph else "a.jpg"
    path = write_coco(tmp_path, [{**image(1, "a.jpg"), "file_name": name}], [annotation(1, 1)], file)
    for data in (tmp_path, path):
        assert find_benchmark("coco-json").read(data, "val").images[0].path == tmp_path / photograph
    path.rename(tmp_path / "odd.json")
    with pytest.raises(InputError, match=r"found none; there is odd\.json, pass the file itself"):
        find_benchmark("coco-json").read(tmp_path, "val")
