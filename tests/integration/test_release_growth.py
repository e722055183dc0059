"""Releases grow and shrink: versions, old ones that stay readable, samples that leave, references joined to images."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from model.data.shards import ShardIndex
from pipeline.cli import main
from pipeline.dataset.open import open_dataset
from pipeline.release.verify import verify_release
from pipeline.storage.open import open_versioned


def photographs(folder: Path, names: list[str], *, seed: int = 0) -> Path:
    """Smooth random pictures: each unlike the others, by its name alone."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        choose = random.Random(f"{seed}{name}")
        small = Image.new("RGB", (6, 5))
        small.putdata([tuple(choose.randrange(256) for _ in range(3)) for _ in range(30)])
        small.resize((90, 70), Image.Resampling.BICUBIC).save(folder / name, quality=95)
    return folder


def release(run: Path | None, output: Path, version: str, *flags: str) -> list[str]:
    start = ["release"] if run is None else ["release", str(run)]
    common = ["--name", "drawn", "--version", version, "--license", "CC-BY-4.0", "--gallery-images", "2"]
    return [*start, "--output", str(output), *common, *flags]


def manifest_of(output: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((output / "manifest.json").read_bytes())
    return manifest


def problems(location: Path) -> list[str]:
    return [str(problem) for problem in verify_release(open_versioned(location), deep=True)]


def rows_of(location: Path) -> list[dict[str, Any]]:
    run = open_dataset(location)
    return [row for unit in run.units() for row in run.released_samples(unit).to_pylist()]  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def runs(write_drawn_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two runs: `b` has two photographs of its own, and one that `a` has too, under another name."""
    base = tmp_path_factory.mktemp("growth")
    photographs(base / "a", [f"a{number}.png" for number in range(5)])
    photographs(base / "b", ["b0.jpg", "b1.png"])
    shutil.copy(base / "a" / "a1.png", base / "b" / "again.png")
    made = {}
    for label in ("a", "b"):
        made[label] = write_drawn_run(base / f"run-{label}", folder=base / label, label=label)
        made[f"{label}-images"] = base / label
    made["c"] = write_drawn_run(base / "run-c", folder=base / "a", label="a", images=False)
    return made


@pytest.fixture
def first(runs: dict[str, Path], tmp_path: Path) -> Path:
    assert main(release(runs["a"], tmp_path / "rel", "1.0.0")) == 0
    return tmp_path / "rel"


def test_append_makes_a_new_version_and_the_old_one_stays(first: Path, runs: dict[str, Path]) -> None:
    before = manifest_of(first)
    assert main(release(runs["b"], first, "1.1.0", "--append")) == 0
    after = manifest_of(first)
    assert (before["samples"], after["samples"]) == (5, 7)  # again.png is in the release already
    assert after["versions"][-1]["changes"] == {
        "added": 2, "runs": 1, "present": 1, "left": {}, "excluded_keys": [],
    }  # fmt: skip
    assert {shard["name"] for shard in before["shards"]} < {shard["name"] for shard in after["shards"]}
    assert problems(first) == []
    old = first / "versions" / "1.0.0"
    assert problems(old) == []
    assert ShardIndex.open(old).digest == before["digest"]
    assert len(ShardIndex.open(old)) == 5
    assert ShardIndex.open(old).load(3).image.shape == (70, 90, 3)
    assert ShardIndex.open(first / "versions" / "1.1.0").digest == ShardIndex.open(first).digest == after["digest"]
    changes = (first / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## 1.1.0" in changes
    assert "added: 2 images from 1 run" in changes
    assert "not added again: 1 images" in changes
    assert "## 1.0.0" in changes


def test_a_list_of_what_is_kept_grows_from_version_to_version(runs: dict[str, Path], tmp_path: Path) -> None:
    output, keep = tmp_path / "rel", tmp_path / "keep.txt"
    keep.write_text("a/a0.png\n", encoding="utf-8")
    assert main(release(runs["a"], output, "1.0.0", "--keep", str(keep))) == 0
    keep.write_text("a/a3.png\n", encoding="utf-8")
    assert main(release(runs["a"], output, "1.1.0", "--append", "--keep", str(keep))) == 0
    assert [row["source_uri"] for row in rows_of(output)] == ["a/a0.png", "a/a3.png"]
    one, two = (each["changes"] for each in manifest_of(output)["versions"])
    assert (one["added"], one["present"], one["left"]) == (1, 0, {"unlisted": 4})
    assert (two["added"], two["present"], two["left"]) == (1, 1, {"unlisted": 3})  # a0.png stands, listed or not
    assert problems(output) == []


def test_a_run_added_twice_adds_nothing(first: Path, runs: dict[str, Path]) -> None:
    before = manifest_of(first)
    assert main(release(runs["a"], first, "1.0.1", "--append")) == 0
    after = manifest_of(first)
    assert (after["digest"], after["samples"], len(after["runs"])) == (before["digest"], 5, 1)
    assert problems(first) == []


def test_append_refuses_other_labels_names_and_known_versions(
    first: Path, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(runs["b"], other)
    from pipeline.format.schema import canonical_json, sealed
    from pipeline.labeling.config import config_hash

    plan = json.loads((other / "plan.json").read_bytes())
    plan["config"]["tree"]["max_masks"] = 7
    plan["config_hash"] = config_hash(plan["config"])
    (other / "plan.json").write_bytes(canonical_json(sealed(plan)))
    for path in [*(other / "commits").iterdir(), other / "manifest.json"]:
        record = json.loads(path.read_bytes())
        path.write_bytes(canonical_json(sealed({**record, "config_hash": plan["config_hash"]})))
    assert main(release(other, first, "1.1.0", "--append")) == 2
    assert "tree.max_masks: there 300, here 7" in capsys.readouterr().err
    assert main(release(runs["b"], first, "1.0.0", "--append")) == 2
    assert "has version 1.0.0 already" in capsys.readouterr().err
    for run in (runs["b"], None):  # also with nothing new in it
        assert main(release(run, first, "0.10.0", "--append")) == 2
        assert "has version 1.0.0; a new version needs a later --version, found 0.10.0" in capsys.readouterr().err
    assert main(release(runs["b"], tmp_path / "none", "1.1.0", "--append")) == 2
    assert problems(first) == []


@pytest.mark.parametrize("by", ["key", "source_sha256", "source_uri"])
def test_excluded_samples_leave_with_a_list(first: Path, tmp_path: Path, by: str) -> None:
    gone = rows_of(first)[1]
    (tmp_path / "out.txt").write_text(f"# on request\n{gone[by]}\n", encoding="utf-8")
    assert main(release(None, first, "2.0.0", "--append", "--exclude", str(tmp_path / "out.txt"))) == 0
    assert [row["key"] for row in rows_of(first)] == [r["key"] for r in rows_of(first / "versions/1.0.0") if r != gone]
    assert problems(first) == []
    assert problems(first / "versions" / "1.0.0") == []
    held = b"".join(path.read_bytes() for path in (first / "shards").glob("*.tar"))
    assert gone["key"].encode() not in held
    removed = open_dataset(first).manifest["removed_table"]  # type: ignore[index]
    import pyarrow.parquet as pq

    listed = pq.read_table(first / removed["name"]).to_pylist()
    assert [(row["key"], row["why"], row["version"]) for row in listed] == [(gone["key"], "excluded", "2.0.0")]
    changes = (first / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "taken down: 1 images" in changes
    assert gone["key"] in changes


def test_what_was_taken_down_stays_out(first: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    gone = rows_of(first)[1]  # a1.png, which is again.png of the other run
    (tmp_path / "out.txt").write_text(gone["key"], encoding="utf-8")
    assert main(release(None, first, "2.0.0", "--append", "--exclude", str(tmp_path / "out.txt"))) == 0
    assert main(release(runs["b"], first, "2.1.0", "--append")) == 0
    assert main(release(runs["a"], first, "2.2.0", "--append")) == 0
    assert gone["source_sha256"] not in {row["source_sha256"] for row in rows_of(first)}
    assert len(rows_of(first)) == 6
    assert problems(first) == []


def test_purge_deletes_the_bytes_and_withdraws_the_old_version(first: Path, tmp_path: Path) -> None:
    gone = rows_of(first)[1]
    (tmp_path / "out.txt").write_text(gone["key"], encoding="utf-8")
    assert main(release(None, first, "2.0.0", "--append", "--purge", "--exclude", str(tmp_path / "out.txt"))) == 0
    image = next(each for each in tmp_path.rglob("*.tar") if each.is_file())
    assert image.exists()
    for path in first.rglob("*"):
        if path.suffix in (".tar", ".js", ".jpg"):
            assert gone["key"].encode() not in path.read_bytes(), path
    assert (first / "versions" / "1.0.0" / "WITHDRAWN.txt").exists()
    assert problems(first) == []


def test_diff_tells_what_changed(
    first: Path, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = rows_of(first)[0]
    (tmp_path / "out.txt").write_text(gone["key"], encoding="utf-8")
    assert main(release(runs["b"], first, "2.0.0", "--append", "--exclude", str(tmp_path / "out.txt"))) == 0
    capsys.readouterr()
    assert main(["diff", str(first / "versions" / "1.0.0"), str(first), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["samples"] == {"added": 2, "removed": 1, "changed": 0, "equal": 4}
    assert found["masks"] == {"added": 10, "removed": 5, "equal": 20}
    assert found["keys"]["removed"] == [gone["key"]]
    assert found["by_source"] == {"a": {"added": 0, "removed": 1}, "b": {"added": 2, "removed": 0}}
    assert main(["diff", str(first / "versions" / "1.0.0"), str(first)]) == 0
    assert f"- {gone['key']}" in capsys.readouterr().out


def test_diff_counts_masks_that_changed(
    write_drawn_run: Callable[..., Path], runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One part fewer in each image: five samples with other masks, five masks gone."""
    import dataclasses

    import numpy as np

    from pipeline.format import rle, schema

    def fewer(width: int, height: int) -> tuple[schema.Annotation, ...]:
        mask = np.zeros((height, width), dtype=bool)
        mask[4:24, 4:44] = True
        whole = schema.Annotation(
            id=0, segmentation=rle.encode(mask), bbox=(4, 4, 40, 20), area=800, granularity=1.0, instance_id=0,
            parent_id=None, level=None, origin="divide", score=None,
        )  # fmt: skip
        return (whole, dataclasses.replace(whole, id=1, instance_id=1))[:1]

    one = write_drawn_run(tmp_path / "one", folder=runs["a-images"], label="a", annotate=fewer)
    assert main(["diff", str(runs["a"]), str(one), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["samples"] == {"added": 0, "removed": 0, "changed": 5, "equal": 0}
    assert found["masks"] == {"added": 5, "removed": 25, "equal": 0}


# ---------------------------------------------------------------------------------------------------------------------
# Duplicates and splits


@pytest.fixture(scope="module")
def copies(write_drawn_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Twenty photographs, among them one copied byte for byte, one saved again as jpg, and an evaluation set."""
    base = tmp_path_factory.mktemp("copies")
    folder = photographs(base / "all", [f"p{number:02d}.png" for number in range(18)])
    shutil.copy(folder / "p03.png", folder / "x-equal.png")
    Image.open(folder / "p05.png").save(folder / "y-near.jpg", quality=80)
    evaluation = photographs(base / "evaluation", ["other.png"], seed=1)
    Image.open(folder / "p07.png").resize((60, 50)).save(evaluation / "leaked.png")
    return {"run": write_drawn_run(base / "run", folder=folder, label="all"), "evaluation": evaluation}


def test_duplicates_and_leaks_are_reported_and_nothing_is_touched(copies: dict[str, Path], tmp_path: Path) -> None:
    assert main(release(copies["run"], tmp_path / "rel", "1.0.0", "--against", f"eval={copies['evaluation']}")) == 0
    manifest = manifest_of(tmp_path / "rel")
    assert manifest["samples"] == 20
    assert manifest["duplicates"]["counts"] == {"exact": 1, "near": 1}
    against = {"label": "eval", "images": 2, "exact": 0, "near": 1, "removed": 0}
    assert manifest["duplicates"]["against"] == [against]
    import pyarrow.parquet as pq

    pairs = pq.read_table(tmp_path / "rel" / manifest["duplicates"]["table"]["name"]).to_pylist()
    short = {(row["key"][:-21], row["like"].split("-")[0], row["kind"], row["removed"]) for row in pairs}
    assert short == {
        ("x-equal", "p03", "exact", False), ("y-near", "p05", "near", False),
        ("p07", "eval/leaked.png", "evaluation-near", False),
    }  # fmt: skip
    card = (tmp_path / "rel" / "README.md").read_text(encoding="utf-8")
    assert "1 images whose bytes equal an earlier image's, 1 that look like" in card
    assert "Against eval (2 images): 0 equal, 1 look alike" in card
    assert problems(tmp_path / "rel") == []


def test_duplicates_and_leaks_leave_on_request(copies: dict[str, Path], tmp_path: Path) -> None:
    flags = ["--against", f"eval={copies['evaluation']}"]
    flags += [part for kind in ("exact", "near", "evaluation") for part in ("--remove", kind)]
    assert main(release(copies["run"], tmp_path / "rel", "1.0.0", *flags)) == 0
    left = {row["key"][:-21] for row in rows_of(tmp_path / "rel")}
    assert left == {f"p{number:02d}" for number in range(18)} - {"p07"}
    assert problems(tmp_path / "rel") == []
    assert manifest_of(tmp_path / "rel")["versions"][0]["changes"]["left"] == {"evaluation": 1, "exact": 1, "near": 1}
    # shards of which nothing went are the run's own
    ours = {path.name for path in (copies["run"] / "shards").iterdir()}
    theirs = {path.name for path in (tmp_path / "rel" / "shards").glob("*.tar")}
    assert len(ours & theirs) == 5


def test_splits_hold_across_versions_and_copies_go_together(
    copies: dict[str, Path], write_drawn_run: Callable[..., Path], tmp_path: Path
) -> None:
    splits = ["--splits", "train=0.5,val=0.25,test=0.25"]
    assert main(release(copies["run"], tmp_path / "rel", "1.0.0", *splits)) == 0
    assert problems(tmp_path / "rel") == []
    before = {row["key"]: row["split"] for row in rows_of(tmp_path / "rel")}
    by_name = {key[:-21]: split for key, split in before.items()}
    assert by_name["x-equal"] == by_name["p03"]
    assert by_name["y-near"] == by_name["p05"]
    assert set(by_name.values()) == {"train", "val", "test"}
    more = photographs(tmp_path / "more", [f"q{number}.png" for number in range(6)], seed=2)
    run = write_drawn_run(tmp_path / "more-run", folder=more, label="more")
    assert main(release(run, tmp_path / "rel", "1.1.0", "--append")) == 0
    after = {row["key"]: row["split"] for row in rows_of(tmp_path / "rel")}
    assert before.items() < after.items()
    assert main(release(run, tmp_path / "rel", "1.2.0", "--append", "--splits", "train=0.9,val=0.1")) == 2
    manifest = manifest_of(tmp_path / "rel")
    assert sum(manifest["splits"]["counts"].values()) + manifest["splits"]["none"] == 26
    import pyarrow.parquet as pq

    for split, files in manifest["splits"]["files"].items():
        keys = set(pq.read_table(tmp_path / "rel" / files["samples"]["name"])["key"].to_pylist())
        assert keys == {key for key, theirs in after.items() if theirs == split}
        assert set(pq.read_table(tmp_path / "rel" / files["masks"]["name"])["key"].to_pylist()) == keys
    assert problems(tmp_path / "rel") == []


@pytest.mark.slow
def test_workers_change_no_byte(copies: dict[str, Path], tmp_path: Path) -> None:
    for name, workers in (("one", "1"), ("two", "2")):
        assert main(release(copies["run"], tmp_path / name, "1.0.0", "--workers", workers)) == 0
    ours, theirs = (sorted(path for path in (tmp_path / name).rglob("*") if path.is_file()) for name in ("one", "two"))
    assert [path.relative_to(tmp_path / "one") for path in ours] == [p.relative_to(tmp_path / "two") for p in theirs]
    assert [path.read_bytes() for path in ours] == [path.read_bytes() for path in theirs]


# ---------------------------------------------------------------------------------------------------------------------
# References only


def test_references_are_joined_to_their_images(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    references, whole = tmp_path / "references", tmp_path / "whole"
    assert main(release(runs["c"], references, "1.0.0")) == 0
    assert problems(references) == []
    assert manifest_of(references)["images"] is False
    assert not any(row["ext"] for row in rows_of(references))
    moved = tmp_path / "elsewhere"
    shutil.copytree(runs["a-images"], moved)
    (moved / "a2.png").rename(moved / "renamed.png")  # found by its bytes, not by its name
    assert main(["join", str(references), "--images", str(moved), "--output", str(whole)]) == 0
    assert problems(whole) == []
    with_images = {path.name: path.read_bytes() for path in (runs["a"] / "shards").iterdir()}
    assert {path.name: path.read_bytes() for path in (whole / "shards").glob("*.tar")} == with_images
    capsys.readouterr()
    assert main(["join", str(whole), "--images", str(moved), "--output", str(tmp_path / "again")]) == 2
    assert "holds its images already" in capsys.readouterr().err


def test_an_image_with_other_bytes_is_not_joined(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    references, moved = tmp_path / "references", tmp_path / "elsewhere"
    assert main(release(runs["c"], references, "1.0.0")) == 0
    shutil.copytree(runs["a-images"], moved)
    Image.open(moved / "a2.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(moved / "a2.png")
    join = ["join", str(references), "--images", str(moved), "--output", str(tmp_path / "whole")]
    assert main(join) == 1
    assert "1 of 5 images are not among --images, or have other bytes now: a/a2.png" in capsys.readouterr().err
    assert main([*join, "--allow-missing"]) == 0
    manifest = manifest_of(tmp_path / "whole")
    assert (manifest["samples"], manifest["failure_reasons"]) == (4, {"source_missing": 1})
    assert problems(tmp_path / "whole") == []
