"""Small readers of the flags of `grainmill release`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ..errors import InputError

REMOVABLE: Final = ("exact", "near", "evaluation")


def check_name(name: str) -> str:
    """A dataset's name, also as `owner/name`.

    Raises:
        InputError: what the Hub would refuse.
    """
    part = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
    if not re.fullmatch(rf"(?:{part}/)?{part}", name) or "--" in name or ".." in name:
        raise InputError(f"--name {name!r}: expected letters, digits, - _ . and at most one /, as in team/birds-masks")
    return name


def pairs_of(flag: str, values: Sequence[str]) -> dict[str, str]:
    """Reads `LABEL=TEXT`.

    Raises:
        InputError: a value without both.
    """
    pairs = {}
    for value in values:
        label, equals, text = value.partition("=")
        if not (equals and label and text.strip()):
            raise InputError(f"{flag} {value!r}: expected LABEL=TEXT")
        pairs[label] = text.strip()
    return pairs


def read_text(flag: str, path: str) -> str:
    """A text file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{flag} {path}: cannot be read ({error})") from error


def remove_kinds(values: Sequence[str], *, against: bool, duplicates: bool, splits: bool) -> frozenset[str]:
    """Checks `--remove`, and that what needs signatures has them.

    Raises:
        InputError: an unknown kind, or flags that do not go together.
    """
    for value in values:
        if value not in REMOVABLE:
            raise InputError(f"--remove {value}: expected one of {', '.join(REMOVABLE)}")
    if "evaluation" in values and not against:
        raise InputError("--remove evaluation needs --against SRC, the evaluation set")
    if not duplicates and (values or against or splits):
        raise InputError("--no-duplicates does not go with --remove, --against or --splits, which look for duplicates")
    return frozenset(values)
