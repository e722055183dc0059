"""`grainmill segment`: clicks and a granularity in, masks out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

if TYPE_CHECKING:
    from model.predict.prompt_flags import ObjectFlags

POINTING = "What is segmented"
OUTPUT = "What comes out"
SEARCH = {
    "points_per_side": "points_per_side",
    "min_predicted_iou": "pred_iou_thresh",
    "min_stability": "stability_score_thresh",
    "max_masks": "max_masks",
}
"""Flags of --everything -> their names in `AutomaticConfig`."""


@dataclass(frozen=True, kw_only=True)
class SegmentFlags:
    """What is segmented, with which weights, and where the masks go."""

    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE",
            help="JPEG, PNG, WebP, TIFF, BMP or GIF, one or several; a folder of them; or one video: a folder of "
            "frames, a GIF or WebP of several frames, or a file that OpenCV reads.",
        ),
    ]
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="CKPT",
            help="Of `grainmill train`: a file, or a run's directory, whose newest checkpoint it is. Or SAM 2.1's own "
            "weights, which know no granularity; `kept` is the student that `benchmarks.keep_student` made. Default: "
            "none, the masks that `mine --wholes stable` finds in an image answer; of images only.",
        ),
    ] = None
    base: Annotated[
        str | None,
        typer.Option(
            metavar="CKPT",
            help="SAM 2.1's weights under an adapter's checkpoint. Default: where they were when it was trained; all "
            "other checkpoints need none.",
        ),
    ] = None
    taken: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="images|video",
            help="What a folder is, and a GIF or WebP of several frames. Default: images with --everything (of a GIF "
            "the first frame), which videos do not have; a video with points and boxes. What was chosen is said.",
        ),
    ] = None
    point: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[N:]X,Y",
            help="A pixel inside what is meant, x to the right and y down from 0,0; may be repeated. In a video N: "
            "says of which object, 1 if it is left out. Default: none.",
            rich_help_panel=POINTING,
        ),
    ] = None
    not_point: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[N:]X,Y",
            help="A pixel outside of it; may be repeated. Default: none.",
            rich_help_panel=POINTING,
        ),
    ] = None
    box: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[N:]X0,Y0,X1,Y1",
            help="A box around it, alone or with points; in a video one for each object. Default: none.",
            rich_help_panel=POINTING,
        ),
    ] = None
    granularity: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[N:]G",
            help="How large a part is meant, 0.1 the finest to 1.0 the whole; several, repeated or with commas, are "
            "answered at once; `none` is SAM-2's own answer. Default: 1.0, the whole under the click; 0.1, 0.2 … 1.0 "
            "for --everything, the union that the paper scores; `none` with SAM 2.1's own weights. In a video N:G is "
            "object N's own.",
            rich_help_panel=POINTING,
        ),
    ] = None
    everything: Annotated[
        bool,
        typer.Option(
            "--everything",
            help="All masks of the image, as a tree, found by a grid of clicks at each granularity. Default: off.",
            rich_help_panel=POINTING,
        ),
    ] = False
    points_per_side: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of the grid of --everything. Default: 32, SAM-2's; 16 for micro, whose logits are coarse.",
            rich_help_panel=POINTING,
        ),
    ] = None
    min_predicted_iou: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Masks that the model thinks less of are left out of --everything. Default: 0.8, SAM-2's; 0.25 "
            "for micro, which is less sure of itself.",
            rich_help_panel=POINTING,
        ),
    ] = None
    min_stability: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Likewise, by how little the mask changes under another threshold. Default: 0.95, SAM-2's; 0.6 for "
            "micro.",
            rich_help_panel=POINTING,
        ),
    ] = None
    max_masks: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="The best that --everything keeps. Default: 1000, what benchmarks take.",
            rich_help_panel=POINTING,
        ),
    ] = None
    frame: Annotated[
        int,
        typer.Option(
            min=0,
            help="Of a video, that the points and boxes speak of. Default 0, the first.",
            rich_help_panel=POINTING,
        ),
    ] = 0
    refine: Annotated[
        int,
        typer.Option(
            min=0,
            help="Further passes that start from the mask before, of points and boxes in an image. Default 0: one "
            "pass, as the dial is trained.",
            rich_help_panel=POINTING,
        ),
    ] = 0
    output: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Where NAME.masks.png and NAME.masks.json go, NAME being the input's without its ending (or with it, "
            "where two inputs differ in nothing else); of a video, the folder NAME.masks with one picture a frame. "
            "They appear when all of an input is done, and replace older ones of the same input. Default: the "
            "current directory.",
            rich_help_panel=OUTPUT,
        ),
    ] = Path(".")
    masks: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ids|each",
            help="Masks as PNG files too; may be repeated. `ids`: NAME.masks.ids.png, at each pixel the annotation's "
            "id (the smallest mask's where several overlap, 0 for none), 16 bits if there are more than 255. `each`: "
            "NAME.masks.each/00001.png, one a mask, 255 inside. Of a video one a frame, by the object's number, in "
            "NAME.masks.ids/ and NAME.masks.each/N/. Default: none, the JSON has them.",
            rich_help_panel=OUTPUT,
        ),
    ] = None
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Replace outputs of another input that has the same NAME. Default: off, they are an error.",
            rich_help_panel=OUTPUT,
        ),
    ] = False
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N. Default: a GPU if there is one.", rich_help_panel=OUTPUT)
    ] = None
    json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="The JSON file's content on standard output too, one line an image. Default: off, words for people.",
            rich_help_panel=OUTPUT,
        ),
    ] = False


def run(flags: SegmentFlags) -> None:
    """Selects parts of images as large as one number says.

    grainmill segment cat.jpg --point 210,140 --granularity 0.1,0.5,1.0 [--checkpoint RUN]

    grainmill segment photos/ --checkpoint RUN --everything --masks ids --output masks/
    """
    from model.predict.prompt_flags import FIRST_OBJECT, ObjectFlags, Prompt, objects_of_flags
    from model.predict.segment_inputs import Taken, read_inputs
    from pipeline.console import note, print_json
    from pipeline.errors import InputError

    if flags.taken not in (None, *get_args(Taken)):
        raise InputError(f"--as {flags.taken}: expected images or video")
    for each in flags.masks or []:
        if each not in ("ids", "each"):
            raise InputError(f"--masks {each}: expected ids or each")
    objects = objects_of_flags(flags.point, flags.not_point, flags.box, flags.granularity)
    pointed = any(each.prompt.given for each in objects.values())
    if flags.everything and pointed:
        raise InputError("--everything clicks by itself: leave --point, --not-point and --box out")
    search = {name: value for name in SEARCH if (value := getattr(flags, name)) is not None}
    if search and not flags.everything:
        raise InputError(f"--{next(iter(search)).replace('_', '-')} is for --everything")
    if flags.everything and flags.refine:
        raise InputError("--refine starts from the mask of a prompt; leave it out with --everything")
    inputs = read_inputs(flags.images, taken=cast(Taken | None, flags.taken), everything=flags.everything)
    if flags.checkpoint is None:
        _check_without_model(flags, inputs.video, search)
    failed: list[str] = []
    if inputs.video is not None:
        if flags.everything or flags.refine:
            raise InputError(
                f"{inputs.video}: a video is segmented by --point, --not-point and --box, without --everything and "
                "--refine; --as images takes a folder as images"
            )
        answers = [_track(inputs.video, flags, objects)]
    else:
        if set(objects) - {FIRST_OBJECT} or flags.frame:
            what = "this is one image" if len(inputs.images) == 1 else "these are images"
            raise InputError(f"{inputs.images[0]}: objects (N:) and --frame are for videos; {what}")
        wanted = objects.get(FIRST_OBJECT) or ObjectFlags(prompt=Prompt(), granularities=())
        for each in inputs.told:
            note(each)
        answers, failed = _segment(inputs.images, flags, wanted, search if flags.everything else None)
    for content, lines in answers:
        if flags.json:
            print_json(content)
        else:
            print("\n".join(lines))
    if failed:
        raise InputError(f"{len(failed)} of {len(inputs.images)} images could not be read; the others are done")


Answer = tuple[dict[str, Any], list[str]]
"""The JSON file's content, if it is kept, and lines for people."""


