"""The contract: what a shard, its index and its failure rows hold (format `grainmill/1`).

A shard is a plain tar. Each sample is two members, `KEY.EXT` (the source image's bytes, unchanged; absent with
`--no-images`) and `KEY.json` (the record below, canonical JSON). One pair of parquet files indexes a shard's samples
and masks; one more holds the failed samples. Everything that crosses a process, a file or the border between `pipeline`
and `model` is one of these records.

Masks live on the upright grid: the image after its EXIF orientation has been applied. Boxes are (x, y, w, h) in
whole pixels, areas are pixel counts, `granularity` is in [0.1, 1.0] with six decimals.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar, cast, get_args

import pyarrow as pa

from ..errors import SchemaError
from . import rle as rle_codec
from .granularity import GRANULARITY_MAX, GRANULARITY_MIN
from .rle import Rle

FORMAT: Final = "grainmill/1"
"""Stands in every sample, plan, commit and manifest. Readers refuse one that they do not know."""

LABELS_VERSION: Final = 2
"""Raised whenever a change of code changes labels, so that old and new labels never share a run.

2: images of 16 bits a channel by the bits that they use (`images.py`), before by the high byte; a PNG with damaged
pixels is a failure, before it was mined as far as it went.
"""

CONTAINED_FRACTION: Final = 0.9
"""A mask is inside another if at least this share of it is."""
MAX_IMAGE_FRACTION: Final = 0.9
"""A mask larger than this share of the image is background, unless it is alone."""

Origin = Literal["annotation", "proposal", "divide", "remainder", "conquer"]
ORIGINS: Final[tuple[Origin, ...]] = get_args(Origin)
"""Where a mask came from, in the order in which duplicates are kept."""

EXTENSIONS: Final = ("jpg", "png", "webp", "tif", "bmp")
"""Image members' extensions, by content and not by the source's name."""

MAX_JSON_BYTES: Final = 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """One mask of a sample. See `validate_sample` for what holds between the masks of one image."""

    id: int
    """0..n-1, equal to the position in the list."""
    segmentation: Rle
    bbox: tuple[int, int, int, int]
    """x, y, w, h in pixels; w = max - min + 1."""
    area: int
    """Pixels."""
    granularity: float
    """In [0.1, 1.0], six decimals; 1.0 for an instance."""
    instance_id: int
    """The id of the instance this mask belongs to; its own id if it is one."""
    parent_id: int | None
    """The smallest earlier mask of the same instance that contains this one; None for an instance."""
    level: int | None
    """Merge threshold (0 = the highest) at which the region first appeared; None if not from conquer."""
    origin: Origin
    score: float | None
    """Larger is better, comparable within one origin; None where the origin gives none."""

    @property
    def is_instance(self) -> bool:
        return self.id == self.instance_id


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image with its masks."""

    key: str
    source_uri: str
    """LABEL/relative/path, POSIX; never an absolute path, user, query or fragment."""
    member: str | None
    """Name inside a tar or row in a parquet file; None for plain files."""
    source_sha256: str
    """Of the image's bytes."""
    license: str | None
    width: int
    """Pixels, after the EXIF orientation."""
    height: int
    exif_orientation: int
    """1..8, as stored in the source's bytes."""
    file_name: str | None
    """KEY.EXT, or None when the shard holds no images."""
    annotations: tuple[Annotation, ...]


@dataclass(frozen=True, kw_only=True)
class FailureRow:
    """One input sample that is in no shard, and why."""

    key: str
    source_uri: str
    member: str | None
    stage: str
    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class MemberLocation:
    """Where a sample's members lie in its shard. Offsets point at the data, so that one ranged read gets one sample."""

    shard: str
    image_offset: int | None
    image_size: int | None
    json_offset: int
    json_size: int
    json_sha256: str


# ---------------------------------------------------------------------------------------------------------------------
# Arrow schemas

SAMPLES_SCHEMA: Final = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("image_offset", pa.int64()),
        pa.field("image_size", pa.int64()),
        pa.field("json_offset", pa.int64(), nullable=False),
        pa.field("json_size", pa.int64(), nullable=False),
        pa.field("json_sha256", pa.string(), nullable=False),
        pa.field("ext", pa.string()),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("exif_orientation", pa.int8(), nullable=False),
        pa.field("num_masks", pa.int32(), nullable=False),
        pa.field("num_instances", pa.int32(), nullable=False),
        pa.field("source_uri", pa.string(), nullable=False),
        pa.field("member", pa.string()),
        pa.field("license", pa.string()),
        pa.field("source_sha256", pa.string(), nullable=False),
    ],
    metadata={"format": FORMAT, "table": "samples"},
)

