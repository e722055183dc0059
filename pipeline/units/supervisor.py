"""Watches the child that does the native work, and finds the sample that kills it.

The child says which keys it holds before it begins. When it dies by its own doing, hangs or outgrows its memory, those
samples are tried one by one, alone; a sample that kills a fresh child alone twice becomes a failure row. A child that
was killed from outside (SIGKILL, SIGTERM and such without a sign of memory shortage) is evidence against no sample: the
batch is simply done again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import psutil

from ..environment.numeric import single_threaded
from ..environment.stage_seconds import StageSeconds
from ..errors import FailureReason, GrainmillError
from ..sources.passed_over import PassedOver
from ..sources.unit_reader import UnitReader
from ..sources.units import SampleIdentity, UnitSpec
from .batches import BatchResult, RunSpec, UnitRepeatError, failure_row
from .processes import ChildProcess

START_TIMEOUT_S: Final = 900.0
"""For imports, weights and the compilation of kernels in a fresh child."""
WATCH_INTERVAL_S: Final = 0.1
"""Between two looks at a working child's memory."""
STRIKES: Final = 2
"""Deaths alone after which a sample is given up."""
MAX_OUTSIDE_KILLS: Final = 50
"""Of one batch without progress; more means that something kills every child, which no retry mends."""
_OUTSIDE_SIGNALS: Final = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})


