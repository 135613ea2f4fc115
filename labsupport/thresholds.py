"""Thresholds with a promise: where the model decides by itself, and how wrong it then may be."""

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np


class NoSafeThreshold(ValueError):
    """On these examples no threshold can promise the error that was asked for; the message says what it would take."""


@dataclass(frozen=True)
class Thresholds:
    """Below `low` the model is sure of "good", from `high` on it is sure of "defect", and between them it is not sure.

    Confidences are 0 to 1; none is below 0 or reaches infinity, so `Thresholds()` automates nothing. Where the model is not
    sure, its opinion is that of the nearer threshold. Raises ValueError unless 0 <= low <= high.

    >>> thresholds = Thresholds(low=0.1, high=0.8)
    >>> thresholds.sure(np.array([0.05, 0.1, 0.5, 0.8])).tolist()
    [True, False, False, True]
    >>> thresholds.defect(0.5), thresholds.defect(0.4)
    (True, False)
    """

    low: float = 0.0
    high: float = math.inf

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise ValueError(f"low={self.low} and high={self.high}: give 0 <= low <= high")

    def sure(self, confidence):
        """Whether the model is sure; of a float or of an array."""
        return (confidence < self.low) | (confidence >= self.high)

    def defect(self, confidence):
        """Whether the model says "defect", sure or not; of a float or of an array."""
        return confidence >= (self.low + min(self.high, 1)) / 2


NEVER_SURE = Thresholds()


def error_bound(errors: int, decisions: int, confidence_level: float = 0.95) -> float:
    """The largest error rate that fits so many errors in so many decisions: the upper bound of Clopper & Pearson (1934).

    Exact: whatever the true rate is, at most 1 - confidence_level of samples give a bound below it.

    >>> [round(error_bound(errors, 299), 5) for errors in (0, 1)]
    [0.00997, 0.01577]
    """
    from scipy import special

    return float(special.betaincinv(errors + 1, decisions - errors, confidence_level)) if errors < decisions else 1.0


def choose_thresholds(
    labels: np.ndarray, confidences: np.ndarray, max_error: float = 0.01, confidence_level: float = 0.95
) -> Thresholds:
    """Thresholds with a promise: of what the model decides by itself, at most `max_error` is wrong.

    Of all samples we might have drawn, at most 1 - confidence_level lead to thresholds whose true error is larger.
    `labels` (N,) are True for a defect, `confidences` (N,) the model's, 0 to 1; they need not be calibrated. The promise is
    about pictures like these: take a random sample, judged by people who did not see the model's opinion (shadow mode or an
    audit, not what partial automation left to a person). And it counts errors, behind which rare defects hide: where 2 %
    are defects, calling everything good is wrong in 2 %. Ask for less.

    Trying many thresholds and keeping the best would break the promise. So we test them as in Learn then Test (Angelopoulos
    et al., 2021), by `error_bound`, from the most conservative outwards, in sequences set by quantiles of the confidences
    before any label is looked at. One goes from the surest pictures to those at 0.5 (half of 1 - confidence_level is spent
    on it), one is about "good" alone, one about "defect" alone (a quarter each). Of what passes we take what decides most.

    Raises `NoSafeThreshold` if nothing passes; ValueError for lengths that differ, labels that are not bool, confidences
    outside 0 to 1, labels of one kind only (what the model makes of the other is then unknown), and shares outside 0 to 1.

    >>> rng = np.random.default_rng(0)
    >>> confidences = rng.beta(0.2, 0.4, size=2000)
    >>> labels = rng.random(2000) < confidences
    >>> thresholds = choose_thresholds(labels, confidences, max_error=0.02)
    >>> round(thresholds.low, 3), round(thresholds.high, 3)
    (0.061, 0.939)
    """
    labels, confidences = checked(labels, confidences)
    if not (0 < max_error < 1 and 0 < confidence_level < 1):
        raise ValueError(f"max_error={max_error}, confidence_level={confidence_level}: give shares, as in 0.01, 0.95")
    order, level = np.argsort(confidences), 1 - confidence_level
    labels, confidences = labels[order], confidences[order]
    test = partial(_passed, labels, confidences, max_error)
    both = test(level / 2, np.abs(confidences - 0.5), lambda cut: Thresholds(0.5 - cut, _above(0.5 + cut)))
    low = test(level / 4, -confidences, lambda cut: Thresholds(low=-cut))
    high = test(level / 4, confidences, lambda cut: Thresholds(high=_above(cut)))
    highs = [thresholds.high for thresholds in reversed([NEVER_SURE, *high])]
    one_sided = [Thresholds(good, highs[bisect_left(highs, good)]) for good in (t.low for t in [NEVER_SURE, *low])]
    candidates = [*one_sided, *both[-1:]]
    decided, _ = _count(labels, confidences, candidates)
    if not decided.any():
        raise NoSafeThreshold(
            f"no threshold promises an error of at most {max_error:.3g} with confidence {confidence_level:.3g} on these "
            f"{len(labels)} examples. It takes at least {_error_free(max_error, level / 2)} sure decisions without an "
            "error, or more with some: collect more examples, allow more errors, or let people decide (NEVER_SURE)"
        )
    return candidates[int(decided.argmax())]


