"""What `grainmill merge` and `onnx-export` share, and their other spelling, `python -m model.NAME`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from pipeline.commands.flags import typer_command
from pipeline.errors import GrainmillError

CheckpointArgument = Annotated[
    str, typer.Argument(metavar="CKPT", help="Of `grainmill train`: a file, or a run's directory; or UnSAMv2's own.")
]
BaseOption = Annotated[
    str | None,
    typer.Option(metavar="CKPT", help="SAM 2.1's weights. Default: where they were when the adapter was trained."),
]


def run_tool(run: Callable[[Any], None], module: str) -> int:
    """Runs a module's command.

    Args:
        run: its function of the command's flags.
        module: its name, for messages.

    Returns:
        The exit code: 0, or that of an expected error, whose one message is printed.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(context_settings={"help_option_names": ["-h", "--help"]})(typer_command(run))
    try:
        app()
    except GrainmillError as error:
        typer.echo(f"python -m {module}: {error}", err=True)
        return error.exit_code
    return 0
