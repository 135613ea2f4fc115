"""Compute the next `State` from the state in force. The functions have no side effects.

A step that is not possible in that state raises `WrongMoment`. A step that changes nothing returns the same object.
`overdue` and `behind` tell how late a ramp is.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from labsupport.rollout.journal import JournalUnavailable, Ramp, State

Change = Callable[[State], State]
WRITTEN = 1.0  # seconds after a request within which its row is usually in the log


class StateStore(Protocol):
    """Describe what a router and a ramp ask of a `Journal`, or of another store of states."""

    @property
    def state(self) -> State:
        """Return the state in force."""

    def change(self, change: Change, /) -> State:
        """Replace the state in force with `change(state)`, and return it."""

    def history(self, most: int | None = None, /) -> list[State]:
        """Return the newest `most` states, or all, the oldest first."""

    def claim(self, ramp: str, interval: float, began: float, /) -> float:
        """Take the turn to check a ramp: return 0, or the seconds until the next turn."""

    def looked(self, ramp: str, /) -> None:
        """Store that the ramp has just been judged."""

    def judged(self, ramp: str, /) -> float:
        """Return when the ramp was last judged, in seconds since the epoch; 0 if never."""


class WrongMoment(RuntimeError):
    """The step is not possible in the present state, for example because there is no candidate to promote."""


class Changed(WrongMoment):
    """Somebody else has changed the state since the check."""


def as_seen(seen: State | None, change: Change) -> Change:
    """Return a change that raises `Changed` if the state in force is not `seen`. None allows any state."""

    def checked(state: State) -> State:
        if seen is not None and state != seen:
            raise Changed(
                "somebody has changed who answers meanwhile, so nothing was done: the next look sees how it is"
            )
        return change(state)

    return checked


def begun(state: State, stable: str) -> State:
    """Make `stable` the stable version if no rollout has happened yet."""
    return replace(state, stable=stable) if state.action == "start" else state


def let_in(state: State, mode: str, candidate: str, share: float) -> State:
    """Put a candidate on trial. If it is on trial already, it keeps its keys.

    The trial forgets the previous version: to return to it later, call `rollback(to=...)` with its name.
    """
    _demand(candidate != state.stable, f"{candidate} is the stable version: a candidate is another one")
    began = state.began if state.candidate == candidate else time.time()
    return replace(calm(state), mode=mode, candidate=candidate, share=share, began=began)


def calm(state: State) -> State:
    """Return the state without a candidate."""
    return replace(state, mode="stable", candidate=None, previous=None, share=0.0, paused=False, ramp=None)


def promoted(state: State) -> State:
    """Make the candidate the stable version."""
    candidate = _on_trial(state, "there is no candidate to promote")
    return replace(calm(state), stable=candidate, previous=state.stable)


def stepped_up(state: State, newest: float = 0.0) -> State:
    """Go to the next step of the ramp. After the last step, promote the candidate.

    `newest` is the time of the newest request of the present step. If the clock was set back and is before that, the next
    step begins after `newest`, so that no request of this step counts for it.
    """
    if state.ramp is None:
        raise WrongMoment("no ramp is under way, so there is no next step")
    higher = [step for step in state.ramp["steps"] if step > state.share]
    if not higher:
        return promoted(state)
    now = time.time()
    since = now if now >= newest else newest + WRITTEN
    return replace(state, share=higher[0], ramp={**state.ramp, "since": since})


def switched(state: State) -> State:
    """Exchange blue and green. A second switch undoes the first; then there is no version to return to."""
    words = "switch() exchanges blue and green: call blue_green(preview) first"
    _demand(state.mode == "blue_green", words)
    previous = None if state.previous else state.stable
    return replace(state, stable=_on_trial(state, words), candidate=state.stable, previous=previous)


def rolled_back(state: State) -> State:
    """Remove the candidate on trial. Right after a promotion or a switch, return to the version before it."""
    if state.previous and state.mode == "blue_green":
        return replace(state, stable=state.previous, candidate=state.stable, previous=None)
    if state.previous and state.mode == "stable":
        return replace(state, stable=state.previous, previous=None)
    _on_trial(state, f"nothing is on trial, and {state.stable} answers: to return to another, name it in to=...")
    return calm(state)


def returned(state: State, to: str) -> State:
    """Make `to` the stable version, with nothing on trial."""
    _demand(to != state.candidate or to == state.previous, f"{to} is on trial: promote() lets it answer everything")
    nothing = to == state.stable and state.candidate is None
    return state if nothing else replace(calm(state), stable=to)


def paused(state: State) -> State:
    _on_trial(state, "nothing is on trial, so there is nothing to pause")
    return state if state.paused else replace(state, paused=True)


def resumed(state: State) -> State:
    return replace(state, paused=False) if state.paused else state


def without(state: State, name: str, given: str) -> State:
    """Return the state without a version that can no longer be loaded. `given` replaces it if it is the stable one."""
    if name == state.stable:
        return replace(calm(state), stable=given)
    if name == state.candidate:
        return calm(state)
    return replace(state, previous=None) if name == state.previous else state


def ramp_id(ramp: Ramp) -> str:
    """Return the id of a ramp. A ramp from an older version of the lab has no id, so return the time when it began."""
    return ramp.get("id") or str(ramp["began"])


def overdue(state: State, journal: StateStore) -> float:
    """Return for how many seconds the next check of the ramp has been overdue; 0 without a ramp, or if it is paused."""
    if state.ramp is None or state.paused:
        return 0.0
    try:
        judged = journal.judged(ramp_id(state.ramp))
    except JournalUnavailable:
        judged = 0.0
    return max(0.0, time.time() - max(judged, state.time) - state.ramp["interval"])


def behind(state: State) -> float:
    """Return the seconds until the clock reaches the beginning of the ramp's step; 0 without a ramp, or if it is paused.

    They are more than 0 if the clock was set back. Until it is there, the rows of new requests lie before the step, so
    they do not count.
    """
    if state.ramp is None or state.paused:
        return 0.0
    return max(0.0, state.ramp["since"] - time.time())


def _demand(condition: bool, message: str) -> None:
    if not condition:
        raise WrongMoment(message)


def _on_trial(state: State, message: str) -> str:
    """Return the candidate's name. Raises `WrongMoment` with the message if there is none."""
    if not state.candidate:
        raise WrongMoment(message)
    return state.candidate
