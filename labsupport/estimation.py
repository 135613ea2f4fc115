"""How good are the answers, before anybody has said which were right? Performance estimated from calibrated confidences.

If a confidence of 0.8 is right 8 times in 10, the mean confidence of a window is the accuracy to expect in it (Kivimäki et
al., 2025, "Confidence-based Estimators for Predictive Performance in Model Monitoring"). What a confidence is worth we learn
from labelled reference data. That it is worth the same in the window is an assumption, and every result here says so.
"""

from dataclasses import dataclass
from html import escape
from typing import NamedTuple

import numpy as np

ASSUMPTION = (
    "Assumes that a confidence is worth what it was worth on the reference data. "
    "It sees data drift: more hard or more easy inputs. "
    "It cannot see concept drift, where the same inputs get other labels: the estimate stays as it is while the performance "
    "falls. On inputs of a new kind it may be wrong either way. Only labels show that."
)
MIN_REFERENCE, MIN_EACH = 200, 20  # labelled examples, and those of the rarer label, from which there is more to learn
GROUP = (
    10  # neighbours that stand together on a step: fewer, and the lowest step comes out too low, the highest too high
)
MIN_WINDOW = 30  # confidences: with 30 the interval around an accuracy of .9 is more than .1 wide on either side
MIDDLE = (0.01, 0.99)  # quantiles of the reference's confidences: beyond them it holds too little to learn from
MAX_OUTSIDE = 0.1  # share of a window beyond them that calls for a caution; without any drift it is .02
FOLDS = 5
DRAWS = 2000  # simulated windows behind each interval


class NotEstimable(ValueError):
    """From this, no performance can be estimated; the message says why, and what to do."""