def _check_without_model(flags: SegmentFlags, video: Path | None, search: dict[str, Any]) -> None:
    """Flags that only a model has.

    Raises:
        InputError: one is given, or a video.
    """
    from pipeline.errors import InputError

    if video is not None:
        raise InputError(
            f"{video}: a video needs --checkpoint: without a model each frame is mined by itself, and nothing says "
            "which of its masks are the same thing; --as images takes a folder as images"
        )
    for name, value in {"base": flags.base, "device": flags.device, **search}.items():
        if value is not None:
            raise InputError(f"--{name.replace('_', '-')} is for a model; without --checkpoint there is none")
    if flags.everything and flags.granularity is not None:
        raise InputError(
            "--granularity with --everything is for a model; without --checkpoint all masks that `grainmill mine` "
            "finds are given, each with its own"
        )


def _segment(
    paths: Sequence[Path], flags: SegmentFlags, wanted: ObjectFlags, search: dict[str, Any] | None
) -> tuple[list[Answer], list[str]]:
    """Answers of the images that can be read, and what is wrong with the others.

    Args:
        paths: of images.
        flags: of the command line.
        wanted: points, a box, granularities.
        search: of --everything, what differs from its defaults; None: `wanted` says what.
    """
    from model.network.load import usable_device
    from model.predict.image import GranularPredictor
    from model.predict.image_files import read_rgb
    from model.predict.mask_generator import AutomaticConfig, default_config, generate_masks
    from model.predict.output_files import OutputFiles
    from model.predict.segment_image import CLICK_GRANULARITY, click_masks, click_picture, everything_picture
    from model.predict.segment_inputs import checkpoint_name, output_names, source_of
    from pipeline.console import ProgressBar, note
    from pipeline.errors import InputError

    names = output_names(paths)
    _check_images(paths, names, flags, None if search is not None else wanted)
    tree, config = None, AutomaticConfig()
    predictor: Any
    if flags.checkpoint is None:
        from model.predict.tree import TreePredictor

        predictor = tree = TreePredictor()
        dial = wanted.granularities or (CLICK_GRANULARITY,)
    else:
        predictor = GranularPredictor.load(flags.checkpoint, usable_device(flags.device), base=flags.base)
        dial = _granularities(
            wanted, flags.checkpoint, has_dial=predictor.model.has_dial, everything=search is not None
        )
        config = dataclasses.replace(
            default_config(predictor.model.size), **{SEARCH[name]: value for name, value in (search or {}).items()}
        )
        if dial and search is not None:
            config = dataclasses.replace(config, granularities=dial)
        if search is not None and predictor.model.their_iou and config.granularities != (None,):
            note(
                "masks are kept and ranked by the predicted IoU as UnSAMv2's code returns it, `score`, which it "
                "predicts for another mask; `own_score` is the mask's own"
            )
    clicks = 1 if search is None or tree else len(config.granularities) * config.points_per_side**2
    answers: list[Answer] = []
    failed: list[str] = []
    with ProgressBar(
        "segment",
        clicks * len(paths),
        unit="images" if search is None or tree else "clicks",
        shown=(search is not None and tree is None) or len(paths) > 1,
    ) as progress:
        for place, (path, name) in enumerate(zip(paths, names, strict=True)):
            try:
                rgb = read_rgb(path)
            except InputError as error:
                if len(paths) == 1:
                    raise
                note(str(error))
                failed.append(str(error))
                continue
            before, detail = place * clicks, f"image {place + 1} of {len(paths)}" if len(paths) > 1 else ""
            about: dict[str, Any] = {"source": source_of(path), "checkpoint": checkpoint_name(flags.checkpoint)}
            with OutputFiles(flags.output) as files:
                if search is None:
                    predictor.set_image(rgb)
                    found = click_masks(predictor, wanted.prompt, dial, refine=flags.refine)
                    picture = click_picture(rgb, wanted.prompt, found)
                    about |= {"prompt": wanted.prompt.to_json(), "granularities": dial}
                    own = "SAM-2" if tree is None else "surest"
                    lines = [_line(each, rgb.shape[0] * rgb.shape[1], own) for each in found]
                    found = [each for each in found if each.area_px]
                elif tree is not None:
                    tree.set_image(rgb)
                    found = tree.everything()
                    picture = everything_picture(rgb, found)
                    roots = sum(each.parent_id is None for each in found)
                    lines = [f"{len(found)} masks, {roots} of them instances"]
                else:
                    found = generate_masks(
                        predictor,
                        rgb,
                        config,
                        on_prompts=partial(_count, progress, before, detail),
                    )
                    picture = everything_picture(rgb, found)
                    about["everything"] = config.to_json()
                    lines = [_line_of_all(found, config)]
                content = _write(files, path, name, rgb, found, picture, flags, about)
            lines.append(_forget_older(files, name))
            answers.append((content if flags.json else {}, [f"{path.name}:", *lines] if len(paths) > 1 else lines))
            progress.update(before + clicks, detail)
    return answers, failed


