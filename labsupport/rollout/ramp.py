"""Raise a candidate's share of traffic step by step.

`Gate` judges each step. `Rollout` applies the verdict to the `Router`.
"""

import math
import secrets
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace

from labsupport import arguments, background
from labsupport.detection import UnknownVersion, Version
from labsupport.rollout.gate import Gate, Judgement
from labsupport.rollout.journal import Ramp, State
from labsupport.rollout.ramp_figures import Watch, outcomes_since
from labsupport.rollout.router import Router
from labsupport.rollout.transitions import Change, WrongMoment, as_seen, behind, calm, let_in, ramp_id, stepped_up

POLL = 0.5  # seconds between two times that a watcher reads the journal to see whether a ramp is under way
MOST_STEPS = 100
INTERVALS = (0.001, 86_400)  # seconds between two checks: least, most

__all__ = [
    "Gate",
    "Judgement",
    "Ramps",
    "Rollout",
    "Router",
    "UnknownVersion",
    "WrongMoment",
    "WrongRamp",
    "outcomes_since",
]


NO_LOG = "the gate reads a log: Router(..., log=PredictionLog(...))"


class WrongRamp(ValueError):
    """The steps or the interval are invalid, no ramp could pass this gate, or the router has no log to read."""


class Rollout:
    """Run a ramp: a canary whose share grows in steps. Each step lasts until the gate promotes or rolls back.

    The gate judges the requests in the router's log since the ramp began. The router applies the verdict, and writes it to
    the journal with its figures. The journal also holds the ramp, with its gate, its steps and an id. So `Rollout.resumed`
    can continue a ramp after another process stopped. All processes that watch a ramp check it in turn: together they
    check it once in `interval` seconds.

    Raises `WrongRamp` for a router without a log, for steps that do not grow to 100, for a gate that no ramp could pass, and
    for an `interval` that is not from 0.001 to 86,400 seconds. With `seen`, a state of the router, the ramp begins
    only if that state is still in force. If it is not, the call raises `transitions.Changed` and changes nothing.
    """

    _watch: Watch | None = None  # made at the first check
    _ahead = (
        -math.inf
    )  # the largest time.time() - time.monotonic() of the checks so far: it falls if the clock is set back

    def __init__(
        self,
        router: Router,
        candidate: Version | str,
        steps: Sequence[float] = (5, 25, 50, 100),
        gate: Gate | None = None,
        interval: float = 1.0,
        seen: State | None = None,
    ) -> None:
        if getattr(router, "log", None) is None:
            raise WrongRamp(NO_LOG)
        percents, interval = checked(steps, gate, interval)
        self.router, self.gate, self.interval, self.id = router, gate or Gate(), interval, secrets.token_hex(8)
        name, now = router.add(candidate), time.time()
        ramp: Ramp = {
            "id": self.id,
            "steps": percents,
            "gate": asdict(self.gate),
            "interval": interval,
            "began": now,
            "since": now,
            "failures": 0,
        }
        begin = as_seen(seen, lambda state: replace(let_in(state, "canary", name, percents[0]), ramp=ramp))
        router.change("ramp", begin)

    @classmethod
    def resumed(cls, router: Router) -> "Rollout | None":
        """Return the ramp that is under way in the router's journal, or None."""
        if (ramp := router.state.ramp) is None:
            return None
        rollout = cls.__new__(cls)
        rollout.router, rollout.gate, rollout.interval = router, Gate(**ramp["gate"]), ramp["interval"]
        rollout.id = ramp_id(ramp)
        return rollout

    @property
    def done(self) -> bool:
        """Return whether this ramp is over: its candidate was promoted or rolled back, or another ramp has replaced it."""
        return not self._goes_on(self.router.state)

    def look(self) -> Judgement:
        """Check the figures now, apply the gate's verdict to the router, and return the judgement.

        Each call is a check. It counts as failed if a limit is broken. `run` and a server use `look_in_turn` instead.
        While the clock is behind the present step, new requests do not count. Then the ramp holds, unless it rolls back.
        Raises the errors of reading the log or the journal; then nothing has changed.
        """
        state = self.router.state
        ramp = state.ramp if self._goes_on(state) else None
        if ramp is None or state.candidate is None:
            return Judgement("hold", "the ramp is over")
        if state.paused:
            return Judgement("hold", "paused")
        if self.router.log is None:
            raise WrongRamp(NO_LOG)
        if self._watch is None:
            self._watch = Watch(self.router.log, state.stable, state.candidate, ramp["began"])
        judgement = self.gate.decide(self._watch.figures(ramp["since"]), state.stable, ramp["failures"])
        self.router.journal.looked(self.id)
        if (late := behind(state)) and judgement.verdict != "rollback":
            words = f"the clock was set back to {late:,.1f} s before this step: new requests do not count yet"
            judgement = Judgement("hold", words)
        self._act(judgement, state, min(self._watch.newest, time.time() + self._set_back()))
        return judgement

    def _set_back(self) -> float:
        """Return by how many seconds the wall clock was set back since a check of this process.

        Only so far may requests of a step lie in the future. A later time comes from a clock that was ahead.
        """
        ahead = time.time() - time.monotonic()
        self._ahead = max(self._ahead, ahead)
        return self._ahead - ahead

    def look_in_turn(self) -> float:
        """Check if no process has done so in the last `interval` seconds. Return the seconds until the next check."""
        state = self.router.state
        ramp = state.ramp if self._goes_on(state) else None
        if ramp is None or state.paused:
            return self.interval
        if left := self.router.journal.claim(self.id, self.interval, ramp["began"]):
            return left
        self.look()
        return self.interval

    def run(self, stop: threading.Event | None = None) -> None:
        """Check every `interval` seconds, in turn with other processes, until the ramp is over or `stop` is set.

        An error in a check is logged once, and the checks continue.
        """
        stop, interrupted = stop or threading.Event(), threading.Event()

        def step() -> bool:
            left = 0.0 if self.done else self.look_in_turn()
            return self.done or stop.wait(min(left, POLL)) or interrupted.is_set()

        watcher = background.repeat(step, "ramp", stop)
        try:
            watcher.join()
        finally:
            interrupted.set()

    def _goes_on(self, state: State) -> bool:
        return state.ramp is not None and ramp_id(state.ramp) == self.id

    def _act(self, judgement: Judgement, seen: State, newest: float = 0.0) -> None:
        failures = int(judgement.figures.get("failures", 0))
        if judgement.verdict == "rollback":
            self._change("rollback", judgement, seen, calm)
        elif judgement.verdict == "promote":
            self._change("promote", judgement, seen, lambda state: stepped_up(state, newest))
        elif seen.ramp is not None and failures > seen.ramp["failures"]:
            failed: Ramp = {**seen.ramp, "failures": failures}
            self._change("check failed", judgement, seen, lambda state: replace(state, ramp=failed))

    def _change(self, action: str, judgement: Judgement, seen: State, change: Change) -> None:
        """Change the router's state, unless it has changed since the check: then the figures no longer apply."""
        self.router.change(
            action, lambda state: change(state) if state == seen else state, judgement.reason, judgement.figures
        )


