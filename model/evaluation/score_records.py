"""What scoring hands on and writes, as types: `scores.json`, `settings.json`, answers kept by image, rows of tables."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from pipeline.format.records import ScoresRecord

Cell = str | int | float | list[float] | None
Row = dict[str, Cell]
"""Of `objects.parquet` or of a printed table, by column. Columns are named after what was measured."""
Curves = dict[str, dict[str, list[float]]]
"""Plot -> axis or line -> numbers, see `plots.py`."""

# ---------------------------------------------------------------------------------------------------------------------
# scores.json and settings.json


class Settings(TypedDict):
    """settings.json: what changes a number, see `results.ScoreOptions`. Digests of what is scored stand beside it."""

    benchmark: str
    data: str
    split: str
    masks: str | None
    checkpoint: str | None
    base: str | None
    granularity: list[str]
    annotators: NotRequired[bool]
    """Present and true where people at work were simulated."""
    objects_per_image: int | None
    points_per_side: int
    pred_iou_threshold: float
    stability_threshold: float
    peers: list[str]
    limit: int | None
    seed: int
    grainmill: str
    """The version."""


class Configuration(Settings):
    """All that was asked for."""

    workers: int


class MatchedMasks(TypedDict):
    """How the images of `--masks` were found among those of the benchmark."""

    digest: str
    images_by_bytes: int
    images_by_name: int
    images_without_masks: int


class MasksByGranularity(TypedDict):
    """Masks of one subject in bins of granularity; per bin beside the edges."""

    granularity_edges: list[float]
    masks_by_granularity: list[int]
    masks_by_granularity_percent: list[float]
    published_percent: list[float]
    mask_precision_by_granularity: list[float | None]


class Details(TypedDict, total=False):
    """What is no metric: the first two of masks, the others of a model."""

    masks: MatchedMasks
    granularity: dict[str, MasksByGranularity]
    """By subject."""
    protocol: dict[str, object]
    """See `protocols.options.ModelOptions`."""
    costs: dict[str, dict[str, object]]
    """Of simulated annotators: variant -> `protocols.keystrokes.Costs`."""
    weights_sha256: str
    objects_of_metrics: dict[str, int]


class Published(TypedDict):
    """Numbers of papers."""

    about: str
    rows: list[Row]


class Scores(ScoresRecord):
    """scores.json."""

    dataset: dict[str, str | int]
    """Title, licence, and counts."""
    left_out: dict[str, int]
    configuration: Configuration
    seeds: dict[str, int]
    versions: dict[str, object]
    published: Published | None
    details: Details
    curves: Curves
    notes: list[str]


# ---------------------------------------------------------------------------------------------------------------------
# Kept answers


class ModelAnswer(TypedDict):
    """What a model said to one image or video."""

    rows: list[Row]
    objects: int
    """How many are scored."""
    left_out: dict[str, int]


class MaskCounts(TypedDict):
    """What recall does not say of one image's masks."""

    sums: dict[str, list[float]]
    """Metric -> [numerator, denominator]."""
    masks_by_bin: NotRequired[list[int]]
    """Of granularity."""
    hits_by_bin: NotRequired[list[int]]
    """Those that are some person's segment."""


class MasksAnswer(MaskCounts):
    """What one image with one set of masks contributes."""

    image: str
    objects: int
    """How many are scored."""
    left_out: dict[str, int]
    rows: dict[str, dict[str, list[Cell]]]
    """Subset -> column -> one value for each object."""
    curve: list[float]
    """Sums of recall in the first subset."""
