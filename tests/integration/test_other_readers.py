"""Shards and exports as other programs read them: webdataset, GNU tar, tarfile, pycocotools, SA-1B readers."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from pipeline.cli import main
from pipeline.dataset.export import sample_rows
from pipeline.dataset.open import open_dataset
from pipeline.format import rle
from pipeline.format.schema import Annotation, Sample, sample_from_json
from pipeline.sources.images import decode_rgb

# pycocotools is compiled against an older numpy protocol; its own business.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def shard_paths(run: Path) -> list[str]:
    return [str(path) for path in sorted((run / "shards").iterdir())]


def samples_of(run: Path) -> dict[str, Sample]:
    opened = open_dataset(run)
    return {row["key"]: opened.read_sample(row) for row in sample_rows(opened)}


def source_of(folder: Path, sample: Sample) -> bytes:
    return (folder / sample.source_uri.removeprefix("drawn/")).read_bytes()


WEBDATASET = """
import hashlib, json, sys
import webdataset
for sample in webdataset.WebDataset(sys.argv[1:], shardshuffle=False):
    hashed = {name: hashlib.sha256(data).hexdigest() for name, data in sample.items() if not name.startswith("__")}
    print(json.dumps([sample["__key__"], hashed, sample["json"].decode()]))
for sample in webdataset.WebDataset(sys.argv[1:], shardshuffle=False).decode("pil"):
    image = sample["jpg"] if "jpg" in sample else sample["png"]
    assert image.mode == "RGB" and sample["json"]["format"] == "grainmill/1", sample
