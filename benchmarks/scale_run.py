"""A folder of photographs through Ray with two workers, killed three times, beside a run that nothing happens to.

    python -m benchmarks.scale_run IMAGES --output FILE.json [--work DIR] [--samples-per-shard 10]

First the images are mined with `--executor local --workers 2`, undisturbed. Then with `--ray-address` on two raylets of
one processor each. When a quarter of the units are committed the driver is killed (SIGKILL) and the same command called
again; at a half a worker's process is killed, which the run has to get over by itself; at three quarters everything on
one raylet and the driver's whole process group, as when a machine loses its power, and the same command goes on with
another raylet. The digests are compared and the second run is verified to its last byte; exit code 1 where the digests
differ or verifying finds something.

Told of each run are images per second over all of it, and net, from the first unit that a call begins to the end of
that call; the idle share of the workers' time in the units that were committed, as `grainmill stats` has it; and
processor seconds of all that the run started, Ray's own processes apart, which other work beside it moves little.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks.failures import Arena, Driver, log_events, wait_until
from benchmarks.raylets import RayCluster, RayNode
from pipeline.bench.report import environment
from pipeline.console import note
from pipeline.errors import InputError

WORKERS: Final = 2
MINING: Final = ("ray::Worker", "pipeline.units.child")
"""In the command lines of a node's processes that mine; its others are Ray's own."""
SAMPLED_EVERY_S: Final = 0.5
GRAINMILL: Final = (sys.executable, "-m", "pipeline")


class ProcessorSeconds(threading.Thread):
    """Watches what this process's children and the processes of Ray's nodes use, until it is stopped; what a process
    uses in its last `SAMPLED_EVERY_S` is lost with it.

    Args:
        nodes: a list that may grow meanwhile.
    """

    def __init__(self, nodes: Sequence[RayNode]) -> None:
        super().__init__(daemon=True)
        self._nodes = nodes
        self._over = threading.Event()
        self._spent: dict[tuple[int, float], tuple[bool, float]] = {}

    def run(self) -> None:
        while not self._over.wait(SAMPLED_EVERY_S):
            of_nodes = {process for node in list(self._nodes) for process in node.processes()}
            for process in of_nodes | set(psutil.Process().children(recursive=True)):
                with contextlib.suppress(psutil.Error), process.oneshot():
                    times, line = process.cpu_times(), " ".join(process.cmdline())
                    mining = process not in of_nodes or any(part in line for part in MINING)
                    self._spent[process.pid, process.create_time()] = (mining, times.user + times.system)

    def stop(self) -> tuple[float, float]:
        """Of processes that mine, and of Ray's own."""
        self._over.set()
        self.join()
        mining, other = (sum(s for kind, s in self._spent.values() if kind is wanted) for wanted in (True, False))
        return mining, other


