"""Workers on a real cluster: where they are, what of a GPU they hold, what they export; `mine` as a Ray job."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.raylets import RayCluster, free_port
from pipeline.executors.metrics import METRICS

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]

PLACES = """
import json, sys, time
from pipeline.executors.ray_pool import RayPool
from pipeline.mining.flags import MineFlags
from pipeline.mining.options import mine_options
from pipeline.shards.plan import config_record
from pipeline.units.batches import RunSpec
import ray

source, output, address, gpus, workers = sys.argv[1:6]
options = mine_options(MineFlags(
    input=[f"in={source}"], output=output, samples_per_shard=2, workers=int(workers), gpus_per_worker=float(gpus),
    ray_address=address,
))
run = RunSpec(
    output=output, config=options.config, sources=options.sources, config_hash="0", environment={},
    sample_timeout_s=300.0, memory_limit_bytes=2**33,
)
pool = RayPool(run, options.pool)
capacity = pool.capacity()

def wait_ready(count):
    deadline_s = time.monotonic() + 300
    while len(pool.descriptions) < count and time.monotonic() < deadline_s:
        pool.wait(0.5)

for _ in range(int(workers)):
    pool.start_worker()
wait_ready(int(workers))
before = dict(pool.descriptions)
import os, signal
victim = min(before)
os.kill(before[victim]["pid"], signal.SIGKILL)
lost = []
deadline_s = time.monotonic() + 120
while not lost and time.monotonic() < deadline_s:
    lost = [event for event in pool.wait(0.5) if event.kind == "lost"]
    pool._ask_progress()
pool.start_worker()
wait_ready(int(workers))
after = dict(pool.descriptions)
share = pool._run.memory_fraction
pool.close()
print(json.dumps({"capacity": capacity, "before": list(before.values()), "after": list(after.values()), "share": share,
                  "lost": [[event.worker == victim, event.node] for event in lost]}))
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """A head with a dashboard (jobs are submitted through it) and two nodes with one declared GPU each."""
    with RayCluster() as made:
        made.start_head(cpus=1, dashboard_port=free_port())
        nodes = [made.add_node(cpus=4, gpus=1, wait=False) for _ in range(2)]
        for node in nodes:
            made.wait_started(node)
        yield made


def placed(cluster: RayCluster, source: Path, output: Path, *, gpus: float, workers: int) -> dict[str, Any]:
    output.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PLACES, str(source), str(output), cluster.address, str(gpus), str(workers)],
        capture_output=True,
        text=True,
        env=cluster.driver_environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_workers_share_gpus_spread_over_nodes_and_are_replaced(
    cluster: RayCluster, small_photographs: Path, tmp_path: Path
) -> None:
    """Three workers of half a GPU on two nodes with one GPU each: two of them share one."""
    found = placed(cluster, small_photographs, tmp_path / "out", gpus=0.5, workers=3)
    assert found["capacity"] == 4
    assert found["share"] == 0.5
    for when in ("before", "after"):
        assert len(found[when]) == 3
        assert {each["gpus"] for each in found[when]} == {0.5}
        assert {each["cuda_visible_devices"] for each in found[when]} == {"0"}
        nodes = Counter(each["node"] for each in found[when])
        assert sorted(nodes.values()) == [1, 2], "a GPU is held by more workers than it has shares"
    assert [mine for mine, _ in found["lost"]] == [True]
    assert found["lost"][0][1] in {each["node"] for each in found["before"]}


def scraped(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
        return text


def test_metrics_reach_the_agents(cluster: RayCluster, small_photographs: Path, tmp_path: Path) -> None:
    """While a run goes on its workers' and its driver's metrics stand on the ports that Prometheus scrapes."""
    (tmp_path / "bad").mkdir()
    for path in small_photographs.iterdir():
        (tmp_path / "bad" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "bad" / "p05.png").write_bytes(b"no image")
    gate = tmp_path / "gate"
    port = free_port()
    faults = {"GRAINMILL_FAULT": "before-commit:pause:5", "GRAINMILL_FAULT_GATE": str(gate)}
    node = cluster.add_node(cpus=8, environment=faults, flags=[f"--metrics-export-port={port}"])
    command = [
        sys.executable, "-m", "pipeline", "mine", "--input", f"in={tmp_path / 'bad'}", "--output",
        str(tmp_path / "out"), "--executor", "ray", "--ray-address", cluster.address, "--samples-per-shard", "2",
        "--cpus-per-worker", "8", "--json",
    ]  # fmt: skip
    driver = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=cluster.driver_environment()
    )
    wanted = {each for each, (_, tags, _) in METRICS.items() if "node" in tags} - {"grainmill_gpu_busy_share"}
    deadline_s = time.monotonic() + 300
    missing, text = wanted, ""
    while missing and time.monotonic() < deadline_s:
        time.sleep(1)
        text = scraped(port)
        missing = {each for each in wanted if f"ray_{each}{{" not in text}
    gate.touch()
    out, err = driver.communicate(timeout=200)
    assert driver.returncode == 0, err
    assert missing == set(), f"not exported: {missing}"
    assert re.search(r'ray_grainmill_failures_total\{[^}]*reason="unsupported_format|unreadable', text)
    assert json.loads(out)["samples"] == 10
    node.kill()


def test_mining_as_a_ray_job(cluster: RayCluster, small_photographs: Path, tmp_path: Path, repository: Path) -> None:
    """`infra/ray/mine_job.py` on the head, as `ray job submit` runs it."""
    script = "from ray.scripts.scripts import main; main()"
    bin_folder = Path(sys.executable).parent
    command = [
        sys.executable, "-c", script, "job", "submit", "--address", f"http://127.0.0.1:{cluster.dashboard_port}", "--",
        "env", f"PATH={bin_folder}:/usr/bin:/bin", sys.executable, str(repository / "infra/ray/mine_job.py"), "--input",
        f"in={small_photographs}", "--output", str(tmp_path / "out"), "--samples-per-shard", "2", "--json",
    ]  # fmt: skip
    deadline_s = time.monotonic() + 200
    while True:
        done = subprocess.run(command, capture_output=True, text=True, env=cluster.driver_environment(), check=False)
        if "No available agent" not in done.stderr or time.monotonic() > deadline_s:
            break  # the agent of a head that has just started may not be there yet
        time.sleep(2)
    assert done.returncode == 0, done.stdout + done.stderr + cluster.agent_logs()
    manifest = json.loads((tmp_path / "out/manifest.json").read_bytes())
    assert manifest["samples"] == 11
