"""Workers as Ray actors: thin shells around `worker.mine_unit`, pinned to their share of a GPU.

Why Ray: it places workers on many machines, gives each its GPUs and says when one is gone. What it is not used for:
images never travel through its object store, results are files and commit records, and nothing is trusted to it that a
commit does not confirm. Imported only by `--executor ray`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Any, Final

import psutil
import ray
import ray.exceptions

from .environment import single_threaded
from .errors import GrainmillError, InputError
from .executors import Event, PoolOptions
from .scheduler import Assignment
from .sources import UnitSpec
from .storage import open_storage
from .supervisor import SupervisedSamples
from .worker import RunSpec, UnitProgress, mine_unit
from .writer import warm_up

OBJECT_STORE_BYTES: Final = 128 * 2**20
"""Of the private Ray: only units and commit records pass through it, a few kB each."""
PROGRESS_S: Final = 2.0
"""Between two questions to an actor about its progress."""
STOP_WAIT_S: Final = 10.0

QUIET: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_enable_open_telemetry": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_LOG_TO_DRIVER": "0",
    "GLOG_minloglevel": "3",
}
"""Set for a Ray that we start: its notices would drown ours. Its own log files stay as they are."""


class MiningActor:
    """A worker on some machine. Loads weights once, does its own reading and writing, returns commit records."""

    def __init__(self, run: RunSpec) -> None:
        os.environ.update(single_threaded())
        self._run = run
        self._progress: UnitProgress | None = None
        self._samples = SupervisedSamples(
            run.mining, sample_timeout_s=run.sample_timeout_s, memory_limit_bytes=run.memory_limit_bytes
        )

    def start(self) -> tuple[str, Any]:
        """`("ready", description)`, or `("failed", error)` if this worker can never mine."""
        try:
            self._storage = open_storage(self._run.output)
            warm_up()
            self._samples.start()
        except GrainmillError as error:
            return "failed", error
        return "ready", self.describe()

    def mine(self, unit: UnitSpec) -> tuple[str, Any]:
        """`("done", commit record)`, or `("failed", error)` for what ends the run."""
        try:
            commit = mine_unit(unit, self._run, self._storage, self._samples, on_progress=self._note)
        except GrainmillError as error:
            return "failed", error
        except Exception:  # a defect of ours: no other worker would do better, so it ends the run
            return "failed", GrainmillError(f"a worker failed unexpectedly:\n{traceback.format_exc()}")
        return "done", commit.record

    def _note(self, progress: UnitProgress) -> None:
        self._progress = progress

    def progress(self) -> UnitProgress | None:
        """Of the unit in hand; answered while `mine` works."""
        return self._progress

    def describe(self) -> dict[str, Any]:
        """Where this worker is and what it may use."""
        return {
            "pid": os.getpid(),
            "child_pid": self._samples.child_pid,
            "node": ray.get_runtime_context().get_node_id(),
            "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        }


class RayPool:
    """Actors on a cluster, or on a private Ray of this machine that ends with the run.

    Args:
        run: what the actors do.
        options: address, workers and GPUs.

    Raises:
        InputError: no cluster at the address, or fewer GPUs than one worker needs.
    """

    def __init__(self, run: RunSpec, options: PoolOptions) -> None:
        self._run = run
        self._gpus = options.gpus_per_worker
        self._temporary: Path | None = None
        self._actors: dict[int, Any] = {}
        self._pending: dict[Any, tuple[int, str]] = {}
        self._asked_s: dict[int, float] = {}
        self._asking: set[int] = set()
        self._next = 0
        self.descriptions: dict[int, dict[str, Any]] = {}
        """Of workers that are ready, by their number."""
        self._own_ray = not ray.is_initialized()
        if self._own_ray:
            self._connect(options)
        self._check_gpus(options)
        methods = {"num_cpus": 1, "num_gpus": self._gpus, "max_restarts": 0, "max_task_retries": 0}
        self._class = ray.remote(**methods, concurrency_groups={"control": 1})(_with_control_group())

    def _connect(self, options: PoolOptions) -> None:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        on_sigterm = signal.getsignal(signal.SIGTERM)
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            if options.ray_address is not None:
                ray.init(address=options.ray_address, **quiet)
            else:
                self._temporary = Path(tempfile.mkdtemp(prefix="gm-ray-"))
                ray.init(
                    address="local",
                    num_cpus=max(options.workers, os.cpu_count() or 1),
                    object_store_memory=OBJECT_STORE_BYTES,
                    include_dashboard=False,
                    _temp_dir=str(self._temporary),
                    **quiet,
                )
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = options.ray_address or "this machine"
            raise InputError(f"--executor ray: cannot reach or start Ray at {where}: {error}") from error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own handler would exit with another code

    def _check_gpus(self, options: PoolOptions) -> None:
        present = ray.cluster_resources().get("GPU", 0.0)
        if self._gpus > present:
            self.close()
            raise InputError(
                f"--gpus-per-worker {self._gpus:g}: the cluster has {present:g} GPUs; "
                "give 0 to mine on processors, or a smaller share"
            )

    def start_worker(self) -> int:
        number = self._next
        self._next += 1
        actor = self._class.remote(self._run)
        self._actors[number] = actor
        self._pending[actor.start.remote()] = (number, "start")
        return number

    def submit(self, assignment: Assignment) -> None:
        actor = self._actors[assignment.worker]
        self._pending[actor.mine.remote(assignment.unit)] = (assignment.worker, "mine")

    def wait(self, timeout_s: float) -> list[Event]:
        self._ask_progress()
        if not self._pending:
            time.sleep(timeout_s)
            return []
        ready, _ = ray.wait(list(self._pending), num_returns=1, timeout=timeout_s)
        if ready:  # take what else has come meanwhile
            ready, _ = ray.wait(list(self._pending), num_returns=len(self._pending), timeout=0)
        events: list[Event] = []
        lost: dict[int, str] = {}
        for reference in ready:
            worker, kind = self._pending.pop(reference)
            try:
                answer = ray.get(reference)
            except (
                ray.exceptions.RayActorError,
                ray.exceptions.RaySystemError,
                ray.exceptions.ObjectLostError,
            ) as error:
                lost[worker] = type(error).__name__
                continue
            except ray.exceptions.RayTaskError as error:
                raise GrainmillError(f"a worker failed in a way nobody expected:\n{error}") from error
            events += self._event(worker, kind, answer)
        for worker, how in lost.items():
            self._forget(worker)
            events.append(Event("lost", worker, how))
        return events

    def _event(self, worker: int, kind: str, answer: Any) -> list[Event]:
        if kind == "progress":
            self._asking.discard(worker)
            return [] if answer is None else [Event("progress", worker, answer)]
        if answer[0] == "ready":
            self.descriptions[worker] = answer[1]
        return [Event(answer[0], worker, answer[1])]

    def _ask_progress(self) -> None:
        now_s = time.monotonic()
        for worker in self.descriptions:
            if worker not in self._asking and now_s - self._asked_s.get(worker, now_s - PROGRESS_S) >= PROGRESS_S:
                self._asked_s[worker] = now_s
                self._asking.add(worker)
                self._pending[self._actors[worker].progress.remote()] = (worker, "progress")

    def stop_worker(self, worker: int) -> None:
        ray.kill(self._actors[worker])
        self._forget(worker)

    def _forget(self, worker: int) -> None:
        self._actors.pop(worker, None)
        self.descriptions.pop(worker, None)
        self._asking.discard(worker)
        self._pending = {reference: of for reference, of in self._pending.items() if of[0] != worker}

    def close(self) -> None:
        for actor in self._actors.values():
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(actor)
        self._actors.clear()
        if not self._own_ray:
            return
        started = psutil.Process().children(recursive=True) if self._temporary is not None else []
        ray.shutdown()
        if self._temporary is not None:
            _, alive = psutil.wait_procs(started, timeout=STOP_WAIT_S)
            for process in alive:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None


def _with_control_group() -> type[MiningActor]:
    """The actor with `progress` and `describe` in a thread of their own, so that they answer while a unit is mined."""

    class Worker(MiningActor):
        @ray.method(concurrency_group="control")
        def progress(self) -> UnitProgress | None:
            return super().progress()

        @ray.method(concurrency_group="control")
        def describe(self) -> dict[str, Any]:
            return super().describe()

    return Worker
