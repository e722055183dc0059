"""Samples of one unit, mined in batches: the native work, in whatever process it runs.

Reads, decodes and mines by position and answers with finished samples or failure rows. It writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Final

from ..environment import faults
from ..environment.numeric import device_name, fix_threads, numeric_environment
from ..environment.stage_seconds import StageSeconds
from ..errors import FailureReason, FailureStage, SampleFailureError
from ..format.rle import Rle
from ..format.schema import FailureRow, Sample
from ..labeling.config import MineConfig
from ..labeling.miner import BatchFeatures, ImageInput, ImageMiner, MinedImage
from ..sources.annotations import are_upright, parse_sa1b
from ..sources.images import ImageHeader, decode_image
from ..sources.passed_over import PassedOver
from ..sources.proposals import Proposals
from ..sources.unit_reader import UnitReader
from ..sources.units import InputSample, SampleIdentity, SourceSpec, UnitSpec

PREFETCH_BYTES: Final = 64 * 2**20
"""Of source images that a worker holds before it needs them."""
PREFETCH_SAMPLES: Final = 16
"""And their number, at least that of the next batch."""


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """What a worker, and the child that does its native work, need to do units of one run."""

    output: str
    """Where commits go: a folder or a URL."""
    config: MineConfig
    sources: tuple[SourceSpec, ...]
    config_hash: str
    environment: dict[str, Any]
    """As planned, to say in a commit what differs."""
    sample_timeout_s: float
    """For one sample; a batch gets it for each of its samples."""
    memory_limit_bytes: int
    """Of a child's resident memory."""
    batch_size: int | None = None
    """Samples of one batch; None lets the backbone choose."""
    proposals: str | None = None
    """Path of the `--proposals` file."""
    boundaries: str | None = None
    """Path of the boundary net."""
    checkpoint: str | None = None
    """Path of the backbone's weights."""
    memory_fraction: float = 1.0
    """Share of the GPU's memory that one worker may take."""
    cpus: int = 1
    """Cores for decoding, conquer and the rest, beside batches on a GPU."""
    commits_by_driver: bool = False
    """The store has no puts that must not replace anything: workers only report, the one driver commits."""


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
    seconds: Mapping[str, float] = field(default_factory=dict)
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


@dataclass(frozen=True)
class _Decoded:
    """One sample of the unit in hand, read and decoded."""

    position: int
    read: InputSample
    image: ImageInput
    header: ImageHeader


@dataclass
class _Prepared:
    """Samples of a batch, ready for the second half of the miner, and those that failed on the way."""

    samples: list[_Decoded] = field(default_factory=list)
    failed: dict[int, FailureRow] = field(default_factory=dict)
    """Position -> why."""
    features: list[BatchFeatures] = field(default_factory=list)
    """One for each of `samples`."""
    seconds: StageSeconds = field(default_factory=StageSeconds)
    passed: PassedOver = field(default_factory=PassedOver)


def _identity_of(read: InputSample) -> SampleIdentity:
    return SampleIdentity(key=read.key, source_uri=read.source_uri, member=read.member)


def _name_of(read: InputSample) -> str:
    return f"{read.source_uri} {read.member or ''}".rstrip()


