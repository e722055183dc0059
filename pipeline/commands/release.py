"""`grainmill release DIR --output REL --name N --version V --license L`."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer


def command(
    directory: Annotated[
        str | None,
        typer.Argument(
            metavar="[DIR]",
            help="A run, complete. Left out with --append for a version that only takes out, and to push what stands.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        str, typer.Option(help="The release's folder: new, empty, or with --append one that stands.")
    ] = ...,  # type: ignore[assignment]
    name: Annotated[
        str | None,
        typer.Option(
            help="Of the dataset: letters, digits, - _ . and one / as the Hub has them. Needed, but to push again.",
            show_default=False,
        ),
    ] = None,
    version: Annotated[
        str | None,
        typer.Option(
            help="Of this release, as in 1.0.0; with --append later than all that stand. Needed, but to push again.",
            show_default=False,
        ),
    ] = None,
    license: Annotated[
        str | None,
        typer.Option(
            help="Of the whole, as an SPDX identifier, LicenseRef-NAME or `other`; refused if it cannot cover its "
            "sources. Needed, but to push again.",
            show_default=False,
        ),
    ] = None,
    license_link: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Where the terms stand, for `other` or LicenseRef-NAME [default: nowhere].",
            show_default=False,
        ),
    ] = None,
    date: Annotated[
        str | None,
        typer.Option(
            metavar="YYYY-MM-DD",
            help="Stands in card and Croissant [default: the day of the newest commit, so that releases are equal].",
        ),
    ] = None,
    source_license: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL=LICENSE", help="Of a source that declared none when it was mined. Repeat it for several."
        ),
    ] = None,
    source_terms: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL=TEXT", help="Address or words of a source's terms, beside each sample. Repeatable."
        ),
    ] = None,
    proposals_license: Annotated[
        str | None, typer.Option(metavar="LICENSE", help="Of the --proposals file [default: as the file declares it].")
    ] = None,
    splits: Annotated[
        str | None,
        typer.Option(
            metavar="NAME=SHARE,...", help="As in train=0.9,val=0.1, by a hash of each source [default: none]."
        ),
    ] = None,
    split_key: Annotated[
        str,
        typer.Option(help="Keys that hash [default: grainmill; another key gives other splits].", show_default=False),
    ] = "grainmill",
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="[LABEL=]SRC", help="An evaluation set to compare images with. Repeat it for several."),
    ] = None,
    duplicates: Annotated[
        bool, typer.Option(help="Look for equal and near-equal images [default: yes; decodes every image once].")
    ] = True,
    remove: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND",
            help="Leave out images that are `exact` or `near` copies of an earlier one, or in an `evaluation` set. "
            "Repeatable [default: report only, shards stay as they were mined].",
        ),
    ] = None,
    exclude: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Take samples down: one key, sha256 or source uri a line [default: none]."),
    ] = None,
    append: Annotated[
        bool, typer.Option("--append", help="--output is a release: add to it as a new version [default: off].")
    ] = False,
    purge: Annotated[
        bool,
        typer.Option(
            "--purge",
            help="With --exclude: also delete what older versions keep of the samples taken down; they are then "
            "withdrawn [default: off, old versions stay readable].",
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Make a release that stands (its only version) again [default: off].")
    ] = False,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET",
            help="Then send it to a folder, s3://BUCKET/PREFIX (or another store), hf://OWNER/NAME; the same command "
            "resumes. Credentials come from the environment [default: stay here].",
        ),
    ] = None,
    push_dry_run: Annotated[
        bool, typer.Option("--push-dry-run", help="Tell every call of the push and make none [default: off].")
    ] = False,
    max_failed_fraction: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, help="A run of which a larger share failed is refused [default: 0.5, it is broken]."
        ),
    ] = 0.5,
    description: Annotated[
        str | None, typer.Option(metavar="FILE", help="Markdown for the card's first section [default: none].")
    ] = None,
    people: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="What is known of people in the images, for the card [default: that nothing is]."
        ),
    ] = None,
    card_copy: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Also put the card and its numbers there, as NAME-VERSION [default: no]."),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that copy and decode; 0 for one per core, at most 8 [default: 1].")
    ] = 1,
    gallery_images: Annotated[
        int,
        typer.Option(
            min=0, help="Photographs in the gallery at most; 0 for no gallery [default: 10000, pages stay fast]."
        ),
    ] = 10_000,
    json: Annotated[
        bool, typer.Option("--json", help="One JSON object on standard output [default: off, a text for people].")
    ] = False,
) -> int:
    """A published dataset: shards, index, card, Croissant, checksums, gallery; pushed on request."""
    from ..console import ProgressBar, print_json
    from ..dataset.open import open_dataset
    from ..errors import InputError
    from ..format.licenses import check_license, check_link
    from ..mining.options import licenses_of
    from ..release.build import build_release
    from ..release.commit import copy_card
    from ..release.dates import check_date
    from ..release.folder import open_output, standing_version
    from ..release.options import check_name, pairs_of, read_text, remove_kinds
    from ..release.records import ReleaseOptions
    from ..release.splits import parse_splits
    from ..release.takedown import read_exclusions
    from ..storage.versions import check_version_name

    if directory is None and not append and push is None:
        raise InputError("DIR: give the run to release; it can be left out only with --append or --push")
    if purge and not (append and exclude):
        raise InputError("--purge goes with --append and --exclude FILE: it deletes what older versions keep of them")
    if push_dry_run and push is None:
        raise InputError("--push-dry-run goes with --push TARGET")
    folder = open_output(output)
    manifest = None if push is None or overwrite else standing_version(folder, name, version)
    if manifest is None:
        if name is None or version is None or license is None or (directory is None and not append):
            raise InputError("a release needs DIR, --name, --version and --license")
        options = ReleaseOptions(
            name=check_name(name),
            version=check_version_name(version),
            license=check_license("--license", license),
            license_link=check_link(check_license("--license", license), license_link),
            date=None if date is None else check_date(date),
            source_licenses=licenses_of(source_license or (), flag="--source-license"),
            source_terms=pairs_of("--source-terms", source_terms or ()),
            proposals_license=(
                None if proposals_license is None else check_license("--proposals-license", proposals_license)
            ),
            splits={} if splits is None else parse_splits(splits),
            split_key=split_key,
            against=tuple(against or ()),
            duplicates=duplicates,
            remove=remove_kinds(remove or (), against=bool(against), duplicates=duplicates, splits=splits is not None),
            max_failed_fraction=max_failed_fraction,
            description=None if description is None else read_text("--description", description),
            people=people,
            workers=workers or min(8, os.cpu_count() or 1),
            gallery_images=gallery_images,
        )
        run = None if directory is None else open_dataset(directory)
        with ProgressBar("release", None if run is None else run.units_total, unit="shards") as progress:
            manifest = build_release(
                run,
                folder,
                options,
                append=append,
                overwrite=overwrite,
                exclusions=None if exclude is None else read_exclusions(exclude),
                purge=purge,
                on_piece=progress.update,
            )
    result: dict[str, Any] = {"output": output, **{field: manifest[field] for field in _RESULT}}
    result |= {"shards": len(manifest["shards"]), "duplicates": manifest["duplicates"]["counts"]}
    result |= {"changes": manifest["versions"][-1]["changes"], "push": None}
    if card_copy is not None:
        copy_card(folder, manifest, card_copy)
    if push is not None:
        result["push"] = _push(folder, push, dry_run=push_dry_run)
    if json:
        print_json(result)
    else:
        print(
            f"{output}: {result['name']} {result['version']}, {result['samples']:,} images, {result['masks']:,} masks "
            f"in {result['shards']:,} shards, digest {result['digest'][:16]}"
        )
        if result["push"] is not None:
            print(_push_text(result["push"]))
    return 0


_RESULT = ("name", "version", "date", "license", "samples", "masks", "failures", "digest")


def _push(folder: Any, target: str, *, dry_run: bool) -> dict[str, Any]:
    """Checks the release by its sums, then sends it."""
    import dataclasses

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
    return {**dataclasses.asdict(report), "dry_run": dry_run}


def _push_text(report: dict[str, Any]) -> str:
    if report["dry_run"]:
        return "\n".join([f"would push to {report['target']}:", *(f"  {call}" for call in report["calls"])])
    return (
        f"{report['target']}: {len(report['sent']):,} files sent ({report['sent_bytes'] / 2**20:,.1f} MiB), "
        f"{report['standing']:,} were there, {len(report['removed']):,} deleted"
    )
