"""From the flags of `grainmill mine` to a full configuration: the recipe's values, then what was asked for."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, get_args

import psutil

from ..errors import FAILURE_REASONS, InputError
from ..executors.driver import ExecutorName
from ..executors.pool import PoolOptions
from ..format.granularity import GranularityMethod
from ..format.licenses import check_license
from ..labeling.config import (
    DivideName,
    FeaturesConfig,
    MineConfig,
    RankingName,
    RecipeName,
    RefineName,
    WholesName,
)
from ..labeling.recipes import recipe as recipe_config
from ..labeling.recipes import with_boundaries
from ..sources.units import parse_inputs
from ..storage.local import sha256_of_file
from .flags import MineFlags
from .job import MineOptions

MEMORY_SHARE: Final = 0.8
MAX_WORKER_MEMORY_GIB: Final = 16.0
ANNOTATIONS: Final = ("annotations.json", "annotations/instances.json")
"""Where a folder of `grainmill annotate`, or a COCO export, holds its masks."""


def mine_options(flags: MineFlags) -> MineOptions:
    """Checks the flags and resolves them.

    Raises:
        InputError: a flag with a value that does not exist, or flags that do not go together.
    """
    executor = _one_of("--executor", flags.executor, get_args(ExecutorName))
    if flags.executor == "inline" and flags.workers not in (None, 1):
        raise InputError(f"--executor inline has one worker, found --workers {flags.workers}; use local or ray")
    if flags.ray_address is not None and flags.executor != "ray":
        raise InputError(f"--ray-address goes with --executor ray, found --executor {flags.executor}")
    if flags.gpus_per_worker and flags.executor != "ray":
        _require_gpus(flags.gpus_per_worker)
    for reason in flags.retry_failed or []:
        _one_of("--retry-failed", reason, FAILURE_REASONS)
    if flags.overwrite and (flags.extend or flags.retry_failed):
        raise InputError("--overwrite starts anew; it does not go with --extend or --retry-failed")
    here = (
        1
        if flags.executor == "inline"
        else flags.workers or default_workers(flags.gpus_per_worker, flags.cpus_per_worker)
    )
    workers = flags.workers if flags.ray_address is not None else here
    config, checkpoint = resolved(flags)
    return MineOptions(
        flags=flags,
        config=config,
        sources=parse_inputs(flags.input, licenses=licenses_of(flags.license or ()), image_column=flags.image_column),
        executor=executor,
        pool=PoolOptions(
            workers=workers,
            unit_timeout_s=flags.unit_timeout_s,
            straggler_floor_s=flags.straggler_after_s,
            gpus_per_worker=flags.gpus_per_worker,
            cpus_per_worker=flags.cpus_per_worker,
            ray_address=flags.ray_address,
        ),
        proposals=proposals_file(flags),
        boundaries=None if flags.boundaries is None else os.path.abspath(flags.boundaries),
        checkpoint=checkpoint,
        memory_limit_bytes=int(2**30 * (flags.worker_memory_gib or default_memory_gib(here))),
    )


def resolved(flags: MineFlags) -> tuple[MineConfig, str | None]:
    """The configuration, and where the backbone's weights lie, which is no part of it."""
    config = recipe_config(_one_of("--recipe", flags.recipe, get_args(RecipeName)))
    features, checkpoint = _features(config, flags.backbone)
    config = dataclasses.replace(config, features=features)
    if flags.boundaries is not None:
        config = _with_boundaries(config, flags.boundaries)
    divide, conquer, refine, granularity = config.divide, config.conquer, config.refine, config.granularity
    for flag, value in (("--wholes", flags.wholes), ("--ranking", flags.ranking)):
        if value is not None and conquer.graph != "leaves":
            raise InputError(f"{flag} {value} is for recipes that merge superpixels, found --recipe {config.recipe}")
    if flags.wholes is not None:
        divide = dataclasses.replace(divide, wholes=_one_of("--wholes", flags.wholes, get_args(WholesName)))
    if flags.ranking is not None:
        method = _one_of("--ranking", flags.ranking, get_args(RankingName))
        conquer = dataclasses.replace(conquer, ranking=dataclasses.replace(conquer.ranking, method=method))
    if flags.divide is not None:
        divide = dataclasses.replace(divide, method=_one_of("--divide", flags.divide, get_args(DivideName)))
    proposals = proposals_file(flags)
    if proposals is not None:
        sha256, terms = _checked_proposals(proposals)
        divide = dataclasses.replace(divide, proposals_sha256=sha256, proposals_license=terms)
    if proposals is None and divide.method == "proposals":
        raise InputError(
            "--divide proposals needs --proposals FILE, a COCO-style file with masks, or one --input folder that holds "
            f"its own: {' or '.join(ANNOTATIONS)}"
        )
    if flags.proposals is not None and divide.method == "maskcut":
        raise InputError("--proposals FILE goes with --divide proposals or --divide union, found maskcut")
    if flags.refine is not None:
        refine = dataclasses.replace(refine, method=_one_of("--refine", flags.refine, get_args(RefineName)))
    if flags.granularity is not None:
        method = _one_of("--granularity", flags.granularity, get_args(GranularityMethod))
        granularity = dataclasses.replace(granularity, method=method)
    tree = config.tree
    if flags.max_masks is not None:
        tree = dataclasses.replace(tree, max_masks=flags.max_masks)
    config = dataclasses.replace(
        config,
        tree=tree,
        divide=divide,
        conquer=conquer,
        refine=refine,
        granularity=granularity,
        samples_per_shard=flags.samples_per_shard,
        limit=flags.limit,
        seed=flags.seed,
        images=not flags.no_images,
        max_image_pixels=flags.max_image_pixels,
    )
    return config, checkpoint


