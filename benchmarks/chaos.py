"""`make chaos`: seeded failures of a real cluster, and whether the dataset is still that of an undisturbed run.

    python -m benchmarks.chaos [--seeds 20] [--first 0] [--output FILE.json]

Each seed takes the next scenario of `dataset/failures.py` with its own random choices: where in the commit protocol
a unit stands when its node dies, what is killed and when. Every run is `grainmill mine --ray-address` on three raylets;
its digest is compared with that of `grainmill mine --executor local`. Exit code 1 if one differs or a run fails.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.failures import SCENARIOS, Arena, undisturbed_digest
from benchmarks.raylets import RayCluster
from pipeline.bench.report import environment, table


def draw_images(folder: Path, count: int = 14, *, scale: int = 1) -> Path:
    """Small images with a few shapes each, different from each other; mined in hundredths of a second at scale 1."""
    import numpy as np
    from PIL import Image, ImageDraw

    folder.mkdir(parents=True)
    generator = np.random.default_rng(11)
    for number in range(count):
        image = Image.new("RGB", (88 * scale, 64 * scale), tuple(generator.integers(0, 256, 3).tolist()))
        draw = ImageDraw.Draw(image)
        for _ in range(4):
            x, y = (generator.integers(0, 56, 2) * scale).tolist()
            draw.ellipse((x, y, x + 22 * scale, y + 16 * scale), fill=tuple(generator.integers(0, 256, 3).tolist()))
        image.save(folder / f"c{number:02d}.png")
    return folder


def run_seed(seed: int, source: Path, expected: str, folder: Path, cluster: RayCluster) -> dict[str, Any]:
    """One row of the table."""
    name = list(SCENARIOS)[seed % len(SCENARIOS)]
    arena = Arena(source, expected, folder / f"seed-{seed}", random.Random(seed))
    began_s = time.monotonic()
    row: dict[str, Any] = {"seed": seed, "scenario": name}
    try:
        with arena:
            outcome = SCENARIOS[name](arena, cluster)
    except (AssertionError, RuntimeError) as error:
        text = str(error).splitlines()
        injected = "; ".join(arena.injected)
        return {
            **row,
            "injected": injected,
            "units": 0,
            "again": 0,
            "digest": f"FAILED: {text[0] if text else '?'}",
        } | {"seconds": round(time.monotonic() - began_s, 1)}
    return {
        **row,
        "injected": "; ".join(outcome.injected),
        "units": outcome.units,
        "again": outcome.again,
        "digest": "equal" if outcome.equal else f"DIFFERS ({outcome.digest[:12]})",
        "seconds": round(time.monotonic() - began_s, 1),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="How many. Default 20: each scenario about three times.")
    parser.add_argument("--first", type=int, default=0, help="The first seed. Default 0.")
    parser.add_argument("--output", type=Path, help="Also write the rows as JSON there. Default: nowhere.")
    options = parser.parse_args(arguments)
    rows = []
    before = environment()
    with tempfile.TemporaryDirectory(prefix="grainmill-chaos-") as folder, RayCluster() as cluster:
        source = draw_images(Path(folder) / "images")
        expected = undisturbed_digest(source, Path(folder) / "local")
        cluster.start_head()
        for seed in range(options.first, options.first + options.seeds):
            rows.append(run_seed(seed, source, expected, Path(folder), cluster))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print("\n".join(table(rows)))
    equal = sum(row["digest"] == "equal" for row in rows)
    print(f"{equal} of {len(rows)} digests equal; {sum(row['again'] for row in rows)} units begun again")
    if options.output is not None:
        record = {
            "rows": rows,
            "equal": equal,
            "environment": {**environment(), "load_before": before["load_1min_after"]},
        }
        options.output.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return 0 if equal == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
