"""Splits by a keyed hash of the source, stable when data is added, with near-duplicates never across two of them.

An image's own split is a function of the key and of its bytes' sha256 alone. If it looks like images that came before
it, it takes their split; if those lie in two, it is in none (null), because either would leak. Earlier images are never
asked again, and new data always comes later (`mine --extend`, `release --append`), so no image ever changes its split.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ..errors import InputError
from ..format.schema import sha256_of


def parse_splits(text: str) -> dict[str, float]:
    """Reads `train=0.9,val=0.1`.

    Raises:
        InputError: shares that are not positive or do not sum to 1, or names that loaders refuse.
    """
    splits: dict[str, float] = {}
    for part in text.split(","):
        name, separator, share = part.strip().partition("=")
        try:
            value = float(share)
        except ValueError:
            value = -1.0
        if not separator or not re.fullmatch(r"[a-z][a-z0-9_]{0,31}", name) or name in splits or not 0 < value <= 1:
            raise InputError(f"--splits {text!r}: expected NAME=SHARE parts, as in train=0.9,val=0.05,test=0.05")
        splits[name] = value
    if abs(sum(splits.values()) - 1.0) > 1e-9:
        raise InputError(f"--splits {text!r}: the shares sum to {sum(splits.values()):g}, expected 1")
    return splits


def own_split(sha256: str, *, key: str, splits: Mapping[str, float]) -> str:
    """The split that an image's bytes alone give.

    Args:
        sha256: of the image's bytes.
        key: text that keys the hash.
        splits: name -> share, in order.
    """
    position = int(sha256_of(f"{key}\0{sha256}".encode())[:13], 16) / 16**13
    reached = 0.0
    for name, share in splits.items():
        reached += share
        if position < reached:
            return name
    return name


def split_beside(own: str, alike: Iterable[str | None]) -> str | None:
    """The split of an image that looks like earlier ones in these splits; None if they lie in two."""
    theirs = {split for split in alike if split is not None}
    if len(theirs) > 1:
        return None
    return theirs.pop() if theirs else own
