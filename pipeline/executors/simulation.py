"""A run on a simulated cluster: the driver and scheduler that `mine` uses, a clock and workers that are made up.

What is real: `driver.run_pool` with its `Scheduler`, so the driver's seconds per unit, its memory and its decisions
are those of a run. What is simulated: time, nodes that start, vanish and come back, workers whose units take as long as
the profile says, some of them far longer, and a store that serves so many requests a second. One seed, one result, but
for the seconds and bytes that the driver itself took.
"""

from __future__ import annotations

import collections
import dataclasses
import heapq
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import psutil

from ..errors import GrainmillError
from ..shards.commits import Commit
from ..sources.units import Entry, UnitSpec
from ..units.attempt import UnitProgress
from .driver import run_pool
from .estimate import Cluster, Estimate, Profile
from .flags import PlanFlags
from .pool import STARTING, Event, PoolOptions
from .scheduler import STRAGGLER_FLOOR_S, Assignment

FOUND_COMMITTED_S: Final = 0.1
"""An attempt that finds its unit committed: one look at the store."""
PUTS_PER_UNIT: Final = 5
"""Shard, two index files, failures, commit."""
STALLED_S: Final = 86_400.0
STALLED_UNITS: Final = 100
"""A day, and the usual time of so many units, without anything that could still happen: the run never ends."""


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What goes wrong on the simulated cluster, and what its store bears."""

    node_losses_per_hour: float = PlanFlags.node_losses_per_hour
    """Of each node: a spot machine that is taken back every hundred hours."""
    node_back_after_s: float = 180.0
    """Until another machine stands in its place."""
    spread: float = 0.1
    """Standard deviation of the logarithm of a unit's duration."""
    straggler_share: float = PlanFlags.straggler_share
    """Of units that take `straggler_times` as long."""
    straggler_times: float = 10.0
    hung_share: float = PlanFlags.hung_share
    """Of units that never end on the worker that has them."""
    put_limit_per_s: float = PlanFlags.put_limit_per_s
    """Of one prefix; a large store's published figure."""
    get_limit_per_s: float = PlanFlags.get_limit_per_s
    request_s: float = 0.05
    """One put or get, while the store is not at its limit."""


