"""Which samples stay, in which split, and which earlier images they are like; asked in the release's order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .duplicates import DuplicateIndex, Match, Signature
from .records import ReleaseOptions
from .splits import own_split, split_beside
from .takedown import Exclusions


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What becomes of a sample.

    Attributes:
        left: why it is left out: excluded, present, exact, near or evaluation; None if it stays.
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
        taken_down: (key, sha256) of what earlier versions took down, which stays out.
        evaluation: sets to compare with.
    """

    options: ReleaseOptions
    exclusions: Exclusions
    taken_down: frozenset[str] = frozenset()
    evaluation: tuple[EvaluationSet, ...] = ()
    counts: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    pairs: list[dict[str, Any]] = field(default_factory=list)
    removed: list[dict[str, Any]] = field(default_factory=list)
    unsigned: int = 0
    _index: DuplicateIndex = field(default_factory=DuplicateIndex)
    _splits: dict[str, str | None] = field(default_factory=dict)
    _standing: set[str] = field(default_factory=set)

    def decide(self, row: Mapping[str, Any], signature: Signature | None, *, standing: bool) -> Decision:
        """Decides on one sample.

        Args:
            row: of the index.
            signature: of its image; None if that is not at hand.
            standing: it is part of the version before.
        """
        key, sha256 = row["key"], row["source_sha256"]
        why = self._why_not(row, standing)
        if why is not None:
            return self._leave(row, why)
        self.unsigned += signature is None
        matches = self._index.matches(sha256, signature) if self.options.duplicates else []
        kind = None if not matches else "exact" if matches[0].exact else "near"
        leak = self._leak(key, sha256, signature)
        for match in matches:
            self._pair(key, match.name, match, prefix="", removed=kind in self.options.remove or leak)
        if kind is not None:
            self.counts[kind] += 1
        if leak:
            return self._leave(row, "evaluation")
        if kind is not None and kind in self.options.remove:
            return self._leave(row, kind)
        split = self._split(row, matches, standing)
        self._splits[key] = split
        self._index.add(key, sha256, signature)
        if standing:
            self._standing.add(sha256)
        return Decision(left=None, split=split)

    def _why_not(self, row: Mapping[str, Any], standing: bool) -> str | None:
        if self.exclusions.names(row) or row["key"] in self.taken_down or row["source_sha256"] in self.taken_down:
            return "excluded"
        return "present" if not standing and row["source_sha256"] in self._standing else None

    def _leave(self, row: Mapping[str, Any], why: str) -> Decision:
        self.left[why] += 1
        if why != "present":
            columns = ("key", "source_uri", "member", "source_sha256")
            self.removed.append({**{name: row[name] for name in columns}, "why": why, "version": self.options.version})
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

    def _split(self, row: Mapping[str, Any], matches: list[Match], standing: bool) -> str | None:
        if not self.options.splits:
            return None
        if standing:
            return row["split"]
        own = own_split(row["source_sha256"], key=self.options.split_key, splits=self.options.splits)
        return split_beside(own, (self._splits[match.name] for match in matches))
