"""A few kinds of values as YAML, for the card's header: what the Hub's parser reads, in the style people expect."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

_PLAIN: Final = re.compile(r"[A-Za-z_/][A-Za-z0-9_./+<>*-]*")
_WORDS: Final = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})


def to_yaml(value: Mapping[str, Any]) -> str:
    """A mapping of strings, numbers, booleans, null, lists and mappings, in their order, one `name:` a line."""
    return "\n".join(_mapping(value, 0)) + "\n"


def _mapping(value: Mapping[str, Any], depth: int) -> list[str]:
    lines = []
    for name, each in value.items():
        lines += _entry(f"{'  ' * depth}{_scalar(name)}:", each, depth)
    return lines


def _entry(start: str, value: Any, depth: int) -> list[str]:
    if isinstance(value, Mapping) and value:
        return [start, *_mapping(value, depth + 1)]
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        return [start, *(line for each in value for line in _item(each, depth))]
    return [f"{start} {_scalar(value)}"]


def _item(value: Any, depth: int) -> list[str]:
    dash = f"{'  ' * depth}- "
    if isinstance(value, Mapping) and value:
        first, *rest = _mapping(value, depth + 1)
        return [dash + first.lstrip(), *rest]
    return [dash + _scalar(value)]


def _scalar(value: Any) -> str:
    """Plain where it cannot be read as anything else, else as JSON, which YAML reads too."""
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
