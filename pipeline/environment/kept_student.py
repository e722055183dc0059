"""The student that goes by a name: where a trained model lies that `--checkpoint kept` means, whoever asks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

KEPT: Final = "kept"
"""What `--checkpoint` says instead of a path where nothing of that name lies in the current folder."""
VARIABLE: Final = "GRAINMILL_STUDENT"


def kept_student() -> Path:
    """Where it lies, whether or not there is one.

    The file that the environment variable `GRAINMILL_STUDENT` names, else `grainmill/student.safetensors` in the
    user's data folder (`XDG_DATA_HOME`, by default `~/.local/share`). `benchmarks/keep_student.py` makes one.
    """
    named = os.environ.get(VARIABLE)
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share")
    return Path(named) if named else data / "grainmill" / "student.safetensors"
