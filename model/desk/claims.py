"""Who has which image: a claim lasts as long as its page says that it is there, and one person has an image."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

LEASE_S: Final = 15.0
"""A page says that it is there three times in this time; a page that was closed loses its image after it."""


@dataclass(frozen=True)
class Claim:
    """A person at an image.

    Attributes:
        person: the page's own mark, which nobody else is shown.
        name: for people.
        image: number.
        until: of the clock.
    """

    person: str
    name: str
    image: int
    until: float


class Claims:
    """Claims of all people, each on one image at most.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._held: dict[int, Claim] = {}
        self._lock = threading.Lock()

    def take(self, image: int, person: str, name: str) -> Claim:
        """Takes an image, or stays at it; the others that the person has are let go.

        Returns:
            The claim that stands: another's, if the image is taken.
        """
        with self._lock:
            self._forget()
            for number, claim in list(self._held.items()):
                if claim.person == person and number != image:
                    del self._held[number]
            standing = self._held.get(image)
            if standing is None or standing.person == person:
                standing = Claim(person, name, image, self._clock() + LEASE_S)
                self._held[image] = standing
            return standing

    def leave(self, person: str) -> None:
        """Lets all go that a person has."""
        with self._lock:
            self._held = {number: each for number, each in self._held.items() if each.person != person}

    def all(self) -> list[Claim]:
        """Those that stand, by image."""
        with self._lock:
            self._forget()
            return [self._held[number] for number in sorted(self._held)]

    def _forget(self) -> None:
        now = self._clock()
        self._held = {number: each for number, each in self._held.items() if each.until > now}
