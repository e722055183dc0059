"""The JSON records beside the shards (plan, commits, manifests, statistics) and the rows of their tables, as types.

A record is a TypedDict: what is written, and what is read after `read_record` has checked it, is the same plain object,
so that its canonical JSON and its seal can be compared with the bytes of the file. Fields that a record has besides
these are kept.
"""

from __future__ import annotations

from typing import NotRequired, TypedDict, TypeVar, cast

import msgspec

from ..errors import SchemaError
from .release_tables import KIND
from .schema import FORMAT, load_json

# ---------------------------------------------------------------------------------------------------------------------
# Files


class FileRecord(TypedDict):
    """A file by its name under the root of a run or a release."""

    name: str
    size: int
    """Bytes."""
    sha256: str


class TableRecord(FileRecord):
    """A parquet file."""

    rows: int


class FailureTableRecord(TableRecord):
    """The failed samples of a unit."""

    reasons: dict[str, int]


class ShardRecord(FileRecord):
    """A shard as the commit of its unit names it."""

    samples: int
    masks: int


class RunShardRecord(ShardRecord):
    """A shard as the manifest of a run names it."""

    unit: int


class ReleasedShardRecord(RunShardRecord):
    """A shard as the manifest of a release names it."""

    run: str
    """Id of the run that made it (`RunEntry`)."""


class IndexRecord(TypedDict):
    """The two tables of an index."""

    samples: TableRecord
    masks: TableRecord


# ---------------------------------------------------------------------------------------------------------------------
# Plan and commits


class PassedRecord(TypedDict):
    """What was seen and not used for one reason, see `sources/passed_over.py`."""

    count: int
    kinds: dict[str, int]
    example: str


class FeaturesRecord(TypedDict, total=False):
    """Of a configuration: what readers ask of `labeling.config.FeaturesConfig`."""

    backbone: str | None
    weights_sha256: str | None
    boundaries_sha256: str | None


class DivideRecord(TypedDict, total=False):
    """Of a configuration: what readers ask of `labeling.config.DivideConfig`."""

    proposals_license: str | None


class GranularityRecord(TypedDict, total=False):
    """Of a configuration: `labeling.config.GranularityConfig`."""

    method: str


class HashedSource(TypedDict):
    """What of a source decides the bytes of shards."""

    label: str
    license: str | None
    image_column: NotRequired[str | None]


class ConfigRecord(TypedDict, total=False):
    """A configuration as it is hashed, of which these are the fields that readers ask for by name.

    It is `labeling.config.MineConfig` with the sources.
    """

    labels_version: int
    recipe: str
    features: FeaturesRecord
    divide: DivideRecord
    granularity: GranularityRecord
    limit: int | None
    images: bool
    sources: list[HashedSource]


class PlannedSource(TypedDict):
    """One `--input`, see `sources.units.SourceSpec`."""

    label: str
    location: str
    license: NotRequired[str | None]
    image_column: NotRequired[str | None]


class UnitTableRecord(TableRecord):
    """A parquet file of planned units; `rows` of them."""

    samples: int
    first_unit: int


class UnitsRecord(TypedDict):
    """All units that a plan, or an extension of it, adds."""

    digest: str
    tables: list[UnitTableRecord]


class ExtensionRecord(TypedDict):
    """plan/extension-NNNN.json."""

    format: str
    config_hash: str
    units: UnitsRecord
    passed_over: NotRequired[dict[str, PassedRecord]]


class PlanRecord(ExtensionRecord):
    """plan.json."""

    config: ConfigRecord
    code_version: str
    weights_sha256: str | None
    seed: int
    environment: dict[str, object]
    """See `environment.numeric.numeric_environment`."""
    sources: list[PlannedSource]


class CommitRecord(TypedDict):
    """commits/NNNNNNNN.json."""

    format: str
    unit: int
    config_hash: str
    shard: ShardRecord | None
    """None if no sample was good."""
    index: IndexRecord | None
    failures: FailureTableRecord | None
    seconds: dict[str, float]
    """Per stage, summed over the unit's samples, and `wall`."""
    environment: dict[str, object]
    attempt: str
    notes: list[str]
    passed_over: NotRequired[dict[str, PassedRecord]]


# ---------------------------------------------------------------------------------------------------------------------
# Manifests


class ShardsManifest(TypedDict):
    """What manifest.json of a run and of a release have in common for those who want its shards."""

    format: str
    shards: list[ShardRecord]