def _count(progress: Any, before: int, detail: str, done: int) -> None:
    """Moves the bar while one of several images is searched."""
    progress.update(before + done, detail)


def _check_images(paths: Sequence[Path], names: Sequence[str], flags: SegmentFlags, wanted: ObjectFlags | None) -> None:
    """Tells what can be told before a model is loaded; of several images, those that cannot be read have their turn."""
    from model.predict.image_files import image_size
    from model.predict.segment_inputs import expect_same_source, source_of
    from pipeline.errors import InputError

    for path, name in zip(paths, names, strict=True):
        try:
            width, height = image_size(path)
        except InputError:
            if len(paths) == 1:
                raise
            continue
        if wanted is not None:
            wanted.prompt.check(width=width, height=height, where=str(path))
        if not flags.overwrite:
            expect_same_source(flags.output / f"{name}.masks.json", source_of(path))


def _granularities(
    wanted: ObjectFlags, checkpoint: str | None, *, has_dial: bool, everything: bool
) -> tuple[float | None, ...]:
    """What is asked for; empty: the default of --everything."""
    from model.predict.segment_image import CLICK_GRANULARITY
    from pipeline.errors import InputError

    if has_dial:
        return wanted.granularities or (() if everything else (CLICK_GRANULARITY,))
    if any(each is not None for each in wanted.granularities):
        raise InputError(
            f"{checkpoint}: SAM-2's own weights, which know no granularity: leave --granularity out, or say none"
        )
    return (None,)


