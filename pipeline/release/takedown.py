"""What is taken out on request: a file of keys, sha256 or uris, and the list of what left."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from ..errors import InputError
from ..format.schema import FORMAT

REMOVED_SCHEMA: Final = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("source_uri", pa.string(), nullable=False),
        pa.field("member", pa.string()),
        pa.field("source_sha256", pa.string(), nullable=False),
        pa.field("why", pa.string(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
    ],
    metadata={"format": FORMAT, "table": "removed"},
)
"""`why`: excluded, exact, near or evaluation; `version`: the first one without it."""


@dataclass(kw_only=True)
class Exclusions:
    """Lines of `--exclude FILE`; each names samples by key, by the image's sha256 or by its uri.

    Attributes:
        lines: as given, without comments.
        met: those that named a sample.
    """

    lines: frozenset[str] = frozenset()
    met: set[str] = field(default_factory=set)

    def names(self, row: Mapping[str, Any]) -> bool:
        """Whether a sample is to go."""
        member = row["member"]
        uris = [row["source_uri"]] if member is None else [row["source_uri"], f"{row['source_uri']}/{member}"]
        hit = self.lines & {row["key"], row["source_sha256"], *uris}
        self.met |= hit
        return bool(hit)

    @property
    def unmet(self) -> list[str]:
        return sorted(self.lines - self.met)


def read_exclusions(path: str) -> Exclusions:
    """Reads one key, sha256 or uri a line; empty lines and lines that begin with `#` are skipped.

    Raises:
        InputError: the file cannot be read, or holds nothing.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--exclude {path}: cannot be read ({error})") from error
    lines = [line.strip() for line in text.splitlines()]
    kept = {line for line in lines if line and not line.startswith("#")}
    kept = {line.lower() if re.fullmatch(r"[0-9A-Fa-f]{64}", line) else line for line in kept}
    if not kept:
        raise InputError(f"--exclude {path}: expected one key, sha256 or source uri a line, found none")
    return Exclusions(lines=frozenset(kept))