def checked(steps: Sequence[float], gate: Gate | None, interval: float) -> tuple[list[float], float]:
    """Return the steps and the interval of a ramp, checked. Raises `WrongRamp`."""
    try:
        if (
            isinstance(steps, str)
            or not isinstance(steps, Iterable)
            or not 1 <= len(steps := list(steps)) <= MOST_STEPS
        ):
            raise ValueError(f"steps={arguments.shown(steps)}: give 1 to {MOST_STEPS} percentages that grow to 100")
        numbers = [arguments.number("steps", step, 0, 100) for step in steps]
        steps = [step if isinstance(step, int) else number for step, number in zip(steps, numbers, strict=True)]
        if steps != sorted({*steps}) or steps[0] <= 0 or steps[-1] != 100:
            raise ValueError(f"steps={arguments.shown(steps)}: give percentages that grow to 100")
        if not isinstance(gate, Gate | None):
            raise ValueError(f"gate={arguments.shown(gate)}: give a Gate, or None for the usual one")
        (gate or Gate()).check_ramp()
        return steps, arguments.number("interval", interval, *INTERVALS)
    except ValueError as error:
        raise WrongRamp(str(error)) from None


class Ramps:
    """Run the ramps of a server's routers. Each router has a watcher: a thread that checks the ramp in its journal."""

    def __init__(self, routers: Mapping[str, Router]) -> None:
        self._routers = routers
        self._stop = threading.Event()
        self._watchers: dict[str, threading.Thread] = {}
        self._ramps: dict[str, Rollout | None] = {}  # the ramp that each watcher checks

    def go_on(self) -> None:
        """Watch every router: the ramp that is under way in its journal, and ramps that any process begins later."""
        self._stop.clear()
        for model in self._routers:
            self._watch(model)

    def start(self, model: str, candidate: Version | str, steps: Sequence[float], gate: Gate, interval: float) -> None:
        """Begin a ramp. Raises the errors of `Rollout`, and ValueError for a model that has no router."""
        arguments.choice("model", model, self._routers)
        Rollout(self._routers[model], candidate, steps, gate, interval)
        self._watch(model)

    def stop(self) -> None:
        """Stop all watchers. The journals keep the state of the ramps."""
        self._stop.set()
        for watcher in self._watchers.values():
            watcher.join()
        self._watchers.clear()

    def _watch(self, model: str) -> None:
        if model not in self._watchers:
            self._watchers[model] = background.repeat(lambda: self._step(model), f"rollout of {model}", self._stop)

    def _step(self, model: str) -> None:
        router, ramp = self._routers[model], self._ramps.get(model)
        router.warm()
        if ramp is None or ramp.done:
            ramp = self._ramps[model] = Rollout.resumed(router)
        self._stop.wait(min(ramp.look_in_turn(), POLL) if ramp else POLL)
