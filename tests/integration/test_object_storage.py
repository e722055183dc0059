"""Object storage: a real S3-compatible server on loopback, behind a proxy that fails now and then on purpose."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.dataset.open import open_dataset
from pipeline.dataset.verify import verify_run
from pipeline.shards.commits import CommitLog
from pipeline.sources.roots import open_root
from pipeline.storage.base import StorageError
from pipeline.storage.object_store import ObjectStorage, offers_conditional_puts
from pipeline.storage.open import open_storage
from pipeline.units.batches import PREFETCH_BYTES
from tests.faulty_store import FaultyStore

pytest.importorskip("s3fs", reason="s3fs is not installed (the extra `s3`)")
pytestmark = pytest.mark.slow
BUCKET = "grain"
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def store_port() -> Iterator[int]:
    """moto's server in a process of its own."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    script = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline_s = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            assert time.monotonic() < deadline_s, "the S3 server did not start"
            assert process.poll() is None
            time.sleep(0.1)
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def store(store_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyStore]:
    """A faulty store with an empty bucket; every S3 client of this process and its children is pointed at it."""
    import s3fs

    proxy = FaultyStore(store_port)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.server_address[1]}",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    reset = http.client.HTTPConnection("127.0.0.1", store_port)
    reset.request("POST", "/moto-api/reset")
    assert reset.getresponse().status == 200
    reset.close()
    s3fs.S3FileSystem().mkdir(BUCKET)
    yield proxy
    proxy.shutdown()
    proxy.server_close()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def s3(store: FaultyStore) -> ObjectStorage:
    found = open_storage(f"s3://{BUCKET}/run")
    assert isinstance(found, ObjectStorage)
    return found


def upload(folder: Path, prefix: str) -> None:
    import s3fs

    for path in folder.iterdir():
        s3fs.S3FileSystem().pipe_file(f"{BUCKET}/{prefix}/{path.name}", path.read_bytes())


HICCUPS = {"500": 0.06, "503": 0.04, "slow": 0.04, "cut": 0.06, "lost": 0.06}


def test_the_contract_of_storage_through_every_kind_of_fault(
    s3: ObjectStorage, store: FaultyStore, tmp_path: Path
) -> None:
    store.faults = HICCUPS
    for number in range(12):
        name = f"commits/{number:08d}.json"
        assert s3.write_new(name, b"first %d" % number)
        assert not s3.write_new(name, b"second")
        assert s3.read_bytes(name) == b"first %d" % number
        assert s3.read_range(name, 2, 3) == b"rst"
    assert s3.list("commits") == [f"{number:08d}.json" for number in range(12)]
    names = [f"commits/{number:08d}.json" for number in (3, 99, 4)]
    assert list(s3.read_many(names)) == [(names[0], b"first 3"), (names[1], None), (names[2], b"first 4")]
    s3.put_atomic("manifest.json", b"old")
    s3.put_atomic("manifest.json", b"new")
    assert s3.read_bytes("manifest.json") == b"new"
    assert (s3.size("manifest.json"), s3.size("nothing"), s3.exists("commits")) == (3, None, False)
    (tmp_path / "shard").write_bytes(b"x" * 1000)
    s3.publish(tmp_path / "shard", "shards/one.tar")
    assert not (tmp_path / "shard").exists()
    assert s3.size("shards/one.tar") == 1000
    with pytest.raises(StorageError, match="expected 10 bytes at offset 995"):
        s3.read_range("shards/one.tar", 995, 10)
    s3.remove("manifest.json")
    s3.remove("manifest.json")
    with pytest.raises(StorageError, match="it is missing"):
        s3.read_bytes("manifest.json")
    assert set(store.met) == set(HICCUPS), "some fault never happened: the test shows less than it says"


def test_a_put_that_was_done_and_not_answered_is_ours(s3: ObjectStorage, store: FaultyStore) -> None:
    store.faults = {"lost": 1.0}

    def answer_again() -> None:
        """Once two answers were lost, however long that took."""
        while store.met["lost"] < 2:
            time.sleep(0.01)
        store.faults = {}

    threading.Thread(target=answer_again, daemon=True).start()
    assert s3.write_new("commits/00000000.json", b"mine")
    assert store.met["lost"] >= 2
    assert not s3.write_new("commits/00000000.json", b"another's")


