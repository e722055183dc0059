"""What `grainmill segment` is given, images or one video, and what their outputs are called."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pipeline.errors import InputError

from ..network.checkpoint import FOLDER, find_checkpoint
from .image_files import images_in, is_animation
from .video import Frames

VIDEO_SUFFIXES: Final = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")
Taken = Literal["images", "video"]
OUTPUT_FOLDERS: Final = (".masks", ".masks.ids", ".masks.each")
"""Of NAME, with PNG files called by numbers inside."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Images, or one video."""

    images: tuple[Path, ...] = ()
    video: Path | None = None
    told: tuple[str, ...] = ()
    """What each folder of images was taken for, and what was passed over in it."""


def read_inputs(paths: Sequence[str], *, taken: Taken | None, everything: bool) -> Inputs:
    """Sorts out what was given, before anything is decoded.

    Args:
        paths: of the command line.
        taken: what a folder, and a GIF or WebP of several frames, is taken for; None: images with `everything`, which
            videos do not have, and a video otherwise.
        everything: whether the whole image is searched.

    Raises:
        InputError: a folder without images, a video beside other inputs, a video that is to be images.
    """
    images: list[Path] = []
    videos: list[Path] = []
    told = []
    for path in map(Path, paths):
        ambiguous = path.is_dir() or is_animation(path)
        if (taken or ("images" if everything else "video")) == "video" and (ambiguous or taken):
            videos.append(path)
        elif path.is_dir():
            found = images_in(path)
            images += found.files
            told.append(_told(path, f"{len(found.files)} images", found.files, found.passed_over, not taken))
        elif path.suffix.lower() in VIDEO_SUFFIXES:
            if taken:
                raise InputError(f"{path}: a video; --as images is for folders and for GIF and WebP of several frames")
            videos.append(path)
        else:
            images.append(path)
            if ambiguous:
                told.append(f"{path}: taken as an image, its first frame" + ("" if taken else " (--as video: all)"))
    if videos and len(paths) > 1:
        raise InputError(
            f"{videos[0]}: a video is segmented alone, found {len(paths)} inputs; --as images takes folders as images"
        )
    return Inputs(images=tuple(images), video=videos[0] if videos else None, told=tuple(told))


def told_of_video(frames: Frames, path: Path, *, hint: bool) -> str:
    """What a folder or an animation was taken for; of a video file what is missing of it; empty: nothing."""
    if not frames.files and not is_animation(path):
        return f"{path}: {frames.remarks}" if frames.remarks else ""
    return _told(path, f"a video of {len(frames)} frames", frames.files, frames.remarks, hint)


def _told(path: Path, what: str, files: Sequence[Path], remarks: str, hint: bool) -> str:
    between = f", {files[0].name} to {files[-1].name}" if len(files) > 1 else ""
    way = "--as images: each by itself" if "video" in what else "--as video: the frames of one"
    return f"{path}: taken as {what}{between}" + f" ({way})" * hint + (f"; {remarks}" if remarks else "")


def output_names(paths: Sequence[Path]) -> list[str]:
    """What the outputs of inputs are called: their stems; whole names where two have one stem; a folder's whole name.

    Raises:
        InputError: two inputs of one whole name.
    """
    whole = [each.resolve().name if each.is_dir() else each.name for each in paths]
    stems = [each if path.is_dir() else path.stem for each, path in zip(whole, paths, strict=True)]
    for names in (stems, [w if stems.count(s) > 1 else s for w, s in zip(whole, stems, strict=True)], whole):
        if len(set(names)) == len(names):
            return list(names)
    twice = Counter(whole).most_common(1)[0][0]
    those = " and ".join(str(path) for path, name in zip(paths, whole, strict=True) if name == twice)
    raise InputError(f"{those} would have the same outputs, {twice}.masks.*; segment them into an --output each")


def source_of(path: Path, frames: Frames | None = None) -> dict[str, str]:
    """An input's name and identity, by which outputs remember what they are of.

    `sha256` is the file's; of a folder of frames that of the names and sizes of all and of the first one's bytes.
    """
    with (frames.files[0] if frames and frames.files else path).open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
    for each in frames.files if frames else ():
        digest.update(f"\0{each.name}\0{each.stat().st_size}".encode())
    return {"name": path.resolve().name if path.is_dir() else path.name, "sha256": digest.hexdigest()}


def expect_same_source(file: Path, source: Mapping[str, str]) -> None:
    """Is an earlier output of this input, if there is one?

    Raises:
        InputError: it is another's.
    """
    if not file.is_file():
        return
    try:
        theirs = json.loads(file.read_bytes())["source"]
    except (OSError, ValueError, KeyError, TypeError):
        theirs = {}
    if theirs != source:
        name = theirs.get("name") if isinstance(theirs, dict) else None
        whose = "something else" if name is None else "another file of that name" if name == source["name"] else name
        raise InputError(
            f"{file} is of {whose}, not of this {source['name']}; --overwrite replaces it, or choose another --output"
        )


def forget_older(folder: Path, name: str, written: Iterable[str]) -> None:
    """Removes what an earlier call wrote for NAME and this one did not: pictures of a longer video, other masks."""
    keep = {folder / each for each in written}
    old = [folder / f"{name}.masks.png", folder / f"{name}.masks.ids.png"]
    places = [folder / f"{name}{each}" for each in OUTPUT_FOLDERS]
    old += [each for place in places for each in place.rglob("*.png") if each.stem.isdecimal()]
    for each in old:
        if each not in keep:
            each.unlink(missing_ok=True)


def checkpoint_name(path: str | None) -> str | None:
    """Which checkpoint was used, without where it lies: RUN/checkpoints/step-N.safetensors, or a file's name."""
    if path is None:
        return None
    file = find_checkpoint(Path(path)).resolve()
    return "/".join(file.parts[-3:]) if file.parent.name == FOLDER else file.name