class ChildLostError(Exception):
    """The child ended, or had to be ended, while it worked.

    Attributes:
        reason: what the sample in its hands would be charged with; None if it was killed from outside.
    """

    def __init__(self, reason: FailureReason | None, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class GpuMemoryError(Exception):
    """The batch did not fit the GPU."""


class SupervisedMiner:
    """Mines units in a child process.

    Args:
        run: what the child mines with, and its limits.
    """

    def __init__(self, run: RunSpec) -> None:
        self._run = run
        self._child: ChildProcess | None = None
        self._unit: UnitSpec | None = None
        self._count = 0
        self._held: dict[int, SampleIdentity] = {}
        self._environment: dict[str, Any] = {}
        self._batch_size = 1
        self._memory_note: str | None = None
        """Stands in the commits of every unit from the one on that did not fit: they all have smaller batches."""

    # What `attempt.UnitMiner` asks for

    def results(self, unit: UnitSpec) -> Iterator[BatchResult]:
        self._unit, self._held = unit, {}
        self._reopen()
        first = 0
        while first < self._count:
            positions = list(range(first, min(first + self._batch_size, self._count)))
            yield self._mine(positions)
            first += len(positions)

    def environment(self) -> dict[str, Any]:
        return self._environment

    def notes(self) -> list[str]:
        return [self._memory_note] if self._memory_note else []

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None

    # The child's life

    @property
    def child_pid(self) -> int | None:
        return None if self._child is None else self._child.pid

    def start(self) -> None:
        """Starts a child and waits until it can mine.

        Raises:
            GrainmillError: it cannot, for instance because the weights are missing.
        """
        for _ in range(MAX_OUTSIDE_KILLS):
            self.close()
            self._child = ChildProcess("pipeline.units.child", single_threaded())
            try:
                self._batch_size, self._environment = self._ask(("run", self._run), START_TIMEOUT_S)
                return
            except ChildLostError as error:
                if error.reason is not None:
                    raise GrainmillError(
                        f"mining does not start: {error}; `--executor inline` shows the whole traceback"
                    ) from error
        raise GrainmillError(f"the mining process was killed from outside {MAX_OUTSIDE_KILLS} times while it started")

    def _reopen(self) -> None:
        """Makes sure that there is a child and that it has the unit in hand."""
        for _ in range(MAX_OUTSIDE_KILLS):
            if self._child is None:
                self.start()
            try:
                self._count = self._ask(("open", self._unit), self._run.sample_timeout_s + 60.0)
                return
            except ChildLostError as error:
                lost = error
        assert self._unit is not None
        raise GrainmillError(f"unit {self._unit.unit}: its source cannot be opened ({lost})")

    def _ask(self, message: tuple[Any, ...], timeout_s: float) -> Any:
        """One question to the child.

        Raises:
            ChildLostError: it ended, or was ended because it took too long or too much memory.
            GrainmillError: as the child says.
        """
        assert self._child is not None
        connection = self._child.connection
        shortages = kernel_memory_kills()
        deadline_s = time.monotonic() + timeout_s
        try:
            connection.send(message)
            while True:
                while not connection.poll(WATCH_INTERVAL_S):
                    self._watch(deadline_s, timeout_s)
                answer = connection.recv()
                if answer[0] == "holding":
                    self._held[answer[1]] = answer[2]
                    continue
                break
        except (EOFError, OSError):
            raise self._explain_death(shortages) from None
        if answer[0] == "error":
            raise answer[1]
        if answer[0] == "crashed":
            self.close()  # what state it is in after an exception nobody expected, nobody knows
            if answer[1] == "gpu_memory":
                raise GpuMemoryError(answer[2])
            raise ChildLostError(answer[1], answer[2])
        return answer[1]

    def _watch(self, deadline_s: float, timeout_s: float) -> None:
        assert self._child is not None
        if time.monotonic() > deadline_s:
            self.close()
            raise ChildLostError("timeout", f"no answer within {timeout_s:g} s")
        with contextlib.suppress(psutil.NoSuchProcess):  # then the pipe ends, and says so
            used = psutil.Process(self._child.pid).memory_info().rss
            if used > self._run.memory_limit_bytes:
                self.close()
                limit = f"{self._run.memory_limit_bytes / 2**30:.2f} GiB"
                raise ChildLostError("out_of_memory", f"outgrew the memory of a worker ({limit})")

    def _explain_death(self, shortages: int) -> ChildLostError:
        assert self._child is not None
        status = self._child.join()
        self._child = None
        if status == -signal.SIGKILL and kernel_memory_kills() > shortages:
            return ChildLostError("out_of_memory", "killed by the kernel for want of memory")
        if -status in _OUTSIDE_SIGNALS:
            return ChildLostError(None, f"killed from outside by {signal.Signals(-status).name}")
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"
        return ChildLostError("worker_died", f"the process that mined it ended {how}")

    # Who is to blame

    def _mine(self, positions: list[int]) -> BatchResult:
        for _ in range(MAX_OUTSIDE_KILLS):
            try:
                if self._child is None:
                    self._reopen()
                result: BatchResult = self._ask(("mine", positions), self._run.sample_timeout_s * len(positions))
                return result
            except ChildLostError as error:
                if error.reason is not None:
                    return self._one_by_one(positions)
            except GpuMemoryError as error:
                return self._halve(positions, str(error))
        raise self._killed_too_often(positions)

    def _one_by_one(self, positions: list[int]) -> BatchResult:
        alone = [self._alone(position) for position in positions]
        seconds, passed = StageSeconds(), PassedOver()
        for each in alone:
            seconds.include(each.seconds)
            passed.include(each.passed_over)
        results = [each.results[0] for each in alone]
        return BatchResult(results=results, seconds=seconds, passed_over=passed.to_json())

    def _alone(self, position: int) -> BatchResult:
        strikes = 0
        for _ in range(MAX_OUTSIDE_KILLS):
            try:
                if self._child is None:
                    self._reopen()
                result: BatchResult = self._ask(("mine", [position]), self._run.sample_timeout_s)
                return result
            except GpuMemoryError as error:
                row = failure_row(self._identity(position), "mine", "out_of_memory", str(error))
                return BatchResult(results=[row])
            except ChildLostError as error:
                if error.reason is not None:
                    strikes += 1
                if error.reason is not None and strikes >= STRIKES:
                    row = failure_row(self._identity(position), "mine", error.reason, str(error))
                    return BatchResult(results=[row])
        raise self._killed_too_often([position])

    def _halve(self, positions: list[int], message: str) -> BatchResult:
        """The GPU was too small for the batch: the whole unit again in batches of half the size.

        The whole unit, because the shape of its batches is part of what decides its bytes.

        Raises:
            UnitRepeatError: unless the batch was a single sample, which is then alone to blame.
        """
        if len(positions) == 1:
            return self._alone(positions[0])
        half = max(self._batch_size // 2, 1)
        self._memory_note = f"the GPU ran out of memory at batch size {self._batch_size}; repeated at {half}"
        self._run = dataclasses.replace(self._run, batch_size=half)
        self._batch_size = half
        self.close()
        raise UnitRepeatError(f"{self._memory_note} ({message})")

    def _identity(self, position: int) -> SampleIdentity:
        """Of a sample that kills: as the child noted it, or as planned if it died while it read the bytes."""
        assert self._unit is not None
        if position in self._held:
            return self._held[position]
        with UnitReader(self._unit, self._run.sources) as reader:
            return reader.identity(position)

    def _killed_too_often(self, positions: list[int]) -> GrainmillError:
        assert self._unit is not None
        return GrainmillError(
            f"unit {self._unit.unit}, samples {positions}: the worker's child was killed from outside "
            f"{MAX_OUTSIDE_KILLS} times; see what kills it (a container's memory limit?), then run the command again"
        )


def kernel_memory_kills() -> int:
    """How many processes the kernel has killed for want of memory; 0 where it does not say."""
    found = 0
    for path in ("/sys/fs/cgroup/memory.events", "/proc/vmstat"):
        with contextlib.suppress(OSError):
            text = Path(path).read_text(encoding="ascii")
            found += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill "))
    return found
