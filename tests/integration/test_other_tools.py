"""What we write, as the libraries of annotators' tools read it: exports, files of `segment`, an annotated folder.

pycocotools always. CVAT's library and Label Studio's converter want other versions of pandas, pyarrow and Pillow than
ours, so they live in an environment of their own, whose Python `GRAINMILL_TOOLS_PYTHON` names:

    python -m venv tools && tools/bin/pip install datumaro label-studio-converter
    GRAINMILL_TOOLS_PYTHON=tools/bin/python python -m pytest tests/integration/test_other_tools.py

FiftyOne (with pycocotools) likewise, by `GRAINMILL_FIFTYONE_PYTHON`; its importer needs no database. It
refuses our `instance_id`, a name of its own, so it is told which fields to take.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from model.desk.records import AcceptedMask, Transaction
from model.desk.store import Store
from model.predict.coco_json import PredictedMask, json_bytes, mask_file
from pipeline.cli import main
from pipeline.format import rle
from pipeline.format.polygons import polygons_of

# pycocotools is compiled against an older numpy protocol; its own business.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

Mask = NDArray[np.bool_]
HEIGHT, WIDTH = 60, 80
TOOLS = os.environ.get("GRAINMILL_TOOLS_PYTHON")
FIFTYONE = os.environ.get("GRAINMILL_FIFTYONE_PYTHON")
needs_tools = pytest.mark.skipif(TOOLS is None, reason="GRAINMILL_TOOLS_PYTHON names no Python with the tools")


def box(top: int, left: int, height: int, width: int) -> Mask:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[top : top + height, left : left + width] = True
    return mask


MASKS: tuple[Mask, ...] = (
    box(4, 4, 22, 30),
    box(4, 44, 24, 30) & ~box(10, 50, 8, 10) & ~box(10, 64, 4, 4),  # two holes
    box(34, 6, 20, 20) | box(38, 34, 10, 16),  # two pieces
    box(36, 58, 12, 16) | box(48, 74, 10, 5) | box(55, 58, 4, 4),  # two that meet at a corner, and a third
)
AREAS = [int(mask.sum()) for mask in MASKS]


def accept(folder: Path, file_name: str) -> None:
    """What `grainmill annotate` leaves in a folder of what a person accepted on one photograph."""
    store = Store(folder, lists=False)
    for number, mask in enumerate(MASKS, start=1):
        record = AcceptedMask(
            id=number, category=("cat", "dog")[number % 2], segmentation=rle.encode(mask), granularity=0.5,
            score=0.1 * number, origin="prompt", predictor="tree",
        )  # fmt: skip
        store.commit(
            Transaction(
                request=str(number), person="", time="", image=file_name, width=WIDTH, height=HEIGHT, masks=(record,)
            )
        )
    store.close()


def as_polygons(file: Path) -> None:
    """The same file as a tool would give it back that knows polygons."""
    record = json.loads(file.read_text())
    for each in record["annotations"]:
        each["segmentation"] = polygons_of(rle.decode(each["segmentation"]))
    file.write_text(json.dumps(record))


def photograph(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rgb = np.full((HEIGHT, WIDTH, 3), 90, dtype=np.uint8)
    for number, mask in enumerate(MASKS, start=1):
        rgb[mask] = (50 * number, 255 - 50 * number, 30 * number)
    Image.fromarray(rgb).save(path)
    return path


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photographs in it and what was accepted of them."""
    folder = tmp_path_factory.mktemp("annotated")
    photograph(folder / "pets" / "one.png")
    accept(folder, "pets/one.png")
    return folder


