"""What a release is asked for: the flags of `grainmill release`, each with its help and its default.

Light to import; `options.py` checks and resolves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer


@dataclass(frozen=True, kw_only=True)
class ReleaseFlags:
    """What is released, under which name and terms, what stays out, and where it is sent."""

    directory: Annotated[
        str | None,
        typer.Argument(
            metavar="[DIR]",
            help="A run, complete. Left out with --append for a version that only takes out, and to push what stands.",
            show_default=False,
        ),
    ] = None
    output: Annotated[str, typer.Option(help="The release's folder: new, empty, or with --append one that stands.")]
    name: Annotated[
        str | None,
        typer.Option(
            help="Of the dataset: letters, digits, - _ . and one / as the Hub has them. Needed, but to push again.",
            show_default=False,
        ),
    ] = None
    version: Annotated[
        str | None,
        typer.Option(
            help="Of this release, as in 1.0.0; with --append later than all that stand. Needed, but to push again.",
            show_default=False,
        ),
    ] = None
    license: Annotated[
        str | None,
        typer.Option(
            help="Of the whole, as an SPDX identifier, LicenseRef-NAME or `other`; refused if it cannot cover its "
            "sources. Needed, but to push again.",
            show_default=False,
        ),
    ] = None
    license_link: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Where the terms stand, for `other` or LicenseRef-NAME [default: nowhere].",
            show_default=False,
        ),
    ] = None
    date: Annotated[
        str | None,
        typer.Option(
            metavar="YYYY-MM-DD",
            help="Stands in card and Croissant [default: the day of the newest commit, so that releases are equal].",
        ),
    ] = None
    source_license: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL=LICENSE", help="Of a source that declared none when it was mined. Repeat it for several."
        ),
    ] = None
    source_terms: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL=TEXT", help="Address or words of a source's terms, beside each sample. Repeatable."
        ),
    ] = None
    proposals_license: Annotated[
        str | None, typer.Option(metavar="LICENSE", help="Of the --proposals file [default: as the file declares it].")
    ] = None
    splits: Annotated[
        str | None,
        typer.Option(
            metavar="NAME=SHARE,...", help="As in train=0.9,val=0.1, by a hash of each source [default: none]."
        ),
    ] = None
    split_key: Annotated[
        str,
        typer.Option(help="Keys that hash [default: grainmill; another key gives other splits].", show_default=False),
    ] = "grainmill"
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="[LABEL=]SRC", help="An evaluation set to compare images with. Repeat it for several."),
    ] = None
    duplicates: Annotated[
        bool, typer.Option(help="Look for equal and near-equal images [default: yes; decodes every image once].")
    ] = True
    remove: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND",
            help="Leave out images that are `exact` or `near` copies of an earlier one, or in an `evaluation` set. "
            "Repeatable [default: report only, shards stay as they were mined].",
        ),
    ] = None
    exclude: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Take samples down: one key, sha256 or source uri a line [default: none]."),
    ] = None
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Of the samples of DIR only those that this list names go in: one key, sha256 or source uri a line, "
            "as `grainmill annotate` writes it; what stands in the release already stays [default: all].",
        ),
    ] = None
    mask_verdicts: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="What people decided about single masks, as `grainmill annotate` writes it (mask_verdicts.jsonl): "
            "dropped ones go, their parts stay; merged, split and edited ones are replaced [default: none].",
        ),
    ] = None
    kept_masks_only: Annotated[
        bool,
        typer.Option(
            "--kept-masks-only",
            help="With --mask-verdicts: of the images that FILE names, masks that nobody judged go too [default: off, "
            "they stay].",
        ),
    ] = False
    append: Annotated[
        bool, typer.Option("--append", help="--output is a release: add to it as a new version [default: off].")
    ] = False
    purge: Annotated[
        bool,
        typer.Option(
            "--purge",
            help="With --exclude: also delete what older versions keep of the samples taken down; they are then "
            "withdrawn [default: off, old versions stay readable].",
        ),
    ] = False
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Make a release that stands (its only version) again [default: off].")
    ] = False
    push: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET",
            help="Then send it to a folder, s3://BUCKET/PREFIX (or another store), hf://OWNER/NAME; the same command "
            "resumes. Credentials come from the environment [default: stay here].",
        ),
    ] = None
    push_dry_run: Annotated[
        bool, typer.Option("--push-dry-run", help="Tell every call of the push and make none [default: off].")
    ] = False
    max_failed_fraction: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, help="A run of which a larger share failed is refused [default: 0.5, it is broken]."
        ),
    ] = 0.5
    description: Annotated[
        str | None, typer.Option(metavar="FILE", help="Markdown for the card's first section [default: none].")
    ] = None
    people: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="What is known of people in the images, for the card [default: that nothing is]."
        ),
    ] = None
    card_copy: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Also put the card and its numbers there, as NAME-VERSION [default: no]."),
    ] = None
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that copy and decode; 0 for one per core, at most 8 [default: 1].")
    ] = 1
    gallery_images: Annotated[
        int,
        typer.Option(min=0, help="Images in the gallery at most; 0 for no gallery [default: 10000, pages stay fast]."),
    ] = 10_000