@dataclass(frozen=True, kw_only=True)
class SimulationResult:
    """What happened."""

    nodes: int
    workers: int
    units: int
    hours: float
    """Simulated."""
    idle_share: float
    """Of the time of workers that were ready, the tail of the run included."""
    nodes_lost: int
    units_again: int
    """Attempts that were lost with their node."""
    second_attempts: int
    """Started because a unit took far too long."""
    driver_us_per_unit: float
    """Processor time of the real driver, all its work on a unit together."""
    driver_busy_share: float
    """Of the simulated time: at 1 the driver is what limits."""
    driver_units_per_second: float
    """What the driver could serve at most."""
    memory_mb_at_tenth: float
    memory_mb_at_end: float
    """Resident, of the driver and the simulation together, after a tenth of the units and at the end."""
    put_share: float
    get_share: float
    """Of what the store bears, if nothing else limited; above 1 the run waits for the store."""
    breaks_first: str
    breaks_at_nodes: int
    """Nodes at which the most loaded resource would be full, all else equal."""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def simulate_run(
    answer: Estimate,
    profile: Profile,
    cluster: Cluster,
    *,
    seed: int,
    conditions: Conditions | None = None,
    on_unit: Callable[[int], None] | None = None,
) -> SimulationResult:
    """Runs the estimate's units on its cluster.

    Args:
        answer: of `estimate.estimate`; says how many units and workers there are.
        profile: seconds of one image.
        cluster: the nodes.
        seed: of durations and losses.
        conditions: what goes wrong; the default is a calm spot market.
        on_unit: called with the number of units done.
    """
    conditions = conditions or Conditions()
    samples = math.ceil(answer.images / answer.units)
    worker_images_per_s = answer.images_per_second / cluster.efficiency / answer.workers
    pool = SimulatedPool(
        nodes=cluster.nodes,
        workers_per_node=max(answer.workers // cluster.nodes, 1),
        unit_s=samples / worker_images_per_s,
        startup_s=profile.startup_s,
        gets_per_unit=samples + 2,
        units=answer.units,
        conditions=conditions,
        seed=seed,
    )
    counter = _Counter(answer.units, on_unit)
    began_s = time.process_time()
    options = PoolOptions(
        workers=None,
        unit_timeout_s=None,
        straggler_floor_s=STRAGGLER_FLOOR_S,
        gpus_per_worker=0.0,
        cpus_per_worker=1,
        ray_address=None,
    )
    run_pool(_units(answer.units, samples), pool, counter, options, clock=lambda: pool.now_s)
    driver_s = time.process_time() - began_s - pool.own_s
    run_s = max(pool.now_s, 1e-9)
    busy_share = driver_s / run_s
    # What the workers would ask for if nothing held them up: above 1, that one is what the run waits for.
    units_per_s = answer.workers * worker_images_per_s / samples
    loads = {
        "the driver's own time": units_per_s * driver_s / answer.units,
        "puts of the store's prefix": units_per_s * PUTS_PER_UNIT / conditions.put_limit_per_s,
        "gets of the store's prefix": units_per_s * (samples + 2) / conditions.get_limit_per_s,
    }
    first = max(loads, key=lambda name: loads[name])
    return SimulationResult(
        nodes=cluster.nodes,
        workers=pool.workers_total,
        units=counter.commits,
        hours=round(run_s / 3600, 4),
        idle_share=round(pool.idle_share(), 4),
        nodes_lost=pool.nodes_lost,
        units_again=pool.units_again,
        second_attempts=pool.second_attempts,
        driver_us_per_unit=round(1e6 * driver_s / answer.units, 2),
        driver_busy_share=round(busy_share, 6),
        driver_units_per_second=round(answer.units / driver_s, 1),
        memory_mb_at_tenth=counter.memory_mb_at_tenth,
        memory_mb_at_end=_memory_mb(),
        put_share=round(loads["puts of the store's prefix"], 4),
        get_share=round(loads["gets of the store's prefix"], 4),
        breaks_first=first,
        breaks_at_nodes=int(cluster.nodes / loads[first]),
    )


def _units(count: int, samples: int) -> Iterator[UnitSpec]:
    """Units as the plan yields them; they share their entries, which no simulated worker looks at."""
    entry = Entry(path="simulated.tar", raw="simulated.tar", file_size=0, version="")
    entries = (entry,) * samples
    for number in range(count):
        yield UnitSpec(unit=number, source=0, entries=entries)


class _Counter:
    """The listener of a simulated run."""

    def __init__(self, units: int, on_unit: Callable[[int], None] | None) -> None:
        self.commits = 0
        self.memory_mb_at_tenth = 0.0
        self._tenth, self._on_unit = max(units // 10, 1), on_unit

    def committed(self, commit: Commit) -> None:
        self.commits += 1
        if self.commits == self._tenth:
            self.memory_mb_at_tenth = _memory_mb()
        if self._on_unit is not None and self.commits % 1000 == 0:
            self._on_unit(self.commits)

    def progressed(self, progress: UnitProgress) -> None: ...

    def noted(self, text: str) -> None: ...

    def workers_ready(self, count: int) -> None: ...

    def waits_for(self, what: str) -> None: ...


def _memory_mb() -> float:
    return round(psutil.Process().memory_info().rss / 1e6, 1)


@dataclass
class _SimulatedWorker:
    node: int
    ready: bool = False
    queue: collections.deque[UnitSpec] = dataclasses.field(default_factory=collections.deque)
    idle_since_s: float = 0.0


class SimulatedPool:
    """Workers that are numbers in a heap; `now_s` is the clock.

    Args:
        nodes: at the start; a lost one is replaced.
        workers_per_node: of each.
        unit_s: usual seconds of one unit.
        startup_s: from the start of a worker until it is ready.
        gets_per_unit: requests for a unit's inputs.
        units: in all.
        conditions: what goes wrong.
        seed: of it.
    """

    def __init__(
        self,
        *,
        nodes: int,
        workers_per_node: int,
        unit_s: float,
        startup_s: float,
        gets_per_unit: int,
        units: int,
        conditions: Conditions,
        seed: int,
    ) -> None:
        self.now_s = 0.0
        self.own_s = 0.0
        """Processor seconds spent in here: the simulation's, not the driver's."""
        self.nodes_lost = self.units_again = self.second_attempts = self.workers_total = 0
        self._workers_per_node, self._unit_s, self._startup_s = workers_per_node, unit_s, startup_s
        self._gets_per_unit, self._conditions = gets_per_unit, conditions
        self._random = random.Random(seed)
        self._heap: list[tuple[float, int, str, int]] = []
        self._order = 0
        self._last_s = 0.0
        """When anything happened last."""
        self._workers: dict[int, _SimulatedWorker] = {}
        self._free: collections.deque[int] = collections.deque()
        """A node's number for each worker it still has room for."""
        self._waiting: collections.deque[int] = collections.deque()
        """Workers for which there is no room."""
        self._on_node: dict[int, set[int]] = {}
        self._excluded: set[int] = set()
        self._done = bytearray(units)
        self._store_free_s = 0.0
        self._idle_s = self._alive_s = 0.0
        self._nodes_made = 0
        for _ in range(nodes):
            self._add_node()

    # What the driver asks for

    def capacity(self) -> int | None:
        return len(self._workers) + len(self._free)

    def start_worker(self) -> int:
        began_s = time.process_time()
        number = self.workers_total
        self.workers_total += 1
        if self._free:
            self._place(number)
        else:
            self._waiting.append(number)
        self.own_s += time.process_time() - began_s
        return number

    def _place(self, number: int) -> None:
        node = self._free.popleft()
        self._workers[number] = _SimulatedWorker(node)
        self._on_node[node].add(number)
        self._at(self.now_s + self._startup_s * self._random.uniform(0.8, 1.5), "ready", number)

    def submit(self, assignment: Assignment) -> None:
        began_s = time.process_time()
        self.second_attempts += assignment.again
        worker = self._workers.get(assignment.worker)
        if worker is not None:
            worker.queue.append(assignment.unit)
            if len(worker.queue) == 1:
                self._idle_s += self.now_s - worker.idle_since_s
                self._begin(assignment.worker, worker)
        self.own_s += time.process_time() - began_s

    def wait(self, timeout_s: float) -> list[Event]:
        began_s = time.process_time()
        until_s = self.now_s + timeout_s
        events: list[Event] = []
        while not events:
            if not self._heap or self._heap[0][0] > until_s:
                self.now_s = until_s
                if not self._heap and self.now_s - self._last_s > STALLED_S + STALLED_UNITS * self._unit_s:
                    raise GrainmillError(self._stalled())
                break
            self.now_s, _, kind, number = heapq.heappop(self._heap)
            self._last_s = self.now_s
            events = self._happens(kind, number)
        self.own_s += time.process_time() - began_s
        return events

    def stop_worker(self, worker: int) -> None:
        self._end(worker)

    def _stalled(self) -> str:
        return (
            f"the simulated run never ends: units hang on every worker that has them, {self._done.count(0)} of "
            f"{len(self._done)} are missing; `mine` would wait for them, too, unless --unit-timeout-s ends such workers"
        )

    def waits_for(self) -> str:
        return STARTING

    def exclude_node(self, node: str) -> bool:
        present = set(self._on_node) - self._excluded
        if int(node) not in present or len(present) < 2:
            return False
        self._excluded.add(int(node))
        self._free = collections.deque(each for each in self._free if each != int(node))
        return True

    def close(self) -> None:
        for number in list(self._workers):
            self._end(number)

    def report(self, states: dict[str, int]) -> None: ...

    def idle_share(self) -> float:
        """Of the time of ready workers."""
        self.close()
        return self._idle_s / self._alive_s if self._alive_s else 0.0

    # What happens

    def _at(self, time_s: float, kind: str, number: int) -> None:
        self._order += 1
        heapq.heappush(self._heap, (time_s, self._order, kind, number))

    def _add_node(self) -> None:
        node = self._nodes_made
        self._nodes_made += 1
        self._on_node[node] = set()
        self._free.extend([node] * self._workers_per_node)
        while self._waiting and self._free:
            self._place(self._waiting.popleft())
        if self._conditions.node_losses_per_hour > 0:
            life_s = self._random.expovariate(self._conditions.node_losses_per_hour / 3600)
            self._at(self.now_s + life_s, "node-lost", node)

    def _happens(self, kind: str, number: int) -> list[Event]:
        if kind == "node-lost":
            return self._lose_node(number)
        if kind == "node-back":
            self._add_node()
            return []
        worker = self._workers.get(number)
        if worker is None:
            return []
        if kind == "ready":
            worker.ready = True
            worker.idle_since_s = self.now_s
            self._alive_s -= self.now_s
            return [Event("ready", number, None, str(worker.node))]
        unit = worker.queue.popleft()
        self._done[unit.unit] = 1
        if worker.queue:
            self._begin(number, worker)
        else:
            worker.idle_since_s = self.now_s
        return [Event("done", number, {"unit": unit.unit}, str(worker.node))]

    def _begin(self, number: int, worker: _SimulatedWorker) -> None:
        conditions, chance = self._conditions, self._random.random()
        if self._done[worker.queue[0].unit]:
            self._at(self.now_s + FOUND_COMMITTED_S, "done", number)
            return
        if chance < conditions.hung_share:
            return
        busy_s = self._unit_s * math.exp(self._random.gauss(0.0, conditions.spread))
        if chance > 1.0 - conditions.straggler_share:
            busy_s *= conditions.straggler_times
        # The store serves requests in turn: a unit's own keep it busy for this long.
        serving_s = self._gets_per_unit / conditions.get_limit_per_s + PUTS_PER_UNIT / conditions.put_limit_per_s
        self._store_free_s = max(self._store_free_s, self.now_s) + serving_s
        waiting_s = self._store_free_s - serving_s - self.now_s
        self._at(self.now_s + waiting_s + busy_s + PUTS_PER_UNIT * conditions.request_s, "done", number)

    def _lose_node(self, node: int) -> list[Event]:
        self.nodes_lost += 1
        numbers = sorted(self._on_node[node])
        for number in numbers:
            self.units_again += len(self._workers[number].queue)
            self._end(number)
        del self._on_node[node]
        self._excluded.discard(node)
        self._free = collections.deque(each for each in self._free if each != node)
        self._at(self.now_s + self._conditions.node_back_after_s, "node-back", 0)
        return [Event("lost", number, "its node is gone", str(node)) for number in numbers]

    def _end(self, number: int) -> None:
        worker = self._workers.pop(number)
        if worker.ready:
            self._alive_s += self.now_s
            if not worker.queue:
                self._idle_s += self.now_s - worker.idle_since_s
        if worker.node in self._on_node:
            self._on_node[worker.node].discard(number)
            if worker.node not in self._excluded:
                self._free.append(worker.node)
