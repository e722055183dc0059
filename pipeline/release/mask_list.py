"""`--mask-verdicts FILE`: what people decided about single masks, on its way into a release."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputError
from ..format.granularity import GranularityMethod
from ..format.mask_verdicts import ImageVerdicts, apply_verdicts, read_verdicts
from ..format.records import CuratedRecord, SampleRow
from ..format.schema import Sample, sample_from_json, sha256_of
from ..storage.base import Reader
from .checks import ReleaseRefusedError


@dataclass(kw_only=True)
class MaskList:
    """The list, and what came of it.

    Attributes:
        images: key -> verdicts.
        sha256: of the file.
        kept_only: of the images that it names, masks that were not judged go too.
        met: keys of images that the release has or had.
        passed_over: keys of standing images with another record, as after an earlier version's verdicts.
        changed: images whose record became another one.
        counts: why masks went (`apply_verdicts`), and `made`.
    """

    images: dict[str, ImageVerdicts]
    sha256: str
    kept_only: bool
    met: set[str] = field(default_factory=set)
    passed_over: list[str] = field(default_factory=list)
    changed: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    def judged(
        self, storage: Reader, row: SampleRow, method: GranularityMethod, *, standing: bool
    ) -> tuple[Sample, Counter[str]] | None:
        """What people left of a sample; None: its record stays as it is, or stood before and was judged there.

        Args:
            storage: where its shard lies.
            row: of the index.
            method: by which its granularities were computed.
            standing: it is part of the version before.

        Raises:
            ReleaseRefusedError: the list is about another record of this image.
            SchemaError: it names masks that are not there.
        """
        verdicts = self.images.get(row["key"])
        if verdicts is None or (row["key"] in self.met and not standing):
            return None
        self.met.add(row["key"])
        if verdicts.record_sha256 != row["json_sha256"]:
            if standing:
                self.passed_over.append(row["key"])
                return None
            raise ReleaseRefusedError(
                f"--mask-verdicts: {row['key']} was judged in another record (sha256 {verdicts.record_sha256[:12]}) "
                f"than this one ({row['json_sha256'][:12]}): mined again since? Judge the masks of this run"
            )
        record = storage.read_range(row["shard"], row["json_offset"], row["json_size"])
        sample = sample_from_json(record, where=f"{row['shard']}: {row['key']}")
        left, counts = apply_verdicts(sample, verdicts, method, kept_only=self.kept_only)
        return None if left == sample else (left, counts)

    def count(self, counts: Counter[str]) -> None:
        """One more image whose masks are others now."""
        self.changed += 1
        self.counts.update(counts)

    def record(self) -> CuratedRecord:
        """For the manifest."""
        return {
            "list_sha256": self.sha256, "kept_only": self.kept_only, "images": self.changed,
            "masks": dict(sorted(self.counts.items())),
        }  # fmt: skip


def read_mask_list(path: str | None, *, kept_only: bool = False) -> MaskList | None:
    """Reads the list that `grainmill annotate` writes; None for none.

    Raises:
        InputError: it cannot be read, or `kept_only` without it.
        SchemaError: it is no such list.
    """
    if path is None:
        if kept_only:
            raise InputError("--kept-masks-only goes with --mask-verdicts FILE, which says what was kept")
        return None
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"--mask-verdicts {path}: cannot be read ({error})") from error
    images = read_verdicts(data, where=f"--mask-verdicts {path}")
    return MaskList(images=images, sha256=sha256_of(data), kept_only=kept_only)
