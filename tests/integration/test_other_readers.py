"""Shards and exports as other programs read them: webdataset, GNU tar, tarfile, pycocotools, SA-1B readers."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from pipeline.cli import main
from pipeline.committed import CommittedRun
from pipeline.export import sample_rows
from pipeline.schema import Sample, sample_from_json

# pycocotools is compiled against an older numpy protocol; its own business.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def shard_paths(run: Path) -> list[str]:
    return [str(path) for path in sorted((run / "shards").iterdir())]


def samples_of(run: Path) -> dict[str, Sample]:
    opened = CommittedRun.open(run)
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


def test_the_coco_export_can_be_evaluated_against_itself(coco: Path) -> None:
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(coco / "annotations" / "instances.json"))
        results = [
            {**{name: each[name] for name in ("image_id", "category_id", "segmentation")}, "score": 0.5}
            for each in truth.loadAnns(truth.getAnnIds())
        ]
        evaluation = COCOeval(truth, truth.loadRes(results), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)


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
    from pipeline.annotations import parse_sa1b
    from pipeline.images import read_header
    from pipeline.sources import UnitReader, parse_inputs, plan_units

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