"""
"""In a process of its own: the package leaves its files to the garbage collector, which is a warning here."""


def test_webdataset_reads_the_shards_as_they_are(drawn_run: Path) -> None:
    pytest.importorskip("webdataset", reason="webdataset is not installed")
    command = [sys.executable, "-c", WEBDATASET, *shard_paths(drawn_run)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    expected = samples_of(drawn_run)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [key for key, _, _ in found] == list(expected)
    for key, hashed, record in found:
        sample = expected[key]
        assert sample_from_json(record.encode(), where=key) == sample
        assert sample.file_name is not None
        assert hashed[sample.file_name.rsplit(".", 1)[1]] == sample.source_sha256
        assert len(hashed) == 2


@pytest.mark.skipif(shutil.which("tar") is None, reason="no GNU tar on this system")
def test_gnu_tar_extracts_them(drawn_run: Path, drawn_folder: Path, tmp_path: Path) -> None:
    for path in shard_paths(drawn_run):
        done = subprocess.run(["tar", "-xvf", path, "-C", tmp_path], check=True, capture_output=True, text=True)
        assert done.stderr == ""
    expected = samples_of(drawn_run)
    assert len(list(tmp_path.iterdir())) == 2 * len(expected)
    for key, sample in expected.items():
        assert (tmp_path / str(sample.file_name)).read_bytes() == source_of(drawn_folder, sample)
        assert json.loads((tmp_path / f"{key}.json").read_bytes())["key"] == key


def test_tarfile_and_pycocotools_read_every_mask(drawn_run: Path) -> None:
    masks = 0
    for path in shard_paths(drawn_run):
        with tarfile.open(path) as tar:
            for member in tar:
                assert member.isreg()
                if not member.name.endswith(".json"):
                    continue
                stream = tar.extractfile(member)
                assert stream is not None
                record = json.load(stream)
                for each in record["annotations"]:
                    mask = coco_mask.decode(each["segmentation"])
                    assert mask.shape == (record["image"]["height"], record["image"]["width"])
                    assert mask.sum() == each["area"] == coco_mask.area(each["segmentation"])
                    assert coco_mask.toBbox(each["segmentation"]).tolist() == each["bbox"]
                    masks += 1
    assert masks == 35


# ---------------------------------------------------------------------------------------------------------------------
# Exports


@pytest.fixture(scope="module")
def coco(drawn_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("coco") / "out"
    assert main(["export", str(drawn_run), "--to", "coco", "--output", str(target)]) == 0
    return target


def test_the_coco_export_loads_in_pycocotools(coco: Path, drawn_run: Path, drawn_folder: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO(str(coco / "annotations" / "instances.json"))
    expected = samples_of(drawn_run)
    images = api.loadImgs(api.getImgIds())
    assert {each["key"] for each in images} == set(expected)
    for image in images:
        sample = expected[image["key"]]
        data = (coco / "images" / image["file_name"]).read_bytes()
        assert data == source_of(drawn_folder, sample)
        with Image.open(io.BytesIO(data)) as opened:
            assert ImageOps.exif_transpose(opened).size == (image["width"], image["height"])
        annotations = api.loadAnns(api.getAnnIds(imgIds=[image["id"]]))
        assert len(annotations) == len(sample.annotations)
        by_id = {each["id"]: each for each in annotations}
        for each, mask in zip(annotations, sample.annotations, strict=True):
            decoded = api.annToMask(each)
            assert decoded.shape == (image["height"], image["width"])
            assert decoded.sum() == each["area"] == mask.area
            assert each["granularity"] == mask.granularity
            assert each["category_id"] in api.getCatIds()
            assert by_id[each["instance_id"]]["granularity"] == 1.0
            assert (each["parent_id"] is None) == mask.is_instance
    assert [each["name"] for each in api.dataset["licenses"]] == ["CC0-1.0"]


def faster_evaluation(truth: str, results: list[dict[str, Any]]) -> list[float]:
    """[AP, AR] of faster-coco-eval."""
    pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed")
    from faster_coco_eval import COCO as FasterCOCO
    from faster_coco_eval import COCOeval_faster

    loaded = FasterCOCO(truth)
    evaluation = COCOeval_faster(loaded, loaded.loadRes(results), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return [float(evaluation.stats[0]), float(evaluation.stats[8])]


def evaluation(truth: str, results: list[dict[str, Any]]) -> list[float]:
    """[AP, AR] of pycocotools."""
    from pycocotools.cocoeval import COCOeval

    loaded = COCO(truth)
    evaluation = COCOeval(loaded, loaded.loadRes(results), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return [float(evaluation.stats[0]), float(evaluation.stats[8])]


FORMS: tuple[tuple[str, ...], ...] = ((), ("--polygons",), ("--uncompressed",), ("--upright", "--polygons"))


def awkward(width: int, height: int) -> tuple[Annotation, ...]:
    """Masks with holes, in pieces, of one pixel, of all pixels, and with pixels that touch at corners only."""
    full = np.ones((height, width), dtype=bool)
    ring = np.zeros_like(full)
    ring[2:40, 3:50] = True
    ring[10:30, 8:20] = ring[10:30, 25:45] = False
    ring[15:20, 10:15] = True  # an island in the hole
    corners = np.zeros_like(full)
    corners[5:9:2, 60:64:2] = corners[6:10:2, 61:65:2] = True
    corners[-3:, -7:] = True
    dot = np.zeros_like(full)
    dot[-1, 0] = True
    noise = np.random.default_rng(width).random(full.shape) < 0.6
    made = []
    for number, mask in enumerate((full, ring, corners, dot, noise)):
        encoded = rle.encode(mask)
        made.append(
            Annotation(
                id=number, segmentation=encoded, area=int(mask.sum()),
                bbox=rle.bbox_xywh(rle.run_lengths_of(encoded), height),
                granularity=1.0 if number == 0 else 0.5, instance_id=0, parent_id=None if number == 0 else 0,
                level=None, origin="divide" if number == 0 else "conquer", score=None,
            )
        )  # fmt: skip
    return tuple(made)


@pytest.fixture(scope="module")
def awkward_run(write_drawn_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_drawn_run(tmp_path_factory.mktemp("awkward") / "run", annotate=awkward)


def test_every_export_evaluated_against_itself_is_perfect(awkward_run: Path, tmp_path: Path) -> None:
    """As ground truth and as results, by both evaluations; an id of 0 would count as no match."""
    run, truths = awkward_run, []
    for flags in FORMS:
        target = tmp_path / "-".join(["coco", *flags])
        assert main(["export", str(run), "--to", "coco", "--output", str(target), *flags]) == 0
        truths.append(str(target / "annotations" / "instances.json"))
    assert main(["export", str(run), "--to", "sa1b", "--output", str(tmp_path / "sa1b")]) == 0
    truths.append(str(tmp_path / "sa1b.json"))
    Path(truths[-1]).write_text(json.dumps(as_coco(tmp_path / "sa1b")))
    with contextlib.redirect_stdout(io.StringIO()):
        results = [  # compressed run lengths, which is what both take as results
            {**{name: each[name] for name in ("image_id", "category_id", "segmentation")}, "score": 0.5}
            for each in COCO(truths[0]).dataset["annotations"]
        ]
        for truth in truths:
            record = json.loads(Path(truth).read_bytes())
            assert (
                min(each["id"] for each in record["annotations"]) == min(each["id"] for each in record["images"]) == 1
            )
            assert evaluation(truth, copy.deepcopy(results)) == [1.0, 1.0], truth
            assert faster_evaluation(truth, copy.deepcopy(results)) == [1.0, 1.0], truth


def as_coco(folder: Path) -> dict[str, Any]:
    """An SA-1B folder's records as one COCO file, ids of masks counted on over the images."""
    images, annotations = [], []
    for path in sorted(folder.glob("sa_*.json")):
        record = json.loads(path.read_bytes())
        images.append({**record["image"], "id": record["image"]["image_id"]})
        for each in record["annotations"]:
            place = {"image_id": record["image"]["image_id"], "category_id": 1, "iscrowd": 0}
            annotations.append(
                {**each, **place, "id": len(annotations) + each["id"] - record["annotations"].index(each)}
            )
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}


