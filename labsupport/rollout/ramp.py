"""The ramp: a candidate's way up, in steps, as far as its gate lets it.

`Router` is who answers, `Gate` is who judges, and `Rollout` does with the one what the other says.
"""

import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace

from labsupport import arguments, background
from labsupport.detection import UnknownVersion
from labsupport.rollout.gate import Gate, Judgement
from labsupport.rollout.journal import State
from labsupport.rollout.ramp_figures import Watch, outcomes_since
from labsupport.rollout.router import Router
from labsupport.rollout.transitions import WrongMoment, as_seen, calm, let_in, ramp_id, stepped_up

POLL = 0.5  # seconds after which a watcher asks the journal again whether there is a ramp to look at
MOST_STEPS = 100
INTERVALS = (0.001, 86_400)  # seconds between two looks: from, to

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
    """These steps are no ramp, no ramp could pass this gate, or there is no log that it could read."""


class Rollout:
    """A candidate's way up: a canary in steps of more and more percent, each held until the gate says go.

    The gate reads what the router's log holds about the requests since the ramp began. What it decides, the router does, and
    writes down with the figures. The ramp stands in the router's journal, with its gate, its steps and an id of its own, so
    `Rollout.resumed` goes on where another process stopped. Every process that watches a ramp looks at it in turn: together
    they look once in `interval` seconds.

    Raises `WrongRamp` for a router without a log, for steps that do not grow to 100, for a gate that no ramp could pass, and
    for an `interval` that is not from 0.001 to 86,400 seconds. With `seen`, a state of the router, the ramp only begins if
    that is still in force: if it is not, `transitions.Changed` is raised and nothing changes.
    """

    _watch: Watch | None = None  # made at the first look

    def __init__(
        self,
        router: Router,
        candidate,
        steps: Sequence[float] = (5, 25, 50, 100),
        gate: Gate | None = None,
        interval: float = 1.0,
        seen: State | None = None,
    ) -> None:
        if getattr(router, "log", None) is None:
            raise WrongRamp(NO_LOG)
        steps, interval = checked(steps, gate, interval)
        self.router, self.gate, self.interval, self.id = router, gate or Gate(), interval, secrets.token_hex(8)
        name, now = router.add(candidate), time.time()
        ramp = {"id": self.id, "steps": steps, "gate": asdict(self.gate), "interval": interval}
        ramp |= {"began": now, "since": now, "failures": 0}
        begin = as_seen(seen, lambda state: replace(let_in(state, "canary", name, steps[0]), ramp=ramp))
        router.change("ramp", begin)

    @classmethod
    def resumed(cls, router: Router) -> "Rollout | None":
        """The ramp that the router's journal says is under way, if one is."""
        if (ramp := router.state.ramp) is None:
            return None
        rollout = cls.__new__(cls)
        rollout.router, rollout.gate, rollout.interval = router, Gate(**ramp["gate"]), ramp["interval"]
        rollout.id = ramp_id(ramp)
        return rollout

    @property
    def done(self) -> bool:
        """Whether this ramp is over: its candidate was promoted or rolled back, or another ramp has taken its place."""
        return not self._goes_on(self.router.state)

    def look(self) -> Judgement:
        """Look at the figures now, and do what the gate says that the journal holds for this ramp.

        Each call is a check, and counts as one that failed if a limit is broken; `run` and a server take turns instead.
        Raises what reading the log or the journal raises, and then nothing has changed.
        """
        state = self.router.state
        if not self._goes_on(state) or state.paused:
            return Judgement("hold", "paused" if self._goes_on(state) else "the ramp is over")
        if self.router.log is None:
            raise WrongRamp(NO_LOG)
        if self._watch is None:
            self._watch = Watch(self.router.log, state.stable, state.candidate, state.ramp["began"])
        judgement = self.gate.decide(self._watch.figures(state.ramp["since"]), state.stable, state.ramp["failures"])
        self.router.journal.looked(self.id)
        self._act(judgement, state)
        return judgement

    def look_in_turn(self) -> float:
        """Look if no process has in the last `interval` seconds; return the seconds until the next look."""
        state = self.router.state
        if not self._goes_on(state) or state.paused:
            return self.interval
        if left := self.router.journal.claim(self.id, self.interval, state.ramp["began"]):
            return left
        self.look()
        return self.interval

    def run(self, stop: threading.Event | None = None) -> None:
        """Look every `interval` seconds, taking turns with whoever else does, until the ramp is over or `stop` is set.

        What a look raises is logged once, and the next look comes nevertheless.
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

    def _act(self, judgement: Judgement, seen: State) -> None:
        if judgement.verdict == "rollback":
            self._change("rollback", judgement, seen, calm)
        elif judgement.verdict == "promote":
            self._change("promote", judgement, seen, stepped_up)
        elif judgement.figures.get("failures", 0) > seen.ramp["failures"]:
            failed = {**seen.ramp, "failures": judgement.figures["failures"]}
            self._change("check failed", judgement, seen, lambda state: replace(state, ramp=failed))

    def _change(self, action: str, judgement: Judgement, seen: State, change: Callable[[State], State]) -> None:
        """Unless somebody changed something since we looked: then what was seen is no ground any more."""
        self.router.change(
            action, lambda state: change(state) if state == seen else state, judgement.reason, judgement.figures
        )


def checked(steps: Sequence[float], gate: Gate | None, interval: float) -> tuple[list[float], float]:
    """The steps and the interval of a ramp. Raises `WrongRamp`."""
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
    """The ramps of a server's routers: each router has a watcher, a thread that looks at the ramp its journal holds."""

    def __init__(self, routers: Mapping[str, Router]) -> None:
        self._routers = routers
        self._stop = threading.Event()
        self._watchers: dict[str, threading.Thread] = {}
        self._ramps: dict[str, Rollout | None] = {}  # what each watcher looks at

    def go_on(self) -> None:
        """Watch every router: what its journal says is under way, and what any process begins later."""
        self._stop.clear()
        for model in self._routers:
            self._watch(model)

    def start(self, model: str, candidate, steps: Sequence[float], gate: Gate, interval: float) -> None:
        """Begin a ramp. Raises what `Rollout` raises, and ValueError for a model that has no router."""
        arguments.choice("model", model, self._routers)
        Rollout(self._routers[model], candidate, steps, gate, interval)
        self._watch(model)

    def stop(self) -> None:
        """Look no more; the journals say how far the ramps are."""
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
