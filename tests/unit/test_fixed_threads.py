"""One thread per process that mines, also where numba came first: in a notebook, or in a program that mines."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

PROGRAM = """
import contextlib
import sys
import numba
import numpy as np
if sys.argv[1] == "running":
    numba.set_num_threads(2)
if sys.argv[2] == "command":
    from pipeline.cli import main
    with contextlib.redirect_stdout(sys.stderr):
        assert main(["mine", "--input", sys.argv[3], "--output", "out", "--dry-run"]) == 0
else:
    from pipeline.environment.numeric import fix_threads
    fix_threads()
    fix_threads()

@numba.njit
def doubled(x):
    return 2 * x

print(doubled(np.ones(3)).sum(), numba.get_num_threads())
"""


@pytest.mark.parametrize(("threads", "way"), [("none", "function"), ("running", "function"), ("running", "command")])
def test_numba_compiles_after_its_threads_are_fixed(threads: str, way: str, tmp_path: Path) -> None:
    """It refuses another number once its threads run, when it next compiles, if the variable asks for one."""
    environment = {**os.environ, "NUMBA_NUM_THREADS": "2"}
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, threads, way, str(tmp_path)],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["6.0", "1"], done.stderr
