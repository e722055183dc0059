"""All benchmarks of `grainmill score` by name. Each reader ends in a tuple `BENCHMARKS`; here they are put together."""

from __future__ import annotations

from typing import Final

from pipeline.errors import InputError

from .ade20k import BENCHMARKS as ADE20K
from .berkeley import BENCHMARKS as BERKELEY
from .bsds import BENCHMARKS as BSDS
from .coco_style import BENCHMARKS as COCO_STYLE
from .davis import BENCHMARKS as DAVIS
from .folder import BENCHMARKS as FOLDER
from .grabcut import BENCHMARKS as GRABCUT
from .paco import BENCHMARKS as PACO
from .partimagenet import BENCHMARKS as PARTIMAGENET
from .pascal_part import BENCHMARKS as PASCAL_PART
from .records import Benchmark
from .sa1b import BENCHMARKS as SA1B
from .sbd import BENCHMARKS as SBD
from .shards import BENCHMARKS as SHARDS

_WHOLE_IMAGE: Final = (*COCO_STYLE[:2], *ADE20K, COCO_STYLE[2], *SA1B, *PARTIMAGENET, *PACO)
_CLICKS: Final = (*GRABCUT, *BERKELEY, *SBD, *DAVIS, *PASCAL_PART)
BENCHMARKS: Final[dict[str, Benchmark]] = {
    each.name: each for each in (*_WHOLE_IMAGE, *_CLICKS, *BSDS, *COCO_STYLE[3:], *FOLDER, *SHARDS)
}
"""Name -> entry, in the order in which `--list` shows them."""


def find_benchmark(name: str) -> Benchmark:
    """The entry of a name.

    Raises:
        InputError: there is none; the message lists them.
    """
    if name not in BENCHMARKS:
        raise InputError(f"--benchmark {name}: no such benchmark; there are {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def list_text() -> str:
    """What `--list` prints."""
    lines = []
    for each in BENCHMARKS.values():
        lines += [
            f"{each.name}: {each.title}",
            f"    splits   {', '.join(each.splits)} (the first is the default)",
            f"    objects  {each.objects}",
            f"    tasks    {', '.join(each.tasks)}"
            + (f"; clicks until IoU {each.target_iou:.2f}" if "interactive" in each.tasks else ""),
            f"    label g  {LABEL_RULES[each.label_rule]}",
            f"    layout   {each.layout}",
            f"    source   {each.source}",
            f"    licence  {each.licence}",
        ]
    return "\n".join(lines)


LABEL_RULES: Final = {
    "whole": "1.0 for every object",
    "part": "eq. 3 of arXiv 2511.13714 within the annotated object",
    "containment": "eq. 3 under the largest mask that contains it; none where a mask has neither whole nor part",
    "mined": "that of the mask in the shards",
    "none": "none",
}
"""How `--granularity label` finds an object's g, for `--list` and the tables."""


def list_json() -> dict[str, object]:
    """What `--list --json` prints."""
    return {
        "benchmarks": [
            {
                "name": each.name,
                "title": each.title,
                "source": each.source,
                "licence": each.licence,
                "splits": list(each.splits),
                "objects": each.objects,
                "layout": each.layout,
                "tasks": list(each.tasks),
                "target_iou": each.target_iou,
                "label_rule": each.label_rule,
            }
            for each in BENCHMARKS.values()
        ]
    }
