"""Which unit goes to which worker: a pure state machine, without processes, Ray or a clock of its own.

Units come from an iterator that is read only as far as workers need it, so ten million planned units cost no memory.
Each worker has a queue of at most `in_flight` units and works on its head. The caller reports what happens and hands
in the time, so that a simulation of thousands of nodes runs the code that a cluster runs.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from .sources import UnitSpec

IN_FLIGHT: Final = 2
"""Units of one worker: one in its hands, one waiting, so that it never waits for the driver."""
MAX_LOSSES: Final = 10
"""Workers that may die over one unit before the run ends: something kills workers, and no retry mends it."""


class UnitLostTooOftenError(Exception):
    """A unit whose workers keep dying.

    Attributes:
        unit: its number.
    """

    def __init__(self, unit: int, losses: int) -> None:
        super().__init__(f"unit {unit}: {losses} workers died while it was in their hands")
        self.unit = unit


@dataclass(frozen=True)
class Assignment:
    """Hand this unit to this worker."""

    worker: int
    unit: UnitSpec


@dataclass
class _Worker:
    queue: collections.deque[UnitSpec] = field(default_factory=collections.deque)
    head_since_s: float = 0.0


class Scheduler:
    """Assigns units to workers; a unit counts once, however many workers held it.

    Args:
        units: pending units, read lazily.
        in_flight: units a worker may hold.
        max_losses: deaths of workers over one unit before `lose_worker` gives up.
    """

    def __init__(self, units: Iterator[UnitSpec], *, in_flight: int = IN_FLIGHT, max_losses: int = MAX_LOSSES) -> None:
        self._units = units
        self._in_flight = in_flight
        self._max_losses = max_losses
        self._requeued: collections.deque[UnitSpec] = collections.deque()
        self._workers: dict[int, _Worker] = {}
        self._losses: collections.Counter[int] = collections.Counter()
        self._exhausted = False

    def add_worker(self, worker: int) -> None:
        """A worker is there and wants units."""
        self._workers[worker] = _Worker()

    def assign(self, now_s: float) -> list[Assignment]:
        """Fills the workers' queues: every worker gets a first unit before any gets a second.

        Args:
            now_s: seconds of any clock that runs forward.
        """
        assignments: list[Assignment] = []
        for depth in range(self._in_flight):
            for number, worker in self._workers.items():
                if len(worker.queue) != depth:
                    continue
                unit = self._next()
                if unit is None:
                    return assignments
                if not worker.queue:
                    worker.head_since_s = now_s
                worker.queue.append(unit)
                assignments.append(Assignment(number, unit))
        return assignments

    def complete(self, worker: int, unit: int, now_s: float) -> None:
        """A worker has finished a unit (committed it, or found it committed)."""
        state = self._workers[worker]
        state.queue = collections.deque(each for each in state.queue if each.unit != unit)
        state.head_since_s = now_s
        self._losses.pop(unit, None)

    def lose_worker(self, worker: int) -> list[UnitSpec]:
        """A worker died: its units go to others, those in its hands first.

        Returns:
            The units that will be done again.

        Raises:
            UnitLostTooOftenError: the unit at its head has cost too many workers.
        """
        state = self._workers.pop(worker)
        lost = list(state.queue)
        self._requeued.extendleft(reversed(lost))
        if lost:
            head = lost[0].unit
            self._losses[head] += 1
            if self._losses[head] >= self._max_losses:
                raise UnitLostTooOftenError(head, self._losses[head])
        return lost

    def overdue(self, now_s: float, timeout_s: float) -> list[tuple[int, int]]:
        """(worker, unit) of units that have been in a worker's hands for longer than `timeout_s`."""
        return [
            (number, worker.queue[0].unit)
            for number, worker in self._workers.items()
            if worker.queue and now_s - worker.head_since_s > timeout_s
        ]

    def in_hand(self) -> dict[int, list[int]]:
        """Units each worker holds, in their order."""
        return {number: [unit.unit for unit in worker.queue] for number, worker in self._workers.items()}

    @property
    def finished(self) -> bool:
        """No unit is pending or in anybody's hands."""
        if any(worker.queue for worker in self._workers.values()):
            return False
        unit = self._next()
        if unit is None:
            return True
        self._requeued.appendleft(unit)
        return False

    def _next(self) -> UnitSpec | None:
        if self._requeued:
            return self._requeued.popleft()
        if self._exhausted:
            return None
        unit = next(self._units, None)
        self._exhausted = unit is None
        return unit
