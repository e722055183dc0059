"""Mining beside an earlier commit: seconds per image by stage, in turn, on the same images, with the same digest.

    python -m benchmarks.mine_against COMMIT --input SRC --output FILE.json [--limit 24] [--rounds 3]

Each round mines with the commit (from a worktree of its own) and with this checkout, one after the other, inline and
with one thread, into new folders; a round before them compiles and is not counted. Seconds are those that `grainmill
stats` tells of the stages, so that starting and compiling are left out. Exit code 1 where the digests differ.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.bench.report import environment
from pipeline.console import note

REPOSITORY = Path(__file__).parents[1]


def mined(tree: Path, source: str, output: Path, limit: int) -> dict[str, Any]:
    """What `stats` says of a run mined by the code of a checkout, with its digest."""
    surroundings = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    grainmill = [sys.executable, "-m", "pipeline"]
    asked = ["mine", "--input", source, "--output", str(output), "--executor", "inline", "--limit", str(limit)]
    subprocess.run([*grainmill, *asked], env=surroundings, cwd=tree, check=True, capture_output=True)
    told = subprocess.run(
        [*grainmill, "stats", str(output), "--json"], env=surroundings, cwd=tree, check=True, capture_output=True
    )
    found: dict[str, Any] = json.loads(told.stdout)
    return {**found, "digest": json.loads((output / "manifest.json").read_text())["digest"]}


def compared(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians over rounds of the seconds per image in each stage, and how many times faster the later ones are."""
    rows = {}
    for stage in [*after[0]["seconds"], "all"]:
        sides = []
        for runs in (before, after):
            each = [
                sum(value for name, value in run["seconds"].items() if name != "idle" and stage in (name, "all"))
                / run["samples"]
                for run in runs
            ]
            sides.append(statistics.median(each))
        if stage != "idle":
            rows[stage] = {
                "before_s": sides[0],
                "after_s": sides[1],
                "times": sides[0] / sides[1] if sides[1] else None,
            }
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="What to compare with.")
    parser.add_argument("--input", required=True, help="Of `grainmill mine`.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args(argv)
    source = os.path.abspath(arguments.input) if os.path.exists(arguments.input) else arguments.input
    load = os.getloadavg()
    git = ["git", "-C", str(REPOSITORY)]
    with tempfile.TemporaryDirectory(prefix="grainmill-against-") as name:
        folder = Path(name)
        subprocess.run([*git, "worktree", "add", "--detach", str(folder / "tree"), arguments.commit], check=True)
        try:
            sides: dict[str, list[dict[str, Any]]] = {"before": [], "after": []}
            for number in range(arguments.rounds + 1):
                for side, tree in (("before", folder / "tree"), ("after", REPOSITORY)):
                    run = mined(tree, source, folder / f"{side}-{number}", arguments.limit)
                    sides[side].append(run)
                    note(f"round {number}, {side}: {run['seconds_per_image']:.3f} s an image, {run['digest'][:12]}")
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(folder / "tree")], check=True)
    digests = {run["digest"] for runs in sides.values() for run in runs}
    found = {
        "commit": arguments.commit,
        "images": sides["after"][0]["samples"],
        "stages": compared(sides["before"][1:], sides["after"][1:]),
        "same_digest": len(digests) == 1,
        "environment": environment(load),
    }
    arguments.output.write_text(json.dumps(found, indent=1) + "\n")
    for stage, row in found["stages"].items():
        note(f"{stage}: {row['before_s']:.4f} s -> {row['after_s']:.4f} s")
    return 0 if found["same_digest"] else 1


if __name__ == "__main__":
    sys.exit(main())
