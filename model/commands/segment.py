"""`grainmill segment`: a click and a granularity in, masks out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

if TYPE_CHECKING:
    from model.output_files import OutputFiles
    from model.prompt_flags import ObjectFlags

POINTING = "What is segmented"
OUTPUT = "What comes out"
VIDEO_SUFFIXES: Final = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".gif")


def command(
    image: Annotated[
        str,
        typer.Argument(
            metavar="IMAGE",
            help="JPEG, PNG, WebP, TIFF or BMP; or a video: a folder of such frames, or a file that OpenCV reads.",
        ),
    ],
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="CKPT",
            help="Of `grainmill train`: a file, or a run's directory, whose newest checkpoint it is. Default: none, "
            "the masks that `grainmill mine` finds in this image answer; of images only.",
        ),
    ] = None,
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
            metavar="[N:]X,Y",
            help="A pixel inside what is meant, x to the right and y down from 0,0; may be repeated. In a video N: "
            "says of which object, 1 if it is left out. Default: none.",
            rich_help_panel=POINTING,
        ),
    ] = None,
    not_point: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[N:]X,Y",
            help="A pixel outside of it; may be repeated. Default: none.",
            rich_help_panel=POINTING,
        ),
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[N:]X0,Y0,X1,Y1",
            help="A box around it, alone or with points; in a video one for each object. Default: none.",
            rich_help_panel=POINTING,
        ),
    ] = None,
    granularity: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[N:]G",
            help="How large a part is meant, 0.1 the finest to 1.0 the whole; several, repeated or with commas, are "
            "answered at once; `none` is SAM-2's own answer. Default: 1.0, the whole under the click; 0.1, 0.2 … 1.0 "
            "for --everything, the union that the paper scores. In a video N:G is object N's own.",
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
            help="Masks that the model thinks less of are left out of --everything. Default: 0.8, SAM-2's; 0.25 "
            "for micro, which is less sure of itself.",
            rich_help_panel=POINTING,
        ),
    ] = None,
    min_stability: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Likewise, by how little the mask changes under another threshold. Default: 0.95, SAM-2's; 0.6 for "
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
    frame: Annotated[
        int,
        typer.Option(
            min=0,
            help="Of a video, that the points and boxes speak of. Default 0, the first.",
            rich_help_panel=POINTING,
        ),
    ] = 0,
    refine: Annotated[
        int,
        typer.Option(
            min=0,
            help="Further passes that start from the mask before, of points and boxes in an image. Default 0: one "
            "pass, as the dial is trained.",
            rich_help_panel=POINTING,
        ),
    ] = 0,
    output: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Where NAME.masks.png and NAME.masks.json go, NAME being the input's; of a video, the folder "
            "NAME.masks with one picture a frame. They appear when all is done, and replace older ones. Default: the "
            "current directory.",
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

    grainmill segment cat.jpg --point 210,140 --granularity 0.1,0.5,1.0 [--checkpoint RUN]
    """
    from model.prompt_flags import FIRST_OBJECT, ObjectFlags, Prompt, objects_of_flags
    from pipeline.console import print_json
    from pipeline.errors import InputError

    objects = objects_of_flags(point, not_point, box, granularity)
    pointed = any(each.prompt.given for each in objects.values())
    if everything and pointed:
        raise InputError("--everything clicks by itself: leave --point, --not-point and --box out")
    given = {
        "points_per_side": points_per_side,
        "min_predicted_iou": min_predicted_iou,
        "min_stability": min_stability,
        "max_masks": max_masks,
    }
    search = {name: value for name, value in given.items() if value is not None}
    if search and not everything:
        raise InputError(f"--{next(iter(search)).replace('_', '-')} is for --everything")
    if everything and refine:
        raise InputError("--refine starts from the mask of a prompt; leave it out with --everything")
    if checkpoint is None:
        of_search = granularity if everything else None
        _check_without_model(image, search, base, device, of_search, everything=everything)
    model = _Model(checkpoint, base, device)
    if _is_video(image):
        if everything or refine:
            raise InputError(
                f"{image}: a video is segmented by --point, --not-point and --box, without --everything and --refine"
            )
        content, lines = _track(image, model, objects, frame, output)
    else:
        if set(objects) - {FIRST_OBJECT} or frame:
            raise InputError(f"{image}: objects (N:) and --frame are for videos; this is one image")
        wanted = objects.get(FIRST_OBJECT) or ObjectFlags(prompt=Prompt(), granularities=())
        if everything:
            content, lines = _find_everything(image, model, wanted.granularities, search, output)
        else:
            content, lines = _click(image, model, wanted, refine, output)
    if json_output:
        print_json(content)
    else:
        print("\n".join(lines))


