"""Seconds and memory of labelling one image, by its size: where the curve bends.

    python -m benchmarks.image_sizes PHOTOGRAPH --output FILE.json [--recipe default]

The photograph is enlarged (cubic) or reduced (area) to each size, and labelled by `pipeline.label_image` in a process
of its own on one thread. Enlarged photographs are smoother than a camera's of that size: masks differ, the pixels to
go through do not. Seconds are processor time of the second call, after a first on the same image compiled and loaded;
memory is the process's highest, the first call, Python and its libraries included.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np

from pipeline.bench.report import environment
from pipeline.console import ProgressBar
from pipeline.library import label_image

SIZES: Final = (
    (8, 8), (64, 64), (481, 321), (1224, 816), (1732, 1155), (2449, 1633), (4243, 2828), (9487, 6324), (4000, 300),
    (300, 4000),
)  # fmt: skip
"""(width, height) in pixels; 1, 2, 4, 12 and 60 megapixels are among them."""


def measured(photograph: Path, width: int, height: int, recipe: str) -> dict[str, Any]:
    """Figures of one size, in this process."""
    cv2.setNumThreads(1)
    read = cv2.imread(str(photograph))
    if read is None:
        raise SystemExit(f"benchmarks.image_sizes: {photograph}: no image that OpenCV reads")
    smaller = width * height < read.shape[0] * read.shape[1]
    image = cv2.resize(read, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)
    rgb = np.ascontiguousarray(image[:, :, ::-1])
    spent: list[float] = []
    masks = 0
    for _ in range(2):
        begun_s = time.process_time()
        masks = len(label_image(rgb, recipe=recipe))
        spent.append(time.process_time() - begun_s)
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "width": width, "height": height, "megapixels": width * height / 1e6, "masks": masks,
        "cpu_s": spent[-1], "peak_mib": peak_kib / 1024,
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photograph", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--recipe", default="default", help="Without weights. Default: %(default)s.")
    parser.add_argument("--size", nargs=2, type=int, metavar=("WIDTH", "HEIGHT"), help="Only this one, on stdout.")
    arguments = parser.parse_args(argv)
    if arguments.size:
        print(json.dumps(measured(arguments.photograph, *arguments.size, arguments.recipe)))
        return 0
    rows: list[dict[str, Any]] = []
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    with ProgressBar("labelling", len(SIZES)) as progress:
        for width, height in SIZES:
            command = [sys.executable, "-m", "benchmarks.image_sizes", str(arguments.photograph), "--recipe"]
            command += [arguments.recipe, "--output", str(arguments.output), "--size", str(width), str(height)]
            done = subprocess.run(
                command, env={**os.environ, **one_thread}, capture_output=True, text=True, check=False
            )
            if done.returncode:
                rows.append({"width": width, "height": height, "failed": done.stderr[-500:]})
            else:
                rows.append(json.loads(done.stdout))
            progress.update(len(rows))
    found = {"photograph": arguments.photograph.name, "recipe": arguments.recipe, "rows": rows}
    arguments.output.write_text(json.dumps({**found, "environment": environment(os.getloadavg())}, indent=1) + "\n")
    return int(any("failed" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
