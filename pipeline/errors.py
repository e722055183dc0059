"""What can go wrong, and how it is said.

    GrainmillError            an expected error: one clear message, never a traceback   exit 1
    ├── InputError            bad usage or bad input                                    exit 2
    │   └── SchemaError       a file that is not in the format it claims                exit 2
    ├── ConfigMismatchError   the output holds a run with another configuration         exit 3
    ├── TooManyFailuresError  more samples failed than allowed, or all of them          exit 4
    └── InterruptedRunError   Ctrl-C or SIGTERM; the same command goes on               exit 130

    SampleFailureError        one bad sample: becomes a row in `failures/`, never an exit

Messages say where, what was expected, what was found, and what to do.
"""

from __future__ import annotations

from typing import Any, Final, Literal, get_args

FailureReason = Literal[
    "unreadable",
    "truncated",
    "truncated_source",
    "too_large",
    "unsupported_format",
    "bad_member_name",
    "bad_annotation",
    "duplicate_key",
    "incomplete_sample",
    "timeout",
    "out_of_memory",
    "worker_died",
    "source_missing",
    "no_masks",
]
"""Why a sample is not in a shard (the whole list, once and for all)."""

FAILURE_REASONS: Final[tuple[FailureReason, ...]] = get_args(FailureReason)

EMPTY_REASONS: Final[frozenset[str]] = frozenset({"no_masks"})
"""Reasons that mean "empty" rather than "error": not counted by `--max-failed-fraction`."""

FailureStage = Literal["read", "decode", "features", "divide", "conquer", "refine", "granularity", "write", "mine"]
"""Where a sample failed; `mine` when it is not known (its process died or hung)."""


class GrainmillError(Exception):
    """An expected error. `str(error)` is the whole message for the user."""

    exit_code: int = 1


class InputError(GrainmillError):
    """Bad usage or bad input that nothing can be done with."""

    exit_code = 2


class SchemaError(InputError):
    """A file that does not hold what its format says."""


class ConfigMismatchError(GrainmillError):
    """The output directory holds a run with another configuration."""

    exit_code = 3


class TooManyFailuresError(GrainmillError):
    """More samples failed than `--max-failed-fraction` allows, or all of them.

    Attributes:
        result: what the run made, as `mine` returns it.
    """

    exit_code = 4

    def __init__(self, message: str, result: dict[str, Any]) -> None:
        super().__init__(message)
        self.result = result


class InterruptedRunError(GrainmillError):
    """The run was interrupted and can be resumed by the same command."""

    exit_code = 130


class SampleFailureError(Exception):
    """One sample cannot be mined; the run goes on.

    Attributes:
        reason: one of `FAILURE_REASONS`.
        stage: where it happened.
        message: one line for people.
    """

    def __init__(self, reason: FailureReason, stage: FailureStage, message: str) -> None:
        super().__init__(f"{reason} ({stage}): {message}")
        self.reason: FailureReason = reason
        self.stage: FailureStage = stage
        self.message = message

    def __reduce__(self) -> tuple[type[SampleFailureError], tuple[str, str, str]]:
        return (SampleFailureError, (self.reason, self.stage, self.message))
