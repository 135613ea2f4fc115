"""Use a `Router` in place of a `Detector`. It picks the version for each request.

One `State` describes which version answers. A change replaces it as a whole, so each request uses either the state before
the change or the state after it.
"""

import copy
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from labsupport import arguments
from labsupport.detection import Detection, Version
from labsupport.log import PredictionLog
from labsupport.models import ModelUnavailable
from labsupport.rollout.answering import answer, only_detections
from labsupport.rollout.canary_split import Places, checked_key
from labsupport.rollout.gate import plain
from labsupport.rollout.journal import Journal, JournalUnavailable, State
from labsupport.rollout.shadow import NOT_SHOWN, Shadow, note
from labsupport.rollout.transitions import (
    StateStore,
    begun,
    behind,
    let_in,
    overdue,
    paused,
    promoted,
    resumed,
    returned,
    rolled_back,
    switched,
    without,
)
from labsupport.rollout.versions import Versions

OVERDUE = 30.0  # seconds: if the next check of a ramp is overdue for longer, the status reports trouble

logger = logging.getLogger(__name__)


class Router:
    """Send each request to one of several versions. A version is anything with `version` and `detect(image, confidence)`.

    `versions` are candidates for later, known by their names. `load` loads a version by a name that is not among them. A
    `journal` (a SQLite file, or a `Journal`) records every change. A router that opens it later continues with the last
    state, and all processes that share it use the same state. A version that another process put on trial is loaded here
    on a separate thread; until then, the stable version answers instead. `log` records every answer, every failure, and
    every answer of a candidate in shadow.

    If the journal names a version that `load` can no longer load, `stable` replaces it, a candidate is rolled back, and the
    journal records why. Without `load` this raises `UnknownVersion`. Raises `JournalUnavailable` and ValueError, too.

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
        stable: Version,
        *versions: Version,
        load: Callable[[str], Version] | None = None,
        journal: Path | str | StateStore | None = None,
        log: PredictionLog | None = None,
    ) -> None:
        self.log, self._given, self._versions = log, stable, Versions([stable, *versions], load)
        if log is not None and not hasattr(log, "record"):
            raise ValueError(f"log={arguments.shown(log)}: give a PredictionLog, or None")
        if journal is None or isinstance(journal, Path | str):
            journal = Journal(journal, State(stable=stable.version))
        elif not hasattr(journal, "change"):
            raise ValueError(f"journal={arguments.shown(journal)}: give the path of a file, a Journal, or None")
        self.journal: StateStore = journal
        self._places, self._shadow = Places(), Shadow()
        if self.state.action == "start" and self.state.stable != stable.version:  # no rollout has happened yet
            self.change("start", partial(begun, stable=stable.version))
        for name in filter(None, (self.state.stable, self.state.candidate, self.state.previous)):
            try:
                self._versions.get(name)
            except Exception as error:
                if load is None:
                    raise
                self._do_without(name, error)
        if self.version != stable.version:
            logger.warning("%s answers, as the journal says, and not %s", self.version, stable.version)

    @property
    def version(self) -> str:
        """Return the stable version's name."""
        return self.state.stable

    @property
    def state(self) -> State:
        return self.journal.state

    def detect(self, image: np.ndarray, confidence: float = 0.5, key: str | None = None) -> list[Detection]:
        """Detect objects as `Detector.detect` does. A key keeps its version as long as a canary's weight only grows.

        The answer is written to the log. If the version fails, the failure is logged and its error is raised. Raises
        ValueError for an invalid confidence or key.
        """
        arguments.number("confidence", confidence, 0, 1)

        def write(**row: Any) -> None:
            if self.log:
                self.log.record(features=None, key=key, **row)

        def see() -> np.ndarray:  # a copy for the candidate in shadow: the caller may change its picture
            return copy.copy(image) if self.state.mode == "shadow" else image

        return answer(self, see, confidence, checked_key(key), secrets.token_hex(16), write, only_detections)

    def choose(self, key: str | None = None) -> Version:
        """Return the version for this request. If it is not in memory, return the stable version or the previous one.

        Raises `models.ModelUnavailable` if only a candidate could answer instead, and ValueError for a key that is not text.
        """
        state, key = self.state, checked_key(key)
        candidate = self._versions.ready(state.candidate) if state.candidate else None
        if candidate and state.mode == "canary" and self._places.of(key, state.began) < state.share:
            return candidate
        return self._versions.ready(state.stable) or self._stand_in(state)

    def warm(self) -> None:
        """Begin to load, on other threads, the versions in the journal that this process does not have in memory."""
        state = self.state
        for name in filter(None, (state.stable, state.candidate, state.previous)):
            self._versions.ready(name)

    def mirror(
        self, id: str, image: np.ndarray, confidence: float, key: str | None = None, person: str | None = None
    ) -> None:
        """Queue an answered picture for the candidate in shadow, if there is one, and return without waiting.

        The candidate's answer or failure is logged under the same id. Errors are not raised: the request was answered.
        """
        try:
            state = self.state
            name = state.candidate if state.mode == "shadow" and not state.paused else None
            if name and self._places.of(None, state.began) < state.share:
                if candidate := self._versions.ready(name):
                    self._shadow.show(candidate, id, image, confidence, key, person, self.log)
                else:
                    note(self.log, name, id, key, person, error=NOT_SHOWN)
        except Exception:
            logger.exception("a picture was not shown to the candidate in shadow")

    def shadow(self, candidate: Version | str, percent: float = 100, reason: str = "") -> None:
        """Put a candidate in shadow: the stable version answers, and the candidate sees `percent` of the pictures."""
        self._let_in("shadow", candidate, arguments.number("percent", percent, 0, 100), reason)

    def canary(self, candidate: Version | str, weight: float = 5, reason: str = "") -> None:
        """Let a candidate answer `weight` percent of the keys. If the weight grows, the candidate keeps its keys."""
        self._let_in("canary", candidate, arguments.number("weight", weight, 0, 100), reason)

    def blue_green(self, preview: Version | str, reason: str = "") -> None:
        """Keep a candidate loaded as the preview. It answers no request until `switch()`."""
        self._let_in("blue_green", preview, 0.0, reason)

    def switch(self, reason: str = "") -> None:
        """Exchange blue and green: the preview answers from the next request on. The other version stays loaded."""
        self.change("switch", switched, reason)

    def promote(self, reason: str = "", **figures: float) -> None:
        """Make the candidate the stable version. Until the next trial, `rollback()` returns to the version before it."""
        self.change("promote", promoted, reason, figures)

    def rollback(self, reason: str = "", to: str | None = None, **figures: float) -> None:
        """Undo the last step: the candidate on trial answers no request from the next one on.

        Right after a promotion or a switch, the version before it answers again. If there is nothing to undo, the call
        raises `WrongMoment` and changes nothing, so a second rollback does not remove a good version. With `to`, that
        version becomes the stable one. Raises `UnknownVersion` for a name that is not known.

        >>> class Version:
        ...     def __init__(self, version): self.version = version
        ...     def detect(self, image, confidence=0.5): return []
        >>> router = Router(Version("v1"))
        >>> router.canary(Version("v2"))
        >>> router.rollback()
        >>> router.rollback()
        Traceback (most recent call last):
        labsupport.rollout.transitions.WrongMoment: nothing is on trial, and v1 answers: to return to another, name it in to=...
        """  # noqa: E501
        change = rolled_back if to is None else partial(returned, to=self.add(to))
        self.change("rollback", change, reason, figures)

    def pause(self, reason: str = "") -> None:
        """Pause the rollout: a ramp keeps its step, and a candidate in shadow sees no pictures."""
        self.change("pause", paused, reason)

    def resume(self, reason: str = "") -> None:
        """Undo `pause`. If the rollout is not paused, nothing changes."""
        self.change("resume", resumed, reason)

    @property
    def unjudged(self) -> float:
        """Return for how many seconds the next check of the ramp has been overdue; 0 without a ramp, or if it is paused."""
        return overdue(self.state, self.journal)

    def status(self) -> dict[str, Any]:
        """Return the state as a dictionary, with the names of the versions in memory and the phase of the rollout.
        `trouble` describes problems in this process. `unjudged_seconds` is the time for which a check of the ramp has been
        overdue. The phase is "Degraded" after a rollback, and if a check is overdue, or the clock is behind the step,
        by more than `OVERDUE` seconds. `loads` is whether versions other than `versions` can be loaded by their names.
        """
        state, unjudged = self.state, self.unjudged
        phase = "Paused" if state.paused else "Progressing" if state.candidate else "Healthy"
        if state.action == "rollback" or max(unjudged, behind(state)) > OVERDUE:
            phase = "Degraded"
        words = {"trouble": self._trouble(state, unjudged), "unjudged_seconds": unjudged, "loads": self._versions.loads}
        return {"phase": phase, **asdict(state), "versions": self._versions.names(), **words}

    def history(self, most: int | None = None) -> list[State]:
        """Return the newest `most` states, or all, the oldest first."""
        return self.journal.history(most)

    def add(self, version: Version | str) -> str:
        """Add a version, or load the version of that name, and return its name.

        Raises `UnknownVersion`, `ModelUnavailable` if it cannot be loaded, and ValueError if it is not a version.
        """
        return (self._versions.get(version) if isinstance(version, str) else self._versions.add(version)).version

    def change(
        self, action: str, change: Callable[[State], State], reason: str = "", figures: dict[str, float] | None = None
    ) -> State:
        """Put `change(state)` in force, with the reason. If `change` returns the same object, nothing happens."""
        reason, numbers, before = arguments.text("reason", reason), plain(figures or {}), None

        def noted(state: State) -> State:
            nonlocal before
            before, changed = state, change(state)
            if changed is state:
                return state
            return replace(changed, time=time.time(), action=action, reason=reason, figures=numbers)

        state = self.journal.change(noted)
        if state is not before:
            logger.info("%s: %s answers, candidate %s. %s", action, state.stable, state.candidate, reason)
        return state

    def _let_in(self, mode: str, candidate: Version | str, share: float, reason: str) -> None:
        name = self.add(candidate)
        self.change(mode, lambda state: let_in(state, mode, name, share), reason)

    def _do_without(self, name: str, error: Exception) -> None:
        """Remove a version from the rollout that the journal names and that cannot be loaded."""
        state, instead = self.state, self._given.version
        action = "forget" if name == state.previous and name != state.candidate else "rollback"
        answers = instead if name == state.stable else state.stable
        words = f"{name} cannot be loaded ({type(error.__cause__ or error).__name__}): {answers} answers"
        logger.error("%s. Make it loadable and begin its rollout again. %s", words, error)
        try:
            self.change(action, lambda state: without(state, name, instead), words)
        except JournalUnavailable as unwritten:
            logger.error("that cannot be written to the journal: %s", unwritten)

    def _stand_in(self, state: State) -> Version:
        """Return the version that answers while the stable one is not in memory: the previous one, or the one given."""
        if state.previous and (version := self._versions.ready(state.previous)):
            return version
        if self._given.version == state.candidate:  # the candidate would get more than its share
            raise ModelUnavailable(f"{state.stable} is not ready here, and nothing else may answer: send it again")
        return self._given

    def _trouble(self, state: State, unjudged: float) -> str:
        """Return the problems of this process as a text for the status. It contains no file path and no library name."""
        words = []
        if getattr(self.journal, "trouble", ""):
            words.append("the journal cannot be read, so the last known state stays in force")
        for name in filter(None, (state.stable, state.candidate)):
            if trouble := self._versions.trouble(name):
                words.append(f"{name} gets no requests here: {trouble}")
        if unjudged > OVERDUE:
            words.append(f"nobody has judged the ramp, which has been overdue for {unjudged:.0f} s")
        if (late := behind(state)) > OVERDUE:
            words.append(
                f"the clock was set back to {late:,.0f} s before this step of the ramp: new requests do not count yet"
            )
        return "; ".join(words)
