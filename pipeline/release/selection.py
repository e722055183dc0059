"""Which samples stay, in which split, and which earlier images they are like; asked in the release's order.

Splits are by a keyed hash of the source, stable when data is added, with near-duplicates never across two of them. An
image's own split is a function of the key and of its bytes' sha256 alone. If it looks like images that came before it,
it takes their split; if those lie in two, it is in none (null), because either would leak. Earlier images are never
asked again, and new data always comes later (`mine --extend`, `release --append`), so no image ever changes its split.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from ..errors import InputError
from ..format.records import DuplicateRow, ReleasedRow, RemovedRow, SampleRow
from ..format.schema import sha256_of
from .duplicates import DuplicateIndex, Match, Signature
from .records import ReleaseOptions


@dataclass(kw_only=True)
class SampleList:
    """Lines of `--exclude FILE` or `--keep FILE`; each names samples by key, by the image's sha256 or by its uri.

    Attributes:
        lines: as given, without comments.
        met: those that named a sample.
    """

    lines: frozenset[str] = frozenset()
    met: set[str] = field(default_factory=set)

    def names(self, row: SampleRow) -> bool:
        """Whether a line names a sample."""
        member = row["member"]
        uris = [row["source_uri"]] if member is None else [row["source_uri"], f"{row['source_uri']}/{member}"]
        hit = self.lines & {row["key"], row["source_sha256"], *uris}
        self.met |= hit
        return bool(hit)

    @property
    def unmet(self) -> list[str]:
        return sorted(self.lines - self.met)


def read_sample_list(path: str, *, flag: str = "--exclude") -> SampleList:
    """Reads one key, sha256 or uri a line; empty lines and lines that begin with `#` are skipped.

    Args:
        path: of the file.
        flag: that gave it, for messages.

    Raises:
        InputError: the file cannot be read, or holds nothing.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{flag} {path}: cannot be read ({error})") from error
    lines = [line.strip() for line in text.splitlines()]
    kept = {line for line in lines if line and not line.startswith("#")}
    kept = {line.lower() if re.fullmatch(r"[0-9A-Fa-f]{64}", line) else line for line in kept}
    if not kept:
        raise InputError(f"{flag} {path}: expected one key, sha256 or source uri a line, found none")
    return SampleList(lines=frozenset(kept))


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What becomes of a sample.

    Attributes:
        left: why it is left out: excluded, unlisted, no_masks, present, exact, near or evaluation; None if it stays.
        split: None for none.
    """

    left: str | None
    split: str | None


@dataclass(kw_only=True)
class EvaluationSet:
    """Images that a release is compared with."""

    label: str
    index: DuplicateIndex
    images: int
    exact: int = 0
    near: int = 0
    removed: int = 0


@dataclass(kw_only=True)
class Selection:
    """Decides sample by sample; what it has decided decides what follows.

    Attributes:
        options: of the release.
        exclusions: what was asked to be taken down, now.
        kept: of what is new, these alone go in; None: all.
        taken_down: (key, sha256) of what earlier versions took down, which stays out.
        evaluation: sets to compare with.
    """

    options: ReleaseOptions
    exclusions: SampleList
    kept: SampleList | None = None
    taken_down: frozenset[str] = frozenset()
    evaluation: tuple[EvaluationSet, ...] = ()
    counts: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    left_standing: int = 0
    """Of `left`, those that the version before had."""
    pairs: list[DuplicateRow] = field(default_factory=list)
    removed: list[RemovedRow] = field(default_factory=list)
    unsigned: int = 0
    _index: DuplicateIndex = field(default_factory=DuplicateIndex)
    _splits: dict[str, str | None] = field(default_factory=dict)
    _standing: set[str] = field(default_factory=set)

    def decide(self, row: SampleRow, signature: Signature | None, *, standing: bool, emptied: bool = False) -> Decision:
        """Decides on one sample.

        Args:
            row: of the index.
            signature: of its image; None if that is not at hand.
            standing: it is part of the version before, and a row of that one's index.
            emptied: people left none of its masks.
        """
        key, sha256 = row["key"], row["source_sha256"]
        why = self._why_not(row, standing) or ("no_masks" if emptied else None)
        if why is not None:
            if why == "no_masks" and standing:
                self._standing.add(sha256)  # its run, added again in the same version, does not bring it back
            return self._leave(row, why, standing)
        self.unsigned += signature is None
        matches = self._index.matches(sha256, signature) if self.options.duplicates else []
        kind = None if not matches else "exact" if matches[0].exact else "near"
        leak = self._leak(key, sha256, signature)
        for match in matches:
            self._pair(key, match.name, match, prefix="", removed=kind in self.options.remove or leak)
        if kind is not None:
            self.counts[kind] += 1
        if leak:
            return self._leave(row, "evaluation", standing)
        if kind is not None and kind in self.options.remove:
            return self._leave(row, kind, standing)
        split = self._split(row, matches, standing)
        self._splits[key] = split
        self._index.add(key, sha256, signature)
        if standing:
            self._standing.add(sha256)
        return Decision(left=None, split=split)

    def _why_not(self, row: SampleRow, standing: bool) -> str | None:
        if self.exclusions.names(row) or row["key"] in self.taken_down or row["source_sha256"] in self.taken_down:
            return "excluded"
        if standing:
            return None
        listed = self.kept is None or self.kept.names(row)
        if row["source_sha256"] in self._standing:
            return "present"
        return None if listed else "unlisted"

    def _leave(self, row: SampleRow, why: str, standing: bool) -> Decision:
        self.left[why] += 1
        self.left_standing += standing
        if why != "present":
            self.removed.append({
                "key": row["key"], "source_uri": row["source_uri"], "member": row["member"],
                "source_sha256": row["source_sha256"], "why": why, "version": self.options.version,
            })  # fmt: skip
        return Decision(left=why, split=None)

    def _leak(self, key: str, sha256: str, signature: Signature | None) -> bool:
        """Notes what of the evaluation sets the image is like; True if it is to be left out for that."""
        remove, hit = "evaluation" in self.options.remove, False
        for each in self.evaluation:
            matches = each.index.matches(sha256, signature)
            if matches:
                hit = True
                each.exact += matches[0].exact
                each.near += not matches[0].exact
                each.removed += remove
                self._pair(key, matches[0].name, matches[0], prefix="evaluation-", removed=remove)
        return hit and remove

    def _pair(self, key: str, like: str, match: Match, *, prefix: str, removed: bool) -> None:
        kind = f"{prefix}{'exact' if match.exact else 'near'}"
        self.pairs.append({"key": key, "like": like, "kind": kind, "distance": match.distance, "removed": removed})

    def _split(self, row: SampleRow, matches: list[Match], standing: bool) -> str | None:
        if not self.options.splits:
            return None
        if standing:
            return cast(ReleasedRow, row)["split"]
        own = own_split(row["source_sha256"], key=self.options.split_key, splits=self.options.splits)
        return split_beside(own, (self._splits[match.name] for match in matches))


# ---------------------------------------------------------------------------------------------------------------------
# Splits


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