Answer = tuple[dict[str, Any], list[str]]
"""The JSON file's content, and lines for people."""


@dataclass(frozen=True)
class _Model:
    """Which weights, and where they run."""

    checkpoint: str | None
    """None: no weights, the image's own tree of masks answers."""
    base: str | None
    device: str | None

    @property
    def where(self) -> Any:
        from model.loading import usable_device

        return usable_device(self.device)


def _check_without_model(
    image: str,
    search: dict[str, Any],
    base: str | None,
    device: str | None,
    granularity: list[str] | None,
    *,
    everything: bool,
) -> None:
    """Flags that only a model has.

    Raises:
        InputError: one is given, or a video.
    """
    from pipeline.errors import InputError

    if _is_video(image):
        raise InputError(
            f"{image}: a video needs --checkpoint: without a model each frame is mined by itself, and nothing says "
            "which of its masks are the same thing; give single frames, or a checkpoint of `grainmill train`"
        )
    given = {"base": base, "device": device, **search, "granularity": granularity}
    for name, value in given.items():
        if value is not None:
            what = "--everything gives all masks that `grainmill mine` finds" if everything else "there is none"
            raise InputError(f"--{name.replace('_', '-')} is for a model; without --checkpoint {what}")


def _image_predictor(model: _Model) -> Any:
    """Of the checkpoint, or the one that needs none."""
    if model.checkpoint is None:
        from model.tree_predictor import TreePredictor

        return TreePredictor()
    from model.predictor import GranularPredictor

    return GranularPredictor.load(model.checkpoint, model.where, base=model.base)


def _is_video(path: str) -> bool:
    """A folder, or a file that is called like a video."""
    return Path(path).is_dir() or Path(path).suffix.lower() in VIDEO_SUFFIXES


def _click(image: str, model: _Model, wanted: ObjectFlags, refine: int, output: Path) -> Answer:
    from model.image_files import read_rgb
    from model.output_files import OutputFiles
    from model.segment import CLICK_GRANULARITY, click_masks, click_picture

    rgb = read_rgb(image)
    height, width = rgb.shape[:2]
    wanted.prompt.check(width=width, height=height, where=image)
    predictor = _image_predictor(model)
    with OutputFiles(output) as files:
        predictor.set_image(rgb)
        found = click_masks(predictor, wanted.prompt, wanted.granularities or [CLICK_GRANULARITY], refine=refine)
        picture = click_picture(rgb, wanted.prompt, found)
        content, written = _write(
            image, rgb, found, picture, files, prompt=wanted.prompt.to_json(), checkpoint=model.checkpoint
        )
    lines = []
    for each in content["annotations"]:
        own = "surest" if model.checkpoint is None else "SAM-2"
        g = own if each["granularity"] is None else f"g {each['granularity']:g}"
        lines.append(f"{g}: {each['area']:,} of {width * height:,} pixels, predicted IoU {each['score']:.2f}")
    return content, [*lines, written]