def undisturbed(source: Path, output: Path, samples_per_shard: int) -> dict[str, Any]:
    """The same images by local workers.

    Raises:
        InputError: they could not be mined; `mine` has said why.
    """
    watch, began_s = ProcessorSeconds([]), time.monotonic()
    watch.start()
    command = [*GRAINMILL, "mine", "--input", f"in={source}", "--output", str(output), "--executor", "local", "--json"]
    command += ["--workers", str(WORKERS), "--samples-per-shard", str(samples_per_shard)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        watch.stop()
        raise InputError(f"{source}: it could not be mined, see above")
    result = json.loads(done.stdout)
    wall_s, (mining_s, _) = time.monotonic() - began_s, watch.stop()
    images = result["samples"] + result["failures"]
    return {
        "digest": result["digest"], "images": images, "units": result["units"], "wall_s": wall_s,
        "images_per_second": images / wall_s, "images_per_second_net": result["images_per_second"],
        "cpu_s_mining": mining_s, **idle(output),
    }  # fmt: skip


def idle(output: Path) -> dict[str, float]:
    """The workers' time in committed units, and which part of it was none of a stage's."""
    told = subprocess.run([*GRAINMILL, "stats", str(output), "--json"], capture_output=True, text=True, check=True)
    found = json.loads(told.stdout)
    worker_s = found["wall_seconds"]
    return {"worker_s": worker_s, "idle_share": found["seconds"].get("idle", 0.0) / worker_s}


def disturbed(arena: Arena, cluster: RayCluster, units: int, samples_per_shard: int) -> dict[str, Any]:
    """The run that is killed three times. `arena` holds its images; the cluster has a head and no nodes.

    Raises:
        AssertionError: the run ended before a kill was due; it needs more units.
    """
    flags = ("--workers", str(WORKERS), "--samples-per-shard", str(samples_per_shard))
    nodes = arena.nodes(cluster, {}, {})
    calls: list[tuple[float, float]] = []
    watch = ProcessorSeconds(cluster.nodes)
    watch.start()

    def call() -> tuple[Driver, float]:
        return arena.driver(cluster, *flags), time.time()

    def until(driver: Driver, share: float) -> None:
        wanted = math.ceil(share * units)
        wait_until(lambda: committed(arena.output) >= wanted or driver.process.poll() is not None, f"{wanted} units")
        assert driver.process.poll() is None, f"over before {wanted} of {units} units:\n{driver.said()}"

    def over(began_s: float) -> None:
        calls.append((began_s, time.time()))
        note(f"{committed(arena.output)} of {units} units are committed: {arena.injected[-1]}")

    began_s = time.monotonic()
    driver, called_s = call()
    until(driver, 0.25)
    arena.injected.append("driver killed, called again")
    os.kill(driver.process.pid, signal.SIGKILL)
    over(called_s)
    driver.end()
    driver, called_s = call()
    until(driver, 0.5)
    arena.injected.append("worker killed")
    arena.random.choice([each for node in nodes for each in node.find("ray::Worker")]).kill()
    until(driver, 0.75)
    arena.injected.append("raylet with all it runs and the driver's process group killed, called again")
    os.killpg(driver.process.pid, signal.SIGKILL)
    nodes.pop(0).kill()
    over(called_s)
    driver.end()
    arena.nodes(cluster, {})
    driver, called_s = call()
    result = driver.result()
    arena.injected.append("nothing more")
    over(called_s)
    wall_s = time.monotonic() - began_s
    mining_s, ray_s = watch.stop()
    begun = [event for event in log_events(cluster) if event["event"] == "unit_started"]
    net_s = sum(end_s - min(e["time"] for e in begun if call_s <= e["time"] <= end_s) for call_s, end_s in calls)
    images = result["samples"] + result["failures"]
    return {
        "digest": result["digest"], "images": images, "units": result["units"], "wall_s": wall_s, "net_s": net_s,
        "images_per_second": images / wall_s, "images_per_second_net": images / net_s, "injected": arena.injected[:-1],
        "units_again": len(begun) - result["units"], "cpu_s_mining": mining_s, "cpu_s_ray": ray_s, **idle(arena.output),
    }  # fmt: skip


def committed(output: Path) -> int:
    """Units of a run so far."""
    return sum(1 for _ in (output / "commits").glob("0*.json"))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="A folder of images.")
    parser.add_argument("--output", type=Path, required=True, help="JSON of both runs.")
    parser.add_argument("--work", type=Path, help="Where both runs are kept. Default: nowhere, after the end.")
    parser.add_argument("--samples-per-shard", type=int, default=10, help="Images of a unit. Default: %(default)s.")
    parser.add_argument("--seed", type=int, default=0, help="Of which worker is killed. Default: %(default)s.")
    arguments = parser.parse_args(argv)
    source, load = arguments.images.absolute(), os.getloadavg()
    with contextlib.ExitStack() as stack:
        work = arguments.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="grainmill-scale-")))
        try:
            expected = undisturbed(source, work.absolute() / "local", arguments.samples_per_shard)
        except InputError as error:
            print(f"benchmarks.scale_run: {error}", file=sys.stderr)
            return error.exit_code
        note(f"undisturbed: {expected['images_per_second']:.2f} images/s, digest {expected['digest'][:12]}")
        between = os.getloadavg()
        cluster = stack.enter_context(RayCluster())
        cluster.start_head()
        arena = Arena(source, expected["digest"], work.absolute() / "ray", random.Random(arguments.seed))
        stack.enter_context(arena)
        killed = disturbed(arena, cluster, expected["units"], arguments.samples_per_shard)
        verified = subprocess.run([*GRAINMILL, "verify", str(arena.output), "--deep"], capture_output=True, check=False)
    found = {
        "undisturbed": expected, "killed": killed, "same_digest": expected["digest"] == killed["digest"],
        "verified": verified.returncode == 0, "load_between": between, "environment": environment(load),
    }  # fmt: skip
    arguments.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))
    return 0 if found["same_digest"] and found["verified"] else 1


if __name__ == "__main__":
    sys.exit(main())
