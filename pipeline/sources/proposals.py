"""Masks of a detector for `--divide proposals` and `union`: a COCO instance file, or a COCO list of results.

    {"images": [{"id", "file_name", "height", "width"}], "annotations": [{"image_id", "segmentation", "score"?}]}
    [{"image_id", "segmentation", "score"}]

`segmentation` is an RLE (compressed or not) or polygons. An image is found by its file name: the whole path within its
source or tar (in a table the path that it keeps for the row), else its last part if no other image of the file has the
same; images of a list of results, which have no names, by the number in the sample's name (`000000000139.jpg`,
`sa_139.jpg`) or by the name itself, with its ending or without.

The file is checked as a whole when it is read, so that a malformed one ends the command before anything is mined; masks
that are missing (`[]`, null), crowds, and masks that meet no sample are counted.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from posixpath import basename
from typing import Any, Final

from ..errors import InputError, SampleFailureError, SchemaError
from ..format import rle as rle_codec
from ..format.rle import Rle
from ..format.schema import load_json, sha256_of
from .kinds import stem_of
from .passed_over import PassedOver

MAX_FILE_BYTES: Final = 2 * 1024**3
"""COCO's largest annotation file has 0.5 GB."""
ACCEPTED_FORMAT: Final = "grainmill-desk/1"
"""`info.format` of what `grainmill annotate` writes: people accepted these masks, whatever the predictor's score."""
MAX_POINTS: Final = 1_000_000
"""Coordinates of one mask's polygons."""

Polygons = list[list[float]]


@dataclass(frozen=True)
class Proposal:
    """One mask of the file, on an image's pixels."""

    rle: Rle
    score: float | None


@dataclass(frozen=True)
class _Entry:
    """One mask as it stands in the file, checked."""

    where: str
    segmentation: Rle | Polygons
    score: float | None


def _declared_license(record: Any) -> str | None:
    """`info.license`, else the only entry of `licenses` (several are those of the images, not of the masks)."""
    if not isinstance(record, dict):
        return None
    info, licenses = record.get("info"), record.get("licenses")
    if isinstance(info, dict) and isinstance(info.get("license"), str) and info["license"].strip():
        return str(info["license"]).strip()
    if isinstance(licenses, list) and len(licenses) == 1 and isinstance(licenses[0], dict):
        name = licenses[0].get("name")
        return name.strip() if isinstance(name, str) and name.strip() else None
    return None


def _is_accepted(record: Any) -> bool:
    info = record.get("info") if isinstance(record, dict) else None
    return isinstance(info, dict) and info.get("format") == ACCEPTED_FORMAT


@dataclass
class _Image:
    """One image of the file, and its masks."""

    name: str | None
    size: tuple[int, int] | None
    called: str
    """Its file name, else its id."""
    entries: list[_Entry] = field(default_factory=list)


