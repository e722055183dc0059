"""The date of a release: that of the newest commit, so that it does not depend on when the release was made."""

from __future__ import annotations

import datetime
import re

from ..errors import InputError
from ..storage.base import Reader


def newest_commit_date(storage: Reader) -> str:
    """The day (UTC) on which the last commit of a run was written, as YYYY-MM-DD.

    Raises:
        InputError: the store does not say when its files were written.
    """
    times = [storage.modified(f"commits/{name}") for name in storage.list("commits")]
    known = [time for time in times if time is not None]
    if not known:
        raise InputError(f"{storage.location}: the store gives no times of its commits; say --date YYYY-MM-DD")
    return max(known).astimezone(datetime.UTC).date().isoformat()


def check_date(text: str) -> str:
    """An ISO date.

    Raises:
        InputError: otherwise.
    """
    try:
        if not re.fullmatch(r"\d{4}-\d\d-\d\d", text):
            raise ValueError
        return datetime.date.fromisoformat(text).isoformat()
    except ValueError as error:
        raise InputError(f"--date {text!r}: expected YYYY-MM-DD") from error
