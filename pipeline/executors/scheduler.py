"""Which unit goes to which worker: a pure state machine, without processes, Ray or a clock of its own.

Units come from an iterator that is read only as far as workers need it, so ten million planned units cost no memory.
Each worker has a queue of at most `in_flight` units and works on its head. The caller reports what happens and hands
in the time, so that a simulation of thousands of nodes runs the code that a cluster runs. Every call costs the same
with ten workers and with ten thousand, but for `overdue`.

Near the end, when no unit is pending and a worker is idle, a unit that takes far longer than others did is started a
second time on another node: the first commit wins, and the run does not wait for the other attempt.
"""

from __future__ import annotations

import bisect
import collections
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ..sources.units import UnitSpec

IN_FLIGHT: Final = 2
"""Units of one worker: one in its hands, one waiting, so that it never waits for the driver."""
MAX_LOSSES: Final = 10
"""Workers that may die over one unit before the run ends: something kills workers, and no retry mends it."""
STRAGGLER_FACTOR: Final = 3.0
"""A unit is a straggler after this many times the median: below, ordinary spread would be done twice."""
STRAGGLER_FLOOR_S: Final = 10.0
"""And after this time: a copy costs a second or two of reading before it gains anything."""
MEDIAN_OF: Final = 255
"""Durations of the newest units that the median is taken of."""
MEDIAN_FROM: Final = 3
"""Fewer finished units say nothing about what is usual."""
STRAGGLER_CHECK_S: Final = 1.0
"""Between two looks for stragglers, which cost a pass over the units in hand."""


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
    again: bool = False
    """It is in another worker's hands as well: a straggler's second attempt."""


@dataclass
class _Worker:
    node: str
    queue: collections.deque[UnitSpec] = field(default_factory=collections.deque)
    head_since_s: float = 0.0


