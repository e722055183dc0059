"""`grainmill segment`: a click and a granularity in, masks out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

POINTING = "What is segmented"
OUTPUT = "What comes out"


def command(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="JPEG, PNG, WebP, TIFF or BMP.")],
    checkpoint: Annotated[
        str,
        typer.Option(
            metavar="CKPT", help="Of `grainmill train`: a file, or a run's directory, whose newest checkpoint it is."
        ),
    ],
    base: Annotated[
        str | None,
        typer.Option(
            metavar="CKPT",
            help="SAM 2.1's weights under an adapter's checkpoint. Default: where they were when it was trained; a "
            "merged checkpoint and one from scratch need none.",
        ),
    ] = None,
    point: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X,Y",
            help="A pixel inside what is meant, x to the right and y down from 0,0; may be repeated. Default: none.",
            rich_help_panel=POINTING,
        ),
    ] = None,
    not_point: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X,Y",
            help="A pixel outside of it; may be repeated. Default: none.",
            rich_help_panel=POINTING,
        ),
    ] = None,
    box: Annotated[
        str | None,
        typer.Option(
            metavar="X0,Y0,X1,Y1",
            help="A box around it, alone or with points. Default: none.",
            rich_help_panel=POINTING,
        ),
    ] = None,
    granularity: Annotated[
        list[str] | None,
        typer.Option(
            metavar="G",
            help="How large a part is meant, 0.1 the finest to 1.0 the whole; several, repeated or with commas, are "
            "answered at once; `none` is SAM-2's own answer. Default: 1.0, the whole under the click; 0.1, 0.2 … 1.0 "
            "for --everything, the union that the paper scores.",
            rich_help_panel=POINTING,
        ),
    ] = None,
    everything: Annotated[
        bool,
        typer.Option(
            "--everything",
            help="All masks of the image, as a tree, found by a grid of clicks at each granularity. Default: off.",
            rich_help_panel=POINTING,
        ),
    ] = False,
    points_per_side: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of the grid of --everything. Default: 32, SAM-2's; 16 for micro, whose logits are coarse.",
            rich_help_panel=POINTING,
        ),
    ] = None,
    min_predicted_iou: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Masks that the model thinks less of are left out of --everything. Default: 0.8, SAM-2's; 0.5 for "
            "micro, which is less sure of itself.",
            rich_help_panel=POINTING,
        ),
    ] = None,
    min_stability: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Likewise, by how little the mask changes under another threshold. Default: 0.95, SAM-2's; 0.5 for "
            "micro.",
            rich_help_panel=POINTING,
        ),
    ] = None,
    max_masks: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="The best that --everything keeps. Default: 1000, what benchmarks take.",
            rich_help_panel=POINTING,
        ),
    ] = None,
    refine: Annotated[
        int,
        typer.Option(
            min=0,
            help="Further passes that start from the mask before. Default 0: one pass, as the dial is trained.",
            rich_help_panel=POINTING,
        ),
    ] = 0,
    output: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Where NAME.masks.png and NAME.masks.json go, NAME being the input's; older ones are replaced. "
            "Default: the current directory.",
            rich_help_panel=OUTPUT,
        ),
    ] = Path("."),
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N. Default: a GPU if there is one.", rich_help_panel=OUTPUT)
    ] = None,
    json_output: Annotated[
        bool,
        typer.Option(
            "--json",
            help="The JSON file's content on standard output too. Default: off, a line for people.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
) -> None:
    """Selects a part of an image as large as one number says.

    grainmill segment cat.jpg --checkpoint RUN --point 210,140 --granularity 0.1,0.5,1.0
    """
    from model.automatic import default_config, settings
    from model.mask_records import mask_file, write_json
    from model.pictures import write_png
    from model.predictor import GranularPredictor
    from model.segment import (
        CLICK_GRANULARITY,
        Prompt,
        click_masks,
        click_picture,
        everything_picture,
        find_with_progress,
        read_rgb,
    )
    from pipeline.console import print_json
    from pipeline.errors import InputError

    inside, outside = _points(point, "--point"), _points(not_point, "--not-point")
    prompt = Prompt(
        points=(*inside, *outside), labels=(1,) * len(inside) + (0,) * len(outside), box=_box(box) if box else None
    )
    wanted = _granularities(granularity)
    if everything and prompt.given:
        raise InputError("--everything clicks by itself: leave --point, --not-point and --box out")
    rgb = read_rgb(image)
    height, width = rgb.shape[:2]
    if not everything:
        prompt.check(width=width, height=height, where=image)
    predictor = GranularPredictor.load(checkpoint, device or _default_device(), base=base)
    about: dict[str, Any] = {"checkpoint": checkpoint}
    if everything:
        given: dict[str, Any] = {
            "granularities": tuple(wanted) or None,
            "points_per_side": points_per_side,
            "min_predicted_iou": min_predicted_iou,
            "min_stability": min_stability,
            "max_masks": max_masks,
        }
        config = dataclasses.replace(
            default_config(predictor.model.size), **{name: value for name, value in given.items() if value is not None}
        )
        found = find_with_progress(predictor, rgb, config)
        picture = everything_picture(rgb, found)
        about["everything"] = settings(config)
    else:
        predictor.set_image(rgb)
        found = click_masks(predictor, prompt, wanted or [CLICK_GRANULARITY], refine=refine)
        picture = click_picture(rgb, prompt, found)
        about["prompt"] = prompt.to_json()
    content = mask_file(found, image=Path(image).name, width=width, height=height, **about)
    stem = output / f"{Path(image).stem}.masks"
    write_png(stem.with_name(f"{stem.name}.png"), picture)
    write_json(stem.with_name(f"{stem.name}.json"), content)
    if json_output:
        print_json(content)
        return
    if everything:
        roots = sum(each.parent_id is None for each in found)
        print(f"{len(found)} masks, {roots} of them inside no other")
    else:
        for each in content["annotations"]:
            g = "SAM-2" if each["granularity"] is None else f"g {each['granularity']:g}"
            print(f"{g}: {each['area']:,} of {width * height:,} pixels, predicted IoU {each['score']:.2f}")
    print(f"{stem}.png, {stem}.json")


def _numbers(text: str, count: int, flag: str, form: str) -> tuple[float, ...]:
    from pipeline.errors import InputError

    try:
        values = tuple(float(each) for each in text.split(","))
    except ValueError as error:
        raise InputError(f"{flag} {text}: expected {form}") from error
    if len(values) != count or any(value != value for value in values):
        raise InputError(f"{flag} {text}: expected {form}, {count} numbers")
    return values


def _points(texts: list[str] | None, flag: str) -> tuple[tuple[float, float], ...]:
    pairs = (_numbers(text, 2, flag, "X,Y in pixels") for text in texts or [])
    return tuple((x, y) for x, y in pairs)


def _box(text: str) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = _numbers(text, 4, "--box", "X0,Y0,X1,Y1 in pixels")
    return x0, y0, x1, y1


def _granularities(texts: list[str] | None) -> list[float | None]:
    """In the order given; `none` is None."""
    from pipeline.errors import InputError
    from pipeline.schema import GRANULARITY_MAX, GRANULARITY_MIN

    values: list[float | None] = []
    for text in ",".join(texts or []).split(",") if texts else []:
        if text.strip().lower() == "none":
            values.append(None)
            continue
        try:
            value = float(text)
        except ValueError as error:
            raise InputError(f"--granularity {text}: expected a number or `none`") from error
        if not GRANULARITY_MIN <= value <= GRANULARITY_MAX:
            raise InputError(
                f"--granularity {text}: expected a number in [{GRANULARITY_MIN}, {GRANULARITY_MAX}], 0.1 the finest "
                "part and 1.0 the whole, or `none` for SAM-2's own answer"
            )
        values.append(value)
    return values


def _default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
