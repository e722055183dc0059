"""What was seen and not used: a count for every reason, with the kinds and one example.

Whatever a source, a tar, a table, a file of proposals or an image's own annotations hold ends in a sample, in a failure
row, or here. `plan.json` keeps the counts of planning, commits those of mining; they change no label and no hash.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final, Literal

PassedReason = Literal[
    "hidden",
    "link_to_folder",
    "not_a_file",
    "own_output",
    "unsupported_image",
    "archive",
    "other",
    "annotation",
    "member",
    "companion",
    "proposal_unmatched",
    "proposal_low_score",
    "proposal_crowd",
    "proposal_without_mask",
    "annotation_without_mask",
]

WORDS: Final[Mapping[PassedReason, str]] = {
    "hidden": "hidden (the name begins with a dot)",
    "link_to_folder": "links to folders, which are not followed",
    "not_a_file": "no files (folders that a pattern met, pipes, devices)",
    "own_output": "outputs of Grainmill (to mine the shards of a run, name it as an --input)",
    "unsupported_image": "images of a format that is not mined",
    "archive": "archives to be unpacked first",
    "other": "other files",
    "annotation": "annotations beside images, not read without --divide union",
    "member": "other members of samples in tars",
    "companion": "further images of samples in tars, beside the one that is called as the sample",
    "proposal_unmatched": "proposals for images that are not in the sources",
    "proposal_low_score": "proposals below the least score",
    "proposal_crowd": "proposals for crowds",
    "proposal_without_mask": "proposals without a mask",
    "annotation_without_mask": "annotations without a mask",
}
"""Reason -> what people read, beside a number."""

INSIDE_CONTAINERS: Final = ("member", "companion")
"""Reasons of what lies inside tars, which are looked into once; files are looked at whenever a source is listed."""

MAX_KINDS: Final = 12
"""Kinds of one reason that are kept apart; further ones are counted as `...`."""


class PassedOver:
    """Counts while a run is planned or a unit is mined."""

    def __init__(self, record: Mapping[str, Any] | None = None) -> None:
        self._counts: dict[str, Counter[str]] = {}
        self._examples: dict[str, str] = {}
        if record is not None:
            self.include(record)

    def __bool__(self) -> bool:
        return bool(self._counts)

    def add(self, reason: PassedReason, example: str, *, kind: str = "", count: int = 1) -> None:
        """One thing more (or `count` of them), with its name as an example and the kind of thing it is."""
        if count > 0:
            self._add(reason, kind, count)
            self._examples.setdefault(reason, example)

    def include(self, record: Mapping[str, Any]) -> None:
        """Adds what `to_json` gave elsewhere."""
        for reason, each in record.items():
            for kind, count in each["kinds"].items():
                self._add(reason, kind, count)
            if left := each["count"] - sum(each["kinds"].values()):
                self._add(reason, "", left)
            self._examples.setdefault(reason, each["example"])

    def forget(self, reason: PassedReason) -> None:
        """What was counted for a reason is used after all."""
        self._counts.pop(reason, None)
        self._examples.pop(reason, None)

    def to_json(self) -> dict[str, Any]:
        """Reason -> {count, kinds: {kind: count}, example}."""
        return {
            reason: {
                "count": counts.total(),
                "kinds": {kind: count for kind, count in sorted(counts.items()) if kind},
                "example": self._examples[reason],
            }
            for reason, counts in sorted(self._counts.items())
        }

    def _add(self, reason: str, kind: str, count: int) -> None:
        counts = self._counts.setdefault(reason, Counter())
        if kind not in counts and len(counts) >= MAX_KINDS:
            kind = "..."
        counts[kind] += count


def rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`count`, `what` (in words, with the kinds) and `example` of each reason, the largest first."""
    ordered = sorted(record.items(), key=lambda item: (-item[1]["count"], item[0]))
    return [
        {"count": each["count"], "what": _words(reason) + _kinds(each), "example": each["example"]}
        for reason, each in ordered
    ]


def lines(record: Mapping[str, Any]) -> list[str]:
    """One line for each reason, with an example."""
    return [f"{row['count']:>8,}  {row['what']}, {row['example']} for instance" for row in rows(record)]


def one_line(record: Mapping[str, Any]) -> str:
    """All of it, without examples; "" if nothing was passed over."""
    ordered = sorted(record.items(), key=lambda item: (-item[1]["count"], item[0]))
    return "; ".join(f"{_words(reason)} {each['count']:,}{_kinds(each)}" for reason, each in ordered)


def _words(reason: str) -> str:
    return next((words for name, words in WORDS.items() if name == reason), reason)


def _kinds(each: Mapping[str, Any]) -> str:
    kinds = sorted(each["kinds"].items(), key=lambda item: (-item[1], item[0]))
    return f" ({', '.join(f'{kind} {count:,}' for kind, count in kinds)})" if kinds else ""
