"""A map over processes: in order or as they are done, never far ahead, and an error ends it."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator

import pytest

from pipeline.environment.process_map import process_map


def square(number: int) -> int:
    if number < 0:
        raise ValueError(f"{number} is negative")
    return number * number


def slow_first(number: int) -> int:
    time.sleep(1.0 if number == 0 else 0.0)
    return number


def assert_ended() -> None:
    """No worker process is left."""
    for process in multiprocessing.active_children():
        until = time.monotonic() + 60
        while process.is_alive() and time.monotonic() < until:  # the pool's own thread may be just about to reap it
            time.sleep(0.01)
        assert not process.is_alive()


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_items(workers: int) -> None:
    assert list(process_map(square, range(9), workers=workers)) == [(n, n * n) for n in range(9)]
    assert list(process_map(square, [], workers=workers)) == []


def test_what_is_done_first_comes_first_where_that_is_asked_for() -> None:
    found = [item for item, _ in process_map(slow_first, range(6), workers=2, as_completed=True)]
    assert sorted(found) == list(range(6))
    assert found[0] != 0


def test_items_are_taken_as_they_are_needed() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    results = process_map(square, items(), workers=2, ahead=3)
    next(results)
    assert len(taken) == 6
    results.close()  # type: ignore[attr-defined]
    assert_ended()


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_ends_it(workers: int) -> None:
    with pytest.raises(ValueError, match="-1 is negative"):
        list(process_map(square, [1, -1, *range(100)], workers=workers))
    assert_ended()
