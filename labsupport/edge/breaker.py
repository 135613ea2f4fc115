"""Not asking who does not answer: a circuit breaker, and the pauses between two tries.

A dead server costs every question its whole timeout. The breaker counts failures, opens, and closes again when a probe in
the background was answered (Nygard, 2007, "Release It!", chapter 5). Pauses double up to a limit, and are part chance, so
that many stations do not come back at the same moment (Brooker, 2015, "Exponential Backoff and Jitter").
"""

import random
import threading
from collections.abc import Callable

from labsupport import arguments, background

FIRST, LONGEST = 0.25, 15.0  # seconds: pauses before the second try, and after many
FAILURES = 3  # in a row, until nobody is asked


class Backoff:
    """How long to wait before the next try: between half and all of a time that doubles with each.

    >>> backoff = Backoff(first=1, longest=4)
    >>> pauses = [backoff.next() for _ in range(4)]
    >>> [low <= pause <= 2 * low for pause, low in zip(pauses, (0.5, 1, 2, 2))]
    [True, True, True, True]
    """

    def __init__(self, first: float = FIRST, longest: float = LONGEST) -> None:
        self.first = arguments.number("first", first, 0, ends=False)
        self.longest, self.tries = arguments.number("longest", longest, first), 0

    def next(self) -> float:
        whole = min(self.longest, self.first * 2 ** min(self.tries, 30))
        self.tries += 1
        return random.uniform(whole / 2, whole)

    def reset(self) -> None:
        self.tries = 0


class CircuitBreaker:
    """Closed while things go well; after `failures` in a row open, until `probe()` is True.

    The probe runs on a thread of its own, which lives as long as the breaker is open. After it one failure opens the breaker
    again, and the pauses go on where they were: only a success says that all is well.

    >>> breaker = CircuitBreaker(probe=lambda: False, failures=2)
    >>> breaker.failed(), breaker.closed
    (None, True)
    >>> breaker.failed(), breaker.closed
    (None, False)
    >>> breaker.stop()
    """

    def __init__(self, probe: Callable[[], bool], failures: int = FAILURES, backoff: Backoff | None = None) -> None:
        self.closed, self.failures = True, int(arguments.number("failures", failures, 1, whole=True))
        self._probe, self._backoff, self._count = probe, backoff or Backoff(), 0
        self._lock, self._stopped = threading.Lock(), threading.Event()

    def succeeded(self) -> None:
        """An answer came, as it should."""
        with self._lock:
            if self.closed:  # a late answer to an old question closes nothing: the probe does
                self._count = 0
                self._backoff.reset()

    def failed(self) -> None:
        """No answer came, or one of a server in trouble."""
        with self._lock:
            self._count += 1
            if self.closed and self._count >= self.failures:
                self.closed = False
                background.repeat(self._tried, "probe", self._stopped, after_error=0)

    def stop(self) -> None:
        """Probe no more."""
        self._stopped.set()

    def _tried(self) -> bool:
        """Wait for the next probe and make it; return whether the breaker is closed now, or is not needed any more."""
        if self._stopped.wait(self._backoff.next()):
            return True
        if not self._probe():
            return False
        with self._lock:
            self.closed, self._count = True, self.failures - 1
        return True
