"""Training examples, streamed: position -> image, view, clicks, targets.

An example is a function of (data, settings, seed, position) and of nothing else, so any number of ranks and loader
processes gives the same ones. A sample that cannot be read keeps its position and carries the reason; who reads decides
whether that stops the run.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import multiprocessing
import queue
import signal
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from pipeline.errors import InputError

from .augmentation import (
    COLOUR_DRAWS,
    VIEW_DRAWS,
    Augmentation,
    draw_view,
    jitter_colours,
    true_masks,
    unpacked,
    view_image,
    whole_view,
)
from .prompts import Prompts, draw_prompts, no_prompts, prompt_draws
from .sampler import LoaderState, Order, Sampler, generator_at
from .shards import BadSampleError, LoadedSample, Locations, ShardIndex, filter_rows, filter_sha256, told_locations

CACHE_BYTES: Final = 256 * 2**20
"""Decoded samples that each loader process keeps: enough for a small data set, little beside a training process."""
AHEAD: Final = 4
"""Examples that wait in each loader process, and in the training process at least."""
_BELOW_ONE: Final = 1.0 - 2.0**-24
"""The last number of 32 bits below 1: draws nearer to it must not be rounded up."""
CLOSING_S: Final = 10.0
"""How long loader processes may take to end; one that hangs in its storage ends with this process."""


@dataclass(frozen=True, kw_only=True)
class ExampleSettings:
    """What an example looks like."""

    image_size: int
    """R, pixels a side of the view."""
    masks_per_image: int
    masks_per_click: int
    balance: float
    clicks: int
    """Decoder passes: the first click and the corrections."""
    augmentation: Augmentation
    min_parts: int = 0
    """Parts that an instance must have for its parts to be drawn; wholes always are."""
    smallest_parts: bool = True
    """Draw each instance's smallest part too, whose g is 0.1 however large it is."""
    wholes_only: bool = False
    """Draw only from instances that lie beside each other, see `LoadedSample.alone`."""
    dense_anchors: int = 0
    """Pairs of a cell and a mask over it for the dense loss, on the grid of stride 4."""
    coarse_images: int = 0
    """Positions below it are seen at half the size, which costs a quarter."""

    def size_at(self, position: int) -> int:
        """Pixels a side at a position."""
        return self.image_size // 2 if position < self.coarse_images else self.image_size


_NO_ANCHORS: Final = no_prompts(0)


@dataclass(frozen=True, kw_only=True)
class Example:
    """What training sees at one position. M prompts, possibly none."""

    position: int
    key: str
    image: NDArray[np.uint8]
    """(R, R, 3) RGB."""
    points: NDArray[np.float32]
    """(M, 2)."""
    granularity: NDArray[np.float32]
    """(M,)."""
    masks_packed: NDArray[np.uint8]
    """(M, R, R / 8): the targets, eight pixels to a byte."""
    correction_draws: NDArray[np.float32]
    """(M, clicks - 1) in [0, 1): which wrong pixel each correction clicks."""
    problem: str | None
    """Why there is nothing here, if the sample could not be read."""
    anchors: Prompts = _NO_ANCHORS
    """K pairs for the dense loss, on the stride-4 grid of the same view; possibly none."""

    @property
    def count(self) -> int:
        return len(self.points)

    def masks(self) -> NDArray[np.bool_]:
        """(M, R, R)."""
        return unpacked(self.masks_packed)


