"""Compute the e-value: the evidence that the candidate fails more often than the stable version.

Roll back when the e-value reaches 1/alpha. You may check it after every request: a candidate that is no worse ever gets
there with probability at most alpha (Ville's inequality; Ramdas, Grünwald, Vovk and Shafer, 2023, section 3).
"""

import zlib
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

import numpy as np

TIMES_AS_BAD = np.array([1.5, 2, 3, 5, 10])  # failure rates of bad candidates, as multiples: one bet on each
GUESS = (0.5, 50)  # bad answers, answers: assumed for the stable version before its first request
PLACES = 2**26  # number of hash values for keys: one bit each, 8 MB
COUNTED = 1_000  # keys whose requests are counted, to find a key that makes most of the traffic


def e_value(candidate: Sequence[bool] | np.ndarray, bad: Sequence[bool] | np.ndarray) -> float:
    """Return the e-value of requests in their order, each from a different user.

    `candidate[i]` is true if the candidate answered request i. `bad[i]` is true if that answer failed or was wrong. An
    e-value above 1/alpha shows at level alpha that the candidate is worse, however often it is checked. `Evidence`
    describes the computation and its assumptions.

    >>> e_value([True, False] * 100, [False, False] * 100) < 1
    True
    >>> e_value([True, False] * 100, [True, False] * 100) > 20
    True
    """
    evidence = Evidence()
    evidence.add(candidate, bad)
    return evidence.value


class Evidence:
    """Update an e-value with each new request, without reading earlier requests again.

    Requests form blocks. A block ends with a request of the candidate and contains the requests of the stable version
    since the candidate's previous one. Within a block the rates of both versions are compared with one common rate
    (Turner, Ly and Grünwald, 2024, "Generic E-variables for exact sequential k-sample tests that allow for optional
    stopping", equation 4). There is one bet for each of `TIMES_AS_BAD`. Each bet uses only the requests before the
    block. The e-value is the mean of the bets.

    Assumption: if the candidate is no worse, each request of a block is equally likely to be a bad one.
    Requests of one user break it: they succeed or fail together, and the router sends all of them to one version.
    So add only the first request of each key (`Keys`). The router chooses by a hash of the key, which is independent of
    the user. At its first request, each key thus goes to the candidate with a probability equal to the candidate's share.
    A key that moves to the candidate later, as the share grows, stays counted for the version that answered it first.
    The router assigns requests without a key one by one, so you may add all of them.
    """

    def __init__(self) -> None:
        self._bets = np.zeros(len(TIMES_AS_BAD))  # logarithms
        self._bad, self._count = 0, 0  # requests in closed blocks
        self._open_bad, self._open = 0, 0  # requests of the stable version since the last one of the candidate
        self._ends = array("q")  # of each closed block: its last row
        self._fine = array("q")  # for each: requests of the stable version in it that are not bad so far
        self._may_fail: Bits | None = None  # rows that are not bad so far
        self._newest = 0  # the largest row number so far

    @property
    def value(self) -> float:
        """Return the e-value: 1 without any evidence, at most e**300."""
        return float(np.exp(np.minimum(self._bets, 300)).mean())

    def add(
        self, candidate: Sequence[bool] | np.ndarray, bad: Sequence[bool] | np.ndarray, rows: Sequence[int] = ()
    ) -> None:
        """Add requests in their order.

        `rows` are their row numbers in the log, which grow from call to call. Only `went_wrong` needs them. If the numbers
        start again because the log was emptied, `went_wrong` ignores the rows that were added before.
        """
        candidate, bad = np.asarray(candidate, bool), np.asarray(bad, bool)
        ends = np.flatnonzero(candidate)
        starts = np.concatenate([[0], ends + 1])  # of each block, and of the one that stays open
        bad_so_far = np.concatenate([[0], np.cumsum(bad)])
        stable = np.append(ends, candidate.size) - starts  # the stable version's requests in each block
        stable_bad = np.append(bad_so_far[ends], bad_so_far[-1]) - bad_so_far[starts]
        before = self._count + self._open + starts  # requests before each block
        before_bad = self._bad + self._open_bad + bad_so_far[starts]
        stable[0], stable_bad[0] = stable[0] + self._open, stable_bad[0] + self._open_bad
        before[0], before_bad[0] = self._count, self._bad
        rate = (GUESS[0] + before_bad[:-1]) / (GUESS[1] + before[:-1])
        self._bets += _bets(rate, bad[ends], stable[:-1], stable_bad[:-1]).sum(axis=1)
        self._open, self._open_bad = int(stable[-1]), int(stable_bad[-1])
        self._count, self._bad = int(before[-1]), int(before_bad[-1])
        if len(rows):
            self._remember(np.asarray(rows, np.int64), bad, ends, (stable - stable_bad)[:-1])

    def went_wrong(self, row: int) -> None:
        """Mark a request as bad after it was added, because its user called the answer wrong.

        If the candidate is no worse, each request of the block that is not bad yet has the same probability of turning
        bad. So this adds one more bet: which of them it is. A row that was never added, or that is bad already, changes
        nothing.
        """
        if self._may_fail is None or row not in self._may_fail:
            return
        self._may_fail.remove(row)
        block = bisect_left(self._ends, row)
        if block == len(self._ends):
            self._open_bad += 1
            return
        self._bad += 1
        is_candidate = self._ends[block] == row
        candidates = is_candidate or self._ends[block] in self._may_fail
        share = candidates / (candidates + self._fine[block])
        self._bets += np.log(np.where(is_candidate, TIMES_AS_BAD, 1) / (share * TIMES_AS_BAD + 1 - share))
        self._fine[block] -= not is_candidate

    def _remember(self, rows: np.ndarray, bad: np.ndarray, ends: np.ndarray, fine: np.ndarray) -> None:
        """Store the data that `went_wrong` needs: 16 bytes for each block, and a bit for each row."""
        if self._may_fail is None or rows[0] <= self._newest:
            self._may_fail, self._ends, self._fine = Bits(int(rows[0])), array("q"), array("q")
        self._newest = int(rows[-1])
        for row in rows[~bad].tolist():
            self._may_fail.add(row)
        self._ends.extend(rows[ends].tolist())
        self._fine.extend(fine.tolist())


