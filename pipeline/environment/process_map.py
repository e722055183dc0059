"""Work on many items in several processes, with a bounded number of them in flight."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from typing import Final, TypeVar

AHEAD: Final = 4
"""Items in flight for each worker process."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def process_map(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int,
    ahead: int = AHEAD,
    as_completed: bool = False,
) -> Iterator[tuple[Item, Result]]:
    """Each item with what `work` makes of it; whatever ends this early ends the processes too.

    Args:
        work: with several workers it and the items are pickled: a function of a module, or a `partial` of one.
        items: taken as they are needed.
        workers: processes, started anew ("spawn"); 1 does the work in this one.
        ahead: items in flight for each process.
        as_completed: whatever is done first comes first; else in the order of the items.
    """
    if workers <= 1:
        for item in items:
            yield item, work(item)
        return
    queue = iter(items)
    running: dict[Future[Result], Item] = {}
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        while True:
            for item in itertools.islice(queue, workers * ahead - len(running)):
                running[pool.submit(work, item)] = item
            if not running:
                break
            done = wait(running, return_when=FIRST_COMPLETED).done if as_completed else [next(iter(running))]
            for future in done:
                yield running.pop(future), future.result()
        pool.shutdown()
    except BaseException:
        processes = list((pool._processes or {}).values())  # None once it has shut down
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        raise
