"""From an alarm to a better model, or to none: a retrained model is a candidate that has to prove itself.

A run is opened by a person, or by an alarm. It trains a candidate, shows it in shadow every picture that the stable version
answers, and compares the two wherever a user has said what is right. Only a candidate that is better goes up the ramp
(`rollout`), where its gate still watches it; one that is worse, or no better, is sent away. Nothing goes live by itself.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from scipy import special

from labsupport.gate import Gate, Judgement
from labsupport.rollout import Rollout, Router, WrongMoment

PAIRS = 1_000  # pictures on which the two differ or agree, with a user's word: then we stop asking


class Retraining:
    """One model's retraining: at most one run at a time, each from training to "promoted" or "rejected".

    `train` gives the candidate, anything that a `Router` takes; it may take its time, and what it raises ends the run before
    it began. `alpha` is the chance that a candidate no better than the stable version passes the shadow, however often we
    look. Needs a router with a log, for there the pictures, answers and users' words are.
    """

    def __init__(
        self,
        router: Router,
        train: Callable[[], Any],
        gate: Gate | None = None,
        steps: Sequence[float] = (5, 25, 50, 100),
        alpha: float = 0.05,
        most: int = PAIRS,
    ) -> None:
        if router.log is None:
            raise ValueError("a candidate is judged by what the log says: Router(..., log=PredictionLog(...))")
        if not 0 < alpha < 1:
            raise ValueError(f"alpha={alpha}: give the chance, between 0 and 1, that a candidate passes without merit")
        self.router, self.train, self.gate, self.steps, self.alpha, self.most = router, train, gate, steps, alpha, most
        self.stage = "idle"  # "shadow", "ramp", "promoted", "rejected"
        self._began, self._ramp = 0.0, None

    def open(self, reason: str) -> None:
        """Train a candidate and begin to show it pictures. Raises `WrongMoment` while a candidate is on trial already."""
        if self.router.state.candidate is not None:
            raise WrongMoment(f"{self.router.state.candidate} is on trial already: wait for it, or roll it back")
        self.router.shadow(self.train(), reason=f"retrained: {reason}")
        self._began, self.stage = self.router.state.began, "shadow"

    def open_on(self, events: Iterable, rules: Sequence[str]) -> bool:
        """Open a run if one of these alarms has fired and none is under way. `events` are those of `Alarms.evaluate`."""
        fired = [event for event in events if event.event == "fired" and event.alarm in rules]
        if not fired or self.router.state.candidate is not None:
            return False
        self.open(fired[0].text)
        return True

    def look(self) -> Judgement:
        """Look at the figures once, and do what they say: up the ramp, up its next step, or away."""
        if self.stage == "shadow" and self.router.state.mode != "shadow":
            self.stage = "rejected"  # by hand
        if self.stage == "shadow":
            judgement = self._judge(*self.compared())
            if judgement.verdict == "promote":
                candidate = self.router.state.candidate
                self._ramp, self.stage = Rollout(self.router, candidate, self.steps, self.gate), "ramp"
            elif judgement.verdict == "rollback":
                self.router.rollback(reason=judgement.reason, **judgement.figures)
                self.stage = "rejected"
            return judgement
        if self.stage != "ramp":
            return Judgement("hold", f"no run is under way: the last one was {self.stage}")
        candidate = self.router.state.candidate
        judgement = self._ramp.look()
        if self._ramp.done:
            self.stage = "promoted" if self.router.state.stable == candidate else "rejected"
        return judgement

    def compared(self) -> tuple[int, int, int]:
        """Pictures since the run began of which a user said what is in them: on how many only the candidate was right, on
        how many only the stable version, and how many there were. A candidate that failed was not right."""
        pairs = self.router.log.pairs(since=self._began).query("candidate_error != 'NotShown'")
        said = self.router.log.frame(since=self._began)[["id", "correct", "labels"]]
        pairs = pairs.merge(said, on="id")
        pairs["correct"] = pairs["correct"].fillna(False)
        pairs["truth"] = pairs.apply(_truth, axis=1)
        known = pairs[pairs["truth"].notna()]
        stable, candidate = (
            np.array([_labels(found) == truth for found, truth in zip(known[name], known["truth"], strict=True)], bool)
            for name in ("detections", "candidate_detections")
        )
        return int((candidate & ~stable).sum()), int((stable & ~candidate).sum()), len(known)

    def _judge(self, won: int, lost: int, count: int) -> Judgement:
        better, worse = better_evidence(won, lost), better_evidence(lost, won)
        figures = {"won": won, "lost": lost, "compared": count, "evidence": round(better, 3)}
        words = f"right where the other was wrong: {won} times, wrong where it was right: {lost}, of {count}"
        if better >= 1 / self.alpha:
            return Judgement("promote", f"better in shadow ({words})", figures)
        if worse >= 1 / self.alpha:
            return Judgement("rollback", f"worse in shadow ({words})", figures)
        if count >= self.most:
            return Judgement("rollback", f"no better in shadow ({words})", figures)
        return Judgement("hold", f"not yet known ({words})", figures)

    def __repr__(self) -> str:
        return f"<Retraining {self.stage}: {self.router.state.reason}>"


def better_evidence(won: int, lost: int) -> float:
    """How much likelier `won` and `lost` are if wins prevail than if they do not; beyond 1 / alpha it is beyond doubt.

    The likelihood ratio of "a win with probability p", p spread evenly over 0.5 to 1, to p = 0.5: a test martingale, so one
    may look as often as one likes (Ville, 1939; Shafer, 2021, "Testing by betting").

    >>> round(better_evidence(5, 5), 2), round(better_evidence(12, 2), 1), round(better_evidence(9, 0), 1)
    (0.37, 23.9, 102.3)
    """
    size = (won + lost) * np.log(2) + special.betaln(won + 1, lost + 1)
    tail = special.betaincc(won + 1, lost + 1, 0.5)
    with np.errstate(divide="ignore"):
        return float(np.exp(np.minimum(700.0, np.log(2) + size + np.log(tail))))


def _truth(pair) -> set[str] | None:
    """What is in a picture, as far as its user has said; None if that is not known."""
    if isinstance(pair["labels"], list | tuple):
        return set(pair["labels"])
    return _labels(pair["detections"]) if pair["correct"] else None


def _labels(found) -> set[str] | None:
    return {detection.label for detection in found} if isinstance(found, list | tuple) else None
