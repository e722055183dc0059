"""A release reaches a folder, an S3 server and a Hub of the test's own: in order, resumed, retried, without secrets."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.data.shards import ShardIndex
from pipeline.cli import main
from pipeline.dataset.open import open_dataset
from pipeline.release.push import push_release
from pipeline.release.push_plan import PushError, files_in_order
from pipeline.release.verify import verify_release
from pipeline.storage.local import LocalStorage
from pipeline.storage.open import open_storage, open_versioned
from pipeline.storage.retry import ATTEMPTS

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the Hub's client, of httpx


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses between tries are noted, not slept."""
    slept: list[float] = []
    monkeypatch.setattr("pipeline.storage.retry.time.sleep", slept.append)
    return slept


def problems(location: str) -> list[str]:
    return [str(problem) for problem in verify_release(open_versioned(location), deep=True)]


def release_of(folder: Path) -> LocalStorage:
    storage = open_storage(folder)
    assert isinstance(storage, LocalStorage)
    return storage


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_manifest_goes_last_and_descriptions_before_it(drawn_release: Path) -> None:
    storage = release_of(drawn_release)
    names = files_in_order(storage, json.loads((drawn_release / "manifest.json").read_bytes()))
    assert set(names) == set(files(drawn_release))
    assert names[-4:] == ["machines.json", "SHA256SUMS", "versions/1.0.0/manifest.json", "manifest.json"]
    described = min(names.index(name) for name in ("README.md", "croissant.json", "statistics.json"))
    assert max(names.index(name) for name in names if name.endswith((".tar", ".parquet", ".svg"))) < described


# ---------------------------------------------------------------------------------------------------------------------
# Folders


def test_a_folder_gets_an_equal_copy(drawn_release: Path, tmp_path: Path) -> None:
    report = push_release(release_of(drawn_release), str(tmp_path / "there"))
    assert files(tmp_path / "there") == files(drawn_release)
    assert len(report.sent) == len(files(drawn_release))
    again = push_release(release_of(drawn_release), str(tmp_path / "there"))
    assert (again.sent, again.standing) == ([], len(report.sent))