def test_many_writers_one_wins(s3: ObjectStorage, store: FaultyStore) -> None:
    store.faults = HICCUPS
    won: list[int] = []

    def race(number: int) -> None:
        if s3.write_new("commits/00000007.json", b"attempt %d" % number):
            won.append(number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert s3.read_bytes("commits/00000007.json") == b"attempt %d" % won[0]


def test_multipart_uploads_are_whole_and_leave_nothing_behind(
    s3: ObjectStorage, store: FaultyStore, tmp_path: Path
) -> None:
    s3.part_bytes = 5 * 2**20
    data = os.urandom(13 * 2**20)
    store.faults = {"500": 0.1, "cut": 0.1, "lost": 0.1}
    for number in range(3):
        (tmp_path / "big").write_bytes(data)
        s3.publish(tmp_path / "big", f"shards/{number}.tar")
    store.faults = {}
    assert all(s3.read_bytes(f"shards/{number}.tar") == data for number in range(3))
    assert store.met.total() > 0
    # A worker that was killed in the middle of an upload:
    s3._fs.call_s3("create_multipart_upload", Bucket=BUCKET, Key="run/shards/9.tar")
    s3._fs.call_s3("create_multipart_upload", Bucket=BUCKET, Key="another-run/shards/9.tar")
    assert ("run/shards/9.tar") in [key for key, _ in s3.unfinished_uploads()]
    s3.clean_scratch()
    assert s3.unfinished_uploads() == []
    assert len(open_storage(f"s3://{BUCKET}/another-run").unfinished_uploads()) == 1  # type: ignore[attr-defined]


def test_a_store_that_never_answers_ends_with_one_clear_error(
    s3: ObjectStorage, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.storage.retry.FIRST_WAIT_S", 0.001)
    store.faults = {"500": 1.0}
    with pytest.raises(StorageError, match="attempts failed") as caught:
        s3.read_bytes("plan.json")
    assert "s3://grain/run/plan.json" in str(caught.value)
    assert "testing" not in str(caught.value), "credentials never reach a message"


def test_reads_of_inputs_are_ranged(s3: ObjectStorage, store: FaultyStore) -> None:
    data = os.urandom(4 * 2**20)
    s3.put_atomic("inputs/a.tar", data)
    root = open_root(f"s3://{BUCKET}/run/inputs")
    store.faults = HICCUPS
    store.ranges = 0
    for number in range(10):
        assert root.reader.read_at("a.tar", 1000 * number, 500) == data[1000 * number : 1000 * number + 500]
    with root.reader.open("a.tar") as stream:
        stream.seek(3 * 2**20)
        assert stream.read(100) == data[3 * 2**20 :][:100]
    assert store.ranges >= 11


def watch_scratch(folder: Path, stop: threading.Event, peak: list[int]) -> None:
    while not stop.wait(0.02):
        size = 0
        for path in folder.rglob("*"):
            with contextlib.suppress(OSError):
                size += path.stat().st_size if path.is_file() else 0
        peak.append(size)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("conditions", ["kept", "ignored"])
def test_a_run_on_a_store_that_fails_now_and_then(
    conditions: str, store: FaultyStore, small_photographs: Path, tmp_path: Path, undisturbed_digest: str
) -> None:
    """Inputs and outputs on S3, a worker killed on the way: the digest is that of an undisturbed run on local disk."""
    upload(small_photographs, "photos")
    store.faults, store.conditions = dict.fromkeys(HICCUPS, 0.015), conditions
    (tmp_path / "once").mkdir()
    (tmp_path / "scratch").mkdir()
    output = f"s3://{BUCKET}/mined"
    stop, peak = threading.Event(), [0]
    watcher = threading.Thread(target=watch_scratch, args=(tmp_path / "scratch", stop, peak))
    watcher.start()
    command = [sys.executable, "-m", "pipeline", "mine", "--input", f"in=s3://{BUCKET}/photos", "--output", output]
    environment = {
        **os.environ, "GRAINMILL_FAULT": "published:kill:1", "GRAINMILL_FAULT_ONCE": str(tmp_path / "once"),
        "TMPDIR": str(tmp_path / "scratch"),
    }  # fmt: skip
    done = subprocess.run(
        [*command, "--executor", "local", "--workers", "2", "--samples-per-shard", "2", "--json"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    stop.set()
    watcher.join()
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["digest"] == undisturbed_digest
    assert result["failures"] == 0, "a hiccup of the store is no fault of a sample"
    assert store.met.total() > 3
    assert ("this driver writes all commits itself" in done.stderr) == (conditions == "ignored")
    store.faults = {}
    run = open_dataset(output)
    largest = max(sum(file["size"] for file in commit.files()) for commit in run.commits())
    index = sum(file["size"] for file in run.manifest["index"].values())  # type: ignore[index]
    assert max(peak) <= 2 * 2 * largest + index, "more lay on local disk than one unit for each worker and the index"
    assert len(CommitLog(run.storage).committed(run.units_total)) == sum(
        CommitLog(run.storage).committed(run.units_total)
    )
    assert list(verify_run(run, deep=True)) == []


def test_conditional_puts_are_found_out_by_trying(s3: ObjectStorage, store: FaultyStore) -> None:
    assert offers_conditional_puts(s3)
    store.conditions = "ignored"
    assert not offers_conditional_puts(s3)
    assert s3.list("tmp") == []


def test_bytes_are_read_ahead_within_a_bound(store: FaultyStore, small_photographs: Path) -> None:
    from pipeline.sources.listing import plan_units
    from pipeline.sources.unit_reader import UnitReader
    from pipeline.sources.units import parse_inputs

    upload(small_photographs, "photos")
    sources = parse_inputs([f"in=s3://{BUCKET}/photos"])
    unit = next(plan_units(sources, samples_per_shard=50, limit=None))
    with UnitReader(unit, sources) as reader:
        before = store.requests["GET"]
        reader.prefetch(range(5), max_bytes=PREFETCH_BYTES)
        deadline_s = time.monotonic() + 120
        while store.requests["GET"] < before + 5 and time.monotonic() < deadline_s:
            time.sleep(0.05)
        assert store.requests["GET"] == before + 5
        for position in range(5):
            path = small_photographs / unit.entries[position].path
            assert reader.read(position).image == path.read_bytes()
        assert store.requests["GET"] == before + 5, "what was read ahead was read again"
        reader.prefetch(range(5, 11), max_bytes=1)
        time.sleep(0.5)
        assert store.requests["GET"] <= before + 6, "more was read ahead than the bound allows"
