"""`grainmill join REL --images [LABEL=]SRC --output WITH`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from ..release.flags import ReleaseFlags
from .flags import JsonFlag

PATTERN_FLAG = "--images"


@dataclass(frozen=True, kw_only=True)
class JoinFlags:
    """What `grainmill join` is asked for."""

    release: Annotated[str, typer.Argument(metavar="REL", help="A release of masks and references; a folder or URL.")]
    images: Annotated[
        list[str],
        typer.Option(metavar="[LABEL=]SRC", help="Where the images lie now, as `mine --input` takes them. Repeatable."),
    ]
    output: Annotated[str, typer.Option(help="New or empty folder for the release with images.")]
    allow_missing: Annotated[
        bool,
        typer.Option(
            "--allow-missing",
            help="Leave samples out whose image is missing or has other bytes; each becomes a failure [default: off].",
        ),
    ] = False
    gallery_images: Annotated[
        int, typer.Option(min=0, help="Images in the gallery at most [default: 10000, as `release`].")
    ] = ReleaseFlags.gallery_images
    json: JsonFlag = False


def run(flags: JoinFlags) -> None:
    """A release of masks and references and its images, whole again. Every image is checked by its sha256."""
    from ..console import ProgressBar, print_json
    from ..dataset.open import open_dataset
    from ..dataset.release import ReleaseReader
    from ..errors import InputError
    from ..release.folder import open_empty_output
    from ..release.join import ImageFinder, join_images

    opened = open_dataset(flags.release)
    if not isinstance(opened, ReleaseReader):
        raise InputError(f"{flags.release}: expected a release, found a run; `grainmill release` makes one")
    folder = open_empty_output(flags.output)
    with ProgressBar("hash", None) as progress:
        finder = ImageFinder.over(flags.images, on_image=progress.update)
    with ProgressBar("join", opened.totals()["samples"]) as progress:
        manifest = join_images(
            opened,
            finder,
            folder,
            allow_missing=flags.allow_missing,
            gallery_images=flags.gallery_images,
            on_sample=progress.update,
        )
    missing = manifest["failure_reasons"].get("source_missing", 0)
    if flags.json:
        print_json(
            {"output": flags.output, "samples": manifest["samples"], "missing": missing, "digest": manifest["digest"]}
        )
    else:
        print(f"{flags.output}: {manifest['samples']:,} images joined and checked, {missing:,} missing")
