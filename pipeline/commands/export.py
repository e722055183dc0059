"""`grainmill export DIR --to coco | sa1b --output OUT`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Output directory (or URL) of a run.")],
    to: Annotated[
        str,
        typer.Option(
            help="coco: images/ and annotations/instances.json. sa1b: sa_N.jpg (or other) and sa_N.json, N from 1."
        ),
    ],
    output: Annotated[Path, typer.Option(help="New or empty directory; it appears when everything is written.")],
    images: Annotated[
        bool, typer.Option(help="Copy the image bytes, unchanged [default: yes, so that the export stands alone].")
    ] = True,
    json: Annotated[
        bool, typer.Option("--json", help="One JSON object on standard output [default: off, a text for people].")
    ] = False,
) -> None:
    """Whole files in the layout of COCO or SA-1B readers; granularity and tree as extra fields.

    Masks are upright; readers must apply the EXIF orientation of images where it is not 1 (it stands in each record).
    """
    from ..committed import CommittedRun
    from ..console import ProgressBar, print_json
    from ..errors import InputError
    from ..export import LAYOUTS, export_run

    layout = next((each for each in LAYOUTS if each == to), None)
    if layout is None:
        raise InputError(f"--to {to!r}: expected one of {', '.join(LAYOUTS)}")
    run = CommittedRun.open(directory)
    with ProgressBar("export", run.totals()["samples"]) as progress:
        counts = export_run(run, output, layout=layout, images=images, on_sample=progress.update)
    if json:
        print_json({"output": str(output), "layout": layout, **counts})
    else:
        print(f"{output}: {counts['samples']:,} samples, {counts['masks']:,} masks, {counts['images']:,} images")
