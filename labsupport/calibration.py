"""What a confidence is worth: learnt on labelled reference data, so that one of 0.8 is right 8 times in 10."""

from dataclasses import dataclass

import numpy as np

MIN_REFERENCE, MIN_EACH = 200, 20  # labelled examples, and those of the rarer label, from which there is more to learn
GROUP = 10  # neighbours that share a step: fewer, and the lowest step comes out too low, the highest too high
MIDDLE = (0.01, 0.99)  # quantiles of the reference's confidences: beyond them it holds too little to learn from
FOLDS = 5


class NotEstimable(ValueError):
    """From this, no performance can be estimated; the message says why, and what to do."""


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
        return cls._fitted(*checked(confidences, correct), None)

    @classmethod
    def binary(cls, labels: np.ndarray, probabilities: np.ndarray, threshold: float = 0.5) -> "Calibration":
        """For a model of two classes: `probabilities` (N,), 0 to 1, are those of the positive one, `labels` (N,) are bool.

        The model calls positive what is at or above `threshold`. Raises as `top_label` does.
        """
        if not 0 <= threshold <= 1:
            raise NotEstimable(f"threshold={threshold}: give the probability, 0 to 1, from which on the model says yes")
        return cls._fitted(*checked(probabilities, labels), threshold)

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
        return self.rates[self.steps(checked(confidences)[0])]

    def steps(self, confidences: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.starts, confidences, side="right")

    def positive(self, confidences: np.ndarray) -> np.ndarray:
        """Which the model calls positive; of top-label confidences all, for each answer claims to be right."""
        return np.ones(len(confidences), bool) if self.threshold is None else confidences >= self.threshold

    def __repr__(self) -> str:
        kind = "top-label confidences" if self.threshold is None else "binary probabilities"
        before, after = self.errors
        error = f"expected calibration error {before:.3f} raw, {after:.3f} calibrated"
        return f"<Calibration of {self.counts.sum()} {kind}; {error}>"


def calibration_error(happened: np.ndarray, confidences: np.ndarray, bins: int = 10) -> float:
    """The expected calibration error (Naeini et al., 2015; Guo et al., 2017), over bins of equal width.

    How far confidence and share that came true are apart in a bin, averaged over examples. `happened` (N,) bool,
    `confidences` (N,) 0 to 1. It is never quite 0 on a sample: with 2,000 perfectly calibrated ones it is about .02.

    >>> calibration_error([True, False], [0.9, 0.9])
    0.4
    """
    confidences, happened = checked(confidences, happened)
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


def checked(confidences: np.ndarray, labels: np.ndarray | None = None) -> list[np.ndarray]:
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
