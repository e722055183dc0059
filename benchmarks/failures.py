"""Failures of a cluster, each injected on purpose into a real run: what the cluster tests and `make chaos` share.

A scenario gets an `Arena` (sources, the digest that an undisturbed run gives, a cluster with a head) and a seeded
generator, starts `grainmill mine --ray-address`, breaks something, and reports what was broken, how many units were
begun more than once, and the digest. Where a failure must strike in the middle of a unit, that unit waits at a named
point of the commit protocol (`environment/faults.py`), so nothing depends on timing.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import psutil

from benchmarks.raylets import RayCluster, RayNode

PATIENT: Final = ("--straggler-after-s", "600")
"""Of scenarios that wait for something else: a second attempt elsewhere would end the run before it happens."""
PATIENCE_S = 400.0
"""For anything that has to happen; a loaded machine needs most of it."""
POINTS = ("attempt-started", "shard-written", "published", "before-commit")
"""Where a unit may stand when its node fails."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a scenario did and what came of it."""

    scenario: str
    injected: list[str]
    units: int
    begun: int
    """Attempts at units, as the workers' logs have them."""
    digest: str
    equal: bool
    """Whether the digest is that of an undisturbed run."""
    notes: list[str] = field(default_factory=list)
    """What the driver said on standard error."""
    events: list[dict[str, Any]] = field(default_factory=list, repr=False)
    """Lines of the workers' logs."""

    @property
    def again(self) -> int:
        """Units that were begun a further time."""
        return self.begun - self.units


class Arena:
    """Where a scenario takes place. A context manager: leaving it ends the drivers and nodes it started, also when the
    scenario failed; the next one on the same cluster would run on them.

    Args:
        source: folder of images.
        expected: digest of an undisturbed run of it.
        folder: for outputs.
        generator: of every choice.
    """

    def __init__(self, source: Path, expected: str, folder: Path, generator: random.Random) -> None:
        self.source, self.expected, self.folder, self.random = source, expected, folder, generator
        self.output = folder / "out"
        self.injected: list[str] = []
        self._nodes: list[RayNode] = []
        self._drivers: list[Driver] = []
        self._began_s = time.time()
        folder.mkdir(parents=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for driver in self._drivers:
            driver.close()
        self._end_nodes()

    def _end_nodes(self) -> None:
        for node in self._nodes:
            node.go_on()
            node.kill()

    def nodes(self, cluster: RayCluster, *environments: dict[str, str], cpus: int = 1) -> list[RayNode]:
        """Starts a node for each environment, at the same time."""
        nodes = [cluster.add_node(cpus=cpus, environment=each, wait=False) for each in environments]
        self._nodes += nodes
        nodes = [cluster.wait_started(node) for node in nodes]
        self._nodes += nodes  # others, where one did not start
        return nodes

    def pausing(self, point: str) -> tuple[dict[str, str], Path]:
        """An environment in which the first unit that reaches a point waits there, and the gate that lets it go on."""
        gate = self.folder / "gate"
        once = self.folder / "once"
        once.mkdir(exist_ok=True)
        faults = {"GRAINMILL_FAULT": f"{point}:pause", "GRAINMILL_FAULT_GATE": str(gate)}
        return {**faults, "GRAINMILL_FAULT_ONCE": str(once)}, gate

    def driver(self, cluster: RayCluster, *flags: str) -> Driver:
        self._drivers.append(Driver(self, cluster, self.folder / f"driver-{len(self._drivers) + 1}.err", flags))
        return self._drivers[-1]

    def outcome(self, scenario: str, cluster: RayCluster, driver: Driver) -> Outcome:
        """Waits for the driver's end, removes the nodes, counts."""
        result = driver.result()
        self._end_nodes()
        events = list(log_events(cluster, since_s=self._began_s))
        begun = collections.Counter(event["unit"] for event in events if event["event"] == "unit_started")
        return Outcome(
            scenario=scenario,
            injected=self.injected,
            units=result["units"],
            begun=max(begun.total(), result["units"]),
            digest=result["digest"],
            equal=result["digest"] == self.expected,
            notes=driver.said().splitlines(),
            events=events,
        )


class Driver:
    """A running `grainmill mine`."""

    def __init__(self, arena: Arena, cluster: RayCluster, log: Path, flags: tuple[str, ...]) -> None:
        command = [
            sys.executable, "-m", "pipeline", "mine", "--input", f"in={arena.source}", "--output", str(arena.output),
            "--executor", "ray", "--ray-address", cluster.address, "--samples-per-shard", "2", "--json", *flags,
        ]  # fmt: skip
        self._log = log
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                env=cluster.driver_environment(),
                start_new_session=True,
            )

    def said(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, words: str) -> None:
        wait_until(lambda: words in self.said() or self.process.poll() is not None, f"the driver to say {words!r}")
        assert words in self.said(), f"the driver ended without saying {words!r}:\n{self.said()}"

    def wait_paused(self, gate: Path) -> None:
        """Returns when a unit waits at the gate."""
        wait_until(lambda: paused(gate) or self.process.poll() is not None, "a unit to be half done")
        assert paused(gate), f"the driver ended before a unit waited:\n{self.said()}"

    def end(self) -> int:
        """Waits for the end and returns the exit status."""
        try:
            self._out, _ = self.process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise AssertionError(f"the driver did not end:\n{self.said()}") from None
        return self.process.returncode

    def close(self) -> None:
        """Ends it if it is still at work, and lets go of its output."""
        with self.process:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)

    def result(self) -> dict[str, Any]:
        assert self.end() == 0, self.said()
        result: dict[str, Any] = json.loads(self._out)
        return result


