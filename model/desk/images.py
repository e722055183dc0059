"""What is annotated: image files, the images of a run or a release with their mined masks, or a video's frames.

Whatever it is, it is a row of images that are asked for by number; no name that a browser sends is ever a path.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Literal, Protocol

from pipeline.dataset.export import sample_rows
from pipeline.dataset.open import open_dataset
from pipeline.dataset.reader import Dataset
from pipeline.dataset.viewer import committed_image
from pipeline.errors import GrainmillError, InputError
from pipeline.format.schema import Sample, canonical_json, sha256_of
from pipeline.sources.kinds import IMAGE_SUFFIXES

from ..predict.image_files import Rgb, images_in, natural_key, read_rgb
from ..predict.segment_inputs import VIDEO_SUFFIXES, Taken
from ..predict.video import Frames

DEMO: Final = Path("demo")
"""What `make demo` makes: the images and the student of a desk that was given none."""
Kind = Literal["images", "mined", "video"]


class Images(Protocol):
    """What is annotated, in a row.

    Attributes:
        kind: files, images with mined masks, or a video.
        title: for people.
        names: one an image, each once; `file_name` in the COCO file.
        mark: of these very images; another when any of them is another, or has another place.
    """

    kind: Kind
    title: str
    names: tuple[str, ...]
    mark: str

    def read(self, number: int) -> Rgb:
        """An image, upright RGB (H, W, 3) uint8.

        Raises:
            InputError: it is damaged or too large.
        """

    def mined(self, number: int) -> Sample | None:
        """The record of a mined image; None: this is none."""

    def record_sha256(self, number: int) -> str | None:
        """Of that record's bytes."""


class ImageFiles:
    """Image files; names are paths below the folder that holds them all."""

    kind: Kind = "images"

    def __init__(self, files: Sequence[Path], folder: Path, title: str) -> None:
        self.title = title
        self._files = tuple(files)
        self.names = tuple(os.path.relpath(each, folder).replace(os.sep, "/") for each in files)
        for name in self.names:
            if any("\ud800" <= letter <= "\udfff" for letter in name):  # bytes that are no UTF-8 can stand in no JSON
                raise InputError(f"{name!a}: a file's name of other bytes than UTF-8's; give it another name")
        self.mark = _mark(zip(self.names, map(_written, self._files), strict=True))

    def read(self, number: int) -> Rgb:
        path = self._files[number]
        try:
            return read_rgb(path)
        except InputError as error:  # where it lies is nobody's business but the server's
            raise InputError(str(error).replace(str(path), self.names[number])) from error

    def mined(self, number: int) -> Sample | None:
        return None

    def record_sha256(self, number: int) -> str | None:
        return None


class MinedImages:
    """The images of a run or a release, with what was mined; names are the samples' keys."""

    kind: Kind = "mined"

    def __init__(self, dataset: Dataset, title: str) -> None:
        self.title = title
        self._dataset = dataset
        self._rows = list(sample_rows(dataset))
        self.names = tuple(row["key"] for row in self._rows)
        if not self._rows:
            raise InputError(f"{title}: expected images, found none that is committed")
        self.mark = _mark((row["key"], row["json_sha256"]) for row in self._rows)
        if any(row["image_offset"] is None for row in self._rows):
            raise InputError(f"{title}: it holds no images (--no-images); annotate the folder that was mined")

    def read(self, number: int) -> Rgb:
        row = self._rows[number]
        return committed_image(self._dataset.read_image(row), row["key"])

    def mined(self, number: int) -> Sample | None:
        return self._dataset.read_sample(self._rows[number])

    def record_sha256(self, number: int) -> str | None:
        return self._rows[number]["json_sha256"]


class VideoFrames:
    """The frames of a video; names are the files of its folder, or five digits."""

    kind: Kind = "video"

    def __init__(self, path: Path) -> None:
        self.frames = Frames(path)
        self.frames.expect_one_size()
        self.path = path
        self.title = self.frames.name
        files = self.frames.files
        self.names = tuple(each.name for each in files) or tuple(f"{n:05d}" for n in range(len(self.frames)))
        self.mark = _mark(zip(self.names, map(_written, files or [path] * len(self.names)), strict=True))

    def read(self, number: int) -> Rgb:
        frame: Rgb = self.frames[number]
        return frame

    def mined(self, number: int) -> Sample | None:
        return None

    def record_sha256(self, number: int) -> str | None:
        return None


def _mark(told: Iterable[tuple[object, ...]]) -> str:
    return sha256_of(canonical_json([*told]))[:16]


def _written(path: Path) -> tuple[int, int] | None:
    """Bytes and time of a file; None: it is not there (any more), which is told when it is read."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def open_images(given: Sequence[str], *, taken: Taken | None) -> Images:
    """What IMAGES of the command line are.

    Args:
        given: a folder, files, patterns, a run, a release, or a video; empty: the demo's photographs.
        taken: `video` takes a folder, a GIF or a WebP as the frames of one.

    Raises:
        InputError: nothing of the kind is there.
    """
    if not given:
        files = sorted((DEMO / "photographs").glob("*/*"), key=lambda each: natural_key(each.name))
        if not files:
            raise InputError(
                "expected IMAGES: a folder, a pattern in quotes, a run, a release or a video. Without any the demo's "
                f"photographs are taken, and there is no {DEMO}/photographs here (`make demo` makes it)"
            )
        return ImageFiles(files, DEMO / "photographs", "the demo's photographs")
    first = Path(given[0])
    if taken == "video" or (taken is None and first.suffix.lower() in VIDEO_SUFFIXES):
        if len(given) > 1:
            raise InputError(f"{first}: a video is annotated alone, found {len(given)} inputs")
        return VideoFrames(first)
    if len(given) == 1 and _is_dataset(given[0]):
        return MinedImages(open_dataset(given[0]), given[0].rstrip("/").rsplit("/", 1)[-1])
    files = [file for each in given for file in _files_of(each)]
    files = list(dict.fromkeys(Path(os.path.abspath(each)) for each in files))
    folder = Path(os.path.commonpath([each.parent for each in files]))
    return ImageFiles(files, folder, folder.name or str(folder))


def _is_dataset(given: str) -> bool:
    if "://" not in given and not Path(given).is_dir():
        return False
    try:
        open_dataset(given)
    except GrainmillError:
        if "://" in given:
            raise
        return any((Path(given) / name).exists() for name in ("plan.json", "manifest.json"))
    return True


def _files_of(given: str) -> list[Path]:
    path = Path(given)
    if path.is_dir():
        return list(images_in(path).files)
    if path.exists() or not glob.has_magic(given):
        if not path.is_file():
            raise InputError(f"{given}: expected a folder, an image, a run, a release or a video, found nothing")
        return [path]
    found = [Path(each) for each in glob.glob(given, recursive=True)]
    files = [each for each in found if each.suffix.lower() in IMAGE_SUFFIXES and each.is_file()]
    if not files:
        raise InputError(f"{given}: no image matches this pattern")
    return sorted(files, key=lambda each: natural_key(str(each)))
