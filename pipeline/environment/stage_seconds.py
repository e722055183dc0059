"""Seconds of work by stage, as commits keep them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class StageSeconds(dict[str, float]):
    """Stage -> seconds; what is added to a stage adds up."""

    def add(self, stage: str, spent_s: float) -> None:
        """Adds to one stage."""
        self[stage] = self.get(stage, 0.0) + spent_s

    def include(self, others: Mapping[str, float]) -> None:
        """Adds to several."""
        for stage, spent_s in others.items():
            self.add(stage, spent_s)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds the seconds of a `with` block to a stage, also if the block raises."""
        began_s = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - began_s)
