"""Retrain a model after an alarm, and replace the stable version only if the retrained candidate is better.

A person or an alarm opens a run. The run trains a candidate and shows it every picture of the stable version in shadow.
Where the two answers differ and a person has labelled the picture, the run compares them. A candidate that is better
goes up the ramp (`ramp`), where its gate still watches it. A candidate that is worse, or no better, is rejected.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, overload

import numpy as np

from labsupport import arguments
from labsupport.detection import Version
from labsupport.extras import imported
from labsupport.rollout.gate import MUCH, Gate, Judgement
from labsupport.rollout.journal import State
from labsupport.rollout.ramp import Rollout, checked
from labsupport.rollout.router import Router
from labsupport.rollout.shadow import NOT_SHOWN
from labsupport.rollout.transitions import Changed, WrongMoment, as_seen, let_in, rolled_back

if TYPE_CHECKING:
    import pandas as pd

special = imported("scipy.special")

REASON = 900  # characters at most
NO_LOG = "a candidate is judged by what the log says: Router(..., log=PredictionLog(...))"
PAIRS = 1_000  # pictures, each from a different user, after which a run is decided


class Event(Protocol):
    """Describe an event of an alarm, as `Alarms.evaluate` returns it."""

    @property
    def event(self) -> str:
        """Return "fired" or "cleared"."""

    @property
    def alarm(self) -> str:
        """Return the name of the alarm's rule."""

    @property
    def text(self) -> str:
        """Return the measured values in a sentence."""


class Comparison(NamedTuple):
    """Count the pictures that both versions received. Of those on which they differ, only the first of each key counts."""

    won: int  # only the candidate was right
    lost: int  # only the stable version was right, or the candidate failed
    # pictures, including those with equal answers
    count: int  # type: ignore[assignment]  # it hides a method of tuples that nobody needs here
    unlabelled: int  # the two differ, and nobody has labelled the picture
    better: float  # the evidence that the candidate is better, as `weighed` returns it
    worse: float  # the evidence that it is worse
    without_key: float  # share of the pictures