class RunSummary(TypedDict):
    """manifest.json of a run without its list of shards, which may be long."""

    format: str
    complete: bool
    digest: str
    samples: int
    masks: int
    failures: int
    failure_reasons: dict[str, int]
    config_hash: str
    config: ConfigRecord
    units: int
    passed_over: NotRequired[dict[str, PassedRecord]]
    index: IndexRecord


class RunManifest(RunSummary):
    """manifest.json of a run."""

    shards: list[RunShardRecord]


class RunEntry(TypedDict):
    """What a release says of a run that is in it: every setting, nothing about the machine."""

    id: str
    digest: str
    config: ConfigRecord
    config_hash: str
    code_version: str
    weights_sha256: str | None
    seed: int
    sources: list[str]
    units: int
    samples: int
    masks: int
    failures: int
    date: str


class ReleasedSource(TypedDict):
    """A source that is or was in a release."""

    label: str
    license: str | None
    terms: str | None
    samples: int


class SplitsRecord(TypedDict):
    """The splits of a release."""

    shares: list[tuple[str, float]]
    """Their order decides."""
    key: str | None
    files: dict[str, IndexRecord]
    counts: dict[str, int]
    none: int
    """Samples that are in no split."""


class EvaluationRecord(TypedDict):
    """An evaluation set that a release was compared with."""

    label: str
    images: int
    exact: int
    near: int
    removed: int


class DuplicatesRecord(TypedDict):
    """What was found of equal and near-equal images."""

    searched: bool
    counts: dict[str, int]
    removed: dict[str, int]
    unsigned: int
    against: list[EvaluationRecord]
    table: TableRecord | None


class CuratedRecord(TypedDict):
    """What people decided about single masks (`format/mask_verdicts.py`), and what came of it."""

    list_sha256: str
    kept_only: bool
    """Masks that were not judged went too."""
    images: int
    """Whose masks are others now."""
    masks: dict[str, int]
    """Why masks went: dropped, unjudged, merged, split, edited; and how many were `made` in their place."""


class ChangesRecord(TypedDict):
    """What a version added and left out."""

    added: int
    runs: int
    present: int
    left: dict[str, int]
    excluded_keys: list[str]
    joined: NotRequired[int]
    curated: NotRequired[CuratedRecord]


class VersionRecord(TypedDict):
    """One version of a release."""

    version: str
    date: str
    digest: str
    samples: int
    masks: int
    changes: ChangesRecord


class CardRecord(TypedDict):
    """What publishers add to the card, and the template that it was made from."""

    description: str | None
    people: str | None
    template_sha256: str


class ExampleRecord(TypedDict):
    """A picture of the card."""

    name: str
    key: str
    masks: int
    instances: int


class ReleaseManifest(TypedDict):
    """manifest.json of a release."""

    format: str
    kind: str
    complete: bool
    name: str
    title: str
    version: str
    license: str
    license_link: NotRequired[str]
    date: str
    hub: str | None
    digest: str
    samples: int
    masks: int
    failures: int
    failure_reasons: dict[str, int]
    units: int
    images: bool
    config_hash: str
    config: ConfigRecord
    runs: list[RunEntry]
    sources: list[ReleasedSource]
    proposals_license: str | None
    shards: list[ReleasedShardRecord]
    index: IndexRecord
    failures_table: TableRecord | None
    removed_table: TableRecord | None
    splits: SplitsRecord
    duplicates: DuplicatesRecord
    card: CardRecord
    versions: list[VersionRecord]
    charts: list[str]
    examples: list[ExampleRecord]
    gallery: bool
    files: list[FileRecord]
    record_sha256: NotRequired[str]


class MachineRecord(TypedDict):
    """Where and how fast a run of a release was mined."""

    run: str
    environment: dict[str, object]
    commit_environments: list[dict[str, object]]
    seconds: dict[str, float]
    wall_seconds: float


class MachinesRecord(TypedDict):
    """machines.json."""

    format: str
    kind: str
    runs: list[MachineRecord]


# ---------------------------------------------------------------------------------------------------------------------
# Numbers


class Histogram(TypedDict):
    """Counts between edges."""

    edges: list[float]
    counts: list[int]
    percent: list[float]


class GranularityHistogram(Histogram):
    """Masks by granularity, beside the published ones."""

    published_percent: list[float]


class LabelledHistogram(TypedDict):
    """Counts of named bins."""

    labels: list[str]
    counts: list[int]


class ProfileRecord(TypedDict):
    """Means of one image, for `grainmill plan --profile`."""

    seconds_per_image: dict[str, float | None]
    image_bytes: float | None
    label_bytes: float | None
    masks_per_image: float | None


