"""Is the candidate good enough to go on? Limits on what was measured, and a test that may be looked at after every request.

Who looks at an ordinary test after every batch and stops when it says "worse" stops one good candidate in four. An e-value
may be looked at as often as one likes: if the candidate is no worse, it ever exceeds 1/alpha with probability alpha at most
(Ville's inequality; Ramdas, Grünwald, Vovk and Shafer, 2023, section 3).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

METRICS = ("error_rate", "latency_p95", "null_rate", "correction_rate", "agreement")
TIMES_AS_BAD = np.array([1.5, 2, 3, 5, 10])  # how many times as often a bad candidate may err: the e-value bets on each
GUESS = (0.5, 50)  # bad answers, answers: what is assumed of the stable version before anything was seen


class Outcomes(NamedTuple):
    """What became of some requests, in the order in which they came: arrays of one length."""

    time: np.ndarray  # seconds since the epoch
    version: np.ndarray  # which version answered
    failed: np.ndarray  # bool: an error of the server
    latency: np.ndarray  # seconds
    null: np.ndarray  # bool: answered, and found nothing
    corrected: np.ndarray  # bool: its user said that the answer was wrong

    def of(self, version: str) -> "Outcomes":
        chosen = self.version == version
        return Outcomes(*(column[chosen] for column in self))

    @property
    def bad(self) -> np.ndarray:
        return self.failed | self.corrected


@dataclass(frozen=True)
class Judgement:
    """What the gate says, why, and the figures it was decided on."""

    verdict: str  # "promote", "hold" or "rollback"
    reason: str
    figures: dict[str, float] = field(default_factory=dict)


def e_value(candidate: Sequence[bool], bad: Sequence[bool]) -> float:
    """The evidence that the candidate goes wrong more often than the stable version, from requests in their order.

    `candidate[i]` says whether the candidate answered request i, `bad[i]` whether that went wrong. Above 1/alpha the
    candidate is worse at level alpha, whenever one looks. Each request of the candidate ends a block with those of the
    stable version since the last one; within a block both are compared with what their rates would be if they were equal
    (Turner, Ly and Grünwald, 2024, "Generic E-variables for exact sequential k-sample tests that allow for optional
    stopping", equation 4). The bets, one for each of `TIMES_AS_BAD`, are made on what was seen before the block, and
    averaged.

    >>> e_value([True, False] * 100, [False, False] * 100) < 1
    True
    >>> e_value([True, False] * 100, [True, False] * 100) > 20
    True
    """
    candidate, bad = np.asarray(candidate, bool), np.asarray(bad, bool)
    ends = np.flatnonzero(candidate)
    if not ends.size:
        return 1.0
    starts = np.concatenate([[0], ends[:-1] + 1])
    seen = np.concatenate([[0], np.cumsum(bad)])
    stable_bad = seen[ends] - seen[starts]
    stable_fine = ends - starts - stable_bad
    rate = (GUESS[0] + seen[starts]) / (GUESS[1] + starts)  # of all before the block
    worse = np.minimum(TIMES_AS_BAD[:, None] * rate, 0.99)
    both = (worse + (ends - starts) * rate) / (ends - starts + 1)  # the rate if there were no difference
    ratio = np.where(bad[ends], worse / both, (1 - worse) / (1 - both))
    bets = np.log(ratio) + stable_bad * np.log(rate / both) + stable_fine * np.log((1 - rate) / (1 - both))
    return float(np.exp(np.minimum(bets.sum(axis=1), 300)).mean())


@dataclass(frozen=True)
class Gate:
    """When to go on, when to wait, when to turn back.

    - `thresholds`: metric -> (least, most), None where there is no such limit. Metrics: `METRICS`.
    - `ratios`: metric -> how many times the stable version's figure the candidate's may be.
    - `min_requests`: with fewer requests of the candidate in a step the gate holds. No data holds too, it never passes.
    - `alpha`: how often a candidate that is no worse may be rolled back for going wrong more often, over a whole ramp.
    - `failure_limit`: how many failed checks of limits a ramp survives.

    >>> nothing = Outcomes(np.array([]), np.array([], str), *np.zeros((4, 0), bool))
    >>> Gate(thresholds={"error_rate": (None, 0.05)}).judge(nothing, "stable", "candidate").reason
    '0 of at least 200 requests'
    """

    thresholds: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    ratios: Mapping[str, float] = field(default_factory=dict)
    min_requests: int = 200
    alpha: float = 0.05
    failure_limit: int = 3

    def __post_init__(self) -> None:
        if unknown := {*self.thresholds, *self.ratios} - {*METRICS}:
            raise ValueError(f"no metric {', '.join(sorted(unknown))}: there are {', '.join(METRICS)}")
        if not 0 < self.alpha < 1 or self.min_requests < 1 or self.failure_limit < 0:
            raise ValueError("alpha lies between 0 and 1, min_requests is at least 1, failure_limit at least 0")

    def judge(
        self,
        outcomes: Outcomes,
        stable: str,
        candidate: str,
        since: float = 0.0,
        agreement: Sequence[float] = (),
        failures: int = 0,
    ) -> Judgement:
        """What to do after these requests, of which those from `since` on are those of the present step.

        `agreement` holds the share of agreement of each pair of answers in shadow mode; `failures` counts the checks that
        failed before. Limits look at the candidate's requests in this step; the e-value, and the stable version's
        figures, at all of the ramp.
        """
        evidence = e_value(*_tested(outcomes, stable, candidate))
        now = Outcomes(*(column[outcomes.time >= since] for column in outcomes))
        figures = {f"stable_{name}": value for name, value in measured(outcomes.of(stable)).items()}
        figures |= measured(now.of(candidate), agreement) | {"e_value": evidence, "failures": failures}
        if evidence >= 1 / self.alpha:
            worse = f"it goes wrong more often than {stable} (e-value {evidence:.0f}, {1 / self.alpha:.0f} is enough)"
            return Judgement("rollback", worse, figures)
        if (count := max(figures["requests"], len(agreement))) < self.min_requests:
            return Judgement("hold", f"{count} of at least {self.min_requests} requests", figures)
        limits = self._limits(figures)
        if unknown := [name for name, *limit in limits if name not in figures or limit == [None, None]]:
            return Judgement("hold", f"{', '.join(unknown)}: not known", figures)
        if broken := [text for name, *limit in limits if (text := _outside(name, figures[name], *limit))]:
            figures["failures"] = failures + 1
            verdict = "rollback" if failures + 1 > self.failure_limit else "hold"
            return Judgement(verdict, f"{'; '.join(broken)}: check {failures + 1} that failed", figures)
        return Judgement("promote", "within every limit", figures)

    def _limits(self, figures: dict[str, float]) -> list[tuple]:
        """(metric, least, most); both None where the stable version's figure, which the limit is made of, is not known."""
        limits = [(name, *pair) for name, pair in self.thresholds.items()]
        for name, times in self.ratios.items():
            base = figures.get(f"stable_{name}")
            limits.append((name, None, None if base is None else times * base))
        return limits


def measured(outcomes: Outcomes, agreement: Sequence[float] = ()) -> dict[str, float]:
    """The metrics of some requests; those that cannot be known are left out."""
    count = len(outcomes.version)
    figures: dict[str, float] = {"requests": count}
    if count:
        figures["error_rate"] = float(np.mean(outcomes.failed))
        figures["null_rate"] = float(np.mean(outcomes.null))
        figures["correction_rate"] = float(np.mean(outcomes.corrected))
        figures["latency_p95"] = float(np.percentile(outcomes.latency, 95))
    if len(agreement):
        figures["agreement"] = float(np.mean(agreement))
    return figures


def _tested(outcomes: Outcomes, stable: str, candidate: str) -> tuple[np.ndarray, np.ndarray]:
    ours = (outcomes.version == stable) | (outcomes.version == candidate)
    return outcomes.version[ours] == candidate, outcomes.bad[ours]


def _outside(name: str, value: float, least: float | None, most: float | None) -> str:
    if most is not None and value > most:
        return f"{name} {value:.3g} is above {most:.3g}"
    if least is not None and value < least:
        return f"{name} {value:.3g} is below {least:.3g}"
    return ""