class BatchMiner:
    """Mines batches of the unit in hand, in this process.

    Args:
        run: what to mine with.
    """

    def __init__(self, run: RunSpec) -> None:
        self._config = run.config
        self._sources = run.sources
        self._images = make_image_miner(run)
        self._images.warm_up()
        self._reader: UnitReader | None = None
        self._ahead: dict[tuple[int, ...], Future[_Prepared]] = {}
        """The next batch, while the one before it is labelled."""
        self._pool = self._decoders = self._front = None
        if run.cpus > 1 and self._images.batch_size > 1:
            self._pool = ThreadPoolExecutor(run.cpus, thread_name_prefix="grainmill-cpu")
            # Threads of their own: behind the images that are being labelled, the next batch would never be begun.
            self._decoders = ThreadPoolExecutor(run.cpus, thread_name_prefix="grainmill-decode")
            self._front = ThreadPoolExecutor(1, thread_name_prefix="grainmill-next")

    @property
    def batch_size(self) -> int:
        return self._images.batch_size

    def environment(self) -> dict[str, object]:
        """Of this process, with its device."""
        return {**numeric_environment(), "device": device_name(), **self._images.environment()}

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

    def mine(self, positions: Sequence[int], *, holding: Callable[[int, SampleIdentity], None]) -> BatchResult:
        """Mines some samples of the unit in hand.

        With `cpus` above one and batches, the next batch is read, decoded and goes through the backbone while a pool
        labels the images of this one, so that neither the GPU nor the cores wait long for the other. The answers are
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
            for sample in prepared.samples:
                holding(sample.position, _identity_of(sample.read))
        self._begin_next(positions)
        label = map if self._pool is None else self._pool.map
        answers = list(label(self._images.label, [each.image for each in prepared.samples], prepared.features))
        results: dict[int, MinedSample | FailureRow] = {**prepared.failed}
        for sample, answer in zip(prepared.samples, answers, strict=True):
            if isinstance(answer, SampleFailureError):
                row = failure_row(_identity_of(sample.read), answer.stage, answer.reason, answer.message)
                results[sample.position] = row
            else:
                results[sample.position] = self._finished(sample, answer)
                prepared.seconds.include(answer.seconds)
                prepared.passed.include(answer.passed_over)
        return BatchResult(
            results=[results[position] for position in positions],
            seconds=prepared.seconds,
            passed_over=prepared.passed.to_json(),
        )

    def _prepare(self, positions: Sequence[int], holding: Callable[[int, SampleIdentity], None]) -> _Prepared:
        """Reads, decodes and computes the features of a batch."""
        if self._pool is not None:  # threads of the pool must not talk to whoever watches this process
            for position in positions:
                holding(position, self.identity(position))
            holding = _not_told
        prepared = _Prepared()
        for one in (map if self._decoders is None else self._decoders.map)(
            lambda position: self._decoded(position, holding), positions
        ):
            prepared.samples += one.samples
            prepared.failed |= one.failed
            prepared.seconds.include(one.seconds)
            prepared.passed.include(one.passed.to_json())
        prepared.features = self._images.features([each.image for each in prepared.samples])
        return prepared

    def _decoded(self, position: int, holding: Callable[[int, SampleIdentity], None]) -> _Prepared:
        """Reads and decodes one sample."""
        assert self._reader is not None
        one, identity = _Prepared(), self.identity(position)
        holding(position, identity)
        try:
            with one.seconds.timed("read"):
                read = self._reader.read(position)
            identity = _identity_of(read)
            holding(position, identity)  # now with the key that the bytes give
            faults.reach("sample", read.source_uri)
            with one.seconds.timed("decode"):
                image, header = self._decode(read, one.passed)
            one.samples.append(_Decoded(position, read, image, header))
        except SampleFailureError as error:
            one.failed[position] = failure_row(identity, error.stage, error.reason, error.message)
        return one

    def _decode(self, read: InputSample, passed: PassedOver) -> tuple[ImageInput, ImageHeader]:
        header, rgb = decode_image(read.image, max_pixels=self._config.max_image_pixels)
        annotations: tuple[Rle, ...] = ()
        if read.annotation_json is not None and self._config.divide.method == "union":
            require_upright(header, read)
            annotations = parse_sa1b(
                read.annotation_json, height=rgb.shape[0], width=rgb.shape[1], where=_name_of(read), passed=passed
            )
        return ImageInput(rgb=rgb, source_uri=read.source_uri, member=read.member, annotations=annotations), header

    def _begin_next(self, positions: Sequence[int]) -> None:
        """Starts with the next batch, if this one is full: a single sample that may kill is never mixed with others."""
        assert self._reader is not None
        size = self.batch_size
        if self._front is None or len(positions) < size:
            return
        following = range(positions[-1] + 1, min(positions[-1] + 1 + size, len(self._reader)))
        if following:
            self._ahead[tuple(following)] = self._front.submit(self._prepare, following, _not_told)

    def _read_ahead(self, positions: Sequence[int]) -> None:
        """From a remote source: this batch at once, and the next samples while this one is mined."""
        assert self._reader is not None
        last = positions[-1] + 1 + max(PREFETCH_SAMPLES, len(positions))
        self._reader.prefetch(
            [*positions, *range(positions[-1] + 1, min(last, len(self._reader)))], max_bytes=PREFETCH_BYTES
        )

    def _finished(self, sample: _Decoded, mined: MinedImage) -> MinedSample:
        read, header = sample.read, sample.header
        height, width = sample.image.rgb.shape[:2]
        record = Sample(
            key=read.key,
            source_uri=read.source_uri,
            member=read.member,
            source_sha256=read.sha256,
            license=read.license,
            width=width,
            height=height,
            exif_orientation=header.exif_orientation,
            file_name=f"{read.key}.{header.ext}" if self._config.images else None,
            annotations=mined.annotations,
        )
        return MinedSample(sample=record, image=read.image if self._config.images else None)


def _not_told(position: int, identity: SampleIdentity) -> None:
    """In place of `holding` where nobody may be told."""


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


def make_image_miner(run: RunSpec) -> ImageMiner:
    """The image miner of a run; loads weights and proposals, and checks that they are those of the plan."""
    if run.memory_fraction < 1.0:
        limit_gpu_memory(run.memory_fraction)
    proposals = None
    if run.proposals is not None:
        proposals = Proposals.read(run.proposals, sha256=run.config.divide.proposals_sha256)
    miner = ImageMiner(
        run.config,
        batch_size=run.batch_size,
        checkpoint=run.checkpoint,
        proposals=proposals,
        boundaries=run.boundaries,
    )
    if run.config.features.backbone != "descriptor" or run.boundaries is not None:
        fix_threads()  # of torch, which is loaded only now
    return miner


def limit_gpu_memory(fraction: float) -> None:
    """Keeps this process to its share of the GPU's memory, so that one that shares it is not starved."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(fraction)
