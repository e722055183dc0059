"""The main job on real, small images: the same result every way, and one clear error where there can be none."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from pipeline.dataset.open import open_dataset
from pipeline.dataset.verify import verify_run
from pipeline.errors import ConfigMismatchError, InputError, TooManyFailuresError
from pipeline.format.schema import SEAL, canonical_json, sealed
from pipeline.labeling.config import config_hash
from pipeline.mining.flags import MineFlags
from pipeline.mining.job import dry_run, frozen_plan, idle_workers_note, mine, open_output
from pipeline.mining.options import mine_options
from pipeline.shards.lease import LEASE, OutputBusyError
from pipeline.storage.base import StorageError

Run = Callable[..., subprocess.CompletedProcess[str]]


def mined(source: Path, output: Path, **flags: Any) -> dict[str, Any]:
    """`grainmill mine` in this process."""
    values = {"executor": "inline", "samples_per_shard": 2, **flags}
    return mine(mine_options(MineFlags(input=[f"in={source}"], output=str(output), **values)))


@pytest.fixture
def photographs_copy(small_photographs: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in sorted(small_photographs.iterdir())[:5]:
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def files_of(output: Path) -> dict[str, bytes]:
    """Every byte of shards, index and failures."""
    folders = ("shards", "index", "index-all", "failures")
    return {
        str(path.relative_to(output)): path.read_bytes()
        for folder in folders
        for path in sorted((output / folder).glob("*"))
    }


def test_local_workers_give_the_bytes_of_inline(small_photographs: Path, tmp_path: Path, run_mine: Run) -> None:
    mined(small_photographs, tmp_path / "inline")
    done = run_mine(small_photographs, tmp_path / "local", "--executor", "local", "--workers", "2")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {"samples", "masks", "masks_per_image", "failures", "images_per_second"} <= set(result)
    assert result["samples"] == 11
    assert result["units"] == 6
    assert files_of(tmp_path / "local") == files_of(tmp_path / "inline")
    assert not (tmp_path / "local" / LEASE).exists()
    assert not (tmp_path / "local" / "tmp").exists()


@pytest.mark.parametrize(("samples_per_shard", "workers", "idles"), [(256, 2, True), (3, 2, False), (1, 8, False)])
def test_more_workers_than_units_are_told_what_keeps_them_busy(
    photographs_copy: Path, tmp_path: Path, samples_per_shard: int, workers: int, idles: bool
) -> None:
    flags = MineFlags(
        input=[f"in={photographs_copy}"],
        output=str(tmp_path / "out"),
        executor="local",
        workers=workers,
        samples_per_shard=samples_per_shard,
    )
    options = mine_options(flags)
    note = idle_workers_note(frozen_plan(open_output(options.flags.output), options), options)
    assert (note is not None) == idles
    if note is not None:
        assert "1 of 2 workers" in note
        assert "--samples-per-shard 3 " in note


def test_hash_seed_locale_zone_and_threads_change_nothing(
    small_photographs: Path, tmp_path: Path, run_mine: Run, undisturbed_digest: str
) -> None:
    done = run_mine(
        small_photographs, tmp_path / "out", "--executor", "inline", PYTHONHASHSEED="77", LC_ALL="C",
        TZ="Asia/Tokyo", OMP_NUM_THREADS="2", NUMBA_NUM_THREADS="2", OPENCV_FOR_THREADS_NUM="2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["digest"] == undisturbed_digest


def test_the_same_command_again_does_nothing(photographs_copy: Path, tmp_path: Path) -> None:
    first = mined(photographs_copy, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    again = mined(photographs_copy, tmp_path / "out")
    assert again["digest"] == first["digest"]
    assert again["units_done_now"] == 0
    assert again["images_per_second"] is None
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}


def test_another_configuration_is_refused_with_the_difference(photographs_copy: Path, tmp_path: Path) -> None:
    mined(photographs_copy, tmp_path / "out")
    with pytest.raises(ConfigMismatchError, match=r"samples_per_shard: there 2, here 3") as caught:
        mined(photographs_copy, tmp_path / "out", samples_per_shard=3)
    assert caught.value.exit_code == 3
    assert str(caught.value).splitlines()[1:-1] == ["  samples_per_shard: there 2, here 3"]


def test_where_the_photographs_lie_is_no_part_of_the_configuration(photographs_copy: Path, tmp_path: Path) -> None:
    elsewhere = Path(shutil.copytree(photographs_copy, tmp_path / "elsewhere"))
    hashes = {
        json.loads((tmp_path / name / "plan.json").read_bytes())["config_hash"]
        for name, source in (("one", photographs_copy), ("two", elsewhere))
        if mined(source, tmp_path / name, limit=2)
    }
    assert len(hashes) == 1
    with pytest.raises(ConfigMismatchError, match="sources"):  # the licence is
        mined(elsewhere, tmp_path / "two", limit=2, license=["in=CC0-1.0"])


def test_how_a_licence_is_spelled_is_no_part_of_the_configuration(photographs_copy: Path, tmp_path: Path) -> None:
    """Also for a run that was planned when it was kept as it was typed."""
    first = mined(photographs_copy, tmp_path / "out", limit=2, license=["in=CC-BY-4.0"])
    path = tmp_path / "out" / "plan.json"
    plan = json.loads(path.read_bytes())
    for sources in (plan["config"]["sources"], plan["sources"]):
        sources[0]["license"] = "cc-by-4.0"
    path.write_bytes(canonical_json(sealed(plan)))
    for text in ("CC-BY-4.0", "cc-by-4.0"):
        assert mined(photographs_copy, tmp_path / "out", limit=2, license=[f"in={text}"])["digest"] == first["digest"]


def test_a_run_goes_on_after_its_photographs_were_moved(
    photographs_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = mined(photographs_copy, tmp_path / "out")
    for commit in sorted((tmp_path / "out" / "commits").iterdir())[1:]:
        commit.unlink()
    (tmp_path / "out" / "manifest.json").unlink()
    moved = photographs_copy.rename(tmp_path / "moved")
    again = mined(moved, tmp_path / "out")
    assert again["digest"] == first["digest"]
    assert again["units_done_now"] == again["units"] - 1
    told = capsys.readouterr().err
    assert f"source in was planned in {photographs_copy} and is read from {moved} now" in told


def test_a_run_whose_plan_hashes_places_goes_on(photographs_copy: Path, tmp_path: Path) -> None:
    """As plans were written at first."""
    plan = tmp_path / "out" / "plan.json"
    flags = MineFlags(input=[f"in={photographs_copy}"], output=str(tmp_path / "out"), samples_per_shard=2)
    options = mine_options(flags)
    frozen_plan(open_output(options.flags.output), options)
    record = {name: value for name, value in json.loads(plan.read_bytes()).items() if name != SEAL}
    record["config"]["sources"] = record["sources"]
    record["config_hash"] = config_hash(record["config"])
    plan.write_bytes(canonical_json(sealed(record)))
    assert mined(photographs_copy, tmp_path / "out")["samples"] == 5
    commits = sorted((tmp_path / "out" / "commits").iterdir())
    assert {json.loads(each.read_bytes())["config_hash"] for each in commits} == {record["config_hash"]}
    assert list(verify_run(open_dataset(str(tmp_path / "out")))) == []


def test_a_changed_source_is_named(photographs_copy: Path, tmp_path: Path) -> None:
    mined(photographs_copy, tmp_path / "out")
    changed = photographs_copy / "p03.png"
    Image.new("RGB", (30, 30)).save(changed)
    with pytest.raises(InputError, match=r"p03\.png"):
        mined(photographs_copy, tmp_path / "out")
    changed.unlink()
    with pytest.raises(InputError, match=r"p03\.png"):
        mined(photographs_copy, tmp_path / "out")


def test_new_files_wait_for_extend(photographs_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = mined(photographs_copy, tmp_path / "out")
    kept = {name: data for name, data in files_of(tmp_path / "out").items() if not name.startswith("index-all")}
    Image.new("RGB", (40, 40), (9, 200, 30)).save(photographs_copy / "p01b.png")
    assert mined(photographs_copy, tmp_path / "out")["digest"] == first["digest"]
    assert "p01b.png" in capsys.readouterr().err
    extended = mined(photographs_copy, tmp_path / "out", extend=True)
    assert extended["samples"] + extended["failures"] == first["samples"] + first["failures"] + 1
    assert extended["units_done_now"] == 1
    assert kept.items() <= files_of(tmp_path / "out").items()
    assert mined(photographs_copy, tmp_path / "out")["digest"] == extended["digest"]
    assert open_dataset(tmp_path / "out").units_total == first["units"] + 1


def test_limit_takes_the_first_samples_of_the_plan(photographs_copy: Path, tmp_path: Path) -> None:
    result = mined(photographs_copy, tmp_path / "out", limit=3)
    assert result["samples"] + result["failures"] == 3
    run = open_dataset(tmp_path / "out")
    uris = [row["source_uri"] for unit in run.units() for row in run.samples(unit).to_pylist()]
    assert set(uris) <= {"in/p00.jpg", "in/p01.png", "in/p02.jpg"}


def test_dry_run_writes_nothing(photographs_copy: Path, tmp_path: Path) -> None:
    flags = MineFlags(input=[f"in={photographs_copy}"], output=str(tmp_path / "out"), samples_per_shard=2)
    assert dry_run(mine_options(flags))["units"] == 3
    assert not (tmp_path / "out").exists()


def test_without_images_the_shard_holds_records_only(photographs_copy: Path, tmp_path: Path) -> None:
    mined(photographs_copy, tmp_path / "out", no_images=True)
    run = open_dataset(tmp_path / "out")
    row = run.samples(next(run.units())).to_pylist()[0]
    assert row["image_offset"] is None
    assert row["ext"] is None
    assert run.read_sample(row).file_name is None
    with pytest.raises(InputError, match="--no-images"):
        run.read_image(row)


def test_image_bytes_are_unchanged(photographs_copy: Path, tmp_path: Path) -> None:
    mined(photographs_copy, tmp_path / "out")
    run = open_dataset(tmp_path / "out")
    for unit in run.units():
        for row in run.samples(unit).to_pylist():
            assert run.read_image(row) == (photographs_copy / row["source_uri"].removeprefix("in/")).read_bytes()


def test_bad_files_are_rows_and_exit_4_beyond_the_limit(photographs_copy: Path, tmp_path: Path) -> None:
    (photographs_copy / "p00.jpg").write_bytes(b"")
    (photographs_copy / "p01.png").write_text("no image")
    result = mined(photographs_copy, tmp_path / "out")
    assert result["failures"] >= 2
    assert result["samples"] + result["failures"] == 5
    with pytest.raises(TooManyFailuresError) as caught:
        mined(photographs_copy, tmp_path / "out", max_failed_fraction=0.1)
    assert caught.value.exit_code == 4
    assert mined(photographs_copy, tmp_path / "out")["digest"] == result["digest"]


def test_retry_failed_does_its_units_again(
    photographs_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAINMILL_FAULT", "sample:raise:p03")
    broken = mined(photographs_copy, tmp_path / "out")
    assert broken["failure_reasons"]["worker_died"] == 1
    monkeypatch.delenv("GRAINMILL_FAULT")
    assert mined(photographs_copy, tmp_path / "out")["digest"] == broken["digest"]
    healed = mined(photographs_copy, tmp_path / "out", retry_failed=["worker_died"])
    assert healed["units_done_now"] == 1
    assert healed["digest"] == mined(photographs_copy, tmp_path / "other")["digest"]
    assert files_of(tmp_path / "out") == files_of(tmp_path / "other")
    with pytest.raises(InputError, match="retry-failed"):
        mined(photographs_copy, tmp_path / "out", retry_failed=["bad_luck"])


def test_overwrite_moves_only_what_the_format_owns(photographs_copy: Path, tmp_path: Path) -> None:
    output, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    mined(photographs_copy, output)
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("kept")
    (output / "notes.txt").write_text("mine")
    for path in (output / "failures", output / "index-all"):
        if path.is_dir():
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
        path.symlink_to(elsewhere)
    result = mined(photographs_copy, output, samples_per_shard=3, overwrite=True)
    assert result["units"] == 2
    assert (output / "notes.txt").read_text() == "mine"
    assert (elsewhere / "precious").read_text() == "kept"
    assert not list(output.glob(".trash-*"))


def test_foreign_directories_are_refused(photographs_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    for flags in ({}, {"overwrite": True}):
        with pytest.raises(InputError, match=r"letter\.txt"):
            mined(photographs_copy, tmp_path / "home", **flags)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no image"):
        mined(tmp_path / "empty", tmp_path / "out")


def test_a_second_driver_says_who_the_first_is(
    photographs_copy: Path, tmp_path: Path, start_mine: Callable[..., subprocess.Popen[str]]
) -> None:
    gate = tmp_path / "gate"
    fault = {"GRAINMILL_FAULT": "attempt-started:pause", "GRAINMILL_FAULT_GATE": str(gate)}
    first = start_mine(photographs_copy, tmp_path / "out", "--executor", "inline", **fault)
    while not (tmp_path / "out" / LEASE).exists() or not list((tmp_path / "out").glob("tmp/0*")):
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    with pytest.raises(OutputBusyError, match=str(first.pid)):
        mined(photographs_copy, tmp_path / "out")
    with pytest.raises(OutputBusyError, match=str(first.pid)):
        mined(photographs_copy, tmp_path / "out", overwrite=True)
    gate.touch()
    out, err = first.communicate(timeout=120)
    assert first.returncode == 0, err
    assert json.loads(out)["digest"] == mined(photographs_copy, tmp_path / "alone")["digest"]


def test_sigterm_stops_quickly_and_leaves_nothing_running(
    photographs_copy: Path, tmp_path: Path, start_mine: Callable[..., subprocess.Popen[str]]
) -> None:
    process = start_mine(
        photographs_copy, tmp_path / "out", "--executor", "local", "--workers", "2", GRAINMILL_FAULT="sample:hang:p00"
    )
    family = wait_for_family(process, members=4)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)  # the sample hangs for an hour
    assert process.returncode == 130, err
    assert "Traceback" not in err
    _, alive = psutil.wait_procs(family, timeout=120)
    assert not alive
    assert mined(photographs_copy, tmp_path / "out")["digest"] == mined(photographs_copy, tmp_path / "x")["digest"]


def wait_for_family(process: subprocess.Popen[str], members: int) -> list[psutil.Process]:
    """Waits for workers and children of a driver."""
    deadline_s = time.monotonic() + 120
    while time.monotonic() < deadline_s:
        family = psutil.Process(process.pid).children(recursive=True)
        if len(family) >= members:
            return family
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError(f"{members} processes did not start")


def test_a_full_disk_is_one_clear_error_and_the_rest_follows(
    photographs_copy: Path, tmp_path: Path, run_mine: Run
) -> None:
    """RLIMIT_FSIZE stands for the full disk: a shard cannot be written to its end."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    noise = Image.effect_noise((160, 160), 80).convert("RGB")
    noise.save(photographs_copy / "p09.png")
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limit[1]))
    try:
        done = run_mine(photographs_copy, tmp_path / "out", "--executor", "local", "--workers", "1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert done.returncode == 1, done.stderr
    assert "ulimit -f" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "out" / "shards").glob("00000002-*"))
    assert mined(photographs_copy, tmp_path / "out")["digest"] == mined(photographs_copy, tmp_path / "x")["digest"]


def test_an_output_that_is_a_file_is_one_clear_error(photographs_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises((StorageError, InputError), match="out"):
        mined(photographs_copy, tmp_path / "out")