def _passed(
    labels: np.ndarray,
    confidences: np.ndarray,
    max_error: float,
    level: float,
    sureness: np.ndarray,
    pair: Callable[[float], Thresholds],
) -> list[Thresholds]:
    """The thresholds of one sequence that keep `max_error`: all of them at once, but for a chance of `level`.

    Examples come in the order of confidence; `pair(cut)` are the thresholds that are sure of what is surer than `cut`.
    A run of tests ends with the first that fails. So that one early error does not end it all, runs that start at twice the
    size of the one before share the level, and a run hands its own on to the next if it gets there (fallback: Wiens, 2003).
    """
    sizes, starts = _plan(len(labels), max_error, level)
    pairs = [pair(cut) for cut in np.sort(sureness)[::-1][sizes].tolist()]
    passed, spend = [], 0.0
    for thresholds, decided, errors in zip(pairs, *_count(labels, confidences, pairs), strict=True):
        while starts and decided >= starts[0][0]:
            spend += starts.pop(0)[1]
        if spend and error_bound(errors, decided, 1 - spend) <= max_error:
            passed.append(thresholds)
        else:
            spend = 0.0
    return passed


def _plan(examples: int, max_error: float, level: float) -> tuple[np.ndarray, list[tuple[int, float]]]:
    """How many of the surest examples each test takes; and the sizes at which a run starts, with its share of the level.

    Each size allows one error more than the one before; a test in between would only be one more occasion to fail.
    """
    from scipy import special

    runs = max(1, int(math.log2(examples / _error_free(max_error, level))))
    first = _error_free(max_error, level / runs)
    allowed = np.arange(1, examples * max_error)
    poisson = special.pdtri(allowed, level / runs) / max_error  # a little above what the binomial asks for, and fast
    sizes = np.unique([first, *np.ceil(poisson).astype(int), examples - 1])
    return sizes[sizes < examples], [(first * 2**run, level / runs) for run in range(runs)]


def _error_free(max_error: float, level: float) -> int:
    """How many decisions without an error pass the test at this level: 299 for 1 % at 5 %."""
    return math.ceil(math.log(level) / math.log1p(-max_error))


def _count(labels: np.ndarray, confidences: np.ndarray, pairs: list[Thresholds]) -> tuple[np.ndarray, np.ndarray]:
    """What each pair of thresholds decides, and what of that is wrong. Examples come in the order of confidence."""
    defects = np.concatenate([[0], np.cumsum(labels)])  # among the first so many examples
    good = np.searchsorted(confidences, [thresholds.low for thresholds in pairs])
    rest = np.searchsorted(confidences, [thresholds.high for thresholds in pairs])
    defect = len(labels) - rest
    return good + defect, defects[good] + defect - (defects[-1] - defects[rest])


def _above(confidence: float) -> float:
    """The next float: at or above it is what was above `confidence`."""
    return math.nextafter(confidence, math.inf)


def checked(labels: np.ndarray, confidences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays, of bool and float. Raises ValueError."""
    labels, confidences = np.asarray(labels), np.asarray(confidences, dtype=float)
    if labels.shape != confidences.shape or labels.ndim != 1:
        raise ValueError(f"labels {labels.shape} and confidences {confidences.shape}: give two arrays of one length")
    if labels.dtype != bool and not np.isin(labels, [False, True]).all():
        raise ValueError('labels are not bool: give True for a defect, as in frame["label"] == "defect"')
    if not ((confidences >= 0) & (confidences <= 1)).all():
        raise ValueError("confidences are not all between 0 and 1 (NaN is not either): leave those examples out")
    labels = labels.astype(bool)
    if labels.all() or not labels.any():
        raise ValueError(f"of {len(labels)} labels {labels.sum()} are defects: give examples of both kinds")
    return labels, confidences
