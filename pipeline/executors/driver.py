"""Three ways to run the same units: inline (this process), local (a pool of processes), ray (actors on a cluster).

Each hands units to workers that run `attempt.mine_unit` and reports commits as they come. An executor decides nothing
about results: kill it anywhere, and the commits say what is done.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterator
from typing import Final, Literal

from ..errors import GrainmillError
from ..shards.commits import Commit, CommitWriter
from ..sources.units import UnitSpec
from ..storage.base import Writer
from ..units.attempt import InProcessMiner, mine_unit
from ..units.batches import RunSpec
from .pool import STARTING, Event, Listener, Pool, PoolOptions
from .scheduler import Assignment, Scheduler, UnitLostTooOftenError

ExecutorName = Literal["ray", "local", "inline"]
POLL_S: Final = 0.5
"""The longest a driver sleeps between two looks at time-outs."""


class DriverCommits:
    """Commits what workers report, then passes it on; for stores where the first of two writers does not win.

    Safe for one driver: workers of a lost attempt report to nobody, so they can commit nothing.
    """

    def __init__(self, listener: Listener, log: CommitWriter) -> None:
        self._listener, self._log = listener, log
        self.progressed, self.noted = listener.progressed, listener.noted
        self.workers_ready, self.waits_for = listener.workers_ready, listener.waits_for

    def committed(self, commit: Commit) -> None:
        if not self._log.create(commit):
            commit = self._log.read(commit.unit) or commit
        self._listener.committed(commit)


def run_inline(units: Iterator[UnitSpec], run: RunSpec, storage: Writer, listener: Listener) -> None:
    """Does every unit in this process."""
    listener.waits_for(STARTING)
    miner = InProcessMiner(run)
    listener.workers_ready(1)
    try:
        for unit in units:
            listener.committed(mine_unit(unit, run, storage, miner, on_progress=listener.progressed))
    finally:
        miner.close()


def run_pool(
    units: Iterator[UnitSpec],
    pool: Pool,
    listener: Listener,
    options: PoolOptions,
    *,
    pending: int | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Drives a pool until every unit is done; replaces workers that die.

    Args:
        units: those that are not committed, in any order; read lazily.
        pool: the workers.
        listener: hears what happens.
        options: how many workers, and when one has taken too long.
        pending: how many units there are, if that is known.
        clock: seconds that run forward.

    Raises:
        GrainmillError: what a worker says must end the run, or workers that keep dying.
    """
    scheduler = Scheduler(units, straggler_floor_s=options.straggler_floor_s)
    if scheduler.finished:
        return
    driver = _Driver(pool, scheduler, listener, options, pending, clock)
    while not scheduler.finished:
        driver.look_around()
        for assignment in scheduler.assign(clock()):
            driver.submit(assignment)
        for event in pool.wait(POLL_S):
            driver.handle(event)


class _Driver:
    """What the driver does with events."""

    LOSSES_WITHOUT_COMMIT: Final = 30
    """And twice the workers: a lost rack is no reason to give up, workers that never commit anything are one."""
    NODE_LOSSES: Final = 3
    """Workers that may die on one node, without a commit between, before it is excluded."""
    LOOK_S: Final = 0.5
    """Between two looks at time-outs and at the size of the cluster."""

    def __init__(
        self,
        pool: Pool,
        scheduler: Scheduler,
        listener: Listener,
        options: PoolOptions,
        pending: int | None,
        clock: Callable[[], float],
    ) -> None:
        self._pool, self._scheduler, self._listener, self._clock = pool, scheduler, listener, clock
        self._options = options
        self._nodes: dict[int, str] = {}
        """Of workers that are ready."""
        self._pending, self._committed = pending, 0
        self._started = 0
        """Workers that live or are about to."""
        self._losses = 0
        self._node_losses: collections.Counter[str] = collections.Counter()
        self._next_look_s = clock()

    def look_around(self) -> None:
        """Starts workers that there is room for, ends those whose time is up."""
        now_s = self._clock()
        if now_s < self._next_look_s:
            return
        self._next_look_s = now_s + self.LOOK_S
        wanted = self._options.workers
        if wanted is None:
            wanted = max(self._pool.capacity() or 0, 1)  # one that waits for a node tells a cluster to grow
        while self._started < wanted:
            self._pool.start_worker()
            self._started += 1
        counts = self._scheduler.counts()
        states = {"committed": self._committed, "in_hand": counts["in_hand"]}
        if self._pending is not None:
            states["pending"] = self._pending - self._committed - counts["in_hand"]
        self._pool.report(states)
        if not self._nodes:
            self._listener.waits_for(self._pool.waits_for())
        if self._options.unit_timeout_s is not None:
            for worker, unit in self._scheduler.overdue(now_s, self._options.unit_timeout_s):
                timeout = f"{self._options.unit_timeout_s:g} s"
                self._listener.noted(f"unit {unit} took longer than {timeout}; its worker is replaced")
                self._pool.stop_worker(worker)
                self._lost(worker, self._nodes.get(worker, ""))

    def submit(self, assignment: Assignment) -> None:
        if assignment.again:
            self._listener.noted(f"unit {assignment.unit.unit} takes far longer than others; started again elsewhere")
        self._pool.submit(assignment)

    def handle(self, event: Event) -> None:
        if event.kind == "ready":
            self._scheduler.add_worker(event.worker, event.node)
            self._nodes[event.worker] = event.node
            self._listener.workers_ready(len(self._nodes))
        elif event.kind == "progress":
            self._listener.progressed(event.value)
        elif event.kind == "done":
            commit = Commit(unit=event.value["unit"], record=event.value)
            first = self._scheduler.complete(event.worker, commit.unit, self._clock())
            self._losses = 0
            self._node_losses.pop(self._nodes[event.worker], None)
            if first:
                self._committed += 1
                self._listener.committed(commit)
        elif event.kind == "failed":
            raise event.value
        elif event.kind == "lost":
            self._listener.noted(f"a worker died ({event.value}); its units go to others")
            self._lost(event.worker, event.node)

    def _lost(self, worker: int, node: str) -> None:
        """Requeues a dead worker's units; `look_around` starts another."""
        self._started -= 1
        self._next_look_s = self._clock()
        self._losses += 1
        if self._losses > self.LOSSES_WITHOUT_COMMIT + 2 * (self._options.workers or self._started):
            raise GrainmillError(
                f"{self._losses} workers died and no unit was committed between; `--executor inline` shows why"
            )
        if self._nodes.pop(worker, None) is not None:
            try:
                self._scheduler.lose_worker(worker)
            except UnitLostTooOftenError as error:
                raise GrainmillError(f"{error}; see what kills them, then run the same command again") from error
        self._node_losses[node] += 1
        if self._node_losses[node] >= self.NODE_LOSSES and node and self._pool.exclude_node(node):
            self._listener.noted(
                f"node {node} is left out: {self._node_losses[node]} workers died there without a commit between"
            )


def make_pool(name: ExecutorName, run: RunSpec, options: PoolOptions) -> Pool:
    """The pool of an executor; loads Ray only for `ray`."""
    if name == "local":
        from .local_pool import LocalPool

        return LocalPool(run)
    from .ray_pool import RayPool

    return RayPool(run, options)
