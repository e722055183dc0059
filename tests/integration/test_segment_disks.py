"""A really full disk under `grainmill segment` and the ONNX export: one clear error, and nothing of the files stays."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CALLS = """
import sys
from pipeline import cli

checkpoint, photograph, clip, full = sys.argv[1:]
for source in (photograph, clip):
    flags = ["--checkpoint", checkpoint, "--point", "1,1", "--output", full]
    print("exit", cli.main(["segment", source, *flags]), file=sys.stderr)
try:
    import onnxruntime
except ImportError:
    sys.exit()
print("exit", cli.main(["onnx-export", checkpoint, "--output", full]), file=sys.stderr)
"""


def test_a_full_disk_is_one_clear_error_and_nothing_stays(tmp_path: Path) -> None:
    command = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs -o size=64k tmpfs /mnt"]
    if shutil.which("unshare") is None or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("no mounts of one's own here (unshare -rm)")
    from model.network.checkpoint import write_checkpoint
    from model.network.load import checkpoint_record, new_model, trained_state

    model = new_model("micro", "full", 64, init="scratch", seed=3)
    state = {f"model.{name}": value for name, value in trained_state(model).items()}
    write_checkpoint(tmp_path / "micro.safetensors", checkpoint_record(model, init="scratch"), state)
    clip = tmp_path / "clip"
    clip.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (2, 100, 150, 3), dtype=np.uint8)  # 45 kB as a PNG
    for number in range(2):
        Image.fromarray(noise[number]).save(clip / f"{number}.png")
    full = tmp_path / "full"
    full.mkdir()
    calls = [sys.executable, "-c", CALLS, *map(str, (tmp_path / "micro.safetensors", clip / "0.png", clip, full))]
    script = f"""
        mount -t tmpfs -o size=64k tmpfs {shlex.quote(str(full))} || exit 99
        head -c 28k /dev/zero > {shlex.quote(str(full))}/theirs
        {shlex.join(calls)}
        ls -A {shlex.quote(str(full))}
    """
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, timeout=240)
    assert done.stdout == "theirs\n", done.stderr
    told = [
        line
        for line in done.stderr.splitlines()
        if not re.search(r"segment: \d+/|memory of earlier|taken as a video", line)
    ]
    failed = [line for line in told if not line.startswith("exit")]
    assert all("the disk is full; free some space and run the same command again" in line for line in failed), told
    names = ["0.masks.png", "clip.masks/00000.png", "encoder.onnx"][: len(failed)]
    assert [line.split(": ")[1] for line in failed] == [f"cannot write {full}/{name}" for name in names]
    assert len(told) - len(failed) == len(failed) >= 2
    assert set(told) - set(failed) == {"exit 1"}
