"""Decide promote, hold or roll back. Check limits on metrics, and a sequential test (an e-value).

If someone checks an ordinary test after every batch and stops as soon as it reports "worse", they stop one good candidate
in four. The gate's e-value stays valid however often it is checked (`evidence`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import NamedTuple

import numpy as np

from labsupport import arguments
from labsupport.rollout.evidence import Keys, e_value

METRICS = ("error_rate", "latency_p95", "null_rate", "correction_rate", "agreement")
MUCH = 0.5  # share of requests without a key, or with one and the same key, above which a judgement warns
NO_KEYS = np.array([], object)


class Outcomes(NamedTuple):
    """Hold the outcomes of requests in the order in which they arrived: arrays of one length.

    NaN marks a value that is not known.
    """

    time: np.ndarray  # seconds since the epoch
    version: np.ndarray  # which version answered
    failed: np.ndarray  # bool: an error of the server
    latency: np.ndarray  # seconds
    null: np.ndarray  # bool: answered, and found nothing
    corrected: np.ndarray  # bool: its user said that the answer was wrong
    key: np.ndarray = NO_KEYS  # key of each request, or None; an empty array if each request is from another user

    def of(self, version: str) -> "Outcomes":
        """Return the requests that `version` answered."""
        return self.where(self.version == version)

    def where(self, chosen: np.ndarray) -> "Outcomes":
        """Return the requests for which the array `chosen` is true."""
        return Outcomes(*(column[chosen] if len(column) else column for column in self))

    @property
    def bad(self) -> np.ndarray:
        """Return an array of bool: true for each request that is known to have failed or to have been corrected."""
        bad: np.ndarray = (self.failed == 1) | (self.corrected == 1)
        return bad


@dataclass(frozen=True)
class Judgement:
    """Hold a verdict of the gate, the reason, and the figures that it was decided on."""

    verdict: str  # "promote", "hold" or "rollback"
    reason: str
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Gate:
    """Decide whether a candidate is promoted, held or rolled back.

    - `thresholds`: metric -> (least, most). None means no limit. Metrics: `METRICS`. The p95 of latency is exact in
      `judge`, and accurate to 0.5 % in a ramp.
    - `ratios`: metric -> the largest allowed quotient of the candidate's figure and the stable version's figure.
    - `min_requests`: the gate holds while the candidate has answered fewer requests in a step, while there are fewer pairs
      if the agreement has a limit, and with `ratios` while the stable version has answered fewer in the whole ramp.
    - `alpha`: the probability, over a whole ramp, that the e-value rolls back a candidate that is no worse.
    - `failure_limit`: the number of failed checks of limits after which the next one rolls back.

    The gate holds if something is not known: there are no requests, a request has no status, a metric with a limit was not
    measured for each request, or there is a limit on the correction rate and no user has said anything yet.

    The e-value counts each key once, with its first request since the ramp began, and each request without a key. So
    `alpha` holds if users differ and each user or session keeps its key. It assumes that different keys, and requests
    without a key, fail independently of each other, so give each user or session a key. Two hundred users are little
    evidence, however many requests they send. Only the limits detect failures after the first request of a key.

    Raises ValueError for an unknown metric, for a limit that is not a finite number or that no figure can reach, and for
    least > most.

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
        checked = {
            "thresholds": {name: _pair(name, pair) for name, pair in _by_metric("thresholds", self.thresholds)},
            "ratios": {name: _ratio(name, times) for name, times in _by_metric("ratios", self.ratios)},
            "min_requests": arguments.number("min_requests", self.min_requests, 1, whole=True),
            "alpha": arguments.number("alpha", self.alpha, 0, 1, ends=False),
            "failure_limit": arguments.number("failure_limit", self.failure_limit, 0, whole=True),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def judge(
        self,
        outcomes: Outcomes,
        stable: str,
        candidate: str,
        since: float = 0.0,
        agreement: Sequence[float] = (),
        failures: int = 0,
    ) -> Judgement:
        """Return the judgement on these requests. The present step contains those from `since` on.

        `agreement` holds the share of agreement of each pair of answers in shadow mode. `failures` counts the checks that
        failed before. Limits apply to the candidate's requests in this step. The e-value and the stable version's figures
        use the whole ramp. Raises ValueError for columns of different lengths.
        """
        lengths = {len(column) for column in outcomes[:6]} | {len(outcomes.key) or len(outcomes.time)}
        if len(lengths) > 1:
            raise ValueError(f"outcomes: columns of {', '.join(map(str, sorted(lengths)))} rows: give them one length")
        now = outcomes.where(outcomes.time >= arguments.number("since", since))
        figures = {f"stable_{name}": value for name, value in measured(outcomes.of(stable)).items()}
        figures |= measured(now.of(candidate), agreement) | _evidence(outcomes, stable, candidate)
        return self.decide(figures, stable, failures)

    def decide(self, figures: Mapping[str, float], stable: str, failures: int = 0) -> Judgement:
        """Return the judgement on the candidate's figures, the stable version's as `stable_...`, and `e_value`.

        A metric that is not known is missing, NaN or infinite. `<metric>_unknown` may hold the number of requests for
        which it is not known. Raises ValueError for a figure that is not a number.
        """
        failures = int(arguments.number("failures", failures, 0, whole=True))
        figures = {**plain(figures), "failures": failures}
        if missing := [name for name in ("e_value", "requests") if name not in figures]:
            return Judgement("hold", f"{' and '.join(missing)}: not known", figures)
        if figures["e_value"] >= 1 / self.alpha:
            enough = f"(e-value {figures['e_value']:.0f}, {1 / self.alpha:.0f} is enough)"
            worse = f"it goes wrong more often than {stable} {enough}{_cautions(figures)}"
            return Judgement("rollback", worse, figures)
        if few := self._too_few(figures, stable):
            return Judgement("hold", few, figures)
        if unknown := self._not_known(figures, stable):
            return Judgement("hold", "; ".join(unknown), figures)
        limits = [(name, least, most) for name, (least, most) in self.thresholds.items()]
        limits += [(name, None, times * figures[f"stable_{name}"]) for name, times in self.ratios.items()]
        if broken := [text for name, *limit in limits if (text := _outside(name, figures[name], *limit))]:
            figures["failures"] = failures + 1
            verdict = "rollback" if failures + 1 > self.failure_limit else "hold"
            return Judgement(verdict, f"{'; '.join(broken)}: check {failures + 1} that failed", figures)
        return Judgement("promote", f"within every limit{_cautions(figures)}", figures)

    def check_ramp(self) -> None:
        """Raise ValueError if no ramp could ever pass this gate."""
        if "agreement" in self.thresholds:
            raise ValueError(
                "thresholds['agreement']: in a ramp one version answers each picture, so there is no agreement to measure. "
                "Leave it out here. To judge it, begin with router.shadow(candidate), and give "
                "gate.judge(..., agreement=log.pairs()['agreement']) the pairs"
            )

    def _too_few(self, figures: Mapping[str, float], stable: str) -> str:
        """Return a text if there are fewer than `min_requests` of something that is measured, or ""."""
        needed = {"pairs": "pairs"} if "agreement" in self.thresholds else {}
        if self.ratios or self.thresholds.keys() != {"agreement"}:
            needed["requests"] = "requests"
        if self.ratios:
            needed["stable_requests"] = f"requests of {stable}"
        counts = {words: figures.get(name, 0) for name, words in needed.items()}
        few = [words for words, count in counts.items() if count < self.min_requests]
        return "; ".join(f"{counts[words]} of at least {self.min_requests} {words}" for words in few)

    def _not_known(self, figures: Mapping[str, float], stable: str) -> list[str]:
        """Return a text for each figure that is needed and not known. The e-value always needs the error rate."""
        needed = [*self.thresholds, *self.ratios, *["error_rate"] * (figures["requests"] > 0)]
        places = {name: name for name in needed}
        places |= {f"stable_{name}": f"{name} of {stable}" for name in self.ratios}
        return [f"{words}: not known{_of(name, figures)}" for name, words in places.items() if name not in figures]


def measured(outcomes: Outcomes, agreement: Sequence[float] = ()) -> dict[str, float]:
    """Return the metrics of requests. For a metric that some requests lack, return their number as `<metric>_unknown`."""
    count = len(outcomes.version)
    latency = np.asarray(outcomes.latency, float)
    columns = {
        "error_rate": outcomes.failed,
        "null_rate": outcomes.null,
        "correction_rate": outcomes.corrected,
        "latency_p95": np.where(latency >= 0, latency, np.nan),
        "agreement": agreement,
    }
    figures: dict[str, float] = {"requests": count}
    if len(agreement):
        figures["pairs"] = len(agreement)
    for name, column in columns.items():
        values = np.asarray(column, float)
        if unknown := int(values.size - np.isfinite(values).sum()):
            figures[f"{name}_unknown"] = unknown
        elif values.size:
            figures[name] = float(np.percentile(values, 95) if name == "latency_p95" else np.mean(values))
    return figures


def plain(figures: Mapping[str, float]) -> dict[str, float]:
    """Return the figures for JSON: as numbers of Python, without those that are NaN or infinite.

    Raises ValueError for a figure that is not a number.

    >>> plain({"requests": 20, "latency_p95": float("nan")})
    {'requests': 20}
    """
    for name, value in figures.items():
        if not isinstance(value, Real):
            raise ValueError(f"the figure {name}={arguments.shown(value)}: give a number")
    numbers = {name: int(value) if isinstance(value, Integral) else float(value) for name, value in figures.items()}
    return {name: value for name, value in numbers.items() if abs(value) < np.inf}


def _evidence(outcomes: Outcomes, stable: str, candidate: str) -> dict[str, float]:
    """Return the e-value of the first requests of all keys, the number of these requests, and the figures of `Keys`."""
    either = (outcomes.version == stable) | (outcomes.version == candidate)
    rows, keys = outcomes.where(either & np.isfinite(np.asarray(outcomes.failed, float))), Keys()
    first = np.array([keys.first(key) for key in rows.key], bool) if len(rows.key) else np.ones(len(rows.time), bool)
    figures = {"e_value": e_value((rows.version == candidate)[first], rows.bad[first]), "counted": int(first.sum())}
    return figures | (keys.figures() if len(rows.key) else {})


def _by_metric(argument: str, limits: object) -> list[tuple[str, object]]:
    if not isinstance(limits, Mapping):
        raise ValueError(f"{argument}={arguments.shown(limits)}: give a dictionary from metrics to limits")
    for name in limits:
        arguments.choice(argument, name, METRICS)
    return list(limits.items())


def _pair(name: str, pair: object) -> tuple[float | None, float | None]:
    """Check the limits of a metric, and return them."""
    argument = f"thresholds[{name!r}]"
    if (
        isinstance(pair, str)
        or not isinstance(pair, Sequence | np.ndarray)
        or len(pair) != 2
        or all(end is None for end in pair)
    ):
        raise ValueError(f"{argument}={arguments.shown(pair)}: give (least, most), with None for one that is no limit")
    highest = np.inf if name == "latency_p95" else 1
    least, most = (None if end is None else arguments.number(argument, end, 0, highest) for end in pair)
    if least is not None and most is not None and least > most:
        raise ValueError(
            f"{argument}={arguments.shown(pair)}: nothing is both; give (least, most), the smaller one first"
        )
    return least, most


def _ratio(name: str, times: object) -> float:
    if name == "agreement":
        raise ValueError("ratios['agreement']: agreement compares the two versions already: give it a threshold")
    return arguments.number(f"ratios[{name!r}]", times, 0, ends=False)


def _outside(name: str, value: float, least: float | None, most: float | None) -> str:
    if most is not None and value > most:
        return f"{name} {value:.3g} is above {most:.3g}"
    if least is not None and value < least:
        return f"{name} {value:.3g} is below {least:.3g}"
    return ""


def _of(name: str, figures: Mapping[str, float]) -> str:
    """Return a text with the number of requests for which a metric is not known, or "" if that was not counted."""
    whole = "pairs" if name == "agreement" else "stable_requests" if name.startswith("stable_") else "requests"
    unknown = figures.get(f"{name}_unknown")
    return f" of {unknown:,} of {figures[whole]:,} {whole.removeprefix('stable_')}" if unknown else ""


def _cautions(figures: Mapping[str, float]) -> str:
    """Return warnings for a reason: assumptions of the e-value that these requests put in doubt."""
    words = ""
    if (share := figures.get("without_key", 0)) > MUCH:
        words += f"; {share:.0%} of the requests have no key, and count as if each were of another user"
    if (share := figures.get("largest_key", 0)) > MUCH:
        words += f"; one key makes {share:.0%} of the requests, and counts once"
    return words
