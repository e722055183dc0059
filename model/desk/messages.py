"""What the page sends, as JSON; anything else is refused before it is looked at."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from pipeline.errors import InputError

from .answers import MAX_CLICKS
from .records import PromptRecord, Verdict

Name = Annotated[str, Meta(min_length=1, max_length=80, pattern=r"^[^\x00-\x1f\x7f]+$")]
Mark = Annotated[str, Meta(pattern=r"^[A-Za-z0-9-]{8,64}$")]
Ids = Annotated[tuple[int, ...], Meta(max_length=10_000)]
Source = Literal["dial", "own", "everything", "mined", "accepted"]
T = TypeVar("T")


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All messages: who sends it, and for which images the page was loaded."""

    person: Mark
    name: Name
    images: Mark
    """`mark` of the desk's images; a page that was left open over a start with others has another one."""


class Here(Message, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A page says that it is there, and at which image; -1: at none, it is closing."""

    image: Annotated[int, Meta(ge=-1)]


class Ask(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A prompt to be answered."""

    prompt: PromptRecord


class Change(Message, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All changes: a mark of its own, by which one that is sent twice is done once."""

    request: Mark


class Accept(Change, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Masks become accepted ones."""

    category: Name
    source: Source
    prompt: PromptRecord | None = None
    """Of `dial` and `own`, and what splits."""
    place: int = 0
    """Of `dial` and `own`: which of the answer's masks."""
    ids: Ids = ()
    """Of the other sources: which masks."""
    way: Literal["each", "merge", "split"] = "each"
    """Each by itself; all as one; one as two, along what the prompt answers at `place` of the dial."""
    inside: int | None = None
    """Keep it inside this accepted mask."""
    replaces: int | None = None
    """The accepted mask whose place it takes."""
    object_id: Annotated[int, Meta(ge=1, le=65_535)] | None = None
    """Of a video."""


class Delete(Change, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Accepted masks go."""

    ids: Ids


class Relabel(Change, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Accepted masks get another category."""

    ids: Ids
    category: Name


class Review(Change, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Verdicts on mined masks, and on a whole image."""

    ids: Ids = ()
    verdict: Verdict | None = None
    """Of the masks; None takes theirs back."""
    whole: Verdict | Literal["undecided"] | None = None


def read_message(body: bytes, kind: type[T]) -> T:
    """A message of this kind.

    Raises:
        InputError: it is none.
    """
    try:
        message = msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"not what the page sends: {error}") from error
    prompt = getattr(message, "prompt", None)
    if prompt is not None and len(prompt.points) > MAX_CLICKS:
        raise InputError(f"more than {MAX_CLICKS} clicks")
    return message
