"""What others' programs make of a release: the real packages, on the case that breaks guesses about types.

The release here begins with png images only (the sixth is a jpg), with masks whose level and score are null, and its
second image has an EXIF orientation. Readers that infer types from the first samples fail on it, or drop the jpg.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline.dataset.open import open_dataset
from pipeline.format import rle, schema
from pipeline.release.build import build_release
from pipeline.release.flags import ReleaseFlags
from pipeline.release.folder import open_output
from pipeline.release.options import release_options

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),  # webdataset leaves its shards open
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

NAMES = ["a1.png", "a2.png", "a3.png", "a4.png", "a5.png", "a6.jpg", "a7.webp", "a8.tif", "a9.bmp"]


def annotations(width: int, height: int) -> tuple[schema.Annotation, ...]:
    """The first three images have one whole without level or score; later ones have a part with both."""
    boxes = [(2, 2, 30, 20)] if width < 86 else [(2, 2, 30, 20), (4, 4, 10, 8)]
    made = []
    for number, (x, y, w, h) in enumerate(boxes):
        mask = np.zeros((height, width), dtype=bool)
        mask[y : y + h, x : x + w] = True
        made.append(
            schema.Annotation(
                id=number, segmentation=rle.encode(mask), bbox=(x, y, w, h), area=w * h,
                granularity=1.0 if number == 0 else 0.1, instance_id=0, parent_id=None if number == 0 else 0,
                level=None if number == 0 else 1, origin="divide" if number == 0 else "conquer",
                score=None if number == 0 else 0.5,
            )
        )  # fmt: skip
    return tuple(made)


@pytest.fixture(scope="module")
def release(write_drawn_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("others")
    (base / "images").mkdir()
    for number, name in enumerate(NAMES):
        width, height = 80 + 2 * number, 50 + number
        image = Image.new("RGB", (width, height), (20 * number, 200 - 20 * number, 90))
        ImageDraw.Draw(image).rectangle((2, 2, 31, 21), fill=(255, 255, 20 * number))
        exif = Image.Exif()
        if name == "a2.png":  # stored turned, upright it is as wide as the others
            exif[0x0112] = 6
            image = image.rotate(90, expand=True)
        image.save(base / "images" / name, exif=exif)
    run = write_drawn_run(base / "run", folder=base / "images", annotate=annotations, samples_per_shard=5)
    flags = ReleaseFlags(
        directory=str(run), output=str(base / "others"), name="team/others", version="1.0.0", license="CC-BY-4.0",
        date="2026-11-24",
    )  # fmt: skip
    build_release(open_dataset(run), open_output(flags.output), release_options(flags))
    return base / "others"


@pytest.fixture(scope="module")
def records(release: Path) -> list[dict[str, Any]]:
    """Every KEY.json, by the index."""
    run = open_dataset(release)
    rows = [row for unit in run.units() for row in run.samples(unit).to_pylist()]
    return [json.loads(schema.sample_to_json(run.read_sample(row))) for row in rows]


def python(script: str, folder: Path, cache: Path) -> str:
    """Runs a script as a reader would, with caches of the test's own; warnings that are not ours stay warnings."""
    environment = {**os.environ, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def snippets(card: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card.read_text(encoding="utf-8"), re.DOTALL)


def test_the_snippets_of_the_card_run_as_they_are_printed(release: Path, tmp_path: Path) -> None:
    found = snippets(release / "README.md")
    assert [
        text for text in found for tool in ("datasets", "webdataset", "duckdb", "pycocotools") if f"{tool} " in text
    ]
    assert len(found) == 5
    # one process, a fresh namespace for each, so that heavy packages load once
    script = "".join(f"print('== {number}')\nexec({text!r}, {{}})\n" for number, text in enumerate(found))
    printed = python(script, release, tmp_path).split("== ")[1:]
    assert "1.0 1" in printed[0]  # datasets: the first image has one mask, a whole
    assert printed[1].count(" masks\n") == 9
    assert "('divide', 9, 1.0)" in printed[3]


LOAD = """
import json, sys
from datasets import load_dataset
plain = load_dataset("{release}/shards", split="train")
streamed = list(load_dataset("{release}/shards", split="train", streaming=True))
assert len(plain) == len(streamed) == 9
rows = []
for whole, stream in zip(plain, streamed):
    images = {{name: whole[name].size for name in ("jpg", "png", "webp", "tif", "bmp") if whole[name] is not None}}
    assert whole["json"] == stream["json"] and whole["__key__"] == stream["__key__"] == whole["json"]["key"]
    rows.append([images, whole["json"]])
tables = {{}}
for name in ("samples", "masks"):
    whole = load_dataset("{release}", name, split="train")
    assert list(load_dataset("{release}", name, split="train", streaming=True)) == list(whole)
    tables[name] = list(whole)
assert list(load_dataset("{release}")["train"]) == tables["samples"]
print(json.dumps([rows, tables, [feature.dtype for feature in whole.features.values()]]))
"""


def test_datasets_loads_everything_whole(release: Path, records: list[dict[str, Any]], tmp_path: Path) -> None:
    rows, tables, dtypes = json.loads(python(LOAD.format(release=release), tmp_path, tmp_path / "cache"))
    assert [record for _, record in rows] == records
    for (images, record), name in zip(rows, NAMES, strict=True):
        size = [record["image"]["width"], record["image"]["height"]]  # upright, as `datasets` decodes images
        assert images == {name.rsplit(".", 1)[1]: size}
    assert rows[1][1]["image"]["exif_orientation"] == 6
    assert rows[0][1]["annotations"][0]["level"] is None
    assert [row["key"] for row in tables["samples"]] == [record["key"] for record in records]
    assert len(tables["masks"]) == sum(len(record["annotations"]) for record in records)
    assert dtypes[-4:] == ["int32", "int32", "string", "float64"]


def test_every_column_is_typed_in_the_header(release: Path) -> None:
    import pyarrow.parquet as pq
    from huggingface_hub import DatasetCard

    card = DatasetCard.load(release / "README.md")
    header = card.data.to_dict()
    assert (header["license"], header["task_categories"]) == ("cc-by-4.0", ["image-segmentation", "mask-generation"])
    assert header["size_categories"] == ["n<1K"]
    typed = {each["config_name"]: [field["name"] for field in each["features"]] for each in header["dataset_info"]}
    for config in header["configs"]:
        for split in config["data_files"]:
            assert typed[config["config_name"]] == pq.read_schema(release / split["path"]).names
    assert typed["webdataset"] == ["jpg", "png", "webp", "tif", "bmp", "json", "__key__", "__url__"]


def test_the_hubs_validator_takes_the_card(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`DatasetCard.validate` posts the card; here to a stand-in that parses it as the Hub's schema says."""
    import http.server
    import threading

    import yaml
    from huggingface_hub import DatasetCard, constants

    posted = []

    class Validator(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            header = yaml.safe_load(body["content"].split("---")[1])
            posted.append((self.path, body["repoType"], header))
            good = isinstance(header["license"], str) and all("config_name" in each for each in header["configs"])
            self.send_response(200 if good else 400)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Validator)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        DatasetCard.load(release / "README.md").validate()
    finally:
        server.shutdown()
        server.server_close()
    assert [(path, kind) for path, kind, _ in posted] == [("/api/validate-yaml", "dataset")]


def test_webdataset_reads_the_shards_in_order(release: Path, records: list[dict[str, Any]]) -> None:
    import webdataset

    shards = sorted(str(path) for path in (release / "shards").glob("*.tar"))
    found = list(webdataset.WebDataset(shards, shardshuffle=False).decode("pil"))
    assert [sample["json"] for sample in found] == records
    assert [next(e for e in ("jpg", "png", "webp", "tif", "bmp") if e in sample) for sample in found] == [
        name.rsplit(".", 1)[1] for name in NAMES
    ]


@pytest.mark.filterwarnings("ignore")  # rdflib and pandas warn about the ways in which mlcroissant calls them
def test_mlcroissant_validates_and_iterates(release: Path, records: list[dict[str, Any]]) -> None:
    import mlcroissant

    dataset = mlcroissant.Dataset(jsonld=release / "croissant.json")
    assert not dataset.metadata.ctx.issues.errors
    assert not dataset.metadata.ctx.issues.warnings
    samples = list(dataset.records("samples"))
    assert [row["samples/key"].decode() for row in samples] == [record["key"] for record in records]
    masks = list(dataset.records("masks"))
    drawn = [mask for record in records for mask in record["annotations"]]
    assert [row["masks/area_px"] for row in masks] == [mask["area"] for mask in drawn]
    assert [row["masks/granularity"] for row in masks] == [mask["granularity"] for mask in drawn]


def test_croissant_says_where_it_comes_from(release: Path) -> None:
    """PROV and RAI fields, and the sha256 of every shard and of the index."""
    described = json.loads((release / "croissant.json").read_bytes())
    manifest = json.loads((release / "manifest.json").read_bytes())
    assert "http://mlcommons.org/croissant/1.1" in described["conformsTo"]
    activity = described["prov:wasGeneratedBy"][0]
    assert activity["prov:wasAssociatedWith"]["version"] == manifest["runs"][0]["code_version"]
    assert manifest["config_hash"] in activity["description"]
    assert [source["name"] for source in described["prov:wasDerivedFrom"]] == ["drawn"]
    assert sum(name.startswith("rai:") for name in described) >= 10
    listed = {each["contentUrl"]: each["sha256"] for each in described["distribution"]}
    assert {shard["name"]: shard["sha256"] for shard in manifest["shards"]}.items() <= listed.items()
    assert described["datePublished"] == manifest["date"]


def test_pandas_and_duckdb_agree_on_the_index(release: Path, records: list[dict[str, Any]]) -> None:
    import duckdb
    import pandas

    manifest = json.loads((release / "manifest.json").read_bytes())
    samples, masks = (str(release / manifest["index"][table]["name"]) for table in ("samples", "masks"))
    frame = pandas.read_parquet(masks)
    drawn = [mask for record in records for mask in record["annotations"]]
    assert frame["area_px"].tolist() == [mask["area"] for mask in drawn]
    assert frame["level"].isna().sum() == sum(mask["level"] is None for mask in drawn)
    joined = duckdb.sql(
        f"SELECT s.key, count(*) FROM '{samples}' s JOIN '{masks}' m USING (key) GROUP BY s.key ORDER BY s.key"
    ).fetchall()
    assert joined == sorted((record["key"], len(record["annotations"])) for record in records)


def sa1b_images(folder: Path) -> Iterator[tuple[Image.Image, list[dict[str, Any]]]]:
    """A reader as those of SA-1B are: `NAME.EXT` beside `NAME.json` with `image` and `annotations`."""
    import tarfile

    for shard in sorted((folder / "shards").glob("*.tar")):
        with tarfile.open(shard) as tar:
            held = {member.name: tar.extractfile(member) for member in tar.getmembers()}
            for name, stream in held.items():
                if not name.endswith(".json"):
                    continue
                assert stream is not None
                record = json.load(stream)
                image = held[record["image"]["file_name"]]
                assert image is not None
                yield Image.open(io.BytesIO(image.read())), record["annotations"]


def test_pycocotools_and_an_sa1b_reader_take_the_json(release: Path) -> None:
    from PIL import ImageOps
    from pycocotools import mask as coco

    count = 0
    for stored, masks in sa1b_images(release):
        image = ImageOps.exif_transpose(stored)
        for mask in masks:
            pixels = coco.decode(mask["segmentation"])
            assert pixels.shape == (image.height, image.width)
            assert pixels.sum() == mask["area"] == coco.area(mask["segmentation"])
            assert coco.toBbox(mask["segmentation"]).tolist() == mask["bbox"]
            count += 1
    assert count == 15
