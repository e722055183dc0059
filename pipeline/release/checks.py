"""May this run be published? Whole, of one configuration, not failed, and under a licence that covers its sources."""

from __future__ import annotations

from typing import Final

from ..dataset.reader import Unit
from ..dataset.run import RunReader, committed_unit
from ..errors import EMPTY_REASONS, InputError
from ..format.licenses import OTHER
from ..format.records import ConfigRecord
from ..format.schema import dataset_digest
from ..shards.lease import is_alive, read_lease

LOCAL_FIELDS: Final = ("sources", "limit", "samples_per_shard", "images")
"""Fields of a configuration that do not change a label; two runs that differ only in them may share a release."""


class ReleaseRefusedError(InputError):
    """Something that must not be published; the message says why and what to do."""


def require_releasable(run: RunReader, *, max_failed_fraction: float) -> list[Unit]:
    """The run's units, once it is known that they may be published.

    Raises:
        ReleaseRefusedError: uncommitted units, a run at work, commits of another configuration, too many failures,
            nothing in it, or a manifest that does not fit the commits.
    """
    where = run.location
    done = sum(run.committed_units())
    if done < run.units_total:
        raise ReleaseRefusedError(
            f"{where}: {run.units_total - done} of {run.units_total} units are not committed; "
            "run the same `grainmill mine` again until it is done"
        )
    lease = read_lease(run.storage)
    if lease is not None and is_alive(run.storage, lease):
        raise ReleaseRefusedError(f"{where}: a driver is still at work there; wait until it has ended")
    manifest = run.manifest
    if manifest is None:
        raise ReleaseRefusedError(
            f"{where}: no manifest.json although all units are committed; run `grainmill mine` again"
        )
    commits = list(run.commits())
    expected = run.plan["config_hash"]
    mixed = [commit.unit for commit in commits if commit.record["config_hash"] != expected]
    if mixed or manifest["config_hash"] != expected:
        what = f"units {mixed[:5]}" if mixed else "the manifest"
        raise ReleaseRefusedError(
            f"{where}: {what} were made with another configuration than the plan's {expected[:12]}; "
            "a release holds labels of one configuration: mine again with --overwrite"
        )
    failed = manifest["failures"] - sum(manifest["failure_reasons"].get(reason, 0) for reason in EMPTY_REASONS)
    total = manifest["samples"] + manifest["failures"]
    if manifest["samples"] == 0:
        run.require_samples()
    if failed > max_failed_fraction * total:
        reasons = ", ".join(f"{name} {count}" for name, count in manifest["failure_reasons"].items())
        raise ReleaseRefusedError(
            f"{where}: a failed run: {failed} of {total} samples failed ({reasons}), more than "
            f"--max-failed-fraction {max_failed_fraction:g} allows; `grainmill failures` lists them"
        )
    units = [committed_unit(commit) for commit in commits]
    listed = [[each.number, each.shard["sha256"], each.samples, each.masks] for each in units if each.shard is not None]
    failures = [
        [row[name] for name in ("key", "source_uri", "member", "stage", "reason")]
        for unit in units
        for row in run.failures(unit).to_pylist()
    ]
    if dataset_digest(listed, failures) != manifest["digest"]:
        raise ReleaseRefusedError(f"{where}: manifest.json does not fit the commits; `grainmill verify` says where")
    return units


def label_config(config: ConfigRecord) -> dict[str, object]:
    """The part of a configuration that decides what a label means."""
    return {name: value for name, value in config.items() if name not in LOCAL_FIELDS}


# ---------------------------------------------------------------------------------------------------------------------
# Licences

_PERMISSIVE: Final[frozenset[str]] = frozenset()
_BY: Final = frozenset({"attribution"})

