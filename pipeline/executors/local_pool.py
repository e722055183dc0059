"""Workers as processes on this machine, without Ray."""

from __future__ import annotations

from multiprocessing.connection import Connection, wait

from ..environment.numeric import single_threaded
from ..units.batches import RunSpec
from ..units.processes import ChildProcess
from .pool import STARTING, Event
from .scheduler import Assignment


class LocalPool:
    """Spawned processes that run `pipeline.executors.local_worker`; each supervises a child of its own."""

    def __init__(self, run: RunSpec) -> None:
        self._run = run
        self._processes: dict[int, ChildProcess] = {}
        self._next = 0

    def start_worker(self) -> int:
        number = self._next
        self._next += 1
        self._processes[number] = ChildProcess("pipeline.executors.local_worker", single_threaded())
        self._send(number, self._run)
        return number

    def submit(self, assignment: Assignment) -> None:
        self._send(assignment.worker, assignment.unit)

    def wait(self, timeout_s: float) -> list[Event]:
        by_connection = {process.connection: number for number, process in self._processes.items()}
        events: list[Event] = []
        for connection in wait(list(by_connection), timeout_s):
            assert isinstance(connection, Connection)
            events += self._receive(by_connection[connection], connection)
        return events

    def _receive(self, worker: int, connection: Connection) -> list[Event]:
        events = []
        try:
            while True:
                kind, value = connection.recv()
                events.append(Event(kind, worker, value))
                if not connection.poll():
                    return events
        except (EOFError, OSError):
            status = self._processes.pop(worker).join()
            how = f"signal {-status}" if status < 0 else f"exit status {status}"
            return [*events, Event("lost", worker, how)]

    def stop_worker(self, worker: int) -> None:
        self._processes.pop(worker).kill()

    def waits_for(self) -> str:
        return STARTING

    def capacity(self) -> int | None:
        return None

    def exclude_node(self, node: str) -> bool:
        return False  # there is but one

    def report(self, states: dict[str, int]) -> None:
        """A pool of this machine has no metrics."""

    def close(self) -> None:
        for process in self._processes.values():
            process.process.kill()
        for process in self._processes.values():
            process.join()
        self._processes.clear()

    def _send(self, worker: int, message: object) -> None:
        try:
            self._processes[worker].connection.send(message)
        except (OSError, KeyError):
            return  # it has just died; `wait` says so
