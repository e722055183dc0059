"""Shards for trainers other than ours: as a map-style dataset, as an endless stream that resumes exactly, and as a
decoder for `webdataset` pipelines. All three give a `LoadedSample`: RGB pixels, run lengths, granularity, instances.

Images differ in size and masks in number, so a batch is yours to make: give a `transform` that draws masks and brings
them to one size, or a `collate_fn` to the `DataLoader`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import numpy as np
import torch
import torch.distributed
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from pipeline.errors import InputError, SchemaError
from pipeline.format.schema import canonical_json, sha256_of
from pipeline.sources.images import FORMATS
from pipeline.storage.local import LocalStorage

from .sampler import LoaderState, Order, Sampler, batch_positions, generator_at
from .shards import BadSampleError, LoadedSample, Locations, ShardIndex, decoded, filter_rows, told_locations

IMAGE_EXTENSIONS: Final = tuple(dict.fromkeys(FORMATS.values()))
_LOADS: Final = 2**20
"""Loaded states that are told apart; two that are so many loads apart do not meet."""


def decode_sample(sample: Mapping[str, Any]) -> LoadedSample:
    """What a `webdataset` pipeline reads of a shard, decoded.

    Examples:
        >>> samples = wds.WebDataset(urls, shardshuffle=False).map(decode_sample)  # doctest: +SKIP

    Args:
        sample: members' bytes by their extension, and `__key__`, as `webdataset` makes them; not decoded yet.

    Raises:
        BadSampleError: damaged bytes, which a pipeline's `handler` may skip.
        InputError: shards without images, or a sample that was decoded already.
    """
    where = f"{sample.get('__url__', 'webdataset')}: {sample.get('__key__')}"
    image = next((sample[each] for each in IMAGE_EXTENSIONS if each in sample), None)
    record = sample.get("json")
    if not (isinstance(image, bytes) and isinstance(record, bytes)):
        raise InputError(
            f"{where}: expected the bytes of an image and of json, found {sorted(sample)}; use shards that were mined "
            "with images, and leave .decode() out of the pipeline"
        )
    try:
        return decoded(image, record, where=where)
    except SchemaError as error:
        raise BadSampleError(str(error)) from error


class _Shards:
    """Opened shards; opened again in each process that needs them, for object stores' clients outlive no fork."""

    def __init__(self, data: Locations | os.PathLike[str], split: str | None, min_masks: int) -> None:
        self.data: Locations = os.fspath(data) if isinstance(data, os.PathLike) else data
        self.split, self.min_masks = split, min_masks
        self._index = self._open()
        self.digest = self._index.digest
        self._process = os.getpid()

    def _open(self) -> ShardIndex:
        where = told_locations(self.data)
        if self.split is None:
            index = ShardIndex.open_all(self.data)
        elif isinstance(self.data, str):
            index = ShardIndex.open(self.data, split=self.split)
        else:
            raise InputError(f"{where}: a split is one release's own; name one release")
        index = index.select(filter_rows(index, min_masks=self.min_masks, holdout=0.0, held_out=False))
        if not len(index):
            raise InputError(f"{where}: holds no sample with {self.min_masks} masks")
        if index.table.column("image_offset").null_count:
            raise InputError(f"{where}: mined with --no-images; mine with images")
        return index

    @property
    def index(self) -> ShardIndex:
        """In this process.

        Raises:
            InputError: the data changed since it was opened first.
        """
        if self._process != os.getpid():
            if not all(isinstance(each.storage, LocalStorage) for each in self._index.datasets):
                self.__setstate__(self.__getstate__())
            self._process = os.getpid()
        return self._index

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("data", "split", "min_masks", "digest")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._index = self._open()
        self._process = os.getpid()
        if self._index.digest != self.digest:
            raise InputError(f"{told_locations(self.data)}: the data changed since it was opened")