def _features(config: MineConfig, backbone: str | None) -> tuple[FeaturesConfig, str | None]:
    """Features with the backbone's name and its weights' sha256, and the path of the weights."""
    backbone = config.features.backbone if backbone is None else backbone
    if backbone == "descriptor":
        if any(cost.features for cost in config.conquer.costs):
            raise InputError(
                f"--recipe {config.recipe} merges by a backbone's features, found --backbone descriptor; use --recipe "
                "default, which is the same without them, or --backbone timm:NAME"
            )
        return dataclasses.replace(config.features, backbone=backbone, weights_sha256=None), None
    from ..environment.timm_weights import named_weights

    if config.conquer.graph == "leaves" and not any(cost.features for cost in config.conquer.costs):
        raise InputError(
            f"--recipe {config.recipe} needs no weights and uses none, found --backbone {backbone}; use --recipe leaves"
        )
    name, path = named_weights(backbone)
    features = dataclasses.replace(config.features, backbone=f"timm:{name}", weights_sha256=sha256_of_file(path))
    return features, str(path)


def _with_boundaries(config: MineConfig, path: str) -> MineConfig:
    """The configuration with a boundary net in its trees.

    Raises:
        InputError: no boundary net's file, or one that sees another network's maps.
    """
    from ..labeling.boundary_file import ALONE, read_record

    features, record = config.features, read_record(path)
    if record.backbone == ALONE and (config.conquer.graph != "leaves" or features.backbone != ALONE):
        raise InputError(
            f"--boundaries {path}: the net was trained without a backbone, found --recipe {config.recipe} with "
            f"{features.backbone}; use --recipe default or default-1000, or train a net on that backbone's maps"
        )
    if config.conquer.graph != "leaves" or (features.backbone == ALONE and record.backbone != ALONE):
        raise InputError(
            f"--boundaries {path}: the net sees the maps of {record.backbone}, found --recipe {config.recipe}, which "
            "merges no superpixels by a backbone's features; use --recipe learned or leaves"
        )
    if (record.backbone, record.weights_sha256) != (features.backbone, features.weights_sha256 or ""):
        raise InputError(
            f"--boundaries {path}: the net was trained on the maps of {record.backbone} (sha256 "
            f"{record.weights_sha256[:12]}…), found --backbone {features.backbone} (sha256 "
            f"{(features.weights_sha256 or '')[:12]}…); use that backbone, or train a net on this one's maps"
        )
    seen = (record.enlargement, record.max_input_side_px)
    if seen != (features.enlargement, features.max_input_side_px):
        raise InputError(
            f"--boundaries {path}: the net was trained on images enlarged {seen[0]} times to at most {seen[1]} px, "
            f"found {features.enlargement} and {features.max_input_side_px}; another version wrote it, train it anew"
        )
    return with_boundaries(config, sha256_of_file(Path(path)))


