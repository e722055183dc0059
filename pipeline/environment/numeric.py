"""The numeric environment: what, beside inputs and configuration, decides the last bit of a mask.

Threads are fixed to one per process, because a sum split over threads is rounded differently; scale comes from more
workers. Versions and the instruction set cannot be fixed, so they are recorded in the plan and in every commit.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

THREAD_VARIABLES: Final = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "OPENCV_FOR_THREADS_NUM",
)
"""Read when numpy, torch, numba and OpenCV are imported: set before that, in every process that mines."""

PACKAGES: Final = (
    "numpy", "scipy", "numba", "opencv-python-headless", "scikit-image", "pillow", "pyarrow", "pycocotools", "torch",
    "torchvision", "timm",
)  # fmt: skip
"""Packages whose version can change a label or a byte of a shard."""

INSTRUCTION_SETS: Final = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni",
    "avx512_bf16", "avx512_fp16", "amx_tile", "asimd", "sve", "sve2", "bf16",
)  # fmt: skip


def single_threaded() -> dict[str, str]:
    """Environment variables for a process that mines."""
    return {**dict.fromkeys(THREAD_VARIABLES, "1"), "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "PYTHONHASHSEED": "0"}


def fix_threads() -> None:
    """Fixes the threads of libraries already loaded into this process, and of those still to come."""
    os.environ.update(single_threaded())
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(1)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    if "numba" in sys.modules:
        numba = sys.modules["numba"]
        try:
            numba.config.reload_config()
        except RuntimeError:  # its threads run already, and from then on it refuses every other number
            os.environ["NUMBA_NUM_THREADS"] = str(numba.config.NUMBA_NUM_THREADS)
        numba.set_num_threads(1)


@functools.cache
def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


@functools.cache
def _instruction_sets() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return "unknown"
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            present = set(value.split())
            return " ".join(flag for flag in INSTRUCTION_SETS if flag in present)
    return "unknown"


def numeric_environment() -> dict[str, Any]:
    """Python, packages, processor and threads of this process; the device is added by a worker that has one."""
    return {
        "python": platform.python_version(),
        "packages": _versions(),
        "machine": platform.machine(),
        "instruction_sets": _instruction_sets(),
        "threads": 1,
    }


def device_name() -> str:
    """The GPU that torch would use in this process, or `cpu`; asks only if torch is loaded already."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return "cpu"
    return str(torch.cuda.get_device_name(0))


def differences(planned: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """What differs between two numeric environments, one line each: `numpy 2.4.6 in the plan, 2.5.0 here`."""
    lines = []
    for name in sorted(set(planned) & set(found)):
        before, after = planned[name], found[name]
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after)
        elif before != after:
            lines.append(f"{name} {before} in the plan, {after} here")
    return lines