class Retraining:
    """Retrain one model. At most one run is open at a time. Each goes from training to "promoted" or "rejected".

    `train` returns the candidate: anything that a `Router` accepts. It may take long. If it raises, no run begins. The
    router needs a log, because the log holds the answers and the users' remarks. A run is decided on the first `most`
    pictures that both versions received. Of those on which they differ, only the first of each key counts.

    `alpha` is the probability that a candidate no better than the stable version passes the shadow, however often it is
    checked. It needs labels for the pictures on which the two differ. `to_label` lists them; store each label with
    `log.feedback(id, labels=[...])`. The choice of pictures does not depend on remarks, because users complain more often
    than they praise: a user corrects only wrong answers of the stable version, so remarks alone would make any candidate
    look better. A picture without a label counts against the candidate in the decision to promote, and for it in the
    decision to reject. Only the first picture of each key on which the two differ counts, because pictures of one user are
    alike. `alpha` assumes that labels are right, and that different keys, and pictures without a key, are independent.
    """

    def __init__(
        self,
        router: Router,
        train: Callable[[], Version | str],
        gate: Gate | None = None,
        steps: Sequence[float] = (5, 25, 50, 100),
        alpha: float = 0.05,
        most: int = PAIRS,
    ) -> None:
        """Check the arguments. Raises ValueError for a router without a log, a `train` that is not a function, a `gate` that
        no ramp could pass, and invalid `steps`, `alpha` or `most`."""
        if getattr(router, "log", None) is None:
            raise ValueError(NO_LOG)
        if not callable(train):
            raise ValueError(f"train={arguments.shown(train)}: give a function that returns a candidate")
        checked(steps, gate, 1.0)
        self.alpha = arguments.number("alpha", alpha, 0, 1, ends=False)
        self.most = int(arguments.number("most", most, 1, whole=True))
        self.router, self.train, self.gate, self.steps = router, train, gate, steps
        self.stage = "idle"  # "shadow", "ramp", "promoted", "rejected"
        self._began, self._candidate = 0.0, ""
        self._until: float | None = None
        self._ramp: Rollout | None = None

    def open(self, reason: str) -> None:
        """Train a candidate and begin to show it pictures. Raises `WrongMoment` while a candidate is on trial already."""
        arguments.text("reason", reason, REASON)  # before the training, which may take long
        _demand_calm(self.router.state)
        name = self.router.add(self.train())

        def begin(state: State) -> State:  # training may take long: somebody may have let another candidate in
            _demand_calm(state)
            return let_in(state, "shadow", name, 100.0)

        state = self.router.change("shadow", begin, f"retrained: {reason}")
        self._began, self._until, self._candidate, self.stage = state.began, None, name, "shadow"

    def open_on(self, events: Iterable[Event], rules: Sequence[str]) -> bool:
        """Open a run if an alarm in `rules` has fired and no candidate is on trial. Return whether it was opened.

        `events` come from `Alarms.evaluate`.
        """
        if isinstance(rules, str):
            raise ValueError(f"rules={arguments.shown(rules)}: give a list of the names of alarms")
        fired = [event for event in events if event.event == "fired" and event.alarm in rules]
        if not fired or self.router.state.candidate is not None:
            return False
        self.open(fired[0].text[:REASON])
        return True

    def look(self) -> Judgement:
        """Check the figures once. Begin the ramp, go to its next step, reject the candidate, or wait."""
        if self.stage not in ("shadow", "ramp"):
            return Judgement("hold", f"no run is under way: the last one was {self.stage}")
        if self.stage == "ramp" and self._ramp is not None and not self._ramp.done:
            judgement = self._ramp.look()
            if self._ramp.done and self.router.state.candidate != self._candidate:
                self.stage = self._ended()
            return judgement
        state = self.router.state
        if self.stage == "ramp" or (state.mode, state.candidate) != ("shadow", self._candidate):
            return self._by_hand()
        if state.paused:
            return Judgement("hold", "paused")
        judgement = self._judge(self.compared())
        try:
            if judgement.verdict == "promote":
                self._ramp = Rollout(self.router, self._candidate, self.steps, self.gate, seen=state)
                self.stage = "ramp"
            elif judgement.verdict == "rollback":
                change = as_seen(state, rolled_back)
                self.router.change("rollback", change, judgement.reason, judgement.figures)
                self.stage = "rejected"
        except Changed as error:
            return Judgement("hold", str(error), judgement.figures)
        return judgement

    def compared(self) -> Comparison:
        """Return the comparison on the first `most` pictures since the run began that both versions received."""
        pairs = self._pairs()
        signs = [sign for _, *sign in _signs(pairs)]
        won, lost = (sum(sign == [side, side] for sign in signs) for side in (1, -1))
        unlabelled, without_key = (
            sum(low != high for low, high in signs),
            pairs["key"].isna().mean() if len(pairs) else 0.0,
        )
        return Comparison(won, lost, len(pairs), unlabelled, *weighed(signs), float(without_key))

    def to_label(self) -> list[str]:
        """Return the ids of the pictures that wait for a label, in the order in which labels help most.

        Label each picture without looking at the answers of the versions, and call `log.feedback(id, labels=[...])`.
        """
        return [id for id, low, high in _signs(self._pairs()) if low != high]

    def _pairs(self) -> "pd.DataFrame":
        """Return the first `most` pictures that both versions received, with the remarks on them."""
        if (log := self.router.log) is None:
            raise ValueError(NO_LOG)
        since, until = self._began, self._until
        pairs = log.pairs(since=since, until=until)
        shown = (pairs["candidate"] == self._candidate) & (pairs["candidate_error"].fillna("") != NOT_SHOWN)
        pairs = pairs[shown].head(self.most)
        if len(pairs) == self.most:  # no later picture needs to be read
            self._until = pairs["time"].iloc[-1].timestamp() + 1e-3
        return pairs.merge(log.frame(since=since, until=until)[["id", "correct", "labels"]], on="id", how="left")

    def _judge(self, compared: Comparison) -> Judgement:
        won, lost, count, unlabelled, better, worse, without_key = compared
        figures = {"won": won, "lost": lost, "compared": count, "unlabelled": unlabelled, "evidence": round(better, 3)}
        words = f"right where the other was wrong: {won} times, wrong where it was right: {lost}, of {count}"
        words += f"; {unlabelled} wait for a label: see to_label()" if unlabelled else ""
        words += (
            f"; {without_key:.0%} have no key, and count as if each were of another user" if without_key > MUCH else ""
        )
        if better >= 1 / self.alpha:
            return Judgement("promote", f"better in shadow ({words})", figures)
        if worse >= 1 / self.alpha:
            return Judgement("rollback", f"worse in shadow ({words})", figures)
        if count >= self.most and not unlabelled:
            return Judgement("rollback", f"no better in shadow ({words})", figures)
        return Judgement("hold", f"not yet known ({words})", figures)

    def _by_hand(self) -> Judgement:
        """Return what happened to the candidate after somebody changed the rollout by hand."""
        state = self.router.state
        if state.candidate == self._candidate:
            return Judgement("hold", f"{self._candidate} is in {state.mode} by hand: the run waits for its end")
        self.stage = self._ended()
        return Judgement("hold", f"{self._candidate} was {self.stage} by hand")

    def _ended(self) -> str:
        return "promoted" if self.router.state.stable == self._candidate else "rejected"

    def __repr__(self) -> str:
        return f"<Retraining {self.stage}: {self.router.state.reason}>"


