"""Spawned processes that never outlive their parent, and a pipe to each.

A child is a fresh interpreter (`python -P -m MODULE`), never a fork: forking a process that has threads or a GPU
context is undefined, and the variables that fix threads must be set before numpy and torch are imported. It dies
with its parent in two ways: the kernel kills it (PR_SET_PDEATHSIG), and its pipe ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
STOP_WAIT_S: Final = 5.0


class ChildProcess:
    """A spawned process and the pipe to it.

    Args:
        module: its `main` gets the pipe from `parent_connection`.
        environment: variables added to this process's own.
    """

    def __init__(self, module: str, environment: Mapping[str, str]) -> None:
        ours, theirs = Pipe(duplex=True)
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=2,  # standard output belongs to the driver's result
                pass_fds=[theirs.fileno()],
                env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(paths)},
            )
        self.connection: Connection = ours

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> int:
        """Kills the process, waits for its end, closes the pipe; returns the exit status (negative: a signal)."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        return self.join()

    def join(self) -> int:
        """Waits for a process that has ended or is about to; one that lingers is killed."""
        try:
            status = self.process.wait(STOP_WAIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        self.connection.close()
        return status


def parent_connection() -> Connection:
    """For the spawned side: ties this process's life to its parent and returns the pipe to it."""
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the driver decides what ends
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return Connection(descriptor)


def die_with_parent(parent: int) -> None:
    """Asks the kernel to kill this process when its parent's thread ends; exits at once if that has happened."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
