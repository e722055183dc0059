"""From the flags of `grainmill release` to options that are checked."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ..errors import InputError
from ..format.licenses import check_license, check_link
from ..mining.options import licenses_of
from ..storage.versions import check_version_name
from .flags import ReleaseFlags
from .records import ReleaseOptions

REMOVABLE: Final = ("exact", "near", "evaluation")


def release_options(flags: ReleaseFlags) -> ReleaseOptions:
    """Checks the flags of a release that is to be made, and reads the files they name.

    Raises:
        InputError: a flag that is missing or wrong, or flags that do not go together.
    """
    name, version, license = flags.name, flags.version, flags.license
    if name is None or version is None or license is None or (flags.directory is None and not flags.append):
        raise InputError("a release needs DIR, --name, --version and --license")
    return ReleaseOptions(
        name=check_name(name),
        version=check_version_name(version),
        license=check_license("--license", license),
        license_link=check_link(check_license("--license", license), flags.license_link),
        date=None if flags.date is None else check_date(flags.date),
        source_licenses=licenses_of(flags.source_license or (), flag="--source-license"),
        source_terms=pairs_of("--source-terms", flags.source_terms or ()),
        proposals_license=(
            None if flags.proposals_license is None else check_license("--proposals-license", flags.proposals_license)
        ),
        splits={} if flags.splits is None else parse_splits(flags.splits),
        split_key=flags.split_key,
        against=tuple(flags.against or ()),
        duplicates=flags.duplicates,
        remove=remove_kinds(
            flags.remove or (),
            against=bool(flags.against),
            duplicates=flags.duplicates,
            splits=flags.splits is not None,
        ),
        max_failed_fraction=flags.max_failed_fraction,
        description=None if flags.description is None else read_text("--description", flags.description),
        people=flags.people,
        workers=flags.workers or min(8, os.cpu_count() or 1),
        gallery_images=flags.gallery_images,
    )


def check_name(name: str) -> str:
    """A dataset's name, also as `owner/name`.

    Raises:
        InputError: what the Hub would refuse.
    """
    part = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
    if not re.fullmatch(rf"(?:{part}/)?{part}", name) or "--" in name or ".." in name:
        raise InputError(f"--name {name!r}: expected letters, digits, - _ . and at most one /, as in team/birds-masks")
    return name


def pairs_of(flag: str, values: Sequence[str]) -> dict[str, str]:
    """Reads `LABEL=TEXT`.

    Raises:
        InputError: a value without both.
    """
    pairs = {}
    for value in values:
        label, equals, text = value.partition("=")
        if not (equals and label and text.strip()):
            raise InputError(f"{flag} {value!r}: expected LABEL=TEXT")
        pairs[label] = text.strip()
    return pairs


def read_text(flag: str, path: str) -> str:
    """A text file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{flag} {path}: cannot be read ({error})") from error


def remove_kinds(values: Sequence[str], *, against: bool, duplicates: bool, splits: bool) -> frozenset[str]:
    """Checks `--remove`, and that what needs signatures has them.

    Raises:
        InputError: an unknown kind, or flags that do not go together.
    """
    for value in values:
        if value not in REMOVABLE:
            raise InputError(f"--remove {value}: expected one of {', '.join(REMOVABLE)}")
    if "evaluation" in values and not against:
        raise InputError("--remove evaluation needs --against SRC, the evaluation set")
    if not duplicates and (values or against or splits):
        raise InputError("--no-duplicates does not go with --remove, --against or --splits, which look for duplicates")
    return frozenset(values)


def parse_splits(text: str) -> dict[str, float]:
    """Reads `train=0.9,val=0.1`.

    Raises:
        InputError: shares that are not positive or do not sum to 1, or names that loaders refuse.
    """
    splits: dict[str, float] = {}
    for part in text.split(","):
        name, separator, share = part.strip().partition("=")
        try:
            value = float(share)
        except ValueError:
            value = -1.0
        if not separator or not re.fullmatch(r"[a-z][a-z0-9_]{0,31}", name) or name in splits or not 0 < value <= 1:
            raise InputError(f"--splits {text!r}: expected NAME=SHARE parts, as in train=0.9,val=0.05,test=0.05")
        splits[name] = value
    if abs(sum(splits.values()) - 1.0) > 1e-9:
        raise InputError(f"--splits {text!r}: the shares sum to {sum(splits.values()):g}, expected 1")
    return splits


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
