"""A run becomes a dataset: everything is there, named, equal byte for byte, and refused where it must be."""

from __future__ import annotations

import collections
import dataclasses
import gc
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.cli import main
from pipeline.dataset.open import open_dataset
from pipeline.format.schema import canonical_json, sealed
from pipeline.release import copy as copy_module
from pipeline.release.build import build_release
from pipeline.release.flags import ReleaseFlags
from pipeline.release.folder import open_output
from pipeline.release.indexed_shards import IndexedShard
from pipeline.release.options import release_options
from pipeline.release.records import ReleaseOptions
from pipeline.release.verify import verify_release
from pipeline.storage.open import open_storage


def options(**changes: Any) -> ReleaseOptions:
    flags = ReleaseFlags(
        directory="run", output="rel", name="drawn", version="1.0.0", license="CC-BY-4.0", date="2026-11-24"
    )
    return dataclasses.replace(release_options(flags), **changes)


def build(run: Path, output: Path, **changes: Any) -> dict[str, Any]:
    return build_release(open_dataset(run), open_output(str(output)), options(**changes))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def problems(folder: Path, *, deep: bool = False) -> list[str]:
    return [str(problem) for problem in verify_release(open_storage(folder), deep=deep)]


def test_shards_are_the_runs_own_bytes(drawn_run: Path, drawn_release: Path) -> None:
    shards = {path.name: path.read_bytes() for path in (drawn_run / "shards").iterdir()}
    assert {path.name: path.read_bytes() for path in (drawn_release / "shards").glob("*.tar")} == shards
    manifest = json.loads((drawn_release / "manifest.json").read_bytes())
    assert manifest["digest"] == json.loads((drawn_run / "manifest.json").read_bytes())["digest"]
    assert (manifest["samples"], manifest["masks"], manifest["failures"]) == (7, 35, 1)


