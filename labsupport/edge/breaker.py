"""Circuit breaker: stops asking a server after repeated failures, and starts again when a background probe succeeds.

Without it a dead server costs every request its whole timeout (Nygard, 2007, "Release It!", chapter 5). The pauses
between probes double up to a limit, and are partly random, so that many stations do not come back at the same moment
(Brooker, 2015, "Exponential Backoff and Jitter").
"""

import random
import threading
from collections.abc import Callable
from contextlib import suppress

from labsupport import arguments, background

FIRST, LONGEST = 0.25, 15.0  # seconds: pauses before the second try, and after many
FAILURES = 3  # in a row, until nobody is asked


class Backoff:
    """Computes the pause before the next try: between half and all of a time that doubles with each try.

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
    """Stops requests after failures. It is closed at first; `failures` in a row open it, until `probe()` returns True.

    The probe runs on its own thread, which lives as long as the breaker is open. After a successful probe one failure
    opens the breaker again, and the pauses continue at their last length. Only `succeeded` resets them.

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
        """Report a good answer."""
        with self._lock:
            if self.closed:  # a late answer to an old question closes nothing: the probe does
                self._count = 0
                self._backoff.reset()

    def failed(self) -> None:
        """Report that no answer came, or an answer of a server in trouble."""
        with self._lock:
            self._count += 1
            if self.closed and self._count >= self.failures:
                with suppress(RuntimeError):  # no thread can be started: the next failure tries again
                    background.repeat(self._tried, "probe", self._stopped, after_error=0)
                    self.closed = False

    def stop(self) -> None:
        """Stop probing."""
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
