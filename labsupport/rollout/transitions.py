"""Which state may follow which: each function takes the `State` in force and returns the next one, and does nothing else.

A step that makes no sense in that state raises `WrongMoment`. One that changes nothing returns the state that it got.
"""

import time
from collections.abc import Callable
from dataclasses import replace

from labsupport.rollout.journal import State


class WrongMoment(RuntimeError):
    """That cannot be done in the present state: there is no candidate to promote, nothing to return to."""


class Changed(WrongMoment):
    """Somebody else has changed who answers since we looked."""


def as_seen(seen: State | None, change: Callable[[State], State]) -> Callable[[State], State]:
    """Return a change that raises `Changed` where another state than `seen` is in force; None is any state."""

    def checked(state: State) -> State:
        if seen is not None and state != seen:
            raise Changed(
                "somebody has changed who answers meanwhile, so nothing was done: the next look sees how it is"
            )
        return change(state)

    return checked


def let_in(state: State, mode: str, candidate: str, share: float) -> State:
    """Put a candidate on trial. The same candidate keeps its keys.

    The trial takes the stable version for good: to go back to the version before it, one has to name it.
    """
    _demand(candidate != state.stable, f"{candidate} is the stable version: a candidate is another one")
    began = state.began if state.candidate == candidate else time.time()
    return replace(calm(state), mode=mode, candidate=candidate, share=share, began=began)


def calm(state: State) -> State:
    """The state without a candidate."""
    return replace(state, mode="stable", candidate=None, previous=None, share=0.0, paused=False, ramp=None)


def promoted(state: State) -> State:
    """The candidate is the stable version."""
    _demand(state.candidate, "there is no candidate to promote")
    return replace(calm(state), stable=state.candidate, previous=state.stable)


def stepped_up(state: State) -> State:
    """The next step of the ramp, or the end of it."""
    higher = [step for step in state.ramp["steps"] if step > state.share]
    if not higher:
        return promoted(state)
    return replace(state, share=higher[0], ramp={**state.ramp, "since": time.time()})


def switched(state: State) -> State:
    """Blue and green have changed places. A second switch undoes the first: then there is nothing to return to."""
    _demand(state.mode == "blue_green", "switch() exchanges blue and green: call blue_green(preview) first")
    previous = None if state.previous else state.stable
    return replace(state, stable=state.candidate, candidate=state.stable, previous=previous)


def rolled_back(state: State) -> State:
    """Without the candidate on trial; right after a promotion or a switch, with the version before it."""
    if state.previous and state.mode == "blue_green":
        return replace(state, stable=state.previous, candidate=state.stable, previous=None)
    if state.previous and state.mode == "stable":
        return replace(state, stable=state.previous, previous=None)
    words = f"nothing is on trial, and {state.stable} answers: to return to another, name it in to=..."
    _demand(state.candidate, words)
    return calm(state)


def returned(state: State, to: str) -> State:
    """The version `to` answers, and nothing is on trial."""
    _demand(to != state.candidate or to == state.previous, f"{to} is on trial: promote() lets it answer everything")
    nothing = to == state.stable and state.candidate is None
    return state if nothing else replace(calm(state), stable=to)


def paused(state: State) -> State:
    _demand(state.candidate, "nothing is on trial, so there is nothing to pause")
    return state if state.paused else replace(state, paused=True)


def resumed(state: State) -> State:
    return replace(state, paused=False) if state.paused else state


def without(state: State, name: str, given: str) -> State:
    """The state without a version that cannot be loaded any more; `given` takes the place of the stable version."""
    if name == state.stable:
        return replace(calm(state), stable=given)
    if name == state.candidate:
        return calm(state)
    return replace(state, previous=None) if name == state.previous else state


def ramp_id(ramp: dict) -> str:
    """The id of a ramp; those that an older version of the lab began have none, but for the time."""
    return ramp.get("id") or str(ramp["began"])


def _demand(condition, message: str) -> None:
    if not condition:
        raise WrongMoment(message)
