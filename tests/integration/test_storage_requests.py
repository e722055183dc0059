"""How many requests an answer of the store gets, counted at a real server on loopback: s3fs and botocore add none."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pipeline.cli import main
from pipeline.release.verify import verify_release
from pipeline.storage.base import StorageError
from pipeline.storage.object_store import ObjectStorage
from pipeline.storage.open import open_versioned
from pipeline.storage.retry import ATTEMPTS, FIRST_WAIT_S, LONGEST_WAIT_S
from tests.faulty_store import FaultyStore

FINAL = ("400", "403")
"""Answers that another try does not change."""
PASSING = ("500", "503", "cut", "lost")
UNANSWERED = ("cut", "lost")


@pytest.fixture
def store(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyStore]:
    """A proxy between the S3 clients of this process and their server."""
    import fsspec
    import s3fs

    proxy = FaultyStore(urlsplit(os.environ["AWS_ENDPOINT_URL"]).port or 0)
    endpoint = f"http://127.0.0.1:{proxy.server_address[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setitem(fsspec.config.conf["s3"], "endpoint_url", endpoint)
    s3fs.S3FileSystem.clear_instance_cache()
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    yield proxy
    proxy.shutdown()
    proxy.server_close()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses between tries, noted and not slept."""
    slept: list[float] = []
    monkeypatch.setattr("pipeline.storage.retry.time.sleep", slept.append)
    return slept


def fails(fault: str, method: str, ending: str, times: int = 1000) -> Callable[[str, str], str | None]:
    """A fault for the first so many requests of a method and a path that ends so."""
    left = iter(range(times))

    def choose(asked: str, path: str) -> str | None:
        return (
            fault if asked == method and path.split("?")[0].endswith(ending) and next(left, None) is not None else None
        )

    return choose


def growing(waits: list[float]) -> bool:
    """Twice as long each time, up to a bound, give or take a half."""
    planned = [min(FIRST_WAIT_S * 2**number, LONGEST_WAIT_S) for number in range(len(waits))]
    return all(0.5 <= slept / expected <= 1.5 for slept, expected in zip(waits, planned, strict=True))


def expect_tries(found: int, fault: str) -> None:
    """One request for an answer that stays, one for each attempt for one that passes.

    Where a connection that was kept open ends without an answer, aiohttp asks once more by a new one.
    """
    tries = 1 if fault in FINAL else ATTEMPTS
    assert tries <= found <= (2 * tries if fault in UNANSWERED else tries)


def push(release: Path, target: str) -> int:
    return main(["release", "--output", str(release), "--push", target])


def puts(store: FaultyStore) -> Counter[str]:
    """Of each file."""
    return Counter(
        path.split("?")[0].rpartition("/push-")[2].partition("/")[2] for method, path in store.seen if method == "PUT"
    )


