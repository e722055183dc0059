"""`grainmill export DIR --to coco | sa1b --output OUT`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from .flags import JsonFlag, RunArgument


@dataclass(frozen=True, kw_only=True)
class ExportFlags:
    """What `grainmill export` is asked for."""

    directory: RunArgument
    to: Annotated[
        str,
        typer.Option(
            help="coco: images/ and annotations/instances.json. sa1b: sa_N.jpg (or other) and sa_N.json, N from 1."
        ),
    ]
    output: Annotated[Path, typer.Option(help="New or empty directory; it appears when everything is written.")]
    images: Annotated[
        bool, typer.Option(help="Copy the image bytes, unchanged [default: yes, so that the export stands alone].")
    ] = True
    upright: Annotated[
        bool,
        typer.Option(
            "--upright",
            help="For readers that know no EXIF: write images whose orientation is not 1 again, as PNG of the upright "
            "pixels, without loss [default: off, every image keeps its bytes].",
        ),
    ] = False
    polygons: Annotated[
        bool,
        typer.Option(
            "--polygons",
            help="coco: polygons along the borders of the pixels, a piece each, holes reached by a slit of no width; "
            "pycocotools fills them to the same pixels, readers that draw outlines show the slits. Files get several "
            "times larger [default: off, compressed run lengths].",
        ),
    ] = False
    uncompressed: Annotated[
        bool,
        typer.Option("--uncompressed", help="coco: run lengths as lists of numbers [default: off, compressed]."),
    ] = False
    json: JsonFlag = False


def run(flags: ExportFlags) -> None:
    """Whole files in the layout of COCO or SA-1B readers; granularity and tree as extra fields.

    Masks are upright; readers must apply the EXIF orientation of images where it is not 1 (it stands in each record),
    or take --upright. Ids begin with 1.
    """
    from ..console import ProgressBar, print_json
    from ..dataset.export import LAYOUTS, MaskForm, export_run
    from ..dataset.open import open_dataset
    from ..errors import InputError

    layout = next((each for each in LAYOUTS if each == flags.to), None)
    if layout is None:
        raise InputError(f"--to {flags.to!r}: expected one of {', '.join(LAYOUTS)}")
    if flags.polygons and flags.uncompressed:
        raise InputError("--polygons and --uncompressed: give one of them")
    masks: MaskForm = "polygons" if flags.polygons else "uncompressed" if flags.uncompressed else "rle"
    dataset = open_dataset(flags.directory)
    with ProgressBar("export", dataset.totals()["samples"]) as progress:
        counts = export_run(
            dataset,
            flags.output,
            layout=layout,
            images=flags.images,
            upright=flags.upright,
            masks=masks,
            on_sample=progress.update,
        )
    if flags.json:
        print_json({"output": str(flags.output), "layout": layout, **counts})
    else:
        turned = f", {counts['turned']:,} of them turned upright as PNG" if counts["turned"] else ""
        print(
            f"{flags.output}: {counts['samples']:,} samples, {counts['masks']:,} masks, "
            f"{counts['images']:,} images{turned}"
        )