class LabelStatistics(TypedDict):
    """What runs and releases count alike; see `dataset.stats`."""

    samples: int
    masks: int
    instances: int
    failures: int
    failures_by_reason: dict[str, int]
    empty: int
    masks_per_image: float | None
    masks_per_image_quantiles: dict[str, int | None]
    instances_per_image: float | None
    granularity_histogram: GranularityHistogram
    area_histogram: Histogram
    depth: dict[str, int]
    origins: dict[str, int]
    ceiling_images_per_second: float | None
    ceiling_share: float | None
    profile: ProfileRecord | None
    megapixels: float


class RunStatisticsRecord(LabelStatistics):
    """`grainmill stats --json`."""

    units: int
    seconds: dict[str, float]
    seconds_share: dict[str, float | None]
    wall_seconds: float
    seconds_per_image: float | None
    images_per_second: float | None


class ReleaseStatistics(LabelStatistics):
    """statistics.json of a release."""

    masks_per_image_histogram: LabelledHistogram
    digest: str


class MetricRecord(TypedDict):
    """A number of scores.json with its 95 % interval over images; None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None


class ScoresRecord(TypedDict):
    """Of scores.json of `grainmill score`: what pages show; see `model.evaluation.score_records`."""

    benchmark: str
    split: str
    metrics: dict[str, MetricRecord]
    command: NotRequired[str]


# ---------------------------------------------------------------------------------------------------------------------
# Rows of the tables


class SampleRow(TypedDict):
    """A row of `schema.SAMPLES_SCHEMA`."""

    key: str
    shard: str
    image_offset: int | None
    image_size: int | None
    json_offset: int
    json_size: int
    json_sha256: str
    ext: str | None
    width: int
    height: int
    exif_orientation: int
    num_masks: int
    num_instances: int
    source_uri: str
    member: str | None
    license: str | None
    source_sha256: str


class AddedColumns(TypedDict):
    """What a row of `release_tables.RELEASED_SAMPLES_SCHEMA` has beyond `SampleRow`."""

    run: str
    split: str | None
    source_license: str | None
    source_terms: str | None
    perceptual_hash: str | None
    colour_grid: str | None


class ReleasedRow(SampleRow, AddedColumns):
    """A row of `release_tables.RELEASED_SAMPLES_SCHEMA`."""


class MaskRow(TypedDict):
    """A row of `schema.MASKS_SCHEMA`."""

    key: str
    mask_id: int
    area_px: int
    area_fraction: float
    bbox_x: int
    bbox_y: int
    bbox_w: int
    bbox_h: int
    granularity: float
    instance_id: int
    parent_id: int | None
    depth: int
    level: int | None
    origin: str
    score: float | None


class FailedRow(TypedDict):
    """A row of `schema.FAILURES_SCHEMA`."""

    key: str
    source_uri: str
    member: str | None
    stage: str
    reason: str
    message: str


class DuplicateRow(TypedDict):
    """A row of `release_tables.DUPLICATES_SCHEMA`."""

    key: str
    like: str
    kind: str
    distance: int
    removed: bool


class RemovedRow(TypedDict):
    """A row of `release_tables.REMOVED_SCHEMA`."""

    key: str
    source_uri: str
    member: str | None
    source_sha256: str
    why: str
    version: str


# ---------------------------------------------------------------------------------------------------------------------
# Reading

Record = TypeVar("Record")


def checked_record(record: object, kind: type[Record], *, where: str) -> Record:
    """The same object, once it is known to be a record of a kind.

    Args:
        record: as parsed.
        kind: one of the TypedDicts above.
        where: file, for the message.

    Raises:
        SchemaError: another format than this version reads, a field that is missing, or one of another type.
    """
    found = record.get("format") if isinstance(record, dict) else type(record).__name__
    if found != FORMAT:
        raise SchemaError(
            f"{where}: format is {found!r:.80}, this version reads {FORMAT!r}; use the version that wrote it"
        )
    try:
        msgspec.convert(record, kind)
    except msgspec.ValidationError as error:
        raise SchemaError(f"{where}: {error}; `grainmill verify` tells more") from error
    return cast(Record, record)


def read_record(data: bytes, kind: type[Record], *, where: str) -> Record:
    """Parses and checks a record, see `checked_record` and `schema.load_json`."""
    return checked_record(load_json(data, where=where), kind, where=where)


def read_release_manifest(data: bytes, *, where: str) -> ReleaseManifest | None:
    """manifest.json of a release; None if it is that of a run, or of somebody else.

    Raises:
        SchemaError: not JSON, or as `checked_record`.
    """
    record = load_json(data, where=where)
    if not isinstance(record, dict) or record.get("kind") != KIND:
        return None
    return checked_record(record, ReleaseManifest, where=where)
