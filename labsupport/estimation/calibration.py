"""Calibrate confidences on labelled reference data, so that answers with 0.8 are right 8 times in 10."""

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from labsupport.arguments import number
from labsupport.extras import imported
from labsupport.tabular import bool_column, float_column, narrowest, shape_of, table

if TYPE_CHECKING:
    import pandas as pd

MIN_REFERENCE, MIN_EACH = 200, 20  # fewest labelled examples, and fewest of the rarer label
GROUP = 10  # neighbours in a group at least: with fewer, the lowest step would be too low, and the highest too high
MIDDLE = (0.01, 0.99)  # quantiles of the reference's confidences, beyond which it has too few examples
FOLDS = 5


class NotEstimable(ValueError):
    """No performance can be estimated from this data. The message gives the reason, and what to do."""


@dataclass(frozen=True, eq=False, repr=False)
class Labelled:
    """Hold the labelled examples of a calibration: the model's inputs, the step of each, and which came true."""

    inputs: "pd.DataFrame"
    steps: np.ndarray
    happened: np.ndarray


@dataclass(frozen=True, eq=False, repr=False)
class Calibration:
    """Convert confidences to probabilities, learnt on labelled reference data. Create it with `top_label` or `binary`.

    The calibration is a non-decreasing step function, from isotonic regression (pooling of neighbours in the wrong order:
    Ayer et al., 1955; for classifiers Zadrozny & Elkan, 2002). Groups of ten or more make sure that no step depends on one
    example. The reference must be a labelled random sample of the model's answers. Do not use training data, because the
    model is too confident on them.

    >>> rng = np.random.default_rng(0)
    >>> worth = rng.uniform(0.5, 1, 4000)  # how often such an answer is right
    >>> confidences = worth ** (1 / 3)  # the model is surer than that
    >>> calibration = Calibration.top_label(rng.random(4000) < worth, confidences)
    >>> calibration
    <Calibration of 4000 top-label confidences; expected calibration error 0.156 raw, 0.007 calibrated>
    >>> calibration.calibrated([0.8, 0.9, 0.99]).round(2), np.power([0.8, 0.9, 0.99], 3).round(2)
    (array([0.55, 0.76, 0.99]), array([0.51, 0.73, 0.97]))
    """

    starts: np.ndarray  # (K - 1,): the confidence at which each step but the first begins
    rates: np.ndarray  # (K,): for each step, the share of examples that came true
    counts: np.ndarray  # (K,): for each step, the number of examples
    middle: tuple[float, float]  # between these confidences lie 98 % of the reference
    errors: tuple[float, float]  # expected calibration error before and after; after is cross-fitted
    threshold: float | None  # None for top-label confidences
    labelled: Labelled | None = None  # None without inputs

    @classmethod
    def top_label(cls, correct: np.ndarray, confidences: np.ndarray, inputs: Any = None) -> "Calibration":
        """Calibrate a model with any number of classes. `confidences` (N,), 0 to 1, are those of its answers.

        `correct` (N,), bool, is True for the right answers. From probabilities (N, classes), the answers are
        `probabilities.argmax(axis=1)` and their confidences `probabilities.max(axis=1)`. Detections count as answers too;
        the accuracy is then their precision. `inputs` are the model's inputs, a table of N rows. With them `estimate` can
        weight these examples. Raises `NotEstimable` for unusable data and for fewer than `MIN_REFERENCE` examples.
        """
        return cls._fitted(*checked_pair(confidences, correct), None, inputs)

    @classmethod
    def binary(
        cls, labels: np.ndarray, probabilities: np.ndarray, threshold: float = 0.5, inputs: Any = None
    ) -> "Calibration":
        """Calibrate a model with two classes. `probabilities` (N,), 0 to 1, are of the positive class, `labels` (N,) bool.

        The model's answer is positive if the probability is at least `threshold`. `inputs` and errors are as in `top_label`.
        """
        try:
            threshold = number("threshold", threshold, 0, 1)
        except ValueError as error:
            raise NotEstimable(f"{error}, the probability from which on the model says yes") from None
        return cls._fitted(*checked_pair(probabilities, labels), threshold, inputs)

    @classmethod
    def _fitted(
        cls, confidences: np.ndarray, happened: np.ndarray, threshold: float | None, inputs: Any
    ) -> "Calibration":
        if len(happened) < MIN_REFERENCE:
            raise NotEstimable(f"{len(happened)} reference examples: at least {MIN_REFERENCE} must have labels")
        if (rarer := min(happened.sum(), (~happened).sum())) < MIN_EACH:
            raise NotEstimable(f"only {rarer} reference labels of the rarer kind: at least {MIN_EACH} are needed")
        errors = calibration_error(happened, confidences), _cross_fitted_error(happened, confidences)
        low, high = np.quantile(confidences, MIDDLE).tolist()
        fitted = cls(*_staircase(happened, confidences), (low, high), errors, threshold)
        if inputs is None:
            return fitted
        labelled = Labelled(read_inputs(inputs, len(happened)), fitted.steps(confidences), happened)
        return replace(fitted, labelled=labelled)

    def calibrated(self, confidences: np.ndarray) -> np.ndarray:
        """Return for each confidence the probability that such an answer is right, or such an example positive."""
        probabilities: np.ndarray = self.rates[self.steps(checked(confidences))]
        return probabilities

    def steps(self, confidences: np.ndarray) -> np.ndarray:
        """Return the step of each confidence, (N,). 0.9 as float32 is on the step of 0.9 as float64."""
        held = narrowest([self.starts.dtype.type, confidences.dtype.type])
        return np.searchsorted(self.starts.astype(held), confidences.astype(held), side="right")

    def weighted(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return each step's rate and number of examples, (K,), with the labelled examples weighted by `weights` (N,).

        The number is Kish's effective sample size: the number of examples of equal weight that carry as much information. A
        step without weight keeps its rate and counts as no example.
        """
        assert self.labelled is not None  # `weights` are those of its examples
        of_step = partial(np.bincount, self.labelled.steps, minlength=len(self.rates))
        whole, came_true = of_step(weights=weights), of_step(weights=weights * self.labelled.happened)
        rates = np.divide(came_true, whole, out=self.rates.copy(), where=whole > 0)
        return rates, np.divide(whole**2, of_step(weights=weights**2), out=np.zeros(len(whole)), where=whole > 0)

    def positive(self, confidences: np.ndarray) -> np.ndarray:
        """Return which answers are positive. For top-label confidences, return True for all."""
        return np.ones(len(confidences), bool) if self.threshold is None else confidences >= self.threshold

    def __repr__(self) -> str:
        kind = "top-label confidences" if self.threshold is None else "binary probabilities"
        before, after = self.errors
        error = f"expected calibration error {before:.3f} raw, {after:.3f} calibrated"
        return f"<Calibration of {self.counts.sum()} {kind}; {error}>"


def calibration_error(happened: np.ndarray, confidences: np.ndarray, bins: int = 10) -> float:
    """Return the expected calibration error (Naeini et al., 2015; Guo et al., 2017), over bins of equal width.

    It is the difference between the mean confidence and the share that came true in a bin, averaged over examples.
    `happened` (N,) bool, `confidences` (N,) 0 to 1. On a sample it is never 0: with 2,000 perfectly calibrated confidences
    it is about .02.

    >>> calibration_error([True, False], [0.9, 0.9])
    0.4
    """
    confidences, happened = checked_pair(confidences, happened)
    bins = number("bins", bins, 1, 1_000_000, whole=True)
    place = np.minimum((confidences * bins).astype(int), bins - 1)
    return float(np.abs(np.bincount(place, weights=confidences - happened)).sum() / len(happened))


def _staircase(happened: np.ndarray, confidences: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return isotonic regression as K steps: where each but the first begins (K - 1,), rates (K,) and sizes (K,)."""
    isotonic_regression = imported("scipy.optimize").isotonic_regression

    values, place, counts = np.unique(confidences, return_inverse=True, return_counts=True)
    group = np.flatnonzero(np.diff((np.cumsum(counts) - counts) // GROUP, prepend=-1))  # where each group begins
    group = group[np.add.reduceat(counts, group) >= GROUP]  # a smaller group, as ties leave, joins the one before
    came_true, counts = np.add.reduceat(np.bincount(place, weights=happened), group), np.add.reduceat(counts, group)
    values = values[group]
    rates, first = np.unique(isotonic_regression(came_true / counts, weights=counts).x, return_index=True)
    return values[first[1:]], rates, np.add.reduceat(counts, first)


def _cross_fitted_error(happened: np.ndarray, confidences: np.ndarray) -> float:
    """Return the error after calibration with the other folds, because an example must not calibrate itself."""
    fold, calibrated = np.arange(len(happened)) % FOLDS, np.empty(len(happened))
    for k in range(FOLDS):
        starts, rates, _ = _staircase(happened[fold != k], confidences[fold != k])
        calibrated[fold == k] = rates[np.searchsorted(starts, confidences[fold == k], side="right")]
    return calibration_error(happened, calibrated)


def checked(confidences: np.ndarray) -> np.ndarray:
    """Return the confidences as an array of float. Raises `NotEstimable`."""
    shape = shape_of(confidences)
    if len(shape) != 1 or not shape[0]:
        raise NotEstimable(f"confidences of shape {shape}: give one number for each answer, and some")
    try:
        confidences = float_column("confidences", confidences)
    except ValueError as error:
        raise NotEstimable(f"confidences that are no numbers: {error}") from None
    if not ((confidences >= 0) & (confidences <= 1)).all():  # false for NaN, too
        raise NotEstimable("confidences are 0 to 1: leave out what is missing, turn scores into probabilities")
    return confidences


def checked_pair(confidences: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return confidences and labels as arrays of float and of bool. Raises `NotEstimable`."""
    confidences = checked(confidences)
    try:
        labels = bool_column("labels", labels)
    except ValueError as error:
        raise NotEstimable(f"{error}: give one bool for each of {len(confidences)} confidences") from None
    if len(labels) != len(confidences):
        raise NotEstimable(f"{len(labels)} labels for {len(confidences)} confidences: give one bool for each")
    return confidences, labels


def read_inputs(inputs: Any, rows: int) -> "pd.DataFrame":
    """Return the model's inputs as a table of `rows` rows. Raises `NotEstimable`."""
    try:
        frame = table(inputs, "inputs")
    except ValueError as error:
        raise NotEstimable(str(error)) from None
    if len(frame) != rows or not len(frame.columns):
        raise NotEstimable(f"inputs of shape {frame.shape} for {rows} examples: give one row for each")
    return frame.reset_index(drop=True)