def paused(gate: Path) -> list[Path]:
    """What each process that reached a gate has left beside it; its suffix is the process's id."""
    return list(gate.parent.glob(f"{gate.name}.*"))


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Returns when the condition holds.

    Raises:
        AssertionError: it does not within `PATIENCE_S`.
    """
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, f"waited {PATIENCE_S:g} s for {what}"
        time.sleep(0.1)


def log_events(cluster: RayCluster, *, since_s: float = 0.0) -> Iterator[dict[str, Any]]:
    """Structured lines of all workers' logs."""
    for line in cluster.worker_logs().splitlines():
        if line.startswith('{"'):
            with contextlib.suppress(ValueError):  # a worker was killed while it wrote
                event = json.loads(line)
                if event["time"] >= since_s:
                    yield event


# ---------------------------------------------------------------------------------------------------------------------
# The scenarios


def nodes_join_late(arena: Arena, cluster: RayCluster) -> Outcome:
    """The driver starts on a cluster without any room; nodes come one after the other."""
    driver = arena.driver(cluster)
    time.sleep(arena.random.uniform(0, 2))
    arena.nodes(cluster, {})
    arena.nodes(cluster, {})
    arena.injected.append("two nodes join after the start")
    return arena.outcome("nodes join late", cluster, driver)


def raylet_killed(arena: Arena, cluster: RayCluster) -> Outcome:
    """A node dies while a unit is in its hands."""
    point = arena.random.choice(POINTS)
    environment, gate = arena.pausing(point)
    (failing,) = arena.nodes(cluster, environment)  # alone at first, so that it has a unit however quick others are
    driver = arena.driver(cluster, *PATIENT)
    driver.wait_paused(gate)
    arena.nodes(cluster, {})
    if arena.random.random() < 0.5:
        arena.injected.append(f"raylet killed at {point}")
        failing.kill_raylet()
    else:
        arena.injected.append(f"node killed at {point}")
        failing.kill()
    driver.wait_for("a worker died")
    return arena.outcome("raylet killed", cluster, driver)


def node_stopped(arena: Arena, cluster: RayCluster) -> Outcome:
    """A node stands still until it counts as dead, then comes back with a unit that others have done meanwhile."""
    point = arena.random.choice(POINTS[1:])
    environment, gate = arena.pausing(point)
    (stopped,) = arena.nodes(cluster, environment)  # alone at first, as above
    driver = arena.driver(cluster, *PATIENT)
    driver.wait_paused(gate)
    arena.nodes(cluster, {})
    actor = psutil.Process(int(paused(gate)[0].suffix[1:]))
    unit = next(event["unit"] for event in log_events(cluster) if event["pid"] == actor.pid)
    stopped.stop()
    arena.injected.append(f"node stopped at {point}, back with a stale attempt")
    driver.wait_for("a worker died")
    wait_until(lambda: (arena.output / f"commits/{unit:08d}.json").exists(), "another node to do its unit")
    gate.touch()
    actor.send_signal(signal.SIGCONT)  # the worker first: its raylet would end it as soon as it learns that it is dead
    ends = ("unit_committed", "unit_failed")
    wait_until(
        lambda: (
            any(e["event"] in ends and e["pid"] == actor.pid for e in log_events(cluster)) or not actor.is_running()
        ),
        "the stale attempt to end",
    )
    stopped.go_on()
    return arena.outcome("node stopped", cluster, driver)


