"""A real Ray cluster of several raylets on one machine: for tests and for `make chaos`.

Every node is a `ray start --block` of its own process group, with its own declared CPUs and GPUs and a small object
store, so it can be killed or stopped as a machine can: all its processes at once.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

OBJECT_STORE_BYTES = 80 * 2**20
START_S = 90.0
HEALTH = {
    # A stopped node is dead after some ten seconds instead of half a minute; less would kill nodes that are only slow.
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1500",
    "RAY_health_check_timeout_ms": "2500",
    "RAY_health_check_failure_threshold": "3",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "20",
    "RAY_worker_niceness": "0",  # Ray's 15 starves its workers on a machine that others use as well
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_kill_child_processes_on_worker_exit": "true",
}
REPOSITORY = Path(__file__).resolve().parents[1]


class RayNode:
    """One node. Made by `RayCluster.add_node`."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, arguments: tuple[Any, ...]) -> None:
        self.process, self.log, self.arguments = process, log, arguments

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_started(self) -> None:
        """Returns when the raylet runs.

        Raises:
            RuntimeError: it does not start; with what it said.
        """
        deadline_s = time.monotonic() + START_S
        while time.monotonic() < deadline_s and self.process.poll() is None:
            if "Ray runtime started" in self.said():
                return
            time.sleep(0.2)
        raise RuntimeError(f"a node did not start:\n{self.said()}")

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def processes(self) -> list[psutil.Process]:
        """The raylet, its agents, its workers and their children."""
        with contextlib.suppress(psutil.NoSuchProcess):
            top = psutil.Process(self.process.pid)
            return [top, *top.children(recursive=True)]
        return []

    def find(self, part: str) -> list[psutil.Process]:
        """Processes whose command line holds `part`."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if part in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def kill_raylet(self) -> None:
        """SIGKILL of the raylet alone; what it started finds out by itself."""
        for process in self.find("raylet/raylet"):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def kill(self) -> None:
        """SIGKILL of everything on the node, as when a machine loses its power."""
        self._signal(signal.SIGKILL)

    def stop(self) -> None:
        """SIGSTOP of everything, as when a machine's network is cut."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        processes = self.processes()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        if number == signal.SIGKILL:
            psutil.wait_procs(processes, timeout=10)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)


class RayCluster:
    """Raylets on this machine. A context manager: leaving it kills everything it started.

    Args:
        environment: variables of every node's processes, faults for instance.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self.token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        """Without it nobody reaches this cluster; it goes to nodes and drivers by their environment."""
        self._environment = {**(environment or {}), **self.token}
        # Sockets of Ray have long names, and the length of a socket's path is limited.
        self._folder = Path(tempfile.mkdtemp(prefix="gmr-", dir="/tmp"))
        self._port = free_port()
        self.nodes: list[RayNode] = []
        self.dashboard_port: int | None = None
        self.address = f"127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in self.nodes:
            node.go_on()
            node.kill()
        self._kill_leftovers()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _kill_leftovers(self) -> None:
        """Workers whose raylet died are children of init by now; they are known by this cluster's own folder."""
        for process in psutil.process_iter(["cmdline", "environ"]):
            text = " ".join(process.info["cmdline"] or [])
            if str(self._folder) in text or (process.info["environ"] or {}).get("GRAINMILL_CLUSTER") == str(
                self._folder
            ):
                with contextlib.suppress(psutil.Error):
                    process.kill()

    def start_head(
        self,
        *,
        cpus: int = 0,
        gpus: int = 0,
        environment: Mapping[str, str] | None = None,
        dashboard_port: int | None = None,
    ) -> RayNode:
        """The head; by default without room for workers, and without the dashboard that takes jobs."""
        self.dashboard_port = dashboard_port
        flags = ["--head", f"--port={self._port}", f"--ray-client-server-port={free_port()}"]
        if dashboard_port is None:
            flags.append("--include-dashboard=false")
        else:
            flags += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}"]
        return self._start(flags, cpus, gpus, environment or {})

    def add_node(
        self,
        *,
        cpus: int = 1,
        gpus: int = 0,
        environment: Mapping[str, str] | None = None,
        flags: Sequence[str] = (),
        wait: bool = True,
    ) -> RayNode:
        """A node that joins; without `wait` while the caller goes on."""
        return self._start([f"--address={self.address}", *flags], cpus, gpus, environment or {}, wait=wait)

    def _start(
        self, flags: list[str], cpus: int, gpus: int, environment: Mapping[str, str], *, wait: bool = True
    ) -> RayNode:
        log = self._folder / f"node-{len(self.nodes)}.log"
        # A folder for each node: two that start at the same moment would choose the same names for their sockets. Ports
        # that the system gives: by default the agent of every node wants 52365, all but the first on a machine live on
        # without it, and a head's agent without it takes no jobs; the workers of all nodes share ten thousand ports.
        script = "from ray.scripts.scripts import main; main()"
        command = [
            sys.executable, "-c", script, "start", "--block", "--node-ip-address=127.0.0.1", f"--num-cpus={cpus}",
            f"--num-gpus={gpus}", f"--object-store-memory={OBJECT_STORE_BYTES}", "--disable-usage-stats",
            f"--temp-dir={self._folder}/{len(self.nodes)}", "--dashboard-agent-listen-port=0", "--min-worker-port=0",
            "--max-worker-port=0", *flags,
        ]  # fmt: skip
        paths = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
        marks = {"PYTHONPATH": paths, "GRAINMILL_CLUSTER": str(self._folder)}
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, **HEALTH, **self._environment, **environment, **marks},
                start_new_session=True,
            )
        node = RayNode(process, log, (flags, cpus, gpus, environment))
        self.nodes.append(node)
        if wait:
            self.wait_started(node)
        return node

    def wait_started(self, node: RayNode) -> RayNode:
        """Returns the node when it runs, or another in its place: Ray gives a raylet half a minute, which a loaded
        machine does not always keep."""
        for _ in range(2):
            try:
                node.wait_started()
                return node
            except RuntimeError:
                node.kill()
                node = self._start(*node.arguments, wait=False)
        node.wait_started()
        return node

    def driver_environment(self) -> dict[str, str]:
        """For a driver on this cluster: our sources first, the cluster's token, the same patience as its nodes."""
        paths = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
        return {**os.environ, **HEALTH, **self.token, "PYTHONPATH": paths}

    def agent_logs(self) -> str:
        """What the dashboard agents of all nodes wrote, the head's first: they take jobs and show metrics."""
        found = sorted(self._folder.glob("*/session_2*/logs/dashboard_agent.*"))
        return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in found)

    def worker_logs(self) -> str:
        """What all workers wrote to standard error, structured lines among it."""
        found = sorted(self._folder.glob("*/session_2*/logs/worker-*.err"))
        return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in found)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port
