"""Samples of one unit, mined in batches: the native work, in whatever process it runs.

Reads, decodes and mines by position and answers with finished samples or failure rows. It writes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Final

from ..environment import faults
from ..environment.numeric import device_name, fix_threads, numeric_environment
from ..errors import FailureReason, FailureStage, SampleFailureError
from ..format.rle import Rle
from ..format.schema import FailureRow, Sample
from ..labeling.config import MineConfig
from ..labeling.miner import BatchFeatures, ImageInput, ImageMiner, MinedImage
from ..sources.annotations import are_upright, parse_sa1b
from ..sources.images import ImageHeader, decode_image
from ..sources.listing import InputSample, SampleIdentity, SourceSpec, UnitReader, UnitSpec
from ..sources.passed_over import PassedOver
from ..sources.proposals import Proposals

PREFETCH_BYTES: Final = 64 * 2**20
"""Of source images that a worker holds before it needs them."""
PREFETCH_SAMPLES: Final = 16
"""And their number, at least that of the next batch."""


@dataclass(frozen=True, kw_only=True)
class MiningSpec:
    """What a process needs to mine units of one run."""

    config: MineConfig
    sources: tuple[SourceSpec, ...]
    device: str | None = None
    """For the mill; None lets it choose."""
    batch_size: int | None = None
    """Samples of one batch; None lets the mill choose."""
    proposals: str | None = None
    """Path of the `--proposals` file."""
    checkpoint: str | None = None
    """Path of the backbone's weights."""
    memory_fraction: float = 1.0
    """Share of the GPU's memory this process may take."""
    cpus: int = 1
    """Cores for decoding, conquer and the rest, beside batches on a GPU."""


class UnitRepeatError(Exception):
    """The unit in hand must begin again from its first sample, because something that shapes its bytes has changed."""


@dataclass(frozen=True, kw_only=True)
class MinedSample:
    """A good sample, ready for the writer."""

    sample: Sample
    image: bytes | None
    """The source's bytes, unchanged; None with `--no-images`."""


@dataclass(frozen=True, kw_only=True)
class BatchResult:
    """One result for each position that was asked for, in that order."""

    results: list[MinedSample | FailureRow]
    seconds: dict[str, float] = field(default_factory=dict)
    """Summed over the batch, by stage."""
    passed_over: dict[str, Any] = field(default_factory=dict)
    """What was seen and not used."""


def failure_row(identity: SampleIdentity, stage: FailureStage, reason: FailureReason, message: str) -> FailureRow:
    """The row of a sample that cannot be mined; messages are one line of at most 500 characters."""
    return FailureRow(
        key=identity.key,
        source_uri=identity.source_uri,
        member=identity.member,
        stage=stage,
        reason=reason,
        message=" ".join(message.split())[:500],
    )


@dataclass
class _Decoded:
    """One sample, read and decoded, or why not."""

    position: int
    identity: SampleIdentity
    seconds: dict[str, float] = field(default_factory=dict)
    sample: tuple[int, InputSample, ImageInput, tuple[str, int]] | None = None
    failure: FailureRow | None = None
    passed: PassedOver = field(default_factory=PassedOver)


@dataclass
class _Prepared:
    """A batch, ready for the second half of the mill."""

    batch: list[tuple[int, InputSample, ImageInput, tuple[str, int]]] = field(default_factory=list)
    """Position, bytes, picture, (extension, EXIF orientation)."""
    failed: dict[int, MinedSample | FailureRow] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    features: list[BatchFeatures] = field(default_factory=list)
    passed: PassedOver = field(default_factory=PassedOver)


def _identity_of(read: InputSample) -> SampleIdentity:
    return SampleIdentity(key=read.key, source_uri=read.source_uri, member=read.member)


def _name_of(read: InputSample) -> str:
    return f"{read.source_uri} {read.member or ''}".rstrip()


def _add(seconds: dict[str, float], more: Mapping[str, float]) -> None:
    for stage, spent_s in more.items():
        seconds[stage] = seconds.get(stage, 0.0) + spent_s


