"""Images of people's files, folders and arrays: read strictly, in natural order, and told what was passed over."""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import InputError, SampleFailureError
from pipeline.sources.images import decode_rgb, read_header
from pipeline.sources.kinds import IMAGE_SUFFIXES

_STARTS: Final = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
"""Of JPEG and PNG, which are images under any name (raw formats of cameras begin like a TIFF)."""
MAX_IMAGE_PIXELS: Final = 100_000_000
"""As `grainmill mine` has it."""
_NO_LIMIT: Final = 2**62
_BROKEN: Final = (OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError, KeyError, TypeError)
"""What Pillow raises on an animation that is not what it claims."""
_MANY: Final = {
    "hidden file": "hidden files", "other file": "other files", "output of segment": "outputs of segment",
    "folder": "folders",
}  # fmt: skip
_NAMED: Final = 3
"""So many of the files that were passed over are named."""

Rgb = NDArray[np.uint8]


def read_rgb(path: str | Path) -> Rgb:
    """An image file: upright RGB, (H, W, 3) uint8. Of a GIF the first frame, as of the other formats.

    Raises:
        InputError: no file, not an image, a damaged one, or more than `MAX_IMAGE_PIXELS` pixels.
    """
    data = _read(path)
    if data.startswith(b"GIF8"):
        return _animation(path, data)[0]
    try:
        return decode_rgb(data, max_pixels=MAX_IMAGE_PIXELS)
    except SampleFailureError as error:
        raise _not_readable(path, data, error) from error


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) of an image file, upright, by its header; raises as `read_rgb`, but for damaged pixels."""
    data = _read(path)
    if data.startswith(b"GIF8"):
        height, width = _animation(path, data)[0].shape[:2]
        return width, height
    try:
        header = read_header(data, max_pixels=MAX_IMAGE_PIXELS)
    except SampleFailureError as error:
        raise _not_readable(path, data, error) from error
    return header.width, header.height


def is_animation(path: Path) -> bool:
    """Whether a file is a GIF or a WebP of several frames, whatever it is called."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        start = stream.read(12)
    if not start.startswith(b"GIF8") and (start[:4], start[8:]) != (b"RIFF", b"WEBP"):
        return False
    try:
        with Image.open(path, formats=("GIF", "WEBP")) as image:
            return bool(getattr(image, "is_animated", False))
    except _BROKEN:  # a GIF's reader tells what is wrong with it, a WebP's is that of images
        return start.startswith(b"GIF8")


def read_animation(path: Path, *, max_frames: int) -> list[Rgb]:
    """All frames of a GIF or WebP, at most one more than `max_frames`: (H, W, 3) uint8, over white where transparent.

    Raises:
        InputError: not one of these, or a damaged one.
    """
    return _animation(path, _read(path), max_frames + 1)


def _read(path: str | Path) -> bytes:
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{path}: expected an image, found {'a directory' if file.is_dir() else 'nothing'}")
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from error


def _not_readable(path: str | Path, data: bytes, error: SampleFailureError) -> InputError:
    if error.reason == "too_large":
        header = read_header(data, max_pixels=_NO_LIMIT)
        return InputError(_too_large(path, header.width, header.height))
    return InputError(f"{path}: not an image that can be read: {error.message}")


def _too_large(path: str | Path, width: int, height: int) -> str:
    return f"{path}: {width} x {height} pixels, more than the {MAX_IMAGE_PIXELS:,} that are taken; make it smaller"


def _animation(path: str | Path, data: bytes, count: int = 1) -> list[Rgb]:
    try:
        with Image.open(io.BytesIO(data), formats=("GIF", "WEBP")) as image:
            frames = []
            for number in range(min(count, getattr(image, "n_frames", 1))):
                image.seek(number)  # a frame may be larger than the first
                if image.width * image.height > MAX_IMAGE_PIXELS:
                    raise InputError(_too_large(path, image.width, image.height))
                shown = image.convert("RGBA")
                white = Image.new("RGBA", shown.size, "white")
                frames.append(np.array(Image.alpha_composite(white, shown).convert("RGB")))
            return frames
    except _BROKEN as error:
        raise InputError(f"{path}: not an animation that can be read: {error}") from error