@pytest.fixture(scope="module")
def mined(annotated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same masks as instances of a run."""
    output = tmp_path_factory.mktemp("mined") / "out"
    arguments = ("--divide", "proposals", "--refine", "none", "--executor", "inline", "--output", str(output))
    assert main(["mine", "--input", f"a={annotated}", *arguments]) == 0
    return output


@pytest.fixture(scope="module")
def files(mined: Path, annotated: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """COCO files of every kind that we write, each in `annotations/` with its photograph in `images/` beside it."""
    root = tmp_path_factory.mktemp("files")
    found: dict[str, Path] = {}
    for form in ("rle", "polygons", "uncompressed"):
        flags = () if form == "rle" else (f"--{form}",)
        assert main(["export", str(mined), "--to", "coco", "--output", str(root / form), *flags]) == 0
        found[f"export {form}"] = root / form / "annotations" / "instances.json"
    several = [PredictedMask.of(mask, 0.3, 0.9) for mask in MASKS]
    segmented = mask_file(several, image="one.png", width=WIDTH, height=HEIGHT, checkpoint="x")
    for name in ("segment", "annotate"):
        found[name] = root / name / "annotations" / "instances.json"
        found[name].parent.mkdir(parents=True)
        (root / name / "images").mkdir()
        shutil.copy(annotated / "pets" / "one.png", root / name / "images" / "one.png")
    found["segment"].write_bytes(json_bytes(segmented))
    accept(root / "desk", "one.png")
    shutil.copy(root / "desk" / "annotations.json", found["annotate"])
    return found


KINDS = ("export rle", "export polygons", "export uncompressed", "segment", "annotate")


def ours(path: Path) -> dict[int, Mask]:
    """Annotation -> mask, of those of `MASKS`: a run has parts and a remainder beside its instances."""
    coco = COCO(str(path))
    decoded = {number: coco.annToMask(each).astype(bool) for number, each in coco.anns.items()}
    return {number: mask for number, mask in decoded.items() if any(np.array_equal(mask, each) for each in MASKS)}


@pytest.mark.parametrize("kind", KINDS)
def test_pycocotools_reads_the_masks_to_the_pixel(files: dict[str, Path], kind: str) -> None:
    coco = COCO(str(files[kind]))
    found = ours(files[kind])
    assert sorted(int(mask.sum()) for mask in found.values()) == sorted(AREAS)
    for number, mask in found.items():
        entry = coco.anns[number]
        assert coco_mask.area(coco.annToRLE(entry)) == entry["area"] == mask.sum()
        assert 0.1 <= entry["granularity"] <= 1.0
        assert isinstance(entry["bbox"], list)
        assert entry["iscrowd"] == 0
    [image] = coco.imgs.values()
    assert (files[kind].parents[1] / "images" / image["file_name"]).is_file()
    assert {entry["category_id"] for entry in coco.anns.values()} <= set(coco.cats)


DATUMARO = """
import json, sys
from datumaro import Dataset
from datumaro.components.annotation import AnnotationType
found = {}
for item in Dataset.import_from(sys.argv[1], "coco_instances"):
    height, width = item.media.data.shape[:2]
    for each in item.annotations:
        if each.type in (AnnotationType.mask, AnnotationType.polygon):
            entry = found.setdefault(each.id, {"area": 0.0, "pieces": 0, "size": [height, width]})
            entry["area"] += float(each.get_area())
            entry["pieces"] += 1
print(json.dumps(found))
"""


def in_tools(script: str, *arguments: str | Path, python: str | None = TOOLS) -> Any:
    assert python is not None
    done = subprocess.run(
        [python, "-W", "ignore", "-c", script, *map(str, arguments)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@needs_tools
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_cvats_library_reads_the_same_areas(files: dict[str, Path], kind: str) -> None:
    found = in_tools(DATUMARO, files[kind])
    for number, mask in ours(files[kind]).items():
        entry = found[str(number)]
        assert entry["size"] == [HEIGHT, WIDTH]
        assert entry["area"] == pytest.approx(mask.sum()), kind
        pieces = len(polygons_of(mask)) if kind == "export polygons" else 1
        assert entry["pieces"] == pieces


LABEL_STUDIO = """
import json, os, sys, tempfile
from label_studio_converter.imports.coco import convert_coco_to_ls
target = os.path.join(tempfile.mkdtemp(), "tasks.json")
convert_coco_to_ls(sys.argv[1], target)
print(json.dumps(json.load(open(target))))
"""


@needs_tools
@pytest.mark.slow
def test_label_studios_converter_takes_the_first_polygon(files: dict[str, Path]) -> None:
    """It knows polygons alone, and one for each mask: holes are there by their slits, further pieces are not."""
    [task] = in_tools(LABEL_STUDIO, files["export polygons"])
    shapes = [each["value"]["points"] for each in task["annotations"][0]["result"] if each["type"] == "polygonlabels"]
    annotations = COCO(str(files["export polygons"])).anns
    assert len(shapes) == len(annotations)
    for points, (number, entry) in zip(shapes, annotations.items(), strict=True):
        first = entry["segmentation"][0]
        expected = coco_mask.area(coco_mask.frPyObjects([first], HEIGHT, WIDTH))[0]
        assert outline_area(points) * HEIGHT * WIDTH / 100**2 == pytest.approx(expected), number
        if len(entry["segmentation"]) == 1:
            assert expected == entry["area"]


def outline_area(points: list[list[float]]) -> float:
    x, y = np.array(points).T
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


FIFTYONE_COCO = """
import json, os, sys
os.environ["FIFTYONE_DO_NOT_TRACK"] = "true"
from fiftyone.utils.coco import COCODetectionDatasetImporter
importer = COCODetectionDatasetImporter(
    data_path=sys.argv[2], labels_path=sys.argv[1], label_types=["segmentations"], extra_attrs=["granularity"]
)
found = []
with importer:
    for path, metadata, labels in importer:
        labels = labels["segmentations"] if isinstance(labels, dict) else labels
        for each in labels.detections:
            left, top = each.bounding_box[0] * metadata.width, each.bounding_box[1] * metadata.height
            found.append([
                os.path.basename(path), metadata.height, metadata.width, each.label, each["granularity"], round(left),
                round(top), each.mask.astype(int).tolist(),
            ])
print(json.dumps(found))
"""


@pytest.mark.skipif(FIFTYONE is None, reason="GRAINMILL_FIFTYONE_PYTHON names no Python with FiftyOne")
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_fiftyones_importer_reads_the_masks_to_the_pixel(files: dict[str, Path], kind: str) -> None:
    coco, images = COCO(str(files[kind])), files[kind].parents[1] / "images"
    found = in_tools(FIFTYONE_COCO, files[kind], images, python=FIFTYONE)
    assert len(found) == len(coco.anns)
    for (name, height, width, label, granularity, left, top, cut), entry in zip(found, coco.anns.values(), strict=True):
        assert (name, height, width) == (coco.imgs[entry["image_id"]]["file_name"], HEIGHT, WIDTH)
        assert (label, granularity) == (coco.cats[entry["category_id"]]["name"], entry["granularity"])
        mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
        mask[top : top + len(cut), left : left + len(cut[0])] = cut
        assert np.array_equal(mask, coco.annToMask(entry).astype(bool))


@pytest.mark.parametrize("form", ["rle", "polygons"])
def test_an_annotated_folder_is_ground_truth(
    annotated: Path, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`score` counts its masks, `mine` begins with them: both find annotations.json and the photographs by it."""
    folder = tmp_path / "folder"
    shutil.copytree(annotated, folder)
    if form == "polygons":
        as_polygons(folder / "annotations.json")
    output = tmp_path / "out"
    arguments = ("--divide", "proposals", "--refine", "none", "--executor", "inline", "--output", str(output))
    assert main(["mine", "--input", f"a={folder}", *arguments]) == 0
    capsys.readouterr()
    arguments = ("--benchmark", "coco-json", "--data", str(folder), "--masks", str(output), "--workers", "1", "--json")
    assert main(["score", *arguments, "--output", str(tmp_path / "scores")]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["dataset"]["objects"] == len(MASKS)
    assert record["metrics"]["AR1000"]["value"] == 1.0  # each of them is among the mined masks, to the pixel
    assert record["left_out"] == {}


def test_photographs_may_lie_beside_an_annotated_folder(
    annotated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `annotate` leaves it: photographs in their own folder, the masks in another."""
    photos, folder = tmp_path / "photos", tmp_path / "annotated"
    shutil.copytree(annotated / "pets", photos / "pets")
    folder.mkdir()
    shutil.copy(annotated / "annotations.json", folder)
    output = tmp_path / "out"
    arguments = ("--divide", "proposals", "--proposals", str(folder), "--executor", "inline", "--output", str(output))
    assert main(["mine", "--input", f"a={photos}", *arguments]) == 0
    score = ("--benchmark", "coco-json", "--data", str(folder), "--masks", str(output), "--output", str(tmp_path / "s"))
    assert main(["score", *score]) == 2
    assert "annotated/pets/one.png: missing" in capsys.readouterr().err
    (folder / "images").symlink_to(photos)
    assert main(["score", *score, "--workers", "1"]) == 0
