"""What detectors write, as one file of proposals for `mine --divide proposals`.

Forms, each told by its content:

    coco        {"images": [...], "annotations": [...]}: COCO's own, and `grainmill segment --everything`
    results     [{"image_id", "segmentation", "score"}]: detectron2's coco_instances_results.json (so CutLER's),
                ultralytics' predictions.json
    sa1b        {"image": {...}, "annotations": [...]}, one file an image
    automatic   [{"segmentation", "predicted_iou", ...}], one file an image: SAM's automatic masks (amg.py)
    segments    [{"segments": {"x", "y"}, "confidence"}], one file an image: ultralytics' `result.to_json()`
    txt         CLASS X Y X Y ... [CONFIDENCE] a line, shares of the sides, one file an image: ultralytics' `save_txt`

Files of one image are named like it. Masks stay as they are written (RLE or polygons); shares become pixels of the
upright image, whose header is read.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..errors import InputError, SampleFailureError, SchemaError
from ..format.schema import load_json
from .images import read_header
from .kinds import IMAGE_SUFFIXES
from .proposals import MAX_FILE_BYTES, Proposals

TXT: Final = ".txt"
MAX_PIXELS: Final = 2**30
_POLYGON_NUMBERS: Final = 6


@dataclass(frozen=True, kw_only=True)
class Detection:
    """One mask as its file has it."""

    image: str | int
    """A file name with folders or without, a name without its ending, or a number."""
    segmentation: Any
    """RLE or polygons; polygons in shares of the sides where `shares`."""
    score: float | None
    shares: bool = False


@dataclass(kw_only=True)
class Gathered:
    """A file of proposals, and what did not go into it."""

    record: dict[str, Any]
    """COCO's object."""
    forms: Counter[str] = field(default_factory=Counter)
    """Masks of each form."""
    unmatched: Counter[str] = field(default_factory=Counter)
    """Masks whose image is not among the images, by what their file calls it."""
    without_mask: int = 0
    """Boxes alone, and empty segmentations."""


def gather(files: Sequence[Path], *, images: Path | None, dataset: Path | None = None) -> Gathered:
    """All masks of some detectors' files.

    Args:
        files: JSON or txt, or folders of them.
        images: the folder of the images, all of it; None: masks are not matched until they are mined.
        dataset: a COCO file whose `images` say which file a number of `results` is.

    Raises:
        InputError: a file that is none of the forms, shares without images, or no mask whose image is there.
    """
    names = _numbers_to_names(dataset)
    known = None if images is None else _Images(images)
    found = Gathered(record={})
    detections: list[Detection] = []
    for path in _expanded(files):
        form, some, lost = _read(path)
        found.forms[form] += len(some)
        found.without_mask += lost
        detections += some
    entries: list[dict[str, Any]] = []
    records: dict[str | int, dict[str, Any]] = {}
    sizes: dict[Path, tuple[int, int]] = {}
    for each in detections:
        image = names.get(each.image, each.image) if isinstance(each.image, int) else each.image
        image_file = None if known is None else known.find(image)
        if known is not None and image_file is None:
            found.unmatched[str(image)] += 1
            continue
        named = image if known is None or image_file is None else image_file.relative_to(known.folder).as_posix()
        if named not in records:
            is_file = isinstance(named, str) and Path(named).suffix.lower() in IMAGE_SUFFIXES
            records[named] = {"id": len(records) + 1, "file_name": named} if is_file else {"id": named}
        segmentation = each.segmentation
        if each.shares:
            if image_file is None:
                raise InputError(
                    f"{image!r}: its masks are in shares of the image's sides; --images says where the images are"
                )
            if image_file not in sizes:
                sizes[image_file] = _upright_size(image_file)
            segmentation = _in_pixels(segmentation, *sizes[image_file])
        entry = {"id": len(entries) + 1, "image_id": records[named]["id"], "segmentation": segmentation}
        entries.append(entry if each.score is None else {**entry, "score": each.score})
    if detections and not entries:
        raise InputError(
            f"none of the {len(detections)} masks is for an image of {images}: the files speak of "
            f"{next(iter(found.unmatched))!r} for instance"
        )
    found.record = {"images": list(records.values()), "annotations": entries}
    Proposals(found.record, where="the gathered masks")  # which says what is wrong with a mask
    return found