def head_killed(arena: Arena, cluster: RayCluster) -> Outcome:
    """Everything the head runs dies, the driver too; the same command goes on, on another cluster."""
    environment, gate = arena.pausing(arena.random.choice(POINTS))
    with RayCluster() as first:
        head = first.start_head()
        lone = first.add_node(environment=environment)
        driver = arena.driver(first)
        driver.wait_paused(gate)
        if arena.random.random() < 0.5:
            arena.injected.append("head killed, the driver with it")
            os.killpg(driver.process.pid, signal.SIGKILL)
        else:
            arena.injected.append("head killed under the driver")
        head.kill()
        assert driver.end() != 0, "a driver without its head must not report success"
        lone.kill()
    arena.nodes(cluster, {}, {})
    again = arena.driver(cluster)
    return arena.outcome("head killed", cluster, again)


def node_that_kills(arena: Arena, cluster: RayCluster) -> Outcome:
    """Every worker on one node dies at its first unit, again and again."""
    patient, gate = arena.pausing("attempt-started")  # the other node waits, else it would do everything meanwhile
    arena.nodes(cluster, {"GRAINMILL_FAULT": f"{arena.random.choice(POINTS)}:kill"}, patient)
    arena.injected.append("a node on which every worker dies")
    driver = arena.driver(cluster, "--workers", "2", *PATIENT)
    driver.wait_for("is left out")
    gate.touch()
    return arena.outcome("failing node", cluster, driver)


def unit_that_hangs(arena: Arena, cluster: RayCluster) -> Outcome:
    """A unit never ends where it is, near the end of the run."""
    environment, _ = arena.pausing(f"{arena.random.choice(POINTS[:2])}")
    environment["GRAINMILL_FAULT"] = environment["GRAINMILL_FAULT"].replace("pause", "hang")
    arena.nodes(cluster, environment, environment)  # the first unit to get there hangs; a fault acts once
    arena.injected.append("a unit that never ends")
    driver = arena.driver(cluster)
    return arena.outcome("straggler", cluster, driver)


def random_kills(arena: Arena, cluster: RayCluster) -> Outcome:
    """Children, actors and whole nodes are killed at random moments; another node comes for each that is lost."""
    waiting, gate = arena.pausing(arena.random.choice(POINTS))  # one unit waits, so that the run lasts until the end
    nodes = arena.nodes(cluster, waiting, waiting)
    driver = arena.driver(cluster)
    driver.wait_paused(gate)
    for _ in range(3):
        time.sleep(arena.random.uniform(0.0, 1.5))
        if driver.process.poll() is not None:
            break
        target = arena.random.choice(["child", "actor", "node"])
        part = {"child": "pipeline.units.child", "actor": "ray::Worker"}.get(target)
        if part is None:
            nodes.pop(0).kill()
            nodes += arena.nodes(cluster, {})
        else:
            found = [process for node in nodes for process in node.find(part)]
            if not found:
                continue
            with contextlib.suppress(psutil.NoSuchProcess):
                arena.random.choice(found).kill()
        arena.injected.append(f"{target} killed")
    gate.touch()
    return arena.outcome("random kills", cluster, driver)


SCENARIOS: dict[str, Callable[[Arena, RayCluster], Outcome]] = {
    "nodes-join-late": nodes_join_late,
    "raylet-killed": raylet_killed,
    "node-stopped": node_stopped,
    "head-killed": head_killed,
    "failing-node": node_that_kills,
    "straggler": unit_that_hangs,
    "random-kills": random_kills,
}


def undisturbed_digest(source: Path, output: Path) -> str:
    """Of a `local` run that nothing happens to."""
    command = [
        sys.executable, "-m", "pipeline", "mine", "--input", f"in={source}", "--output", str(output), "--executor",
        "local", "--workers", "2", "--samples-per-shard", "2", "--json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    shutil.rmtree(output)
    return str(json.loads(done.stdout)["digest"])
