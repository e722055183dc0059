"""`lease.json`: lets a second driver say who the first is, and stop. Nothing rests on it.

A lease of a dead process on this host is taken over at once. Of another host only its heartbeat is known: if the beat
does not change while we wait, its driver is gone. No clocks are compared.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import Any, Final, Self

import psutil

from ..errors import GrainmillError, SchemaError
from ..format.schema import canonical_json, load_json
from ..storage.base import Reader, StorageError, Writer

LEASE: Final = "lease.json"
BEAT_S: Final = 5.0
"""Between two heartbeats."""
FOREIGN_WAIT_S: Final = 20.0
"""How long the beat of a driver on another host may stand still before it counts as gone."""


class OutputBusyError(GrainmillError):
    """Another driver works on this output."""


class Lease:
    """Held while a driver works on an output. A context manager.

    Raises:
        OutputBusyError: on entering, if another driver is alive.
    """

    def __init__(self, storage: Writer) -> None:
        self._storage = storage
        self._mine: dict[str, Any] = {
            "driver": secrets.token_hex(8),
            "host": socket.gethostname(),
            "boot": _boot_id(),
            "pid": os.getpid(),
            "process_started": psutil.Process().create_time(),
            "beat": 0,
        }
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, name="grainmill-lease", daemon=True)

    def __enter__(self) -> Self:
        if not self._storage.write_new(LEASE, canonical_json(self._mine)):
            self._take_over()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        try:
            holder = read_lease(self._storage)
            if holder is not None and holder["driver"] == self._mine["driver"]:
                self._storage.remove(LEASE)
        except GrainmillError:
            if kind is None:  # else the first error says more than a lease that could not be removed
                raise

    def _take_over(self) -> None:
        holder = read_lease(self._storage)
        if holder is not None and is_alive(self._storage, holder):
            raise OutputBusyError(busy_message(self._storage, holder))
        self._storage.put_atomic(LEASE, canonical_json(self._mine))
        taken = read_lease(self._storage)
        if taken is None or taken["driver"] != self._mine["driver"]:
            raise OutputBusyError(f"{self._storage.location}: another run started at the same moment; try again")

    def _keep_beating(self) -> None:
        while not self._stop.wait(BEAT_S):
            self._mine["beat"] += 1
            # A disk that is full stops the run elsewhere, with its own message; a file that was removed from the
            # scratch folder while it was written is written again with the next beat.
            with contextlib.suppress(StorageError):
                self._storage.put_atomic(LEASE, canonical_json(self._mine))


def read_lease(storage: Reader) -> dict[str, Any] | None:
    """The lease that stands; None if there is none or it cannot be read as one."""
    if not storage.exists(LEASE):
        return None
    try:
        lease = load_json(storage.read_bytes(LEASE), where=f"{storage.location}/{LEASE}")
    except (SchemaError, StorageError):
        return None
    names = {"driver", "host", "boot", "pid", "process_started", "beat"}
    return lease if isinstance(lease, dict) and names <= set(lease) else None


def is_alive(storage: Reader, lease: dict[str, Any], *, wait_s: float = FOREIGN_WAIT_S) -> bool:
    """Whether the driver that holds a lease is still at work."""
    if lease["boot"] == _boot_id() and lease["host"] == socket.gethostname():
        try:
            # A few milliseconds of tolerance: the start time is computed from the boot time.
            return abs(psutil.Process(lease["pid"]).create_time() - lease["process_started"]) < 0.5
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:
            return True
    deadline_s = time.monotonic() + wait_s
    while time.monotonic() < deadline_s:
        time.sleep(1.0)
        now = read_lease(storage)
        if now is None:
            return False
        if now["beat"] != lease["beat"] or now["driver"] != lease["driver"]:
            return True
    return False


def busy_message(storage: Reader, lease: dict[str, Any]) -> str:
    """Who holds the output, and what to do."""
    return (
        f"{storage.location}: another run works on this output: process {lease['pid']} on {lease['host']}. "
        "Wait for it, stop it, or choose another --output"
    )


def _boot_id() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text(encoding="ascii").strip() if path.exists() else ""
