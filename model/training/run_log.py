"""What a run leaves behind for people and programs: `metrics.jsonl`, `validation.jsonl` and TensorBoard's event files.

A run that goes on from a checkpoint forgets what was written after it, since those steps are done again. TensorBoard is
an extra; without it the JSON lines still hold everything.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pipeline.console import note
from pipeline.errors import GrainmillError, InputError

from ..predict.draw import Rgb, write_png

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS: Final = "metrics.jsonl"
VALIDATION: Final = "validation.jsonl"
TENSORBOARD: Final = "tensorboard"
PICTURES: Final = "pictures"
ROOM_BYTES: Final = 4 * 2**20
"""On the disk, for TensorBoard's events."""


class RunLog:
    """The log of one run, from a step on. What cannot be written is told once, and training goes on without it.

    Args:
        output: the run's directory; made if it is missing.
        step: the step that the run stands at; later entries are dropped.

    Raises:
        InputError: the output is no directory.
        GrainmillError: an older log cannot be cut back to the step.
    """

    def __init__(self, output: Path, step: int) -> None:
        self.output = output
        self._told: set[str] = set()
        try:
            output.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise InputError(f"--output {output}: expected a folder, found a file there") from error
        except OSError as error:
            raise GrainmillError(f"--output {output}: could not be made ({error.strerror})") from error
        for name in (METRICS, VALIDATION):
            forget_after(output / name, step)
        self.validated_step = last_step(output / VALIDATION)
        """The step of the last validation, 0 if there was none."""
        self._writer = _tensorboard_writer(output / TENSORBOARD, step)

    def close(self) -> None:
        with self._unless_full(TENSORBOARD):
            if self._writer is not None:
                self._writer.close()

    def metrics(self, values: Mapping[str, object]) -> None:
        """One line of `metrics.jsonl`; `values` holds the step."""
        self._append(METRICS, values)
        self._scalars("train", values)

    def validation(self, values: Mapping[str, object]) -> None:
        """One line of `validation.jsonl`; `values` holds the step."""
        self._append(VALIDATION, values)
        self._scalars("validation", values)

    def picture(self, number: int, image: Rgb, step: int) -> None:
        """A picture of a validation, (H, W, 3): a PNG, and in TensorBoard."""
        with self._unless_full(PICTURES):
            write_png(self.output / PICTURES / f"step-{step:08d}-{number}.png", image)
        self._tensorboard(lambda writer: writer.add_image(f"validation/{number}", image, step, dataformats="HWC"))

    def _append(self, name: str, values: Mapping[str, object]) -> None:
        """A whole line or none."""
        line = (json.dumps(values, sort_keys=True) + "\n").encode()
        with self._unless_full(name), (self.output / name).open("ab", buffering=0) as stream:
            size = stream.tell()
            try:
                if stream.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                stream.truncate(size)
                raise

    def _scalars(self, group: str, values: Mapping[str, object]) -> None:
        def write(writer: SummaryWriter) -> None:
            for name, value in values.items():
                number = value.get("value") if isinstance(value, Mapping) else value
                if name != "step" and isinstance(number, int | float) and not isinstance(number, bool):
                    writer.add_scalar(f"{group}/{name}", number, values["step"])

        self._tensorboard(write)

    def _tensorboard(self, write: Callable[[SummaryWriter], None]) -> None:
        """Writes some events, if there is room: a writer whose disk is full dies loudly in a thread of its own."""
        if self._writer is None:
            return
        with self._unless_full(TENSORBOARD):
            if shutil.disk_usage(self.output).free < ROOM_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            try:
                write(self._writer)
                self._writer.flush()
            except OSError:
                self._writer = None  # its thread has ended
                raise

    @contextlib.contextmanager
    def _unless_full(self, name: str) -> Iterator[None]:
        """Training is worth more than its log: what cannot be written is told once for each file."""
        try:
            yield
        except (OSError, GrainmillError) as error:
            if name not in self._told:
                self._told.add(name)
                note(f"{self.output / name}: could not be written ({error}); training goes on without it")


def forget_after(path: Path, step: int) -> None:
    """Drops lines of steps past `step`, and a line that a crash cut.

    Raises:
        GrainmillError: the shorter log cannot be written.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError, KeyError):
            if json.loads(line)["step"] <= step:
                kept.append(line)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise GrainmillError(f"{path}: could not be cut back to step {step} ({error}); free some space") from error


def last_step(path: Path) -> int:
    """The step of a log's last line; 0 if there is none."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


def _tensorboard_writer(folder: Path, step: int) -> SummaryWriter | None:
    try:
        with warnings.catch_warnings():  # tensorboard's own imports warn of other packages
            warnings.simplefilter("ignore")
            from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        note("no TensorBoard files: the extra [app] is not installed; metrics.jsonl holds the same numbers")
        return None
    try:
        return SummaryWriter(str(folder), purge_step=step + 1)
    except OSError as error:
        note(f"{folder}: could not be written ({error}); training goes on, metrics.jsonl holds the same numbers")
        return None
