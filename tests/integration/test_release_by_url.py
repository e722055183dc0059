"""A release is mined from, trained from and scored against where it was pushed: S3, the Hub, any of its versions."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.data.shards import ShardIndex
from model.evaluation.benchmarks.all import find_benchmark
from pipeline.cli import main
from pipeline.dataset.open import open_dataset
from pipeline.errors import InputError
from pipeline.format.schema import sha256_of
from pipeline.release.push import push_release
from pipeline.sources.changes import check_unchanged
from pipeline.sources.listing import plan_units
from pipeline.sources.unit_reader import UnitReader
from pipeline.sources.units import parse_inputs
from pipeline.storage.base import StorageError
from pipeline.storage.local import LocalStorage
from pipeline.storage.object_store import ObjectStorage
from pipeline.storage.open import open_storage

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the Hub's client, of httpx

SCORED = ("--benchmark", "shards", "--workers", "1", "--json")
LEARNED = ("--size", "micro", "--init", "scratch", "--image-size", "64", "--steps", "2", "--device", "cpu")


@pytest.fixture(scope="module")
def grown(drawn_release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`drawn_release` and a second version, which lacks one sample: a shard of the first has moved."""
    folder = tmp_path_factory.mktemp("grown")
    shutil.copytree(drawn_release, folder / "rel")
    (folder / "out.txt").write_text(ShardIndex.open(drawn_release).sample_keys()[0], encoding="utf-8")
    command = ["release", "--output", str(folder / "rel"), "--name", "drawn", "--version", "2.0.0", "--append"]
    assert main([*command, "--license", "CC-BY-4.0", "--exclude", str(folder / "out.txt")]) == 0
    return folder / "rel"


def images_of(location: str | Path) -> list[str]:
    """sha256 of every image that mining would read there."""
    specs = parse_inputs([f"again={location}"])
    units = list(plan_units(specs, samples_per_shard=4, limit=None))
    assert check_unchanged(specs, units) == []
    found = []
    for unit in units:
        assert all(entry.path.startswith("shards/") for entry in unit.entries)
        with UnitReader(unit, specs) as reader:
            found += [sha256_of(reader.read(number).image) for number in range(len(reader))]
    return sorted(found)


def released_images(location: str | Path) -> list[str]:
    run = open_dataset(location)
    return sorted(row["source_sha256"] for unit in run.units() for row in run.samples(unit).to_pylist())


