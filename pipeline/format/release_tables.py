"""The tables of a release: the columns that its index has beyond a run's, pairs of like images, and what left."""

from __future__ import annotations

from typing import Final

import pyarrow as pa

from .schema import FORMAT, SAMPLES_SCHEMA

KIND: Final = "release"
"""`kind` in the manifest of a release; a run's has none."""
MANIFEST: Final = "manifest.json"
"""Of runs and releases."""

ADDED_COLUMNS: Final = (
    pa.field("run", pa.string(), nullable=False),
    pa.field("split", pa.string()),
    pa.field("source_license", pa.string()),
    pa.field("source_terms", pa.string()),
    pa.field("perceptual_hash", pa.string()),
    pa.field("colour_grid", pa.string()),
)
"""What a release knows of a sample beyond its shard: the run, the split (null: in none), the licence and terms of its
source, and the signature by which near-duplicates are found (see `duplicates.py`)."""

RELEASED_SAMPLES_SCHEMA: Final = pa.schema(
    [*SAMPLES_SCHEMA, *ADDED_COLUMNS], metadata={"format": FORMAT, "table": "samples"}
)

DUPLICATES_SCHEMA: Final = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("like", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("distance", pa.int32(), nullable=False),
        pa.field("removed", pa.bool_(), nullable=False),
    ],
    metadata={"format": FORMAT, "table": "duplicates"},
)
"""`kind`: exact, near, evaluation-exact or evaluation-near; `like`: an earlier sample's key, or LABEL/path of an
evaluation image; `distance`: differing bits of the perceptual hash."""

REMOVED_SCHEMA: Final = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("source_uri", pa.string(), nullable=False),
        pa.field("member", pa.string()),
        pa.field("source_sha256", pa.string(), nullable=False),
        pa.field("why", pa.string(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
    ],
    metadata={"format": FORMAT, "table": "removed"},
)
"""`why`: excluded, unlisted, no_masks, exact, near or evaluation; `version`: the first one without it."""
