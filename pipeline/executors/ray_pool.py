"""Workers as Ray actors: thin shells around `attempt.mine_unit`, pinned to their share of a GPU.

Why Ray: it places workers on many machines, gives each its GPUs and says when one is gone. What it is not used for:
images never travel through its object store, results are files and commit records, and nothing is trusted to it that a
commit does not confirm. Imported only by `--executor ray`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import queue
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
import urllib.parse
from concurrent.futures import CancelledError, Future
from typing import Any, Final

import psutil
import ray
import ray.exceptions

from ..environment.numeric import single_threaded
from ..errors import GrainmillError, InputError
from ..shards.writer import warm_up
from ..sources.units import UnitSpec
from ..storage.open import open_storage
from ..storage.session_folder import SessionFolder
from ..units.attempt import UnitProgress, mine_unit
from ..units.batches import RunSpec
from ..units.supervisor import SupervisedMiner
from .logs import LoggedMiner, UnitLog
from .metrics import RunMetrics, WorkerMetrics
from .pool import STARTING, Event, PoolOptions
from .scheduler import Assignment

OBJECT_STORE_BYTES: Final = 128 * 2**20
"""Of the private Ray: only units and commit records pass through it, a few kB each."""
PROGRESS_S: Final = 2.0
"""Between two questions to an actor about its progress, while there are few actors."""
PROGRESS_PER_S: Final = 100.0
"""Questions a second over all actors at most, so that a thousand nodes do not keep the driver busy with answers."""
STOP_WAIT_S: Final = 10.0
CONNECT_S: Final = 15.0
"""For a cluster's head to listen, so that one that is just starting is met."""
CLIENT_PORT: Final = 10_001
"""Of `ray://HOST`, Ray's own default."""
CLUSTER_LOOK_S: Final = 2.0
"""Between two looks at which nodes there are."""
NODE_LABEL: Final = "ray.io/node-id"
"""Set by Ray on every node."""

QUIET: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_LOG_TO_DRIVER": "0",
    "GLOG_minloglevel": "3",
}
"""Set for every driver: Ray's notices would drown ours. Its own log files stay as they are."""
PRIVATE: Final = {
    "RAY_enable_open_telemetry": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_worker_niceness": "0",
}
"""And for a Ray that we start: nobody scrapes it, and its workers are the job (Ray would put them behind everything
else on the machine, at niceness 15; local workers are not)."""


class MiningActor:
    """A worker on some machine. Loads weights once, does its own reading and writing, returns commit records."""

    def __init__(self, run: RunSpec) -> None:
        os.environ.update(single_threaded())
        self._run = run
        self._node = ray.get_runtime_context().get_node_id()
        self._progress: UnitProgress | None = None
        self._metrics = WorkerMetrics(self._node)
        self._log = UnitLog(node=self._node)
        self._miner = SupervisedMiner(run)

    def place(self) -> tuple[str, str]:
        """Where this worker is; answered before anything that can fail."""
        return "placed", self._node

    def start(self) -> tuple[str, Any]:
        """`("ready", description)`, or `("failed", error)` if this worker can never mine."""
        try:
            self._storage = open_storage(self._run.output)
            warm_up()
            self._miner.start()
        except GrainmillError as error:
            return "failed", error
        self._ended_s = time.perf_counter()
        return "ready", self.describe()

    def mine(self, unit: UnitSpec) -> tuple[str, Any]:
        """`("done", commit record)`, or `("failed", error)` for what ends the run."""
        self._log.started(unit)
        try:
            commit = mine_unit(
                unit,
                self._run,
                self._storage,
                LoggedMiner(self._miner, self._log),
                on_progress=self._note,
                waited_s=time.perf_counter() - self._ended_s,
            )
        except GrainmillError as error:
            self._log.failed(unit, error)
            return "failed", error
        except Exception as error:  # a defect of ours: no other worker would do better, so it ends the run
            self._log.failed(unit, error)
            return "failed", GrainmillError(f"a worker failed unexpectedly:\n{traceback.format_exc()}")
        self._progress = None
        self._ended_s = time.perf_counter()
        self._log.committed(commit)
        self._metrics.committed(unit, commit)
        return "done", commit.record

    def _note(self, progress: UnitProgress) -> None:
        self._progress = progress

    def progress(self) -> tuple[str, UnitProgress | None]:
        """Of the unit in hand; answered while `mine` works."""
        return "progress", self._progress

    def describe(self) -> dict[str, Any]:
        """Where this worker is and what it may use."""
        return {
            "pid": os.getpid(),
            "child_pid": self._miner.child_pid,
            "node": self._node,
            "gpus": ray.get_runtime_context().get_assigned_resources().get("GPU", 0.0),
            "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "memory_fraction": self._run.memory_fraction,
        }


