"""Which version answers: the stable one, or a candidate that is on trial.

A `Router` stands where a `Detector` stands and answers the same call. Who answers is one `State`, which is replaced as a
whole: a request sees the one before a change or the one after it, and nothing between.
"""

import hashlib
import itertools
import logging
import os
import queue
import secrets
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from labsupport.detection import Detection, UnknownVersion
from labsupport.journal import Journal, State
from labsupport.monitoring import PredictionLog

SHADOW_WAITING = 16  # pictures that wait for a candidate in shadow; more than that are not shown to it
GOLDEN = (5**0.5 - 1) / 2  # its multiples, modulo 1, fill the unit interval as evenly as can be

logger = logging.getLogger(__name__)


class WrongMoment(RuntimeError):
    """That cannot be done in the present state: there is no candidate to promote, nothing to return to."""


class Router:
    """Named versions, one of which answers. Anything with `version` and `detect(image, confidence)` can be one.

    `versions` are candidates that may be let in later, by name; `load` makes one of a name that is not among them. With a
    `journal` (a SQLite file, or a `Journal`) every change is recorded, and a router that opens it later goes on where it
    stood; several processes that share it change together. Each picture that a candidate sees in shadow is written to
    `log` beside the answer.
    Raises `UnknownVersion` if the journal names a version that is not given.

    >>> from labsupport.detection import Box
    >>> class Version:
    ...     def __init__(self, version): self.version = version
    ...     def detect(self, image, confidence=0.5): return [Detection(self.version, 1.0, Box(0, 0, 1, 1))]
    >>> router = Router(Version("v1"))
    >>> router.canary(Version("v2"), weight=50)
    >>> answers = [router.detect(None, key=str(user))[0].label for user in range(1000)]
    >>> 400 < answers.count("v2") < 600
    True
    >>> router.rollback("enough seen")
    >>> router.detect(None, key="7")[0].label
    'v1'
    """

    def __init__(
        self,
        stable,
        *versions,
        load: Callable | None = None,
        journal: Path | str | Journal | None = None,
        log: PredictionLog | None = None,
    ) -> None:
        self.log, self._load = log, load
        self._versions = {version.version: version for version in (stable, *versions)}
        new = journal is None or isinstance(journal, Path | str)
        self._journal = Journal(journal, State(stable=stable.version)) if new else journal
        self._turn = itertools.count()
        self._shadow = _Shadow()
        if self.state.action == "start" and self.state.stable != stable.version:  # nothing was ever rolled out
            self.change("start", lambda state: replace(state, stable=stable.version))
        for name in filter(None, (self.state.stable, self.state.candidate, self.state.previous)):
            self._known(name)
        if self.version != stable.version:
            logger.warning("%s answers, as the journal says, and not %s", self.version, stable.version)

    @property
    def version(self) -> str:
        """The stable version's name."""
        return self._journal.state.stable

    @property
    def state(self) -> State:
        return self._journal.state

    def detect(self, image: np.ndarray, confidence: float = 0.5, key: str | None = None) -> list[Detection]:
        """As `Detector.detect`; the same key gets the same version as long as a canary's weight only grows."""
        chosen, id, started = self.choose(key), secrets.token_hex(16), time.perf_counter()
        found = chosen.detect(image, confidence)
        latency = time.perf_counter() - started
        if self.log:
            self.log.record(id=id, version=chosen.version, latency=latency, detections=found, features=None, key=key)
        self.mirror(id, image, confidence, key)
        return found

    def choose(self, key: str | None = None):
        """The version that answers this request."""
        state = self._journal.state
        on_trial = state.mode == "canary" and self._place(key, state.began) < state.share
        return self._known(state.candidate if on_trial else state.stable)

    def mirror(self, id: str, image, confidence: float, key: str | None = None) -> None:
        """Show a picture that was answered to the candidate in shadow, if there is one; returns at once.

        What it says, or how it fails, is written to the log under the same id.
        """
        state = self._journal.state
        if state.mode == "shadow" and not state.paused and self._place(None, state.began) < state.share:
            self._shadow.show(self._known(state.candidate), id, image, confidence, key, self.log)

    def shadow(self, candidate, percent: float = 100, reason: str = "") -> None:
        """The stable version answers; the candidate sees a copy of so many percent of the pictures."""
        self._let_in("shadow", candidate, percent, reason)

    def canary(self, candidate, weight: float = 5, reason: str = "") -> None:
        """The candidate answers `weight` percent of the keys. Growing it keeps every key that the candidate has."""
        self._let_in("canary", candidate, weight, reason)

    def blue_green(self, preview, reason: str = "") -> None:
        """The candidate is kept warm and answers nobody, until `switch()`."""
        self._let_in("blue_green", preview, 0, reason)

    def switch(self, reason: str = "") -> None:
        """Blue/green: what was the preview answers from the next request on, and what answered is kept warm."""

        def swap(state: State) -> State:
            _demand(state.mode == "blue_green", "switch() exchanges blue and green: call blue_green(preview) first")
            return replace(state, stable=state.candidate, candidate=state.stable, previous=state.stable)

        self.change("switch", swap, reason)

    def promote(self, reason: str = "", **figures: float) -> None:
        """The candidate becomes the stable version; `rollback()` still returns to the one before."""

        def promoted(state: State) -> State:
            _demand(state.candidate, "there is no candidate to promote")
            return replace(calm(state), stable=state.candidate, previous=state.stable)

        self.change("promote", promoted, reason, figures)

    def rollback(self, reason: str = "", **figures: float) -> None:
        """The stable version answers everything from the next request on; after `switch` or `promote`, the one before."""

        def back(state: State) -> State:
            _demand(state.candidate or state.previous, "there is no candidate, and no version to return to")
            if state.mode == "blue_green" and state.previous:
                return replace(state, stable=state.previous, candidate=state.stable, previous=None)
            if state.candidate:
                return calm(state)
            return replace(state, stable=state.previous, previous=None)

        self.change("rollback", back, reason, figures)

    def pause(self, reason: str = "") -> None:
        """Leave things as they are: a ramp goes no further, and a candidate in shadow sees nothing."""
        self.change("pause", lambda state: replace(state, paused=True), reason)

    def resume(self, reason: str = "") -> None:
        """Undo `pause`."""
        self.change("resume", lambda state: replace(state, paused=False), reason)

    def status(self) -> dict:
        """The state as a dictionary, with the versions there are and the field's word for where a rollout stands."""
        state = self._journal.state
        phase = "Paused" if state.paused else "Progressing" if state.candidate else "Healthy"
        if state.action == "rollback":
            phase = "Degraded"
        return {"phase": phase, **asdict(state), "versions": sorted(self._versions)}

    def history(self) -> list[State]:
        """Every state there was, the oldest first."""
        return self._journal.history()

    def add(self, version) -> str:
        """Make a version known, or see that its name is; returns the name. Raises `UnknownVersion`."""
        if isinstance(version, str):
            return self._known(version).version
        return self._versions.setdefault(version.version, version).version

    def change(
        self, action: str, change: Callable[[State], State], reason: str = "", figures: dict | None = None
    ) -> State:
        """Put `change(state)` in force, and write down why; if it is the same object, nothing happened."""

        def noted(state: State) -> State:
            changed = change(state)
            if changed is state:
                return state
            return replace(changed, time=time.time(), action=action, reason=reason, figures=figures or {})

        state = self._journal.change(noted)
        logger.info("%s: %s answers, candidate %s. %s", action, state.stable, state.candidate, reason)
        return state

    def _let_in(self, mode: str, candidate, share: float, reason: str) -> None:
        if not 0 <= share <= 100:
            raise ValueError(f"{share} percent: give a number from 0 to 100")
        name = self.add(candidate)
        self.change(mode, lambda state: let_in(state, mode, name, share), reason)

    def _place(self, key: str | None, began: float) -> float:
        """Where a request falls between 0 and 100: the same place for the same key, all places alike without one."""
        if key is None:
            return next(self._turn) * GOLDEN % 1 * 100
        digest = hashlib.sha256(f"{began}:{key}".encode()).digest()
        return int.from_bytes(digest[:8]) / 2**64 * 100

    def _known(self, name: str):
        if name not in self._versions and self._load:
            self._versions.setdefault(name, self._load(name))
        if name not in self._versions:
            have = ", ".join(sorted(self._versions))
            raise UnknownVersion(f"no version is called {name!r}: there are {have}; give it to the Router")
        return self._versions[name]


