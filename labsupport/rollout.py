"""The ramp: a candidate's way up, in steps, as far as its gate lets it.

`Router` is who answers, `Gate` is who judges, and `Rollout` does with the one what the other says.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace

from labsupport.gate import Gate, Judgement
from labsupport.journal import State
from labsupport.outcomes import Watch, outcomes_since
from labsupport.router import Router, UnknownVersion, WrongMoment, calm, let_in

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


class WrongRamp(ValueError):
    """These steps are no ramp, no ramp could pass this gate, or there is no log that it could read."""


class Rollout:
    """A candidate's way up: a canary in steps of more and more percent, each held until the gate says go.

    The gate reads what the router's log holds about the requests since the ramp began. What it decides, the router does, and
    writes down with the figures; how far the ramp is stands in the router's journal, so `Rollout.resumed` goes on where
    another process stopped. Raises `WrongRamp` for a router without a log, steps that do not grow to 100,
    and a gate that no ramp could pass.
    """

    _watch: Watch | None = None  # made at the first look

    def __init__(
        self,
        router: Router,
        candidate,
        steps: Sequence[float] = (5, 25, 50, 100),
        gate: Gate | None = None,
        interval: float = 1.0,
    ) -> None:
        if router.log is None:
            raise WrongRamp("the gate reads a log: Router(..., log=PredictionLog(...))")
        if not steps or list(steps) != sorted({*steps}) or steps[0] <= 0 or steps[-1] != 100:
            raise WrongRamp(f"steps {list(steps)}: give percentages that grow to 100")
        self.router, self.gate, self.interval = router, gate or Gate(), interval
        try:
            self.gate.check_ramp()
        except ValueError as error:
            raise WrongRamp(str(error)) from None
        name, now = router.add(candidate), time.time()
        ramp = {"steps": list(steps), "gate": asdict(self.gate), "began": now, "since": now, "failures": 0}
        ramp["interval"] = interval
        router.change("ramp", lambda state: replace(let_in(state, "canary", name, steps[0]), ramp=ramp))

    @classmethod
    def resumed(cls, router: Router) -> "Rollout | None":
        """The ramp that the router's journal says is under way, if one is."""
        if (ramp := router.state.ramp) is None:
            return None
        rollout = cls.__new__(cls)
        rollout.router, rollout.gate, rollout.interval = router, Gate(**ramp["gate"]), ramp["interval"]
        return rollout

    @property
    def done(self) -> bool:
        """Whether the candidate was promoted or rolled back, by the gate or by hand."""
        return self.router.state.ramp is None

    def look(self) -> Judgement:
        """Look at the figures once, and do what the gate says."""
        state = self.router.state
        if state.ramp is None or state.paused:
            return Judgement("hold", "paused" if state.ramp else "the ramp is over")
        if self._watch is None:
            self._watch = Watch(self.router.log, state.stable, state.candidate, state.ramp["began"])
        judgement = self.gate.decide(self._watch.figures(state.ramp["since"]), state.stable, state.ramp["failures"])
        self._act(judgement, state)
        return judgement

    def run(self, stop: threading.Event | None = None) -> None:
        """Look every `interval` seconds until the ramp is over, or `stop` is set."""
        stop = stop or threading.Event()
        while not self.done and not stop.wait(self.interval):
            self.look()

    def _act(self, judgement: Judgement, seen: State) -> None:
        if judgement.verdict == "rollback":
            self._change("rollback", judgement, seen, calm)
        elif judgement.verdict == "promote":
            self._change("promote", judgement, seen, _step_up)
        elif judgement.figures.get("failures", 0) > seen.ramp["failures"]:
            failed = {**seen.ramp, "failures": judgement.figures["failures"]}
            self._change("check failed", judgement, seen, lambda state: replace(state, ramp=failed))

    def _change(self, action: str, judgement: Judgement, seen: State, change: Callable[[State], State]) -> None:
        """Unless somebody changed something since we looked: then what was seen is no ground any more."""
        self.router.change(
            action, lambda state: change(state) if state == seen else state, judgement.reason, judgement.figures
        )


def _step_up(state: State) -> State:
    """The next step of the ramp, or the end of it."""
    higher = [step for step in state.ramp["steps"] if step > state.share]
    if not higher:
        return replace(calm(state), stable=state.candidate, previous=state.stable)
    return replace(state, share=higher[0], ramp={**state.ramp, "since": time.time()})


class Ramps:
    """The ramps of a server's routers, each looked at by a thread of its own; those under way go on after a restart."""

    def __init__(self, routers: Mapping[str, Router]) -> None:
        self._routers = routers
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def go_on(self) -> None:
        """Go on with what the routers' journals say is under way."""
        self._stop.clear()
        for router in self._routers.values():
            if ramp := Rollout.resumed(router):
                self._run(ramp)

    def start(self, model: str, candidate, steps: Sequence[float], gate: Gate, interval: float) -> None:
        """Begin a ramp. Raises what `Rollout` raises."""
        self._run(Rollout(self._routers[model], candidate, steps, gate, interval))

    def stop(self) -> None:
        """Look no more; the journals say how far the ramps are."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, ramp: Rollout) -> None:
        thread = threading.Thread(target=ramp.run, args=(self._stop,), name="ramp", daemon=True)
        self._threads = [*(other for other in self._threads if other.is_alive()), thread]
        thread.start()
