"""Where a run stands: units committed and pending, samples, masks, failures. Reads commit records and nothing else.

So it is quick (under two seconds with ten thousand commits), works while a run goes on, and after any kill.
"""

from __future__ import annotations

import collections
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final, TypedDict

from ..errors import EMPTY_REASONS
from ..format.records import PassedRecord
from ..format.release_tables import MANIFEST
from ..sources.passed_over import PassedOver
from .open import open_dataset
from .reader import Dataset


class StatusRecord(TypedDict):
    """`grainmill status --json`."""

    directory: str
    units: int
    committed: int
    pending: int
    complete: bool
    shards: int
    samples: int
    masks: int
    masks_per_image: float | None
    failed: int
    empty: int
    failed_by_reason: dict[str, int]
    passed_over: dict[str, PassedRecord]
    lease: dict[str, object] | None


class WatchedRecord(StatusRecord):
    """What `watch` adds; None while it cannot be told."""

    images_per_second: float | None
    seconds_left: float | None
    driver: bool | None


def run_status(dataset: Dataset) -> StatusRecord:
    """Counts from the commits.

    Returns:
        `committed` and `pending` units; `failed` samples with `failed_by_reason` (`empty` of them have no masks,
        which is no error); `shards`, `samples`, `masks`; `passed_over`: what was seen and not used, by reason;
        `complete`: the manifest stands; `lease`: who writes, if anyone says.
    """
    reasons: Counter[str] = Counter()
    committed = shards = samples = masks = failed = 0
    passed = PassedOver(dataset.passed_over)
    for unit in dataset.units():
        committed += 1
        shards += unit.shard is not None
        samples += unit.samples
        masks += unit.masks
        failed += 0 if unit.failures is None else unit.failures["rows"]
        reasons.update(unit.reasons)
        if unit.commit is not None:
            passed.include(unit.commit.passed_over)
    return {
        "directory": dataset.location,
        "units": dataset.units_total,
        "committed": committed,
        "pending": max(0, dataset.units_total - committed),
        "complete": dataset.storage.exists(MANIFEST),
        "shards": shards,
        "samples": samples,
        "masks": masks,
        "masks_per_image": round(masks / samples, 6) if samples else None,
        "failed": failed,
        "empty": sum(reasons[reason] for reason in EMPTY_REASONS),
        "failed_by_reason": dict(sorted(reasons.items())),
        "passed_over": passed.to_json(),
        "lease": _lease(dataset),
    }


def _lease(dataset: Dataset) -> dict[str, object] | None:
    """What `lease.json` says; it is for people only, so a damaged or vanishing one is none."""
    if not dataset.storage.exists("lease.json"):
        return None
    try:
        lease = json.loads(dataset.storage.read_bytes("lease.json"))
    except (OSError, ValueError):
        return None
    return lease if isinstance(lease, dict) else None


RATE_OVER_S: Final = 120.0
"""Rates are those of about the last two minutes: long enough for some units, short enough to show a change."""


def watch(
    directory: str,
    *,
    interval_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> Iterator[WatchedRecord]:
    """Looks at a run again and again until it is complete; reads the output directory alone.

    Args:
        directory: path or URL; the run may be mined on any machine, or on none just now.
        interval_s: between two looks.
        clock: seconds that run forward.
        sleep: waits.

    Yields:
        What `run_status` gives, with `images_per_second` and `seconds_left` (None while nothing has been committed
        since the first looks) and `driver`: whether somebody's heartbeat has moved since the last look (None at first).
    """
    seen: collections.deque[tuple[float, WatchedRecord]] = collections.deque()
    while True:
        status: WatchedRecord = {
            **run_status(open_dataset(directory)), "images_per_second": None, "seconds_left": None, "driver": None,
        }  # fmt: skip
        now_s = clock()
        while len(seen) > 1 and now_s - seen[0][0] > RATE_OVER_S:
            seen.popleft()
        if seen:
            since_s, before = now_s - seen[0][0], seen[0][1]
            images = status["samples"] + status["failed"] - before["samples"] - before["failed"]
            units = status["committed"] - before["committed"]
            if units > 0 and since_s > 0:
                status["images_per_second"] = round(images / since_s, 4)
                status["seconds_left"] = round(status["pending"] * since_s / units, 1)
            last = seen[-1][1]["lease"]
            status["driver"] = status["lease"] is not None and (last is None or last != status["lease"])
        yield status
        if status["complete"] and not status["pending"]:
            return
        seen.append((now_s, status))
        sleep(interval_s)
