"""The front door: `grainmill COMMAND`. Names the commands of both packages, loads a module when it is called.

Exit codes: 0 done, 1 error, 2 bad usage or input, 3 another configuration, 4 more failures than allowed,
130 interrupted and can be resumed. An expected error is one message, never a traceback.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final

from . import __version__
from .errors import GrainmillError, InputError, InterruptedRunError

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "mine": (
        "pipeline.commands.mine",
        "images -> committed shards of mask-granularity pairs; run again to resume",
    ),
    "status": ("pipeline.commands.status", "what is committed, pending and failed in an output directory"),
    "failures": ("pipeline.commands.failures", "one row per sample that is in no shard, and why"),
    "stats": ("pipeline.commands.stats", "masks per image, granularity, area, depth, seconds per stage"),
    "verify": (
        "pipeline.commands.verify",
        "check bytes, counts and (--deep) every sample against the commits",
    ),
    "view": (
        "pipeline.commands.view",
        "one HTML page: images, masks, a granularity slider, the part tree",
    ),
    "export": ("pipeline.commands.export", "whole files in the layout of COCO or SA-1B readers"),
    "release": ("pipeline.commands.release", "a published dataset: card, Croissant, checksums, index, gallery"),
    "join": ("pipeline.commands.join", "a release of references and its images, whole again, each checked by sha256"),
    "diff": ("pipeline.commands.diff", "what changed in samples and masks between two versions or runs"),
    "boundaries": (
        "pipeline.commands.boundaries",
        "a net of where regions end, from the trees of images that are mined, for `mine --boundaries`",
    ),
    "proposals": ("pipeline.commands.proposals", "a detector's output files as one, for `mine --divide proposals`"),
    "train": (
        "model.commands.train",
        "fine-tune SAM-2 with a granularity dial from committed or released shards",
    ),
    "segment": ("model.commands.segment", "masks of one image or video at a given granularity"),
    "annotate": (
        "model.commands.annotate",
        "a page for people: click, turn the dial, accept masks; also to review labels",
    ),
    "score": ("model.commands.score", "measure mined masks or a checkpoint on a benchmark"),
    "merge": ("model.commands.merge", "an adapter and its base in one checkpoint, without LoRA's cost"),
    "onnx-export": ("model.commands.onnx_export", "encoder.onnx, and decoder.onnx with the granularity as an input"),
    "torch-export": (
        "model.commands.torch_export",
        "the same two for torch alone: programs of torch.export",
    ),
    "plan": ("pipeline.commands.plan", "time, storage and money of a cluster run from measured seconds"),
    "demo": ("pipeline.commands.demo", "the whole loop on the photographs inside scikit-image"),
    "bench": ("pipeline.commands.bench", "side-by-side benchmarks: conquer, divide, mine, executors, load"),
}
"""Command -> (module with a function `run` of one record, the command's flags; one line of help)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code (`console_script` exits with it)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(_help())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"grainmill {__version__}")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        print(f"grainmill: no command {name!r}; there are: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return _run(name, rest)


def _run(name: str, arguments: list[str]) -> int:
    import typer
    import typer.exceptions

    from .commands.flags import typer_command

    # Threads of torch that wait for each other sleep. By default they spin, and where other processes want the cores
    # too, a step on two threads takes several times as long as on one. Read when OpenMP is loaded, also in children.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    signal.signal(signal.SIGTERM, _interrupt)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    module = importlib.import_module(COMMANDS[name][0])
    app.command(name, help=None, context_settings={"help_option_names": ["-h", "--help"]})(typer_command(module.run))
    try:
        code = app(args=arguments, prog_name=f"grainmill {name}", standalone_mode=False)
    except KeyboardInterrupt:
        code = InterruptedRunError.exit_code
    except typer.exceptions.TyperException as error:  # bad usage
        error.show()  # type: ignore[attr-defined]
        if "unexpected extra argument" in str(error) and (flag := getattr(module, "PATTERN_FLAG", None)):
            print(f"a pattern needs quotes, or the shell puts its files there: {flag} 'photos/*.png'", file=sys.stderr)
        return InputError.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except GrainmillError as error:
        print(f"grainmill {name}: {error}", file=sys.stderr)
        return error.exit_code
    if code == InterruptedRunError.exit_code:
        goes_on = getattr(module, "GOES_ON", "the same command goes on from here")
        print(f"interrupted; {goes_on}", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items())
    return (
        f"grainmill {__version__}: granularity-labelled segmentation masks from unlabelled images\n\n"
        f"usage: grainmill COMMAND [options]      grainmill COMMAND -h tells all of them\n\n{lines}\n\n"
        "first steps:\n"
        "  grainmill demo --output demo                        # the whole loop, minutes, no GPU, no download\n"
        "  grainmill mine --input photos/ --output out/        # your own images; the same command resumes\n"
        "  grainmill view out/ --output report.html            # look at what came out\n\n"
        "exit codes: 0 done, 1 error, 2 bad usage or input, 3 another configuration, 4 too many failures, 130 stopped"
    )


def console_script() -> None:
    """What the installed `grainmill` runs."""
    sys.exit(main())


if __name__ == "__main__":
    console_script()
