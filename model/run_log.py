"""What a run leaves behind for people and programs: `metrics.jsonl`, `validation.jsonl` and TensorBoard's event files.

A run that goes on from a checkpoint forgets what was written after it, since those steps are done again. TensorBoard is
an extra; without it the JSON lines still hold everything.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.console import note

METRICS: Final = "metrics.jsonl"
VALIDATION: Final = "validation.jsonl"
TENSORBOARD: Final = "tensorboard"


class RunLog:
    """The log of one run, from a step on.

    Args:
        output: the run's directory; made if it is missing.
        step: the step that the run stands at; later entries are dropped.
    """

    def __init__(self, output: Path, step: int) -> None:
        self.output = output
        output.mkdir(parents=True, exist_ok=True)
        for name in (METRICS, VALIDATION):
            forget_after(output / name, step)
        self._writer = _tensorboard_writer(output / TENSORBOARD, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def metrics(self, values: Mapping[str, Any]) -> None:
        """One line of `metrics.jsonl`; `values` holds the step."""
        self._append(METRICS, values)
        self._scalars("train", values)

    def validation(self, values: Mapping[str, Any]) -> None:
        """One line of `validation.jsonl`; `values` holds the step."""
        self._append(VALIDATION, values)
        self._scalars("validation", values)

    def picture(self, name: str, image: NDArray[np.uint8], step: int) -> None:
        """A picture (H, W, 3) for TensorBoard; its PNG is written elsewhere."""
        if self._writer is not None:
            self._writer.add_image(name, image, step, dataformats="HWC")

    def _append(self, name: str, values: Mapping[str, Any]) -> None:
        with (self.output / name).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(values, sort_keys=True) + "\n")

    def _scalars(self, group: str, values: Mapping[str, Any]) -> None:
        if self._writer is None:
            return
        for name, value in values.items():
            number = value.get("value") if isinstance(value, Mapping) else value
            if name != "step" and isinstance(number, int | float) and not isinstance(number, bool):
                self._writer.add_scalar(f"{group}/{name}", number, values["step"])
        self._writer.flush()


def forget_after(path: Path, step: int) -> None:
    """Drops lines of steps past `step`, and a line that a crash cut."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError, KeyError):
            if json.loads(line)["step"] <= step:
                kept.append(line)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    os.replace(temporary, path)


def _tensorboard_writer(folder: Path, step: int) -> Any:
    try:
        with warnings.catch_warnings():  # tensorboard's own imports warn of other packages
            warnings.simplefilter("ignore")
            from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        note("no TensorBoard files: the extra [app] is not installed; metrics.jsonl holds the same numbers")
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)