def proposals_file(flags: MineFlags) -> str | None:
    """The absolute path of the file with given masks: `--proposals` itself, the file in it if it is a folder, or, for
    `--divide proposals` without it, the file in the only `--input` folder that has one.

    Raises:
        InputError: a folder without such a file, or several inputs with one.
    """
    if flags.proposals is not None and not os.path.isdir(flags.proposals):
        return os.path.abspath(flags.proposals)
    if flags.proposals is None and flags.divide != "proposals":
        return None
    folders = [each.location for each in parse_inputs(flags.input)] if flags.proposals is None else [flags.proposals]
    found = [path for folder in folders if (path := _annotations_in(os.path.abspath(folder))) is not None]
    if flags.proposals is not None and not found:
        raise InputError(f"--proposals {flags.proposals}: a folder that holds neither {' nor '.join(ANNOTATIONS)}")
    if len(found) > 1:
        raise InputError(
            f"--divide proposals: {found[0]} and {found[1]} both hold masks; say which by --proposals FILE"
        )
    return found[0] if found else None


def _annotations_in(folder: str) -> str | None:
    return next((path for name in ANNOTATIONS if os.path.isfile(path := os.path.join(folder, name))), None)


def _checked_proposals(path: str) -> tuple[str, str | None]:
    """sha256 of a file that holds proposals, and the licence that it declares.

    Raises:
        InputError: it does not.
    """
    from ..sources.proposals import Proposals

    sha256 = _file_sha256(path)
    return sha256, Proposals.read(path, sha256=sha256).license


def licenses_of(values: Sequence[str], *, flag: str = "--license") -> dict[str, str]:
    """Reads `LABEL=SPDX` of `--license`; licences in SPDX's spelling.

    Raises:
        InputError: a value without both, two for one label, or no licence of the list.
    """
    licenses: dict[str, str] = {}
    for value in values:
        label, equals, license = value.partition("=")
        if not (equals and label and license):
            raise InputError(f"{flag} {value!r}: expected LABEL=LICENSE, for instance photos=CC-BY-4.0")
        if label in licenses:
            raise InputError(f"{flag}: {label!r} has two, {licenses[label]} and {license}; name the sources apart")
        licenses[label] = check_license(f"{flag} {value}", license)
    return licenses


def default_workers(gpus_per_worker: float, cpus_per_worker: int = 1) -> int:
    """One worker for each processor this process may use (or so many of them), or for each share of a GPU."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if gpus_per_worker == 0:
        return max(processors // cpus_per_worker, 1)
    devices = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each.strip()]
    count = len(devices) or len(list(Path("/proc/driver/nvidia/gpus").glob("*"))) or 1
    return max(int(count / gpus_per_worker), 1)


def _require_gpus(gpus_per_worker: float) -> None:
    """What Ray looks after by itself; the other executors have the GPUs that torch sees.

    Raises:
        InputError: fewer than one worker needs.
    """
    import torch

    present = torch.cuda.device_count()
    if gpus_per_worker > present:
        raise InputError(
            f"--gpus-per-worker {gpus_per_worker:g}: this machine has {present} GPUs; "
            "give 0 to mine on processors, or a smaller share"
        )


def default_memory_gib(workers: int) -> float:
    """80 % of the machine's memory (or of the container's) divided by the workers, at most 16 GiB."""
    total = psutil.virtual_memory().total
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text(encoding="ascii").strip()).isdigit():
        total = min(total, int(text))
    return min(MEMORY_SHARE * total / 2**30 / workers, MAX_WORKER_MEMORY_GIB)


def _one_of(flag: str, value: str, allowed: tuple[Any, ...]) -> Any:
    """The value, now known to be one of a Literal's."""
    if value not in allowed:
        raise InputError(f"{flag} {value}: expected one of {', '.join(allowed)}")
    return value


def _file_sha256(path: str) -> str:
    try:
        return sha256_of_file(path)
    except OSError as error:
        raise InputError(f"--proposals {path}: cannot be read ({error.strerror})") from error
