"""One thread per process that mines, also where numba came first: in a notebook, or in a program that mines."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
import numba
import numpy as np
if sys.argv[1] == "running":
    numba.set_num_threads(2)
from pipeline.environment.numeric import fix_threads
fix_threads()
fix_threads()

@numba.njit
def doubled(x):
    return 2 * x

print(doubled(np.ones(3)).sum(), numba.get_num_threads())
"""


@pytest.mark.parametrize("threads", ["none", "running"])
def test_numba_compiles_after_its_threads_are_fixed(threads: str) -> None:
    """It refuses another number once its threads run, when it next compiles, if the variable asks for one."""
    environment = {**os.environ, "NUMBA_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, threads], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["6.0", "1"], done.stderr