class UnitMiner:
    """Holds the mill, and the unit in hand.

    Args:
        spec: what to mine with.
    """

    def __init__(self, spec: MiningSpec) -> None:
        self._config = spec.config
        self._sources = spec.sources
        self._mill = make_mill(spec)
        self._mill.warm_up()
        self._reader: UnitReader | None = None
        self._ahead: dict[tuple[int, ...], Future[_Prepared]] = {}
        """The next batch, while the one before it is finished."""
        self._pool = self._decoders = self._front = None
        if spec.cpus > 1 and self._mill.batch_size > 1:
            self._pool = ThreadPoolExecutor(spec.cpus, thread_name_prefix="grainmill-cpu")
            # Threads of their own: behind the images that are being finished, the next batch would never be begun.
            self._decoders = ThreadPoolExecutor(spec.cpus, thread_name_prefix="grainmill-decode")
            self._front = ThreadPoolExecutor(1, thread_name_prefix="grainmill-next")

    @property
    def batch_size(self) -> int:
        return self._mill.batch_size

    def environment(self) -> dict[str, object]:
        """Of this process, with its device."""
        return {**numeric_environment(), "device": device_name(), **self._mill.environment()}

    def open(self, unit: UnitSpec) -> int:
        """Makes a unit the one in hand and returns its number of samples."""
        self.close()
        self._reader = UnitReader(unit, self._sources)
        return len(self._reader)

    def close(self) -> None:
        """Lets go of the unit in hand."""
        for future in self._ahead.values():
            future.cancel()
            wait([future])
        self._ahead.clear()
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def identity(self, position: int) -> SampleIdentity:
        """Of one sample of the unit in hand, also if it cannot be read."""
        assert self._reader is not None
        return self._reader.identity(position)

    def extra_failures(self) -> list[FailureRow]:
        """Rows of the unit in hand that belong to no sample of it."""
        assert self._reader is not None
        return self._reader.extra_failures()

    def mine(self, positions: Sequence[int], *, holding: Callable[[int, SampleIdentity], None]) -> BatchResult:
        """Mines some samples of the unit in hand.

        With `cpus` above one and batches, the next batch is read, decoded and goes through the backbone while a pool
        finishes the images of this one, so that neither the GPU nor the cores wait long for the other. The answers are
        the same.

        Args:
            positions: within the unit; one batch at most.
            holding: told each sample before anything native touches it.
        """
        faults.reach("batch", str(len(positions)))
        self._read_ahead(positions)
        ahead = self._ahead.pop(tuple(positions), None)
        prepared = self._prepare(positions, holding) if ahead is None else ahead.result()
        if ahead is not None:
            for position, read, _, _ in prepared.batch:
                holding(position, _identity_of(read))
        self._begin_next(positions)
        finish = map if self._pool is None else self._pool.map
        answers = list(finish(self._mill.label, [image for _, _, image, _ in prepared.batch], prepared.features))
        results, seconds = dict(prepared.failed), dict(prepared.seconds)
        for (position, read, image, (ext, orientation)), answer in zip(prepared.batch, answers, strict=True):
            if isinstance(answer, SampleFailureError):
                results[position] = failure_row(_identity_of(read), answer.stage, answer.reason, answer.message)
            else:
                results[position] = self._finished(read, image, answer, ext, orientation)
                _add(seconds, answer.seconds)
                prepared.passed.include(answer.passed_over)
        return BatchResult(
            results=[results[position] for position in positions],
            seconds=seconds,
            passed_over=prepared.passed.to_json(),
        )

    def _prepare(self, positions: Sequence[int], holding: Callable[[int, SampleIdentity], None]) -> _Prepared:
        """Reads, decodes and computes the features of a batch."""
        prepared = _Prepared()

        def decoded(position: int) -> _Decoded:
            found = _Decoded(position, self.identity(position))
            if self._pool is None:
                holding(position, found.identity)
            try:
                read = self._read(position, found.seconds)
                found.identity = _identity_of(read)
                if self._pool is None:
                    holding(position, found.identity)  # now with the key that the bytes give
                faults.reach("sample", read.source_uri)
                found.sample = (position, read, *self._decode(read, found))
            except SampleFailureError as error:
                found.failure = failure_row(found.identity, error.stage, error.reason, error.message)
            return found

        if self._pool is not None:  # threads of the pool must not talk to whoever watches this process
            for position in positions:
                holding(position, self.identity(position))
        for found in (map if self._decoders is None else self._decoders.map)(decoded, positions):
            _add(prepared.seconds, found.seconds)
            prepared.passed.include(found.passed.to_json())
            if found.sample is not None:
                prepared.batch.append(found.sample)
            else:
                assert found.failure is not None
                prepared.failed[found.position] = found.failure
        prepared.features = self._mill.features([image for _, _, image, _ in prepared.batch])
        return prepared

    def _begin_next(self, positions: Sequence[int]) -> None:
        """Starts with the next batch, if this one is full: a single sample that may kill is never mixed with others."""
        assert self._reader is not None
        size = self.batch_size
        if self._front is None or len(positions) < size:
            return
        following = range(positions[-1] + 1, min(positions[-1] + 1 + size, len(self._reader)))
        if following:
            self._ahead[tuple(following)] = self._front.submit(self._prepare, following, lambda *held: None)

    def _read_ahead(self, positions: Sequence[int]) -> None:
        """From a remote source: this batch at once, and the next samples while this one is mined."""
        assert self._reader is not None
        last = positions[-1] + 1 + max(PREFETCH_SAMPLES, len(positions))
        self._reader.prefetch(
            [*positions, *range(positions[-1] + 1, min(last, len(self._reader)))], max_bytes=PREFETCH_BYTES
        )

    def _read(self, position: int, seconds: dict[str, float]) -> InputSample:
        assert self._reader is not None
        started_s = time.perf_counter()
        read = self._reader.read(position)
        seconds["read"] = seconds.get("read", 0.0) + time.perf_counter() - started_s
        return read

    def _decode(self, read: InputSample, found: _Decoded) -> tuple[ImageInput, tuple[str, int]]:
        started_s = time.perf_counter()
        header, rgb = decode_image(read.image, max_pixels=self._config.max_image_pixels)
        annotations: tuple[Rle, ...] = ()
        if read.annotation_json is not None and self._config.divide.method == "union":
            require_upright(header, read)
            annotations = parse_sa1b(
                read.annotation_json,
                height=rgb.shape[0],
                width=rgb.shape[1],
                where=_name_of(read),
                passed=found.passed,
            )
        _add(found.seconds, {"decode": time.perf_counter() - started_s})
        image = ImageInput(rgb=rgb, source_uri=read.source_uri, member=read.member, annotations=annotations)
        return image, (header.ext, header.exif_orientation)

    def _finished(
        self, read: InputSample, image: ImageInput, mined: MinedImage, ext: str, orientation: int
    ) -> MinedSample:
        height, width = image.rgb.shape[:2]
        sample = Sample(
            key=read.key,
            source_uri=read.source_uri,
            member=read.member,
            source_sha256=read.sha256,
            license=read.license,
            width=width,
            height=height,
            exif_orientation=orientation,
            file_name=f"{read.key}.{ext}" if self._config.images else None,
            annotations=mined.annotations,
        )
        return MinedSample(sample=sample, image=read.image if self._config.images else None)