def _line(found: Any, pixels: int, own: str) -> str:
    g = own if found.granularity is None else f"g {found.granularity:g}"
    return f"{g}: {found.area_px:,} of {pixels:,} pixels, predicted IoU {found.score:.2f}"


def _line_of_all(found: Sequence[Any], config: Any) -> str:
    roots = sum(each.parent_id is None for each in found)
    if found:
        return f"{len(found)} masks, {roots} of them inside no other"
    return (
        f"no mask that the model is sure of; a lower --min-predicted-iou (it was {config.pred_iou_thresh:g}) or "
        f"--min-stability ({config.stability_score_thresh:g}) lets more pass"
    )


def _write(
    files: Any, path: Path, name: str, rgb: Any, found: Any, picture: Any, flags: SegmentFlags, about: dict[str, Any]
) -> dict[str, Any]:
    from model.predict.coco_json import json_bytes, mask_file
    from model.predict.draw import png_bytes
    from model.predict.segment_image import write_masks

    height, width = rgb.shape[:2]
    content = mask_file(found, image=path.name, width=width, height=height, **about)
    files.write(f"{name}.masks.png", png_bytes(picture))
    write_masks(files, name, found, kinds=flags.masks or (), height=height, width=width)
    files.write(f"{name}.masks.json", json_bytes(content))
    return content


def _forget_older(files: Any, name: str) -> str:
    """Removes what an earlier call left of this input; names what is there now."""
    from model.predict.segment_inputs import forget_older

    forget_older(files.folder, name, files.names)
    tops = dict.fromkeys(each.partition("/")[:2] for each in files.names)
    return ", ".join(f"{files.folder / top}{slash}" for top, slash in tops)


def _track(video: Path, flags: SegmentFlags, objects: dict[int, ObjectFlags]) -> Answer:
    from model.network.load import usable_device
    from model.predict.coco_json import json_bytes
    from model.predict.output_files import OutputFiles
    from model.predict.segment_inputs import checkpoint_name, expect_same_source, output_names, source_of, told_of_video
    from model.predict.segment_video import VideoObject, check_objects, track_objects
    from model.predict.video import Frames, GranularVideoPredictor
    from pipeline.console import note
    from pipeline.errors import InputError

    for number, each in objects.items():
        if len(each.granularities) > 1:
            raise InputError(f"--granularity: expected one for object {number} of a video, found {each.granularities}")
    frames = Frames(video)

    def wanted(*, has_dial: bool) -> dict[int, VideoObject]:
        return {
            number: VideoObject(
                prompt=each.prompt,
                granularity=_granularities(each, flags.checkpoint, has_dial=has_dial, everything=False)[0],
            )
            for number, each in objects.items()
        }

    check_objects(frames, wanted(has_dial=True), frame=flags.frame, kinds=flags.masks or ())
    [name] = output_names([video])
    source = source_of(video, frames)
    if not flags.overwrite:
        expect_same_source(flags.output / f"{name}.masks.json", source)
    if told := told_of_video(frames, video, hint=flags.taken is None):
        note(told)
    assert flags.checkpoint is not None
    predictor = GranularVideoPredictor.load(flags.checkpoint, usable_device(flags.device), base=flags.base)
    if predictor.model.has_dial and predictor.model.adapter == "full":
        note("a model from scratch has learned still images only: its memory of earlier frames is untrained")
    with OutputFiles(flags.output) as files:
        asked = wanted(has_dial=predictor.model.has_dial)
        content = track_objects(
            predictor, frames, asked, frame=flags.frame, files=files, name=name, kinds=flags.masks or ()
        )
        content |= {"source": source, "checkpoint": checkpoint_name(flags.checkpoint)}
        files.write(f"{name}.masks.json", json_bytes(content))
    lines = []
    for number in objects:
        areas = [each["area"] for each in content["annotations"] if each["object_id"] == number]
        lines.append(f"object {number}: on {len(areas)} of {len(frames)} frames")
    return content, [*lines, _forget_older(files, name)]
