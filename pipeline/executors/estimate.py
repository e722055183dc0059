"""Capacity planning: from measured seconds per stage to time, storage, requests and money of a cluster run.

Everything here is arithmetic on a *profile*: seconds per image of each stage as `grainmill stats --json` or
`grainmill bench mine` measured them, and bytes per image. The assumptions are printed with the result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ..errors import InputError
from .flags import PlanFlags

GPU_STAGES: Final = frozenset({"features"})
"""Stages that run on the GPU when there is one; all others keep CPU cores busy."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What was measured on one worker.

    Attributes:
        seconds_per_image: stage -> seconds of one worker's time for one image; keys as in commits (`read`, `decode`,
            `features`, `divide`, `conquer`, `refine`, `granularity`, `write`).
        image_bytes: mean bytes of a source image.
        label_bytes: mean bytes of a sample's JSON.
        masks_per_image: mean.
        startup_s: seconds from the start of a worker to its first image.
    """

    seconds_per_image: Mapping[str, float]
    image_bytes: float
    label_bytes: float
    masks_per_image: float
    startup_s: float = 20.0

    @staticmethod
    def from_json(record: Mapping[str, Any], *, where: str) -> Profile:
        """Reads the `profile` object that `grainmill stats --json` prints (or a file that holds just that object).

        Raises:
            InputError: a missing or wrong field.
        """
        body = record.get("profile", record)
        try:
            seconds = {str(stage): float(value) for stage, value in body["seconds_per_image"].items()}
            profile = Profile(
                seconds_per_image=seconds,
                image_bytes=float(body["image_bytes"]),
                label_bytes=float(body["label_bytes"]),
                masks_per_image=float(body["masks_per_image"]),
                startup_s=float(body.get("startup_s", 20.0)),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{where}: expected a profile with seconds_per_image {{stage: s}}, image_bytes, label_bytes and "
                f"masks_per_image ({error}); make one with `grainmill stats DIR --json > profile.json`"
            ) from error
        if not seconds or min(seconds.values()) < 0 or sum(seconds.values()) <= 0:
            raise InputError(f"{where}: seconds_per_image must hold at least one positive number, found {seconds}")
        return profile


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What the run gets."""

    nodes: int
    gpus_per_node: int = PlanFlags.gpus_per_node
    cores_per_node: int = PlanFlags.cores_per_node
    workers_per_gpu: float = 1.0
    """Actors that share one GPU (1 / `--gpus-per-worker`)."""
    node_price_per_hour: float | None = PlanFlags.node_price_per_hour
    storage_price_per_gb_month: float = PlanFlags.storage_price_per_gb_month
    """A large store's list price for its standard class; say your own."""
    put_price_per_1000: float = 0.005
    get_price_per_1000: float = 0.0004
    efficiency: float = PlanFlags.efficiency
    """Share of a worker's time that goes into units: what stragglers, start-up and lost nodes leave."""

    def __post_init__(self) -> None:
        if self.nodes < 1 or self.gpus_per_node < 0 or self.cores_per_node < 1:
            raise InputError("--nodes and --cores-per-node must be at least 1, --gpus-per-node at least 0")
        if not 0 < self.efficiency <= 1:
            raise InputError(f"--efficiency must be in (0, 1], found {self.efficiency}")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The answer, with what it assumed."""

    images: int
    units: int
    workers: int
    images_per_second: float
    hours: float
    gpu_hours: float
    core_hours: float
    storage_gb: float
    put_requests: int
    get_requests: int
    node_cost: float | None
    storage_cost_per_month: float
    request_cost: float
    bottleneck: str
    assumptions: tuple[str, ...] = field(default_factory=tuple)

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "assumptions": list(self.assumptions)}


def estimate(*, images: int, profile: Profile, cluster: Cluster, samples_per_shard: int, with_images: bool) -> Estimate:
    """Predicts a run.

    With GPUs, a node's rate is the smaller of what its GPUs and its cores allow, since the stages overlap; without, a
    worker is one core that does everything.

    Raises:
        InputError: no images.
    """
    if images < 1:
        raise InputError(f"--images must be at least 1, found {images}")
    total_s = sum(profile.seconds_per_image.values())
    gpu_s = sum(value for stage, value in profile.seconds_per_image.items() if stage in GPU_STAGES)
    if cluster.gpus_per_node and gpu_s > 0:
        gpu_rate = cluster.gpus_per_node / gpu_s
        cpu_s = total_s - gpu_s
        cpu_rate = cluster.cores_per_node / cpu_s if cpu_s > 0 else math.inf
        node_rate, bottleneck = min((gpu_rate, "GPU: features"), (cpu_rate, "CPU: all other stages"))
        workers = math.ceil(cluster.nodes * cluster.gpus_per_node * cluster.workers_per_gpu)
        busiest = "features beside the CPU stages, the slower side counts"
    else:
        node_rate, bottleneck = (
            cluster.cores_per_node / total_s,
            "CPU: " + max(profile.seconds_per_image, key=lambda stage: profile.seconds_per_image[stage]),
        )
        workers = cluster.nodes * cluster.cores_per_node
        busiest = "one worker on each core, stages one after the other"
    rate = node_rate * cluster.nodes * cluster.efficiency
    seconds = images / rate + profile.startup_s
    hours = seconds / 3600
    units = math.ceil(images / samples_per_shard)
    stored = profile.label_bytes + (profile.image_bytes if with_images else 0)
    storage_gb = images * stored * 1.01 / 1e9
    puts, gets = units * 5, images + units * 2
    return Estimate(
        images=images,
        units=units,
        workers=workers,
        images_per_second=rate,
        hours=hours,
        gpu_hours=hours * cluster.nodes * cluster.gpus_per_node,
        core_hours=hours * cluster.nodes * cluster.cores_per_node,
        storage_gb=storage_gb,
        put_requests=puts,
        get_requests=gets,
        node_cost=None if cluster.node_price_per_hour is None else hours * cluster.nodes * cluster.node_price_per_hour,
        storage_cost_per_month=storage_gb * cluster.storage_price_per_gb_month,
        request_cost=puts / 1000 * cluster.put_price_per_1000 + gets / 1000 * cluster.get_price_per_1000,
        bottleneck=bottleneck,
        assumptions=(
            f"{total_s:.3f} s of worker time an image, as measured in the profile ({busiest})",
            f"{cluster.efficiency:.0%} of that rate is reached (start-up, stragglers, lost nodes)",
            f"{samples_per_shard} samples a shard; shard, two index files, failures and commit: 5 puts a unit",
            "one get an image (read as files; tars need fewer), two for each commit and index",
            f"{stored / 1e3:.0f} kB stored an image and 1 % for tar headers and indexes",
            "prices are the flags' values, not a provider's offer",
        ),
    )
