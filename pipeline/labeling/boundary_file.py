"""The file of a boundary net: safetensors with a record of what it was trained on; read without torch.

Matrices are half precision. The record, JSON under the metadata's key `grainmill`, says which network's features the
net sees (with the sha256 of that network's weights: another one's features are meaningless to it), what it was trained
on, and how.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from ..errors import InputError

BOUNDARIES_FORMAT: Final = "grainmill-boundaries/1"
METADATA: Final = "grainmill"
FLAG: Final = "--boundaries"
ALONE: Final = "descriptor"
"""In place of a network's name: the net sees the image alone."""
MADE_BY: Final = "`grainmill boundaries` writes one"


@dataclass(frozen=True, kw_only=True)
class BoundaryRecord:
    """What a boundary net is, and where it comes from."""

    backbone: str
    """`timm:NAME` whose maps the net sees; `descriptor`: it sees the image alone."""
    weights_sha256: str
    """Of that network's weights; empty without one."""
    strides: tuple[int, ...]
    """Of the maps, finest first."""
    channels: tuple[int, ...]
    """Likewise."""
    enlargement: float
    """Of the image for the backbone; as in `FeaturesConfig`."""
    max_input_side_px: int
    """Likewise."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Of the training: data and its terms, settings, losses."""

    def to_metadata(self) -> dict[str, str]:
        return {METADATA: json.dumps({"format": BOUNDARIES_FORMAT, **asdict(self)}, sort_keys=True)}


def read_record(path: str | os.PathLike[str]) -> BoundaryRecord:
    """What a file says of itself.

    Raises:
        InputError: no such file, one of another kind, a cut one, or of a format that this version does not know.
    """
    from safetensors import SafetensorError, safe_open

    file = Path(path)
    if not file.is_file():
        raise InputError(f"{FLAG} {file}: no such file; {MADE_BY}")
    try:
        with safe_open(file, framework="np") as opened:
            metadata = opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{FLAG} {file}: expected a safetensors file of a boundary net, found {_other_file(file, error)}; {MADE_BY}"
        ) from error
    try:
        record = json.loads(metadata[METADATA])
        found = record.pop("format")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{FLAG} {file}: safetensors, but no boundary net's; {MADE_BY}") from error
    if found != BOUNDARIES_FORMAT:
        raise InputError(f"{FLAG} {file}: its format is {found!r}, this version reads {BOUNDARIES_FORMAT!r}; {MADE_BY}")
    try:
        read = msgspec.convert(record, BoundaryRecord)
    except msgspec.ValidationError as error:
        raise InputError(f"{FLAG} {file}: its record is damaged ({error}); {MADE_BY}") from error
    strides, channels, alone = read.strides, read.channels, read.backbone == ALONE
    if alone == bool(channels) or len(strides) != len(channels) or min((1, *channels, *strides)) < 1:
        raise InputError(f"{FLAG} {file}: its record is damaged (strides {strides}, channels {channels}); {MADE_BY}")
    return read


def _other_file(file: Path, error: Exception) -> str:
    with contextlib.suppress(OSError), file.open("rb") as stream:
        start = stream.read(2)
        if start == b"PK" or start[:1] == b"\x80":
            return "a file of torch.save or a pickle, which is not read"
    return f"something else or a cut file ({' '.join(str(error).split())[:160]})"
