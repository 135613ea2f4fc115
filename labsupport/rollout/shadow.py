"""Run a shadow candidate on copies of the pictures, on a thread of its own. Log its answers; never return them."""

import logging
import os
import queue
import sys
import threading
import time
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from labsupport import background
from labsupport.detection import Detection, Version, all_plain
from labsupport.log import PredictionLog

SHADOW_WAITING = 16  # pictures that may wait for a candidate in shadow; the rest are not shown to it
SHADOW_BYTES = 100_000_000  # of all pictures that wait or are being processed: one of 25 megapixels has 75 MB
NOT_SHOWN = "NotShown"  # the error in the log of a picture that the candidate did not get
IDLE = 5.0  # seconds without a picture, after which the thread ends

logger = logging.getLogger(__name__)


class Copy(NamedTuple):
    """Hold a picture that waits for the candidate."""

    id: str
    image: np.ndarray
    confidence: float
    key: str | None
    person: str | None
    size: int  # bytes


class Shadow:
    """Show pictures to a candidate, on a thread of low priority. No answer ever waits for it."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[tuple[Version, Copy, PredictionLog | None]] = queue.Queue(SHADOW_WAITING)
        self._guard = threading.Lock()  # guards the attributes below
        self._bytes = 0
        self._runs = False
        self._said: set[tuple[str, str]] = set()

    def show(
        self,
        candidate: Version,
        id: str,
        image: np.ndarray,
        confidence: float,
        key: str | None,
        person: str | None,
        log: PredictionLog | None,
    ) -> None:
        """Queue a picture for the candidate and return without waiting. If too many wait, log that it was not shown."""
        size = getattr(image, "nbytes", None) or sys.getsizeof(image)
        with self._guard:
            fits = self._bytes + size <= SHADOW_BYTES and not self._waiting.full()
            if fits:
                self._bytes += size
                self._waiting.put_nowait((candidate, Copy(id, image, confidence, key, person, size), log))
            self._runs = self._runs or self._started()
        if not fits:
            note(log, candidate.version, id, key, person, error=NOT_SHOWN)

    def _started(self) -> bool:
        try:
            background.repeat(self._step, "shadow", threading.Event())
        except RuntimeError:  # no thread is available now: the next picture tries again
            return False
        return True

    def _step(self) -> bool:
        """Show one picture to the candidate. Return True if none came for `IDLE` seconds."""
        try:
            candidate, copy, log = self._waiting.get(timeout=IDLE)
        except queue.Empty:
            with self._guard:
                self._runs = not self._waiting.empty()  # one may have come just now
                return not self._runs
        started, detections, error = time.perf_counter(), None, None
        try:
            _yield_the_core()
            detections = all_plain(candidate.detect(copy.image, copy.confidence))
        except BaseException as raised:
            error = type(raised).__name__
            if (candidate.version, error) not in self._said:  # once, not with every picture
                self._said.add((candidate.version, error))
                logger.warning("%s in shadow: %r", candidate.version, raised)
        finally:
            with self._guard:
                self._bytes -= copy.size
        latency = time.perf_counter() - started
        note(log, candidate.version, copy.id, copy.key, copy.person, latency, detections, error)
        return False


def note(
    log: PredictionLog | None,
    version: str,
    id: str,
    key: str | None,
    person: str | None,
    latency: float | None = None,
    found: list[Detection] | None = None,
    error: str | None = None,
) -> None:
    """Log the answer of a candidate in shadow to a picture, if there is a log."""
    if log:
        log.record(
            id=id,
            version=version,
            key=key,
            person=person,
            latency=latency,
            detections=found,
            features=None,
            status=500 if error else 200,
            error=error,
            shadow=True,
        )


def _yield_the_core() -> None:
    """Give this thread the lowest priority, on systems where threads have a priority (Linux)."""
    if sys.platform == "linux":
        with suppress(OSError):  # a sandbox may forbid it
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