class RayPool:
    """Actors on a cluster, or on a private Ray of this machine that ends with the run.

    Answers come by call-backs into one queue, so that waiting costs the same with ten actors and with ten thousand.

    Args:
        run: what the actors do.
        options: address, workers and GPUs.

    Raises:
        InputError: no cluster at the address, or fewer GPUs than one worker needs.
    """

    def __init__(self, run: RunSpec, options: PoolOptions) -> None:
        self._gpus = options.gpus_per_worker
        self._cpus = options.cpus_per_worker
        share = min(self._gpus, 1.0) if self._gpus else 1.0
        self._run = dataclasses.replace(run, memory_fraction=share)
        self._temporary: SessionFolder | None = None
        self._actors: dict[int, Any] = {}
        self._nodes: dict[int, str] = {}
        self._answers: queue.SimpleQueue[tuple[int, Future[Any]]] = queue.SimpleQueue()
        self._asked_s: dict[int, float] = {}
        self._asking: set[int] = set()
        self._excluded: set[str] = set()
        self._next = 0
        self._next_ask_s = self._next_look_s = 0.0
        self._capacity = 0
        self._metrics: RunMetrics | None = None
        self.descriptions: dict[int, dict[str, Any]] = {}
        """Of workers that are ready, by their number."""
        # Ray prints what happens to workers on standard output, which belongs to the one object of `--json`.
        self._stdout = contextlib.ExitStack()
        self._stdout.enter_context(contextlib.redirect_stdout(sys.stderr))
        self._own_ray = not ray.is_initialized()
        if self._own_ray:
            try:
                self._connect(options)
            except InputError:
                self._stdout.close()
                raise
        self._check_gpus(options)
        methods = {"num_cpus": self._cpus, "num_gpus": self._gpus, "max_restarts": 0, "max_task_retries": 0}
        self._class = ray.remote(**methods, concurrency_groups={"control": 1})(_with_control_group())
        if options.ray_address is not None:
            self._metrics = RunMetrics()

    def _connect(self, options: PoolOptions) -> None:
        private = options.ray_address is None
        for name, value in (QUIET | (PRIVATE if private else {})).items():
            os.environ.setdefault(name, value)
        on_sigterm = signal.getsignal(signal.SIGTERM)
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            if not private:
                require_listening(options.ray_address or "")
                ray.init(address=options.ray_address, **quiet)
            else:
                self._temporary = SessionFolder("gm-ray-")
                # Ray guards a new cluster by a token, and would save one in the user's home if it had none.
                os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
                ray.init(
                    address="local",
                    num_cpus=max((options.workers or 1) * options.cpus_per_worker, os.cpu_count() or 1),
                    object_store_memory=OBJECT_STORE_BYTES,
                    include_dashboard=False,
                    _temp_dir=str(self._temporary.path),
                    **quiet,
                )
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = options.ray_address or "this machine"
            self._stdout.close()
            raise InputError(f"--executor ray: cannot reach or start Ray at {where}: {error}") from error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own handler would exit with another code

    def _check_gpus(self, options: PoolOptions) -> None:
        """A private Ray never grows; on a cluster a node with GPUs may still come, so there the driver waits."""
        present = ray.cluster_resources().get("GPU", 0.0)
        if options.ray_address is None and self._gpus > present:
            self.close()
            raise InputError(
                f"--gpus-per-worker {self._gpus:g}: this machine has {present:g} GPUs; "
                "give 0 to mine on processors, or a smaller share"
            )

    def start_worker(self) -> int:
        number = self._next
        self._next += 1
        options: dict[str, Any] = {"scheduling_strategy": "SPREAD"}
        if self._excluded:
            options = {"label_selector": {NODE_LABEL: f"!in({','.join(sorted(self._excluded))})"}}
        actor = self._class.options(**options).remote(self._run)
        self._actors[number] = actor
        self._expect(actor.place.remote(), number)
        self._expect(actor.start.remote(), number)
        return number

    def submit(self, assignment: Assignment) -> None:
        actor = self._actors.get(assignment.worker)
        if actor is not None:  # else it has just died; `wait` says so
            self._expect(actor.mine.remote(assignment.unit), assignment.worker)

    def _expect(self, reference: Any, worker: int) -> None:
        future: Future[Any] = reference.future()
        future.add_done_callback(lambda done: self._answers.put((worker, done)))

    def wait(self, timeout_s: float) -> list[Event]:
        self._ask_progress()
        events: list[Event] = []
        with contextlib.suppress(queue.Empty):
            events += self._events(*self._answers.get(timeout=timeout_s))
            while True:  # take what else has come meanwhile
                events += self._events(*self._answers.get_nowait())
        return events

    def _events(self, worker: int, future: Future[Any]) -> list[Event]:
        if worker not in self._actors:
            return []  # of one that is gone
        try:
            kind, value = future.result()
        except ray.exceptions.RayTaskError as error:
            raise GrainmillError(f"a worker failed in a way nobody expected:\n{error}") from error
        except (ray.exceptions.RayError, CancelledError) as error:
            node = self._nodes.get(worker, "")
            self.stop_worker(worker)  # an actor that cannot be reached may still live, and hold its GPU
            return [Event("lost", worker, type(error).__name__, node)]
        if kind == "placed":
            self._nodes[worker] = value
            return []
        if kind == "progress":
            self._asking.discard(worker)
            return [] if value is None else [Event("progress", worker, value)]
        if kind == "ready":
            self.descriptions[worker] = value
        assert kind in ("ready", "done", "failed")
        return [Event(kind, worker, value, self._nodes.get(worker, ""))]

    def _ask_progress(self) -> None:
        now_s = time.monotonic()
        if now_s < self._next_ask_s:
            return
        self._next_ask_s = now_s + PROGRESS_S / 4
        interval_s = max(PROGRESS_S, len(self.descriptions) / PROGRESS_PER_S)
        for worker in self.descriptions:
            if worker not in self._asking and now_s - self._asked_s.get(worker, now_s - interval_s) >= interval_s:
                self._asked_s[worker] = now_s
                self._asking.add(worker)
                self._expect(self._actors[worker].progress.remote(), worker)
        if self._metrics is not None:
            self._metrics.workers(len(self.descriptions), gpus=self._gpus * len(self.descriptions))

    def waits_for(self) -> str:
        return STARTING if self._nodes else "a node with room for a worker"

    def capacity(self) -> int | None:
        now_s = time.monotonic()
        if now_s >= self._next_look_s:
            self._next_look_s = now_s + CLUSTER_LOOK_S
            nodes = [each for each in ray.nodes() if each["Alive"] and each["NodeID"] not in self._excluded]
            self._capacity = sum(self._capacity_of(each["Resources"]) for each in nodes)
        return self._capacity

    def _capacity_of(self, resources: dict[str, float]) -> int:
        cores = int(resources.get("CPU", 0.0)) // self._cpus
        return min(cores, int(resources.get("GPU", 0.0) / self._gpus + 1e-9)) if self._gpus else cores

    def report(self, states: dict[str, int]) -> None:
        if self._metrics is not None:
            self._metrics.units(states)

    def exclude_node(self, node: str) -> bool:
        alive = {each["NodeID"] for each in ray.nodes() if each["Alive"]}
        if node not in alive or len(alive - self._excluded) < 2 or node in self._excluded:
            return False
        self._excluded.add(node)
        return True

    def stop_worker(self, worker: int) -> None:
        actor = self._actors.pop(worker, None)
        if actor is not None:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(actor)
        self._nodes.pop(worker, None)
        self.descriptions.pop(worker, None)
        self._asked_s.pop(worker, None)
        self._asking.discard(worker)

    def close(self) -> None:
        try:
            for worker in list(self._actors):
                self.stop_worker(worker)
            if self._own_ray:
                self._disconnect()
        finally:
            self._stdout.close()

    def _disconnect(self) -> None:
        started = psutil.Process().children(recursive=True) if self._temporary is not None else []
        ray.shutdown()
        if self._temporary is not None:
            _, alive = psutil.wait_procs(started, timeout=STOP_WAIT_S)
            for process in alive:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self._temporary.remove()
            self._temporary = None


