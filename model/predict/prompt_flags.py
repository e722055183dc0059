"""What a person points at, and its spelling on the command line: `[N:]X,Y`, `[N:]X0,Y0,X1,Y1`, `[N:]G`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from pipeline.errors import InputError
from pipeline.format.granularity import GRANULARITY_MAX, GRANULARITY_MIN

FIRST_OBJECT: Final = 1
"""That flags without `N:` speak of."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Points and a box, in pixels of the image."""

    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()
    """1 inside, 0 outside, one a point."""
    box: tuple[float, float, float, float] | None = None
    """x0, y0, x1, y1."""

    @property
    def given(self) -> bool:
        return bool(self.points) or self.box is not None

    def check(self, *, width: int, height: int, where: str) -> None:
        """Does it lie in the image?

        Raises:
            InputError: nothing to point with, a point outside, a box outside or without area.
        """
        if not self.given:
            raise InputError(f"{where}: expected --point X,Y, --box X0,Y0,X1,Y1 or --everything, found none")
        for x, y in self.points:
            if not (0 <= x < width and 0 <= y < height):
                raise InputError(
                    f"{where}: point {x:g},{y:g} lies outside the image of {width} x {height} pixels; x runs to the "
                    "right and y down, from 0,0"
                )
        if self.box is not None:
            x0, y0, x1, y1 = self.box
            if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
                raise InputError(
                    f"{where}: box {x0:g},{y0:g},{x1:g},{y1:g}: expected 0 <= X0 < X1 <= {width} and "
                    f"0 <= Y0 < Y1 <= {height}, the image's size"
                )

    def to_json(self) -> dict[str, Any]:
        return {"points": [list(each) for each in self.points], "labels": list(self.labels), "box": self.box}


@dataclass(frozen=True, kw_only=True)
class ObjectFlags:
    """What the flags say of one object."""

    prompt: Prompt
    granularities: tuple[float | None, ...]
    """In the order given; None: SAM-2's own answer. Empty: not said."""


def objects_of_flags(
    points: Sequence[str] | None,
    not_points: Sequence[str] | None,
    boxes: Sequence[str] | None,
    granularities: Sequence[str] | None,
) -> dict[int, ObjectFlags]:
    """The objects that flags speak of, by number; empty if there are no flags.

    Raises:
        InputError: what cannot be read, with the flag.
    """
    inside = [_numbered(text, "--point", "[N:]X,Y in pixels", 2) for text in points or []]
    outside = [_numbered(text, "--not-point", "[N:]X,Y in pixels", 2) for text in not_points or []]
    corners = [_numbered(text, "--box", "[N:]X0,Y0,X1,Y1 in pixels", 4) for text in boxes or []]
    dial = [each for text in granularities or [] for each in _granularities(text)]
    made = {}
    for number in sorted({each[0] for each in (*inside, *outside, *corners, *dial)}):
        clicks = [(xy, label) for label, given in ((1, inside), (0, outside)) for n, xy in given if n == number]
        box = [each for n, each in corners if n == number]
        if len(box) > 1:
            raise InputError(f"--box: expected one for an object, found {len(box)}")
        made[number] = ObjectFlags(
            prompt=Prompt(
                points=tuple((x, y) for (x, y), _ in clicks),
                labels=tuple(label for _, label in clicks),
                box=(box[0][0], box[0][1], box[0][2], box[0][3]) if box else None,
            ),
            granularities=tuple(g for n, g in dial if n == number),
        )
    return made


def _object_number(text: str, flag: str, form: str) -> tuple[int, str]:
    number, colon, rest = text.rpartition(":")
    if not colon:
        return FIRST_OBJECT, text
    if not number.isdecimal():
        raise InputError(f"{flag} {text}: expected {form}, N a whole number")
    return int(number), rest


def _numbered(text: str, flag: str, form: str, count: int) -> tuple[int, tuple[float, ...]]:
    number, rest = _object_number(text, flag, form)
    try:
        values = tuple(float(each) for each in rest.split(","))
    except ValueError as error:
        raise InputError(f"{flag} {text}: expected {form}") from error
    if len(values) != count or not all(map(math.isfinite, values)):
        raise InputError(f"{flag} {text}: expected {form}, {count} numbers")
    return number, values


def _granularities(text: str) -> list[tuple[int, float | None]]:
    number, rest = _object_number(text, "--granularity", "[N:]G")
    values: list[tuple[int, float | None]] = []
    for each in rest.split(","):
        if each.strip().lower() == "none":
            values.append((number, None))
            continue
        try:
            value = float(each)
        except ValueError as error:
            raise InputError(f"--granularity {text}: expected a number or `none`") from error
        if not GRANULARITY_MIN <= value <= GRANULARITY_MAX:
            raise InputError(
                f"--granularity {text}: expected a number in [{GRANULARITY_MIN}, {GRANULARITY_MAX}], 0.1 the finest "
                "part and 1.0 the whole, or `none` for SAM-2's own answer"
            )
        values.append((number, value))
    return values
