"""What workers and Ray cost, and what a second worker brings: the numbers of `results/cluster_cpu2_*.md`.

    python -m benchmarks.cluster [--repeats 5] [--images 48] [--output FILE.json]

Sides are run in turn, so that a neighbour's load falls on all of them, and compared by their medians: the miner in a
plain loop (no shards, no commits), `grainmill mine` inline, with one and two local workers, and with one Ray actor. The
images of one run are counted from the moment the first worker is ready, as `mine` itself reports them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.chaos import draw_images
from pipeline.bench.report import environment, table
from pipeline.environment.numeric import single_threaded

SIDES = {
    "inline": ("--executor", "inline"),
    "local, 1 worker": ("--executor", "local", "--workers", "1"),
    "local, 2 workers": ("--executor", "local", "--workers", "2"),
    "ray, 1 worker": ("--executor", "ray", "--workers", "1"),
}
PLAIN = """
import sys, time
from pathlib import Path
from pipeline.labeling.config import MineConfig
from pipeline.sources.images import decode_rgb
from pipeline.labeling.miner import ImageInput, ImageMiner
miner = ImageMiner(MineConfig())
miner.warm_up()
paths = sorted(Path(sys.argv[1]).iterdir())
began_s = time.perf_counter()
for path in paths:
    rgb = decode_rgb(path.read_bytes(), max_pixels=10**8)
    miner.mine([ImageInput(rgb=rgb, source_uri=path.name, member=None)])
print(len(paths) / (time.perf_counter() - began_s))
"""


def plain_loop(source: Path) -> float:
    """Images per second of the miner alone."""
    variables = {**os.environ, **single_threaded()}
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(source)], capture_output=True, text=True, check=True, env=variables
    )
    return float(done.stdout)


def mined(source: Path, output: Path, flags: tuple[str, ...]) -> dict[str, Any]:
    command = [sys.executable, "-m", "pipeline", "mine", "--input", f"in={source}", "--output", str(output)]
    done = subprocess.run(
        [*command, *flags, "--samples-per-shard", "4", "--json"], capture_output=True, text=True, check=True
    )
    shutil.rmtree(output)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="Of every side, in turn. Default 5.")
    parser.add_argument("--images", type=int, default=48, help="Of each run. Default 48.")
    parser.add_argument("--output", type=Path, help="Also write everything as JSON there. Default: nowhere.")
    options = parser.parse_args(arguments)
    rates: dict[str, list[float]] = {name: [] for name in ("plain loop", *SIDES)}
    loads, digests = [], set()
    with tempfile.TemporaryDirectory(prefix="grainmill-bench-") as folder:
        source = draw_images(Path(folder) / "images", options.images, scale=4)
        for _ in range(options.repeats):
            loads.append(round(os.getloadavg()[0], 2))
            rates["plain loop"].append(plain_loop(source))
            for name, flags in SIDES.items():
                result = mined(source, Path(folder) / "out", flags)
                rates[name].append(result["images_per_second"])
                digests.add(result["digest"])
            print(f"{time.strftime('%H:%M:%S')} {rates}", file=sys.stderr, flush=True)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    rows = [
        {
            "side": name,
            "images/s (median)": round(medians[name], 2),
            "range": f"{min(values):.2f} to {max(values):.2f}",
            "of the plain loop": round(medians[name] / medians["plain loop"], 3),
        }
        for name, values in rates.items()
    ]
    scaling = [two / one for one, two in zip(rates["local, 1 worker"], rates["local, 2 workers"], strict=True)]
    print("\n".join(table(rows)))
    print(f"1 -> 2 workers: {statistics.median(scaling):.2f} ({min(scaling):.2f} to {max(scaling):.2f})")
    print(f"load before each round: {loads}; one digest for all sides: {len(digests) == 1}")
    if options.output is not None:
        record = {"rows": rows, "rates": rates, "scaling": scaling, "loads": loads, "digests": sorted(digests)}
        text = json.dumps({**record, "environment": environment()}, indent=2, sort_keys=True)
        options.output.write_text(text + "\n", encoding="utf-8")
    return 0 if len(digests) == 1 else 1


if __name__ == "__main__":
    sys.exit(main())
