"""`grainmill boundaries --data DIR --output FILE`: a boundary net from the trees of images that are mined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..boundaries.flags import BoundariesFlags
from .flags import JsonFlag


@dataclass(frozen=True, kw_only=True)
class BoundariesCommandFlags(BoundariesFlags):
    """What `grainmill boundaries` is asked for."""

    json: JsonFlag = False


def run(flags: BoundariesCommandFlags) -> None:
    """Trains a small net on the merge trees of images that are mined: where do regions end? For `mine --boundaries`.

    No human mask is used. A tree errs on each image in its own way; the net, which sees the maps of a frozen backbone,
    learns what trees of many images agree on. It takes minutes, of one core or of a GPU. Images like those that are to
    be mined serve best; a second round, on trees that already heard a net, measured no better. The file says which
    images it was made of and under which terms. The same command again resumes, and gives the same net.
    """
    from ..environment.numeric import fix_threads

    fix_threads()  # before numpy, numba and torch are imported, here or in a child
    from ..boundaries.build import build_boundaries
    from ..console import print_json
    from ..mining.options import default_workers

    result = build_boundaries(flags, workers=flags.workers or default_workers(0))
    if flags.json:
        print_json(result)
    else:
        print(result_text(result))


def result_text(result: dict[str, Any]) -> str:
    """What a finished training prints for people."""
    losses = result["losses"]
    lines = [
        f"{result['output']}: trained on {result['trained_on']} images, {result['held_out']} held out, on "
        f"{result['backbone']}" + ("" if result["trained"] else "; it was there already"),
        "loss by map (6, 16, 48, 150, 500 regions left; height):",
    ]
    rows = {"training": losses["training"], "held out": losses["held_out"][-1][1], "guess": losses["guess"]}
    lines += [f"  {name:<9}" + "".join(f" {each:.3f}" for each in row) for name, row in rows.items()]
    if result["passed_over"]:
        lines.append("passed over: " + ", ".join(f"{name} {count}" for name, count in result["passed_over"].items()))
    for source in result["sources"]:
        terms = source["terms"] or source["license"] or "no licence declared"
        lines.append(f"source {source['label']}: {source['images']} images, {terms}")
    lines.append(f"picture {result['picture']}; use it by `grainmill mine --boundaries {result['output']}`")
    return "\n".join(lines)
