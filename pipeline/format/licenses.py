"""Names of licences, as they are typed: SPDX's, with the few others that data sets use."""

from __future__ import annotations

import re
from typing import Final

from ..errors import InputError

OTHER: Final = "other"
"""Covers everything: the terms of each sample stand beside it, and the card says so."""
UNLISTED: Final = frozenset({OTHER, "public-domain", "pddl", "odc-by", "odbl"})
"""Not on SPDX's list (the last three without their version), but the Hub's names, or what is no licence at all."""


def check_license(flag: str, text: str) -> str:
    """One licence, in SPDX's own spelling; the list is that of the installed `packaging`.

    Args:
        flag: where it was given, for the message.
        text: an identifier of the list, `LicenseRef-NAME` for terms of one's own, or one of `UNLISTED`; in any case.

    Raises:
        InputError: anything else, expressions of several included.
    """
    from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

    if text.lower() in UNLISTED:
        return text.lower()
    try:
        if text and not any(character.isspace() or character in "()" for character in text):
            return str(canonicalize_license_expression(text))
    except InvalidLicenseExpression:
        pass
    raise InputError(
        f"{flag}: {text!r} is not on SPDX's list of licences (https://spdx.org/licenses/); expected one of its "
        "identifiers, as in CC-BY-4.0 or MIT, LicenseRef-NAME for terms of your own, or other"
    )


def spelled(license: str | None) -> str | None:
    """As `check_license` spells it; what it refuses stays as it is."""
    try:
        return license if license is None else check_license("", license)
    except InputError:
        return license


def check_link(license: str, link: str | None) -> str | None:
    """The address of the terms, for a licence that has none on SPDX's list.

    Raises:
        InputError: no http address, or a licence of the list.
    """
    if link is None:
        return None
    if license != OTHER and not license.startswith("LicenseRef-"):
        raise InputError(f"--license-link goes with --license other or LicenseRef-NAME; {license} has its own address")
    if not re.fullmatch(r"""https?://[^\s<>"'`|\\]+""", link):
        raise InputError(f"--license-link {link!r}: expected the address of a page, as in https://example.org/terms")
    return link