def let_in(state: State, mode: str, candidate: str, share: float) -> State:
    """The state with a candidate on trial. The same candidate keeps its keys."""
    _demand(candidate != state.stable, f"{candidate} is the stable version: a candidate is another one")
    began = state.began if state.candidate == candidate else time.time()
    previous = None if mode == "blue_green" else state.previous
    return replace(
        state, mode=mode, candidate=candidate, share=share, began=began, previous=previous, paused=False, ramp=None
    )


def calm(state: State) -> State:
    """The state without a candidate."""
    return replace(state, mode="stable", candidate=None, share=0.0, paused=False, ramp=None)


def _demand(condition, message: str) -> None:
    if not condition:
        raise WrongMoment(message)


class _Shadow:
    """A thread that shows pictures to the candidate. It never lets anybody wait, and yields to whoever wants the core."""

    def __init__(self) -> None:
        self._waiting: queue.Queue = queue.Queue(SHADOW_WAITING)
        self._start = threading.Lock()
        self._thread: threading.Thread | None = None

    def show(self, candidate, id: str, image, confidence: float, key: str | None, log) -> None:
        with self._start:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="shadow", daemon=True)
                self._thread.start()
        try:
            self._waiting.put_nowait((candidate, id, image, confidence, key, log))
        except queue.Full:
            _note(log, id, candidate, key, None, None, "NotShown")

    def _work(self) -> None:
        if sys.platform == "linux":  # where a thread has a priority of its own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        said: set[tuple[str, str]] = set()
        while True:
            candidate, id, image, confidence, key, log = self._waiting.get()
            started, found, error = time.perf_counter(), None, None
            try:
                found = candidate.detect(image, confidence)
            except Exception as raised:
                error = type(raised).__name__
                if (candidate.version, error) not in said:  # once, not with every picture
                    said.add((candidate.version, error))
                    logger.warning("%s in shadow: %r", candidate.version, raised)
            _note(log, id, candidate, key, time.perf_counter() - started, found, error)


def _note(log, id: str, candidate, key: str | None, latency: float | None, found, error: str | None) -> None:
    if log:
        status = 500 if error else 200
        version = candidate.version
        log.record(
            id=id,
            version=version,
            latency=latency,
            detections=found,
            features=None,
            key=key,
            status=status,
            error=error,
            shadow=True,
        )
