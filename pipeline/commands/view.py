"""`grainmill view DIR --output report.html`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from .flags import JsonFlag, RunArgument


@dataclass(frozen=True, kw_only=True)
class ViewFlags:
    """What `grainmill view` is asked for."""

    directory: RunArgument
    output: Annotated[Path, typer.Option(help="The page, one file. An older page there is replaced.")]
    limit: Annotated[
        int,
        typer.Option(
            min=0, help="Images shown [default: 48: some 6 MB, opens at once]; the page says what it left out."
        ),
    ] = 48
    seed: Annotated[int, typer.Option(help="Chooses them from a larger run [default: 0, so that two calls agree].")] = 0
    side: Annotated[
        int,
        typer.Option(
            min=32,
            help="Longer side of an image in the page, pixels [default: 640: parts stay visible, the page small].",
        ),
    ] = 640
    failures: Annotated[
        int, typer.Option(min=0, help="Rows of failed samples shown [default: 500, what one still scrolls through].")
    ] = 500
    title: Annotated[
        str | None, typer.Option(help="Shown at the top [default: the directory's name].", show_default=False)
    ] = None
    picture: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[CAPTION=]PNG",
            help="Also show this picture, for instance a contact sheet that `train` wrote. Repeat it for several "
            "[default: none].",
            show_default=False,
        ),
    ] = None
    scores: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Also show this scores.json of `score`. Repeat it for several [default: none].",
            show_default=False,
        ),
    ] = None
    json: JsonFlag = False


def run(flags: ViewFlags) -> None:
    """One HTML page without outside references: images, masks, a granularity dial, the part tree, failures."""
    from ..console import ProgressBar, print_json
    from ..dataset.open import open_dataset
    from ..dataset.viewer import picture_record, report_of_run, write_report
    from ..errors import InputError
    from ..format.schema import load_json

    pictures = []
    for each in flags.picture or ():
        caption, equals, path = each.rpartition("=")
        pictures.append(picture_record(Path(path), caption if equals else Path(path).stem))
    scored = []
    for file in flags.scores or ():
        try:
            scored.append(load_json(file.read_bytes(), where=str(file)))
        except OSError as error:
            raise InputError(f"--scores {file}: cannot be read ({error.strerror})") from error
    dataset = open_dataset(flags.directory)
    with ProgressBar("view", None) as progress:
        data = report_of_run(
            dataset,
            limit=flags.limit,
            seed=flags.seed,
            side_px=flags.side,
            max_failures=flags.failures,
            title=flags.title,
            pictures=pictures,
            scores=scored,
            on_image=progress.update,
        )
    size = write_report(data, flags.output)
    shown, samples = len(data["images"]), data["statistics"]["samples"]
    if flags.json:
        print_json(
            {"output": str(flags.output), "size": size, "shown": shown, "samples": samples, "left_out": samples - shown}
        )
    else:
        empty = "" if samples else f"; no sample is mined, {data['statistics']['failures']:,} failed"
        print(f"{flags.output}: {shown:,} of {samples:,} images, {size / 1e6:.1f} MB{empty}")
