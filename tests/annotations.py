"""Checks of annotations that several tests share."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.format.schema import Annotation, Sample, validate_sample


def check_annotations(annotations: Sequence[Annotation], height: int, width: int) -> None:
    """What the format's own validator says of an image's annotations."""
    sample = Sample(
        key="k", source_uri="a/b.png", member=None, source_sha256="0" * 64, license=None, width=width, height=height,
        exif_orientation=1, file_name="k.png", annotations=tuple(annotations),
    )  # fmt: skip
    validate_sample(sample, where="test")
