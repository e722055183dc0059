"""A testing aid: stops a process at a named point, so that tests can show what a crash leaves behind.

`GRAINMILL_FAULT` holds faults separated by `;`, each `POINT:ACTION[:WHERE]`:

- points of the commit protocol: `planned`, `attempt-started`, `shard-written`, `published`, `before-commit`,
  `committed`, `before-manifest`, `manifest`; WHERE is the unit's number (any unit without it);
- `sample`: when a sample is about to be mined; WHERE is a part of its source's URI;
- `batch`: when a batch is about to be mined; WHERE is its number of samples.

Actions: `kill` (SIGKILL, as a power cut or an out-of-memory kill), `abort`, `hang`, `eat` (memory without end),
`raise`, `gpu-memory` (the exception that torch raises when a GPU is full), `pause` (makes the file `GATE.PID`, then
waits until the file named by `GRAINMILL_FAULT_GATE` exists). With `GRAINMILL_FAULT_ONCE` set to a directory, each fault
acts once only. Without the variable `reach` costs one dictionary look-up.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def reach(point: str, where: str = "") -> None:
    """Says that this point has been reached; acts if a fault is set for it."""
    faults = os.environ.get("GRAINMILL_FAULT")
    if not faults:
        return
    for fault in faults.split(";"):
        name, action, *wanted = fault.split(":", 2)
        if name == point and (not wanted or _matches(point, wanted[0], where)) and _may_act(fault):
            _act(action)


def _matches(point: str, wanted: str, where: str) -> bool:
    return wanted in where if point == "sample" else wanted == where


def _may_act(fault: str) -> bool:
    folder = os.environ.get("GRAINMILL_FAULT_ONCE")
    if folder is None:
        return True
    try:
        (Path(folder) / fault.replace("/", "_")).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


class OutOfMemoryError(RuntimeError):
    """Named as `torch.OutOfMemoryError`, which the child knows by its name."""


def _act(action: str) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "abort":
        os.abort()
    elif action == "gpu-memory":
        raise OutOfMemoryError("raised by GRAINMILL_FAULT")
    elif action == "raise":
        raise RuntimeError("raised by GRAINMILL_FAULT")
    elif action == "eat":
        eaten = []
        while True:
            eaten.append(bytearray(b"\1") * (1 << 24))
    elif action == "hang":
        while True:
            time.sleep(3600)
    elif action == "pause":
        gate = Path(os.environ["GRAINMILL_FAULT_GATE"])
        gate.with_name(f"{gate.name}.{os.getpid()}").touch()
        while not gate.exists():
            time.sleep(0.01)
    else:
        raise ValueError(f"GRAINMILL_FAULT: no action {action!r}")