MASKS_SCHEMA: Final = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("mask_id", pa.int32(), nullable=False),
        pa.field("area_px", pa.int64(), nullable=False),
        pa.field("area_fraction", pa.float64(), nullable=False),
        pa.field("bbox_x", pa.int32(), nullable=False),
        pa.field("bbox_y", pa.int32(), nullable=False),
        pa.field("bbox_w", pa.int32(), nullable=False),
        pa.field("bbox_h", pa.int32(), nullable=False),
        pa.field("granularity", pa.float64(), nullable=False),
        pa.field("instance_id", pa.int32(), nullable=False),
        pa.field("parent_id", pa.int32()),
        pa.field("depth", pa.int32(), nullable=False),
        pa.field("level", pa.int32()),
        pa.field("origin", pa.string(), nullable=False),
        pa.field("score", pa.float64()),
    ],
    metadata={"format": FORMAT, "table": "masks"},
)

FAILURES_SCHEMA: Final = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("source_uri", pa.string(), nullable=False),
        pa.field("member", pa.string()),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
    ],
    metadata={"format": FORMAT, "table": "failures"},
)


# ---------------------------------------------------------------------------------------------------------------------
# Keys and canonical JSON


def slug_of(stem: str) -> str:
    """At most 40 characters of `[a-z0-9_-]`; every other run of characters becomes one `-`."""
    slug = re.sub(r"[^a-z0-9_-]+", "-", stem.lower())[:40].strip("-")
    return slug or "image"


def make_key(*, label: str, relative_path: str, member: str | None, occurrence: int, sha256: str) -> str:
    """The sample's key: slug of the source's stem + `-` + 20 hex digits of where it came from and what it holds.

    `occurrence` counts how often the member's name was met before in the same tar (0 unless it is repeated);
    `sha256` is that of the image's bytes, or "" if they could not be read.
    """
    identity = "\0".join([label, relative_path, member or "", str(occurrence), sha256])
    digest = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()
    name = (member or relative_path).rsplit("/", 1)[-1]
    stem = name.rsplit(".", 1)[0] if "." in name[1:] else name
    return f"{slug_of(stem)}-{digest[:20]}"


def canonical_json(value: Any) -> bytes:
    """UTF-8, sorted keys, no spaces, no escapes beyond JSON's own, finite numbers only.

    Raises:
        ValueError: a NaN or an infinity.
    """
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8")


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


SEAL: Final = "record_sha256"
"""Field of plan.json, its extensions, commits and manifest.json; see `sealed`."""


_Record = TypeVar("_Record", bound=Mapping[str, Any])


def sealed(record: _Record) -> _Record:
    """The record with the sha256 of its own canonical JSON (without that field), so that any changed byte shows."""
    seal = sha256_of(canonical_json({name: record[name] for name in record if name != SEAL}))
    return cast(_Record, {**record, SEAL: seal})


