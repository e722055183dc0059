"""A command's flags are one frozen dataclass: each field is a flag, with its help and its default, written once.

Fields are `Annotated` with `typer.Option` or `typer.Argument`, in the order of the command's help. `typer_command`
shows typer a function with these parameters, and what was typed arrives as the record. A record that code below the
commands takes is defined there; where a command needs more, it inherits and adds.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer

RunArgument = Annotated[str, typer.Argument(metavar="DIR", help="Output directory (or URL) of a run.")]
JsonFlag = Annotated[
    bool, typer.Option("--json", help="One JSON object on standard output [default: off, a text for people].")
]


def typer_command(run: Callable[[Any], int | None]) -> Callable[..., int | None]:
    """The function that typer parses a command line for.

    Args:
        run: takes the record and returns an exit code, None for 0. Its one parameter is annotated with the record's
            class, and its docstring is the command's help.

    Returns:
        A function with one keyword parameter for each field of the record, which calls `run`.
    """
    [record] = [hint for name, hint in get_type_hints(run).items() if name != "return"]

    def command(**values: Any) -> int | None:
        return run(record(**values))

    hints = get_type_hints(record, include_extras=True)
    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in dataclasses.fields(record)
    ]
    command.__doc__ = run.__doc__
    command.__dict__["__signature__"] = inspect.Signature(parameters)  # where inspect, and so typer, looks first
    return command
