"""`grainmill mine`: images -> committed shards of mask-granularity pairs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from ..mining.flags import REPEAT, MineFlags

PATTERN_FLAG = "--input"


@dataclass(frozen=True, kw_only=True)
class MineCommandFlags(MineFlags):
    """What `grainmill mine` is asked for: a call of `mine`, and what is printed."""

    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and write nothing. Default: off.", rich_help_panel=REPEAT)
    ] = False
    json: Annotated[
        bool, typer.Option("--json", help="One JSON object on standard output. Default: off, text for people.")
    ] = False


def run(flags: MineCommandFlags) -> int | None:
    """Mines images into committed shards of masks with their granularity. The same command again resumes."""
    from ..environment.numeric import fix_threads

    fix_threads()  # before numpy and numba are imported, here or in a child
    from ..console import print_json
    from ..errors import TooManyFailuresError
    from ..mining.job import dry_run as show_plan
    from ..mining.job import mine
    from ..mining.options import mine_options

    options = mine_options(flags)
    try:
        result = show_plan(options) if flags.dry_run else mine(options)
    except TooManyFailuresError as error:
        if flags.json:
            print_json(error.result)
        raise
    if flags.json:
        print_json(result)
    elif flags.dry_run:
        print(plan_text(result))
    else:
        print(result_text(result, flags.output))
    return None


def plan_text(plan: dict[str, Any]) -> str:
    """What `--dry-run` prints for people."""
    lines = [f"{plan['units']} units of at most {plan['config']['samples_per_shard']} samples"]
    lines += [f"  {label}: {count} units" for label, count in plan["units_by_source"].items()]
    if plan["passed_over"]:
        from ..sources.passed_over import lines as lines_of

        lines += ["passed over, not mined:", *lines_of(plan["passed_over"])]
    workers = "as many workers as the cluster has room for" if plan["workers"] is None else f"{plan['workers']} workers"
    lines.append(f"{workers}, executor {plan['executor']}; nothing was written")
    lines.append("configuration: " + json.dumps(plan["config"], indent=2, sort_keys=True))
    return "\n".join(lines)


def result_text(result: dict[str, Any], output: str) -> str:
    """What a finished run prints for people."""
    per_image = "" if result["masks_per_image"] is None else f" ({result['masks_per_image']:.1f} per image)"
    lines = [
        f"{output}: {result['samples']} samples, {result['masks']} masks{per_image}, {result['failures']} failures in "
        f"{result['units']} units"
    ]
    if result["failure_reasons"]:
        lines.append("failures: " + ", ".join(f"{name} {count}" for name, count in result["failure_reasons"].items()))
    if result["passed_over"]:
        from ..sources.passed_over import one_line

        lines.append(f"passed over: {one_line(result['passed_over'])}; `grainmill status` gives examples")
    if result["images_per_second"] is not None:
        total_s = sum(value for name, value in result["seconds"].items() if name != "wall")
        shares = sorted(((value, name) for name, value in result["seconds"].items() if name != "wall"), reverse=True)
        lines.append(
            f"{result['images_per_second']:.2f} images/s after start-up; seconds by stage: "
            + ", ".join(f"{name} {value:.1f} ({value / total_s:.0%})" for value, name in shares if total_s)
        )
    else:
        lines.append("nothing was left to do")
    lines.append(f"digest {result['digest']}")
    return "\n".join(lines)