def test_a_push_that_died_goes_on(drawn_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before each of its files in turn: no manifest until all is there, and nothing is sent twice."""
    storage, real = release_of(drawn_release), LocalStorage.upload
    sent: list[str] = []

    def dying(self: LocalStorage, path: Path, name: str) -> None:
        if len(sent) % 5 == 4:
            sent.append("died")
            raise KeyboardInterrupt
        real(self, path, name)
        sent.append(name)

    monkeypatch.setattr(LocalStorage, "upload", dying)
    deaths = 0
    while True:
        try:
            push_release(storage, str(tmp_path / "there"))
            break
        except KeyboardInterrupt:
            deaths += 1
            assert not (tmp_path / "there" / "manifest.json").exists()
    assert deaths > 3
    whole = [name for name in sent if name != "died"]
    assert len(whole) == len(set(whole))
    assert problems(str(tmp_path / "there")) == []


def test_a_disk_that_is_full_ends_it_with_one_message(
    drawn_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pauses: list[float]
) -> None:
    """What a local file system says is not asked for again; a store's answers are (`test_storage_requests`)."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(PushError, match=r"the disk is full; .*; the same command goes on from here"):
        push_release(release_of(drawn_release), str(tmp_path / "there"))
    assert no_pauses == []
    assert not (tmp_path / "there" / "manifest.json").exists()


def test_a_folder_with_other_things_and_the_release_itself_are_refused(drawn_release: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("mine", encoding="utf-8")
    for target in (tmp_path, drawn_release):
        assert main(["release", "--output", str(drawn_release), "--push", str(target)]) == 2


def test_a_damaged_release_is_not_pushed(
    drawn_release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(drawn_release, tmp_path / "rel")
    shard = next((tmp_path / "rel" / "shards").glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert main(["release", "--output", str(tmp_path / "rel"), "--push", str(tmp_path / "there")]) == 2
    assert f"damaged: shards/{shard.name}" in capsys.readouterr().err
    assert not (tmp_path / "there").exists()


def test_a_new_version_replaces_the_old_one_there(
    drawn_release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(drawn_release, tmp_path / "rel")
    there = tmp_path / "there"
    push_release(release_of(tmp_path / "rel"), str(there))
    row = open_dataset(drawn_release).samples(next(open_dataset(drawn_release).units())).to_pylist()[0]
    (tmp_path / "out.txt").write_text(row["key"], encoding="utf-8")
    command = ["release", "--output", str(tmp_path / "rel"), "--name", "drawn", "--version", "2.0.0"]
    command += [
        "--license",
        "CC-BY-4.0",
        "--append",
        "--exclude",
        str(tmp_path / "out.txt"),
        "--push",
        str(there),
        "--json",
    ]
    assert main(command) == 0
    pushed = json.loads(capsys.readouterr().out)["push"]
    assert any(name.startswith("shards/") for name in pushed["removed"])
    assert problems(str(there)) == []
    assert problems(str(there / "versions" / "1.0.0")) == []
    assert files(there) == files(tmp_path / "rel")


# ---------------------------------------------------------------------------------------------------------------------
# S3


@pytest.fixture(scope="module")
def pushed(s3: str, drawn_release: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """`drawn_release` on S3, by the command."""
    target = f"{s3}/team/drawn"
    assert main(["release", "--output", str(drawn_release), "--push", target, "--json"]) == 0
    return target


def test_s3_holds_the_release_and_verifies(
    pushed: str, drawn_release: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert problems(pushed) == []
    assert main(["verify", pushed, "--deep"]) == 0
    there = open_storage(pushed)
    assert {name: there.read_bytes(name) for name in files(drawn_release)} == files(drawn_release)
    assert main(["release", "--output", str(drawn_release), "--push", pushed, "--json"]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])["push"]
    assert (again["sent"], again["standing"]) == ([], len(files(drawn_release)))


def test_s3_is_read_by_url_like_a_folder(pushed: str, drawn_release: Path, tmp_path: Path) -> None:
    """Statistics, training's loader, a gallery's page: all take the URL."""
    here, there = open_dataset(drawn_release), open_dataset(pushed)
    assert here.totals() == there.totals()
    index = ShardIndex.open(pushed)
    assert index.digest == ShardIndex.open(drawn_release).digest
    assert index.load(3).image.shape == ShardIndex.open(drawn_release).load(3).image.shape
    assert len(ShardIndex.open(f"{pushed}/versions/1.0.0")) == 7
    assert main(["stats", pushed]) == 0
    assert main(["export", pushed, "--to", "coco", "--output", str(tmp_path / "coco")]) == 0
    assert main(["view", pushed, "--output", str(tmp_path / "report.html")]) == 0


def test_s3_shards_are_mined_from_by_url(pushed: str, tmp_path: Path) -> None:
    """The released tars are an input like any others: seven images, each with its bytes' sha256."""
    from pipeline.sources.listing import plan_units
    from pipeline.sources.unit_reader import UnitReader
    from pipeline.sources.units import parse_inputs

    specs = parse_inputs([f"again={pushed}/shards"])
    units = list(plan_units(specs, samples_per_shard=4, limit=None))
    found = []
    for unit in units:
        with UnitReader(unit, specs) as reader:
            found += [reader.read(number).sha256 for number in range(len(reader))]
    run = open_dataset(pushed)
    assert sorted(found) == sorted(
        row["source_sha256"] for unit in run.units() for row in run.samples(unit).to_pylist()
    )


def test_no_secret_is_written_anywhere(pushed: str, drawn_release: Path, secret: str) -> None:
    for name, data in files(drawn_release).items():
        assert secret.encode() not in data, name
        assert b"s3://" not in data, name


def test_a_bucket_that_is_not_there_is_one_message(
    s3: str, drawn_release: Path, capsys: pytest.CaptureFixture[str], no_pauses: list[float]
) -> None:
    assert main(["release", "--output", str(drawn_release), "--push", "s3://nowhere/x"]) == 1
    assert "s3://nowhere/x" in capsys.readouterr().err
    assert no_pauses == []


# ---------------------------------------------------------------------------------------------------------------------
# The Hub


def test_the_hub_gets_data_first_and_what_describes_it_in_the_last_commit(
    hub: Any,
    drawn_release: Path,
    secret: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import pipeline.release.push_hub as push_hub

    monkeypatch.setattr(push_hub, "FILES_PER_COMMIT", 7)
    assert main(["release", "--output", str(drawn_release), "--push", "hf://team/drawn", "--json"]) == 0
    assert hub.files == files(drawn_release)
    assert len(hub.commits) > 3
    assert {"README.md", "manifest.json", "SHA256SUMS", "croissant.json"} <= set(hub.commits[-1][1])
    assert not any(name in ("README.md", "manifest.json") for _, added, _ in hub.commits[:-1] for name in added)
    assert hub.tags == ["v1.0.0"]
    assert {token for token in hub.tokens if token} == {f"Bearer {secret}"}
    captured = capsys.readouterr()
    assert secret not in captured.out + captured.err
    assert not any(secret.encode() in data for data in hub.files.values())
    before = len(hub.commits)
    report = push_release(release_of(drawn_release), "hf://team/drawn")
    assert (report.sent, report.standing, len(hub.commits)) == ([], len(files(drawn_release)), before)


def test_the_hub_is_tried_again_when_it_is_busy(
    hub: Any, drawn_release: Path, no_pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.utils._http as client

    monkeypatch.setattr(client.time, "sleep", lambda seconds: None)
    hub.fail_next = 2
    push_release(release_of(drawn_release), "hf://datasets/team/drawn")
    assert hub.files == files(drawn_release)


@pytest.mark.parametrize(("status", "tries"), [(400, 1), (403, 1), (404, 1), (409, 1), (503, ATTEMPTS)])
def test_the_hub_is_asked_again_only_where_that_may_help(
    status: int, tries: int, hub: Any, drawn_release: Path, no_pauses: list[float]
) -> None:
    hub.fail_next, hub.fail_with = 1000, status
    with pytest.raises(PushError, match=r"the same command goes on from here"):
        push_release(release_of(drawn_release), "hf://team/drawn")
    assert sum("/commit/" in path for _, path in hub.asked) == tries
    assert len(no_pauses) == tries - 1


def test_a_new_version_takes_away_what_it_does_not_have(hub: Any, drawn_release: Path, tmp_path: Path) -> None:
    push_release(release_of(drawn_release), "hf://team/drawn")
    shutil.copytree(drawn_release, tmp_path / "rel")
    row = open_dataset(drawn_release).samples(next(open_dataset(drawn_release).units())).to_pylist()[0]
    (tmp_path / "out.txt").write_text(row["key"], encoding="utf-8")
    command = ["release", "--output", str(tmp_path / "rel"), "--name", "drawn", "--version", "2.0.0"]
    command += [
        "--license",
        "CC-BY-4.0",
        "--append",
        "--exclude",
        str(tmp_path / "out.txt"),
        "--push",
        "hf://team/drawn",
    ]
    assert main(command) == 0
    assert hub.files == files(tmp_path / "rel")
    assert hub.tags == ["v1.0.0", "v2.0.0"]
    assert any(name.startswith("shards/") for name in hub.commits[-1][2])


def test_a_dry_run_tells_every_call_and_makes_none(
    hub: Any, drawn_release: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert main(["release", "--output", str(drawn_release), "--push", "hf://team/drawn", "--push-dry-run"]) == 0
    said = capsys.readouterr().out
    assert re.search(
        r"create_repo team/drawn .*list_repo_tree .*create_commit 'Data .*create_tag v1.0.0", said, re.DOTALL
    )
    assert all(f"add {name}\n" in said + "\n" for name in files(drawn_release))
    assert (hub.commits, hub.tokens) == ([], set())


@pytest.mark.parametrize("target", ["hf://drawn", "hf://team/drawn/more", "ftp://x/y", "s3://user:word@b/x", "a::b"])
def test_targets_that_are_not_allowed(
    target: str, drawn_release: Path, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", secret)
    assert main(["release", "--output", str(drawn_release), "--push", target]) == 2


def test_the_hub_needs_a_token_from_the_environment(
    drawn_release: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert main(["release", "--output", str(drawn_release), "--push", "hf://team/drawn"]) == 2
    assert "set HF_TOKEN in the environment" in capsys.readouterr().err


def test_making_and_pushing_in_one_command_resumes(
    drawn_run: Path, tmp_path: Path, write_drawn_run: Callable[..., Path]
) -> None:
    command = ["release", str(drawn_run), "--output", str(tmp_path / "rel"), "--name", "drawn", "--version", "1.0.0"]
    command += ["--license", "CC-BY-4.0", "--push", str(tmp_path / "there")]
    assert main(command) == 0
    (tmp_path / "there" / "manifest.json").unlink()
    assert main(command) == 0  # as it stands, and pushed to its end
    assert problems(str(tmp_path / "there")) == []
