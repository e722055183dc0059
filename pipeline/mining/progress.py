"""What a run says about itself: the progress bar while it mines, and its numbers at the end."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable
from typing import Any, Self

from ..console import ProgressBar, note
from ..dataset.stats import busiest_side
from ..format.records import RunSummary
from ..shards.commits import COMPACT_AT, Commit
from ..shards.plan import Plan
from ..units.attempt import UnitProgress


class RunProgress:
    """Listens to an executor.

    Args:
        plan: the run's.
        totals: of the commits that stood before.
        compact: called every `COMPACT_AT` commits.
    """

    def __init__(self, *, plan: Plan, totals: dict[str, int], compact: Callable[[], object]) -> None:
        self._plan = plan
        self._before = totals
        self._compact = compact
        self.commits = 0
        """Made while this report listened."""
        self._samples = self._masks = self._failures = 0
        self._reasons: collections.Counter[str] = collections.Counter()
        self._seconds = collections.defaultdict[str, float](float)
        self._busiest_s = 0.0
        self._open: dict[int, UnitProgress] = {}
        self._first_s: float | None = None
        self._last_s = 0.0
        self._started_s = time.monotonic()
        self._bar = ProgressBar("mining", plan.samples_total)
        self._notes: set[str] = set()

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)

    # What executors call

    def waits_for(self, what: str) -> None:
        self._bar.waits_for(what)

    def workers_ready(self, count: int) -> None:
        if self._first_s is None:
            self._first_s = time.monotonic()
            self._bar.update(self._already, "the first worker is ready")

    def progressed(self, progress: UnitProgress) -> None:
        self._open[progress.unit] = progress
        self._show()

    def committed(self, commit: Commit) -> None:
        self._open.pop(commit.unit, None)
        self.commits += 1
        self._samples += commit.samples
        self._masks += commit.masks
        self._failures += commit.failures
        self._reasons.update(commit.reasons)
        for stage, spent_s in commit.seconds.items():
            self._seconds[stage] += spent_s
        self._busiest_s += busiest_side(commit.seconds, device=commit.device)
        self._last_s = time.monotonic()
        for line in commit.record["notes"]:
            self.noted(f"unit {commit.unit}: {line}", once=line)
        if self.commits % COMPACT_AT == 0:
            self._compact()
        self._show()

    def noted(self, text: str, *, once: str | None = None) -> None:
        if once is None or once not in self._notes:
            self._notes.add(once or text)
            note(text)

    def _show(self) -> None:
        samples = self._samples + sum(each.samples for each in self._open.values())
        masks = self._masks + sum(each.masks for each in self._open.values())
        failures = self._failures + sum(each.failures for each in self._open.values())
        elapsed_s = max(time.monotonic() - (self._first_s or self._started_s), 1e-3)
        rate = (samples + failures) / elapsed_s
        per_image = f"{masks / samples:.0f} masks/image" if samples else "no masks yet"
        ceiling = f", {self._busiest_s / self._seconds['wall']:.0%} of ceiling" if self._seconds["wall"] else ""
        shown = f"{rate:.2f} images/s{ceiling}, {per_image}, {failures} failed"
        self._bar.update(self._already + samples + failures, shown)

    @property
    def _already(self) -> int:
        """Input samples done before this call."""
        return self._before["samples"] + self._before["failures"]

    # What the caller asks

    @property
    def images_per_second(self) -> float | None:
        """Of this call, from the moment the first worker was ready to the last commit; None if nothing was done."""
        if not self.commits or self._first_s is None or self._last_s <= self._first_s:
            return None
        return (self._samples + self._failures) / (self._last_s - self._first_s)

    def result(self, manifest: RunSummary) -> dict[str, Any]:
        """The object of `--json`: totals of the whole run, rates and seconds of this call."""
        samples, masks = manifest["samples"], manifest["masks"]
        rate = self.images_per_second
        return {
            "samples": samples,
            "masks": masks,
            "masks_per_image": round(masks / samples, 3) if samples else None,
            "failures": manifest["failures"],
            "failure_reasons": manifest["failure_reasons"],
            "passed_over": manifest.get("passed_over", self._plan.passed_over),
            "images_per_second": None if rate is None else round(rate, 4),
            "digest": manifest["digest"],
            "units": manifest["units"],
            "units_done_now": self.commits,
            "seconds": {stage: round(spent_s, 4) for stage, spent_s in sorted(self._seconds.items())},
            "startup_s": None if self._first_s is None else round(self._first_s - self._started_s, 3),
        }
