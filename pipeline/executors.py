"""Three ways to run the same units: inline (this process), local (a pool of processes), ray (actors on a cluster).

Each hands units to workers that run `worker.mine_unit` and reports commits as they come. An executor decides nothing
about results: kill it anywhere, and the commits say what is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from .commits import Commit
from .errors import GrainmillError
from .scheduler import Assignment, Scheduler, UnitLostTooOftenError
from .sources import UnitSpec
from .storage import Storage
from .worker import InlineSamples, RunSpec, UnitProgress, mine_unit

ExecutorName = Literal["ray", "local", "inline"]
POLL_S: Final = 0.5
"""The longest a driver sleeps between two looks at time-outs."""


class Listener(Protocol):
    """Who wants to know how a run goes."""

    def committed(self, commit: Commit) -> None: ...

    def progressed(self, progress: UnitProgress) -> None: ...

    def noted(self, text: str) -> None: ...

    def workers_ready(self, count: int) -> None: ...


@dataclass(frozen=True, kw_only=True)
class PoolOptions:
    """How workers are run; changes when a run ends, not what it writes."""

    workers: int
    unit_timeout_s: float | None = None
    """A unit in a worker's hands for longer costs that worker its life, and goes to another."""
    gpus_per_worker: float = 0.0
    ray_address: str | None = None


@dataclass(frozen=True)
class Event:
    """What a pool saw.

    `ready` and `lost` name a worker only; `done` brings a commit, `failed` the error that ends the run.
    """

    kind: Literal["ready", "progress", "done", "failed", "lost"]
    worker: int
    value: Any = None


class Pool(Protocol):
    """Workers somewhere. Numbers of workers are never used twice."""

    def start_worker(self) -> int: ...

    def submit(self, assignment: Assignment) -> None: ...

    def wait(self, timeout_s: float) -> list[Event]:
        """What happened, after at most this time."""
        ...

    def stop_worker(self, worker: int) -> None:
        """Ends a worker at once; no event follows."""
        ...

    def close(self) -> None:
        """Ends all workers and whatever was started for them; returns when they are gone."""
        ...


def run_inline(units: Iterator[UnitSpec], run: RunSpec, storage: Storage, listener: Listener) -> None:
    """Does every unit in this process."""
    samples = InlineSamples(run.mining)
    listener.workers_ready(1)
    try:
        for unit in units:
            listener.committed(mine_unit(unit, run, storage, samples, on_progress=listener.progressed))
    finally:
        samples.close()


def run_pool(
    units: Iterator[UnitSpec],
    pool: Pool,
    listener: Listener,
    *,
    workers: int,
    unit_timeout_s: float | None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Drives a pool until every unit is done; replaces workers that die.

    Raises:
        GrainmillError: what a worker says must end the run, or workers that keep dying.
    """
    scheduler = Scheduler(units)
    if scheduler.finished:
        return
    driver = _Driver(pool, scheduler, listener, clock)
    for _ in range(workers):
        pool.start_worker()
    while not scheduler.finished:
        for assignment in scheduler.assign(clock()):
            pool.submit(assignment)
        for event in pool.wait(POLL_S):
            driver.handle(event)
        if unit_timeout_s is not None:
            for worker, unit in scheduler.overdue(clock(), unit_timeout_s):
                listener.noted(f"unit {unit} took longer than {unit_timeout_s:g} s; its worker is replaced")
                pool.stop_worker(worker)
                driver.replace(worker)


class _Driver:
    """What the driver does with events."""

    MAX_LOSSES_WITHOUT_COMMIT: Final = 30

    def __init__(self, pool: Pool, scheduler: Scheduler, listener: Listener, clock: Callable[[], float]) -> None:
        self._pool, self._scheduler, self._listener, self._clock = pool, scheduler, listener, clock
        self._ready: set[int] = set()
        self._losses = 0

    def handle(self, event: Event) -> None:
        if event.kind == "ready":
            self._scheduler.add_worker(event.worker)
            self._ready.add(event.worker)
            self._listener.workers_ready(len(self._ready))
        elif event.kind == "progress":
            self._listener.progressed(event.value)
        elif event.kind == "done":
            commit = Commit(unit=event.value["unit"], record=event.value)
            self._scheduler.complete(event.worker, commit.unit, self._clock())
            self._losses = 0
            self._listener.committed(commit)
        elif event.kind == "failed":
            raise event.value
        elif event.kind == "lost":
            self._listener.noted(f"a worker died ({event.value}); its units go to others")
            self.replace(event.worker)

    def replace(self, worker: int) -> None:
        """Requeues a dead worker's units and starts another."""
        self._losses += 1
        if self._losses > self.MAX_LOSSES_WITHOUT_COMMIT:
            raise GrainmillError(
                f"{self._losses} workers died and no unit was committed between; `--executor inline` shows why"
            )
        if worker in self._ready:
            self._ready.discard(worker)
            try:
                self._scheduler.lose_worker(worker)
            except UnitLostTooOftenError as error:
                raise GrainmillError(f"{error}; see what kills them, then run the same command again") from error
        if not self._scheduler.finished:
            self._pool.start_worker()


def make_pool(name: ExecutorName, run: RunSpec, options: PoolOptions) -> Pool:
    """The pool of an executor; loads Ray only for `ray`."""
    if name == "local":
        from .local_pool import LocalPool

        return LocalPool(run)
    from .actors import RayPool

    return RayPool(run, options)