def make_example(sample: LoadedSample, position: int, *, seed: int, settings: ExampleSettings) -> Example:
    """Draws view and prompts of one position."""
    count, masks_per_click = settings.masks_per_image, settings.masks_per_click
    counts = (
        VIEW_DRAWS,
        prompt_draws(count, masks_per_click),
        COLOUR_DRAWS,
        count * (settings.clicks - 1),
        prompt_draws(settings.dense_anchors, 1),
    )
    numbers = generator_at(seed, position).random(sum(counts))
    for_view, for_prompts, for_colours, for_corrections, for_anchors = (
        numbers[end - size : end] for size, end in zip(counts, itertools.accumulate(counts), strict=True)
    )
    height, width = sample.image.shape[:2]
    size = settings.size_at(position)
    view = draw_view(for_view, height, width, size, settings.augmentation)
    drawable = sample.drawable(
        min_parts=settings.min_parts, smallest_parts=settings.smallest_parts, wholes_only=settings.wholes_only
    )
    eligible = drawable if view.shows_all else true_masks(sample, view) & drawable
    if not eligible.any():  # the crop broke every whole: see the image uncropped instead
        view = whole_view(height, width, size)
        eligible = drawable
    prompts = draw_prompts(
        for_prompts,
        sample,
        view,
        eligible,
        count=count,
        masks_per_click=masks_per_click,
        balance=settings.balance,
    )
    anchors = _NO_ANCHORS
    if settings.dense_anchors and len(prompts.points):
        cells = view.at_size(size // 4)
        anchors = draw_prompts(
            for_anchors,
            sample,
            cells,
            eligible,
            count=settings.dense_anchors,
            masks_per_click=1,
            balance=settings.balance,
        )
    image = jitter_colours(for_colours, view_image(sample.image, view), settings.augmentation)
    corrections = for_corrections.reshape(count, settings.clicks - 1)[: len(prompts.points)]
    return _example(position, sample.key, image, prompts, corrections, None, anchors)


def _example(
    position: int,
    key: str,
    image: NDArray[np.uint8],
    prompts: Prompts,
    draws: NDArray[Any],
    problem: str | None,
    anchors: Prompts = _NO_ANCHORS,
) -> Example:
    return Example(
        position=position,
        key=key,
        image=image,
        points=prompts.points,
        granularity=prompts.granularity,
        masks_packed=prompts.masks_packed,
        correction_draws=np.minimum(draws, _BELOW_ONE).astype(np.float32),
        problem=problem,
        anchors=anchors,
    )


class TrainingDataset(Dataset[Example]):
    """The data of a run, indexed by position.

    Args:
        directories: committed or released shards; several count as one.
        settings: of the examples.
        seed: of every random choice.
        order: of the samples.
        min_masks: samples with fewer masks are left out.
        holdout: share of samples kept for validation, chosen by a hash of their key.
    """

    def __init__(
        self,
        directories: Locations,
        settings: ExampleSettings,
        *,
        seed: int,
        order: Order,
        min_masks: int,
        holdout: float,
    ) -> None:
        self.directories, self.settings, self.seed = directories, settings, seed
        self.order, self.min_masks, self.holdout = order, min_masks, holdout
        self._open()

    def _open(self) -> None:
        index, where = ShardIndex.open_all(self.directories), told_locations(self.directories)
        if not len(index):
            raise InputError(
                f"{where}: holds no sample, so there is nothing to train on; `grainmill status` tells more"
            )
        rows = filter_rows(index, min_masks=self.min_masks, holdout=self.holdout, held_out=False)
        if not len(rows):
            raise InputError(
                f"{where}: none of {len(index)} samples has {self.min_masks} masks and is not held out; "
                "there is nothing to train on"
            )
        self.digest = index.digest
        self.index = index.select(rows)
        if self.index.table.column("image_offset").null_count:
            raise InputError(f"{where}: mined with --no-images, so there is nothing to train on; mine with images")
        self._sampler = Sampler(len(rows), seed=self.seed, order=self.order)
        self._cache: collections.OrderedDict[int, LoadedSample] = collections.OrderedDict()
        self._cached_bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        names = ("directories", "settings", "seed", "order", "min_masks", "holdout", "digest")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        expected = self.digest
        self._open()
        if self.digest != expected:
            raise InputError(f"{told_locations(self.directories)}: the data changed while training was starting")

    def __len__(self) -> int:
        return len(self.index)

    def state(self, next_position: int) -> LoaderState:
        """What resumes at a position."""
        return LoaderState(
            dataset_digest=self.digest,
            n=len(self),
            filter_sha256=filter_sha256(min_masks=self.min_masks, holdout=self.holdout),
            seed=self.seed,
            order=self.order,
            next_position=next_position,
        )

    def __getitem__(self, position: int) -> Example:
        row = self._sampler.sample(position)
        try:
            sample = self._load(row)
        except BadSampleError as error:
            size = self.settings.size_at(position)
            blank = np.zeros((size, size, 3), dtype=np.uint8)
            key = str(self.index.row(row)["key"])
            draws = np.zeros((0, self.settings.clicks - 1))
            return _example(position, key, blank, no_prompts(size), draws, str(error))
        return make_example(sample, position, seed=self.seed, settings=self.settings)

    def images(self, count: int) -> list[NDArray[np.uint8]]:
        """The first images of the order, whole, (R, R, 3) RGB each: at most `count`, unreadable ones left out.

        Raises:
            InputError: none can be read.
        """
        found: list[NDArray[np.uint8]] = []
        for position in range(len(self)):
            with contextlib.suppress(BadSampleError):
                image = self.index.load(self._sampler.sample(position)).image
                found.append(view_image(image, whole_view(image.shape[0], image.shape[1], self.settings.image_size)))
            if len(found) == count:
                break
        if not found:
            raise InputError(f"{self.index.location}: none of its {len(self)} images can be read")
        return found

    def _load(self, row: int) -> LoadedSample:
        found = self._cache.get(row)
        if found is not None:
            self._cache.move_to_end(row)
            return found
        sample = self.index.load(row)
        self._cache[row] = sample
        self._cached_bytes += sample.nbytes
        while self._cached_bytes > CACHE_BYTES:
            self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return sample


def stream(
    examples: TrainingDataset, positions: Iterator[int], *, workers: int, ahead: int = AHEAD
) -> Generator[Example, None, None]:
    """Examples of the positions, in their order, prepared by `workers` processes ahead of need (0: in this one).

    `ahead` of them wait in this process at most: a step that takes many at once would wait for each of them otherwise.

    Close it when no more are wanted: that ends the processes.
    """
    if workers == 0:
        return (examples[position] for position in positions)
    # Forked from a server that has torch loaded, not from this process with its threads: each starts in a moment.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["model.data.stream"])
    loader: DataLoader[Example] = DataLoader(
        examples,
        sampler=_Given(positions),
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=workers,
        prefetch_factor=AHEAD,
        multiprocessing_context=context,
        worker_init_fn=_begin_worker,
    )
    return _received(iter(loader), ahead)


def _received(loader: Iterator[Example], ahead: int) -> Generator[Example, None, None]:
    """What the loader processes send, taken out of their pipes by a thread beside training.

    An example of 1024 px with 30 masks is 7 MB; a GPU would wait at every step while that is read and unpickled.
    """
    waiting: queue.Queue[Example | BaseException] = queue.Queue(maxsize=ahead)
    closed = threading.Event()
    thread = threading.Thread(target=_receive, args=(loader, waiting, closed), name="examples", daemon=True)
    del loader  # the thread's: when it ends, so do the processes
    thread.start()
    return _handed_out(waiting, closed, thread)


def _handed_out(
    waiting: queue.Queue[Example | BaseException], closed: threading.Event, thread: threading.Thread
) -> Generator[Example, None, None]:
    try:
        while not isinstance(found := waiting.get(), BaseException):
            yield found
        if not isinstance(found, StopIteration):
            raise found
    finally:
        closed.set()
        thread.join(CLOSING_S)


def _receive(loader: Iterator[Example], waiting: queue.Queue[Example | BaseException], closed: threading.Event) -> None:
    found: Example | BaseException
    while not closed.is_set():
        try:
            found = next(loader)
        except BaseException as error:  # raised again where the examples are used
            found = error
        while not closed.is_set():
            try:
                waiting.put(found, timeout=0.1)
                break
            except queue.Full:
                continue
        if isinstance(found, BaseException):
            return


class _Given(torch.utils.data.Sampler[int]):
    def __init__(self, positions: Iterator[int]) -> None:
        self._positions = positions

    def __iter__(self) -> Iterator[int]:
        return self._positions


def _as_it_is(example: Any) -> Any:
    return example


def _begin_worker(worker: int) -> None:
    # Ctrl-C reaches every process of the terminal; the trainer decides when its loaders end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    import cv2

    cv2.setNumThreads(1)
