"""Metrics through Ray's own agent on each node, in the form that Prometheus scrapes (Ray adds the prefix `ray_`).

Workers count what their commits say; the driver says how many units are in which state. Names are in `METRICS`, which
the dashboard in `infra/` is checked against.
"""

from __future__ import annotations

from typing import Any, Final

from ray.util import metrics as ray_metrics

from ..shards.commits import Commit
from ..sources.units import UnitSpec

METRICS: Final[dict[str, tuple[str, tuple[str, ...], str]]] = {
    "grainmill_images_total": ("counter", ("node",), "Images mined into committed shards."),
    "grainmill_masks_total": ("counter", ("node",), "Masks in committed shards."),
    "grainmill_failures_total": ("counter", ("node", "reason"), "Samples that failed, by reason."),
    "grainmill_stage_seconds_total": ("counter", ("node", "stage"), "Worker seconds by stage."),
    "grainmill_bytes_written_total": ("counter", ("node",), "Bytes of committed files."),
    "grainmill_bytes_read_total": ("counter", ("node",), "Bytes of source images read for committed units."),
    "grainmill_units": ("gauge", ("state",), "Units by state: committed, in_hand, pending."),
    "grainmill_workers": ("gauge", (), "Workers that are ready."),
    "grainmill_gpus_reserved": ("gauge", (), "GPUs that ready workers hold."),
    "grainmill_gpu_busy_share": ("gauge", ("node",), "Share of a worker's time in stages that run on its GPU."),
}
"""Name -> (kind, tags, description)."""
GPU_STAGES: Final = ("features",)


def _make(name: str) -> Any:
    kind, tags, description = METRICS[name]
    made = {"counter": ray_metrics.Counter, "gauge": ray_metrics.Gauge}[kind]
    # Ray appends `_total` to a counter's name itself when Prometheus asks.
    return made(name.removesuffix("_total"), description=description, tag_keys=tags)


class WorkerMetrics:
    """What one worker counts. Cheap: some dictionary look-ups for each unit.

    Args:
        node: tag of everything it counts.
    """

    def __init__(self, node: str) -> None:
        self._node = {"node": node}
        self._by_name = {name: _make(name) for name, (_, tags, _) in METRICS.items() if "node" in tags}

    def committed(self, unit: UnitSpec, commit: Commit) -> None:
        """Counts one unit of this worker."""
        self._count("grainmill_images_total", commit.samples)
        self._count("grainmill_masks_total", commit.masks)
        for reason, count in commit.reasons.items():
            self._count("grainmill_failures_total", count, reason=reason)
        seconds = commit.seconds
        for stage, spent_s in seconds.items():
            if stage != "wall":
                self._count("grainmill_stage_seconds_total", spent_s, stage=stage)
        self._count("grainmill_bytes_written_total", sum(int(file["size"]) for file in commit.files()))
        self._count("grainmill_bytes_read_total", sum(each.size + each.json_size for each in unit.entries))
        if seconds.get("wall"):
            busy = sum(seconds.get(stage, 0.0) for stage in GPU_STAGES) / seconds["wall"]
            self._by_name["grainmill_gpu_busy_share"].set(busy, tags=self._node)

    def _count(self, name: str, amount: float, **tags: str) -> None:
        if amount > 0:
            self._by_name[name].inc(amount, tags={**self._node, **tags})


class RunMetrics:
    """What the driver says."""

    def __init__(self) -> None:
        self._by_name = {name: _make(name) for name, (_, tags, _) in METRICS.items() if "node" not in tags}

    def units(self, states: dict[str, int]) -> None:
        for state, count in states.items():
            self._by_name["grainmill_units"].set(count, tags={"state": state})

    def workers(self, ready: int, *, gpus: float) -> None:
        self._by_name["grainmill_workers"].set(ready)
        self._by_name["grainmill_gpus_reserved"].set(gpus)