def require_upright(header: ImageHeader, read: InputSample) -> None:
    """An image's own annotations are given for the pixels as they are stored, unless they are of our own format.

    Raises:
        SampleFailureError: `bad_annotation`: the EXIF orientation would turn the image and not the masks.
    """
    if header.exif_orientation != 1 and not are_upright(read.annotation_json or b"", where=read.source_uri):
        raise SampleFailureError(
            "bad_annotation",
            "read",
            f"{read.source_uri}: EXIF orientation {header.exif_orientation} turns the image and not its annotations; "
            "store both upright",
        )


def make_mill(spec: MiningSpec) -> ImageMiner:
    """The mill of a run; loads weights and proposals, and checks that they are those of the plan."""
    if spec.memory_fraction < 1.0:
        limit_gpu_memory(spec.memory_fraction)
    proposals = None
    if spec.proposals is not None:
        proposals = Proposals.read(spec.proposals, sha256=spec.config.divide.proposals_sha256)
    mill = ImageMiner(
        spec.config,
        device=spec.device,
        batch_size=spec.batch_size,
        checkpoint=spec.checkpoint,
        proposals=proposals,
    )
    if spec.config.features.backbone != "descriptor":
        fix_threads()  # of torch, which is loaded only now
    return mill


def limit_gpu_memory(fraction: float) -> None:
    """Keeps this process to its share of the GPU's memory, so that one that shares it is not starved."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(fraction)
