"""Our own files are never our input: outputs in inputs, inputs in outputs, other runs and releases, on every store."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from PIL import Image

from pipeline.errors import InputError
from pipeline.mining.flags import MineFlags
from pipeline.mining.job import mine
from pipeline.mining.options import mine_options
from pipeline.sources.changes import check_unchanged
from pipeline.sources.listing import plan_units
from pipeline.sources.shards import open_source
from pipeline.sources.units import parse_inputs
from pipeline.storage.open import open_storage


def planned(location: object, output: object | None = None) -> list[str]:
    """Paths of the files that are planned, each once."""
    specs = parse_inputs([f"in={location}"])
    units = list(plan_units(specs, samples_per_shard=100, limit=None, output=None if output is None else str(output)))
    return list(dict.fromkeys(entry.path for unit in units for entry in unit.entries))


def told(location: object, output: object | None = None) -> list[str]:
    """Folders and files that are passed over as our own."""
    root = open_source(str(location), output=None if output is None else str(output))
    return sorted(file.path for file in root.walk() if file.passed == "own_output")


def options_of(source: object, output: object, **flags: object) -> object:
    return mine_options(MineFlags(input=[f"in={source}"], output=str(output), executor="inline", **flags))  # type: ignore[arg-type]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with two photographs, one of them in a folder."""
    folder = tmp_path / "photos"
    (folder / "b").mkdir(parents=True)
    for name in ("a.png", "b/c.png"):
        image = Image.new("RGB", (64, 64), (200, 40, 10))
        image.paste((20, 60, 200), (16, 16, 48, 48))
        image.save(folder / name)
    return folder