# ---------------------------------------------------------------------------------------------------------------------
# Folders


@dataclass(frozen=True, kw_only=True)
class ImageFolder:
    """The images of a folder (not of folders in it)."""

    files: tuple[Path, ...]
    """In natural order."""
    passed_over: str
    """What else lies there, in words; empty: nothing."""


def images_in(folder: Path) -> ImageFolder:
    """The images of a folder: files with one of `IMAGE_SUFFIXES`, and JPEG and PNG files under any other name.

    Hidden files (`._000.jpg` of macOS, `.DS_Store`) are passed over, as `grainmill mine` does.

    Raises:
        InputError: no images there.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {(error.strerror or str(error)).lower()}") from error
    hidden = [each for each in entries if each.name.startswith(".")]
    ours = [each for each in entries if _is_output(each) and each not in hidden]
    shown = [each for each in entries if each not in {*hidden, *ours}]
    folders = [each for each in shown if each.is_dir()]
    files = [each for each in shown if each.is_file() and _is_image(each)]
    others = [each for each in shown if each not in {*folders, *files}]
    kinds = (("hidden file", hidden), ("other file", others), ("output of segment", ours), ("folder", folders))
    counted = ", ".join(_counted(each, paths) for each, paths in kinds if paths)
    passed_over = f"passed over: {counted}" if counted else ""
    if not files:
        raise InputError(
            f"{folder}: expected images ({', '.join(IMAGE_SUFFIXES)}), found no image"
            + (f"; {passed_over}" if passed_over else "")
        )
    return ImageFolder(files=tuple(sorted(files, key=lambda each: natural_key(each.name))), passed_over=passed_over)


def _is_output(path: Path) -> bool:
    """Whether `segment` wrote it: its JSON stands beside it."""
    name, mark, rest = path.name.rpartition(".masks")
    return rest in ("", ".json", ".png", ".ids", ".ids.png", ".each") and (path.parent / f"{name}{mark}.json").is_file()


def _is_image(path: Path) -> bool:
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return True
    try:
        with path.open("rb") as stream:
            return stream.read(8).startswith(_STARTS)
    except OSError:
        return False


def _counted(kind: str, paths: list[Path]) -> str:
    names = ", ".join(each.name for each in paths[:_NAMED]) + (", …" if len(paths) > _NAMED else "")
    return f"{len(paths)} {kind if len(paths) == 1 else _MANY[kind]} ({names})"


def natural_key(name: str) -> tuple[Any, ...]:
    """Sorts names as people do: numbers as numbers, letters as letters, `img` before `img_1`, `2` before `10`."""
    stem, dot, suffix = name.rpartition(".")
    # Text and digits take turns, so that a number never meets a word.
    parts = [
        int(part) if place % 2 else part.casefold() for place, part in enumerate(_DIGITS.split(stem if dot else name))
    ]
    return (parts, suffix.casefold() if dot else "", name)


_DIGITS: Final = re.compile(r"([0-9]+)")


# ---------------------------------------------------------------------------------------------------------------------
# Arrays


def as_rgb(image: Any, where: str) -> Rgb:
    """An image in memory, an array or Pillow's: (H, W, 3) uint8 RGB.

    Args:
        image: as people give it.
        where: for the message.

    Raises:
        InputError: no RGB image.
    """
    if isinstance(image, Image.Image):
        if image.mode != "RGB" or not image.width * image.height:
            raise InputError(
                f"{where}: expected an image of mode RGB, found {image.mode}, {image.width} x {image.height}; "
                'give image.convert("RGB")'
            )
        return np.array(image)
    if not isinstance(image, np.ndarray):
        raise InputError(f"{where}: expected an array (H, W, 3) uint8 RGB, found {type(image).__name__}")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise InputError(f"{where}: expected (H, W, 3) uint8 RGB, found {image.shape} {image.dtype}")
    return image


def real_numbers(values: Any, name: str, where: str) -> NDArray[np.float32]:
    """Coordinates, labels or logits as float32.

    Raises:
        InputError: no numbers, or rows of different lengths.
    """
    try:
        return np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{where}: expected an array of numbers as {name} ({error})") from error