def _bets(rate: np.ndarray, bad: np.ndarray, stable: np.ndarray, stable_bad: np.ndarray) -> np.ndarray:
    """Return the logarithm of each bet on each block, shape (bets, blocks)."""
    worse = np.minimum(TIMES_AS_BAD[:, None] * rate, 0.99)
    both = (worse + stable * rate) / (stable + 1)  # the rate if there were no difference
    ratio = np.where(bad, worse / both, (1 - worse) / (1 - both))
    fine = (stable - stable_bad) * np.log((1 - rate) / (1 - both))
    bets: np.ndarray = np.log(ratio) + stable_bad * np.log(rate / both) + fine
    return bets


class Keys:
    """Remember which keys have sent a request. The memory is always 8 MB, however many keys there are.

    >>> keys = Keys()
    >>> [keys.first(key) for key in ("ann", "bob", "ann", None, None)]
    [True, True, False, True, True]
    >>> keys.figures()
    {'without_key': 0.4, 'largest_key': 0.4}
    """

    def __init__(self) -> None:
        self._seen = Bits()
        self._requests = self._without = 0
        self._counts: Counter[str] = Counter()  # of the first thousand keys: a key with most requests is among them

    def first(self, key: str | None) -> bool:
        """Return whether this is the first request of `key`. For a request without a key, always return True.

        With a million keys, 1 in 100 has the hash of another key, so its first request returns False. This does not
        depend on the version that answers.
        """
        self._requests += 1
        if key is None:
            self._without += 1
            return True
        if key in self._counts or len(self._counts) < COUNTED:
            self._counts[key] += 1
        place = zlib.crc32(key.encode("utf-8", "surrogatepass")) % PLACES
        if place in self._seen:
            return False
        self._seen.add(place)
        return True

    def figures(self) -> dict[str, float]:
        """Return two shares of the requests: those without a key, and those of the most frequent key."""
        shares = {"without_key": self._without, "largest_key": max(self._counts.values(), default=0)}
        return {name: count / max(self._requests, 1) for name, count in shares.items()}


class Bits:
    """Store a set of whole numbers from `start` on, in one bit for each number up to the largest.

    >>> bits = Bits(start=1_000_000)
    >>> bits.add(1_000_003)
    >>> 1_000_003 in bits, 1_000_004 in bits, 7 in bits
    (True, False, False)
    """

    def __init__(self, start: int = 0) -> None:
        self._start, self._bytes = start, bytearray()

    def __contains__(self, number: int) -> bool:
        byte, bit = divmod(number - self._start, 8)
        return 0 <= byte < len(self._bytes) and bool(self._bytes[byte] >> bit & 1)

    def add(self, number: int) -> None:
        byte, bit = divmod(number - self._start, 8)
        if byte >= len(self._bytes):
            self._bytes.extend(bytes(max(byte + 1 - len(self._bytes), len(self._bytes) // 8)))
        self._bytes[byte] |= 1 << bit

    def remove(self, number: int) -> None:
        byte, bit = divmod(number - self._start, 8)
        self._bytes[byte] &= ~(1 << bit)