class Figure(NamedTuple):
    """An estimated metric, and the interval in which the realised one is expected; shares of 0 to 1."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True, eq=False, repr=False)
class Calibration:
    """What a confidence is worth, learnt on labelled reference data. Made by `top_label` or `binary`.

    A staircase that never goes down: isotonic regression, by pooling neighbours that are in the wrong order (Ayer et al.,
    1955; for classifiers Zadrozny & Elkan, 2002), in groups of ten so that no step stands on one example. The reference is a
    random sample of what the model answers, labelled; not what it was trained on, for there it is surer than it should be.

    >>> rng = np.random.default_rng(0)
    >>> worth = rng.uniform(0.5, 1, 4000)  # how often such an answer is right
    >>> confidences = worth ** (1 / 3)  # the model is surer than that
    >>> calibration = Calibration.top_label(rng.random(4000) < worth, confidences)
    >>> calibration
    <Calibration of 4000 top-label confidences; expected calibration error 0.156 raw, 0.007 calibrated>
    >>> calibration.calibrated([0.8, 0.9, 0.99]).round(2), np.power([0.8, 0.9, 0.99], 3).round(2)
    (array([0.55, 0.76, 0.99]), array([0.51, 0.73, 0.97]))
    """

    starts: np.ndarray  # (K - 1,): the confidence at which each step begins, but for the first
    rates: np.ndarray  # (K,): of each step, the share of examples that came true
    counts: np.ndarray  # (K,): of each step, the examples
    middle: tuple[float, float]  # between these confidences lie 98 % of the reference
    errors: tuple[float, float]  # expected calibration error before and after; after is cross-fitted
    threshold: float | None  # None for top-label confidences

    @classmethod
    def top_label(cls, correct: np.ndarray, confidences: np.ndarray) -> "Calibration":
        """For a model of any number of classes: `confidences` (N,), 0 to 1, are those of the answers that it gave.

        `correct` (N,), bool, says which answers were right. Of probabilities (N, classes), the answers are
        `probabilities.argmax(axis=1)` and their confidences `probabilities.max(axis=1)`. Detections count as answers too:
        the accuracy is then their precision. Raises `NotEstimable` for unusable data and for fewer than `MIN_REFERENCE`.
        """
        return cls._fitted(*_checked(confidences, correct), None)

    @classmethod
    def binary(cls, labels: np.ndarray, probabilities: np.ndarray, threshold: float = 0.5) -> "Calibration":
        """For a model of two classes: `probabilities` (N,), 0 to 1, are those of the positive one, `labels` (N,) are bool.

        The model calls positive what is at or above `threshold`. Raises as `top_label` does.
        """
        if not 0 <= threshold <= 1:
            raise NotEstimable(f"threshold={threshold}: give the probability, 0 to 1, from which on the model says yes")
        return cls._fitted(*_checked(probabilities, labels), threshold)

    @classmethod
    def _fitted(cls, confidences: np.ndarray, happened: np.ndarray, threshold: float | None) -> "Calibration":
        if len(happened) < MIN_REFERENCE:
            raise NotEstimable(f"{len(happened)} reference examples: at least {MIN_REFERENCE} must have labels")
        if (rarer := min(happened.sum(), (~happened).sum())) < MIN_EACH:
            raise NotEstimable(f"only {rarer} reference labels of the rarer kind: at least {MIN_EACH} are needed")
        errors = calibration_error(happened, confidences), _cross_fitted_error(happened, confidences)
        middle = tuple(np.quantile(confidences, MIDDLE).tolist())
        return cls(*_staircase(happened, confidences), middle, errors, threshold)

    def calibrated(self, confidences: np.ndarray) -> np.ndarray:
        """What each confidence is worth: the probability that such an answer is right, or such an example positive."""
        return self.rates[self._steps(_checked(confidences)[0])]

    def _steps(self, confidences: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.starts, confidences, side="right")

    def _positive(self, confidences: np.ndarray) -> np.ndarray:
        """Which the model calls positive; of top-label confidences all, for each answer claims to be right."""
        return np.ones(len(confidences), bool) if self.threshold is None else confidences >= self.threshold

    def __repr__(self) -> str:
        kind = "top-label confidences" if self.threshold is None else "binary probabilities"
        before, after = self.errors
        error = f"expected calibration error {before:.3f} raw, {after:.3f} calibrated"
        return f"<Calibration of {self.counts.sum()} {kind}; {error}>"


class _Printed:
    """A result that is shown as its summary, assumption included, by `print` and by a notebook."""

    def __str__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        return f"<pre style='white-space: pre-wrap'>{escape(self.summary())}</pre>"


@dataclass(frozen=True, repr=False)
class Estimate(_Printed):
    """What the labels of a window would say. Made by `estimate`; printed, it says what it assumes."""

    figures: dict[str, Figure]  # "accuracy"; of a binary model also "precision", "recall" and "f1", where defined
    count: int  # confidences in the window
    outside: float  # share of them where the reference holds too little to learn from
    confidence_level: float
    cautions: tuple[str, ...] = ()
    assumption: str = ASSUMPTION

    @property
    def accuracy(self) -> Figure:
        return self.figures["accuracy"]

    def summary(self) -> str:
        title = f"estimated from {self.count} confidences, without labels ({100 * self.confidence_level:g} % interval)"
        rows = [f"  {name:<9} {figure}" for name, figure in self.figures.items()]
        return "\n".join([title, *rows, *(f"Caution: {text}." for text in self.cautions), self.assumption])

    def __repr__(self) -> str:
        caution = f"; caution: {'; '.join(self.cautions)}" if self.cautions else ""
        return f"<Estimate accuracy {self.accuracy}{caution}; sees data drift, cannot see concept drift>"


@dataclass(frozen=True, repr=False)
class Realised(_Printed):
    """What the labels of a window say, beside what was estimated without them. Made by `realised`."""

    figures: dict[str, float]  # as in `Estimate`
    estimate: Estimate

    @property
    def as_estimated(self) -> bool:
        """Is the realised accuracy in the interval? If not, confidences are not worth what they were."""
        return self.estimate.accuracy.low <= self.figures["accuracy"] <= self.estimate.accuracy.high

    @property
    def verdict(self) -> str:
        return "as estimated" if self.as_estimated else "not as estimated: concept drift, or inputs of a new kind"

    def summary(self) -> str:
        rows = [f"  {name:<9} {value:.3f}   {self.estimate.figures[name]}" for name, value in self.figures.items()]
        title = f"realised on {self.estimate.count} labels, and estimated without them: {self.verdict}"
        return "\n".join([title, *rows, self.estimate.assumption])

    def __repr__(self) -> str:
        return f"<Realised accuracy {self.figures['accuracy']:.3f}, estimated {self.estimate.accuracy}; {self.verdict}>"


def estimate(calibration: Calibration, confidences: np.ndarray, confidence_level: float = 0.95) -> Estimate:
    """How good the model is on a window without labels, from its `confidences` (N,), of the kind that was calibrated.

    Each answer is right with the probability that its confidence is worth, so the cells of the confusion matrix are sums of
    coins of known bias (CBPE: Kivimäki et al., 2025, "Performance Estimation in Binary Classification Using Calibrated
    Confidence"). Precision, recall and F1 are those of the expected cells.

    The interval is for the figure that the labels of this window will give. It covers two kinds of chance: how the coins
    fall, and the finite reference, which leaves each step of the calibration uncertain (Jeffreys' posterior). We draw both
    2,000 times, with a fixed seed; in simulated worlds 93 to 96 of 100 intervals at 95 % held. It does not cover a broken
    assumption, nor answers that depend on each other beyond their confidences: of a video's frames, take one now and then.

    Raises `NotEstimable` for no confidences, for some that are not 0 to 1, and for a confidence_level that is no share.

    >>> rng = np.random.default_rng(0)
    >>> worth = rng.uniform(0.5, 1, 4000)
    >>> calibration = Calibration.top_label(rng.random(4000) < worth, worth ** (1 / 3))
    >>> harder = rng.uniform(0.5, 0.8, 1000)  # covariate shift: the true accuracy is .65 now
    >>> estimate(calibration, harder ** (1 / 3))
    <Estimate accuracy 0.652 (0.616 to 0.686); sees data drift, cannot see concept drift>
    """
    (confidences,) = _checked(confidences)
    if not 0 < confidence_level < 1:
        raise NotEstimable(f"confidence_level={confidence_level}: give a share, as in 0.95")
    steps, rates, positive = calibration._steps(confidences), calibration.rates, calibration._positive(confidences)
    called, passed = (np.bincount(steps[which], minlength=len(rates)) for which in (positive, ~positive))
    expected = _metrics(calibration, called.sum(), passed.sum(), called @ rates, passed @ rates)
    rng, came_true = np.random.default_rng(0), rates * calibration.counts
    worth = rng.beta(came_true + 0.5, calibration.counts - came_true + 0.5, (DRAWS, len(rates)))
    hits, missed = (rng.binomial(cell, worth).sum(axis=1) for cell in (called, passed))
    drawn = _metrics(calibration, called.sum(), passed.sum(), hits, missed)
    figures = {name: _figure(value, drawn[name], confidence_level) for name, value in expected.items() if name in drawn}
    outside, cautions = _cautions(calibration, confidences)
    return Estimate(figures, len(confidences), outside, confidence_level, cautions)


def realised(calibration: Calibration, labels: np.ndarray, confidences: np.ndarray) -> Realised:
    """What labels that came later say about a window, beside what would have been estimated without them.

    `labels` (N,), bool, mean what they meant for the calibration: the answer was right, or the example is positive. Give all
    of a window or a random part: those that users complained about say nothing about the rest. Without drift one window in
    twenty is not as estimated, at a 95 % interval. Raises as `estimate` does, and for labels that do not fit.

    >>> rng = np.random.default_rng(0)
    >>> worth = rng.uniform(0.5, 1, 4000)
    >>> calibration = Calibration.top_label(rng.random(4000) < worth, worth)
    >>> realised(calibration, rng.random(4000) > worth, worth)  # concept drift: what was right is wrong
    <Realised accuracy 0.263, estimated 0.749 (0.729 to 0.765); not as estimated: concept drift, or inputs of a new kind>
    """
    confidences, labels = _checked(confidences, labels)
    positive = calibration._positive(confidences)
    cells = positive.sum(), (~positive).sum(), (labels & positive).sum(), (labels & ~positive).sum()
    expected = estimate(calibration, confidences)
    figures = {name: float(value) for name, value in _metrics(calibration, *cells).items() if name in expected.figures}
    return Realised(figures, expected)


def calibration_error(happened: np.ndarray, confidences: np.ndarray, bins: int = 10) -> float:
    """The expected calibration error (Naeini et al., 2015; Guo et al., 2017), over bins of equal width.

    How far confidence and share that came true are apart in a bin, averaged over examples. `happened` (N,) bool,
    `confidences` (N,) 0 to 1. It is never quite 0 on a sample: with 2,000 perfectly calibrated ones it is about .02.

    >>> calibration_error([True, False], [0.9, 0.9])
    0.4
    """
    confidences, happened = _checked(confidences, happened)
    place = np.minimum((confidences * bins).astype(int), bins - 1)
    return float(np.abs(np.bincount(place, weights=confidences - happened)).sum() / len(happened))


def _staircase(happened: np.ndarray, confidences: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Isotonic regression as K steps: where each but the first begins (K - 1,), their rates (K,) and sizes (K,)."""
    from scipy.optimize import isotonic_regression

    values, place, counts = np.unique(confidences, return_inverse=True, return_counts=True)
    group = np.flatnonzero(np.diff((np.cumsum(counts) - counts) // GROUP, prepend=-1))  # where each begins
    came_true = np.add.reduceat(np.bincount(place, weights=happened), group)
    values, counts = values[group], np.add.reduceat(counts, group)
    rates, first = np.unique(isotonic_regression(came_true / counts, weights=counts).x, return_index=True)
    return values[first[1:]], rates, np.add.reduceat(counts, first)


def _cross_fitted_error(happened: np.ndarray, confidences: np.ndarray) -> float:
    """The error after calibration by the other examples: none helps to calibrate itself, which would look too good."""
    fold, calibrated = np.arange(len(happened)) % FOLDS, np.empty(len(happened))
    for k in range(FOLDS):
        starts, rates, _ = _staircase(happened[fold != k], confidences[fold != k])
        calibrated[fold == k] = rates[np.searchsorted(starts, confidences[fold == k], side="right")]
    return calibration_error(happened, calibrated)


def _metrics(calibration: Calibration, called, passed, hits, missed) -> dict:
    """Metrics of cells, or of arrays of cells: called positive, called negative, and how many of each are positive."""
    metrics = {"accuracy": (hits + passed - missed) / (called + passed)}
    if calibration.threshold is not None:
        with np.errstate(invalid="ignore"):
            metrics["precision"] = np.divide(hits, called)
            metrics["recall"] = np.divide(hits, hits + missed)
            metrics["f1"] = np.divide(2 * hits, called + hits + missed)
    return {name: value for name, value in metrics.items() if not np.isnan(value).all()}


def _figure(value: float, drawn: np.ndarray, confidence_level: float) -> Figure:
    tails = (1 - confidence_level) / 2
    # metrics are fractions of counts: the interval ends at two that can be, not between them
    low, high = np.quantile(drawn[~np.isnan(drawn)], [tails, 1 - tails], method="inverted_cdf")
    return Figure(float(value), float(min(low, value)), float(max(high, value)))


def _cautions(calibration: Calibration, confidences: np.ndarray) -> tuple[float, tuple[str, ...]]:
    """The share of a window where the reference holds few examples, and what to beware of."""
    low, high = calibration.middle
    outside, cautions = float(np.mean((confidences < low) | (confidences > high))), []
    if len(confidences) < MIN_WINDOW:
        cautions.append(
            f"{len(confidences)} confidences, of at least {MIN_WINDOW}: the interval is too wide to say much"
        )
    if outside > MAX_OUTSIDE:
        cautions.append(
            f"{100 * outside:.0f} % of the confidences are below {low:.3g} or above {high:.3g}, where the reference has few "
            "(2 % are usual): what they are worth is a guess, so label some of them"
        )
    return outside, tuple(cautions)


def _checked(confidences: np.ndarray, labels: np.ndarray | None = None) -> list[np.ndarray]:
    """Both as arrays, of float and of bool; without labels, one. Raises `NotEstimable`."""
    try:
        confidences = np.asarray(confidences, dtype=float)
    except (TypeError, ValueError) as error:
        raise NotEstimable(f"confidences that are no numbers: {error}") from error
    if confidences.ndim != 1 or not confidences.size:
        raise NotEstimable(f"confidences of shape {confidences.shape}: give one number for each answer, and some")
    if not ((confidences >= 0) & (confidences <= 1)).all():  # not a number is not in there either
        raise NotEstimable("confidences are 0 to 1: leave out what is missing, turn scores into probabilities")
    if labels is None:
        return [confidences]
    labels = np.asarray(labels)
    if labels.shape != confidences.shape or not np.isin(labels, [False, True]).all():
        raise NotEstimable(f"{labels.shape} labels for {confidences.shape} confidences: give one bool for each")
    return [confidences, labels.astype(bool)]
