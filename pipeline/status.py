"""Where a run stands: units committed and pending, samples, masks, failures. Reads commit records and nothing else.

So it is quick (under two seconds with ten thousand commits), works while a run goes on, and after any kill.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from .committed import CommittedRun
from .errors import EMPTY_REASONS


def run_status(run: CommittedRun) -> dict[str, Any]:
    """Counts from the commits.

    Returns:
        `committed` and `pending` units; `failed` samples with `failed_by_reason` (`empty` of them have no masks,
        which is no error); `shards`, `samples`, `masks`; `complete`: the manifest stands; `lease`: who writes, if
        anyone says.
    """
    reasons: Counter[str] = Counter()
    committed = shards = samples = masks = failed = 0
    for commit in run.commits():
        committed += 1
        shards += commit.shard is not None
        samples += commit.samples
        masks += commit.masks
        failed += commit.failures
        reasons.update(commit.reasons)
    return {
        "directory": run.location,
        "units": run.units_total,
        "committed": committed,
        "pending": max(0, run.units_total - committed),
        "complete": run.storage.exists("manifest.json"),
        "shards": shards,
        "samples": samples,
        "masks": masks,
        "masks_per_image": round(masks / samples, 6) if samples else None,
        "failed": failed,
        "empty": sum(reasons[reason] for reason in EMPTY_REASONS),
        "failed_by_reason": dict(sorted(reasons.items())),
        "lease": _lease(run),
    }


def _lease(run: CommittedRun) -> dict[str, Any] | None:
    """What `lease.json` says; it is for people only, so a damaged or vanishing one is none."""
    if not run.storage.exists("lease.json"):
        return None
    try:
        lease = json.loads(run.storage.read_bytes("lease.json"))
    except (OSError, ValueError):
        return None
    return lease if isinstance(lease, dict) else None
