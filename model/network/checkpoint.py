"""Checkpoints: one safetensors file each, written whole or not at all.

A file holds what was trained (`model.*`), the optimizer's moments (`optimizer.*`), and in its metadata a JSON record:
configuration, step, loader state, identity of the base. An adapter's checkpoint leaves the frozen base out and names it
by the sha256 of its weights; one trained from scratch, and a merged one, hold everything.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from pipeline.environment.kept_student import KEPT, VARIABLE, kept_student
from pipeline.errors import GrainmillError, InputError, SchemaError

CHECKPOINT_FORMAT: Final = "grainmill-checkpoint/1"
FOLDER: Final = "checkpoints"
_NAME: Final = re.compile(r"step-(\d{8})\.safetensors")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint in memory. `record` is the JSON of its metadata."""

    path: Path
    record: dict[str, Any]
    tensors: dict[str, Tensor]

    def group(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under a prefix such as `model`, without it."""
        start = f"{prefix}."
        return {name[len(start) :]: value for name, value in self.tensors.items() if name.startswith(start)}


class CheckpointWriteError(GrainmillError):
    """A checkpoint could not be written; the older ones are untouched."""


def write_checkpoint(path: Path, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Writes a checkpoint whole or not at all.

    Raises:
        CheckpointWriteError: a full disk or missing rights; nothing of the new file stays.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save

    text = json.dumps({**record, "format": CHECKPOINT_FORMAT}, sort_keys=True, allow_nan=False)
    try:
        data = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, {"grainmill": text})
    except SafetensorError as error:
        raise CheckpointWriteError(f"{path}: could not be written ({error})") from error
    write_whole(path, data)


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file under a temporary name, syncs it, and renames it.

    Raises:
        CheckpointWriteError: as `write_checkpoint`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise CheckpointWriteError(f"{path}: could not be written ({error})") from error


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads a file, or the newest checkpoint of a run's directory.

    Raises:
        InputError: there is none.
        SchemaError: a file of another kind, a cut one, or of a format this version does not know.
    """
    from safetensors import SafetensorError, safe_open

    file = find_checkpoint(Path(path))
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (not a mapping)
    except (SafetensorError, OSError) as error:
        found = _other_file(file, error)
        raise SchemaError(
            f"{file}: expected a checkpoint that `grainmill train` wrote (safetensors), found {found}"
        ) from error
    try:
        record = json.loads(metadata["grainmill"])
        found = record["format"]
    except (KeyError, TypeError, ValueError) as error:
        raise SchemaError(
            f"{file}: safetensors, but not written by `grainmill train`; a base model goes to --init or --base"
        ) from error
    if found != CHECKPOINT_FORMAT:
        raise SchemaError(f"{file}: format is {found!r}, this version reads {CHECKPOINT_FORMAT!r}")
    return Checkpoint(path=file, record=record, tensors=tensors)


def is_checkpoint(path: Path) -> bool:
    """Whether `train` (or `merge`) wrote a file, of whatever version; its tensors are not read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as opened:
            return "grainmill" in (opened.metadata() or {})
    except (SafetensorError, OSError):
        return False


def _other_file(file: Path, error: Exception) -> str:
    """What a file is that safetensors does not read."""
    with contextlib.suppress(OSError), file.open("rb") as stream:
        start = stream.read(2)
        if start == b"PK" or start[:1] == b"\x80":
            return (
                "a file of torch.save or a pickle; SAM 2.1's own weights (.pt) go to --init in training, and to --base "
                "beside the checkpoint of an adapter"
            )
    return f"something else or a cut file ({error})"


def find_checkpoint(path: Path) -> Path:
    """The file itself, the newest checkpoint in a run's directory, or the kept student (`kept`).

    Raises:
        InputError: nothing there.
    """
    if path == Path(KEPT) and not path.exists():
        path = kept_student()
        if not path.is_file():
            raise InputError(
                f"--checkpoint {KEPT}: expected a student at {path}, found none; `python -m benchmarks.keep_student` "
                f"trains and keeps one, and {VARIABLE}=FILE names any other"
            )
    if path.is_file():
        return path
    steps = checkpoint_steps(path)
    if not steps:
        kind = "a directory without checkpoints" if path.is_dir() else "nothing"
        raise InputError(f"{path}: expected a checkpoint or the directory of a training run, found {kind}")
    return steps[max(steps)]


def checkpoint_steps(run: Path) -> dict[int, Path]:
    """Step -> file, of every whole checkpoint of a run."""
    folder = run / FOLDER
    if not folder.is_dir():
        return {}
    matches = ((_NAME.fullmatch(each.name), each) for each in folder.iterdir())
    return {int(match[1]): each for match, each in matches if match}


def step_path(run: Path, step: int) -> Path:
    return run / FOLDER / f"step-{step:08d}.safetensors"


def prune(run: Path, *, keep: int, best: int | None) -> None:
    """Removes all but the newest `keep` checkpoints and the best, and what crashed writes left behind."""
    steps = checkpoint_steps(run)
    for step in sorted(steps)[:-keep] if keep else []:
        if step != best:
            steps[step].unlink(missing_ok=True)
    for left in (run / FOLDER).glob(".*.tmp"):
        left.unlink(missing_ok=True)