def _demand_calm(state: State) -> None:
    if state.candidate is not None:
        raise WrongMoment(f"{state.candidate} is on trial already: wait for it, or roll it back")


@overload
def better_evidence(won: int, lost: int) -> float: ...


@overload
def better_evidence(won: np.ndarray, lost: np.ndarray) -> np.ndarray: ...


def better_evidence(won: int | np.ndarray, lost: int | np.ndarray) -> float | np.ndarray:
    """Return the evidence that wins are more likely than losses, from their numbers. Above 1 / alpha it is significant.

    It is the likelihood ratio of "a win has probability p", with p uniform from 0.5 to 1, to p = 0.5. This is a test
    martingale, so you may check it as often as you like (Ville, 1939; Shafer, 2021, "Testing by betting"). For arrays,
    return an array.

    >>> round(better_evidence(5, 5), 2), round(better_evidence(12, 2), 1), round(better_evidence(9, 0), 1)
    (0.37, 23.9, 102.3)
    """
    size = (won + lost) * np.log(2) + special.betaln(won + 1, lost + 1)
    tail = special.betaincc(won + 1, lost + 1, 0.5)
    with np.errstate(divide="ignore"):
        evidence = np.exp(np.minimum(700.0, np.log(2) + size + np.log(tail)))
    return evidence if np.ndim(evidence) else float(evidence)


def weighed(signs: Sequence[Sequence[int]]) -> tuple[float, float]:
    """Return the evidence that the candidate is better, and that it is worse.

    `signs` holds a pair (lowest, highest) for each picture on which the two differ, in their order. A sign is 1 if only the
    candidate is right, -1 if only the stable version is, 0 if neither. The two numbers differ if the sign is not known.
    Each evidence uses the sign that is worst for it. So a selection of labels cannot make it larger than it would be
    with all labels. The end of the series may be left out if some signs are not known: any stopping point is allowed.

    >>> [round(evidence, 1) for evidence in weighed([(1, 1)] * 9)]
    [102.3, 0.1]
    >>> [round(evidence, 1) for evidence in weighed([(1, 1)] * 9 + [(-1, 1)] * 90)]
    [102.3, 0.1]
    """
    low, high = np.array(signs, int).reshape(-1, 2).T
    labelled = int(np.cumprod(low == high).sum())  # how far the labels go without a gap

    def evidence(signs: np.ndarray, side: int) -> float:
        won, lost = (np.append(0, np.cumsum(signs == sign))[labelled:] for sign in (side, -side))
        return float(np.max(better_evidence(won, lost)))

    return evidence(low, 1), evidence(high, -1)


def _signs(pairs: "pd.DataFrame") -> Iterator[tuple[str, int, int]]:
    """Yield, for the first picture of each key on which the two differ, its id and its lowest and highest possible sign."""
    keys: set[str | tuple[str, str]] = set()
    for pair, spoken in zip(pairs.itertuples(), pairs["correct"].notna(), strict=True):
        stable, candidate = _labels(pair.detections), _labels(pair.candidate_detections)
        key = pair.key if isinstance(pair.key, str) else ("no key", pair.id)
        if candidate != stable and key not in keys:
            keys.add(key)
            yield pair.id, *_bounds(stable, candidate, bool(pair.correct) if spoken else None, pair.labels)


def _bounds(
    stable: set[str] | None, candidate: set[str] | None, correct: bool | None, labels: object
) -> tuple[int, int]:
    """Return the lowest and the highest sign for `weighed`, given the remark on the stable version's answer."""
    if candidate is None:  # it failed
        return -1, -1
    truth = set(labels) if isinstance(labels, list | tuple) else stable if correct is True else None
    if truth is not None:
        sign = int(candidate == truth) - int(stable == truth)
        return sign, sign
    return (0, 1) if correct is False else (-1, 1)


def _labels(found: object) -> set[str] | None:
    return {detection.label for detection in found} if isinstance(found, list | tuple) else None