class Scheduler:
    """Assigns units to workers; a unit counts once, however many workers held it.

    Args:
        units: pending units, read lazily.
        in_flight: units a worker may hold.
        max_losses: deaths of workers over one unit before `lose_worker` gives up.
        straggler_floor_s: seconds before which no unit is started again near the end.
    """

    def __init__(
        self,
        units: Iterator[UnitSpec],
        *,
        in_flight: int = IN_FLIGHT,
        max_losses: int = MAX_LOSSES,
        straggler_floor_s: float = STRAGGLER_FLOOR_S,
    ) -> None:
        self._units = units
        self._in_flight = in_flight
        self._max_losses = max_losses
        self._straggler_floor_s = straggler_floor_s
        self._requeued: collections.deque[UnitSpec] = collections.deque()
        self._workers: dict[int, _Worker] = {}
        self._room: list[collections.OrderedDict[int, None]] = [collections.OrderedDict() for _ in range(in_flight)]
        """Workers by the length of their queues, those that have waited longest first. (The first key of a plain dict
        is found by passing over all that were deleted before it.)"""
        self._holders: dict[int, list[int]] = {}
        """Workers that hold a unit which is not done; usually one, two for a straggler."""
        self._losses: collections.Counter[int] = collections.Counter()
        self._recent_s: collections.deque[float] = collections.deque()
        self._sorted_s: list[float] = []
        self._exhausted = False
        self._next_check_s = float("-inf")

    def add_worker(self, worker: int, node: str = "") -> None:
        """A worker is there and wants units."""
        self._workers[worker] = _Worker(node)
        self._room[0][worker] = None

    def assign(self, now_s: float) -> list[Assignment]:
        """Fills the workers' queues: every worker gets a first unit before any gets a second.

        Args:
            now_s: seconds of any clock that runs forward.
        """
        assignments: list[Assignment] = []
        for depth in range(self._in_flight):
            while self._room[depth]:
                unit = self._next()
                if unit is None:
                    return assignments + self._second_attempts(now_s)
                worker = next(iter(self._room[depth]))
                self._give(worker, unit, now_s)
                assignments.append(Assignment(worker, unit))
        return assignments

    def complete(self, worker: int, unit: int, now_s: float) -> bool:
        """A worker has finished a unit (committed it, or found it committed).

        Returns:
            Whether it is news: False if another worker's attempt was reported before.
        """
        state = self._workers[worker]
        before = len(state.queue)
        if state.queue and state.queue[0].unit == unit:
            spec = state.queue.popleft()
            if unit in self._holders:
                self._note_duration((now_s - state.head_since_s) / max(len(spec.entries), 1))
        else:
            state.queue = collections.deque(each for each in state.queue if each.unit != unit)
        state.head_since_s = now_s
        self._move(worker, before)
        self._losses.pop(unit, None)
        return self._holders.pop(unit, None) is not None

    def lose_worker(self, worker: int) -> list[UnitSpec]:
        """A worker died: its units go to others, those in its hands first.

        Returns:
            The units that will be done again.

        Raises:
            UnitLostTooOftenError: the unit at its head has cost too many workers.
        """
        state = self._workers.pop(worker)
        if len(state.queue) < self._in_flight:
            del self._room[len(state.queue)][worker]
        lost = []
        for spec in state.queue:
            holders = self._holders.get(spec.unit)
            if holders is None:
                continue  # done by another attempt
            holders.remove(worker)
            if not holders:
                del self._holders[spec.unit]
                lost.append(spec)
        self._requeued.extendleft(reversed(lost))
        if lost and lost[0] is state.queue[0]:
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

    def counts(self) -> dict[str, int]:
        """Units by state: `in_hand` of workers, `requeued` after their workers died."""
        return {"in_hand": len(self._holders), "requeued": len(self._requeued)}

    @property
    def finished(self) -> bool:
        """No unit is pending or, undone, in anybody's hands (a straggler's may be done elsewhere)."""
        if self._holders:
            return False
        unit = self._next()
        if unit is None:
            return True
        self._requeued.appendleft(unit)
        return False

    def median_s(self) -> float | None:
        """Of the seconds that a sample of the newest units took; None while too few are done."""
        if len(self._sorted_s) < MEDIAN_FROM:
            return None
        return self._sorted_s[len(self._sorted_s) // 2]

    def _second_attempts(self, now_s: float) -> list[Assignment]:
        """Stragglers and what waits behind them, for workers with empty hands; nothing is pending any more."""
        median_s = self.median_s()
        if median_s is None or not self._room[0] or now_s < self._next_check_s:
            return []
        self._next_check_s = now_s + STRAGGLER_CHECK_S
        late: list[tuple[float, int, UnitSpec]] = []
        for unit, holders in self._holders.items():
            holder = self._workers[holders[0]]
            head, spent_s = holder.queue[0], now_s - holder.head_since_s
            limit_s = max(STRAGGLER_FACTOR * median_s * max(len(head.entries), 1), self._straggler_floor_s)
            if len(holders) == 1 and spent_s > limit_s:
                late.append((-spent_s, unit, next(each for each in holder.queue if each.unit == unit)))
        assignments = []
        for _, unit, spec in sorted(late, key=lambda each: each[:2]):
            worker = self._elsewhere(self._holders[unit][0])
            if worker is not None:
                self._give(worker, spec, now_s)
                assignments.append(Assignment(worker, spec, again=True))
        return assignments

    def _elsewhere(self, holder: int) -> int | None:
        """A worker with empty hands, on another node if there is one."""
        node = self._workers[holder].node
        idle = [worker for worker in self._room[0] if worker != holder]
        return next((worker for worker in idle if self._workers[worker].node != node), idle[0] if idle else None)

    def _give(self, worker: int, unit: UnitSpec, now_s: float) -> None:
        state = self._workers[worker]
        before = len(state.queue)
        if not state.queue:
            state.head_since_s = now_s
        state.queue.append(unit)
        self._holders.setdefault(unit.unit, []).append(worker)
        self._move(worker, before)

    def _move(self, worker: int, before: int) -> None:
        """Keeps `_room` in step with the length of a worker's queue."""
        after = len(self._workers[worker].queue)
        if before == after:
            return
        if before < self._in_flight:
            del self._room[before][worker]
        if after < self._in_flight:
            self._room[after][worker] = None

    def _note_duration(self, seconds: float) -> None:
        if len(self._recent_s) == MEDIAN_OF:
            del self._sorted_s[bisect.bisect_left(self._sorted_s, self._recent_s.popleft())]
        self._recent_s.append(seconds)
        bisect.insort(self._sorted_s, seconds)

    def _next(self) -> UnitSpec | None:
        if self._requeued:
            return self._requeued.popleft()
        if self._exhausted:
            return None
        unit = next(self._units, None)
        self._exhausted = unit is None
        return unit