class ShardDataset(Dataset[Any]):
    """The samples of shards by number, each read on its own: shuffled and distributed by torch's own samplers.

    Examples:
        >>> dataset = ShardDataset("rel/", split="train")  # doctest: +SKIP
        >>> sample = dataset[0]  # doctest: +SKIP
        >>> sample.image.shape, sample.masks().shape, sample.granularity  # doctest: +SKIP

    Args:
        data: a run or a release, a directory or a URL; several count as one.
        split: one of a release's own; None: everything.
        min_masks: samples with fewer masks are left out.
        transform: what becomes of each sample; None: it stays a `LoadedSample`.

    Raises:
        InputError: nothing there, no such split, or shards without images.
    """

    def __init__(
        self,
        data: Locations | os.PathLike[str],
        *,
        split: str | None = None,
        min_masks: int = 1,
        transform: Callable[[LoadedSample], Any] | None = None,
    ) -> None:
        self._shards = _Shards(data, split, min_masks)
        self.transform = transform

    def __len__(self) -> int:
        return len(self._shards.index)

    def __getitem__(self, number: int) -> Any:
        """One sample.

        Raises:
            IndexError: there are fewer.
            BadSampleError: bytes that are not what they should be.
        """
        if not -len(self) <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        sample = self._shards.index.load(number % len(self))
        return sample if self.transform is None else self.transform(sample)


