"""What driver and pools of workers say to each other: options, events, and the two protocols."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from ..shards.commits import Commit
from ..units.attempt import UnitProgress
from .scheduler import Assignment

STARTING: Final = "the first worker starts: it imports, compiles and loads weights"


class Listener(Protocol):
    """Who wants to know how a run goes."""

    def committed(self, commit: Commit) -> None: ...

    def progressed(self, progress: UnitProgress) -> None: ...

    def noted(self, text: str) -> None: ...

    def workers_ready(self, count: int) -> None: ...

    def waits_for(self, what: str) -> None:
        """What to tell people if nothing comes for some seconds."""
        ...


@dataclass(frozen=True, kw_only=True)
class PoolOptions:
    """How workers are run; changes when a run ends, not what it writes."""

    workers: int | None
    """None: as many as the cluster has room for, also when it grows; only with `ray_address`."""
    unit_timeout_s: float | None
    """A unit in a worker's hands for longer costs that worker its life, and goes to another."""
    straggler_floor_s: float
    """A unit that takes a multiple of the median is a straggler after this time at the earliest."""
    gpus_per_worker: float
    cpus_per_worker: int
    ray_address: str | None


@dataclass(frozen=True)
class Event:
    """What a pool saw.

    `ready` and `lost` name a worker and its node; `done` brings a commit, `failed` the error that ends the run.
    """

    kind: Literal["ready", "progress", "done", "failed", "lost"]
    worker: int
    value: Any = None
    node: str = ""


class Pool(Protocol):
    """Workers somewhere. Numbers of workers are never used twice."""

    def start_worker(self) -> int: ...

    def submit(self, assignment: Assignment) -> None: ...

    def wait(self, timeout_s: float) -> list[Event]:
        """What happened, after at most this time."""
        ...

    def stop_worker(self, worker: int) -> None:
        """Ends a worker at once; no event follows."""
        ...

    def waits_for(self) -> str:
        """While no worker is ready: what they are waiting for."""
        ...

    def capacity(self) -> int | None:
        """How many workers there may be now; None if the pool does not know and the caller decides."""
        ...

    def exclude_node(self, node: str) -> bool:
        """Starts no worker on a node any more. False if it is gone anyway, or the only one."""
        ...

    def report(self, states: dict[str, int]) -> None:
        """Hears how many units are in which state, for whoever watches the pool."""
        ...

    def close(self) -> None:
        """Ends all workers and whatever was started for them; returns when they are gone."""
        ...
