"""Samples that a benchmark made, written as one committed run: what training reads."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.format.schema import Sample
from pipeline.labeling.config import MineConfig
from pipeline.mining.manifest import write_manifest
from pipeline.shards import plan as plans
from pipeline.shards.commits import CommitWriter, make_commit
from pipeline.shards.writer import ShardWriter
from pipeline.sources.units import Entry, SourceSpec, UnitSpec
from pipeline.storage.open import open_storage


def write_run(
    samples: Sequence[tuple[Sample, bytes]], output: str, *, label: str, license: str | None = None
) -> tuple[int, int]:
    """Writes one unit of all samples with their images' bytes; returns how many samples and masks.

    Args:
        samples: at least one; their trees are written as they are, unchecked.
        output: a folder or URL without a run.
        label: of the source.
        license: of the source.
    """
    storage = open_storage(output, create=True)
    entries = tuple(
        Entry(path=str(sample.file_name), raw=str(sample.file_name), file_size=len(data), version="1")
        for sample, data in samples
    )
    plan = plans.create_plan(
        storage,
        MineConfig(samples_per_shard=len(samples)),
        (SourceSpec(label=label, location=output, license=license),),
        environment={},
        units=iter([UnitSpec(unit=0, source=0, entries=entries)]),
    )
    with ShardWriter(storage, unit=0, attempt=label) as writer:
        for sample, data in samples:
            writer.add(sample, data)
        outputs = writer.finish()
        outputs.publish(storage)
    commit = make_commit(
        outputs, unit=0, config_hash=plan.config_hash, seconds={}, environment={}, attempt=label, notes=[]
    )
    CommitWriter(storage).create(commit)
    write_manifest(storage, plan)
    return len(samples), sum(len(sample.annotations) for sample, _ in samples)