def said(capsys: pytest.CaptureFixture[str], *command: str | Path) -> dict[str, Any]:
    """What a command that succeeds prints with --json."""
    capsys.readouterr()
    assert main([str(each) for each in command]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# What a release is as an input


def test_a_release_as_an_input_is_its_shards(grown: Path, drawn_run: Path) -> None:
    """Not the card's figures, the examples, the gallery's thumbnails nor the tables; for each version its own."""
    new, old = grown, grown / "versions" / "1.0.0"
    assert any(grown.glob("examples/*.jpg"))
    assert len(images_of(new)) == 6
    assert images_of(new) == released_images(new)
    assert images_of(old) == images_of(drawn_run) == released_images(old)
    assert len(images_of(old)) == 7


def test_a_plan_of_a_version_outlives_the_next_one(drawn_release: Path, grown: Path, tmp_path: Path) -> None:
    shutil.copytree(drawn_release, tmp_path / "rel")
    specs = parse_inputs([f"old={tmp_path / 'rel' / 'versions' / '1.0.0'}"])
    units = list(plan_units(specs, samples_per_shard=4, limit=None))
    moved = {str(path.relative_to(grown / "versions" / "1.0.0")) for path in grown.glob("versions/1.0.0/shards/*.tar")}
    assert moved
    for name in moved:
        (tmp_path / "rel" / "versions" / "1.0.0" / "shards").mkdir(exist_ok=True)
        (tmp_path / "rel" / name).rename(tmp_path / "rel" / "versions" / "1.0.0" / name)
    assert check_unchanged(specs, units) == []
    with UnitReader(units[0], specs) as reader:
        assert reader.read(0).image


def test_inputs_that_cannot_be_mined_say_why(write_drawn_run: Callable[..., Path], tmp_path: Path) -> None:
    half = write_drawn_run(tmp_path / "half", units=1)
    with pytest.raises(InputError, match=r"half: a run that is not complete; finish it .* or give .*half/shards"):
        images_of(half)
    write_drawn_run(tmp_path / "bare", images=False)
    command = ["release", str(tmp_path / "bare"), "--output", str(tmp_path / "rel"), "--name", "d"]
    assert main([*command, "--version", "1", "--license", "CC-BY-4.0"]) == 0
    with pytest.raises(InputError, match=r"rel: a release of references, .* `grainmill join`"):
        images_of(tmp_path / "rel")


def test_somebody_elses_manifest_is_no_matter(tmp_path: Path, drawn_folder: Path) -> None:
    shutil.copy(drawn_folder / "c.png", tmp_path / "c.png")
    for text in ("{}", "not json", '{"format": "theirs", "shards": []}'):
        (tmp_path / "manifest.json").write_text(text, encoding="utf-8")
        specs = parse_inputs([f"in={tmp_path}"])
        (unit,) = plan_units(specs, samples_per_shard=4, limit=None)
        assert [entry.path for entry in unit.entries] == ["c.png"]


def test_a_release_that_lost_a_shard_is_refused(drawn_release: Path, tmp_path: Path) -> None:
    shutil.copytree(drawn_release, tmp_path / "rel")
    lost = next((tmp_path / "rel" / "shards").glob("*.tar"))
    lost.unlink()
    with pytest.raises(InputError, match=rf"shards/{lost.name} is missing; `grainmill verify` tells more"):
        images_of(tmp_path / "rel")


# ---------------------------------------------------------------------------------------------------------------------
# As ground truth


def test_a_release_scored_against_itself_agrees_with_itself(
    grown: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = said(capsys, "score", *SCORED, "--data", grown, "--masks", grown, "--output", tmp_path / "s")
    assert record["benchmark"] == "shards"
    assert record["dataset"]["images"] == 6
    assert record["metrics"]["AR1000"]["value"] == 1.0
    assert record["details"]["masks"]["images_by_bytes"] == 6


def test_ground_truth_is_what_the_shards_say(grown: Path, tmp_path: Path) -> None:
    index = ShardIndex.open(grown)
    split = find_benchmark("shards").split_of(str(grown), "all")
    for number, image in enumerate(split.images):
        sample, truth = index.load(number), image.load()
        assert image.name == sample.key
        assert [each.granularity for each in truth.objects] == pytest.approx(sample.granularity.tolist())
        assert [each.mask for each in truth.objects] == list(sample.rles)
        wholes = set(sample.instance_id.tolist())
        assert set(truth.subsets["wholes"]) == wholes
        assert truth.scored == tuple(range(len(sample.rles)))
        assert truth.pairs
        for pair in truth.pairs:
            assert sample.instance_id[pair.part] == pair.whole
            assert pair.area_ratio == sample.area_px[pair.part] / sample.area_px[pair.whole]
            assert pair.granularity == truth.objects[pair.part].granularity
        assert sha256_of(image.read_bytes()) == image.sha256
    shutil.copytree(grown, tmp_path / "rel")
    row = index.row(0)
    with (tmp_path / "rel" / row["shard"]).open("r+b") as stream:
        stream.seek(row["image_offset"] + row["image_size"] // 2)
        stream.write(b"\0\0\0\0")
    damaged = find_benchmark("shards").split_of(str(tmp_path / "rel"), "all").images[0]
    with pytest.raises(InputError, match=rf"{row['key']}: its image does not match the index's sha256"):
        damaged.read_bytes()


def test_a_version_and_a_split_are_what_they_say(
    drawn_run: Path, grown: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = grown / "versions" / "1.0.0"
    record = said(capsys, "score", *SCORED, "--data", old, "--masks", grown, "--output", tmp_path / "old")
    assert record["dataset"]["images"] == 7
    assert record["details"]["masks"]["images_without_masks"] == 1
    assert 0.5 < record["metrics"]["AR1000"]["value"] < 1.0
    command = ["release", str(drawn_run), "--output", str(tmp_path / "rel"), "--name", "d", "--version", "1"]
    assert main([*command, "--license", "CC-BY-4.0", "--splits", "train=0.5,test=0.5"]) == 0
    manifest = json.loads((tmp_path / "rel" / "manifest.json").read_bytes())
    for split, count in manifest["splits"]["counts"].items():
        assert len(ShardIndex.open(tmp_path / "rel", split=split)) == count
    assert main(["score", *SCORED, "--data", str(tmp_path / "rel"), "--split", "val", "--masks", str(grown)]) == 2
    assert "no split 'val'; there is all, " in capsys.readouterr().err


def test_only_shards_are_scored_by_url(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["score", "--benchmark", "folder", "--data", "s3://bucket/x", "--masks", "m", "--output", str(tmp_path)]
    assert main(command) == 2
    assert "folder is read from a local folder" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# S3, by the commands


@pytest.mark.slow
def test_the_whole_loop_by_url(s3: str, grown: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pushed by one team; mined again, trained from and scored against by another that has the address alone."""
    there = f"{s3}/loop/drawn"
    assert main(["release", "--output", str(grown), "--push", there]) == 0

    mined = said(
        capsys, "mine", "--input", f"again={there}", "--output", tmp_path / "mined", "--executor", "inline",
        "--samples-per-shard", "3", "--json",
    )  # fmt: skip
    assert mined["samples"] + mined["failures"] == 6
    assert images_of(f"{there}/versions/1.0.0") == released_images(grown / "versions" / "1.0.0")
    row = next(open_dataset(tmp_path / "mined").units())
    uri = open_dataset(tmp_path / "mined").samples(row).to_pylist()[0]["source_uri"]
    assert uri.startswith("again/shards/")

    trained = tmp_path / "trained"
    assert main(["train", "--data", there, "--output", str(trained), *LEARNED]) == 0
    capsys.readouterr()

    for location, images in ((there, 6), (f"{there}/versions/1.0.0", 7)):
        for what, extra in (
            ("--masks", (there,)),
            ("--checkpoint", (trained, "--points-per-side", "2", "--limit", "2")),
        ):
            record = said(
                capsys, "score", *SCORED, "--data", location, what, *extra, "--objects-per-image", "1", "--output",
                tmp_path / f"{what}-{images}",
            )  # fmt: skip
            assert record["dataset"]["images"] == (images if what == "--masks" else 2)
            assert record["configuration"]["data"] == location
            if what == "--checkpoint":
                found = {name.rsplit(".", 1)[0] for name in record["metrics"]}
                assert {"interactive.oracle", "interactive.label", "interactive.fixed:0.50"} <= found

    again = said(capsys, "score", *SCORED, "--data", there, "--masks", tmp_path / "mined", "--output", tmp_path / "m")
    assert again["details"]["masks"]["images_by_bytes"] > 0


def test_training_by_url_with_a_loader_process_gives_the_numbers_of_the_local_folder(
    s3: str, grown: Path, tmp_path: Path
) -> None:
    """As a command of its own: its loader process finds the server by itself."""
    there = f"{s3}/trained-from/drawn"
    assert main(["release", "--output", str(grown), "--push", there]) == 0
    found = []
    for data, workers in ((str(grown), "0"), (there, "1")):
        output = tmp_path / f"with-{workers}"
        command = ["train", "--data", data, "--output", str(output), *LEARNED, "--threads", "1", "--log-every", "1"]
        more = ["--global-batch-size", "2", "--masks-per-image", "4", "--workers", workers]
        if workers == "0":
            assert main([*command, *more]) == 0
        else:
            whole = [sys.executable, "-m", "pipeline", *command, *more]
            done = subprocess.run(whole, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        found.append([{name: line[name] for name in ("step", "position", "loss", "gradient_norm")} for line in lines])
    assert found[1] == found[0]
    assert [line["step"] for line in found[0]] == [1, 2]


# ---------------------------------------------------------------------------------------------------------------------
# The Hub


@pytest.fixture
def on_the_hub(hub: Any, grown: Path) -> str:
    storage = open_storage(grown)
    assert isinstance(storage, LocalStorage)
    push_release(storage, "hf://team/drawn")
    hub.tokens.clear()
    return "hf://datasets/team/drawn"


def test_the_hub_is_read_like_a_folder(
    on_the_hub: str, hub: Any, secret: str, grown: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", on_the_hub, "--deep"]) == 0
    assert main(["stats", on_the_hub]) == 0
    assert main(["verify", f"{on_the_hub}/versions/1.0.0", "--deep"]) == 0
    here, there = ShardIndex.open(grown), ShardIndex.open("hf://team/drawn")  # as it was pushed
    assert there.digest == here.digest
    hub.ranges.clear()
    assert there.load(3).image.shape == here.load(3).image.shape
    sample = there.row(3)
    wanted = max(sample["image_offset"] + sample["image_size"], sample["json_offset"] + sample["json_size"])
    assert hub.ranges == [f"bytes={min(sample['image_offset'], sample['json_offset'])}-{wanted - 1}"]
    assert len(ShardIndex.open(f"{on_the_hub}@v2.0.0")) == 6  # the tag of a version
    assert hub.tokens == {f"Bearer {secret}"}
    assert secret not in "".join(capsys.readouterr())


def test_the_hub_is_mined_trained_and_scored(
    on_the_hub: str, grown: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert images_of(on_the_hub) == released_images(grown)
    mined = said(
        capsys, "mine", "--input", f"again={on_the_hub}", "--output", tmp_path / "mined", "--executor", "inline",
        "--limit", "2", "--json",
    )  # fmt: skip
    assert mined["samples"] + mined["failures"] == 2
    assert main(["train", "--data", on_the_hub, "--output", str(tmp_path / "trained"), *LEARNED]) == 0
    record = said(
        capsys, "score", *SCORED, "--data", on_the_hub, "--masks", on_the_hub, "--output", tmp_path / "s"
    )  # fmt: skip
    assert record["metrics"]["AR1000"]["value"] == 1.0


def test_what_the_hub_does_not_have_is_one_message(
    on_the_hub: str, hub: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", "hf://datasets/team/other"]) in (1, 2)
    assert "hf://datasets/team/other" in capsys.readouterr().err
    assert main(["stats", f"{on_the_hub}/nothing"]) in (1, 2)
    assert "team/drawn/nothing" in capsys.readouterr().err
    with pytest.raises(StorageError, match=r"index/none\.parquet: it is missing"):
        ObjectStorage(on_the_hub).read_bytes("index/none.parquet")


def test_without_the_hubs_client_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(importlib.import_module("fsspec.registry")._registry, "hf", raising=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["stats", "hf://datasets/team/drawn"]) == 2
    assert "it needs grainmill[hub]" in capsys.readouterr().err
