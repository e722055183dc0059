"""Which sample comes when: a keyed permutation that can be asked at any position, and the state that resumes it.

Position p = 0, 1, 2, ...; epoch = p // n; sample = permutation(seed, epoch)[p mod n]. Batch b holds positions
[b G, (b + 1) G), so nothing is dropped or repeated at an epoch's border. The permutation is a Feistel network walked
until it lands below n: no array of n numbers is kept or shuffled, so resuming is free at any n.

`block` order reads near samples together, for storage where nearness is cheap: blocks of consecutive samples are
permuted, and samples within windows of some blocks. How well it mixes is measured by `mixing`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from pipeline.errors import InputError, SchemaError

STATE_FORMAT: Final = "grainmill-loader/1"
_ROUNDS: Final = 6
_MASK64: Final = (1 << 64) - 1


def generator_at(seed: int, position: int) -> np.random.Generator:
    """Random numbers of one place in a sequence: Philox (Salmon et al., SC 2011) with (seed, position) as its key."""
    key = np.array([seed % 2**64, position], dtype=np.uint64)  # a list of both would pass through float64
    return np.random.Generator(np.random.Philox(key=key))


class KeyedPermutation:
    """A permutation of 0..n-1 chosen by a key, one index at a time.

    Args:
        n: at least 1.
        key: anything that names the permutation.
    """

    def __init__(self, n: int, key: str) -> None:
        if n < 1:
            raise InputError(f"a permutation needs at least one element, found {n}")
        self.n = n
        self._half_bits = max(1, ((n - 1).bit_length() + 1) // 2)
        self._half_mask = (1 << self._half_bits) - 1
        digest = hashlib.sha512(key.encode()).digest()
        self._keys = [int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(_ROUNDS)]

    def __call__(self, index: int) -> int:
        """Where `index` goes."""
        if not 0 <= index < self.n:
            raise IndexError(index)
        value = index
        while True:  # cycle walking: the network permutes a power of 4 of at most 4 n numbers
            value = self._network(value)
            if value < self.n:
                return value

    def _network(self, value: int) -> int:
        left, right = value >> self._half_bits, value & self._half_mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right ^ key) & self._half_mask)
        return (left << self._half_bits) | right


def _mix(value: int) -> int:
    """The finaliser of splitmix64."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


@dataclass(frozen=True, kw_only=True)
class Order:
    """How positions become samples."""

    kind: str = "full"
    """`full`: one permutation of all samples; `block`: blocks and windows, for remote storage."""
    block: int = 256
    """Consecutive samples of a block: about a shard."""
    window: int = 16
    """Blocks whose samples are mixed with each other."""

    def __post_init__(self) -> None:
        if self.kind not in ("full", "block"):
            raise InputError(f"--order {self.kind}: expected full or block")
        if self.block < 1 or self.window < 1:
            raise InputError(f"blocks of {self.block} samples in windows of {self.window}: both must be at least 1")


class Sampler:
    """Positions -> sample numbers, for one data set, seed and order."""

    def __init__(self, n: int, *, seed: int, order: Order | None = None) -> None:
        self.n, self.seed = n, seed
        self.order = order or Order()
        self._cache: dict[str, KeyedPermutation] = {}

    def sample(self, position: int) -> int:
        """The sample at a position, 0..n-1."""
        epoch, index = divmod(position, self.n)
        if self.order.kind == "full":
            return self._permutation(self.n, f"{self.seed}/{epoch}")(index)
        return self._block_sample(epoch, index)

    def _block_sample(self, epoch: int, index: int) -> int:
        size = self.order.block * self.order.window
        number, inside = divmod(index, size)
        length = min(size, self.n - number * size)
        mixed = number * size + self._permutation(length, f"{self.seed}/{epoch}/window{number}")(inside)
        blocks = self.n // self.order.block
        if blocks and mixed < blocks * self.order.block:
            block, offset = divmod(mixed, self.order.block)
            mixed = self._permutation(blocks, f"{self.seed}/{epoch}/blocks")(block) * self.order.block + offset
        # The short last block would always come last: turn the whole sequence by another amount in each epoch.
        turn = int.from_bytes(hashlib.sha256(f"{self.seed}/{epoch}/turn".encode()).digest()[:8], "little")
        return (mixed + turn) % self.n

    def _permutation(self, n: int, key: str) -> KeyedPermutation:
        found = self._cache.get(key)
        if found is None:
            if len(self._cache) > 64:
                self._cache.clear()
            found = self._cache[key] = KeyedPermutation(n, key)
        return found


def mixing(sampler: Sampler, *, epoch: int = 0, limit: int = 20_000) -> float:
    """Shuffle quality in [0, 1]: mean distance in the data between neighbours in the order over chance, n / 3.

    1 is a full shuffle, 0 reading in order.
    """
    count = min(limit, sampler.n)
    if count < 3:
        return 1.0
    order = np.array([sampler.sample(epoch * sampler.n + index) for index in range(count)], dtype=np.float64)
    return float(min(1.0, np.abs(np.diff(order)).mean() / (sampler.n / 3)))


@dataclass(frozen=True, kw_only=True)
class LoaderState:
    """All that is needed to go on at the next position, with any number of ranks and workers."""

    dataset_digest: str
    n: int
    filter_sha256: str
    seed: int
    order: Order
    next_position: int

    def to_json(self) -> dict[str, Any]:
        return {
            "format": STATE_FORMAT,
            "dataset_digest": self.dataset_digest,
            "n": self.n,
            "filter_sha256": self.filter_sha256,
            "seed": self.seed,
            "order": {"kind": self.order.kind, "block": self.order.block, "window": self.order.window},
            "next_position": self.next_position,
        }

    @classmethod
    def from_json(cls, record: Any, *, where: str) -> LoaderState:
        """Reads a state.

        Raises:
            SchemaError: it is missing or not of this format.
        """
        if not isinstance(record, Mapping) or record.get("format") != STATE_FORMAT:
            found = record.get("format") if isinstance(record, Mapping) else record
            raise SchemaError(f"{where}: expected a loader state of format {STATE_FORMAT!r}, found {found!r:.60}")
        try:
            return cls(
                dataset_digest=str(record["dataset_digest"]),
                n=int(record["n"]),
                filter_sha256=str(record["filter_sha256"]),
                seed=int(record["seed"]),
                order=Order(**record["order"]),
                next_position=int(record["next_position"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise SchemaError(f"{where}: the loader state lacks or distorts {error}") from error

    def expect_same_data(self, other: LoaderState, *, where: str) -> None:
        """Checks that a saved state belongs to the data now given.

        Raises:
            InputError: naming what differs.
        """
        names = ("dataset_digest", "n", "filter_sha256", "seed", "order")
        different = [name for name in names if getattr(self, name) != getattr(other, name)]
        if different:
            name = different[0]
            raise InputError(
                f"{where}: its loader state is of other data: {name} is {getattr(self, name)!r:.80} there and "
                f"{getattr(other, name)!r:.80} here; resume with the data it was trained on, or start another run"
            )

    def at(self, position: int) -> LoaderState:
        return replace(self, next_position=position)


def batch_positions(batch_start: int, *, global_batch_size: int, rank: int, ranks: int) -> range:
    """The positions of a rank's slice of the batch that begins at `batch_start`.

    Raises:
        InputError: the batch cannot be divided among the ranks.
    """
    if global_batch_size % ranks:
        raise InputError(f"--global-batch-size {global_batch_size} does not divide by {ranks} ranks")
    share = global_batch_size // ranks
    return range(batch_start + rank * share, batch_start + (rank + 1) * share)
