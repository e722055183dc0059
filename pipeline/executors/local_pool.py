"""Workers as processes on this machine, without Ray."""

from __future__ import annotations

from multiprocessing.connection import Connection, wait

from ..environment.numeric import single_threaded
from ..units.attempt import RunSpec
from ..units.processes import Peer
from .pool import STARTING, Event
from .scheduler import Assignment


class LocalPool:
    """Spawned processes that run `pipeline.executors.local_worker`; each supervises a child of its own."""

    def __init__(self, run: RunSpec) -> None:
        self._run = run
        self._peers: dict[int, Peer] = {}
        self._next = 0

    def start_worker(self) -> int:
        number = self._next
        self._next += 1
        peer = Peer("pipeline.executors.local_worker", single_threaded())
        self._peers[number] = peer
        self._send(number, self._run)
        return number

    def submit(self, assignment: Assignment) -> None:
        self._send(assignment.worker, assignment.unit)

    def wait(self, timeout_s: float) -> list[Event]:
        by_connection = {peer.connection: number for number, peer in self._peers.items()}
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
            status = self._peers.pop(worker).join()
            how = f"signal {-status}" if status < 0 else f"exit status {status}"
            return [*events, Event("lost", worker, how)]

    def stop_worker(self, worker: int) -> None:
        self._peers.pop(worker).kill()

    def waits_for(self) -> str:
        return STARTING

    def room(self) -> int | None:
        return None

    def leave_out(self, node: str) -> bool:
        return False  # there is but one

    def report(self, states: dict[str, int]) -> None:
        """Nobody scrapes a pool of this machine."""

    def close(self) -> None:
        for peer in self._peers.values():
            peer.process.kill()
        for peer in self._peers.values():
            peer.join()
        self._peers.clear()

    def _send(self, worker: int, message: object) -> None:
        try:
            self._peers[worker].connection.send(message)
        except (OSError, KeyError):
            return  # it has just died; `wait` says so
