"""`grainmill release DIR --output REL --name N --version V --license L`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..release.flags import ReleaseFlags
from .flags import JsonFlag


@dataclass(frozen=True, kw_only=True)
class ReleaseCommandFlags(ReleaseFlags):
    """What `grainmill release` is asked for."""

    json: JsonFlag = False


def run(flags: ReleaseCommandFlags) -> int:
    """A published dataset: shards, index, card, Croissant, checksums, gallery; pushed on request."""
    from ..console import ProgressBar, print_json
    from ..dataset.open import open_dataset
    from ..errors import InputError
    from ..release.build import build_release
    from ..release.commit import copy_card
    from ..release.folder import open_output, standing_version
    from ..release.mask_list import read_mask_list
    from ..release.options import release_options
    from ..release.selection import read_sample_list

    if flags.directory is None and not flags.append and flags.push is None:
        raise InputError("DIR: give the run to release; it can be left out only with --append or --push")
    if flags.purge and not (flags.append and flags.exclude):
        raise InputError("--purge goes with --append and --exclude FILE: it deletes what older versions keep of them")
    if flags.push_dry_run and flags.push is None:
        raise InputError("--push-dry-run goes with --push TARGET")
    folder = open_output(flags.output)
    manifest = None if flags.push is None or flags.overwrite else standing_version(folder, flags.name, flags.version)
    if manifest is None:
        options = release_options(flags)
        run = None if flags.directory is None else open_dataset(flags.directory)
        with ProgressBar("release", None if run is None else run.units_total, unit="shards") as progress:
            manifest = build_release(
                run,
                folder,
                options,
                append=flags.append,
                overwrite=flags.overwrite,
                exclusions=None if flags.exclude is None else read_sample_list(flags.exclude),
                kept=None if flags.keep is None else read_sample_list(flags.keep, flag="--keep"),
                masks=read_mask_list(flags.mask_verdicts, kept_only=flags.kept_masks_only),
                purge=flags.purge,
                on_shard=progress.update,
            )
    made: Mapping[str, Any] = manifest
    result: dict[str, Any] = {"output": flags.output, **{name: made[name] for name in _RESULT}}
    result |= {"shards": len(manifest["shards"]), "duplicates": manifest["duplicates"]["counts"]}
    result |= {"changes": manifest["versions"][-1]["changes"], "push": None}
    if flags.card_copy is not None:
        copy_card(folder, manifest, flags.card_copy)
    if flags.push is not None:
        result["push"] = _push(folder, flags.push, dry_run=flags.push_dry_run)
    if flags.json:
        print_json(result)
    else:
        print(
            f"{flags.output}: {result['name']} {result['version']}, {result['samples']:,} images, "
            f"{result['masks']:,} masks in {result['shards']:,} shards, digest {result['digest'][:16]}"
        )
        if result["push"] is not None:
            print(_push_text(result["push"]))
    return 0


_RESULT = ("name", "version", "date", "license", "samples", "masks", "failures", "digest")


def _push(folder: Any, target: str, *, dry_run: bool) -> dict[str, Any]:
    """Checks the release by its sums, then sends it."""
    from ..console import ProgressBar
    from ..errors import InputError
    from ..release.push import push_release
    from ..release.verify import verify_release

    problem = next(iter(verify_release(folder)), None)
    if problem is not None:
        raise InputError(f"{folder.location}: not pushed, for it is damaged: {problem}; `grainmill verify` tells all")
    with ProgressBar("push", None, unit="files") as progress:
        report = push_release(
            folder, target, dry_run=dry_run, on_file=lambda done, total: progress.update(done, f"of {total}")
        )
    return {**asdict(report), "dry_run": dry_run}


def _push_text(report: dict[str, Any]) -> str:
    if report["dry_run"]:
        return "\n".join([f"would push to {report['target']}:", *(f"  {call}" for call in report["calls"])])
    return (
        f"{report['target']}: {len(report['sent']):,} files sent ({report['sent_bytes'] / 2**20:,.1f} MiB), "
        f"{report['standing']:,} were there, {len(report['removed']):,} deleted"
    )
