"""Equal and near-equal images: signatures, and an index that finds the earlier images that one is like.

A signature is a 64-bit perceptual hash (signs of the low frequencies of a 32 x 32 grey image, against their median)
and a 4 x 4 grid of mean colours. Two images are near-duplicates if their hashes differ in at most `MAX_BITS` bits and
their grids by at most `MAX_COLOUR` levels on average: the hash forgives size, quality and brightness, the grid keeps
plain images apart, whose hash is noise. Copies that are cropped, turned or mirrored are not found; the card says so.

Lookups are exact, not approximate: a hash within seven bits of another agrees with it up to one bit in one of four
bands of 16 bits, so 17 probes in each band meet every candidate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from ..sources.images import MAX_STORED_PIXELS, decode_rgb

MAX_BITS: Final = 7
"""Of 64. Measured on the 26 pictures inside scikit-image: saved at JPEG quality 50 or halved, they differ by up to
4 bits (the two chessboards by 7); the two pictures of a stereo pair by 6; any other two by 20 or more."""
MAX_COLOUR: Final = 12.0
"""Mean absolute difference of the colour grids, 0..255."""
_GRID: Final = 4
_SIDE: Final = 32
_LOW: Final = 8


@dataclass(frozen=True, kw_only=True)
class Signature:
    """What an image looks like, in 56 bytes.

    Attributes:
        bits: the perceptual hash, 64 bits.
        colours: 48 bytes, RGB of a 4 x 4 grid in row order.
    """

    bits: int
    colours: bytes

    @property
    def perceptual_hash(self) -> str:
        """16 hex digits."""
        return f"{self.bits:016x}"

    @property
    def colour_grid(self) -> str:
        """96 hex digits."""
        return self.colours.hex()

    @classmethod
    def from_hex(cls, perceptual_hash: str, colour_grid: str) -> Signature:
        return cls(bits=int(perceptual_hash, 16), colours=bytes.fromhex(colour_grid))


def signature_of(rgb: NDArray[np.uint8]) -> Signature:
    """The signature of an upright image.

    Args:
        rgb: (H, W, 3) uint8.
    """
    small = cv2.resize(rgb, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)
    low = cv2.dct(grey)[:_LOW, :_LOW].ravel()
    low[0] = 0.0  # the mean, which brightness alone changes
    signs = low > np.median(low)
    bits = int.from_bytes(np.packbits(signs).tobytes(), "big")
    grid = cv2.resize(small, (_GRID, _GRID), interpolation=cv2.INTER_AREA)
    return Signature(bits=bits, colours=np.ascontiguousarray(grid).tobytes())


def signature_of_bytes(image: bytes) -> Signature:
    """As `signature_of`, of an encoded image.

    Raises:
        SampleFailureError: it cannot be decoded.
    """
    return signature_of(decode_rgb(image, max_pixels=MAX_STORED_PIXELS))


@dataclass(frozen=True, kw_only=True)
class Match:
    """An earlier image.

    Attributes:
        name: as it was added.
        exact: equal bytes.
        distance: differing bits of the hashes.
    """

    name: str
    exact: bool
    distance: int


class DuplicateIndex:
    """Images added so far. About 200 bytes each."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._bits: list[int] = []
        self._colours: list[bytes] = []
        self._bands: tuple[dict[int, list[int]], ...] = ({}, {}, {}, {})
        self._exact: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._exact)

    def add(self, name: str, sha256: str, signature: Signature | None) -> None:
        """Adds an image; of equal bytes only the first counts, and only the first of equal looks is kept."""
        self._exact.setdefault(sha256, name)
        if signature is None:
            return
        for position in self._bands[0].get(_bands(signature.bits)[0], ()):
            if self._bits[position] == signature.bits and self._colours[position] == signature.colours:
                return
        for band, value in zip(self._bands, _bands(signature.bits), strict=True):
            band.setdefault(value, []).append(len(self._names))
        self._names.append(name)
        self._bits.append(signature.bits)
        self._colours.append(signature.colours)

    def matches(self, sha256: str, signature: Signature | None) -> list[Match]:
        """Earlier images that this one equals or looks like: the equal one first, then by distance and age."""
        found = []
        equal = self._exact.get(sha256)
        if equal is not None:
            found.append(Match(name=equal, exact=True, distance=0))
        if signature is None:
            return found
        near = []
        for position in self._candidates(signature.bits):
            distance = (self._bits[position] ^ signature.bits).bit_count()
            if distance > MAX_BITS or self._names[position] == equal:
                continue
            if _colour_difference(self._colours[position], signature.colours) <= MAX_COLOUR:
                near.append((distance, position))
        return found + [
            Match(name=self._names[position], exact=False, distance=distance) for distance, position in sorted(near)
        ]

    def _candidates(self, bits: int) -> set[int]:
        found: set[int] = set()
        for band, value in zip(self._bands, _bands(bits), strict=True):
            found.update(band.get(value, ()))
            for bit in range(16):
                found.update(band.get(value ^ (1 << bit), ()))
        return found


def _bands(bits: int) -> tuple[int, int, int, int]:
    return bits >> 48, bits >> 32 & 0xFFFF, bits >> 16 & 0xFFFF, bits & 0xFFFF


def _colour_difference(first: bytes, second: bytes) -> float:
    left, right = np.frombuffer(first, np.uint8).astype(np.int16), np.frombuffer(second, np.uint8).astype(np.int16)
    return float(np.abs(left - right).mean())
