"""Which version answers: the stable one, or a candidate that is on trial.

A `Router` stands where a `Detector` stands and answers the same call. Who answers is one `State`, which is replaced as a
whole: a request sees the one before a change or the one after it, and nothing between.
"""

import copy
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from labsupport import arguments
from labsupport.detection import Detection
from labsupport.log import PredictionLog
from labsupport.models import ModelUnavailable
from labsupport.rollout import answering
from labsupport.rollout.canary_split import Places, checked_key
from labsupport.rollout.journal import Journal, JournalUnavailable, State, plain
from labsupport.rollout.shadow import Shadow, note
from labsupport.rollout.transitions import (
    let_in,
    paused,
    promoted,
    ramp_id,
    resumed,
    returned,
    rolled_back,
    switched,
    without,
)
from labsupport.rollout.versions import Versions

OVERDUE = 30.0  # seconds: a ramp whose next look is overdue for longer is in trouble

logger = logging.getLogger(__name__)


class Router:
    """Named versions, one of which answers. Anything with `version` and `detect(image, confidence)` can be one.

    `versions` are candidates that may be let in later, by name; `load` makes one of a name that is not among them. With a
    `journal` (a SQLite file, or a `Journal`) every change is recorded, and a router that opens it later goes on where it
    stood; several processes that share it change together. A version that another process let in is loaded here on a
    thread of its own; until it is there, the stable version gives its answers. Every answer and every failure is written to
    `log`, and so is what a candidate says about a picture that it sees in shadow.

    If the journal names a version that `load` cannot load any more, `stable` takes its place: the candidate is rolled back,
    and the journal says why. Without `load` it raises `UnknownVersion`; else `JournalUnavailable`, or ValueError.

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
        self.log, self._given = log, stable
        self._versions = Versions([stable, *versions], load)
        new = journal is None or isinstance(journal, Path | str)
        if not new and not hasattr(journal, "change"):
            raise ValueError(f"journal={arguments.shown(journal)}: give the path of a file, a Journal, or None")
        if log is not None and not hasattr(log, "record"):
            raise ValueError(f"log={arguments.shown(log)}: give a PredictionLog, or None")
        self.journal = Journal(journal, State(stable=stable.version)) if new else journal
        self._places = Places()
        self._shadow = Shadow()
        if self.state.action == "start" and self.state.stable != stable.version:  # nothing was ever rolled out
            self.change(
                "start", lambda state: replace(state, stable=stable.version) if state.action == "start" else state
            )
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
        """The stable version's name."""
        return self.state.stable

    @property
    def state(self) -> State:
        return self.journal.state

    def detect(self, image: np.ndarray, confidence: float = 0.5, key: str | None = None) -> list[Detection]:
        """As `Detector.detect`; the same key gets the same version as long as a canary's weight only grows.

        The answer is written to the log. If the version fails, so is that, and its error is raised. Raises ValueError for a
        confidence or a key that cannot be meant.
        """
        arguments.number("confidence", confidence, 0, 1)

        def write(**row) -> None:
            if self.log:
                self.log.record(features=None, key=key, **row)

        def see() -> np.ndarray:  # what a candidate in shadow sees later is no longer the caller's
            return copy.copy(image) if self.state.mode == "shadow" else image

        return answering.answer(self, see, confidence, checked_key(key), secrets.token_hex(16), write)

    def choose(self, key: str | None = None):
        """The version that answers this request. While it is not in memory here, the stable one or the one before stands in.

        Raises `models.ModelUnavailable` if only a candidate could stand in, and ValueError for a key that is no text.
        """
        state, key = self.state, checked_key(key)
        candidate = state.candidate and self._versions.ready(state.candidate)
        if candidate and state.mode == "canary" and self._places.of(key, state.began) < state.share:
            return candidate
        return self._versions.ready(state.stable) or self._stand_in(state)

    def warm(self) -> None:
        """Begin to load, on other threads, what the journal names and this process has not in memory."""
        state = self.state
        for name in filter(None, (state.stable, state.candidate, state.previous)):
            self._versions.ready(name)

    def mirror(self, id: str, image, confidence: float, key: str | None = None) -> None:
        """Show a picture that was answered to the candidate in shadow, if there is one; returns at once.

        What it says, or how it fails, is written to the log under the same id. Nothing that goes wrong here is raised,
        because the answer was given already: `logging` says it.
        """
        try:
            state = self.state
            if state.mode != "shadow" or state.paused or self._places.of(None, state.began) >= state.share:
                return
            if candidate := self._versions.ready(state.candidate):
                self._shadow.show(candidate, id, image, confidence, key, self.log)
            else:
                note(self.log, state.candidate, id, key, error="NotShown")
        except Exception:
            logger.exception("a picture was not shown to the candidate in shadow")

    def shadow(self, candidate, percent: float = 100, reason: str = "") -> None:
        """The stable version answers; the candidate sees a copy of so many percent of the pictures."""
        self._let_in("shadow", candidate, arguments.number("percent", percent, 0, 100), reason)

    def canary(self, candidate, weight: float = 5, reason: str = "") -> None:
        """The candidate answers `weight` percent of the keys. Growing it keeps every key that the candidate has."""
        self._let_in("canary", candidate, arguments.number("weight", weight, 0, 100), reason)

    def blue_green(self, preview, reason: str = "") -> None:
        """The candidate is kept warm and answers nobody, until `switch()`."""
        self._let_in("blue_green", preview, 0.0, reason)

    def switch(self, reason: str = "") -> None:
        """Blue/green: what was the preview answers from the next request on, and what answered is kept warm."""
        self.change("switch", switched, reason)

    def promote(self, reason: str = "", **figures: float) -> None:
        """The candidate becomes the stable version; until another is let in, `rollback()` returns to the one before."""
        self.change("promote", promoted, reason, figures)

    def rollback(self, reason: str = "", to: str | None = None, **figures: float) -> None:
        """Undo the last step: the candidate on trial answers nobody from the next request on.

        Right after a promotion or a switch, the version before it answers again. When there is neither, the call raises
        `WrongMoment` and changes nothing, so that a second press leaves a good version where it is; `to` names the version
        that is to answer then. Raises `UnknownVersion` for one that nobody knows.

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
        if to is None:
            self.change("rollback", rolled_back, reason, figures)
        else:
            name = self.add(to)
            self.change("rollback", lambda state: returned(state, name), reason, figures)

    def pause(self, reason: str = "") -> None:
        """Leave things as they are: a ramp goes no further, and a candidate in shadow sees nothing."""
        self.change("pause", paused, reason)

    def resume(self, reason: str = "") -> None:
        """Undo `pause`. If nothing is paused, nothing changes."""
        self.change("resume", resumed, reason)

    @property
    def unjudged(self) -> float:
        """Seconds for which the next look at the ramp has been overdue; 0 while there is none, or while it is paused."""
        state = self.state
        if state.ramp is None or state.paused:
            return 0.0
        try:
            judged = self.journal.judged(ramp_id(state.ramp))
        except JournalUnavailable:
            judged = 0.0
        return max(0.0, time.time() - max(judged, state.time) - state.ramp["interval"])

    def status(self) -> dict:
        """The state as a dictionary, with the versions there are and the field's word for where a rollout stands.

        `trouble` says what is wrong in this process, if something is, and `unjudged_seconds` for how long a look at the ramp
        has been overdue. A ramp that nobody has judged for long is "Degraded", as a rollout is that was rolled back.
        """
        state, unjudged = self.state, self.unjudged
        phase = "Paused" if state.paused else "Progressing" if state.candidate else "Healthy"
        if state.action == "rollback" or unjudged > OVERDUE:
            phase = "Degraded"
        words = {"trouble": self._trouble(state, unjudged), "unjudged_seconds": unjudged}
        return {"phase": phase, **asdict(state), "versions": self._versions.names(), **words}

    def history(self, most: int | None = None) -> list[State]:
        """Every state there was, the oldest first; of more than `most` the newest."""
        return self.journal.history(most)

    def add(self, version) -> str:
        """Make a version known, or load the one of that name, and return its name.

        Raises `UnknownVersion`, `ModelUnavailable` if it cannot be loaded, and ValueError for what is no version.
        """
        known = self._versions.get(version) if isinstance(version, str) else self._versions.add(version)
        return known.version

    def change(
        self, action: str, change: Callable[[State], State], reason: str = "", figures: dict | None = None
    ) -> State:
        """Put `change(state)` in force, and write down why; if it is the same object, nothing happened."""
        said = {"action": action, "reason": arguments.text("reason", reason), "figures": plain(figures or {})}
        before = None

        def noted(state: State) -> State:
            nonlocal before
            before, changed = state, change(state)
            return state if changed is state else replace(changed, time=time.time(), **said)

        state = self.journal.change(noted)
        if state is not before:
            logger.info("%s: %s answers, candidate %s. %s", action, state.stable, state.candidate, reason)
        return state

    def _let_in(self, mode: str, candidate, share: float, reason: str) -> None:
        name = self.add(candidate)
        self.change(mode, lambda state: let_in(state, mode, name, share), reason)

    def _do_without(self, name: str, error: Exception) -> None:
        """Take a version that the journal names, and that cannot be loaded, out of the rollout."""
        state, given = self.state, self._given.version
        action = "forget" if name == state.previous and name != state.candidate else "rollback"
        answers = given if name == state.stable else state.stable
        words = f"{name} cannot be loaded ({type(error.__cause__ or error).__name__}): {answers} answers"
        logger.error("%s. Make it loadable and begin its rollout again. %s", words, error)
        try:
            self.change(action, lambda state: without(state, name, given), words)
        except JournalUnavailable as unwritten:
            logger.error("that cannot be written to the journal: %s", unwritten)

    def _stand_in(self, state: State):
        """The version that answers while the stable one is not in memory: the one before it, or the one given."""
        if state.previous and (version := self._versions.ready(state.previous)):
            return version
        if self._given.version == state.candidate:  # it would get more than its share
            raise ModelUnavailable(f"{state.stable} is not ready here, and nothing else may answer: send it again")
        return self._given

    def _trouble(self, state: State, unjudged: float) -> str:
        """What is wrong in this process, for whoever asks for the status: no path and no library in it."""
        words = []
        if getattr(self.journal, "trouble", ""):
            words.append("the journal cannot be read, so the last known state stays in force")
        for name in filter(None, (state.stable, state.candidate)):
            if trouble := self._versions.trouble(name):
                words.append(f"{name} gets no requests here: {trouble}")
        if unjudged > OVERDUE:
            words.append(f"nobody has judged the ramp, which has been overdue for {unjudged:.0f} s")
        return "; ".join(words)