def test_polygons_and_plain_runs_are_the_masks_to_the_pixel(
    awkward_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = samples_of(awkward_run)
    for flag in ("--polygons", "--uncompressed"):
        target = tmp_path / flag
        assert main(["export", str(awkward_run), "--to", "coco", "--output", str(target), flag]) == 0
        with contextlib.redirect_stdout(io.StringIO()):
            api = COCO(str(target / "annotations" / "instances.json"))
        for image in api.dataset["images"]:
            found = api.imgToAnns[image["id"]]
            for each, mask in zip(found, expected[image["key"]].annotations, strict=True):
                np.testing.assert_array_equal(api.annToMask(each).astype(bool), rle.decode(mask.segmentation))
                assert coco_mask.area(api.annToRLE(each)) == each["area"]
            if flag == "--polygons":
                assert [len(each["segmentation"]) for each in found[:4]] == [1, 2, 9, 1]
                assert found[0]["segmentation"] == [
                    [0, 0, image["width"], 0, image["width"], image["height"], 0, image["height"]]
                ]
    capsys.readouterr()
    for flags, said in (
        (("--to", "sa1b", "--polygons"), "goes with --to coco"),
        (("--to", "coco", "--polygons", "--uncompressed"), "give one of them"),
        (("--to", "coco", "--upright", "--no-images"), "does not go with --no-images"),
    ):
        assert main(["export", str(awkward_run), "--output", str(tmp_path / "none"), *flags]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_upright_images_need_no_reader_that_knows_exif(drawn_run: Path, tmp_path: Path) -> None:
    """Those that are turned hold the pixels that were mined; all others their own bytes."""
    for layout in ("coco", "sa1b"):
        for flags in ((), ("--upright",)):
            target = tmp_path / f"{layout}{len(flags)}"
            assert main(["export", str(drawn_run), "--to", layout, "--output", str(target), *flags]) == 0
    expected = samples_of(drawn_run)
    record = json.loads((tmp_path / "coco1" / "annotations" / "instances.json").read_bytes())
    assert "do not turn" in record["info"]["note"]
    sa1b = [json.loads(path.read_bytes())["image"] for path in sorted((tmp_path / "sa1b1").glob("*.json"))]
    turned = 0
    for image, folder in [(each, "coco1/images") for each in record["images"]] + [(each, "sa1b1") for each in sa1b]:
        data = (tmp_path / folder / image["file_name"]).read_bytes()
        with Image.open(io.BytesIO(data)) as opened:
            assert opened.size == (image["width"], image["height"])
            assert opened.getexif().get(0x0112, 1) == image["exif_orientation"] == 1
        sample = expected[image["key"]]
        if sample.exif_orientation != 1:
            turned += 1
            before = (tmp_path / "coco0" / "images" / str(sample.file_name)).read_bytes()
            assert image["file_name"].endswith(".png")
            np.testing.assert_array_equal(decode_rgb(data, max_pixels=10**6), decode_rgb(before, max_pixels=10**6))
        else:
            assert hashlib.sha256(data).hexdigest() == sample.source_sha256
    assert turned == 2


def test_upright_needs_images(write_drawn_run: Callable[..., Path], tmp_path: Path) -> None:
    run = write_drawn_run(tmp_path / "run", images=False)
    assert main(["export", str(run), "--to", "coco", "--output", str(tmp_path / "out"), "--upright"]) == 2
    assert not (tmp_path / "out").exists()


def sa1b_reader(folder: Path) -> dict[int, tuple[np.ndarray, list[dict[str, Any]]]]:
    """Reads a folder as programs for SA-1B do: `sa_N.json` beside its image, masks by pycocotools."""
    found = {}
    for path in sorted(folder.glob("sa_*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        image = record["image"]
        assert {"image_id", "width", "height", "file_name"} <= set(image)
        with Image.open(folder / image["file_name"]) as opened:
            pixels = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
        assert pixels.shape[:2] == (image["height"], image["width"])
        names = {
            "id", "segmentation", "bbox", "area", "predicted_iou", "stability_score", "crop_box", "point_coords",
        }  # fmt: skip
        for each in record["annotations"]:
            assert names <= set(each)
            mask = coco_mask.decode(each["segmentation"]).astype(bool)
            assert mask.sum() == each["area"]
            ((x, y),) = each["point_coords"]
            assert mask[y, x]
            left, top, width, height = each["bbox"]
            assert mask[top : top + height, left : left + width].sum() == each["area"]
        found[image["image_id"]] = (pixels, record["annotations"])
    return found


def test_the_sa1b_export_loads_in_a_reader_of_its_layout(drawn_run: Path, tmp_path: Path) -> None:
    assert main(["export", str(drawn_run), "--to", "sa1b", "--output", str(tmp_path / "out")]) == 0
    found = sa1b_reader(tmp_path / "out")
    expected = list(samples_of(drawn_run).values())
    assert list(found) == list(range(1, len(expected) + 1))
    for (_, masks), sample in zip(found.values(), expected, strict=True):
        assert [each["granularity"] for each in masks] == [each.granularity for each in sample.annotations]


def test_the_sa1b_export_is_an_input_again(drawn_run: Path, tmp_path: Path) -> None:
    from pipeline.sources.annotations import parse_sa1b
    from pipeline.sources.images import read_header
    from pipeline.sources.listing import plan_units
    from pipeline.sources.unit_reader import UnitReader
    from pipeline.sources.units import parse_inputs

    assert main(["export", str(drawn_run), "--to", "sa1b", "--output", str(tmp_path / "out")]) == 0
    specs = parse_inputs([f"again={tmp_path / 'out'}"])
    (unit,) = plan_units(specs, samples_per_shard=100, limit=None)
    assert len(unit.entries) == 7
    with UnitReader(unit, specs) as reader:
        for position in range(len(reader)):
            read = reader.read(position)
            header = read_header(read.image, max_pixels=10**6)
            assert read.annotation_json is not None
            masks = parse_sa1b(read.annotation_json, height=header.height, width=header.width, where="again")
            assert len(masks) == 5


def test_exports_never_write_over_anything(drawn_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("dear")
    assert main(["export", str(drawn_run), "--to", "coco", "--output", str(tmp_path / "out")]) == 2
    assert "found something there" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "letter.txt"]
