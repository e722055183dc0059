"""Finding the files of a benchmark as downloaded: every surprise is one error that names what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.sources.kinds import IMAGE_SUFFIXES


def existing(path: Path, *, what: str = "a file of the benchmark's layout") -> Path:
    """The path, if it is there.

    Raises:
        InputError: naming it.
    """
    if not path.exists():
        raise InputError(f"{path}: expected {what}, found nothing; give --data the folder as it was downloaded")
    return path


def first_folder(root: Path, candidates: Sequence[str], *, holding: str) -> Path:
    """The first of `root/candidate` that holds the named file or folder.

    Raises:
        InputError: naming the first place looked at.
    """
    existing(root, what="the benchmark's folder")
    for candidate in candidates:
        if (root / candidate / holding).exists():
            return root / candidate
    places = ", ".join(str(root / candidate / holding) for candidate in candidates)
    raise InputError(f"{root / candidates[0] / holding}: missing (looked at {places}); see `grainmill score --list`")


def matching_files(folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[Path]:
    """The files directly in a folder with one of the suffixes (any case), by name; hidden ones (`._a.jpg`) are none.

    Raises:
        InputError: no such folder, or none in it.
    """
    existing(folder, what="a folder")
    found = sorted(
        path for path in folder.iterdir() if _seen(path) and path.suffix.lower() in suffixes and path.is_file()
    )
    if not found:
        raise InputError(f"{folder}: expected files that end in {', '.join(suffixes)}, found none")
    return found


def _seen(path: Path) -> bool:
    """Not hidden, and not what Windows leaves in folders of pictures."""
    return not path.name.startswith(".") and path.name.lower() not in ("thumbs.db", "desktop.ini")


def others_in(folder: Path, used: Iterable[Path]) -> dict[str, int]:
    """What else lies directly in a folder of images, reason -> how many; hidden files are nothing."""
    known = set(used)
    rest = [path for path in folder.iterdir() if _seen(path) and path not in known]
    folders = sum(path.is_dir() for path in rest)
    found = {f"folders in {folder.name}/": folders, f"files in {folder.name}/ that are no image": len(rest) - folders}
    return {reason: count for reason, count in found.items() if count}


def by_stem(files: Iterable[Path]) -> dict[str, Path]:
    """Name without ending -> file, for layouts that find one file of an image by the name of another.

    Raises:
        InputError: two files differ in their ending only, so that one name would mean both.
    """
    found: dict[str, Path] = {}
    for path in files:
        if path.stem in found:
            raise InputError(
                f"{found[path.stem]} and {path.name}: two files of one name, and this layout finds what belongs to "
                "them by the name without its ending; rename one of them with all that belongs to it"
            )
        found[path.stem] = path
    return found


def alone(files: Iterable[Path], *, without: str) -> tuple[str, ...]:
    """A note on files of which the other half is missing, the first by its path; none if there are none."""
    found = sorted(files)
    beside = f" and {len(found) - 1} more" if found[1:] else ""
    return (f"{found[0]}{beside}: without {without}, not scored",) if found else ()


def with_stem(folder: Path, stem: str, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> Path:
    """The file `folder/stem.*` with one of the suffixes.

    Raises:
        InputError: none is there, or several.
    """
    spelled = [[folder / f"{stem}{each}" for each in (suffix, suffix.upper())] for suffix in suffixes]
    found = by_stem(next(path for path in each if path.is_file()) for each in spelled if any(map(Path.is_file, each)))
    if not found:
        raise InputError(
            f"{folder / stem}{suffixes[0]}: missing; no file of this name with {', '.join(suffixes)} there"
        )
    return found[stem]


def read_lines(path: Path) -> list[str]:
    """The lines of a list file, stripped, without empty ones.

    Raises:
        InputError: no such file.
    """
    return [line.strip() for line in existing(path).read_text(encoding="utf-8").splitlines() if line.strip()]


def load_mat(path: Path) -> dict[str, Any]:
    """A Matlab file (before version 7.3).

    Raises:
        InputError: missing or damaged.
    """
    from scipy.io import loadmat

    try:
        found: dict[str, Any] = loadmat(existing(path))
    except Exception as error:  # scipy raises its own, zlib's, numpy's and struct's on damaged bytes
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}: expected a Matlab file up to version 7.2, found damaged bytes; {told(error)}"
        ) from error
    return found


def read_map(path: Path) -> NDArray[Any]:
    """A label image as stored: (H, W) or (H, W, C), palette indices as they are.

    Raises:
        InputError: missing, damaged, or not a PNG, BMP, TIFF, WebP, GIF or JPEG.
    """
    from pipeline.errors import SampleFailureError
    from pipeline.sources.images import decode_stored

    try:
        return decode_stored(existing(path).read_bytes(), max_pixels=2**31)
    except SampleFailureError as error:
        raise InputError(f"{path}: expected a label image ({error})") from error


def told(error: Exception) -> str:
    """What went wrong in a file's structure. Python's own words about wrong types mean nothing to who reads a file."""
    if isinstance(error, KeyError):
        return f"found no {error}"
    if isinstance(error, TypeError | AttributeError | IndexError | RecursionError):
        return "found values of another kind"
    return f"{error}"


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) of an image from its header, upright.

    Raises:
        InputError: missing or unreadable.
    """
    from pipeline.errors import SampleFailureError
    from pipeline.sources.images import read_header

    try:
        header = read_header(existing(path).read_bytes(), max_pixels=2**31)
    except SampleFailureError as error:
        raise InputError(f"{path}: {error}") from error
    return header.height, header.width


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) uint8, upright.

    Raises:
        InputError: missing or unreadable.
    """
    return decoded_rgb(existing(path).read_bytes(), where=str(path))


def decoded_rgb(data: bytes, *, where: str) -> NDArray[np.uint8]:
    """(H, W, 3) uint8, upright, of an image's bytes.

    Raises:
        InputError: unreadable; with `where` in its message.
    """
    from pipeline.errors import SampleFailureError
    from pipeline.sources.images import decode_rgb

    try:
        return decode_rgb(data, max_pixels=2**31)
    except SampleFailureError as error:
        raise InputError(f"{where}: {error}") from error