class Proposals:
    """All masks of a file, by image.

    Args:
        record: the parsed JSON.
        where: for messages.

    Raises:
        InputError: naming the first thing that is not as the format says.
    """

    def __init__(self, record: Any, *, where: str) -> None:
        self._where = where
        self.license = _declared_license(record)
        """SPDX identifier or words, as the file says; None if it says nothing."""
        self._images: dict[int | str, _Image] = {}
        self._met: dict[int, str] = {}
        self._unused = PassedOver()
        self._accepted = _is_accepted(record)
        try:
            if isinstance(record, dict):
                for index, each in enumerate(_list(record, "images", where)):
                    self._add_image(each, f"{where}: images[{index}]")
                entries = _list(record, "annotations", where)
            elif isinstance(record, list):
                entries = record
            else:
                raise SchemaError(f"{where}: expected COCO's object or a list of results, found {_kind(record)}")
            for index, each in enumerate(entries):
                place = f"annotations[{index}]" if isinstance(record, dict) else f"[{index}]"
                self._add_entry(each, f"{where}: {place}", known_images=isinstance(record, dict))
        except SchemaError as error:
            raise InputError(f"--proposals {error}") from error
        self._by_name: dict[str, list[_Image]] = defaultdict(list)
        for image in self._images.values():
            if image.name is not None:
                self._by_name[basename(image.name)].append(image)

    @staticmethod
    def read(path: str | Path, *, sha256: str | None = None) -> Proposals:
        """Reads a file.

        Args:
            path: of the JSON.
            sha256: what it must have, if that is known.

        Raises:
            InputError: it cannot be read, is malformed, or is another file than planned.
        """
        try:
            if Path(path).stat().st_size > MAX_FILE_BYTES:
                raise InputError(f"--proposals {path}: larger than {MAX_FILE_BYTES} bytes; split it by source")
            data = Path(path).read_bytes()
        except OSError as error:
            raise InputError(f"--proposals {path}: cannot be read ({error.strerror})") from error
        if sha256 is not None and sha256_of(data) != sha256:
            raise InputError(f"--proposals {path}: changed since the run was planned; bring it back as it was")
        try:
            record = load_json(data, where=str(path), max_bytes=MAX_FILE_BYTES)
        except SchemaError as error:
            raise InputError(f"--proposals {error}") from error
        return Proposals(record, where=str(path))

    def __len__(self) -> int:
        return sum(len(image.entries) for image in self._images.values())

    def meet(self, source_uri: str, member: str | None) -> None:
        """Tells of a sample that will be mined; `unused` then knows which masks are of no sample.

        Raises:
            InputError: an image of the file is that of two samples.
        """
        try:
            image = self._find(source_uri, member)
        except SampleFailureError:
            return  # two images for one sample, which will be its failure
        if image is None or not image.entries:
            return
        name = f"{source_uri} {member or ''}".rstrip()
        other = self._met.setdefault(id(image), name)
        if other != name:
            raise InputError(
                f"--proposals {image.entries[0].where}: its image {image.called!r} fits two samples, {other} and "
                f"{name}; give file names with the folders that tell them apart, or mine them in runs of their own"
            )

    def unused(self, *, min_score: float) -> PassedOver:
        """What of the file no sample that was told of by `meet` uses.

        Args:
            min_score: masks with a score must be above it.
        """
        unused = PassedOver(self._unused.to_json())
        for image in self._images.values():
            if id(image) not in self._met:
                unused.add("proposal_unmatched", image.called, count=len(image.entries))
            else:
                low = sum(entry.score is not None and not entry.score > min_score for entry in image.entries)
                unused.add("proposal_low_score", image.called, count=low)
        return unused

    def require_met(self, example: str) -> None:
        """Checks that at least one mask belongs to a sample.

        Args:
            example: a sample's name, for the message.

        Raises:
            InputError: all of them are for other images.
        """
        first = next((image for image in self._images.values() if image.entries), None)
        if first is not None and not self._met:
            raise InputError(
                f"--proposals {self._where}: none of its {len(self)} masks is for an image of the sources: the file "
                f"has {first.called!r} for instance, the sources have {example!r}"
            )

    def of(
        self,
        source_uri: str,
        member: str | None,
        *,
        height: int,
        width: int,
        min_score: float,
        passed: PassedOver | None = None,
    ) -> tuple[Proposal, ...]:
        """The masks of one sample, in the file's order; none if the file does not know it.

        Args:
            source_uri: LABEL/relative/path.
            member: in a tar or table, else None.
            height: of the upright image.
            width: likewise.
            min_score: masks with a score must be above it.
            passed: hears of masks that hold no pixel.

        Raises:
            SampleFailureError: `bad_annotation`: two images fit, or a size is another.
        """
        image = self._find(source_uri, member)
        if image is None:
            return ()
        found = []
        for entry in image.entries:
            if entry.score is not None and not entry.score > min_score:
                continue
            size = image.size or (height, width)
            if isinstance(entry.segmentation, dict):
                size = (entry.segmentation["size"][0], entry.segmentation["size"][1])
            if size != (height, width):
                raise SampleFailureError(
                    "bad_annotation",
                    "divide",
                    f"{entry.where}: for an image of {size[0]} x {size[1]} (height x width), this one upright has "
                    f"{height} x {width}",
                )
            rle: Any = entry.segmentation
            if not isinstance(rle, dict):
                rle = rle_codec.from_coco(rle, height, width, where=entry.where, clip=True)
            if rle_codec.area_px(rle_codec.run_lengths_of(rle)) > 0:
                found.append(Proposal(rle, entry.score))
            elif passed is not None:
                passed.add("proposal_without_mask", f"{source_uri} {member or ''}".rstrip())
        return tuple(found)

    def _find(self, source_uri: str, member: str | None) -> _Image | None:
        path = member or source_uri.partition("/")[2]
        if source_uri.lower().endswith(".parquet"):
            path = path.partition("/")[2]  # behind the number of the row, which is not that of an image
        if not path:
            return None
        fitting = self._by_name.get(basename(path), [])
        if len(fitting) > 1:
            names = [each.name or "" for each in fitting]
            fitting = [
                each
                for each, name in zip(fitting, names, strict=True)
                if name == path or path.endswith(f"/{name}") or name.endswith(f"/{path}")
            ]
            if len(fitting) != 1:
                raise SampleFailureError(
                    "bad_annotation",
                    "divide",
                    f"{self._where}: {len(names)} images end in {basename(path)}, and not exactly one fits {path}",
                )
        if fitting:
            return fitting[0]
        number = re.fullmatch(r"(?:sa_)?0*(\d+)", basename(path).partition(".")[0])
        for key in (int(number[1]) if number else None, path, stem_of(path), basename(path), stem_of(basename(path))):
            unnamed = None if key is None else self._images.get(key)
            if unnamed is not None and unnamed.name is None:
                return unnamed
        return None

    def _add_image(self, image: Any, where: str) -> None:
        if not isinstance(image, dict) or not isinstance(image.get("file_name", ""), str):
            raise SchemaError(f"{where}: expected an object with id, file_name, height and width")
        key = _key(image.get("id"), f"{where}.id")
        if key in self._images:
            raise SchemaError(f"{where}: image id {key} stands there twice")
        sides: Any = [image.get("height"), image.get("width")]
        size = None
        if sides != [None, None]:
            if not _is_size(sides):
                raise SchemaError(f"{where}: height and width must be whole numbers above 0, found {sides!r:.60}")
            size = (int(sides[0]), int(sides[1]))
        self._images[key] = _Image(image.get("file_name"), size, called=str(image.get("file_name", key)))

    def _add_entry(self, entry: Any, where: str, *, known_images: bool) -> None:
        if not isinstance(entry, dict):
            raise SchemaError(f"{where}: expected an object, found {_kind(entry)}")
        key = _key(entry.get("image_id"), f"{where}.image_id")
        if known_images and key not in self._images:
            raise SchemaError(f"{where}: there is no image with id {key}")
        called = self._images[key].called if key in self._images else str(key)
        if entry.get("iscrowd"):
            self._unused.add("proposal_crowd", called)  # which is no instance
            return
        if entry.get("segmentation", "missing") in (None, []):
            self._unused.add("proposal_without_mask", called)
            return
        score = entry.get("score")
        numeric = isinstance(score, int | float) and not isinstance(score, bool) and math.isfinite(score)
        if score is not None and not numeric:
            raise SchemaError(f"{where}.score: expected a finite number, found {score!r:.40}")
        image = self._images.setdefault(key, _Image(None, None, called=called))
        segmentation = _segmentation(entry.get("segmentation"), image.size, f"{where}.segmentation")
        image.entries.append(_Entry(where, segmentation, None if score is None or self._accepted else float(score)))