def require_listening(address: str) -> None:
    """Waits `CONNECT_S` for somebody to listen where Ray would look for its cluster: Ray itself would try for a quarter
    of an hour.

    Args:
        address: as `--ray-address` has it; what is no `HOST:PORT`, `ray://HOST[:PORT]` or `auto` is left to Ray.

    Raises:
        ConnectionError: nobody does.
    """
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or address
    if address == "auto":
        from ray._private.services import canonicalize_bootstrap_address  # as ray.init looks for it

        address = canonicalize_bootstrap_address("auto") or ""
    scheme, _, place = address.rpartition("://")
    if scheme not in ("", "ray"):
        return
    try:
        parts = urllib.parse.urlsplit(f"//{place}")
        host, port = parts.hostname, parts.port or (CLIENT_PORT if scheme else None)
    except ValueError:
        return
    if not host or port is None:
        return
    until_s = time.monotonic() + CONNECT_S
    while True:
        try:
            socket.create_connection((host, port), timeout=CONNECT_S / 3).close()
            return
        except OSError as error:
            if time.monotonic() >= until_s:
                raise ConnectionError(
                    f"nothing answers at {host} port {port} ({error}); `ray status` on the head tells its address, and "
                    "`ray start --head` starts one"
                ) from error
        time.sleep(CONNECT_S / 30)


def _with_control_group() -> type[MiningActor]:
    """The actor with `progress` and `describe` in a thread of their own, so that they answer while a unit is mined."""

    class Worker(MiningActor):
        @ray.method(concurrency_group="control")
        def progress(self) -> tuple[str, UnitProgress | None]:
            return super().progress()

        @ray.method(concurrency_group="control")
        def describe(self) -> dict[str, Any]:
            return super().describe()

    return Worker