OBLIGATIONS: Final[dict[str, frozenset[str]]] = {
    "cc0-1.0": _PERMISSIVE,
    "pddl": _PERMISSIVE,
    "unlicense": _PERMISSIVE,
    "public-domain": _PERMISSIVE,
    "apache-2.0": _BY,
    "mit": _BY,
    "bsd-2-clause": _BY,
    "bsd-3-clause": _BY,
    "odc-by": _BY,
    "odc-by-1.0": _BY,
    "cdla-permissive-1.0": _BY,
    "cdla-permissive-2.0": _BY,
    "cc-by-2.0": _BY,
    "cc-by-2.5": _BY,
    "cc-by-3.0": _BY,
    "cc-by-4.0": _BY,
    "odbl": _BY | {"share-alike"},
    "odbl-1.0": _BY | {"share-alike"},
    "cdla-sharing-1.0": _BY | {"share-alike"},
    "cc-by-sa-2.0": _BY | {"share-alike"},
    "cc-by-sa-3.0": _BY | {"share-alike"},
    "cc-by-sa-4.0": _BY | {"share-alike"},
    "cc-by-nc-2.0": _BY | {"non-commercial"},
    "cc-by-nc-3.0": _BY | {"non-commercial"},
    "cc-by-nc-4.0": _BY | {"non-commercial"},
    "cc-by-nc-sa-2.0": _BY | {"non-commercial", "share-alike"},
    "cc-by-nc-sa-3.0": _BY | {"non-commercial", "share-alike"},
    "cc-by-nc-sa-4.0": _BY | {"non-commercial", "share-alike"},
    "cc-by-nd-4.0": _BY | {"no-derivatives"},
    "cc-by-nc-nd-3.0": _BY | {"non-commercial", "no-derivatives"},
    "cc-by-nc-nd-4.0": _BY | {"non-commercial", "no-derivatives"},
}
"""What a licence asks of those who pass the work on; by lower-case SPDX identifier."""


def license_gap(stated: str, declared: str) -> str | None:
    """Why the licence of the whole cannot cover a part's; None if it can.

    A part's obligations must all be among the whole's. Share-alike parts need the same family (or a later version of
    it); what allows no derivatives cannot be passed on with masks at all, unless the whole says `other`. A licence that
    is not in the table covers, and is covered by, only itself.

    Args:
        stated: SPDX identifier of the release.
        declared: of a source or a proposal file.
    """
    whole, part = stated.lower(), declared.lower()
    if whole in (part, OTHER):
        return None
    if part not in OBLIGATIONS:
        return f"{declared} is not a licence whose terms are known here; only --license {declared} or other covers it"
    if whole not in OBLIGATIONS:
        return f"{stated} is not a licence whose terms are known here; use --license {declared} or other"
    if "share-alike" in OBLIGATIONS[part] and _family(whole) != _family(part):
        return f"{declared} is share-alike: the whole must stand under the same licence"
    if "share-alike" in OBLIGATIONS[part] and _version(whole) < _version(part):
        return f"{declared} is share-alike and newer than {stated}"
    missing = sorted(OBLIGATIONS[part] - OBLIGATIONS[whole])
    return f"{declared} asks for {' and '.join(missing)}, which {stated} does not" if missing else None


def _family(spdx: str) -> str:
    return spdx.rstrip("0123456789.").rstrip("-")


def _version(spdx: str) -> tuple[int, ...]:
    digits = spdx.rsplit("-", 1)[-1]
    return tuple(int(part) for part in digits.split(".")) if digits.replace(".", "").isdigit() else ()


def require_license(stated: str, declared: list[tuple[str, str]]) -> None:
    """Refuses a licence that cannot cover what goes into the release.

    Args:
        stated: of the release.
        declared: (what, its licence), for sources and proposal files that declare one.

    Raises:
        ReleaseRefusedError: naming the first that is not covered.
    """
    for what, license in declared:
        gap = license_gap(stated, license)
        if gap is not None:
            raise ReleaseRefusedError(f"--license {stated} cannot cover {what}: {gap}")
