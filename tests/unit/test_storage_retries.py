"""How requests to a store are repeated, without a store: what is tried again, what is an answer, how long it waits."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.storage import retry
from pipeline.storage.base import StorageError
from pipeline.storage.object_store import ObjectStorage, offers_conditional_puts
from pipeline.storage.open import open_storage
from pipeline.storage.retry import retrying


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that would have been slept."""
    slept: list[float] = []
    monkeypatch.setattr("pipeline.storage.retry.time.sleep", slept.append)
    return slept


def failing(times: int, error: Exception) -> Callable[[], str]:
    attempts = itertools.count()

    def request() -> str:
        if next(attempts) < times:
            raise error
        return "answer"

    return request


def test_a_request_is_repeated_with_growing_waits(waits: list[float]) -> None:
    assert retrying("read x", failing(5, OSError("reset"))) == "answer"
    assert len(waits) == 5
    for number, slept in enumerate(waits):
        assert 0.5 <= slept / (retry.FIRST_WAIT_S * 2**number) <= 1.5


def test_waits_differ_from_one_worker_to_the_next(waits: list[float]) -> None:
    for _ in range(20):
        retrying("read x", failing(1, TimeoutError()))
    assert len(set(waits)) == 20


@pytest.mark.parametrize("answer", [FileNotFoundError("gone"), FileExistsError("taken")])
def test_answers_are_not_repeated(answer: OSError, waits: list[float]) -> None:
    with pytest.raises(type(answer)):
        retrying("read x", failing(3, answer))
    assert waits == []


@pytest.mark.parametrize("error", [PermissionError("no rights"), ValueError("a defect of ours")])
def test_what_no_repetition_mends_ends_at_once(error: Exception, waits: list[float]) -> None:
    with pytest.raises(StorageError, match="cannot read x"):
        retrying("read x", failing(1, error))
    assert waits == []


def test_no_answer_at_all_says_what_to_do(waits: list[float]) -> None:
    with pytest.raises(
        StorageError, match=r"8 attempts failed, the last with OSError: 500; run the same command again"
    ):
        retrying("write s3://b/x", failing(100, OSError("500")))
    assert len(waits) == retry.ATTEMPTS - 1
    assert sum(waits) < 60


def answered(name: str, module: str, **attributes: object) -> Exception:
    """An error as the clients of Azure (`status_code`) and Google (`code`) raise it, without these clients."""
    kind = type(name, (Exception,), {"__module__": module})
    error: Exception = kind("why\nRequestId: the rest of the answer")
    for attribute, value in attributes.items():
        setattr(error, attribute, value)
    return error


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_statuses_that_pass_are_tried_again(status: int, waits: list[float]) -> None:
    for error in (
        answered("HttpResponseError", "azure.core.exceptions", status_code=status),
        answered("HttpError", "gcsfs.retry", code=str(status)),
    ):
        assert retrying("read x", failing(2, error)) == "answer"
    assert len(waits) == 4


@pytest.mark.parametrize("status", [400, 401, 403, 412, 416])
def test_statuses_that_stay_end_at_once(status: int, waits: list[float]) -> None:
    for error in (
        answered("HttpResponseError", "azure.core.exceptions", status_code=status),
        answered("HttpError", "gcsfs.retry", code=status),
    ):
        with pytest.raises(StorageError, match=r"cannot read x: .*why$") as caught:
            retrying("read x", failing(1, error))
        assert isinstance(caught.value.__cause__, PermissionError) == (status in (401, 403))
    assert waits == []


def test_no_such_thing_and_no_rights_as_each_client_says_them(waits: list[float]) -> None:
    with pytest.raises(FileNotFoundError):
        retrying("read x", failing(1, answered("ResourceNotFoundError", "azure.core.exceptions", status_code=404)))
    with pytest.raises(StorageError, match="cannot read x: Forbidden") as caught:
        retrying("read x", failing(1, OSError("Forbidden: https://storage.googleapis.com/b/x\nno rights")))
    assert isinstance(caught.value.__cause__, PermissionError)
    assert waits == []


def test_missing_credentials_are_told_at_once(waits: list[float]) -> None:
    botocore = pytest.importorskip("botocore.exceptions", reason="botocore is not installed (the extra `s3`)")
    with pytest.raises(StorageError, match="NoCredentialsError"):
        retrying("read x", failing(1, botocore.NoCredentialsError()))
    assert waits == []


def test_a_local_folder_lets_the_first_writer_win(tmp_path: Path) -> None:
    assert offers_conditional_puts(open_storage(tmp_path))


def test_one_writer_without_conditional_puts() -> None:
    store = open_storage("memory://one-writer", conditional_puts=False)
    assert isinstance(store, ObjectStorage)
    assert store.write_new("commits/0.json", b"a")
    assert not store.write_new("commits/0.json", b"b")
    assert store.read_bytes("commits/0.json") == b"a"
    assert list(store.read_many(["commits/0.json", "commits/1.json"])) == [
        ("commits/0.json", b"a"),
        ("commits/1.json", None),
    ]