def _find_everything(
    image: str, model: _Model, granularities: tuple[float | None, ...], search: dict[str, Any], output: Path
) -> Answer:
    from model.automatic import default_config, settings
    from model.image_files import read_rgb
    from model.output_files import OutputFiles
    from model.segment import everything_picture, find_with_progress

    rgb = read_rgb(image)
    predictor = _image_predictor(model)
    if model.checkpoint is None:
        predictor.set_image(rgb)
        found = predictor.everything()
        with OutputFiles(output) as files:
            content, written = _write(image, rgb, found, everything_picture(rgb, found), files, checkpoint=None)
        roots = sum(each.parent_id is None for each in found)
        return content, [f"{len(found)} masks, {roots} of them instances", written]
    config = dataclasses.replace(default_config(predictor.model.size), **search)
    if granularities:
        config = dataclasses.replace(config, granularities=granularities)
    about = {"everything": settings(config), "checkpoint": model.checkpoint}
    with OutputFiles(output) as files:
        found = find_with_progress(predictor, rgb, config)
        content, written = _write(image, rgb, found, everything_picture(rgb, found), files, **about)
    roots = sum(each.parent_id is None for each in found)
    line = f"{len(found)} masks, {roots} of them inside no other"
    if not found:
        line = (
            f"no mask that the model is sure of; a lower --min-predicted-iou (it was {config.min_predicted_iou:g}) or "
            f"--min-stability ({config.min_stability:g}) lets more pass"
        )
    return content, [line, written]


def _write(
    image: str, rgb: Any, found: Any, picture: Any, files: OutputFiles, **about: Any
) -> tuple[dict[str, Any], str]:
    from model.mask_records import json_bytes, mask_file
    from model.pictures import png_bytes

    name = f"{Path(image).stem}.masks"
    content = mask_file(found, image=Path(image).name, width=rgb.shape[1], height=rgb.shape[0], **about)
    files.write(f"{name}.png", png_bytes(picture))
    files.write(f"{name}.json", json_bytes(content))
    return content, f"{files.folder / name}.png, {files.folder / name}.json"


def _track(video: str, model: _Model, objects: dict[int, ObjectFlags], frame: int, output: Path) -> Answer:
    from model.mask_records import json_bytes
    from model.output_files import OutputFiles
    from model.segment import CLICK_GRANULARITY
    from model.segment_video import VideoObject, check_objects, track_objects
    from model.video import Frames, GranularVideoPredictor
    from pipeline.console import note
    from pipeline.errors import InputError

    wanted = {}
    for number, each in objects.items():
        if len(each.granularities) > 1:
            raise InputError(f"--granularity: expected one for object {number} of a video, found {each.granularities}")
        dial = each.granularities[0] if each.granularities else CLICK_GRANULARITY
        wanted[number] = VideoObject(prompt=each.prompt, granularity=dial)
    frames = Frames(video)
    check_objects(frames, wanted, frame=frame)
    assert model.checkpoint is not None
    predictor = GranularVideoPredictor.load(model.checkpoint, model.where, base=model.base)
    if predictor.model.adapter == "full":
        note("a model from scratch has learned still images only: its memory of earlier frames is untrained")
    name = f"{_video_name(video)}.masks"
    with OutputFiles(output) as files:
        content = track_objects(predictor, frames, wanted, frame=frame, files=files, folder=name)
        content["checkpoint"] = model.checkpoint
        files.write(f"{name}.json", json_bytes(content))
    _forget_later_frames(output / name, len(frames))
    lines = []
    for number in wanted:
        areas = [each["area"] for each in content["annotations"] if each["object_id"] == number]
        lines.append(f"object {number}: on {len(areas)} of {len(frames)} frames")
    return content, [*lines, f"{output / name}/, {output / name}.json"]


def _video_name(path: str) -> str:
    """A file's name without its ending, a folder's whole name."""
    return Path(path).resolve().name if Path(path).is_dir() else Path(path).stem


def _forget_later_frames(folder: Path, count: int) -> None:
    """Removes pictures of an earlier, longer video of the same name."""
    for each in folder.glob("?????.png"):
        if each.stem.isdecimal() and int(each.stem) >= count:
            each.unlink()
