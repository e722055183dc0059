"""Random numbers of one place in a sequence: Philox (Salmon et al., SC 2011) with (seed, position) as its key.

The numbers are those of numpy's `Generator(Philox(key=[seed, position])).random(n)`. Making that generator takes
12 microseconds, these 3 (`benchmarks/results/load_cpu2_202611.md`), of some 450 that an example takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numba
import numpy as np
from numpy.typing import NDArray

_LOW_64: Final = 2**64 - 1
_ROUNDS: Final = 10
_MULTIPLIERS: Final = (np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157))
_KEY_STEPS: Final = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B))
_LOW_32: Final = np.uint64(2**32 - 1)
_32: Final = np.uint64(32)
_11: Final = np.uint64(11)


def uniforms(seed: int, position: int, counts: Sequence[int]) -> list[NDArray[np.float64]]:
    """Numbers in [0, 1), in parts of the sizes asked for.

    Args:
        seed: any number; its lowest 64 bits count.
        position: in [0, 2**64).
        counts: of each part.
    """
    numbers = _philox(np.uint64(seed & _LOW_64), np.uint64(position), sum(counts))
    parts, start = [], 0
    for count in counts:
        parts.append(numbers[start : start + count])
        start += count
    return parts


@numba.njit(cache=True)
def _philox(seed, position, count):  # type: ignore[no-untyped-def]
    """(count,) float64 in [0, 1): Philox4x64-10, whose counter is the number of the block of four, from 1 on."""
    blocks = (count + 3) // 4
    numbers = np.empty(4 * blocks, dtype=np.float64)
    for block in range(blocks):
        a, b, c, d = np.uint64(block + 1), np.uint64(0), np.uint64(0), np.uint64(0)
        key_0, key_1 = seed, position
        for _ in range(_ROUNDS):
            high_0, high_1 = _high(a, _MULTIPLIERS[0]), _high(c, _MULTIPLIERS[1])
            a, b, c, d = high_1 ^ b ^ key_0, c * _MULTIPLIERS[1], high_0 ^ d ^ key_1, a * _MULTIPLIERS[0]
            key_0, key_1 = key_0 + _KEY_STEPS[0], key_1 + _KEY_STEPS[1]
        for k, word in enumerate((a, b, c, d)):
            numbers[4 * block + k] = (word >> _11) * 2.0**-53
    return numbers[:count]


@numba.njit(cache=True)
def _high(a, b):  # type: ignore[no-untyped-def]
    """The upper 64 bits of a product of two numbers of 64 bits."""
    a_low, a_high, b_low, b_high = a & _LOW_32, a >> _32, b & _LOW_32, b >> _32
    middle = a_high * b_low + ((a_low * b_low) >> _32)
    return a_high * b_high + (middle >> _32) + ((a_low * b_high + (middle & _LOW_32)) >> _32)
