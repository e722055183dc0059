"""The scheduler alone, and the driver on simulated clusters: every unit once, whatever is lost or hangs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import GrainmillError
from pipeline.executors.driver import run_pool
from pipeline.executors.estimate import Cluster, Profile, estimate
from pipeline.executors.pool import STARTING, Event, PoolOptions
from pipeline.executors.scheduler import STRAGGLER_FLOOR_S, Assignment, Scheduler, UnitLostTooOftenError
from pipeline.executors.simulation import Conditions, SimulatedPool, SimulationResult, simulate_run
from pipeline.shards.commits import Commit
from pipeline.sources.units import Entry, UnitSpec
from pipeline.units.attempt import UnitProgress


def units(count: int, samples: int = 1) -> list[UnitSpec]:
    entry = Entry(path="a", raw="a", file_size=1, version="1")
    return [UnitSpec(unit=number, source=0, entries=(entry,) * samples) for number in range(count)]


def pairs(assignments: list[Assignment]) -> list[tuple[int, int]]:
    return [(each.worker, each.unit.unit) for each in assignments]


def test_every_worker_gets_a_first_unit_before_any_gets_a_second() -> None:
    scheduler = Scheduler(iter(units(5)))
    for worker in (3, 1, 2):
        scheduler.add_worker(worker)
    assert pairs(scheduler.assign(0.0)) == [(3, 0), (1, 1), (2, 2), (3, 3), (1, 4)]
    assert not scheduler.finished


def test_units_are_read_only_as_far_as_workers_need_them() -> None:
    read = []

    def endless() -> object:
        for unit in units(10_000):
            read.append(unit.unit)
            yield unit

    scheduler = Scheduler(endless())  # type: ignore[arg-type]
    scheduler.add_worker(0)
    scheduler.assign(0.0)
    assert len(read) == 2


def test_units_of_a_dead_worker_come_first_and_in_their_order() -> None:
    scheduler = Scheduler(iter(units(6)))
    scheduler.add_worker(0)
    scheduler.add_worker(1)
    scheduler.assign(0.0)
    assert [each.unit for each in scheduler.lose_worker(0)] == [0, 2]
    scheduler.add_worker(2)
    assert pairs(scheduler.assign(1.0)) == [(2, 0), (2, 2)]


def test_a_unit_that_costs_many_workers_ends_the_run() -> None:
    scheduler = Scheduler(iter(units(1)), max_losses=3)
    for worker in range(3):
        scheduler.add_worker(worker)
        assert pairs(scheduler.assign(0.0)) == [(worker, 0)]
        if worker < 2:
            scheduler.lose_worker(worker)
    with pytest.raises(UnitLostTooOftenError, match="unit 0: 3 workers died"):
        scheduler.lose_worker(2)


def test_a_straggler_is_started_again_on_another_node_and_the_first_commit_wins() -> None:
    scheduler = Scheduler(iter(units(8)), in_flight=1, straggler_floor_s=2.0)
    for worker, node in enumerate(["a", "a", "b"]):
        scheduler.add_worker(worker, node)
    held = dict(pairs(scheduler.assign(0.0)))  # units 0, 1, 2; worker 0 keeps unit 0 for good
    for second in (1.0, 2.0):
        for worker in (1, 2):
            scheduler.complete(worker, held[worker], second)
        held |= pairs(scheduler.assign(second))
    for worker in (1, 2):
        scheduler.complete(worker, held[worker], 3.0)
    assert pairs(scheduler.assign(3.0)) == [(1, 7)]  # the last pending unit; none is given twice while there is one
    assert pairs(scheduler.assign(4.1)) == [(2, 0)]  # worker 2 is on the other node
    scheduler.complete(1, 7, 4.2)
    assert scheduler.assign(5.5) == []  # two attempts are enough
    assert scheduler.complete(2, 0, 6.0)
    assert scheduler.finished
    assert not scheduler.complete(0, 0, 7.0)  # the first attempt ends at last: no news


def test_no_second_attempt_below_the_floor_or_without_a_median() -> None:
    scheduler = Scheduler(iter(units(2)), in_flight=1, straggler_floor_s=100.0)
    scheduler.add_worker(0)
    scheduler.add_worker(1)
    scheduler.assign(0.0)
    scheduler.complete(1, 1, 1.0)
    assert scheduler.assign(50.0) == []


def test_a_lost_worker_whose_unit_is_done_elsewhere_repeats_nothing() -> None:
    scheduler = Scheduler(iter(units(4)), in_flight=1, straggler_floor_s=1.0)
    scheduler.add_worker(0, "a")
    scheduler.add_worker(1, "b")
    held = dict(pairs(scheduler.assign(0.0)))
    for second in (1.0, 2.0, 3.0):
        scheduler.complete(1, held[1], second)
        held |= pairs(scheduler.assign(second))
    assert pairs(scheduler.assign(9.0)) == [(1, 0)]
    scheduler.complete(1, 0, 10.0)
    assert scheduler.lose_worker(0) == []
    assert scheduler.finished


# ---------------------------------------------------------------------------------------------------------------------
# The driver


class Listener:
    """Remembers."""

    def __init__(self) -> None:
        self.units: list[int] = []
        self.notes: list[str] = []
        self.waited_for: list[str] = []

    def committed(self, commit: Commit) -> None:
        self.units.append(commit.unit)

    def progressed(self, progress: UnitProgress) -> None: ...

    def noted(self, text: str) -> None:
        self.notes.append(text)

    def workers_ready(self, count: int) -> None: ...

    def waits_for(self, what: str) -> None:
        self.waited_for.append(what)


def pool_options(workers: int | None, unit_timeout_s: float | None = None) -> PoolOptions:
    """Of processors on this machine; stragglers as `mine` has them."""
    return PoolOptions(
        workers=workers, unit_timeout_s=unit_timeout_s, straggler_floor_s=STRAGGLER_FLOOR_S, gpus_per_worker=0.0,
        cpus_per_worker=1, ray_address=None,
    )  # fmt: skip


def simulated(
    count: int,
    *,
    nodes: int = 3,
    seed: int = 0,
    workers: int | None = None,
    unit_timeout_s: float | None = None,
    **conditions: float,
) -> Listener:
    pool = SimulatedPool(
        nodes=nodes, workers_per_node=2, unit_s=60.0, startup_s=5.0, gets_per_unit=3, units=count,
        conditions=Conditions(**conditions), seed=seed,
    )  # fmt: skip
    listener = Listener()
    options = pool_options(workers, unit_timeout_s)
    run_pool(iter(units(count)), pool, listener, options, clock=lambda: pool.now_s)
    return listener


@settings(max_examples=25)
@given(
    st.integers(1, 120),
    st.integers(1, 6),
    st.integers(0, 10**6),
    st.sampled_from([0.0, 2.0]),
    st.sampled_from([0, 0.01]),
)
def test_every_unit_is_committed_once_whatever_is_lost(
    count: int, nodes: int, seed: int, losses: float, hung: float
) -> None:
    # Second attempts need three finished units and may hang too: only a time-out ends whatever hangs.
    listener = simulated(
        count, nodes=nodes, seed=seed, unit_timeout_s=3600.0, node_losses_per_hour=losses, hung_share=hung
    )
    assert sorted(listener.units) == list(range(count))
    assert set(listener.waited_for) == {STARTING}


@pytest.mark.parametrize(("count", "nodes", "seed"), [(1, 6, 1217), (2, 4, 678), (120, 4, 563)])
def test_without_a_time_out_a_unit_may_hang_for_ever(count: int, nodes: int, seed: int) -> None:
    """Too few units to know what is usual, or both attempts hang: a simulation says so instead of never ending."""
    conditions = {"node_losses_per_hour": 0.0, "hung_share": 0.01}
    with pytest.raises(GrainmillError, match=rf"of {count} are missing; .* unless --unit-timeout-s"):
        simulated(count, nodes=nodes, seed=seed, **conditions)
    listener = simulated(count, nodes=nodes, seed=seed, unit_timeout_s=3600.0, **conditions)
    assert sorted(listener.units) == list(range(count))


def test_hung_units_do_not_hold_up_the_end() -> None:
    listener = simulated(400, seed=4, hung_share=0.01, node_losses_per_hour=0.0)
    assert sorted(listener.units) == list(range(400))
    assert any("started again elsewhere" in line for line in listener.notes)


class _BadNode(SimulatedPool):
    """Every worker on node 0 dies as soon as it has a unit."""

    def submit(self, assignment: Assignment) -> None:
        super().submit(assignment)
        if self._workers[assignment.worker].node == 0:
            self._at(self.now_s + 0.5, "killed", assignment.worker)

    def _happens(self, kind: str, number: int) -> list[Event]:
        if kind != "killed":
            return super()._happens(kind, number)
        if number not in self._workers:
            return []
        self._end(number)
        return [Event("lost", number, "killed", "0")]


def test_a_node_on_which_workers_keep_dying_is_left_out() -> None:
    pool = _BadNode(
        nodes=3, workers_per_node=2, unit_s=60.0, startup_s=5.0, gets_per_unit=3, units=50, conditions=Conditions(),
        seed=0,
    )  # fmt: skip
    listener = Listener()
    run_pool(iter(units(50)), pool, listener, pool_options(None), clock=lambda: pool.now_s)
    assert sorted(listener.units) == list(range(50))
    assert [line for line in listener.notes if "left out" in line] == [
        "node 0 is left out: 3 workers died there without a commit between"
    ]
    assert len([line for line in listener.notes if "a worker died" in line]) <= 4


def test_workers_that_only_die_end_the_run() -> None:
    pool = _BadNode(
        nodes=1, workers_per_node=2, unit_s=60.0, startup_s=5.0, gets_per_unit=3, units=50, conditions=Conditions(),
        seed=0,
    )  # fmt: skip
    with pytest.raises(GrainmillError, match="workers died"):
        run_pool(iter(units(50)), pool, Listener(), pool_options(2), clock=lambda: pool.now_s)


# ---------------------------------------------------------------------------------------------------------------------
# The simulation


def simulation(images: int, nodes: int, seed: int = 0, **conditions: float) -> SimulationResult:
    profile = Profile(seconds_per_image={"conquer": 0.5}, image_bytes=1e5, label_bytes=1e4, masks_per_image=100)
    cluster = Cluster(nodes=nodes, cores_per_node=8)
    answer = estimate(images=images, profile=profile, cluster=cluster, samples_per_shard=256, with_images=True)
    return simulate_run(answer, profile, cluster, seed=seed, conditions=Conditions(**conditions))


def test_the_simulated_clock_agrees_with_the_arithmetic() -> None:
    calm = simulation(
        8 * 4 * 256 * 20,
        4,
        node_losses_per_hour=0.0,
        straggler_share=0.0,
        spread=0.0,
        request_s=0.0,
        get_limit_per_s=1e9,
    )
    assert calm.units == 640
    assert calm.hours * 3600 == pytest.approx(20 * 128 + 20, rel=0.02)  # twenty units of 128 s on each of 32 cores
    assert calm.idle_share < 0.02
    assert (calm.nodes_lost, calm.units_again, calm.second_attempts) == (0, 0, 0)


def test_losses_cost_time_and_units_but_no_commits() -> None:
    calm = simulation(300_000, 10, node_losses_per_hour=0.0)
    rough = simulation(300_000, 10, node_losses_per_hour=1.0)
    assert rough.units == calm.units
    assert rough.nodes_lost > 0
    assert rough.units_again > 0
    assert rough.hours > calm.hours


def test_a_slow_store_is_what_breaks_first() -> None:
    result = simulation(200_000, 20, get_limit_per_s=150.0)
    assert result.breaks_first == "gets of the store's prefix"
    assert result.get_share > 0.5
    assert result.hours > 1.2 * simulation(200_000, 20).hours


def test_one_seed_one_result() -> None:
    measured = {
        "driver_us_per_unit",
        "driver_busy_share",
        "driver_units_per_second",
        "memory_mb_at_tenth",
        "memory_mb_at_end",
    }
    first, second = (simulation(50_000, 3, seed=5, node_losses_per_hour=2.0).to_json() for _ in range(2))
    for name in measured:
        del first[name], second[name]
    assert first == second


def test_the_driver_serves_more_than_two_thousand_units_a_second_in_flat_memory() -> None:
    result = simulation(256 * 60_000, 200, put_limit_per_s=1e9, get_limit_per_s=1e9)
    assert result.driver_units_per_second >= 2000
    assert result.memory_mb_at_end - result.memory_mb_at_tenth < 30