class ShardStream(IterableDataset[Any]):
    """The samples of shards in shuffled order without end, epoch after epoch, to be resumed at any batch.

    The order is a function of data, seed and position. A step of all ranks takes the next `batch_size * ranks`
    positions, each rank its part of them, so nothing is dropped or repeated at an epoch's end, and a run may go on with
    another number of ranks, workers or samples in a batch. Inside a `DataLoader` its workers take batches in turn: with
    the same `batch_size` there, batches come out the same with any number of workers.

    `state_dict` is that of the batches which were taken out whole. What workers of a `DataLoader` have read ahead this
    process cannot know: say then how many batches you took, `state_dict(taken=n)`. For the same reason workers iterate
    once: before another pass, `load_state_dict(state_dict(taken=n))` says where it begins. Of a pass that was refused,
    a kept worker (`persistent_workers`) that only begins when that state is loaded takes it for its own, and the next
    pass is refused once more: load the state again.

    Examples:
        >>> stream = ShardStream("rel/", batch_size=4, transform=to_tensors)  # doctest: +SKIP
        >>> loader = DataLoader(stream, batch_size=4, num_workers=2)  # doctest: +SKIP
        >>> for step, batch in enumerate(loader, 1):  # doctest: +SKIP
        ...     torch.save({"data": stream.state_dict(taken=step)}, "checkpoint.pt")

    Args:
        data: a run or a release, a directory or a URL; several count as one.
        batch_size: samples that this rank takes at a time.
        seed: of the order, and of the generators that `transform` is given.
        order: `Order(kind="block")` reads near samples together, for remote storage; None: a full shuffle.
        split: one of a release's own; None: everything.
        min_masks: samples with fewer masks are left out.
        transform: called with a sample and a generator of its own, seeded by seed and position, so that resumed runs
            draw the same; None: the sample stays a `LoadedSample`.
        rank: of this process; None: as `torch.distributed` or torchrun's environment says, else 0.
        ranks: processes; likewise, else 1.

    Raises:
        InputError: nothing there, no such split, or shards without images.
    """

    def __init__(
        self,
        data: Locations | os.PathLike[str],
        *,
        batch_size: int = 1,
        seed: int = 0,
        order: Order | None = None,
        split: str | None = None,
        min_masks: int = 1,
        transform: Callable[[LoadedSample, np.random.Generator], Any] | None = None,
        rank: int | None = None,
        ranks: int | None = None,
    ) -> None:
        here, all_of_them = _ranks_around()
        self.rank, self.ranks = here if rank is None else rank, all_of_them if ranks is None else ranks
        if batch_size < 1 or not 0 <= self.rank < self.ranks:
            raise InputError(f"a stream of batches of {batch_size} for rank {self.rank} of {self.ranks}")
        self._shards = _Shards(data, split, min_masks)
        self.batch_size, self.seed, self.transform = batch_size, seed, transform
        self.samples = len(self._shards.index)
        """Of one epoch."""
        self._sampler = Sampler(self.samples, seed=seed, order=order)
        self._began = self._loads = 0
        """The position at which the last state began, and how many were loaded, as this process knew it when a worker
        was made."""
        self._shared = torch.tensor([0, 0, -1]).share_memory_()
        """Next position; how many states were loaded; the pass of workers that goes on from there (`_claim`)."""
        self._iterated: int | None = None
        """In a worker: the number of loads when it last began to iterate."""

    def __iter__(self) -> Iterator[Any]:
        """From where `load_state_dict` or the last iteration in this process left it.

        Raises:
            BadSampleError: bytes that are not what they should be.
            InputError: workers have iterated since the stream was made or a state loaded, so where to go on is unknown.
        """
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        start, loads, claimed = self._shared.tolist()
        ours = None if info is None else _claim(info.seed - info.id, loads)
        refused = _is_claimed(claimed, loads) and claimed != ours
        if info is not None:
            late = self._iterated is None and self._loads != loads  # of a pass that was left before a state was loaded
            refused |= late or self._iterated == loads
            self._iterated = self._loads if late else loads
        if refused:
            raise InputError(
                "workers of a DataLoader have iterated this stream and read ahead: say where the next pass begins, "
                "load_state_dict(state_dict(taken=n)) after n batches"
            )
        if ours is not None:
            self._shared[2] = ours
        step = self.batch_size * self.ranks
        for batch in itertools.count(worker, workers):
            begin = start + batch * step
            for position in batch_positions(begin, global_batch_size=step, rank=self.rank, ranks=self.ranks):
                sample = self._at(position)
                if info is None and position == begin + (self.rank + 1) * self.batch_size - 1:
                    self._shared[0] = begin + step  # before the last one goes out: who takes it asks for the state next
                yield sample

    def _at(self, position: int) -> Any:
        sample = self._shards.index.load(self._sampler.sample(position))
        if self.transform is None:
            return sample
        return self.transform(sample, generator_at(self.seed, position))

    def state_dict(self, taken: int | None = None) -> dict[str, Any]:
        """What resumes after the batches that were taken; the same on every rank.

        Args:
            taken: batches of `batch_size` samples since the stream was made or `load_state_dict`; None: those that this
                process iterated.

        Raises:
            InputError: workers iterate, and `taken` is not given.
        """
        _, loads, claimed = self._shared.tolist()
        if taken is None and _is_claimed(claimed, loads):
            raise InputError("state_dict: workers of a DataLoader read ahead; say how many batches you took (taken=n)")
        position = int(self._shared[0]) if taken is None else self._began + taken * self.batch_size * self.ranks
        return self._state(position).to_json()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where a state was taken, in this stream's next iteration.

        Raises:
            SchemaError: no state of a stream.
            InputError: a state of other data, another seed or order.
        """
        saved = LoaderState.from_json(state, where="load_state_dict")
        saved.expect_same_data(self._state(0), where="load_state_dict")
        self._began = saved.next_position
        self._loads += 1
        self._shared[0], self._shared[1] = self._began, self._loads

    def _state(self, position: int) -> LoaderState:
        chosen = {"min_masks": self._shards.min_masks, "split": self._shards.split}
        return LoaderState(
            dataset_digest=self._shards.digest,
            n=self.samples,
            filter_sha256=sha256_of(canonical_json(chosen)),
            seed=self.seed,
            order=self._sampler.order,
            next_position=position,
        )


def _claim(workers: int, loads: int) -> int:
    """One number, written at once, for a pass by its workers' common seed and the loaded state that it goes on from."""
    return workers % 2**40 * _LOADS + loads % _LOADS


def _is_claimed(claim: int, loads: int) -> bool:
    """Whether workers have gone on from this loaded state; a claim on an earlier one says nothing."""
    return claim >= 0 and claim % _LOADS == loads % _LOADS


def _ranks_around() -> tuple[int, int]:
    """Rank and number of ranks, as torch.distributed or torchrun's environment says."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