def test_what_was_released_verifies(drawn_release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert problems(drawn_release) == []
    assert problems(drawn_release, deep=True) == []
    assert main(["verify", str(drawn_release), "--deep", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["ok"], printed["samples"], printed["masks"]) == (True, 7, 35)


def test_two_releases_are_equal_byte_for_byte(drawn_run: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        build(drawn_run, tmp_path / name, date=None)
    assert files(tmp_path / "first") == files(tmp_path / "second")


def test_machines_facts_stay_out_of_the_digest(drawn_run: Path, tmp_path: Path) -> None:
    """The same labels mined on another machine differ in machines.json and nowhere else."""
    other = tmp_path / "run"
    shutil.copytree(drawn_run, other)
    for path in (other / "commits").iterdir():
        commit = json.loads(path.read_bytes())
        commit |= {"seconds": {"read": 9.0, "wall": 99.0}, "environment": {"python": "9"}, "attempt": "elsewhere"}
        path.write_bytes(canonical_json(sealed(commit)))
    build(drawn_run, tmp_path / "here")
    build(other, tmp_path / "there")
    here, there = files(tmp_path / "here"), files(tmp_path / "there")
    assert {name for name in here if here[name] != there[name]} == {"machines.json"}


def test_no_path_of_the_machine_is_published(drawn_release: Path, drawn_folder: Path) -> None:
    for name, data in files(drawn_release).items():
        assert str(drawn_folder.parent).encode() not in data, name


def release_command(run: Path, output: Path, *flags: str, license: str = "CC-BY-4.0") -> list[str]:
    command = ["release", str(run), "--output", str(output), "--name", "drawn", "--version", "1.0.0"]
    return [*command, "--license", license, *flags]


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("unfinished", "1 of 3 units are not committed"),
        ("mixed", "another configuration than the plan's"),
        ("failed", "1 of 8 samples failed (unsupported_format 1)"),
        ("license", "--license MIT cannot cover the source drawn: CC-BY-SA-4.0 is share-alike"),
        ("proposals", "--license MIT cannot cover the proposal file: CC-BY-NC-4.0 asks for non-commercial"),
        ("unknown license", "X-1.0 is not a licence whose terms are known here"),
    ],
)
def test_what_must_not_be_published_is_refused_with_the_reason(
    what: str, reason: str, write_drawn_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    declared = {"license": "CC-BY-SA-4.0", "unknown license": "X-1.0"}.get(what, "CC0-1.0")
    run = write_drawn_run(tmp_path / "run", units=2 if what == "unfinished" else None, license=declared)
    if what == "mixed":
        path = sorted((run / "commits").iterdir())[1]
        commit = json.loads(path.read_bytes())
        path.write_bytes(canonical_json(sealed({**commit, "config_hash": "0" * 64})))
    flags = {
        "failed": ["--max-failed-fraction", "0.1"],
        "proposals": ["--proposals-license", "CC-BY-NC-4.0"],
    }.get(what, [])
    code = main(release_command(run, tmp_path / "out", *flags, license="MIT"))
    assert code == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_terms_of_ones_own_stand_in_card_and_croissant_with_their_link(
    write_drawn_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, link = write_drawn_run(tmp_path / "run", license=None), "https://example.org/terms?v=1"
    for license, spelled, named in (
        ("Other", "other", {}),
        ("licenseref-House", "LicenseRef-House", {"license_name": "licenseref-house"}),
    ):
        for flags, linked in ((("--license-link", link), {"license_link": link}), ((), {})):
            output = tmp_path / f"{license}-{len(flags)}"
            assert main(release_command(run, output, "--gallery-images", "0", *flags, license=license)) == 0
            card = (output / "README.md").read_text(encoding="utf-8")
            header = yaml.safe_load(card.split("---")[1])
            found = {name: value for name, value in header.items() if name.startswith("license")}
            assert found == {"license": "other", **named, **linked}
            assert f"released under {spelled}{f' (<{link}>)' if flags else ''}. " in card
            croissant = json.loads((output / "croissant.json").read_bytes())
            assert croissant["license"] == (link if flags else "https://spdx.org/licenses/")
            assert problems(output) == []
    capsys.readouterr()
    for flag, value in (("--license", "foo"), ("--source-license", "drawn=foo"), ("--proposals-license", "foo")):
        assert main([*release_command(run, tmp_path / "none"), flag, value]) == 2
        said = capsys.readouterr().err
        assert flag in said
        assert "'foo' is not on SPDX's list" in said


def test_a_second_release_needs_a_new_place_or_a_flag(drawn_run: Path, tmp_path: Path) -> None:
    command = release_command(drawn_run, tmp_path / "out")
    assert main(command) == 0
    before = files(tmp_path / "out")
    assert main(command) == 2
    assert main([*command, "--overwrite"]) == 0
    assert files(tmp_path / "out") == before
    assert (
        main([*command, "--overwrite", "--source-terms", "drawn=none", "--no-duplicates", "--gallery-images", "0"]) == 0
    )
    assert problems(tmp_path / "out") == []  # nothing of the former one is left
    assert not (tmp_path / "out" / "gallery.html").exists()


def test_a_reader_of_a_release_goes_when_nobody_has_it(drawn_release: Path) -> None:
    reader = open_dataset(drawn_release)
    assert reader.masks(next(reader.units())).num_rows
    gone = weakref.ref(reader)
    del reader
    gc.collect()
    assert gone() is None


def test_workers_get_the_places_of_images_and_no_masks(drawn_run: Path) -> None:
    shards = [
        IndexedShard(
            location=str(drawn_run), run="r", unit=unit.number, shard=unit.shard, samples=run.samples(unit),
            masks=run.masks(unit), standing=False,
        )
        for run in [open_dataset(drawn_run)]
        for unit in run.units()
        if unit.shard is not None
    ]  # fmt: skip
    at_work: collections.deque[IndexedShard] = collections.deque()
    sent = list(copy_module._to_copy(iter(shards), at_work))
    assert [*at_work] == shards
    assert all(set(row) == {"key", "shard", "image_offset", "image_size"} for _, _, rows in sent for row in rows)