@pytest.mark.parametrize("fault", ["400", "403", "500", "lost"])
def test_a_push_puts_a_file_once_or_until_it_is_answered(
    fault: str, store: FaultyStore, s3: str, drawn_release: Path, waits: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    target = f"{s3}/push-{fault}"
    store.choose = fails(fault, "PUT", "/statistics.json")
    assert push(drawn_release, target) == 1
    tries = 1 if fault in FINAL else ATTEMPTS
    sent = puts(store)
    expect_tries(sent.pop("statistics.json"), fault)
    assert set(sent.values()) == {1}, "files before it went once"
    assert "manifest.json" not in sent
    assert len(waits) == tries - 1
    assert growing(waits)
    said = capsys.readouterr().err
    assert "statistics.json" in said
    assert "the same command goes on from here" in said
    assert (f"{tries} attempts failed" in said) == (fault in PASSING)
    store.choose, before = None, set(sent)
    store.seen.clear()
    assert push(drawn_release, target) == 0
    assert not before & set(puts(store)), "what is there is not sent again"


@pytest.mark.parametrize("fault", ["500", "lost"])
def test_a_push_goes_on_after_answers_that_pass(
    fault: str, store: FaultyStore, s3: str, drawn_release: Path, waits: list[float]
) -> None:
    """Also after one that was lost although the file is there."""
    target = f"{s3}/push-past-{fault}"
    store.choose = fails(fault, "PUT", ".tar", times=4)
    assert push(drawn_release, target) == 0
    assert sum(count - 1 for count in puts(store).values()) == 4
    assert 1 <= len(waits) <= 4
    assert list(verify_release(open_versioned(target), deep=True)) == []


@pytest.mark.parametrize("fault", [*FINAL, *PASSING])
def test_a_read_is_asked_for_once_or_until_it_is_answered(
    fault: str, store: FaultyStore, s3: str, waits: list[float]
) -> None:
    storage = ObjectStorage(f"{s3}/read-{fault}")
    storage.put_atomic("a.bin", b"0123456789")
    store.choose = fails(fault, "GET", "/a.bin")
    store.seen.clear()
    tries = 1 if fault in FINAL else ATTEMPTS
    for read in (
        lambda: storage.read_range("a.bin", 2, 3),
        lambda: storage.read_at("a.bin", 2, 3),
        lambda: storage.read_bytes("a.bin"),
        lambda: list(storage.read_many(["a.bin"])),
    ):
        with pytest.raises(StorageError, match="attempts failed" if fault in PASSING else "cannot read"):
            read()
        expect_tries(Counter(method for method, _ in store.seen)["GET"], fault)
        assert len(waits) == tries - 1
        assert growing(waits)
        store.seen.clear()
        waits.clear()
    store.choose = fails(fault, "GET", "/a.bin", times=2)
    if fault in PASSING:
        assert storage.read_range("a.bin", 2, 3) == b"234"


@pytest.mark.parametrize("fault", [*FINAL, *PASSING])
def test_looking_at_a_file_is_tried_alike(fault: str, store: FaultyStore, s3: str, waits: list[float]) -> None:
    storage = ObjectStorage(f"{s3}/look-{fault}")
    storage.put_atomic("a.bin", b"0123456789")
    store.choose = fails(fault, "HEAD", "/a.bin")
    store.seen.clear()
    with pytest.raises(StorageError):
        storage.size("a.bin")
    asked = sum(path.endswith("/a.bin") for _, path in store.seen)
    if fault == "400":  # may mean another region: botocore asks which the bucket's is, and once more for the file
        assert asked == 2
    else:
        expect_tries(asked, fault)


def test_a_commit_whose_answer_was_lost_is_ours_and_anothers_is_not(store: FaultyStore, s3: str) -> None:
    storage = ObjectStorage(f"{s3}/commits")
    store.choose = fails("lost", "PUT", "/0.json", times=1)
    assert storage.write_new("0.json", b"mine")
    assert [method for method, _ in store.seen][:2] == ["PUT", "PUT"], "the second finds the first"
    assert not storage.write_new("0.json", b"another's")
    assert storage.read_bytes("0.json") == b"mine"


def test_of_a_multipart_upload_only_the_part_that_was_lost_is_sent_again(
    store: FaultyStore, s3: str, tmp_path: Path, waits: list[float]
) -> None:
    storage = ObjectStorage(f"{s3}/parts")
    storage.part_bytes = 5 * 2**20
    data = os.urandom(13 * 2**20)
    (tmp_path / "big").write_bytes(data)
    store.choose = fails("500", "PUT", "/big", times=2)
    storage.upload(tmp_path / "big", "big")
    assert Counter(method for method, _ in store.seen) == {"POST": 2, "PUT": 5}
    assert len(waits) == 2
    store.choose = None
    assert storage.read_bytes("big") == data
    left = iter([None, "lost"])
    store.choose = lambda method, path: next(left, None) if method == "POST" else None
    storage.upload(tmp_path / "big", "again")  # completed, and not answered: no such upload any more
    assert storage.read_bytes("again") == data
    assert storage.unfinished_uploads() == []
    store.choose = fails("403", "PUT", "/big")
    with pytest.raises(StorageError, match="cannot write"):
        storage.upload(tmp_path / "big", "other/big")
    assert storage.unfinished_uploads() == []
