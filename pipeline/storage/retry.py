"""Requests that are repeated with growing pauses: the one place where that is done.

A store's answer is final (no such file, no rights, a bad request) or may be another at the next try (busy, an error
inside, a time-out, no answer). Only the latter are tried again. s3fs and botocore are told not to repeat anything
themselves (`object_store`), so there each request is tried by this function alone (but aiohttp asks once more where a
connection that it kept open ends without an answer). gcsfs, adlfs and the Hub's client take no such order, and repeat
some requests before their failure is seen here.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final, TypeVar

from .base import StorageError

ATTEMPTS: Final = 8
"""Of one request. The waits between add up to some half a minute, longer than a store's ordinary hiccup."""
FIRST_WAIT_S: Final = 0.25
LONGEST_WAIT_S: Final = 10.0
_TRANSPORTS: Final = (
    "aiohttp", "aiobotocore", "azure", "botocore", "fsspec", "gcsfs", "google", "httpcore", "httpcore2", "httpx",
    "httpx2", "huggingface_hub", "requests", "urllib3",
)  # fmt: skip
"""Packages whose exceptions mean that a request failed, though they are no OSError."""
_FINAL_ERRORS: Final = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
_FINAL_NAMES: Final = (
    "NoCredentialsError", "PartialCredentialsError", "NoRegionError", "ParamValidationError",
    "ClientAuthenticationError", "CredentialUnavailableError", "DefaultCredentialsError",
)  # fmt: skip
"""Exceptions of the clients that no repetition mends."""
_PASSING_STATUSES: Final = (408, 409, 425, 429)
"""HTTP statuses below 500 that may be another at the next try; from 500 on, all but 501 may."""
_PASSING_CODES: Final = ("RequestTimeout", "SlowDown", "XAmzContentSHA256Mismatch", "BadDigest", "IncompleteBody")
"""What S3 says with status 400 of a request that was hurt on its way."""

_Value = TypeVar("_Value")


def is_permanent(error: Exception) -> bool:
    """Whether a request that failed so would fail again."""
    if isinstance(error, _FINAL_ERRORS) or type(error).__name__ in _FINAL_NAMES:
        return True
    status, code = _answer(error)
    if code in _PASSING_CODES:
        return False
    if status is not None:
        return status == 501 or (status < 500 and status not in _PASSING_STATUSES)
    return not (isinstance(error, OSError | EOFError) or type(error).__module__.split(".")[0] in _TRANSPORTS)


def retrying(
    what: str,
    request: Callable[[], _Value],
    *,
    is_permanent: Callable[[Exception], bool] = is_permanent,
    on_wait: Callable[[str], None] | None = None,
) -> _Value:
    """Repeats a request until it is answered; waits twice as long each time, give or take a half.

    The random part keeps a thousand workers that failed together from coming back together.

    Args:
        what: action and place, for messages.
        request: may be done twice without harm.
        is_permanent: whether another try is in vain.
        on_wait: hears, before each pause, what failed and how long it lasts.

    Raises:
        FileNotFoundError, FileExistsError: as the store says; these are answers.
        StorageError: no rights, a request that is refused, or no answer after all attempts.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return request()
        except (FileNotFoundError, FileExistsError):
            raise
        except Exception as error:
            status, reason = _answer(error)[0], (str(error).splitlines() or [""])[0]  # Azure's go on with all it said
            if status == 404:
                raise FileNotFoundError(reason) from error
            if status in (401, 403):
                raise StorageError(f"cannot {what}: {reason}") from PermissionError(reason)
            why = reason if isinstance(error, PermissionError) else f"{type(error).__name__}: {reason}"
            if is_permanent(error):
                raise StorageError(f"cannot {what}: {why}") from error
            if attempt == ATTEMPTS:
                raise StorageError(
                    f"cannot {what}: {ATTEMPTS} attempts failed, the last with {why}; "
                    "run the same command again when the store answers"
                ) from error
            wait_s = min(FIRST_WAIT_S * 2 ** (attempt - 1), LONGEST_WAIT_S) * random.uniform(0.5, 1.5)
            if on_wait is not None:
                on_wait(f"{what}: {why}; again in {wait_s:.0f} s")
            time.sleep(wait_s)
    raise AssertionError("the loop returns or raises")


def _answer(error: Exception) -> tuple[int | None, str | None]:
    """The HTTP status that a store answered with, as its client tells it, and S3's own word for it; None if untold."""
    if str(error).startswith("Forbidden: "):  # gcsfs makes a bare OSError of a 403
        return 403, None
    for each in (error, error.__cause__):  # s3fs makes OSErrors of botocore's
        if isinstance(answer := getattr(each, "response", None), dict):
            return answer.get("ResponseMetadata", {}).get("HTTPStatusCode"), answer.get("Error", {}).get("Code")
    found = getattr(error, "status_code", None) or getattr(error, "code", None)
    found = found or getattr(getattr(error, "response", None), "status_code", None)  # the Hub's client
    return (int(found) if isinstance(found, int | str) and str(found).isdecimal() else None), None