def test_a_run_whose_output_lies_in_its_input_is_resumed_and_extended(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    for output in ("out", "b/out"):
        first = mine(options_of(".", output))
        assert first["samples"] + first["failures"] == 2
        assert first["failure_reasons"].get("truncated_source") is None
        again = mine(options_of(".", output))
        assert (again["digest"], again["units_done_now"]) == (first["digest"], 0)
        extended = mine(options_of(".", output, extend=True))
        assert (extended["digest"], extended["units"]) == (first["digest"], first["units"])


def test_a_plan_never_holds_what_the_run_writes(photos: Path, tmp_path: Path) -> None:
    """The scratch of a run that is being planned has no record yet that would tell whose it is."""
    names = ["a.png", "b/c.png"]
    for folder in (photos / "out", photos / "b" / "out"):
        (folder / "tmp" / "plan.0123").mkdir(parents=True)
        (folder / "tmp" / "plan.0123" / "00000000.parquet").write_bytes(b"x")
        (tmp_path / "link").symlink_to(folder)
        (photos / "link.parquet").symlink_to(folder / "tmp" / "plan.0123" / "00000000.parquet")
        for output in (folder, tmp_path / "link", f"file://{folder}", f"{photos}/b/../{folder.relative_to(photos)}"):
            assert planned(photos, output) == names
            assert planned(f"{photos}/**/*.p*", output) == names
            assert told(photos, output) == sorted([str(folder.relative_to(photos)), "link.parquet"])
        shutil.rmtree(folder)
        (tmp_path / "link").unlink()
        (photos / "link.parquet").unlink()


def test_a_source_that_is_the_output_or_a_part_of_it_is_refused(photos: Path, tmp_path: Path, drawn_run: Path) -> None:
    (tmp_path / "link").symlink_to(photos)
    for source in (photos, f"{photos}/", f"{photos}/b/..", tmp_path / "link", f"file://{photos}", f"{photos}/*.png"):
        with pytest.raises(InputError, match="is also an --input"):
            planned(source, photos)
        with pytest.raises(InputError, match="is also an --input"):
            mine(options_of(source, photos))
    assert sorted(each.name for each in photos.iterdir()) == ["a.png", "b"]  # nothing was written
    copy = tmp_path / "run"
    shutil.copytree(drawn_run, copy)
    for source in (copy / "shards", copy / "index", copy / "tmp", f"{copy}/shards/*.tar"):
        with pytest.raises(InputError, match=r"is what the run in --output .* writes"):
            planned(source, copy)
    assert planned(copy / "shards", tmp_path / "other") == sorted(os.listdir(copy / "shards"))
    assert planned(photos, tmp_path) == ["a.png", "b/c.png"]  # a folder of the output's that the run does not write


@pytest.fixture
def ours(photos: Path, drawn_run: Path, drawn_release: Path) -> Path:
    """The photographs' folder with every kind of folder and file that this program writes."""
    shutil.copytree(drawn_run, photos / "run")
    shutil.copytree(drawn_release, photos / "b" / "release")
    shutil.copytree(drawn_release, photos / "killed-release")
    (photos / "killed-release" / "manifest.json").unlink()
    shutil.copytree(drawn_run / "shards", photos / "run-y" / "shards")
    (photos / "begun").mkdir()
    (photos / "begun" / "lease.json").write_text('{"boot":"","driver":"0","process_started":1.5}')
    (photos / "begun" / "x.parquet").write_bytes(b"x")
    for folder, names in {
        "training": ("metrics.jsonl", "pictures/step-00000001-0.png"),
        "score": ("scores.json", "objects.parquet", "plots/ap.png"),
        ".trash-0123456789abcdef": ("shards/00000000-01234567.tar",),
        "clip.masks": ("00000.png",),
        ".": ("a.masks.png", "a.masks.json", "clip.masks.json"),
        "grainmill-plan.0a1b.x7": ("00000000.parquet",),
    }.items():
        for name in names:
            (photos / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (photos / folder / name).write_bytes(b"{}")
    return photos


OURS = [
    "a.masks.png", "b/release", "begun", "clip.masks", "grainmill-plan.0a1b.x7", "killed-release", "run", "run-y",
    "score", "training",
]  # fmt: skip


def test_other_runs_releases_trainings_and_scores_are_passed_over(ours: Path) -> None:
    assert planned(ours) == ["a.png", "b/c.png"]
    assert told(ours) == OURS
    (ours / "manifest.json").write_text('{"format": "of somebody else"}')
    (ours / "b" / "plan.json").write_text("{}")
    assert planned(ours) == ["a.png", "b/c.png"]
    assert planned(f"{ours}/**/*.png") == ["a.png", "b/c.png"]
    assert planned(f"{ours}/*/*.*") == ["b/c.png"]
    shards = sorted(f"shards/{name}" for name in os.listdir(ours / "run" / "shards"))
    assert planned(ours / "run") == shards, "a run that is named is its shards"
    assert planned(ours / "run-y") == shards


@pytest.fixture(params=["memory", "s3"])
def bucket(request: pytest.FixtureRequest) -> Iterator[str]:
    """URL of an empty prefix of a store."""
    if request.param == "memory":
        yield "memory://own-outputs"
        fsspec.filesystem("memory").rm("/own-outputs", recursive=True)
        return
    pytest.importorskip("moto", reason="moto is not installed (the extra `dev`)")
    pytest.importorskip("s3fs", reason="s3fs is not installed (the extra `s3`)")
    yield f"{request.getfixturevalue('s3')}/{secrets.token_hex(4)}"


def test_the_same_on_a_store(ours: Path, bucket: str, drawn_run: Path) -> None:
    fs, base = fsspec.core.url_to_fs(f"{bucket}/photos")
    for path in ours.rglob("*"):
        if path.is_file():
            fs.pipe_file(f"{base}/{path.relative_to(ours).as_posix()}", path.read_bytes())
    there = f"{bucket}/photos"
    assert planned(there) == ["a.png", "b/c.png"]
    assert told(there) == OURS
    fs.pipe_file(f"{base}/b/out/index-all/x.parquet", b"x")
    for output in (f"{there}/b/out", f"{there}/b/out/"):
        assert planned(there, output) == ["a.png", "b/c.png"]
        assert planned(f"{there}/**/*.p*", output) == ["a.png", "b/c.png"]
        assert planned(f"{there}/*/*.png", output) == ["b/c.png"]
        specs = parse_inputs([f"in={there}"])
        units = list(plan_units(specs, samples_per_shard=100, limit=None, output=output))
        assert check_unchanged(specs, units, output=output) == []
    for source in (there, f"{there}/", f"{there}/*.png"):
        with pytest.raises(InputError, match="is also an --input"):
            planned(source, there)
    with pytest.raises(InputError, match="is what the run in --output"):
        planned(f"{there}/run/shards", f"{there}/run")
    assert planned(f"{there}/run/shards", f"{bucket}/elsewhere") == sorted(os.listdir(drawn_run / "shards"))


def test_a_run_on_a_store_lies_in_its_input(photos: Path, bucket: str) -> None:
    storage = open_storage(f"{bucket}/in")
    for path in photos.rglob("*.png"):
        storage.put_atomic(path.relative_to(photos).as_posix(), path.read_bytes())
    first = mine(options_of(f"{bucket}/in", f"{bucket}/in/out"))
    again = mine(options_of(f"{bucket}/in", f"{bucket}/in/out", extend=True))
    assert (again["digest"], again["units"], again["units_done_now"]) == (first["digest"], 1, 0)