def _in_pixels(polygons: list[list[float]], height: int, width: int) -> list[list[float]]:
    return [
        [round(value * (height if place % 2 else width), 2) for place, value in enumerate(polygon)]
        for polygon in polygons
    ]


def _expanded(files: Iterable[Path]) -> list[Path]:
    found: list[Path] = []
    for path in files:
        inside = (
            sorted(each for each in path.rglob("*") if each.suffix.lower() in (".json", TXT)) if path.is_dir() else []
        )
        if path.is_dir() and not inside:
            raise InputError(f"{path}: expected files of masks (.json, .txt), found none in the folder")
        if not path.exists():
            raise InputError(f"{path}: expected a file of masks or a folder of them, found nothing")
        found += inside or [path]
    return found


def _read(path: Path) -> tuple[str, list[Detection], int]:
    """The form, the masks, and how many entries have none."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError(f"{path}: larger than {MAX_FILE_BYTES} bytes; split it")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if path.suffix.lower() == TXT:
        return ("txt", *_of_txt(path, data))
    try:
        record = load_json(data, where=str(path), max_bytes=MAX_FILE_BYTES)
    except SchemaError as error:
        raise InputError(str(error)) from error
    if isinstance(record, dict) and isinstance(record.get("annotations"), list):
        if isinstance(record.get("images"), list):
            return ("coco", *_of_coco(record))
        if isinstance(record.get("image"), dict):
            name = str(record["image"].get("file_name") or path.stem)
            return ("sa1b", *_of_entries(record["annotations"], name))
    if isinstance(record, list) and all(isinstance(each, dict) for each in record):
        if all("image_id" in each for each in record):
            return ("results", *_of_entries(record, None))
        if any("segments" in each or "confidence" in each for each in record):
            return ("segments", *_of_segments(path, record))
        if all("segmentation" in each for each in record):
            return ("automatic", *_of_entries(record, path.stem))
    raise InputError(
        f"{path}: expected COCO's object, a list of results with `image_id`, SAM's automatic masks, ultralytics' "
        f"segments or its txt, found {_outline(record)}"
    )


def _outline(record: Any) -> str:
    if isinstance(record, dict):
        return f"an object with {', '.join(sorted(map(str, record))[:5]) or 'nothing'}"
    if isinstance(record, list) and record and isinstance(record[0], dict):
        return f"a list of objects with {', '.join(sorted(map(str, record[0]))[:5])}"
    return type(record).__name__


def _of_coco(record: Mapping[str, Any]) -> tuple[list[Detection], int]:
    names = {
        each["id"]: str(each.get("file_name") or each["id"])
        for each in record["images"]
        if isinstance(each, dict) and isinstance(each.get("id"), str | int)
    }
    instances = [each for each in record["annotations"] if not (isinstance(each, dict) and each.get("iscrowd"))]
    masks, lost = _of_entries(instances, None)
    renamed = [
        Detection(image=names.get(each.image, each.image), segmentation=each.segmentation, score=each.score)
        for each in masks
    ]
    return renamed, lost + len(record["annotations"]) - len(instances)


def _of_entries(entries: list[Any], image: str | None) -> tuple[list[Detection], int]:
    """Of entries with `segmentation`; of an image if one is given, else of their own."""
    masks = []
    for each in entries:
        if not isinstance(each, dict) or not each.get("segmentation"):
            continue
        named = image if image is not None else each.get("file_name") or each.get("image_id")
        if isinstance(named, str | int) and not isinstance(named, bool):
            score = next((each[key] for key in ("score", "predicted_iou") if each.get(key) is not None), None)
            masks.append(Detection(image=named, segmentation=each["segmentation"], score=score))
    return masks, len(entries) - len(masks)


def _of_segments(path: Path, entries: list[dict[str, Any]]) -> tuple[list[Detection], int]:
    masks = []
    for each in entries:
        segments = each.get("segments")
        try:
            pairs = list(zip(segments["x"], segments["y"], strict=True)) if segments else []
            polygon = [float(value) for pair in pairs for value in pair]
        except (TypeError, KeyError, ValueError) as error:
            raise InputError(
                f"{path}: expected `segments` with x and y of one length, found {segments!r:.80}"
            ) from error
        if len(polygon) >= _POLYGON_NUMBERS:
            shares = max(map(abs, polygon)) <= 1.0  # to_json(normalize=True)
            masks.append(
                Detection(image=path.stem, segmentation=[polygon], score=each.get("confidence"), shares=shares)
            )
    return masks, len(entries) - len(masks)


def _of_txt(path: Path, data: bytes) -> tuple[list[Detection], int]:
    masks, lost = [], 0
    for number, line in enumerate(data.decode(errors="replace").splitlines(), start=1):
        try:
            values = [float(each) for each in line.split()]
        except ValueError as error:
            raise InputError(
                f"{path}: line {number}: expected numbers, CLASS X Y X Y ... [CONFIDENCE], found {line!r:.60}"
            ) from error
        if not values:
            continue
        score = values.pop() if len(values) % 2 == 0 else None
        polygon = values[1:]
        if len(polygon) < _POLYGON_NUMBERS:  # a box, whose line is as short
            lost += 1
            continue
        if not all(-0.01 <= value <= 1.01 for value in polygon):
            raise InputError(f"{path}: line {number}: expected shares of the image's sides, 0 to 1, found {line!r:.60}")
        masks.append(Detection(image=path.stem, segmentation=[polygon], score=score, shares=True))
    return masks, lost


def _numbers_to_names(dataset: Path | None) -> dict[int, str]:
    if dataset is None:
        return {}
    try:
        record = load_json(dataset.read_bytes(), where=str(dataset), max_bytes=MAX_FILE_BYTES)
        return {int(each["id"]): str(each["file_name"]) for each in record["images"]}
    except (OSError, SchemaError, TypeError, KeyError, ValueError) as error:
        raise InputError(
            f"--dataset {dataset}: expected a COCO file whose images have id and file_name ({error})"
        ) from error


class _Images:
    """The images below a folder, found by path, file name, name without ending, or number."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise InputError(f"--images {folder}: expected the folder of the images")
        self._by: dict[str | int, list[Path]] = defaultdict(list)
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                for key in {path.relative_to(folder).as_posix(), path.name, path.stem}:
                    self._by[key].append(path)
                if number := re.fullmatch(r"(?:sa_)?0*(\d+)", path.stem):
                    self._by[int(number[1])].append(path)

    def find(self, image: str | int) -> Path | None:
        """Raises InputError where several images fit."""
        keys: list[str | int] = [image]
        if isinstance(image, str):
            parts = Path(image).parts
            keys = ["/".join(parts[start:]) for start in range(len(parts))]
        found = next((self._by[key] for key in keys if key in self._by), [])
        if len(found) > 1:
            raise InputError(
                f"{image!r}: {len(found)} images of {self.folder} fit, {found[0]} and {found[1]}; give the masks of "
                "each folder with its own --images"
            )
        return found[0] if found else None


def _upright_size(path: Path) -> tuple[int, int]:
    try:
        header = read_header(path.read_bytes(), max_pixels=MAX_PIXELS)
    except (OSError, SampleFailureError) as error:
        raise InputError(f"{path}: the image's size cannot be read ({error})") from error
    return header.height, header.width


def write(found: Gathered, output: Path) -> None:
    """Raises InputError: it cannot be written."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(found.record, allow_nan=False, separators=(",", ":")))
    except OSError as error:
        raise InputError(f"--output {output}: cannot be written ({error.strerror})") from error
