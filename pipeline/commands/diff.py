"""`grainmill diff OLD NEW`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from .flags import JsonFlag


@dataclass(frozen=True, kw_only=True)
class DiffFlags:
    """What `grainmill diff` is asked for."""

    old: Annotated[str, typer.Argument(metavar="OLD", help="A run, a release, or REL/versions/V; a folder or URL.")]
    new: Annotated[str, typer.Argument(metavar="NEW", help="What it is compared with.")]
    json: JsonFlag = False


def run(flags: DiffFlags) -> None:
    """What changed in samples and masks between two versions, by key."""
    from ..console import print_json
    from ..dataset.open import open_dataset
    from ..release.diff import difference

    found = difference(open_dataset(flags.old), open_dataset(flags.new))
    if flags.json:
        print_json(found)
    else:
        print(_text(found))


def _text(found: Mapping[str, Any]) -> str:
    samples, masks = found["samples"], found["masks"]
    lines = [
        f"samples   {samples['added']:+,} added, {-samples['removed']:,} removed, "
        f"{samples['changed']:,} with other masks, {samples['equal']:,} equal",
        f"masks     {masks['added']:+,} added, {-masks['removed']:,} removed, {masks['equal']:,} equal",
    ]
    if found["moved"]:
        lines.append(f"splits    {found['moved']:,} samples are in another one")
    for label, counts in found["by_source"].items():
        lines.append(f"source    {label}: {counts['added']:+,} added, {-counts['removed']:,} removed")
    for sign, kind in (("+", "added"), ("-", "removed"), ("~", "changed")):
        keys = found["keys"][kind]
        lines += [f"{sign} {key}" for key in keys[:20]]
        if samples[kind] > 20:
            lines.append(f"{sign} and {samples[kind] - 20:,} more; --json lists up to a thousand")
    return "\n".join(lines)