def _segmentation(value: Any, size: tuple[int, int] | None, where: str) -> Rle | Polygons:
    """Checked; polygons stay as they are until the image's size is known."""
    if isinstance(value, dict):
        given: Any = value.get("size")
        if not _is_size(given):
            expected = "[height, width]" if size is None else str(list(size))
            raise SchemaError(f"{where}.size: expected {expected}, found {given!r:.60}")
        height, width = size or given
        return rle_codec.from_coco(value, height, width, where=where)
    if not isinstance(value, list):
        raise SchemaError(f"{where}: expected an RLE or a list of polygons, found {_kind(value)}")
    try:
        rle_codec.expect_polygons(value)
    except SchemaError as error:
        raise SchemaError(f"{where}: {error}") from error
    if sum(map(len, value)) > MAX_POINTS:
        raise SchemaError(f"{where}: more than {MAX_POINTS} coordinates")
    return value


def _is_size(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(side, int) and not isinstance(side, bool) and 0 < side < 2**20 for side in value)
    )


def _list(record: Mapping[str, Any], name: str, where: str) -> list[Any]:
    value = record.get(name)
    if not isinstance(value, list):
        raise SchemaError(f"{where}: expected a list `{name}`, found {_kind(value)}")
    return value


def _key(value: Any, where: str) -> int | str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise SchemaError(f"{where}: expected a whole number or a name, found {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__
