"""Give each request a place between 0 and 100. A canary of 5 % gets the requests whose places are below 5."""

import hashlib
import itertools
from random import SystemRandom

from labsupport import arguments

GOLDEN = (5**0.5 - 1) / 2  # its multiples, modulo 1, fill the unit interval as evenly as possible
LONGEST_KEY = 200  # characters


class Places:
    """Compute the places of requests: always the same for one key, evenly spread for requests without a key.

    The first place without a key is drawn at random. Else the first request of each process, which is often the slowest,
    would always go to the candidate.

    >>> places = Places()
    >>> places.of("ann", began=0.0) == places.of("ann", began=0.0)
    True
    >>> 45 <= sum(places.of(None, began=0.0) < 5 for _ in range(1000)) <= 55
    True
    """

    def __init__(self) -> None:
        self._turn, self._first = itertools.count(), SystemRandom().random()

    def of(self, key: str | None, began: float) -> float:
        """Return the place of a request. `began`: when the rollout began. In another rollout a key gets another place."""
        if key is None:
            return (self._first + next(self._turn) * GOLDEN) % 1 * 100
        digest = hashlib.sha256(f"{began}:{key}".encode()).digest()
        return int.from_bytes(digest[:8]) / 2**64 * 100


def checked_key(key: str | None) -> str | None:
    """Return `key` if it is None or a text of at most `LONGEST_KEY` characters. Raises ValueError otherwise."""
    return None if key is None else arguments.text("key", key, LONGEST_KEY)