def load_json(data: bytes, *, where: str, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Parses JSON from outside: bounded size, depth (the parser's own limit), no NaN, no duplicate keys.

    Raises:
        SchemaError: with `where` in its message.
    """
    if len(data) > max_bytes:
        raise SchemaError(f"{where}: JSON of {len(data)} bytes is larger than the limit of {max_bytes}")

    def refuse_constant(name: str) -> Any:
        raise SchemaError(f"{where}: JSON holds {name}, only finite numbers are allowed")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise SchemaError(f"{where}: JSON repeats a key in one object")
        return found

    try:
        return json.loads(data, parse_constant=refuse_constant, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"{where}: not valid JSON ({error})") from error


# ---------------------------------------------------------------------------------------------------------------------
# Samples to and from bytes


def sample_to_json(sample: Sample) -> bytes:
    """The bytes of `KEY.json`."""
    return canonical_json(
        {
            "format": FORMAT,
            "key": sample.key,
            "source": {
                "uri": sample.source_uri,
                "member": sample.member,
                "sha256": sample.source_sha256,
                "license": sample.license,
            },
            "image": {
                "width": sample.width,
                "height": sample.height,
                "exif_orientation": sample.exif_orientation,
                "file_name": sample.file_name,
            },
            "annotations": [
                {
                    "id": mask.id,
                    "category_id": 1,
                    "iscrowd": 0,
                    "segmentation": {
                        "size": list(mask.segmentation["size"]),
                        "counts": mask.segmentation["counts"],
                    },
                    "bbox": list(mask.bbox),
                    "area": mask.area,
                    "granularity": mask.granularity,
                    "instance_id": mask.instance_id,
                    "parent_id": mask.parent_id,
                    "level": mask.level,
                    "origin": mask.origin,
                    "score": mask.score,
                }
                for mask in sample.annotations
            ],
        }
    )


def sample_from_json(data: bytes, *, where: str) -> Sample:
    """Reads `KEY.json` and checks every field's type and range (not the masks' pixels: see `validate_sample`).

    Args:
        data: the member's bytes.
        where: shard and key, for the message.

    Raises:
        SchemaError: what was expected and found, and where.
    """
    record = load_json(data, where=where)
    _expect_keys(record, {"format", "key", "source", "image", "annotations"}, where)
    if record["format"] != FORMAT:
        raise SchemaError(
            f"{where}: format is {record['format']!r}, this version reads {FORMAT!r}; use the version that wrote it"
        )
    source, image = record["source"], record["image"]
    _expect_keys(source, {"uri", "member", "sha256", "license"}, f"{where}: source")
    _expect_keys(image, {"width", "height", "exif_orientation", "file_name"}, f"{where}: image")
    if not isinstance(record["annotations"], list):
        raise SchemaError(f"{where}: annotations must be a list, found {type(record['annotations']).__name__}")
    width = _integer(image["width"], f"{where}: image.width", 1, 2**31 - 1)
    height = _integer(image["height"], f"{where}: image.height", 1, 2**31 - 1)
    return Sample(
        key=_string(record["key"], f"{where}: key"),
        source_uri=_string(source["uri"], f"{where}: source.uri"),
        member=_optional_string(source["member"], f"{where}: source.member"),
        source_sha256=_string(source["sha256"], f"{where}: source.sha256"),
        license=_optional_string(source["license"], f"{where}: source.license"),
        width=width,
        height=height,
        exif_orientation=_integer(image["exif_orientation"], f"{where}: image.exif_orientation", 1, 8),
        file_name=_optional_string(image["file_name"], f"{where}: image.file_name"),
        annotations=tuple(
            _annotation(entry, index, len(record["annotations"]), width, height, f"{where}: annotations[{index}]")
            for index, entry in enumerate(record["annotations"])
        ),
    )


_ANNOTATION_KEYS: Final = {
    "id", "category_id", "iscrowd", "segmentation", "bbox", "area", "granularity", "instance_id", "parent_id",
    "level", "origin", "score",
}  # fmt: skip


def _annotation(entry: Any, index: int, count: int, width: int, height: int, where: str) -> Annotation:
    _expect_keys(entry, _ANNOTATION_KEYS, where)
    segmentation = entry["segmentation"]
    _expect_keys(segmentation, {"size", "counts"}, f"{where}.segmentation")
    if segmentation["size"] != [height, width]:
        raise SchemaError(f"{where}.segmentation.size is {segmentation['size']}, the image is [{height}, {width}]")
    if entry["category_id"] != 1 or entry["iscrowd"] != 0:
        raise SchemaError(f"{where}: category_id must be 1 and iscrowd 0")
    if entry["id"] != index:
        raise SchemaError(f"{where}.id is {entry['id']!r}, expected its position {index}")
    bbox = entry["bbox"]
    if not isinstance(bbox, list) or len(bbox) != 4:
        raise SchemaError(f"{where}.bbox must be [x, y, w, h], found {bbox!r:.60}")
    granularity = _number(entry["granularity"], f"{where}.granularity")
    if not GRANULARITY_MIN <= granularity <= GRANULARITY_MAX:
        raise SchemaError(f"{where}.granularity is {granularity}, expected [{GRANULARITY_MIN}, {GRANULARITY_MAX}]")
    if entry["origin"] not in ORIGINS:
        raise SchemaError(f"{where}.origin is {entry['origin']!r}, expected one of {', '.join(ORIGINS)}")
    parent, level, score = entry["parent_id"], entry["level"], entry["score"]
    return Annotation(
        id=index,
        segmentation={"size": [height, width], "counts": _string(segmentation["counts"], f"{where}.counts")},
        bbox=(
            _integer(bbox[0], f"{where}.bbox", 0, width - 1),
            _integer(bbox[1], f"{where}.bbox", 0, height - 1),
            _integer(bbox[2], f"{where}.bbox", 1, width),
            _integer(bbox[3], f"{where}.bbox", 1, height),
        ),
        area=_integer(entry["area"], f"{where}.area", 1, width * height),
        granularity=granularity,
        instance_id=_integer(entry["instance_id"], f"{where}.instance_id", 0, count - 1),
        parent_id=None if parent is None else _integer(parent, f"{where}.parent_id", 0, count - 1),
        level=None if level is None else _integer(level, f"{where}.level", 0, 2**31 - 1),
        origin=entry["origin"],
        score=None if score is None else _number(score, f"{where}.score"),
    )


def order_key(mask: Annotation) -> tuple[int, float, bytes]:
    """Within an instance: area descending, then score descending (no score last), then RLE bytes."""
    score = -math.inf if mask.score is None else mask.score
    return (-mask.area, -score, mask.segmentation["counts"].encode("ascii"))


def validate_sample(sample: Sample, *, where: str) -> None:
    """Checks the rules of an image's tree (`labeling/hierarchy.py`), down to the pixels.

    Boxes and areas equal what the RLE gives; annotations stand in their order; an instance has granularity 1.0 and no
    parent; every other mask has an earlier parent of its own instance that contains it exactly and whose granularity
    is not lower.

    Raises:
        SchemaError: the first thing that does not hold.
    """
    decoded = {}
    for mask in sample.annotations:
        here = f"{where}: annotations[{mask.id}]"
        lengths = rle_codec.run_lengths_of(mask.segmentation)
        if rle_codec.area_px(lengths) != mask.area:
            raise SchemaError(f"{here}: area is {mask.area}, its RLE has {rle_codec.area_px(lengths)}")
        if rle_codec.bbox_xywh(lengths, sample.height) != mask.bbox:
            raise SchemaError(
                f"{here}: bbox is {mask.bbox}, its RLE gives {rle_codec.bbox_xywh(lengths, sample.height)}"
            )
        if mask.granularity != round(mask.granularity, 6):
            raise SchemaError(f"{here}: granularity {mask.granularity!r} has more than six decimals")
        decoded[mask.id] = mask
    previous: Annotation | None = None
    for mask in sample.annotations:
        here = f"{where}: annotations[{mask.id}]"
        if mask.is_instance:
            if mask.parent_id is not None or mask.granularity != GRANULARITY_MAX:
                raise SchemaError(f"{here}: an instance has no parent and granularity 1.0")
        else:
            if previous is None or mask.instance_id != previous.instance_id:
                raise SchemaError(f"{here}: part of instance {mask.instance_id}, which does not stand just before")
            if mask.parent_id is None or mask.parent_id >= mask.id:
                raise SchemaError(f"{here}: a part needs an earlier parent, found {mask.parent_id}")
            parent = decoded[mask.parent_id]
            if parent.instance_id != mask.instance_id:
                raise SchemaError(f"{here}: its parent {parent.id} belongs to another instance")
            if parent.granularity < mask.granularity:
                raise SchemaError(f"{here}: granularity {mask.granularity} above its parent's {parent.granularity}")
            assert previous is not None
            if not previous.is_instance and order_key(previous) > order_key(mask):
                raise SchemaError(f"{here}: out of order (area, score, RLE bytes) after annotation {previous.id}")
        previous = mask
    _check_containment(sample, where)


def _check_containment(sample: Sample, where: str) -> None:
    parts = [mask for mask in sample.annotations if mask.parent_id is not None]
    if not parts:
        return
    cache: dict[int, Any] = {}
    for mask in parts:
        assert mask.parent_id is not None
        for each in (mask.parent_id, mask.id):
            if each not in cache:
                cache[each] = rle_codec.decode(sample.annotations[each].segmentation)
        if bool((cache[mask.id] & ~cache[mask.parent_id]).any()):
            raise SchemaError(f"{where}: annotations[{mask.id}] is not inside its parent {mask.parent_id}")


# ---------------------------------------------------------------------------------------------------------------------
# Index rows


def sample_row(sample: Sample, location: MemberLocation) -> dict[str, Any]:
    """One row of `index/samples-*.parquet`."""
    return {
        "key": sample.key,
        "shard": location.shard,
        "image_offset": location.image_offset,
        "image_size": location.image_size,
        "json_offset": location.json_offset,
        "json_size": location.json_size,
        "json_sha256": location.json_sha256,
        "ext": None if sample.file_name is None else sample.file_name.rsplit(".", 1)[-1],
        "width": sample.width,
        "height": sample.height,
        "exif_orientation": sample.exif_orientation,
        "num_masks": len(sample.annotations),
        "num_instances": sum(mask.is_instance for mask in sample.annotations),
        "source_uri": sample.source_uri,
        "member": sample.member,
        "license": sample.license,
        "source_sha256": sample.source_sha256,
    }


def mask_rows(sample: Sample) -> list[dict[str, Any]]:
    """The rows of `index/masks-*.parquet` for one sample."""
    depth: dict[int, int] = {}
    rows = []
    for mask in sample.annotations:
        depth[mask.id] = 0 if mask.parent_id is None else depth[mask.parent_id] + 1
        rows.append(
            {
                "key": sample.key,
                "mask_id": mask.id,
                "area_px": mask.area,
                "area_fraction": mask.area / (sample.width * sample.height),
                "bbox_x": mask.bbox[0],
                "bbox_y": mask.bbox[1],
                "bbox_w": mask.bbox[2],
                "bbox_h": mask.bbox[3],
                "granularity": mask.granularity,
                "instance_id": mask.instance_id,
                "parent_id": mask.parent_id,
                "depth": depth[mask.id],
                "level": mask.level,
                "origin": mask.origin,
                "score": mask.score,
            }
        )
    return rows


def dataset_digest(shards: Iterable[Sequence[Any]], failures: Iterable[Sequence[Any]]) -> str:
    """Equal for equal data: sha256 of the canonical JSON of the format, the shards and the failures.

    Args:
        shards: [unit, sha256, samples, masks] each, for units that have a shard.
        failures: [key, source_uri, member, stage, reason] each, without the message.
    """
    digest = DatasetDigest()
    for row in sorted([*row] for row in shards):
        digest.add_shard(row)
    return digest.finish(failures)


class DatasetDigest:
    """`dataset_digest` for shards that come one by one, so that a million of them need no memory."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256(b"[" + canonical_json(FORMAT) + b",[")
        self._last: list[Any] | None = None

    def add_shard(self, row: Sequence[Any]) -> None:
        """[unit, sha256, samples, masks]; units ascending."""
        assert self._last is None or self._last < [*row], "shards come in the order of their units"
        self._hash.update((b"" if self._last is None else b",") + canonical_json([*row]))
        self._last = [*row]

    def finish(self, failures: Iterable[Sequence[Any]]) -> str:
        """The digest, with the failures of all units in any order."""
        rows = sorted(([*row] for row in failures), key=lambda row: [item or "" for item in row])
        self._hash.update(b"]," + canonical_json(rows) + b"]")
        return self._hash.hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Checks of single fields


def _expect_keys(record: Any, keys: set[str], where: str) -> None:
    if not isinstance(record, Mapping):
        raise SchemaError(f"{where}: expected an object, found {type(record).__name__}")
    if set(record) != keys:
        missing, extra = sorted(keys - set(record)), sorted(set(record) - keys)
        raise SchemaError(f"{where}: missing fields {missing}, unknown fields {extra!r:.200}")


def _string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise SchemaError(f"{where}: expected a string, found {value!r:.60}")
    return value


def _optional_string(value: Any, where: str) -> str | None:
    return None if value is None else _string(value, where)


def _integer(value: Any, where: str, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise SchemaError(f"{where}: expected an integer in [{low}, {high}], found {value!r:.60}")
    return value


def _number(value: Any, where: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise SchemaError(f"{where}: expected a finite number, found {value!r:.60}")
    return float(value)
